"""All TCP ports of one address, fast: non-blocking connects in large batches.

    scan.py ADDRESS [FROM [TO]] [--wait SECONDS]     prints "open PORT" per port that answers, then "scanned N"

A port that refuses or stays silent is closed; where nearly all refuse, the silent ones are asked a second time, since a busy machine
drops some of so many packets. Runs anywhere with a Python 3 (also inside containers); needs no privileges.
"""
import errno
import resource
import select
import socket
import sys
import time


def ask(address, ports, wait):
    """(open, silent) of these ports."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    poll, sockets, found = select.epoll(), {}, []
    for port in ports:
        s = socket.socket(family, socket.SOCK_STREAM)
        s.setblocking(False)
        code = s.connect_ex((address, port))
        if code == 0:
            found.append(port)
        if code != errno.EINPROGRESS:
            s.close()
            continue
        sockets[s.fileno()] = (s, port)
        poll.register(s.fileno(), select.EPOLLOUT)
    end = time.monotonic() + wait
    while sockets and time.monotonic() < end:
        for fd, _ in poll.poll(max(0.0, end - time.monotonic()), 4096):
            s, port = sockets.pop(fd)
            if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(port)
            s.close()
    silent = [port for _, port in sockets.values()]
    for s, _ in sockets.values():
        s.close()
    poll.close()
    return found, silent


def scan(address, first=1, last=65535, wait=1.0):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    batch = max(64, min(12000, hard - 256))
    found = []
    for start in range(first, last + 1, batch):
        ports = range(start, min(start + batch, last + 1))
        opened, silent = ask(address, ports, wait)
        again = silent if len(silent) < len(ports) // 4 else []
        found += opened + ask(address, again, wait)[0]
    return sorted(found)


def main():
    words = sys.argv[1:]
    wait = float(words.pop(words.index("--wait") + 1)) if "--wait" in words else 1.0
    words = [w for w in words if w != "--wait"]
    first, last = int(words[1]) if len(words) > 1 else 1, int(words[2]) if len(words) > 2 else 65535
    for port in scan(words[0], first, last, wait):
        print("open", port)
    print("scanned", last - first + 1)


if __name__ == "__main__":
    main()
