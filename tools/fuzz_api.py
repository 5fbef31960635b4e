#!/usr/bin/env python3
"""Fuzzes the REST API of a real musterd with schemathesis; ends with one plain line, FUZZ OK or FUZZ FAILED.

    tools/fuzz_api.py [--cases N] [--seed N] [--build build/release] [--operation NAME]...

A musterd of its own serves in a temporary folder. Its OpenAPI document is asked as every role and without a
token; requests are what the schema allows, what it does not, and working ones with parts of either. Checked of every answer: no
5xx, a status and a body that the document states, and for those without a token 401. Members of organisations also use ids and names of another
organisation: these must look exactly like missing ones, nothing of the other's may be in an answer, and what the other
organisation has is the same at the end. Before all that a walk makes every operation succeed for every role that may (a hand-written
table); exec and forward need a running container and are walked by tests/system/demo_test.py. make fuzz-api CASES=N
"""
import argparse
import base64
import hashlib
import hmac
import http.client
import json
import os
import random
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
import venv

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, "build/fuzz-api-venv")
SCHEMATHESIS = "schemathesis==4.32.5"
PASSWORD = "correct horse battery"
OTHER = "zebra"  # in every name of the other organisation; no word of the API
ROLES = ("operator", "supplier", "tenant", "auditor", "tenant-admin", "tenant-viewer", "supplier-member")

# Who may, by hand: a role that is named here must reach a 2xx. The organisation "mine" has an administrator, so "tenant" is a member there.
ALL, SUPPLIERS = set(ROLES), {"supplier", "supplier-member"}
USERS, RUN = {"tenant-admin", "tenant", "tenant-viewer"}, {"tenant-admin", "tenant"}  # of machines
WORK, LOOK, ADMIN = RUN | {"operator"}, USERS | {"operator", "auditor"}, {"operator", "tenant-admin"}
MACHINES, LEADS = {"operator", "supplier", "tenant-admin"}, {"operator", "supplier", "tenant-admin"}  # which there are; accounts of theirs
MAY = {
    "BeginSso": set(), "FinishSso": set(),  # want an identity provider: tests/system/oidc_test.py
    "GetServer": ALL, "Login": ALL, "RenewLogin": ALL, "Logout": ALL, "WhoAmI": ALL, "ChangePassword": ALL, "CreateOrg": {"operator"}, "ListOrgs": ALL,
    "CreateProject": ADMIN, "ListProjects": LOOK, "GetOrgQuota": ALL, "SetOrgQuota": {"operator"}, "GetProjectQuota": LOOK,
    "GetOrgImagePolicy": LOOK, "SetOrgImagePolicy": ADMIN, "GetProjectImagePolicy": LOOK, "SetProjectImagePolicy": ADMIN, "ListImageScans": LOOK,
    "SetProjectQuota": ADMIN, "CreatePrincipal": LEADS, "ListPrincipals": ALL, "DisablePrincipal": LEADS, "ChangeRole": ADMIN,
    "CreateApiToken": ALL, "ListApiTokens": ALL, "RevokeApiToken": ALL, "CreateJoinToken": MACHINES,
    "ListJoinTokens": ALL, "RevokeJoinToken": MACHINES, "Enroll": ALL, "ListNodes": ALL,
    "GetNode": ALL, "ActOnNode": ALL - {"auditor", "tenant-viewer"}, "SetNodeOffer": {"supplier", "tenant-admin"},
    "ExplainNode": ALL, "GetNodeWays": ALL, "ListTelemetry": ALL, "PlanCluster": RUN,
    "CreateCluster": RUN, "ListClusters": LOOK, "GetCluster": LOOK, "UpdateCluster": WORK, "StopCluster": WORK,
    "ListQueue": ALL, "CreateJob": RUN, "ListJobs": LOOK, "GetJob": LOOK, "StopJob": WORK, "JobLogs": USERS,
    "PutRegistry": {"tenant-admin"}, "ListRegistries": RUN, "DeleteRegistry": {"tenant-admin"}, "PutBlob": RUN,
    "StreamEvents": ALL, "GetTotp": ALL, "EnrolTotp": ALL, "ConfirmTotp": ALL, "DisableTotp": ALL, "ResetTotp": {"operator"},
    "GetClusterNet": LOOK, "ListCarried": ALL, "ListAudit": ALL, "ListRefusals": ALL, "GetJournalHead": {"operator", "auditor"},
    "GetHeadroom": {"operator", "auditor"}, "SetHeadroom": {"operator"}, "GetTiers": {"operator", "auditor"}, "SetTier": {"operator"},
    "CreateGrant": {"tenant-admin"}, "BreakGlass": {"operator"}, "ListGrants": ALL, "RevokeGrant": ADMIN,
    "CreateServiceAccount": MACHINES, "ListServiceAccounts": ALL, "ListServiceTokens": ALL,
    "CreateServiceToken": MACHINES, "DisableServiceAccount": MACHINES,
}
# What must be refused, by hand, where it is asked as the walk asks it: the lines between roles of one organisation.
REFUSED = {
    "tenant": {"CreateProject", "SetProjectQuota", "SetOrgImagePolicy", "SetProjectImagePolicy", "CreatePrincipal", "DisablePrincipal", "ChangeRole", "CreateJoinToken",
               "RevokeJoinToken", "SetNodeOffer", "PutRegistry", "DeleteRegistry", "CreateGrant", "RevokeGrant", "CreateServiceAccount", "CreateServiceToken", "DisableServiceAccount"},
    "supplier-member": {"CreatePrincipal", "DisablePrincipal", "ChangeRole", "CreateJoinToken", "RevokeJoinToken", "SetNodeOffer", "CreateServiceAccount", "CreateServiceToken",
                        "DisableServiceAccount"},
    "supplier": {"ChangeRole"},
}
REFUSED["tenant-viewer"] = REFUSED["tenant"] | {"ActOnNode", "PlanCluster", "CreateCluster", "UpdateCluster", "StopCluster", "CreateJob", "StopJob", "ListRegistries", "PutBlob"}
NOT_WALKED = {"ExecCluster", "ForwardCluster"}
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
OPEN = {"GetServer", "Login", "RenewLogin", "BeginSso", "FinishSso", "Enroll"}  # without a token


