"""docs/security/runbooks.md, done as it is written: every command block of it runs on a real control plane with two machines, its words
in capitals replaced, and what the text promises is looked at afterwards.
"""
import collections
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
sys.path.insert(0, os.path.join(ROOT, "tests/system"))
import demo  # noqa: E402
import login_test  # noqa: E402

BESIDE = "host"  # a lane of its own in tools/test.py: mostly waits

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
PAPER = os.path.join(ROOT, "docs/security/runbooks.md")
PASSWORD = "correct horse battery staple"


def blocks(path=PAPER):
    """{heading: [script, ...]}: the console blocks below each heading, without their prompts."""
    found, heading, inside = collections.defaultdict(list), "", None
    for line in open(path):
        line = line.strip()
        if line.startswith("## "):
            heading = line[3:]
        elif line == "```console":
            inside = []
        elif line == "```" and inside is not None:
            found[heading].append("\n".join(inside))
            inside = None
        elif inside is not None:
            assert line.startswith("$ "), "in %s a command begins with $: %s" % (heading, line)
            inside.append(line[2:])
    return found


@unittest.skipUnless(os.geteuid() == 0, "needs root for machines of its own")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Runbooks(unittest.TestCase):
    """In this order: the later ones stand on what the earlier ones left."""

    @classmethod
    def setUpClass(cls):
        cls.blocks, cls.ran = blocks(), collections.Counter()
        cls.world = world = demo.World(BUILD, name="runbooks", say=lambda text: None)
        try:
            world.start_server()
            cls.relay_folder = world.data + "/relay"  # its own, whatever becomes of musterd's folder
            world.add_machine("attic", "home")
            world.add_machine("cellar", "lan:attic")
            cls.online("attic", "cellar")
            cls.bin = world.dir + "/bin"
            os.mkdir(cls.bin)
            for name in ("bob", "carol"):
                world.cli("user", "create", name, "--role", "tenant", "--org", "lab", "--password-file", world.dir + "/operator.password", who="admin")
            cls.program("sudo", '"$@"')
            cls.program("musterd", shlex.quote(world.binary("musterd")) + ' "$@"')
            cls.be("admin")
            cls.on("attic")
        except Exception:
            world.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.world.close()

    # ---- what the commands find on their PATH
    @classmethod
    def program(cls, name, line):
        path = cls.bin + "/" + name
        with open(path, "w") as f:
            f.write("#!/bin/sh\nexec %s\n" % line)
        os.chmod(path, 0o755)

    @classmethod
    def be(cls, who):
        account = " ".join("%s=%s" % (key, shlex.quote(value)) for key, value in cls.world.account(who).items())
        cls.program("muster", "%s env %s %s \"$@\"" % (shlex.join(cls.world.lab.enter("user")), account, shlex.quote(cls.world.binary("muster"))))

    @classmethod
    def on(cls, machine):
        """muster-agent is that of this machine."""
        words = cls.world.lab.enter(machine) + [cls.world.binary("muster-agent")]
        cls.program("muster-agent", '%s "$@" --state-dir %s' % (shlex.join(words), shlex.quote("%s/%s" % (cls.world.dir, machine))))

    @classmethod
    def online(cls, *names):
        cls.world.wait("machines", "online: " + ", ".join(names), 60, lambda: all(cls.world.nodes().get(n, {}).get("state") == "online" for n in names))

    def connected(self, count):
        """So many machines have an open session: what a restored journal says of them is of before."""
        ask = "import ssl, urllib.request as u; print(u.urlopen('https://127.0.0.1:8443/metrics', context=ssl._create_unverified_context()).read().decode())"
        told = "muster_agents_connected %d\n" % count
        self.world.wait("machines", "%d connected" % count, 60, lambda: told in self.world.lab.run("server", [sys.executable, "-c", ask], check=False).stdout)

    def script(self, heading, index, **words):
        self.ran[heading, index] += 1
        text = self.blocks[heading][index]
        text = text.replace("https://muster.example.org", "https://" + demo.SERVER).replace("muster.example.org", demo.SERVER)
        for word, value in words.items():
            self.assertRegex(text, r"\b%s\b" % word, "the block has other words")
            text = re.sub(r"\b%s\b" % word, value, text)
        left = re.findall(r"\b(?:DIR|FILE|OTHER|NODE|USER|NAME|TOKEN|SEQ|CLUSTER|ROOT|OLDROOT|OLD|REQUEST|CERT|OLDKEY|NEWKEY|KIND)\b", text)
        self.assertEqual(left, [], "nobody said what these are: " + text)
        path = self.world.dir + "/script"
        with open(path, "w") as f:
            f.write("set -e\nexport PATH=%s:$PATH\n%s\n" % (self.bin, text))
        return ["bash", path]

    def do(self, heading, index, **words):
        self.program("pidof", "echo %d" % self.world.musterd.popen.pid)
        done = subprocess.run(self.script(heading, index, **words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, "%s, block %d: %s%s" % (heading, index + 1, done.stdout, done.stderr))
        return done.stdout + done.stderr

    def serving(self):
        self.world.wait("server", "the control plane serving", 30, lambda: self.world.cli("org", "list", check=False, who="admin").returncode == 0)

    # ---- the paper
    def test_01_key_ceremony(self):
        new, key = self.world.dir + "/ceremony", "Key ceremony"
        root = self.world.dir + "/root"
        said = self.do(key, 0, DIR=new, FILE=self.world.dir + "/operator.password", ROOT=root)
        with open(root) as f:
            secret = f.read().split("-----END PRIVATE KEY")[0]
        self.assertEqual(os.stat(root).st_mode & 0o777, 0o600)
        self.assertEqual(subprocess.run(["grep", "-rlF", "--", secret.split("\n")[1], new], capture_output=True, text=True).stdout, "", "the root's key is online")
        anchor = re.search(r"CA SHA-256: ([0-9a-f]{64})", said)[1]
        said = self.do(key, 1, DIR=new)
        self.assertEqual(re.search(r"Fingerprint=([0-9A-F:]+)", said)[1].replace(":", "").lower(), anchor)
        self.assertIn("its key is kept elsewhere", said)
        for line in said.split("\n"):
            if re.search(r"\.key\.pem$|\bsecret$|\w+/key\.pem$", line):
                self.assertRegex(line, "^-rw-------", "somebody else may read a key")
        self.do(key, 2, DIR=new, FILE=self.world.dir + "/ceremony.backup")

    def test_02_back_up_and_restore(self):
        key, old, new = "Back up and restore", self.world.data, self.world.dir + "/restored"
        self.world.cli("org", "create", "kept", who="admin")
        self.do(key, 0, DIR=old, FILE=self.world.dir + "/backup")
        self.world.cli("org", "create", "forgotten", who="admin")
        self.world.musterd.kill()
        self.do(key, 1, FILE=self.world.dir + "/backup", DIR=new)
        self.world.data = new
        self.world.start_musterd()
        self.serving()
        named = {org["name"] for org in self.world.json("org", "list", who="admin")["items"]}
        self.assertIn("kept", named)
        self.assertNotIn("forgotten", named)
        self.connected(2)
        self.online("attic", "cellar")

    def test_03_a_quarantined_machine(self):
        key = "A quarantined machine"
        node = self.world.nodes()["attic"]["id"]
        self.world.cli("nodes", "disable", node, who="admin")
        self.do(key, 0, NODE=node)
        self.online("attic")
        self.on("cellar")
        token = json.loads(self.world.cli("join-token", "create", "--org", "hall", "-o", "json", who="admin").stdout)["secret"]
        with open(self.world.dir + "/join.token", "w") as f:
            f.write(token + "\n")
        self.do(key, 1, FILE=self.world.dir + "/join.token --name cellar2 --no-service")
        self.world.start_agent("cellar")
        self.online("cellar2")

    def test_04_revoke_a_machine(self):
        key, node = "Revoke a machine", self.world.nodes()["cellar2"]["id"]
        self.assertIn("cellar2", self.do(key, 0, NODE=node))
        self.assertEqual(self.world.nodes()["cellar2"]["state"], "revoked")
        self.world.cli("user", "create", "dave", "--role", "supplier", "--org", "hall", "--password-file", self.world.dir + "/operator.password", who="admin")
        self.world.cli("join-token", "create", "--org", "hall", who="admin")
        listed = self.world.json("join-token", "list", who="admin")["items"]
        open_one = next(t["id"] for t in listed if not t.get("revoked") and not t.get("used") and not t.get("usedBy"))
        self.assertIn("dave", self.do(key, 1, USER="dave", TOKEN=open_one))

    def test_05_a_password_that_is_lost(self):
        self.be("alice")
        script = self.script("A password that is lost or known to others", 0, NAME="bob", DIR=self.world.data)
        at = login_test.Terminal(script, dict(os.environ))
        at.until("Old password: ")
        at.type(PASSWORD)
        at.until("New password: ")
        at.type(PASSWORD + " 2")
        at.until("New password again: ")
        at.type(PASSWORD + " 2")
        at.until("The password is changed")
        at.until("bob")
        self.assertEqual(at.end(), 0, at.text)
        self.be("admin")
        done = self.world.cli("login", "https://" + demo.SERVER, "--ca-sha256", self.world.ca, "--user", "bob", "--password-file",
                              self.world.dir + "/operator.password", check=False, who="bob")
        self.assertNotEqual(done.returncode, 0, "bob's old password still holds")

    def test_06_a_second_factor_that_is_lost(self):
        for who in ("carol", "admin"):
            if who != "admin":
                self.world.cli("login", "https://" + demo.SERVER, "--ca-sha256", self.world.ca, "--user", who, "--password-file",
                               self.world.dir + "/operator.password", who=who)
            self.be(who)
            at = login_test.Terminal([self.bin + "/muster", "totp", "enable"], dict(os.environ))
            at.until("Password: ")
            at.type(PASSWORD)
            secret = at.until(r"key ([A-Z2-7]{32}):")[1]
            at.until("Code of the second factor: ")
            at.type(login_test.totp(secret, int(time.time()) // 30))
            at.until("in force")
            self.assertEqual(at.end(), 0, at.text)
        self.be("admin")
        self.assertRegex(self.world.cli("user", "list", who="admin").stdout, r"carol .*yes")
        self.do("A second factor that is lost", 0, USER="carol", NAME="admin", DIR=self.world.data)
        listed = self.world.cli("user", "list", who="admin").stdout
        self.assertNotRegex(listed, r"carol .*yes")
        self.assertNotRegex(listed, r"admin .*yes")

    def test_07_revoke_a_token_or_an_account(self):
        key = "Revoke a token or an account"
        tokens = self.world.json("token", "list", who="carol")["items"]
        before = self.world.cli("whoami", check=False, who="carol").returncode
        self.assertEqual(before, 0)
        self.do(key, 0, TOKEN=tokens[0]["id"], USER="carol")
        self.assertNotEqual(self.world.cli("whoami", check=False, who="carol").returncode, 0, "the account still gets in")
        said = self.do(key, 1, DIR=self.world.data, SEQ="1")
        self.assertIn("carol", said)

    def test_08_the_ca_key_is_lost(self):
        keys = self.world.data + "/keys/"
        with open(keys + "ca.key.pem") as f:
            lost = f.read()
        os.remove(keys + "ca.key.pem")
        self.do("The CA key is lost", 0, FILE=self.world.dir + "/backup", OTHER=self.world.dir + "/other")
        subprocess.run(["cp", "-p", self.world.dir + "/other/keys/ca.key.pem", keys], check=True)
        with open(keys + "ca.key.pem") as f:
            self.assertEqual(f.read(), lost)
        self.world.musterd.kill(signal.SIGTERM)
        self.world.start_musterd()
        self.serving()
        self.online("attic")

    # ---- signing keys, under the same machines
    def keys(self):
        """{kind: [(id, what is said of it), ...]} as musterd keys list shows them, and all that it says."""
        said = subprocess.run([self.world.binary("musterd"), "keys", "list", "--data", self.world.data], capture_output=True, text=True, check=True).stdout
        found = collections.defaultdict(list)
        for kind, each, note in re.findall(r"^(roster|order|relay-token) +([0-9a-f]{16})  (.*)$", said, re.M):
            found[kind].append((each, note))
        return found, said

    def keys_learnt(self):
        self.said_in_time("All machines know", lambda: self.keys()[1])

    def said_in_time(self, what, says):
        try:
            self.world.wait("machines", what, 30, lambda: what in says())
        except demo.DemoError:
            with open(self.world.dir + "/musterd.log", errors="replace") as f:
                self.fail("after 30 s: %s\n%s\n%s" % (says(), json.dumps(self.world.nodes()), f.read()[-3000:]))

    def test_08a_another_signing_key(self):
        key, world = "Another signing key", self.world
        self.keys_learnt()
        before, since = self.keys()[0], world.nodes()["attic"].get("stateSince")
        said = self.do(key, 0, DIR=world.data)
        after = self.keys()[0]
        for kind, told in after.items():
            self.assertEqual(len(told), 2, kind)
            self.assertEqual(told[0][0], before[kind][0][0])
            self.assertIn(told[1][0], said)
        self.assertRegex(after["order"][0][1], "believed until")
        self.assertRegex(after["order"][1][1], "signs,")
        self.assertRegex(after["relay-token"][1][1], "signs from .*believed already")
        self.keys_learnt()
        with open(world.dir + "/attic/agent/signing-keys.pem") as f:
            self.assertEqual(len(re.findall("^Key: order ", f.read(), re.M)), 2)
        self.assertEqual(world.nodes()["attic"].get("stateSince"), since, "the machine's link was cut")
        # The work of a machine goes on by the new key: it takes the order to be idle, and to work again.
        node = world.nodes()["attic"]["id"]
        world.cli("nodes", "drain", node, who="admin")
        world.cli("nodes", "undrain", node, who="admin")
        self.online("attic")
        self.assertRegex(world.cli("audit", "--verb", "rotate", who="admin").stdout, "the order key %s signs from" % after["order"][1][0])

    def test_08a_given_up_signing_keys(self):
        key, world = "A leaked key", self.world
        at = next(i for i, text in enumerate(self.blocks[key]) if "--compromised" in text)
        self.do(key, at, DIR=world.data, KIND="all")
        given_up = self.keys()[0]
        for kind, told in given_up.items():
            self.assertEqual(len(told), 1, "%s: %s" % (kind, told))
        self.keys_learnt()
        self.world.wait("relay", "the newest keys of tokens beside the relay's own", 20, self.relay_knows)
        # A backup of before a change brings back keys that nobody believes: others are made, and learnt.
        self.do("Back up and restore", 2, DIR=world.data)
        os.kill(world.musterd.popen.pid, signal.SIGHUP)
        self.keys_learnt()
        self.assertNotEqual(self.keys()[0]["order"][0][0], given_up["order"][0][0])
        self.online("attic")

    def relay_knows(self):
        with open(self.world.data + "/keys/signing-keys.pem") as f, open(self.relay_folder + "/signing-keys.pem") as g:
            return f.read() == g.read()

    # ---- CAs and roots, under two machines that stay
    def cas(self):
        """[(kind, id, what is said of it), ...] as musterd ca status shows them."""
        said = subprocess.run([self.world.binary("musterd"), "ca", "status", "--data", self.world.data], capture_output=True, text=True, check=True).stdout
        return re.findall(r"^(root|ca) +([0-9a-f]{16}) .*\((.*)\)$", said, re.M), said

    def in_use(self):
        return next(each for kind, each, note in self.cas()[0] if note == "in use")

    def learnt(self):
        """All machines that are linked believe the newest revision; the others of this world were revoked."""
        self.said_in_time("All machines believe", lambda: self.cas()[1])

    def served_by(self, anchor):
        """The server's certificate verifies against this file of roots."""
        asked = "openssl s_client -connect %s:443 -servername muster -CAfile %s -verify_return_error </dev/null" % (demo.SERVER, anchor)
        return self.world.lab.run("user", ["bash", "-c", asked], check=False).returncode == 0

    def test_08b_another_ca(self):
        key, first, links = "Another CA", self.in_use(), self.world.nodes()["attic"].get("stateSince")
        self.do(key, 0, DIR=self.world.data)
        second = self.in_use()
        self.assertNotEqual(second, first)
        root, request, cert = (self.world.dir + name for name in ("/ca.root", "/ca.request", "/ca.cert"))
        subprocess.run([self.world.binary("musterd"), "ca", "root-out", root, "--data", self.world.data], check=True, capture_output=True)
        self.do(key, 1, DIR=self.world.data, REQUEST=request, ROOT=root, CERT=cert)
        third = self.in_use()
        self.assertNotEqual(third, second)
        self.learnt()
        self.world.wait("server", "a certificate of the new CA", 20, lambda: self.served_by(self.world.data + "/ca.pem"))
        refused = subprocess.run(self.script(key, 2, DIR=self.world.data, OLD=first, ROOT=root), capture_output=True, text=True)
        self.assertIn("retire it then", refused.stderr, "nine days are not over")
        self.online("attic")
        self.assertEqual(self.world.nodes()["attic"].get("stateSince"), links, "the machine's link was cut")

    def test_08c_a_ca_given_up(self):
        key, data, root = "A leaked key", self.world.data, self.world.dir + "/ca.root"
        old = self.in_use()
        at = next(i for i, text in enumerate(self.blocks[key]) if "retire OLD" in text)
        said = self.do(key, at, DIR=data, OLD=old, ROOT=root)
        self.assertRegex(said, r"ca +%s .*given up" % old)
        for _, each, note in self.cas()[0]:
            if note == "still believed":
                subprocess.run([self.world.binary("musterd"), "ca", "retire", each, "--data", data, "--root", root, "--now"], check=True, capture_output=True)
        os.kill(self.world.musterd.popen.pid, signal.SIGHUP)
        self.learnt()
        path = self.world.dir + "/attic/agent/"
        with open(path + "trust.pem") as f:
            self.assertIn("GIVEN UP", f.read())
        self.world.wait("attic", "a certificate of a CA that counts", 30, lambda: self.issuer(path + "device.pem") == self.name_of(self.in_use()))

    def issuer(self, path):
        return subprocess.run(["openssl", "x509", "-in", path, "-noout", "-issuer"], capture_output=True, text=True).stdout.split("CN = ")[-1].strip()

    def name_of(self, ca):
        said = self.cas()[1]
        return re.search(r"%s  until \S+  (.*?)  \(" % ca, said)[1]

    def test_08d_another_root(self):
        key, data, old, new = "Another root", self.world.data, self.world.dir + "/ca.root", self.world.dir + "/next.root"
        before = self.world.dir + "/before.pem"
        subprocess.run(["cp", data + "/ca.pem", before], check=True)
        first = next(each for kind, each, note in self.cas()[0] if kind == "root")
        said = self.do(key, 0, DIR=data, OLDROOT=old, ROOT=new)
        anchor = re.search(r"CA SHA-256: ([0-9a-f]{64})", said)[1]
        self.learnt()
        self.assertTrue(self.served_by(before), "who knows the old root only is served while both are believed")
        self.world.cli("login", "https://" + demo.SERVER, "--ca-sha256", anchor, "--user", "alice", "--password-file",
                       self.password_of_alice(), who="alice")
        self.world.cli("login", "https://" + demo.SERVER, "--user", "admin", "--password-file", self.world.dir + "/operator.password", who="admin")
        self.do(key, 1, DIR=data, ROOT=new, OLD=first)
        self.learnt()
        self.world.wait("server", "the new root alone", 20, lambda: not self.served_by(before))
        self.assertEqual(self.world.cli("whoami", check=False, who="admin").returncode, 0, "who logged in anew goes on")
        self.online("attic")
        self.world.musterd.kill(signal.SIGTERM)
        self.world.start_musterd()
        self.serving()
        self.online("attic")
        self.assertTrue(self.served_by(data + "/ca.pem"))

    def password_of_alice(self):
        path = self.world.dir + "/alice.password"
        with open(path, "w") as f:
            f.write(PASSWORD + " 2\n")
        return path

    def test_09_a_new_tls_key(self):
        certificate = self.world.data + "/keys/tls.cert.pem"
        with open(certificate) as f:
            before = f.read()
        text = self.blocks["A leaked key"][1].split("\n")
        self.assertRegex(text[-1], "^openssl x509", "the block ends with a look")
        self.blocks["A leaked key"][1] = "\n".join(text[:-1] + ["sleep 3"] + text[-1:])  # musterd answers the signal in its own time
        said = self.do("A leaked key", 1, DIR=self.world.data)
        self.assertRegex(said, "issuer=.*Muster")
        with open(certificate) as f:
            self.assertNotEqual(f.read(), before)
        self.serving()

    def test_10_certificates_that_end(self):
        """The commands of that table's last column."""
        looks = [c.replace("\\|", "|") for c in re.findall(r"`((?:openssl|sudo muster-agent) [^`]+)`", open(PAPER).read().split("## Certificates that end")[1])]
        self.assertEqual(len(looks), 5)
        self.on("attic")
        for look in looks:
            text = look.replace("DIR", self.world.data).replace("muster.example.org", demo.SERVER)
            done = self.world.lab.run("user", ["bash", "-c", "PATH=%s:$PATH; %s" % (self.bin, text)], check=False)
            self.assertRegex(done.stdout, r"notAfter=|certificate: ", look + ": " + done.stderr)

    # ---- not in the paper: who holds the keys while musterd serves
    def memory_holds(self, pid, secrets):
        """Which of these byte strings lie in the writable memory of a process."""
        found = set()
        with open("/proc/%d/maps" % pid) as maps, open("/proc/%d/mem" % pid, "rb", 0) as memory:
            for line in maps:
                place, rights = line.split()[:2]
                start, end = (int(x, 16) for x in place.split("-"))
                if not rights.startswith("rw") or end - start > 1 << 30:
                    continue
                try:
                    memory.seek(start)
                    held = memory.read(end - start)
                except OSError:
                    continue
                found |= {name for name, secret in secrets.items() if secret in held}
        return found

    def test_11_musterd_holds_no_signing_key(self):
        secrets = {}
        for name in ("ca.key.pem", "roster.pem", "command.pem", "relay.pem", "audit.pem"):
            der = subprocess.run(["openssl", "pkey", "-in", self.world.data + "/keys/" + name, "-outform", "DER"], capture_output=True, check=True).stdout
            mark = b"\x02\x01\x01\x04\x20" if name == "ca.key.pem" else b"\x04\x22\x04\x20"
            secrets[name] = der.split(mark, 1)[1][:32]
        with open(self.world.data + "/keys/secret", "rb") as f:
            control = f.read()  # which musterd uses itself
        musterd = self.world.musterd.popen.pid
        signer = int(subprocess.run(["pgrep", "-P", str(musterd), "-x", "muster-signer"], capture_output=True, text=True, check=True).stdout)
        self.world.cli("audit", "head", who="admin")
        self.assertEqual(self.memory_holds(musterd, dict(secrets, secret=control)), {"secret"})
        self.assertIn("roster.pem", self.memory_holds(signer, secrets))
        # It is started again when it ends, and whoever asked meanwhile gets his answer.
        os.kill(signer, signal.SIGKILL)
        self.world.cli("audit", "head", who="admin")
        with open(self.world.data + "/signer.log") as f:
            self.assertRegex(f.read(), r"uid 0 pid %d head key=[0-9a-f]{16} incarnation=\d+ seq=\d+ ok" % musterd)

    def test_12_another_key_of_encryption_at_rest(self):
        """Encrypted from here on; then the keys change as the paper says, and no name or key lies there in the clear."""
        heading, world = "A key of encryption at rest that others may have", self.world
        old, new = world.dir + "/old.key", world.dir + "/new.key"
        musterd = lambda *words: subprocess.run([world.binary("musterd"), *words], capture_output=True, text=True, timeout=120)  # noqa: E731
        seen = lambda what: subprocess.run(["grep", "-rlaF", "--", what, world.data], capture_output=True, text=True).stdout  # noqa: E731
        with open(world.data + "/keys/roster.pem") as f:
            roster = f.read().split("\n")[1]
        self.assertIn("journal", seen("kept"), "an organisation's name is in the journal")
        self.assertIn("roster.pem", seen(roster))
        world.musterd.kill()
        done = musterd("at-rest", "new-key", old)
        self.assertEqual(done.returncode, 0, done.stderr)
        world.wait("at rest", "nobody else in the folder", 20, lambda: musterd("at-rest", "init", "--data", world.data, "--at-rest-key", old).returncode == 0)
        arguments = list(world.musterd_args)
        world.musterd_args = arguments + ["--at-rest-key", old]
        world.start_musterd()
        self.serving()
        self.do(heading, 0, DIR=world.data, OLDKEY=old, NEWKEY=new)
        self.serving()
        world.musterd_args = arguments + ["--at-rest-key", new]
        world.musterd.kill()
        world.wait("at rest", "nobody else in the folder", 20, lambda: musterd("at-rest", "status", "--data", world.data, "--at-rest-key", new).returncode == 0)
        self.do(heading, 1, DIR=world.data, NEWKEY=new)
        refused = musterd("serve", "--data", world.data, "--at-rest-key", old)
        self.assertNotEqual(refused.returncode, 0)
        self.assertNotIn(roster, refused.stdout + refused.stderr)
        world.start_musterd()
        self.serving()
        self.online("attic")
        self.assertEqual((seen("kept"), seen(roster)), ("", ""))

    def test_99_nothing_is_left_out(self):
        there = {(heading, index) for heading, texts in self.blocks.items() for index in range(len(texts))}
        self.assertEqual(there - set(self.ran), set(), "blocks that no test runs")


if __name__ == "__main__":
    unittest.main()
