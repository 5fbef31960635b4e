#!/usr/bin/env python3
"""Builds the programs of a commit anew, elsewhere and otherwise, and says whether they come out the same to the byte.

    tools/reproduce.py [--commit HEAD] [--against build/release] [--jobs N]

The commit's files are put into a folder of another name, and built there with another home, time zone, language, umask and user name in the environment,
without a compiler cache, by the preset `release`. With --against, that build is compared with the programs there, which must be of the same commit and
compiler; without it, with a second build in one more folder, one job at a time in another order. Takes some minutes a build and needs no root. The last line
is "REPRODUCED: 4 programs" or "DIFFERENT: name, where".
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = ("musterd", "muster-relay", "muster-agent", "muster")


def say(text):
    print(text, flush=True)


def build(commit, folder, jobs, environment):
    """The programs of the commit, built below folder; returns where they lie."""
    tree = os.path.join(folder, "tree")
    os.makedirs(tree)
    archive = subprocess.Popen(["git", "-C", ROOT, "archive", commit], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", tree], stdin=archive.stdout, check=True)
    if archive.wait() != 0:
        sys.exit("tools/reproduce.py: no commit '%s' here" % commit)
    said = os.path.join(folder, "build.log")
    with open(said, "w") as log:
        for command in (["cmake", "--preset", "release", "-DBUILD_TESTING=OFF"], ["cmake", "--build", "--preset", "release", "-j", str(jobs), "--target", *PROGRAMS]):
            done = subprocess.run(command, cwd=tree, env=environment, stdout=log, stderr=log, preexec_fn=lambda: os.umask(0o27))
            if done.returncode != 0:
                sys.exit("tools/reproduce.py: %s failed:\n%s" % (" ".join(command), open(said).read()[-3000:]))
    return os.path.join(tree, "build/release")


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def difference(one, two):
    """Where two files differ first, in words."""
    a, b = open(one, "rb").read(), open(two, "rb").read()
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return "%d and %d bytes, the first that differs is number %d: %r and %r" % (len(a), len(b), at, a[max(0, at - 20):at + 40], b[max(0, at - 20):at + 40])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--against", help="a build of the same commit, instead of a second one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    args = parser.parse_args()
    if args.against and not all(os.path.exists(os.path.join(args.against, name)) for name in PROGRAMS):
        sys.exit("tools/reproduce.py: not all of %s are in %s; build them first (make build)" % (", ".join(PROGRAMS), args.against))
    work = tempfile.mkdtemp(prefix="muster-reproduce-")
    plain = {"PATH": os.environ["PATH"], "CCACHE_DISABLE": "1"}
    try:
        say("building %s in %s/one" % (args.commit, work))
        one = build(args.commit, work + "/one", args.jobs, dict(plain, HOME=work, TZ="Pacific/Kiritimati", LANG="C.UTF-8", USER="somebody", LOGNAME="somebody"))
        if args.against:
            two = args.against
        else:
            longer = work + "/another_name_that_is_much_longer"
            say("building it again in %s" % longer)
            two = build(args.commit, longer, 1, dict(plain, HOME="/nonexistent", TZ="America/Adak", LANG="C", USER="other", LOGNAME="other"))
        different = []
        for name in PROGRAMS:
            first, second = (os.path.join(folder, name) for folder in (one, two))
            same = digest(first) == digest(second)
            say("%-13s %s  %s" % (name, digest(first), "the same" if same else "DIFFERENT"))
            if not same:
                different.append("%s: %s" % (name, difference(first, second)))
        say("DIFFERENT: " + "; ".join(different) if different else "REPRODUCED: %d programs" % len(PROGRAMS))
        sys.exit(1 if different else 0)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
