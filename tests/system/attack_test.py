"""The attacks of tests/attack against real leases: every one is blocked, the machine and its other lease are healthy afterwards, and every one
succeeds where our defences are missing, so that "blocked" means something.

Enrolled: a machine with agent and engine behind a home router, a tenant's cluster whose image runs as root (the worst that an image may be) and
another tenant's beside it. Docker, Podman, Sandbox: the same programs in a lease of privd's with tight limits, disks that are filled where somebody
might not look, and what hostile files and images try with privd itself. The weak container is the test's own (privileged, the machine's
processes, shared memory and network, no filter, no limits); its targets hurt nobody. Needs root.
"""
import glob
import io
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
for part in ("tools", "tests/lab", "tests/attack"):
    sys.path.insert(0, os.path.join(ROOT, part))
import cis  # noqa: E402
import demo  # noqa: E402
import engines  # noqa: E402
import images  # noqa: E402
import privd  # noqa: E402
import wheels  # noqa: E402

BESIDE = "host"  # a lane of its own in tools/test.py, without Ray clusters

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
PROGRAMS = os.path.join(ROOT, "tests/attack")
MIB = 1 << 20
GROUPS = json.loads(subprocess.run([sys.executable, "-B", PROGRAMS + "/attack.py", "list"], capture_output=True, text=True, check=True).stdout)

# Attacks that the weak container cannot show either, with the reason and what must be true for it to hold.
NO_CONTROL = {
    "sysrq_trigger": ("this kernel is built without it", lambda: not os.path.exists("/proc/sysrq-trigger")),
    "kernel_memory_file": ("this kernel is built without it", lambda: not os.path.exists("/proc/kcore")),
    "memory_device": ("this kernel is built without it", lambda: not os.path.exists("/dev/mem")),
    "load_module": ("this kernel is built without modules", lambda: not os.path.exists("/proc/modules")),
    "kexec": ("this kernel is built without it, or is locked", lambda: not os.path.exists("/sys/kernel/kexec_loaded") or lockdown()),
    "unshare_by_32_bit_call": ("this kernel has no entry for 32-bit programs", lambda: os.uname().machine != "x86_64" or not os.path.exists("/proc/sys/abi/vsyscall32")),
    "what_proc_hides": ("this kernel tells nothing there", lambda: not any(os.path.exists(p) for p in ("/proc/keys", "/proc/timer_list"))),
}
# From the machine's own network, from the attacker's with the engine's rights, from the other tenant's.
IN_MACHINES_NETWORK = [name for name in GROUPS["network"] if name not in ("spoof_a_source", "reach_another_tenants_overlay")] + ["socket_without_a_file"]
SYSCTLS = ["/proc/sys/" + name for name in ("vm/swappiness", "kernel/core_pattern", "kernel/threads-max", "kernel/hostname", "net/ipv4/ip_forward", "fs/file-max")]
CLUSTER = """cluster_name: %s
provider: {type: local, head_ip: 10.0.0.1, worker_ips: []}
docker: {image: "%s", container_name: ray_container, run_options: ["--ulimit nofile=4096:4096", "--shm-size=300m"]}
muster:
  head: {CPU: 1, memory: 2147483648}
"""
# Something of the machine's: it answers with a token by TCP, UDP and a name without a file, and keeps a secret in its environment.
WITNESS = """
import socket, sys, threading
token, port = sys.argv[1].encode(), int(sys.argv[2])
tcp, udp = (socket.socket(socket.AF_INET6, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
for s in (tcp, udp):
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(('::', port))
local.bind(chr(0) + sys.argv[3])
for s in (tcp, local):
    s.listen(16)
def serve(s):
    while True:
        peer, _ = s.accept()
        try: peer.sendall(token)
        except OSError: pass
        peer.close()
for s in (tcp, local):
    threading.Thread(target=serve, args=(s,), daemon=True).start()
print('ready', flush=True)
while True:
    udp.sendto(token, udp.recvfrom(100)[1])
"""
SHARE = "import sys,time\nb,c=time.monotonic(),time.process_time()\nwhile time.monotonic()-b<float(sys.argv[1]): pass\nprint((time.process_time()-c)/(time.monotonic()-b))"


CAPABILITIES = ("CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK "
                "IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE "
                "AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ").split()  # newer ones are parts of SYS_ADMIN


def capabilities():
    """All that this machine itself has."""
    ours = int(re.search(r"CapBnd:\s+(\w+)", text_of("/proc/self/status"))[1], 16)
    return [name for number, name in enumerate(CAPABILITIES) if ours >> number & 1]


def lockdown():
    try:
        with open("/sys/kernel/security/lockdown") as f:
            return "[none]" not in f.read()
    except OSError:
        return False


def verdicts(text):
    """attack -> (outcome, how) of what attack.py printed."""
    rows = [json.loads(line) for line in text.split("\n") if line.startswith('{"attack"')]
    return {row["attack"]: (row["outcome"], row["how"]) for row in rows}


def text_of(path):
    try:
        with open(path, errors="replace") as f:
            return f.read()
    except OSError:
        return None


