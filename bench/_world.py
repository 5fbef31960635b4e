"""What the benches with a large platform share: a data directory filled by bench_world (bench/world.cpp), and musterd on it."""
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build/release")
PASSWORD = "correct horse battery staple"


def line(name, values, unit, bar):
    value = statistics.median(values)
    print(json.dumps({"name": name, "value": round(value, 3), "unit": unit, "baseline": bar, "ratio": round(value / bar, 3), "runs": len(values),
                      "all": [round(v, 3) for v in values]}), flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def memory(pid):
    with open("/proc/%d/status" % pid) as f:
        return 1024 * next(int(row.split()[1]) for row in f if row.startswith("VmRSS:"))


def make(folder, nodes, requests, seconds):
    """The journal of a platform of that size in folder/data, left by a kill -9; what bench_world measured."""
    with open(folder + "/password", "w") as f:
        f.write(PASSWORD + "\n")
    subprocess.run([BUILD + "/musterd", "init", "--data", folder + "/data", "--name", "localhost,127.0.0.1", "--operator", "admin", "--password-file",
                    folder + "/password"], check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run([BUILD + "/bench_world", folder + "/data", str(nodes), str(requests), str(seconds), "kill"], stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        raise SystemExit("bench_world failed")
    return json.loads(done.stdout)


def answers(port, context):
    try:
        with urllib.request.urlopen("https://127.0.0.1:%d/readyz" % port, context=context, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def start(folder):
    """Starts musterd; seconds until it answers that it is ready, and the process."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # loopback, and a CA made a moment ago
    port = free_port()
    with open(folder + "/musterd.log", "ab") as log:
        began = time.monotonic()
        process = subprocess.Popen([BUILD + "/musterd", "serve", "--data", folder + "/data", "--listen", "127.0.0.1:%d" % port], stdout=log, stderr=log)
    while not answers(port, context):
        if process.poll() is not None or time.monotonic() - began > 600:
            print(open(folder + "/musterd.log").read(), file=sys.stderr)
            raise SystemExit("musterd does not serve")
        time.sleep(0.01)
    return time.monotonic() - began, process
