"""The contract of a runtime (src/host/runtime.h), one suite run through privd on every runtime there is: life, exit codes, output, terminal,
limits that bite, confinement, disk limits, adoption after privd's death, files, and that nothing of anybody else is touched.
Needs root; starts and stops the engines itself.
"""
import hashlib
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import engines  # noqa: E402
import images  # noqa: E402
import privd  # noqa: E402
import registry  # noqa: E402
import wheels  # noqa: E402

MIB = 1 << 20
BESIDE = "work"  # that lane has time left

# Each of these must fail: a call that our profile forbids and that the engines' own default profiles would mostly allow.
FORBIDDEN = """
import ctypes, errno, os, platform

libc = ctypes.CDLL(None, use_errno=True)
calls = {"x86_64": {"keyctl": (250, 0, 0, 0), "userfaultfd": (323, 1), "io_uring_setup": (425, 1, 0), "bpf": (321, 0, 0, 0), "mount": (165, 0, 0, 0, 0, 0),
                    "ptrace": (101, 0, 0, 0, 0), "unshare": (272, 0x10000000), "socket(AF_ALG)": (41, 38, 5, 0), "socket(AF_VSOCK)": (41, 40, 1, 0)},
         "aarch64": {"keyctl": (219, 0, 0, 0), "bpf": (280, 0, 0, 0), "mount": (40, 0, 0, 0, 0, 0), "unshare": (97, 0x10000000)}}
for name, words in calls[platform.machine()].items():
    done = libc.syscall(*words)
    print(name, done, errno.errorcode.get(ctypes.get_errno(), 0))
"""


