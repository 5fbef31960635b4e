#!/usr/bin/env python3
"""Every kind of connection with every other, through the netd and the relay as they are shipped.

    sudo python3 tests/lab/nat_lab.py [--build build/release] [--kinds open,port,proxy] [--faults all|none|sleep,relay] [--write]

Each kind stands twice, as a and as b, in network namespaces with nftables as NATs; each a makes a cluster of two with each b, as many side by
side as there are kinds. Measured: from the configuration to the first packet (by whatever way), and to the moment when both ends go directly;
packets that got lost meanwhile; whether packets of full size pass at the end. What must be direct stands in nat_table.txt. Then what happens to
networks happens to pairs of their own (nat_faults.py). --write puts the tables and a picture into docs/. The last line is
"LAB OK: N of N pairs connected, D direct, R relayed" or "LAB FAILED: ...".
"""
import argparse
import base64
import json
import os
import queue
import re
import socket
import statistics
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import nat_faults  # noqa: E402
from lab import Lab, LabError, enter_namespace  # noqa: E402

KINDS = {
    "open": "a public address, no NAT",
    "full": "full cone: whoever knows the port gets in",
    "address": "address-restricted cone: any port of an address that was sent to",
    "port": "port-restricted cone that keeps the port: most homes",
    "moved": "port-restricted cone with another port outside: many carriers",
    "symmetric": "a random port for each destination",
    "mapped": "as symmetric, but the router lets in who asks it by PCP, NAT-PMP or UPnP (miniupnpd)",
    "cgnat": "a home router behind a carrier's NAT",
    "hairpin": "both home routers behind one carrier's NAT, which leads what goes to its own address back inside",
    "narrow": "a home router behind a carrier that carries 1,280 bytes and does not say so",
    "dual": "IPv4 as symmetric, and IPv6 behind a firewall that lets answers in",
    "six": "only IPv6, behind a firewall that lets answers in",
    "noudp": "UDP is dropped",
    "proxy": "nothing gets out but through a CONNECT proxy that asks for a password, to port 443, and for TLS of the web in it",
}
WATCH, PATIENCE = 5, 15  # seconds after the first packet: what must stay on the relay is watched, what must become direct is waited for
USABLE_MS, USABLE_P95_MS, DIRECT_P95_MS = 5000, 1000, 3000  # bounds: usable each, usable and direct 95 of 100
RELAY, FAR_RELAY, RELAY6 = "203.0.113.10", "203.0.113.11", "2607:f8b0:5::10"
FAR_SECONDS = 0.04  # that the far relay is away, each way
NARROW = 1280
TLS_ONLY = ("noudp", "proxy", "narrow")  # full packets do not reach the relay over UDP from there
USER = "us:p@ss"
# miniupnpd believes that only addresses outside of the networks of documents are public.
MAPPED_NET = "45.33.40"
MINIUPNPD = "/usr/sbin/miniupnpd"
UPNP_TABLE = """table inet upnp {
  chain miniupnpd { }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
  chain inward { type nat hook prerouting priority -101; jump prerouting_miniupnpd; }
  chain outward { type nat hook postrouting priority 99; jump postrouting_miniupnpd; }
}
"""
UPNP_CONF = """ext_ifname=wan
ext_ip=%(outside)s
listening_ip=lan
http_port=5000
enable_upnp=yes
enable_natpmp=%(pmp)s
secure_mode=yes
upnp_table_name=upnp
upnp_nat_table_name=upnp
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
uuid=00000000-0000-0000-0000-%(number)012d
allow 1024-65535 192.168.0.0/16 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""

MASQUERADE = "  chain inward { type nat hook prerouting priority -100; }\n  chain outward { type nat hook postrouting priority 100; oifname \"wan\" masquerade%s; }\n"
# Without the input chain a peer's early packet would take the very port that our own mapping is about to get.
CLOSED = "  chain inbound { type filter hook input priority 0; iifname \"wan\" ct state new drop; }\n"
OUTWARD = "  chain through { type filter hook forward priority 0; policy drop;%s ct state established,related accept; iifname \"lan\" accept;%s }\n"


# Answers only, and what ICMPv6 needs.
SIX = """table ip6 lab {
  chain inbound { type filter hook input priority 0; iifname "wan" ct state new icmpv6 type != { nd-neighbor-solicit, nd-neighbor-advert } drop; }
  chain through { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname "lan" accept; }
}
"""
# What leaves is remembered by its port, and what comes from inside for that port of the outer address goes there.
HAIRPIN = """table ip lab {
  map mapped { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 120s; }
  chain inward { type nat hook prerouting priority -100; iifname "lan*" ip daddr %(wan)s dnat ip to udp dport map @mapped; }
  chain outward { type nat hook postrouting priority 100; oifname "wan" masquerade; oifname "lan*" ct status dnat snat to %(wan)s; }
  chain inbound { type filter hook input priority 0; iifname "wan" ct state new drop; iifname "lan*" meta l4proto udp drop; }
  chain through { type filter hook forward priority 0; policy drop; iifname "lan*" oifname "wan" meta l4proto udp update @mapped { udp sport : ip saddr . udp sport };
    ct state established,related accept; iifname "lan*" oifname "wan" accept; ct status dnat accept; }
}
"""
SILENT = "  chain mute { type filter hook output priority 0; ip protocol icmp icmp type destination-unreachable drop; }\n"


def rules(kind, host):
    """nftables of the router of a machine `host`."""
    inward = "  chain inward { type nat hook prerouting priority -100; iifname \"wan\" udp dport 1024-65535 dnat to %s; }\n" % host
    post = "  chain outward { type nat hook postrouting priority 100; oifname \"wan\" masquerade; }\n"
    if kind == "full":
        return inward + post + OUTWARD % ("", " iifname \"wan\" meta l4proto udp accept;")
    if kind == "address":
        seen = "  set seen { type ipv4_addr . inet_service; flags dynamic,timeout; timeout 60s; size 4096; }\n"
        return seen + inward + post + OUTWARD % (" iifname \"lan\" meta l4proto udp update @seen { ip daddr . udp sport };",
                                                 " iifname \"wan\" meta l4proto udp ip saddr . udp dport @seen accept;")
    if kind == "moved":
        moved = "  chain inward { type nat hook prerouting priority -100; }\n  chain outward { type nat hook postrouting priority 100; oifname \"wan\" meta l4proto udp masquerade to :50000-50255; oifname \"wan\" masquerade; }\n"
        return moved + CLOSED + OUTWARD % ("", "")
    if kind == "mapped":
        return MASQUERADE % " random,fully-random" + CLOSED + OUTWARD % ("", " ct status dnat accept;")
    if kind in ("symmetric", "dual"):
        return MASQUERADE % " random,fully-random" + CLOSED + OUTWARD % ("", "")
    if kind == "noudp":
        return MASQUERADE % "" + CLOSED + OUTWARD % (" meta l4proto udp drop;", "")
    if kind == "proxy":  # the proxy is on the router; nothing is forwarded
        return CLOSED + "  chain through { type filter hook forward priority 0; policy drop; }\n"
    return MASQUERADE % "" + CLOSED + OUTWARD % ("", "")


class Proxy:
    """CONNECT to port 443 for whoever knows the password and then looks like the web; listens inside a namespace."""

    def __init__(self, namespace, address):
        self.tunnels, self.refused = 0, 0
        self.expected = "Proxy-Authorization: Basic " + base64.b64encode(USER.encode()).decode()
        fd = os.open("/run/netns/" + namespace, os.O_RDONLY)
        self.space = fd
        ready = threading.Event()
        threading.Thread(target=self.listen, args=(address, ready), daemon=True).start()
        if not ready.wait(10):
            raise LabError("the proxy did not start")

    def listen(self, address, ready):
        enter_namespace(self.space)
        self.server = socket.socket()
        self.server.bind((address, 3128))
        self.server.listen(64)
        ready.set()
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        head = b""
        try:
            while b"\r\n\r\n" not in head and len(head) < 8192:
                more = client.recv(4096)
                if not more:
                    return client.close()
                head += more
            text = head.decode(errors="replace")
            target = re.match(r"CONNECT ([0-9.]+):443 HTTP/1.1\r\n", text)
            if self.expected not in text.split("\r\n") or not target:
                self.refused += 1
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"lab\"\r\n\r\n")
                return client.close()
            upstream = socket.create_connection((target.group(1), 443), timeout=10)
            upstream.settimeout(None)
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            hello = client.recv(65536)
            if b"http/1.1" not in hello or b"muster-relay/1" in hello:
                self.refused += 1
                upstream.close()
                return client.close()
            upstream.sendall(hello)
            self.tunnels += 1
            for one, other in ((client, upstream), (upstream, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self.pump, args=(one, other), daemon=True).start()
        except OSError:
            client.close()

    @staticmethod
    def pump(source, sink):
        try:
            while True:
                data = source.recv(65536)
                if not data:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        try:
            self.server.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        except OSError:
            pass
        self.server.close()
        os.close(self.space)


class Delay:
    """Carries what is said to an address inside a namespace to a port of its loopback and back, each way so many seconds late."""

    def __init__(self, namespace, address, target, seconds):
        self.target, self.seconds = target, seconds
        self.space = os.open("/run/netns/" + namespace, os.O_RDONLY)
        ready = threading.Event()
        threading.Thread(target=self.listen, args=(address, ready), daemon=True).start()
        if not ready.wait(10):
            raise LabError("the slow port did not start")

    def listen(self, address, ready):
        enter_namespace(self.space)
        self.server = socket.socket()
        self.server.bind(address)
        self.server.listen(64)
        ready.set()
        while True:
            try:
                client, _ = self.server.accept()
                upstream = socket.create_connection(self.target)
            except OSError:
                return
            for one, other in ((client, upstream), (upstream, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                late = queue.Queue()
                threading.Thread(target=self.take, args=(one, late), daemon=True).start()
                threading.Thread(target=self.give, args=(late, other), daemon=True).start()

    def take(self, source, late):
        data = b"-"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            late.put((time.monotonic() + self.seconds, data))

    def give(self, late, sink):
        while True:
            due, data = late.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if data:
                    sink.sendall(data)
                    continue
                sink.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            return

    def close(self):
        try:
            self.server.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.server.close()
        os.close(self.space)


class Talk:
    """A TCP connection between two leases on which one end asks every 50 ms and the other answers; what became of it."""

    def __init__(self, from_ns, to_ns, address, port=7000):
        self.gap, self.count, self.fault, self.stop = 0.0, 0, None, False
        self.ends = [os.open("/run/netns/" + ns, os.O_RDONLY) for ns in (from_ns, to_ns)]
        self.ready = threading.Event()
        self.threads = [threading.Thread(target=self.serve, args=(port,), daemon=True), threading.Thread(target=self.ask, args=(address, port), daemon=True)]
        for each in self.threads:
            each.start()

    def serve(self, port):
        enter_namespace(self.ends[1])
        with socket.socket() as server:
            server.bind(("0.0.0.0", port))
            server.listen(1)
            self.ready.set()
            client, _ = server.accept()
            try:
                while True:
                    data = client.recv(4096)
                    if not data:
                        return
                    client.sendall(data)
            except OSError as fault:
                self.fault = self.fault or fault

    def ask(self, address, port):
        enter_namespace(self.ends[0])
        self.ready.wait(10)
        try:
            with socket.create_connection((address, port), timeout=20) as s:
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while not self.stop:
                    began = time.monotonic()
                    s.sendall(b"x" * 200)
                    got = 0
                    while got < 200:
                        data = s.recv(4096)
                        if not data:
                            raise OSError("the connection ended")
                        got += len(data)
                    self.gap, self.count = max(self.gap, time.monotonic() - began), self.count + 1
                    time.sleep(0.05)
        except OSError as fault:
            self.fault = self.fault or fault

    def since(self):
        """The longest answer of late, and from now on anew."""
        gap, self.gap = self.gap, 0.0
        return gap

    def close(self):
        self.stop = True
        for each in self.threads:
            each.join(25)
        for fd in self.ends:
            os.close(fd)


class NatLab:
    def __init__(self, build, say=print, far=False, relay_flags=()):
        """far: before the relay that all use stands another in the list, far away."""
        self.build, self.say, self.far, self.relay_flags = build, say, far, list(relay_flags)
        self.slow = None
        self.lab = Lab("nats")
        self.lab.onlink = [MAPPED_NET + ".0/24"]
        self.count, self.next_pair, self.proxies = 0, 0, {}
        self.rig = None
        self.asking = threading.Lock()
        self.machines, self.cables, self.wans, self.nets = {}, {}, {}, {}
        self.upnpds = {}
        self.rules = rules
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self):
        self.lab.host("relay", RELAY)
        self.lab.ip("relay", "addr add %s/64 dev eth0 nodad" % RELAY6)
        self.sixes = {}  # router -> number of its prefix
        self.pids = {}
        self.rig = subprocess.Popen([self.build + "/muster-nat-rig", self.build + "/muster-agent", self.lab.dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                    stderr=open(self.lab.dir + "/rig.log", "w"), text=True)
        self.answer("ready")
        if self.far:
            self.lab.host("far", FAR_RELAY)
            self.start_relay("far", "127.0.0.1:4443", "relay-2")
            self.slow = Delay(self.lab.full("far"), (FAR_RELAY, 443), ("127.0.0.1", 4443), FAR_SECONDS)
            self.ask("relay %s 443 relay-2 far" % FAR_RELAY, "relay")
        self.relay = self.start_relay()
        self.ask("relay %s 443 relay-1 near %s" % (RELAY, RELAY6), "relay")

    def start_relay(self, name="relay", listen="[::]:443", number="relay-1"):
        d = self.lab.dir
        relay = self.lab.spawn(name, [self.build + "/muster-relay", "--listen", listen, "--cert", d + "/relay.crt", "--key", d + "/relay.key", "--controller-key",
                                      d + "/controller.pub", "--relay-id", number] + self.relay_flags, d + "/%s.log" % number)
        for _ in range(100):
            if "port " + listen.rsplit(":", 1)[1] in relay.tail():
                return relay
            time.sleep(0.1)
        raise LabError("muster-relay did not start:\n" + relay.tail())

    def answer(self, key):
        line = self.rig.stdout.readline()
        if not line:
            raise LabError("the rig ended: " + open(self.lab.dir + "/rig.log").read()[-2000:])
        told = json.loads(line)
        if key not in told:
            raise LabError("the rig said %s, not %s" % (line.strip(), key))
        return told

    def tell(self, line):
        self.rig.stdin.write(line + "\n")
        self.rig.stdin.flush()

    def ask(self, line, key):
        with self.asking:  # faults run side by side
            self.tell(line)
            return self.answer(key)

    def nft(self, name, text):
        self.lab.sh(self.lab.enter(name) + ["nft", "-f", "-"], input=text)

    def router(self, name, kind, wan, host, extra=""):
        """`wan`: its address on the internet, or what joins it to its carrier."""
        lab = self.lab
        lab.ns(name)
        lab.sh(lab.enter(name) + ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        lab.wan(name, "wan", wan) if isinstance(wan, str) else wan(name)
        self.nft(name, HAIRPIN % {"wan": wan} if kind == "hairpin" else "table ip lab {\n%s%s}\n" % (rules(kind, host), extra))

    def behind(self, carrier, number, dev="lan", mtu=1500):
        """What makes a router a customer of that carrier."""
        def join(router):
            lab = self.lab
            lab.cable(router, "wan", carrier, dev)
            for end, port in ((router, "wan"), (carrier, dev)):
                lab.ip(end, "link set %s mtu %d" % (port, mtu))
            lab.ip(carrier, "addr add 100.100.%d.1/24 dev %s" % (number, dev))
            lab.ip(router, "addr add 100.100.%d.2/24 dev wan" % number)
            lab.ip(router, "route add default via 100.100.%d.1" % number)
        return join

    def long_cable(self, address):
        """What joins a router to the internet by muster-slow-link."""
        def join(router):
            lab = self.lab
            lab.count += 1
            port = "p%d" % lab.count
            ends = [lab.full(router), "wan", lab.full("inet"), port]
            cable = subprocess.Popen([self.build + "/muster-slow-link"] + ends, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.cables[router] = cable
            if cable.stdout.readline() != "ready\n":
                raise LabError("muster-slow-link did not start")
            lab.ip("inet", "link set %s master br0" % port)
            lab.ip("inet", "link set %s up" % port)
            lab.ip(router, "addr add %s/24 dev wan" % address)
            lab.ip(router, "link set wan up")
        return join

    def set_cable(self, router, delay=0, jitter=0, reordered=0, lost=0, doubled=0, kbit=0):
        cable = self.cables[router]
        cable.stdin.write("%d %d %d %d %d %d\n" % (delay, jitter, reordered, lost, doubled, kbit))
        cable.stdin.flush()
        if cable.stdout.readline() != "set\n":
            raise LabError("muster-slow-link ended")

    def carrier(self, name, kind, wan, extra=""):
        if name not in self.lab.namespaces:
            self.router(name, kind, wan, None, extra)
        return name

    def add_six(self, name, router, number):
        """An IPv6 prefix for the home behind that router, to which every other router knows the way."""
        lab = self.lab
        lab.sh(lab.enter(router) + ["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"])
        lab.ip(router, "addr add 2607:f8b0:5::%x/64 dev wan nodad" % (0x100 + number))
        lab.ip(router, "addr add 2600:1700:%x:1::1/64 dev lan nodad" % number)
        lab.ip(name, "addr add 2600:1700:%x:1::10/64 dev eth0 nodad" % number)
        lab.ip(name, "route add default via 2600:1700:%x:1::1" % number)
        self.nft(router, SIX)
        lab.ip("relay", "route add 2600:1700:%x::/48 via 2607:f8b0:5::%x" % (number, 0x100 + number))
        for other, of in self.sixes.items():
            lab.ip(other, "route add 2600:1700:%x::/48 via 2607:f8b0:5::%x" % (number, 0x100 + number))
            lab.ip(router, "route add 2600:1700:%x::/48 via 2607:f8b0:5::%x" % (of, 0x100 + of))
        self.sixes[router] = number

    def machine(self, kind, side):
        """One machine of that kind, with its router and its netd, once made."""
        name = kind + "-" + side
        if name in self.machines:
            return name
        lab, proxy, lan = self.lab, "", "-"
        self.count += 1
        number = self.count
        wan, net = "203.0.113.%d" % (20 + number), "192.168.%d" % number
        lab.ns(name + "-l")
        if kind == "open":
            lab.host(name, wan)
        else:
            lab.ns(name)
            lan, router = net + ".10", name + "-r"
            if kind == "cgnat":
                self.router(router, "port", self.behind(self.carrier(name + "-c", "moved", wan), number), lan)
            elif kind in ("narrow", "wide"):  # wide: becomes narrow later
                mtu = NARROW if kind == "narrow" else 1500
                self.router(router, "port", self.behind(self.carrier(name + "-c", "port", wan, SILENT), number, mtu=mtu), lan, SILENT)
            elif kind == "far":
                self.router(router, "port", self.long_cable(wan), lan)
            elif kind == "hairpin":
                self.router(router, "port", self.behind(self.carrier("hairpin-c", "hairpin", wan), number, "lan" + side), lan)
            else:
                self.router(router, kind, wan, lan)
            self.wans[router], self.nets[name] = wan, net
            lab.cable(name, "eth0", router, "lan")
            if kind == "six":
                lan = "-"
            else:
                lab.ip(router, "addr add %s.1/24 dev lan" % net)
                lab.ip(name, "addr add %s/24 dev eth0" % lan)
                lab.ip(name, "route add default via %s.1" % net)
            if kind in ("six", "dual"):
                self.add_six(name, router, number)
            if kind == "proxy":
                self.proxies[name] = Proxy(lab.full(router), net + ".1")
                proxy = " http://us:p%%40ss@%s.1:3128" % net
        self.start_netd(name, lan, 6 if kind == "six" else 4, proxy)
        self.machines[name] = kind
        if kind == "mapped":
            self.start_upnpd(name + "-r", number)
            self.map_port(name)
        return name

    def start_upnpd(self, router, number=None, pmp="yes"):
        """The router's miniupnpd, or the same again: it remembers nothing."""
        lab = self.lab
        if number is not None:
            lab.ip(router, "addr add %s.%d/32 dev wan" % (MAPPED_NET, number))
            self.nft(router, UPNP_TABLE)
        else:
            number = self.upnpds[router][0]
        conf = "%s/%s.conf" % (lab.dir, router)
        with open(conf, "w") as f:
            f.write(UPNP_CONF % {"outside": "%s.%d" % (MAPPED_NET, number), "number": number, "pmp": pmp})
        process = lab.spawn(router, [MINIUPNPD, "-d", "-f", conf, "-P", "%s/%s.pid" % (lab.dir, router)], "%s/%s.log" % (lab.dir, router))
        self.upnpds[router] = (number, process)
        for _ in range(100):
            if "HTTP listening" in process.tail(200):
                return
            time.sleep(0.05)
        raise LabError("miniupnpd did not start: " + process.tail())

    def forget_mappings(self, router):
        """It restarts: neither mappings nor connections are known any more."""
        self.upnpds[router][1].kill()
        for chain in ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"):
            self.lab.run(router, ["nft", "flush", "chain", "inet", "upnp", chain])
        self.lab.run(router, ["conntrack", "-F"], check=False)

    def map_port(self, name, by=""):
        told = self.ask("map %s %s" % (name, by), "map")
        if not told["at"]:
            raise LabError("%s: the router does not let members in: %s" % (name, told["detail"]))
        return told

    def start_netd(self, name, lan, family, proxy):
        told = self.ask("machine %s %s %s %s %d%s" % (name, self.lab.full(name), self.lab.full(name + "-l"), lan, family, proxy), "machine")
        self.pids[name] = told["pid"]

    def pair_number(self):
        with self.asking:
            self.next_pair += 1
            return self.next_pair

    def round(self, pairs, table):
        """Pairs of kinds, side by side: no machine in two of them. Returns what was measured of each."""
        names = [(self.machine(a, "a"), self.machine(b, "b")) for a, b in pairs]
        for a, b in names:
            self.tell("pair %d %s %s %d" % (self.pair_number(), a, b, PATIENCE if table[a[:-2], b[:-2]] else WATCH))
        return [self.answer("pair") for _ in names]

    def hold(self, *kinds):
        """A cluster of machines "kind-side" that stays; their numbers in it are 1, 2, ..."""
        number, names = self.pair_number(), [self.machine(*kind.split("-")) for kind in kinds]
        self.ask("hold %d %s" % (number, " ".join(names)), "held")
        return number

    def ways(self, cluster):
        """(from, to) -> what is said of the way."""
        return {(p["from"], p["to"]): p for p in self.ask("look %d" % cluster, "look")["pairs"]}

    def wait_ways(self, cluster, fits, seconds):
        """Looks until it fits; what was seen last, and after how long."""
        began = time.monotonic()
        while True:
            ways = self.ways(cluster)
            if fits(ways) or time.monotonic() - began > seconds:
                return ways, time.monotonic() - began
            time.sleep(0.2)

    def close(self):
        if self.rig is not None:
            self.rig.stdin.close()
            try:
                self.rig.wait(30)
            except subprocess.TimeoutExpired:
                self.rig.kill()
                self.rig.wait()
        for proxy in self.proxies.values():
            proxy.close()
        for cable in self.cables.values():
            cable.stdin.close()
            cable.wait(10)
        if self.slow is not None:
            self.slow.close()
        self.lab.close()


