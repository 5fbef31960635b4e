"""What becomes of ways between members of a real Ray cluster: one that a third member carries, whose bytes both ends sign and the journal keeps, and
one that stays too slow, whose worker gets its place on another machine. hub has a public address; alpha and beta cannot reach each other directly.
"""
import os
import subprocess
import sys
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
BY_HAND = True  # make lab-ways: some minutes of a Ray cluster of four
CLUSTER = """cluster_name: three
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
docker: {image: "muster/ray:2.60.0", container_name: ray_container}
"""
TALK = """
import socket, time
end = time.time() + 300
while time.time() < end:
    s = socket.socket(); s.settimeout(1); s.connect_ex(('%s', 9)); s.close(); time.sleep(0.02)
"""
# A job that moves objects from one member to the head for as long as that member lives, then counts them on whoever there is, and ends right.
PUSH = """
import ray, sys, time
ray.init(address='auto', log_to_driver=False, logging_level='error')
pin = lambda n: ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(n, soft=False)
alive = lambda: {n['NodeManagerAddress']: n['NodeID'] for n in ray.nodes() if n['Alive']}
@ray.remote(num_cpus=0)
class There:
    def large(self): return bytes(1000000)
moved, end = 0, time.time() + 240
pushers = [There.options(scheduling_strategy=pin(alive()[sys.argv[1]])).remote() for _ in range(2)]
print('pushing', flush=True)
while time.time() < end:
    try:
        moved += sum(len(each) for each in ray.get([p.large.remote() for p in pushers], timeout=120))
    except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError, ray.exceptions.ObjectLostError):
        break
print('moved %d' % moved, flush=True)
end = time.time() + 90
while time.time() < end and (sys.argv[1] in alive() or len(alive()) < 3):
    time.sleep(1)
@ray.remote(num_cpus=0)
def where(n): return n * n, ray.util.get_node_ip_address()
got = ray.get([where.options(scheduling_strategy=pin(n)).remote(k) for k, n in enumerate(sorted(alive().values()) * 5)], timeout=90)
print('RESULT', 'right' if [g[0] for g in got] == [k * k for k in range(len(got))] else 'wrong', 'on', len({g[1] for g in got}), flush=True)
"""


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Ways(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        subprocess.run([os.path.join(ROOT, "images/ray/build")], check=True, stdout=subprocess.DEVNULL)
        cls.world = world = demo.World(BUILD, name="ways", say=lambda text: None)
        world.musterd_args = ["--carried-seconds", "5"]
        try:
            world.lab.start_docker()
            subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
            world.start_server()
            for name, nat in (("hub", "open"), ("alpha", "home"), ("beta", "strict")):
                world.add_machine(name, nat)
            world.wait("machines", "all machines online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= 3)
            cls.up()
        except Exception:
            world.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.world.close()

    @classmethod
    def up(cls, more=""):
        path = cls.world.dir + "/three.yaml"
        with open(path, "w") as f:
            f.write(CLUSTER + more)
        cls.world.cli("up", path, "--yes")
        return cls.world.wait("members", "three ready members that Ray knows", 120, cls.whole, cls.world.dir + "/musterd.log")

    @classmethod
    def whole(cls):
        slots = cls.world.cluster("three").get("slots", [])
        good = len(slots) == 3 and all(s["phase"] == "ready" and s.get("rayNodeId") for s in slots)
        return {s["nodeName"]: s for s in slots} if good else None

    def container_at(self, address):
        engine = ["docker", "-H", self.world.lab.docker]
        for name in self.world.lab.sh(engine + ["ps", "--format", "{{.Names}}"]).stdout.split():
            if name.endswith("-ray") and address + "/" in self.world.lab.sh(engine + ["exec", name, "ip", "-o", "addr"], check=False).stdout:
                return name
        self.fail("no container has %s" % address)

    def limits(self, name, *words):
        self.world.lab.run(name, [self.world.binary("muster-agent"), "limits", "set", "--state-dir", "%s/%s" % (self.world.dir, name)] + list(words))

    def test_1_what_a_member_carries_is_in_the_books_of_both_owners(self):
        lab = self.world.lab
        slots = self.whole()
        self.assertEqual(set(slots), {"hub", "alpha", "beta"})
        ends = {slots["alpha"]["id"], slots["beta"]["id"]}
        self.assertEqual(self.world.json("net", "carried")["items"], [])
        self.limits("hub", "carry", "on", "carry-rate", "unlimited", "carry-month", "unlimited")
        talker = lab.spawn(None, ["docker", "-H", lab.docker, "exec", self.container_at(slots["alpha"]["address"]), "python3", "-c", TALK % slots["beta"]["address"]],
                           self.world.dir + "/talk.log")
        began = time.time()
        try:
            def carried_by():
                return {p.get("by") for p in self.world.json("net", "three")["pairs"] if {p["from"], p["to"]} == ends and p["path"] == "peer"}
            try:
                self.world.wait("carry", "the third member carrying", 90, lambda: carried_by() == {slots["hub"]["id"]})
            except demo.DemoError:
                self.fail("\n".join(self.world.cli("net", "explain", "three", *pair, who="admin").stdout for pair in (("alpha", "beta"), ("hub", "alpha"), ("hub", "beta"))))
            after = time.time() - began
            rows = self.world.wait("books", "what was carried in the journal", 60, lambda: self.world.json("net", "carried")["items"])
            self.assertEqual([(r["nodeName"], r["clusterName"]) for r in rows], [("hub", "three")])
            first = int(rows[0]["bytes"])
            self.world.wait("books", "more of it", 60, lambda: int(self.world.json("net", "carried")["items"][0]["bytes"]) > first + 5000)
        finally:
            talker.kill()
            lab.sh(["docker", "-H", lab.docker, "exec", self.container_at(slots["alpha"]["address"]), "pkill", "-f", "connect_ex"], check=False)
        self.limits("hub", "carry", "off")

        def counts():
            """(in the books, as both ends signed, as the carrier says), once nothing is carried any more."""
            hub = next(m for m in self.world.json("net", "three")["members"] if m["slot"] == slots["hub"]["id"])
            told = hub.get("forwarded", [])
            both = sum(min(int(f.get("signedFrom", 0)), int(f.get("signedTo", 0))) for f in told)
            return int(self.world.json("net", "carried")["items"][0]["bytes"]), both, sum(int(f["bytes"]) for f in told)
        self.world.wait("books", "all of it", 60, lambda: (lambda c: c[0] >= c[1] > 0 and c[1] > 0.8 * c[2])(counts()))
        kept, both, own = counts()
        print("     carried after %.0f s; kept %d, both ends %d, the carrier %d" % (after, kept, both, own), flush=True)
        self.assertAlmostEqual(kept, both, delta=0.1 * both)
        self.assertAlmostEqual(kept, own, delta=0.2 * own)
        # The owner of the machine sees it too, the cluster's owner by the cluster; whoever is neither sees nothing.
        self.assertEqual([(r["nodeName"], int(r["bytes"])) for r in self.world.json("net", "carried", "--node", "hub", who="admin")["items"]], [("hub", kept)])
        self.assertIn("carried", self.world.cli("events", who="admin").stdout)

    def test_2_a_worker_with_a_slow_way_gets_its_place_elsewhere(self):
        """The way of the worker's machine carries a tenth of what the cluster asks for: that is reported once it is sure, and another machine
        takes the place. The head stays where it is, the job goes on and ends right."""
        world = self.world
        before = self.whole()
        head = next(s for s in before.values() if s["role"] == "head")
        machine, worker = next((name, s) for name, s in sorted(before.items()) if s["role"] == "worker" and name != "hub")
        world.add_machine("delta", "home")
        world.wait("machines", "the fourth machine online", 60, lambda: world.nodes().get("delta", {}).get("state") == "online")
        self.up("muster: {pair_mbps: 50, replace_slow: true}\n")
        world.lab.run(machine, ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "5mbit", "burst", "16kb", "latency", "500ms"])
        log = world.dir + "/push.log"
        busy = world.lab.spawn("user", [world.binary("muster"), "exec", "three", "--", "python3", "-c", PUSH, worker["address"]], log, env=world.account("alice"))
        try:
            world.wait("push", "objects on their way", 60, lambda: "pushing" in busy.tail(), log)
            began = time.time()
            world.wait("slow", "the slow way in the status", 180, lambda: any(
                p["from"] == worker["id"] and 1000 < int(p["kbps"]) < 50000 for p in world.cluster("three").get("slowPairs", [])), log)
            seen = time.time() - began
            self.assertGreater(seen, 40, "a minute of measurements")

            def replaced():
                slots = self.whole()
                return slots if slots and machine not in slots else None
            after = world.wait("slow", "another machine in its place", 120, replaced, world.dir + "/musterd.log")
            print("     reported after %.0f s, replaced after %.0f s" % (seen, time.time() - began), flush=True)
            world.wait("job", "its end", 200, lambda: not busy.alive(), log)
            self.assertIn("RESULT right on 3", busy.tail(), busy.tail())
        finally:
            busy.kill()
            world.lab.run(machine, ["tc", "qdisc", "del", "dev", "eth0", "root"], check=False)
        self.assertEqual(set(after), set(before) - {machine} | {"delta"})
        kept = next(s for s in after.values() if s["role"] == "head")
        self.assertEqual((kept["id"], kept["leaseId"], kept["nodeName"]), (head["id"], head["leaseId"], head["nodeName"]))
        self.assertNotIn(worker["id"], [s["id"] for s in after.values()], "a slot of its own")
        cluster = world.cluster("three")
        self.assertEqual((int(cluster.get("replaced", 0)), cluster.get("slowPairs", [])), (1, []))
        told = world.cli("events", who="admin").stdout
        for what in ("cluster.pair_judged", "cluster.replacement_sought"):
            self.assertIn(what, told)


if __name__ == "__main__":
    unittest.main()
