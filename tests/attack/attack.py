"""What a hostile container tries, each attack for real and in a process of its own.

    attack.py [-f FILE.json] [-p KEY=VALUE]... NAME|GROUP... | list           (groups: kernel, place, network, hunger)

prints one JSON line an attack: {"attack": ..., "outcome": "blocked" | "succeeded" | "broken", "how": ...}. "succeeded" means that it has what
it wanted; "blocked", that the kernel, the engine or a limit said no; "broken", that the attack itself is wrong. tests/system/attack_test.py
runs the same files in a lease and, with targets that hurt nobody, in a container without any of our defences. Standard library only: it runs on
the image's Python. Targets come as parameters (see the P[...] of each attack).
"""
import json
import os
import select
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import frame  # noqa: E402
import hunger  # noqa: E402,F401
import kernel  # noqa: E402,F401
import network  # noqa: E402,F401
import place  # noqa: E402,F401


def attempt(name):
    """In a child, so that what an attack does to itself, or the kernel to it, ends with it. -> (outcome, how)"""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.setpgid(0, 0)
        try:
            said = ("succeeded", str(frame.ATTACKS[name]()))
        except (OSError, frame.Blocked) as fault:
            said = ("blocked", "%s: %s" % (type(fault).__name__, fault))
        except BaseException as fault:
            said = ("broken", "%s: %s" % (type(fault).__name__, fault))
        os.write(write, json.dumps(said).encode()[:4000])
        os._exit(0)
    os.close(write)
    ready = select.select([read], [], [], float(frame.P.get("patience", 30)))[0]
    said = os.read(read, 65536) if ready else b""
    os.close(read)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not ready:
        os.waitpid(pid, 0)
        return "broken", "no end within its time"
    _, status = os.waitpid(pid, 0)
    if said:
        return json.loads(said)
    return "blocked", "killed by signal %d" % (status & 0x7f)


def main():
    names, words = [], sys.argv[1:]
    while words:
        word = words.pop(0)
        if word == "-f":
            with open(words.pop(0)) as f:
                frame.P.update(json.load(f))
        elif word == "-p":
            key, value = words.pop(0).split("=", 1)
            frame.P[key] = value
        else:
            names += frame.GROUPS.get(word, [word])
    if names == ["list"]:
        return print(json.dumps(frame.GROUPS))
    for name in names:
        began = time.monotonic()
        outcome, how = attempt(name)
        print(json.dumps({"attack": name, "outcome": outcome, "how": how, "seconds": round(time.monotonic() - began, 2)}), flush=True)


if __name__ == "__main__":
    main()
