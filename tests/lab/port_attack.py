"""Holds many connections to a public port that are of no use to anybody, against a control plane that the caller started on this machine.

    python3 port_attack.py PORT KIND COUNT SECONDS [PIN]

KIND: silent (TCP and nothing more), half (the first bytes of a TLS hello), idle (TLS and nothing more), header (TLS and a header that drips),
body (TLS and a body that drips). From addresses 127.0.1.1 to 127.0.1.40, so that no bound for one address ends it. What is closed is opened
again, at most 300 a second. Prints "ready N" when all were opened once and N are open, and ends by itself after SECONDS.
"""
import os
import resource
import select
import socket
import ssl
import sys
import time

SOURCES = ["127.0.1.%d" % n for n in range(1, 41)]
AGAIN_PER_S = 300
TURNS = 20


def context():
    out = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    out.check_hostname, out.verify_mode = False, ssl.CERT_NONE
    return out


def open_one(port, kind, number, tls):
    raw = socket.socket()
    raw.settimeout(5)
    raw.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: ports are of the pair
    raw.bind((SOURCES[number % len(SOURCES)], 0))
    raw.connect(("127.0.0.1", port))
    if kind == "half":
        raw.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    if kind in ("silent", "half"):
        raw.setblocking(False)
        return raw
    out = tls.wrap_socket(raw)
    if kind == "header":
        out.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-Drip: ")
    if kind == "body":
        out.sendall(b"POST /api/v1/login HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n{")
    out.setblocking(False)
    return out


def main():
    port, kind, count, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    os.nice(10)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, count + 200), limit))
    tls, end, made, told = context(), time.monotonic() + seconds, 0, False
    held, poll = {}, select.epoll()
    next_drip, turn, budget, before = time.monotonic(), 0, 1e9, time.monotonic()
    while time.monotonic() < end:
        while len(held) < count and budget >= 1 and time.monotonic() < end:
            made += 1
            budget -= 1
            try:
                one = open_one(port, kind, made, tls)
            except (OSError, ssl.SSLError):
                if made >= count:
                    break
                continue
            held[one.fileno()] = one
            poll.register(one.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
            if made >= count and not told:
                break
        if made >= count and not told:
            told, budget, before = True, 0, time.monotonic()
            sys.stdout.write("ready %d\n" % len(held))
            sys.stdout.flush()
        for fd, events in poll.poll(0.05):
            gone = bool(events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR))
            if not gone:
                try:
                    gone = not held[fd].recv(4096)
                except (BlockingIOError, ssl.SSLWantReadError):
                    gone = False
                except OSError:
                    gone = True
            if gone:
                poll.unregister(fd)
                held.pop(fd).close()
        now = time.monotonic()
        if told:
            budget = min(budget + AGAIN_PER_S * (now - before), AGAIN_PER_S)
        before = now
        if kind in ("header", "body") and now >= next_drip:  # each every two seconds, not all in the same moment
            next_drip, turn = now + 2 / TURNS, (turn + 1) % TURNS
            for one in [one for fd, one in held.items() if fd % TURNS == turn]:
                try:
                    one.send(b"x")
                except OSError:
                    pass
    sys.stdout.write("held %d at the end, opened %d\n" % (len(held), made))


main()
