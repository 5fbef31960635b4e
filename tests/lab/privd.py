"""A privd process of its own and the language to speak to it (src/host/privd_verbs.h): what the runtime tests drive.

    privd = Privd(policy={"engine_socket": path}); privd.start()
    digest = privd.good("pull", image=...)["digest"]; privd.good("launch", lease="lease-1", image=digest, ...)
    code, out, err = privd.run("lease-1", "sh", "-c", "id")
    privd.close()                                  # removes everything it made

Thread rule: one thread. good() raises AssertionError with privd's answer.
"""
import array
import json
import os
import socket
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
AGENT_UID = 64790


def binary(name="muster-agent"):
    for build in [os.environ.get("MUSTER_BUILD", "")] + ["build/release", "build/dev"]:
        path = os.path.join(ROOT, build, name)
        if build and os.path.exists(path):
            return path
    return None


class Privd:
    def __init__(self, policy, machine="t1", before=()):
        """before: what is put before the command."""
        self.before = list(before)
        self.state = tempfile.mkdtemp(prefix="muster-rt-", dir="/var/tmp")
        os.chmod(self.state, 0o755)
        os.makedirs(self.state + "/run")
        with open(self.state + "/config.json", "w") as f:
            json.dump({"server": "https://localhost", "node_id": "node-1", "machine": machine, "ca_pem": "x", "roster_key": ""}, f)
        self.set_policy(policy)
        self.process = self.connection = None
        self.next_id = 0

    def set_policy(self, policy):
        self.policy = policy
        with open(self.state + "/policy.part", "w") as f:
            json.dump(policy, f)
        os.rename(self.state + "/policy.part", self.state + "/policy.json")

    def start(self):
        with open(self.state + "/privd.log", "ab") as log:
            self.process = subprocess.Popen(self.before + [binary(), "privd-process", "--state-dir", self.state], stdout=log, stderr=log)
        for _ in range(400):
            try:
                self.connection = self.connect_as(AGENT_UID)
                return self
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("privd did not start: " + self.log())

    def log(self):
        with open(self.state + "/privd.log", errors="replace") as f:
            return f.read()[-3000:]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def close(self):
        try:
            self.ask("remove_everything")
            self.connection.close()
            self.process.terminate()
            self.process.wait(30)
        finally:
            subprocess.run(["rm", "-rf", self.state])  # trees of tests may be deeper than Python goes

    def connect_as(self, uid):
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.setegid(uid)
        os.seteuid(uid)
        try:
            peer.connect(self.state + "/run/privd.sock")
        except OSError:
            peer.close()
            raise
        finally:
            os.seteuid(0)
            os.setegid(0)
        peer.settimeout(300)
        return peer

    def ask(self, verb, fds=(), progress=None, **fields):
        self.next_id += 1
        text = json.dumps(dict(fields, id=self.next_id, verb=verb)).encode()
        self.connection.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
        while True:
            data, extra, _, _ = self.connection.recvmsg(1 << 18, socket.CMSG_SPACE(16))
            if not data:
                raise RuntimeError("privd hung up: " + self.log())
            answer = json.loads(data)
            if answer.get("id") == self.next_id and "ok" in answer:
                break
            if progress is not None and "done" in answer:
                progress(answer["done"], answer["total"])
        got = array.array("i")
        for _, _, payload in extra:
            got.frombytes(payload[:len(payload) - len(payload) % got.itemsize])
        answer["fds"] = list(got)
        return answer

    def pull(self, **fields):
        """As good("pull", ...), but its lock, when there is one, is read: answer["lock"]."""
        answer = self.good("pull", **fields)
        for fd in answer["fds"]:
            with os.fdopen(fd, "rb") as f:
                answer["lock"] = f.read()
        return answer

    def good(self, verb, **fields):
        answer = self.ask(verb, **fields)
        assert answer["ok"], (verb, answer)
        return answer

    def exit_code(self, lease, command):
        for _ in range(600):
            code = self.good("exec_code", lease=lease, exec=command)["exit_code"]
            if code >= 0:
                return code
            time.sleep(0.05)
        raise AssertionError("the command did not end")

    def run(self, lease, *argv, stdin=b""):
        """-> (exit code, standard output, standard error)"""
        opened = self.good("exec", lease=lease, argv=list(argv))
        out = {1: b"", 2: b""}
        with socket.socket(fileno=opened["fds"][0]) as peer:
            peer.settimeout(120)
            if stdin:
                peer.sendall(stdin)
            peer.shutdown(socket.SHUT_WR)
            with peer.makefile("rb") as stream:
                while True:
                    head = stream.read(8)
                    if len(head) < 8:
                        break
                    out[head[0]] += stream.read(int.from_bytes(head[4:], "big"))
        return self.exit_code(lease, opened["exec"]), out[1].decode(errors="replace"), out[2].decode(errors="replace")

    def state_of(self, lease):
        return next((row for row in self.good("list")["leases"] if row["lease"] == lease), None)

    def wait_state(self, lease, condition, seconds=60):
        end = time.time() + seconds
        row = None
        while time.time() < end:
            row = self.state_of(lease)
            if condition(row):
                return row
            time.sleep(0.2)
        raise AssertionError("%s did not get there within %d s: %s; %s" % (lease, seconds, row, self.log()))
