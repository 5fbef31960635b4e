"""The demo's story as a test: machines behind NATs, default.yaml, a job, a vanished worker, a killed control plane."""
import os
import subprocess
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")
class Demo(unittest.TestCase):
    def test_story(self):
        done = subprocess.run([sys.executable, os.path.join(ROOT, "tools/demo.py"), "--build", os.path.join(ROOT, "build/release")],
                              capture_output=True, text=True, timeout=900)
        last = [line for line in done.stdout.strip().split("\n") if line.startswith("DEMO ")]
        self.assertTrue(last and last[-1].startswith("DEMO OK: "), done.stdout[-4000:] + done.stderr[-2000:])
        self.assertEqual(done.returncode, 0)

    def test_cleans_up(self):
        names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        self.assertNotRegex(names, r"\bm[0-9a-f]+-gpu1\b", "namespaces of the demo were left behind")


if __name__ == "__main__":
    unittest.main()
