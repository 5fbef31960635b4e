"""privd and the Docker runtime against a real engine: a lease's containers, their limits and privileges, the helper, a command, a TCP
connection, files, the end. Needs root and dockerd, which it starts itself unless MUSTER_TEST_ENGINE names the socket of a running one.
"""
import array
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
AGENT_UID = 64790
IMAGE = os.environ.get("MUSTER_TEST_IMAGE", "muster/ray:2.60.0")


def binary():
    for build in [os.environ.get("MUSTER_BUILD", "")] + ["build/dev", "build/release", "build/host"]:
        path = os.path.join(ROOT, build, "muster-agent")
        if build and os.path.exists(path):
            return path
    return None


def docker(engine, *words):
    return subprocess.run(["docker", "-H", "unix://" + engine] + list(words), capture_output=True, text=True)


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(binary(), "muster-agent is not built")
@unittest.skipUnless(shutil.which("dockerd") or os.environ.get("MUSTER_TEST_ENGINE"), "dockerd is not installed")
class RuntimeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon, cls.folder = None, None
        cls.engine = os.environ.get("MUSTER_TEST_ENGINE")
        if cls.engine:
            return
        cls.folder = tempfile.mkdtemp(prefix="muster-engine-", dir="/var/tmp")
        cls.engine = cls.folder + "/sock"
        with open(cls.folder + "/log", "wb") as log:
            cls.daemon = subprocess.Popen(["dockerd", "--data-root", cls.folder + "/data", "--exec-root", cls.folder + "/exec", "--pidfile", cls.folder + "/pid",
                                           "-H", "unix://" + cls.engine, "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"],
                                          stdout=log, stderr=log)
        for _ in range(240):
            if docker(cls.engine, "version").returncode == 0:
                break
            time.sleep(0.25)
        subprocess.run([ROOT + "/images/ray/build", "--docker-host", "unix://" + cls.engine], check=True, stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        if cls.daemon:
            cls.daemon.terminate()
            cls.daemon.wait(30)
            shutil.rmtree(cls.folder, ignore_errors=True)

    def setUp(self):
        if docker(self.engine, "image", "inspect", IMAGE).returncode != 0:
            self.skipTest("the engine has no image " + IMAGE)
        self.state = tempfile.mkdtemp(prefix="muster-rt-", dir="/var/tmp")
        os.chmod(self.state, 0o755)
        os.makedirs(self.state + "/run")
        with open(self.state + "/config.json", "w") as f:
            json.dump({"server": "https://localhost", "node_id": "node-1", "machine": "t%x" % os.getpid(), "ca_pem": "x", "roster_key": ""}, f)
        with open(self.state + "/policy.json", "w") as f:
            json.dump({"engine_socket": self.engine}, f)
        self.privd = subprocess.Popen([binary(), "privd-process", "--state-dir", self.state])
        for _ in range(100):
            if os.path.exists(self.state + "/run/privd.sock"):
                break
            time.sleep(0.05)
        self.next_id = 0
        self.connection = self.connect_as(AGENT_UID)

    def tearDown(self):
        self.ask("remove_everything")
        self.connection.close()
        self.privd.terminate()
        self.privd.wait(20)
        shutil.rmtree(self.state, ignore_errors=True)

    def connect_as(self, uid):
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.setegid(uid)
        os.seteuid(uid)
        try:
            peer.connect(self.state + "/run/privd.sock")
        finally:
            os.seteuid(0)
            os.setegid(0)
        peer.settimeout(120)
        return peer

    def ask(self, verb, fds=(), **fields):
        self.next_id += 1
        text = json.dumps(dict(fields, id=self.next_id, verb=verb)).encode()
        self.connection.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
        while True:
            data, extra, _, _ = self.connection.recvmsg(1 << 18, socket.CMSG_SPACE(16))
            answer = json.loads(data)
            if answer.get("id") == self.next_id and "ok" in answer:
                break
        got = array.array("i")
        for _, _, payload in extra:
            got.frombytes(payload[:len(payload) - len(payload) % got.itemsize])
        answer["fds"] = list(got)
        return answer

    def good(self, verb, **fields):
        answer = self.ask(verb, **fields)
        self.assertTrue(answer["ok"], answer)
        return answer

    def run_in(self, lease, *argv):
        opened = self.good("exec", lease=lease, argv=list(argv))
        out = b""
        with os.fdopen(opened["fds"][0], "rb") as stream:
            while True:
                head = stream.read(8)
                if len(head) < 8:
                    break
                out += stream.read(int.from_bytes(head[4:], "big"))
        for _ in range(100):
            code = self.good("exec_code", lease=lease, exec=opened["exec"])["exit_code"]
            if code >= 0:
                return code, out.decode()
            time.sleep(0.05)
        self.fail("the command did not end")

    def test_life_of_a_lease(self):
        digest = self.good("pull", image=IMAGE)["digest"]
        self.assertEqual(self.ask("pull", image="127.0.0.1:9/none:1")["ok"], False)
        self.good("launch", lease="lease-1", image=digest, cpu_milli=1000, memory_bytes=512 << 20, shm_bytes=128 << 20, nofile=65536, pids=300,
                  address=0x0AC90001, head=True, env={"GREETING": "hello", "NVIDIA_VISIBLE_DEVICES": "all", "RAY_AUTH_TOKEN": "leak"})
        code, out = self.run_in("lease-1", "sh", "-c", "echo $GREETING $NVIDIA_VISIBLE_DEVICES $RAY_AUTH_MODE [$RAY_AUTH_TOKEN]; id -u; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; "
                                "cat /sys/class/net/*/ifindex | wc -l; ls /sys/class/net; unshare -r true; echo unshare=$?; exit 7")
        self.assertEqual(code, 7)
        self.assertIn("hello void token []", out)
        self.assertIn("1000", out)
        self.assertIn("CapEff:\t0000000000000000", out)
        self.assertIn("NoNewPrivs:\t1", out)
        self.assertIn("Seccomp:\t2", out)
        self.assertIn("muster0", out)
        self.assertNotIn("unshare=0", out)
        self.good("secret", lease="lease-1", secret="c2VjcmV0")
        code, out = self.run_in("lease-1", "sh", "-c", "cat /muster/secrets/ray_token; stat -c %a /muster/secrets/ray_token; touch /muster/secrets/x || echo readonly")
        self.assertIn("secret400", out.replace("\n", ""))
        self.assertIn("readonly", out)
        for _ in range(200):
            answer = self.ask("helper", lease="lease-1")
            if answer["ok"]:
                break
            time.sleep(0.1)
        self.assertTrue(answer["ok"], answer)
        with socket.socket(fileno=answer["fds"][0]) as helper:
            helper.settimeout(30)
            hello = json.loads(helper.makefile().readline())
            self.assertEqual((hello["ev"], hello["phase"]), ("hello", "idle"))
        code, _ = self.run_in("lease-1", "python3", "-c", "x = bytearray(1 << 30)")
        self.assertNotEqual(code, 0, "the memory limit does not bite")
        self.assertEqual(self.ask("tcp", lease="lease-1", address=0x0AC90001, port=9)["reason"], "tcp.refused")
        self.assertEqual(self.ask("exec", lease="lease-2", argv=["true"])["ok"], False)
        self.assertEqual([(x["lease"], x["running"]) for x in self.good("list")["leases"]], [("lease-1", True)])
        self.good("stop", lease="lease-1", grace_s=1)
        self.assertEqual(self.good("list")["leases"], [])
        self.assertTrue(os.path.isdir(self.state + "/leases/lease-1/workspace"))
        self.good("remove", lease="lease-1")
        self.assertFalse(os.path.exists(self.state + "/leases/lease-1"))

    def test_another_uid_is_refused(self):
        os.chmod(self.state + "/run/privd.sock", 0o666)
        stranger = self.connect_as(65533)
        stranger.settimeout(5)
        try:
            stranger.send(b'{"id":1,"verb":"list"}')
            self.assertEqual(stranger.recv(100), b"")
        except (BrokenPipeError, ConnectionResetError):
            pass

    def test_foreign_containers_are_left_alone(self):
        name = "muster-t%x-lease-9-ray" % os.getpid()
        made = docker(self.engine, "create", "--name", name, "--network", "none", IMAGE, "true")
        self.assertEqual(made.returncode, 0, made.stderr)
        try:
            self.assertFalse(self.ask("stop", lease="lease-9", grace_s=0)["ok"])
            self.assertFalse(self.ask("exec", lease="lease-9", argv=["true"])["ok"])
            self.assertEqual(docker(self.engine, "inspect", name).returncode, 0)
        finally:
            docker(self.engine, "rm", "-f", name)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"] + sys.argv[1:])
