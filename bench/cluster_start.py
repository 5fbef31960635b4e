"""cluster-start.total: `muster up` of one head and two workers until a task has run on all three, against the same steps by hand in the
same run: docker run, a wireguard-go tunnel, ray start, the same driver, with the same image, CPU, memory and Ray settings. Rounds
alternate; medians; ratio is ours / by hand (bar 1.15). One line for each phase. RUNS=n (default 5). Needs root, docker, wireguard-go.
"""
import concurrent.futures
import datetime
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402

MACHINES = demo.MACHINES[:3]
CPUS, HEAD_MEMORY, WORKER_MEMORY = os.cpu_count(), 4 << 30, 4 << 30
FILE = """cluster_name: bench
docker: {image: "%s"}
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
muster: {head: {CPU: 2, memory: %d}}
""" % ("muster/ray:2.60.0", HEAD_MEMORY)
DRIVER = """
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_cpus=1)
def where(): return ray.util.get_node_ip_address()
print(sorted(ray.get([where.options(scheduling_strategy=On(n["NodeID"], soft=False)).remote() for n in ray.nodes() if n["Alive"]])))
"""


class ByHand:
    """What a person types: three containers, a WireGuard tunnel moved into each, Ray with pinned ports."""
    names = ("hand-head", "hand-w1", "hand-w2")

    def __init__(self, world):
        self.world, self.tunnels = world, []
        self.token = world.dir + "/hand.token"
        with open(self.token, "w") as f:
            f.write("5f" * 32)
        os.chmod(self.token, 0o444)
        self.keys = [self.out(["wg", "genkey"]).strip() for _ in self.names]
        self.public = [self.out(["wg", "pubkey"], input=k).strip() for k in self.keys]

    def out(self, words, **kw):
        return self.world.lab.sh(words, **kw).stdout

    def docker(self, *words):
        return self.out(["docker", "-H", self.world.lab.docker] + list(words))

    def container(self, index):
        head = index == 0
        space = "%s/hand-%d" % (self.world.dir, index)
        os.makedirs(space, exist_ok=True)
        os.chmod(space, 0o777)
        env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/token", "RAY_USAGE_STATS_ENABLED": "0"}
        if head:
            env.update(RAY_gcs_storage="rocksdb", RAY_gcs_storage_path="/tmp/ray/gcs")
        flags = [w for k, v in env.items() for w in ("-e", "%s=%s" % (k, v))]
        self.docker("run", "-d", "--init", "--name", self.names[index], "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
                    "--cpus", str(CPUS), "--memory", str(HEAD_MEMORY if head else WORKER_MEMORY), "--shm-size", "1g", "-v", space + ":/tmp/ray",
                    "-v", self.token + ":/token:ro", *flags, "muster/ray:2.60.0", "sleep", "infinity")
        pid = self.docker("inspect", "--format", "{{.State.Pid}}", self.names[index]).strip()
        device = "hand%d" % index
        tunnel = subprocess.Popen(["wireguard-go", "-f", device], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ, LOG_LEVEL="error"))
        self.tunnels.append(tunnel)
        while not os.path.exists("/var/run/wireguard/%s.sock" % device):
            time.sleep(0.01)
        conf = "[Interface]\nPrivateKey=%s\nListenPort=%d\n" % (self.keys[index], 52800 + index)
        for peer in range(3):
            if peer != index:
                conf += "[Peer]\nPublicKey=%s\nAllowedIPs=10.99.0.%d/32\nEndpoint=127.0.0.1:%d\n" % (self.public[peer], peer + 1, 52800 + peer)
        self.world.lab.sh(["wg", "setconf", device, "/dev/stdin"], input=conf)
        self.world.lab.sh(["ip", "link", "set", device, "netns", pid])
        self.world.lab.sh(["nsenter", "-t", pid, "-n", "sh", "-c", "ip addr add 10.99.0.%d/24 dev %s && ip link set %s mtu 1380 up" % (index + 1, device, device)])

    def ray(self, index):
        head = index == 0
        words = ["ray", "start", "--disable-usage-stats", "--node-ip-address", "10.99.0.%d" % (index + 1), "--node-manager-port", "6380",
                 "--object-manager-port", "6381", "--dashboard-agent-listen-port", "6382", "--dashboard-agent-grpc-port", "6383", "--metrics-export-port", "6384",
                 "--runtime-env-agent-port", "6385", "--min-worker-port", "10002", "--max-worker-port", "10999", "--num-cpus", str(CPUS), "--num-gpus", "0",
                 "--memory", str(2 << 30), "--object-store-memory", str(512 << 20)]
        words += ["--head", "--port", "6379", "--dashboard-host", "10.99.0.1", "--dashboard-port", "8265", "--ray-client-server-port", "10001"] if head else \
            ["--address", "10.99.0.1:6379"]
        self.docker("exec", self.names[index], *words)

    def round(self):
        marks, began = {}, time.time()
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            list(pool.map(self.container, range(3)))
            marks["network"] = time.time() - began
            self.ray(0)
            marks["head"] = time.time() - began
            list(pool.map(self.ray, (1, 2)))
            marks["workers"] = time.time() - began
        answer = self.docker("exec", self.names[0], "python3", "-c", DRIVER)
        marks["total"] = time.time() - began
        assert answer.count("10.99.0.") == 3, answer
        return marks

    def clean(self):
        self.world.lab.sh(["docker", "-H", self.world.lab.docker, "rm", "-f"] + list(self.names), check=False)
        for tunnel in self.tunnels:
            tunnel.terminate()
            tunnel.wait(10)
        self.tunnels = []
        for index in range(3):
            subprocess.run(["rm", "-rf", "%s/hand-%d" % (self.world.dir, index)], check=True)