def archive(entries):
    """A tar of {name: bytes | device number}; devices are block devices that all may open, and files are set-uid."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, int):
                entry.type, entry.mode, entry.devmajor, entry.devminor = tarfile.BLKTYPE, 0o666, os.major(content), os.minor(content)
                tar.addfile(entry)
            else:
                entry.size, entry.mode = len(content), 0o4755
                tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def programs():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in sorted(os.listdir(PROGRAMS)):
            if name.endswith(".py"):
                tar.add(os.path.join(PROGRAMS, name), "attack/" + name)
    return out.getvalue()


class Verdicts:
    """What all classes ask of verdicts."""

    def blocked(self, got, names):
        self.assertEqual(sorted(set(names) - set(got)), [], "attacks that told nothing")
        self.assertEqual({name: got[name] for name in names if got[name][0] != "blocked"}, {})

    def succeeded(self, got, names):
        missing = {name: got.get(name) for name in names if got.get(name, ("", ""))[0] != "succeeded"}
        for name in [name for name in missing if name in NO_CONTROL and NO_CONTROL[name][1]()]:
            self.assertEqual((missing.pop(name) or ("", ""))[0], "blocked", name)
            print("     no control for %s: %s" % (name, NO_CONTROL[name][0]), flush=True)
        self.assertEqual(missing, {}, "where nothing defends, these should have succeeded")


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Enrolled(Verdicts, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        subprocess.run([os.path.join(ROOT, "images/ray/build")], check=True, stdout=subprocess.DEVNULL)
        cls.group, cls.loop = "muster-weak-%d" % os.getpid(), ""
        cls.world = world = demo.World(BUILD, name="attack", say=lambda text: None)
        try:
            cls.engine = world.lab.start_docker()
            subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
            cls.docker("create", "--name", "plain", "muster/ray:2.60.0")
            cls.docker("commit", "--change", "USER root", "--change", "WORKDIR /root", "plain", "muster/ray-root:1")
            cls.docker("rm", "plain")
            cls.before = {path: text_of(path) for path in SYSCTLS}
            world.start_server()
            world.add_machine("alpha", "home", policy={"reserve": {"memory_bytes": 8 << 30, "cpus": 0}, "max_root_bytes": 300 * MIB})
            world.lab.machine("gamma", "lan:alpha")
            cls.set_witnesses()
            world.wait("machine", "the machine online", 60, lambda: world.nodes()["alpha"]["state"] == "online")
            cls.up_both()
            cls.start_weak()
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        if cls.loop:
            subprocess.run(["losetup", "-d", cls.loop], check=False)
        cls.world.close()
        for folder in cls.groups():
            os.rmdir(folder)

    @classmethod
    def groups(cls):
        return glob.glob("/sys/fs/cgroup/*/" + cls.group) + glob.glob("/sys/fs/cgroup/" + cls.group)

    # ---- the world
    @classmethod
    def docker(cls, *words, check=True, **kw):
        return cls.world.lab.sh(["docker", "-H", cls.world.lab.docker] + list(words), check=check, **kw)

    @classmethod
    def rival(cls, *words, **kw):
        return cls.world.cli(*words, who="mallory", **kw)

    @classmethod
    def set_witnesses(cls):
        world, lab = cls.world, cls.world.lab
        cls.token, cls.port, cls.secret = "token%x" % os.getpid(), 45679, "secret%s" % os.urandom(8).hex()
        for address in ("169.254.169.254/32", "100.64.0.1/32", "fd00:ec2::254/128"):
            lab.ip("alpha", "addr add %s dev lo%s" % (address, " nodad" if ":" in address else ""))
        cls.witness_file = world.dir + "/witness.txt"
        with open(cls.witness_file, "w") as f:
            f.write(cls.token)
        with open(cls.witness_file + ".own", "w") as f:
            f.write("the owner's")
        cls.mark = "mark%x" % os.getpid()
        cls.witnesses = []
        for place in ("alpha", "gamma", lab.gateways["alpha"][0], "user"):
            process = lab.spawn(place, [sys.executable, "-c", WITNESS, cls.token, str(cls.port), "witness-%s" % place, cls.mark], "%s/witness-%s.log" % (world.dir, place),
                                env={"MUSTER_TEST_SECRET": cls.secret})
            world.wait("witness", "a service at " + place, 20, lambda: "ready" in process.tail(), process.log)
            cls.witnesses.append(process)
        alpha = world.dir + "/alpha"
        # A disk of the machine's: a loop device, since the real ones hold what nobody must lose.
        with open(world.dir + "/disk.img", "wb") as f:
            f.write(cls.token.encode().ljust(1 << 20, b"\0"))
        cls.loop = lab.sh(["losetup", "-f", "--show", "-r", world.dir + "/disk.img"]).stdout.strip()
        cls.disk = os.stat(cls.loop).st_rdev
        os.mknod(world.dir + "/disk", 0o60666, cls.disk)
        cls.targets = {
            "witness": cls.witness_file, "mark": cls.mark, "secret": cls.secret, "token": cls.token, "abstract": "witness-alpha", "workspace": "/tmp/ray",
            "disk": "%d:%d" % (os.major(cls.disk), os.minor(cls.disk)), "smuggled_disk": "/tmp/smuggled/disk", "own_init": "1", "device": "muster0", "arp_address": "192.168.1.99",
            "sockets": ",".join([cls.engine, alpha + "/run/privd.sock", alpha + "/run/netd.sock", alpha + "/agent/agent.sock", "/var/run/docker.sock"]),
            "spoof_source": "10.201.0.77", "spoof_target": "10.201.0.2",
            "bomb_most": "8700", "memory_most": str(2300 * MIB), "shm_most": str(400 * MIB), "files_most": "5000", "cpu_most": "1.15", "hold": "4", "patience": "60"}
        for name, address in (("machine", lab.addresses["alpha"]), ("gateway", "192.168.1.1"), ("neighbour", lab.addresses["gamma"]), ("metadata", "169.254.169.254"),
                              ("metadata6", "fd00:ec2::254"), ("cgnat", "100.64.0.1"), ("loopback", "127.0.0.1"), ("loopback6", "::1"), ("internet", lab.addresses["user"]),
                              ("tenant", "10.201.0.1")):
            cls.targets["reach_" + name] = "%s/%d" % (address, cls.port + 1 if name == "tenant" else cls.port)

    @classmethod
    def up_both(cls):
        world = cls.world
        world.cli("org", "create", "rivals", who="admin")
        world.cli("project", "create", "default", "--org", "rivals", who="admin")
        world.cli("user", "create", "mallory", "--role", "tenant", "--org", "rivals", "--password-file", world.dir + "/operator.password", who="admin")
        cls.rival("login", "https://" + demo.SERVER, "--ca-sha256", world.ca, "--user", "mallory", "--password-file", world.dir + "/operator.password")
        for name, image in (("hunter", "muster/ray-root:1"), ("prey", "muster/ray:2.60.0")):
            with open("%s/%s.yaml" % (world.dir, name), "w") as f:
                f.write(CLUSTER % (name, image))
        for name, run in (("hunter", world.cli), ("prey", cls.rival)):
            run("up", "%s/%s.yaml" % (world.dir, name), "--yes", "--no-wait")
        for name, run in (("hunter", world.cli), ("prey", cls.rival)):  # an attacker need not wait until Ray is ready
            world.wait("up", "a way into " + name, 120, lambda: run("exec", name, "--", "true", check=False).returncode == 0, world.dir + "/alpha/agent.log")
        cls.docker("exec", "-d", cls.container("prey"), "python3", "-c", WITNESS, cls.token, str(cls.port + 1), "witness-prey")
        world.cli("rsync-up", "hunter", PROGRAMS, "/tmp/attack")
        cls.tell("/tmp/attack/targets.json", cls.targets)
        # As privd writes files into a container: with the engine's rights.
        cls.docker("exec", cls.container("hunter"), "mkdir", "-p", "/tmp/smuggled")
        status, said = images.call(cls.engine, "PUT", "/containers/%s/archive?path=/tmp/smuggled" % cls.container("hunter"),
                                   io.BytesIO(archive({"disk": cls.disk})), {"Content-Type": "application/x-tar"})
        if status != 200:
            raise RuntimeError("archive: %s %s" % (status, said))

    @classmethod
    def tell(cls, path, targets):
        """Targets go by a file: on a command line they would be found in the attacker's own."""
        with open(cls.world.dir + "/targets.json", "w") as f:
            json.dump(targets, f)
        cls.world.cli("rsync-up", "hunter", cls.world.dir + "/targets.json", path)

    @classmethod
    def start_weak(cls):
        world = cls.world
        os.makedirs(world.dir + "/lent/helper")
        shutil.copytree(PROGRAMS, world.dir + "/lent/attack", ignore=shutil.ignore_patterns("__pycache__"))
        open(world.dir + "/lent/helper/ray_helper.py", "w").close()
        cls.weak_targets = dict(cls.targets, workspace="/machine", smuggled_disk="/machine/disk", device="eth0", link_from="/machine/witness.txt.own",
                                link_to="/machine/linked")
        cls.weak_targets["sockets"] = cls.targets["sockets"].replace(world.dir, "/machine")
        del cls.weak_targets["own_init"]
        with open(world.dir + "/weak.json", "w") as f:
            json.dump(cls.weak_targets, f)
        cls.docker("run", "-d", "--name", "weak", "--cgroup-parent", "/" + cls.group, "--pid", "host", "--ipc", "host", "--network", "host", "--user", "0",
                   *[word for option in ("seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined") for word in ("--security-opt", option)],
                   *[word for name in capabilities() for word in ("--cap-add", name)],  # --privileged wants all that there are, and machines may lack some
                   "--device-cgroup-rule", "a *:* rwm", "--device", "/dev/net/tun", "--device", "/dev/kmsg", "-v", "/sys:/sys", "-v", "/sys/fs/cgroup:/sys/fs/cgroup",
                   "-v", world.dir + ":/machine", "-v", world.dir + "/lent/helper:/muster/helper", "--entrypoint", "sleep", "muster/ray:2.60.0", "infinity")

    @classmethod
    def container(cls, cluster, part="ray"):
        seen = (cls.rival if cluster == "prey" else cls.world.cli)("-o", "json", "status", cluster)
        lease = next(s["leaseId"] for s in json.loads(seen.stdout)["slots"] if s["role"] == "head")
        return next(n for n in cls.docker("ps", "--format", "{{.Names}}").stdout.split() if n.endswith("-%s-%s" % (lease, part)))

    def inspect(self, container):
        return images.call(self.engine, "GET", "/containers/%s/json" % container)[1]

    def inside(self, *names):
        """The tenant's way: muster exec. Who ends his own container, Ray or all, has no verdict to tell: he is stopped."""
        before = self.bring()
        done = self.world.cli("exec", "hunter", "--", "python3", "-B", "/tmp/attack/attack.py", "-f", "/tmp/attack/targets.json", *names, check=False, timeout=170)
        self.said = done.stdout[-1500:] + done.stderr[-1500:]
        got = verdicts(done.stdout)
        if len(names) == 1 and not got:
            try:
                self.world.wait("exec", "the end of the attacker's container", 20, lambda: self.started() != before)
                got[names[0]] = ("blocked", "its own container ended")
            except demo.DemoError as fault:
                raise AssertionError("%s told nothing, yet its container goes on: %s" % (names[0], self.said)) from fault
        return got

    def started(self):
        try:
            return self.inspect(self.container("hunter"))["State"]["StartedAt"]
        except (StopIteration, KeyError):
            return ""  # between two

    def bring(self):
        """The programs are in the attacker's container, also after it was started anew; when that was."""
        def there():
            return self.world.cli("exec", "hunter", "--", "sh", "-c", "test -f /tmp/attack/targets.json || exit 42", check=False).returncode
        since = self.world.wait("exec", "a way into hunter", 90, lambda: self.started() if there() in (0, 42) else "")
        if there() != 0:
            self.world.cli("rsync-up", "hunter", PROGRAMS, "/tmp/attack")
            self.tell("/tmp/attack/targets.json", self.targets)
        return since

    def weak(self, *names, network=None, user="0"):
        words = ["exec", "-u", user, "weak"] + (["nsenter", "-t", str(network), "-n"] if network else [])
        done = self.docker(*words, "python3", "-B", "/machine/lent/attack/attack.py", "-f", "/machine/weak.json", *names, check=False, timeout=170)
        self.said = done.stdout[-1500:] + done.stderr[-1500:]
        return verdicts(done.stdout)

    # ---- after whatever was done
    def tearDown(self):
        self.healthy()

    def healthy(self):
        self.assertEqual(self.world.nodes()["alpha"]["state"], "online")
        began = time.time()
        self.assertEqual(self.docker("exec", self.container("prey"), "sh", "-c", "echo alive").stdout, "alive\n")
        self.assertLess(time.time() - began, 10, "the other tenant's container answers slowly")
        self.assertEqual({path: text_of(path) for path in SYSCTLS}, self.before)
        self.assertEqual((text_of(self.witness_file), text_of(self.witness_file + ".own")), (self.token, "the owner's"))
        self.assertEqual([w.log for w in self.witnesses if not w.alive()], [], "a process of the machine ended")

    # ---- tests
    def test_10_what_was_created_passes_the_benchmark(self):
        machine = json.loads(text_of(self.world.dir + "/alpha/config.json"))["machine"]
        own = [self.world.dir + "/alpha/", "/run/muster-", "/dev/shm/muster-"]
        found = cis.of_machine(self.engine, machine)
        self.assertEqual(sorted(c["Config"]["Labels"]["io.muster.part"] for c in found), ["net", "net", "ray", "ray"])
        for about in found:
            self.assertEqual(cis.complaints(about, own), [], about["Name"])
            self.assertEqual(cis.of_process(about["State"]["Pid"]), [], about["Name"])
        # 4.1: who the image says it is, where it says so; no program of ours listens for logins (5.7).
        users = {c["Name"]: self.docker("exec", c["Name"][1:], "id", "-u").stdout.strip() for c in found if c["Name"][1:] == self.container("prey")}
        self.assertEqual(set(users.values()), {"1000"})
        self.assertNotIn("sshd", "".join(self.docker("top", c["Name"][1:]).stdout for c in found))
        # Nothing else was made: no networks but the engine's three, no volumes.
        self.assertEqual(sorted(self.docker("network", "ls", "--format", "{{.Name}}").stdout.split()), ["host", "none"])
        self.assertEqual(self.docker("volume", "ls", "-q").stdout, "")

    def test_11_the_benchmark_finds_the_weak_container(self):
        about = self.inspect("weak")
        found = {text.split(":")[0] for text in cis.complaints(about, [self.world.dir + "/alpha/"])}
        self.assertGreaterEqual(found, {"5.4", "5.6", "5.10", "5.11", "5.12", "5.13", "5.16", "5.17", "5.19", "5.22", "5.26", "5.29", "5.30", "log", "core", "masked"})
        self.assertIn("5.5: privileged", cis.complaints(dict(about, HostConfig=dict(about["HostConfig"], Privileged=True)), []))
        self.assertTrue(any("CapEff" in text for text in cis.of_process(about["State"]["Pid"])))

    def test_20_kernel_files_and_network_are_blocked(self):
        names = GROUPS["kernel"] + GROUPS["place"] + GROUPS["network"]
        self.blocked(self.inside("kernel", "place", "network"), names)

    def test_21_the_same_succeed_where_nothing_defends(self):
        got = self.weak("kernel", *[name for name in GROUPS["place"] if name not in ("socket_without_a_file", "gain_by_setuid")])
        got.update(self.weak("gain_by_setuid", user="1000"))
        got.update(self.weak(*IN_MACHINES_NETWORK, network=self.world.agents["alpha"].popen.pid))
        got.update(self.weak("spoof_a_source", network=self.inspect(self.container("hunter", "net"))["State"]["Pid"]))
        got.update(self.weak("reach_another_tenants_overlay", network=self.inspect(self.container("prey", "net"))["State"]["Pid"]))
        self.succeeded(got, GROUPS["kernel"] + GROUPS["place"] + GROUPS["network"])

    def test_30_hunger_stays_inside(self):
        """While each is at work the other tenant's container answers, and gets its share of the processors."""
        slow, shares, over = [], [], threading.Event()
        prey = self.container("prey")

        def share():
            return float(self.docker("exec", prey, "python3", "-c", SHARE, "1", check=False).stdout or 0)
        usual = max(share(), share())

        def look():
            while not over.is_set():
                began = time.time()
                shares.append(share())
                slow.append(time.time() - began)
        neighbour = threading.Thread(target=look)
        neighbour.start()
        try:
            names = ["fork_bomb", "memory", "shared_memory", "open_files", "processor"]
            got = {}
            for name in names:
                got.update(self.inside(name))
            self.blocked(got, names)
        finally:
            over.set()
            neighbour.join()
        self.assertLess(max(slow), 15, slow)
        self.assertGreater(sum(shares) / len(shares), 0.35 * usual, (shares, usual))
        print("     the neighbour had %.2f of a processor before, %.2f meanwhile, its slowest answer took %.1f s" % (usual, sum(shares) / len(shares), max(slow)), flush=True)
        self.bring()  # the attacker's own work may go on

    def test_31_hunger_succeeds_without_limits(self):
        names = ["fork_bomb", "memory", "shared_memory", "open_files", "processor"]
        for folder in self.groups():  # so that what runs beside this test does not pass for a limit
            for name, most in (("cpu.shares", "262144"), ("cpu.weight", "10000")):
                if os.path.exists(os.path.join(folder, name)):
                    with open(os.path.join(folder, name), "w") as f:
                        f.write(most)
        self.succeeded(self.weak("-p", "hold=0", *names), names)

    def test_40_a_flood_of_output_is_bounded(self):
        def kept(container):
            path = self.inspect(container)["LogPath"]
            return sum(os.path.getsize(os.path.join(os.path.dirname(path), name)) for name in os.listdir(os.path.dirname(path)) if name.startswith(os.path.basename(path)))
        got = self.inside("-p", "log_to=/proc/1/fd/1", "-p", "log_most=%d" % (40 * MIB), "log_flood")
        self.assertEqual(got["log_flood"][0], "succeeded", got)
        self.assertLess(kept(self.container("hunter")), 12 * MIB)
        self.docker("run", "-d", "--name", "flood", "--network", "none", "-v", self.world.dir + "/lent/attack:/attack:ro", "--entrypoint", "python3", "muster/ray:2.60.0", "-B", "/attack/attack.py",
                    "-p", "log_to=/proc/self/fd/1", "-p", "log_most=%d" % (40 * MIB), "log_flood")
        self.docker("wait", "flood")
        self.assertGreater(kept("flood"), 36 * MIB)
        self.docker("rm", "flood")

    def test_80_a_full_root_ends_the_attacker_alone(self):
        before, prey = self.bring(), self.inspect(self.container("prey"))["State"]["StartedAt"]
        self.world.lab.spawn("user", [self.world.binary("muster"), "exec", "hunter", "--", "python3", "-B", "/tmp/attack/attack.py", "-p", "disk_place=/root",
                                      "-p", "disk_most=%d" % (400 * MIB), "disk"], self.world.dir + "/disk.log", env=self.world.account("alice"))
        self.world.wait("disk", "the end of who fills the disk", 60, lambda: "container.root_full" in text_of(self.world.dir + "/alpha/agent.log"))

        def anew():
            names = [n for n in self.docker("ps", "--format", "{{.Names}}").stdout.split() if n.endswith("-ray")]
            try:
                return len(names) == 2 and self.inspect(self.container("hunter"))["State"]["StartedAt"] != before
            except (StopIteration, KeyError):
                return False  # ended or removed just now
        self.world.wait("disk", "the lease begins anew with a fresh root", 60, anew)
        self.assertEqual(self.inspect(self.container("prey"))["State"]["StartedAt"], prey)

    def test_90_the_end_comes(self):
        """Zombies and processes that ignore signals: the lease ends in its time and leaves nothing."""
        world = self.world
        container = self.inspect(self.container("hunter"))
        world.wait("exec", "a way in", 60, lambda: world.cli("exec", "hunter", "--", "true", check=False).returncode == 0)
        world.cli("rsync-up", "hunter", PROGRAMS, "/tmp/attack")
        world.cli("exec", "hunter", "--", "python3", "-B", "/tmp/attack/attack.py", "-p", "disk_place=/tmp/ray", "-p", "deep=1000", "zombies_that_ignore_signals",
                  "tree_deeper_than_descriptors")
        lease = container["Config"]["Labels"]["io.muster.lease"]
        began = time.time()
        world.cli("down", "hunter", "--yes")
        world.wait("down", "the attacker's containers gone", 60, lambda: "-%s-" % lease not in self.docker("ps", "-a", "--format", "{{.Names}}").stdout)
        self.assertLess(time.time() - began, 60)
        self.assertEqual(subprocess.run(["pgrep", "-f", "/tmp/attack/attack.py"], capture_output=True, text=True).stdout, "")
        world.wait("down", "its folder gone", 60, lambda: not os.path.exists(world.dir + "/alpha/leases/" + lease))
        self.assertEqual([line for line in text_of("/proc/mounts").split("\n") if container["Id"][:12] in line or "/%s/" % lease in line], [])
        self.assertEqual(os.listdir(world.dir + "/alpha/leases"), [self.inspect(self.container("prey"))["Config"]["Labels"]["io.muster.lease"]])


