"""A small internet on one machine: network namespaces joined by a bridge, home routers with real NAT, machines behind them.

    lab = Lab("demo")            # needs root; every name starts with a tag of its own, so several labs may run side by side
    lab.host("server", "203.0.113.10")            # a public host
    lab.machine("gpu1", nat="home")               # a machine behind its own NAT router, no way in
    lab.public("files", "45.33.32.10", "2606:4700:aaaa::10")   # a host with truly public addresses (egress refuses the lab's own range)
    lab.run("gpu1", ["ip", "addr"]); lab.spawn("gpu1", [...], log=path)
    lab.pull_cable("gpu1"); lab.plug_in("gpu1")   # packets vanish silently, nothing is reset
    lab.close()                                   # kills what it started (by pid), removes what it made

NAT kinds: open (no router, a public address), home (port kept where free), strict (a random port a destination: symmetric), cgnat (two routers in a row), narrow (the same, and
1,280 bytes between them, of which nobody is told), noudp (no UDP gets out), lan:NAME (beside NAME, behind the same router); six=True gives a home its own public IPv6 prefix as well. Addresses are TEST-NET-3 and
private ranges, all inside the namespaces.
Thread rule: one thread. Errors: LabError with the command that failed and what it printed.
"""
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import images


class LabError(Exception):
    pass


def enter_namespace(fd):
    """The calling thread, and those that it starts."""
    if hasattr(os, "setns"):
        os.setns(fd, 0x40000000)
    else:
        import ctypes
        if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) != 0:
            raise LabError("setns failed")


