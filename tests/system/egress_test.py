"""The way out of containers, and that nothing else gets in or out: real Ray in real containers behind a home router, a public host with
files, a name server and a package index, two tenants on one machine. alpha's owner allows egress, gamma's (same LAN) does not.
"""
import base64
import hashlib
import io
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import demo  # noqa: E402
import firewalls  # noqa: E402
import nmap  # noqa: E402

BESIDE = "outage"  # that lane sleeps for ten minutes
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
PUBLIC, PUBLIC6 = "45.33.32.10", "2606:4700:aaaa::10"
NAMES = {"files.example.com": [PUBLIC, PUBLIC6], "six.example.com": [PUBLIC6], "pypi.example.com": [PUBLIC],
         "lan.example.com": ["192.168.1.11"], "router.example.com": ["192.168.1.1"], "meta.example.com": ["169.254.169.254"],
         "host.example.com": ["192.168.1.10"], "loop.example.com": ["127.0.0.1"], "overlay.example.com": ["10.201.0.1"], "home6.example.com": ["2600:1700:1:1::11"]}
OPEN = """cluster_name: open
provider: {type: local, head_ip: 10.0.0.1, worker_ips: []}
docker: {image: "muster/ray:2.60.0", container_name: ray_container}
setup_commands:
  - pip install --quiet muster-probe
  - python3 -c "import urllib.request as u; open('/tmp/ray/fetched','wb').write(u.urlopen('http://files.example.com/data.bin', timeout=20).read())"
muster:
  egress: true
  head: {CPU: 1, memory: 2147483648}
  node_labels: {rack: a}
  env: {PIP_INDEX_URL: "http://pypi.example.com/simple", PIP_TRUSTED_HOST: pypi.example.com, PIP_DISABLE_PIP_VERSION_CHECK: "1"}
"""
CLOSED = """cluster_name: closed
provider: {type: local, head_ip: 10.0.0.1, worker_ips: []}
docker: {image: "muster/ray:2.60.0", container_name: ray_container}
muster:
  head: {CPU: 1, memory: 2147483648}
  node_labels: {rack: a}
"""
# Tries to fetch from each target; prints one JSON line: target -> what came, or why not.
FETCH = """
import json, socket, sys, urllib.request
socket.setdefaulttimeout(20)
out = {}
for target in sys.argv[1:]:
    try:
        out[target] = urllib.request.urlopen("http://%s/whoami" % target).read().decode().strip()
    except Exception as fault:
        out[target] = "no: " + str(getattr(fault, "reason", fault))
print(json.dumps(out))
"""


