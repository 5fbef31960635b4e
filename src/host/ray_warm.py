"""Ray's command line without paying for its import at every start. make() imports Ray here and forks a child that stays
as it is then: one thread, nothing connected. For each order it forks once more, and that grandchild runs the `ray`
command as if typed. Call make() before any thread exists. Not used after setup commands: they may have changed packages.
"""
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading


class Process:
    """What of subprocess.Popen the helper uses, for a process that is the warm child's."""

    def __init__(self):
        self.pid, self.returncode = 0, None
        self.begun, self.ended = threading.Event(), threading.Event()

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired("ray", timeout)
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None and self.pid > 0:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def end(self, code):
        self.returncode = code
        self.begun.set()
        self.ended.set()


class Warm:
    def __init__(self, sock):
        self.sock, self.lock = sock, threading.Lock()
        self.processes, self.last = {}, 0
        threading.Thread(target=self.listen, daemon=True).start()

    def spawn(self, words, log):
        """Runs `ray WORDS`, its output appended to the file `log`; None when the warm child is gone."""
        process = Process()
        with self.lock:
            self.last += 1
            self.processes[self.last] = process
            try:
                self.sock.send(json.dumps({"n": self.last, "words": words, "log": log}).encode())
            except OSError:
                del self.processes[self.last]
                return None
        process.begun.wait()
        return process if process.pid > 0 else None

    def listen(self):
        while True:
            try:
                data = self.sock.recv(4096)
            except OSError:
                data = b""
            if not data:
                break
            said = json.loads(data)
            with self.lock:
                process = self.processes.get(said["n"])
                if "code" in said:
                    self.processes.pop(said["n"], None)
            if process is not None and "pid" in said:
                process.pid = said["pid"]
                process.begun.set()
            if process is not None and "code" in said:
                process.end(said["code"])
        with self.lock:
            lost, self.processes = self.processes, {}
        for process in lost.values():
            process.kill()
            process.end(-9)


def make(close=()):
    """The warm child, or None where Ray cannot be imported. `close`: sockets of ours that it must not hold."""
    try:
        import ray.scripts.scripts  # noqa: F401
    except Exception:
        return None
    if len(os.listdir("/proc/self/task")) != 1:
        return None  # something in this image starts threads at import: a fork of it would be unsound
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        for each in (ours, *close):
            each.close()
        serve(theirs)  # returns only in a grandchild, as SystemExit
    theirs.close()
    return Warm(ours)


def serve(sock):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: gone with the helper
    ended, wake = os.pipe()
    for fd in (ended, wake):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the helper ends Ray first and then us
    children = {}
    while True:
        ready, _, _ = select.select([sock, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            reap(sock, children)
        if sock in ready:
            data = sock.recv(256 * 1024)
            if not data:
                os._exit(0)
            order = json.loads(data)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for fd in (ended, wake):
                    os.close(fd)
                sock.close()
                run(order)
            children[pid] = order["n"]
            sock.send(json.dumps({"n": order["n"], "pid": pid}).encode())


def reap(sock, children):
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid in children:
            sock.send(json.dumps({"n": children.pop(pid), "code": os.waitstatus_to_exitcode(status)}).encode())


def run(order):
    """In the grandchild: becomes the command. Ends as SystemExit, so that what Ray registered to run at exit does run."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, onto in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, onto)
    sys.argv = ["ray"] + order["words"]
    import ray.scripts.scripts
    ray.scripts.scripts.main()
    sys.exit(0)
