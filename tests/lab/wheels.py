"""A package index on loopback (or on any address of a lab), with wheels made on the spot or fetched once and kept.

    index = Index(folder).start()            # index.url
    index.add(wheel(folder, "ray", "9.9.0", {"ray/__init__.py": "__version__ = '9.9.0'"}))
    index.add_debian_pip()                   # Debian's own pip wheel, which every environment gets
    index.lie = "ray"                        # serves other bytes than the index promises
    index.add_all(real_wheels())             # the real Ray and all it needs, from PyPI, cached beside the Ray image

As a program it serves until it is killed:  wheels.py ADDRESS PORT real|FOLDER...

Thread rule: one thread uses it; the server runs one of its own.
"""
import base64
import glob
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile

import images


def wheel(folder, name, version, files, requires=()):
    path = os.path.join(folder, "%s-%s-py3-none-any.whl" % (name.replace("-", "_"), version))
    info = "%s-%s.dist-info" % (name.replace("-", "_"), version)
    content = dict(files)
    content[info + "/METADATA"] = "Metadata-Version: 2.1\nName: %s\nVersion: %s\nProvides-Extra: default\nProvides-Extra: client\n" % (name, version) + \
        "".join("Requires-Dist: %s\n" % r for r in requires)
    content[info + "/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = ""
    for entry, text in content.items():
        data = text if isinstance(text, bytes) else text.encode()
        record += "%s,sha256=%s,%d\n" % (entry, base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode(), len(data))
    content[info + "/RECORD"] = record + info + "/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as out:
        for entry, text in content.items():
            out.writestr(zipfile.ZipInfo(entry, (2024, 1, 1, 0, 0, 0)), text)
    return path


def ray_wheel(folder, version, token_auth=True, rocksdb=True):
    """Something that looks like Ray to the probe and is nothing else."""
    files = {"ray/__init__.py": "__version__ = '%s'\n" % version}
    if token_auth:
        files["ray/_private/authentication/__init__.py"] = ""
    if rocksdb:
        files["ray/core/src/ray/gcs/gcs_server"] = b"\x7fELF gcs_storage_path rocksdb"
    return wheel(folder, "ray", version, files)


def debian_pip():
    found = sorted(glob.glob("/usr/share/python-wheels/pip-*.whl"))
    return found[-1] if found else None


def real_wheels():
    """Ray of images/ray/versions and everything it needs for Debian's Python, fetched from PyPI once."""
    with open(os.path.join(images.ROOT, "images/ray/versions")) as f:
        version = re.search(r"^ray=(.+)$", f.read(), re.M)[1]
    folder = os.path.join(images.CACHE, "wheels-%s" % version)
    with images.alone(folder):
        if not os.path.exists(folder + "/complete"):
            os.makedirs(folder, exist_ok=True)
            env = {k: v for k, v in os.environ.items() if k != "PIP_FIND_LINKS"}
            subprocess.run([sys.executable if sys.version_info[:2] == (3, 11) else "python3", "-m", "pip", "download", "--quiet", "--only-binary", ":all:",
                            "--python-version", "3.11", "--dest", folder, "ray[client,default]==" + version, "pip"], check=True, env=env, stdout=subprocess.DEVNULL)
            open(folder + "/complete", "w").close()
    return version, sorted(glob.glob(folder + "/*.whl"))


def find_uv():
    """uv of the machine, or one fetched from PyPI once (it is a program in a wheel); None without either."""
    if shutil.which("uv"):
        return shutil.which("uv")
    folder = os.path.join(images.CACHE, "uv")
    path = folder + "/bin/uv"
    with images.alone(folder):
        if not os.path.exists(path):
            done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "uv"], capture_output=True)
            if done.returncode != 0 or not os.path.exists(path):
                return None
    return path


class Index:
    def __init__(self, folder, address="127.0.0.1", port=0):
        self.folder, self.address, self.lie, self.served = folder, address, "", []
        os.makedirs(folder, exist_ok=True)
        self.files = {}
        self.server = None
        self.port = port

    def add(self, path):
        name = re.sub(r"[-_.]+", "-", os.path.basename(path).split("-")[0]).lower()
        with open(path, "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        self.files.setdefault(name, {})[os.path.basename(path)] = (path, digest)

    def add_all(self, paths):
        for path in paths:
            self.add(path)

    def add_debian_pip(self):
        if debian_pip():
            self.add(debian_pip())

    @property
    def url(self):
        return "http://%s:%d/simple" % (self.address, self.port)

    def start(self):
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                index.served.append(self.path)
                parts = [p for p in self.path.split("?")[0].split("/") if p]
                if len(parts) == 2 and parts[0] == "simple" and parts[1] in index.files:
                    body = "<!DOCTYPE html><html><body>%s</body></html>" % "".join(
                        '<a href="/files/%s/%s#sha256=%s">%s</a>\n' % (parts[1], f, digest, f) for f, (_, digest) in index.files[parts[1]].items())
                    return self.answer(200, body.encode(), "text/html")
                if len(parts) == 3 and parts[0] == "files" and parts[2] in index.files.get(parts[1], {}):
                    with open(index.files[parts[1]][parts[2]][0], "rb") as f:
                        data = f.read()
                    if index.lie == parts[1]:
                        data += b"\0"
                    return self.answer(200, data, "application/octet-stream")
                return self.answer(404, b"no such page", "text/plain")

            def answer(self, code, data, kind):
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):  # clients hang up when they have what they want
                pass

        self.server = Server((self.address, self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def stop(self):
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def close(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


if __name__ == "__main__":
    served = Index("/tmp", sys.argv[1], int(sys.argv[2]))
    for word in sys.argv[3:]:
        served.add_all(real_wheels()[1] if word == "real" else sorted(glob.glob(word + "/*.whl")))
    served.start()
    threading.Event().wait()
