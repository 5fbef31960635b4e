"""The one public port under attack: what TLS takes, requests that two programs would read differently, tricks with paths and headers, things
that are too large or unpack to too much, and ten thousand connections that are of no use. Nothing is misread, memory stays bounded, and who is
served otherwise is served on. How much slower: `make bench NAME=port`.
"""
import http.client
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BESIDE = "outage"  # musterd and muster-relay, on loopback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
MODERN = {"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"}
MANY = 10_000


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def resident_mb(pid):
    with open("/proc/%d/status" % pid) as f:
        return int(re.search(r"VmRSS:\s+(\d+)", f.read())[1]) / 1024


@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release binaries are not built: make build")
class Port(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="muster-port-")
        cls.addClassCleanup(folder.cleanup)
        cls.dir, cls.data, cls.port = folder.name, folder.name + "/data", free_port()
        with open(cls.dir + "/password", "w") as f:
            f.write("correct horse battery\n")
        subprocess.run([BUILD + "/musterd", "init", "--data", cls.data, "--name", "127.0.0.1,muster", "--password-file", cls.dir + "/password"], check=True,
                       stdout=subprocess.DEVNULL)
        cls.relay = cls.spawn([BUILD + "/muster-relay", "--listen", "127.0.0.1:%d" % cls.port, "--handoff", cls.dir + "/handoff.sock", "--cert",
                               cls.data + "/relay/cert.pem", "--key", cls.data + "/relay/key.pem", "--controller-key", cls.data + "/relay/controller.pub",
                               "--relay-id", "r1", "--mirror", "off", "--udp", "off"], "relay.log")
        cls.musterd = cls.spawn([BUILD + "/musterd", "serve", "--data", cls.data, "--listen", "127.0.0.1:0", "--handoff", cls.dir + "/handoff.sock"], "musterd.log")
        cls.trust = ssl.create_default_context(cafile=cls.data + "/ca.pem")
        end = time.time() + 60
        while True:
            try:
                cls.ask()
                return
            except (OSError, http.client.HTTPException):
                assert time.time() < end, "musterd does not answer"
                time.sleep(0.1)

    @classmethod
    def spawn(cls, argv, log):
        with open(cls.dir + "/" + log, "w") as out:
            process = subprocess.Popen(argv, stdout=out, stderr=out)
        cls.addClassCleanup(process.wait)
        cls.addClassCleanup(process.kill)
        return process

    @classmethod
    def tls(cls, seconds=10, alpn=("http/1.1",)):
        context = ssl.create_default_context(cafile=cls.data + "/ca.pem")
        context.set_alpn_protocols(list(alpn))
        return context.wrap_socket(socket.create_connection(("127.0.0.1", cls.port), seconds), server_hostname="muster")

    @classmethod
    def ask(cls, path="/healthz", seconds=10):
        """Seconds that a good client waited, on a connection of its own."""
        began = time.time()
        connection = http.client.HTTPSConnection("127.0.0.1", cls.port, timeout=seconds, context=cls.trust)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == 200, answer.status
        return time.time() - began

    def raw(self, data, seconds=10, pieces=None):
        """All that comes for these bytes until the server closes, or says nothing for two seconds."""
        with self.tls(seconds) as tls:
            try:
                for piece in pieces or [data]:
                    tls.sendall(piece)
            except OSError:  # it has heard enough
                pass
            tls.settimeout(2)
            out = b""
            try:
                while True:
                    piece = tls.recv(65536)
                    if not piece:
                        return out, True
                    out += piece
            except TimeoutError:
                return out, False
            except OSError:
                return out, True

    def statuses(self, out):
        return re.findall(rb"HTTP/1\.[01] (\d{3}) ", out)

    # ---- TLS
    def openssl(self, *words, stdin=""):
        done = subprocess.run(["openssl", "s_client", "-connect", "127.0.0.1:%d" % self.port, "-servername", "muster", "-CAfile", self.data + "/ca.pem", *words],
                              input=stdin, capture_output=True, text=True, timeout=30, errors="replace")
        return done.returncode, done.stdout + done.stderr

    def test_11_versions(self):
        for version, good in (("-tls1", False), ("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
            code, said = self.openssl(version, "-cipher", "ALL:@SECLEVEL=0")
            self.assertEqual(code == 0 and "Verify return code: 0 (ok)" in said, good, (version, said[-600:]))

    def test_12_each_suite_that_there_is(self):
        offered = subprocess.run(["openssl", "ciphers", "-tls1_2", "-s", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"], check=True, capture_output=True,
                                 text=True).stdout.strip().split(":")
        offered = [name for name in offered if not name.startswith("TLS_")]
        self.assertGreater(len(offered), 60)
        taken = {name for name in offered if self.openssl("-tls1_2", "-cipher", name + ":@SECLEVEL=0")[0] == 0}
        self.assertEqual(taken, MODERN)
        for name in ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"):
            self.assertEqual(self.openssl("-tls1_3", "-ciphersuites", name)[0], 0, name)
        self.assertNotEqual(self.openssl("-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_8_SHA256")[0], 0)

    def test_13_what_else_a_scanner_looks_at(self):
        code, said = self.openssl("-tls1_2", "-status")
        self.assertEqual(code, 0)
        self.assertIn("Secure Renegotiation IS supported", said)
        self.assertIn("Compression: NONE", said)
        self.assertIn("Extended master secret: yes", said)
        self.assertRegex(said, r"Server Temp Key: (X25519|ECDH, P-256|ECDH, prime256v1|ECDH, P-384)")
        self.assertIn("Peer signature type: ECDSA", said)
        # Who asks to negotiate anew is left without an answer, or without a connection.
        code, said = self.openssl("-tls1_2", stdin="R\n")
        self.assertNotIn("verify return:1", said.split("RENEGOTIATING", 1)[-1])
        for group, good in (("X25519", True), ("P-256", True), ("P-384", True), ("P-521", False), ("X448", False)):
            self.assertEqual(self.openssl("-tls1_3", "-groups", group)[0] == 0, good, group)
        _, said = self.openssl("-showcerts")
        leaf = subprocess.run(["openssl", "x509", "-noout", "-text"], input=said[said.index("-----BEGIN"):], capture_output=True, text=True, check=True).stdout
        self.assertIn("Signature Algorithm: ecdsa-with-SHA256", leaf)
        self.assertIn("ASN1 OID: prime256v1", leaf)
        self.assertRegex(leaf, r"Extended Key Usage:.*\n\s+TLS Web Server Authentication\n")
        days = [int(n) for n in re.findall(r"Not (?:Before|After)\s*: .* (\d{4}) GMT", leaf)]
        self.assertLessEqual(days[1] - days[0], 1)
        self.assertEqual(self.openssl("-tls1_3", "-early_data", "/dev/null")[1].count("Early data was accepted"), 0)

    def test_14_what_is_no_tls(self):
        for data in (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"\x80\x2e\x01\x00\x02", b"SSH-2.0-x\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 100, b"\0" * 1000):
            with socket.create_connection(("127.0.0.1", self.port), 15) as s:
                s.sendall(data)
                try:
                    said = s.recv(100)
                except ConnectionResetError:
                    said = b""
                self.assertTrue(said == b"" or said[0] == 21, (data[:20], said))  # nothing, or a TLS alert

    # ---- what two readers could take for different things
    def test_21_smuggling(self):
        inner = b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-Inner: 1\r\n\r\n"
        head = b"POST /api/v1/login HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        n = b"%d" % len(inner)
        refused = {
            "both lengths": head + b"Content-Length: " + n + b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
            "both, the other order": head + b"Transfer-Encoding: chunked\r\nContent-Length: " + n + b"\r\n\r\n0\r\n\r\n" + inner,
            "two lengths": head + b"Content-Length: 2\r\nContent-Length: " + n + b"\r\n\r\n{}" + inner,
            "a list of lengths": head + b"Content-Length: 2, 2\r\n\r\n{}" + inner,
            "a length with a sign": head + b"Content-Length: +2\r\n\r\n{}" + inner,
            "a negative length": head + b"Content-Length: -1\r\n\r\n" + inner,
            "a length in hex": head + b"Content-Length: 0x2\r\n\r\n{}" + inner,
            "a length that wraps": head + b"Content-Length: 18446744073709551618\r\n\r\n{}" + inner,
            "an encoding with a prefix": head + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner,
            "two encodings": head + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + inner,
            "compressed chunks": head + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + inner,
            "the encoding twice": head + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + inner,
            "a vertical tab": head + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + inner,
            "a blank before the colon": head + b"Content-Length : 2\r\n\r\n{}" + inner,
            "a folded header": head + b"X-A: 1\r\n Content-Length: 2\r\nContent-Length:\r\n 2\r\n\r\n{}" + inner,
            "a header without a name": head + b": 1\r\n\r\n" + inner,
            "a nought in a header": head + b"X-A: a\0b\r\nContent-Length: 2\r\n\r\n{}" + inner,
            "a bare return in a header": head + b"X-A: a\rTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}" + inner,
            "a chunk that is no number": head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n" + inner,
            "a chunk that wraps": head + b"Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n" + inner,
            "a negative chunk": head + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n" + inner,
            "a chunk that is longer than said": head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n" + inner,
            "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + inner,
            "no host": b"GET /healthz HTTP/1.1\r\n\r\n" + inner,
            "HTTP/2 in the clear": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + inner,
            "a blank in the path": b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n" + inner,
        }
        for name, data in refused.items():
            out, closed = self.raw(data)
            self.assertEqual(len(self.statuses(out)), 1, "%s: %r" % (name, out[:600]))
            self.assertIn(self.statuses(out)[0], (b"400", b"413", b"431", b"501", b"505"), "%s: %r" % (name, out[:600]))
            self.assertTrue(closed, name)
        # What is right is two requests, and two answers.
        out, _ = self.raw(head + b"Content-Length: 2\r\n\r\n{}" + inner)
        self.assertEqual(len(self.statuses(out)), 2, out)
        out, _ = self.raw(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + inner)
        self.assertEqual(len(self.statuses(out)), 2, out)

    def test_22_paths_and_headers_open_nothing(self):
        for path in (b"/api/v1/nodes", b"/api/v1/../v1/nodes", b"/healthz/../api/v1/nodes", b"//api/v1/nodes", b"/api//v1/nodes", b"/api/v1/%6eodes", b"/api/v1/nodes/",
                     b"/api/v1/nodes%00", b"/api/v1/nodes%2f..%2fnodes", b"/%2e%2e/api/v1/nodes", b"/api/v1/nodes;a=b", b"/api/v1/nodes%c0%af", b"\\api\\v1\\nodes",
                     b"/API/V1/NODES", b"http://other/api/v1/nodes", b"/api/v1/nodes?token=x", b"/api/v1/nodes#x", b"*", b"other:443"):
            for extra in (b"", b"X-HTTP-Method-Override: PUT\r\n", b"X-Original-URL: /healthz\r\nX-Rewrite-URL: /healthz\r\n",
                          b"X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\nX-Forwarded-User: admin\r\nX-Remote-User: admin\r\n",
                          b"Authorization: Bearer\r\n", b"Authorization: Basic YWRtaW46YWRtaW4=\r\n", b"Cookie: token=x; session=admin\r\n"):
                out, _ = self.raw(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + extra + b"\r\n")
                self.assertEqual(len(self.statuses(out)), 1, (path, extra, out[:300]))
                self.assertIn(self.statuses(out)[0], (b"400", b"401", b"404", b"405"), (path, extra, out[:600]))
                self.assertNotIn(b'"items"', out)
        for method in (b"TRACE", b"CONNECT", b"OPTIONS", b"DEBUG", b"PROPFIND", b"get"):
            out, _ = self.raw(method + b" /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            self.assertIn(self.statuses(out)[0], (b"400", b"404", b"405", b"501"), (method, out[:300]))
            self.assertNotIn(b"X-Inner", out)

    # ---- too large, or more than it seems
    def test_31_sizes_are_bounded_before_they_are_read(self):
        before = resident_mb(self.musterd.pid)
        head = b"POST /api/v1/login HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        for name, data, status in (
                ("a long header", b"GET /healthz HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
                ("many headers", b"GET /healthz HTTP/1.1\r\nHost: h\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(3000)) + b"\r\n", b"431"),
                ("a long path", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", b"431"),
                ("a length of 5 GB", head + b"Content-Length: 5000000000\r\n\r\n{", b"413"),
                ("gzip", head + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + b"\x1f\x8b" + b"\0" * 18, b"4"),
                ("brotli", head + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", b"4")):
            out, _ = self.raw(data)
            self.assertEqual(len(self.statuses(out)), 1, (name, out[:300]))
            self.assertTrue(self.statuses(out)[0].startswith(status), (name, out[:300]))
        out, closed = self.raw(b"", seconds=30, pieces=[head + b"Transfer-Encoding: chunked\r\n\r\n"] + [b"100000\r\n" + b" " * 0x100000 + b"\r\n"] * 24)
        self.assertEqual(self.statuses(out), [b"413"], out[:300])
        self.assertTrue(closed)
        # Nested so deep that who follows it by recursion falls.
        deep = b"[" * 1_000_000
        out, _ = self.raw(head + b"Content-Length: %d\r\n\r\n" % len(deep) + deep)
        self.assertEqual(self.statuses(out), [b"400"], out[:300])
        self.assertLess(resident_mb(self.musterd.pid) - before, 64)

    def test_32_frames(self):
        hello = (b"GET /agent/v1 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                 b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n")
        before = resident_mb(self.musterd.pid)

        def frame(first, length, mask=b"\0\0\0\0"):
            return bytes([first, 0xff]) + struct.pack(">Q", length) + mask
        for name, data in (("a frame of 2^62 bytes", frame(0x82, 1 << 62)), ("of 1 GB", frame(0x82, 1 << 30) + b"x" * 100_000),
                           ("a compressed one", bytes([0xc2, 0x85]) + b"\0\0\0\0" + b"\xf2\x48\xcd\xc9\xc9"), ("one without a mask", b"\x82\x05hello"),
                           ("a reserved kind", b"\x83\x80\0\0\0\0"), ("a ping of 200 bytes", b"\x89\xfe\x00\xc8\0\0\0\0" + b"x" * 200),
                           ("fragments without an end", (b"\x02\xfe\xff\xff\0\0\0\0" + b"x" * 65535) + (b"\x00\xfe\xff\xff\0\0\0\0" + b"x" * 65535) * 40)):
            with self.tls(20) as tls:
                tls.sendall(hello)
                answer = tls.recv(4096)
                self.assertIn(b" 101 ", answer)
                self.assertNotIn(b"deflate", answer.lower())
                try:
                    tls.sendall(data)
                except OSError:
                    pass
                try:
                    while tls.recv(65536):
                        pass
                except ConnectionResetError:
                    pass  # closed with our bytes unread
                except TimeoutError:
                    self.fail("%s is not refused" % name)
        self.assertLess(resident_mb(self.musterd.pid) - before, 64)

    # ---- ten thousand that are of no use
    def attacked(self, kind, count):
        before = resident_mb(self.musterd.pid), resident_mb(self.relay.pid)
        attack = subprocess.Popen([sys.executable, os.path.join(ROOT, "tests/lab/port_attack.py"), str(self.port), kind, str(count), "120"], stdout=subprocess.PIPE,
                                  text=True)
        try:
            self.assertTrue(attack.stdout.readline().startswith("ready "), kind)
            waited = [self.ask(seconds=20) for _ in range(40)]
            kept = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=self.trust)
            for _ in range(40):
                kept.request("GET", "/healthz")
                answer = kept.getresponse()
                answer.read()
                self.assertEqual(answer.status, 200)
            kept.close()
            grown = resident_mb(self.musterd.pid) - before[0], resident_mb(self.relay.pid) - before[1]
        finally:
            attack.kill()
            attack.wait()
            attack.stdout.close()
        print("   %s: the slowest of 40 good clients waited %.0f ms; musterd %+.0f MB, relay %+.0f MB" % (kind, max(waited) * 1000, grown[0], grown[1]))
        self.assertLess(grown[0], 400, kind)
        self.assertLess(grown[1], 100, kind)

    def test_41_ten_thousand_that_say_nothing(self):
        self.attacked("silent", MANY)

    def test_42_ten_thousand_half_hellos(self):
        self.attacked("half", MANY)

    def test_43_slow_headers(self):
        self.attacked("header", 1000)

    def test_44_slow_bodies(self):
        self.attacked("body", 1000)

    def test_99_nothing_fell(self):
        self.assertIsNone(self.musterd.poll())
        self.assertIsNone(self.relay.poll())
        self.assertLess(self.ask(), 5)
        for name in ("musterd.log", "relay.log"):
            with open(self.dir + "/" + name) as f:
                self.assertNotIn("a callback failed", f.read())


if __name__ == "__main__":
    unittest.main()
