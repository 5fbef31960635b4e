"""port.fresh_p99_ms.KIND, port.kept_p99_ms.KIND: what a good client waits for /healthz, on a new TLS connection each time and on one that is
kept, while KIND holds the public port: ten thousand connections that say nothing (silent) or half a hello (half), three thousand headers or
bodies that drip, TLS all done (header, body). baseline: the same without an attack, measured right before it; the bar is a ratio of 2. port.musterd_mb.KIND and
port.relay_mb.KIND: how much their memory grew. JSON lines; RUNS=n rounds (default 3), medians; KINDS=header,body only those. The attackers have a lower priority: they would come from
other machines. Both programs as they are, muster-relay in front of musterd, on loopback.
"""
import http.client
import json
import os
import re
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
KINDS = (("silent", 10_000), ("half", 10_000), ("header", 3_000), ("body", 3_000))
KINDS = [(kind, count) for kind, count in KINDS if kind in os.environ.get("KINDS", kind)]
REQUESTS = 1_000


def line(name, value, unit, baseline, runs):
    print(json.dumps({"name": name, "value": round(value, 2), "unit": unit, "baseline": round(baseline, 2), "ratio": round(value / baseline, 3) if baseline else None,
                      "runs": runs}), flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def resident_mb(pid):
    with open("/proc/%d/status" % pid) as f:
        return int(re.search(r"VmRSS:\s+(\d+)", f.read())[1]) / 1024


def p99_ms(waits):
    return sorted(waits)[int(len(waits) * 0.99)] * 1000


def one(connection):
    began = time.perf_counter()
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError("status %d" % answer.status)
    return time.perf_counter() - began


def measure(port, trust):
    """-> p99 of new connections, p99 of a kept one, in ms"""
    fresh, kept = [], []
    for _ in range(REQUESTS):
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=trust)
        fresh.append(one(connection))
        connection.close()
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=trust)
    for _ in range(REQUESTS):
        kept.append(one(connection))
    connection.close()
    return p99_ms(fresh), p99_ms(kept)


def main():
    processes = []
    with tempfile.TemporaryDirectory(prefix="muster-port-") as folder:
        try:
            data, port = folder + "/data", free_port()
            with open(folder + "/password", "w") as f:
                f.write("correct horse battery\n")
            subprocess.run([BUILD + "/musterd", "init", "--data", data, "--name", "127.0.0.1", "--password-file", folder + "/password"], check=True, stdout=subprocess.DEVNULL)
            log = open(folder + "/log", "w")
            relay = subprocess.Popen([BUILD + "/muster-relay", "--listen", "127.0.0.1:%d" % port, "--handoff", folder + "/sock", "--cert", data + "/relay/cert.pem", "--key",
                                      data + "/relay/key.pem", "--controller-key", data + "/relay/controller.pub", "--relay-id", "r", "--mirror", "off", "--udp", "off"],
                                     stdout=log, stderr=log)
            processes.append(relay)
            musterd = subprocess.Popen([BUILD + "/musterd", "serve", "--data", data, "--listen", "127.0.0.1:0", "--handoff", folder + "/sock"], stdout=log, stderr=log)
            processes.append(musterd)
            trust = ssl.create_default_context(cafile=data + "/ca.pem")
            for _ in range(300):
                try:
                    measure_once = http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=trust)
                    one(measure_once)
                    break
                except OSError:
                    time.sleep(0.1)
            runs = int(os.environ.get("RUNS", "3"))
            found = {kind: [] for kind, _ in KINDS}
            for _ in range(runs):
                for kind, count in KINDS:
                    idle = measure(port, trust)
                    before = resident_mb(musterd.pid), resident_mb(relay.pid)
                    attack = subprocess.Popen([sys.executable, os.path.join(ROOT, "tests/lab/port_attack.py"), str(port), kind, str(count), "300"], stdout=subprocess.PIPE, text=True)
                    processes.append(attack)
                    if not attack.stdout.readline().startswith("ready "):
                        raise RuntimeError("the attack did not begin")
                    busy = measure(port, trust)
                    found[kind].append((idle, busy, (resident_mb(musterd.pid) - before[0], resident_mb(relay.pid) - before[1])))
                    attack.kill()
                    attack.wait()
                    processes.remove(attack)
                    time.sleep(6)  # until what it left has been closed
            for kind, _ in KINDS:
                middle = lambda part, at: statistics.median(round_[part][at] for round_ in found[kind])
                for at, name in ((0, "fresh"), (1, "kept")):
                    line("port.%s_p99_ms.%s" % (name, kind), middle(1, at), "ms", middle(0, at), runs)
                for at, name in ((0, "musterd"), (1, "relay")):
                    line("port.%s_mb.%s" % (name, kind), middle(2, at), "MB", 0, runs)
        finally:
            for process in processes:
                process.kill()
                process.wait()


main()
