"""Signatures of images as machines look for them: muster-agent against a real registry (Debian's docker-registry), with keys and signatures
of the openssl command, right, wrong, missing and of another image. No engine, no root. And two who want the same image made.
"""
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import privd  # noqa: E402
import registry  # noqa: E402

BESIDE = "outage"  # that lane sleeps for ten minutes


@unittest.skipUnless(privd.binary(), "muster-agent is not built")
@unittest.skipIf(registry.Registry.missing(), registry.Registry.missing())
class Signatures(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="muster-images-")
        cls.store = registry.Registry(cls.folder + "/registry").start()
        cls.keys = {}
        for name, words in (("p256", ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]), ("ed25519", ["-algorithm", "ed25519"]),
                            ("stranger", ["-algorithm", "ed25519"])):
            cls.keys[name] = "%s/%s.pem" % (cls.folder, name)
            subprocess.run(["openssl", "genpkey", "-out", cls.keys[name]] + words, check=True, capture_output=True)
            subprocess.run(["openssl", "pkey", "-in", cls.keys[name], "-pubout", "-out", cls.folder + "/%s.pub" % name], check=True)
        with open(cls.folder + "/password", "w") as f:
            f.write(cls.store.password + "\n")
        cls.images = 0

    @classmethod
    def tearDownClass(cls):
        cls.store.close()
        subprocess.run(["rm", "-rf", cls.folder])

    def image(self):
        """Another one each time; -> (its name in the registry, as machines pin it)."""
        Signatures.images += 1
        name = "team/app:%d" % self.images
        self.store.put(name, {"etc/number": b"%d" % self.images})
        return name, "%s/team/app@%s" % (self.store.host, self.store.digest(name))

    def check(self, pinned, *keys, account=True):
        words = [privd.binary(), "image-check", pinned]
        for key in keys:
            words += ["--key", self.folder + "/%s.pub" % key]
        if account:
            words += ["--username", self.store.user, "--password-file", self.folder + "/password"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout

    def refused(self, code, said):
        self.assertEqual(said[0], 3, said)
        self.assertIn("image_signature." + code + ":", said[1])
        self.assertNotIn(self.store.password, said[1])

    def test_signed_with_the_right_key(self):
        for key in ("p256", "ed25519"):
            name, pinned = self.image()
            self.store.sign(name, self.keys[key])
            self.assertEqual(self.check(pinned, key), (0, pinned + " is signed\n"))
            self.assertEqual(self.check(pinned, "stranger", key)[0], 0, "one of the keys is enough")
            self.refused("wrong", self.check(pinned, "stranger"))

    def test_not_signed(self):
        self.refused("missing", self.check(self.image()[1], "p256"))

    def test_signature_of_another_image(self):
        """Put up beside this one: with the other's payload, and with a payload that somebody else made of it."""
        other, _ = self.image()
        name, pinned = self.image()
        self.store.sign(name, self.keys["p256"], about=self.store.digest(other))
        self.refused("wrong", self.check(pinned, "p256"))
        self.store.sign(name, self.keys["stranger"])
        self.refused("wrong", self.check(pinned, "p256"))
        self.store.sign(name, self.keys["p256"])
        self.assertEqual(self.check(pinned, "p256")[0], 0)

    def test_account_and_registry(self):
        name, pinned = self.image()
        self.store.sign(name, self.keys["p256"])
        self.refused("denied", self.check(pinned, "p256", account=False))
        self.store.stop()
        try:
            self.refused("unreachable", self.check(pinned, "p256"))
        finally:
            self.store.start()
        self.assertEqual(self.check(pinned, "p256")[0], 0)

    def test_wrong_words(self):
        _, pinned = self.image()
        self.assertIn("by its digest", self.check(pinned.split("@")[0] + ":1", "p256")[1])
        self.assertIn("--key", self.check(pinned)[1])
        with open(self.folder + "/private.pub", "w") as f, open(self.keys["p256"]) as key:
            f.write(key.read())
        self.assertIn("private", self.check(pinned, "private")[1])


@unittest.skipUnless(os.geteuid() == 0, "needs root: images are made in a chroot")
class Build(unittest.TestCase):
    def test_who_wants_it_too_waits_and_takes_what_was_made(self):
        with open(ROOT + "/images/ray/versions", "rb") as versions, open(ROOT + "/images/ray/build", "rb") as script:
            stamp = hashlib.sha256(versions.read() + script.read()).hexdigest()[:16]
        with tempfile.TemporaryDirectory(prefix="muster-images-") as folder, open(folder + "/ray.tar.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # somebody makes it
            second = subprocess.Popen([ROOT + "/images/ray/build", "--out", folder + "/ray.tar"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            try:
                self.assertIn("waiting for another build", second.stdout.readline())
                for name, text in (("ray.tar", "an image"), ("ray.tar.stamp", stamp)):
                    with open(folder + "/" + name, "w") as f:
                        f.write(text)
                fcntl.flock(lock, fcntl.LOCK_UN)
                self.assertEqual(second.communicate(timeout=30)[0], "[image] cached: %s/ray.tar\n" % folder)
                self.assertEqual(second.returncode, 0)
            finally:
                second.kill()
                second.wait()


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"] + sys.argv[1:])