def read_table(path=os.path.join(HERE, "nat_table.txt")):
    """(kind, kind) -> True where the pair must go directly, both ways round."""
    lines = [line.split() for line in open(path) if line.strip() and not line.startswith("#")]
    head, out = lines[0], {}
    for row in lines[1:]:
        first = head.index(row[0])
        for kind, mark in zip(head[first:], row[1:]):
            out[row[0], kind] = out[kind, row[0]] = mark == "D"
    missing = [(a, b) for a in KINDS for b in KINDS if (a, b) not in out]
    if missing or set(head) != set(KINDS):
        raise LabError("nat_table.txt does not fit the kinds of nat_lab.py: %s" % (missing[:3] or head))
    return out


def kinds_of(result):
    return result["a"][:-2], result["b"][:-2]


def went_direct(result):
    return result["direct_ms"] >= 0


def relay_name(result):
    """How a relayed pair goes: each end has its own way to the relay."""
    over = {result.get("udp_a", False), result.get("udp_b", False)}
    return "relay-udp" if over == {True} else "relay" if over == {False} else "relay-udp/tls"


def faults(result, table, usable_ms=USABLE_MS):
    """What is wrong with a pair, in words."""
    out = []
    name = "%s and %s" % kinds_of(result)
    if result["usable_ms"] < 0:
        return ["%s: no packet came through" % name]
    if result["usable_ms"] > usable_ms:
        out.append("%s: usable only after %d ms" % (name, result["usable_ms"]))
    if not result["full"]:
        out.append("%s: packets of full size do not pass" % name)
    ends = {result["path_a"], result["path_b"]}
    fits = 1200 if "narrow" in kinds_of(result) else 1420
    if went_direct(result) and {result.get("mtu_a", fits), result.get("mtu_b", fits)} != {fits}:
        out.append("%s: packets of %d and %d bytes fit through, not %d" % (name, result["mtu_a"], result["mtu_b"], fits))
    if table[kinds_of(result)] and not went_direct(result):
        out.append("%s: by %s, but the table says direct" % (name, "/".join(sorted(ends))))
    if not table[kinds_of(result)] and ends != {"relay"}:
        out.append("%s: %s, but the table says relay" % (name, "/".join(sorted(ends))))
    for kind, end in zip(kinds_of(result), "ab"):  # where UDP with full packets gets out, it is taken
        if ends == {"relay"} and result.get("udp_" + end, False) != (kind not in TLS_ONLY):
            out.append("%s: %s goes by the relay over %s" % (name, kind, "UDP" if result.get("udp_" + end, False) else "TLS"))
    return out


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0


