#!/usr/bin/env python3
"""Our WireGuard (src/overlay, as netd uses it) against foreign ones: the Linux kernel's in a virtual machine, the newest wireguard-go, Debian's.

    sudo python3 tests/lab/wg_interop.py [--build build/release] [--peers kernel,wireguard-go,wireguard-go-debian] [--quick]

Two tunnels to each, one begun by us and one by them, both with a pre-shared key: handshake, packets of every size, 4 MiB by TCP both ways, the
new handshake after two minutes under traffic, both ends moving to other addresses; a third with a wrong key must stay silent. --quick leaves the
two minutes out. The kernel is Debian's cloud kernel under qemu's own emulation (no KVM), fetched from the package archive once, into build/.
The last line is "INTEROP OK: N peers" or "INTEROP FAILED: ...".
"""
import argparse
import glob
import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
from lab import Lab, LabError  # noqa: E402

CACHE = os.path.join(ROOT, "build/interop")
MTU, REKEY_S = 1420, 120
SIZES = range(0, MTU - 28 + 1)  # of ICMP's payload
TCP_BYTES = 4 << 20


def sh(command, **kw):
    return subprocess.run(command, check=True, capture_output=True, text=True, **kw).stdout


def wg_key(command, text=None):
    return sh(["wg", command], input=text).strip()


# ---- the other ends
class Process:
    """Programs of the other end in a namespace of the lab."""

    def __init__(self, lab, name, program):
        self.lab, self.program, self.number = lab, program, 0
        self.us, self.them = name + "-us", name + "-them"
        lab.ns(self.us)
        lab.ns(self.them)
        lab.cable(self.us, "eth0", self.them, "eth0")
        lab.ip(self.us, "addr add 10.98.0.1/24 dev eth0")
        lab.ip(self.them, "addr add 10.98.0.2/24 dev eth0")
        self.dir = os.path.join(lab.dir, name)
        os.makedirs(self.dir)

    def interface(self):
        self.number += 1
        name = "%s%s%d" % (self.lab.tag, self.us[0], self.number)  # its control socket lies in a place that all share
        self.lab.spawn(self.them, [self.program, "-f", name], self.dir + "/%s.log" % name, env={"LOG_LEVEL": "error"})
        self.wait_for("wg show %s" % name)
        return name

    def wait_for(self, command):
        for _ in range(100):
            if self.run(command, check=False)[0] == 0:
                return
            time.sleep(0.1)
        raise LabError("'%s' never worked" % command)

    def run(self, command, check=True, timeout=60):
        done = self.lab.run(self.them, ["sh", "-c", command], check=False, cwd=self.dir, timeout=timeout)
        if check and done.returncode != 0:
            raise LabError("the other end: '%s' failed: %s" % (command, (done.stdout + done.stderr)[-300:]))
        return done.returncode, done.stdout

    def close(self):
        pass


class Kernel(Process):
    """A guest with Debian's kernel whose cable is a TAP device in our namespace; its shell is on the serial line."""

    def __init__(self, lab, name):
        self.lab, self.us, self.number = lab, name + "-us", 0
        lab.ns(self.us)
        self.dir = os.path.join(lab.dir, name)
        os.makedirs(self.dir)
        kernel, initramfs = guest_files()
        lab.ip(self.us, "tuntap add tap0 mode tap")
        lab.ip(self.us, "addr add 10.98.0.1/24 dev tap0")
        lab.ip(self.us, "link set tap0 up")
        path = self.dir + "/serial"
        self.guest = lab.spawn(self.us, ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "unix:%s,server=on,wait=off" % path,
                                         "-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1", "-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no",
                                         "-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:00:02"], self.dir + "/qemu.log")
        self.line = None
        for _ in range(100):
            try:
                self.line = socket.socket(socket.AF_UNIX)
                self.line.connect(path)
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise LabError("qemu did not start:\n" + self.guest.tail())
        self.read_until(b"READY-FOR-ORDERS", 300)  # seconds on an idle machine
        self.run("PS1=; export WG_COLOR_MODE=never")
        self.run("ip addr add 10.98.0.2/24 dev eth0 && ip link set eth0 up")

    def read_until(self, mark, timeout):
        self.line.settimeout(1)
        seen, end = b"", time.time() + timeout
        while mark not in seen:
            if time.time() > end or not self.guest.alive():
                raise LabError("the guest does not say %s; it said: %s" % (mark, seen[-500:]))
            try:
                seen += self.line.recv(65536)
            except socket.timeout:
                pass
        return seen

    def run(self, command, check=True, timeout=60):
        self.number += 1
        mark = "@@%d" % self.number
        self.line.sendall(("%s; echo %s$? %s\n" % (command, mark[:1] + "\"\"" + mark[1:] + ":", "END")).encode())
        try:
            text = self.read_until(b" END\r\n", timeout).decode(errors="replace")
        except LabError as fault:
            raise LabError("'%s': %s" % (command, fault)) from None
        head, _, tail = text.rpartition(mark + ":")
        code, out = int(tail.split()[0]), head.replace("\r\n", "\n")
        if check and code != 0:
            raise LabError("the guest: '%s' failed: %s" % (command, out[-300:]))
        return code, out

    def interface(self):
        self.count = getattr(self, "count", 0) + 1
        name = "wg%d" % self.count
        self.run("ip link add %s type wireguard" % name)
        return name

    def close(self):
        if self.line is not None:
            self.line.close()


