"""Muster's hand inside a Ray container: started as its main process, run by the image's own Python, so that it always
speaks the image's Ray version. It listens on a unix stream socket (JSON lines, one peer at a time, the newest wins) and
starts, watches and drains Ray, runs jobs through Ray's own job server and reports demand. Standard library only until
Ray is needed. Every event repeats state, so a lost connection loses nothing: the first line of a connection is "hello".
"""
import base64
import glob
import importlib.metadata
import json
import mmap
import os
import platform
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import ray_jobs

SOCKET = os.environ.get("MUSTER_HELPER_SOCKET", "/muster/run/helper.sock")
RAY_LOG = "/tmp/ray/.muster_ray.log"
PORTS = {  # pinned: the namespace is the cluster's own, so nothing else can hold them
    "gcs": 6379, "node_manager": 6380, "object_manager": 6381, "agent_http": 6382, "agent_grpc": 6383,
    "metrics": 6384, "runtime_env": 6385, "dashboard": 8265, "client": 10001, "worker_min": 10002, "worker_max": 10999}
LINE_MAX = 256 * 1024


# Lists of packages, and where one looks for them; the release first, then what it is the release of.
LISTS = ("usr/lib/os-release", "etc/os-release", "var/lib/dpkg/status", "lib/apk/db/installed") + tuple(
    "%s/rpm/%s" % (folder, name) for folder in ("var/lib", "usr/lib/sysimage") for name in ("rpmdb.sqlite", "Packages.db", "Packages"))
PYTHON_LISTS = (".dist-info/METADATA", ".egg-info/PKG-INFO", ".egg-info")
LISTS_WITHIN, LIST_MAX, LIST_PART = 20, 64 << 20, 128 * 1024  # seconds, bytes
NOT_OF_THE_IMAGE = ("proc", "sys", "dev", "tmp", "muster", "run")


def lists_of(root, end):
    """The paths of the lists in a root file system; None once if the time did not suffice to look everywhere."""
    for name in LISTS:
        if os.path.isfile(os.path.join(root, name)):
            yield os.path.join(root, name)
    for name in sorted(glob.glob(os.path.join(root, "var/lib/dpkg/status.d/*"))):
        if not name.endswith(".md5sums"):
            yield name
    for folder, folders, files in os.walk(root):
        if time.monotonic() > end:
            yield None
            return
        if folder == "/":
            folders[:] = [f for f in folders if f not in NOT_OF_THE_IMAGE]
        if folder.endswith(".dist-info"):
            yield from (os.path.join(folder, f) for f in files if f == "METADATA")
        elif folder.endswith(".egg-info"):
            yield from (os.path.join(folder, f) for f in files if f == "PKG-INFO")
        elif folder.endswith("-packages"):
            yield from (os.path.join(folder, f) for f in files if f.endswith(".egg-info"))


def ray_command(*words):
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


def tail_of(path, size=2000):
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.path.getsize(path) - size))
            return f.read(size).decode("utf-8", "replace")
    except OSError:
        return ""


def tail_after(path, offset):
    try:
        with open(path, "rb") as f:
            f.seek(offset)
            return f.read(64 * 1024)
    except OSError:
        return b""


def plain(resources):
    """Without what Ray adds for its own book-keeping: an entry a node, copies for placement groups."""
    return {str(k): float(v) for k, v in dict(resources).items() if not k.startswith(("node:", "bundle_group_")) and "_group_" not in k}


def added(rows):
    total = {}
    for bundle, count in rows:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount * count
    return total


def raylet_id():
    """The id that the raylet of this container was started with, or an empty one."""
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as f:
                words = f.read().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"/raylet"):
            for word in words:
                found = re.fullmatch(rb"--node_id=([0-9a-f]{8,128})", word)
                if found:
                    return found[1].decode()
    return ""


def answers(ip, port):
    try:
        socket.create_connection((ip, port), timeout=2).close()
        return True
    except OSError:
        return False


