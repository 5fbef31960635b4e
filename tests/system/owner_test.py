"""The owner and the GPUs against a hijacked agent, on real engines: the tests speak to privd as the agent's uid and ask for what the owner
does not lend. GPUs are fake (tests/testing/nvml, device nodes that are /dev/null), containers and engines are real. Needs root.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import engines  # noqa: E402
import fake_gpus  # noqa: E402
import images  # noqa: E402
import privd  # noqa: E402

BESIDE = "host"  # a lane of its own in tools/test.py: mostly waits

MIB = 1 << 20
IMAGE = "muster/small:owner"
# What a hostile image would like to say to the engine's hooks.
CHANGES = ["USER ray", "ENV NVIDIA_VISIBLE_DEVICES=all", "ENV NVIDIA_REQUIRE_CUDA=cuda>=99", "ENV LD_PRELOAD=/nowhere/evil.so"]
SEEN = "env | grep -E '^(NVIDIA|LD|MUSTER_LD)_' | sort; ls /dev | grep '^nvidia' | sort; echo end"
STUBBORN = ["python3", "-c", "import signal,time\nfor s in (15, 2, 1): signal.signal(s, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"]


class Base(unittest.TestCase):
    engine_class = None

    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0 or privd.binary() is None:
            raise unittest.SkipTest("needs root and a built muster-agent")
        if cls.engine_class.missing():
            raise unittest.SkipTest(cls.engine_class.missing())
        cls.close = []
        try:
            cls.folder = tempfile.mkdtemp(prefix="muster-owner-", dir="/var/tmp")
            cls.close.append(lambda: shutil.rmtree(cls.folder, ignore_errors=True))
            cls.gpus = fake_gpus.Gpus(cls.folder)
            cls.close.append(cls.gpus.close)
            cls.come_up()
            cls.engine = cls.engine_class(cls.folder + "/engine")
            cls.close.append(cls.engine.close)
            cls.engine.start()
            images.load(cls.engine.socket, images.small_root(), IMAGE, CHANGES)
            with cls.gpus.environment():
                cls.privd = privd.Privd({"engine_socket": cls.engine.socket}, machine="o%x" % os.getpid()).start()
            cls.close.append(cls.privd.close)
            cls.digest = cls.privd.pull(image=IMAGE)["digest"]
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        for step in reversed(cls.close):
            step()

    @classmethod
    def come_up(cls):
        pass

    def tearDown(self):
        for name in ("paused", "paused.now"):
            if os.path.exists("%s/%s" % (self.privd.state, name)):
                os.unlink("%s/%s" % (self.privd.state, name))
        self.policy()
        self.gpus.owner(None)
        for row in self.privd.good("list")["leases"]:
            self.privd.good("remove", lease=row["lease"])

    def policy(self, **changes):
        self.privd.set_policy(dict({"engine_socket": self.engine.socket}, **changes))

    def ask(self, lease, **more):
        spec = dict(image=self.digest, cpu_milli=500, memory_bytes=256 * MIB, shm_bytes=64 * MIB, nofile=4096, pids=200, address=0x0AC90001)
        return self.privd.ask("launch", lease=lease, **dict(spec, **more))

    def launch(self, lease, **more):
        answer = self.ask(lease, **more)
        self.assertTrue(answer["ok"], (answer, self.privd.log()))
        return answer

    def refused(self, lease, reason, **more):
        answer = self.ask(lease, **more)
        self.assertEqual((answer["ok"], answer.get("reason")), (False, reason), answer)

    def seen(self, lease):
        code, out, err = self.privd.run(lease, "sh", "-c", SEEN)
        self.assertTrue(out.endswith("end\n"), (code, out, err))
        return out.split("\n")[:-2]

    def gone(self, lease, seconds):
        return self.privd.wait_state(lease, lambda row: row is None or not (row["running"] or row["namespace_up"]), seconds)


class PodmanCdi(Base):
    """CDI for real: Podman puts the leased device, and nothing else, into the container."""
    engine_class = engines.Podman

    @classmethod
    def come_up(cls):
        cls.gpus.write("gpu GPU-cdi-a mem_mib=1000\ngpu GPU-cdi-b mem_mib=1000\n")
        cls.spec = fake_gpus.CdiSpec(["GPU-cdi-a", "GPU-cdi-b"])
        cls.close.append(cls.spec.close)

    def test_two_leases_with_one_gpu_each(self):
        self.launch("lease-1", devices=["GPU-cdi-a"])
        self.launch("lease-2", devices=["GPU-cdi-b"], address=0x0AC90002, env={"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DISABLE_REQUIRE": "1"})
        self.launch("lease-3", address=0x0AC90003)
        one, two, none = (self.seen("lease-%d" % i) for i in (1, 2, 3))
        self.assertIn("nvidia0", one)
        self.assertNotIn("nvidia1", one)
        self.assertIn("nvidia1", two)
        self.assertNotIn("nvidia0", two)
        self.assertIn("NVIDIA_VISIBLE_DEVICES=GPU-cdi-b", two)
        self.assertNotIn("NVIDIA_DISABLE_REQUIRE=1", two)
        self.assertIn("NVIDIA_VISIBLE_DEVICES=void", none)
        self.assertEqual([line for line in none if line.startswith("nvidia")], [])
        for lines in (one, two, none):
            self.assertNotIn("LD_PRELOAD=/nowhere/evil.so", lines)
            self.assertNotIn("NVIDIA_REQUIRE_CUDA=cuda>=99", lines)
        self.refused("lease-4", "gpu.taken", devices=["GPU-cdi-a"])
        self.refused("lease-4", "gpu.missing", devices=["GPU-not-here"])
        self.privd.good("stop", lease="lease-1", grace_s=0)
        self.launch("lease-4", devices=["GPU-cdi-a"], address=0x0AC90004)
        # Limits bite as without a GPU.
        self.assertNotEqual(self.privd.run("lease-4", "python3", "-c", "x = bytearray(1 << 30)")[0], 0)
        confined = self.privd.run("lease-4", "grep", "-E", "CapEff|NoNewPrivs|Seccomp:", "/proc/self/status")[1].split()
        self.assertEqual(confined, ["CapEff:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"])

    def test_two_leases_share_a_gpu_where_the_owner_shares_it(self):
        half = dict(devices=["GPU-cdi-a"], gpu_share_milli=500)
        self.refused("lease-1", "owner.gpu_sharing", **half)
        self.policy(gpu_sharing=True)
        self.launch("lease-1", **half)
        self.launch("lease-2", address=0x0AC90002, **dict(half, gpu_share_milli=400))
        for lease in ("lease-1", "lease-2"):
            lines = self.seen(lease)
            self.assertIn("nvidia0", lines)
            self.assertNotIn("nvidia1", lines)
            self.assertIn("NVIDIA_VISIBLE_DEVICES=GPU-cdi-a", lines)
        told = self.privd.run("lease-1", "sh", "-c", "echo $MUSTER_GPU_SHARE $MUSTER_GPU_MEMORY_BYTES")[1].split()
        self.assertEqual(told, ["0.5", str(500 * MIB)])
        self.refused("lease-3", "gpu.taken", **dict(half, gpu_share_milli=101))
        self.refused("lease-3", "gpu.taken", devices=["GPU-cdi-a"])
        self.policy()
        self.launch("lease-3", devices=["GPU-cdi-b"], address=0x0AC90003)  # whole ones as ever

    def test_a_mig_instance_is_one_leases(self):
        self.gpus.write("gpu GPU-cdi-a mem_mib=8000 mig=1\nmig GPU-cdi-a MIG-x 1g.1gb 1000\nmig GPU-cdi-a MIG-y 2g.2gb 2000\ngpu GPU-cdi-b mem_mib=1000\n")
        self.spec.write({"0:0": ["nvidia0"], "0:1": ["nvidia1"], "GPU-cdi-b": ["nvidia1"]})
        try:
            self.launch("lease-1", devices=["MIG-x"], gpu_share_milli=100)
            self.launch("lease-2", devices=["MIG-y"], gpu_share_milli=200, address=0x0AC90002)
            one, two = self.seen("lease-1"), self.seen("lease-2")
            self.assertIn("NVIDIA_VISIBLE_DEVICES=MIG-x", one)
            self.assertEqual([line for line in one if line.startswith("nvidia")], ["nvidia0"])
            self.assertEqual([line for line in two if line.startswith("nvidia")], ["nvidia1"])
            self.refused("lease-3", "gpu.taken", devices=["MIG-x"], gpu_share_milli=10)
            self.refused("lease-3", "gpu.missing", devices=["GPU-cdi-a"])
        finally:
            self.gpus.write("gpu GPU-cdi-a mem_mib=1000\ngpu GPU-cdi-b mem_mib=1000\n")
            self.spec.write()

    def check(self, *words):
        with self.gpus.environment():
            done = subprocess.run([privd.binary(), "gpu-check", "--state-dir", self.privd.state] + list(words), capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def test_gpu_check(self):
        code, said = self.check("--image", IMAGE)
        self.assertEqual(code, 0, said)
        self.assertIn("GPU CHECK OK: 2 GPUs", said)
        self.assertIn("a container with GPU-cdi-b sees it and no other", said)
        self.assertIn("a container without GPUs sees none", said)
        self.spec.write({"GPU-cdi-a": ["nvidia0"], "GPU-cdi-b": ["nvidia0", "nvidia1"]})  # one too many
        try:
            code, said = self.check("--image", IMAGE)
            self.assertEqual(code, 3, said)
            self.assertIn("GPU CHECK FAILED", said)
        finally:
            self.spec.write()
        code, said = self.check("--image", "muster/not-here:1")
        self.assertIn("SKIPPED  containers", said)

    def test_gpu_check_without_a_gpu(self):
        done = subprocess.run([privd.binary(), "gpu-check", "--state-dir", self.privd.state], capture_output=True, text=True,
                              env=dict(os.environ, MUSTER_NVML="/nowhere/libnvidia-ml.so.1"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("GPU CHECK SKIPPED", done.stdout)


class DockerOwner(Base):
    """Docker with the NVIDIA runtime's hook (a fake one that writes down what it was asked)."""
    engine_class = engines.Docker

    @classmethod
    def come_up(cls):
        cls.gpus.write("gpu GPU-a mem_mib=8000 default_mw=300000 min_mw=100000\ngpu GPU-b mem_mib=8000\n")
        cls.hook = fake_gpus.NvidiaHook(cls.folder)
        cls.close.append(cls.hook.close)
        cls.engine_class = cls.hook.engine(engines.Docker)

    def test_device_requests_name_the_leased_gpus(self):
        self.launch("lease-1", devices=["GPU-a"])
        self.launch("lease-2", devices=["GPU-b"], address=0x0AC90002)
        self.assertEqual(sorted(self.hook.asked()), ["GPU-a", "GPU-b"])
        self.assertIn("NVIDIA_VISIBLE_DEVICES=GPU-a", self.seen("lease-1"))

    def hold_memory(self, lease, uuid):
        """A program in the container that ignores polite signals and 'holds' 2 GiB of the GPU's memory; its pid on the host."""
        self.privd.good("exec", lease=lease, argv=STUBBORN)
        for _ in range(300):
            pids = self.gpus.pids_with("signal.SIG_IGN")
            if pids:
                break
            time.sleep(0.1)
        self.assertTrue(pids, "the program did not start")
        self.gpus.hold(uuid, pids[0], 2048)
        self.assertEqual(self.gpus.memory_used(uuid), 2048 * MIB)
        return pids[0]

    def test_pause_now_frees_the_graphics_memory(self):
        self.launch("lease-1", devices=["GPU-a"])
        self.hold_memory("lease-1", "GPU-a")
        began = time.time()
        with open(self.privd.state + "/paused.now", "w"):
            pass
        while time.time() - began < 30 and self.gpus.memory_used("GPU-a") > 0:
            time.sleep(0.05)
        took = time.time() - began
        self.assertEqual(self.gpus.memory_used("GPU-a"), 0)
        self.assertLess(took, 10, "the owner waited %.1f s" % took)
        self.gone("lease-1", 20)
        print("graphics memory free %.1f s after pause --now" % took)
        # The agent, were it hijacked, gets nothing started meanwhile.
        self.refused("lease-1", "owner.paused", devices=["GPU-a"])
        self.assertEqual(self.privd.ask("probe_start", lease="lease-7", image=self.digest)["reason"], "owner.paused")
        os.unlink(self.privd.state + "/paused.now")
        self.launch("lease-1", devices=["GPU-a"])

    def test_a_plain_pause_lets_work_go_on(self):
        self.launch("lease-1")
        with open(self.privd.state + "/paused", "w"):
            pass
        time.sleep(3)
        self.assertTrue(self.privd.state_of("lease-1")["running"])
        self.refused("lease-2", "owner.paused")

    def test_idle_only_ends_when_the_owner_uses_the_gpu(self):
        self.policy(idle={"minutes": 1, "input": False, "terminals": False, "load": False, "gpu": True})
        self.launch("lease-1", devices=["GPU-a"])
        self.hold_memory("lease-1", "GPU-a")  # our own use of the GPU is no sign of the owner
        time.sleep(3)
        self.assertTrue(self.privd.state_of("lease-1")["running"])
        game = subprocess.Popen(["sleep", "600"])
        try:
            self.gpus.owner(("GPU-b", game.pid, 512))
            self.gone("lease-1", 15)
            self.refused("lease-1", "owner.busy", devices=["GPU-a"])
        finally:
            game.kill()
            game.wait()
        self.refused("lease-1", "owner.busy", devices=["GPU-a"])  # not idle for a minute yet

    def test_hours_end_what_still_runs(self):
        minute = time.localtime().tm_hour * 60 + time.localtime().tm_min
        self.launch("lease-1")
        at = lambda m: "%02d:%02d" % (m % 1440 // 60, m % 60)  # noqa: E731
        self.policy(allowed_hours=[at(minute - 240) + "-" + at(minute - 120)], stop_after_minutes=600)
        time.sleep(2)
        self.assertTrue(self.privd.state_of("lease-1")["running"])
        self.refused("lease-2", "owner.hours")
        self.policy(allowed_hours=[at(minute - 240) + "-" + at(minute - 120)], stop_after_minutes=10)
        self.gone("lease-1", 15)

    def test_the_power_cap_holds_while_hired(self):
        self.policy(max_gpu_power_w=200)
        self.launch("lease-1", devices=["GPU-a"])
        self.gpus.wait_power("GPU-a", 200_000)
        self.policy(max_gpu_power_w=150)
        self.gpus.wait_power("GPU-a", 150_000)
        self.privd.kill()  # privd dies with the cap in force
        with self.gpus.environment():
            self.privd.start()
        self.privd.good("stop", lease="lease-1", grace_s=0)
        self.gpus.wait_power("GPU-a", 300_000)

    def test_what_the_owner_says_of_ways_reaches_netd_at_once(self):
        def told(name):
            with open(self.privd.state + "/run/" + name) as f:
                return f.read()

        def wait(name, text, why):
            end = time.time() + 10
            while not os.path.exists(self.privd.state + "/run/" + name) or text not in told(name):
                self.assertLess(time.time(), end, why)
                time.sleep(0.1)

        wait("network", "relay-only 0", "told at first")
        for change, name, text in (({"relay_only": True}, "network", "relay-only 1\n"), ({"endpoints": ["198.51.100.7:41641"]}, "network", "udp-port 41641\nendpoint 198.51.100.7:41641\n"),
                                   ({"port_mapping": False}, "network", "port-mapping 0\n"), ({"carry_allowed": True}, "bandwidth", "0 0 1 0 0"), ({"tests_allowed": True}, "bandwidth", "0 0 0 0 0 1")):
            self.policy(**change)
            wait(name, text, change)
        self.assertEqual(0o644, os.stat(self.privd.state + "/run/network").st_mode & 0o777, "netd and the agent read it, root alone writes it")

    def test_the_sum_of_all_leases_is_bounded(self):
        self.policy(max_cpu_milli=1000, max_memory_bytes=512 * MIB, max_leases=3, max_gpus=1)
        self.launch("lease-1", cpu_milli=700, devices=["GPU-a"])
        self.launch("lease-2", cpu_milli=9000, address=0x0AC90002)
        self.refused("lease-3", "owner.max_cpu", cpu_milli=100, address=0x0AC90003)
        self.privd.good("stop", lease="lease-2", grace_s=0)
        self.launch("lease-2", cpu_milli=100, address=0x0AC90002)
        self.refused("lease-3", "owner.max_memory", cpu_milli=100, address=0x0AC90003)
        self.refused("lease-3", "owner.max_gpus", cpu_milli=100, memory_bytes=6 * MIB, devices=["GPU-b"])
        # What the kernel enforces is what was booked, also for the one that asked for nine CPUs.
        box = images.call(self.engine.socket, "GET", "/containers/json?filters=%7B%22name%22%3A%5B%22lease-1-ray%22%5D%7D")[1][0]["Id"]
        host = images.call(self.engine.socket, "GET", "/containers/%s/json" % box)[1]["HostConfig"]
        self.assertEqual((host["NanoCpus"], host["Memory"], host["MemorySwap"]), (700_000_000, 256 * MIB, 256 * MIB))

    # ---- the agent's uid in the wrong hands
    def test_a_hijacked_agent_gets_nothing_beyond_the_verbs(self):
        """Every verb with hostile arguments: refused, privd lives, and neither the host nor anybody else's containers change."""
        foreign = images.call(self.engine.socket, "POST", "/containers/create?name=owners-own",
                              {"Image": IMAGE, "Cmd": ["sleep", "600"], "Labels": {"io.muster.lease": "lease-8", "io.muster.part": "ray"},
                               "HostConfig": {"NetworkMode": "none", "Ulimits": [{"Name": "nofile", "Soft": 1024, "Hard": 1024}]}})[1]["Id"]
        images.call(self.engine.socket, "POST", "/containers/%s/start" % foreign)
        private = images.load(self.engine.socket, images.small_root(), "owners/private:1", ["LABEL secret=yes"])
        self.launch("lease-1")
        before = sorted(os.listdir(self.privd.state)), sorted(os.listdir("/"))
        outside = ["../lease-1", "lease-1/../../etc", "/etc", "lease-", "lease-1\n", "lease-01", "", "node-1", "lease-99999999999999999999999"]
        hostile = [(verb, {"lease": lease}) for lease in outside for verb in
                   ("probe_start", "probe_stop", "launch", "secret", "blob", "stop", "remove", "helper", "exec", "resize", "exec_code", "tcp", "read_archive",
                    "write_archive", "put_files", "tun", "logs")]
        good = dict(lease="lease-1")
        launch = dict(lease="lease-6", image=self.digest, address=1)
        hostile += [("launch", dict(launch, **more)) for more in (
            {"privileged": True}, {"binds": ["/:/host"]}, {"network": "host"}, {"image": "alpine"}, {"image": private}, {"image": "sha256:" + "0" * 64},
            {"devices": ["/dev/sda"]}, {"devices": ["all"]}, {"devices": ["GPU-a", "GPU-a"]}, {"devices": ["GPU-a,GPU-b"]}, {"devices": "GPU-a"},
            {"cpu_milli": -1}, {"memory_bytes": -1}, {"memory_bytes": 1 << 62}, {"pids": 1}, {"pids": 1 << 30}, {"nofile": -1}, {"address": -1}, {"address": 1 << 40},
            {"prefix_bits": 0}, {"env": {"A=B": "c"}}, {"env": {"A\x00": "c"}}, {"env": {"A": "b\x00LD_PRELOAD=x"}}, {"env": ["A=b"]}, {"root_bytes": 0},
            {"user": "root"}, {"cap_add": ["ALL"]}, {"runtime": "nvidia"}, {"entrypoint": ["/bin/sh"]}, {"group": "x" * 200})]
        hostile += [("pull", {"image": image}) for image in (private, "sha256:" + "0" * 64, "../../containers/json", "/etc/passwd", "-v", "", "a" * 600, "x;id", "x y", "x?fromSrc=-")]
        hostile += [("pull", {"image": "127.0.0.1:9/x:1", "username": "a" * 300}), ("probe_start", dict(good, image=private)), ("probe_start", dict(good, image="alpine"))]
        hostile += [("exec", dict(good, argv=argv)) for argv in ([], [""], "id", [1], ["x"] * 300, ["x" * 70_000])]
        hostile += [("exec", dict(good, argv=["id"], user="root")), ("exec", dict(good, argv=["id"], privileged=True)), ("exec", {"lease": "lease-8", "argv": ["id"]})]
        hostile += [(verb, dict(good, exec=other)) for verb in ("exec_code", "resize") for other in ("../../images/json", "0" * 64, foreign, "")]
        hostile += [(verb, dict(good, path=path)) for verb in ("read_archive", "write_archive", "put_files") for path in ("", "etc/shadow", "/tmp/../etc", "/./x", "/x\n", "/" + "a" * 5000)]
        hostile += [("tcp", dict(good, address=address, port=port)) for address, port in ((-1, 1), (1 << 33, 1), (0x7F000001, 0), (0x7F000001, 70_000), (0x08080808, 53), (0xC0A80101, 80))]
        hostile += [("blob", dict(good, blob=blob)) for blob in ("../../../etc/cron.d/x", "a" * 64, "A" * 64, "a" * 63)]  # and without a descriptor
        hostile += [("put_files", dict(good, path="/tmp/x")), ("secret", dict(good, secret="!")), ("secret", dict(good, secret="")), ("stop", dict(good, grace_s=-1)), ("stop", dict(good, grace_s=1 << 20)),
                    ("stop", dict(good, signal=9)), ("cancel", {"target": 0}), ("cancel", {"target": "all"}), ("logs", dict(good, tail=1 << 40)), ("logs", {"lease": "lease-8"}),
                    ("info", {"socket": "/etc/passwd"}), ("list", {"all": True}), ("usage", {"lease": "lease-1"}), ("shell", {"argv": ["id"]}), ("mount", {}), ("", {}), ("LAUNCH", launch)]
        for verb, fields in hostile:
            answer = self.privd.ask(verb, **fields)
            for fd in answer["fds"]:
                os.close(fd)
            self.assertFalse(answer["ok"], (verb, fields, answer))
        for raw in (b"", b"{", b"[]", b"null", b'{"id":1}', b'{"id":"1","verb":"list"}', b"\xff\xfe", b'{"id":1,"verb":"list","verb":"info"}' * 2, b"[" * 10_000, b'{"id":1,"verb":"list","x":' + b"[" * 5000):
            peer = self.privd.connect_as(privd.AGENT_UID)
            try:
                peer.send(raw) if raw else peer.send(b" ")
                answer = peer.recv(1 << 16)
                self.assertTrue(not answer or not json.loads(answer)["ok"], raw[:60])
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                peer.close()
        for uid in (privd.AGENT_UID + 1, 65534, 1000):  # netd's uid, nobody, a person
            os.chmod(self.privd.state + "/run/privd.sock", 0o666)
            stranger = self.privd.connect_as(uid)
            stranger.settimeout(5)
            try:
                stranger.send(b'{"id":1,"verb":"list"}')
                self.assertEqual(stranger.recv(100), b"")
            except (BrokenPipeError, ConnectionResetError):
                pass
            stranger.close()
        # Work of the lease goes on, the owner's things are as they were.
        self.assertEqual(self.privd.run("lease-1", "echo", "alive")[1], "alive\n")
        self.assertEqual((sorted(os.listdir(self.privd.state)), sorted(os.listdir("/"))), before)
        self.assertTrue(images.call(self.engine.socket, "GET", "/containers/%s/json" % foreign)[1]["State"]["Running"])
        self.assertEqual([row["lease"] for row in self.privd.good("list")["leases"]], ["lease-1"])
        self.assertIn("owners/private:1", str(images.call(self.engine.socket, "GET", "/images/json")[1]))
        # Files of the host are out of reach through the container: a link leads into the container's own root.
        self.privd.run("lease-1", "ln", "-s", "/etc/hostname", "/tmp/link")
        self.privd.run("lease-1", "ln", "-s", "/proc/1/root/etc/shadow", "/tmp/proc-link")
        for path in ("/tmp/link", "/tmp/proc-link"):
            answer = self.privd.ask("read_archive", lease="lease-1", path=path)
            data = b""
            if answer["ok"]:
                with os.fdopen(answer["fds"][0], "rb") as f:
                    data = f.read()
                os.close(answer["fds"][1])
            self.assertNotIn(b"root:", data)
        images.call(self.engine.socket, "DELETE", "/containers/%s?force=true" % foreign)

    def test_the_owner_may_forbid_shells(self):
        self.launch("lease-1")
        self.policy(exec_allowed=False)
        self.assertEqual(self.privd.ask("exec", lease="lease-1", argv=["id"])["reason"], "owner.exec")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    unittest.main()
