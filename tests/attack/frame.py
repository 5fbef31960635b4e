"""The list of attacks, their parameters, and system calls by number, since the C library has no name for most of these."""
import ctypes
import errno
import os
import platform

P = {}        # parameters of this run
ATTACKS = {}  # name -> function: returns what it got; raises OSError or Blocked where it got nothing
GROUPS = {}   # module -> names
MACHINE = platform.machine()
NUMBERS = {  # x86_64, aarch64
    "clone": (56, 220), "ptrace": (101, 117), "syslog": (103, 116), "pivot_root": (155, 41), "chroot": (161, 51), "settimeofday": (164, 170), "mount": (165, 40),
    "umount2": (166, 39), "reboot": (169, 142), "sethostname": (170, 161), "init_module": (175, 105), "kexec_load": (246, 104), "add_key": (248, 217),
    "keyctl": (250, 219), "unshare": (272, 97), "perf_event_open": (298, 241), "open_by_handle_at": (304, 265), "setns": (308, 268),
    "process_vm_readv": (310, 270), "finit_module": (313, 273), "bpf": (321, 280), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "open_tree": (428, 428),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "clone3": (435, 435)}
NEW = {"mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Blocked(Exception):
    """Refused otherwise than by an errno."""


def attack(function):
    ATTACKS[function.__name__] = function
    GROUPS.setdefault(function.__module__, []).append(function.__name__)
    return function


def call(name, *words):
    """The system call; OSError says which one failed."""
    number = NUMBERS[name][MACHINE == "aarch64"]
    done = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(w) if isinstance(w, int) else w for w in words])
    if done == -1:
        code = ctypes.get_errno()
        raise OSError(code, "%s: %s" % (name, errno.errorcode.get(code, code)))
    return done


def need(key):
    """A target; an attack that is not told one is broken, not blocked."""
    if key not in P:
        raise KeyError("parameter " + key)
    return P[key]


def read(path, size=4096):
    with open(path, "rb") as f:
        return f.read(size)


def any_of(tries):
    """The first that succeeds; where none does, the faults of all."""
    faults = []
    for what, function in tries:
        try:
            return "%s: %s" % (what, function())
        except (OSError, Blocked) as fault:
            faults.append("%s: %s" % (what, fault))
    raise Blocked("; ".join(faults)[:1500])


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def marked():
    """Processes of the machine's that are in sight, by a word on their command line."""
    out = []
    for pid in processes():
        try:
            if need("mark").encode() in read("/proc/%d/cmdline" % pid):
                out.append(pid)
        except OSError:
            pass
    return out
