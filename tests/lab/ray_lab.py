#!/usr/bin/env python3
"""A Ray cluster across five kinds of connection that works while its ways change under it.

    sudo python3 tests/lab/ray_lab.py [--build build/release] [--seconds 160]

A control plane, a relay and five machines, each behind another kind of router (home, strict, cgnat, narrow, noudp: lab.py), one member of the
cluster on each. A durable job shuffles between all members and sums vectors around a ring (an all-reduce), round after round; every round is
checked. Every 20 s something happens to a network. At the end the job must have succeeded with its first attempt, every sum and every
shuffle right, and the members must be those of the beginning. The last line is "RAY LAB OK: ..." or "RAY LAB FAILED: ...".
"""
import argparse
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, HERE)
import demo  # noqa: E402
from lab import LabError  # noqa: E402

KINDS = ("home", "strict", "cgnat", "narrow", "noudp")
EVERY_S = 20
# Each member takes a whole machine.
CLUSTER = """cluster_name: five
provider: {type: aws, region: eu-central-1}
docker: {image: "muster/ray:2.60.0"}
max_workers: 4
available_node_types:
  head: {resources: {CPU: %(cpus)d, memory: 1610612736}}
  worker: {resources: {CPU: %(cpus)d, memory: 1610612736}, min_workers: 4, max_workers: 4}
head_node_type: head
"""
JOB = """
import array, random, sys, time, ray
ray.init(log_to_driver=False, logging_level='error')
NUMBERS, VECTOR = 100_000, 100_000  # pieces large enough to go from member to member, not by the driver
@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class Member:
    def __init__(self, rank, size):
        self.rank, self.size = rank, size
    def place(self):
        return ray.util.get_node_ip_address()
    # A shuffle: everybody's numbers are cut into a part for each, and each gathers and sorts its own.
    def cut(self, round):
        rng = random.Random(round * 1000 + self.rank)
        parts = [array.array('q') for _ in range(self.size)]
        for _ in range(NUMBERS):
            number = rng.getrandbits(40)
            parts[number * self.size >> 40].append(number)
        return [part.tobytes() for part in parts]
    def gather(self, *parts):
        numbers = array.array('q')
        for part in parts:
            numbers.frombytes(part)
        ordered = sorted(numbers)
        return len(ordered), sum(ordered), ordered[0], ordered[-1]
    # An all-reduce around a ring: each passes on a piece and adds what it gets, until all have the sum.
    def begin(self, round):
        self.vector = array.array('q', [(round * 31 + self.rank * 7 + i) % 1_000_003 for i in range(VECTOR)])
    def piece(self, k):
        step = -(-VECTOR // self.size)
        return slice(k % self.size * step, min((k % self.size + 1) * step, VECTOR))
    def give(self, k):
        return self.vector[self.piece(k)].tobytes()
    def add(self, k, data):
        at, other = self.piece(k), array.array('q')
        other.frombytes(data)
        self.vector[at] = array.array('q', map(int.__add__, self.vector[at], other))
    def put(self, k, data):
        other = array.array('q')
        other.frombytes(data)
        self.vector[self.piece(k)] = other
    def total(self):
        return sum(self.vector), self.vector[0], self.vector[-1]
pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
nodes = sorted(n['NodeID'] for n in ray.nodes() if n['Alive'])
size = len(nodes)
members = [Member.options(scheduling_strategy=pin(node, soft=False)).remote(rank, size) for rank, node in enumerate(nodes)]
print('on', len(set(ray.get([m.place.remote() for m in members], timeout=120))), 'machines', flush=True)
end, round, slowest = time.time() + float(sys.argv[1]), 0, 0.0
while time.time() < end:
    began = time.time()
    parts = [m.cut.options(num_returns=size).remote(round) for m in members]
    sums = ray.get([m.gather.remote(*[parts[k][rank] for k in range(size)]) for rank, m in enumerate(members)], timeout=90)
    numbers = [random.Random(round * 1000 + rank) for rank in range(size)]
    numbers = [rng.getrandbits(40) for rng in numbers for _ in range(NUMBERS)]
    assert sum(s[0] for s in sums) == len(numbers) and sum(s[1] for s in sums) == sum(numbers), 'the shuffle lost numbers'
    assert all(a[3] <= b[2] for a, b in zip(sums, sums[1:])), 'the shuffle is not in order'
    ray.get([m.begin.remote(round) for m in members], timeout=90)
    for what in ('add', 'put'):
        for k in range(size - 1):
            shift = 0 if what == 'add' else 1
            given = [m.give.remote(rank - k + shift) for rank, m in enumerate(members)]
            ray.get([getattr(members[(rank + 1) % size], what).remote(rank - k + shift, data) for rank, data in enumerate(given)], timeout=90)
    want = [sum((round * 31 + rank * 7 + i) % 1_000_003 for rank in range(size)) for i in range(VECTOR)]
    totals = ray.get([m.total.remote() for m in members], timeout=90)
    assert totals == [(sum(want), want[0], want[-1])] * size, 'the all-reduce is wrong'
    slowest = max(slowest, time.time() - began)
    round += 1
    print('round %d took %.1f s' % (round, time.time() - began), flush=True)
print('RESULT right rounds %d slowest %.1f' % (round, slowest), flush=True)
"""


