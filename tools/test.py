#!/usr/bin/env python3
"""Runs every test there is and ends with one plain line "N passed, N failed, N skipped".

    tools/test.py [--only lint,unit,contract,sim,system] [--list] [--no-build] [-k SUBSTRING]

Unit, contract and simulation tests run under address and undefined behaviour sanitizers (build/asan); system tests run the
release binaries (build/release) with real containers, real Ray and real network namespaces. A system test that this
machine cannot run (no root) is listed as skipped with its reason; with CI=true a skipped test is a failure.
"""
import argparse
import glob
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.chdir(ROOT)
CI = os.environ.get("CI", "") not in ("", "0", "false")
passed, failed, skipped = [], [], []


def say(text):
    print(text, flush=True)


def note(kind, name, seconds=None, why=""):
    {"ok": passed, "FAIL": failed, "skip": skipped}[kind].append(name)
    if kind != "ok" or seconds is None or seconds >= 1.0:
        say("%-4s %s%s%s" % (kind, name, "" if seconds is None else " (%.1f s)" % seconds, "  " + why if why else ""))


def build(preset, *extra):
    started = time.time()
    say("== build %s" % preset)
    for command in (["cmake", "--preset", preset] + list(extra), ["cmake", "--build", "--preset", preset, "-j", str(os.cpu_count() or 2)]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            say(done.stdout[-6000:])
            note("FAIL", "build." + preset, time.time() - started)
            return False
    note("ok", "build." + preset, time.time() - started)
    return True


def run_gtest(label, binary, timeout, pattern):
    say("== %s" % label)
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [binary, "--gtest_output=json:" + out.name, "--gtest_brief=1"]
        if pattern:
            command.append("--gtest_filter=*%s*" % pattern)
        env = dict(os.environ, ASAN_OPTIONS="detect_leaks=1:abort_on_error=0", UBSAN_OPTIONS="print_stacktrace=1")
        log = tempfile.TemporaryFile("w+")
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=timeout, env=env).returncode
        except subprocess.TimeoutExpired:
            code = "timeout after %d s" % timeout
        try:
            report = json.load(open(out.name))
        except ValueError:
            report = {"testsuites": []}
        bad = 0
        for suite in report["testsuites"]:
            for case in suite["testsuite"]:
                name = "%s.%s.%s" % (label, suite["name"], case["name"])
                seconds = float(case["time"].rstrip("s"))
                if case.get("failures"):
                    bad += 1
                    note("FAIL", name, seconds, case["failures"][0]["failure"].split("\n")[0][:200])
                elif case.get("result") == "SKIPPED" or case["status"] == "NOTRUN":
                    if case.get("result") != "SUPPRESSED":
                        note("skip", name)
                else:
                    note("ok", name, seconds)
        if code != 0 and not bad:
            note("FAIL", label, None, "ended with %s" % code)
        if code != 0:
            log.seek(0)
            say(log.read()[-5000:])


class Report(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self.began = time.time()
        say("-- %s" % test.id())

    def addSuccess(self, test):
        note("ok", "system." + test.id(), time.time() - self.began)

    def addSkip(self, test, reason):
        note("skip", "system." + test.id(), None, reason)

    def bad(self, test, err):
        note("FAIL", "system." + test.id(), time.time() - getattr(self, "began", time.time()), str(err[1]).split("\n")[0][:300])
        say(self._exc_info_to_string(err, test) if hasattr(test, "failureException") else str(err))

    addFailure = addError = bad

    def addSubTest(self, test, subtest, err):
        if err is None:
            note("ok", "system." + subtest.id(), None)
        else:
            self.bad(subtest, err)


def run_system(pattern):
    say("== system (release binaries)")
    sys.path.insert(0, os.path.join(ROOT, "tests"))
    sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
    for path in sorted(glob.glob("tests/system/*_test.py")):
        name = os.path.basename(path)[:-3]
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as fault:
            note("FAIL", "system." + name, None, "does not load: %s" % fault)
            continue
        suite = unittest.defaultTestLoader.loadTestsFromModule(module)
        if pattern:
            suite = unittest.TestSuite(t for group in suite for t in group if pattern in t.id())
        suite.run(Report())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="lint,unit,contract,sim,system")
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("-k", dest="pattern", default="")
    args = parser.parse_args()
    only = args.only.split(",")
    began = time.time()
    if "lint" in only:
        say("== lint")
        sys.path.insert(0, os.path.join(ROOT, "tests/lint"))
        import lint
        for rule in lint.QUICK:
            complaints = list(rule())
            note("FAIL" if complaints else "ok", "lint." + rule.__name__[5:], None, "; ".join(complaints[:5]))
    if set(only) & {"unit", "contract", "sim"} and (args.no_build or build("asan")):
        for binary in sorted(glob.glob("build/asan/*_test")):
            label = os.path.basename(binary)[:-5]
            kind = label if label in ("contract", "sim") else "unit"
            if kind in only:
                run_gtest("%s" % label if kind != "unit" else "unit." + label, binary, 900 if kind != "unit" else 300, args.pattern)
    if "sim" in only and os.path.exists("build/asan/muster-sim") and not args.pattern:
        seconds = int(os.environ.get("MUSTER_SIM_SECONDS", "180" if CI else "30"))
        say("== simulation, as many seeds as fit in %d s" % seconds)
        started = time.time()
        done = subprocess.run(["build/asan/muster-sim", "--seconds", str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        say(done.stdout[-3000:])
        note("FAIL" if done.returncode else "ok", "sim.seeds", time.time() - started)
    if "system" in only and (args.no_build or build("release", "-DBUILD_TESTING=OFF")):
        run_system(args.pattern)
    if CI and skipped:
        for name in skipped:
            failed.append(name)
        say("FAIL: %d tests were skipped; CI must run everything: %s" % (len(skipped), ", ".join(skipped[:10])))
    say("total %.0f s" % (time.time() - began))
    if failed:
        say("failed: " + ", ".join(failed[:40]))
    say("%d passed, %d failed, %d skipped" % (len(passed), len(failed), len(skipped)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
