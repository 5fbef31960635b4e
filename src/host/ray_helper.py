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

SOCKET = os.environ.get("MUSTER_HELPER_SOCKET", "/muster/run/helper.sock")
STATE = os.environ.get("MUSTER_HELPER_STATE", "/tmp/ray/.muster_jobs.json")
PORTS = {  # pinned: the namespace is the cluster's own, so nothing else can hold them
    "gcs": 6379, "node_manager": 6380, "object_manager": 6381, "agent_http": 6382, "agent_grpc": 6383,
    "metrics": 6384, "runtime_env": 6385, "dashboard": 8265, "client": 10001, "worker_min": 10002, "worker_max": 10999}
LINE_MAX = 256 * 1024
JOBS_MAX = 1000
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


def ray_command(*words):
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


def tail_of(path, size=2000):
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.path.getsize(path) - size))
            return f.read(size).decode("utf-8", "replace")
    except OSError:
        return ""


def submission_id(job, attempt):
    return "%s-%d" % (job, attempt)


class Link:
    """The connection to the agent: events are queued, bounded, and dropped when nobody listens."""

    def __init__(self, helper):
        self.helper = helper
        self.peer = None
        self.out = queue.Queue(maxsize=1000)
        self.lock = threading.Lock()

    def serve(self):
        os.makedirs(os.path.dirname(SOCKET), exist_ok=True)
        try:
            os.unlink(SOCKET)
        except FileNotFoundError:
            pass
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(SOCKET)
        os.chmod(SOCKET, 0o666)
        server.listen(4)
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