def listen():
    os.makedirs(os.path.dirname(SOCKET), exist_ok=True)
    try:
        os.unlink(SOCKET)
    except FileNotFoundError:
        pass
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(SOCKET)
    os.chmod(SOCKET, 0o666)
    server.listen(4)
    return server


class Link:
    """The connection to the agent: events are queued, bounded, and dropped when nobody listens."""

    def __init__(self, helper):
        self.helper = helper
        self.peer = None
        self.out = queue.Queue(maxsize=1000)
        self.lock = threading.Lock()

    def serve(self, server):
        threading.Thread(target=self.write_loop, daemon=True).start()
        while True:
            peer, _ = server.accept()
            with self.lock:
                if self.peer is not None:
                    try:
                        self.peer.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
                self.peer = peer
            self.send(self.helper.hello())
            threading.Thread(target=self.read_loop, args=(peer,), daemon=True).start()

    def read_loop(self, peer):
        data = b""
        while True:
            try:
                chunk = peer.recv(65536)
            except OSError:
                chunk = b""
            if not chunk:
                break
            data += chunk
            while b"\n" in data:
                line, data = data.split(b"\n", 1)
                try:
                    message = json.loads(line)
                    self.helper.handle(message)
                except Exception as fault:  # one bad order must not end the container
                    self.send({"ev": "fault", "text": "%s: %s" % (type(fault).__name__, str(fault)[:500])})
            if len(data) > LINE_MAX:
                break
        with self.lock:
            if self.peer is peer:
                self.peer = None
        peer.close()

    def send(self, event):
        try:
            self.out.put_nowait(event)
        except queue.Full:
            pass  # everything is repeated in the next hello

    def send_all(self, event):
        """For what is not repeated: waits until there is room."""
        self.out.put(event, timeout=30)

    def write_loop(self):
        while True:
            event = self.out.get()
            with self.lock:
                peer = self.peer
            if peer is None:
                continue
            try:
                peer.sendall(json.dumps(event, separators=(",", ":"), default=str).encode() + b"\n")
            except OSError:
                pass