def wheel(name, version):
    """A package as a file, made by hand: nothing but one module."""
    stem = "%s-%s" % (name.replace("-", "_"), version)
    info = stem + ".dist-info"
    files = {name.replace("-", "_") + ".py": "WHERE = 'from the package index'\n",
             info + "/METADATA": "Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (name, version),
             info + "/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += "%s,sha256=%s,%d\n" % (path, digest, len(text))
    files[info + "/RECORD"] = record + info + "/RECORD,,\n"
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as z:
        for path, text in files.items():
            z.writestr(path, text)
    return stem + "-py3-none-any.whl", blob.getvalue()


@unittest.skipUnless(os.geteuid() == 0, "needs root for network namespaces and a container engine")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release build is missing: make build")
@unittest.skipUnless(shutil.which("nft"), "needs nft")
class Egress(unittest.TestCase):
    heads = {}

    @classmethod
    def setUpClass(cls):
        subprocess.run([os.path.join(ROOT, "images/ray/build")], check=True, stdout=subprocess.DEVNULL)
        cls.world = world = demo.World(BUILD, name="egress", say=lambda text: None)
        try:
            world.lab.public("files", PUBLIC, PUBLIC6)
            cls.serve_files()
            world.lab.start_docker()
            subprocess.run([os.path.join(ROOT, "images/ray/build"), "--docker-host", world.lab.docker], check=True, stdout=subprocess.DEVNULL)
            world.start_server()
            for name, text in (("open", OPEN), ("closed", CLOSED)):
                with open("%s/%s.yaml" % (world.dir, name), "w") as f:
                    f.write(text)
            limits = {"reserve": {"memory_bytes": 8 << 30, "cpus": 0}, "egress": {"resolvers": [PUBLIC]}}
            world.add_machine("alpha", "home", policy=limits, labels=["rack=a"], six=True)
            world.add_machine("gamma", "lan:alpha", policy=limits)
            world.wait("machines", "both machines online", 60, lambda: sum(n["state"] == "online" for n in world.nodes().values()) >= 2)
            cls.before_consent = world.cli("up", world.dir + "/open.yaml", "--yes", check=False)
            cls.clusters_then = world.json("list", "--all")["items"]
            cls.consent(True)
            world.wait("consent", "the machine that allows egress", 40, lambda: world.nodes()["alpha"].get("egressAllowed"))
            world.cli("up", world.dir + "/open.yaml", "--yes")
            cls.rival("up", world.dir + "/closed.yaml", "--yes")
        except Exception:
            world.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.world.close()

    @classmethod
    def serve_files(cls):
        lab, folder = cls.world.lab, cls.world.dir + "/files"
        os.makedirs(folder + "/simple/muster-probe")
        name, data = wheel("muster-probe", "1.0")
        with open("%s/simple/muster-probe/%s" % (folder, name), "wb") as f:
            f.write(data)
        with open(folder + "/data.bin", "wb") as f:
            f.write(os.urandom(3 << 20))
        process = lab.spawn("files", [sys.executable, os.path.join(ROOT, "tests/lab/internet.py"), folder, PUBLIC, json.dumps(NAMES)], cls.world.dir + "/files.log")
        cls.world.wait("internet", "the public host", 20, lambda: "ready" in process.tail(), process.log)

    @classmethod
    def consent(cls, allowed):
        path = cls.world.dir + "/alpha/policy.json"
        with open(path) as f:
            rules = json.load(f)
        rules["egress_allowed"] = allowed
        with open(path + ".part", "w") as f:
            json.dump(rules, f)
        os.rename(path + ".part", path)

    @classmethod
    def rival(cls, *words, **kw):
        """The command as another tenant of another organisation."""
        world = cls.world
        if not os.path.exists(world.account("mallory")["MUSTER_CONFIG"]):
            world.cli("org", "create", "rivals", who="admin")
            world.cli("project", "create", "default", "--org", "rivals", who="admin")
            world.cli("user", "create", "mallory", "--role", "tenant", "--org", "rivals", "--password-file", world.dir + "/operator.password", who="admin")
            world.cli("login", "https://" + demo.SERVER, "--ca-sha256", world.ca, "--user", "mallory", "--password-file", world.dir + "/operator.password", who="mallory")
        return world.cli(*words, who="mallory", **kw)

    # ---- small things
    def container(self, cluster, part):
        """The name of a container of the cluster's head: "ray" works, "net" holds the namespace."""
        seen = self.rival("-o", "json", "status", cluster) if cluster == "closed" else self.world.cli("-o", "json", "status", cluster)
        lease = next(s["leaseId"] for s in json.loads(seen.stdout)["slots"] if s["role"] == "head")
        docker = ["docker", "-H", self.world.lab.docker]
        return next(n for n in self.world.lab.sh(docker + ["ps", "--format", "{{.Names}}"]).stdout.split() if n.endswith("-%s-%s" % (lease, part)))

    def run_in(self, cluster, script, *words, check=True):
        """A Python script in the head's container, as the tenant's program; past the control plane, so that it may be away."""
        if cluster not in self.heads:
            self.heads[cluster] = self.container(cluster, "ray")
        done = self.world.lab.sh(["docker", "-H", self.world.lab.docker, "exec", self.heads[cluster], "python3", "-c", script] + list(words), check=False, timeout=120)
        if check:
            self.assertEqual(done.returncode, 0, done.stdout[-1500:] + done.stderr[-1500:])
        return done

    def fetch(self, cluster, *targets):
        return json.loads(self.run_in(cluster, FETCH, *targets).stdout.strip().split("\n")[-1])

    def listen_in(self, cluster, port):
        """A program of the tenant that listens on every address of its container."""
        self.run_in(cluster, "import subprocess,sys; subprocess.Popen([sys.executable, '-m', 'http.server', '%d'], stdout=subprocess.DEVNULL, "
                    "stderr=subprocess.DEVNULL, start_new_session=True)" % port)
        self.world.wait(cluster, "its listener", 20, lambda: "answers" in self.run_in(
            cluster, "import socket; socket.create_connection(('127.0.0.1', %d), 2); print('answers')" % port, check=False).stdout)

    def works(self):
        return self.fetch("open", "files.example.com")["files.example.com"].startswith("you are")

    def process(self, role):
        supervisor = self.world.agents["alpha"].popen.pid
        return [int(p) for p in self.world.lab.sh(["pgrep", "-f", "-P", str(supervisor), role], check=False).stdout.split()]

    def inside(self, cluster):
        """Words that enter the network namespace of the cluster's head."""
        pid = self.world.lab.sh(["docker", "-H", self.world.lab.docker, "inspect", "--format", "{{.State.Pid}}", self.container(cluster, "net")]).stdout.strip()
        return ["nsenter", "--net=/proc/%s/ns/net" % pid]

    # ---- tests
    def test_refused_before_placement_where_nobody_grants_it(self):
        self.assertNotEqual(self.before_consent.returncode, 0)
        self.assertIn("egress_not_granted", self.before_consent.stderr)
        self.assertIn("ask a supplier to allow egress", self.before_consent.stderr)
        self.assertEqual(self.clusters_then, [], "nothing was queued or placed")

    def test_public_places_by_name_and_address(self):
        got = self.fetch("open", "files.example.com", PUBLIC, "[%s]" % PUBLIC6, "six.example.com", PUBLIC + ":8080")
        for target, said in got.items():
            self.assertRegex(said, r"^you are (::ffff:203\.0\.113\.101|2600:1700:1:1::)", "%s: %s" % (target, said))

    def test_setup_and_runtime_env_install_packages(self):
        """pip in setup_commands and in a job's runtime_env, and a file fetched by a setup command."""
        done = self.run_in("open", "import muster_probe, hashlib; print(muster_probe.WHERE); print(hashlib.sha256(open('/tmp/ray/fetched','rb').read()).hexdigest())")
        with open(self.world.dir + "/files/data.bin", "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        self.assertEqual(done.stdout.split("\n")[:2], ["from the package index", digest])
        job = self.world.cli("job", "submit", "--cluster", "open", "--runtime-env-json", json.dumps({"pip": ["muster-probe==1.0"]}), "--",
                             "python3", "-c", "import muster_probe,sys; print(muster_probe.WHERE, 'virtualenv' in sys.prefix)", check=False, timeout=150)
        self.assertIn("from the package index True", job.stdout, job.stdout[-1500:] + job.stderr[-1500:])
        self.assertEqual(job.returncode, 0)

    def test_inner_places_are_refused_by_address_and_by_name(self):
        lab = self.world.lab
        servers = []
        for place in ("alpha", "gamma", lab.gateways["alpha"][0]):  # the machine, its neighbour, the router: all would answer
            servers.append(lab.spawn(place, [sys.executable, os.path.join(ROOT, "tests/lab/internet.py"), self.world.dir + "/files",
                                             "127.0.0.1", "{}"], "%s/inner-%s.log" % (self.world.dir, place)))
        try:
            for server in servers:
                self.world.wait("inner", "a service of the home network", 20, lambda: "ready" in server.tail(), server.log)
            # The machine's neighbour is really there: the host itself reaches it.
            self.assertIn("you are", lab.run("alpha", [sys.executable, "-c", FETCH, "192.168.1.11"]).stdout)
            six = "2600:1700:1:1::"
            targets = ["192.168.1.10", "192.168.1.11", "192.168.1.1", "[%s10]" % six, "[%s11]" % six, "[%s1]" % six, "203.0.113.101", demo.SERVER, "169.254.169.254",
                       "100.64.0.1", "10.201.0.1:8265", "10.201.0.2:8265", "0.0.0.0:8079", "[::ffff:192.168.1.11]", "[64:ff9b::c0a8:10b]", "[2002:c0a8:10b::1]", "[fe80::1]", "224.0.0.1",
                       "lan.example.com", "router.example.com", "host.example.com", "meta.example.com", "loop.example.com", "home6.example.com",
                       "nas", "printer.local", "metadata.google.internal"]
            got = self.fetch("open", *targets)
            self.assertEqual({t: said for t, said in got.items() if not said.startswith("no: ") and "10.201.0.1" not in t}, {})
            self.assertTrue(self.works())
        finally:
            for server in servers:
                server.kill()

    def test_mail_ports_are_refused(self):
        script = "import socket\nfor port in (25, 465, 587):\n s=socket.create_connection(('%s', port), 10)\n print(port, repr(s.recv(1)))" % PUBLIC
        done = self.run_in("open", script, check=False)
        self.assertRegex(done.stderr + done.stdout, "reset|refused|no route")

    def test_without_consent_there_is_no_way_at_all(self):
        got = self.fetch("closed", "files.example.com", PUBLIC, "[%s]" % PUBLIC6, "192.168.1.11", "192.168.1.1", "169.254.169.254")
        self.assertEqual([t for t, said in got.items() if not said.startswith("no: ")], [])
        self.assertIn("unreachable", got[PUBLIC])
        inside = self.inside("closed")
        links = json.loads(self.world.lab.sh(inside + ["ip", "-j", "link"]).stdout)
        self.assertEqual(sorted(l["ifname"] for l in links), ["lo", "muster0"])
        routes = self.world.lab.sh(inside + ["ip", "-4", "route", "show", "table", "all", "type", "unicast"]).stdout.strip().split("\n")
        self.assertEqual([r.split()[:3] for r in routes], [["10.201.0.0/16", "dev", "muster0"]])
        self.assertEqual(self.world.lab.sh(inside + ["ip", "-6", "route", "show", "default"]).stdout.strip(), "")
        self.assertEqual(self.world.lab.sh(inside + ["nft", "list", "ruleset"]).stdout.strip(), "")

    def test_with_consent_the_namespace_holds_no_more(self):
        inside = self.inside("open")
        links = json.loads(self.world.lab.sh(inside + ["ip", "-j", "link"]).stdout)
        self.assertEqual(sorted(l["ifname"] for l in links), ["lo", "muster0"])
        routes = self.world.lab.sh(inside + ["ip", "-4", "route", "show", "table", "all", "type", "unicast"]).stdout.strip().split("\n")
        self.assertEqual(sorted(tuple(r.split()[:3]) for r in routes), [("10.201.0.0/16", "dev", "muster0"), ("default", "dev", "lo")])
        six = self.world.lab.sh(inside + ["ip", "-6", "route", "show", "default"]).stdout.strip()
        self.assertRegex(six, "^default dev lo ")
        held = {info["family"]: info["local"] for link in json.loads(self.world.lab.sh(inside + ["ip", "-j", "addr", "show", "dev", "muster0"]).stdout)
                for info in link["addr_info"] if info["scope"] == "global"}
        four = int(ipaddress.ip_address(held["inet"]))
        self.assertEqual(ipaddress.ip_address(held["inet6"]), ipaddress.ip_address((0xfd4d7573746572 << 72) | four), "the same address behind the prefix")
        # The listeners of the way out are on loopback alone: no other member of the overlay reaches them.
        table = self.world.lab.sh(inside + ["nft", "list", "table", "inet", "muster"]).stdout
        ports = set(re.findall(r"redirect to :(\d+)", table))
        self.assertEqual(len(ports), 4, table)
        places = {}
        for line in self.world.lab.sh(inside + ["ss", "-Hltun"]).stdout.strip().split("\n"):
            address, port = line.split()[4].rsplit(":", 1)
            places.setdefault(port, set()).add(address)
        for port in ports:
            self.assertLessEqual(places[port], {"127.0.0.1", "[::1]"}, port)

    def test_it_comes_back_after_the_process_was_killed(self):
        self.assertTrue(self.works())
        old = self.process("egress-process")
        self.assertEqual(len(old), 1)
        with open("/proc/%d/status" % old[0]) as f:
            status = f.read()
        self.assertRegex(status, r"Uid:\s+64794\s+64794\s+64794")
        self.assertRegex(status, r"CapEff:\s+0+\n")
        self.assertRegex(status, r"NoNewPrivs:\s+1")
        self.assertRegex(status, r"Seccomp:\s+2")
        os.kill(old[0], signal.SIGKILL)
        self.world.wait("egress", "the restarted process", 15, lambda: [p for p in self.process("egress-process") if p not in old])
        self.world.wait("egress", "the way out again", 20, self.works)

    def test_it_comes_back_after_privd_was_killed(self):
        for pid in self.process("privd-process"):
            os.kill(pid, signal.SIGKILL)
        self.assertTrue(self.works(), "privd is needed for changes only")
        self.world.wait("privd", "its restart", 15, lambda: self.process("privd-process"))
        self.world.lab.run("alpha", ["nft", "delete", "table", "inet", "muster"], check=False)
        self.world.wait("privd", "the table set again by the new privd", 20, lambda: self.table())
        self.assertTrue(self.works())

    def table(self):
        return self.world.lab.run("alpha", ["nft", "-s", "list", "table", "inet", "muster"], check=False).stdout

    def test_a_flushed_table_comes_back_and_others_stay(self):
        lab = self.world.lab
        lab.run("alpha", ["nft", "-f", "-"], input="table inet ufw { chain user-output { type filter hook output priority 0; ip daddr 45.33.99.99 drop; }\n}\n")
        try:
            before = self.table()
            self.assertIn("meta skuid 64794", before)
            lab.run("alpha", ["nft", "delete", "table", "inet", "muster"])
            self.world.wait("firewall", "the table set again", 15, self.table)
            self.assertIn("45.33.99.99", lab.run("alpha", ["nft", "list", "table", "inet", "ufw"]).stdout)
            self.assertTrue(self.works())
        finally:
            lab.run("alpha", ["nft", "delete", "table", "inet", "ufw"], check=False)

    def test_the_doctor_names_a_rule_of_somebody_else(self):
        lab = self.world.lab
        doctor = [self.world.binary("muster-agent"), "doctor", "--state-dir", self.world.dir + "/alpha"]
        self.assertRegex(lab.run("alpha", doctor, check=False).stdout, r"ok     firewall: no rule stops our processes\nok     egress: allowed; names by %s" % PUBLIC)
        lab.run("alpha", ["nft", "-f", "-"], input="table inet ufw { chain user-output { type filter hook output priority 0; meta skuid 64794 tcp dport 443 drop; }\n}\n")
        try:
            said = lab.run("alpha", doctor, check=False).stdout
            self.assertRegex(said, r"BROKEN firewall: table inet ufw, chain user-output stops the egress process .*tcp dport 443 drop")
        finally:
            lab.run("alpha", ["nft", "delete", "table", "inet", "ufw"], check=False)

    def doctor(self):
        return self.world.lab.run("alpha", [self.world.binary("muster-agent"), "doctor", "--state-dir", self.world.dir + "/alpha"], check=False).stdout

    def beside(self, firewall):
        """With that one beside ours: our table comes without a change to theirs, and stays or comes back when theirs is set again."""
        lab, ours = self.world.lab, self.table()
        self.assertIn("meta skuid 64794", ours)

        def comes_back():
            theirs = firewalls.rules(lab, "alpha")
            self.assertGreater(theirs.count('"rule"'), 5, "it has rules of its own: " + theirs[:400])
            lab.run("alpha", ["nft", "delete", "table", "inet", "muster"])
            try:
                self.world.wait("firewall", "our table set again", 15, lambda: self.table() == ours)
            except demo.DemoError:
                self.fail("not set again; it was %s and is %s; %s" % (ours, self.table(), self.world.agents["alpha"].tail(30)))
            self.assertEqual(firewalls.rules(lab, "alpha"), theirs)
            return theirs
        comes_back()
        firewall.reload()
        self.world.wait("firewall", "our table after theirs was set again", 15, lambda: self.table() == ours)
        theirs = comes_back()
        self.assertTrue(self.works())
        self.assertIn("ok     firewall: no rule stops our processes", self.doctor())
        self.assertEqual(firewalls.rules(lab, "alpha"), theirs, "the doctor leaves nothing")

    def stopped(self, said, whom, by):
        """What the doctor says of that process, and its repair."""
        lines = said.split("\n")
        for n, line in enumerate(lines):
            if re.match(r"BROKEN firewall: %s: table .* stops %s on its way to" % (by, whom), line):
                return line + "\n" + "\n".join(lines[n + 1:n + 2])
        self.fail("the doctor names nothing of %s that stops %s: %s" % (by, whom, said))

    def test_ufw_beside_ours(self):
        with firewalls.Ufw(self.world.lab, "alpha", self.world.dir + "/ufw") as ufw:
            self.beside(ufw)
            ufw.run("deny", "out", "proto", "tcp", "to", "any", "port", "443")
            said = self.doctor()
            self.assertIn("ufw insert 1 allow out proto tcp to %s port 443" % demo.SERVER, self.stopped(said, "the egress process", "ufw"))
            self.assertNotIn("netd's UDP", said)
            ufw.run("delete", "deny", "out", "proto", "tcp", "to", "any", "port", "443")
            ufw.run("default", "deny", "outgoing")  # no rule at all, but what happens without one
            said = self.doctor()
            self.assertIn("ufw insert 1 allow out proto udp to %s port 443" % demo.SERVER, self.stopped(said, "netd's UDP", "ufw"))
            # The repair is one.
            for protocol in ("tcp", "udp"):
                ufw.run("allow", "out", "proto", protocol, "to", demo.SERVER, "port", "443")
            self.assertIn("ok     firewall: no rule stops our processes", self.doctor())

    def test_firewalld_beside_ours(self):
        with firewalls.Firewalld(self.world.lab, "alpha", self.world.dir + "/firewalld") as firewalld:
            self.beside(firewalld)
            for words in (["--new-policy", "out"], ["--policy", "out", "--add-ingress-zone", "HOST"], ["--policy", "out", "--add-egress-zone", "ANY"],
                          ["--policy", "out", "--add-rich-rule", 'rule family="ipv4" port port="443" protocol="udp" drop']):
                firewalld.run("--permanent", *words)
            firewalld.reload()
            said = self.doctor()
            self.assertRegex(self.stopped(said, "netd's UDP", "firewalld"), r"let user 6479\d out to %s port 443/udp; .*firewall-cmd --list-all-policies" % re.escape(demo.SERVER))
            self.assertNotIn("stops the egress process", said)
            firewalld.run("--permanent", "--policy", "out", "--set-target", "REJECT")
            firewalld.run("--complete-reload")
            self.world.wait("firewall", "our table after theirs was made anew", 15, lambda: "meta skuid 64794" in self.table())
            self.stopped(self.doctor(), "the egress process", "firewalld")

    def test_dockers_rules_beside_ours(self):
        with firewalls.Docker(self.world.lab, "alpha", self.world.dir + "/engine") as docker:
            self.beside(docker)
            self.assertIn("policy drop", self.world.lab.run("alpha", ["nft", "list", "chain", "ip", "filter", "FORWARD"]).stdout)
            # What people put there is for what Docker forwards: nothing of ours is forwarded by the kernel.
            self.world.lab.run("alpha", ["iptables", "-I", "DOCKER-USER", "-j", "DROP"])
            self.assertTrue(self.works())
            self.assertIn("ok     firewall: no rule stops our processes", self.doctor())
            self.world.lab.run("alpha", ["iptables", "-I", "OUTPUT", "-p", "tcp", "--dport", "443", "-j", "DROP"])
            self.assertIn("iptables -I OUTPUT -m owner --uid-owner 64794 -p tcp", self.stopped(self.doctor(), "the egress process", "iptables"))

    def test_the_owner_takes_the_consent_back(self):
        self.consent(False)
        try:
            self.world.wait("owner", "the way closed", 20, lambda: not self.works())
        finally:
            self.consent(True)
        self.world.wait("owner", "the way open again", 20, self.works)

    def test_counters_are_seen(self):
        self.fetch("open", PUBLIC, PUBLIC + ":25", "lan.example.com")
        done = self.world.lab.run("alpha", [self.world.binary("muster-agent"), "egress", "--state-dir", self.world.dir + "/alpha"])
        self.assertRegex(done.stdout, r"lease-\d+ .*open")
        self.assertRegex(done.stdout, r"dns\.private \d+")
        self.assertRegex(done.stdout, r"\bport \d+")

    def nmap_from(self, place):
        """A function that runs a command there: on a machine of the lab, or as root in the namespace of a cluster's head."""
        enter = self.inside(place) if place in ("open", "closed") else self.world.lab.enter(place)
        # Ahead of what else goes on here: nmap takes late answers for lost ones, and slows down.
        return lambda command: self.world.lab.sh(enter + ["nice", "-n", "-10"] + command, check=False, timeout=300)

    def test_nobody_else_gets_in_or_out(self):
        """nmap over all TCP ports and the thousand most used UDP ports, while Ray is busy: from the LAN, from the internet, from another
        tenant's container on the same machine, where the tenant's own program tries the TCP ports as well."""
        busy = self.world.lab.spawn("user", [self.world.binary("muster"), "exec", "open", "--", "python3", "-c", BUSY], self.world.dir + "/busy.log", env=self.world.account("alice"))
        scan = os.path.join(ROOT, "tests/lab/scan.py")
        alpha, router, six = self.world.lab.addresses["alpha"], "203.0.113.101", "2600:1700:1:1::10"
        witness = self.world.lab.spawn("alpha", [sys.executable, "-u", "-c", WITNESS, alpha, "45678", "123"], self.world.dir + "/witness.log")
        try:
            self.world.wait("busy", "Ray at work", 40, lambda: "now busy\n" in busy.tail(), busy.log)
            self.world.wait("witness", "its ports open", 30, lambda: "ready" in witness.tail(), witness.log)
            began = time.time()
            lan, internet = self.nmap_from("gamma"), self.nmap_from("server")
            # The LAN sees the witness and nothing else.
            seen = nmap.tcp(lan, alpha)
            self.assertEqual((seen.open, seen.scanned), ({"tcp/45678"}, {"tcp": 65535}), seen)
            seen = nmap.udp(lan, alpha)
            self.assertEqual((seen.open, seen.scanned), ({"udp/123"}, {"udp": 1000}), seen)
            seen = nmap.tcp(lan, six)
            self.assertEqual((seen.open, seen.scanned), (set(), {"tcp": 65535}), seen)
            # netd's own sockets are there, and say nothing to strangers.
            own = {line.split()[3].rsplit(":", 1)[1] for line in self.world.lab.run("alpha", ["ss", "-Hlun"]).stdout.strip().split("\n")} - {"123"}
            self.assertTrue(own)
            seen = nmap.scan(lan, alpha, "-sU", "-p", ",".join(sorted(own)))
            self.assertEqual(seen.state, {"udp/" + port: "open|filtered" for port in own})
            seen = nmap.tcp(internet, router, silent=True)
            self.assertEqual((seen.open, seen.scanned), (set(), {"tcp": 65535}), seen)
            seen = nmap.udp(internet, router)
            self.assertEqual((seen.open, seen.scanned), (set(), {"udp": 1000}), seen)
            with open(scan) as f:
                text = f.read()
            # Each tenant's own ports answer it, so the scan can see; the other's, under the same overlay address, do not.
            for cluster, port in (("closed", 45679), ("open", 45680)):
                self.listen_in(cluster, port)
            for cluster, mine, theirs in (("closed", 45679, 45680), ("open", 45680, 45679)):
                own = nmap.tcp(self.nmap_from(cluster), "10.201.0.1").open
                self.assertLessEqual({"tcp/6379", "tcp/%d" % mine}, own, cluster)
                self.assertNotIn("tcp/%d" % theirs, own, cluster)
                for target, last in ((alpha, 65535), ("192.168.1.11", 2048), ("192.168.1.1", 2048), (router, 2048), ("169.254.169.254", 2048), ("10.201.0.2", 65535)):
                    got = self.run_in(cluster, text, target, "1", str(last), "--wait", "0.5").stdout.strip().split("\n")
                    self.assertEqual(got, ["scanned %d" % last], "%s reaches %s: %s" % (cluster, target, got[:5]))
                self.assertEqual(nmap.udp(self.nmap_from(cluster), [alpha, "192.168.1.11", "192.168.1.1", router, "10.201.0.2"], 100).open, set(), cluster)
            self.took = time.time() - began
            print("     scans took %.1f s" % self.took, flush=True)
            self.assertTrue(busy.alive(), "Ray was not busy all the time: " + busy.tail())
        finally:
            witness.kill()
            busy.kill()


# Answers on one TCP port and one UDP port of an address.
WITNESS = """
import socket, sys, threading
tcp = socket.create_server((sys.argv[1], int(sys.argv[2])))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((sys.argv[1], int(sys.argv[3])))
def echo():
    while True:
        data, whose = udp.recvfrom(2048)
        udp.sendto(data or b'x', whose)
threading.Thread(target=echo, daemon=True).start()
print('ready', flush=True)
while True:
    tcp.accept()[0].close()
"""
BUSY = """
import ray, time
ray.init(address='auto', log_to_driver=False, logging_level='error')
@ray.remote
def work(n):
    end = time.time() + 0.05
    while time.time() < end:
        n = (n * 7 + 1) % 1000003
    time.sleep(0.15)  # busy enough: a scan beside it sees every port, and other tests have the processor too
    return n
print('now', 'busy', flush=True)
end = time.time() + 600
while time.time() < end:
    ray.get([work.remote(i) for i in range(2)])
"""


if __name__ == "__main__":
    unittest.main()
