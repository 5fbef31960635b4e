"""Audit on a real control plane: the trail, refusals, erasable addresses, signed heads against a journal that somebody changed, and
secrets that must not be found anywhere.
"""
import glob
import hashlib
import http.client
import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import tempfile
import time
import unittest

BESIDE = "host"  # a lane of its own in tools/test.py: mostly waits

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
PASSWORD = "canary-operator-password"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def found_in(folder, text, leave_out=()):
    """Files below the folder that hold the text."""
    out = []
    for path in glob.glob(folder + "/**", recursive=True):
        if os.path.isfile(path) and not any(part in path for part in leave_out):
            with open(path, "rb") as f:
                if text.encode() in f.read():
                    out.append(os.path.relpath(path, folder))
    return out


@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Audit(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.holder = tempfile.TemporaryDirectory(prefix="muster-audit-")
        cls.dir = cls.holder.name
        cls.data, cls.port, cls.server = cls.dir + "/data", free_port(), None
        cls.put("operator", PASSWORD)
        made = cls.musterd("init", "--name", "127.0.0.1", "--password-file", cls.dir + "/operator.secret")
        if made.returncode != 0:
            raise RuntimeError(made.stderr)
        cls.ca = next(line.split()[-1] for line in made.stdout.splitlines() if line.startswith("CA SHA-256"))
        cls.start()
        cls.cli("login", "https://127.0.0.1:%d" % cls.port, "--ca-sha256", cls.ca, "--user", "admin", "--password-file", cls.dir + "/operator.secret")

    @classmethod
    def tearDownClass(cls):
        cls.stop()
        cls.holder.cleanup()

    @classmethod
    def put(cls, name, text):
        path = cls.dir + "/%s.secret" % name
        with open(path, "w") as f:
            f.write(text + "\n")
        os.chmod(path, 0o600)
        return path

    @classmethod
    def musterd(cls, *words, data=None):
        return subprocess.run([BUILD + "/musterd", *words, "--data", data or cls.data], capture_output=True, text=True, timeout=120)

    @classmethod
    def start(cls):
        log = open(cls.dir + "/musterd.log", "a")
        cls.server = subprocess.Popen([BUILD + "/musterd", "serve", "--data", cls.data, "--listen", "127.0.0.1:%d" % cls.port], stdout=log, stderr=log)
        log.close()
        end = time.time() + 60
        while time.time() < end:
            try:
                socket.create_connection(("127.0.0.1", cls.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("musterd does not serve after 60 s")

    @classmethod
    def stop(cls):
        if cls.server is not None and cls.server.poll() is None:
            cls.server.terminate()
            cls.server.wait(60)

    @classmethod
    def environment(cls, who):
        os.makedirs(cls.dir + "/home-" + who, exist_ok=True)
        return dict(os.environ, HOME=cls.dir + "/home-" + who, MUSTER_CONFIG=cls.dir + "/home-%s/config.json" % who)

    @classmethod
    def cli(cls, *words, who="admin", check=True):
        done = subprocess.run([BUILD + "/muster", *words], env=cls.environment(who), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        if check and done.returncode != 0:
            raise AssertionError("muster %s: %s" % (" ".join(words), done.stderr))
        return done

    def ask(self, method, path, body=None, token=None):
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=ssl.create_default_context(cafile=self.data + "/ca.pem"))
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = "Bearer " + token
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def test_1_the_trail(self):
        self.cli("org", "create", "trail")
        entries = json.loads(self.cli("audit", "--verb", "create", "-o", "json").stdout)["items"]
        mine = [e for e in entries if e["object"]["name"] == "trail"]
        self.assertEqual([(e["actor"]["name"], e["verb"], e["object"]["kind"], e["outcome"]) for e in mine], [("admin", "create", "organisation", "done")])
        same = [json.loads(line) for line in self.cli("audit", "--object", mine[0]["object"]["id"], "--since", "all", "-o", "jsonl").stdout.splitlines()]
        self.assertEqual([e["seq"] for e in same], [mine[0]["seq"]])
        self.assertRegex(self.cli("audit", "--actor", "admin", "-o", "cef").stdout, r"(?m)^CEF:0\|Muster\|musterd\|.* suser=usr-\d+ .*act=create.*fname=trail")
        self.assertRegex(self.cli("audit", "--actor", "admin", "-o", "syslog").stdout,
                         r"(?m)^<109>1 \d{4}-\S+Z 127\.0\.0\.1 musterd - org\.created \[muster@32473 .*objectName=\"trail\".*\] organisation trail was made$")
        self.assertIn("trail", self.cli("audit").stdout)
        self.assertEqual(self.cli("audit", "--since", "all", "--until", "2000-01-01").stdout, "")
        self.assertEqual(self.cli("audit", "--since", "tomorrow", check=False).returncode, 2)

    def test_2_following(self):
        follow = subprocess.Popen([BUILD + "/muster", "audit", "-f", "-o", "jsonl", "--verb", "create"], env=self.environment("admin"), stdout=subprocess.PIPE, text=True)
        self.addCleanup(follow.stdout.close)
        self.addCleanup(follow.wait)
        self.addCleanup(follow.kill)
        follow.stdout.readline()  # what is there already: it follows from now on
        self.cli("org", "create", "followed")
        names = []
        while "followed" not in names:
            line = follow.stdout.readline()
            self.assertTrue(line, "it ended: " + ", ".join(names))
            names.append(json.loads(line)["object"]["name"])
        self.assertEqual(names.count("followed"), 1)

    def test_3_refused_and_erased(self):
        for _ in range(3):
            self.assertEqual(self.ask("GET", "/api/v1/whoami", token="mst_" + "A" * 43)[0], 401)
        rows = json.loads(self.cli("audit", "refused", "--actor", "nobody", "-o", "json").stdout)["items"]
        self.assertEqual([r["count"] for r in rows if r["operation"] == "WhoAmI"], ["3"])
        self.assertRegex(self.cli("audit", "refused").stdout, r"nobody +WhoAmI +unauthenticated +3 ")
        def addresses():
            return [path for path in found_in(self.data, "127.0.0.1") if "addresses.db" in path]
        end = time.time() + 20
        while time.time() < end and not addresses():
            time.sleep(0.1)
        self.assertTrue(addresses(), "no address was noted")
        self.assertEqual(found_in(self.data, "127.0.0.1", ["addresses.db", "keys", "relay", "ca.pem"]), [], "an address outside of its file")
        done = self.musterd("audit", "erase", "--older-than", "0")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"^[1-9]\d* addresses are erased")
        while time.time() < end and addresses():  # of a request that was not written down yet
            time.sleep(0.5)
            self.musterd("audit", "erase", "--older-than", "0")
        self.assertEqual(addresses(), [])
        self.assertEqual(self.musterd("audit", "erase").returncode, 1)
        self.assertTrue(all(not e.get("address") for e in json.loads(self.cli("audit", "-o", "json").stdout)["items"]))

    def test_4_secrets_are_nowhere(self):
        """Known secrets go in through every door; then files, processes, metrics and everything that is said are searched."""
        said = []
        secrets = {"operator password": PASSWORD, "password": "canary-user-password", "new password": "canary-changed-password", "wrong password": "canary-wrong-password",
                   "registry": "canary-registry-password"}
        files = {name: self.put(name.replace(" ", "-"), text) for name, text in secrets.items()}
        self.cli("org", "create", "canary")
        self.cli("project", "create", "default", "--org", "canary")
        said.append(self.cli("user", "create", "tweety", "--role", "tenant", "--org", "canary", "--password-file", files["password"]).stdout)
        login = ("login", "https://127.0.0.1:%d" % self.port, "--ca-sha256", self.ca, "--user", "tweety", "--password-file")
        refused = self.cli(*login, files["wrong password"], who="tweety", check=False)
        self.assertNotEqual(refused.returncode, 0)
        said += [refused.stdout, refused.stderr]
        said.append(self.cli(*login, files["password"], who="tweety").stdout)
        status, text = self.ask("POST", "/api/v1/login", {"name": "tweety", "password": secrets["password"], "nonsense": 1})
        self.assertEqual(status, 400)
        said.append(text)
        said.append(self.ask("POST", "/api/v1/login", {"name": "tweety", "password": [secrets["password"]]})[1])
        secrets["login token"] = json.loads(self.ask("POST", "/api/v1/login", {"name": "tweety", "password": secrets["password"]})[1])["token"]
        secrets["api token"] = json.loads(self.ask("POST", "/api/v1/tokens", {"label": "ci"}, secrets["login token"])[1])["secret"]
        secrets["join token"] = json.loads(self.ask("POST", "/api/v1/join-tokens", {}, secrets["login token"])[1])["secret"]
        said.append(self.ask("POST", "/api/v1/enroll", {"token": secrets["join token"], "csrPem": "nonsense", "name": "x"})[1])
        said.append(self.ask("POST", "/api/v1/enroll", {"token": secrets["join token"] + "x", "csrPem": "nonsense", "name": "x"})[1])
        registry = {"host": "registry.example", "username": "u", "password": secrets["registry"]}
        self.assertEqual(self.ask("POST", "/api/v1/registries", registry, secrets["login token"])[0], 200)
        said.append(self.ask("POST", "/api/v1/registries", dict(registry, host="no host"), secrets["login token"])[1])
        said.append(self.ask("GET", "/api/v1/registries", None, secrets["login token"])[1])
        said.append(self.ask("POST", "/api/v1/password", {"oldPassword": secrets["wrong password"], "newPassword": secrets["new password"]}, secrets["login token"])[1])
        self.assertEqual(self.ask("POST", "/api/v1/password", {"oldPassword": secrets["password"], "newPassword": secrets["new password"]}, secrets["api token"])[0], 200)
        said.append(self.ask("GET", "/api/v1/whoami", None, secrets["login token"])[1])  # it ended with the old password
        # A runtime environment is kept in the journal as it was given; it must not leave that file.
        secrets["runtime environment"] = "canary-runtime-secret"
        job = {"name": "hidden", "entrypoint": "true", "runtimeEnvJson": json.dumps({"env_vars": {"KEY": secrets["runtime environment"]}}),
               "clusterSpec": {"name": "none", "image": "x/y:1", "head": {"resources": {"cpus": 1}}}}
        status, text = self.ask("POST", "/api/v1/jobs", job, secrets["api token"])
        self.assertEqual(status, 200, text)
        said += [text, self.ask("POST", "/api/v1/jobs", dict(job, nonsense=1), secrets["api token"])[1]]
        said.append(self.ask("GET", "/metrics")[1])
        for form in ("json", "cef", "syslog", "table"):
            said.append(self.cli("audit", "--since", "all", "-o", form).stdout)
            said.append(self.cli("audit", "refused", "-o", form).stdout)
        said.append(self.musterd("journal", "show", "--count", "100000").stdout)

        time.sleep(1)  # the batch of addresses
        for name, secret in secrets.items():
            self.assertGreater(len(secret), 12)
            self.assertEqual([text for text in said if secret in text], [], "%s was said" % name)
            kept = found_in(self.dir, secret, [".secret", "/home-"])
            if name == "runtime environment":
                self.assertTrue(kept, "it was not given at all")
                kept = [path for path in kept if not path.startswith("data/journal.db")]
            self.assertEqual(kept, [], "%s lies in a file" % name)
            for pid in [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]:
                for part in ("environ", "cmdline"):
                    try:
                        with open("/proc/%s/%s" % (pid, part), "rb") as f:
                            self.assertNotIn(secret.encode(), f.read(), "%s is in /proc/%s/%s" % (name, pid, part))
                    except OSError:
                        pass

    def verify(self, head, data=None, key=None):
        done = self.musterd("journal", "verify", "--head", head, *(["--key", key] if key else []), data=data)
        return done.returncode, done.stdout + done.stderr

    def copy(self, name):
        target = self.dir + "/" + name
        shutil.copytree(self.data, target)
        return target

    def test_5_heads(self):
        head, later = self.dir + "/head.json", self.dir + "/later.json"
        self.assertEqual(len(os.listdir(self.data + "/heads")), 1, "the first of the day")
        backup = self.dir + "/backup"
        self.assertEqual(self.musterd("backup", backup).returncode, 0)
        token = self.token()
        for n in range(20):
            self.assertEqual(self.ask("POST", "/api/v1/orgs", {"name": "h%d" % n}, token)[0], 200)
        made = self.musterd("journal", "head", "--out", head)  # while it serves
        self.assertEqual(made.returncode, 0, made.stderr)
        self.cli("audit", "head", "--out", later)
        key = glob.glob(self.data + "/keys/audit-*.pub")[0]
        auditors = shutil.copy(key, self.dir + "/auditor.pub")
        for each in (head, later):
            self.assertEqual(self.verify(each)[0], 0, self.verify(each))
        self.stop()
        self.addCleanup(self.start)
        with open(head) as f:
            signed = json.load(f)
        seq = int(signed["seq"])

        cut = self.copy("cut")
        with sqlite3.connect(cut + "/journal.db") as db:
            db.execute("DELETE FROM entry WHERE seq > ?", (seq - 3,))
        db.close()
        code, text = self.verify(head, cut, auditors)
        self.assertEqual(code, 1, text)
        self.assertIn("the entries %d to %d are missing" % (seq - 2, seq), text)
        self.assertEqual(self.musterd("journal", "verify", data=cut).returncode, 0, "the chain alone does not show it")

        rewritten, changed = self.copy("rewritten"), seq - 10
        with sqlite3.connect(rewritten + "/journal.db") as db:
            self.rewrite(db, changed)
        db.close()
        self.assertEqual(self.musterd("journal", "verify", data=rewritten).returncode, 0, "its chain was made anew")
        code, text = self.verify(head, rewritten, auditors)
        self.assertEqual(code, 1, text)
        self.assertRegex(text, r"TAMPERED: .*rewritten.*an entry between \d+ and %d was changed" % seq)

        damaged = self.copy("damaged")
        with sqlite3.connect(damaged + "/journal.db") as db:
            row = bytearray(db.execute("SELECT bytes FROM entry WHERE seq=?", (changed,)).fetchone()[0])
            row[-40] ^= 1
            db.execute("UPDATE entry SET bytes=? WHERE seq=?", (bytes(row), changed))
        db.close()
        code, text = self.verify(head, damaged, auditors)
        self.assertEqual(code, 1, text)
        self.assertRegex(text, r"\b(%d|%d)\b" % (changed, changed + 1))

        restored = self.dir + "/restored"
        self.assertEqual(self.musterd("restore", backup, data=restored).returncode, 0)
        code, text = self.verify(head, restored, auditors)
        self.assertEqual(code, 0, text)
        self.assertRegex(text, r"^restored: .*incarnation to 2")

        self.assertEqual(self.musterd("audit", "rotate").returncode, 0)
        self.assertEqual(self.verify(head)[0], 0, "heads of the old key stay good")
        forged = dict(signed, seq=str(seq - 1))
        with open(self.dir + "/forged.json", "w") as f:
            json.dump(forged, f)
        self.assertEqual(self.verify(self.dir + "/forged.json")[0], 1)

    def token(self):
        return json.loads(self.ask("POST", "/api/v1/login", {"name": "admin", "password": PASSWORD})[1])["token"]

    @staticmethod
    def rewrite(db, changed):
        """Changes one entry and makes the chain whole again: every later entry gets the hash of the one before it as that is now."""
        rows = [(seq, bytes(row)) for seq, row in db.execute("SELECT seq, bytes FROM entry WHERE seq >= ? ORDER BY seq", (changed,))]
        old, new = None, None
        for seq, row in rows:
            if seq == changed:
                at = row.index(b"h", row.index(b"req-") + 20)  # a letter of the name of an organisation
                fresh = row[:at] + b"H" + row[at + 1:]
            else:
                assert row.count(old) == 1
                fresh = row.replace(old, new)
            old, new = hashlib.sha256(row).digest(), hashlib.sha256(fresh).digest()
            db.execute("UPDATE entry SET bytes=? WHERE seq=?", (fresh, seq))


if __name__ == "__main__":
    unittest.main()
