"""Requests made from the OpenAPI document, as every role, against a real musterd (tools/fuzz_api.py): a short form of `make fuzz-api`."""
import os
import subprocess
import sys
import unittest

BESIDE = "host"  # a lane of its own in tools/test.py: needs no engine

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
CASES = os.environ.get("MUSTER_API_CASES", "1000")


class ApiFuzz(unittest.TestCase):
    def test_every_operation_as_every_role(self):
        done = subprocess.run([sys.executable, os.path.join(ROOT, "tools/fuzz_api.py"), "--cases", CASES, "--build", BUILD],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
        last = done.stdout.strip().split("\n")[-1]
        self.assertEqual(done.returncode, 0, done.stdout[-6000:])
        self.assertTrue(last.startswith("FUZZ OK: "), last)


if __name__ == "__main__":
    unittest.main()
