"""journal.wire, journal.p99, journal.inprocess: authorised durable job submissions against puts of the same bytes into Debian's etcd on the
same disk, in turns in the same run. One client program for both sides (bench/journal_load.cpp): CLIENTS connections over TLS 1.3, on one
thread, at most one request at a time each; to musterd over REST with an API token, to etcd over gRPC without authentication, both with the
same server key. Every job is answered when it is durable and shown; etcd runs with its defaults (fsync of every commit).
  journal.wire       submissions/s with every client asking again at once; baseline: etcd's puts/s
  journal.p99        ms at the same offered load on both sides, SHARE of etcd's rate; baseline: etcd's
  journal.inprocess  submissions/s through the engine without network (bench/journal.cpp), eight times CLIENTS of them waiting at once, which
                     no network must carry; baseline: etcd's puts/s over its API, with CLIENTS or twice as many, whatever is more
  journal.*_fsyncs   fdatasync and fsync calls for 1,000 acknowledged requests (strace, in a run of its own); baseline: etcd's
CPU per request of server and client are on standard error. RUNS (3), SECONDS (8), CLIENTS (512), BYTES (256), SHARE (0.7). Needs no root.
"""
import json
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build/release")
RUNS, SECONDS, CLIENTS, BYTES, SHARE = (float(os.environ.get(name, default)) for name, default in (
    ("RUNS", "3"), ("SECONDS", "8"), ("CLIENTS", "512"), ("BYTES", "256"), ("SHARE", "0.7")))
PASSWORD = "correct horse battery staple"


