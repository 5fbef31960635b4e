#!/usr/bin/env python3
"""Runs every test there is and ends with one plain line "N passed, N failed, N skipped".

    tools/test.py [--only lint,unit,contract,sim,tsan,system] [--no-build] [-k SUBSTRING] [--module NAME]

System tests run the release binaries (build/release, g++) with real containers, real Ray and real network namespaces. They mostly wait,
so in a whole run they go first, in lanes side by side, and everything else is built and run behind them, tests of one build beside the
next build and three programs side by side: unit, contract and simulation tests under address and undefined behaviour sanitizers (build/asan, clang-16); as many of the
first SEEDS seeds of the simulation as fit in the time, in the release build; the rooms with threads once more under the thread sanitizer
(build/tsan). A system test that this machine cannot run (no root) is listed as skipped with its reason; with CI=true a skipped test is a
failure. Who is not root but may use sudo builds as himself, and what needs root runs through sudo.

System tests work with real clocks, and a loaded machine can be late for one of them. Up to SECOND_TRIES classes of system tests that
failed run once more at the end, with nothing beside them; what passes then counts as passed and is named as "flaky", which wants a repair all the
same. Unit, contract and simulation tests have no second try.
"""
import argparse
import concurrent.futures
import glob
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.chdir(ROOT)
sys.path.insert(0, os.path.join(ROOT, "tools"))
CI = os.environ.get("CI", "") not in ("", "0", "false")
passed, failed, skipped = [], [], []
flaky = []  # system tests that failed once and passed alone
reasons = {}  # test -> why it failed, the first time


def say(text):
    sys.stdout.write(text + "\n")  # at once: several threads speak
    sys.stdout.flush()


def note(kind, name, seconds=None, why=""):
    {"ok": passed, "FAIL": failed, "skip": skipped}[kind].append(name)
    if kind == "FAIL":
        reasons.setdefault(name, why)
    if kind != "ok" or seconds is None or seconds >= 1.0 or name.startswith("system."):
        say("%-4s %s%s%s" % (kind, name, "" if seconds is None else " (%.1f s)" % seconds, "  " + why if why else ""))


# Programs worth a run under the thread sanitizer: those with threads of their own, and the tests that use them.
# NetdPacing measures delays, which the sanitizer itself makes; the same code carries the packets of the other netd tests.
THREADED = {"engine_test": "", "net_test": "", "relay_test": "", "host_test": "-NetdPacing.*", "runner_test": "RunnerOn*"}


as_root = []  # what is put before a command that wants to be root


def find_root():
    """For who may use sudo: asks for the password now, if it takes one, and keeps it good for as long as this runs."""
    if os.geteuid() == 0 or not shutil.which("sudo"):
        return
    if subprocess.run(["sudo"] + ([] if sys.stdin.isatty() else ["-n"]) + ["-v"], stderr=subprocess.DEVNULL).returncode != 0:
        return
    as_root[:] = ["sudo", "-n", "-E", "env", "HOME=/root"]

    def keep():
        while True:
            time.sleep(60)
            subprocess.run(["sudo", "-n", "-v"], stderr=subprocess.DEVNULL)
    threading.Thread(target=keep, daemon=True).start()


behind = []  # what is put before a command that must not disturb the system tests
builder = concurrent.futures.ThreadPoolExecutor(1)  # one build at a time, beside the tests of what is built already
begun = {}  # preset and targets -> the future of "did it build"


def begin(preset, *extra, targets=()):
    """Has it built when its turn comes; who asks twice gets the same."""
    if (preset, tuple(targets)) not in begun:
        begun[preset, tuple(targets)] = builder.submit(build_now, preset, *extra, targets=targets)
    return begun[preset, tuple(targets)]


def build(preset, *extra, targets=()):
    return begin(preset, *extra, targets=targets).result()