class Contract:
    """Subclasses say how the runtime comes up and what image it runs."""
    owner = {}      # more of the owner's policy
    before = ()     # what is put before privd's command
    foreign = True  # engines: somebody else's containers are beside ours

    @classmethod
    def setUpClass(cls):
        cls.close = []
        try:
            cls.come_up()
            cls.privd = privd.Privd(dict(cls.policy, **cls.owner), machine="t%x" % os.getpid(), before=cls.before).start()
            cls.close.append(cls.privd.close)
            cls.digest = cls.privd.pull(image=cls.image)["digest"]
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        for step in reversed(cls.close):
            step()

    def setUp(self):
        self.lease = None

    def tearDown(self):
        if self.lease is not None:
            self.privd.ask("remove", lease=self.lease)

    counter = 0

    def launch(self, lease=None, **more):
        if lease is None:
            Contract.counter += 1
            lease = "lease-%d" % Contract.counter
        spec = dict(image=self.digest, cpu_milli=1000, memory_bytes=512 * MIB, shm_bytes=128 * MIB, nofile=4096, pids=300, address=0x0AC90001, head=True)
        self.lease = lease
        self.privd.good("launch", lease=lease, **dict(spec, **more))
        return lease

    def run_in(self, *argv, **kw):
        return self.privd.run(self.lease, *argv, **kw)

    def shell(self, text):
        code, out, err = self.run_in("sh", "-c", text)
        self.assertEqual(code, 0, (text, out, err))
        return out

    def helper(self):
        for _ in range(600):
            answer = self.privd.ask("helper", lease=self.lease)
            if answer["ok"]:
                link = socket.socket(fileno=answer["fds"][0])
                link.settimeout(60)
                return link
            time.sleep(0.1)
        self.fail(answer)

    # ---- life
    def test_a_life(self):
        lease = self.launch(env={"GREETING": "hello", "NVIDIA_VISIBLE_DEVICES": "all", "RAY_AUTH_TOKEN": "leak"})
        self.launch(lease=lease)  # again changes nothing
        code, out, err = self.run_in("sh", "-c", "echo $GREETING $NVIDIA_VISIBLE_DEVICES $RAY_AUTH_MODE [$RAY_AUTH_TOKEN]; echo oops >&2; exit 7")
        self.assertEqual((code, err), (7, "oops\n"))
        self.assertEqual(out, "hello void token []\n")
        self.assertEqual(self.run_in("cat", stdin=b"through standard input")[:2], (0, "through standard input"))
        self.assertEqual(self.run_in("sh", "-c", "kill -9 $$")[0], 137)
        self.assertIn(self.run_in("no-such-program")[0], (126, 127))
        with self.helper() as link:
            hello = json.loads(link.makefile().readline())
            self.assertEqual((hello["ev"], hello["phase"]), ("hello", "idle"))
        row = self.privd.state_of(lease)
        self.assertTrue(row["running"] and row["namespace_up"] and row["exists"], row)
        self.assertFalse(self.privd.ask("exec", lease="lease-99999", argv=["true"])["ok"])
        self.privd.good("stop", lease=lease, grace_s=1)
        self.privd.good("stop", lease=lease, grace_s=1)
        self.assertIsNone(self.privd.state_of(lease))
        self.assertFalse(self.privd.ask("exec", lease=lease, argv=["true"])["ok"])
        self.assertTrue(os.path.isdir(self.privd.state + "/leases/%s/workspace" % lease))
        self.privd.good("remove", lease=lease)
        self.assertFalse(os.path.exists(self.privd.state + "/leases/" + lease))

    def test_terminal(self):
        lease = self.launch()
        opened = self.privd.good("exec", lease=lease, argv=["sh", "-c", "test -t 0 && test -t 1 && echo terminal $TERM; read line; stty size; exit 5"], tty=True)
        peer = socket.socket(fileno=opened["fds"][0])
        peer.settimeout(60)
        self.privd.good("resize", lease=lease, exec=opened["exec"], rows=31, cols=97)
        peer.sendall(b"go\n")
        text = b""
        while True:
            part = peer.recv(4096)
            if not part:
                break
            text += part
        peer.close()
        self.assertIn(b"terminal xterm-256color", text)
        self.assertIn(b"31 97", text)
        self.assertEqual(self.privd.exit_code(lease, opened["exec"]), 5)
        self.assertFalse(self.privd.ask("resize", lease=lease, exec="0" * 64, rows=1, cols=1)["ok"])

    def test_main_process_ends(self):
        """Its code and last words are known until the lease is launched again or stopped."""
        lease = self.launch()
        self.helper().close()
        self.shell("kill -9 $(pgrep -o -f '^[^ ]*python[^ ]* -u [^ ]*ray_helper[.]py') || true")
        row = self.privd.wait_state(lease, lambda r: r is not None and not r["running"])
        self.assertTrue(row["exists"], row)
        self.assertEqual((row["exit_code"], row["reason"]), (137, ""), row)
        self.assertTrue(self.privd.ask("logs", lease=lease)["ok"])
        self.launch(lease=lease)
        self.assertTrue(self.privd.state_of(lease)["running"])

    def test_restart_keeps_workspace_and_network_not_root(self):
        lease = self.launch()
        home = self.shell("cd; pwd").strip()
        self.shell("echo kept > /tmp/ray/spilled; echo gone > %s/file; echo gone > /tmp/file" % home)
        before = self.shell("cat /sys/class/net/muster0/ifindex 2>/dev/null || grep -o '[0-9a-f]*' /proc/net/if_inet6 | head -1; readlink /proc/self/ns/net")
        self.helper().close()
        self.shell("kill -9 $(pgrep -o -f '^[^ ]*python[^ ]* -u [^ ]*ray_helper[.]py') || true")
        self.privd.wait_state(lease, lambda r: r is not None and not r["running"])
        self.launch(lease=lease)
        self.assertEqual(self.shell("cat /tmp/ray/spilled; ls %s/file /tmp/file 2>/dev/null || true" % home), "kept\n")
        self.assertEqual(self.shell("cat /sys/class/net/muster0/ifindex 2>/dev/null || grep -o '[0-9a-f]*' /proc/net/if_inet6 | head -1; readlink /proc/self/ns/net"), before)

    def test_privd_dies_and_adopts(self):
        lease = self.launch()
        mark = self.shell("sleep 3600 >/dev/null 2>&1 & echo $!").strip()
        self.privd.kill()
        self.privd.start()
        row = self.privd.state_of(lease)
        self.assertTrue(row["running"] and row["namespace_up"], row)
        self.assertIn("sleep", self.shell("cat /proc/%s/cmdline" % mark))
        self.assertTrue(self.privd.ask("tun", lease=lease)["ok"])
        self.privd.good("stop", lease=lease, grace_s=0)
        self.assertIsNone(self.privd.state_of(lease))

    # ---- confinement
    def test_confined(self):
        self.launch()
        status = dict(line.split(":\t", 1) for line in self.shell("cat /proc/self/status").split("\n") if ":\t" in line)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertEqual(status[name].strip(), "0" * 16, name)
        self.assertEqual((status["NoNewPrivs"].strip(), status["Seccomp"].strip()), ("1", "2"))
        self.assertEqual(self.shell("id -u").strip(), "1000")
        for line in self.shell("python3 -c '%s'" % FORBIDDEN.replace("'", '"')).strip().split("\n"):
            self.assertRegex(line, r" -1 (EPERM|ENOSYS)$")
        self.assertNotEqual(self.run_in("unshare", "-r", "true")[0], 0)
        self.assertEqual(sorted(self.shell("tail -n +3 /proc/net/dev | cut -d: -f1").split()), ["lo", "muster0"])
        self.assertEqual(self.shell("cat /proc/net/route | tail -n +2 | cut -f1").split(), ["muster0"])
        self.assertEqual(self.run_in("sh", "-c", "ls -d /dev/kmsg /dev/mem /dev/kvm /dev/vda /dev/sda /dev/net/tun /dev/nvidiactl 2>/dev/null")[1], "")
        self.assertNotEqual(self.run_in("sh", "-c", "echo 1 > /proc/sys/vm/drop_caches")[0], 0)
        self.assertNotEqual(self.run_in("sh", "-c", "ls /root/.ssh || cat /etc/shadow")[0], 0)
        pids = [int(p) for p in self.shell("ls /proc").split() if p.isdigit()]
        self.assertLess(len(pids), 30, "it sees processes that are not its own")
        # Nothing of this machine's names, mounts or messages is shared.
        for kind in ("pid", "mnt", "ipc", "uts", "net"):
            self.assertNotEqual(self.shell("readlink /proc/self/ns/" + kind).strip(), os.readlink("/proc/self/ns/" + kind), kind)
        self.assertEqual(self.privd.ask("tcp", lease=self.lease, address=0x0AC90001, port=9)["reason"], "tcp.refused")

    def test_secrets(self):
        lease = self.launch()
        self.privd.good("secret", lease=lease, secret="c2VjcmV0")
        self.assertEqual(self.shell("cat /muster/secrets/ray_token; stat -c ' %a %u' /muster/secrets/ray_token").strip(), "secret 400 1000")
        self.assertEqual(self.shell("stat -f -c %T /muster/secrets").strip(), "tmpfs")
        self.assertNotEqual(self.run_in("touch", "/muster/secrets/x")[0], 0)
        self.assertNotEqual(self.run_in("touch", "/muster/helper/x")[0], 0)
        self.privd.good("stop", lease=lease, grace_s=0)
        found = subprocess.run(["grep", "-rls", "^secret$", "/run", "/dev/shm", self.privd.state], capture_output=True, text=True).stdout
        self.assertEqual(found, "", "the secret outlives the lease")

    # ---- limits
    def test_memory_and_shm_bite(self):
        self.launch(memory_bytes=256 * MIB)
        code, _, _ = self.run_in("python3", "-c", "x = bytearray(400 << 20); print('allocated')")
        self.assertEqual(code, 137)
        self.assertTrue(self.privd.state_of(self.lease)["running"], "the whole lease died for one process")
        self.assertEqual(self.shell("df -k /dev/shm | tail -1 | awk '{print $2}'").strip(), str(128 * 1024))
        code, _, err = self.run_in("sh", "-c", "head -c 150000000 /dev/zero > /dev/shm/x")
        self.assertNotEqual(code, 0)
        self.shell("rm -f /dev/shm/x")

    def test_pids_bite(self):
        self.launch(pids=100)
        out = self.shell("python3 -c \"\nimport os, time\nn = 0\ntry:\n while n < 500:\n  if os.fork() == 0: time.sleep(60), os._exit(0)\n  n += 1\n"
                         "except OSError as e: print('stopped at', n, e.errno, flush=True)\nos._exit(0)\" 2>/dev/null")
        self.assertRegex(out, r"stopped at \d\d? 11")

    def test_cpu_and_files_bite(self):
        self.launch(cpu_milli=500, nofile=1000)
        out = self.shell("python3 -c \"\nimport os, time\nos.fork()\nend, cpu = time.monotonic() + 4, time.process_time()\nwhile time.monotonic() < end: pass\n"
                         "os.write(1, b'%.6f\\n' % (time.process_time() - cpu))\ntry: os.wait()\nexcept OSError: pass\"")
        self.assertLess(sum(float(x) for x in out.split()), 4 * 0.5 * 1.3, out)  # one write a line: two processes share the pipe
        self.assertEqual(self.shell("ulimit -n").strip(), "1000")

    def test_full_root(self):
        self.privd.set_policy(dict(self.privd.policy, max_root_bytes=60 * MIB))
        try:
            lease = self.launch()
            self.run_in("sh", "-c", "head -c 90000000 /dev/zero > ~/filler; sync ~/filler; sleep 120")
            row = self.privd.wait_state(lease, lambda r: r is not None and not r["running"])
            self.assertEqual(row["reason"], "container.root_full", row)
            self.launch(lease=lease)
            self.assertEqual(self.shell("ls ~/filler 2>/dev/null || true"), "")
            self.assertEqual(self.privd.state_of(lease)["reason"], "")
        finally:
            self.privd.set_policy({k: v for k, v in self.privd.policy.items() if k != "max_root_bytes"})

    def test_full_workspace(self):
        lease = self.launch(workspace_bytes=40 * MIB)
        self.run_in("sh", "-c", "head -c 60000000 /dev/zero > /tmp/ray/filler; sync /tmp/ray/filler; sleep 120")
        row = self.privd.wait_state(lease, lambda r: r is not None and not r["running"])
        self.assertEqual(row["reason"], "container.workspace_full", row)
        self.assertGreater(os.path.getsize(self.privd.state + "/leases/%s/workspace/filler" % lease), 40 * MIB, "the workspace is kept")

    # ---- files
    def test_files(self):
        lease = self.launch()
        with tempfile.TemporaryDirectory() as folder:
            os.makedirs(folder + "/data/deep")
            with open(folder + "/data/deep/file", "w") as f:
                f.write("x" * 100000)
            tar = folder + "/data.tar"
            subprocess.run(["tar", "-C", folder, "-cf", tar, "data"], check=True)
            with open(tar, "rb") as f:
                self.privd.good("put_files", lease=lease, path="/tmp/put", fds=[f.fileno()])
            self.assertEqual(self.shell("wc -c < /tmp/put/data/deep/file").strip(), "100000")
            opened = self.privd.good("read_archive", lease=lease, path="/tmp/put/data")
            with os.fdopen(opened["fds"][0], "rb") as data, open(folder + "/back.tar", "wb") as out:
                shutil.copyfileobj(data, out)
            with os.fdopen(opened["fds"][1], "rb") as told:
                self.assertEqual(told.read(), b"ok")
            listed = subprocess.run(["tar", "-tf", folder + "/back.tar"], capture_output=True, text=True, check=True).stdout
            self.assertIn("data/deep/file", listed)
            opened = self.privd.good("read_archive", lease=lease, path="/tmp/missing")
            os.close(opened["fds"][0])
            with os.fdopen(opened["fds"][1], "rb") as told:
                self.assertNotEqual(told.read(), b"ok")

    # ---- the neighbours
    def test_probe(self):
        self.lease = "lease-70"
        self.privd.good("probe_start", lease=self.lease, image=self.digest)
        for _ in range(600):
            answer = self.privd.ask("helper", lease=self.lease, probe=True)
            if answer["ok"]:
                break
            time.sleep(0.1)
        with socket.socket(fileno=answer["fds"][0]) as link:
            link.settimeout(120)
            link.sendall(b'{"op":"probe"}\n')
            for line in link.makefile():
                said = json.loads(line)
                if said["ev"] == "probe":
                    break
        self.check_probe(said)
        self.assertEqual([r["lease"] for r in self.privd.good("list")["leases"]], [])
        self.privd.good("probe_stop", lease=self.lease)

    def check_probe(self, said):
        self.assertEqual((said["ray"], said["token_auth"]), ("", False))
        self.assertRegex(said["python"], r"^3\.")

    def test_pull_of_nothing(self):
        said = self.privd.ask("pull", image=self.no_image)
        self.assertFalse(said["ok"])
        self.assertEqual(said["reason"], self.no_image_reason, said)


