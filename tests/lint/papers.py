"""What the security papers name must exist: files, tests, headings that links lead to, and commands with their options.

Commands are looked up where the programs themselves keep them: the usage texts of musterd, muster-agent and muster-relay, and the
parser of muster (src/cli). Needs no build. lint.py runs check() over SECURITY.md and docs/security, and self_test() beside it.
"""
import os
import re

TOPS = ("src/", "tests/", "docs/", "deploy/", "tools/", "proto/", "bench/", "images/", "examples/", "cmake/")
PROGRAMS = ("musterd", "muster-agent", "muster-relay", "muster")


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as f:
        return f.read()


def literals(text):
    """The string literals of C++ source, joined: a usage text in pieces becomes one text again."""
    raw = re.findall(r'R"\((.*?)\)"', text, re.S)
    plain = [re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), s) for s in re.findall(r'(?<!R)"((?:\\.|[^"\\\n])*)"', text)]
    return "".join(raw), "".join(plain)


class Usage:
    """A program whose usage text has an entry "  PROGRAM VERB ..." for each verb."""

    def __init__(self, text, program):
        self.general = text
        self.entries = {}
        verb = None
        for line in text.split("\n"):
            found = re.match(r"  %s ([a-z-]+(?:\|[a-z-]+)*)(.*)" % program, line)
            if found:
                verb = found[1]
                self.entries[verb] = self.entries.get(verb, "") + found[2]
            elif verb and line.startswith("   "):
                self.entries[verb] += line
            else:
                verb = None

    def fault(self, words, options):
        if not words or words[0] not in self.entries:
            return "there is no such verb"
        entry = self.entries[words[0]]
        alternatives = re.match(r" ([a-z]+(?:\|[a-z]+)+)", entry)
        if alternatives and (len(words) < 2 or words[1] not in alternatives[1].split("|")):
            return "it wants one of " + alternatives[1]
        for option in options:
            if not re.search(re.escape(option) + r"(?![a-z-])", entry) and not re.search(r"^  %s(?![a-z-])" % re.escape(option), self.general, re.M):
                return "it has no option " + option
        return None


class Flags:
    """A program of options only."""

    def __init__(self, text):
        self.text = text

    def fault(self, words, options):
        if words:
            return "it takes options only"
        for option in options:
            if not re.search(r"(?<![a-z-])%s(?![a-z-])" % re.escape(option), self.text):
                return "it has no option " + option
        return None


class Cli:
    """muster: a verb is a literal of the file of src/cli that makes it, and so are its sub-verbs and options."""

    def __init__(self, root):
        self.files = {}
        for name in sorted(os.listdir(os.path.join(root, "src/cli"))):
            if name.endswith(".cpp") and not name.endswith("_test.cpp"):
                text = read(root, "src/cli/" + name)
                if "add_subcommand(" in text or "add_option(" in text:
                    self.files[name] = text
        self.shared = "".join(self.files[name] for name in self.files if name in ("cli.cpp", "ray_flags.cpp"))

    def fault(self, words, options):
        if not words:
            return None if all('"%s' % option in self.shared for option in options) else "it has no such option"
        made = re.compile(r'add_subcommand\([^;]*?"%s"' % re.escape(words[0]))
        homes = [text for text in self.files.values() if made.search(text)]
        # Verbs that a loop makes stand in a table of the same file.
        homes = homes or [text for text in self.files.values() if "add_subcommand(" in text and '"%s"' % words[0] in text]
        fault = "there is no such verb"
        for text in homes:
            nested = re.search(r"->\s*add_subcommand\(", text) or re.search(r"\bparent\.add_subcommand\(", text)
            if nested and len(words) > 1 and '"%s"' % words[1] not in text:
                fault = "there is no verb %s below it" % words[1]
                continue
            missing = [o for o in options if not re.search(r'"%s[",]' % re.escape(o), text + self.shared)]
            if missing:
                fault = "it has no option " + missing[0]
                continue
            return None
        return fault


def programs(root):
    server, agent = read(root, "src/server/commands.cpp"), read(root, "src/host/commands.cpp")
    usage = literals(server[server.index("kUsage ="):server.index("std::string Arguments::option")])[1]
    help_ = literals(agent[agent.index("kHelp ="):agent.index("kUnit =")])[1]
    return {"musterd": Usage(usage, "musterd"), "muster-agent": Usage(help_, "muster-agent"),
            "muster-relay": Flags(literals(read(root, "src/apps/muster-relay.cpp"))[0]), "muster": Cli(root)}


