"""Firewalls of others in a machine of the lab, the real programs with folders of their own: ufw, firewalld, Docker's rules.

    with Ufw(lab, "alpha", folder) as ufw:
        ufw.run("deny", "out", "proto", "tcp", "to", "any", "port", "443"); ufw.reload()

Nothing of this machine changes: the network namespace is the lab machine's, and their folders are laid over those of the system in a mount
namespace of their own. At the end their rules are gone. Thread rule: one thread. Errors: LabError.
"""
import json
import os
import shutil
import signal
import time

from lab import LabError


def rules(lab, name, without=("muster",)):
    """Everything that nft knows there but our table, as text, without counters and handles."""
    listed = json.loads(lab.run(name, ["nft", "-s", "-j", "list", "ruleset"]).stdout)["nftables"]

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k != "handle"}
        return [plain(v) for v in value] if isinstance(value, list) else value
    kept = []
    for entry in listed:
        kind, what = next(iter(entry.items()))
        named = what.get("table") if kind not in ("table", "metainfo") else what.get("name")
        if kind != "metainfo" and not (what.get("family") == "inet" and named in without):
            kept.append(plain(entry))
    return json.dumps(kept, indent=0, sort_keys=True)


class Firewall:
    def __init__(self, lab, name, folder):
        self.lab, self.name, self.folder = lab, name, folder
        os.makedirs(folder, exist_ok=True)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def enter(self):
        return self.lab.enter(self.name)

    def sh(self, command, check=True, **kw):
        return self.lab.sh(self.enter() + command, check=check, timeout=60, **kw)

    def wait(self, what, seconds, condition):
        end = time.time() + seconds
        while time.time() < end:
            if condition():
                return
            time.sleep(0.2)
        raise LabError("%s did not happen within %d s" % (what, seconds))


class Ufw(Firewall):
    LAID = {"etc": "/etc/ufw", "default": "/etc/default/ufw"}

    def start(self):
        for copy, place in self.LAID.items():
            target = os.path.join(self.folder, copy)
            shutil.copytree(place, target) if os.path.isdir(place) else shutil.copy(place, target)
        self.run("--force", "enable")

    def run(self, *words, check=True):
        laid = " && ".join("mount --bind %s %s" % (os.path.join(self.folder, copy), place) for copy, place in self.LAID.items())
        return self.sh(["unshare", "--mount", "--propagation", "private", "sh", "-c", laid + ' && exec ufw "$@"', "ufw"] + list(words), check=check)

    def reload(self):
        self.run("reload")

    def stop(self):
        self.run("--force", "disable", check=False)
        for family in ("ip", "ip6"):  # it leaves empty chains
            self.sh(["nft", "delete", "table", family, "filter"], check=False)


class Firewalld(Firewall):
    BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/><allow send_requested_reply="true"/>
<allow receive_type="method_call"/><allow receive_type="signal"/><allow receive_requested_reply="true"/><allow send_destination="*"/></policy></busconfig>
"""
    bus = daemon = None

    def start(self):
        at = self.folder + "/bus.sock"
        with open(self.folder + "/bus.conf", "w") as f:
            f.write(self.BUS % at)
        self.env = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=" + at}
        self.bus = self.lab.spawn(self.name, ["dbus-daemon", "--nofork", "--nopidfile", "--config-file", self.folder + "/bus.conf"], self.folder + "/bus.log")
        self.wait("a bus for firewalld", 10, lambda: os.path.exists(at))
        config = self.folder + "/config"
        os.makedirs(config)
        with open(config + "/firewalld.conf", "w") as f:
            f.write("DefaultZone=public\nFirewallBackend=nftables\nFlushAllOnReload=yes\nLogDenied=off\nIPv6_rpfilter=no\nCleanupOnExit=yes\n")
        self.daemon = self.lab.spawn(self.name, ["firewalld", "--nofork", "--nopid", "--log-target", "console", "--system-config", config], self.folder + "/firewalld.log", env=self.env)
        try:
            self.wait("firewalld", 40, lambda: self.run("--state", check=False).stdout.strip() == "running")
        except LabError as fault:
            raise LabError("%s: %s" % (fault, self.daemon.tail() + self.run("--state", check=False).stderr))

    def run(self, *words, check=True):
        return self.sh(["env"] + ["%s=%s" % kv for kv in self.env.items()] + ["firewall-cmd"] + list(words), check=check)

    def reload(self):
        self.run("--reload")

    def stop(self):
        for process in (self.daemon, self.bus):
            if process is not None:
                process.kill(signal.SIGTERM)
                process.kill()
        self.sh(["nft", "delete", "table", "inet", "firewalld"], check=False)


class Docker(Firewall):
    """An engine of the machine's own, with a bridge and all the rules that it wants."""
    daemon = None

    def start(self):
        self.socket = "unix://%s/sock" % self.folder
        self.daemon = self.lab.spawn(self.name, ["dockerd", "--data-root", self.folder + "/data", "--exec-root", self.folder + "/exec", "--pidfile", self.folder + "/pid",
                                                 "-H", self.socket, "--bip", "172.31.77.1/24"], self.folder + "/log")
        try:
            self.wait("the engine", 60, lambda: self.lab.sh(["docker", "-H", self.socket, "version"], check=False).returncode == 0)
        except LabError as fault:
            raise LabError("%s: %s" % (fault, self.daemon.tail()))

    def reload(self):
        """Started again it sets its rules again."""
        self.daemon.kill(signal.SIGTERM)
        self.start()

    def stop(self):
        if self.daemon is not None:
            self.daemon.kill(signal.SIGTERM)
            self.daemon.kill()
        for table in (["ip", "nat"], ["ip", "filter"], ["ip6", "nat"], ["ip6", "filter"]):
            self.sh(["nft", "delete", "table"] + table, check=False)
        self.sh(["ip", "link", "del", "docker0"], check=False)