class Helper:
    def __init__(self, warm=None):
        self.link = Link(self)
        self.warm = warm  # a child with Ray imported (ray_warm.py), or None
        self.phase = "idle"
        self.role = ""
        self.ip = ""
        self.head_ip = ""
        self.node_id = ""
        self.process = None
        self.gcs = None  # a client of the head's GCS
        self.standing = []  # what request_resources asked for
        self.attempt = 0  # of begin(): what an older one still does is of no interest
        self.restarts = 0  # as the agent counts them: a higher number while starting means "that one hangs, again"
        self.stopping = False
        self.setup_done = False
        self.lock = threading.RLock()
        self.work = queue.Queue(maxsize=1000)
        self.jobs = ray_jobs.Jobs(self)
        threading.Thread(target=self.work_loop, daemon=True).start()

    def hello(self):
        return {"ev": "hello", "phase": self.phase, "home": os.path.expanduser("~")[:1024], "role": self.role, "ray_node_id": self.node_id, "setup_done": self.setup_done,
                "jobs": self.jobs.rows()}

    def handle(self, m):
        op = m["op"]
        if op == "job_log":  # reading must not wait behind a slow start
            self.jobs.log(m)
        elif op in ("job_submit", "job_stop"):
            threading.Thread(target=getattr(self.jobs, op[4:]), args=(m,), daemon=True).start()
        elif op in ("probe", "lists", "setup", "ray_start", "ray_drain", "ray_stop"):
            self.work.put_nowait((op, m))
        elif op == "ping":
            self.link.send({"ev": "pong"})
        else:
            self.link.send({"ev": "fault", "text": "unknown op " + str(op)[:50]})

    def work_loop(self):
        while True:
            op, m = self.work.get()
            try:
                getattr(self, op)(m)
            except Exception as fault:
                self.link.send({"ev": "fault", "op": op, "text": "%s: %s" % (type(fault).__name__, str(fault)[:500])})

    def probe(self, _):
        try:
            version = importlib.metadata.version("ray")
        except importlib.metadata.PackageNotFoundError:
            self.link.send({"ev": "probe", "ray": "", "python": platform.python_version(), "token_auth": False, "rocksdb": False})
            return
        root = str(importlib.metadata.distribution("ray").locate_file("ray"))
        rocksdb = False
        try:
            with open(os.path.join(root, "core/src/ray/gcs/gcs_server"), "rb") as f:
                with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as image:
                    rocksdb = image.find(b"gcs_storage_path") >= 0 and image.find(b"rocksdb") >= 0
        except (OSError, ValueError):
            pass
        self.link.send({"ev": "probe", "ray": version, "python": platform.python_version(),
                        "token_auth": os.path.isdir(os.path.join(root, "_private/authentication")), "rocksdb": rocksdb})

    def lists(self, m):
        """What is installed: the lists of packages as they lie in the image, for others to read (scan/inventory.h). Of a
        virtual environment that alone: the system around it is the machine's."""
        end = time.monotonic() + LISTS_WITHIN
        whole = True
        for path in lists_of(sys.prefix if m.get("venv") else "/", end):
            if path is None:
                whole = False
            else:
                whole = self.list_file(path) and whole
        self.link.send_all({"ev": "lists_end", "whole": whole})

    def list_file(self, path):
        try:
            with open(path, "rb") as f:
                python = path.endswith(PYTHON_LISTS)
                if python:  # names and versions stand before the first empty line
                    data = f.read(64 * 1024).replace(b"\r\n", b"\n")
                    data = data[:data.find(b"\n\n") + 1] if b"\n\n" in data else data
                else:
                    data = f.read(LIST_MAX + 1)
        except OSError:
            return False
        if len(data) > LIST_MAX:
            return False
        for at in range(0, max(1, len(data)), LIST_PART):
            self.link.send_all({"ev": "list", "path": path.lstrip("/"), "data": base64.b64encode(data[at:at + LIST_PART]).decode(),
                                "more": at + LIST_PART < len(data)})
        return True

    def setup(self, m):
        if self.setup_done:
            self.link.send({"ev": "setup_done"})
            return
        env = dict(os.environ, **{str(k): str(v) for k, v in (m.get("env") or {}).items()})
        if self.head_ip or m.get("head_ip"):
            env["RAY_HEAD_IP"] = str(m.get("head_ip") or self.head_ip)
        env["PATH"] = os.path.dirname(sys.executable) + ":" + env.get("PATH", "")
        commands = m.get("commands") or []
        if commands:
            self.warm = None  # they may install other packages: Ray is imported anew
        for index, command in enumerate(commands):
            with open("/tmp/ray/.muster_setup.log", "ab+") as log:
                done = subprocess.run(["/bin/sh", "-c", command], env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                self.link.send({"ev": "setup_failed", "step": index, "code": done.returncode, "tail": tail_of("/tmp/ray/.muster_setup.log")})
                return
        self.setup_done = True
        self.link.send({"ev": "setup_done"})

    def run_ray(self, *words):
        words = [str(w) for w in words]
        process = self.warm.spawn(words, RAY_LOG) if self.warm else None
        if process is None:
            with open(RAY_LOG, "ab") as log:
                process = subprocess.Popen(ray_command(*words), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        return process

    def ray_start(self, m):
        with self.lock:
            if self.phase == "ready":
                return self.link.send({"ev": "ray_ready", "node_id": self.node_id})
            restarts, hangs = int(m.get("restarts", 0)), self.process
            if self.phase == "starting" and restarts <= self.restarts:
                return
            self.restarts, self.process = restarts, None
            if hangs is not None:
                hangs.kill()
            self.role, self.ip, self.head_ip = m["role"], m["ip"], m["head_ip"]
            self.node_id, self.stopping, self.phase = "", False, "starting"
            self.attempt += 1
        threading.Thread(target=self.begin, args=(self.start_words(m), restarts > 0, self.attempt), daemon=True).start()

    def start_words(self, m):
        p = PORTS
        words = ["start", "--block", "--disable-usage-stats", "--node-ip-address", self.ip,
                 "--node-manager-port", p["node_manager"], "--object-manager-port", p["object_manager"],
                 "--dashboard-agent-listen-port", p["agent_http"], "--dashboard-agent-grpc-port", p["agent_grpc"],
                 "--metrics-export-port", p["metrics"], "--runtime-env-agent-port", p["runtime_env"],
                 "--min-worker-port", p["worker_min"], "--max-worker-port", p["worker_max"],
                 "--num-cpus", int(m.get("num_cpus", 1)), "--num-gpus", int(m.get("num_gpus", 0))]
        if m.get("memory"):
            words += ["--memory", int(m["memory"])]
        if m.get("object_store_memory"):
            words += ["--object-store-memory", int(m["object_store_memory"])]
        if m.get("resources"):
            words += ["--resources", json.dumps(m["resources"])]
        if m.get("labels"):
            words += ["--labels", ",".join("%s=%s" % (k, v) for k, v in sorted(m["labels"].items()))]
        if self.role == "head":
            words += ["--head", "--port", p["gcs"], "--dashboard-host", self.ip, "--dashboard-port", p["dashboard"],
                      "--ray-client-server-port", p["client"], "--include-dashboard", "true"]
        else:
            words += ["--address", "%s:%d" % (self.head_ip, p["gcs"])]
        return words

    def begin(self, words, restart, attempt):
        """A worker begins once the head's GCS answers: Ray itself would look again only seconds later."""
        while self.role != "head" and not answers(self.head_ip, PORTS["gcs"]):
            if self.stopping or self.attempt != attempt:
                return
            time.sleep(0.05)
        if restart:
            self.run_ray("stop", "--force").wait()
        with self.lock:
            if self.stopping or self.attempt != attempt:
                return
            said = os.path.getsize(RAY_LOG) if os.path.exists(RAY_LOG) else 0
            self.process = process = self.run_ray(*words)
        threading.Thread(target=self.wait_exit, args=(process,), daemon=True).start()
        self.wait_ready(process, said)

    def status(self):
        from ray.autoscaler.v2.sdk import get_cluster_status
        return get_cluster_status("%s:%d" % (self.head_ip, PORTS["gcs"]), timeout=5)

    def wait_ready(self, process, said):
        """Ready is what Ray's GCS says of this container's own raylet: a restarted GCS still lists the one before, at the same
        address, as alive. It is asked when `ray start` has said that it is done, and once a second in any case."""
        own, asked = os.environ.get("RAY_CLOUD_INSTANCE_ID", ""), time.monotonic()
        while process.poll() is None:
            done = b"Ray runtime started" in tail_after(RAY_LOG, said)
            if not done and time.monotonic() - asked < 1.0:
                time.sleep(0.05)
                continue
            asked, ours = time.monotonic(), raylet_id()
            try:
                status = self.status() if ours or done else None
                for node in list(status.active_nodes) + list(status.idle_nodes) if status else []:
                    mine = node.node_id == ours if ours else node.ip_address == self.ip and node.instance_id in ("", own)
                    if node.node_id and mine:
                        with self.lock:
                            if self.process is not process:
                                return
                            self.node_id, self.phase, self.gcs = node.node_id, "ready", None
                        self.link.send({"ev": "ray_ready", "node_id": self.node_id})
                        if self.role == "head":
                            self.jobs.resume()
                            threading.Thread(target=self.report_loop, args=(process,), daemon=True).start()
                        return
            except Exception:
                pass
            time.sleep(0.05)

    def wait_exit(self, process):
        code = process.wait()
        with self.lock:
            if self.process is not process:
                return
            self.phase = "exited"
        if self.role == "head" and not self.stopping:
            self.jobs.fail_running("Ray on the head ended")
        self.link.send({"ev": "ray_exit", "code": code, "tail": tail_of(RAY_LOG), "wanted": self.stopping})

    def report_loop(self, process):
        while process.poll() is None:
            try:
                self.link.send(self.report())
            except Exception as fault:
                self.link.send({"ev": "fault", "op": "report", "text": str(fault)[:300]})
            time.sleep(1.0)

    def report(self):
        status = self.status()
        nodes = []
        for alive, group in ((True, status.active_nodes), (True, status.idle_nodes), (False, status.failed_nodes)):
            for node in group[:2000]:
                idle = node.resource_usage.idle_time_ms / 1000.0 if node.resource_usage and group is status.idle_nodes else 0.0
                nodes.append({"node_id": node.node_id or "", "ip": node.ip_address or "", "alive": alive, "idle_s": idle,
                              "total": plain(node.total_resources()) if alive else {}, "free": plain(node.available_resources()) if alive else {}})
        summary, demands = status.resource_demands, []
        for demand in summary.ray_task_actor_demand:
            demands += [{"bundle": plain(row.bundle), "count": row.count} for row in demand.bundles_by_count]
        for number, group in enumerate(summary.placement_group_demand, 1):
            rows = [(plain(row.bundle), row.count) for row in group.bundles_by_count]
            if group.strategy == "STRICT_PACK":  # all on one node
                rows = [(added(rows), 1)]
            demands += [{"bundle": bundle, "count": count, "group": number, "strict_spread": group.strategy == "STRICT_SPREAD"} for bundle, count in rows]
        for demand in summary.cluster_constraint_demand:
            demands += [{"bundle": plain(row.bundle), "count": row.count, "standing": True} for row in demand.bundles_by_count]
        return {"ev": "report", "nodes": nodes, "demands": (demands + self.requested())[:500]}

    def requested(self):
        """What ray.autoscaler.sdk.request_resources last asked for: Ray keeps it for an autoscaler, and that is us."""
        from ray._raylet import GcsClient
        from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
        try:
            if self.gcs is None:
                self.gcs = GcsClient("%s:%d" % (self.head_ip, PORTS["gcs"]))
            value = self.gcs.internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL, None, timeout=5)
            counts = {}
            for bundle in json.loads(value) if value else []:
                shape = json.dumps(plain(bundle), sort_keys=True)
                counts[shape] = counts.get(shape, 0) + 1
            self.standing = [{"bundle": json.loads(shape), "count": count, "standing": True} for shape, count in counts.items()]
        except Exception as fault:  # what was asked before still holds
            self.link.send({"ev": "fault", "op": "report", "text": str(fault)[:300]})
        return self.standing

    def ray_drain(self, m):
        if self.phase == "ready" and self.node_id:
            subprocess.run(ray_command("drain-node", "--address", "%s:%d" % (self.head_ip, PORTS["gcs"]), "--node-id", self.node_id,
                                       "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "muster drains this worker",
                                       "--deadline-remaining-seconds", str(int(m.get("deadline_s", 30)))),
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        self.link.send({"ev": "drained"})

    def ray_stop(self, _):
        with self.lock:
            self.stopping = True
            process = self.process
            if process is None:
                self.phase = "idle"
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
        self.link.send({"ev": "ray_stopped"})


def main():
    server = listen()
    warm = None
    if os.environ.get("MUSTER_HELPER_WARM") == "1":
        try:
            import ray_warm
            warm = ray_warm.make(close=[server])
        except ImportError:
            pass
    helper = Helper(warm)

    def end(*_):
        helper.stopping = True
        if helper.process is not None and helper.process.poll() is None:
            helper.process.terminate()
            try:
                helper.process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                helper.process.kill()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    os.makedirs(os.path.dirname(ray_jobs.STATE), exist_ok=True)
    threading.Thread(target=helper.link.serve, args=(server,), daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
