"""A machine that is booted: this system's own files, copied on write, under a systemd that is its process 1 (systemd-nspawn), in the
network namespace of a machine of the lab.

    machine = Booted(lab, "gpu1")         # lab.machine("gpu1", ...) was made before
    machine.start(); machine.run(["systemctl", "is-system-running"]); machine.reboot(); machine.close()

Only units that the machine's own tests install are started: what this system enabled is taken out of the copy. Nothing of the copy stays.
Thread rule: one thread. Errors: LabError.
"""
import glob
import os
import shutil
import subprocess
import time

from lab import LabError


class Booted:
    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        self.dir = os.path.join(lab.dir, name + "-disk")
        self.root = self.dir + "/root"
        self.process = None
        for folder in ("upper", "work", "root"):
            os.makedirs(os.path.join(self.dir, folder))
        lab.sh(["mount", "-t", "overlay", "overlay", "-o", "lowerdir=/,upperdir={0}/upper,workdir={0}/work".format(self.dir), self.root])
        for wanted in glob.glob(self.root + "/etc/systemd/system/*.wants") + glob.glob(self.root + "/etc/systemd/system/*.requires"):
            shutil.rmtree(wanted)
        for timer in glob.glob(self.root + "/lib/systemd/system/timers.target.wants/*"):
            os.remove(timer)
        for path, text in (("/etc/machine-id", ""), ("/etc/fstab", "")):
            with open(self.root + path, "w") as f:
                f.write(text)

    def install(self, program):
        """Puts a program where an installation puts it; returns its path on the machine."""
        path = "/usr/local/bin/" + os.path.basename(program)
        os.makedirs(self.root + "/usr/local/bin", exist_ok=True)
        shutil.copy(program, self.root + path)
        return path

    def start(self):
        # Its clock since boot starts anew, as that of real hardware does; a time namespace is for children, hence the shell.
        with open("/proc/uptime") as f:
            uptime = int(float(f.read().split()[0]))
        self.process = self.lab.spawn(None, [
            "unshare", "--time", "--boottime=-%d" % (uptime - 5), "sh", "-c", 'exec "$@"', "sh", "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe",
            "--capability=all", "--machine", self.lab.full(self.name), "--network-namespace-path=/run/netns/" + self.lab.full(self.name),
            "--bind=/dev/net/tun", "--directory", self.root, "--boot"], self.dir + "/console.log")
        self.wait_booted()

    def init(self):
        """The pid of the machine's process 1 as this system sees it, or 0."""
        try:
            with open("/proc/%d/task/%d/children" % (self.process.popen.pid, self.process.popen.pid)) as f:
                children = f.read().split()
        except OSError:
            return 0
        return int(children[0]) if children else 0

    def run(self, command, check=True, **kw):
        """A command on the machine, as root."""
        return self.lab.sh(["nsenter", "--all", "--target", str(self.init()), "--"] + list(command), check=check, **kw)

    def wait_booted(self, seconds=60):
        end = time.time() + seconds
        while time.time() < end and self.process.alive():
            if self.init() and self.run(["systemctl", "is-system-running"], check=False).stdout.strip() in ("running", "degraded"):
                return
            time.sleep(0.2)
        raise LabError("the machine %s did not boot:\n%s" % (self.name, self.process.tail()))

    def reboot(self):
        self.run(["systemctl", "reboot"], check=False)
        code = self.process.wait(60)
        if code != 133:  # how systemd-nspawn with --keep-unit says that its machine wants to be started again
            raise LabError("the machine %s did not go down for a reboot: %s\n%s" % (self.name, code, self.process.tail()))
        self.start()

    def close(self):
        if self.process is not None and self.process.alive():
            self.run(["systemctl", "poweroff", "--force"], check=False)
            if self.process.wait(20) is None:
                self.process.kill()
        self.lab.sh(["umount", "-l", self.root], check=False)