def inside_venv():
    """Starts this program again under a Python that has schemathesis, made on first use."""
    python = os.path.join(VENV, "bin/python")
    stamp = os.path.join(VENV, SCHEMATHESIS)
    if not os.path.exists(stamp):
        print("installing %s into build/fuzz-api-venv" % SCHEMATHESIS, flush=True)
        venv.create(VENV, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", SCHEMATHESIS], check=True)
        open(stamp, "w").close()
    os.execv(python, [python, os.path.abspath(__file__)] + sys.argv[1:])


def totp_code(secret):
    """The code of now (RFC 6238: SHA-1, 30 seconds, six digits) of a base32 secret."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    digest = hmac.new(key, struct.pack(">Q", int(time.time()) // 30), "sha1").digest()
    at = digest[-1] & 15
    return "%06d" % ((struct.unpack(">I", digest[at:at + 4])[0] & 0x7fffffff) % 1000000)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        self.text = body.decode("utf-8", "replace")

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Server:
    """A musterd in a folder, and one kept-alive connection to it."""

    def __init__(self, build, folder):
        self.folder, self.port = folder, free_port()
        with open(folder + "/password", "w") as f:
            f.write(PASSWORD + "\n")
        data = folder + "/data"
        subprocess.run([build + "/musterd", "init", "--data", data, "--name", "127.0.0.1", "--password-file", folder + "/password"],
                       check=True, stdout=subprocess.DEVNULL)
        self.tls = ssl.create_default_context(cafile=data + "/ca.pem")
        self.log = open(folder + "/log", "w+")
        self.process = subprocess.Popen([build + "/musterd", "serve", "--data", data, "--listen", "127.0.0.1:%d" % self.port], stdout=self.log, stderr=self.log)
        self.connection = None
        for _ in range(600):
            try:
                self.connect()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("musterd does not serve after 60 s; see %s/log" % folder)

    def connect(self):
        self.connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.tls)
        self.connection.connect()

    def alive(self):
        return self.process.poll() is None

    def send(self, method, target, headers=None, body=None, stream=False):
        """One request; of a stream only the head and what came with it are read."""
        for attempt in (0, 1):
            try:
                if self.connection is None:
                    self.connect()
                self.connection.putrequest(method, target, skip_accept_encoding=True)
                for name, value in (headers or {}).items():
                    self.connection.putheader(name, value)
                if body is not None or method in ("POST", "PUT"):
                    self.connection.putheader("Content-Length", str(len(body or b"")))
                self.connection.endheaders(body or None)
                answer = self.connection.getresponse()
                if stream and answer.status == 200:
                    out = Answer(200, dict(answer.getheaders()), b"")
                    self.close()
                    return out
                out = Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
                if answer.will_close:
                    self.close()
                return out
            except (OSError, http.client.HTTPException):
                self.close()
                if attempt or not self.alive():
                    raise
        return None

    def close(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def stop(self):
        self.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class World:
    """Accounts of every role and their objects; tenant "mine" is who asks, tenant "other" is whose objects must stay hidden."""

    def __init__(self, server):
        self.server = server
        self.tokens = {}
        self.failures = {}  # (operation, role, what) -> example
        self.n = 0
        self.log_in("operator", "admin")
        self.orgs = {name: self.admin("orgs", {"name": name}) for name in ("mine", OTHER + "-org", "sup", "spare")}
        self.account("supplier", "supplier", "sup")
        self.account("supplier-member", "supplier-member", "sup")
        self.account("tenant", "tenant", "mine")
        self.account("auditor", "auditor", "spare")
        self.account("other", "tenant", OTHER + "-org")
        self.own = self.objects("tenant", "mine", "mine")  # while there is no administrator members may all of it
        self.foreign = self.objects("other", OTHER + "-org", OTHER)
        self.account("tenant-admin", "tenant-admin", "mine")
        self.account("tenant-viewer", "tenant-viewer", "mine")
        self.spare = {"user": self.admin("users", {"name": "spare-user", "role": "tenant", "org": "spare", "password": PASSWORD})["id"]}
        self.node = self.enrol("supplier")
        self.before = self.picture()

    def must(self, method, path, role, body=None):
        answer = self.ask(method, path, role, body)
        if answer.status // 100 != 2:
            raise RuntimeError("%s %s as %s: %d %s" % (method, path, role or "nobody", answer.status, answer.text[:400]))
        return answer.json()

    def log_in(self, role, name):
        """A login's token ends within minutes, and a run may be long: it asks with an API token."""
        self.tokens[role] = self.must("POST", "login", "", {"name": name, "password": PASSWORD})["token"]
        scopes = {"scopes": ["read"]} if role == "tenant-viewer" else {}
        self.tokens[role] = self.must("POST", "tokens", role, dict(scopes, label="run"))["secret"]

    def admin(self, path, body):
        return self.must("POST", path, "operator", body)

    def ask(self, method, path, role="", body=None, stream=False):
        headers = {"Content-Type": "application/json"} if body is not None and not isinstance(body, bytes) else {}
        if role:
            headers["Authorization"] = "Bearer " + self.tokens[role]
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return self.server.send(method, "/api/v1/" + path, headers, data, stream)

    def fresh(self, word="w"):
        self.n += 1
        return "%s-%d" % (word, self.n)

    def account(self, role, kind, org):
        name = self.fresh(role)
        made = self.admin("users", {"name": name, "role": kind, "org": org, "password": PASSWORD})
        self.log_in(role, name)
        return made

    def spec(self, name):
        return {"name": name, "image": "muster/ray:2.60.0", "head": {"resources": {"cpus": 1}}, "groups": [{"name": "w", "min": 1, "max": 2}]}

    def objects(self, role, org, word):
        """One of everything that a tenant has, by kind of id."""
        out = {"orgs": self.orgs[org]["id"]}
        out["projects"] = self.must("POST", "projects", role, {"org": org, "name": word + "-project"})["id"]
        out["clusters"] = self.must("POST", "clusters", role, {"spec": self.spec(word + "-cluster")})["id"]
        out["jobs"] = self.must("POST", "jobs", role, {"name": word + "-job", "entrypoint": "true", "cluster": word + "-cluster"})["id"]
        out["tokens"] = self.must("POST", "tokens", role, {"label": word})["id"]
        out["join-tokens"] = self.must("POST", "join-tokens", role, {"labels": {"of": word}})["id"]
        self.must("POST", "registries", role, {"host": word + ".example", "username": word, "password": "p"})
        out["registries"] = word + ".example"
        out["users"] = self.must("GET", "whoami", role)["id"]
        out["service-accounts"] = self.must("POST", "service-accounts", role, {"name": word + "-program"})["id"]
        out["nodes"] = self.enrol(role, word)
        out["blob"] = self.must("POST", "blobs", role, word.encode() * 10)["digest"]
        return out

    def csr(self):
        key, request = self.server.folder + "/key.pem", self.server.folder + "/csr.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, stderr=subprocess.DEVNULL)
        subprocess.run(["openssl", "req", "-new", "-key", key, "-subj", "/CN=box", "-out", request], check=True, stderr=subprocess.DEVNULL)
        return open(request).read()

    def enrol_body(self, role, word="box"):
        secret = self.must("POST", "join-tokens", role, {})["secret"]
        return {"token": secret, "csrPem": self.csr(), "name": self.fresh(word), "facts": {"hostname": word, "arch": "x86_64", "os": "linux",
                "capacity": {"cpus": 4, "memoryBytes": "8000000000", "diskBytes": "50000000000"}, "runtimes": ["docker"], "bootId": "b"}}

    def enrol(self, role, word="box"):
        return self.must("POST", "enroll", "", self.enrol_body(role, word))["nodeId"]

    def picture(self):
        """What the other organisation has, without what time and queues change."""
        moving = {"queue", "seq", "reason", "held", "stateSince", "state", "expiresAt", "position", "startedAt", "notHired"}

        def still(value):
            if isinstance(value, dict):
                return {k: still(v) for k, v in value.items() if k not in moving}
            return [still(v) for v in value] if isinstance(value, list) else value
        paths = ("orgs", "projects", "clusters", "jobs", "tokens", "join-tokens", "nodes", "registries", "users", "service-accounts")
        return {path: still(self.must("GET", path + "?limit=1000", "other")) for path in paths}

    def fail(self, operation, role, what, example):
        key = (operation, role, what)
        if key not in self.failures:
            self.failures[key] = example[:1500]
            print("FAIL %s as %s: %s\n     %s" % (operation, role or "nobody", what, example[:1500]), flush=True)


def examples(w):
    """operation -> (path ids by kind, body) that works for the tenant; the fuzzer changes parts of these."""
    spec = w.spec("fuzzed")
    return {
        "Login": {"name": "tenant-x", "password": PASSWORD}, "BeginSso": {"flow": "browser", "port": 4711},
        "RenewLogin": {"refreshToken": "mrf_x.y", "nextSha256": "0" * 64},
        "FinishSso": {"handle": "x", "code": "c", "state": "s"}, "ChangePassword": {"oldPassword": "wrong", "newPassword": PASSWORD},
        "CreateOrg": {"name": "fuzz-org"}, "CreateProject": {"org": "mine", "name": "fuzz-project"},
        "SetOrgQuota": {"gpus": "100", "cpus": 1000, "clusters": "0"}, "SetProjectQuota": {"gpus": "100", "cpus": 1000.5, "clusters": "0"},
        "SetHeadroom": {"gpuModel": "fuzzed", "machines": 1, "tier": 1},
        "SetTier": {"tier": 3, "guaranteePermille": 100},
        "SetOrgImagePolicy": {"policy": {"deny": ["evil.example/*"]}}, "SetProjectImagePolicy": {"policy": {"allow": ["*"], "requireDigest": False}},
        "CreatePrincipal": {"name": "fuzz-user", "role": "tenant", "org": "spare", "password": PASSWORD}, "ChangeRole": {"role": "tenant-viewer"},
        "CreateApiToken": {"label": "fuzz", "scopes": ["read"], "lifetimeSeconds": "3600"},
        "CreateGrant": {"cluster": "mine-cluster", "to": "org-2", "right": "look", "lifetimeSeconds": "3600"}, "BreakGlass": {"cluster": "cl-1", "right": "logs", "reason": "a fuzzed reason", "lifetimeSeconds": "600"},
        "CreateServiceAccount": {"name": "fuzz-program", "note": "fuzzed"}, "CreateServiceToken": {"label": "fuzz", "scopes": ["read"], "lifetimeSeconds": "3600"},
        "CreateJoinToken": {"labels": {"zone": "a"}, "lifetimeSeconds": "600"},
        "Enroll": {"token": "mj1.x.y", "csrPem": "-----BEGIN CERTIFICATE REQUEST-----\n", "name": "box", "facts": {"hostname": "h", "arch": "x86_64"}},
        "SetNodeOffer": {"offer": {"currency": "EUR", "priceMicros": "1200000", "gpuPriceMicros": "800000", "floorMicros": "1000000", "gpuFloorMicros": "0", "tenants": ["mine"],
                                   "images": ["muster/"], "maxLeaseSeconds": "43200", "hours": "Mon-Fri 18:00-08:00, Sat", "timezone": "+02:00", "noticeSeconds": "900"}},
        "ActOnNode": {"action": "drain"}, "PlanCluster": {"spec": spec}, "CreateCluster": {"spec": spec},
        "UpdateCluster": {"spec": w.spec("mine-cluster"), "expectedGeneration": "1"},
        "CreateJob": {"name": "j", "entrypoint": "true", "cluster": "mine-cluster", "retries": 1, "timeoutSeconds": "60", "metadata": {"a": "b"}},
        "EnrolTotp": {"password": "wrong"}, "ConfirmTotp": {"code": "123456"}, "DisableTotp": {"password": "wrong", "code": "123456"},
        "PutRegistry": {"host": "fuzz.example", "username": "u", "password": "p", "lifetimeSeconds": "60"},
    }


def walk(w, operations):
    """Every operation once for every role that may, with what it needs made just before; the matrix of what succeeded."""
    reached = set()
    for role in ROLES:
        walker = "walk-" + role
        org = {"operator": "spare", "auditor": "spare", "supplier": "sup", "supplier-member": "sup"}.get(role, "mine")
        kin = {"supplier": "supplier-member"}.get(role, "tenant")  # that it may have a say in
        name = w.fresh("walker")
        me = w.admin("users", {"name": name, "role": role, "org": org, "password": PASSWORD})
        login = w.ask("POST", "login", "", {"name": name, "password": PASSWORD})
        w.tokens[walker] = login.json()["token"]
        if login.status == 200:
            reached.add(("Login", role))
        refresh = login.json()["refreshToken"]

        def made(path, body, by="tenant"):
            return w.must("POST", path, by, body)["id"]

        def with_factor():
            """A new account with a second factor."""
            new = w.fresh("factor")
            made_user = w.admin("users", {"name": new, "role": "tenant", "org": "spare", "password": PASSWORD})
            w.tokens["factor"] = w.must("POST", "login", "", {"name": new, "password": PASSWORD})["token"]
            secret = w.must("POST", "totp", "factor", {"password": PASSWORD})["secret"]
            w.must("POST", "totp/confirm", "factor", {"code": totp_code(secret)})
            return made_user["id"]

        def program():
            """A service account of the walker's organisation, which an operator made."""
            return made("service-accounts", {"name": new_name(), "role": "supplier" if org == "sup" else "tenant", "org": org}, "operator")

        def account():
            """An account of the walker's organisation."""
            return made("users", {"name": w.fresh("user"), "role": kin, "org": org, "password": PASSWORD}, "operator")

        def new_name():
            return w.fresh("program")

        told = {}  # what EnrolTotp and ConfirmTotp answered, for what comes after them

        def bodies(op):
            """(path ids, body) for this operation, made on the spot."""
            new = w.fresh
            cluster = {"spec": w.spec(new("walk"))}
            grant = {"cluster": w.own["clusters"], "to": w.orgs["spare"]["id"], "right": "look", "lifetimeSeconds": "3600"}
            join = {"org": "sup" if org == "spare" else org}
            machine = w.own["nodes"] if org == "mine" else w.node
            job = {"name": new("job"), "entrypoint": "true", "cluster": w.own["clusters"]}
            return {
                "ChangePassword": lambda: ("", {"oldPassword": PASSWORD, "newPassword": PASSWORD + "!"}),
                "CreateOrg": lambda: ("", {"name": new("org")}), "CreateProject": lambda: ("", {"org": "mine", "name": new("project")}),
                "GetOrgQuota": lambda: (me["orgId"], None), "SetOrgQuota": lambda: (w.orgs["spare"]["id"], {"gpus": "5"}),
                "GetProjectQuota": lambda: (w.own["projects"], None), "SetProjectQuota": lambda: (w.own["projects"], {"gpus": "500"}),
                "SetHeadroom": lambda: ("", {"gpuModel": "fuzzed", "machines": 1, "tier": 1}),
                "SetTier": lambda: ("", {"tier": 3, "guaranteePermille": 100}),
                "GetOrgImagePolicy": lambda: (me["orgId"], None),
                "SetOrgImagePolicy": lambda: (me["orgId"], {"policy": {"deny": ["evil.example/*"]}}),
                "GetProjectImagePolicy": lambda: (w.own["projects"], None), "SetProjectImagePolicy": lambda: (w.own["projects"], {"policy": {"deny": ["evil.example/*"]}}),
                "CreatePrincipal": lambda: ("", {"name": new("user"), "role": kin, "org": org, "password": PASSWORD}),
                "DisablePrincipal": lambda: (account(), None), "ChangeRole": lambda: (account(), {"role": "tenant-viewer"}),
                "CreateApiToken": lambda: ("", {"label": "walk", "scopes": ["read"]}), "RevokeApiToken": lambda: (made("tokens", {"label": "walk", "scopes": ["read"]}, walker), None),
                "RenewLogin": lambda: ("", {"refreshToken": refresh, "nextSha256": hashlib.sha256(os.urandom(32)).hexdigest()}),
                "CreateGrant": lambda: ("", dict(grant)), "RevokeGrant": lambda: (made("grants", grant, "tenant-admin"), None),
                "BreakGlass": lambda: ("", {"cluster": w.own["clusters"], "right": "logs", "reason": "a walk through all", "lifetimeSeconds": "600"}),
                "CreateServiceAccount": lambda: ("", {"name": new_name()}), "ListServiceTokens": lambda: (program(), None),
                "CreateServiceToken": lambda: (program(), {"label": "walk"}), "DisableServiceAccount": lambda: (program(), None),
                "CreateJoinToken": lambda: ("", dict(join)), "RevokeJoinToken": lambda: (made("join-tokens", join, "operator"), None),
                "Enroll": lambda: ("", w.enrol_body("supplier")), "GetNode": lambda: (machine, None), "ActOnNode": lambda: (machine, {"action": "drain"}),
                "SetNodeOffer": lambda: (machine, {"offer": {"currency": "EUR", "priceMicros": "1200000"}}),
                "ExplainNode": lambda: (machine, None), "GetNodeWays": lambda: (machine, None),
                "PlanCluster": lambda: ("", cluster), "CreateCluster": lambda: ("", cluster), "GetCluster": lambda: (w.own["clusters"], None),
                "UpdateCluster": lambda: (made("clusters", cluster), {"spec": dict(cluster["spec"], priority=3)}), "StopCluster": lambda: (made("clusters", cluster), None),
                "CreateJob": lambda: ("", job), "GetJob": lambda: (w.own["jobs"], None), "StopJob": lambda: (made("jobs", job), None),
                "JobLogs": lambda: (w.own["jobs"], None), "PutRegistry": lambda: ("", {"host": "walk.example", "username": "u", "password": "p"}),
                "DeleteRegistry": lambda: ("walk.example", None), "PutBlob": lambda: ("", b"walked"), "GetClusterNet": lambda: (w.own["clusters"], None),
                "EnrolTotp": lambda: ("", {"password": PASSWORD}), "ConfirmTotp": lambda: ("", {"code": totp_code(told["EnrolTotp"]["secret"])}),
                "DisableTotp": lambda: ("", {"password": PASSWORD, "code": told["ConfirmTotp"]["recoveryCodes"][0]}),
                "ResetTotp": lambda: (with_factor(), None),
            }.get(op, lambda: ("", None))
        last = ("DeleteRegistry", "EnrolTotp", "ConfirmTotp", "DisableTotp", "ChangePassword", "Logout")  # in this order
        for op in sorted(operations, key=lambda o: (last.index(o["name"]) + 1 if o["name"] in last else 0, o["name"])):
            refused = op["name"] in REFUSED.get(role, ())
            if op["name"] in NOT_WALKED or op["name"] == "Login" or not refused and role not in MAY.get(op["name"], ()):
                continue
            ident, body = bodies(op["name"])()
            path = op["path"].replace("/api/v1/", "").replace("{id}", urllib.parse.quote(ident, safe=""))
            answer = w.ask(op["method"], path, "" if op["name"] in ("Enroll", "GetServer", "RenewLogin") else walker, body, op["name"] in ("StreamEvents", "JobLogs"))
            if refused:
                if answer.status not in (403, 404):
                    w.fail(op["name"], role, "may not, and is not refused", "%d %s" % (answer.status, answer.text))
            elif answer.status // 100 == 2:
                reached.add((op["name"], role))
                told[op["name"]] = answer.json()
            else:
                w.fail(op["name"], role, "may, and does not reach a 2xx", "%d %s" % (answer.status, answer.text))
    for op in operations:
        if op["name"] not in MAY and op["name"] not in NOT_WALKED:
            w.fail(op["name"], "", "is in no row of MAY in tools/fuzz_api.py", op["path"])
    return reached


def changed(dice, base, other):
    """A working body with some of its parts replaced by what the schema gave."""
    if not isinstance(base, dict) or not isinstance(other, dict):
        return other
    out = dict(base)
    for key, value in other.items():
        if dice.random() < 0.4:
            out[key] = changed(dice, base.get(key), value) if dice.random() < 0.6 else value
    if out and dice.random() < 0.1:
        out.pop(dice.choice(sorted(out)))
    return out


def strings_of(value, keys):
    """Every text under one of these keys, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in keys and isinstance(inner, str):
                yield inner
            yield from strings_of(inner, keys)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_of(inner, keys)


class Fuzzer:
    def __init__(self, w, operations, seed):
        self.w, self.dice = w, random.Random(seed)
        self.examples = examples(w)
        self.cases = 0
        self.statuses = {}
        self.operations = operations

    def ident(self, kind, role):
        """An id for the path, and whose it is."""
        pick = self.dice.random()
        if pick < 0.35:
            mine = {"nodes": self.w.node} if role in SUPPLIERS else {"users": self.w.spare["user"]} if role == "operator" else self.w.own
            if kind in mine:
                return mine[kind], "own"
        if pick < 0.6 and role != "operator" and kind in self.w.foreign:
            return self.w.foreign[kind], "foreign"
        if pick < 0.7:
            return self.dice.choice(["cl-1", "job-2", "node-1", "tok-3", "org-1", "prj-9", "usr-5", "0", "-", "cl-18446744073709551615", "cl-99999999999999999999"]) , ""
        return None, ""

    def one(self, op, role, case):
        w, dice, name = self.w, self.dice, op["name"]
        self.cases += 1
        ident, whose = ("", "")
        path = op["path"]
        if "{id}" in path:
            kind = path.split("/")[3]
            ident, whose = self.ident(kind, role)
            if ident is None:
                ident = str((case.path_parameters or {}).get("id", "x"))
            if ident in (".", "..", ""):
                ident = "x"
        target = path.replace("{id}", urllib.parse.quote(ident, safe=""))
        query = {k: v for k, v in dict(case.query or {}).items() if v is not None}
        if str(query.get("min_seq", "0")).strip().isdigit():  # the future: 503 after five seconds, as it should be
            query["min_seq"] = "1"
        if name == "JobLogs":
            query.pop("follow", None)
        if query:
            target += "?" + urllib.parse.urlencode(query, doseq=True, errors="replace")
        headers = {}
        for key, value in dict(case.headers or {}).items():
            value = str(value)
            if key.lower() not in ("authorization", "content-length", "transfer-encoding", "host", "connection", "content-type") and re.fullmatch(r"[\x20-\x7e]*", value) and re.fullmatch(r"[\w-]+", key):
                headers[key] = value.strip()
        if role:
            headers["Authorization"] = "Bearer " + w.tokens[role]
        body = None
        if op["body"] == "binary":
            raw = case.body
            body = raw if isinstance(raw, bytes) else str(raw).encode("utf-8", "replace")
            headers["Content-Type"] = "application/octet-stream"
        elif op["body"]:
            given = case.body
            if name in self.examples and isinstance(given, dict) and dice.random() < 0.6:
                given = changed(dice, self.examples[name], given)
            if isinstance(given, dict):
                given = self.with_references(given, role)
            try:
                body = json.dumps(given).encode("utf-8", "surrogatepass")
            except (TypeError, ValueError):
                body = b"{"
            if dice.random() < 0.03:
                body = body[:dice.randrange(len(body) + 1)]
            headers["Content-Type"] = "application/json"
        if self.destroys_itself(name, role, ident):
            return
        stream = name in ("StreamEvents", "JobLogs")
        shown = "%s %s %s" % (op["method"], target, (body or b"")[:600])
        try:
            answer = w.server.send(op["method"], target, headers, body, stream)
        except (OSError, http.client.HTTPException) as fault:
            if not w.server.alive():
                w.server.log.seek(0)
                w.fail(name, role, "musterd died", shown + "\n" + w.server.log.read()[-1500:])
                raise RuntimeError("musterd died")
            return w.fail(name, role, "no answer", "%s: %s" % (shown, fault))
        key = (name, role, answer.status)
        self.statuses[key] = self.statuses.get(key, 0) + 1
        self.check(op, role, case, answer, shown, target, headers, body, ident, whose, stream)
        self.tidy(name, role, answer)

    def with_references(self, body, role):
        dice, out = self.dice, dict(body)
        pool = [self.w.own, self.w.foreign] if role != "operator" else [self.w.own]
        for key, kind in (("org", "orgs"), ("project", "projects"), ("cluster", "clusters")):
            if key in out and dice.random() < 0.5:
                out[key] = dice.choice(pool)[kind] if dice.random() < 0.7 else dice.choice([OTHER + "-org", OTHER + "-project", OTHER + "-cluster"] if role != "operator" else ["mine"])
        spec = out.get("spec")
        if isinstance(spec, dict) and isinstance(spec.get("head"), dict) and dice.random() < 0.1:
            out["spec"] = dict(spec, head=dict(spec["head"], pinnedNodes=[self.w.foreign["nodes"]]))
        if "workingDirBlob" in out and dice.random() < 0.5:
            out["workingDirBlob"] = self.w.foreign["blob"] if role != "operator" else self.w.own["blob"]
        return out

    def destroys_itself(self, name, role, ident):
        """Requests that would end the run's own accounts are left out."""
        w = self.w
        if name == "Logout":
            return True
        if name == "DisableServiceAccount" and role == "operator":
            return ident in (w.own["service-accounts"], w.foreign["service-accounts"]) or ident.startswith("usr-")
        if name in ("DisablePrincipal", "ChangeRole") and role in LEADS:
            return ident != w.spare["user"] if role == "operator" else ident not in w.foreign.values()
        if name in ("RevokeApiToken", "StopCluster", "StopJob", "RevokeJoinToken", "DeleteRegistry", "ActOnNode", "SetOrgQuota", "SetProjectQuota", "SetOrgImagePolicy", "SetProjectImagePolicy", "UpdateCluster", "ResetTotp") and role == "operator":
            return ident in set(w.foreign.values()) | set(w.own.values()) or re.fullmatch(r"(tok|cl|job)-\d+", ident) is not None
        if name == "RevokeApiToken" and re.fullmatch(r"tok-\d+", ident):
            return ident not in (w.own["tokens"], w.foreign["tokens"])
        return name in ("StopCluster", "StopJob") and ident in (w.own["clusters"], w.own["jobs"]) and self.dice.random() < 0.9

    def check(self, op, role, case, answer, shown, target, headers, body, ident, whose, stream):
        import requests
        import schemathesis
        w, name = self.w, op["name"]
        told = "%s -> %d %s" % (shown, answer.status, answer.text[:600])
        if answer.status >= 500:
            return w.fail(name, role, "answers %d" % answer.status, told)
        if not role and name not in OPEN and answer.status not in (401, 400, 413, 415, 431):
            w.fail(name, role, "answers %d without a token" % answer.status, told)
        if not stream or answer.status != 200:
            asked = requests.Request(op["method"], "https://127.0.0.1" + path_only(target)).prepare()
            response = schemathesis.Response(answer.status, {k: [v] for k, v in answer.headers.items()}, answer.body, asked, 0.0, True)
            try:
                case.validate_response(response, checks=[by_name(each) for each in CHECKS])
            except BaseExceptionGroup as group:
                for fault in group.exceptions:
                    w.fail(name, role, "breaks the document: %s" % str(fault).split("\n")[0], str(fault)[:600] + "\n" + told)
        if role in ("operator", "auditor"):
            return
        if OTHER in answer.text and OTHER not in urllib.parse.unquote(target) + (body or b"").decode("utf-8", "replace") + json.dumps(headers):
            w.fail(name, role, "shows something of another organisation", told)
        said = answer.json()
        if answer.status // 100 == 2:
            for text in strings_of(said, {"orgId", "supplierOrgId", "projectId", "clusterId", "ownerId"}):
                if text in w.foreign.values():
                    w.fail(name, role, "reaches into another organisation", told)
        if role and body and answer.status // 100 != 2:
            self.compare_references(op, role, answer, shown, target, headers, body, stream)
        if whose == "foreign" and role:
            if answer.status // 100 == 2:
                w.fail(name, role, "succeeds on an object of another organisation", told)
            missing = re.sub(r"\d+$", "987654", ident) if re.search(r"\d+$", ident) else "nowhere.example"
            again = w.server.send(op["method"], target.replace("/" + urllib.parse.quote(ident, safe=""), "/" + missing, 1), headers, body, stream)
            if isinstance(said, dict) and isinstance(again.json(), dict):
                first, second = [(a.status, j.get("code"), str(j.get("detail")).replace(i, "ID"), j.get("field"))
                                 for a, j, i in ((answer, said, ident), (again, again.json(), missing))]
                if first != second:
                    w.fail(name, role, "tells a foreign object from a missing one", "%s\n     %s\n     %s" % (shown, first, second))

    def compare_references(self, op, role, answer, shown, target, headers, body, stream):
        """A body that names something foreign is answered as one that names something missing."""
        foreign = [i for i in self.w.foreign.values() if re.search(r"-\d+$", i) and ('"%s"' % i).encode() in body]
        said = answer.json()
        if not foreign or not isinstance(said, dict):
            return
        missing = {i: re.sub(r"\d+$", "987654", i) for i in foreign}
        other = body
        for i, m in missing.items():
            other = other.replace(('"%s"' % i).encode(), ('"%s"' % m).encode())
        again = self.w.server.send(op["method"], target, headers, other, stream)
        told = again.json()

        def plain(a, j):
            text = re.sub(r"\(at byte \d+\)", "(at byte N)", str(j.get("detail")))  # the two bodies are not of one length
            for i, m in missing.items():
                text = text.replace(i, "ID").replace(m, "ID")
            return a.status, j.get("code"), text, j.get("field")
        if isinstance(told, dict) and plain(answer, said) != plain(again, told):
            self.w.fail(op["name"], role, "tells a reference to a foreign object from one to a missing one", "%s\n     %s\n     %s" % (shown, plain(answer, said), plain(again, told)))

    def tidy(self, name, role, answer):
        """What was made is ended again, so that a long run does not fill the queue."""
        if answer.status != 200 or name not in ("CreateCluster", "CreateJob") or role not in WORK:
            return
        made = answer.json()
        if self.dice.random() < 0.95:
            self.w.ask("DELETE", ("clusters/" if name == "CreateCluster" else "jobs/") + made["id"], role)


def path_only(target):
    return urllib.parse.quote(target, safe="/?&=%:;+,-._~")


def by_name(name):
    from schemathesis.checks import CHECKS
    return CHECKS.get_one(name)


def fuzz(w, document, cases, seed, only):
    import hypothesis
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode
    operations = operations_of(document)
    fuzzer = Fuzzer(w, operations, seed)
    schema = schemathesis.openapi.from_dict(document)
    chosen = [(result.ok(), next(o for o in operations if o["name"] == result.ok().definition.raw["operationId"])) for result in schema.get_all_operations()]
    chosen = [(api, op) for api, op in chosen if not only or op["name"] in only]
    slots = [(api, op, role) for api, op in chosen for role in ROLES + ("",)]
    last = [time.time()]
    for index, (api, op, role) in enumerate(slots):
        share = cases * (index + 1) // len(slots) - cases * index // len(slots)
        for mode, count in ((GenerationMode.POSITIVE, share - share // 3), (GenerationMode.NEGATIVE, share // 3)):
            if count == 0:
                continue
            before = fuzzer.cases

            def once(case):
                fuzzer.one(op, role, case)
            try:
                strategy = api.as_strategy(generation_mode=mode)
                test = settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))(given(strategy)(once))
                hypothesis.seed(seed * 1000003 + index)(test)()
            except (hypothesis.errors.Unsatisfiable, hypothesis.errors.InvalidArgument, schemathesis.errors.SchemathesisError):
                pass  # nothing to negate, say
            # A small space is exhausted early: the rest goes to the same operation as it came, with other ids.
            lacking = count - (fuzzer.cases - before)
            for _ in range(max(0, lacking)):
                fuzzer.one(op, role, api.Case())
        if time.time() - last[0] > 20:
            last[0] = time.time()
            print("   ... %d cases" % fuzzer.cases, flush=True)
    return fuzzer


def operations_of(document):
    out = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            content = operation.get("requestBody", {}).get("content", {})
            body = "binary" if "application/octet-stream" in content else "*" if content else ""
            out.append({"name": operation["operationId"], "method": method.upper(), "path": path, "body": body})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--build", default=os.path.join(ROOT, "build/release"))
    parser.add_argument("--operation", action="append", default=[])
    args = parser.parse_args()
    try:
        import schemathesis
        fits = schemathesis.__version__ == SCHEMATHESIS.split("==")[1]
    except ImportError:
        fits = False
    if not fits:
        inside_venv()
    began = time.time()
    folder = tempfile.mkdtemp(prefix="muster-fuzz-api-")
    server, cases, fuzzer = Server(os.path.abspath(args.build), folder), 0, None
    try:
        w = World(server)
        document = w.must("GET", "openapi.json", "operator")
        operations = operations_of(document)
        reached = walk(w, operations)
        print("walk: %d operations reach a 2xx for each of their roles (%d pairs), %.0f s" % (len({op for op, _ in reached}), len(reached), time.time() - began), flush=True)
        fuzzer = fuzz(w, document, args.cases, args.seed, args.operation)
        cases = fuzzer.cases
        if w.picture() != w.before:
            now = w.picture()
            for path, was in w.before.items():
                if now[path] != was:
                    w.fail("picture", "other", "what the other organisation has at %s has changed" % path, "%s\n     %s" % (json.dumps(was)[:700], json.dumps(now[path])[:700]))
    except RuntimeError as fault:
        print("FUZZ FAILED: %s" % fault)
        sys.exit(1)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    good = {op for op, _, status in fuzzer.statuses if status // 100 == 2}
    print("%d operations, %.0f cases a second; 2xx while fuzzing for %d operations" % (len(operations), cases / max(1.0, time.time() - began), len(good)))
    if w.failures:
        print("FUZZ FAILED: %d cases, %d failures: %s" % (cases, len(w.failures), "; ".join("%s as %s %s" % (op, role or "nobody", what) for op, role, what in sorted(w.failures))[:800]))
        sys.exit(1)
    print("FUZZ OK: %d cases, 0 failures" % cases)


if __name__ == "__main__":
    main()