class EngineContract(Contract):
    no_image, no_image_reason = "127.0.0.1:9/none:1", "image_pull.unreachable"

    @classmethod
    def come_up(cls):
        missing = cls.engine_type.missing()
        if missing:
            raise unittest.SkipTest(missing)
        folder = tempfile.mkdtemp(prefix="muster-engine-", dir="/var/tmp")
        cls.registry = registry.Registry(folder + "-registry")
        cls.close.append(cls.registry.close)
        cls.engine = cls.engine_type(folder, registries=[cls.registry.host])
        cls.close.append(cls.engine.close)
        cls.engine.start()
        cls.image = "muster/small:1"  # by its name: a bare id is nothing that a lease may ask for
        images.load(cls.engine.socket, images.small_root(), cls.image, ["USER ray", "WORKDIR /home/ray", "ENV PATH=/usr/local/bin:/usr/bin:/bin"])
        cls.policy = {"engine_socket": cls.engine.socket}

    def test_foreign_containers_are_left_alone(self):
        name = "muster-t%x-lease-9-ray" % os.getpid()
        body = {"Image": self.image, "Entrypoint": ["/bin/sleep"], "Cmd": ["1000"], "HostConfig": {"NetworkMode": "none", "Ulimits": [{"Name": n, "Soft": 20000, "Hard": 20000} for n in ("nofile", "nproc")]}}
        status, made = images.call(self.engine.socket, "POST", "/containers/create?name=" + name, body)
        self.assertEqual(status, 201, made)
        try:
            self.assertEqual(images.call(self.engine.socket, "POST", "/containers/%s/start" % name)[0], 204)
            started = images.call(self.engine.socket, "GET", "/containers/%s/json" % name)[1]["State"]["StartedAt"]
            before = sorted(i["Id"] for i in images.call(self.engine.socket, "GET", "/images/json")[1])
            for verb, more in (("stop", {"grace_s": 0}), ("exec", {"argv": ["true"]}), ("remove", {}), ("logs", {})):
                self.assertFalse(self.privd.ask(verb, lease="lease-9", **more)["ok"], verb)
            self.launch()
            self.privd.good("remove_everything")
            state = images.call(self.engine.socket, "GET", "/containers/%s/json" % name)[1]["State"]
            self.assertTrue(state["Running"])
            self.assertEqual(state["StartedAt"], started)
            self.assertEqual(sorted(i["Id"] for i in images.call(self.engine.socket, "GET", "/images/json")[1]), before)
        finally:
            images.call(self.engine.socket, "DELETE", "/containers/%s?force=true&v=true" % name)

    # ---- images from a registry
    def pushed(self, name, megabytes=0, arch=""):
        """An image of its own in the registry; -> (reference, id)."""
        if self.registry.process is None:
            self.registry.start()
        return self.registry.put(name, {"blob": os.urandom(16 + megabytes * MIB)}, arch=arch)

    def test_registry_pull(self):
        """With the account, with progress, pinned; the tag moves on and what was pinned stays."""
        reference, image = self.pushed("team/app:1", megabytes=8)
        self.registry.throttle, seen = 8 * MIB, []
        try:
            said = self.privd.pull(image=reference, progress=lambda done, total: seen.append((done, total)), **self.registry.auth())
        finally:
            self.registry.throttle = 0
        self.assertEqual(said["digest"], image)
        self.assertRegex(said["pinned"], "^%s/team/app@sha256:[0-9a-f]{64}$" % self.registry.host)
        self.assertTrue(seen, "no progress was told")
        self.assertEqual(seen, sorted(seen), "progress went backwards")
        _, other = self.pushed("team/app:1", megabytes=1)
        self.assertNotEqual(other, image)
        images.call(self.engine.socket, "DELETE", "/images/%s?force=true" % image)
        again = self.privd.pull(image=said["pinned"], **self.registry.auth())
        self.assertEqual((again["digest"], again["pinned"]), (image, said["pinned"]))
        moved = self.privd.pull(image=reference, **self.registry.auth())
        self.assertEqual(moved["digest"], other)
        # A tag that is here is not asked for again, "latest" is.
        _, third = self.pushed("team/app:1", megabytes=1)
        self.assertEqual(self.privd.pull(image=reference, **self.registry.auth())["digest"], other)
        latest, first = self.pushed("team/app:latest")
        self.assertEqual(self.privd.pull(image=latest[:-7], **self.registry.auth())["digest"], first)
        _, second = self.pushed("team/app:latest")
        self.assertEqual(self.privd.pull(image=latest, **self.registry.auth())["digest"], second)
        self.assertNotIn(third, (first, second))
        self.registry.stop()
        self.assertEqual(self.privd.pull(image=latest, **self.registry.auth())["digest"], second, "what is here runs while the registry is away")

    def test_registry_refusals(self):
        reference, _ = self.pushed("team/private:1")
        self.assertEqual(self.privd.ask("pull", image=reference)["reason"], "image_pull.denied")
        wrong = dict(self.registry.auth(), password="wrong")
        self.assertEqual(self.privd.ask("pull", image=reference, **wrong)["reason"], "image_pull.denied")
        missing = self.privd.ask("pull", image=reference[:-1] + "2", **self.registry.auth())
        self.assertEqual(missing["reason"], "image_pull.not_found", missing)
        other = {"x86_64": "arm64"}.get(os.uname().machine, "amd64")
        foreign, _ = self.pushed("team/foreign:1", arch=other)
        said = self.privd.ask("pull", image=foreign, **self.registry.auth())
        self.assertEqual(said["reason"], "image_pull.wrong_architecture", said)
        self.assertIn(other, said["message"])
        with open(self.privd.state + "/privd.log") as f:
            self.assertNotIn(self.registry.password, f.read())

    def test_registry_dies_in_the_middle(self):
        """The pull goes on where it was when the registry is back; a registry that stays away is said so."""
        reference, image = self.pushed("team/big:1", megabytes=24)
        self.registry.throttle, before, killed = 4 * MIB, self.registry.served, []

        def progress(done, total):
            if done > 6 * MIB and not killed:
                killed.append(done)
                self.registry.stop()
                threading.Timer(2, self.registry.start).start()
        try:
            said = self.privd.pull(image=reference, progress=progress, **self.registry.auth())
        finally:
            self.registry.throttle = 0
        self.assertTrue(killed, "the registry was never killed: the pull was too quick")
        self.assertEqual(said["digest"], image)
        self.assertLess(self.registry.served - before, 2 * 24 * MIB)

    def test_engine_restarts(self):
        """What the engine's end took with it is seen as ended, and the lease begins anew with its workspace. A restart is told from the end of
        a container also by who did not look meanwhile."""
        lease = self.launch()
        self.shell("echo kept > /tmp/ray/kept")
        life = self.privd.good("list")["engine_life"]
        os.close(self.privd.good("exec", lease=lease, argv=["sh", "-c", "kill -9 -1"])["fds"][0])
        self.privd.wait_state(lease, lambda row: not row["running"])
        self.assertEqual(self.privd.good("list")["engine_life"], life)
        self.launch(lease=lease)
        self.engine.stop()
        self.engine.start()
        later = self.privd.good("list")["engine_life"]
        self.assertNotEqual(later, life)
        self.engine.stop()
        for verb, fields in (("list", {}), ("stop", {"lease": lease})):
            said = self.privd.ask(verb, **fields)
            self.assertEqual((said["ok"], said.get("reason")), (False, "engine.gone"), said)
        self.engine.start()
        self.assertNotEqual(self.privd.good("list")["engine_life"], later)
        self.launch(lease=lease)
        self.assertEqual(self.shell("cat /tmp/ray/kept"), "kept\n")


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(privd.binary(), "muster-agent is not built")
class DockerRuntime(EngineContract, unittest.TestCase):
    engine_type = engines.Docker

    def test_another_uid_is_refused(self):
        os.chmod(self.privd.state + "/run/privd.sock", 0o666)
        stranger = self.privd.connect_as(65533)
        stranger.settimeout(5)
        try:
            stranger.send(b'{"id":1,"verb":"list"}')
            self.assertEqual(stranger.recv(100), b"")
        except (BrokenPipeError, ConnectionResetError):
            pass


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(privd.binary(), "muster-agent is not built")
class PodmanRuntime(EngineContract, unittest.TestCase):
    engine_type = engines.Podman


