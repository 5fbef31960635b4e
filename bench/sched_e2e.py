"""sched-e2e.1k, .5k, .10k: JOBS (4,000) equal jobs of 8 CPUs at once on as many machines of 32 CPUs: jobs started a second, from the submission
until the last one has its machine; baseline: Debian's Slurm (22.05), the same array in the same run, in turns.
  ours    bench/array.cpp: musterd's own composition with SQLite's journal, CLIENTS (64) connected clients that post one job a request over
          HTTPS with an API token. A job has a Ray cluster of its own; it counts when the grant of its machine is durable in the journal.
  Slurm   the real slurmctld and munged on loopback with bench/slurm.conf, one `sbatch --array`; a job counts when slurmctld has given it its
          machine (sdiag's "Jobs started"). There is no slurmd: nothing has to be told to a machine, or to come back from it.
Also sched-e2e.running.N: ours until every machine (each a real agent core behind a queue) was told by signed orders, has made the cluster step by
step, has started the job and said so, all of it in the journal; the baseline stays the same. And sched-e2e.decisions.N: the planner alone against
the time that Slurm's main loop was at work. RUNS (3), SIZES (1000,5000,10000), JOBS (4,000), CLIENTS (64). Tried as root.
"""
import getpass
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _world as world  # noqa: E402  (bench_world is not needed here; bench_array is)

JOBS, CLIENTS, RUNS = (int(os.environ.get(name, default)) for name, default in (("JOBS", "4000"), ("CLIENTS", "64"), ("RUNS", "3")))
SIZES = [int(size) for size in os.environ.get("SIZES", "1000,5000,10000").split(",")]
PATIENCE = 900


def line(name, ours, theirs):
    value, baseline = statistics.median(ours), statistics.median(theirs)
    print(json.dumps({"name": "sched-e2e." + name, "value": round(value, 1), "unit": "starts/s", "baseline": round(baseline, 1),
                      "ratio": round(value / baseline, 2), "runs": len(ours), "all": [round(v, 1) for v in ours],
                      "all_baseline": [round(v, 1) for v in theirs]}), flush=True)


def run_ours(folder, nodes):
    with open(folder + "/password", "w") as f:
        f.write(world.PASSWORD + "\n")
    data = tempfile.mkdtemp(prefix="data-", dir=folder) + "/d"
    subprocess.run([world.BUILD + "/musterd", "init", "--data", data, "--name", "localhost,127.0.0.1", "--operator", "admin", "--password-file",
                    folder + "/password"], check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run([world.BUILD + "/bench_array", data, str(nodes), str(JOBS), str(CLIENTS)], stdout=subprocess.PIPE, text=True)
    shutil.rmtree(os.path.dirname(data))
    if done.returncode:
        raise SystemExit("bench_array failed")
    return json.loads(done.stdout)


class Slurm:
    """slurmctld and munged in a folder of their own."""

    def __init__(self, nodes):
        self.dir = tempfile.mkdtemp(prefix="muster-slurm-")  # short: a socket lies in it
        for name in ("state", "spool"):
            os.mkdir(self.dir + "/" + name)
        with open(os.open(self.dir + "/munge.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as f:
            f.write(os.urandom(1024))
        with open(os.path.join(world.ROOT, "bench/slurm.conf")) as f:
            conf = f.read()
        words = {"HOST": socket.gethostname().split(".")[0], "PORT": world.free_port(), "PORT2": world.free_port(), "USER": getpass.getuser(),
                 "DIR": self.dir, "NODES": nodes}
        self.conf = self.dir + "/slurm.conf"
        with open(self.conf, "w") as f:
            f.write(re.sub("@([A-Z0-9]+)@", lambda m: str(words[m.group(1)]), conf))
        self.log = open(self.dir + "/log", "wb")
        self.parts = []
        self.begin(["munged", "--foreground", "--force", "--socket=" + self.dir + "/munge.sock", "--key-file=" + self.dir + "/munge.key",
                    "--pid-file=" + self.dir + "/munge.pid", "--log-file=" + self.dir + "/munge.log", "--seed-file=" + self.dir + "/munge.seed"])
        self.wait("munged", lambda: os.path.exists(self.dir + "/munge.sock"))
        self.begin(["slurmctld-wlm", "-D", "-f", self.conf])
        self.wait("slurmctld", lambda: self.ask("scontrol", "ping").returncode == 0)

    def begin(self, command):
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        self.parts.append(subprocess.Popen([shutil.which(command[0], path=path) or command[0]] + command[1:], stdout=self.log, stderr=self.log))

    def wait(self, what, ready):
        until = time.monotonic() + 60
        while not ready():
            if time.monotonic() > until or any(part.poll() is not None for part in self.parts):
                raise SystemExit("%s does not start: %s" % (what, open(self.dir + "/log").read()[-2000:]))
            time.sleep(0.1)

    def ask(self, *command):
        return subprocess.run(command, env={**os.environ, "SLURM_CONF": self.conf}, cwd=self.dir, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def figure(self, text, what):
        found = re.search(r"^\s*%s:\s+(\d+)" % re.escape(what), text, re.M)
        return int(found.group(1)) if found else 0

    def run(self):
        """Seconds until all jobs have their machines, and how long the main loop was at work."""
        began = time.monotonic()
        made = self.ask("sbatch", "--array=1-%d" % JOBS, "-n1", "-c8", "--mem=16384", "-o", "/dev/null", "--wrap", "sleep 1000")
        if made.returncode:
            raise SystemExit("sbatch: " + made.stdout)
        while True:
            text = self.ask("sdiag").stdout
            took = time.monotonic() - began
            if self.figure(text, "Jobs started") >= JOBS:
                break
            if took > PATIENCE:
                raise SystemExit("Slurm has started %d of %d jobs in %d s" % (self.figure(text, "Jobs started"), JOBS, took))
            time.sleep(0.1)
        main = text[text.index("Main schedule statistics"):]
        return took, self.figure(main, "Total cycles") * self.figure(main, "Mean cycle") / 1e6

    def stop(self):
        for part in reversed(self.parts):
            part.terminate()
        for part in self.parts:
            try:
                part.wait(30)
            except subprocess.TimeoutExpired:
                part.kill()
                part.wait()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def main():
    folder = tempfile.mkdtemp(prefix="bench-e2e-", dir=os.path.join(world.ROOT, "build"))
    try:
        for nodes in SIZES:
            ours, theirs, label = [], [], "%dk" % (nodes // 1000) if nodes >= 1000 else str(nodes)
            for _ in range(RUNS):
                ours.append(run_ours(folder, nodes))
                slurm = Slurm(nodes)
                try:
                    theirs.append(slurm.run())
                finally:
                    slurm.stop()
                print("%s machines: ours %s, Slurm %.2f s (main loop %.2f s)" % (label, ours[-1], *theirs[-1]), file=sys.stderr, flush=True)
            slurm_rate = [JOBS / took for took, _ in theirs]
            line(label, [JOBS / one["grant_s"] for one in ours], slurm_rate)
            line("running." + label, [JOBS / one["start_s"] for one in ours], slurm_rate)
            line("decisions." + label, [JOBS / one["decide_s"] for one in ours], [JOBS / max(at_work, 1e-6) for _, at_work in theirs])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
