#!/usr/bin/env python3
"""How fast a cluster's network is, beside other WireGuard implementations, Nebula and no tunnel at all.

    bench/overlay_throughput.py [--rounds N] [--seconds S] [--peers a,b] [--no-uso]

Two network namespaces joined by a veth pair (MTU 1500) stand for two machines. Ours is the shipped netd with a signed roster and a lease
namespace behind each; the peers run as they come. All tunnels have the same inner MTU. iperf3 with one TCP stream and with four, in both
directions, in shuffled rounds, so that the noise of the machine meets all; medians. Then, with one stream running, the round trip of a
small packet, and the processor time that the whole machine spent for a gigabyte. --no-uso: the outer devices cut no UDP.
JSON lines {name, value, unit, baseline, ratio, runs} on standard output; the baseline is the best peer in user space. Where that carries
less than VALID_GBIT_S with one stream (not with --no-uso, which is slower for all), the machine had other work: a last line says so and the
exit status is 3.
"""
import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build/release")
PEERS = os.path.join(ROOT, "build/peers")
TAG = "mo%d" % (os.getpid() % 100000)
INNER_MTU = 1420
VALID_GBIT_S = 2.4
RIG = "bench_overlay_rig"


def say(text):
    print(text, file=sys.stderr, flush=True)


def sh(*words, check=True, **kw):
    return subprocess.run(list(words), check=check, capture_output=True, text=True, **kw)


class Lab:
    """Namespaces a and b on one wire."""

    def __init__(self, uso):
        self.a, self.b = TAG + "a", TAG + "b"
        for ns in (self.a, self.b, self.a + "l", self.b + "l"):
            sh("ip", "netns", "add", ns)
        sh("ip", "link", "add", "veth0", "netns", self.a, "type", "veth", "peer", "name", "veth0", "netns", self.b)
        for ns, address in ((self.a, "10.99.0.1/24"), (self.b, "10.99.0.2/24")):
            sh("ip", "-n", ns, "addr", "add", address, "dev", "veth0")
            sh("ip", "-n", ns, "link", "set", "lo", "up")
            sh("ip", "-n", ns, "link", "set", "veth0", "up")
            if not uso:
                sh("ip", "netns", "exec", ns, "ethtool", "-K", "veth0", "tx-udp-segmentation", "off")

    def close(self):
        for ns in (self.a, self.b, self.a + "l", self.b + "l"):
            sh("ip", "netns", "del", ns, check=False)


def enter(ns, *words):
    return ["ip", "netns", "exec", ns] + list(words)


class Tunnel:
    """A data plane between the two: `near` and `far` are the namespaces that its traffic begins and ends in."""
    userspace = True

    def __init__(self, lab, dir):
        self.lab, self.dir, self.near, self.far, self.processes = lab, dir, lab.a, lab.b, []
        os.makedirs(dir)

    def spawn(self, ns, *words, env=None):
        log = open("%s/%d.log" % (self.dir, len(self.processes)), "w")
        self.processes.append(subprocess.Popen(enter(ns, *words), stdout=log, stderr=log, env=dict(os.environ, **(env or {}))))

    def stop(self):
        for process in self.processes:
            process.terminate()
            process.wait()


class Ours(Tunnel):
    def memory(self):
        """PSS of the near netd in KiB."""
        return int(re.search(r"Pss: +(\d+)", open("/proc/%s/smaps_rollup" % self.pid).read()).group(1))

    def start(self, members=0):
        self.near, self.far, self.address = self.lab.a + "l", self.lab.b + "l", "100.64.0.2"
        self.rig = subprocess.Popen([BUILD + "/" + RIG, BUILD + "/muster-agent", self.dir, self.lab.a, self.near, "10.99.0.1", self.lab.b, self.far, "10.99.0.2", str(members)],
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(self.dir + "/rig.log", "w"), text=True)
        told = self.rig.stdout.readline().split()
        self.pid = told[1] if told[:1] == ["ready"] else None
        if self.pid is None:
            raise RuntimeError("the rig did not start: " + open(self.dir + "/rig.log").read())

    def stop(self):
        self.rig.stdin.close()
        self.rig.wait()