def summary(results):
    usable = [r["usable_ms"] for r in results if r["usable_ms"] >= 0]
    direct = [r["direct_ms"] for r in results if went_direct(r)]
    return {"usable p50": statistics.median(usable) if usable else 0, "usable p95": percentile(usable, 0.95), "usable max": max(usable, default=0), "direct p50": statistics.median(direct) if direct else 0,
            "direct p95": percentile(direct, 0.95), "lost": sum(r["lost"] for r in results)}


def table_text(results, kinds):
    """Markdown: rows are the ends that spoke first."""
    cells = {kinds_of(r): r for r in results}
    lines = ["| | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for a in kinds:
        row = []
        for b in kinds:
            r = cells.get((a, b))
            row.append("" if r is None else "**fails**" if r["usable_ms"] < 0 else "direct%s %.1f s" % ("6" if r.get("six") else "", r["direct_ms"] / 1000) if went_direct(r) else "%s %.1f s" % (relay_name(r), r["usable_ms"] / 1000))
        lines.append("| **%s** | " % a + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def picture(results, kinds):
    """The same as SVG."""
    cells = {kinds_of(r): r for r in results}
    side, left, top = 74, 96, 46
    width, height = left + side * len(kinds) + 10, top + 40 * len(kinds) + 54
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">' % (width, height),
           '<rect width="%d" height="%d" fill="#ffffff"/>' % (width, height),
           '<text x="%d" y="16" fill="#222222">Way of each pair, and seconds until it: to the first packet by the relay, to both ends direct</text>' % 8]
    for i, kind in enumerate(kinds):
        out.append('<text x="%d" y="38" text-anchor="middle" fill="#222222">%s</text>' % (left + side * i + side // 2, kind))
        out.append('<text x="%d" y="%d" text-anchor="end" fill="#222222">%s</text>' % (left - 8, top + 40 * i + 24, kind))
    for y, a in enumerate(kinds):
        for x, b in enumerate(kinds):
            r = cells.get((a, b))
            direct = r is not None and went_direct(r)
            colour = "#dddddd" if r is None else "#d9534f" if r["usable_ms"] < 0 else "#7bc47f" if direct else "#c9dd7a" if relay_name(r) == "relay-udp" else "#f2c14e"
            out.append('<rect x="%d" y="%d" width="%d" height="38" rx="4" fill="%s"/>' % (left + side * x + 1, top + 40 * y + 1, side - 2, colour))
            if r is not None and r["usable_ms"] >= 0:
                out.append('<text x="%d" y="%d" text-anchor="middle" fill="#222222">%.1f s</text>' % (left + side * x + side // 2, top + 40 * y + 24, (r["direct_ms"] if direct else r["usable_ms"]) / 1000))
    y = top + 40 * len(kinds) + 14
    for i, (colour, text) in enumerate((("#7bc47f", "direct"), ("#c9dd7a", "relay, UDP"), ("#f2c14e", "relay, TLS"), ("#d9534f", "no way"))):
        out.append('<rect x="%d" y="%d" width="16" height="16" rx="3" fill="%s"/><text x="%d" y="%d" fill="#222222">%s</text>' % (left + 110 * i, y, colour, left + 110 * i + 22, y + 13, text))
    return "\n".join(out + ["</svg>"]) + "\n"


def write_docs(results, kinds, faults):
    with open(os.path.join(ROOT, "docs/network-lab.svg"), "w") as f:
        f.write(picture(results, kinds))
    path = os.path.join(ROOT, "docs/network.md")
    text = open(path).read()
    begin, end = "<!-- make lab WRITE=1 writes from here -->\n", "<!-- to here -->\n"
    s = summary(results)
    body = table_text(results, kinds) + "\nUsable after %.1f s (median; 95 of 100 within %.1f s, all within %.1f s), direct after %.1f s (median; 95 of 100 within %.1f s); %d packets of %d pairs were lost on the way.\n" % (
        s["usable p50"] / 1000, s["usable p95"] / 1000, s["usable max"] / 1000, s["direct p50"] / 1000, s["direct p95"] / 1000, s["lost"], len(results))
    if faults:
        body += "\n" + nat_faults.table_text(faults)
    first, last = text.index(begin) + len(begin), text.index(end)
    with open(path, "w") as f:
        f.write(text[:first] + body + text[last:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build/release"))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--faults", default="all", help="all, none, or some of: " + ", ".join(list(nat_faults.FAULTS) + list(nat_faults.RELAY_FAULTS)))
    parser.add_argument("--write", action="store_true", help="put tables and picture into docs/")
    args = parser.parse_args()
    kinds = [k for k in args.kinds.split(",") if k and k != "none"]
    results, wrong, faulty = [], [], []
    names = list(nat_faults.FAULTS) + list(nat_faults.RELAY_FAULTS)
    names = names if args.faults == "all" else [] if args.faults == "none" else args.faults.split(",")
    unknown = [n for n in names if n not in nat_faults.FAULTS and n not in nat_faults.RELAY_FAULTS] + [k for k in kinds if k not in KINDS]
    if unknown:
        parser.error("no such kind or fault: %s" % ", ".join(unknown))
    try:
        table = read_table()
        lab = NatLab(args.build)
        try:
            for turn in range(len(kinds)):
                for r in lab.round([(a, kinds[(i + turn) % len(kinds)]) for i, a in enumerate(kinds)], table):
                    results.append(r)
                    complaints = faults(r, table)
                    wrong += complaints
                    print("%-10s %-10s %-13s usable %5d ms  %s  rtt %.1f ms  lost %d%s" % (*kinds_of(r), "direct" if went_direct(r) else relay_name(r), r["usable_ms"],
                          "direct %5d ms" % r["direct_ms"] if went_direct(r) else " " * 15, r["rtt_a_us"] / 1000, r["lost"], "".join("  FAULT: " + c for c in complaints)), flush=True)
            faulty = nat_faults.run(lab, names, lambda text: print(text, flush=True))
            wrong += [w for fault in faulty for w in fault["wrong"]]
        finally:
            lab.close()
    except LabError as fault:
        print("LAB FAILED: %s" % str(fault).replace("\n", " "))
        return 1
    s = summary(results)
    for what, bound in (("usable", USABLE_P95_MS), ("direct", DIRECT_P95_MS)):
        if s[what + " p95"] > bound:
            wrong.append("95 of 100 pairs are %s only after %d ms" % (what, s[what + " p95"]))
    print()
    print(table_text(results, kinds))
    over_udp = sum(not went_direct(r) and relay_name(r) == "relay-udp" for r in results)
    print("relayed over UDP at both ends: %d of %d" % (over_udp, sum(not went_direct(r) for r in results)))
    print("; ".join("%s %d%s" % (k, v, "" if k == "lost" else " ms") for k, v in s.items()))
    if faulty:
        print(nat_faults.table_text(faulty))
    if args.write:
        write_docs(results, kinds, faulty)
    connected = sum(r["usable_ms"] >= 0 for r in results)
    if wrong or not results + faulty:
        print("LAB FAILED: %s" % ("; ".join(wrong) or "nothing was measured"))
        return 1
    direct = sum(went_direct(r) for r in results)
    print("LAB OK: %d of %d pairs connected, %d direct, %d relayed" % (connected, len(results), direct, connected - direct))
    return 0


if __name__ == "__main__":
    sys.exit(main())