class Changes:
    """What happens to the networks, one after another, for ever."""

    def __init__(self, world):
        self.world, self.lab, self.count = world, world.lab, 0
        self.router = {name: self.lab.gateways[name][0] for name in KINDS}
        self.wan = "203.0.113.%d" % (100 + self.lab.gateways["strict"][1])
        self.turn = [self.block, self.unblock, self.forget, self.renumber, self.pull, self.relay, self.shrink]

    def next(self):
        what = self.turn[self.count % len(self.turn)]
        self.count += 1
        what()
        return what.__doc__

    def nft(self, router, text):
        self.lab.sh(self.lab.enter(router) + ["nft", "-f", "-"], input=text)

    def block(self):
        """UDP of the home is dropped: its direct ways die"""
        self.nft(self.router["home"], "table ip block {\n  chain through { type filter hook forward priority -10; meta l4proto udp drop; }\n}\n")

    def unblock(self):
        """UDP of the home passes again"""
        self.lab.run(self.router["home"], ["nft", "delete", "table", "ip", "block"])

    def forget(self):
        """the carrier of cgnat restarts and forgets every mapping"""
        carrier = "c" + self.router["cgnat"][1:]
        self.lab.ip(carrier, "link set wan down")
        self.lab.ip(carrier, "link set wan up")

    def renumber(self):
        """the router of strict gets another address"""
        old, self.wan = self.wan, "203.0.113.%d" % (150 + self.count)
        self.lab.ip(self.router["strict"], "addr del %s/24 dev wan" % old)
        self.lab.ip(self.router["strict"], "addr add %s/24 dev wan" % self.wan)

    def pull(self):
        """the cable of narrow is out for four seconds"""
        self.lab.pull_cable("narrow")
        time.sleep(4)
        self.lab.plug_in("narrow")

    def relay(self):
        """muster-relay is killed and comes back after two seconds"""
        self.world.relay.kill()
        time.sleep(2)
        os.unlink(self.world.dir + "/handoff.sock")
        self.world.start_relay()

    def shrink(self):
        """the way of the home carries 1,280 bytes from now on"""
        self.lab.ip(self.router["home"], "link set wan mtu 1280")
        self.lab.run(self.router["home"], ["nft", "delete", "table", "ip", "mute"], check=False)
        self.nft(self.router["home"], "table ip mute {\n  chain out { type filter hook output priority 0; ip protocol icmp icmp type destination-unreachable drop; }\n}\n")


def members(world):
    slots = world.cluster("five").get("slots", [])
    return sorted((s["address"], s["nodeName"], s.get("restarts", 0)) for s in slots if s.get("inRoster"))


