#!/usr/bin/env python3
"""Runs one benchmark: tools/bench.py NAME. Prints JSON lines {name, value, unit, baseline, ratio, runs} on standard output.

Benches in C++ are bench/NAME.cpp (built in release); those that drive the real system are bench/NAME.py.
"""
import glob
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.chdir(ROOT)
names = sorted({os.path.basename(p).rsplit(".", 1)[0] for p in glob.glob("bench/*.cpp") + glob.glob("bench/*.py")})
if len(sys.argv) > 1:
    sys.argv[1] = sys.argv[1].replace("-", "_")
if len(sys.argv) < 2 or sys.argv[1] not in names:
    print("usage: make bench NAME=%s" % "|".join(names), file=sys.stderr)
    sys.exit(2)
name = sys.argv[1]
steps = [["cmake", "--preset", "release", "-DBUILD_TESTING=ON"]]
if os.path.exists("bench/%s.py" % name):
    steps += [["cmake", "--build", "--preset", "release", "--target", "musterd", "muster-relay", "muster-agent", "muster"]]
    run = [sys.executable, "bench/%s.py" % name]
else:
    steps += [["cmake", "--build", "--preset", "release", "--target", "bench_" + name]]
    run = ["build/release/bench_" + name]
for step in steps:
    if subprocess.run(step, stdout=sys.stderr).returncode:
        sys.exit(1)
sys.exit(subprocess.run(run + sys.argv[2:]).returncode)
