"""The command `muster` on the real thing, verb by verb: a part of the class in ray_test.py, whose lab and cluster it uses."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import termios
import time

import demo
import yaml

EXTRA = """cluster_name: extra
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}
docker: {image: "rayproject/ray-ml:latest-gpu", run_options: ["--ulimit nofile=65536:65536", "-e GREETING=hello"]}
initialization_commands: ["echo never > /tmp/on-the-host"]
file_mounts: {"/home/ray/code": "code", "~/one.txt": "one.txt"}
rsync_exclude: ["*.log"]
setup_commands: ["echo \\"$GREETING from setup\\" > /tmp/setup.txt", "echo second >> /tmp/setup.txt"]
head_setup_commands: ["echo head > /tmp/head.txt"]
head_start_ray_commands: ["ray stop", "ray start --head --port=6379 --num-cpus=1"]
worker_start_ray_commands: ["ray stop", "ray start --address=$RAY_HEAD_IP:6379 --resources='{\\"red\\": 2}'"]
muster: {head: {CPU: 1, memory: 2147483648}}
"""


class Terminal:
    """A program on a terminal of its own; what it shows is kept in `text`."""

    def __init__(self, command, env, rows=40, cols=132):
        self.text = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(env, TERM="xterm")
            os.execvp(command[0], command)
        self.resize(rows, cols)

    def resize(self, rows, cols):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, text):
        os.write(self.fd, text.encode())

    def read(self, seconds):
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            self.text += data.decode(errors="replace")
            return bool(data)
        return True

    def expect(self, pattern, seconds=60):
        end, seen = time.time() + seconds, len(self.text)
        while time.time() < end:
            found = re.search(pattern, self.text)
            if found:
                self.text = self.text[found.end():]
                return found
            if not self.read(0.5):
                break
        raise AssertionError("%r did not come (since %d): %r" % (pattern, seen, self.text[-1500:]))

    def end(self, seconds=30):
        stop = time.time() + seconds
        while time.time() < stop:
            self.read(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("it did not end: %r" % self.text[-1500:])


class CliVerbs:
    def muster(self, *words, **kw):
        """Like world.cli, but with standard input and without raising."""
        return subprocess.run(self.world.lab.enter("user") + [self.world.binary("muster")] + list(words),
                              env=dict(os.environ, **self.world.account("alice")), capture_output=True, text=True, timeout=200, **kw)

    def terminal(self, *words, **kw):
        return Terminal(self.world.lab.enter("user") + [self.world.binary("muster")] + list(words), self.world.account("alice"), **kw)

    def background(self, *words, log):
        return self.world.lab.spawn("user", [self.world.binary("muster")] + list(words), log, env=self.world.account("alice"))

    def job_ended(self, job, seconds=90):
        return self.world.wait("job", "the end of " + job, seconds, lambda: (lambda j: j if j["state"] in ("succeeded", "failed", "stopped") else None)(
            self.world.json("job", "status", job)))

    # ---- running things
    def test_30_exec(self):
        file = self.world.dir + "/live.yaml"
        done = self.muster("exec", file, "--", "sh", "-c", "cat; echo err >&2; exit 9", input="one\ntwo\n")
        self.assertEqual((done.stdout, done.returncode), ("one\ntwo\n", 9), done.stderr)
        self.assertIn("err", done.stderr)
        self.assertIn("Node status", self.muster("exec", "live", "ray status").stdout)
        worker = self.slots("worker")[0]
        self.assertIn(worker["address"], self.muster("exec", "live", "--slot", worker["id"], "--", "ip", "-o", "addr").stdout)
        for words, code, text in ((("exec", "nowhere", "true"), 3, "nowhere"), (("exec", "live", "--tmux", "true"), 2, "muster job submit"),
                                  (("exec", "live", "--start", "true"), 2, "YAML")):
            done = self.muster(*words)
            self.assertEqual(done.returncode, code, done.stdout + done.stderr)
            self.assertIn(text, done.stdout + done.stderr)
        self.assertEqual(self.muster("get-head-ip", file).stdout.strip(), self.slots("head")[0]["address"])
        self.assertEqual(self.muster("get-worker-ips", file).stdout.split(), [worker["address"]])

    def test_31_attach(self):
        """A real terminal: its size, a change of it, Ctrl-C, the exit code."""
        shell = self.terminal("attach", "live")
        shell.type("stty size; echo mark-$((6*7))\n")
        shell.expect(r"40 132\s+mark-42")
        shell.resize(50, 100)
        time.sleep(0.6)
        shell.type("stty size; echo mark-$((6*8))\n")
        shell.expect(r"50 100\s+mark-48")
        shell.type("sleep 1000; echo never-$?\n")
        time.sleep(1)
        shell.type("\x03")
        shell.type("echo code-$?; tty\n")
        shell.expect(r"code-130\s+/dev/pts/")
        shell.type("exit 6\n")
        self.assertEqual(shell.end(), 6)
        self.assertIn("needs a terminal", self.muster("attach", "live", stdin=subprocess.DEVNULL).stderr)

    def test_32_rsync(self):
        """Trees with modes, links and empty folders, both ways; one file under a new name; what leads outside is not made."""
        here = self.world.dir + "/tree"
        os.makedirs(here + "/a/b/empty")
        with open(here + "/a/run.sh", "w") as f:
            f.write("#!/bin/sh\necho ran\n")
        os.chmod(here + "/a/run.sh", 0o750)
        with open(here + "/a/secret", "w") as f:
            f.write("s")
        os.chmod(here + "/a/secret", 0o600)
        os.symlink("run.sh", here + "/a/link")
        os.symlink("/etc/passwd", here + "/a/b/out")
        self.assertEqual(self.muster("rsync-up", "live", here, "~/tree").returncode, 0)
        listing = self.muster("exec", "live", "cd ~/tree/a && ./link && stat -c '%a %n' run.sh secret b/empty && readlink link b/out").stdout
        self.assertEqual(listing.split(), ["ran", "750", "run.sh", "600", "secret", "755", "b/empty", "run.sh", "/etc/passwd"])
        back = self.world.dir + "/back"
        done = self.muster("rsync-down", "live", "~/tree", back)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("1 links that lead outside", done.stderr)
        self.assertEqual(os.readlink(back + "/a/link"), "run.sh")
        self.assertFalse(os.path.lexists(back + "/a/b/out"))
        self.assertEqual([stat.S_IMODE(os.stat(back + p).st_mode) for p in ("/a/run.sh", "/a/secret", "/a/b/empty")], [0o750, 0o600, 0o755])
        self.assertEqual(int(os.stat(back + "/a/run.sh").st_mtime), int(os.stat(here + "/a/run.sh").st_mtime))
        self.assertEqual(self.muster("rsync-down", "live", "~/tree", back).returncode, 0, "a second copy over the first one")
        self.muster("rsync-up", "live", here + "/a/run.sh", "~/renamed.sh")
        self.assertIn("ran", self.muster("exec", "live", "~/renamed.sh").stdout)
        self.muster("rsync-down", "live", "~/renamed.sh", back + "/again.sh")
        self.assertTrue(os.path.isfile(back + "/again.sh"))
        done = self.muster("rsync-down", "live", "~/nothing", back)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.muster("rsync-up", "live", here, "/tmp/everywhere", "--all-nodes")
        for slot in self.slots():
            self.assertEqual(self.muster("exec", "live", "--slot", slot["id"], "cat /tmp/everywhere/a/secret").stdout, "s")

    def test_33_submit(self):
        script = self.world.dir + "/script.py"
        with open(script, "w") as f:
            f.write("import sys, ray\nray.init(log_to_driver=False)\nprint('nodes', len(ray.nodes()) > 1, sys.argv[1:])\nsys.exit(4)\n")
        done = self.muster("submit", self.world.dir + "/live.yaml", script, "--", "--epochs", "3 x")
        self.assertIn("nodes True ['--epochs', '3 x']", done.stdout, done.stderr)
        self.assertEqual(done.returncode, 4)

    # ---- jobs
    def test_34_jobs(self):
        folder = self.world.dir + "/work"
        os.makedirs(folder + "/pkg")
        with open(folder + "/pkg/__init__.py", "w") as f:
            f.write("WHO = 'mine'\n")
        with open(folder + "/main.py", "w") as f:
            f.write("import os, pkg, sys\nprint(pkg.WHO, os.environ['COLOUR'], sys.argv[1:], flush=True)\nsys.exit(int(os.environ.get('CODE', '0')))\n")
        done = self.muster("job", "submit", "--cluster", "live", "--name", "first", "--working-dir", folder, "--runtime-env-json", '{"env_vars": {"COLOUR": "red"}}',
                           "--metadata", "team=vision", "--entrypoint-num-cpus", "0.5", "--", "python", "main.py", "a b")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("mine red ['a b']", done.stdout)
        job = self.world.json("job", "status", "first")
        self.assertEqual((job["state"], job["exitCode"], job["metadata"]), ("succeeded", 0, {"team": "vision"}))
        env = self.world.dir + "/env.yaml"
        with open(env, "w") as f:
            f.write("working_dir: work\nexcludes: [nothing]\nenv_vars: {COLOUR: blue, CODE: '3'}\n")
        done = self.muster("job", "submit", "--runtime-env", env, "--", "python", "main.py")  # the only cluster there is
        self.assertIn("mine blue", done.stdout, done.stderr)
        self.assertEqual(done.returncode, 3, "the exit code is the job's")
        self.assertEqual(self.muster("job", "submit", "--address", "http://x:1", "--", "true").returncode, 2)
        listed = {j["name"]: j for j in self.world.json("job", "list")["items"]}
        self.assertEqual(listed["first"]["state"], "succeeded")
        self.assertIn("mine red", self.muster("job", "logs", "first").stdout)
        again = self.world.json("job", "submit", "--cluster", "live", "--retries", "2", "--no-wait", "--", "sh", "-c",
                                "[ -e /tmp/ray/tried ] && exit 0; touch /tmp/ray/tried; echo not yet; exit 5")["id"]
        slow = self.world.json("job", "submit", "--cluster", "live", "--timeout", "3s", "--no-wait", "--", "sleep", "300")["id"]
        stopped = self.world.json("job", "submit", "--cluster", "live", "--no-wait", "--", "sh", "-c", "echo begun; sleep 300")["id"]
        self.world.wait("job", "its first line", 60, lambda: "begun" in self.muster("job", "logs", stopped).stdout)
        self.assertIn("stopped", self.muster("job", "stop", stopped).stdout)
        end = self.job_ended(again)
        self.assertEqual((end["state"], end["attempt"]), ("succeeded", 2), end)
        self.assertIn("not yet", self.muster("job", "logs", again, "--attempt", "1").stdout)
        end = self.job_ended(slow)
        self.assertEqual((end["state"], end["reason"]), ("failed", "timeout"), end)

    def test_35_stock_clients(self):
        """Ray's own `ray job submit` and `ray.init("ray://...")`, unmodified, from the user's machine."""
        folder = self.world.dir + "/stock"
        os.makedirs(folder + "/job")
        os.chmod(folder, 0o777)
        with open(folder + "/job/script.py", "w") as f:
            f.write("import ray\nray.init(log_to_driver=False)\nprint('from stock', ray.get(ray.remote(lambda: 6 * 7).remote()), flush=True)\n")
        forward = self.background("port-forward", "live", "18265:8265", "10001", "--token-file", folder + "/token", log=self.world.dir + "/stock.log")
        self.world.lab.sh(["docker", "-H", self.world.lab.docker, "run", "-d", "--init", "--name", "stock", "--network", "none", "--shm-size", "512m", "-v", folder + ":/w",
                           "muster/ray:2.60.0", "sleep", "infinity"])
        try:
            self.world.wait("forward", "the token file", 30, lambda: os.path.exists(folder + "/token") and os.path.getsize(folder + "/token"), forward.log)
            os.chmod(folder + "/token", 0o644)  # the container's user is another one
            pid = self.docker("inspect", "--format", "{{.State.Pid}}", "stock").stdout.strip()
            enter = ["nsenter", "-t", pid, "-m", "-p", "--net=/run/netns/" + self.world.lab.full("user"), "env", "-i", "HOME=/tmp", "PATH=/opt/ray/bin:/usr/bin:/bin",
                     "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/w/token"]
            done = subprocess.run(enter + ["ray", "job", "submit", "--address", "http://localhost:18265", "--working-dir", "/w/job", "--", "python", "script.py"],
                                  capture_output=True, text=True, timeout=180)
            self.assertIn("from stock 42", done.stdout, done.stdout[-1500:] + done.stderr[-1500:])
            self.assertIn("succeeded", done.stdout)
            client = "import ray\nray.init('ray://localhost:10001')\n@ray.remote\ndef f(x): return x + 1\nprint('client got', ray.get([f.remote(i) for i in range(3)]), len(ray.nodes()))\n"
            for _ in range(3):  # Ray gives its server for a client 30 s to start, which a busy machine may not keep
                done = subprocess.run(enter + ["python3", "-c", client], capture_output=True, text=True, timeout=180)
                if "Starting Ray client server failed" not in done.stderr:
                    break
            self.assertIn("client got [1, 2, 3]", done.stdout, done.stdout[-1500:] + done.stderr[-2500:])
            bare = subprocess.run([w for w in enter if not w.startswith("RAY_AUTH")] + ["ray", "job", "list", "--address", "http://localhost:18265"],
                                  capture_output=True, text=True, timeout=120)
            self.assertNotEqual(bare.returncode, 0, "without the token it must be refused")
        finally:
            self.world.lab.sh(["docker", "-H", self.world.lab.docker, "rm", "-f", "stock"], check=False)
            forward.kill()

    def test_36_dashboard_gate(self):
        log = self.world.dir + "/dashboard.log"
        forward = self.background("dashboard", "live", "--port", "18300", "--no-open", log=log)
        try:
            link = self.world.wait("dashboard", "the link", 30, lambda: re.search(r"http://localhost:18300/\?muster=\S+", open(log).read()), log)[0]
            script = ("import http.client,sys,json\n"
                      "def ask(path, headers):\n c=http.client.HTTPConnection('127.0.0.1',18300,timeout=20); c.putrequest('GET',path,skip_host=True)\n"
                      " for k,v in headers.items(): c.putheader(k,v)\n c.endheaders(); r=c.getresponse(); body=r.read(); return r.status, r.getheader('Set-Cookie') or '', body\n"
                      "host={'Host':'localhost:18300'}; path='/'+sys.argv[1].split('/',3)[3]\n"
                      "print(ask('/api/version',host)[0], ask(path,{'Host':'evil.example'})[0])\n"
                      "s,cookie,_=ask(path,host); print(s, ask(path,host)[0])\n"
                      "cookie=cookie.split(';')[0]\n"
                      "s,_,body=ask('/api/version',dict(host,Cookie=cookie)); print(s, 'ray_version' in body.decode())\n"
                      "print(ask('/api/version',dict(host,Cookie=cookie,Origin='http://evil.example'))[0], ask('/api/version',{'Host':'evil.example','Cookie':cookie})[0])\n"
                      "print(ask('/api/jobs/',dict(host,Cookie=cookie))[0])\n")
            told = self.world.lab.run("user", [sys.executable, "-c", script, link], check=False)
            self.assertEqual(told.stdout.split(), ["403", "403", "303", "403", "200", "True", "403", "403", "200"], told.stdout + told.stderr[-800:])
        finally:
            forward.kill()

    # ---- looking
    def test_37_logs_and_tables(self):
        done = self.muster("logs", "live", "--lines", "5")
        self.assertIn("gcs_server.out", done.stdout)
        text = self.muster("status", "live").stdout
        for word in ("Cluster live", "head recovery on", "Ray reports:", "alive"):
            self.assertIn(word, text)
        self.assertNotIn("\x1b[", text, "colour is for terminals only")
        shown = self.terminal("status", "live")
        self.assertEqual(shown.end(), 0)
        self.assertIn("\x1b[32m", shown.text)
        self.assertEqual(json.loads(self.muster("-o", "json", "list").stdout)["items"][0]["name"], "live")
        self.assertIn("live", [c["name"] for c in yaml.safe_load(self.muster("list", "-o", "yaml").stdout)["items"]])
        for words in (("queue",), ("nodes",), ("top", "--once"), ("token", "list"), ("events",), ("job", "list"), ("whoami",), ("version",)):
            done = self.muster(*words)
            self.assertEqual(done.returncode, 0, (words, done.stderr))
            self.assertTrue(done.stdout, words)

    def test_38_every_verb_has_help_with_an_example(self):
        def verbs(path):
            out = self.muster(*path, "--help")
            self.assertEqual(out.returncode, 0, path)
            found = re.search(r"Subcommands:\n((?:  .*\n?)+)", out.stdout)
            names = re.findall(r"^  ([a-z][a-z-]*)", found[1], re.M) if found else []
            if path and not names:
                self.assertIn("Example", out.stdout, "muster %s --help has no example" % " ".join(path))
            for name in names:
                verbs(path + [name])
        verbs([])

    def test_39_completion(self):
        """The scripts are sourced by the shells they are for, and asked by the Tab key where the shell can be."""
        def script(shell):
            path = "%s/completion.%s" % (self.world.dir, shell)
            with open(path, "w") as f:
                f.write(self.muster("completion", shell).stdout)
            return path
        for shell, start, setup in (("bash", ["bash", "--norc", "-i"], ""), ("zsh", ["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D; ")):
            typed = Terminal(start, {"HOME": self.world.dir, "PS1": "> "})
            typed.type("%ssource %s; echo sour''ced\n" % (setup, script(shell)))
            typed.expect("sourced")
            typed.type("muster job s\t\t")
            typed.expect(r"status\s+stop\s+submit")
            typed.type("\x15muster up --spa\t")
            typed.expect(r"muster up --spares")
            typed.type("\x15muster nodes ad\t")
            typed.expect(r"muster nodes admit")
            typed.type("\x15exit\n")
            typed.end()
        done = subprocess.run(["fish", "-c", "source $argv[1]; complete -C 'muster job s'; complete -C 'muster up --spa'; complete -C 'muster nodes ad'", script("fish")],
                              capture_output=True, text=True, env=dict(os.environ, HOME=self.world.dir))
        self.assertEqual([line.split("\t")[0] for line in done.stdout.splitlines()], ["status", "stop", "submit", "--spares", "admit"], done.stderr)

    def test_44_events_go_on_after_a_break(self):
        """`events -f` over a killed control plane: nothing is missing, nothing comes twice."""
        log = self.world.dir + "/events.log"
        follow = self.background("events", "-f", "--from", "0", "-o", "json", log=log)  # 0: whatever comes before it is connected, too
        try:
            first = self.world.json("job", "submit", "--cluster", "live", "--no-wait", "--", "true")["id"]
            seen = lambda job: [e for e in self.events_of(log) if e["subject"] == job and e["type"] == "job.created"]  # noqa: E731
            self.world.wait("events", "the first job", 30, lambda: seen(first), log)
            self.world.musterd.kill()
            self.world.start_musterd()
            self.world.wait("restart", "serving", 30, lambda: self.world.cli("list", check=False).returncode == 0)
            second = self.world.json("job", "submit", "--cluster", "live", "--no-wait", "--", "true")["id"]
            self.world.wait("events", "the second job", 60, lambda: seen(second), log)
            numbers = [int(e["seq"]) for e in self.events_of(log) if int(e.get("seq", 0))]
            self.assertEqual(numbers, sorted(set(numbers)))
            for job in (first, second):
                self.job_ended(job)
        finally:
            follow.kill()

    def events_of(self, log):
        with open(log) as f:
            return [json.loads(line) for line in f.read().splitlines() if line.startswith("{") and line.endswith("}")]

    # ---- up
    def test_40_up_on_an_existing_name(self):
        file = self.world.dir + "/changed.yaml"
        with open(self.world.dir + "/live.yaml") as f:
            text = f.read().replace("idle_timeout_minutes: 0.15", "idle_timeout_minutes: 0.2")
        with open(file, "w") as f:
            f.write(text)
        done = self.muster("up", file, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("idleTimeoutSeconds", done.stderr)
        self.assertIn("nothing was changed", done.stderr)
        asked = self.terminal("up", file)
        asked.expect(r"Apply these changes\? \[y/N\]")
        asked.type("y\n")
        asked.expect("live running")
        self.assertEqual(asked.end(), 0)
        self.assertEqual(self.world.cluster("live")["spec"]["idleTimeoutSeconds"], "12")
        done = self.muster("up", self.world.dir + "/live.yaml", "-y", "--no-config-cache", "--no-restart", "--disable-usage-stats", "--log-style", "record")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("read anew", done.stderr)
        self.assertEqual(self.muster("up", file, "-y", "--restart-only").returncode, 2)
        done = self.muster("up", "-", "--dry-run", "--max-workers", "2", "-n", "other", "-o", "json", input=text)
        spec = json.loads(done.stdout)
        self.assertEqual((spec["name"], spec["groups"][0]["max"]), ("other", 2))

    def test_41_ctrl_c_in_up(self):
        """It says what state the cluster is in and how to go on; the cluster is still there."""
        file = self.world.dir + "/waiting.yaml"
        with open(file, "w") as f:
            f.write("cluster_name: waiting\nprovider: {type: aws}\nmax_workers: 1\navailable_node_types:\n  h: {resources: {CPU: 1, memory: 1073741824}}\n"
                    "  w: {resources: {GPU: 8, CPU: 1, memory: 1073741824}, min_workers: 1, max_workers: 1}\nhead_node_type: h\n")
        plan = self.muster("plan", file)
        self.assertEqual(plan.returncode, 0, plan.stderr)
        self.assertRegex(plan.stdout, r"waiting would wait at place 1\n  for: .+\n  expected start: not known\n")
        self.assertRegex(self.muster("plan", file, "--min-workers", "0").stdout, r"waiting would start now:\n  1 x head: community(, image there)?\n")
        up = self.terminal("up", file)
        up.expect("waiting queued, place 1")
        up.type("\x03")
        up.expect(r"waiting queued.*It goes on by itself.*muster status waiting.*muster up \S+waiting\.yaml.*muster down waiting")
        self.assertEqual(up.end(), 130)
        explained = self.muster("queue", "explain", "waiting")
        self.assertEqual(explained.returncode, 0, explained.stderr)
        self.assertIn("place 1", explained.stdout)
        self.assertIn("waiting", self.muster("queue").stdout)
        self.assertEqual(self.muster("down", file, "-y").returncode, 0)
        self.assertEqual(self.muster("status", "waiting").stdout.replace(":", "").split()[2:4], ["(cl-%s)" % self.world.json("status", "waiting")["id"].split("-")[1], "stopped"])

    def test_47_offers(self):
        """What a machine's owner asks decides who gets it, and both hear why not; the operator states no price for others."""
        file, password = self.world.dir + "/frugal.yaml", self.world.dir + "/operator.password"
        with open(file, "w") as f:
            f.write("cluster_name: frugal\nprovider: {type: aws}\nmuster: {max_price: 1.20 EUR, may_end_early: true}\nmax_workers: 0\navailable_node_types:\n"
                    "  h: {resources: {CPU: 1, memory: 1073741824}}\nhead_node_type: h\n")
        self.world.cli("user", "create", "hank", "--role", "supplier", "--org", "hall", "--password-file", password, who="admin")
        self.world.cli("login", "https://" + demo.SERVER, "--ca-sha256", self.world.ca, "--user", "hank", "--password-file", password, who="hank")
        machines = list(self.world.nodes())
        denied = self.world.cli("nodes", "offer", machines[0], "--price", "1 EUR", who="admin", check=False)
        self.assertEqual(denied.returncode, 4, denied.stderr)
        try:
            for name in machines:
                out = self.world.cli("nodes", "offer", name, "--price", "1.35 EUR", "--hours", "Mon-Sun 00:00-23:59", "--tz", "Europe/Berlin", who="hank").stdout
                self.assertIn("asks      1.35 EUR an hour", out)
            self.assertIn("1.35 EUR", self.world.cli("nodes", who="hank").stdout)
            plan = self.muster("plan", file)
            self.assertRegex(plan.stdout, r"for at most 1\.20 EUR an hour; the cheapest that fits asks 1\.35")
            up = self.muster("up", file, "-y", "--no-wait")
            self.assertEqual(up.returncode, 0, up.stderr)
            self.world.wait("refused", "the owner's count", 30, lambda: re.search(r"\n  1 may pay less than it asks", self.world.cli("nodes", "explain", machines[0], who="hank").stdout))
            for name in machines:
                self.world.cli("nodes", "offer", name, "--price", "1.20", "--hours", "always", who="hank")
            self.world.wait("hired", "a head for 1.20", 120, lambda: "costs 1.20 EUR an hour" in self.muster("status", "frugal").stdout)
            self.assertIn("together 1.35 EUR an hour; the budget of 2.70 EUR lasts 2 h", self.plan_at(machines, file))
        finally:
            for name in machines:
                self.world.cli("nodes", "offer", name, "--clear", who="hank", check=False)
            self.muster("down", file, "-y")

    def plan_at(self, machines, file):
        for name in machines:
            self.world.cli("nodes", "offer", name, "--price", "1.35 EUR", who="hank")
        return self.muster("plan", file, "--max-price", "1.40 EUR", "--budget", "2.70 EUR").stdout

    def test_42_a_file_with_everything(self):
        """file_mounts, setup commands, environment, start command flags, a whole machine for a worker; down by its file."""
        folder = self.world.dir + "/everything"
        os.makedirs(folder + "/code/sub")
        for path, text in (("code/main.py", "print(1)"), ("code/sub/key", "k"), ("code/debug.log", "no"), ("one.txt", "one"), ("extra.yaml", EXTRA)):
            with open("%s/%s" % (folder, path), "w") as f:
                f.write(text)
        os.chmod(folder + "/code/sub/key", 0o600)
        done = self.muster("up", folder + "/extra.yaml", "--yes")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for text in ("no longer published", "initialization_commands", "whole machine"):
            self.assertIn(text, done.stdout)
        try:
            slots = {s["role"]: s for s in self.world.cluster("extra")["slots"]}
            look = "cat ~/one.txt; cd ~/code && find . -type f | sort | xargs stat -c '%a %n'; cat /tmp/setup.txt /tmp/head.txt 2>/dev/null; echo $GREETING"
            for role, more in (("head", ["head"]), ("worker", [])):
                out = self.muster("exec", "extra", "--slot", slots[role]["id"], look).stdout.split()
                self.assertEqual(out, ["one644", "./main.py", "600", "./sub/key", "hello", "from", "setup", "second"] + more + ["hello"], role)
            self.assertFalse(os.path.exists("/tmp/on-the-host"))
            ray = {n["address"]: n["total"] for n in self.world.wait("report", "Ray's word of both", 60, lambda: (lambda c: c if len(c.get("rayNodes", [])) == 2 else None)(
                self.world.cluster("extra")))["rayNodes"]}
            whole, node = ray[slots["worker"]["address"]], self.world.nodes()[slots["worker"]["nodeName"]]
            self.assertEqual((whole["cpus"], whole["custom"].get("red")), (node["capacity"]["cpus"], 2))
            self.assertLess(int(whole["memoryBytes"]), int(node["capacity"]["memoryBytes"]) + 1)
            self.assertEqual(ray[slots["head"]["address"]]["cpus"], 1)
        finally:
            done = self.muster("down", folder + "/extra.yaml", "-y")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("kept:", done.stdout)

    def test_43_a_setup_command_that_fails(self):
        """The start ends with what it said, soon, whether it is the head's or the workers'; nothing is left behind."""
        base = "cluster_name: %s\nprovider: {type: aws}\nmax_workers: 1\navailable_node_types:\n  h: {resources: {CPU: 1, memory: 1073741824}}\n" \
               "  w: {resources: {CPU: 1, memory: 1073741824}, min_workers: 1, max_workers: 1%s}\nhead_node_type: h\n%s"
        bad = "['true', 'echo looking for it; echo no such package >&2; exit 7']"
        for name, of_worker, of_head, what in (("badhead", "", "head_setup_commands: %s\n" % bad, "head_failed"), ("badworker", ", worker_setup_commands: %s" % bad, "", "worker_failed")):
            file = "%s/%s.yaml" % (self.world.dir, name)
            with open(file, "w") as f:
                f.write(base % (name, of_worker, of_head))
            done = self.muster("up", file, "-y")
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            self.assertIn("%s:setup.failed" % what, done.stderr)
            for line in ("setup command 2 ended with exit code 7", "  | looking for it", "  | no such package"):
                self.assertIn(line, done.stderr)
            shown = self.muster("status", name).stdout
            self.assertIn("  | no such package", shown)
            self.world.wait("gone", "its containers' end", 60, lambda: not any(s["phase"] not in ("stopped", "failed") for s in self.world.cluster(name).get("slots", [])))

    def test_45_top(self):
        """A tenant sees his containers, live while he looks, and of the machines, which are not his, nothing."""
        busy = self.world.json("job", "submit", "--cluster", "live", "--no-wait", "--", "python3", "-c", "while True: pass")["id"]
        try:
            watched = self.terminal("top")
            watched.expect(r"live\s+head\s+(0\.[2-9]|[1-9]\.)", 60)
            watched.expect(r"\x1b\[2J[\s\S]*live\s+head\s+(0\.[2-9]|[1-9]\.)", 30)  # drawn again
            watched.type("\x03")
            self.assertEqual(watched.end(), 130)
        finally:
            self.muster("job", "stop", busy)
        seen = self.world.json("top", "--once")["items"]
        roles = sorted((c["cluster"], c["role"]) for t in seen for c in t["containers"])
        self.assertEqual(roles, sorted(("live", s["role"]) for s in self.slots()))
        for t in seen:
            self.assertEqual((t.get("cpusTotal", 0), t.get("memoryTotalBytes", "0"), t.get("diskFreeBytes", "0")), (0, "0", "0"), t)
            for c in t["containers"]:
                self.assertGreater(int(c["memoryBytes"]), 50 << 20)
                self.assertGreater(int(c["pids"]), 3)
        self.assertNotIn("MACHINE   CPU", self.muster("top", "--once").stdout)
        node = seen[0]["nodeName"]
        self.assertEqual([t["nodeName"] for t in json.loads(self.muster("top", "--node", node, "--once", "-o", "json").stdout)["items"]], [node])

    def test_46_net(self):
        """How the members reach each other, as both ends say, with a round trip; where they are is not the tenant's to know."""
        slots = sorted(s["id"] for s in self.slots())
        ways = {}
        for _ in range(60):
            net = self.world.json("net", "live")
            ways = {(p["from"], p["to"]): p for p in net.get("pairs", []) if p["path"] != "none" and p.get("rttMs", 0) > 0}
            if len(ways) >= 2:
                break
            time.sleep(1)
        self.assertEqual(sorted(m["slot"] for m in net["members"]), slots)
        self.assertGreaterEqual(len(ways), 2, net)
        (a, b), pair = next(iter(ways.items()))
        self.assertIn((b, a), ways, "both ends tell of it: %s" % net)
        self.assertIn(pair["path"], ("lan", "direct", "peer", "relay-udp", "relay"))
        self.assertGreater(int(pair["rxBytes"]), 0)
        self.assertFalse(any(x.get("address") for p in net["pairs"] for x in [p] + p.get("tries", [])), net)
        text = self.muster("net", "live").stdout
        self.assertRegex(text, r"FROM \\ TO .*")
        self.assertRegex(text, r"(lan|direct|peer|relay-udp|relay)[a-z -]* [0-9.]+ ms")
        text = self.muster("net", "explain", "live", a, b).stdout
        self.assertEqual(2, text.count("  why    "), text)
        self.assertIn("  path   %s" % pair["path"], text)
        # It is remembered of the two machines, for the planner and for who may see machines.
        names = {m["slot"]: m["nodeName"] for m in net["members"]}
        for _ in range(30):
            known = self.world.cli("net", "measured", names[a], who="admin").stdout
            if names[b] in known:
                break
            time.sleep(1)
        self.assertRegex(known, r"(?m)^%s +(lan|direct|peer|relay-udp|relay) " % re.escape(names[b]))
        self.assertIn("Nothing was carried for others", self.muster("net", "carried").stdout)
