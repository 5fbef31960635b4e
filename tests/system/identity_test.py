"""Who a cluster and a job are to services outside: identity tokens of a real cluster on real Ray, found where the programs find them and
checked by a JWT library that is not ours, with the keys that the control plane publishes.
"""
import base64
import json
import os
import signal
import subprocess
import sys
import time
import unittest
import venv

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
LIBRARY = os.path.join(ROOT, "build/jwt-2.10.1")
LIFE = 60
CLUSTER = """cluster_name: ident
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}
docker: {image: "muster/ray:2.60.0"}
muster: {identity: "vault.example.org,sts.example.org", head: {CPU: 1, memory: 2147483648}}
"""
# Checks the token on standard input against the key set in a file; prints its claims.
CHECK = """import json, jwt, sys
keys = {k["kid"]: jwt.PyJWK(k) for k in json.load(open(sys.argv[1]))["keys"]}
token = sys.stdin.read()
try:
    print(json.dumps(jwt.decode(token, keys[jwt.get_unverified_header(token)["kid"]], algorithms=["EdDSA"], issuer=sys.argv[2], audience=sys.argv[3],
                                options={"require": ["exp", "iat", "nbf", "sub", "aud", "iss", "jti"]})))
except Exception as fault:
    print(json.dumps({"refused": type(fault).__name__}))
"""
SHOW = "import os; print('TOKEN', open(os.environ['MUSTER_IDENTITY_TOKEN_FILE']).read())"


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Identity(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not os.path.exists(LIBRARY + "/bin/python"):
            venv.create(LIBRARY, with_pip=True)
            subprocess.run([LIBRARY + "/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pyjwt[crypto]==2.10.1"], check=True)
        cls.world = world = demo.World(BUILD, name="ident", say=lambda text: None)
        try:
            world.lab.start_docker()
            subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
            world.musterd_args = ["--identity-life", str(LIFE)]
            world.start_server()
            for name, nat in (("one", "home"), ("two", "lan:one")):
                world.add_machine(name, nat)
            world.wait("machines", "both machines online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= 2)
            with open(world.dir + "/ident.yaml", "w") as f:
                f.write(CLUSTER)
            world.cli("up", world.dir + "/ident.yaml", "--yes")
        except BaseException:
            world.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.world.close()

    def published(self, path):
        get = "import ssl, urllib.request as u; print(u.urlopen(%r, context=ssl._create_unverified_context()).read().decode())" % ("https://" + demo.SERVER + path)
        return json.loads(self.world.lab.run("user", ["python3", "-c", get]).stdout)

    def claims(self, token, audience="vault.example.org"):
        path = self.world.dir + "/jwks.json"
        with open(path, "w") as f:
            json.dump(self.published("/.well-known/jwks.json"), f)
        issuer = self.published("/.well-known/openid-configuration")["issuer"]
        done = subprocess.run([LIBRARY + "/bin/python", "-c", CHECK, path, issuer, audience], input=token, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def on(self, slot, *words):
        return self.world.cli("exec", "ident", "--slot", slot, "--", *words).stdout

    def token(self, slot=None):
        slot = slot or self.slots()[0]
        return self.on(slot, "python3", "-c", SHOW).split("TOKEN ")[1].strip()

    def slots(self):
        return [s["id"] for s in sorted(self.world.cluster("ident")["slots"], key=lambda s: s["role"] != "head")]

    def test_1_every_member_has_the_clusters(self):
        seen = set()
        for slot in self.slots():
            claims = self.claims(self.token(slot))
            self.assertRegex(claims.get("sub", str(claims)), r"^org:[a-z0-9-]+:project:[a-z0-9-]+:cluster:ident$")
            self.assertEqual(claims["aud"], ["vault.example.org", "sts.example.org"])
            self.assertEqual(claims["muster"]["cluster_id"], self.world.cluster("ident")["id"])
            self.assertLessEqual(claims["exp"] - claims["iat"], LIFE)
            seen.add(claims["muster"]["lease_id"])
            self.assertEqual(self.on(slot, "stat", "-c", "%a", "/muster/secrets/identity").strip(), "400")
            self.assertIn("tmpfs", self.on(slot, "stat", "-f", "-c", "%T", "/muster/secrets/identity"))
        self.assertEqual(len(seen), 2, "each lease has its own")
        self.assertEqual(self.claims(self.token(), "somebody.else"), {"refused": "InvalidAudienceError"})
        forged = self.token()
        self.assertEqual(self.claims(forged[:-8] + ("AAAAAAAA" if not forged.endswith("AAAAAAAA") else "BBBBBBBB")), {"refused": "InvalidSignatureError"})

    def test_2_a_jobs_driver_has_its_own(self):
        done = self.world.cli("job", "submit", "--cluster", "ident", "--identity", "sts.example.org", "--", "python3", "-c", SHOW, timeout=150)
        claims = self.claims(done.stdout.split("TOKEN ")[1].split()[0], "sts.example.org")
        self.assertRegex(claims.get("sub", str(claims)), r":cluster:ident:job:job-\d+$")
        self.assertEqual(claims["muster"]["job_id"], claims["sub"].split(":")[-1])
        jobs = {j["id"] for j in self.world.json("job", "list")["items"]}
        self.assertIn(claims["muster"]["job_id"], jobs)
        plain = self.world.cli("job", "submit", "--cluster", "ident", "--", "python3", "-c", SHOW, timeout=150)
        self.assertNotIn("job_id", self.claims(plain.stdout.split("TOKEN ")[1].split()[0])["muster"], "who asks for none has the cluster's")

    def test_3_renewed_before_it_ends(self):
        first = self.token()
        self.world.wait("renewal", "another token in its place", LIFE, lambda: self.token() != first)
        self.assertIn("sub", self.claims(first), "the one before has not ended yet")
        time.sleep(max(0.0, self.part(first, 1)["exp"] + 1 - time.time()))
        self.assertEqual(self.claims(first), {"refused": "ExpiredSignatureError"})
        self.assertIn("sub", self.claims(self.token()))

    def test_4_the_key_before_stays_published(self):
        token, before = self.token(), self.published("/.well-known/jwks.json")
        done = self.world.lab.run("server", [self.world.binary("musterd"), "keys", "rotate", "workload", "--data", self.world.data])
        self.assertIn("workload key", done.stdout)
        os.kill(self.world.musterd.popen.pid, signal.SIGHUP)
        self.world.wait("keys", "two published keys", 20, lambda: len(self.published("/.well-known/jwks.json")["keys"]) == 2)
        self.assertIn("sub", self.claims(token))
        old = {k["kid"] for k in before["keys"]}
        self.world.wait("keys", "a token of the new key", LIFE, lambda: self.part(self.token(), 0)["kid"] not in old)
        self.assertIn("sub", self.claims(self.token()))

    @staticmethod
    def part(token, which):
        return json.loads(base64.urlsafe_b64decode(token.split(".")[which] + "=="))

    def test_5_it_ends_with_the_lease(self):
        self.world.cli("down", "ident", "--yes")
        find = ["find", "/dev/shm", "/run", "-maxdepth", "4", "-name", "identity*", "-path", "*lease-*"]
        self.world.wait("files", "no token left on the machines", 60, lambda: subprocess.run(find, capture_output=True, text=True).stdout.strip() == "")


if __name__ == "__main__":
    unittest.main()
