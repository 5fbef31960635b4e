"""Attacks by files: devices, what /proc and /sys let write and tell, mounts of ours, sockets of the machine, programs that run as root."""
import glob
import os
import socket
import stat
import subprocess
import tempfile
import time

from frame import P, Blocked, any_of, attack, call, marked, need, read


def rewrite(path):
    """Writes what is there already: the right to write is the attack, a change would hurt somebody."""
    value = read(path).strip() or b"\n"
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, value)
    os.close(fd)
    return "wrote %s" % path


# ---- devices
def of_the_disk(path):
    with open(path, "rb") as f:
        if need("token").encode() not in f.read(4096):
            raise Blocked("it holds something else")
    return "read the machine's disk"


@attack
def disk_device():
    """A disk of the machine's as a device of our own, opened for reading."""
    path = tempfile.mkdtemp() + "/disk"
    major, minor = need("disk").split(":")
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
    return of_the_disk(path)


@attack
def smuggled_disk_device():
    """One that somebody else made for us: an archive that was unpacked with more rights than ours."""
    return of_the_disk(need("smuggled_disk"))


@attack
def memory_device():
    return any_of(((path, lambda path=path: len(read(path, 16))) for path in ("/dev/mem", "/dev/kmem", "/dev/port")))


def _made(major, minor, flags):
    path = tempfile.mkdtemp() + "/device"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
    return os.open(path, flags)


@attack
def message_device():
    flags = os.O_RDONLY | os.O_NONBLOCK
    return any_of((("/dev/kmsg", lambda: os.read(os.open("/dev/kmsg", flags), 8192)[:20]), ("made", lambda: os.read(_made(1, 11, flags), 8192)[:20])))


@attack
def tun_device():
    return any_of((("/dev/net/tun", lambda: os.open("/dev/net/tun", os.O_RDWR)), ("made", lambda: _made(10, 200, os.O_RDWR))))


# ---- /proc and /sys
@attack
def write_proc_sys():
    return any_of((path, lambda path=path: rewrite(path)) for path in
                  ("/proc/sys/vm/swappiness", "/proc/sys/kernel/threads-max", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/core/somaxconn", "/proc/sys/fs/file-max"))


@attack
def core_pattern():
    return rewrite("/proc/sys/kernel/core_pattern")


@attack
def sysrq_trigger():
    os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))
    return "may crash the machine"


@attack
def kernel_memory_file():
    return "%d bytes of the kernel's memory" % len(read("/proc/kcore", 64))


@attack
def write_sys():
    return any_of((path, lambda path=path: rewrite(path)) for path in ("/sys/kernel/rcu_expedited", "/sys/kernel/rcu_normal", "/sys/module/printk/parameters/time"))


@attack
def release_agent():
    """What the kernel starts, as root and outside, when a control group empties."""
    def mounted(kind):
        target = tempfile.mkdtemp()
        call("mount", b"cgroup", target.encode(), b"cgroup", 0, kind.encode())
        try:
            return rewrite(target + "/release_agent")
        finally:
            call("umount2", target.encode(), 2)
    return any_of([(path, lambda path=path: rewrite(path)) for path in glob.glob("/sys/fs/cgroup/*/release_agent")] +
                  [("mounted " + kind, lambda kind=kind: mounted(kind)) for kind in ("memory", "pids", "rdma")])


@attack
def raise_own_limits():
    """Where an engine shows its group to a container, and where the machine keeps it."""
    places = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
    for line in read("/proc/self/cgroup").decode().split("\n"):
        if line.count(":") >= 2:
            _, kinds, path = line.split(":", 2)
            places.append(os.path.join("/sys/fs/cgroup", kinds.replace("name=", ""), path.lstrip("/")))
    names = ("memory.limit_in_bytes", "pids.max", "memory.max", "cpu.cfs_quota_us", "cpu.shares")
    return any_of((path, lambda path=path: rewrite(path)) for path in (os.path.join(place, name) for place in places for name in names) if os.path.exists(path))


@attack
def what_proc_hides():
    told = [path for path in ("/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats") if _reads(path)]
    told += [path for path in ("/proc/scsi", "/proc/acpi", "/sys/firmware") if os.path.isdir(path) and os.listdir(path)]
    if not told:
        raise Blocked("nothing to read")
    return "told by " + ", ".join(told)


def _reads(path):
    try:
        return bool(read(path, 64))
    except OSError:
        return False


# ---- files and sockets of the machine
@attack
def file_of_the_machine():
    roots = [""] + ["/proc/%d/%s" % (pid, name) for pid in marked() + [1] for name in ("root", "cwd/../../../../../..")]
    return any_of((root, lambda root=root: read(root + need("witness")).decode()) for root in roots)


@attack
def sockets_of_the_machine():
    """The engine's, privd's, the agent's, netd's."""
    def reach(path):
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            with socket.socket(socket.AF_UNIX, kind) as link:
                try:
                    link.connect(path)
                    return "connected"
                except OSError as fault:
                    last = fault
        raise last
    paths = need("sockets").split(",")
    return any_of((path, lambda path=path: reach(path)) for where in ("", "/proc/1/root") for path in (where + p for p in paths))


@attack
def socket_without_a_file():
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(3)
        link.connect("\0" + need("abstract"))
        return "it says " + link.recv(100).decode()


@attack
def write_what_is_lent_for_reading():
    def write(path):
        with open(path, "ab"):
            return "opened for writing"
    return any_of((path, lambda path=path: write(path)) for path in ("/muster/helper/ray_helper.py", "/muster/helper/new", "/muster/secrets/new", "/muster/run/blobs/new"))


@attack
def hard_link_across():
    """A second name, where we may write, for a file that is the machine's."""
    source, target = P.get("link_from", "/muster/helper/ray_helper.py"), P.get("link_to", "/tmp/ray/linked")
    os.link(source, target)
    os.unlink(target)
    return "linked %s" % source


# ---- rights
@attack
def gain_by_setuid():
    """A program that is root's and set-uid: does it run with rights that we do not have?"""
    ours = int(_status(os.getpid())["CapEff"], 16)
    for program in ("/bin/su", "/usr/bin/passwd", "/usr/bin/newgrp", "/bin/mount"):
        if not os.path.exists(program) or not os.stat(program).st_mode & stat.S_ISUID:
            continue
        name = os.path.basename(os.path.realpath(program))
        running = subprocess.Popen([program] + (["-c", "true"] if name == "su" else []), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end, told = time.monotonic() + 3, {}
            while time.monotonic() < end and running.poll() is None and told.get("Name") != name:
                told = _status(running.pid)
            gained = int(told.get("CapEff", "0"), 16) & ~ours
            if told.get("Name") == name and (gained or told["Uid"].split()[1] != str(os.geteuid())):
                return "%s runs as uid %s with %x" % (program, told["Uid"].split()[1], gained)
        finally:
            running.kill()
            running.wait()
    raise Blocked("set-uid programs run as we do")


def _status(pid):
    try:
        return dict(line.split(":\t", 1) for line in read("/proc/%d/status" % pid).decode().split("\n") if ":\t" in line)
    except OSError:
        return {}
