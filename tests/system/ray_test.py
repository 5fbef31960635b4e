"""A cluster on real Ray, used as Ray users use it: what it grows and shrinks by, what it survives, and Ray's own clients through a
forwarded port. One lab and one cluster for all tests; each leaves the cluster whole again.
"""
import functools
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
sys.path.insert(0, os.path.join(ROOT, "tests/system"))
import demo  # noqa: E402
import images  # noqa: E402
import lab  # noqa: E402
import registry  # noqa: E402
from cli_verbs import CliVerbs  # noqa: E402

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
MACHINES = (("one", "home"), ("two", "strict"), ("three", "cgnat"), ("four", "home"), ("five", "lan:one"))
CLUSTER = """cluster_name: live
provider: {type: aws, region: eu-central-1}
docker: {image: "muster/ray:2.60.0"}
max_workers: 3
idle_timeout_minutes: 0.15
available_node_types:
  head: {resources: {CPU: 1, memory: 3221225472}}
  worker: {resources: {CPU: 2, memory: 3221225472, blue: 1}, min_workers: 1, max_workers: 3}
head_node_type: head
"""
START = "import ray, time, sys; ray.init(address='auto', log_to_driver=False, logging_level='error', namespace='test')\n"
COUNTER = START + """
@ray.remote(num_cpus=0, resources={'blue': 0.1}, max_restarts=0)
class Counter:
    def __init__(self): self.n = 0
    def add(self):
        import os
        self.n += 1
        return self.n, os.getpid(), ray.util.get_node_ip_address()
try: c = ray.get_actor('counter')
except ValueError: c = Counter.options(name='counter', lifetime='detached').remote()
print('counter', *ray.get(c.add.remote(), timeout=60))
"""


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Ray(CliVerbs, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        subprocess.run([os.path.join(ROOT, "images/ray/build")], check=True, stdout=subprocess.DEVNULL)
        cls.world = world = demo.World(BUILD, name="ray", say=lambda text: None)
        try:
            world.lab.start_docker()
            subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
            world.start_server()
            for name, nat in MACHINES:
                world.add_machine(name, nat)
            world.wait("machines", "all machines online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= len(MACHINES))
            with open(world.dir + "/live.yaml", "w") as f:
                f.write(CLUSTER)
            world.cli("up", world.dir + "/live.yaml", "--yes")
        except Exception:
            world.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.world.close()

    # ---- what the tests share
    def python(self, code, check=True, timeout=150):
        done = self.world.cli("exec", "live", "--", "python3", "-c", code, check=False, timeout=timeout)
        if check:
            self.assertEqual(done.returncode, 0, done.stdout[-1000:] + done.stderr[-2000:])
        return done.stdout

    def slots(self, role=None, phase="ready"):
        return [s for s in self.world.cluster("live").get("slots", []) if role in (None, s["role"]) and phase in (None, s["phase"])]

    def workers(self, count, seconds=120):
        """Exactly so many workers, all ready, and nobody on the way in or out."""
        def whole():
            ready, all_of_them = self.slots("worker"), self.slots("worker", None)
            return ready if len(ready) == len(all_of_them) == count else None
        return self.world.wait("workers", "%d ready workers" % count, seconds, whole, self.world.dir + "/musterd.log")

    def container(self, slot):
        """The name of the container of one member: by its address inside."""
        for name in self.world.lab.sh(["docker", "-H", self.world.lab.docker, "ps", "--format", "{{.Names}}"]).stdout.split():
            if name.endswith("-ray") and slot["address"] in self.world.lab.sh(
                    ["docker", "-H", self.world.lab.docker, "exec", name, "ip", "-o", "addr"], check=False).stdout:  # it may be on its way out
                return name
        self.fail("no container has %s" % slot["address"])

    def docker(self, *words):
        return self.world.lab.sh(["docker", "-H", self.world.lab.docker] + list(words))

    def ways_between_members(self):
        """Members on one network reach each other there, those whose NATs keep a port through both NATs, others by the relay."""
        slots = self.slots()
        nats, on = dict(MACHINES), {s["address"]: s["nodeName"] for s in slots}
        lan = {name: nat[4:] if nat.startswith("lan:") else name for name, nat in nats.items()}

        def expected(a, b):
            if lan[a] == lan[b]:
                return "192.168."
            return "relay" if "strict" in (nats[a], nats[b]) else "203.0.113."

        # Workers that never talked to each other have no way yet.
        knock = "import socket, sys\nfor a in sys.argv[1:]:\n s = socket.socket(); s.settimeout(1); s.connect_ex((a, 9))"
        for slot in slots:
            self.docker("exec", self.container(slot), "python3", "-c", knock, *[a for a in on if a != slot["address"]])

        def right():
            out = []
            for name in on.values():
                told = self.world.lab.sh(self.world.lab.enter(name) + [self.world.binary("muster-agent"), "status", "--json", "--state-dir", "%s/%s" % (self.world.dir, name)], check=False)
                leases = [each for each in json.loads(told.stdout or "{}").get("leases", []) if each["cluster"] == "live" and each["phase"] == "ready"]
                paths = {m["address"]: m["path"] for each in leases for m in each["network"]["members"]}
                for address, other in on.items():
                    if other != name and not paths.get(address, "none").startswith(expected(name, other)):
                        out.append("%s to %s: %s, not %s" % (name, other, paths.get(address), expected(name, other)))
            self.seen = out
            return not out
        try:
            self.world.wait("ways", "the best way between all members", 40, right, self.world.dir + "/musterd.log")
        except demo.DemoError:
            self.fail("; ".join(self.seen))
        print("# ways as they must be: " + ", ".join(sorted("%s (%s)" % (name, nats[name]) for name in on.values())), flush=True)

    def counter(self):
        told = re.search(r"counter (\d+) (\d+) (\S+)", self.python(COUNTER))
        return int(told[1]), int(told[2]), told[3]

    def head_back(self, began):
        """Ray's own word that the head is there, after a fault of it."""
        self.world.wait("head", "the head ready again", 120, lambda: (lambda c: c.get("state") == "running" and not c.get("reason") and any(
            s["role"] == "head" and s["phase"] == "ready" for s in c["slots"]))(self.world.cluster("live")), self.world.dir + "/musterd.log")
        return time.time() - began

    def head_fault(self, what, break_it):
        before = self.counter()
        restarts = self.world.cluster("live")
        began = time.time()
        break_it(self.container(self.slots("head")[0]))
        self.world.wait(what, "the fault being seen", 30, lambda: self.world.cluster("live").get("reason") == "head_restarting" or not self.slots("head"))
        took = self.head_back(began)
        after = self.counter()
        self.assertEqual(after, (before[0] + 1, before[1], before[2]), "the actor on the worker lost its memory over: " + what)
        self.assertEqual([s["address"] for s in restarts["slots"]], [s["address"] for s in self.slots()], "members changed over: " + what)
        print("# %s: head ready again after %.1f s" % (what, took), flush=True)

    # ---- faults of the head
    def test_10_gcs_killed(self):
        self.head_fault("gcs_server killed", lambda c: self.docker("exec", c, "pkill", "-9", "gcs_server"))

    def test_11_raylet_killed(self):
        self.head_fault("the head's raylet killed", lambda c: self.docker("exec", c, "pkill", "-9", "raylet"))

    def test_12_container_killed(self):
        """With two jobs on it: the one that may be retried runs again, the other one ends as lost with its driver."""
        jobs = {}
        for name, retries in (("retried", "2"), ("lost", "0")):
            code = "import time, os; print('begin', flush=True); time.sleep(8 if os.path.exists('/tmp/ray/second-%s') else 600)" % name
            jobs[name] = self.world.json("job", "submit", "--cluster", "live", "--name", name, "--retries", retries, "--no-wait", "--", "python3", "-c", code)["id"]
        for job in jobs.values():
            self.world.wait("job", "the job running", 60, lambda: self.world.json("job", "status", job)["state"] == "running")
        self.python("open('/tmp/ray/second-retried', 'w')")
        self.head_fault("the head's container killed", lambda c: self.docker("kill", c))
        lost = self.world.json("job", "status", jobs["lost"])
        self.assertEqual((lost["state"], lost["reason"]), ("failed", "driver_lost"), lost)
        end = self.world.wait("job", "the retried job's end", 90, lambda: (lambda j: j if j["state"] in ("succeeded", "failed") else None)(
            self.world.json("job", "status", jobs["retried"])))
        self.assertEqual((end["state"], end["exitCode"], end["attempt"]), ("succeeded", 0, 2), end)
        log = self.world.cli("job", "logs", jobs["retried"]).stdout
        self.assertIn("begin", log)

    def test_13_worker_container_killed(self):
        victim = self.slots("worker")[0]
        self.docker("kill", self.container(victim))
        self.world.wait("worker", "the loss being seen", 30, lambda: not self.slots("worker"))
        self.workers(1)
        out = self.python(START + "print('blue on', ray.get(ray.remote(ray.util.get_node_ip_address).options(resources={'blue': 1}).remote(), timeout=90))")
        self.assertIn("blue on 10.201.", out)
        self.workers(1)

    # ---- growing and shrinking
    def test_20_status_agrees(self):
        """What muster says of the members is what Ray says."""
        self.workers(1)
        self.world.wait("status", "no difference", 60, lambda: (lambda c: c.get("rayNodes") and not c.get("differences"))(self.world.cluster("live")))
        cluster = self.world.cluster("live")
        ray = json.loads(self.python(START + "import json; print(json.dumps({n['NodeManagerAddress']: n['Resources'] for n in ray.nodes() if n['Alive']}))").strip().splitlines()[-1])
        self.assertEqual(sorted(ray), sorted(s["address"] for s in cluster["slots"]))
        told = {n["address"]: n["total"] for n in cluster["rayNodes"] if n["alive"]}
        for address, resources in ray.items():
            self.assertEqual((told[address]["cpus"], int(told[address]["memoryBytes"])), (resources["CPU"], int(resources["memory"])), address)

    def test_24_a_difference_is_shown(self):
        """Ray gives up a worker whose raylet hangs, the machine still says ready: status says so, and it heals by itself."""
        worker = self.slots("worker")[0]
        container = self.container(worker)
        self.docker("exec", container, "pkill", "-STOP", "raylet")
        told = self.world.wait("status", "the difference", 90, lambda: self.world.cluster("live").get("differences"))
        self.assertIn("%s (%s, %s): the machine reports ready, Ray does not list it as alive" % (worker["id"], worker["address"], worker["nodeName"]), told)
        self.assertIn("difference: " + worker["id"], self.world.cli("status", "live").stdout)
        self.docker("exec", container, "pkill", "-CONT", "raylet")
        self.world.wait("worker", "Ray listing it again", 120, lambda: (lambda c: not c.get("differences") and not c.get("reason") and len(
            [s for s in c["slots"] if s["role"] == "worker" and s["phase"] == "ready" and s.get("rayAlive")]) == 1)(self.world.cluster("live")))

    def test_21_tasks_raise_workers_and_idle_ones_leave(self):
        out = self.python(START + """
@ray.remote(num_cpus=0)
class Met:  # counts who is there at the same time
    def __init__(self): self.where = set()
    def arrive(self, address): self.where.add(address)
    def count(self): return len(self.where)
met = Met.remote()
@ray.remote(num_cpus=2, resources={'blue': 0.6})  # a task that waits gives its CPUs back meanwhile, not what is its own kind
def meet():
    ray.get(met.arrive.remote(ray.util.get_node_ip_address()))
    while ray.get(met.count.remote()) < 3: time.sleep(0.2)
    return ray.util.get_node_ip_address()
print('on', *sorted(set(ray.get([meet.remote() for _ in range(3)], timeout=150))))
""", timeout=200)
        self.assertEqual(len(re.search(r"on (.*)", out)[1].split()), 3, out)
        began = time.time()
        self.workers(1, seconds=120)
        print("# two idle workers left within %.1f s" % (time.time() - began), flush=True)
        events = [json.loads(line) for line in self.world.cli("-o", "json", "events").stdout.splitlines()]
        self.assertTrue(any("idle" in e["text"] for e in events), [e["text"] for e in events][-20:])

    def test_22_strict_spread(self):
        out = self.python(START + """
from ray.util.placement_group import placement_group
g = placement_group([{'blue': 1}] * 2, strategy='STRICT_SPREAD')
print('placed', ray.get(g.ready(), timeout=120) is not None)
""", timeout=200)
        self.assertIn("placed True", out)
        self.workers(1, seconds=120)

    def test_23_request_resources_is_bounded_by_max_and_quota(self):
        world = self.world
        world.cli("quota", "set", "--cpus", "5")  # the head and two workers
        self.python(START + "from ray.autoscaler.sdk import request_resources; request_resources(bundles=[{'CPU': 2}] * 8)")
        why = world.wait("quota", "the quota named as what is waited for", 60, lambda: (
            lambda queue: queue if queue.get("reasonCode") == "quota" else None)(world.cluster("live").get("queue") or {}), world.dir + "/musterd.log")
        self.assertEqual((why["reasonParams"]["held"], why["reasonParams"]["limit"]), ("5", "5"))
        self.workers(2)
        self.assertIn("5 of the 5 that its quota allows", world.cli("status", "live").stdout)
        self.assertIn("5 of 5", world.cli("quota").stdout)
        world.cli("quota", "set", "--cpus", "0")
        self.workers(3)
        until = time.time() + 15  # longer than the idle timeout: what was requested stays
        self.ways_between_members()
        time.sleep(max(0.0, until - time.time()))
        self.assertEqual(len(self.slots("worker")), 3)
        self.python(START + "from ray.autoscaler.sdk import request_resources; request_resources(bundles=[])")
        self.workers(1)

    # ---- images
    def test_60_an_image_of_the_stock_shape(self):
        """Like rayproject/ray: user 1000 in group 100, everything under /home/ray/anaconda3, nothing of Python elsewhere."""
        image = "rayproject/ray:2.60.0-py311-cpu"
        move = ("cp -a /opt/ray /home/ray/anaconda3 && rm -rf /opt/ray && cd /home/ray/anaconda3/bin && sed -i 's,/opt/ray,/home/ray/anaconda3,g' "
                "$(grep -lI /opt/ray *) ../pyvenv.cfg && sed -i 's,^ray:x:1000:1000,ray:x:1000:100,' /etc/passwd && chown -R 1000:100 /home/ray && "
                "mv /usr/bin/python3 /usr/bin/py && rm python python3 python3.11 && cp $(readlink -f /usr/bin/py) python3.11 && ln -s python3.11 python3 && ln -s python3.11 python && rm -f /usr/bin/py /usr/bin/python3.11")
        self.docker("run", "--name", "stock-shape", "--network", "none", "-u", "0", "muster/ray:2.60.0", "sh", "-ec", move)
        self.docker("commit", "--change", "USER 1000", "--change", "ENV PATH=/home/ray/anaconda3/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "--change", "ENV HOME=/home/ray", "--change", "WORKDIR /home/ray", "stock-shape", image)
        self.docker("rm", "stock-shape")
        file = self.world.dir + "/stock.yaml"
        with open(file, "w") as f:
            f.write("cluster_name: stock\nprovider: {type: aws}\ndocker: {image: %s}\nmax_workers: 0\nsetup_commands: ['pip --version > /tmp/pip', 'whoami >> /tmp/pip']\n"
                    "available_node_types:\n  h: {resources: {CPU: 1, memory: 3221225472}}\nhead_node_type: h\n" % image)
        self.world.cli("up", file, "--yes")
        try:
            self.assertIn("/home/ray/anaconda3/lib", self.world.cli("exec", "stock", "cat /tmp/pip; ray --version").stdout)
            done = self.world.cli("job", "submit", "--cluster", "stock", "--", "python", "-c", "import ray, sys; ray.init(); print(sys.executable, ray.get(ray.remote(lambda: 5).remote()))")
            self.assertIn("/home/ray/anaconda3/bin/python 5", done.stdout)
        finally:
            self.world.cli("down", "stock", "--yes")

    @unittest.skipIf(registry.Registry.missing(), registry.Registry.missing())
    def test_61_a_private_image(self):
        """Refused with what to do; after `muster registry login` pulled and pinned; the password stays out of journal, logs and machines."""
        store = registry.Registry(self.world.dir + "-registry")
        self.addCleanup(store.close)
        store.start()
        image, _ = store.put("team/ray:1", {"etc/private": b"yes"}, base=images.ray_root()[0], config={
            "User": "ray", "WorkingDir": "/home/ray", "Cmd": ["python3"], "Env": ["PATH=/opt/ray/bin:/usr/local/bin:/usr/bin:/bin", "PYTHONUNBUFFERED=1"]})
        file, secret = self.world.dir + "/private.yaml", self.world.dir + "-registry/password"
        with open(file, "w") as f:
            f.write("cluster_name: private\nprovider: {type: aws}\ndocker: {image: \"%s\"}\nmax_workers: 0\n"
                    "available_node_types:\n  h: {resources: {CPU: 1, memory: 3221225472}}\nhead_node_type: h\n" % image)

        def login(password):
            with open(secret, "w") as f:
                f.write(password + "\n")
            os.chmod(secret, 0o600)
            return self.world.cli("registry", "login", store.host, "--username", store.user, "--password-file", secret, "--lifetime", "1h").stdout

        refused = self.world.cli("up", file, "--yes", check=False)
        self.assertEqual(refused.returncode, 1, refused.stdout + refused.stderr)
        self.assertIn("image_pull.denied", refused.stderr)
        self.assertIn("muster registry login", refused.stderr)
        login("wrong-" + store.password)
        self.assertIn("image_pull.denied", self.world.cli("up", file, "--yes", check=False).stderr)
        self.assertIn("as puller until", login(store.password))
        self.assertIn(store.host, self.world.cli("registry", "list").stdout)
        # A policy wants it signed: nothing of it runs before it is. Machines look for the signature themselves.
        for name, _ in MACHINES:
            self.addCleanup(lab.Doorway(self.world.lab.full(name), store.port).close)
        key = self.world.dir + "-registry/signer"
        subprocess.run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key + ".pem"], check=True, capture_output=True)
        subprocess.run(["openssl", "pkey", "-in", key + ".pem", "-pubout", "-out", key + ".pub"], check=True)
        self.world.cli("images", "policy", "set", "--key", key + ".pub", "--allow", store.host + "/team/*")
        self.addCleanup(self.world.cli, "images", "policy", "set", "--key", "none", "--allow", "all")
        unsigned = self.world.cli("up", file, "--yes", check=False)
        self.assertEqual(unsigned.returncode, 1, unsigned.stdout + unsigned.stderr)
        self.assertIn("image_signature.missing", unsigned.stderr)
        store.sign("team/ray:1", key + ".pem")
        self.world.cli("up", file, "--yes")
        try:
            self.assertRegex(self.world.cluster("private")["imageDigest"], "^%s/team/ray@sha256:[0-9a-f]{64}$" % re.escape(store.host))
            self.assertEqual(self.world.cli("exec", "private", "cat /etc/private").stdout, "yes")
            # What runs there, by a database that knows something of it.
            osv = self.world.dir + "-registry/osv"
            os.makedirs(osv)
            for name, ecosystem in (("ray", "PyPI"), ("no-such-source", "Debian")):
                with open("%s/%s.json" % (osv, name), "w") as f:
                    json.dump({"id": "CVE-2030-" + name, "modified": time.strftime("%Y-%m-%dT00:00:00Z"), "database_specific": {"severity": "HIGH"},
                               "affected": [{"package": {"ecosystem": ecosystem, "name": name}, "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]}]}, f)
            scanned = self.world.cli("images", "scan", "--cluster", "private", "--database", osv, check=False)
            self.assertEqual(scanned.returncode, 1, scanned.stdout + scanned.stderr)
            self.assertRegex(scanned.stdout, "CVE-2030-ray +high +ray +2[.]")
            self.assertIn("block: 1 finding is high or worse", scanned.stdout)
            # The same by the platform, which machines told what is in it: told while it runs that a new database condemns it.
            self.assertIn("No verdicts", self.world.cli("images", "verdicts").stdout)
            advisories = self.world.data + "/advisories"
            shutil.copytree(osv, advisories)
            self.addCleanup(shutil.rmtree, advisories)
            self.world.musterd.popen.send_signal(signal.SIGHUP)
            ask = functools.partial(self.world.cli, "images", "verdicts", "--cluster", "private", "--findings", check=False)
            self.world.wait("verdicts", "the platform's verdict", 30, lambda: "block" in ask().stdout, self.world.musterd.log)
            seen = ask()
            self.assertEqual(seen.returncode, 1, seen.stdout + seen.stderr)
            self.assertRegex(seen.stdout, "CVE-2030-ray +high +ray +2[.]")
            self.assertRegex(seen.stdout, r"block +%s/team/ray@sha256:[0-9a-f]+ +Debian:12 +[0-9]{3} " % re.escape(store.host))
            self.assertIn("the image is condemned: 1 finding is high or worse, such as CVE-2030-ray in ray", self.world.cli("status", "private").stdout)
        finally:
            self.world.cli("down", "private", "--yes")
        self.assertIn("forgotten", self.world.cli("registry", "logout", store.host).stdout)
        self.assertNotIn(store.host, self.world.cli("registry", "list").stdout)
        for folder, _, names in os.walk(self.world.dir):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path) and not os.path.islink(path) and "/docker/" not in path:
                    with open(path, "rb") as f:
                        self.assertNotIn(store.password.encode(), f.read(), path)


if __name__ == "__main__":
    unittest.main()
