#!/usr/bin/env python3
"""make demo: a control plane, machines behind NATs, a Ray cluster from the mission's own default.yaml, a real job, and then
what goes wrong in real life: a worker machine vanishes, the control plane is killed. Ends with one line, "DEMO OK: ..." or
"DEMO FAILED: step, why, log path", and removes everything it made. --keep leaves it up and says how to look around.
"""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
from lab import Lab, LabError  # noqa: E402

SERVER = "203.0.113.10"
MACHINES = [("gpu1", "home"), ("gpu2", "strict"), ("gpu3", "cgnat"), ("gpu4", "home"), ("gpu5", "lan:gpu1")]


class DemoError(Exception):
    def __init__(self, step, why, log=""):
        super().__init__(why)
        self.step, self.why, self.log = step, why, log


class World:
    """Control plane, relay, machines and a user's laptop in a lab; what the demo, the system tests and the benches share."""

    def __init__(self, build, name="demo", say=print):
        self.build, self.say = os.path.abspath(build), say
        self.lab = Lab(name)
        self.dir = self.lab.dir
        self.data = self.dir + "/server"
        self.musterd = self.relay = None
        self.musterd_args, self.agent_env = [], {}  # beyond the usual ones; the second by machine
        self.agents = {}
        self.lab.host("server", SERVER)
        self.lab.host("user", "203.0.113.5")

    def binary(self, name):
        return os.path.join(self.build, name)

    def wait(self, step, what, seconds, condition, log=""):
        """Polls until condition() is true; its last value is returned."""
        end = time.time() + seconds
        last = None
        while time.time() < end:
            last = condition()
            if last:
                return last
            time.sleep(0.2)
        raise DemoError(step, "%s did not happen within %d s" % (what, seconds), log)

    # ---- the server side
    def start_server(self):
        password = self.dir + "/operator.password"
        with open(password, "w") as f:
            f.write("correct horse battery staple\n")
        os.chmod(password, 0o600)
        done = self.lab.run("server", [self.binary("musterd"), "init", "--data", self.data, "--name", SERVER + ",muster", "--operator", "admin",
                                       "--password-file", password, "--relay", SERVER + ":443"])
        self.ca = re.search(r"\b[0-9a-f]{64}\b", done.stdout)[0]
        self.start_relay()
        self.start_musterd()
        self.cli("login", "https://" + SERVER, "--ca-sha256", self.ca, "--user", "admin", "--password-file", password, who="admin")
        self.cli("org", "create", "hall", who="admin")
        self.cli("org", "create", "lab", who="admin")
        self.cli("project", "create", "default", "--org", "lab", who="admin")
        self.cli("user", "create", "alice", "--role", "tenant", "--org", "lab", "--password-file", password, who="admin")
        self.cli("login", "https://" + SERVER, "--ca-sha256", self.ca, "--user", "alice", "--password-file", password)

    def start_relay(self):
        self.relay = self.lab.spawn("server", [self.binary("muster-relay"), "--listen", SERVER + ":443", "--handoff", self.dir + "/handoff.sock",
                                               "--cert", self.data + "/relay/cert.pem", "--key", self.data + "/relay/key.pem",
                                               "--controller-key", self.data + "/relay/controller.pub", "--relay-id", SERVER + ":443"],
                                    self.dir + "/relay.log")
        self.wait("relay", "the public listener", 10, lambda: os.path.exists(self.dir + "/handoff.sock"), self.relay.log)

    def start_musterd(self, env=None):
        self.musterd = self.lab.spawn("server", [self.binary("musterd"), "serve", "--data", self.data, "--handoff", self.dir + "/handoff.sock"] + self.musterd_args,
                                      self.dir + "/musterd.log", env=env)

    # ---- machines
    def add_machine(self, name, nat, egress=False, policy=None, labels=(), six=False, join=(), before_join=None):
        self.lab.machine(name, nat, six)
        if before_join:
            before_join()
        state = "%s/%s" % (self.dir, name)
        os.makedirs(state, exist_ok=True)
        token = json.loads(self.cli("join-token", "create", "--org", "hall", "-o", "json", who="admin").stdout)["secret"]
        rules = {"reserve": {"memory_bytes": 16 << 30, "cpus": 0}, "egress_allowed": egress}
        if self.lab.docker:
            rules["engine_socket"] = self.lab.docker[len("unix://"):]
        rules.update(policy or {})
        with open(state + "/policy.json", "w") as f:
            json.dump(rules, f)
        done = subprocess.run(self.lab.enter(name) + [self.binary("muster-agent"), "join", "https://" + SERVER, "--token-file", "-", "--name", name,
                                                      "--state-dir", state, "--no-service"] + [w for l in labels for w in ("--label", l)] + list(join), input=token + "\n", text=True, capture_output=True)
        if done.returncode != 0:
            raise DemoError("enrol " + name, (done.stderr or done.stdout).strip()[-500:])
        self.start_agent(name)

    def start_agent(self, name, env=None):
        state = "%s/%s" % (self.dir, name)
        self.agents[name] = self.lab.spawn(name, [self.binary("muster-agent"), "run", "--state-dir", state], state + "/agent.log", env={**self.agent_env.get(name, {}), **(env or {})} or None)

    # ---- the user
    def account(self, who):
        """The environment of one person's shell: alice is the tenant, admin the operator."""
        home = "%s/people/%s" % (self.dir, who)
        os.makedirs(home, exist_ok=True)
        return {"HOME": home, "MUSTER_CONFIG": home + "/config.json"}

    def cli(self, *words, check=True, timeout=150, who="alice", **kw):
        done = subprocess.run(self.lab.enter("user") + [self.binary("muster")] + list(words), env=dict(os.environ, **self.account(who)), text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, **kw)
        if check and done.returncode != 0:
            raise DemoError("muster " + " ".join(words[:2]), (done.stderr or done.stdout).strip()[-800:], self.dir + "/musterd.log")
        return done

    def json(self, *words, check=True, who="alice"):
        done = self.cli("-o", "json", *words, check=check, who=who)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def nodes(self):
        listed = self.json("nodes", check=False, who="admin") or {}
        return {n["name"]: n for n in listed.get("items", [])}

    def cluster(self, name):
        return self.json("status", name, check=False) or {}

    def close(self):
        self.lab.close()