class Box(Verdicts):
    """A lease of privd's own, with limits that bite soon."""
    LIMITS = dict(cpu_milli=500, memory_bytes=384 * MIB, shm_bytes=64 * MIB, nofile=1000, pids=200)
    HUNGRY = {"bomb_most": "400", "memory_most": str(600 * MIB), "shm_most": str(100 * MIB), "files_most": "1500", "cpu_most": "0.65", "cpu_seconds": "2"}
    ROOM = 60 * MIB

    @classmethod
    def setUpClass(cls):
        cls.close = []
        try:
            cls.folder = tempfile.mkdtemp(prefix="muster-attack-", dir="/var/tmp")
            cls.close.append(lambda: shutil.rmtree(cls.folder, ignore_errors=True))
            cls.come_up()
            cls.privd = privd.Privd(dict(cls.policy, max_root_bytes=cls.ROOM), machine="a%x" % os.getpid()).start()
            cls.close.append(cls.privd.close)
            cls.digest = cls.privd.pull(image=cls.image)["digest"]
            cls.secret, cls.mark = "secret%s" % os.urandom(8).hex(), "mark%x" % os.getpid()
            cls.witness = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", cls.mark], env={"MUSTER_TEST_SECRET": cls.secret})
            cls.close.append(lambda: (cls.witness.kill(), cls.witness.wait()))
            with open(cls.folder + "/witness.txt", "w") as f:
                f.write("the owner's")
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        for step in reversed(cls.close):
            step()

    def tearDown(self):
        for lease in os.listdir(self.privd.state + "/leases"):
            self.privd.good("remove", lease=lease)
        self.assertEqual([row["lease"] for row in self.privd.good("list")["leases"]], [])
        self.assertEqual(os.listdir(self.privd.state + "/leases"), [])
        self.assertIsNone(self.witness.poll())

    counter = 0

    def launch(self, image=None, **more):
        Box.counter += 1
        lease = "lease-%d" % Box.counter
        self.privd.good("launch", lease=lease, **dict(self.LIMITS, image=image or self.digest, address=0x0AC90001, head=True, **more))
        self.put(lease, "/tmp", programs())
        targets = dict(self.HUNGRY, witness=self.folder + "/witness.txt", mark=self.mark, secret=self.secret, workspace="/tmp/ray", smuggled_disk="/tmp/smuggled/disk",
                       disk="%d:%d" % (os.major(os.stat(self.folder).st_dev), os.minor(os.stat(self.folder).st_dev)),
                       own_init="1", abstract="witness-nobody", sockets=self.privd.state + "/run/privd.sock,/var/run/docker.sock", device="muster0",
                       token="token", arp_address="10.201.0.9", spoof_source="10.201.0.77", spoof_target="10.201.0.2",
                       **{"reach_" + name: address + "/9" for name, address in (
                           ("machine", "192.168.1.10"), ("gateway", "192.168.1.1"), ("neighbour", "192.168.1.11"), ("metadata", "169.254.169.254"), ("metadata6", "fd00:ec2::254"),
                           ("cgnat", "100.64.0.1"), ("loopback", "127.0.0.1"), ("loopback6", "::1"), ("internet", "203.0.113.5"), ("tenant", "10.201.0.1"))})
        self.put(lease, "/tmp/attack", self.tar_of("targets.json", json.dumps(targets).encode()))
        return lease

    @staticmethod
    def tar_of(name, data):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
        return out.getvalue()

    def put(self, lease, path, data, check=True):
        with tempfile.TemporaryFile() as f:
            f.write(data)
            f.seek(0)
            answer = self.privd.ask("put_files", lease=lease, path=path, fds=[f.fileno()])
        if check:
            self.assertTrue(answer["ok"], answer)
        return answer

    def helper_up(self, lease):
        for _ in range(300):
            if os.path.exists(self.privd.state + "/leases/%s/run/helper.sock" % lease):
                return
            time.sleep(0.1)
        self.fail("the helper of %s does not listen" % lease)

    def attack(self, lease, *names):
        code, out, err = self.privd.run(lease, "python3", "-B", "/tmp/attack/attack.py", "-f", "/tmp/attack/targets.json", *names)
        self.said = out[-1000:] + err[-1000:]
        return verdicts(out)

    def begin(self, lease, *names):
        """Does not wait; the lease may end below it."""
        self.privd.good("exec", lease=lease, argv=["python3", "-B", "/tmp/attack/attack.py", "-f", "/tmp/attack/targets.json"] + list(names))

    # ---- tests
    def test_10_kernel_files_and_network_are_blocked(self):
        lease = self.launch()
        self.put(lease, "/tmp/smuggled", archive({"disk": os.stat(self.folder).st_dev}), check=False)
        self.blocked(self.attack(lease, "kernel", "place", "network"), GROUPS["kernel"] + GROUPS["place"] + GROUPS["network"])
        pid = self.main_pid(lease)
        self.assertEqual(cis.of_process(pid), [])

    def main_pid(self, lease):
        """The helper's, as this machine counts: found by the folder that only this lease has mounted."""
        for name in os.listdir("/proc"):
            if name.isdigit() and b"ray_helper.py" in (text_of("/proc/%s/cmdline" % name) or "").encode():
                if "/leases/%s/run" % lease in (text_of("/proc/%s/mountinfo" % name) or ""):
                    return int(name)
        self.fail("no process of " + lease)

    def test_20_hunger_is_blocked(self):
        names = ["fork_bomb", "memory", "shared_memory", "open_files", "processor"]
        lease = self.launch()
        self.blocked(self.attack(lease, *names), names)
        self.assertTrue(self.privd.state_of(lease)["running"])

    def halted(self, lease, reason):
        row = self.privd.wait_state(lease, lambda r: r is not None and not r["running"], 40)
        self.assertEqual(row["reason"], reason, row)

    def test_30_disk_beside_the_root(self):
        """The folder of the helper's socket is writable too."""
        lease = self.launch()
        self.begin(lease, "-p", "disk_place=/muster/run", "-p", "disk_most=%d" % (90 * MIB), "disk")
        self.halted(lease, "container.root_full")

    def test_31_disk_below_paths_that_are_too_long(self):
        lease = self.launch(workspace_bytes=40 * MIB)
        self.begin(lease, "-p", "disk_place=/tmp/ray", "-p", "disk_most=%d" % (60 * MIB), "disk_below_long_paths")
        self.halted(lease, "container.workspace_full")

    def test_40_a_tree_deeper_than_descriptors_is_removed(self):
        usual = resource.prlimit(self.privd.process.pid, resource.RLIMIT_NOFILE)
        lease = self.launch()
        got = self.attack(lease, "-p", "disk_place=/tmp/ray", "-p", "deep=1500", "tree_deeper_than_descriptors")
        self.assertEqual(got["tree_deeper_than_descriptors"][0], "succeeded", got)
        resource.prlimit(self.privd.process.pid, resource.RLIMIT_NOFILE, (1000, usual[1]))  # what services usually have
        try:
            self.privd.good("remove", lease=lease)
        finally:
            resource.prlimit(self.privd.process.pid, resource.RLIMIT_NOFILE, usual)
        self.assertFalse(os.path.exists(self.privd.state + "/leases/" + lease))

    def test_50_a_link_in_place_of_the_helpers_socket(self):
        lease = self.launch()
        self.helper_up(lease)
        path = self.folder + "/owners.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as owners:
            owners.bind(path)
            os.chmod(path, 0o777)
            owners.listen(4)
            owners.settimeout(2)
            self.assertEqual(self.privd.run(lease, "python3", "-c", "import os,sys\nos.rename('/muster/run/helper.sock', '/muster/run/old')\nos.symlink(sys.argv[1], '/muster/run/helper.sock')", path)[0], 0)
            self.assertFalse(self.privd.ask("helper", lease=lease)["ok"])
            with self.assertRaises(TimeoutError):
                owners.accept()
            # The link leads there indeed.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                other.connect(self.privd.state + "/leases/%s/run/helper.sock" % lease)
            owners.accept()[0].close()
        os.unlink(path)

    def test_51_a_helper_that_never_accepts(self):
        """privd asks in vain, in a bounded time, and serves the others meanwhile."""
        lease = self.launch()
        self.helper_up(lease)
        script = ("import os,socket,time\nos.rename('/muster/run/helper.sock', '/muster/run/old')\ns=socket.socket(socket.AF_UNIX)\ns.bind('/muster/run/helper.sock')\n"
                  "os.chmod('/muster/run/helper.sock', 0o777)\ns.listen(0)\nc=socket.socket(socket.AF_UNIX)\nc.connect('/muster/run/helper.sock')\nopen('/tmp/ray/full','w').close()\ntime.sleep(600)")
        self.privd.good("exec", lease=lease, argv=["python3", "-c", script])
        for _ in range(100):
            if self.privd.run(lease, "test", "-e", "/tmp/ray/full")[0] == 0:
                break
            time.sleep(0.1)
        self.privd.connection.settimeout(20)
        try:
            began = time.time()
            self.assertFalse(self.privd.ask("helper", lease=lease)["ok"])
            self.assertLess(time.time() - began, 15)
        finally:
            self.privd.connection.settimeout(300)

    def test_60_an_end_that_does_not_come(self):
        lease = self.launch()
        got = self.attack(lease, "-p", "zombies=30", "zombies_that_ignore_signals")
        self.assertEqual(got["zombies_that_ignore_signals"][0], "succeeded")
        began = time.time()
        self.privd.good("stop", lease=lease, grace_s=2)
        self.assertLess(time.time() - began, 20)
        self.assertIsNone(self.privd.state_of(lease))
        left = [name for name in os.listdir("/proc") if name.isdigit() and "/leases/%s/" % lease in (text_of("/proc/%s/mountinfo" % name) or "")]
        self.assertEqual(left, [])

    def test_70_output_is_bounded(self):
        lease = self.launch()
        self.privd.run(lease, "python3", "-c", "import os,time\nfor p in os.listdir('/proc'):\n if p.isdigit() and b'ray_helper' in open('/proc/'+p+'/cmdline','rb').read():\n"
                       "  f=open('/proc/'+p+'/fd/1','wb',buffering=0)\n  for _ in range(480): f.write(b'x'*65535+b'\\n')\n  break")
        self.assertLess(self.kept(lease), 13 * MIB)
        self.assertTrue(self.privd.ask("logs", lease=lease)["ok"])


