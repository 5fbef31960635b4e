"""A supplier's machine under running work, on real Ray: its container engine restarted, the agent's processes killed together, the agent
restarted while the control plane is away, the owner's limits, pause and drain, a reboot, the machine's leave and its revocation. One lab
and one cluster for all tests, in their order: each leaves the cluster whole, and the last ones use up their machines.
"""
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402
import engines  # noqa: E402
import images  # noqa: E402

BESIDE = "work"  # a lane of its own in tools/test.py, for the time it takes
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
# north has one CPU to give, so that the head goes there and the worker elsewhere.
CLUSTER = """cluster_name: live
provider: {type: aws, region: eu-central-1}
docker: {image: "muster/ray:2.60.0"}
max_workers: 1
available_node_types:
  head: {resources: {CPU: 1, memory: 2147483648}}
  worker: {resources: {CPU: 2, memory: 2147483648, blue: 1}, min_workers: 1, max_workers: 1}
head_node_type: head
muster: {tier: 2}
"""
# Only the machine of the other's worker has room for its head, once that has left.
URGENT = """cluster_name: urgent
provider: {type: aws, region: eu-central-1}
docker: {image: "muster/ray:2.60.0"}
max_workers: 0
available_node_types:
  head: {resources: {CPU: 2, memory: 2147483648}}
head_node_type: head
"""
# Pieces on the worker, one after another, until there is enough; lost ones are computed again.
PIECES = """
import os, sys, time, ray
ray.init(log_to_driver=False, logging_level='error')
@ray.remote(num_cpus=1, resources={'blue': 0.1}, max_retries=-1)
def piece(n):
    time.sleep(0.3)
    return n * n, ray.util.get_node_ip_address()
sums = n = 0
while not os.path.exists('/tmp/enough-' + sys.argv[1]):
    value, at = ray.get(piece.remote(n), timeout=170)
    sums, n = sums + value, n + 1
    print('piece %d on %s' % (n, at), flush=True)
print('RESULT', 'right' if sums == sum(k * k for k in range(n)) else 'wrong', flush=True)
"""
# A TCP connection between the members that never pauses, beside a shuffle: the worker's end sends numbered blocks.
STREAM = """
import os, socket, sys, threading, time, ray
import random
ray.init(log_to_driver=False, logging_level='error')
me = ray.util.get_node_ip_address()
door = socket.create_server((me, 0))
@ray.remote(num_cpus=0, resources={'blue': 0.1}, max_retries=0)
def send(address, port):
    with socket.create_connection((address, port)) as line:
        n = 0
        while True:
            try:
                line.sendall(n.to_bytes(8, 'big') + bytes(4088))
            except BrokenPipeError:
                return n
            n += 1
            time.sleep(0.005)
@ray.remote(num_cpus=1, resources={'blue': 0.1}, max_retries=0)
def shuffle(seed, block):
    numbers = list(block)
    random.Random(seed).shuffle(numbers)
    return numbers
sender = send.remote(me, door.getsockname()[1])
line = door.accept()[0]
state = {'n': 0, 'gap': 0.0, 'fault': ''}
def receive():
    last = time.time()
    try:
        while True:
            block = b''
            while len(block) < 4096:
                part = line.recv(4096 - len(block))
                if not part:
                    state['fault'] = 'ended'
                    return
                block += part
            now = time.time()
            state['gap'], last = max(state['gap'], now - last), now
            if int.from_bytes(block[:8], 'big') != state['n']:
                state['fault'] = 'block %d is missing' % state['n']
                return
            state['n'] += 1
    except OSError as fault:
        state['fault'] = str(fault)
threading.Thread(target=receive, daemon=True).start()
rounds, wrong = 0, 0
data = list(range(60000))
while not os.path.exists('/tmp/enough-' + sys.argv[1]):
    parts = ray.get([shuffle.remote(rounds + k, data[k::3]) for k in range(3)], timeout=120)
    wrong += sorted(n for part in parts for n in part) != data
    rounds += 1
    if os.path.exists('/tmp/mark'):  # what came before was another fault
        os.unlink('/tmp/mark')
        print('MARK gap %.2f' % state['gap'], flush=True)
        state['gap'] = 0.0
    print('round %d blocks %d gap %.2f %s' % (rounds, state['n'], state['gap'], state['fault']), flush=True)
fault, gap = state['fault'], state['gap']  # as they are before the end makes one
line.close()
print('RESULT', 'right' if not wrong and not fault else 'wrong: ' + fault, 'gap %.2f' % gap, flush=True)
"""


