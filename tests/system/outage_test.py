"""Ten minutes without a control plane, in real time: musterd is killed under a relayed Ray cluster that works, and nothing in the
cluster may notice. It takes its ten minutes beside the other system tests (BESIDE), on a lab of its own.
"""
import os
import re
import subprocess
import sys
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402

BESIDE = "outage"
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
OUTAGE_S = int(os.environ.get("MUSTER_OUTAGE_SECONDS", "600"))
CLUSTER = """cluster_name: away
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}
docker: {image: "muster/ray:2.60.0", container_name: ray_container}
"""
# One task on the worker every three seconds; each line carries its number, the time and where it ran.
TICKS = """
import os, time, ray
ray.init(log_to_driver=False)
me = ray.util.get_node_ip_address()
other = next(n for n in ray.nodes() if n['Alive'] and n['NodeManagerAddress'] != me)
pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(other['NodeID'], soft=False)
where = ray.remote(ray.util.get_node_ip_address).options(scheduling_strategy=pin)
n = 0
while not os.path.exists('/tmp/enough'):
    print('tick %d at %d on %s' % (n, time.time(), ray.get(where.remote(), timeout=60)), flush=True)
    n += 1
    time.sleep(3)
print('ended after %d' % n, flush=True)
"""


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Outage(unittest.TestCase):
    def setUp(self):
        subprocess.run([os.path.join(ROOT, "images/ray/build")], check=True, stdout=subprocess.DEVNULL)
        self.world = world = demo.World(BUILD, name="outage", say=lambda text: None)
        self.addCleanup(world.close)
        world.lab.start_docker()
        subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
        world.start_server()
        for name, nat in (("north", "home"), ("south", "strict")):  # no common network: every packet goes through the relay
            world.add_machine(name, nat)
        world.wait("machines", "both machines online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) == 2)
        for name, text in (("away.yaml", CLUSTER), ("ticks.py", TICKS)):
            with open(os.path.join(world.dir, name), "w") as f:
                f.write(text)
        world.cli("up", world.dir + "/away.yaml", "--yes")

    def containers(self):
        return sorted(self.world.lab.sh(["docker", "-H", self.world.lab.docker, "ps", "-q"]).stdout.split())

    def relayed(self):
        """The members' connections that the relay itself holds, as (address, port) of their far ends."""
        listed = self.world.lab.run("server", ["ss", "-Htnp", "state", "established"]).stdout
        return {re.split(r"\s+", line.strip())[3] for line in listed.split("\n") if "pid=%d," % self.world.relay.popen.pid in line}

    def lines(self):
        return demo.job_lines(self.world.dir + "/job.log")

    def test_ten_minutes_without_musterd(self):
        world = self.world
        work = os.path.join(world.dir, "work")
        os.makedirs(work)
        os.rename(world.dir + "/ticks.py", work + "/ticks.py")
        job = world.json("job", "submit", "--cluster", "away", "--working-dir", work, "--no-wait", "--", "python3", "ticks.py")["id"]
        follow = world.lab.spawn("user", [world.binary("muster"), "job", "logs", "-f", job], world.dir + "/job.log", env=world.account("alice"))
        world.wait("job", "the first ticks", 120, lambda: sum(line.startswith("tick ") for line in self.lines()) >= 3, world.dir + "/job.log")
        containers, relayed = self.containers(), self.relayed()
        self.assertGreaterEqual(len(relayed), 2, "the members do not talk through the relay")
        world.musterd.kill()
        killed_at = time.time()
        while time.time() < killed_at + OUTAGE_S:
            time.sleep(5)
            self.assertEqual(self.containers(), containers, "a container ended %d s into the outage" % (time.time() - killed_at))
        world.start_musterd()
        back_at = time.time()
        world.wait("restart", "the control plane serving again", 60, lambda: world.cli("status", "away", check=False).returncode == 0)
        world.wait("restart", "the machines online again", 120, lambda: sum(n["state"] == "online" for n in world.nodes().values()) == 2)
        self.assertTrue(relayed <= self.relayed(), "relayed connections were cut: %s became %s" % (relayed, self.relayed()))
        self.assertEqual(self.containers(), containers, "a container was restarted")
        # A machine stays online in the books over a restart; its agent dials again within a minute (the cap of its back-off).
        world.wait("exec", "the head's agent back", 150,
                   lambda: world.cli("exec", "away", "--", "touch", "/tmp/enough", check=False).returncode == 0)
        world.wait("job", "its end", 60, lambda: not follow.alive())
        ticks = [re.match(r"tick (\d+) at (\d+) on 10\.201\.0\.\d+$", line) for line in self.lines() if line.startswith("tick ")]
        self.assertTrue(all(ticks), [line for line in self.lines() if line.startswith("tick ")][:5])
        self.assertEqual([int(t[1]) for t in ticks], list(range(len(ticks))), "the log stream lost or repeated lines")
        self.assertIn("ended after %d" % len(ticks), self.lines())
        times = [int(t[2]) for t in ticks]
        during = [t for t in times if killed_at < t < back_at]
        self.assertGreater(len(during), OUTAGE_S / 12, "the job stood still while musterd was away")
        self.assertLess(max(b - a for a, b in zip(times, times[1:])), 45, "the job paused")
        self.assertEqual(world.json("job", "status", job)["state"], "succeeded")


if __name__ == "__main__":
    unittest.main()
