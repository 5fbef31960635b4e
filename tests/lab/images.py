"""Container images for tests, made from the cached root of images/ray/build in seconds, without any registry.

    small_root()                  # path of a tar: Debian and Python without Ray (about 130 MB)
    load(engine_socket, tar, "muster/small:1", changes=["USER ray"])

Thread rule: one thread. Cached beside the Ray root ($MUSTER_CACHE, default /var/cache/muster) and made anew when that changes.
"""
import contextlib
import fcntl
import glob
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import tarfile
import time
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CACHE = os.environ.get("MUSTER_CACHE", "/var/cache/muster")


@contextlib.contextmanager
def alone(path):
    """While it is held, nobody else of this machine makes what is to lie at `path`: tests run side by side, on one cache."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ray_root():
    said = subprocess.run([os.path.join(ROOT, "images/ray/build")], check=True, stdout=subprocess.PIPE, text=True).stdout
    path = re.findall(r"(?:cached: |made )(\S+\.tar)", said)[-1]
    with open(path + ".stamp") as f:
        return path, f.read().strip()


def stock_root():
    """A root of the shape of the stock images, and what an engine must be told beside it."""
    path = subprocess.run([os.path.join(ROOT, "images/stock/build")], check=True, stdout=subprocess.PIPE, text=True).stdout.strip().split("\n")[-1]
    with open(os.path.join(ROOT, "images/stock/config.json")) as f:
        return path, json.load(f)


def small_root():
    ray, stamp = ray_root()
    path = os.path.join(CACHE, "small-%s.tar" % stamp)
    with alone(path):
        if os.path.exists(path):
            return path
        part = "%s.%d" % (path, os.getpid())
        with tarfile.open(ray) as source, tarfile.open(part, "w") as out:
            for member in source:
                if not member.name.startswith(("./opt/ray/", "./usr/lib/python3/dist-packages/", "./usr/share/zoneinfo/")):
                    out.addfile(member, source.extractfile(member) if member.isreg() else None)
        os.rename(part, path)
    return path


def seed_engine(folder):
    """Puts the Ray image into the data root `folder` of a Docker that has not started yet, as if it had been imported there: the layers, which
    engines only read, are hard links to those of one engine that imported it once. True if it did; False leaves nothing, and is no fault: the
    image is imported then (images/ray/build --docker-host)."""
    digest = hashlib.sha256()
    for name in ("versions", "build"):
        with open(os.path.join(ROOT, "images/ray", name), "rb") as f:
            digest.update(f.read())
    stamp = digest.hexdigest()[:16]
    if os.geteuid() != 0 or not glob.glob(os.path.join(CACHE, "ray-*-%s.tar.stamp" % stamp)):
        return False  # not made yet
    kept = os.path.join(CACHE, "engine-" + stamp)
    try:
        with alone(kept):
            if not os.path.exists(kept + "/done"):
                make_engine(kept)
        os.makedirs(folder)
        for name in os.listdir(kept + "/data"):
            subprocess.run(["cp", "-al" if name == "overlay2" else "-a", os.path.join(kept, "data", name), folder + "/"], check=True, stderr=subprocess.DEVNULL)
        return True
    except (OSError, subprocess.SubprocessError):  # another file system, no Docker: as before
        subprocess.run(["rm", "-rf", folder])
        return False


def make_engine(kept):
    subprocess.run(["rm", "-rf", kept] + glob.glob(os.path.join(CACHE, "engine-*", "")), check=True)
    os.makedirs(kept)
    sock = "unix://%s/sock" % kept
    with open(kept + "/log", "w") as log:
        engine = subprocess.Popen(["dockerd", "--data-root", kept + "/data", "--exec-root", kept + "/exec", "--pidfile", kept + "/pid", "-H", sock,
                                   "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"], stdout=log, stderr=log)
    try:
        for _ in range(240):
            if subprocess.run(["docker", "-H", sock, "version"], capture_output=True).returncode == 0:
                break
            time.sleep(0.25)
        subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", sock], check=True, stdout=subprocess.DEVNULL)
    finally:
        engine.terminate()
        engine.wait(30)
    open(kept + "/done", "w").close()


class Connection(http.client.HTTPConnection):
    """HTTP to a container engine's unix socket."""

    def __init__(self, path, timeout=120):
        super().__init__("engine", timeout=timeout)
        self.path = path

    def connect(self):
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(self.timeout)
        try:
            link.connect(self.path)
        except OSError:
            link.close()
            raise
        self.sock = link


def call(engine, method, path, body=None, headers=None):
    """-> (status, parsed JSON or text)"""
    link = Connection(engine)
    head = dict(headers or {})
    if body is not None and not hasattr(body, "read"):
        body, head["Content-Type"] = json.dumps(body), "application/json"
    link.request(method, "/v1.40" + path, body, head)
    reply = link.getresponse()
    text = reply.read().decode(errors="replace")
    link.close()
    try:
        return reply.status, json.loads(text) if text else None
    except ValueError:
        return reply.status, text


def load(engine, tar, name, changes=()):
    """Imports a root file system under that name; -> its id."""
    repo, tag = name.rsplit(":", 1)
    query = [("fromSrc", "-"), ("repo", repo), ("tag", tag)] + [("changes", c) for c in changes]
    with open(tar, "rb") as f:
        status, said = call(engine, "POST", "/images/create?" + urllib.parse.urlencode(query), f, {"Content-Type": "application/x-tar"})
    if status != 200:
        raise RuntimeError("import of %s: %s %s" % (name, status, said))
    lines = said.strip().split("\n") if isinstance(said, str) else [json.dumps(said)]
    image = re.search(r"sha256:[0-9a-f]{64}", lines[-1])[0]
    status, said = call(engine, "POST", "/images/%s/tag?%s" % (image, urllib.parse.urlencode({"repo": repo, "tag": tag})))
    if status not in (200, 201):  # Podman 4.3 leaves the tag of an import out
        raise RuntimeError("tag of %s: %s %s" % (name, status, said))
    return image