def split(command):
    """Words before the first argument, and options. What is written in capitals or is no plain word is an argument."""
    words, options, plain = [], [], True
    for word in command.split()[1:]:
        if word in ("\\", "|", "<", ">", "&&", ";", "--"):
            break
        if word.startswith("--"):
            options.append(re.match(r"--[a-z0-9-]*", word)[0])
            plain = False
        elif plain and re.fullmatch(r"[a-z][a-z0-9-]*", word):
            words.append(word)
        else:
            plain = False
    return words, options


def commands(text):
    """(line number, command): code spans that are more than a program's name, and lines of code blocks; continued lines are one."""
    fenced, held, began = False, "", 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip().startswith("```"):
            fenced = not fenced
            continue
        if not fenced:
            for span in re.findall(r"`([^`]+)`", line):
                span = re.sub(r"^(sudo|#|\$) ", "", span)
                if span.split()[0] in PROGRAMS and " " in span:
                    yield number, span
            continue
        began = began if held else number
        held += re.sub(r"^\s*[#$] ", "", line) if not held else " " + line.strip()
        if held.endswith("\\"):
            held = held[:-1]
            continue
        for part in re.split(r";|&&", held):
            part = re.sub(r"^\s*(sudo (-u \S+ )?)?", "", part)
            if part and part.split()[0] in PROGRAMS:
                yield began, part.strip()
        held = ""


def anchors(text):
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        found.add(re.sub(r"[^a-z0-9 -]", "", heading.lower()).strip().replace(" ", "-"))
    return found


def check(root, path, text, known):
    folder = os.path.dirname(path)
    for number, line in enumerate(text.split("\n"), 1):
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", line):
            if "://" in target:
                continue
            full = os.path.normpath(os.path.join(folder, target)) if target else path
            if target and not os.path.exists(os.path.join(root, full)):
                yield "%s:%d: link to %s, which does not exist" % (path, number, target)
            elif anchor and anchor not in anchors(read(root, full) if target else text):
                yield "%s:%d: link to #%s, a heading that %s does not have" % (path, number, anchor, full)
        for span in re.findall(r"`([^`]+)`", line):
            found = re.fullmatch(r"((?:%s)[\w./-]+|[A-Z]+\.md)(?:::([\w.]+))?" % "|".join(TOPS), span)
            if not found:
                continue
            if not os.path.exists(os.path.join(root, found[1])):
                yield "%s:%d: %s does not exist" % (path, number, found[1])
            elif found[2]:
                source = read(root, found[1])
                missing = [name for name in found[2].split(".") if not re.search(r"\b%s\b" % name, source)]
                inherited = found[1].endswith(".py") and len(missing) == 1 and missing[0] != found[2].split(".")[-1]
                if missing and not inherited:
                    yield "%s:%d: %s has no test %s" % (path, number, found[1], found[2])
    for number, command in commands(text):
        fault = known[command.split()[0]].fault(*split(command))
        if fault:
            yield "%s:%d: '%s': %s" % (path, number, command, fault)


PLANTED = """# Head
[a](missing.md) [b](#nowhere) `src/none.cpp` `tests/lint/lint.py::rule_of_nobody`
`musterd fly --data DIR` `musterd init --nonsense X` `musterd journal burn --data DIR` `muster nodes destroy NODE` `muster fly` `muster nodes revoke NODE --force`
`muster-agent join --backdoor` `muster-agent fly now`
```console
$ muster-relay --listen 0.0.0.0:443 \\
    --plain yes
```
"""
PLANTED_FAULTS = 13
GOOD = "# A head\n[a](#a-head) `musterd journal verify --data DIR` `sudo muster-agent status --wait 60` `muster nodes revoke NODE --yes`\n"


def self_test(root, known):
    """A checker that finds nothing would be green for ever."""
    found = list(check(root, "planted.md", PLANTED, known))
    if len(found) != PLANTED_FAULTS:
        yield "tests/lint/papers.py:1: %d of %d planted faults are found: %s" % (len(found), PLANTED_FAULTS, found)
    for fault in check(root, "good.md", GOOD, known):
        yield "tests/lint/papers.py:1: a good command is refused: " + fault
