"""A machine whose certificates are bound to a key in its TPM 2.0 (swtpm): joined, renewed, and of no use as a copy without that TPM."""
import os
import shutil
import signal
import subprocess
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402
from nodelife_test import BUILD, Base, needs, read  # noqa: E402

BESIDE = "host"  # a lane of its own in tools/test.py: mostly waits

CERTIFICATE_LIFE = 60
PORT = 2321
TCTI = "swtpm:host=127.0.0.1,port=%d" % PORT


@needs
@unittest.skipUnless(shutil.which("swtpm"), "swtpm is not installed")
class Tpm(Base):
    @classmethod
    def setUpClass(cls):
        cls.world = world = demo.World(BUILD, name="tpm", say=lambda text: None)
        try:
            world.lab.start_docker()
            world.musterd_args = ["--certificate-life", str(CERTIFICATE_LIFE)]
            world.start_server()
            world.add_machine("safe", "home", join=("--tpm", "require", "--tpm-at", TCTI), before_join=lambda: cls.start_tpm("safe"))
            world.add_machine("plain", "lan:safe", join=("--tpm", "auto"))
            for name in ("safe", "plain"):
                done = subprocess.run(world.lab.enter(name) + [world.binary("muster-agent"), "status", "--wait", "60", "--state-dir", world.dir + "/" + name],
                                      capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr + read(world.dir + "/%s/agent.log" % name)[-2000:]
        except BaseException:
            world.close()
            raise

    @classmethod
    def start_tpm(cls, name, state="tpm"):
        folder = "%s/%s-%s" % (cls.world.dir, name, state)
        os.makedirs(folder, exist_ok=True)
        cls.world.agents["tpm of " + name] = cls.world.lab.spawn(name, [
            "swtpm", "socket", "--tpm2", "--tpmstate", "dir=" + folder, "--server", "type=tcp,port=%d,disconnect=true" % PORT,
            "--ctrl", "type=tcp,port=%d" % (PORT + 1), "--flags", "not-need-init,startup-clear"], folder + "/log")
        cls.world.wait("tpm", "the TPM of " + name, 10, lambda: cls.world.lab.run(
            name, ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', %d), 1)" % PORT], check=False).returncode == 0)

    def names(self, name):
        text = self.world.lab.sh(["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=read(self.state(name) + "/agent/device.pem")).stdout
        return [part.strip() for part in text.split("\n", 1)[1].split(",")]

    def test_1_its_certificates_are_bound_to_the_tpm_and_stay_so(self):
        first = read(self.state("safe") + "/agent/device.pem")
        bound = self.names("safe")
        self.assertEqual(len(bound), 2, bound)
        self.assertRegex(bound[1], r"^URI:spiffe://muster/tpm/[0-9a-f]{64}$")
        self.assertEqual(len(self.names("plain")), 1, "where there is no TPM it joins without")
        self.assertIn("TSS2 PRIVATE KEY", read(self.state("safe") + "/tpm.key.pem"))
        self.assertEqual(os.stat(self.state("safe") + "/tpm.key.pem").st_mode & 0o777, 0o600)
        self.wait("a renewal", CERTIFICATE_LIFE + 20, lambda: read(self.state("safe") + "/agent/device.pem") != first)
        self.assertEqual(self.names("safe"), bound)
        self.assertTrue(self.status("safe")["tpm"])
        self.assertFalse(self.status("plain")["tpm"])
        self.assertIn("TPM", self.agent("safe", "doctor", timeout=120).stdout)

    def test_2_after_a_restart_it_signs_again(self):
        self.stop_agent("safe")
        self.world.start_agent("safe")
        self.assertEqual(self.agent("safe", "status", "--wait", "60").returncode, 0, self.agent("safe", "status").stdout)

    def test_3_a_stolen_disk_is_no_machine(self):
        """All that lies on its disk, on another machine, with another TPM or none, and with the binding taken out of the configuration."""
        self.stop_agent("safe")
        copy = self.state("thief")
        subprocess.run("mkdir %s && tar -C %s --exclude=./run --exclude=*.sock --exclude=agent.log -cf - . | tar -C %s -xf -" % (copy, self.state("safe"), copy), shell=True, check=True)
        self.start_tpm("plain", "another")

        def tried(what, says):
            self.world.agents["thief"] = self.world.lab.spawn("plain", [self.world.binary("muster-agent"), "run", "--state-dir", copy], copy + "/agent.log")
            self.wait(what, 40, lambda: says in self.agent("thief", "status", on="plain").stdout, copy + "/agent.log")
            self.assertFalse(self.status("thief").get("ready"))
            self.stop_agent("thief")
        tried("the word of another TPM", "TPM did not sign")
        text = read(copy + "/config.json")
        with open(copy + "/config.json", "w") as f:
            f.write(text.replace('"tpm_key":"', '"other":"'))
        tried("the refusal without a word of a TPM", "bound to a key in its TPM")
        # A kernel's /dev/tpmrm0 unloads what a process that ended had loaded; this TPM is without, and holds three keys at most.
        self.world.agents["tpm of safe"].kill(signal.SIGTERM)
        self.start_tpm("safe")
        self.world.start_agent("safe")
        self.assertEqual(self.agent("safe", "status", "--wait", "90").returncode, 0, self.agent("safe", "status").stdout)

    def test_4_require_means_it(self):
        token = self.world.json("join-token", "create", "--org", "hall", who="admin")["secret"]
        done = subprocess.run(self.world.lab.enter("plain") + [self.world.binary("muster-agent"), "join", "https://" + demo.SERVER, "--token-file", "-",
                                                               "--state-dir", self.state("fourth"), "--no-service", "--tpm", "require"], input=token + "\n", text=True, capture_output=True)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("no TPM 2.0", done.stderr)
        self.assertFalse(os.path.exists(self.state("fourth") + "/config.json"))


if __name__ == "__main__":
    unittest.main()
