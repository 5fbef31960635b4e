"""A certificate for the control plane's public name: from a CA that speaks ACME (pebble, Let's Encrypt's own test server, with its name
server), through the relay's listener, renewed in time, refused, away; the operator's own files; machines and muster go on with our own CA.
"""
import base64
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest
import urllib.request

BESIDE = "outage"  # musterd, muster-relay and a CA, on loopback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
PASSWORD = "correct horse battery"
NAME, OTHER = "muster.example.test", "compute.example.test"
LIFE_S = 3600  # of the first CA's certificates; the renewal's test has them end sooner


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class World(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="muster-acme-")
        self.addCleanup(folder.cleanup)
        self.dir, self.data = folder.name, folder.name + "/data"
        self.port, self.port_of_ca, self.manage, self.dns = free_port(), free_port(), free_port(), free_port()
        self.put("password", PASSWORD)
        made = subprocess.run([BUILD + "/musterd", "init", "--data", self.data, "--name", "127.0.0.1," + NAME, "--password-file", self.dir + "/password"],
                              check=True, capture_output=True, text=True)
        self.ca = re.search(r"CA SHA-256: (\w+)", made.stdout)[1]
        self.log = self.dir + "/musterd.log"
        self.server = self.names_served = None
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=ca", "-days", "2",
                        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", self.dir + "/web.key", "-out", self.dir + "/web.pem"], check=True,
                       stderr=subprocess.DEVNULL)

    def put(self, name, text):
        with open(os.path.join(self.dir, name), "w") as f:
            f.write(text + "\n")
        os.chmod(f.name, 0o600)
        return f.name

    def spawn(self, argv, log, **more):
        with open(log, "a") as out:
            process = subprocess.Popen(argv, stdout=out, stderr=out, **more)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def until(self, what, seconds, check):
        end = time.time() + seconds
        while True:
            found = check()
            if found:
                return found
            self.assertLess(time.time(), end, "%s did not come in %d s:\n%s" % (what, seconds, self.said()[-3000:]))
            time.sleep(0.1)

    def said(self):
        return open(self.log).read() if os.path.exists(self.log) else ""

    def accepts(self, port):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            return False

    # ---- a CA of the web
    def start_ca(self, life_s=LIFE_S, accounts=None):
        """pebble behind a certificate of its own; its root comes from its management port, as it is new with each start."""
        if not self.names_served:
            self.names_served = self.spawn(["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", "127.0.0.1:%d" % self.dns, "-http01", "",
                                            "-https01", "", "-tlsalpn01", "", "-management", "127.0.0.1:%d" % free_port()], self.dir + "/dns.log")
        config = self.put("pebble.json", json.dumps({"pebble": {**({"externalAccountMACKeys": accounts} if accounts else {}),
            "listenAddress": "127.0.0.1:%d" % self.port_of_ca, "managementListenAddress": "127.0.0.1:%d" % self.manage, "certificate": self.dir + "/web.pem",
            "privateKey": self.dir + "/web.key", "httpPort": 1, "tlsPort": self.port, "ocspResponderURL": "", "externalAccountBindingRequired": bool(accounts),
            "certificateValidityPeriod": life_s, "domainBlocklist": ["refused.example.test"]}}))
        self.pebble = self.spawn(["pebble", "-config", config, "-dnsserver", "127.0.0.1:%d" % self.dns], self.dir + "/pebble.log",
                                 env=dict(os.environ, PEBBLE_VA_NOSLEEP="1", PEBBLE_WFE_NONCEREJECT="20"))
        self.until("the CA", 20, lambda: self.accepts(self.port_of_ca) and self.accepts(self.manage))
        with urllib.request.urlopen("https://127.0.0.1:%d/roots/0" % self.manage, context=ssl.create_default_context(cafile=self.dir + "/web.pem")) as answer:
            self.root = self.put("root-%d.pem" % self.pebble.pid, answer.read().decode())

    def stop(self, process):
        process.terminate()
        process.wait(20)

    # ---- the control plane, the relay in front of it
    def serve(self, *more, ready=True):
        if not os.path.exists(self.dir + "/handoff.sock"):
            self.spawn([BUILD + "/muster-relay", "--listen", "127.0.0.1:%d" % self.port, "--handoff", self.dir + "/handoff.sock", "--cert",
                        self.data + "/relay/cert.pem", "--key", self.data + "/relay/key.pem", "--controller-key", self.data + "/relay/controller.pub",
                        "--relay-id", "r1", "--mirror", "off", "--udp", "off"], self.dir + "/relay.log")
            self.until("the listener", 20, lambda: os.path.exists(self.dir + "/handoff.sock"))
        self.server = self.spawn([BUILD + "/musterd", "serve", "--data", self.data, "--listen", "127.0.0.1:0", "--handoff", self.dir + "/handoff.sock", *more],
                                 self.log)
        if ready:
            self.until("musterd", 60, lambda: self.shown("127.0.0.1", self.data + "/ca.pem") or self.server.poll() is not None)
            self.assertIsNone(self.server.poll(), self.said())

    def acme(self):
        return ["--acme", "https://127.0.0.1:%d/dir" % self.port_of_ca, "--acme-ca", self.dir + "/web.pem", "--acme-contact", "ops@example.test"]

    def shown(self, name, trusted):
        """The certificate that a stranger who asks for this name is shown, if he trusts it; and what a browser is told with each answer."""
        context = ssl.create_default_context(cafile=trusted)
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as raw, context.wrap_socket(raw, server_hostname=name) as tls:
                tls.sendall(b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % name.encode())
                self.head = tls.recv(4096).decode()
                return tls.getpeercert()
        except (ssl.SSLError, OSError):
            return None

    def names(self, certificate):
        return sorted(value for kind, value in certificate["subjectAltName"] if kind == "DNS")

    def muster(self, *words):
        done = subprocess.run([BUILD + "/muster", *words], env=dict(os.environ, MUSTER_CONFIG=self.dir + "/cli.json"), capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, (words, done.stdout, done.stderr))
        return done.stdout