def build_now(preset, *extra, targets=()):
    started = time.time()
    name = "build." + ".".join([preset] + (list(targets) if targets is EARLY else []))
    say("== " + name.replace(".", " "))
    make = ["cmake", "--build", "--preset", preset, "-j", str(os.cpu_count() or 2)]
    for command in (["cmake", "--preset", preset] + list(extra), make + (["--target"] + list(targets) if targets else [])):
        done = subprocess.run(behind + command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            say(done.stdout[-6000:])
            note("FAIL", name, time.time() - started)
            return False
    note("ok", name, time.time() - started)
    return True


def run_tidy():
    """clang-tidy over the rooms that read what strangers send; it wants the generated headers, so after a build of asan."""
    import tidy
    started = time.time()
    say("== clang-tidy over " + ", ".join(tidy.STRANGERS))
    tidy.BEHIND = behind
    count, findings = tidy.run(tidy.STRANGERS, say)
    note("FAIL" if findings else "ok", "lint.tidy", time.time() - started, "; ".join(findings[:3]))


def run_gtest(label, binary, timeout, pattern, only="", shard=(0, 1)):
    """One program of GoogleTest; of `shard` = (i, n) every n-th of its tests from the i-th on."""
    say("== %s%s" % (label, "" if shard[1] == 1 else ", part %d of %d" % (shard[0] + 1, shard[1])))
    with tempfile.TemporaryDirectory() as folder:
        out = folder + "/report.json"
        command = ["timeout", "-s", "KILL", str(timeout), binary, "--gtest_output=json:" + out, "--gtest_brief=1"]
        if pattern or only:
            command.append("--gtest_filter=" + (only or "*%s*" % pattern))
        options = ["ASAN_OPTIONS=detect_leaks=1:abort_on_error=0", "UBSAN_OPTIONS=print_stacktrace=1", "TSAN_OPTIONS=halt_on_error=0:exitcode=66"]
        if shard[1] > 1:
            options += ["GTEST_SHARD_INDEX=%d" % shard[0], "GTEST_TOTAL_SHARDS=%d" % shard[1]]
        log = tempfile.TemporaryFile("w+", errors="replace")  # what fails may print any bytes
        code = subprocess.run((["nice", "-n", "10"] if behind else []) + (as_root or ["env"]) + options + command, stdout=log,
                              stderr=subprocess.STDOUT).returncode
        if code in (137, -9):
            code = "a kill, after %d s at most" % timeout
        try:
            report = json.load(open(out))
        except (OSError, ValueError):
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
        if code != 0:
            log.seek(0)
            text = log.read()
            races = text.count("WARNING: ThreadSanitizer")
            if races:
                say(text[text.index("WARNING: ThreadSanitizer"):][:5000])  # the first; what comes after it may follow from it
                note("FAIL", label, None, "%d reports of the thread sanitizer, the first is above" % races)
            elif not bad:
                note("FAIL", label, None, "ended with %s" % code)
            say(text[-5000:])


class Report(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self.began, self.current = time.time(), test
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


def lanes():
    """Modules by lane: BESIDE = "name" in a module of tests/system puts it there; "ray" is the lane of the others. BY_HAND = True: in none, it
    runs when --module names it."""
    found = {}
    for path in sorted(glob.glob("tests/system/*_test.py")):
        text = open(path).read()
        if re.search(r"^BY_HAND = True", text, re.M):
            continue
        said = re.search(r'^BESIDE = "(\w+)"', text, re.M)
        found.setdefault(said.group(1) if said else "ray", []).append(os.path.basename(path)[:-3])
    return found


def interrupted_once(*_):
    """Ctrl-C or a kill ends the test that runs; what clears up afterwards is not cut off by a second one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def clear_up(loaded, suite, report, stopped):
    """After an interrupted test, what unittest leaves out then: the ends of the test, of its class and of its module."""
    current = getattr(report, "current", None)
    beginning = [type(frame.f_locals["test"]) for frame, _ in traceback.walk_tb(stopped.__traceback__) if frame.f_code.co_name == "_handleClassSetUp"]
    for name, end in ([("test", getattr(current, "tearDown", None)), ("test", getattr(current, "doCleanups", None))] if not beginning else []) + \
            [("class", getattr(kind, what)) for kind in beginning for what in ("tearDownClass", "doClassCleanups")] + \
            [("class", lambda: suite._tearDownPreviousClass(None, report)), ("module", getattr(loaded, "tearDownModule", None)), ("module", unittest.doModuleCleanups)]:
        try:
            if end:
                end()
        except Exception as fault:  # the others all the same
            say("clearing up after the %s: %s" % (name, fault))


def run_module(name, pattern, group="", folder="tests/system"):
    path = "%s/%s.py" % (folder, name)
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except Exception as fault:
        return note("FAIL", "system." + name, None, "does not load: %s" % fault)
    suite = unittest.defaultTestLoader.loadTestsFromModule(loaded)
    if pattern or group:
        suite = unittest.TestSuite(t for tests in suite for t in tests if pattern in t.id() and t.id().startswith(group))
    report = Report()
    try:
        suite.run(report)
    except KeyboardInterrupt as stopped:
        say("== interrupted, clearing up")
        clear_up(loaded, suite, report, stopped)
        raise


def run_system(pattern, modules, group):
    """These modules, or all, one after the other in this process."""
    modules = modules or sorted(name for names in lanes().values() for name in names)
    say("== system (release binaries): " + ", ".join(modules))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted_once)
    try:
        for name in modules:
            run_module(name, pattern, group)
    except KeyboardInterrupt:
        note("FAIL", "system." + name, None, "interrupted")
        sys.exit(130)


def start_system(names, *more):
    """These modules in a process of their own, as root where this may be."""
    out = tempfile.TemporaryFile("w+", errors="replace")
    command = as_root + [sys.executable, "-B", "tools/test.py", "--only", "system", "--no-build"] + [w for name in names for w in ("--module", name)] + list(more)
    lanes_now.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    return out, lanes_now[-1]


lanes_now = []  # processes of system tests, which have things to clear up
CLEAR_UP_S = 120


def stop_all(*_):
    """Ctrl-C: the system tests clear up what they started, everything else just ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    say("== interrupted; the system tests clear up, for %d s at most" % CLEAR_UP_S)
    mine = {process.pid for process in lanes_now}
    for process in lanes_now:
        if process.poll() is None:
            subprocess.run(as_root + ["kill", "-INT", str(process.pid)])
    for line in subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], stdout=subprocess.PIPE, text=True).stdout.split():
        if int(line) not in mine:
            subprocess.run(["pkill", "-TERM", "-P", line], stderr=subprocess.DEVNULL)
            subprocess.run(["kill", line], stderr=subprocess.DEVNULL)
    end = time.time() + CLEAR_UP_S
    for process in lanes_now:
        try:
            process.wait(max(1, end - time.time()))
        except subprocess.TimeoutExpired:
            say("process %d has not cleared up" % process.pid)
    os._exit(130)


