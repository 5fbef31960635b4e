"""Rules of the house, one message per rule. Every rule is a function that yields complaints "file:line: what, and what to do".

    python3 tests/lint/lint.py            # what `make lint` and `make test` run
"""
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
import mutants  # noqa: E402
import papers  # noqa: E402

PURE = {"base", "model", "scheduler", "access", "oidc", "scan", "launcher", "overlay", "egress", "session", "agent", "control", "journal", "wire"}
CORE = {"scheduler", "access", "control"}
FENCES = {  # include prefix -> fence
    "openssl/": "openssl", "argon2.h": "argon", "boost/asio": "asio", "boost/beast": "asio", "google/protobuf": "protobuf", "muster/v1/": "protobuf",
    "sqlite3.h": "sqlite", "yaml-cpp/": "yaml", "CLI/": "cli11", "fmt/": "fmt", "seccomp.h": "seccomp", "dlfcn.h": "dl", "boost/json": "json",
    "natpmp.h": "portmap", "miniupnpc/": "portmap"}


def files(*suffixes):
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted(f for f in out if f and f.endswith(suffixes) and os.path.exists(os.path.join(ROOT, f)))


def lines(path):
    with open(os.path.join(ROOT, path), encoding="utf-8", errors="replace") as f:
        return f.read().split("\n")


def rooms():
    allowed, fences = {}, {}
    for line in lines("src/deps.txt"):
        m = re.match(r"^([a-z]+):([^|]*)\|?(.*)$", line)
        if m:
            allowed[m[1]] = set(m[2].split()) | {m[1]}
            fences[m[1]] = set(m[3].split())
    return allowed, fences


def code(path):
    """(number, line) without comments and string contents: good enough for these rules."""
    block = False
    for number, line in enumerate(lines(path), 1):
        text = re.sub(r'"(\\.|[^"\\])*"', '""', line) if "#include" not in line else line
        if block:
            if "*/" not in text:
                continue
            text = text.split("*/", 1)[1]
            block = False
        text = re.sub(r"/\*.*?\*/", "", text).split("//", 1)[0]
        if "/*" in text:
            text, block = text.split("/*", 1)[0], True
        yield number, text


def room_of(path):
    return path.split("/")[1] if path.startswith("src/") and path.count("/") >= 2 else None


def rule_dependencies():
    """a room includes only the rooms that src/deps.txt names"""
    allowed, _ = rooms()
    seen = {}
    for path in files(".h", ".cpp"):
        room = room_of(path)
        if room is None or room == "apps":
            continue
        if room not in allowed:
            yield "%s:1: room '%s' is not in src/deps.txt; add it with what it may include" % (path, room)
            continue
        for number, line in enumerate(lines(path), 1):
            m = re.match(r'\s*#include "([a-z]+)/', line)
            if not m:
                continue
            if m[1] == "muster":
                continue  # generated from proto/, guarded by the fence
            if m[1] in allowed[room]:
                seen.setdefault(room, set()).add(m[1])
            elif not (path.endswith("_test.cpp") and m[1] in ("testing",)):
                yield "%s:%d: '%s' must not include '%s' (src/deps.txt); move the code or the rule" % (path, number, room, m[1])


def rule_no_cycles():
    """the rooms form no cycle"""
    allowed, _ = rooms()
    state = {}

    def visit(room, trail):
        if state.get(room) == 2:
            return None
        if state.get(room) == 1:
            return trail[trail.index(room):] + [room]
        state[room] = 1
        for other in sorted(allowed.get(room, set()) - {room}):
            found = visit(other, trail + [room])
            if found:
                return found
        state[room] = 2
        return None
    for room in sorted(allowed):
        cycle = visit(room, [])
        if cycle:
            yield "src/deps.txt:1: cycle %s" % " -> ".join(cycle)
            return


def rule_fences():
    """third-party headers stay behind their fence"""
    _, fences = rooms()
    for path in files(".h", ".cpp"):
        room = room_of(path)
        if room is None or room == "apps":
            continue
        for number, line in enumerate(lines(path), 1):
            m = re.match(r'\s*#include [<"]([^>"]+)[>"]', line)
            if not m:
                continue
            for prefix, fence in FENCES.items():
                if m[1].startswith(prefix) and fence not in fences.get(room, set()):
                    yield "%s:%d: <%s> crosses the fence '%s', which room '%s' may not (src/deps.txt)" % (path, number, m[1], fence, room)


