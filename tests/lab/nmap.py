"""nmap on an address, and what it found.

    seen = scan(lambda command: lab.run("gamma", command), "192.168.1.10", "-sS", "-p-")
    seen.open                       # {"tcp/45678"}
    seen.state["udp/123"]           # as nmap says: open, closed, filtered, open|filtered
    seen.scanned                    # {"tcp": 65535}

Several addresses of one family at once are one scan. Where none has a way to it, it is `unreachable`, with nothing found. Thread rule: one thread.
Errors: NmapError with what nmap said.
"""
import xml.etree.ElementTree as tree


class NmapError(Exception):
    pass


class Seen:
    def __init__(self, text):
        try:
            root = tree.fromstring(text)
        except tree.ParseError as fault:
            raise NmapError("not what nmap writes: %s: %s" % (fault, text[-600:]))
        self.scanned = {info.get("protocol"): int(info.get("numservices")) for info in root.iter("scaninfo")}
        self.state = {"%s/%s" % (port.get("protocol"), port.get("portid")): port.find("state").get("state") for port in root.iter("port")}
        self.open = {port for port, state in self.state.items() if state == "open"}
        self.unreachable = root.find("host") is None
        self.seconds = float(root.find("runstats/finished").get("elapsed"))

    def __repr__(self):
        return "open %s, scanned %s%s" % (sorted(self.open), self.scanned, ", unreachable" if self.unreachable else "")


def scan(run, address, *words):
    """`run` runs a command somewhere, as root, and gives what it printed; nobody is asked first whether he is there."""
    all_of_them = [address] if isinstance(address, str) else list(address)
    six = ["-6"] if ":" in all_of_them[0] else []
    done = run(["nmap", "-n", "-Pn", "-T4", "-oX", "-"] + six + list(words) + all_of_them)
    if "<nmaprun" not in done.stdout:
        raise NmapError("nmap failed (%d): %s" % (done.returncode, (done.stderr or done.stdout).strip()[-600:]))
    return Seen(done.stdout)


# All TCP ports; where a firewall drops all of them one try is what there is time for.
def tcp(run, address, silent=False):
    return scan(run, address, "-sS", "-p-", "--min-rate", "15000", "--max-retries", "0" if silent else "2")


# The UDP ports that are used most. Silence says nothing (open|filtered), so what counts is who answers; hosts tell of few
# closed ports a second, and nmap need not wait for that.
def udp(run, address, count=1000):
    return scan(run, address, "-sU", "--top-ports", str(count), "--defeat-icmp-ratelimit", "--min-rate", "800", "--max-retries", "1")
