#!/usr/bin/env python3
"""Fuzzes the parsers of bytes from outside (tests/fuzz, libFuzzer); ends with one plain line, FUZZ OK or FUZZ FAILED.

    tools/fuzz.py [--target NAME]... [--seconds N] [--mutants] [--measure] [--no-build]

Each target starts from seeds made of our own encodings, the inputs kept in tests/fuzz/found (what once broke something) and
what earlier runs found in build/fuzz/corpus, knows the words of tests/fuzz/words/NAME.txt where there are some, and runs N seconds (600). Checked: no crash, no sanitizer report, no hang, no
input that takes 1 GiB; the seeds alone reach the edges that tests/fuzz/targets.txt states. Then the planted bug of each target is
turned on: no seed may reach it, and libFuzzer must, from the seeds alone and its seed 1, within the stated runs. --mutants does only
that. --measure prints lines for tests/fuzz/targets.txt instead: nine tenths of the edges, ten times the runs.
"""
import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.path.join(ROOT, "build/fuzz/muster-fuzz")
CORPUS = os.path.join(ROOT, "build/fuzz/corpus")
BEHIND = []  # what is put before each run, to run it behind something else
PLANTED = "the planted bug was reached"
RUNS_MAX, SECONDS_MAX = 20_000_000, 600  # of one search for a planted bug


def stated():
    """name -> (edges, runs) of tests/fuzz/targets.txt"""
    rows = (line.split() for line in open(os.path.join(ROOT, "tests/fuzz/targets.txt")) if line.strip() and not line.startswith("#"))
    return {name: (int(edges), int(runs)) for name, edges, runs in rows}


def environment(**more):
    return dict(os.environ, UBSAN_OPTIONS="print_stacktrace=1", ASAN_OPTIONS="detect_leaks=1", **more)


def names():
    done = subprocess.run([BINARY], env=environment(MUSTER_FUZZ_LIST="1"), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()}


def write_seeds(folder):
    subprocess.run([BINARY], env=environment(MUSTER_FUZZ_SEEDS=folder), check=True, cwd=ROOT)


