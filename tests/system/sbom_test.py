"""The bill of materials of the release build: whole, valid in its shape, and the same for the same build."""
import json
import os
import re
import subprocess
import sys
import unittest

BESIDE = "host"  # a lane of its own in tools/test.py

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
PROGRAMS = ("musterd", "muster-relay", "muster-agent", "muster")


@unittest.skipUnless(all(os.path.exists(os.path.join(BUILD, name)) for name in PROGRAMS), "the release build is missing: make build")
class Sbom(unittest.TestCase):
    def make(self):
        done = subprocess.run([sys.executable, ROOT + "/tools/sbom.py", "--build", BUILD], capture_output=True, text=True, env=dict(os.environ, SOURCE_DATE_EPOCH="1700000000"))
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_programs_say_nothing_of_where_they_were_built(self):
        """What tools/reproduce.py shows by building twice, which takes too long for every run."""
        strangers = {part.encode() for part in (ROOT, BUILD, os.path.realpath(BUILD), os.uname().nodename) if len(part) > 4}
        for name in PROGRAMS:
            with open(os.path.join(BUILD, name), "rb") as f:
                program = f.read()
            for stranger in strangers:
                at = program.find(stranger)
                self.assertEqual(at, -1, "%s: %r" % (name, program[max(0, at - 20):at + 80]))

    def test_names_everything_that_is_linked_or_compiled_in(self):
        text = self.make()
        self.assertEqual(text, self.make(), "the same build, another list")
        bom = json.loads(text)
        self.assertEqual((bom["bomFormat"], bom["specVersion"], bom["metadata"]["timestamp"]), ("CycloneDX", "1.5", "2023-11-14T22:13:20Z"))
        parts = {part["bom-ref"]: part for part in bom["components"]}
        self.assertEqual(len(parts), len(bom["components"]), "a name twice")
        depends = {each["ref"]: each["dependsOn"] for each in bom["dependencies"]}
        for name in PROGRAMS:
            self.assertRegex(parts["program:" + name]["hashes"][0]["content"], "^[0-9a-f]{64}$")
            self.assertTrue(set(depends["program:" + name]) <= set(parts), "a dependency without its part")
            libraries = re.findall(r"=> (/\S+)", subprocess.run(["ldd", os.path.join(BUILD, name)], capture_output=True, text=True, check=True).stdout)
            self.assertGreater(len(libraries), 3)
            for path in libraries:
                for each in {os.path.realpath(path), os.path.realpath(path).removeprefix("/usr")}:
                    owner = subprocess.run(["dpkg", "-S", each], capture_output=True, text=True).stdout.split(":")[0]
                    if owner:
                        self.assertIn("deb:" + owner, depends["program:" + name], path)
        for part in bom["components"]:
            if part["bom-ref"].startswith("deb:"):
                self.assertRegex(part["purl"], r"^pkg:deb/debian/[a-z0-9.+-]+@[^@ +:]+\?arch=\w+$")
        for compiled in ("libcli11-dev", "pypi:ray"):
            self.assertTrue(any(ref.endswith(compiled) for ref in parts), compiled + " is missing")
        self.assertTrue(any(re.match(r"deb:libboost[\d.]+-dev$", ref) for ref in parts), "header-only libraries are parts too")


if __name__ == "__main__":
    unittest.main()
