#!/usr/bin/env python3
"""clang-tidy-16 with the checks of .clang-tidy over our sources; findings are errors.

    tools/tidy.py [ROOM...]        all sources, or those of these rooms (src/ROOM), of a configured build/asan

Prints each finding once and ends with "N units, N findings".
"""
import concurrent.futures
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build", "asan")
# Rooms that read what strangers send: every `make test` looks at them; `make tidy` looks at all.
STRANGERS = ["wire", "session", "relay", "overlay", "egress", "oidc", "scan"]


def sources(rooms):
    """What build/asan compiles of these rooms (all when empty), joined sources as they are joined; tests of rooms left out."""
    found = set()
    for entry in json.load(open(os.path.join(BUILD, "compile_commands.json"))):
        path = os.path.relpath(entry["file"], ROOT)
        joined = re.match(r"build/asan/CMakeFiles/(?:muster_)?([\w-]+)\.dir/Unity/", path)
        alone = re.match(r"(?:src|tests|bench)/", path)
        room = joined.group(1) if joined else path.split("/")[1] if alone else ""
        if room and not path.endswith("_test.cpp") and not room.endswith("_test") and room != "proto" and (not rooms or room in rooms):
            found.add(path)
    return sorted(found)


BEHIND = []  # what is put before each command, to run it behind something else


def check(path):
    done = subprocess.run(BEHIND + ["clang-tidy-16", "-p", BUILD, "--quiet", "--extra-arg=-Wno-unknown-warning-option", path], cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"^(/\S+?:\d+:\d+: (?:error|warning): .*)$", done.stdout, re.M)
    if done.returncode != 0 and not found:
        found = ["%s: clang-tidy-16 failed: %s" % (path, (done.stderr or done.stdout).strip()[-300:])]
    return path, [line.replace(ROOT + "/", "") for line in found]


def run(rooms=(), report=print):
    """The findings, each once, over the given rooms (all when empty)."""
    todo, findings = sources(rooms), []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        for number, (path, found) in enumerate(pool.map(check, todo), 1):
            for line in found:
                if line not in findings:
                    findings.append(line)
                    report(line)
            if sys.stdout.isatty():
                report("%d of %d  %s" % (number, len(todo), os.path.basename(os.path.dirname(os.path.dirname(path))) if "/Unity/" in path else path))
    return len(todo), findings


if __name__ == "__main__":
    if not os.path.exists(os.path.join(BUILD, "compile_commands.json")):
        sys.exit("tools/tidy.py: build/asan is not configured; run make asan")
    count, findings = run(sys.argv[1:])
    print("%d units, %d findings" % (count, len(findings)))
    sys.exit(1 if findings else 0)
