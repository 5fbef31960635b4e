"""scale.rss_gb, scale.stall_ms, scale.restart_s: a platform of NODES (100,000) virtual machines and REQUESTS (1,000,000) queued requests.
bench/world.cpp is musterd's own composition in one process with that many real agent cores, which speak the agents' protocol; its memory
counts the machines too. Then real musterd starts from the same journal after a kill -9.
  scale.rss_gb      largest resident memory of that process, machines included (bar 6 GB)
  scale.stall_ms    the longest that a command lay before the core took it, over SECONDS (30) of changes, snapshots and plans (bar 20 ms)
  scale.restart_s   start of musterd to an answer of /readyz (bar 30 s)
Also scale.connect_s (all machines online, no bar) and scale.musterd_rss_gb (musterd after its start, no machine connected yet).
"""
import json
import os
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _world as world  # noqa: E402


def main():
    nodes, requests, seconds = (int(os.environ.get(name, default)) for name, default in (("NODES", "100000"), ("REQUESTS", "1000000"), ("SECONDS", "30")))
    folder = tempfile.mkdtemp(prefix="bench-scale-", dir=os.path.join(world.ROOT, "build"))
    try:
        made = world.make(folder, nodes, requests, seconds)
        world.line("scale.rss_gb", [made["peak_kib"] * 1024 / 1e9], "GB", 6)
        world.line("scale.stall_ms", [made["stall_ms"]], "ms", 20)
        took, process = world.start(folder)
        world.line("scale.restart_s", [took], "s", 30)
        print(json.dumps({"name": "scale.musterd_rss_gb", "value": round(world.memory(process.pid) / 1e9, 2), "unit": "GB", "baseline": None, "ratio": None, "runs": 1}))
        print(json.dumps({"name": "scale.connect_s", "value": made["connect_s"], "unit": "s", "baseline": None, "ratio": None, "runs": 1}))
        process.kill()
        process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