class WireGuard(Tunnel):
    def __init__(self, lab, dir, number, program, env=None, flags=()):
        super().__init__(lab, dir)
        self.number, self.program, self.env, self.flags = number, program, env, flags
        self.address = "10.%d.0.2" % (100 + number)

    def start(self):
        keys = []
        for _ in range(2):
            secret = sh("wg", "genkey").stdout.strip()
            keys.append((secret, sh("wg", "pubkey", input=secret).stdout.strip()))
        for me, ns in ((0, self.lab.a), (1, self.lab.b)):
            device = "%sw%d%d" % (TAG, self.number, me)  # their control sockets lie in one folder
            sh(*enter(ns, self.program, *self.flags, device), env=dict(os.environ, **(self.env or {})), timeout=30)
            with open("%s/key%d" % (self.dir, me), "w") as f:
                f.write(keys[me][0])
            sh(*enter(ns, "wg", "set", device, "private-key", f.name, "listen-port", str(7000 + self.number), "peer", keys[1 - me][1],
                      "allowed-ips", "10.%d.0.%d/32" % (100 + self.number, 2 - me), "endpoint", "10.99.0.%d:%d" % (2 - me, 7000 + self.number)))
            sh("ip", "-n", ns, "addr", "add", "10.%d.0.%d/24" % (100 + self.number, me + 1), "dev", device)
            sh("ip", "-n", ns, "link", "set", device, "mtu", str(INNER_MTU), "up")

    def stop(self):
        for me, ns in ((0, self.lab.a), (1, self.lab.b)):
            sh("ip", "-n", ns, "link", "del", "%sw%d%d" % (TAG, self.number, me), check=False)


class Nebula(Tunnel):
    address = "10.150.0.2"

    def start(self):
        sh("nebula-cert", "ca", "-name", "bench", cwd=self.dir)
        for me, ns in ((1, self.lab.a), (2, self.lab.b)):
            sh("nebula-cert", "sign", "-name", "m%d" % me, "-ip", "10.150.0.%d/24" % me, cwd=self.dir)
            with open("%s/m%d.yml" % (self.dir, me), "w") as f:
                f.write("""pki: {ca: %(d)s/ca.crt, cert: %(d)s/m%(me)d.crt, key: %(d)s/m%(me)d.key}
static_host_map: {"10.150.0.%(o)d": ["10.99.0.%(o)d:4242"]}
lighthouse: {am_lighthouse: false}
listen: {host: 0.0.0.0, port: 4242, batch: 64, read_buffer: 7340032, write_buffer: 7340032}
tun: {dev: neb0, mtu: %(mtu)d, tx_queue: 500}
firewall: {outbound: [{port: any, proto: any, host: any}], inbound: [{port: any, proto: any, host: any}]}
""" % {"d": self.dir, "me": me, "o": 3 - me, "mtu": INNER_MTU})
            self.spawn(ns, "nebula", "-config", f.name)


class Bare(Tunnel):
    userspace = False
    address = "10.99.0.2"

    def start(self):
        pass


def newest_wireguard_go():
    out = PEERS + "/wireguard"
    if not os.path.exists(out):
        say("building the newest wireguard-go from its Go module")
        os.makedirs(PEERS, exist_ok=True)
        subprocess.run(["go", "install", "golang.zx2c4.com/wireguard@latest"], check=True, env=dict(os.environ, GOBIN=PEERS), stdout=sys.stderr)
    return out


def boringtun():
    out = PEERS + "/bin/boringtun-cli"
    if not os.path.exists(out):
        say("building boringtun-cli from its crate")
        subprocess.run(["cargo", "install", "boringtun-cli", "--version", "0.7.1", "--root", PEERS, "-q"], check=True, stdout=sys.stderr)
    return out


