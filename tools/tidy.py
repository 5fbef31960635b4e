#!/usr/bin/env python3
"""clang-tidy-16 with the checks of .clang-tidy over our sources; findings are errors.

    tools/tidy.py [ROOM...]        all sources, or those of these rooms (src/ROOM), of a configured build/asan

Prints each finding once and ends with "N files, N findings".
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
STRANGERS = ["wire", "session", "relay", "overlay", "egress"]


def sources(rooms):
    entries = json.load(open(os.path.join(BUILD, "compile_commands.json")))
    ours = {os.path.relpath(entry["file"], ROOT) for entry in entries}
    ours = {path for path in ours if path.startswith(("src/", "tests/", "bench/")) and not path.endswith("_test.cpp")}
    return sorted(path for path in ours if not rooms or any(path.startswith("src/%s/" % room) for room in rooms))


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
                report("%d of %d  %s" % (number, len(todo), path))
    return len(todo), findings


if __name__ == "__main__":
    if not os.path.exists(os.path.join(BUILD, "compile_commands.json")):
        sys.exit("tools/tidy.py: build/asan is not configured; run make asan")
    count, findings = run(sys.argv[1:])
    print("%d files, %d findings" % (count, len(findings)))
    sys.exit(1 if findings else 0)