# ---- the guest
def cpio(tree):
    """An initramfs (newc) of {path: bytes | directory None | ("link", target) | ("node", major, minor)}."""
    out = bytearray()

    def entry(name, mode, data=b"", major=0, minor=0):
        raw = name.encode() + b"\0"
        fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(raw), 0]
        out.extend(b"070701" + b"".join(b"%08X" % f for f in fields) + raw)
        out.extend(b"\0" * (-len(out) % 4))
        out.extend(data)
        out.extend(b"\0" * (-len(out) % 4))
    made = set()
    for path, what in sorted(tree.items()):
        parts = path.split("/")
        for i in range(1, len(parts)):
            folder = "/".join(parts[:i])
            if folder not in made:
                made.add(folder)
                entry(folder, 0o040755)
        if what is None:
            made.add(path)
            entry(path, 0o040755)
        elif isinstance(what, tuple) and what[0] == "link":
            entry(path, 0o120777, what[1].encode())
        elif isinstance(what, tuple):
            entry(path, 0o020600, major=what[1], minor=what[2])
        else:
            entry(path, 0o100755, what)
    entry("TRAILER!!!", 0)
    return bytes(out)


INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in %s; do insmod /modules/$module; done
ip link set lo up
stty -echo -F /dev/ttyS0
cd /tmp
exec setsid sh -c 'exec sh < /dev/ttyS0 > /dev/ttyS0 2>&1' &
sleep 0.3
echo READY-FOR-ORDERS > /dev/ttyS0
while true; do sleep 1000; done
"""


def read(path):
    with open(path, "rb") as f:
        return f.read()


def with_libraries(tree, program, name):
    tree[name] = read(shutil.which(program))
    for word in sh(["ldd", shutil.which(program)]).split():
        if word.startswith("/"):
            tree[word[1:]] = read(os.path.realpath(word))


def guest_files():
    """Debian's cloud kernel and an initramfs with its WireGuard, busybox and wg; made once."""
    kernel, initramfs = CACHE + "/vmlinuz", CACHE + "/initramfs"
    if os.path.exists(kernel) and os.path.exists(initramfs) and os.path.getmtime(initramfs) > os.path.getmtime(__file__):
        return kernel, initramfs
    os.makedirs(CACHE, exist_ok=True)
    depends = sh(["apt-cache", "depends", "linux-image-cloud-amd64"])
    package = next(w for w in depends.split() if w.startswith("linux-image-") and w[12].isdigit())
    unpacked = CACHE + "/" + package
    if not os.path.isdir(unpacked):
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            os.chmod(folder, 0o777)  # apt fetches as somebody else
            sh(["apt-get", "download", "-qq", package], cwd=folder)
            sh(["dpkg-deb", "-x", glob.glob(folder + "/*.deb")[0], unpacked])
    shutil.copy(glob.glob(unpacked + "/boot/vmlinuz-*")[0], kernel)
    modules = glob.glob(unpacked + "/lib/modules/*")[0]
    tree, order = {}, []
    known = {os.path.basename(path)[:-3].replace("-", "_"): path for path in glob.glob(modules + "/**/*.ko", recursive=True)}

    def add(name):
        if name in order:
            return
        needs = sh(["modinfo", "-F", "depends", known[name]]).strip()
        for need in needs.split(",") if needs else []:
            add(need.replace("-", "_"))
        order.append(name)
        tree["modules/" + name] = read(known[name])
    for wanted in ("virtio_pci", "virtio_net", "ipv6", "wireguard"):
        if wanted in known:  # else it is in the kernel itself
            add(wanted)
    if "wireguard" not in order:
        raise LabError("%s has no module wireguard" % package)
    for program in ("wg", "ip"):
        with_libraries(tree, program, "bin/" + program)
    tree["bin/busybox"] = read(shutil.which("busybox"))
    for applet in sh(["busybox", "--list"]).split():
        tree.setdefault("bin/" + applet, ("link", "busybox"))
    tree["init"] = (INIT % " ".join(order)).encode()
    for folder in ("proc", "sys", "dev", "tmp"):
        tree[folder] = None
    tree["dev/console"] = ("node", 5, 1)
    with open(initramfs, "wb") as f:
        f.write(cpio(tree))
    return kernel, initramfs