class OwnUsers(EngineContract):
    """Where the engine gives leases user ids of their own: of the contract what touches owners of files, and the ids themselves."""
    kept = ("test_restart_keeps_workspace_and_network_not_root", "test_privd_dies_and_adopts", "test_confined", "test_secrets", "test_full_root",
            "test_files", "test_probe")
    for name in dir(EngineContract):
        if name.startswith("test_") and name not in kept:
            locals()[name] = None  # the engine's other tests are its own

    def ids_of(self, lease):
        """-> (the first user id outside, how many)"""
        self.lease = lease
        inside, outside, count = map(int, self.shell("cat /proc/self/uid_map").split())
        self.assertEqual(inside, 0)
        return outside, count

    def test_ids(self):
        info = self.privd.good("info")
        self.assertIs(info["own_users"], True)
        lease = self.launch()
        first, count = self.ids_of(lease)
        self.assertGreaterEqual(first, self.engine.FIRST)
        self.assertGreater(count, 60000)
        self.shell("echo mine > /tmp/ray/file; ln /tmp/ray/file /tmp/ray/again; mkdir /tmp/ray/deep; ln -s /etc/passwd /tmp/ray/deep/link")
        workspace = self.privd.state + "/leases/%s/workspace" % lease
        for name in ("", "/file", "/deep/link"):
            self.assertEqual(os.lstat(workspace + name).st_uid, first + 1000, name)
        self.assertEqual(os.stat("/etc/passwd").st_uid, 0)
        # Root inside is nobody outside: what belongs to the machine's root is not its own.
        self.assertIn("65534", self.shell("stat -c %u /muster/helper"))


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(privd.binary(), "muster-agent is not built")
class DockerRemapped(OwnUsers, unittest.TestCase):
    engine_type = engines.RemappedDocker


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(privd.binary(), "muster-agent is not built")
class PodmanUsers(OwnUsers, unittest.TestCase):
    engine_type = engines.PodmanWithIds

    @classmethod
    def come_up(cls):
        super().come_up()
        cls.before = cls.engine.ids()

    def test_each_lease_has_others_and_takes_its_files_along(self):
        lease = self.launch()
        first, _ = self.ids_of(lease)
        self.shell("mkdir /tmp/ray/deep; echo mine > /tmp/ray/deep/file; ln /tmp/ray/deep/file /tmp/ray/again; chmod 600 /tmp/ray/deep/file")
        # The containers are lost, as when the engine was removed, and another lease takes the ids meanwhile.
        for _ in range(40):
            left = images.call(self.engine.socket, "GET", "/containers/json?all=1")[1]
            for container in sorted(left, key=lambda c: c["Names"][0].endswith("-net")):
                images.call(self.engine.socket, "DELETE", "/containers/%s?force=true&v=true" % container["Id"])
            if not left:
                break
            time.sleep(0.25)
        other = self.launch(cpu_milli=100)
        try:
            self.assertEqual(self.ids_of(other)[0], first)
            self.launch(lease=lease)
            second, _ = self.ids_of(lease)
            self.assertNotEqual(second, first)
            self.assertEqual(self.shell("cat /tmp/ray/deep/file; stat -c '%u %a' /tmp/ray/again; echo more >> /tmp/ray/again && echo written"),
                             "mine\n1000 600\nwritten\n")
            # No more ids are there: said, and nothing is started without.
            said = [self.privd.ask("launch", lease="lease-99%d" % n, image=self.digest, cpu_milli=100, memory_bytes=128 * MIB, pids=300, address=0x0AC90002) for n in (1, 2)]
            self.assertEqual([each.get("reason") for each in said if not each["ok"]][-1:], ["container.users"], said)
        finally:
            for each in (other, "lease-991", "lease-992"):
                self.privd.ask("remove", lease=each)


