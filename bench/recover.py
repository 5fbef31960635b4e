"""recover.worker_s: a worker's link is dropped silently -> the next task runs on the spare, on the lab of the demo (five machines behind
NATs). recover.server_s: kill -9 of musterd -> /readyz answers again, with 1,000 machines and 10,000 queued requests in the journal (made by
bench/world.cpp: the real engine, and agents that speak the protocol). recover.lab_s: the same in the lab, until the CLI lists clusters again.
JSON lines; baseline is the bar (30 s, 3 s). RUNS=n (default 3), ONLY=server leaves the lab out (and needs no root).
"""
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import _world  # noqa: E402
import demo  # noqa: E402


def line(name, values, bar):
    value = statistics.median(values)
    print(json.dumps({"name": name, "value": round(value, 2), "unit": "s", "baseline": bar, "ratio": round(value / bar, 3), "runs": len(values),
                      "all": [round(v, 2) for v in values]}), flush=True)


def slots(world):
    return world.cluster("default").get("slots", [])


def one_loss(world, log):
    """Pulls the cable of a worker while tasks run; seconds until a task finished on the machine that replaces it."""
    world.wait("spare", "a hot spare", 120, lambda: any(s["role"] == "spare" and s["phase"] == "standby" for s in slots(world)))
    known = {s["address"] for s in slots(world) if s["role"] == "worker"}
    victim = next(s for s in slots(world) if s["role"] == "worker")
    world.lab.pull_cable(victim["nodeName"])
    began = time.time()
    world.wait("recover", "a task on the replacement", 90, lambda: any(
        " on 10.201." in row and row.rsplit(" on ", 1)[1].strip() not in known | {"10.201.0.1"} for row in demo.job_lines(log)[-40:]), log)
    took = time.time() - began
    world.lab.plug_in(victim["nodeName"])
    world.wait("return", "the machine's return", 120, lambda: world.nodes()[victim["nodeName"]]["state"] == "online")
    return took


def server(runs):
    folder = tempfile.mkdtemp(prefix="bench-recover-", dir=os.path.join(ROOT, "build"))
    try:
        _world.make(folder, 1000, 10000, 2)
        took = []
        for _ in range(runs + 1):  # the first one finds no running musterd to kill
            seconds, process = _world.start(folder)
            took.append(seconds)
            time.sleep(2)
            process.kill()
            process.wait()
        line("recover.server_s", took[1:], 3)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    runs = int(os.environ.get("RUNS", "3"))
    server(runs)
    if os.environ.get("ONLY") == "server":
        return
    world = demo.World(os.path.join(ROOT, "build/release"), name="bench-recover", say=lambda text: None)
    try:
        world.lab.start_docker()
        subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
        world.start_server()
        for name, nat in demo.MACHINES:
            world.add_machine(name, nat)
        world.wait("machines", "all online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= len(demo.MACHINES))
        world.cli("up", os.path.join(ROOT, "examples/default.yaml"), "--yes", "--spares", "1")
        job = world.json("job", "submit", "--cluster", "default", "--working-dir", os.path.join(ROOT, "examples"), "--no-wait", "--",
                         "python3", "squares.py", "100000", "0.5")["id"]
        log = world.dir + "/job.log"
        with open(log, "wb") as out:
            follow = subprocess.Popen(world.lab.enter("user") + [world.binary("muster"), "job", "logs", "-f", job],
                                      env=dict(os.environ, **world.account("alice")), stdout=out, stderr=subprocess.DEVNULL)
        world.wait("job", "first pieces", 90, lambda: any(" piece " in row for row in demo.job_lines(log)), log)
        line("recover.worker_s", [one_loss(world, log) for _ in range(runs)], 30)
        restarts = []
        for _ in range(runs):
            world.musterd.kill()
            began = time.time()
            world.start_musterd()
            world.wait("restart", "serving", 30, lambda: world.cli("list", check=False).returncode == 0)
            restarts.append(time.time() - began)
        line("recover.lab_s", restarts, 3)
        follow.kill()
    finally:
        world.close()


if __name__ == "__main__":
    main()
