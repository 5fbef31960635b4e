"""Debian's docker-registry on loopback, its images in a temporary folder, with accounts, behind a proxy that can be slow, cut and counted.

    registry = Registry(folder); registry.start()
    registry.host                     # "127.0.0.1:PORT", what engines and people name
    registry.user, registry.password  # the only account; written nowhere but into the registry's own htpasswd file (bcrypt)
    registry.throttle = 2 << 20       # bytes a second, 0 = as fast as it goes
    registry.stop(); registry.start() # the same port and images again
    registry.served                   # bytes sent to engines so far

Thread rule: one thread uses it; the proxy runs threads of its own.
"""
import base64
import ctypes
import ctypes.util
import hashlib
import http.client
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Registry:
    def __init__(self, folder, accounts=True):
        self.folder, self.process = folder, None
        os.makedirs(folder, exist_ok=True)
        self.port, self.inner = free_port(), free_port()
        self.host = "127.0.0.1:%d" % self.port
        self.user, self.password = "puller", secrets.token_hex(12)
        self.throttle, self.served, self.accounts = 0, 0, accounts
        self.listener = None

    @classmethod
    def missing(cls):
        return "" if shutil.which("docker-registry") else "docker-registry is not installed"

    def start(self):
        config = "version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: '127.0.0.1:%d', secret: x}\n" % (self.folder, self.inner)
        if self.accounts:
            with open(self.folder + "/htpasswd", "w") as f:
                f.write("%s:%s\n" % (self.user, bcrypt_of(self.password)))
            config += "auth: {htpasswd: {realm: test, path: %s/htpasswd}}\n" % self.folder
        with open(self.folder + "/config.yml", "w") as f:
            f.write(config)
        with open(self.folder + "/log", "ab") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", self.folder + "/config.yml"], stdout=log, stderr=log)
        for _ in range(240):
            try:
                socket.create_connection(("127.0.0.1", self.inner), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        if self.listener is None:
            self.listener = socket.socket()
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind(("127.0.0.1", self.port))
            self.listener.listen(64)
            threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()
        return self

    def accept(self, listener):
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            try:
                inner = socket.create_connection(("127.0.0.1", self.inner), 5)
            except OSError:
                peer.close()
                continue
            threading.Thread(target=self.pump, args=(peer, inner, False), daemon=True).start()
            threading.Thread(target=self.pump, args=(inner, peer, True), daemon=True).start()

    def pump(self, source, sink, down):
        try:
            while True:
                data = source.recv(32768)
                if not data:
                    break
                if down:
                    self.served += len(data)
                    if self.throttle:
                        time.sleep(len(data) / self.throttle)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self):
        self.stop()
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def auth(self):
        return {"username": self.user, "password": self.password}

    def put(self, name, files, arch="", config=None, base=None):
        """Makes an image of one layer (or base's layers and one more) and gives it that name, without any engine.

        files: path -> bytes; base: a tar of a root file system. -> (what machines write to pull it, the image's id)
        """
        arch = arch or {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
        layers = []
        if base:
            layers.append(self.upload(name, open(base, "rb"), None))
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(content), 0o755
                tar.addfile(member, io.BytesIO(content))
        layers.append(self.upload(name, None, data.getvalue()))
        about = {"architecture": arch, "os": "linux", "config": config or {}, "rootfs": {"type": "layers", "diff_ids": [digest for digest, _, _ in layers]},
                 "created": "2024-01-01T00:00:00Z", "history": []}
        digest, size, _ = self.upload(name, None, json.dumps(about).encode())
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                    "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": size, "digest": digest},
                    "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar", "size": n, "digest": d} for d, n, _ in layers]}
        repository, tag = name.rsplit(":", 1)
        self.ask("PUT", "/v2/%s/manifests/%s" % (repository, tag), json.dumps(manifest).encode(), {"Content-Type": manifest["mediaType"]}, (201,))
        return "%s/%s" % (self.host, name), digest

    def digest(self, name):
        """Of the manifest that the name means now: what signatures are about."""
        repository, tag = name.rsplit(":", 1)
        accept = "application/vnd.docker.distribution.manifest.v2+json"
        return self.ask("GET", "/v2/%s/manifests/%s" % (repository, tag), None, {"Accept": accept}, (200,)).getheader("Docker-Content-Digest")

    def sign(self, name, key, digest=None, about=None):
        """As `cosign sign --key` does: a tag beside the image, a payload that names its digest, signed by the openssl command.

        key: file with a private key in PEM, P-256 or Ed25519; digest: whose signature it is put up as; about: the digest in the payload.
        """
        digest = digest or self.digest(name)
        repository = name.rsplit(":", 1)[0]
        payload = json.dumps({"critical": {"identity": {"docker-reference": "%s/%s" % (self.host, repository)}, "image": {"docker-manifest-digest": about or digest},
                                           "type": "cosign container image signature"}, "optional": None}).encode()
        with tempfile.NamedTemporaryFile() as f:  # raw Ed25519 wants a file with a size
            f.write(payload)
            f.flush()
            kind = subprocess.run(["openssl", "pkey", "-in", key, "-noout", "-text"], check=True, capture_output=True, text=True).stdout
            words = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", f.name] if "ED25519" in kind.upper() else ["openssl", "dgst", "-sha256", "-sign", key, f.name]
            signature = base64.b64encode(subprocess.run(words, check=True, capture_output=True).stdout).decode()
        blob, size, _ = self.upload(name, None, payload)
        config, config_size, _ = self.upload(name, None, b"{}")
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": config_size, "digest": config},
                    "layers": [{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": size, "digest": blob,
                                "annotations": {"dev.cosignproject.cosign/signature": signature}}]}
        self.ask("PUT", "/v2/%s/manifests/%s.sig" % (repository, digest.replace(":", "-")), json.dumps(manifest).encode(),
                 {"Content-Type": manifest["mediaType"]}, (201,))

    def upload(self, name, file, data):
        repository = name.rsplit(":", 1)[0]
        hashed = hashlib.sha256()
        if file is not None:
            size = 0
            while True:
                part = file.read(1 << 20)
                if not part:
                    break
                hashed.update(part)
                size += len(part)
            file.seek(0)
        else:
            hashed.update(data)
            size = len(data)
        digest = "sha256:" + hashed.hexdigest()
        where = self.ask("POST", "/v2/%s/blobs/uploads/" % repository, b"", {}, (202,)).getheader("Location")
        path = where[where.index("/v2/"):]
        self.ask("PUT", path + ("&" if "?" in path else "?") + "digest=" + digest, file if file is not None else data,
                 {"Content-Type": "application/octet-stream", "Content-Length": str(size)}, (201,))
        return digest, size, None

    def ask(self, method, path, body, headers, good):
        link = http.client.HTTPConnection("127.0.0.1", self.inner, timeout=120)
        word = base64.b64encode(("%s:%s" % (self.user, self.password)).encode()).decode()
        link.request(method, path, body, dict(headers, Authorization="Basic " + word))
        reply = link.getresponse()
        text = reply.read()
        link.close()
        if reply.status not in good:
            raise RuntimeError("registry: %s %s: %d %s" % (method, path, reply.status, text[:300]))
        return reply


def bcrypt_of(password):
    lib = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    lib.crypt_gensalt.restype = lib.crypt.restype = ctypes.c_char_p
    return lib.crypt(password.encode(), lib.crypt_gensalt(b"$2b$", 5, None, 0)).decode()
