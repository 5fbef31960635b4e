"""People log in with the real programs: a second factor at a terminal and in scripts, recovery codes, what takes a lost one away, and that
neither secrets nor codes turn up in logs, arguments or the journal.
"""
import base64
import hashlib
import hmac
import json
import os
import pty
import re
import select
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import time
import unittest

BESIDE = "host"  # musterd alone, on loopback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
PASSWORD = "correct horse battery"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def totp(key, step):
    """RFC 6238, written down a second time."""
    mac = hmac.new(base64.b32decode(key), struct.pack(">Q", step), hashlib.sha1).digest()
    at = mac[19] & 15
    return "%06d" % ((struct.unpack(">I", mac[at:at + 4])[0] & 0x7fffffff) % 1000000)


class Terminal:
    """A program that believes it has a terminal."""

    def __init__(self, argv, env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, env)
        self.text = ""

    def until(self, pattern, seconds=60):
        end = time.time() + seconds
        while not re.search(pattern, self.text):
            if not select.select([self.fd], [], [], max(0, end - time.time()))[0]:
                raise AssertionError("%r did not come in %d s:\n%s" % (pattern, seconds, self.text))
            try:
                piece = os.read(self.fd, 65536)
            except OSError:  # it ended
                piece = b""
            if not piece:
                raise AssertionError("it ended without %r:\n%s" % (pattern, self.text))
            self.text += piece.decode(errors="replace")
        return re.search(pattern, self.text)

    def type(self, line):
        os.write(self.fd, line.encode() + b"\n")

    def end(self):
        try:
            while True:
                piece = os.read(self.fd, 65536)
                if not piece:
                    break
                self.text += piece.decode(errors="replace")
        except OSError:
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release binaries are not built: make build")
class Login(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="muster-login-")
        self.addCleanup(folder.cleanup)
        self.dir, self.data, self.port = folder.name, folder.name + "/data", free_port()
        self.put("password", PASSWORD)
        made = subprocess.run([BUILD + "/musterd", "init", "--data", self.data, "--name", "127.0.0.1", "--password-file", self.dir + "/password"],
                              check=True, capture_output=True, text=True)
        self.ca = re.search(r"CA SHA-256: (\w+)", made.stdout)[1]
        self.log = open(self.dir + "/log", "w+")
        self.addCleanup(self.log.close)
        self.serve()

    def serve(self, *more):
        self.server = subprocess.Popen([BUILD + "/musterd", "serve", "--data", self.data, "--listen", "127.0.0.1:%d" % self.port, *more],
                                       stdout=self.log, stderr=self.log)
        self.addCleanup(self.server.wait)
        self.addCleanup(self.server.kill)
        tls = ssl.create_default_context(cafile=self.data + "/ca.pem")
        for _ in range(3000):
            try:
                with socket.create_connection(("127.0.0.1", self.port)) as raw, tls.wrap_socket(raw, server_hostname="127.0.0.1"):
                    break
            except OSError:
                self.assertIsNone(self.server.poll(), "musterd ended")
                time.sleep(0.02)

    def put(self, name, text):
        with open(os.path.join(self.dir, name), "w") as f:
            f.write(text + "\n")
        return os.path.join(self.dir, name)

    def environment(self, who):
        return dict(os.environ, MUSTER_CONFIG=os.path.join(self.dir, who + ".json"))

    def argv_of_login(self, *more, name="admin"):
        return [BUILD + "/muster", "login", "https://127.0.0.1:%d" % self.port, "--ca-sha256", self.ca, "--user", name, *more]

    def muster(self, who, *words, code=0):
        done = subprocess.run([BUILD + "/muster", *words], env=self.environment(who), capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, code, (words, done.stdout, done.stderr))
        return done.stdout + done.stderr

    def login(self, who, code=None, refused=False, name="admin"):
        """With the password file alone, or with password and code in one file; what it says."""
        more = ["--password-file", self.dir + "/password"]
        if code is not None:
            both = self.put("both", PASSWORD + "\n" + code)
            more = ["--password-file", both, "--code-file", both]
        done = subprocess.run(self.argv_of_login(*more, name=name), env=self.environment(who), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode != 0, refused, (done.stdout, done.stderr))
        return done.stderr

    def test_second_factor(self):
        self.login("desk")
        self.login("laptop")
        self.assertIn("off", self.muster("desk", "totp", "status"))
        at = Terminal([BUILD + "/muster", "totp", "enable"], self.environment("desk"))
        at.until("Password: ")
        at.type(PASSWORD)
        key = at.until(r"key ([A-Z2-7]{32}):\s+otpauth://totp/Muster%20127.0.0.1:admin\?secret=\1&")[1]
        at.until("Code of the second factor: ")
        self.assertGreater(at.text.count("\x1b[0;30;107m"), 20, "a QR code is drawn")
        with open("/proc/%d/cmdline" % at.pid) as f:
            self.assertNotIn(key, f.read())
        step = int(time.time()) // 30
        at.type("000000" if totp(key, step) != "000000" else "111111")
        at.until("the code is wrong")
        at.type(totp(key, step))
        at.until("in force; other logins that ended with it: 1")
        self.assertEqual(at.end(), 0, at.text)
        recovery = re.findall(r"^([a-z2-7]{4}(?:-[a-z2-7]{4}){3})\r?$", at.text, re.M)
        self.assertEqual(len(recovery), 10, at.text)
        self.assertIn("10", self.muster("desk", "totp", "status"))
        self.muster("laptop", "whoami", code=4)

        self.assertIn("--code-file", self.login("laptop", refused=True))
        at = Terminal(self.argv_of_login("--password-file", self.dir + "/password"), self.environment("laptop"))
        at.until("Code of the second factor: ")
        at.type(totp(key, step))  # it confirmed: used
        at.until("the code is wrong or was used")
        at.type(totp(key, max(step + 1, int(time.time()) // 30)))
        at.until("Logged in")
        self.assertEqual(at.end(), 0)
        self.assertRegex(self.muster("laptop", "user", "list"), r"admin .*yes")
        self.login("phone", recovery[0])
        self.login("phone", recovery[0], refused=True)

        done = subprocess.run([BUILD + "/musterd", "totp-reset", "admin", "--data", self.data], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.login("phone")
        self.assertRegex(self.muster("phone", "user", "list"), r"admin .*no")

        self.log.flush()
        with open(self.dir + "/log") as f:
            log = f.read()
        self.assertIn("has a second factor now", log)
        journal = subprocess.run([BUILD + "/musterd", "journal", "export", "--data", self.data], capture_output=True).stdout
        self.assertGreater(len(journal), 100)
        stored = b""
        for name in os.listdir(self.data):
            if name.startswith("journal.db"):
                with open(os.path.join(self.data, name), "rb") as f:
                    stored += f.read()
        for secret in [PASSWORD, key] + recovery + [r.replace("-", "") for r in recovery]:
            self.assertNotIn(secret, log)
            self.assertNotIn(secret.encode(), journal)
            self.assertNotIn(secret.encode(), stored)
        self.assertNotIn(base64.b32decode(key), stored)
        self.assertNotIn(base64.b32decode(key).hex().encode(), stored)

    def config(self, who, **change):
        """What the command keeps of its login, after it was changed."""
        path = os.path.join(self.dir, who + ".json")
        with open(path) as f:
            whole = json.load(f)
        whole["contexts"]["default"].update(change)
        with open(path, "w") as f:
            json.dump(whole, f)
        return whole["contexts"]["default"]

    def test_logins_renew_themselves_and_a_stolen_one_ends(self):
        self.login("desk")
        first = self.config("desk")
        self.assertRegex(first["refresh"], r"^mrf_")
        self.assertRegex(first["token"], r"^eyJ")
        # As if ten minutes had passed: twenty commands at once, one login.
        self.config("desk", renew_at_ms=0)
        many = [subprocess.Popen([BUILD + "/muster", "whoami"], env=self.environment("desk"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for _ in range(20)]
        for each in many:
            said, wrong = each.communicate(timeout=60)
            self.assertEqual(each.returncode, 0, wrong)
            self.assertIn("admin", said)
        renewed = self.config("desk")
        self.assertNotEqual(renewed["refresh"], first["refresh"])
        self.assertGreater(renewed["renew_at_ms"], time.time() * 1000)
        # A key that is believed no longer, and a restart: the login goes on.
        done = subprocess.run([BUILD + "/musterd", "keys", "rotate", "access-token", "--compromised", "--data", self.data], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.server.terminate()
        self.server.wait(30)
        self.serve()
        self.muster("desk", "whoami")
        self.assertNotEqual(self.config("desk")["token"], renewed["token"])
        # A thief who copied the file is the first to renew; then the owner does.
        shutil.copy(os.path.join(self.dir, "desk.json"), os.path.join(self.dir, "thief.json"))
        self.login("other")
        events = subprocess.Popen([BUILD + "/muster", "events", "-f"], env=self.environment("desk"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(events.stdout.close)
        self.addCleanup(events.wait)
        self.addCleanup(events.kill)
        time.sleep(2)
        self.assertIsNone(events.poll())
        self.config("thief", renew_at_ms=0)
        self.muster("thief", "whoami")
        self.config("desk", renew_at_ms=0)
        self.assertIn("used up before", self.muster("desk", "whoami", code=4))
        self.assertIn("muster login", self.muster("desk", "whoami", code=4))
        self.assertIn("muster login", self.muster("thief", "whoami", code=4))
        events.wait(10)
        self.assertIn("a used refresh token came again", self.muster("other", "audit", "--since", "all"))
        self.assertIn("has ended, here and at the control plane", self.muster("other", "logout"))
        self.assertIn("had no login", self.muster("other", "logout"))
        self.muster("other", "whoami", code=4)

    def test_roles(self):
        secret = self.dir + "/password"
        self.login("desk")
        self.muster("desk", "org", "create", "roles")
        for name, role in (("ann", "tenant-admin"), ("bob", "tenant")):
            self.muster("desk", "user", "create", "roles-" + name, "--role", role, "--org", "roles", "--password-file", secret)
            self.login(name, name="roles-" + name)
        self.assertIn("tenant-viewer", self.muster("ann", "user", "role", "roles-bob", "king", code=2))
        self.muster("bob", "project", "create", "mine", code=4)
        self.muster("ann", "project", "create", "main")
        self.muster("ann", "user", "create", "roles-vera", "--role", "tenant-viewer", "--password-file", secret)
        self.assertIn("roles-vera", self.muster("ann", "user", "list"))
        self.assertNotIn("admin ", self.muster("ann", "user", "list").replace("tenant-admin", ""))
        self.muster("bob", "user", "role", "roles-bob", "tenant-admin", code=4)
        self.assertIn("last administrator", self.muster("ann", "user", "role", "roles-ann", "tenant", code=1))
        self.assertIn("roles-bob is tenant-viewer now", self.muster("ann", "user", "role", "roles-bob", "tenant-viewer"))
        self.muster("bob", "whoami", code=4)  # his login ended with it
        self.login("bob", name="roles-bob")
        self.assertIn("tenant-viewer", self.muster("bob", "whoami"))
        self.muster("bob", "queue")
        self.muster("bob", "token", "create", "--label", "all", code=4)
        self.muster("bob", "token", "create", "--label", "look", "--scope", "read")
        self.assertRegex(self.muster("ann", "audit", "--verb", "change"), r"account roles-bob is tenant-viewer of roles now")
        self.server.terminate()
        self.server.wait(30)
        self.serve("--second-factor", "tenant")  # who may more is not left out
        self.assertIn("set it up now with `muster totp enable`", self.login("ann", name="roles-ann"))
        self.assertNotIn("totp enable", self.login("bob", name="roles-bob"))

    def test_second_factor_of_a_role(self):
        self.login("before")
        self.server.terminate()
        self.server.wait(30)
        wrong = subprocess.run([BUILD + "/musterd", "serve", "--data", self.data, "--second-factor", "operator,clerk"], capture_output=True, text=True, timeout=60)
        self.assertEqual(wrong.returncode, 1)
        self.assertIn("not 'clerk'", wrong.stderr)
        self.serve("--second-factor", "operator,auditor")
        self.muster("before", "user", "list")  # logins of before stay
        self.assertIn("set it up now with `muster totp enable`", self.login("desk"))
        self.assertIn("muster totp enable", self.muster("desk", "user", "list", code=4))
        self.assertIn("admin", self.muster("desk", "whoami"))
        at = Terminal([BUILD + "/muster", "totp", "enable"], self.environment("desk"))
        at.until("Password: ")
        at.type(PASSWORD)
        key = at.until(r"key ([A-Z2-7]{32}):")[1]
        at.until("Code of the second factor: ")
        at.type(totp(key, int(time.time()) // 30))
        at.until("Log in again with a code of the app")
        self.assertEqual(at.end(), 0, at.text)
        recovery = re.findall(r"^([a-z2-7]{4}(?:-[a-z2-7]{4}){3})\r?$", at.text, re.M)
        self.assertIn("muster totp enable", self.muster("desk", "user", "list", code=4))
        self.assertNotIn("totp enable", self.login("desk", recovery[0]))
        self.assertRegex(self.muster("desk", "user", "list"), r"admin .*yes")
        self.muster("before", "user", "list", code=4)  # it ended with the new factor


if __name__ == "__main__":
    unittest.main()
