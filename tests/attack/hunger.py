"""Attacks by appetite: everything that is finite, taken until something says stop. Each has a "most" that it gives up at, as succeeded."""
import errno
import mmap
import os
import resource
import signal
import threading
import time

from frame import Blocked, P, attack, need

MIB = 1 << 20


@attack
def fork_bomb():
    """Processes that are full of threads, which count alike; held for a while so that others can be looked at meanwhile."""
    most, made = int(need("bomb_most")), 0
    try:
        while made < most:
            read, write = os.pipe()
            wanted = min(400, most - made - 1)
            if os.fork() == 0:
                _fill_with_threads(wanted, write)
            os.close(write)
            told = int(os.read(read, 16) or b"-1")
            os.close(read)
            made += 1 + max(0, told)
            if told < wanted:
                raise Blocked("stopped at %d" % made)
    except OSError as fault:
        raise Blocked("stopped at %d: %s" % (made, errno.errorcode.get(fault.errno)))
    finally:
        time.sleep(float(P.get("hold", 0)))
    return "made %d" % made


def _fill_with_threads(most, write):
    threading.stack_size(64 << 10)
    gate, made = threading.Lock(), 0
    gate.acquire()
    try:
        while made < most:
            threading.Thread(target=gate.acquire, daemon=True).start()
            made += 1
    except (RuntimeError, MemoryError):
        pass
    os.write(write, b"%d" % made)
    os.close(write)
    signal.pause()


@attack
def memory():
    """Nobody else's process may be chosen instead, so this one says that it may be killed first."""
    most, taken = int(need("memory_most")), []
    with open("/proc/self/oom_score_adj", "w") as f:
        f.write("1000")
    try:
        while len(taken) * 64 * MIB < most:
            taken.append(mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            for page in range(0, 64 * MIB, mmap.PAGESIZE):
                taken[-1][page] = 1
    except (MemoryError, OSError) as fault:
        raise Blocked("stopped at %d MiB: %s" % (64 * len(taken), fault))
    return "took %d MiB" % (64 * len(taken))


def fill(path, most):
    done = 0
    block = b"\xa5" * MIB
    with open(path, "wb", buffering=0) as f:
        try:
            while done < most:
                done += f.write(block)
            os.fsync(f.fileno())
        except OSError as fault:
            raise Blocked("stopped at %d MiB: %s" % (done // MIB, errno.errorcode.get(fault.errno)))
    return "%d MiB in %s" % (done // MIB, path)


@attack
def shared_memory():
    try:
        return fill("/dev/shm/filler", int(need("shm_most")))
    finally:
        os.unlink("/dev/shm/filler")


@attack
def open_files():
    most, held = int(need("files_most")), []
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        while len(held) < most:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as fault:
        raise Blocked("stopped at %d: %s" % (len(held), errno.errorcode.get(fault.errno)))
    return "opened %d" % len(held)


@attack
def processor():
    """More of the processors than the lease has: eight that do nothing else."""
    seconds, most = float(P.get("cpu_seconds", 3)), float(need("cpu_most"))
    began = time.monotonic()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            while time.monotonic() - began < seconds:
                pass
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    share = (after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime) / (time.monotonic() - began)
    if share <= most:
        raise Blocked("%.2f processors" % share)
    return "%.2f processors" % share


# ---- disks: who watches them ends the container, so these only say what they wrote and stay
def stay(said):
    print(said, flush=True)
    time.sleep(float(P.get("stay", 60)))
    return said


@attack
def disk():
    """A file at the place that is asked for."""
    return stay(fill(os.path.join(need("disk_place"), "filler"), int(need("disk_most"))))


@attack
def disk_below_long_paths():
    """The file lies so deep that no path is long enough to name it."""
    os.chdir(need("disk_place"))
    for level in range(60):
        name = "%03d" % level + "x" * 120
        os.mkdir(name)
        os.chdir(name)
    return stay(fill("filler", int(need("disk_most"))))


@attack
def tree_deeper_than_descriptors():
    """For who removes it: more levels than a process may have open files."""
    os.chdir(need("disk_place"))
    for _ in range(int(P.get("deep", 6000))):
        os.mkdir("d")
        os.chdir("d")
    open("at the end", "w").close()
    return "made"


# ---- an end that does not come
@attack
def zombies_that_ignore_signals():
    """Children that nobody waits for, below processes that hear no polite signal; they stay when this one ends."""
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(each, signal.SIG_IGN)
            for number in (0, 1, 2):
                os.dup2(os.open("/dev/null", os.O_RDWR), number)
            for _ in range(int(P.get("zombies", 100))):
                if os.fork() == 0:
                    os._exit(0)
            time.sleep(3600)
    return "made"


@attack
def log_flood():
    """Through the main process's own output, which the engine keeps."""
    block = (b"x" * 1023 + b"\n") * 64
    with open(need("log_to"), "wb", buffering=0) as out:
        for _ in range(int(need("log_most")) // len(block)):
            out.write(block)
    return "wrote %s bytes" % need("log_most")
