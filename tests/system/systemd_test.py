"""The agent as a service: a machine booted with a real systemd joins, is killed, rebooted and leaves, and nobody starts anything by hand."""
import json
import os
import signal
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import booted  # noqa: E402
import demo  # noqa: E402

BESIDE = "host"  # a lane of its own in tools/test.py: mostly waits

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
UNIT = "/etc/systemd/system/muster-agent.service"


@unittest.skipUnless(os.geteuid() == 0, "needs root for a machine of its own")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Service(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.world = world = demo.World(BUILD, name="systemd", say=lambda text: None)
        cls.machine = None
        try:
            world.start_server()
            world.lab.machine("attic")
            cls.machine = booted.Booted(world.lab, "attic")
            cls.agent = cls.machine.install(world.binary("muster-agent"))
            cls.machine.start()
        except Exception:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        if cls.machine is not None:
            cls.machine.close()
        cls.world.close()

    def show(self, key):
        return self.machine.run(["systemctl", "show", "--value", "--property", key, "muster-agent"]).stdout.strip()

    def journal(self):
        return self.machine.run(["journalctl", "--no-pager", "-n", "30", "-u", "muster-agent"], check=False).stdout

    def online(self, what, seconds=60):
        done = self.machine.run([self.agent, "status", "--wait", str(seconds)], check=False)
        self.assertEqual(done.returncode, 0, what + ": " + done.stdout + done.stderr + self.journal())
        self.assertEqual(self.world.nodes()["attic"]["state"], "online", what)

    def test_1_join_leaves_a_running_service(self):
        token = json.loads(self.world.cli("join-token", "create", "--org", "hall", "-o", "json", who="admin").stdout)["secret"]
        done = self.machine.run([self.agent, "join", "https://" + demo.SERVER, "--token-file", "-", "--name", "attic"], input=token + "\n", check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr + self.journal())
        self.assertIn("ready: the control plane sees this machine online", done.stdout)
        self.assertEqual((self.show("ActiveState"), self.show("UnitFileState")), ("active", "enabled"))
        type(self).node = self.world.nodes()["attic"]["id"]

    def test_2_what_it_mounts_the_whole_machine_sees(self):
        """Namespaces of leases are pinned by mounts, which must outlive the service: it may have no mount namespace of its own."""
        ours = self.machine.run(["readlink", "/proc/1/ns/mnt"]).stdout
        self.assertEqual(self.machine.run(["readlink", "/proc/%s/ns/mnt" % self.show("MainPID")]).stdout, ours)

    def test_3_killed_it_is_started_again(self):
        main = self.show("MainPID")
        self.machine.run(["kill", "-%d" % signal.SIGKILL, main])
        self.world.wait(self.id(), "a new start", 20, lambda: self.show("MainPID") not in ("0", main))
        self.online("after the kill")
        self.machine.run(["systemctl", "restart", "muster-agent"])
        self.online("after the restart")

    def test_4_after_a_reboot_it_comes_back_by_itself(self):
        self.machine.reboot()
        self.online("after the reboot", 120)  # its old life must have been silent for 75 s
        self.assertEqual(self.world.nodes()["attic"]["id"], self.node)

    def test_5_the_doctor_names_a_stopped_service(self):
        self.machine.run(["systemctl", "stop", "muster-agent"])
        done = self.machine.run([self.agent, "doctor"], check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("systemctl start muster-agent", done.stdout)
        self.machine.run(["systemctl", "start", "muster-agent"])
        self.online("after the repair")

    def test_6_leave_takes_the_service_away(self):
        done = self.machine.run([self.agent, "leave"], check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertFalse(os.path.exists(self.machine.root + UNIT))
        self.assertEqual(self.show("LoadState"), "not-found")
        left = self.machine.run(["pgrep", "-x", "muster-agent"], check=False).stdout
        self.assertEqual(left, "")
        self.assertFalse(os.path.exists(self.machine.root + "/var/lib/muster"))


if __name__ == "__main__":
    unittest.main()