class VenvContract(Contract):
    """The sandboxed virtual environment, on a package index of our own with a Ray that only looks like one."""
    no_image, no_image_reason = "venv:ray==1.0.0,python3", "venv.no_such_package"

    @classmethod
    def come_up(cls):
        if not shutil.which("bwrap"):
            raise unittest.SkipTest("bubblewrap is not installed")
        folder = tempfile.mkdtemp(prefix="muster-index-", dir="/var/tmp")
        cls.index = wheels.Index(folder)
        cls.close.append(cls.index.close)
        cls.index.add(wheels.ray_wheel(folder, "9.9.0"))
        cls.index.add(wheels.wheel(folder, "extra-thing", "1.2.3", {"extra_thing.py": "x = 1\n"}))
        cls.index.add_debian_pip()
        cls.index.start()
        cls.image = "venv:ray==9.9.0,python3"
        cls.policy = {"runtimes": ["venv"], "engine_socket": "/nonexistent", "python_index": cls.index.url, "uv": cls.uv()}

    def check_probe(self, said):
        self.assertEqual((said["ray"], said["token_auth"], said["rocksdb"]), ("9.9.0", True, True))

    def venv_dir(self, digest):
        return self.privd.state + "/venvs/" + digest[len("sha256:"):]

    def test_reference_is_pinned_by_its_lock(self):
        said = self.privd.pull(image="venv:Extra_Thing==1.2.3,ray==9.9.0")
        lock = said["lock"]
        self.assertEqual(said["digest"], "sha256:" + hashlib.sha256(lock).hexdigest())
        self.assertRegex(said["pinned"], "^venv:ray==9.9.0,python3[.][0-9]+,extra-thing==1.2.3@" + said["digest"] + "$")
        for part in (b"ray==9.9.0 --hash=sha256:", b"extra-thing==1.2.3 --hash=sha256:", b"\npip==", b"# muster venv lock 1"):
            self.assertIn(part, lock)
        # Another machine builds the same from the lock alone; without it the pinned reference is not resolved anew.
        self.privd.kill()
        shutil.rmtree(self.venv_dir(said["digest"]))
        self.privd.start()
        self.assertEqual(self.privd.ask("pull", image=said["pinned"])["reason"], "venv.lock_missing")
        with tempfile.TemporaryFile() as f:
            f.write(lock)
            f.seek(0)
            again = self.privd.pull(image=said["pinned"], fds=[f.fileno()])
        self.assertEqual((again["digest"], again["pinned"]), (said["digest"], said["pinned"]))
        # A lock that is not the one named, or not of that reference, is refused.
        for text in (lock.replace(b"extra-thing==1.2.3", b"extra-thing==1.2.4"), lock + b"evil==1.0\n", b"ray==9.9.0\n"):
            with tempfile.TemporaryFile() as f:
                f.write(text)
                f.seek(0)
                self.assertEqual(self.privd.ask("pull", image=said["pinned"], fds=[f.fileno()])["reason"], "venv.lock")

    def test_damage_is_noticed_and_repaired(self):
        place = self.venv_dir(self.digest)
        file = place + "/tree/lib/" + os.listdir(place + "/tree/lib")[0] + "/site-packages/ray/__init__.py"
        inode = os.stat(place).st_ino
        self.assertEqual(self.privd.pull(image=self.pinned())["digest"], self.digest)
        self.assertEqual(os.stat(place).st_ino, inode, "a healthy one was built anew")
        with open(file) as f:
            healthy = f.read()
        for damage in ("changed", "missing", "added"):
            if damage == "changed":
                with open(file, "r+") as f:
                    f.write("#")
            elif damage == "missing":
                os.unlink(file)
            else:
                with open(file + ".evil.py", "w") as f:
                    f.write("evil")
            self.assertEqual(self.privd.pull(image=self.pinned())["digest"], self.digest)
            with open(file) as f:
                self.assertEqual(f.read(), healthy, damage)
            self.assertFalse(os.path.exists(file + ".evil.py"))

    def pinned(self):
        with open(self.venv_dir(self.digest) + "/lock") as f:
            return f.read().split("\n")[1][2:] + "@" + self.digest

    def test_index_that_lies_or_is_away(self):
        with open(self.venv_dir(self.digest) + "/lock", "rb") as f:
            lock = f.read()
        shutil.rmtree(self.venv_dir(self.digest))
        shutil.rmtree(self.privd.state + "/venvs/cache", ignore_errors=True)
        self.index.lie = "ray"
        try:
            with tempfile.TemporaryFile() as f:
                f.write(lock)
                f.seek(0)
                said = self.privd.ask("pull", image=self.image, fds=[f.fileno()])
            self.assertEqual(said["reason"], "venv.hash_mismatch", said)
        finally:
            self.index.lie = ""
        self.index.stop()
        threading.Timer(3, self.index.start).start()
        with tempfile.TemporaryFile() as f:
            f.write(lock)
            f.seek(0)
            self.assertEqual(self.privd.pull(image=self.image, fds=[f.fileno()])["digest"], self.digest)

    def test_packages_of_its_own(self):
        """The shared environment is not the lease's to change; its own thin one on top is."""
        lease = self.launch()
        self.assertEqual(self.shell("python3 -c 'import ray, sys; print(ray.__version__, sys.prefix)'"), "9.9.0 /home/ray/venv\n")
        self.assertNotEqual(self.run_in("sh", "-c", "touch /opt/ray/x /usr/x")[0], 0)
        self.assertIn("pip", self.shell("pip --version"))
        path = wheels.wheel(self.privd.state, "late-thing", "1.0", {"late_thing.py": "x = 7\n"})
        tar = self.privd.state + "/late.tar"
        subprocess.run(["tar", "-C", self.privd.state, "-cf", tar, os.path.basename(path)], check=True)
        with open(tar, "rb") as f:
            self.privd.good("put_files", lease=lease, path="/tmp/wheels", fds=[f.fileno()])
        self.shell("pip install --quiet --no-index --find-links /tmp/wheels late-thing")
        self.assertEqual(self.shell("python3 -c 'import late_thing, ray; print(late_thing.x)'"), "7\n")

    def test_builds_without_rights(self):
        """Everything of an environment was written by the build's own user, never by root, and nothing of the index ran."""
        place = self.venv_dir(self.digest)
        owners = {os.lstat(os.path.join(folder, name)).st_uid for folder, _, names in os.walk(place + "/tree") for name in names}
        self.assertEqual(owners, {64793})
        self.assertEqual(os.stat(place + "/lock").st_uid, 0)

    def test_files_and_processes_of_the_machine_are_out_of_sight(self):
        self.launch()
        self.assertEqual(self.run_in("sh", "-c", "ls %s /var/lib/docker /root /srv 2>/dev/null" % self.privd.state)[1], "")
        self.assertEqual(self.shell("ls /home").strip(), "ray")
        self.assertNotIn("privd-process", self.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"))
        self.assertIn("no way out to the internet", self.shell("cat /etc/resolv.conf"), "ours, not the machine's")
        self.assertEqual(self.shell("hostname").strip(), self.lease)

    def test_foreign_sandboxes_are_left_alone(self):
        other = subprocess.Popen(["bwrap", "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc",
                                  "/usr/bin/sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.launch()
            self.privd.good("stop", lease=self.lease, grace_s=0)
            self.assertIsNone(other.poll())
        finally:
            other.kill()
            other.wait()


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(privd.binary(), "muster-agent is not built")
class VenvByPip(VenvContract, unittest.TestCase):
    @classmethod
    def uv(cls):
        return "/nonexistent/uv"


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(privd.binary(), "muster-agent is not built")
class VenvByUv(VenvContract, unittest.TestCase):
    @classmethod
    def uv(cls):
        found = wheels.find_uv()
        if not found:
            raise unittest.SkipTest("uv cannot be fetched")
        return found

    # What the sandbox does is the same whoever built the environment.
    for name in [n for n in dir(Contract) if n.startswith("test_")] + ["test_files_and_processes_of_the_machine_are_out_of_sight", "test_foreign_sandboxes_are_left_alone"]:
        if name not in ("test_a_life", "test_probe", "test_pull_of_nothing"):
            locals()[name] = None
    del name


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"] + sys.argv[1:])