class Account:
    """What the newcomer reads: one line a step, with the seconds since the start."""

    def __init__(self):
        self.began = time.time()

    def __call__(self, text):
        print("[%5.1f s] %s" % (time.time() - self.began, text), flush=True)


def job_lines(path):
    try:
        with open(path, errors="replace") as f:
            return f.read().split("\n")
    except OSError:
        return []


def story(world, say, pieces=90):
    lab = world.lab
    say("starting a container engine of our own and loading the Ray image (built from Debian and PyPI)")
    lab.start_docker()
    subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", lab.docker], check=True, stdout=subprocess.DEVNULL)
    say("control plane: musterd init, muster-relay on %s:443 (the only open port), musterd behind it" % SERVER)
    world.start_server()
    say("%d machines, each behind a NAT router of its own kind, enrol with one-use tokens" % len(MACHINES))
    for name, nat in MACHINES:
        world.add_machine(name, nat)
    world.wait("machines", "all machines online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= len(MACHINES), world.dir + "/musterd.log")
    say("online: " + ", ".join("%s (%s)" % (n, k) for n, k in MACHINES))

    say("muster up examples/default.yaml --spares 1    (the mission's own file, unmodified)")
    t0 = time.time()
    up = world.cli("up", os.path.join(ROOT, "examples/default.yaml"), "--yes", "--spares", "1")
    for line in up.stdout.strip().split("\n")[:40]:
        say("  | " + line)
    cluster = world.wait("up", "cluster running", 120, lambda: (lambda c: c if c.get("state") == "running" else None)(world.cluster("default")), world.dir + "/musterd.log")
    ready_s = time.time() - t0
    say("Ray %s cluster of 1 head and 2 workers is running after %.1f s, on an encrypted network of its own" % (cluster.get("rayVersion", "?"), ready_s))
    world.wait("spare", "the hot spare", 60, lambda: any(s.get("role") == "spare" and s.get("phase") == "standby" for s in world.cluster("default").get("slots", [])))

    log = world.dir + "/job.log"
    submit = world.json("job", "submit", "--cluster", "default", "--working-dir", os.path.join(ROOT, "examples"), "--no-wait", "--", "python3", "squares.py", str(pieces), "2")
    job = submit["id"]
    say("job %s submitted; following its log through every fault" % job)
    follower = subprocess.Popen(lab.enter("user") + [world.binary("muster"), "job", "logs", "-f", job], env=dict(os.environ, **world.account("alice")),
                                stdout=open(log, "wb"), stderr=open(world.dir + "/follow.err", "wb"), start_new_session=True)
    try:
        cluster = world.cluster("default")
        by_address = {s["address"]: s for s in cluster["slots"] if s.get("inRoster")}

        def on_worker():
            for line in job_lines(log):
                where = line.rsplit(" on ", 1)[-1].strip() if " piece " in line else ""
                if by_address.get(where, {}).get("role") == "worker":
                    return by_address[where]
            return None
        victim = world.wait("job", "a piece computed on a worker", 90, on_worker, log)
        say("pieces come in; now the cable of %s (worker %s) is pulled: packets vanish, nothing is reset" % (victim["nodeName"], victim["address"]))
        lab.pull_cable(victim["nodeName"])
        t1 = time.time()
        spare = world.wait("failover", "the spare taking over", 60, lambda: next(
            (s for s in world.cluster("default").get("slots", []) if s.get("role") == "worker" and s.get("phase") == "ready" and s["address"] not in by_address
             or s.get("role") == "worker" and s.get("phase") == "ready" and by_address.get(s["address"], {}).get("role") == "spare"), None), world.dir + "/musterd.log")
        say("spare %s is a worker of the cluster after %.1f s" % (spare["nodeName"], time.time() - t1))
        world.wait("failover", "a piece computed on the spare", 90, lambda: any(l.rstrip().endswith(" on " + spare["address"]) for l in job_lines(log)), log)
        recover_s = time.time() - t1
        say("its first piece is done %.1f s after the cable was pulled" % recover_s)

        before = len([l for l in job_lines(log) if " piece " in l])
        say("kill -9 of the control plane (musterd); the relay keeps forwarding, the job keeps computing")
        world.musterd.kill(signal.SIGKILL)
        time.sleep(6)
        world.start_musterd()
        t2 = time.time()
        world.wait("restart", "the control plane serving again", 30, lambda: world.cli("status", "default", check=False).returncode == 0, world.dir + "/musterd.log")
        say("musterd serves again %.1f s after its restart" % (time.time() - t2))
        code = follower.wait(timeout=150)
        lines = job_lines(log)
    except subprocess.TimeoutExpired:
        raise DemoError("job", "the job's log did not end within 150 s", log)
    finally:
        if follower.poll() is None:
            follower.kill()
    seen = [int(m.group(1)) for m in (re.search(r" piece (\d+) of ", l) for l in lines) if m]
    result = next((l for l in lines if l.startswith("RESULT")), "no RESULT line")
    done = world.json("job", "status", job)
    if done["state"] != "succeeded" or " right " not in result or code not in (0, None):
        raise DemoError("job", "state %s, exit code %s, log says: %s" % (done["state"], done.get("exitCode"), result), log)
    if seen != list(range(1, pieces + 1)):
        raise DemoError("log stream", "lines %s instead of 1..%d: the stream lost or repeated something" % (seen[-5:], pieces), log)
    say("log stream complete and in order (%d pieces, %d of them after the control plane died); %s" % (len(seen), len(seen) - before, result))
    final = world.cluster("default")
    restarts = [s for s in final["slots"] if s["address"] in by_address and s["address"] != victim["address"]]
    say("the other containers were never restarted: %s" % ", ".join("%s=%s" % (s["address"], s["phase"]) for s in restarts))
    down = world.cli("down", "default", "--yes")
    for line in down.stdout.strip().split("\n")[:8]:
        say("  | " + line)
    return {"ready_s": ready_s, "recover_s": recover_s, "result": result}


def look_around(world):
    env = " ".join("%s=%s" % kv for kv in world.account("alice").items())
    print("""
Left up on request. Look around as the user:
  alias m='%s env %s %s'
  m nodes; m up examples/default.yaml --yes; m status default; m attach default; m dashboard default; m top
Logs are under %s. To clean up: press Ctrl-C here.
""" % (" ".join(world.lab.enter("user")), env, world.binary("muster"), world.dir), flush=True)
    signal.pause()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default=os.path.join(ROOT, "build/release"))
    parser.add_argument("--keep", action="store_true", help="leave everything up until Ctrl-C")
    args = parser.parse_args()
    say = Account()
    if os.geteuid() != 0:
        print("DEMO FAILED: start, network namespaces and containers need root: run make demo as root or with sudo installed, no log")
        return 1
    say("the Ray image: images/ray/build (about a minute the first time, cached in /var/cache/muster)")
    subprocess.run([os.path.join(ROOT, "images/ray/build")], check=True)
    world, code = None, 1
    try:
        world = World(args.build, say=say)
        told = story(world, say)
        print("DEMO OK: 1 head + 2 workers from default.yaml in %.1f s; worker lost and replaced by a spare, task running there after %.1f s; control plane killed and "
              "restarted; %s; %.0f s in all" % (told["ready_s"], told["recover_s"], told["result"], time.time() - say.began), flush=True)
        code = 0
        if args.keep:
            look_around(world)
    except KeyboardInterrupt:
        if code:
            print("DEMO FAILED: interrupted, by Ctrl-C, no log")
    except (DemoError, LabError, subprocess.SubprocessError, KeyError, ValueError, OSError) as fault:
        step = getattr(fault, "step", type(fault).__name__)
        kept = "/var/tmp/muster-demo-failed"
        if world is not None:
            shutil.rmtree(kept, ignore_errors=True)
            os.makedirs(kept, mode=0o700)
            for folder, _, names in os.walk(world.dir):
                if "/docker" not in folder[len(world.dir):]:
                    for name in names:
                        if name.endswith((".log", ".err")):
                            shutil.copy(os.path.join(folder, name), os.path.join(kept, os.path.relpath(os.path.join(folder, name), world.dir).replace("/", "_")))
        print("DEMO FAILED: %s, %s, %s" % (step, str(fault).replace("\n", " ")[:900], kept), flush=True)
        if args.keep and world is not None:
            try:
                look_around(world)
            except KeyboardInterrupt:
                pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if world is not None:
            say("cleaning up")
            world.close()
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started us in the background
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    sys.exit(main())
