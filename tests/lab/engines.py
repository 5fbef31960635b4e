"""Container engines that tests start for themselves, on sockets and folders of their own: nothing of the machine's is used.

    with Docker(folder) as engine: ...   # engine.socket
    with Podman(folder) as engine: ...   # podman's Docker-compatible socket

Thread rule: one thread. Errors: RuntimeError with the end of the engine's log.
"""
import os
import shutil
import subprocess
import time

import images


def with_ids(folder, text):
    """What is put before a command so that it, and nobody else, finds this text in /etc/subuid and /etc/subgid."""
    with open(folder + "/subids", "w") as f:
        f.write(text)
    binds = " && ".join("mount --bind %s/subids /etc/sub%s" % (folder, kind) for kind in ("uid", "gid"))
    return ["unshare", "-m", "sh", "-c", binds + ' && exec "$@"', "sh"]


class Engine:
    name, program = "", ""

    def __init__(self, folder, registries=()):
        """registries: hosts on loopback that speak plain HTTP."""
        self.folder, self.socket, self.process, self.registries = folder, folder + "/sock", None, registries
        os.makedirs(folder, exist_ok=True)

    @classmethod
    def missing(cls):
        return "" if shutil.which(cls.program) else cls.program + " is not installed"

    def start(self):
        with open(self.folder + "/log", "ab") as log:
            # In its own folder: conmon leaves a file there when a container's memory ran out.
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder, env=dict(os.environ, **self.environment()))
        for _ in range(480):
            try:
                if images.call(self.socket, "GET", "/version")[0] == 200:
                    return self
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.25)
        with open(self.folder + "/log", errors="replace") as f:
            raise RuntimeError("%s did not start: %s" % (self.program, f.read()[-1500:]))

    def environment(self):
        return {}

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)
            self.process = None

    def close(self):
        if self.process is not None:
            for container in images.call(self.socket, "GET", "/containers/json?all=1")[1] or []:
                images.call(self.socket, "DELETE", "/containers/%s?force=true&v=true" % container["Id"])
        self.stop()
        with open("/proc/mounts") as f:
            mounts = [line.split()[1] for line in f if line.split()[1].startswith(self.folder + "/")]
        for mount in sorted(mounts, reverse=True):
            subprocess.run(["umount", "-l", mount], capture_output=True)
        subprocess.run(["rm", "-rf", "--one-file-system", self.folder], capture_output=True)  # images are many files

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()


class Docker(Engine):
    name, program = "docker", "dockerd"

    def command(self):
        d = self.folder
        return ["dockerd", "--data-root", d + "/data", "--exec-root", d + "/exec", "--pidfile", d + "/pid", "-H", "unix://" + self.socket,
                "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]


class RemappedDocker(Docker):
    """With user ids of its own for all its containers."""
    FIRST = 2000000000

    def start(self):
        os.chmod(self.folder, 0o711)  # it looks whether root of the containers comes through
        return super().start()

    def command(self):
        return with_ids(self.folder, "nobody:%d:65536\n" % self.FIRST) + super().command() + ["--userns-remap=nobody:nogroup"]


class Podman(Engine):
    name, program = "podman", "podman"

    def command(self):
        return ["podman", "system", "service", "--time=0", "unix://" + self.socket]

    def environment(self):
        # cgroupfs and runc: this also works on cgroup v1 and in the hybrid layout, where Debian's crun refuses.
        files = {"CONTAINERS_CONF": '[engine]\ncgroup_manager="cgroupfs"\nruntime="runc"\nevents_logger="file"\ntmp_dir="%s/tmp"\n' % self.folder,
                 "CONTAINERS_STORAGE_CONF": '[storage]\ndriver="overlay"\ngraphroot="%s/data"\nrunroot="%s/run"\n' % (self.folder, self.folder),
                 "CONTAINERS_REGISTRIES_CONF": "".join('[[registry]]\nlocation="%s"\ninsecure=true\n' % host for host in self.registries)}
        for key, text in files.items():
            with open("%s/%s" % (self.folder, key.lower()), "w") as f:
                f.write(text)
        loads = self.folder + "/loads"  # Podman keeps what was sent to it in its folder for temporary files, for good
        os.makedirs(loads, exist_ok=True)
        return {"TMPDIR": loads, **{key: "%s/%s" % (self.folder, key.lower()) for key in files}}


class PodmanWithIds(Podman):
    """With user ids to give, for three containers or so. privd has to be started behind ids() too."""
    FIRST, COUNT = 2147483647, 3 * 65536

    def ids(self):
        return with_ids(self.folder, "containers:%d:%d\n" % (self.FIRST, self.COUNT))

    def command(self):
        return self.ids() + super().command()