@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release binaries are not built: make build")
@unittest.skipUnless(shutil.which("pebble"), "Debian's pebble is missing: tools/install-deps test")
class Acme(World):
    def test_1_asked_for_shown_and_kept(self):
        self.start_ca()
        self.serve("--public-name", NAME + "," + OTHER, *self.acme())
        got = self.until("a certificate", 60, lambda: self.shown(NAME, self.root))
        self.assertEqual(self.names(got), sorted([NAME, OTHER]))
        self.assertIn("strict-transport-security: max-age=31536000", self.head.lower())
        self.assertTrue(self.shown(OTHER, self.root))
        self.assertIsNone(self.shown(NAME, self.data + "/ca.pem"), "strangers under the public name are not shown our own CA")
        self.assertTrue(self.shown("127.0.0.1", self.data + "/ca.pem"))
        self.assertNotIn("strict-transport-security", self.head.lower())
        # Our own programs pin our CA, and are shown its certificate under the same name.
        with open("/etc/hosts") as f:
            hosts = self.put("hosts", f.read() + "\n127.0.0.1 " + NAME)
        done = subprocess.run(["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, BUILD + "/muster", "login",
                               "https://%s:%d" % (NAME, self.port), "--ca-sha256", self.ca, "--user", "admin", "--password-file", self.dir + "/password"],
                              env=dict(os.environ, MUSTER_CONFIG=self.dir + "/named.json"), capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.muster("login", "https://127.0.0.1:%d" % self.port, "--ca-sha256", self.ca, "--user", "admin", "--password-file", self.dir + "/password")
        with urllib.request.urlopen("https://127.0.0.1:%d/metrics" % self.port, context=ssl.create_default_context(cafile=self.data + "/ca.pem")) as answer:
            self.assertRegex(answer.read().decode(), r'muster_certificate_remaining_seconds\{certificate="public"\} \d{4}')
        # What is secret lies where only musterd reads it, and nowhere else.
        for name in ("public.pem", "acme-account.pem"):
            self.assertEqual(os.stat(self.data + "/keys/" + name).st_mode & 0o777, 0o600)
        self.assertNotIn("PRIVATE", self.said())
        # A restart asks for nothing: the CA is gone, the certificate is the same.
        self.stop(self.server)
        self.stop(self.pebble)
        self.serve("--public-name", NAME + "," + OTHER, *self.acme())
        self.assertEqual(self.shown(NAME, self.root)["serialNumber"], got["serialNumber"])

    def test_2_renewed_before_it_ends(self):
        self.start_ca(life_s=30)
        self.serve("--public-name", NAME, *self.acme())
        first = self.until("a certificate", 60, lambda: self.shown(NAME, self.root))
        began = time.time()
        while time.time() < began + 21:  # a third of its life is left then
            time.sleep(0.5)
        self.server.send_signal(signal.SIGHUP)
        second = self.until("another", 30, lambda: (lambda c: c and c["serialNumber"] != first["serialNumber"] and c)(self.shown(NAME, self.root)))
        self.assertEqual(self.names(second), [NAME])

    def test_3_what_goes_wrong_is_said_and_the_control_plane_serves(self):
        self.serve("--public-name", NAME, *self.acme())  # nobody is there
        self.until("the reason", 30, lambda: re.search(r"no certificate for muster\.example\.test: .*is not reached.*trying again in 5 minutes", self.said()))
        self.assertTrue(self.shown("127.0.0.1", self.data + "/ca.pem"))
        self.start_ca()
        self.server.send_signal(signal.SIGHUP)
        self.until("a certificate", 60, lambda: self.shown(NAME, self.root))
        # A name that the CA does not take: in its words.
        self.stop(self.server)
        self.serve("--public-name", "refused.example.test", *self.acme())
        self.until("the reason", 60, lambda: re.search(r"no certificate for refused\.example\.test: the CA refuses [^:]*: .*policy.*\(rejectedIdentifier", self.said()))
        self.assertTrue(self.shown("127.0.0.1", self.data + "/ca.pem"))

    def test_5_bound_to_an_account_with_the_ca(self):
        key = base64.urlsafe_b64encode(os.urandom(32)).decode()
        self.start_ca(accounts={"kid-1": key.rstrip("=")})
        self.serve("--public-name", NAME, *self.acme())
        self.until("the reason", 30, lambda: re.search(r"no certificate for muster\.example\.test: this CA wants an account.*--acme-account", self.said()))
        self.stop(self.server)
        wrong = self.put("wrong", "kid-1\n" + base64.urlsafe_b64encode(os.urandom(32)).decode())
        self.serve("--public-name", NAME, *self.acme(), "--acme-account", wrong)
        self.until("the reason", 30, lambda: re.search(r"the CA refuses the account: ", self.said()))
        self.stop(self.server)
        self.serve("--public-name", NAME, *self.acme(), "--acme-account", self.put("account", "kid-1\n" + key))
        self.assertEqual(self.names(self.until("a certificate", 60, lambda: self.shown(NAME, self.root))), [NAME])
        self.assertNotIn(key.rstrip("="), self.said())

    def test_4_options_that_make_no_sense(self):
        for words, reason in ((("--public-name", NAME), "needs --acme"), (("--acme", "letsencrypt"), "--public-name"),
                              (("--public-name", "localhost", "--acme", "letsencrypt"), "names of the web"),
                              (("--public-name", "192.0.2.1", "--acme", "letsencrypt"), "names of the web"),
                              (("--public-name", NAME, "--acme", "ftp://x"), "--acme takes"),
                              (("--public-name", NAME, "--acme", "letsencrypt", "--acme-contact", "nobody"), "e-mail"),
                              (("--public-name", NAME, "--acme", "letsencrypt", "--acme-account", self.put("half", "kid-1")), "in a line each"),
                              (("--public-name", NAME, "--acme", "letsencrypt", "--acme-account", self.dir + "/none"), "cannot be read"),
                              (("--public-cert", "x"), "belong together"),
                              (("--public-cert", "x", "--public-key", "y", "--acme", "letsencrypt"), "not both")):
            done = subprocess.run([BUILD + "/musterd", "serve", "--data", self.data, "--listen", "127.0.0.1:0", *words], capture_output=True, text=True, timeout=30)
            self.assertEqual(done.returncode, 1, words)
            self.assertIn(reason, done.stderr)


@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release binaries are not built: make build")
class OwnFiles(World):
    def make(self, names):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=own", "-days", "2",
                        "-addext", "subjectAltName=" + ",".join("DNS:" + n for n in names), "-keyout", self.dir + "/own.key", "-out", self.dir + "/own.pem"],
                       check=True, stderr=subprocess.DEVNULL)

    def test_shown_and_read_again(self):
        self.make(["*.example.test"])
        files = ["--public-cert", self.dir + "/own.pem", "--public-key", self.dir + "/own.key"]
        self.serve(*files)
        self.assertTrue(self.shown(NAME, self.dir + "/own.pem"), self.said())
        self.assertTrue(self.shown("127.0.0.1", self.data + "/ca.pem"))
        shutil.copy(self.dir + "/own.pem", self.dir + "/before.pem")
        self.make([NAME])
        self.server.send_signal(signal.SIGHUP)
        self.until("the new one", 20, lambda: self.shown(NAME, self.dir + "/own.pem"))
        self.put("own.pem", "half a file")
        self.server.send_signal(signal.SIGHUP)
        self.until("the reason", 20, lambda: "stays as it was" in self.said())
        self.assertIsNotNone(self.shown("127.0.0.1", self.data + "/ca.pem"))
        # Where it is no good from the beginning, musterd says so and does not start.
        self.stop(self.server)
        self.serve(*files, ready=False)
        self.assertEqual(self.server.wait(20), 1)
        self.assertIn("no X.509 certificate", self.said())


if __name__ == "__main__":
    unittest.main()
