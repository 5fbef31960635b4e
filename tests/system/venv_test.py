"""A Ray cluster on machines without a container engine: real Ray in sandboxed virtual environments, built by each machine from a package
index in the lab. No container engine runs; the machines' policy names none. Tests share one world and one cluster.
"""
import os
import signal
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402
import wheels  # noqa: E402
from faults_test import ON_WORKER  # noqa: E402

BESIDE = "host"  # a lane of its own in tools/test.py: mostly waits

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
INDEX = "203.0.113.20"
CLUSTER = """cluster_name: %s
provider: {type: local, head_ip: 10.0.0.1%s}
muster: {%s}
"""
SMALL = "head: {CPU: 1, memory: 1073741824}"  # beside the head of the first cluster


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and sandboxes")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
class Venv(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.version, _ = wheels.real_wheels()
        cls.world = world = demo.World(BUILD, name="venv", say=lambda text: None)
        try:
            fakes = world.dir + "/fakes"
            os.makedirs(fakes)
            wheels.ray_wheel(fakes, "9.0.1", token_auth=False)
            wheels.ray_wheel(fakes, "9.0.2", rocksdb=False)
            world.lab.host("index", INDEX)
            world.lab.spawn("index", [sys.executable, os.path.join(ROOT, "tests/lab/wheels.py"), INDEX, "8080", "real", fakes], world.dir + "/index.log")
            world.start_server()
            policy = {"runtimes": ["venv"], "python_index": "http://%s:8080/simple" % INDEX, "uv": "/nonexistent"}
            uv = wheels.find_uv()
            for name, nat, more in (("alpha", "home", {}), ("beta", "strict", {"uv": uv} if uv else {})):  # one builds by pip, one by uv
                world.add_machine(name, nat, policy=dict(policy, **more))
            world.wait("machines", "both machines online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= 2)
            cls.up("small", ", worker_ips: [10.0.0.2]", "runtime: venv, head: {CPU: 1, memory: 2147483648}", timeout=540)
        except BaseException:
            for log in ("alpha/agent.log", "beta/agent.log", "musterd.log"):
                print(log, subprocess.run(["tail", "-25", "%s/%s" % (world.dir, log)], capture_output=True, text=True).stdout)
            world.close()
            raise

    @classmethod
    def tearDownClass(cls):
        leases = [lease for name in cls.world.agents for lease in os.listdir("%s/%s/leases" % (cls.world.dir, name))]
        cls.world.cli("down", "small", "--yes", check=False)
        cls.world.close()
        left = subprocess.run(["pgrep", "-u", "64792,64793"], capture_output=True, text=True).stdout
        assert leases and not left, "processes of the sandboxes were left behind: " + left

    @classmethod
    def up(cls, name, workers, muster, timeout=150, check=True):
        with open("%s/%s.yaml" % (cls.world.dir, name), "w") as f:
            f.write(CLUSTER % (name, workers, muster))
        return cls.world.cli("up", "%s/%s.yaml" % (cls.world.dir, name), "--yes", check=check, timeout=timeout)

    def members(self):
        return {s["nodeName"]: s for s in self.world.cluster("small").get("slots", [])}

    def test_nodes_offer_only_the_venv(self):
        self.assertEqual({tuple(n["runtimes"]) for n in self.world.nodes().values()}, {("venv",)})
        self.assertIsNone(self.world.lab.docker)

    def test_computes_on_the_worker(self):
        done = self.world.cli("exec", "small", "--", "python3", "-c", ON_WORKER, check=False, timeout=120)
        self.assertIn("computed on 10.201.", done.stdout, done.stdout[-800:] + done.stderr[-800:])

    def test_runs_what_the_first_one_resolved(self):
        cluster = self.world.cluster("small")
        self.assertRegex(cluster["imageDigest"], r"^venv:ray==%s,python3\.\d+@sha256:[0-9a-f]{64}$" % self.version)
        self.assertEqual((cluster["rayVersion"], cluster["headRecovery"]), (self.version, True))
        digest = cluster["imageDigest"][-64:]
        for name in ("alpha", "beta"):
            self.assertIn(digest, os.listdir("%s/%s/venvs" % (self.world.dir, name)), name)

    def test_job_logs_and_exit_code(self):
        done = self.world.cli("job", "submit", "--cluster", "small", "--working-dir", os.path.join(ROOT, "examples"), "--", "python3", "squares.py", "4", "1", timeout=150)
        self.assertIn(" right ", done.stdout)
        done = self.world.cli("job", "submit", "--cluster", "small", "--", "sh", "-c", "echo gone wrong; exit 3", check=False, timeout=150)
        self.assertEqual((done.returncode, "gone wrong" in done.stdout), (3, True), done.stderr)

    def test_privd_and_agent_die(self):
        before = self.members()
        for part in ("privd-process", "agent-process"):
            for name in ("alpha", "beta"):
                supervisor = self.world.agents[name].popen.pid
                for pid in subprocess.run(["pgrep", "-f", "-P", str(supervisor), part], capture_output=True, text=True).stdout.split():
                    os.kill(int(pid), signal.SIGKILL)
            self.world.wait(part, "the machines online again", 60, lambda: sum(n["state"] == "online" for n in self.world.nodes().values()) >= 2)
            self.world.wait(part, "a way into the head's container", 60, lambda: self.world.cli("exec", "small", "--", "true", check=False).returncode == 0)
            self.test_computes_on_the_worker()
        self.world.wait("members", "the same members", 60, lambda: {n: s["id"] for n, s in self.members().items()} == {n: s["id"] for n, s in before.items()} and
                        all(s["phase"] == "ready" for s in self.members().values()))

    def test_no_token_authentication_is_refused(self):
        done = self.up("open", "", "image: 'venv:ray==9.0.1', " + SMALL, check=False)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("image_probe.no_token_auth", done.stdout + done.stderr)
        self.assertIn("token authentication", done.stdout + done.stderr)

    def test_packages_that_do_not_exist_are_refused(self):
        done = self.up("wrong", "", "image: 'venv:ray==%s,no-such-thing==1.0', " % self.version + SMALL, check=False)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("venv.no_such_package", done.stdout + done.stderr)

    def test_sandbox_sees_nothing_of_the_machine(self):
        script = "ls -d /root/.ssh /var/lib/* %s 2>/dev/null; cat /proc/net/route | tail -n +2 | cut -f1; id -u; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status" % self.world.dir
        done = self.world.cli("exec", "small", "--", "sh", "-c", script)
        self.assertEqual(done.stdout.replace("\t", " ").split("\n")[:5], ["muster0", "1000", "CapEff: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"], done.stdout)

    def test_token_is_a_file_on_tmpfs(self):
        done = self.world.cli("exec", "small", "--", "sh", "-c", "stat -c '%a %U' /muster/secrets/ray_token; stat -f -c %T /muster/secrets; env | grep -c RAY_AUTH_TOKEN= || true")
        self.assertEqual(done.stdout, "400 ray\ntmpfs\n0\n")


if __name__ == "__main__":
    unittest.main()
