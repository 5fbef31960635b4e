"""agent.binary_mb, agent.rss_mb, agent.cpu_percent: how light the agent is. An enrolled, online, idle machine in the lab: stripped size of
the binary, sum of the proportional set sizes (PSS) of its three processes and their supervisor, CPU time over 60 s. Needs root.
JSON lines {name, value, unit, baseline, ratio, runs}; baseline is the bar (10 MB, 20 MB, 0.5 %), ratio = ours / bar.
"""
import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402


def line(name, value, unit, bar, runs):
    print(json.dumps({"name": name, "value": round(value, 3), "unit": unit, "baseline": bar, "ratio": round(value / bar, 3), "runs": runs}), flush=True)


def family(pid):
    out = [pid]
    for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split():
        out += family(int(child))
    return out


def pss_mb(pids):
    total = 0
    for pid in pids:
        with open("/proc/%d/smaps_rollup" % pid) as f:
            total += next(int(row.split()[1]) for row in f if row.startswith("Pss:"))
    return total / 1024


def cpu_seconds(pids):
    ticks = 0
    for pid in pids:
        with open("/proc/%d/stat" % pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main():
    build = os.path.join(ROOT, "build/release")
    with tempfile.NamedTemporaryFile() as stripped:
        subprocess.run(["strip", "-o", stripped.name, os.path.join(build, "muster-agent")], check=True)
        line("agent.binary_mb", os.path.getsize(stripped.name) / 1e6, "MB", 10, 1)
    world = demo.World(build, name="bench-agent", say=lambda text: None)
    try:
        world.lab.start_docker()
        world.start_server()
        world.add_machine("idle", "home")
        world.wait("machine", "online", 60, lambda: world.nodes().get("idle", {}).get("state") == "online")
        time.sleep(20)
        pids = family(world.agents["idle"].popen.pid)
        samples = []
        for _ in range(5):
            before, began = cpu_seconds(pids), time.time()
            time.sleep(12)
            samples.append(100 * (cpu_seconds(pids) - before) / (time.time() - began))
        line("agent.rss_mb", pss_mb(pids), "MB", 20, 1)
        line("agent.cpu_percent", sum(samples) / len(samples), "% of a core", 0.5, len(samples))
    finally:
        world.close()


if __name__ == "__main__":
    main()
