#!/usr/bin/env python3
"""What it gains that members go to the relay over UDP: the same two machines behind NATs that need the relay, over UDP and over TLS, in turns.

    sudo bench/relay_udp.py [--rounds N] [--seconds S] [--loss PERCENT] [--delay MS] [--congestion cubic]

The shipped netd and muster-relay in the network laboratory (tests/lab/nat_lab.py). First the one machine's cable is LOSS % lossy and DELAY ms long and carries 200 Mbit/s,
each way (muster-slow-link: every frame for itself, no offloads): one TCP stream and eight, and the round trip of a small packet beside one. Then
without that cable, one stream: the relay's own processor seconds for a gigabyte. MUSTER_UDP_RELAY=off makes netd stay on TLS. Medians; JSON lines
{name, value, unit, baseline, ratio, runs} on standard output, the baseline is TLS:
  relay-udp.lossy.one .eight      Mbit/s
  relay-udp.lossy.p50 .p99        ms, lower is better
  relay-udp.clean                 Gbit/s of one stream
  relay-udp.cpu_per_gb            seconds of muster-relay, lower is better
"""
import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import nat_lab  # noqa: E402

RATE_KBIT = 200_000  # of the lossy cable: the program that plays it must not be what is measured
BUILD = os.path.join(ROOT, "build/release")


def say(text):
    print(text, file=sys.stderr, flush=True)


def iperf(lab, near, far, address, streams, seconds, congestion=None):
    """Bits a second that arrive."""
    server = subprocess.Popen(lab.lab.enter(far) + ["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(50):
            done = subprocess.run(lab.lab.enter(near) + ["iperf3", "-J", "-c", address, "-P", str(streams), "-t", str(seconds), "-O", "1"] + (["-C", congestion] if congestion else []), capture_output=True, text=True, timeout=seconds + 60)
            told = json.loads(done.stdout or "{}")
            if "sum_received" in told.get("end", {}):
                return told["end"]["sum_received"]["bits_per_second"]
            time.sleep(0.1)
        raise RuntimeError("iperf3: %s" % told.get("error", done.stderr))
    finally:
        server.terminate()
        server.wait()


def round_trips(lab, near, far, address, seconds):
    server = subprocess.Popen(lab.lab.enter(far) + ["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    stream = subprocess.Popen(lab.lab.enter(near) + ["iperf3", "-c", address, "-t", str(seconds + 2)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    told = subprocess.run(lab.lab.enter(near) + ["ping", "-i", "0.01", "-w", str(seconds), address], capture_output=True, text=True).stdout
    for process in (stream, server):
        process.terminate()
        process.wait()
    times = sorted(float(x) for x in re.findall(r"time=([\d.]+)", told))
    return times[len(times) // 2], times[int(len(times) * 0.99)]


def cpu_seconds(lab):
    fields = open("/proc/%d/stat" % lab.relay.popen.pid).read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one(udp, args):
    """One lab, all measures."""
    os.environ["MUSTER_UDP_RELAY"] = "on" if udp else "off"  # netd inherits it
    lab = nat_lab.NatLab(BUILD, relay_flags=["--member-mbyte-s", "100000"])
    out = {}
    try:
        for kinds in (("far-a", "symmetric-b"), ("symmetric-a", "symmetric-b")):
            cluster = lab.hold(*kinds)
            near, far, address = kinds[0] + "-l", kinds[1] + "-l", "100.64.%d.2" % cluster
            lossy = kinds[0] == "far-a"
            subprocess.run(lab.lab.enter(near) + ["ping", "-c", "3", "-w", "10", address], stdout=subprocess.DEVNULL, check=True)
            fits = lambda ways: len(ways) == 2 and all(w["path"] == "relay" and w["udp"] == udp for w in ways.values())  # noqa: E731
            ways, _ = lab.wait_ways(cluster, fits, 10)
            if not fits(ways):
                raise RuntimeError("not the ways that are to be measured: %s" % ways)
            if lossy:
                lab.set_cable("far-a-r", delay=args.delay, lost=args.loss, kbit=RATE_KBIT)
                time.sleep(1)
                out["lossy.one"] = iperf(lab, near, far, address, 1, args.seconds, args.congestion) / 1e6
                out["lossy.eight"] = iperf(lab, near, far, address, 8, args.seconds, args.congestion) / 1e6
                out["lossy.p50"], out["lossy.p99"] = round_trips(lab, near, far, address, args.seconds)
            else:
                before = cpu_seconds(lab)
                bits = iperf(lab, near, far, address, 1, args.seconds, args.congestion)
                out["clean"] = bits / 1e9
                out["cpu_per_gb"] = (cpu_seconds(lab) - before) / (bits * (args.seconds + 1) / 8e9)
            ways, _ = lab.wait_ways(cluster, fits, 0)
            if not fits(ways):
                raise RuntimeError("the ways changed meanwhile: %s" % ways)
            lab.ask("drop %d" % cluster, "dropped")
    finally:
        lab.close()
    say("%s: %s" % ("UDP" if udp else "TLS", ", ".join("%s %.2f" % each for each in out.items())))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--loss", type=int, default=1)
    parser.add_argument("--delay", type=int, default=10)
    parser.add_argument("--congestion", help="of the streams inside; the machine's own otherwise, which the TLS connections have too")
    args = parser.parse_args()
    subprocess.run(["cmake", "--build", "--preset", "release", "--target", "muster-nat-rig", "muster-slow-link", "muster-agent", "muster-relay"], check=True, stdout=sys.stderr, cwd=ROOT)
    seen = {True: [], False: []}
    for _ in range(args.rounds):
        for udp in random.sample([True, False], 2):
            seen[udp].append(one(udp, args))
    units = {"lossy.one": "Mbit/s", "lossy.eight": "Mbit/s", "lossy.p50": "ms", "lossy.p99": "ms", "clean": "Gbit/s", "cpu_per_gb": "s"}
    for name, unit in units.items():
        value, baseline = (statistics.median(run[name] for run in seen[udp]) for udp in (True, False))
        print(json.dumps({"name": "relay-udp." + name, "value": round(value, 3), "unit": unit, "baseline": round(baseline, 3), "ratio": round(value / baseline, 3), "runs": args.rounds,
                          "all": [round(run[name], 3) for run in seen[True]], "all_baseline": [round(run[name], 3) for run in seen[False]]}), flush=True)


if __name__ == "__main__":
    main()