def start_lanes():
    """The system tests in a process for each lane; what they say is kept for end_lanes()."""
    started = []
    for lane, names in sorted(lanes().items()):
        started.append((lane, names) + start_system(names))
        say("== system tests begin, lane %s: %s" % (lane, ", ".join(names)))
    return started


def take(lane, out, process):
    """Counts what a process of start_system() said."""
    out.seek(0)
    text = out.read()
    for line in text.split("\n"):
        if line.startswith(("ok ", "FAIL ", "skip ")):
            # "setUpClass (module.Class)" is a name of two words
            kind, test, rest = re.match(r"(\w+) +((?:\S+ \(\w+_test\.\w+\))|\S+)(.*)", line).groups()
            if kind == "FAIL":
                reasons.setdefault(test, rest.strip())
            {"ok": passed, "FAIL": failed, "skip": skipped}[kind].append(test)
            say(line)
    if process.returncode != 0:
        say(text[-12000:])
        if not any(test in text for test in failed):
            note("FAIL", "system." + lane, None, "ended with %s" % process.returncode)


def end_lanes(started):
    for lane, names, out, process in started:
        say("== system, lane %s: %s" % (lane, ", ".join(names)))
        began = time.time()
        while process.poll() is None and time.time() - began < 3000:
            time.sleep(1)
            if int(time.time() - began) % 60 == 59:
                out.seek(0)
                say("   ... at " + ([""] + [line for line in out.read().split("\n") if line.startswith("-- ")])[-1])
                time.sleep(1)
        if process.poll() is None:
            subprocess.run(as_root + ["kill", str(process.pid)])
            note("FAIL", "system." + lane, None, "did not end")
        take(lane, out, process)