def iperf(tunnel, streams, reverse, seconds):
    """Gbit/s of goodput, and the processor seconds of the whole machine for a gigabyte."""
    server = subprocess.Popen(enter(tunnel.far, "iperf3", "-s", "-1", "-B", tunnel.address), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(50):
            before = busy()
            done = sh(*enter(tunnel.near, "iperf3", "-J", "-c", tunnel.address, "-P", str(streams), "-t", str(seconds), "-O", "1", *(["-R"] if reverse else [])), check=False, timeout=seconds + 30)
            told = json.loads(done.stdout or "{}")
            if "end" in told and "sum_received" in told["end"]:
                spent, bits = busy() - before, told["end"]["sum_received"]["bits_per_second"]
                return bits / 1e9, spent / ((seconds + 1) * bits / 8e9)
            time.sleep(0.1)
        raise RuntimeError("iperf3: %s" % told.get("error", done.stderr))
    finally:
        server.terminate()
        server.wait()


def busy():
    fields = [int(x) for x in open("/proc/stat").readline().split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def round_trips(tunnel, seconds):
    """p50 and p99 in ms of a small packet beside one running stream."""
    server = subprocess.Popen(enter(tunnel.far, "iperf3", "-s", "-1", "-B", tunnel.address), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    stream = subprocess.Popen(enter(tunnel.near, "iperf3", "-c", tunnel.address, "-t", str(seconds + 2)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    told = sh(*enter(tunnel.near, "ping", "-i", "0.005", "-w", str(seconds), tunnel.address), check=False).stdout
    for process in (stream, server):
        process.terminate()
        process.wait()
    times = sorted(float(x) for x in re.findall(r"time=([\d.]+)", told))
    return (times[len(times) // 2], times[int(len(times) * 0.99)]) if times else (0, 0)


def crowd(lab, dir, args, members=1000):
    """What a roster of so many idle members costs: KiB a member, and the rate of one stream beside them (shuffled pairs)."""
    near = {}
    try:
        for count in (0, members):
            near[count] = Ours(lab, dir + "/crowd%d" % count)
        rates = {0: [], members: []}
        sizes = {}
        for number in range(args.rounds):
            for count in random.sample([0, members], 2):
                shutil.rmtree(near[count].dir)
                os.makedirs(near[count].dir)
                for ns in (lab.a + "l", lab.b + "l"):
                    sh("ip", "-n", ns, "link", "del", "muster0", check=False)
                near[count].start(count)
                time.sleep(1)
                sizes[count] = near[count].memory()
                for _ in range(20):
                    if sh(*enter(near[count].near, "ping", "-c", "1", "-W", "1", near[count].address), check=False).returncode == 0:
                        break
                time.sleep(2)
                rates[count].append(iperf(near[count], 1, False, args.seconds)[0])
                near[count].stop()
                say("round %d  roster of %d: %.2f Gbit/s, %d KiB" % (number + 1, count + 2, rates[count][-1], sizes[count]))
        return (sizes[members] - sizes[0]) / members, statistics.median(rates[members]), statistics.median(rates[0])
    except RuntimeError as fault:
        say("the roster: %s" % fault)
        return None


def put(name, value, unit, baseline, runs):
    print(json.dumps({"name": name, "value": round(value, 3), "unit": unit, "baseline": round(baseline, 3) if baseline else None,
                      "ratio": round(value / baseline, 3) if baseline else None, "runs": runs}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--peers", default="wireguard-go,wireguard-go-debian,boringtun,nebula,veth")
    parser.add_argument("--no-uso", action="store_true")
    args = parser.parse_args()
    wanted = args.peers.split(",")
    lab = Lab(not args.no_uso)
    dir = tempfile.mkdtemp(prefix="muster_overlay_")
    os.chmod(dir, 0o755)
    tunnels = {"muster": Ours(lab, dir + "/muster")}
    makers = {
        "wireguard-go": lambda: WireGuard(lab, dir + "/wgn", 1, newest_wireguard_go()),
        "wireguard-go-debian": lambda: WireGuard(lab, dir + "/wgd", 2, "wireguard-go"),
        "boringtun": lambda: WireGuard(lab, dir + "/bt", 3, boringtun(), flags=["--disable-drop-privileges"]),
        "nebula": lambda: Nebula(lab, dir + "/nebula"),
        "veth": lambda: Bare(lab, dir + "/veth"),
    }
    rates, costs = {}, {}
    try:
        for name in wanted:
            try:
                tunnels[name] = makers[name]()
            except (OSError, subprocess.CalledProcessError) as fault:
                say("%s cannot be built here and is left out: %s" % (name, fault))
        for name, tunnel in tunnels.items():
            tunnel.start()
            for _ in range(100):
                if sh(*enter(tunnel.near, "ping", "-c", "1", "-W", "1", tunnel.address), check=False).returncode == 0:
                    break
            else:
                raise RuntimeError("nothing answers through " + name)
        time.sleep(2)  # the direct path is probed
        for number in range(args.rounds):
            todo = [(name, streams, reverse) for name in tunnels for streams in (1, 4) for reverse in (False, True)]
            random.shuffle(todo)
            for name, streams, reverse in todo:
                rate, cost = iperf(tunnels[name], streams, reverse, args.seconds)
                rates.setdefault((name, streams), []).append(rate)
                costs.setdefault(name, []).append(cost)
                say("round %d  %-20s %d stream%s %s  %6.2f Gbit/s  %5.2f CPU s/GB" % (number + 1, name, streams, " " if streams == 1 else "s", "<-" if reverse else "->", rate, cost))
        latency = {name: round_trips(tunnel, 3) for name, tunnel in tunnels.items()}
        tunnels["muster"].stop()
        roster = crowd(lab, dir, args)
    finally:
        for tunnel in tunnels.values():
            try:
                tunnel.stop()
            except Exception as fault:
                say("stop: %s" % fault)
        lab.close()
        shutil.rmtree(dir, ignore_errors=True)
    suffix = ".nouso" if args.no_uso else ""
    baselines = {}
    for streams, word in ((1, "one"), (4, "four")):
        middle = {name: statistics.median(rates[name, streams]) for name in tunnels}
        best = max((middle[name] for name in tunnels if name != "muster" and tunnels[name].userspace), default=0)
        runs = len(rates["muster", streams])
        baselines[streams] = best
        put("overlay-throughput%s.%s" % (suffix, word), middle["muster"], "Gbit/s", best, runs)
        for name in tunnels:
            if name != "muster":
                put("overlay-throughput%s.peer.%s.%s" % (suffix, name, word), middle[name], "Gbit/s", None, runs)
    if roster:
        put("overlay-throughput%s.member_kib" % suffix, roster[0], "KiB", 2, 1)
        put("overlay-throughput%s.roster1000" % suffix, roster[1], "Gbit/s", roster[2], args.rounds)
    for name in tunnels:
        put("overlay-throughput%s.cpu.%s" % (suffix, name), statistics.median(costs[name]), "CPU s/GB", None, len(costs[name]))
        put("overlay-throughput%s.p50.%s" % (suffix, name), latency[name][0], "ms", None, 1)
        put("overlay-throughput%s.p99.%s" % (suffix, name), latency[name][1], "ms", None, 1)
    if not args.no_uso and baselines[1] < VALID_GBIT_S:
        say("invalid: the best peer carried %.2f Gbit/s, %.1f at least are needed; repeat it with nothing else running" % (baselines[1], VALID_GBIT_S))
        sys.exit(3)


if __name__ == "__main__":
    main()
