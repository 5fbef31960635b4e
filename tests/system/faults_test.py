"""Faults on real processes: a small Ray cluster in the lab, one process after another killed under it. Each test asks afterwards that
Ray still computes on the worker, that no container was restarted and that the members are the same.
"""
import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
CLUSTER = """cluster_name: small
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}
docker: {image: "muster/ray:2.60.0", container_name: ray_container}
"""
ON_WORKER = """
import ray
ray.init(address='auto', log_to_driver=False, logging_level='error')
me = ray.util.get_node_ip_address()
other = next(n for n in ray.nodes() if n['Alive'] and n['NodeManagerAddress'] != me)
where = ray.remote(ray.util.get_node_ip_address).options(
    scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(other['NodeID'], soft=False))
print('computed on', ray.get(where.remote(), timeout=60))
"""
PUSH = """
import json, ray, threading, time
ray.init(address='auto', log_to_driver=False, logging_level='error')
alive = lambda: {n['NodeID']: n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']}
before, me = alive(), ray.util.get_node_ip_address()
other = next(i for i, address in before.items() if address != me)
@ray.remote(num_cpus=0, scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(other, soft=False))
class There:
    def large(self): return bytes(2000000)
    def small(self): return 1
pushers, asked, moved, took = [There.remote(), There.remote()], There.remote(), [], []
ray.get([each.small.remote() for each in pushers + [asked]], timeout=60)
end = time.time() + 60
def push(actor):
    while time.time() < end: moved.append(len(ray.get(actor.large.remote(), timeout=60)))
threads = [threading.Thread(target=push, args=(each,)) for each in pushers]
for t in threads: t.start()
while time.time() < end:
    began = time.time()
    ray.get(asked.small.remote(), timeout=60)
    took.append(time.time() - began)
    time.sleep(0.2)
for t in threads: t.join()
took.sort()
print(json.dumps({'lost': sorted(set(before) - set(alive())), 'bytes': sum(moved), 'calls': len(took), 'half': took[len(took) // 2],
                  'most': took[len(took) * 95 // 100]}))
"""


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        subprocess.run([os.path.join(ROOT, "images/ray/build")], check=True, stdout=subprocess.DEVNULL)
        cls.world = world = demo.World(BUILD, name="faults", say=lambda text: None)
        try:
            world.lab.start_docker()
            subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
            cls.small_disk("server", 256)
            world.start_server()
            for name, nat in (("alpha", "home"), ("beta", "strict"), ("gamma", "lan:alpha")):
                cls.small_disk(name, 1400)
                world.add_machine(name, nat, policy={"reserve": {"memory_bytes": 16 << 30, "cpus": 0, "disk_bytes": 64 << 20}})
            world.wait("machines", "all machines online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= 3)
            with open(world.dir + "/small.yaml", "w") as f:
                f.write(CLUSTER)
            world.cli("up", world.dir + "/small.yaml", "--yes")
        except Exception:
            world.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.world.close()

    @classmethod
    def small_disk(cls, name, mib):
        """A file system of its own for what a program keeps; the lab takes it away."""
        path = "%s/%s" % (cls.world.dir, name)
        os.makedirs(path)
        cls.world.lab.sh(["mount", "-t", "tmpfs", "-o", "mode=755,size=%dm" % mib, "tmpfs", path])

    @contextlib.contextmanager
    def full_disk(self, name):
        path = "%s/%s" % (self.world.dir, name)
        with open(path + "/films", "wb") as films:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        os.write(films.fileno(), bytes(size))
                except OSError as fault:
                    self.assertEqual(fault.errno, errno.ENOSPC)
        try:
            yield
        finally:
            os.remove(path + "/films")

    def setUp(self):
        # Ray's own report of a member comes a little after the member itself.
        whole = lambda members: len(members) == 2 and all(ray and phase == "ready" for _, _, ray, phase in members)  # noqa: E731
        self.before = self.world.wait("members", "two ready members that Ray knows", 60,
                                      lambda: (lambda found: found if whole(found) else None)(self.members()))

    def members(self):
        slots = self.world.cluster("small").get("slots", [])
        return sorted((s["address"], s["nodeName"], s.get("rayNodeId", ""), s["phase"]) for s in slots)

    def containers(self):
        return sorted(self.world.lab.sh(["docker", "-H", self.world.lab.docker, "ps", "-q"]).stdout.split())

    def compute(self):
        done = self.world.cli("exec", "small", "--", "python3", "-c", ON_WORKER, check=False, timeout=120)
        self.assertIn("computed on 10.201.", done.stdout, done.stdout[-800:] + done.stderr[-800:])

    def unharmed(self, containers):
        self.compute()
        self.assertEqual(self.containers(), containers, "a container was restarted")
        end = time.time() + 60
        while time.time() < end and self.members() != self.before:
            time.sleep(0.5)
        self.assertEqual(self.members(), self.before)

    def kill_part(self, part):
        """Kills one of the three processes on the worker's machine; its supervisor must bring it back."""
        worker = next(s["nodeName"] for s in self.world.cluster("small")["slots"] if s["role"] == "worker")
        supervisor = self.world.agents[worker].popen.pid

        def find():
            done = self.world.lab.sh(["pgrep", "-f", "-P", str(supervisor), part], check=False)
            return [int(pid) for pid in done.stdout.split()]
        old = find()
        self.assertTrue(old, "no %s runs under the supervisor" % part)
        containers = self.containers()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        self.world.wait(part, "its restart", 15, lambda: [p for p in find() if p not in old])
        self.unharmed(containers)

    def test_a_full_uplink_loses_no_node(self):
        """For a minute the worker pushes objects through a link of 5 Mbit/s with room for two seconds: Ray keeps the node, and small calls
        come back soon. The link is its machine's own, for its peer may be behind the same router."""
        slot = next(s for s in self.world.cluster("small")["slots"] if s["role"] == "worker")
        machine, containers = slot["nodeName"], self.containers()
        self.world.lab.run(machine, ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "5mbit", "burst", "16kb", "latency", "2000ms"])
        try:
            for _ in range(3):  # on a machine that others keep busy the programs may be what is slow, and the link stays free
                done = self.world.cli("exec", "small", "--", "python3", "-c", PUSH, check=False, timeout=240)
                self.assertEqual(done.returncode, 0, done.stdout[-800:] + done.stderr[-2000:])
                pairs, said = self.world.json("net", "small")["pairs"], json.loads(done.stdout.splitlines()[-1])
                self.assertEqual(said["lost"], [], said)
                self.assertLess(said["most"], 1.0, said)
                carries = [int(p["carriesBytesS"]) for p in pairs if p["from"] == slot["id"] and p.get("carriesBytesS", "0") != "0"]
                found = bool(carries) and 300000 < carries[0] < 700000
                if said["bytes"] > 60 * 625000 * 0.6 and found:
                    break
        finally:
            self.world.lab.run(machine, ["tc", "qdisc", "del", "dev", "eth0", "root"])
        self.assertGreater(said["bytes"], 60 * 625000 * 0.6, "%s %s" % (said, pairs))
        self.assertTrue(found, pairs)
        self.unharmed(containers)

    def test_agent_killed(self):
        self.kill_part("agent-process")

    def test_privd_killed(self):
        self.kill_part("privd-process")

    def test_netd_killed(self):
        self.kill_part("netd-process")

    def test_relay_killed(self):
        containers = self.containers()
        self.world.relay.kill()
        os.unlink(self.world.dir + "/handoff.sock")
        self.world.start_relay()
        self.world.wait("relay", "the control plane behind the new relay", 40, lambda: self.world.cli("status", "small", check=False).returncode == 0)
        self.unharmed(containers)

    def test_server_killed(self):
        containers = self.containers()
        self.world.musterd.kill()
        self.compute_without_server()
        self.world.start_musterd()
        self.serving()
        self.unharmed(containers)

    def serving(self, machines=3):
        self.world.wait("server", "the control plane serving", 30, lambda: self.world.cli("status", "small", check=False).returncode == 0)
        self.world.wait("machines", "the machines online", 60, lambda: sum(n["state"] == "online" for n in self.world.nodes().values()) >= machines)

        def reached():  # in the books a machine is online over a restart; its agent dials again a little later
            return self.world.cli("exec", "small", "--", "true", check=False, timeout=60).returncode == 0
        self.world.wait("exec", "the head's agent back", 90, reached)

    def test_nat_routers_forget(self):
        containers = self.containers()
        for router in sorted({router for router, _ in self.world.lab.gateways.values()}):
            self.world.lab.run(router, ["conntrack", "-F"])
        self.serving()
        self.unharmed(containers)

    def test_disk_of_the_workers_machine_full(self):
        """Its owner filled it to the last byte: Ray cannot live on it, so another machine takes over; the agent stays and the doctor names the disk."""
        worker = next(s["nodeName"] for s in self.world.cluster("small")["slots"] if s["role"] == "worker")
        doctor = self.world.lab.enter(worker) + [self.world.binary("muster-agent"), "doctor", "--state-dir", "%s/%s" % (self.world.dir, worker)]
        began = time.time()
        with self.full_disk(worker):
            self.assertRegex(self.world.lab.sh(doctor, check=False).stdout, "BROKEN disk")

            def computes():
                slots = self.world.cluster("small").get("slots", [])
                moved = all(s["nodeName"] != worker for s in slots) and sum(s["phase"] == "ready" for s in slots) == 2
                return moved and "computed on 10.201." in self.world.cli("exec", "small", "--", "python3", "-c", ON_WORKER, check=False, timeout=120).stdout
            self.world.wait("members", "another machine in its place", 120, computes)
            print("     after %.1f s" % (time.time() - began), flush=True)
            self.assertIn(self.world.nodes()[worker]["state"], ("online", "draining"), "its agent is gone")
        self.world.wait("machine", "online again", 60, lambda: self.world.nodes()[worker]["state"] == "online")
        self.assertNotRegex(self.world.lab.sh(doctor, check=False).stdout, "BROKEN disk")

    def test_disk_of_the_control_plane_full(self):
        """Read-only with that reason while it lasts: running work is used and seen, nothing acknowledged is lost."""
        containers = self.containers()
        self.world.cli("org", "create", "before", who="admin")
        with self.full_disk("server"):
            def refused():
                done = self.world.cli("org", "create", "meanwhile", check=False, who="admin")
                return done.stderr if done.returncode != 0 else ""
            # What the disk still takes in its gaps is taken; then it is full for good.
            said = self.world.wait("server", "a refusal", 30, refused)
            self.assertRegex(said, "read-only")
            self.assertEqual(self.world.cli("status", "small").returncode, 0)
            self.compute()
        self.world.wait("server", "writes again", 20, lambda: self.world.cli("org", "create", "after", check=False, who="admin").returncode == 0)
        named = {org["name"] for org in self.world.json("org", "list", who="admin")["items"]}
        self.assertLessEqual({"before", "after"}, named)
        self.unharmed(containers)

    def test_zz_machine_sleeps(self):
        """The last one, since it changes the members: the worker's machine freezes with all it runs, is replaced, and wakes."""
        slot = next(s for s in self.world.cluster("small")["slots"] if s["role"] == "worker")
        supervisor = self.world.agents[slot["nodeName"]].popen.pid
        parts = [int(pid) for pid in self.world.lab.sh(["pgrep", "-P", str(supervisor)]).stdout.split()]
        asleep = [c for c in self.world.lab.sh(["docker", "-H", self.world.lab.docker, "ps", "--format", "{{.Names}}"]).stdout.split()
                  if "%s-" % slot["leaseId"] in c + "-"]
        self.assertTrue(asleep and len(parts) >= 3, (asleep, parts))
        for pid in [supervisor] + parts:
            os.kill(pid, signal.SIGSTOP)
        self.world.lab.sh(["docker", "-H", self.world.lab.docker, "pause"] + asleep)
        try:
            self.world.wait("sleep", "another worker", 120, lambda: any(
                s["role"] == "worker" and s["phase"] == "ready" and s["nodeName"] != slot["nodeName"] for s in self.world.cluster("small")["slots"]))
        finally:
            self.world.lab.sh(["docker", "-H", self.world.lab.docker, "unpause"] + asleep)
            for pid in parts + [supervisor]:
                os.kill(pid, signal.SIGCONT)
        self.serving()
        self.world.wait("wake", "the end of what it ran", 60, lambda: not set(asleep) & set(
            self.world.lab.sh(["docker", "-H", self.world.lab.docker, "ps", "-a", "--format", "{{.Names}}"]).stdout.split()))
        self.before = self.members()
        self.unharmed(self.containers())

    def compute_without_server(self):
        head = next(c for c in self.world.lab.sh(["docker", "-H", self.world.lab.docker, "ps", "--format", "{{.Names}}"]).stdout.split()
                    if c.endswith("lease-1-ray"))
        done = self.world.lab.sh(["docker", "-H", self.world.lab.docker, "exec", head, "python3", "-c", ON_WORKER], check=False, timeout=120)
        self.assertIn("computed on 10.201.", done.stdout, done.stderr[-800:])

    def test_exec(self):
        done = self.world.cli("exec", "small", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
        self.assertEqual((done.stdout, done.returncode), ("out\n", 7), done.stderr)

    def test_foreign_tenant_sees_nothing(self):
        with open(self.world.dir + "/operator.password") as f:
            password = f.read()
        self.world.cli("org", "create", "rivals", who="admin", check=False)
        self.world.cli("user", "create", "mallory", "--role", "tenant", "--org", "rivals", "--password-file", self.world.dir + "/operator.password", who="admin")
        self.world.cli("login", "https://" + demo.SERVER, "--ca-sha256", self.world.ca, "--user", "mallory", "--password-file",
                       self.world.dir + "/operator.password", who="mallory")
        self.assertTrue(password)
        cluster = self.world.cluster("small")["id"]
        for words in (["status", cluster], ["exec", cluster, "--", "id"], ["down", cluster, "--yes"]):
            done = self.world.cli(*words, check=False, who="mallory")
            self.assertEqual(done.returncode, 3, (words, done.stdout, done.stderr))
        self.assertEqual(self.world.json("list", who="mallory")["items"], [])

    def test_jobs_api_through_forward(self):
        token, port = self.world.dir + "/ray.token", 18265
        forward = self.world.lab.spawn("user", [self.world.binary("muster"), "port-forward", "small", "%d:8265" % port, "--token-file", token],
                                       self.world.dir + "/forward.log", env=self.world.account("alice"))
        try:
            self.world.wait("forward", "the token file", 20, lambda: os.path.exists(token) and os.path.getsize(token), forward.log)
            self.assertEqual(os.stat(token).st_mode & 0o777, 0o600)
            script = ("import json,urllib.request\n"
                      "r=urllib.request.Request('http://127.0.0.1:%d/api/jobs/',headers={'Authorization':'Bearer '+open('%s').read().strip()})\n"
                      "print(json.load(urllib.request.urlopen(r,timeout=20)))\n" % (port, token))
            done = self.world.lab.run("user", [sys.executable, "-c", script], check=False)
            self.assertTrue(done.stdout.startswith("["), done.stdout + done.stderr[-500:])
            bare = script.replace("headers=", "headers={} and ")
            self.assertIn("401", self.world.lab.run("user", [sys.executable, "-c", bare], check=False).stderr)
        finally:
            forward.kill()

    def test_no_port_is_open(self):
        """From a machine of the same LAN and from the internet no port of Ray answers, while Ray is busy."""
        ports = list(range(6379, 6386)) + [8000, 8265, 10001, 44217, 44227, 52365] + list(range(10002, 10040))
        scan = ("import socket,sys\nfor p in %r:\n s=socket.socket(); s.settimeout(0.15)\n"
                " if s.connect_ex((sys.argv[1],p))==0: print('open',p)\n" % ports)
        busy = self.world.lab.spawn("user", [self.world.binary("muster"), "exec", "small", "--", "python3", "-c", ON_WORKER], self.world.dir + "/busy.log",
                                    env=self.world.account("alice"))
        try:
            for place, address in (("gamma", self.world.lab.addresses["alpha"]), ("server", "203.0.113.101"), ("server", "203.0.113.102")):
                done = self.world.lab.run(place, [sys.executable, "-c", scan, address])
                self.assertEqual(done.stdout, "", "%s reaches ports of %s" % (place, address))
            # The scan itself can see: the relay's public port is open.
            seen = self.world.lab.run("user", [sys.executable, "-c", scan.replace(repr(ports), "[443]"), demo.SERVER])
            self.assertEqual(seen.stdout.strip(), "open 443")
        finally:
            busy.wait(60)
            busy.kill()

    def test_secrets_stay_out_of_sight(self):
        """The Ray token, passwords, and the tokens of people, programs and machines are in no environment, argument, log, metric or journal, and
        nothing that is said holds them."""
        secrets = {"Ray token": self.world.cli("exec", "small", "--", "cat", "/muster/secrets/ray_token").stdout.strip(),
                   "password": "correct horse battery staple", "registry password": "canary-registry-password",
                   "API token": self.world.json("token", "create", "--label", "canary")["secret"],
                   "join token": self.world.json("join-token", "create", "--org", "hall", who="admin")["secret"]}
        self.assertRegex(secrets["Ray token"], r"^[0-9a-f]{64}$")
        with open(self.world.dir + "/registry.password", "w") as f:
            f.write(secrets["registry password"] + "\n")
        self.world.cli("registry", "login", "registry.example:5000", "--username", "canary", "--password-file", self.world.dir + "/registry.password")
        said = [self.world.cli(*words, who="admin").stdout for words in (("audit", "--since", "all", "-o", "jsonl"), ("audit", "refused", "-o", "json"), ("events",), ("nodes", "-o", "json"))]
        metrics = "import ssl, urllib.request as u; print(u.urlopen('https://127.0.0.1:8443/metrics', context=ssl._create_unverified_context()).read().decode())"
        said.append(self.world.lab.run("server", [sys.executable, "-c", metrics]).stdout)
        self.assertIn("muster_journal_seq", said[-1])
        places = []
        for pid in [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]:
            for part in ("environ", "cmdline"):
                try:
                    with open("/proc/%s/%s" % (pid, part), "rb") as f:
                        places += self.holding(secrets, f.read(), "/proc/%s/%s" % (pid, part))
                except OSError:
                    pass
        for folder, _, names in os.walk(self.world.dir):
            if "/docker/" in folder + "/" or "/secrets" in folder or "/people/" in folder + "/":
                continue
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < 64 << 20:
                    with open(path, "rb") as f:
                        places += self.holding(secrets, f.read(), path)
        self.assertEqual([p for p in places if not re.search(r"ray\.token$|/(operator|registry)\.password$", p)], [])
        for text in said:
            self.assertEqual(self.holding(secrets, text.encode(), "what is said"), [])

    @staticmethod
    def holding(secrets, data, where):
        return ["%s: %s" % (name, where) for name, secret in secrets.items() if secret.encode() in data]


if __name__ == "__main__":
    unittest.main()
