"""What happens to networks, done to pairs of machines of the laboratory (nat_lab.py) whose packets never stop.

Each fault has a pair of its own, so that they run side by side; those of the relay come last, since they hit everybody. Told is the longest
time in which no packet came back from the moment that a way was there again (for a way that dies: from its death), and what it may be.
"""
import os
import signal
import subprocess
import threading
import time

from lab import LabError

CALM_MS = 300  # packets come every 20 ms


class Pair:
    """Two machines of the lab, joined, with packets under way."""

    def __init__(self, nat, name, kinds, size="small", way="direct", within=10):
        self.nat, self.name, self.wrong = nat, name, []
        self.a, self.b = (nat.machine(kind, "%s%s" % (name, side)) for kind, side in zip(kinds, "ab"))
        self.size, self.way, self.within = size, way, within
        self.router = self.a + "-r"

    def join(self):
        self.id = self.nat.pair_number()
        self.ask("watch %d %s %s %s" % (self.id, self.a, self.b, self.size), "watch")
        self.must_be(self.way, self.within, "at first")

    def ask(self, line, key):
        return self.nat.ask(line, key)

    def mark(self):
        self.ask("mark %d" % self.id, "mark")

    def look(self):
        return self.ask("look %d" % self.id, "look")

    def sh(self, where, command, **kw):
        return self.nat.lab.sh(self.nat.lab.enter(where) + command.split(), **kw)

    def ways(self, seen):
        return {"direct" if seen[end] in ("direct", "lan") else seen[end] for end in ("path_a", "path_b")}

    def must_be(self, way, within, when):
        """Both ends go that way, and packets flow; tells how long it took."""
        began = time.time()
        while time.time() < began + within:
            seen = self.look()
            if self.ways(seen) == {way} and seen["silent_ms"] < CALM_MS and seen["came"] > 0:
                return time.time() - began
            time.sleep(0.1)
        self.wrong.append("%s: not %s %s within %d s: %s" % (self.name, way, when, within, seen))
        return within

    def until_packets(self, within):
        """After mark(): how long until the first packet."""
        end = time.time() + within
        while time.time() < end:
            seen = self.look()
            if seen["came"] > 0 and seen["silent_ms"] < CALM_MS:
                return seen["longest_ms"]
            time.sleep(0.05)
        self.wrong.append("%s: no packet within %d s" % (self.name, within))
        return within * 1000

    def hold(self, seconds, share=0.5):
        """For so long nothing may change; tells the longest pause."""
        self.mark()
        before = self.look()["changes"]
        time.sleep(seconds)
        seen = self.look()
        if seen["changes"] != before or self.ways(seen) != {self.way}:
            self.wrong.append("%s: the way changed: %s" % (self.name, seen))
        if seen["came"] < seen["sent"] * share:
            self.wrong.append("%s: %d of %d packets came" % (self.name, seen["came"], seen["sent"]))
        return seen["longest_ms"]

    def end(self):
        if hasattr(self, "id"):
            self.ask("end %d" % self.id, "end")


# Each: pair -> the longest pause in ms. What is wrong besides goes into pair.wrong.
def blocked(p):
    p.nat.nft(p.router, "table ip block {\n  chain through { type filter hook forward priority -10; meta l4proto udp drop; }\n}\n")
    p.mark()
    p.must_be("relay", 10, "after UDP was blocked")
    pause = p.look()["longest_ms"]
    p.sh(p.router, "nft delete table ip block")
    p.must_be("direct", 35, "after UDP was let through again")
    return pause


def reset(p):
    p.mark()
    p.sh(p.router, "ip link set wan down")
    p.sh(p.router, "nft flush table ip lab")
    p.nat.nft(p.router, "table ip lab {\n%s}\n" % p.nat.rules("moved", None).replace("50000-50255", "51000-51255"))
    p.sh(p.router, "ip link set wan up")
    pause = p.until_packets(20)
    p.must_be("direct", 30, "after the router restarted")
    return max(pause, p.look()["longest_ms"])


def expiry(p):
    return p.hold(12)


def address(p):
    at = p.nat.wans[p.router]
    new = at.rsplit(".", 1)[0] + "." + str(int(at.rsplit(".", 1)[1]) + 100)
    p.mark()
    p.sh(p.router, "ip addr del %s/24 dev wan" % at)
    p.sh(p.router, "ip addr add %s/24 dev wan" % new)
    time.sleep(1)
    p.must_be("direct", 30, "after the provider gave another address")
    return p.look()["longest_ms"]