# Known exceptions, each with its reason; one that is no longer needed is a complaint too.
PURE_EXCEPTIONS = {"src/session/liveness.h": "sharded table beside the core: every connection's thread writes to its shard"}


def rule_pure_rooms():
    """pure logic has no clock, threads, sockets or randomness of its own"""
    banned = re.compile(r"#include <(thread|mutex|condition_variable|random|sys/socket\.h|netinet/|unistd\.h|fcntl\.h|ctime)|\b(system_clock|steady_clock|clock_gettime|std::thread|rand\(\)|time\(nullptr\))|read_clocks\(")
    for path in files(".h", ".cpp"):
        room = room_of(path)
        if room not in PURE - {"base"} or path.endswith("_test.cpp"):
            continue
        if path in PURE_EXCEPTIONS:
            if not any(banned.search(text) for _, text in code(path)):
                yield "%s:1: needs its exception in lint.py no longer; remove it" % path
            continue
        for number, text in code(path):
            if banned.search(text):
                yield "%s:%d: pure room '%s' uses a clock, thread, socket or randomness; take it as an argument" % (path, number, room)


def rule_core_deterministic():
    """the core has no floating point and no unordered iteration"""
    banned = re.compile(r"\b(float|double|long double)\b|\bunordered_(map|set)\b|std::hash<")
    for path in files(".h", ".cpp"):
        if room_of(path) not in CORE or path.endswith("_test.cpp"):
            continue
        for number, text in code(path):
            if banned.search(text):
                yield "%s:%d: floating point or unordered container in the core; use integers and ordered containers" % (path, number)


def rule_text():
    """long lines, tabs, trailing blanks, banned words, big blobs"""
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    for path in files(".h", ".cpp", ".py", ".proto", ".cmake", ".sh"):
        for number, line in enumerate(lines(path), 1):
            if path.endswith((".h", ".cpp")) and len(line) > 200:
                yield "%s:%d: line of %d characters; at most 200" % (path, number, len(line))
            if line.rstrip() != line:
                yield "%s:%d: trailing blank" % (path, number)
            if "\t" in line and not path.endswith(".mk"):
                yield "%s:%d: tab; use spaces" % (path, number)
            if words.search(line) and "lint.py" not in path:
                yield "%s:%d: '%s': finish it or write an issue" % (path, number, words.search(line)[0])
    for path in files(""):
        size = os.path.getsize(os.path.join(ROOT, path))
        if size > 1 << 20:
            yield "%s:1: %d KiB; blobs over 1 MiB do not belong here" % (path, size >> 10)


def rule_headers():
    """headers start with #pragma once and say what they are"""
    for path in files(".h"):
        if not path.startswith(("src/", "tests/")):
            continue
        text = lines(path)
        if text[0] != "#pragma once":
            yield "%s:1: first line must be #pragma once" % path
        elif len(text) > 40 and not any(line.startswith("//") for line in text[1:6]):
            yield "%s:2: say in three to six lines what this header is" % path


def rule_features():
    """docs/features.md names tests and benches that exist, and a known state"""
    path = "docs/features.md"
    if not os.path.exists(os.path.join(ROOT, path)):
        yield "%s:1: missing; every feature is listed there with its test" % path
        return
    known = "\n".join("\n".join(lines(f)) for f in files("_test.cpp", "_test.py", "lint.py") + [f for f in files(".cpp", ".py") if f.startswith(("tests/", "bench/", "tools/"))])
    for number, line in enumerate(lines(path), 1):
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if not line.startswith("|") or len(cells) < 3 or cells[0] in ("feature", "") or set(cells[0]) <= set("-: "):
            continue
        if cells[-1] not in ("works", "partial", "not yet"):
            yield "%s:%d: state '%s' is not works, partial or not yet" % (path, number, cells[-1])
        for name in re.findall(r"`([^`]+)`", cells[1]):
            target = name.split("::")[0].split("#")[0]
            if "/" in target or target.endswith((".py", ".cpp")):
                if not os.path.exists(os.path.join(ROOT, target)):
                    yield "%s:%d: %s does not exist" % (path, number, target)
                    continue
            tail = name.split("::")[1] if "::" in name else None
            if tail and tail.split(".")[-1] not in known:
                yield "%s:%d: no test called %s" % (path, number, tail)
        if cells[-1] == "works" and "`" not in cells[1]:
            yield "%s:%d: 'works' needs a test or bench that shows it" % (path, number)