class Jobs:
    """Jobs of this head: submitted to Ray's job server under an id of ours, so that a repeat is no second run."""

    def __init__(self, helper):
        self.helper = helper
        self.lock = threading.Lock()
        self.table = {}
        try:
            with open(STATE) as f:
                for row in json.load(f)[:JOBS_MAX]:
                    if row["state"] not in TERMINAL:
                        # The container started anew: the driver lived in the old one and is gone with it.
                        row.update(state="FAILED", message="driver_lost: the head's container restarted", exit_code=-1)
                    self.table[(row["job"], row["attempt"])] = row
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def save(self):
        part = STATE + ".part"
        try:
            with open(part, "w") as f:
                json.dump(list(self.table.values())[-JOBS_MAX:], f)
            os.replace(part, STATE)
        except OSError:
            pass

    def rows(self):
        with self.lock:
            return [dict(row, log_bytes=self.log_bytes(row["job"], row["attempt"])) for row in self.table.values()]

    def update(self, job, attempt, **fields):
        with self.lock:
            row = self.table.setdefault((job, attempt), {"job": job, "attempt": attempt, "state": "PENDING", "exit_code": -1, "message": ""})
            if row["state"] in TERMINAL:
                return
            if all(row.get(k) == v for k, v in fields.items()) and "fresh" not in fields:
                return
            fields.pop("fresh", None)
            row.update(fields)
            self.save()
            event = dict(row, ev="job", log_bytes=self.log_bytes(job, attempt))
        self.helper.link.send(event)

    def client(self):
        from ray.job_submission import JobSubmissionClient
        return JobSubmissionClient("http://%s:%d" % (self.helper.ip, PORTS["dashboard"]))

    def submit(self, m):
        job, attempt = str(m["job"]), int(m["attempt"])
        with self.lock:
            known = self.table.get((job, attempt))
        if known is not None:
            self.helper.link.send(dict(known, ev="job", log_bytes=self.log_bytes(job, attempt)))
            return
        self.update(job, attempt, state="PENDING", fresh=True)
        runtime_env = dict(m.get("runtime_env") or {})
        if m.get("working_dir"):
            runtime_env["working_dir"] = m["working_dir"]
        fault = ""
        for _ in range(20):  # the job server comes up a little after Ray itself
            try:
                client = self.client()
                try:
                    client.get_job_info(submission_id(job, attempt))
                except Exception:
                    client.submit_job(entrypoint=m["entrypoint"], submission_id=submission_id(job, attempt),
                                      runtime_env=runtime_env, metadata={str(k): str(v) for k, v in (m.get("metadata") or {}).items()})
                threading.Thread(target=self.watch, args=(job, attempt), daemon=True).start()
                return
            except Exception as e:
                fault = str(e)[:1500]
                if "runtime_env" in fault or "Invalid" in fault:
                    break
                time.sleep(0.5)
        self.update(job, attempt, state="FAILED", message="submit_failed: " + fault, exit_code=1)

    def watch(self, job, attempt):
        misses, told = 0, 0
        while True:
            time.sleep(0.5)
            try:
                info = self.client().get_job_info(submission_id(job, attempt))
                misses = 0
            except Exception as fault:
                misses += 1
                if misses > 240:
                    self.update(job, attempt, state="FAILED", message="driver_lost: " + str(fault)[:500])
                    return
                continue
            state = str(getattr(info.status, "value", info.status))
            code = info.driver_exit_code if info.driver_exit_code is not None else {"SUCCEEDED": 0, "FAILED": 1}.get(state, -1)
            message = info.message or ""
            if state == "FAILED" and info.driver_exit_code is None:
                lost = re.search(r"supervisor|died|node.*dead|unexpected", message, re.I)
                message = ("driver_lost: " if lost else "") + message
            if state in TERMINAL:
                time.sleep(0.3)  # the last lines of the log
            grown = self.log_bytes(job, attempt) != told
            told = self.log_bytes(job, attempt)
            self.update(job, attempt, state=state, message=message[:1500], exit_code=code, **({"fresh": True} if grown else {}))
            if state in TERMINAL:
                return

    def resume(self):
        for row in self.rows():
            if row["state"] not in TERMINAL:
                threading.Thread(target=self.watch, args=(row["job"], row["attempt"]), daemon=True).start()

    def fail_running(self, why):
        for row in self.rows():
            if row["state"] not in TERMINAL:
                self.update(row["job"], row["attempt"], state="FAILED", message="driver_lost: " + why, exit_code=-1)

    def stop(self, m):
        try:
            self.client().stop_job(submission_id(str(m["job"]), int(m["attempt"])))
        except Exception as fault:
            self.update(str(m["job"]), int(m["attempt"]), message="stop: " + str(fault)[:300])

    def log_path(self, job, attempt):
        name = "job-driver-%s.log" % submission_id(job, attempt)
        if not re.fullmatch(r"job-driver-[A-Za-z0-9_.-]+\.log", name):
            return None
        found = sorted(glob.glob("/tmp/ray/session_2*/logs/" + name))
        return found[-1] if found else None

    def log_bytes(self, job, attempt):
        path = self.log_path(job, attempt)
        try:
            return os.path.getsize(path) if path else 0
        except OSError:
            return 0

    def log(self, m):
        job, attempt, offset = str(m["job"]), int(m["attempt"]), int(m["offset"])
        data, size = b"", 0
        path = self.log_path(job, attempt)
        if path:
            with open(path, "rb") as f:
                size = os.fstat(f.fileno()).st_size
                f.seek(offset)
                data = f.read(max(0, min(int(m.get("max", 65536)), 65536)))
        with self.lock:
            row = self.table.get((job, attempt))
        done = row is None or row["state"] in TERMINAL
        self.helper.link.send({"ev": "job_log", "job": job, "attempt": attempt, "offset": offset,
                               "data": base64.b64encode(data).decode(), "eof": bool(done and offset + len(data) >= size)})