def moves(p):
    net = p.nat.nets[p.a]
    p.mark()
    p.sh(p.a, "ip addr del %s.10/24 dev eth0" % net)
    p.sh(p.a, "ip addr add %s.77/24 dev eth0" % net)
    p.sh(p.a, "ip route replace default via %s.1" % net)
    time.sleep(1)
    p.must_be("direct", 30, "after the machine got another address")
    return p.look()["longest_ms"]


def cable(p):
    p.nat.lab.pull_cable(p.a)
    time.sleep(8)
    p.nat.lab.plug_in(p.a)
    p.mark()
    pause = p.until_packets(20)
    p.must_be("direct", 35, "after the cable was plugged in")
    return pause


def sleep(p):
    os.kill(p.nat.pids[p.a], signal.SIGSTOP)
    time.sleep(15)
    os.kill(p.nat.pids[p.a], signal.SIGCONT)
    p.mark()
    pause = p.until_packets(20)
    p.must_be("direct", 30, "after it woke")
    return pause


def narrows(p):
    p.mark()
    p.sh(p.router, "ip link set wan mtu 1280")
    p.sh(p.a + "-c", "ip link set lan mtu 1280")
    time.sleep(1)
    p.until_packets(20)
    p.must_be("direct", 30, "after the way became narrow")
    seen = p.look()
    if (seen["mtu_a"], seen["mtu_b"]) != (1200, 1200):
        p.wrong.append("narrows: the ways carry %d and %d, not 1200" % (seen["mtu_a"], seen["mtu_b"]))
    return seen["longest_ms"]


def forgets(p):
    p.mark()
    p.nat.forget_mappings(p.router)
    p.must_be("relay", 10, "after the router forgot")
    p.nat.start_upnpd(p.router)
    pause = p.look()["longest_ms"]
    p.must_be("direct", 35, "after it was asked again")
    return pause


def lossy(p):
    return p.hold(10, share=0.7)


def slow(p):
    return p.hold(10, share=0.95)


