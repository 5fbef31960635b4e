"""relay.per_cpu, relay.p99, relay.kib_per_client: muster-relay beside Tailscale's derper, whose frames have the same form, in turns in the same
run. PAIRS pairs of clients over TLS, packets of 1,400 bytes, each a record of its own; one client program for both (bench/relay_load.cpp).
  relay.saturation      Gbit/s of payload that arrive when everybody sends as fast as the server takes it; baseline: derper's
  relay.per_cpu         Gbit of payload for a second of the server's processor time, at the same arrivals: 75 % of what derper carries at most.
                        The time is the process's own (user and system); _system: all that the machine did but for the client, so what the
                        kernel does elsewhere counts too. The line without a suffix is the one with the lower ratio
  relay.p99.25 .50 .75  ms from when a packet was due to its arrival, at 25, 50 and 75 % of what derper carries at most; relay.p99: the one
                        with the highest ratio
  relay.kib_per_client  memory (PSS) for one of CLIENTS idle clients; baseline: derper's; the bar is 24 KiB
ONLY=load or idle does a part. RUNS (3), SECONDS (4), PAIRS (20), CLIENTS (10000), THREADS (2; of muster-relay). derper v1.102.0 is built as a
Go module on first use (needs Go and its module proxy). Needs no root.
"""
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build/release")
RIG = "bench_relay_load"
DERPER, DERP_NAME = "tailscale.com/cmd/derper@v1.102.0", "derp.bench"
RUNS, SECONDS, PAIRS, CLIENTS, THREADS = (int(os.environ.get(name, default)) for name, default in (
    ("RUNS", "3"), ("SECONDS", "4"), ("PAIRS", "20"), ("CLIENTS", "10000"), ("THREADS", "2")))
BYTES = 1400
SIDES = ("derp", "muster")


def say(text):
    print(text, file=sys.stderr, flush=True)


def line(name, values, unit, baselines):
    value, baseline = statistics.median(values), statistics.median(baselines)
    out = {"name": name, "value": round(value, 3), "unit": unit, "baseline": round(baseline, 3), "ratio": round(value / baseline, 3), "runs": len(values),
           "all": [round(v, 3) for v in values], "all_baseline": [round(v, 3) for v in baselines]}
    print(json.dumps(out), flush=True)
    return out


def derper():
    path = os.path.join(ROOT, "build/peers/derper")
    if not os.path.exists(path):
        say("building " + DERPER)
        subprocess.run(["go", "install", DERPER], check=True, env=dict(os.environ, GOBIN=os.path.dirname(path), GOFLAGS=""), stdout=sys.stderr)
    return path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def many_descriptors():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Server:
    def __init__(self, kind, keys):
        self.kind, self.port = kind, free_port()
        listen, pair = "127.0.0.1:%d" % self.port, [keys + "/" + DERP_NAME + end for end in (".crt", ".key")]
        if kind == "derp":
            command = [derper(), "-a", listen, "-http-port", "-1", "-stun=false", "-certmode", "manual", "-certdir", keys, "-hostname", DERP_NAME,
                       "-c", keys + "/derper.json"]
        else:
            command = [BUILD + "/muster-relay", "--listen", listen, "--handoff", keys + "/handoff", "--cert", pair[0], "--key", pair[1], "--controller-key",
                       keys + "/controller.pub", "--relay-id", "bench", "--threads", str(THREADS), "--member-mbyte-s", "100000"]
        self.log = open("%s/%s.log" % (keys, kind), "ab")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, preexec_fn=many_descriptors)
        for _ in range(400):
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        raise SystemExit("%s does not listen: %s" % (kind, open(self.log.name).read()[-2000:]))

    def ask(self, what, *more):
        done = subprocess.run([BUILD + "/" + RIG, what, self.kind, str(self.port), str(self.process.pid)] + [str(m) for m in more], capture_output=True, text=True,
                              preexec_fn=many_descriptors)
        if done.returncode:
            self.close()
            raise SystemExit("%s %s: %s" % (what, self.kind, done.stderr or "ended with %d" % done.returncode))
        return json.loads(done.stdout)

    def load(self, rate, seconds=SECONDS):
        out = self.ask("load", PAIRS, BYTES, int(rate), seconds)
        carried = out["rate"] * out["seconds"] * BYTES * 8 / 1e9
        out["gbit_s"] = carried / out["seconds"]
        out["per_cpu"], out["per_cpu_system"] = carried / max(0.01, out["server_cpu"]), carried / max(0.01, out["rest_cpu"])
        say("%-6s %s: %.2f Gbit/s arrive of %.2f, p50 %.2f ms, p99 %.2f ms; a Gbit takes %.2f s of CPU of the server, %.2f with the kernel's, %.2f of the client; %s" % (
            self.kind, "%7.0f packets/s" % rate if rate else "as fast as it goes", out["gbit_s"], out["sent"] * BYTES * 8 / 1e9, out["p50_us"] / 1e3, out["p99_us"] / 1e3,
            1 / out["per_cpu"], 1 / out["per_cpu_system"], out["client_cpu"] / max(carried, 1e-9), out["cipher"]))
        return out

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def measure(keys):
    best = {kind: [] for kind in SIDES}
    for _ in range(RUNS):
        for kind in SIDES:
            server = Server(kind, keys)
            best[kind].append(server.load(0))
            server.close()
    line("relay.saturation", [run["gbit_s"] for run in best["muster"]], "Gbit/s", [run["gbit_s"] for run in best["derp"]])
    most = statistics.median(run["rate"] for run in best["derp"])
    runs = {(kind, share): [] for kind in SIDES for share in (25, 50, 75)}
    for _ in range(RUNS):
        for share in (25, 50, 75):
            for kind in SIDES:
                server = Server(kind, keys)
                runs[kind, share].append(server.load(most * share / 100))
                server.close()

    def both(field, share, factor=1.0):
        return [[run[field] * factor for run in runs[kind, share]] for kind in ("muster", "derp")]

    def told(name, unit, pair):
        return line(name, pair[0], unit, pair[1])

    costs = [(told("relay.per_cpu" + suffix, "Gbit per CPU second", both("per_cpu" + suffix.replace("_process", ""), 75)), suffix) for suffix in ("_process", "_system")]
    lower = min(costs, key=lambda cost: cost[0]["ratio"])[0]
    print(json.dumps(dict(lower, name="relay.per_cpu")), flush=True)
    waits = [told("relay.p99.%d" % share, "ms", both("p99_us", share, 1e-3)) for share in (25, 50, 75)]
    print(json.dumps(dict(max(waits, key=lambda wait: wait["ratio"]), name="relay.p99")), flush=True)


def idle(keys):
    kib = {}
    for kind in SIDES:
        server = Server(kind, keys)
        kib[kind] = server.ask("idle", CLIENTS)["kib_per_client"]
        say("%-6s %.1f KiB for each of %d idle clients" % (kind, kib[kind], CLIENTS))
        server.close()
    line("relay.kib_per_client", [kib["muster"]], "KiB", [kib["derp"]])


def main():
    derper()
    os.makedirs(os.path.join(ROOT, "build"), exist_ok=True)
    keys = tempfile.mkdtemp(prefix="bench-relay-", dir=os.path.join(ROOT, "build"))
    try:
        subprocess.run([BUILD + "/" + RIG, "keys", keys], check=True)
        only = os.environ.get("ONLY", "")
        if only != "idle":
            measure(keys)
        if only != "load":
            idle(keys)
    finally:
        shutil.rmtree(keys, ignore_errors=True)


if __name__ == "__main__":
    main()