# ---- our end
class Tunnel:
    """One interface here and one there. `begins`: who knows where the other is and sends first."""

    def __init__(self, build, far, number, begins, right_key=True):
        self.far, self.begins, self.number = far, begins, number
        self.ours, self.theirs = "10.77.%d.1" % number, "10.77.%d.2" % number
        d = far.dir
        private, other, psk = wg_key("genkey"), wg_key("genkey"), wg_key("genpsk")
        port_us, port_them = 7000 + number, 7100 + number
        for name, text in (("key%d" % number, private), ("psk%d" % number, psk)):
            with open(os.path.join(d, name), "w") as f:
                os.fchmod(f.fileno(), 0o600)
                f.write(text + "\n")
        self.device = far.interface()
        for name, text in (("k", other), ("p", psk if right_key else wg_key("genpsk"))):
            far.run("umask 077; echo '%s' > %s%d" % (text, name, number))
        self.public = wg_key("pubkey", private)
        end = " endpoint 10.98.0.1:%d" % port_us if begins == "they" else ""
        far.run("wg set %s listen-port %d private-key k%d peer %s preshared-key p%d allowed-ips %s/32%s" % (self.device, port_them, number, self.public, number, self.ours, end))
        far.run("ip addr add %s/24 dev %s && ip link set %s mtu %d && ip link set %s up" % (self.theirs, self.device, self.device, MTU, self.device))
        command = [build + "/muster-wg-peer", far.lab.full(far.us), "mw%d" % number, self.ours, str(port_us), d + "/key%d" % number, wg_key("pubkey", other), d + "/psk%d" % number, self.theirs]
        self.process = subprocess.Popen(command + (["10.98.0.2:%d" % port_them] if begins == "we" else []), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if not self.process.stdout.readline():
            raise LabError("muster-wg-peer did not start")

    def stats(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def handshaken(self):
        """When they last shook hands, by their clock."""
        words = self.far.run("wg show %s latest-handshakes" % self.device)[1].split()
        return int(words[words.index(self.public) + 1])

    def endpoint(self):
        words = self.far.run("wg show %s endpoints" % self.device)[1].split()
        return words[words.index(self.public) + 1]

    def enter(self, work):
        """Runs in a thread inside our namespace."""
        out = []

        def inside():
            fd = os.open("/run/netns/" + self.far.lab.full(self.far.us), os.O_RDONLY)
            try:
                import ctypes
                if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) != 0:
                    raise LabError("setns failed")
                out.append(work())
            except (OSError, LabError) as fault:
                out.append(fault)
            finally:
                os.close(fd)
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if isinstance(out[0], Exception):
            raise out[0]
        return out[0]

    def echoes(self, sizes, tries=1, timeout=3.0):
        """Sizes whose ICMP echo did not come back as it was."""
        def work():
            s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            s.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never cut
            s.connect((self.theirs, 0))
            wrong = []
            for size in sizes:
                payload = bytes((i * 7 + size) & 255 for i in range(size))
                for _ in range(tries):
                    head = struct.pack("!BBHHH", 8, 0, 0, 0x4d57, size)
                    s.send(head[:2] + struct.pack("!H", checksum(head + payload)) + head[4:] + payload)
                    if answer_comes(s, size, payload, timeout):
                        break
                else:
                    wrong.append(size)
            s.close()
            return wrong
        return self.enter(work)

    def they_ping(self, size=56, count=1):
        return self.far.run("ping -c %d -W 3 -s %d %s" % (count, size, self.ours), check=False)[0] == 0

    def tcp(self):
        """4 MiB each way; what arrives must be what was sent."""
        data = os.urandom(TCP_BYTES)
        want = hashlib.sha256(data).hexdigest()
        listener = "nc -l -p 7 < /dev/null > got%d" % self.number if isinstance(self.far, Kernel) else "python3 -c \"import socket; s=socket.create_server(('%s',7)); c=s.accept()[0]; f=open('got%d','wb'); [f.write(b) for b in iter(lambda: c.recv(65536), b'')]\"" % (self.theirs, self.number)
        self.far.run("(%s) > /dev/null 2>&1 & sleep 1" % listener)

        def send():
            with socket.create_connection((self.theirs, 7), timeout=60) as s:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                s.recv(1)
        self.enter(send)
        got = ""
        for _ in range(60):
            got = self.far.run("sha256sum < got%d" % self.number)[1].split()[0]
            if got == want:
                break
            time.sleep(0.5)
        if got != want:
            raise LabError("what they got by TCP is not what we sent")

        def receive():
            server = socket.create_server((self.ours, 8))
            server.settimeout(60)
            ready.set()
            s, _ = server.accept()
            digest = hashlib.sha256()
            while True:
                more = s.recv(65536)
                if not more:
                    return digest.hexdigest()
                digest.update(more)
        ready, back = threading.Event(), []
        thread = threading.Thread(target=lambda: back.append(self.enter(receive)))
        thread.start()
        ready.wait(10)
        sender = "nc %s 8 < got%d" % (self.ours, self.number) if isinstance(self.far, Kernel) else "python3 -c \"import socket; s=socket.create_connection(('%s',8)); s.sendall(open('got%d','rb').read())\"" % (self.ours, self.number)
        self.far.run("timeout 60 sh -c %s" % json.dumps(sender.replace('"', "'")) if isinstance(self.far, Kernel) else sender, check=False, timeout=90)
        thread.join(70)
        if back != [want]:
            raise LabError("what we got by TCP is not what they sent")

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff


def answer_comes(s, number, payload, timeout):
    end = time.time() + timeout
    while time.time() < end:
        s.settimeout(max(end - time.time(), 0.01))
        try:
            packet = s.recv(65536)
        except socket.timeout:
            return False
        icmp = packet[(packet[0] & 15) * 4:]
        if icmp[0] == 0 and struct.unpack("!HH", icmp[4:8]) == (0x4d57, number):
            return icmp[8:] == payload
    return False


def check(truth, what):
    if not truth:
        raise LabError(what)


def try_peer(build, far, quick, note):
    """Everything with one other end; raises what went wrong first."""
    tunnels = []
    try:
        tunnels.append(Tunnel(build, far, 0, "we"))
        tunnels.append(Tunnel(build, far, 1, "they"))
        began = time.time()
        check(tunnels[0].echoes([56], tries=5) == [], "our handshake was not answered")
        check(any(tunnels[1].they_ping() for _ in range(5)), "their handshake was not answered")
        first = [(t.stats()["handshakes"], t.handshaken()) for t in tunnels[:2]]
        note("handshakes with a pre-shared key, begun by either")
        for t in tunnels:
            wrong = t.echoes(SIZES, tries=3)
            check(not wrong, "packets of %s bytes did not come back" % wrong[:5])
            for size in list(range(1, MTU - 28, 97)) + [MTU - 29, MTU - 28]:
                check(t.they_ping(size), "their ping of %d bytes was not answered" % size)
            t.tcp()
        note("packets of all %d sizes, and 4 MiB by TCP both ways" % len(SIZES))
        silent = Tunnel(build, far, 2, "we", right_key=False)
        tunnels.append(silent)
        check(silent.echoes([56], timeout=6) == [56] and silent.stats()["handshakes"] == 0, "a wrong pre-shared key was taken")
        note("a wrong pre-shared key is refused")
        if not quick:
            lost = 0
            while time.time() < began + REKEY_S + 15:
                for t in tunnels[:2]:
                    lost += len(t.echoes([100]))
                time.sleep(0.5)
            for t, (ours, theirs) in zip(tunnels, first):
                check(t.stats()["handshakes"] > ours and t.handshaken() > theirs, "no new handshake within %d s (begun by: %s)" % (REKEY_S + 15, t.begins))
            check(lost <= 1, "%d packets were lost around the new handshake" % lost)
            note("a new handshake after two minutes, %d packets lost" % lost)
        device = "eth0" if not isinstance(far, Kernel) else "tap0"
        far.run("ip addr del 10.98.0.2/24 dev eth0 && ip addr add 10.98.0.3/24 dev eth0")
        for t in tunnels[:2]:
            # Debian's wireguard-go goes on from the old address for some seconds
            check(any(t.they_ping() for _ in range(12)), "nothing passes after they moved")
            check(t.stats()["endpoint"].startswith("10.98.0.3:"), "we did not follow them: %s" % t.stats())
            check(t.echoes([500], tries=3) == [], "we do not reach them where they moved")
        far.lab.ip(far.us, "addr del 10.98.0.1/24 dev " + device)
        far.lab.ip(far.us, "addr add 10.98.0.9/24 dev " + device)
        for t in tunnels[:2]:
            check(t.echoes([500], tries=5) == [], "nothing passes after we moved")
            check(t.endpoint().startswith("10.98.0.9:"), "they did not follow us: %s" % t.endpoint())
            check(t.they_ping(), "they do not reach us where we moved")
        note("roaming of either end")
        check(all(t.stats()["lost"] == 0 for t in tunnels), "our own interface refused packets")
    finally:
        for t in tunnels:
            t.close()


def newest_wireguard_go():
    out = os.path.join(ROOT, "build/peers/wireguard")
    if not os.path.exists(out):
        os.makedirs(os.path.dirname(out), exist_ok=True)
        sh(["go", "install", "golang.zx2c4.com/wireguard@latest"], env=dict(os.environ, GOBIN=os.path.dirname(out)))
    return out


PEERS = {
    "kernel": lambda lab: Kernel(lab, "kernel"),
    "wireguard-go": lambda lab: Process(lab, "newest", newest_wireguard_go()),
    "wireguard-go-debian": lambda lab: Process(lab, "debian", "wireguard-go"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build/release"))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--quick", action="store_true", help="without the two minutes until a new handshake")
    args = parser.parse_args()
    names = args.peers.split(",")
    unknown = [n for n in names if n not in PEERS]
    if unknown:
        parser.error("no such peer: " + ", ".join(unknown))
    faults, lab, fars = [], None, {}

    def run(name):
        began = time.time()

        def note(text):
            print("%-20s %5.1f s  %s" % (name, time.time() - began, text), flush=True)
        try:
            try_peer(args.build, fars[name], args.quick, note)
        except (LabError, OSError, subprocess.SubprocessError, ValueError) as fault:
            faults.append("%s: %s" % (name, str(fault).strip()[-400:]))
    try:
        lab = Lab("interop")
        for name in names:
            fars[name] = PEERS[name](lab)
        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except (LabError, OSError, subprocess.SubprocessError) as fault:
        said = getattr(fault, "stderr", "") or ""
        faults.append((str(fault) + " " + said).strip()[-600:])
    finally:
        for far in fars.values():
            far.close()
        if lab is not None:
            lab.close()
    if faults:
        print("INTEROP FAILED: %s" % "; ".join(faults).replace("\n", " "))
        return 1
    print("INTEROP OK: %d peers" % len(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