def far(p):
    pause = p.hold(10, share=0.9)
    rtt = p.look()["rtt_a_us"]
    if rtt < 150_000:
        p.wrong.append("far: the round trip is %d ms, so the cable is not as long as it should be" % (rtt // 1000))
    return pause


BLOCK = "table ip block {\n  chain through { type filter hook forward priority -10; udp dport %s drop; }\n}\n"


def relay_udp(p):
    """UDP to one port of the relay is dropped on the way, without a word, then to the other; a TCP connection must live through it."""
    from nat_lab import Talk

    def over(way, within, when):
        end = time.time() + within
        while time.time() < end:
            seen = p.look()
            if seen["udp_a"] == (way == "UDP") and seen["silent_ms"] < CALM_MS:
                return
            time.sleep(0.1)
        p.wrong.append("relay-udp: not over %s %s within %d s: %s" % (way, when, within, seen))

    over("UDP", 10, "at first")
    talk = Talk(p.nat.lab.full(p.a + "-l"), p.nat.lab.full(p.b + "-l"), "100.64.%d.2" % p.id)
    time.sleep(1)
    p.mark()
    p.nat.nft(p.router, BLOCK % "443")
    over("TLS", 10, "after UDP port 443 was blocked")
    over("UDP", 20, "by the second port")
    p.nat.nft(p.router, BLOCK % "3478")
    over("TLS", 10, "after that was blocked too")
    pause = p.look()["longest_ms"]
    p.sh(p.router, "nft delete table ip block")
    over("UDP", 40, "after UDP was let through again")
    pause = max(pause, p.look()["longest_ms"])
    before, end = talk.count, time.time() + 10  # TCP asks less and less often meanwhile
    while talk.count < before + 20 and time.time() < end:
        time.sleep(0.1)
    if talk.fault or talk.count < before + 20:
        p.wrong.append("relay-udp: the TCP connection broke: %s after %d answers, %d of them before" % (talk.fault, talk.count, before))
    talk.close()
    return pause


def relay_dies(p):
    """Killed, and back after two seconds; told is the time after that."""
    p.nat.relay.kill()
    time.sleep(2)
    p.mark()
    p.nat.relay = p.nat.start_relay()
    return p.until_packets(30)


def relay_dies_beside(p):
    p.nat.relay.kill()
    pause = p.hold(4)
    p.nat.relay = p.nat.start_relay()
    return pause


# name: (what happens, kinds, how long packets may pause at most in s, what is done, more of Pair)
FAULTS = {
    "blocked": ("UDP is dropped on a direct way; direct again when it is let through", ("port", "port"), 6, blocked, {}),
    "reset": ("the router restarts, forgets every mapping and gives other ports", ("moved", "port"), 6, reset, {}),
    "expiry": ("NATs forget what was silent for two seconds", ("moved", "port"), 1, expiry, {"within": 40}),
    "address": ("the provider gives the router another address", ("port", "port"), 6, address, {}),
    "moves": ("the machine gets another address", ("port", "port"), 6, moves, {}),
    "cable": ("the cable is out for 8 s; counted from when it is in", ("port", "port"), 6, cable, {}),
    "sleep": ("the machine sleeps for 15 s; counted from when it wakes", ("port", "port"), 6, sleep, {}),
    "narrows": ("the way carries 1,280 bytes from now on and nobody says so; packets are of full size", ("wide", "port"), 6, narrows, {"size": "full"}),
    "forgets": ("the router that let members in restarts and forgets; direct again once it is asked anew", ("mapped", "symmetric"), 6, forgets, {}),
    "lossy": ("a tenth of all packets is lost, each way", ("port", "port"), 2, lossy, {"within": 20}),
    "slow": ("2 Mbit/s, each way", ("port", "port"), 1, slow, {"size": "full"}),
    "relay-udp": ("UDP to the relay's port 443 is dropped: by 3478 then; that too: TLS; over UDP again when it is let through; a TCP connection lives through it", ("symmetric", "port"), 6, relay_udp, {"way": "relay"}),
    "far": ("100 ms each way, up to 50 ms more, some overtaken, lost, doubled", ("far", "port"), 2, far, {"within": 20}),
}
RELAY_FAULTS = {
    "relay": ("muster-relay is killed; counted from its restart", ("noudp", "port"), 6, relay_dies, {"way": "relay"}),
    "relay-direct": ("the same beside a direct way", ("open", "port"), 1, relay_dies_beside, {}),
}


def prepare(p):
    """What must be so before the machines meet."""
    lab = p.nat.lab
    if p.name == "expiry":
        for router in (p.a + "-r", p.b + "-r"):
            for what, seconds in (("udp_timeout", 2), ("udp_timeout_stream", 3)):
                lab.sh(lab.enter(router) + ["sysctl", "-qw", "net.netfilter.nf_conntrack_%s=%d" % (what, seconds)])
    elif p.name == "lossy":
        p.nat.nft(p.router, "table ip lossy {\n  chain through { type filter hook forward priority -10; numgen random mod 100 < 10 drop; }\n}\n")
    elif p.name == "slow":
        for device in ("wan", "lan"):
            lab.sh(lab.enter(p.router) + ("tc qdisc add dev %s root tbf rate 2mbit burst 16kb latency 500ms" % device).split())
    elif p.name == "far":
        p.nat.set_cable(p.router, delay=100, jitter=50, reordered=5, lost=1, doubled=2)


def one(nat, name, what, kinds, bound, work, more, factor=1):
    p = Pair(nat, name, kinds, **more)
    prepare(p)
    return p, {"name": name, "what": what, "kinds": kinds, "bound_ms": int(bound * 1000 * factor), "work": work}


def play(p, fault):
    """Runs one; fills in its pause and what went wrong."""
    try:
        p.join()
        fault["pause_ms"] = fault["work"](p) if not p.wrong else -1
        if fault["pause_ms"] > fault["bound_ms"]:
            p.wrong.append("%s: no packet for %d ms, %d are allowed" % (p.name, fault["pause_ms"], fault["bound_ms"]))
        p.end()
    except (LabError, OSError, subprocess.SubprocessError) as error:
        fault.setdefault("pause_ms", -1)
        p.wrong.append("%s: %s" % (p.name, error))
    fault["wrong"] = p.wrong


def run(nat, names, say, factor=1):
    """The named faults; returns them with what was measured."""
    done = []
    for group in (FAULTS, RELAY_FAULTS):
        wanted = [n for n in group if n in names]
        ready = [one(nat, name, *group[name], factor=factor) for name in wanted]  # machines are made one after the other
        threads = [threading.Thread(target=play, args=each) for each in ready]
        for thread in threads:
            thread.start()
            if group is RELAY_FAULTS:
                thread.join()
        for thread in threads:
            thread.join()
        for _, fault in ready:
            say("%-12s pause %5d ms, allowed %5d ms%s" % (fault["name"], fault["pause_ms"], fault["bound_ms"], "".join("  FAULT: " + w for w in fault["wrong"])))
            done.append(fault)
    return done


def table_text(faults):
    lines = ["| | what happens | between | pause allowed | seen |", "|---|---|---|---|---|"]
    for f in faults:
        seen = "**fails**" if f["wrong"] else "%.1f s" % (f["pause_ms"] / 1000)
        lines.append("| **%s** | %s | %s, %s | %g s | %s |" % (f["name"], f["what"], *f["kinds"], f["bound_ms"] / 1000, seen))
    return "\n".join(lines) + "\n"