class Doorway:
    """A port of this machine's loopback, reachable at the same place inside a namespace: HOST:PORT means the same in both."""

    def __init__(self, namespace, port):
        self.port, self.server = port, socket.socket()
        space = os.open("/run/netns/" + namespace, os.O_RDONLY)
        try:
            maker = threading.Thread(target=self.make, args=(space,))
            maker.start()
            maker.join()
        finally:
            os.close(space)
        if not self.open:
            raise LabError("port %d of %s is not free" % (port, namespace))
        threading.Thread(target=self.serve, daemon=True).start()

    open = False

    def make(self, space):
        try:
            enter_namespace(space)
            self.server.close()
            self.server = socket.socket()
            self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.server.bind(("127.0.0.1", self.port))
            self.server.listen(16)
            self.open = True
        except OSError:
            pass

    def serve(self):
        while True:
            try:
                inside, _ = self.server.accept()
                outside = socket.create_connection(("127.0.0.1", self.port), timeout=10)
                outside.settimeout(None)
            except OSError:
                if not self.open:
                    return
                continue
            for one, other in ((inside, outside), (outside, inside)):
                threading.Thread(target=self.carry, args=(one, other), daemon=True).start()

    @staticmethod
    def carry(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.open = False
        try:
            self.server.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        except OSError:
            pass
        self.server.close()


class Process:
    """A program the lab started; knows its log and how to end it."""

    def __init__(self, popen, log, name):
        self.popen, self.log, self.name = popen, log, name

    def alive(self):
        return self.popen.poll() is None

    def kill(self, sig=signal.SIGKILL):
        if self.alive():
            self.popen.send_signal(sig)
        return self.wait(10)

    def wait(self, timeout):
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def tail(self, lines=15):
        try:
            with open(self.log, errors="replace") as f:
                return "".join(f.readlines()[-lines:])
        except OSError:
            return ""


class Lab:
    def __init__(self, name, directory=None):
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces and needs root: run it with sudo")
        self.tag = "m%x" % (os.getpid() % 0xfffff)
        self.dir = directory or tempfile.mkdtemp(prefix="muster-%s-" % name, dir="/var/tmp")
        os.makedirs(self.dir, exist_ok=True)
        os.chmod(self.dir, 0o755)
        self.namespaces, self.processes, self.gateways, self.addresses = [], [], {}, {}
        self.wired, self.publics, self.sixes, self.onlink = [], [], {}, []
        self.count = 0
        self.dockerd = None
        self.docker = None
        self.ns("inet")
        self.ip("inet", "link add br0 type bridge")
        self.ip("inet", "link set br0 up")

    # ---- commands
    def sh(self, command, check=True, **kw):
        done = subprocess.run(command, capture_output=True, text=True, **kw)
        if check and done.returncode != 0:
            raise LabError("%s failed (%d): %s" % (" ".join(command), done.returncode, (done.stderr or done.stdout).strip()[-600:]))
        return done

    def full(self, name):
        return "%s-%s" % (self.tag, name)

    def enter(self, name):
        return ["nsenter", "--net=/run/netns/" + self.full(name)]

    def ip(self, name, words):
        self.sh(["ip", "-n", self.full(name)] + words.split())

    def run(self, name, command, check=True, **kw):
        return self.sh(self.enter(name) + command, check=check, **kw)

    def spawn(self, name, command, log, env=None, stdin=None):
        out = open(log, "ab")
        prefix = self.enter(name) if name else []
        popen = subprocess.Popen(prefix + command, stdout=out, stderr=subprocess.STDOUT, stdin=stdin or subprocess.DEVNULL,
                                 env=dict(os.environ, **(env or {})), start_new_session=True)
        out.close()
        process = Process(popen, log, os.path.basename(command[0]))
        self.processes.append(process)
        return process

    # ---- topology
    def ns(self, name):
        self.sh(["ip", "netns", "add", self.full(name)])
        self.namespaces.append(name)
        self.ip(name, "link set lo up")

    def cable(self, a, a_dev, b, b_dev):
        self.count += 1
        x, y = "%sx%d" % (self.tag, self.count), "%sy%d" % (self.tag, self.count)
        self.sh(["ip", "link", "add", x, "type", "veth", "peer", "name", y])
        for end, where, dev in ((x, a, a_dev), (y, b, b_dev)):
            self.sh(["ip", "link", "set", end, "netns", self.full(where)])
            self.ip(where, "link set %s name %s" % (end, dev))
            self.ip(where, "link set %s up" % dev)

    def wan(self, name, dev, address):
        port = "p%d" % (self.count + 1)
        self.cable(name, dev, "inet", port)
        self.ip("inet", "link set %s master br0" % port)
        self.ip(name, "addr add %s/24 dev %s" % (address, dev))
        self.wired.append(name)
        for net in self.onlink:  # more networks on the same wire
            self.ip(name, "route add %s dev %s" % (net, dev))
        for route in self.publics:
            self.sh(["ip", "-n", self.full(name), "route", "add", route, "via", "203.0.113.200"])

    def public(self, name, address, six=None):
        """A host whose address is public by every registry; all routers and hosts of the lab know the way."""
        self.host(name, "203.0.113.200")
        self.ip(name, "addr add %s/32 dev lo" % address)
        self.addresses[name] = address
        self.publics.append(address)
        for other in self.wired:
            if other != name:
                self.ip(other, "route add %s via 203.0.113.200" % address)
        if six:
            self.ip(name, "addr add %s/128 dev lo nodad" % six)
            self.ip(name, "addr add 2607:f8b0:5::200/64 dev eth0 nodad")
            self.public6 = (name, six)

    def home_six(self, router, net):
        """A prefix of its own for a home, as a provider delegates it: reached from outside only as an answer."""
        self.sh(self.enter(router) + ["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"])
        self.ip(router, "addr add 2607:f8b0:5::%x/64 dev wan nodad" % net)
        self.ip(router, "addr add 2600:1700:%x:1::1/64 dev lan nodad" % net)
        self.sh(self.enter(router) + ["nft", "-f", "-"], input=(
            "table ip6 filter {\n  chain through {\n    type filter hook forward priority 0; policy drop;\n"
            "    ct state established,related accept\n    iifname \"lan\" accept\n  }\n}\n"))
        host, six = self.public6
        self.ip(router, "route add %s via 2607:f8b0:5::200" % six)
        self.ip(host, "route add 2600:1700:%x::/48 via 2607:f8b0:5::%x" % (net, net))
        self.sixes[router] = net

    def host(self, name, address):
        self.ns(name)
        self.wan(name, "eth0", address)
        self.addresses[name] = address

    def router(self, name, nat):
        self.sh(self.enter(name) + ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        flag = " random,fully-random" if nat == "strict" else ""
        first = "meta l4proto udp drop\n    " if nat == "noudp" else ""
        mute = "  chain mute { type filter hook output priority 0; ip protocol icmp icmp type destination-unreachable drop; }\n" if nat == "narrow" else ""
        rules = """
table ip nat {
  chain post { type nat hook postrouting priority 100; oifname "wan" masquerade%s; }
}
table ip filter {
  chain through {
    type filter hook forward priority 0; policy drop;
    %sct state established,related accept
    iifname "lan" accept
  }
  chain inbound {
    type filter hook input priority 0; policy drop;
    iif lo accept
    ct state established,related accept
    iifname "lan" accept
  }
%s}
""" % (flag, first, mute)
        self.sh(self.enter(name) + ["nft", "-f", "-"], input=rules)

    def machine(self, name, nat="home", six=False):
        if nat == "open":
            return self.host(name, "203.0.113.%d" % (60 + sum(1 for at in self.addresses.values() if at.startswith("203.0.113.6"))))
        self.ns(name)
        if nat.startswith("lan:"):
            beside = nat[4:]
            router, net = self.gateways[beside]
            used = sum(1 for r, _ in self.gateways.values() if r == router)
            address = "192.168.%d.%d" % (net, 10 + used)
            self.cable(name, "eth0", router, "lan%d" % used)
            self.ip(router, "link set lan%d master lan" % used)
            self.gateways[name] = (router, net)
        else:
            index = len({r for r, _ in self.gateways.values()}) + 1
            router, net = "r%d" % index, index
            self.ns(router)
            if nat in ("cgnat", "narrow"):
                carrier = "c%d" % index
                self.ns(carrier)
                self.wan(carrier, "wan", "203.0.113.%d" % (100 + index))
                self.cable(router, "wan", carrier, "lan")
                self.ip(carrier, "addr add 10.64.%d.1/24 dev lan" % index)
                self.ip(router, "addr add 10.64.%d.2/24 dev wan" % index)
                self.ip(router, "route add default via 10.64.%d.1" % index)
                self.router(carrier, "narrow" if nat == "narrow" else "home")
                for end, dev in ((router, "wan"), (carrier, "lan")):
                    self.ip(end, "link set %s mtu %d" % (dev, 1280 if nat == "narrow" else 1500))
            else:
                self.wan(router, "wan", "203.0.113.%d" % (100 + index))
            self.ip(router, "link add lan type bridge")
            self.ip(router, "link set lan up")
            self.ip(router, "addr add 192.168.%d.1/24 dev lan" % net)
            self.cable(name, "eth0", router, "lan0")
            self.ip(router, "link set lan0 master lan")
            self.router(router, nat)
            address = "192.168.%d.10" % net
            self.gateways[name] = (router, net)
            if six:
                self.home_six(router, net)
        self.ip(name, "addr add %s/24 dev eth0" % address)
        self.ip(name, "route add default via 192.168.%d.1" % self.gateways[name][1])
        self.addresses[name] = address
        if router in self.sixes:
            self.ip(name, "addr add 2600:1700:%x:1::%s/64 dev eth0 nodad" % (net, address.split(".")[-1]))
            self.ip(name, "route add default via 2600:1700:%x:1::1" % net)

    # ---- faults
    def pull_cable(self, name):
        """Every packet of the machine vanishes, both ways, without a reset: the silent kind of loss."""
        self.sh(self.enter(name) + ["nft", "-f", "-"], input=(
            "table inet cable {\n"
            "  chain inbound { type filter hook input priority -300; iif != lo drop; }\n"
            "  chain outbound { type filter hook output priority -300; oif != lo drop; }\n}\n"))

    def plug_in(self, name):
        self.sh(self.enter(name) + ["nft", "delete", "table", "inet", "cable"], check=False)

    # ---- one container engine for all machines
    def start_docker(self, arguments=(), env=None):
        """Also after stop_docker(), with other arguments: the containers of before are still there, running or not."""
        d = os.path.join(self.dir, "docker")
        os.makedirs(d, exist_ok=True)
        self.docker = "unix://%s/sock" % d
        if not os.path.exists(d + "/data"):
            images.seed_engine(d + "/data")
        self.dockerd = self.spawn(None, ["dockerd", "--data-root", d + "/data", "--exec-root", d + "/exec", "--pidfile", d + "/pid", "-H", self.docker,
                                         "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"] + list(arguments), d + "/log", env=env)
        for _ in range(120):
            if self.sh(["docker", "-H", self.docker, "version"], check=False).returncode == 0:
                return d + "/sock"
            if not self.dockerd.alive():
                break
            time.sleep(0.25)
        raise LabError("dockerd did not start:\n" + self.dockerd.tail())

    def stop_docker(self):
        self.dockerd.kill(signal.SIGTERM)
        self.dockerd.kill()

    # ---- the end
    def close(self):
        for process in reversed([p for p in self.processes if p.name != "dockerd"]):
            process.kill(signal.SIGTERM) if process.alive() else None
            process.kill()
        if self.dockerd is not None:
            ids = self.sh(["docker", "-H", self.docker, "ps", "-aq"], check=False).stdout.split()
            if ids:
                binds = self.sh(["docker", "-H", self.docker, "inspect", "--format", "{{range .HostConfig.Binds}}{{println .}}{{end}}"] + ids, check=False).stdout
                self.sh(["docker", "-H", self.docker, "rm", "-f"] + ids, check=False)
                for folder in set(re.findall(r"^((?:/run|/dev/shm)/muster-[0-9]+)/", binds, re.M)):
                    shutil.rmtree(folder, ignore_errors=True)  # secrets of leases that were not stopped politely
            self.dockerd.kill(signal.SIGTERM)
            self.dockerd.kill()
        for name in reversed(self.namespaces):
            self.sh(["ip", "netns", "del", self.full(name)], check=False)
        with open("/proc/mounts") as f:
            mounts = [line.split()[1] for line in f if line.split()[1].startswith(self.dir + "/")]
        for mount in sorted(mounts, reverse=True):
            self.sh(["umount", "-l", mount], check=False)
        self.sh(["rm", "-rf", "--one-file-system", self.dir], check=False)  # an engine's images are many files
