"""kill -9 of musterd at every write of its journal: the real server on a disk that loses what was not synced (musterd-faulty). What
was acknowledged over REST is there after the next start, what was not is there once or not at all, and the chain holds.
"""
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest

BESIDE = "host"  # a lane of its own in tools/test.py: mostly waits

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
POINTS = int(os.environ.get("MUSTER_KILL_POINTS", "64"))  # a start and a good number of requests; more find the same


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd-faulty")), "musterd-faulty is not built: cmake --build --preset release --target musterd-faulty")
class JournalKill(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="muster-kill-")
        self.addCleanup(folder.cleanup)
        self.data, self.port = folder.name + "/data", free_port()
        self.log = open(folder.name + "/log", "w+")
        self.addCleanup(self.log.close)
        with open(folder.name + "/password", "w") as f:
            f.write("correct horse\n")
        subprocess.run([BUILD + "/musterd", "init", "--data", self.data, "--name", "127.0.0.1", "--password-file", folder.name + "/password"],
                       check=True, stdout=subprocess.DEVNULL)
        self.tls = ssl.create_default_context(cafile=self.data + "/ca.pem")
        self.token, self.server, self.connection = "", None, None
        self.addCleanup(self.stop)

    def stop(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        if self.server is not None and self.server.poll() is None:
            self.server.kill()
        if self.server is not None:
            self.server.wait()

    def start(self, program="musterd-faulty", point=0, loss="all"):
        """True when it serves; False when it was killed before that."""
        self.stop()
        env = dict(os.environ, MUSTER_KILL_AT=str(point), MUSTER_LOSS=loss)
        self.server = subprocess.Popen([os.path.join(BUILD, program), "serve", "--data", self.data, "--listen", "127.0.0.1:%d" % self.port],
                                       env=env, stdout=self.log, stderr=self.log)
        deadline = time.time() + 60
        while time.time() < deadline and self.server.poll() is None:
            try:
                self.connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.tls)
                self.connection.connect()
                return True
            except OSError:
                time.sleep(0.02)
        self.assertIsNotNone(self.server.poll(), "musterd does not serve after 60 s")
        return False

    def ask(self, method, path, body=None, key=None):
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = "Bearer " + self.token
        if key:
            headers["Idempotency-Key"] = key
        self.connection.request(method, "/api/v1/" + path, None if body is None else json.dumps(body), headers)
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")

    def make(self, name):
        return self.ask("POST", "orgs", {"name": name}, "key-" + name)

    def orgs(self):
        found, cursor = {}, ""
        while True:
            status, page = self.ask("GET", "orgs?limit=1000" + ("&cursor=" + cursor if cursor else ""))
            self.assertEqual(status, 200, page)
            for org in page.get("items", page.get("orgs", [])):
                self.assertNotIn(org["name"], found, "made twice")
                found[org["name"]] = org["id"]
            cursor = page.get("nextCursor", "")
            if not cursor:
                return found

    def check(self, acknowledged, doubtful):
        """Everything acknowledged is there under its id; what had no answer is done once when it is asked again."""
        found = self.orgs()
        for name, made in acknowledged.items():
            self.assertEqual(found.get(name), made, "%s was acknowledged" % name)
        for name in list(doubtful):
            status, org = self.make(name)
            self.assertEqual(status, 200, org)
            if name in found:
                self.assertEqual(org["id"], found[name], "asked again with the same key, it was done again")
            acknowledged[name] = org["id"]
            doubtful.remove(name)

    def test_every_write(self):
        self.assertTrue(self.start("musterd"))
        status, login = self.ask("POST", "login", {"name": "admin", "password": "correct horse"})
        self.assertEqual(status, 200, login)
        self.token = login["token"]
        status, token = self.ask("POST", "tokens", {"label": "run"})  # a login's ends within minutes
        self.assertEqual(status, 200, token)
        self.token = token["secret"]
        acknowledged, doubtful, killed_early = {}, [], 0
        for point in range(1, POINTS + 1):
            name = ""
            try:
                if not self.start(point=point, loss=("all", "subset", "torn")[point % 3]):
                    killed_early += 1
                else:
                    self.check(acknowledged, doubtful)
                    for n in range(1000):
                        name = "p%dn%d" % (point, n)
                        status, org = self.make(name)
                        self.assertEqual(status, 200, org)
                        acknowledged[name] = org["id"]
                    self.fail("1,000 requests made fewer than %d writes" % point)
            except (OSError, http.client.HTTPException):
                if name and name not in acknowledged:
                    doubtful.append(name)
            self.assertEqual(self.server.wait(30), -signal.SIGKILL, "musterd ended by itself at point %d" % point)
        self.assertTrue(self.start("musterd"))
        self.check(acknowledged, doubtful)
        self.stop()
        verified = subprocess.run([BUILD + "/musterd", "journal", "verify", "--data", self.data], capture_output=True, text=True)
        self.assertEqual(verified.returncode, 0, verified.stderr)
        self.assertGreater(len(acknowledged), POINTS, "too few requests to mean anything")
        self.assertLess(killed_early, POINTS / 2)


if __name__ == "__main__":
    unittest.main()
