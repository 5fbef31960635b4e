"""Ctrl-C in the middle of system tests: what they started is stopped and removed, wherever they were."""
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BESIDE = "host"  # takes seconds
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WORLD = '''
import os, time, unittest
def mark(name):
    open(os.path.join(os.environ["MARKS"], name), "w").close()
def rest(where):
    mark("in-" + where)
    if os.environ["WHERE"] == where:
        time.sleep(60)
def tearDownModule():
    mark("module-ended")
class World(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.addClassCleanup(mark, "class-cleaned")
        rest("class")
    @classmethod
    def tearDownClass(cls):
        mark("class-ended")
    def setUp(self):
        self.addCleanup(mark, "test-cleaned")
    def tearDown(self):
        time.sleep(1)
        mark("test-ended")
    def test_1(self):
        rest("test")
    def test_2(self):
        mark("next-test")
'''
RUN = "import sys, tools.test as t; t.run_module.__defaults__ = ('', sys.argv[1]); t.run_system('', ['world'], '')"


class Interrupt(unittest.TestCase):
    def interrupted(self, where, number, times=1):
        """What was marked as done, after the signal came there."""
        with tempfile.TemporaryDirectory() as folder:
            with open(folder + "/world.py", "w") as f:
                f.write(WORLD)
            marks = folder + "/marks"
            os.mkdir(marks)
            run = subprocess.Popen([sys.executable, "-B", "-c", RUN, folder], cwd=ROOT, env=dict(os.environ, MARKS=marks, WHERE=where),
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            try:
                end = time.time() + 20
                while not os.path.exists(marks + "/in-" + where) and time.time() < end:
                    time.sleep(0.05)
                for _ in range(times):
                    run.send_signal(number)
                    time.sleep(0.3)
                said = run.communicate(timeout=20)[0]
            finally:
                run.kill()
            self.assertEqual(run.returncode, 130, said)
            self.assertIn("FAIL system.world  interrupted", said)
            return set(os.listdir(marks)) - {"in-class", "in-test"}

    ALL = {"test-ended", "test-cleaned", "class-ended", "class-cleaned", "module-ended"}

    def test_in_a_test(self):
        self.assertEqual(self.interrupted("test", signal.SIGINT), self.ALL)

    def test_a_kill_is_no_worse_and_a_second_one_cuts_nothing_off(self):
        self.assertEqual(self.interrupted("test", signal.SIGTERM, 3), self.ALL)

    def test_while_the_class_begins(self):
        self.assertEqual(self.interrupted("class", signal.SIGINT), {"class-ended", "class-cleaned", "module-ended"})


if __name__ == "__main__":
    unittest.main()