SECOND_TRIES = 3
RELEASED = ("all", "musterd-faulty", "muster-nat-rig", "muster-slow-link", "muster-sim")


def class_of(name):
    """"system.work_test.Work.test_x" and "system.setUpClass (work_test.Work)" are of "work_test.Work"; other tests of ""."""
    found = re.match(r"system\.(?:\w+ \()?(\w+_test\.\w+)", name)
    return found.group(1) if found else ""


def try_again():
    """The classes of the system tests that failed once more, alone; a fault that stays counts, one that goes is named."""
    again = sorted({class_of(name) for name in failed} - {""})
    if not again or len(again) > SECOND_TRIES:
        return
    say("== system, a second time with nothing beside it: " + ", ".join(again))
    for group in again:
        first = [name for name in failed if class_of(name) == group]
        for names in (passed, failed):
            names[:] = [name for name in names if class_of(name) != group]
        out, process = start_system([group.split(".")[0]], "--group", group + ".")
        process.wait()
        take(group, out, process)
        flaky.extend(name for name in first if class_of(name) == group and name not in failed)


TESTED = ("tests",)  # of build/asan: every program of tests and what these run
SEEDS = 600  # at most; a run on an idle machine plays some hundreds in the time it has


AT_ONCE = 3  # programs of unit tests and their like; most of them wait for clocks of their own
SHARDS = {"host": 2}  # programs that wait for minutes run in so many parts side by side
EARLY = ("host_test",)  # built before the others, and run while these are built
LONG = ("host", "contract", "relay", "overlay", "server")  # first, so that no long one is left for the end


def unit_tasks(only, pattern, early):
    """A call for each part of each program of build/asan that is asked for, the long ones first; those of EARLY or the others."""
    found = []
    for binary in glob.glob("build/asan/*_test"):
        label = os.path.basename(binary)[:-5]
        kind = {"contract": "contract", "runner": "contract", "sim": "sim"}.get(label, "unit")
        if kind in only and (os.path.basename(binary) in EARLY) == early:
            found.append((LONG.index(label) if label in LONG else len(LONG), label, kind, binary))
    for _, label, kind, binary in sorted(found):
        name, seconds, parts = label if kind == label else kind + "." + label, 900 if kind != "unit" else 600, SHARDS.get(label, 1)
        for part in range(parts):
            yield lambda name=name, binary=binary, seconds=seconds, shard=(part, parts): run_gtest(name, binary, seconds, pattern, shard=shard)


def thread_tasks():
    for name, tests in sorted(THREADED.items(), key=lambda item: (item[0] not in EARLY, item)):
        parts = SHARDS.get(name[:-5], 1)
        for part in range(parts):
            yield lambda name=name, tests=tests, shard=(part, parts): run_gtest("tsan." + name[:-5], "build/tsan/" + name, 600, "", tests, shard)


