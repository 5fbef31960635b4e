#!/usr/bin/env python3
"""Runs one benchmark: tools/bench.py NAME. Prints JSON lines {name, value, unit, baseline, ratio, runs} on standard output.

Benches in C++ are bench/NAME.cpp (built in release); those that drive the real system are bench/NAME.py, with the C++ parts that they name
(bench_PART is bench/PART.cpp).
"""
import glob
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.chdir(ROOT)
parts = {}
for path in glob.glob("bench/[a-z]*.py"):
    with open(path) as f:
        text = f.read()
    if "import _world" in text:
        text += " bench_world"
    parts[os.path.basename(path)[:-3]] = sorted(set(re.findall(r"\bbench_[a-z_]+", text)))
named = {part[len("bench_"):] for some in parts.values() for part in some}
names = sorted(set(parts) | {os.path.basename(p)[:-4] for p in glob.glob("bench/*.cpp")} - named)
if len(sys.argv) > 1:
    sys.argv[1] = sys.argv[1].replace("-", "_")
if len(sys.argv) < 2 or sys.argv[1] not in names:
    print("usage: make bench NAME=%s" % "|".join(names), file=sys.stderr)
    sys.exit(2)
name = sys.argv[1]
steps = [["cmake", "--preset", "release", "-DBUILD_TESTING=ON"]]
if name in parts:
    steps += [["cmake", "--build", "--preset", "release", "--target", "musterd", "muster-relay", "muster-agent", "muster"] + parts[name]]
    run = [sys.executable, "bench/%s.py" % name]
else:
    steps += [["cmake", "--build", "--preset", "release", "--target", "bench_" + name]]
    run = ["build/release/bench_" + name]
for step in steps:
    if subprocess.run(step, stdout=sys.stderr).returncode:
        sys.exit(1)
sys.exit(subprocess.run(run + sys.argv[2:]).returncode)