def run(name, size, options, folders, **more):
    """What libFuzzer said, and its exit status."""
    words = os.path.join(ROOT, "tests/fuzz/words", name + ".txt")
    options = (["-dict=" + words] if os.path.exists(words) else []) + options
    command = [BINARY, "-max_len=%d" % size, "-timeout=20", "-rss_limit_mb=1024", "-malloc_limit_mb=512", "-print_final_stats=1", "-reload=0"] + options + folders
    done = subprocess.run(BEHIND + command, env=environment(MUSTER_FUZZ=name, **more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode("utf-8", "replace"), done.returncode


def edges_of(text):
    """Edges that the seeds reached, before anything was changed."""
    found = re.search(r"INITED cov: (\d+)", text)
    return int(found.group(1)) if found else 0


def runs_of(text):
    found = re.search(r"stat::number_of_executed_units: *(\d+)", text) or re.search(r"#(\d+)\s+\S+\s+cov:(?!.*#\d+\s+\S+\s+cov:)", text, re.S)
    return int(found.group(1)) if found else 0


def fuzz(name, size, seconds, seeds, floor):
    """One target for so long: (line for people, what is wrong or '')."""
    grown = os.path.join(CORPUS, name)
    broken = os.path.join(ROOT, "build/fuzz/broken", name)
    for folder in (grown, broken):
        os.makedirs(folder, exist_ok=True)
    text, code = run(name, size, ["-runs=0"], [seeds])
    edges = edges_of(text)
    if code == 0 and seconds > 0:
        text, code = run(name, size, ["-max_total_time=%d" % seconds, "-artifact_prefix=%s/" % broken], [grown, seeds])
    line = "%-14s %5d edges from the seeds, %d runs" % (name, edges, runs_of(text))
    if code != 0:
        kept = re.search(r"Test unit written to (\S+)", text)
        again = "MUSTER_FUZZ=%s build/fuzz/muster-fuzz %s" % (name, os.path.relpath(kept.group(1), ROOT) if kept else "tests/fuzz/found/%s/*" % name)
        return line, "%s: ended with %d; again: %s\n%s" % (name, code, again, text[-6000:])
    if edges < floor:
        return line, "%s: its seeds reach %d edges, tests/fuzz/targets.txt states at least %d" % (name, edges, floor)
    return line, ""


def search(name, size, seeds, runs):
    """The planted bug, looked for from the seeds alone: (runs it took or None, seconds, what libFuzzer said)."""
    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        limits = ["-seed=1", "-runs=%d" % runs, "-max_total_time=%d" % SECONDS_MAX, "-artifact_prefix=%s/" % scratch]
        text, code = run(name, size, limits, [scratch, seeds], MUSTER_FUZZ_PLANT="1")
    return runs_of(text) if code != 0 and PLANTED in text else None, time.time() - began, text


def planted(name, size, seeds, runs):
    """(line for people, what is wrong or '')"""
    text, code = run(name, size, ["-runs=0"], [seeds], MUSTER_FUZZ_PLANT="1")
    if code != 0:
        return "%-14s" % name, "%s: a seed reaches its planted bug, which then shows nothing\n%s" % (name, text[-2000:])
    took, seconds, text = search(name, size, seeds, runs)
    if took is None:
        return "%-14s" % name, "%s: its planted bug was not found in %d runs\n%s" % (name, runs, text[-2000:])
    return "%-14s planted bug found after %8d runs, %5.1f s; %8d are allowed" % (name, took, seconds, runs), ""


def measure(name, size, seeds):
    """A line for tests/fuzz/targets.txt."""
    edges = edges_of(run(name, size, ["-runs=0"], [seeds])[0])
    took, seconds, text = search(name, size, seeds, RUNS_MAX)
    line = "%s %d %d" % (name, edges * 9 // 10, max(50_000, 10 * (took or 0)))
    return line, "" if took else "%s: its planted bug was not found in %.0f s\n%s" % (name, seconds, text[-1000:])


def build():
    if shutil.which("clang++-16") is None:
        return "clang++-16 is missing; tools/install-deps test installs it"
    for command in (["cmake", "--preset", "fuzz"], ["cmake", "--build", "--preset", "fuzz", "-j", str(os.cpu_count() or 2), "--target", "muster-fuzz"]):
        done = subprocess.run(BEHIND + command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            return "muster-fuzz does not build\n" + done.stdout[-6000:]
    return ""


def all_of(seconds, only=(), mutants=False, measured=False, say=print):
    """(number of targets, list of what is wrong)"""
    known, table = names(), stated()
    odd = sorted(set(known) ^ set(table))
    wrong = ["tests/fuzz/targets.txt and muster-fuzz do not name the same targets: %s" % ", ".join(odd)] if odd and not measured else []
    unknown = sorted(set(only) - set(known))
    if unknown:
        return 0, ["there is no target %s; there are %s" % (", ".join(unknown), ", ".join(sorted(known)))]
    chosen = [name for name in sorted(known) if not only or name in only]
    with tempfile.TemporaryDirectory() as seeds, concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        write_seeds(seeds)
        jobs = []
        for name in chosen:
            here, (edges, runs) = os.path.join(seeds, name), table.get(name, (0, 0))
            if measured:
                jobs.append(pool.submit(measure, name, known[name], here))
                continue
            if not mutants:
                jobs.append(pool.submit(fuzz, name, known[name], seconds, here, edges))
            jobs.append(pool.submit(planted, name, known[name], here, runs))
        for job in jobs:
            line, fault = job.result()
            say(line + ("   FAILED" if fault else ""))
            wrong += [fault] if fault else []
    return len(chosen), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--no-build", action="store_true")
    args = parser.parse_args()
    began = time.time()
    fault = "" if args.no_build else build()
    count, wrong = (0, [fault]) if fault else all_of(args.seconds, args.target, args.mutants, args.measure)
    for text in wrong:
        print(text)
    if wrong:
        print("FUZZ FAILED: %s" % "; ".join(text.split("\n")[0] for text in wrong))
    else:
        played = "" if args.mutants or args.measure else ", %d s each" % args.seconds
        print("FUZZ OK: %d targets%s, every planted bug found, %.0f s in all" % (count, played, time.time() - began))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
