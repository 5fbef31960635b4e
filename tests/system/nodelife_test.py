"""The life of the agent on a machine, on real processes in the lab: joining, status, limits, certificates, doctor, leaving, without any
work.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402
import fake_gpus  # noqa: E402

BESIDE = "host"  # a lane of its own in tools/test.py: mostly waits

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
SERVER = "https://" + demo.SERVER
CERTIFICATE_LIFE = 60


def read(path):
    with open(path, errors="replace") as f:
        return f.read()


def needs(test):
    test = unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")(test)
    return unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")(test)


class Base(unittest.TestCase):
    world = None

    @classmethod
    def tearDownClass(cls):
        if cls.world is not None:
            cls.world.close()

    def state(self, name):
        return "%s/%s" % (self.world.dir, name)

    def agent(self, name, *words, check=False, env=None, prefix=(), on=None, **kw):
        """muster-agent on that machine; prefix: a program that changes the surroundings first; on: the machine, where its state has another name."""
        return self.world.lab.sh(self.world.lab.enter(on or name) + list(prefix) + [self.world.binary("muster-agent")] + list(words) + ["--state-dir", self.state(name)],
                                 check=check, env=dict(os.environ, **(env or {})), **kw)

    def status(self, name):
        done = self.agent(name, "status", "--json")
        return json.loads(done.stdout) if done.stdout.startswith("{") else {}

    def wait(self, what, seconds, condition, log=""):
        return self.world.wait(self.id(), what, seconds, condition, log)

    def stop_agent(self, name):
        self.world.agents[name].kill(signal.SIGTERM)
        self.assertFalse(self.world.agents[name].alive())


@needs
class Life(Base):
    @classmethod
    def setUpClass(cls):
        cls.world = world = demo.World(BUILD, name="life", say=lambda text: None)
        try:
            world.lab.start_docker()
            world.musterd_args = ["--certificate-life", str(CERTIFICATE_LIFE)]
            world.start_server()
            for name, nat in (("keeper", "home"), ("sleeper", "lan:keeper"), ("goner", "lan:keeper")):
                world.add_machine(name, nat)
                done = subprocess.run(world.lab.enter(name) + [world.binary("muster-agent"), "status", "--wait", "60", "--state-dir", world.dir + "/" + name],
                                      capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
                # Ready is the control plane's word: it has the machine online at that very moment.
                assert world.nodes()[name]["state"] == "online", world.nodes()[name]
            cls.first_certificate = read(world.dir + "/keeper/agent/device.pem")
            cls.slept_at = time.time()
            world.agents["sleeper"].kill(signal.SIGTERM)  # sleeps through the end of its certificate
        except Exception:
            world.close()
            raise

    def test_1_status_is_not_ready_without_the_control_plane(self):
        self.world.musterd.kill()
        self.wait("the link's loss", 30, lambda: not self.status("keeper").get("ready"))
        self.assertEqual(self.agent("keeper", "status", "--wait", "1").returncode, 1)
        self.world.start_musterd()
        self.assertEqual(self.agent("keeper", "status", "--wait", "60").returncode, 0)

    def test_2_a_lost_answer_to_an_enrolment_is_asked_for_again(self):
        """A proxy swallows the answer of the first try: the machine is enrolled once, by one `join`, with its one-use token."""
        cut = {"left": 1}
        listener = socket.create_server(("127.0.0.1", 0))

        def pass_on(client):
            request = client.recv(4096)
            host, port = request.split(b" ")[1].split(b":")
            server = self.dial(host.decode(), int(port))
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            sent = {"records": 0}

            def upwards():
                buffer = b""
                while True:
                    data = client.recv(65536)
                    if not data:
                        break
                    buffer += data
                    while len(buffer) >= 5 and len(buffer) >= 5 + int.from_bytes(buffer[3:5], "big"):
                        sent["records"] += buffer[0] == 23  # encrypted: the end of the handshake, then the request
                        buffer = buffer[5 + int.from_bytes(buffer[3:5], "big"):]
                    server.sendall(data)
            threading.Thread(target=upwards, daemon=True).start()
            while True:
                data = server.recv(65536)
                if not data:
                    break
                if cut["left"] and sent["records"] >= 2:
                    cut["left"] -= 1
                    time.sleep(0.5)  # the control plane has stored it by now
                    client.shutdown(socket.SHUT_RDWR)
                    break
                client.sendall(data)
            client.close()

        def serve():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=pass_on, args=(client,), daemon=True).start()
        threading.Thread(target=serve, daemon=True).start()
        try:
            state = self.world.dir + "/lossy"
            os.makedirs(state)
            token = json.loads(self.world.cli("join-token", "create", "--org", "hall", "-o", "json", who="admin").stdout)["secret"]
            # The proxy listens in the test's own namespace, the join runs there too.
            join = [self.world.binary("muster-agent"), "join", SERVER, "--token-file", "-", "--name", "lossy", "--state-dir", state, "--no-service"]
            env = dict(os.environ, HTTPS_PROXY="http://127.0.0.1:%d" % listener.getsockname()[1], NO_PROXY="")
            done = subprocess.run(join, input=token + "\n", text=True, capture_output=True, env=env, timeout=60)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(cut["left"], 0, "the proxy swallowed nothing")
            named = [n for n in self.world.json("nodes", who="admin")["items"] if n["name"] == "lossy"]
            self.assertEqual(len(named), 1, named)
            self.assertIn(named[0]["id"], done.stdout)
            again = subprocess.run(join, input=token + "\n", text=True, capture_output=True, env=env, timeout=60)
            self.assertIn("enrolled already", again.stderr)
            # Another machine gets nothing for the same token.
            os.makedirs(state + "2")
            copy = subprocess.run(join[:-3] + ["--state-dir", state + "2", "--no-service"], input=token + "\n", text=True, capture_output=True, env=env, timeout=60)
            self.assertEqual(copy.returncode, 1)
            self.assertIn("unknown, used, revoked or expired", copy.stderr)
        finally:
            listener.close()

    def dial(self, host, port):
        """A connection into the lab: a thread of its own enters the namespace, the socket stays there."""
        made = []

        def go():
            import ctypes
            with open("/run/netns/" + self.world.lab.full("user")) as space:
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0x40000000) == 0:
                    made.append(socket.create_connection((host, port)))
        thread = threading.Thread(target=go)
        thread.start()
        thread.join()
        return made[0]

    def test_3_limits(self):
        minute = time.localtime().tm_hour * 60 + time.localtime().tm_min
        later, end = (minute + 120) % 1440, (minute + 180) % 1440
        hours = "%02d:%02d-%02d:%02d" % (later // 60, later % 60, end // 60, end % 60)
        done = self.agent("keeper", "limits", "set", "hours", hours, "cpus", "1.5", "upload", "20mbit", "memory", "2GiB")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(hours, done.stdout)
        self.wait("the gate's closing", 20, lambda: "outside the owner's hours" in self.status("keeper").get("owner", ""))
        shown = self.agent("keeper", "status").stdout
        self.assertIn("not hired: outside the owner's hours", shown)
        self.assertIn("upload 20 Mbit/s", shown)
        node = self.wait("the control plane's knowledge", 30, lambda: (lambda n: n if n["draining"] and "hours" in n["notHired"] else None)(self.world.nodes()["keeper"]))
        self.assertIn(hours, node["notHired"])
        self.wait("the lower capacity", 30, lambda: abs(float(self.world.nodes()["keeper"]["capacity"]["cpus"]) - 1.5) < 0.01)
        with open(self.state("keeper") + "/run/bandwidth") as f:
            self.assertEqual(f.read().split(), ["2500000"] + ["0"] * 5 + ["2500000", "1073741824"])
        self.assertEqual(self.agent("keeper", "limits", "set", "hours", "25:00-26:00").returncode, 1)
        resumed = self.agent("keeper", "resume")
        self.assertIn("not hired now: outside the owner's hours", resumed.stdout, resumed.stderr)
        engine = self.world.lab.docker[len("unix://"):]
        self.assertEqual(self.agent("keeper", "limits", "reset").returncode, 0)
        self.assertIn(engine, read(self.state("keeper") + "/policy.json"), "reset forgot where the engine is")
        self.wait("work again", 30, lambda: not self.world.nodes()["keeper"]["draining"])
        # pause and resume by hand
        paused = self.agent("keeper", "pause")
        self.assertEqual(paused.returncode, 0, paused.stderr)
        self.wait("the pause", 20, lambda: "paused" in self.world.nodes()["keeper"]["notHired"])
        self.assertEqual(self.agent("keeper", "resume").returncode, 0)
        self.wait("the resume", 20, lambda: not self.world.nodes()["keeper"]["draining"])
        drained = self.agent("keeper", "drain")
        self.assertIn("drain: done", drained.stdout, drained.stderr)
        self.assertEqual(self.agent("keeper", "resume").returncode, 0)

    def test_4_agent_metrics_are_local_and_off_unless_asked(self):
        get = ["python3", "-c", "import sys,urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"]
        url = "http://127.0.0.1:9464/metrics"
        self.assertNotEqual(self.world.lab.run("keeper", get + [url], check=False).returncode, 0)
        self.assertEqual(self.agent("keeper", "limits", "set", "metrics-port", "9464").returncode, 0)
        text = self.wait("metrics", 30, lambda: self.world.lab.run("keeper", get + [url], check=False).stdout)
        self.assertIn("muster_agent_online 1", text)
        self.assertIn("muster_agent_memory_total_bytes", text)
        far = self.world.lab.run("goner", get + ["http://%s:9464/metrics" % self.world.lab.addresses["keeper"]], check=False)
        self.assertNotEqual(far.returncode, 0, "the metrics of a machine are open to its neighbours")
        # The control plane's are for operators.
        url = SERVER + "/metrics"
        ca = self.world.data + "/ca.pem"
        fetch = ("import ssl,sys,urllib.request\nc=ssl.create_default_context(cafile=%r); c.check_hostname=False\n"
                 "r=urllib.request.Request(%r, headers={'Authorization': 'Bearer '+sys.argv[1]} if sys.argv[1] else {})\n"
                 "print(urllib.request.urlopen(r, context=c, timeout=10).read().decode())\n" % (ca, url))
        bare = self.world.lab.run("user", ["python3", "-c", fetch, ""], check=False)
        self.assertIn("401", bare.stderr)
        token = json.loads(self.world.cli("token", "create", "--label", "prometheus", "-o", "json", who="admin").stdout)["secret"]
        text = self.world.lab.run("user", ["python3", "-c", fetch, token]).stdout
        node = self.world.nodes()["keeper"]["id"]
        self.wait("the machine's metrics", 30, lambda: 'muster_node_memory_used_bytes{node="%s"}' % node in self.world.lab.run("user", ["python3", "-c", fetch, token]).stdout)

    # ---- doctor: each step broken in turn, in the doctor's own surroundings
    def doctor(self, name="keeper", script=None, env=None, prefix=()):
        """Runs doctor after a shell script in a mount namespace of its own; gives the broken steps and all it said."""
        if script:
            prefix = ["unshare", "-m", "--propagation", "private", "sh", "-ec", script + "\nexec \"$@\"", "sh"] + list(prefix)
        done = self.agent(name, "doctor", env=env, prefix=prefix, timeout=120)
        broken = [line.split(" ", 1)[1].split(":")[0] for line in done.stdout.split("\n") if line.startswith("BROKEN ")]
        self.assertEqual(done.returncode, 3 if broken else 0, done.stdout + done.stderr)
        for line in done.stdout.split("\n"):
            if line.startswith("BROKEN "):
                self.assertIn("\n         -> ", done.stdout[done.stdout.index(line):], "no repair is named for: " + line)
        return broken, done.stdout

    def bound(self, path, text):
        """A script line that puts another content over a file, for one mount namespace."""
        other = "%s/other-%d" % (self.world.dir, len(os.listdir(self.world.dir)))
        with open(other, "w") as f:
            f.write(text)
        return "mount --bind %s %s" % (other, path)

    def config(self, **changes):
        path = self.state("keeper") + "/config.json"
        return self.bound(path, json.dumps(dict(json.loads(read(path)), **changes)))

    def policy(self, **changes):
        path = self.state("keeper") + "/policy.json"
        return self.bound(path, json.dumps(dict(json.loads(read(path)), **changes)))

    def test_5_doctor_names_the_broken_step(self):
        self.agent("keeper", "status", "--wait", "60")
        broken, said = self.doctor()
        self.assertEqual(broken, [], said)
        self.assertIn("nothing is broken", said)
        self.assertRegex(said, r"user ids.*leases share the machine's")
        with self.subTest("clock ahead"):
            self.assertEqual(self.doctor(prefix=["faketime", "-f", "+3d"])[0], ["clock"])
        with self.subTest("clock behind"):
            self.assertEqual(self.doctor(prefix=["faketime", "-f", "-400d"])[0], ["clock"])
        with self.subTest("DNS"):
            self.assertEqual(self.doctor(script=self.config(server="https://nowhere.invalid"))[0], ["DNS"])
        with self.subTest("TCP"):
            self.assertEqual(self.doctor(script=self.config(server=SERVER + ":9"))[0], ["TCP"])
        with self.subTest("TLS"):
            self.tls_impostor()
        with self.subTest("proxy"):
            broken, said = self.doctor(env={"HTTPS_PROXY": "http://203.0.113.5:9"})
            self.assertEqual(broken, ["proxy"], said)
        with self.subTest("disk"):
            self.assertEqual(self.doctor(script=self.policy(reserve={"disk_bytes": 1 << 49}))[0], ["disk"])
        with self.subTest("container engine"):
            self.assertEqual(self.doctor(script=self.policy(engine_socket="/nowhere/docker.sock"))[0], ["container engine"])
        with self.subTest("policy"):
            self.assertIn("policy", self.doctor(script=self.bound(self.state("keeper") + "/policy.json", "{ damaged"))[0])
        with self.subTest("TUN"):
            self.assertEqual(self.doctor(script="mount -t tmpfs none /dev/net")[0], ["TUN"])
        with self.subTest("firewall"):
            nft = os.path.realpath(shutil.which("nft"))
            self.assertEqual(self.doctor(script="mount --bind /dev/null %s\n%s" % (nft, self.policy(egress_allowed=True)))[0], ["firewall"])
        with self.subTest("GPU driver"):
            script = "mkdir -p {0}/dev && mount -t tmpfs none {0}/dev && cp -a /dev/null /dev/zero /dev/random /dev/urandom /dev/tty {0}/dev/ && " \
                     "mkdir {0}/dev/net && cp -a /dev/net/tun {0}/dev/net/ && cp -a /dev/null {0}/dev/nvidiactl && mount --rbind {0}/dev /dev".format(self.world.dir)
            self.assertEqual(self.doctor(script=script)[0], ["GPU driver"])
        with self.subTest("GPU toolkit"):
            gpus = fake_gpus.Gpus(self.world.dir)
            gpus.write("gpu GPU-doctor\n")
            self.assertEqual(self.doctor(env=gpus.variables())[0], ["GPU toolkit"])
        with self.subTest("certificate"):
            self.assertEqual(self.doctor(script=self.bound(self.state("keeper") + "/agent/device.pem", "junk"))[0], ["certificate"])
        with self.subTest("agent"):
            self.assertEqual(self.doctor("sleeper")[0], ["agent"])

    def test_5b_known_holes_keep_new_work_away(self):
        """The operator's table says that this very engine has a hole: nothing new for the machine, said to owner and operator; until an exception, or no table."""
        show = lambda: self.world.json("nodes", "show", "keeper", who="admin")
        claims = show()["claimedLabels"]
        self.assertRegex(claims["version.linux"], r"^\d+\.\d+")
        self.assertRegex(claims["version.runc"], r"^\d+\.\d+\.\d+")
        self.assertEqual(claims["isolation"], "shared-users", "this engine has no user ids to give, which must be told")
        self.assertRegex(claims["version.docker"], r"^\d+\.")
        self.assertEqual([h["id"] for h in show().get("holes", []) if h.get("blocks")], [])
        table = {"date": "2999-01-01", "holes": [{"id": "CVE-2999-1", "component": "docker", "action": "block", "what": "lets a lease out",
                                                  "affected": [{"fixed": "999"}], "sources": ["here"]}]}

        def judge(**files):
            for name in ("known-holes", "hole-policy"):
                path = "%s/%s.json" % (self.world.data, name)
                text = files.get(name.replace("-", "_"))
                if text is not None:
                    with open(path, "w") as f:
                        json.dump(text, f)
                elif os.path.exists(path):
                    os.remove(path)
            os.kill(self.world.musterd.popen.pid, signal.SIGHUP)
        strict = {"unknown": "block"}  # a distribution's engine may have the hole mended, for all that this table knows
        try:
            judge(known_holes=table, hole_policy=strict)
            self.wait("the verdict", 30, lambda: "CVE-2999-1 in docker" in show().get("notHired", ""))
            self.assertEqual([h["id"] for h in show()["holes"] if h.get("blocks")], ["CVE-2999-1"])
            self.wait("the owner's status", 30, lambda: "known holes: CVE-2999-1" in self.agent("keeper", "status").stdout)
            self.assertEqual(self.doctor()[0], ["admission"])
            self.assertEqual(self.status("keeper")["ready"], True)
            node = show()["id"]
            judge(known_holes=table, hole_policy=dict(strict, exceptions=[{"id": "CVE-2999-1", "node": node, "owner": "ann", "until": "2999-01-01"}]))
            self.wait("the exception", 30, lambda: "known holes" not in show().get("notHired", ""))
            self.wait("the owner's status", 30, lambda: "known holes" not in self.agent("keeper", "status").stdout)
            judge(known_holes=table, hole_policy=strict)
            self.wait("the verdict again", 30, lambda: "known holes" in show().get("notHired", ""))
        finally:
            judge()
        self.wait("no verdict", 30, lambda: "known holes" not in show().get("notHired", ""))

    def tls_impostor(self):
        """Somebody else answers at the control plane's address."""
        key, pem = self.world.dir + "/impostor.key", self.world.dir + "/impostor.pem"
        self.world.lab.sh(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=muster",
                           "-addext", "subjectAltName=DNS:muster", "-keyout", key, "-out", pem])
        server = ("import socket,ssl\nc=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain(%r,%r)\ns=socket.create_server(('203.0.113.5',8443))\n"
                  "while True:\n t,_=s.accept()\n try: c.wrap_socket(t,server_side=True).close()\n except OSError: pass\n" % (pem, key))
        impostor = self.world.lab.spawn("user", ["python3", "-c", server], self.world.dir + "/impostor.log")
        try:
            dial = ["python3", "-c", "import socket; socket.create_connection(('203.0.113.5', 8443), 2)"]
            self.wait("the impostor", 10, lambda: self.world.lab.run("keeper", dial, check=False).returncode == 0, impostor.log)
            broken, said = self.doctor(script=self.config(server="https://203.0.113.5:8443"))
            self.assertEqual(broken, ["TLS"], said)
        finally:
            impostor.kill()

    def test_6_certificates(self):
        """Renewed at two thirds of its life without a new link; one that ended in the machine's sleep is renewed on proof of the key."""
        renewed = self.wait("a renewal", CERTIFICATE_LIFE + 20, lambda: (lambda now: now if now != self.first_certificate else None)(read(self.state("keeper") + "/agent/device.pem")))
        self.assertNotIn("no link", read(self.state("keeper") + "/agent.log").split("the device certificate was renewed")[0][-400:])
        self.assertTrue(self.status("keeper")["ready"])
        subject = self.world.lab.sh(["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=renewed).stdout
        self.assertIn("spiffe://muster/node/" + self.world.nodes()["keeper"]["id"], subject)
        time.sleep(max(0.0, self.slept_at + CERTIFICATE_LIFE + 5 - time.time()))
        old = read(self.state("sleeper") + "/agent/device.pem")
        self.assertEqual(self.world.lab.sh(["openssl", "x509", "-noout", "-checkend", "0"], input=old, check=False).returncode, 1, "it has not ended yet")
        self.world.start_agent("sleeper")
        self.assertEqual(self.agent("sleeper", "status", "--wait", "60").returncode, 0, self.agent("sleeper", "status").stdout)
        self.wait("its new certificate", 20, lambda: read(self.state("sleeper") + "/agent/device.pem") != old)

    def test_6b_a_copied_machine_is_quarantined(self):
        """The device key on a second machine: neither is served until somebody took the copy away and enables the one that stays."""
        copy = self.state("copy")
        subprocess.run("mkdir %s && tar -C %s --exclude=./run --exclude=*.sock --exclude=agent.log -cf - . | tar -C %s -xf -" % (copy, self.state("keeper"), copy), shell=True, check=True)
        with open(copy + "/boot_id", "w") as f:
            f.write("11111111-2222-3333-4444-555555555555\n")
        start = "mount --bind %s/boot_id /proc/sys/kernel/random/boot_id && exec %s run --state-dir %s" % (copy, self.world.binary("muster-agent"), copy)
        self.world.agents["copy"] = self.world.lab.spawn("goner", ["unshare", "-m", "sh", "-c", start], copy + "/agent.log")
        self.wait("the quarantine", 60, lambda: self.world.nodes()["keeper"]["state"] == "quarantined", copy + "/agent.log")
        for name, on in (("keeper", "keeper"), ("copy", "goner")):
            self.wait("the refusal of " + name, 90, lambda: "quarantined" in self.agent(name, "status", on=on).stdout)
            self.assertIn("muster nodes enable", self.agent(name, "status", on=on).stdout)
        self.stop_agent("copy")
        self.stop_agent("keeper")
        self.world.start_agent("keeper")
        self.wait("another refusal", 30, lambda: "quarantined" in self.agent("keeper", "status").stdout)
        self.assertFalse(self.status("keeper")["ready"])
        self.world.cli("nodes", "enable", "keeper", who="admin")
        self.stop_agent("keeper")  # or it asks again within a minute
        self.world.start_agent("keeper")
        self.assertEqual(self.agent("keeper", "status", "--wait", "60").returncode, 0, self.agent("keeper", "status").stdout)
        self.assertEqual(self.world.nodes()["keeper"]["state"], "online")

    def test_7_revocation_takes_effect_at_once(self):
        node = self.world.nodes()["sleeper"]["id"]
        began = time.time()
        self.world.cli("nodes", "revoke", node, "--yes", who="admin")
        self.wait("the end of the link", 10, lambda: "revoked" in self.agent("sleeper", "status").stdout)
        self.assertLess(time.time() - began, 10)
        self.assertFalse(self.status("sleeper")["online"])
        self.assertEqual(self.world.json("nodes", "show", node, who="admin")["state"], "revoked")
        self.stop_agent("sleeper")
        self.world.start_agent("sleeper")  # trying again does not help
        self.wait("the refusal", 20, lambda: "revoked" in self.agent("sleeper", "status").stdout)

    def test_8_leave_takes_everything_along(self):
        node = self.world.nodes()["goner"]["id"]
        self.assertEqual(self.agent("goner", "status", "--wait", "60").returncode, 0)
        own = self.state("goner") + "/notes.txt"
        with open(own, "w") as f:
            f.write("the owner's own\n")
        done = self.agent("goner", "leave", timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn(own, done.stdout)
        self.assertEqual(sorted(os.listdir(self.state("goner"))), ["agent.log", "notes.txt"])
        self.wait("the control plane's knowledge", 20, lambda: self.world.json("nodes", "show", node, who="admin")["state"] == "revoked")
        self.assertFalse(self.world.agents["goner"].alive())
        self.assertIn("not enrolled", self.agent("goner", "status").stderr + self.agent("goner", "leave").stderr)

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    def test_9_the_unit_is_one_that_systemd_takes(self):
        text = self.agent("keeper", "unit").stdout
        self.assertIn("ExecStart=", text)
        path = self.world.dir + "/muster-agent.service"
        with open(path, "w") as f:
            f.write(text)
        done = self.world.lab.sh(["systemd-analyze", "verify", "--man=no", path], check=False)
        told = [line for line in (done.stdout + done.stderr).split("\n") if "muster-agent.service" in line]
        self.assertEqual(told, [], done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