class OwnDocker(engines.Docker):
    """The engine of one machine; it keeps its containers over its restarts or not, as told, and can lose its power."""

    def command(self):
        return super().command() + ["--config-file", self.folder + "/daemon.json"]

    def keep_containers(self, keep):
        with open(self.folder + "/daemon.json", "w") as f:
            json.dump({"live-restore": keep}, f)
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)

    def restart(self):
        """As a service manager does it; -> seconds."""
        began = time.time()
        self.process.terminate()
        self.process.wait(60)
        self.process = None
        self.start()
        return time.time() - began

    def containers(self):
        listed = images.call(self.socket, "GET", "/containers/json")[1] or []
        return sorted((c["Names"][0][1:], c["Id"]) for c in listed)

    def power_off(self):
        """Everything of it ends at once, and what was in memory only is gone; its disk stays."""
        about = [images.call(self.socket, "GET", "/containers/%s/json" % ident)[1] for _, ident in self.containers()]
        pids = [one["State"]["Pid"] for one in about]
        self.process.kill()
        self.process.wait(20)
        self.process = None
        mine = subprocess.run(["pgrep", "-f", re.escape(self.folder + "/exec")], capture_output=True, text=True).stdout.split()
        for pid in [int(p) for p in mine] + pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        with open("/proc/mounts") as f:
            mounts = [line.split()[1] for line in f if line.split()[1].startswith(self.folder + "/")]
        for mount in sorted(mounts, reverse=True):
            subprocess.run(["umount", "-l", mount], capture_output=True)
        shutil.rmtree(self.folder + "/exec", ignore_errors=True)
        for path in (self.folder + "/pid", self.socket):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Work(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        build = os.path.join(ROOT, "images/ray/build")
        subprocess.run([build], check=True, stdout=subprocess.DEVNULL)
        cls.world = world = demo.World(BUILD, name="work", say=lambda text: None)
        cls.engine = None
        try:
            world.lab.start_docker()
            cls.engine = OwnDocker(world.dir + "/south-engine")
            cls.engine.keep_containers(True)
            images.seed_engine(cls.engine.folder + "/data")
            cls.engine.start()
            loading = [subprocess.Popen([build, "--docker-host", host], stdout=subprocess.DEVNULL) for host in (world.lab.docker, "unix://" + cls.engine.socket)]
            world.start_server()
            assert all(one.wait(180) == 0 for one in loading), "the image was not loaded"
            world.add_machine("north", "home", policy={"max_cpu_milli": 1000})
            world.add_machine("south", "strict", policy={"engine_socket": cls.engine.socket})
            cls.online(2)
            for name, text in (("live.yaml", CLUSTER), ("urgent.yaml", URGENT), ("job/pieces.py", PIECES), ("job/stream.py", STREAM)):
                os.makedirs(os.path.dirname(os.path.join(world.dir, name)), exist_ok=True)
                with open(os.path.join(world.dir, name), "w") as f:
                    f.write(text)
            world.cli("up", world.dir + "/live.yaml", "--yes")
            world.add_machine("east", "home")
            world.add_machine("west", "lan:east")
            cls.online(4)
        except Exception:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        if cls.engine is not None:
            for agent in cls.world.agents.values():
                agent.kill(signal.SIGTERM)
            cls.engine.close()
        cls.world.close()

    # ---- what the tests share
    @classmethod
    def online(cls, count):
        cls.world.wait("machines", "%d machines online" % count, 60, lambda: sum(n["state"] == "online" for n in cls.world.nodes().values()) >= count)

    def wait(self, what, seconds, condition):
        return self.world.wait(self.id(), what, seconds, condition, self.world.dir + "/musterd.log")

    def agent(self, name, *words, check=True, **kw):
        done = self.world.lab.sh(self.world.lab.enter(name) + [self.world.binary("muster-agent")] + list(words) + ["--state-dir", "%s/%s" % (self.world.dir, name)], check=False, **kw)
        if check:
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def agent_log(self, name):
        with open("%s/%s/agent.log" % (self.world.dir, name), errors="replace") as f:
            return f.read()

    def worker(self, on=None, but=()):
        """The ready worker that Ray knows, once there is exactly one; on and not on such machines."""
        def ready():
            slots = [s for s in self.world.cluster("live").get("slots", []) if s["role"] == "worker"]
            good = [s for s in slots if s["phase"] == "ready" and s.get("rayNodeId") and on in (None, s["nodeName"]) and s["nodeName"] not in but]
            return good[0] if len(good) == len(slots) == 1 else None
        return self.wait("a ready worker%s%s" % (" on " + on if on else "", " not on " + ", ".join(but) if but else ""), 120, ready)

    def brought(self, name):
        """The worker, moved to that machine if it is elsewhere."""
        others = sorted({"south", "east", "west"} - {name})
        if self.worker()["nodeName"] != name:
            for other in others:
                self.agent(other, "pause")
        there = self.worker(name)
        for other in others:
            self.agent(other, "resume")
        return there

    @contextlib.contextmanager
    def work(self, script="pieces.py", name=None):
        """A job under which the body does its harm; afterwards it must end right."""
        name = name or self.id().rsplit(".", 1)[-1]
        job = self.world.json("job", "submit", "--cluster", "live", "--name", name.replace("_", "-"), "--working-dir", self.world.dir + "/job", "--no-wait", "--",
                              "python3", script, name)["id"]
        self.job = job
        self.first = len(self.progress(3))
        yield
        self.world.cli("exec", "live", "--", "touch", "/tmp/enough-" + name)
        end = self.wait("the job's end", 120, lambda: (lambda j: j if j["state"] in ("succeeded", "failed", "stopped") else None)(self.world.json("job", "status", job)))
        log = self.lines()
        self.assertEqual((end["state"], end["attempt"]), ("succeeded", 1), (end, log[-5:]))
        self.assertTrue(log[-1].startswith("RESULT right"), log[-5:])
        self.result = log[-1]

    def lines(self):
        return [line for line in self.world.cli("job", "logs", self.job).stdout.split("\n") if line]

    def progress(self, more, address=None, seconds=90):
        """Waits until the job has done so many more steps (on that member)."""
        def steps():
            return [line for line in self.lines() if line.startswith(("piece ", "round ")) and (address is None or line.endswith(" on " + address))]
        before = len(steps())
        return self.wait("%d more steps of the job%s" % (more, " on " + address if address else ""), seconds, lambda: (lambda s: s if len(s) >= before + more else None)(steps()))

    def parts(self, name):
        """The processes under a machine's supervisor, by role."""
        found = {}
        for pid in self.world.lab.sh(["pgrep", "-P", str(self.world.agents[name].popen.pid)], check=False).stdout.split():
            with contextlib.suppress(FileNotFoundError), open("/proc/%s/cmdline" % pid) as f:
                words = f.read().split("\0")
                if len(words) > 1:  # none: it is just being started, or ending
                    found[words[1]] = int(pid)
        return found

    def kill_parts(self, name, *roles):
        old = self.parts(name)
        for role in roles:
            os.kill(old[role], signal.SIGKILL)
        self.wait("the restart of " + ", ".join(roles), 15, lambda: all(self.parts(name).get(role, old[role]) != old[role] for role in roles))

    # ---- the container engine
    def test_10_the_engine_is_restarted_and_keeps_its_containers(self):
        before = self.worker("south")
        with self.work():
            containers = self.engine.containers()
            took = self.engine.restart()
            self.assertEqual(self.engine.containers(), containers)
            self.wait("the agent's notice", 30, lambda: "the container engine is back" in self.agent_log("south"))
            self.progress(3, before["address"])
        self.assertEqual(self.worker(), before, "the member changed")
        self.assertEqual(self.engine.containers(), containers, "a container was restarted")
        print("# engine restarted in %.1f s, containers kept" % took, flush=True)

    def test_11_the_engine_takes_its_containers_along(self):
        """Twice within the window in which a worker's own second crash would end its slot."""
        before = old = self.worker("south")
        self.engine.keep_containers(False)
        with self.work():
            for _ in range(2):
                self.engine.restart()
                began = time.time()
                now = self.wait("Ray anew", 90, lambda: (lambda s: s if s["rayNodeId"] != old["rayNodeId"] else None)(self.worker()))  # noqa: B023
                print("# worker ready again %.1f s after its engine" % (time.time() - began), flush=True)
                self.assertEqual([now[k] for k in ("id", "leaseId", "address")], [before[k] for k in ("id", "leaseId", "address")], "not in place")
                self.progress(2, before["address"])
                old = now
        self.engine.keep_containers(True)

    # ---- the agent's processes
    def test_20_all_processes_killed_under_a_shuffle_and_again_without_the_control_plane(self):
        before = self.worker("south")
        with self.work("stream.py"):
            self.kill_parts("south", "privd-process", "agent-process", "netd-process")
            self.progress(4)
            self.world.cli("exec", "live", "--", "touch", "/tmp/mark")
            marked = self.wait("the first gap", 30, lambda: [line for line in self.lines() if line.startswith("MARK")])
            blocks = int(self.progress(1)[-1].split()[3])
            self.world.musterd.kill()
            killed = time.time()
            self.kill_parts("south", "agent-process", "netd-process")
            time.sleep(12)
            self.world.start_musterd()
            self.wait("the control plane", 30, lambda: self.world.cli("status", "live", check=False).returncode == 0)
            away = time.time() - killed
            self.wait("the head's agent back", 90, lambda: self.world.cli("exec", "live", "--", "true", check=False).returncode == 0)
            step = self.progress(1)[-1].split()
            self.assertGreater(int(step[3]), blocks + away * 40, "the stream stood still")
        gaps = [float(re.search(r"gap (\S+)", line)[1]) for line in (marked[0], self.result)]
        print("# gaps of the overlay: %.1f s (all three killed), %.1f s (agent and netd, no control plane for %.1f s)" % (gaps[0], gaps[1], away), flush=True)
        self.assertLess(max(gaps), 2, "seconds without a block")
        self.assertEqual(self.worker(), before, "the member changed")

    # ---- the machine
    def running(self, lease):
        """The containers of a lease, on whichever engine."""
        named = [c for docker in (self.world.lab.docker, "unix://" + self.engine.socket)
                 for c in self.world.lab.sh(["docker", "-H", docker, "ps", "--format", "{{.Names}}"], check=False).stdout.split()]
        return [c for c in named if "-%s-" % lease in c]

    def test_25_reboot(self):
        """Power off and on again: processes, containers, mounts and tmpfs are gone, the boot id and the boot clock are new, the disk is kept."""
        lease = self.worker("south")["leaseId"]
        with self.work():
            main = next(name for name, _ in self.engine.containers() if name.endswith("-%s-ray" % lease))
            binds = images.call(self.engine.socket, "GET", "/containers/%s/json" % main)[1]["HostConfig"]["Binds"]
            secrets = next(re.match(r"((?:/run|/dev/shm)/muster-[0-9]+)/", b)[1] for b in binds if b.startswith(("/run/muster-", "/dev/shm/muster-")))
            parts = list(self.parts("south").values())
            for pid in [self.world.agents["south"].popen.pid] + parts:
                os.kill(pid, signal.SIGKILL)
            self.engine.power_off()
            began = time.time()
            shutil.rmtree(secrets)
            self.world.agents["south"].wait(10)
            self.engine.start()
            self.boot("south")
            after = self.wait("another worker", 150, lambda: (lambda s: s if s["leaseId"] != lease else None)(self.worker()))
            self.progress(2, after["address"])
            print("# rebooted: work goes on on %s after %.1f s" % (after["nodeName"], time.time() - began), flush=True)
        type(self).rebooted = (began, lease)

    def boot(self, name):
        """The agent of a machine that has just booted, as far as it can see."""
        boot_id = "%s/%s.boot_id" % (self.world.dir, name)
        with open("/proc/sys/kernel/random/uuid") as f, open(boot_id, "w") as out:
            out.write(f.read())
        with open("/proc/uptime") as f:
            uptime = int(float(f.read().split()[0]))
        state = "%s/%s" % (self.world.dir, name)
        script = "mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts && mount --bind %s /proc/sys/kernel/random/boot_id && exec %s run --state-dir %s" % (boot_id, self.world.binary("muster-agent"), state)
        # --time makes a child; it dies with its parent, and the parent is killed as the supervisor is.
        self.world.agents[name] = self.world.lab.spawn(name, ["unshare", "-m", "--propagation", "private", "--time", "--boottime=-%d" % (uptime - 5), "sh", "-ec", script],
                                                       state + "/agent.log")

    # ---- the owner
    def test_30_limits_under_a_lease(self):
        before = self.worker()
        here = before["nodeName"]
        with self.work():
            self.agent(here, "limits", "set", "upload", "80mbit", "download", "80mbit", "cpus", "2")
            self.progress(3, before["address"])
            with open("%s/%s/run/bandwidth" % (self.world.dir, here)) as f:
                self.assertEqual(f.read().split(), ["10000000", "10000000"] + ["0"] * 4 + ["2500000", "1073741824"])
            self.assertIn("upload 80 Mbit/s", self.agent(here, "status"))
            self.agent(here, "limits", "reset")
            self.progress(1, before["address"])
        self.assertEqual(self.worker(), before, "the member changed")

    def test_31_pause_moves_the_work(self):
        before = self.worker()
        with self.work():
            began = time.time()
            self.assertIn("pause: done", self.agent(before["nodeName"], "pause"))
            after = self.worker(but=(before["nodeName"],))
            self.progress(2, after["address"])
            print("# paused: work goes on elsewhere after %.1f s" % (time.time() - began), flush=True)
        self.wait("nothing of it on the machine", 60, lambda: not self.running(before["leaseId"]))
        self.agent(before["nodeName"], "resume")

    def test_32_drain_moves_the_work_and_waits(self):
        before = self.worker()
        with self.work():
            self.assertIn("drain: done", self.agent(before["nodeName"], "drain", timeout=150))
            self.assertEqual(self.running(before["leaseId"]), [])
            self.progress(2, self.worker(but=(before["nodeName"],))["address"])
        self.agent(before["nodeName"], "resume")

    # ---- the rebooted machine works again
    def test_40_the_rebooted_machine_is_back(self):
        began, lease = self.rebooted
        self.wait("south online again", 120, lambda: self.world.nodes()["south"]["state"] == "online")
        print("# the rebooted machine was online again at most %.1f s after its power was cut" % (time.time() - began), flush=True)
        self.wait("the end of what it ran", 60, lambda: lease not in self.agent("south", "status"))
        self.assertFalse([name for name, _ in self.engine.containers() if "-%s-" % lease in name])
        self.assertFalse(os.path.exists("%s/south/leases/%s" % (self.world.dir, lease)), "its workspace was left behind")

    def test_41_pause_now_stops_at_once(self):
        """Nobody but one other can take over: south, unless the work is there."""
        before = self.worker()
        here = before["nodeName"]
        takes = "south" if here != "south" else "east"
        idle = sorted({"south", "east", "west"} - {here, takes})
        with self.work():
            for name in idle:
                self.agent(name, "pause")
            said = self.agent(here, "pause", "--now", timeout=60)
            self.assertEqual(self.running(before["leaseId"]), [], "it still runs")
            self.assertLess(float(re.search(r"\((\d+\.\d) s\)", said)[1]), 10)
            self.progress(2, self.worker(takes)["address"])
        for name in [here] + idle:
            self.agent(name, "resume")

    def test_42_idle_only_work_ends_when_the_owner_comes_back(self):
        """South's mount namespace has its own terminals; its owner opens one and types."""
        before = self.brought("south")
        self.agent("south", "limits", "set", "idle-only", "1m", "idle-signs", "terminals")
        with self.work():
            time.sleep(3)  # the guard looks once a second
            self.progress(2, before["address"])
            typing = "import os, time\nm, s = os.openpty()\nos.write(m, b'hello\\n')\nos.read(s, 10)\ntime.sleep(60)"
            owner = self.world.lab.spawn(None, ["nsenter", "-m", "-t", str(self.world.agents["south"].popen.pid), "python3", "-c", typing], self.world.dir + "/owner.log")
            began = time.time()
            self.wait("the end of what runs on south", 20, lambda: not self.running(before["leaseId"]))
            print("# idle-only: the owner typed, the containers were gone after %.1f s" % (time.time() - began), flush=True)
            self.assertIn("the owner uses this machine", self.agent("south", "status", check=False))
            self.progress(2, self.worker(but=("south",))["address"])
            owner.kill()
        self.agent("south", "limits", "set", "idle-only", "off")

    # ---- somebody of a better tier comes
    def test_45_the_worker_makes_room_and_comes_back(self):
        before = self.worker()
        others = sorted({"south", "east", "west"} - {before["nodeName"]})
        for name in others:
            self.agent(name, "pause")
        with self.work():
            began = time.time()
            self.world.cli("up", self.world.dir + "/urgent.yaml", "--yes", "--no-wait")
            self.wait("that it is told to leave", 150, lambda: "preempted" in json.dumps(self.world.cluster("live")["slots"]) or not self.running(before["leaseId"]))
            told = time.time() - began  # after its two minutes, if it is that young
            self.wait("the urgent cluster", 150, lambda: self.world.cluster("urgent")["state"] == "running")
            print("# told to leave after %.1f s, the urgent cluster ran after %.1f s" % (told, time.time() - began), flush=True)
            head = [s for s in self.world.cluster("urgent")["slots"] if s["role"] == "head"][0]
            self.assertEqual(head["nodeName"], before["nodeName"])
            live = self.world.cluster("live")
            self.assertEqual((live["state"], [s["role"] for s in live["slots"]]), ("running", ["head"]))
            self.assertEqual(live["queue"]["tier"], 2, "it waits to get its worker back")
            self.world.cli("down", "urgent", "--yes")
            self.progress(2, self.worker(before["nodeName"])["address"])
        for name in others:
            self.agent(name, "resume")

    # ---- the end of a machine
    def test_50_leave(self):
        before = self.worker()
        here, node = before["nodeName"], self.world.nodes()[before["nodeName"]]["id"]
        with self.work():
            self.agent(here, "leave", timeout=150)
            self.assertEqual(self.running(before["leaseId"]), [])
            self.progress(2, self.worker(but=(here,))["address"])
        self.assertEqual(self.world.json("nodes", "show", node, who="admin")["state"], "revoked")
        left = sorted(os.listdir("%s/%s" % (self.world.dir, here)))
        self.assertEqual([name for name in left if name != "agent.log"], [])

    def test_51_revocation_takes_effect_at_once(self):
        before = self.worker()
        here, node = before["nodeName"], self.world.nodes()[before["nodeName"]]["id"]
        with self.work():
            began = time.time()
            self.world.cli("nodes", "revoke", node, "--yes", who="admin")
            self.wait("the end of what it runs", 20, lambda: not self.running(before["leaseId"]))
            stopped = time.time() - began
            after = self.worker(but=(here,))
            self.progress(2, after["address"])
            print("# revoked: its containers were gone after %.1f s, work went on after %.1f s" % (stopped, time.time() - began), flush=True)
        self.assertIn("revoked", self.agent(here, "status", check=False))
        self.assertLess(stopped, 15)


if __name__ == "__main__":
    unittest.main()