def line(name, values, unit, baselines):
    value, baseline = statistics.median(values), statistics.median(baselines)
    print(json.dumps({"name": name, "value": round(value, 3), "unit": unit, "baseline": round(baseline, 3), "ratio": round(value / baseline, 3),
                      "runs": len(values), "all": [round(v, 2) for v in values], "all_baseline": [round(v, 2) for v in baselines]}), flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_port(port, process):
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server ended at its start; see its log")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the server does not listen")


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Side:
    """One server in a folder of its own, under strace when its fsyncs are counted."""

    def __init__(self, kind, folder, keys, counted=False):
        self.kind, self.port, self.token = kind, free_port(), ""
        self.dir = tempfile.mkdtemp(prefix=kind + "-", dir=folder)
        self.trace = self.dir + "/syncs" if counted else ""
        self.log = open(self.dir + "/log", "wb")
        command = self.etcd(keys) if kind == "etcd" else self.musterd(keys)
        if counted:
            command = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=fsync,fdatasync", "-o", self.trace] + command
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        wait_port(self.port, self.process)
        if kind == "muster":
            self.set_up()

    def etcd(self, keys):
        url = "https://127.0.0.1:%d" % self.port
        return ["etcd", "--data-dir", self.dir + "/data", "--listen-client-urls", url, "--advertise-client-urls", url, "--cert-file", keys + "/cert.pem",
                "--key-file", keys + "/key.pem", "--listen-peer-urls", "http://127.0.0.1:%d" % free_port(), "--log-level", "error"]

    def musterd(self, keys):
        shutil.copytree(keys + "/data", self.dir + "/data")
        return [BUILD + "/musterd", "serve", "--data", self.dir + "/data", "--listen", "127.0.0.1:%d" % self.port]

    def call(self, method, path, body, token=""):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # loopback, and a CA made a moment ago
        request = urllib.request.Request("https://127.0.0.1:%d/api/v1/%s" % (self.port, path), json.dumps(body).encode(), method=method,
                                         headers={"Content-Type": "application/json", **({"Authorization": "Bearer " + token} if token else {})})
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return json.load(answer)

    def set_up(self):
        admin = self.call("POST", "login", {"name": "admin", "password": PASSWORD})["token"]
        self.call("POST", "orgs", {"name": "lab"}, admin)
        self.call("POST", "projects", {"org": "lab", "name": "default"}, admin)
        self.call("POST", "users", {"name": "ann", "role": "tenant", "org": "lab", "password": PASSWORD}, admin)
        login = self.call("POST", "login", {"name": "ann", "password": PASSWORD})["token"]
        token = self.call("POST", "tokens", {"label": "bench"}, login)["secret"]
        self.call("POST", "clusters", {"spec": {"name": "main", "image": "muster/ray:latest", "head": {"resources": {"cpus": 1}}}}, token)
        self.token = self.dir + "/token"
        with open(self.token, "w") as f:
            f.write(token + "\n")

    def pid(self):
        if not self.trace:
            return self.process.pid
        return int(subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()[0])

    def load(self, rate, seconds=SECONDS, clients=CLIENTS):
        before = cpu_seconds(self.pid())
        done = subprocess.run([BUILD + "/bench_journal_load", self.kind, str(self.port), str(int(clients)), str(int(seconds)), str(int(rate)), str(int(BYTES))] +
                              ([self.token] if self.token else []), check=True, capture_output=True, text=True)
        out = json.loads(done.stdout)
        out["server_cpu"] = cpu_seconds(self.pid()) - before
        print("%-6s %s: %.0f/s, p50 %.2f ms, p99 %.2f ms, server %.1f us and client %.1f us of CPU each, %d faults" % (
            self.kind, "offered %d/s" % rate if rate else "as fast as answered", out["rate"], out["p50"], out["p99"], 1e6 * out["server_cpu"] / max(1, out["answered"]),
            1e6 * out["client_cpu"] / max(1, out["answered"]), out["faults"]), file=sys.stderr)
        return out

    def close(self):
        os.kill(self.pid(), signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        syncs = 0
        if self.trace:
            with open(self.trace) as f:
                syncs = sum(bool(re.search(r"\bf(data)?sync\(", row)) for row in f)
        shutil.rmtree(self.dir)
        return syncs


def one_run(folder, keys, rates, p99s):
    sides = {}
    for kind in ("etcd", "muster"):
        side = Side(kind, folder, keys)
        side.load(0, 2)  # warm
        rates[kind].append(side.load(0)["rate"])
        side.close()
    offered = SHARE * statistics.median(rates["etcd"])
    for kind in ("etcd", "muster"):
        sides[kind] = Side(kind, folder, keys)
        sides[kind].load(offered, 2)
        p99s[kind].append(sides[kind].load(offered)["p99"])
        sides[kind].close()


def main():
    folder = tempfile.mkdtemp(prefix="bench-journal-", dir=os.path.join(ROOT, "build"))
    try:
        keys = folder + "/keys"
        os.mkdir(keys)
        with open(keys + "/password", "w") as f:
            f.write(PASSWORD + "\n")
        subprocess.run([BUILD + "/musterd", "init", "--data", keys + "/data", "--name", "localhost,127.0.0.1", "--operator", "admin", "--password-file",
                        keys + "/password"], check=True, stdout=subprocess.DEVNULL)
        for name in ("cert", "key"):
            shutil.copy(keys + "/data/keys/tls.%s.pem" % name, keys + "/%s.pem" % name)
        rates, p99s, syncs = ({"etcd": [], "muster": []} for _ in range(3))
        for _ in range(int(RUNS)):
            one_run(folder, keys, rates, p99s)
        line("journal.wire", rates["muster"], "submissions/s", rates["etcd"])
        line("journal.p99", p99s["muster"], "ms", p99s["etcd"])
        side = Side("etcd", folder, keys)
        best = max(statistics.median(rates["etcd"]), side.load(0, clients=2 * CLIENTS)["rate"])
        side.close()
        for kind in ("etcd", "muster"):
            side = Side(kind, folder, keys, counted=True)
            answered = side.load(0)["answered"]
            syncs[kind].append(1000 * side.close() / answered)
        line("journal.wire_fsyncs", syncs["muster"], "calls per 1,000 requests", syncs["etcd"])
        subprocess.run([BUILD + "/bench_journal", folder, str(int(8 * CLIENTS)), str(int(SECONDS)), str(int(RUNS)), str(best)], check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