class EngineBox(Box):
    @classmethod
    def come_up(cls):
        missing = cls.engine_type.missing()
        if missing:
            raise unittest.SkipTest(missing)
        cls.engine = cls.engine_type(cls.folder + "/engine")
        cls.close.append(cls.engine.close)
        cls.engine.start()
        cls.image, cls.trap = "muster/small:attack", "muster/small:trap"
        changes = ["USER ray", "WORKDIR /home/ray", "ENV PATH=/usr/local/bin:/usr/bin:/bin"]
        images.load(cls.engine.socket, images.small_root(), cls.image, changes)
        cls.policy = {"engine_socket": cls.engine.socket}

    def call(self, *words, **kw):
        return images.call(self.engine.socket, *words, **kw)

    def made(self, lease, part):
        for about in cis.of_machine(self.engine.socket):
            labels = about["Config"]["Labels"]
            if (labels.get("io.muster.lease"), labels.get("io.muster.part")) == (lease, part):
                return about
        return None

    def kept(self, lease):
        path = self.made(lease, "ray").get("LogPath") or self.made(lease, "ray")["HostConfig"]["LogConfig"]["Path"]
        return sum(os.path.getsize(os.path.join(os.path.dirname(path), name)) for name in os.listdir(os.path.dirname(path)) if name.startswith(os.path.basename(path)))

    def set_trap(self):
        """An image whose every program is hostile: its sleep works, its Python fills, its volume is a disk beside the root, its variables are the loader's."""
        spin = b"#!/usr/bin/python3\nimport os\nfor _ in range(3):\n os.fork()\nwhile True: pass\n"
        fill = ("import os\nif os.environ.get('MUSTER_HELPER_STATE'):\n for place in ('/muster/run', '/disk', '/home/ray', '/var/tmp'):\n  try:\n"
                "   with open(place + '/filler', 'wb') as f:\n    for _ in range(150): f.write(b'x' * (1 << 20))\n  except OSError: pass\n")
        status, made = self.call("POST", "/containers/create?name=trap-%x" % os.getpid(), {"Image": self.image, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none", "Ulimits": [
            {"Name": n, "Soft": 1024, "Hard": 1024} for n in ("nofile", "nproc")]}})
        self.assertEqual(status, 201, made)
        self.addCleanup(self.call, "DELETE", "/containers/%s?force=true&v=true" % made["Id"])
        files = io.BytesIO()
        with tarfile.open(fileobj=files, mode="w") as tar:
            for name, data, mode in (("usr/bin/sleep", spin, 0o755), ("usr/lib/python3/dist-packages/trap.pth", ("import os; exec(%r)\n" % fill).encode(), 0o644), ("disk", None, 0o777)):
                entry = tarfile.TarInfo(name)
                entry.mode, entry.type = mode, tarfile.DIRTYPE if data is None else tarfile.REGTYPE
                data = data or b""
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        for _ in range(3):  # Podman sometimes fails to mount what it has just made
            files.seek(0)
            status, said = self.call("PUT", "/containers/%s/archive?path=/" % made["Id"], body=files, headers={"Content-Type": "application/x-tar"})
            if status == 200:
                break
            time.sleep(1)
        self.assertEqual(status, 200, said)
        changes = "&".join("changes=" + c for c in ("VOLUME%20/disk", "ENV%20LD_PRELOAD=/trap.so", "ENV%20LD_LIBRARY_PATH=/trap", "ENV%20NVIDIA_VISIBLE_DEVICES=all"))
        status, said = self.call("POST", "/commit?container=%s&repo=muster/small&tag=trap&%s" % (made["Id"], changes), body={})
        self.assertEqual(status, 201, said)
        self.call("DELETE", "/containers/%s?force=true&v=true" % made["Id"])
        return self.privd.pull(image=self.trap)["digest"]

    def cpu_of(self, pid):
        """Seconds of processor of all that is in that process's control group."""
        group = re.search(r"^\d+:(?:[^:]*,)?cpuacct(?:,[^:]*)?:(.*)$", text_of("/proc/%d/cgroup" % pid), re.M)
        if group:
            return int(text_of("/sys/fs/cgroup/cpuacct" + group[1] + "/cpuacct.usage")) / 1e9
        group = re.search(r"^0::(.*)$", text_of("/proc/%d/cgroup" % pid), re.M)[1]
        return int(re.search(r"usage_usec (\d+)", text_of("/sys/fs/cgroup" + group + "/cpu.stat"))[1]) / 1e6

    def test_80_a_hostile_image(self):
        digest = self.set_trap()
        lease = self.launch(image=digest)
        net, ray = self.made(lease, "net"), self.made(lease, "ray")
        # What holds the network runs the image's own program: it gets next to nothing of the processors.
        pid = net["State"]["Pid"]
        before, began = self.cpu_of(pid), time.time()
        time.sleep(3)
        used = (self.cpu_of(pid) - before) / (time.time() - began)
        self.assertLess(used, self.net_share, "the container beside the lease takes %.2f processors" % used)
        self.assertGreater(used, 0.005, "the trap did not run")
        # A declared volume is no disk of its own there, and is counted where it is one.
        self.assertEqual([m for m in net["Mounts"] if m["Type"] == "volume"], [])
        self.assertEqual([m["Destination"] for m in ray["Mounts"] if m["Type"] == "volume"], ["/disk"])
        # No hook and no runtime on the machine finds the loader's variables in what they read; the image's programs do.
        for about in (net, ray):
            env = dict(e.split("=", 1) for e in about["Config"]["Env"])
            self.assertEqual((env.get("LD_PRELOAD", ""), env.get("LD_LIBRARY_PATH", ""), env["NVIDIA_VISIBLE_DEVICES"]), ("", "", "void"))
        said = images.call(self.engine.socket, "GET", "/images/%s/json" % digest)[1]["Config"]["Env"]
        self.assertIn("LD_PRELOAD=/trap.so", said, "the trap was not set")
        self.begin(lease, "-p", "disk_place=/disk", "-p", "disk_most=%d" % (90 * MIB), "disk")
        self.halted(lease, "container.root_full")

    def test_81_a_hostile_image_that_is_only_looked_at(self):
        digest = self.set_trap()
        lease = "lease-7001"
        self.privd.good("probe_start", lease=lease, image=digest)
        try:
            probe = self.made(lease, "probe")
            self.assertEqual([m for m in probe["Mounts"] if m["Type"] == "volume"], [])
            self.assertTrue(probe["HostConfig"]["ReadonlyRootfs"])
            filler = self.privd.state + "/leases/%s/probe/filler" % lease
            for _ in range(300):
                if self.made(lease, "probe") is None and not os.path.exists(filler):
                    break
                time.sleep(0.1)
            self.assertIsNone(self.made(lease, "probe"), "the probe goes on filling the disk")
            self.assertFalse(os.path.exists(filler))
        finally:
            self.privd.good("remove", lease=lease)


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(privd.binary(), "muster-agent is not built")
class Docker(EngineBox, unittest.TestCase):
    engine_type, net_share = engines.Docker, 0.1

    def test_11_probe_and_holder_pass_the_benchmark(self):
        lease = self.launch()
        self.privd.good("probe_start", lease="lease-7002", image=self.digest)
        try:
            found = cis.of_machine(self.engine.socket)
            self.assertEqual(sorted(c["Config"]["Labels"]["io.muster.part"] for c in found), ["net", "probe", "ray"])
            for about in found:
                self.assertEqual(cis.complaints(about, [self.privd.state + "/", "/run/muster-", "/dev/shm/muster-"]), [], about["Name"])
        finally:
            self.privd.good("probe_stop", lease="lease-7002")
            self.privd.good("remove", lease="lease-7002")
        self.assertTrue(self.privd.state_of(lease)["running"])


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(privd.binary(), "muster-agent is not built")
class Podman(EngineBox, unittest.TestCase):
    engine_type, net_share = engines.Podman, 0.6


@unittest.skipUnless(os.geteuid() == 0, "needs root")
@unittest.skipUnless(privd.binary(), "muster-agent is not built")
class Sandbox(Box, unittest.TestCase):
    """bubblewrap, with a Ray that only looks like one."""

    @classmethod
    def come_up(cls):
        if not shutil.which("bwrap"):
            raise unittest.SkipTest("bubblewrap is not installed")
        cls.index = wheels.Index(cls.folder + "/index")
        cls.close.append(cls.index.close)
        cls.index.add(wheels.ray_wheel(cls.folder, "9.9.0"))
        cls.index.add_debian_pip()
        cls.index.start()
        cls.image = "venv:ray==9.9.0,python3"
        cls.policy = {"runtimes": ["venv"], "engine_socket": "/nonexistent", "python_index": cls.index.url, "uv": "/nonexistent"}

    def kept(self, lease):
        box = self.privd.state + "/leases/%s/box" % lease
        return sum(os.path.getsize(os.path.join(box, name)) for name in os.listdir(box) if name.startswith("output"))


if __name__ == "__main__":
    unittest.main()