def rule_documents():
    """the documents that newcomers look for exist, and local links resolve"""
    for path in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
        if not os.path.exists(os.path.join(ROOT, path)):
            yield "%s:1: missing" % path
    for path in files(".md"):
        for number, line in enumerate(lines(path), 1):
            for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", line):
                if not os.path.exists(os.path.normpath(os.path.join(ROOT, os.path.dirname(path), target))):
                    yield "%s:%d: link to %s, which does not exist" % (path, number, target)


def rule_papers():
    """the security papers name files, tests, headings and commands that exist"""
    known = papers.programs(ROOT)
    yield from papers.self_test(ROOT, known)
    wanted = ["SECURITY.md"] + ["docs/security/%s.md" % name for name in ("threat-model", "hardening", "runbooks", "overlay")]
    for path in wanted:
        if not os.path.exists(os.path.join(ROOT, path)):
            yield "%s:1: missing" % path
    for path in files(".md"):
        if path == "SECURITY.md" or path.startswith("docs/security/"):
            yield from papers.check(ROOT, path, "\n".join(lines(path)), known)


def rule_mutants():
    """every planted fault has its row in docs/simulation.md, with the number of seeds that tests/sim/mutants.cpp states"""
    planted = dict(re.findall(r'constexpr std::string_view (k\w+) = "(\w+)"', "\n".join(lines("src/control/mutants.h"))))
    rows = {}
    for literal, constant, seeds in re.findall(r'(?:\{"([\w.]+)"|core\(planted::(k\w+)), (\d+)', "\n".join(lines("tests/sim/mutants.cpp"))):
        rows[literal or planted[constant]] = int(seeds)
    doc = "\n".join(lines("docs/simulation.md"))
    told = {name: int(seeds) for name, seeds in re.findall(r"^\| `([\w.]+)` \|.*\| (\d+) \|$", doc, re.M)}
    for name in sorted(set(rows) | set(told)):
        if rows.get(name) != told.get(name):
            yield "docs/simulation.md:1: mutant %s: the table says %s seeds, tests/sim/mutants.cpp %s" % (name, told.get(name), rows.get(name))
    for path in files(".h", ".cpp"):
        for number, line in enumerate(lines(path), 1):
            for name in re.findall(r'MUSTER_MUTANT\("([\w.]+)"\)', line):
                if path != "src/base/mutant.h" and "`%s`" % name not in doc:
                    yield "%s:%d: mutant %s is not in docs/simulation.md; give it a row there and in tests/sim/mutants.cpp" % (path, number, name)
    by_tests = dict(re.findall(r"^\| `([\w.]+)` \|.*\| (`\w+` [\w.]+) \|$", doc, re.M))
    named = {name: "`%s` %s" % test for name, test in mutants.UNIT.items()}
    for name in sorted(set(by_tests) | set(named)):
        if by_tests.get(name) != named.get(name):
            yield "docs/simulation.md:1: mutant %s: the table says %s, tools/mutants.py %s" % (name, by_tests.get(name), named.get(name))
    for name in sorted(set(planted.values()) - set(rows) - set(named)):
        yield "src/control/mutants.h:1: mutant %s has no row in tests/sim/mutants.cpp" % name


def rule_format():
    """clang-format-16 changes nothing"""
    sources = [f for f in files(".h", ".cpp") if f.startswith(("src/", "tests/", "bench/"))]
    if shutil.which("clang-format-16") is None:
        yield "tests/lint/lint.py:1: clang-format-16 is not installed; run tools/install-deps lint"
        return
    done = subprocess.run(["clang-format-16", "--dry-run", "-ferror-limit=1"] + sources, cwd=ROOT, capture_output=True, text=True)
    for path in sorted({m for m in re.findall(r"^([^:\n]+):\d+:\d+: warning", done.stderr, re.M)}):
        yield "%s:1: not formatted; run make format" % path


QUICK = [rule_dependencies, rule_no_cycles, rule_fences, rule_pure_rooms, rule_core_deterministic, rule_text, rule_headers, rule_features, rule_documents, rule_papers, rule_mutants, rule_format]


def run(rules, report=print):
    failed = 0
    for rule in rules:
        complaints = list(rule())
        failed += bool(complaints)
        report("%s %s: %s" % ("FAIL" if complaints else "ok  ", rule.__name__[5:], rule.__doc__.strip()))
        for complaint in complaints[:20]:
            report("     " + complaint)
        if len(complaints) > 20:
            report("     ... and %d more" % (len(complaints) - 20))
    return len(rules) - failed, failed


if __name__ == "__main__":
    passed, failed = run(QUICK)
    print("%d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed else 0)