def ways(world):
    net = world.json("net", "five", check=False, who="admin") or {}
    pairs = [p for p in net.get("pairs", []) if p.get("path") != "none"]
    return sum(p.get("path") in ("direct", "lan") for p in pairs), len(pairs), sum(p.get("changes", 0) for p in pairs)


def story(world, seconds, say):
    subprocess.run([os.path.join(ROOT, "images/ray/build")], check=True, stdout=subprocess.DEVNULL)
    world.lab.start_docker()
    subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
    world.start_server()
    for kind in KINDS:
        world.add_machine(kind, kind, policy={"reserve": {"memory_bytes": 8 << 30, "cpus": 0}})
    world.wait("machines", "all machines online", 90, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= len(KINDS), world.dir + "/musterd.log")
    with open(world.dir + "/five.yaml", "w") as f:
        f.write(CLUSTER % {"cpus": os.cpu_count() or 2})
    world.cli("up", world.dir + "/five.yaml", "--yes", timeout=300)
    world.wait("up", "five ready members", 180, lambda: [s.get("phase") for s in world.cluster("five").get("slots", [])] == ["ready"] * 5, world.dir + "/musterd.log")
    before = members(world)
    places = {name for _, name, _ in before}
    if places != set(KINDS):
        raise demo.DemoError("up", "the members are on %s" % sorted(places))
    say("five members: " + ", ".join("%s on %s" % (address, name) for address, name, _ in before))
    folder = world.dir + "/job"
    os.makedirs(folder)
    with open(folder + "/five.py", "w") as f:
        f.write(JOB)
    job = world.json("job", "submit", "--cluster", "five", "--working-dir", folder, "--no-wait", "--", "python3", "five.py", str(seconds))["id"]
    world.wait("job", "its first round", 180, lambda: "round 1" in world.cli("job", "logs", job, check=False).stdout, world.dir + "/musterd.log")
    say("the job runs; ways: %d of %d direct" % ways(world)[:2])
    changes = Changes(world)
    end = time.time() + seconds - EVERY_S
    while time.time() < end:
        time.sleep(EVERY_S - 6)
        say(changes.next())
        time.sleep(6)
        said = re.findall(r"round (\d+)", world.cli("job", "logs", job, check=False).stdout)
        say("   round %s; ways: %d of %d direct, %d changes so far" % (said[-1] if said else "?", *ways(world)))
    done = world.wait("job", "its end", seconds + 240, lambda: (lambda j: j if j["state"] in ("succeeded", "failed", "stopped") else None)(world.json("job", "status", job)))
    log = world.cli("job", "logs", job).stdout
    result = re.search(r"RESULT right rounds (\d+) slowest ([0-9.]+)", log)
    if done["state"] != "succeeded" or not result or "on 5 machines" not in log:
        raise demo.DemoError("job", "it is %s: %s" % (done["state"], log[-600:]))
    if done.get("attempt", 1) > 1:
        raise demo.DemoError("job", "it needed %s attempts" % done["attempt"])
    after = members(world)
    if after != before:
        raise demo.DemoError("members", "they are no longer the same: %s, %s" % (before, after))
    return "%s rounds of shuffle and all-reduce right, the slowest took %s s; %d changes to networks, %d of ways; no member lost" % (
        result[1], result[2], changes.count, ways(world)[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build/release"))
    parser.add_argument("--seconds", type=int, default=160, help="how long the job works")
    args = parser.parse_args()
    say = demo.Account()
    world = None
    try:
        world = demo.World(args.build, name="raylab", say=say)
        told = story(world, args.seconds, say)
    except demo.DemoError as fault:
        print("RAY LAB FAILED: %s: %s" % (fault.step, str(fault).replace("\n", " ")))
        return 1
    except (LabError, OSError, subprocess.SubprocessError) as fault:
        print("RAY LAB FAILED: %s" % str(fault).replace("\n", " "))
        return 1
    finally:
        if world is not None:
            world.close()
    print("RAY LAB OK: five kinds, " + told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