class Helper:
    def __init__(self):
        self.link = Link(self)
        self.phase = "idle"
        self.role = ""
        self.ip = ""
        self.head_ip = ""
        self.node_id = ""
        self.process = None
        self.stopping = False
        self.setup_done = False
        self.lock = threading.RLock()
        self.work = queue.Queue(maxsize=1000)
        self.jobs = Jobs(self)
        threading.Thread(target=self.work_loop, daemon=True).start()

    def hello(self):
        return {"ev": "hello", "phase": self.phase, "role": self.role, "ray_node_id": self.node_id, "setup_done": self.setup_done,
                "jobs": self.jobs.rows()}

    def handle(self, m):
        op = m["op"]
        if op == "job_log":  # reading must not wait behind a slow start
            self.jobs.log(m)
        elif op in ("job_submit", "job_stop"):
            threading.Thread(target=getattr(self.jobs, op[4:]), args=(m,), daemon=True).start()
        elif op in ("probe", "setup", "ray_start", "ray_drain", "ray_stop"):
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

    def setup(self, m):
        if self.setup_done:
            self.link.send({"ev": "setup_done"})
            return
        env = dict(os.environ, **{str(k): str(v) for k, v in (m.get("env") or {}).items()})
        if self.head_ip or m.get("head_ip"):
            env["RAY_HEAD_IP"] = str(m.get("head_ip") or self.head_ip)
        env["PATH"] = os.path.dirname(sys.executable) + ":" + env.get("PATH", "")
        for index, command in enumerate(m.get("commands") or []):
            with open("/tmp/ray/.muster_setup.log", "ab+") as log:
                done = subprocess.run(["/bin/sh", "-c", command], env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                self.link.send({"ev": "setup_failed", "step": index, "code": done.returncode, "tail": tail_of("/tmp/ray/.muster_setup.log")})
                return
        self.setup_done = True
        self.link.send({"ev": "setup_done"})

    def ray_start(self, m):
        with self.lock:
            if self.process is not None and self.process.poll() is None:
                if self.phase == "ready":
                    self.link.send({"ev": "ray_ready", "node_id": self.node_id})
                return
            self.role, self.ip, self.head_ip = m["role"], m["ip"], m["head_ip"]
            self.node_id, self.stopping, self.phase = "", False, "starting"
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
        subprocess.run(ray_command("stop", "--force"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) if m.get("restart") else None
        log = open("/tmp/ray/.muster_ray.log", "ab")
        self.process = subprocess.Popen(ray_command(*[str(w) for w in words]), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        threading.Thread(target=self.wait_exit, args=(self.process,), daemon=True).start()
        threading.Thread(target=self.wait_ready, args=(self.process,), daemon=True).start()

    def status(self):
        from ray.autoscaler.v2.sdk import get_cluster_status
        return get_cluster_status("%s:%d" % (self.head_ip, PORTS["gcs"]), timeout=5)

    def wait_ready(self, process):
        own = os.environ.get("RAY_CLOUD_INSTANCE_ID", "")
        while process.poll() is None:
            try:
                status = self.status()
                for node in list(status.active_nodes) + list(status.idle_nodes):
                    if node.ip_address == self.ip and node.node_id and (not own or node.instance_id in ("", own)):
                        with self.lock:
                            self.node_id, self.phase = node.node_id, "ready"
                        self.link.send({"ev": "ray_ready", "node_id": self.node_id})
                        if self.role == "head":
                            self.jobs.resume()
                            threading.Thread(target=self.report_loop, args=(process,), daemon=True).start()
                        return
            except Exception:
                pass
            time.sleep(0.25)

    def wait_exit(self, process):
        code = process.wait()
        with self.lock:
            if self.process is not process:
                return
            self.phase = "exited"
        if self.role == "head" and not self.stopping:
            self.jobs.fail_running("Ray on the head ended")
        self.link.send({"ev": "ray_exit", "code": code, "tail": tail_of("/tmp/ray/.muster_ray.log"), "wanted": self.stopping})

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
                              "total": {k: v for k, v in node.total_resources().items() if not k.startswith("node:")} if alive else {}})
        demands = []
        summary = status.resource_demands
        for demand in summary.ray_task_actor_demand + summary.cluster_constraint_demand:
            for row in demand.bundles_by_count:
                demands.append({"bundle": dict(row.bundle), "count": row.count, "strict_spread": False,
                                "constraint": demand in summary.cluster_constraint_demand})
        for group in summary.placement_group_demand:
            for row in group.bundles_by_count:
                demands.append({"bundle": {str(k): float(v) for k, v in dict(row.bundle).items() if "_group_" not in k}, "count": row.count,
                                "strict_spread": group.strategy == "STRICT_SPREAD"})
        return {"ev": "report", "nodes": nodes, "demands": demands[:500]}

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
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
        self.link.send({"ev": "ray_stopped"})


def main():
    helper = Helper()

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
    os.makedirs(os.path.dirname(STATE), exist_ok=True)
    threading.Thread(target=helper.link.serve, daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
