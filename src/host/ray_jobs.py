"""Jobs of the head that this helper runs on: handed to Ray's own job server under an id of ours, so that a repeat is no second
run; watched, stopped, and their logs read. What was handed over is written down, so that a new container knows what died.
"""
import base64
import glob
import json
import os
import re
import threading
import time

STATE = os.environ.get("MUSTER_HELPER_STATE", "/tmp/ray/.muster_jobs.json")
DASHBOARD = 8265
JOBS_MAX = 1000
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


def submission_id(job, attempt):
    return "%s-%d" % (job, attempt)


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
        return JobSubmissionClient("http://%s:%d" % (self.helper.ip, DASHBOARD))

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
        if (m.get("metadata") or {}).get("muster_identity_audience"):
            path = "/muster/secrets/identity-%s" % job
            for _ in range(100):  # it comes beside the order
                if os.path.exists(path):
                    break
                time.sleep(0.1)
            runtime_env["env_vars"] = dict(runtime_env.get("env_vars") or {}, MUSTER_IDENTITY_TOKEN_FILE=path)
        fault = ""
        for _ in range(20):  # the job server comes up a little after Ray itself
            try:
                client = self.client()
                try:
                    client.get_job_info(submission_id(job, attempt))
                except Exception:
                    occupies = {"entrypoint_" + k: v for k, v in (m.get("driver") or {}).items()
                                if k in ("num_cpus", "num_gpus", "memory", "resources", "label_selector")}
                    client.submit_job(entrypoint=m["entrypoint"], submission_id=submission_id(job, attempt), runtime_env=runtime_env,
                                      metadata={str(k): str(v) for k, v in (m.get("metadata") or {}).items()}, **occupies)
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