class Ours:
    def __init__(self, world):
        self.world, self.seq = world, 0
        self.file = world.dir + "/bench.yaml"
        with open(self.file, "w") as f:
            f.write(FILE)

    def round(self):
        began = time.time()
        self.world.cli("up", self.file, "--yes")
        up = time.time() - began
        answer = self.world.cli("exec", "bench", "--", "python3", "-c", DRIVER)
        total = time.time() - began
        assert answer.stdout.count("10.201.") == 3, answer.stdout + answer.stderr
        return dict(self.phases(began), up=up, total=total)

    def phases(self, began):
        """When the journal says what happened, in seconds after the request."""
        marks, roles = {}, {}
        for line in self.world.cli("-o", "json", "events", "--from", str(self.seq), who="admin").stdout.splitlines():
            event = json.loads(line)
            self.seq = max(self.seq, int(event.get("seq", 0)))
            at = datetime.datetime.fromisoformat(event["at"].replace("Z", "+00:00")).timestamp() - began
            if at < -0.5:  # of the round before
                continue
            if os.environ.get("TRACE"):
                print("%7.3f %-22s %-8s %s" % (at, event["type"], event.get("subject", ""), event["text"]), file=sys.stderr)
            data = event.get("data") or {}
            if event["type"] == "lease.granted":
                marks["grant"] = at
                roles[event["subject"]] = data.get("role")
            elif event["type"] == "slot.keyed":
                marks["network"] = at
            elif event["type"] == "lease.observed" and data.get("phase") == "ready":
                marks["head" if roles.get(event["subject"]) == "head" else "workers"] = at
        return marks

    def clean(self):
        self.world.cli("down", "bench", "--yes")
        self.world.wait("down", "machines free", 60, lambda: all(not n.get("leases") for n in self.world.nodes().values()))


def tell(ours, hand):
    """A line a phase: seconds from the end of the one before, medians; by hand the workers wait for the head, ours do not."""
    for side in (ours, hand):
        for marks in side:
            marks["workers"] = max(marks["workers"], marks["head"])
    steps = [("queue", "start", "grant", None), ("network", "grant", "network", "start"), ("head", "network", "head", "network"),
             ("workers", "head", "workers", "head"), ("return", "workers", "up", None), ("task", "up", "total", "workers"), ("total", "start", "total", "start")]
    for name, since, until, hand_since in steps:
        value = statistics.median(m[until] - m.get(since, 0) for m in ours)
        line = {"name": "cluster-start." + name, "value": round(value, 2), "unit": "s", "baseline": None, "ratio": None, "runs": len(ours)}
        if hand_since:
            line["baseline"] = round(statistics.median(m[until] - m.get(hand_since, 0) for m in hand), 2)
            line["ratio"] = round(value / line["baseline"], 3)
        if name == "total":
            line["all"] = [round(m["total"], 2) for m in ours]
            line["all_baseline"] = [round(m["total"], 2) for m in hand]
        print(json.dumps(line), flush=True)


def main():
    runs = int(os.environ.get("RUNS", "5"))
    world = demo.World(os.environ.get("MUSTER_BUILD", os.path.join(ROOT, "build/release")), name="bench-start", say=lambda text: None)
    try:
        world.lab.start_docker()
        subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
        world.start_server()
        for name, nat in MACHINES:
            world.add_machine(name, nat)
        world.wait("machines", "all online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= len(MACHINES))
        sides = {"ours": Ours(world), "hand": ByHand(world)}
        seen = {"ours": [], "hand": []}
        for turn in range(runs + 1):  # the first round warms the page cache and is not counted
            for name in sorted(sides, reverse=turn % 2 == 1):
                marks = sides[name].round()
                sides[name].clean()
                print("round %d %s %s" % (turn, name, {k: round(v, 2) for k, v in marks.items()}), file=sys.stderr, flush=True)
                if turn:
                    seen[name].append(marks)
        tell(seen["ours"], seen["hand"])
    finally:
        world.close()


if __name__ == "__main__":
    main()