def run_pooled(only, pattern, no_build, released, lanes):
    """Everything but lint and system tests, AT_ONCE programs side by side, each as soon as it is built; those with clocks of their own not
    before the system tests have ended, which would be late for them."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        tasks = []
        early = "unit" in only and (no_build or build("asan", targets=EARLY))
        if "sim" in only and released and not pattern:
            tasks.append(pool.submit(run_seeds))
        threads = "tsan" in only and not pattern and (no_build or build("tsan", targets=THREADED))
        until = time.time() + 2400  # one that hangs is named at the end
        for *_, process in lanes:
            try:
                process.wait(max(0, until - time.time()))
            except subprocess.TimeoutExpired:
                break
        if early:
            tasks += [pool.submit(task) for task in unit_tasks(only, pattern, True)]
        if threads:
            tasks += [pool.submit(task) for task in thread_tasks()]
        if set(only) & {"unit", "contract", "sim"} and (no_build or build("asan", targets=TESTED)):
            tasks += [pool.submit(task) for task in unit_tasks(only, pattern, False)]
            if "unit" in only and not pattern:
                tasks.append(pool.submit(run_mutants))
        for task in tasks:
            task.result()


def run_mutants():
    """Planted faults that a unit test must catch, as the simulation catches the others."""
    import mutants
    for mutant, wrong in mutants.run():
        note("FAIL" if wrong else "ok", "mutant." + mutant, None, wrong)


def run_seeds():
    seconds = int(os.environ.get("MUSTER_SIM_SECONDS", "180" if CI else "30"))
    say("== simulation, as many of the first %d seeds as fit in %d s" % (SEEDS, seconds))
    started = time.time()
    command = behind + ["build/release/muster-sim", "--seconds", str(seconds), "--seeds", str(SEEDS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    say("\n".join(line for line in done.stdout.split("\n") if "FAILED" in line or "reproduce" in line))
    say(done.stdout[-3000:])
    note("FAIL" if done.returncode else "ok", "sim.seeds", time.time() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="lint,unit,contract,sim,tsan,system")
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("-k", dest="pattern", default="")
    parser.add_argument("--module", action="append", default=[], help="only this file of tests/system; may be repeated")
    parser.add_argument("--group", default="", help="of system tests, only those whose name begins so: module.Class.")
    args = parser.parse_args()
    only = args.only.split(",")
    began = time.time()
    for folder in ("tests", "tests/lint", "tests/lab", "tests/system"):
        sys.path.insert(0, os.path.join(ROOT, folder))
    if not args.no_build:
        find_root()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_all)
    if "lint" in only:
        say("== lint")
        import lint
        for rule in lint.QUICK:
            complaints = list(rule())
            note("FAIL" if complaints else "ok", "lint." + rule.__name__[5:], None, "; ".join(complaints[:5]))
    released = not set(only) & {"sim", "system"} or args.no_build or build("release", "-DBUILD_TESTING=OFF", targets=RELEASED)
    started = []
    if "system" in only and released and not args.pattern and not args.module:
        started = start_lanes()
        behind[:] = [sys.executable, os.path.join(ROOT, "tools/behind.py")]
    tidied = None
    # In this order: what waits for clocks of its own runs beside the builds that follow, and what calculates comes last.
    if not args.no_build and "unit" in only:
        begin("asan", targets=EARLY)
    if not args.no_build and "tsan" in only and not args.pattern:
        begin("tsan", targets=THREADED)
    if not args.no_build and set(only) & {"lint", "unit", "contract", "sim"}:
        begin("asan", targets=TESTED)
    if "lint" in only and not args.pattern:
        tidied = builder.submit(lambda: (args.no_build or build("asan", targets=TESTED)) and run_tidy())  # its turn comes after that build
    run_pooled(only, args.pattern, args.no_build, released, started)
    if tidied:
        tidied.result()
    if started:
        end_lanes(started)
        try_again()
    elif "system" in only and released and as_root:
        out, process = start_system(args.module, *(["-k", args.pattern] if args.pattern else []))
        process.wait()
        take("some", out, process)
    elif "system" in only and released:
        run_system(args.pattern, args.module, args.group)
    if CI and skipped:
        for name in skipped:
            failed.append(name)
        say("FAIL: %d tests were skipped; CI must run everything: %s" % (len(skipped), ", ".join(skipped[:10])))
    say("total %.0f s" % (time.time() - began))
    for kind, names in (("flaky, passed only when run again alone", flaky), ("failed", failed)):
        for name in names[:40]:
            say("%s: %s  %s" % (kind, name, reasons.get(name, "")[:300]))
    say("%d passed, %d failed, %d skipped" % (len(passed), len(failed), len(skipped)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
