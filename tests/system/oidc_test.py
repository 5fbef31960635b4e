"""People log in by an identity provider: oidc-provider from npm (certified), musterd and muster as they are. A scripted browser goes
through the provider's own pages; a provider that rotates, lies, says no, or is away; accounts that are switched off; secrets.
"""
import base64
import hashlib
import html.parser
import http.cookiejar
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

BESIDE = "host"  # a lane of its own in tools/test.py: musterd and a provider, on loopback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
PASSWORD = "correct horse battery"
SECRET = "s3cret/ +%of the client"
ALICE, OSCAR, BOB, CAROL, MALLORY = ("subject-471%d" % n for n in range(1, 6))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def installed_provider():
    """The folder with oidc-provider as tests/oidc/package-lock.json pins it, made on first use."""
    made = hashlib.sha256()
    for name in ("package.json", "package-lock.json"):
        with open(os.path.join(ROOT, "tests/oidc", name), "rb") as f:
            made.update(f.read())
    folder = os.path.join(ROOT, "build/oidc-provider-" + made.hexdigest()[:12])
    if not os.path.exists(folder + "/done"):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(os.path.join(ROOT, "tests/oidc", name), folder)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        open(folder + "/done", "w").close()
    shutil.copy(os.path.join(ROOT, "tests/oidc/provider.mjs"), folder)
    return folder


class Page(html.parser.HTMLParser):
    """The first form of a page with what is in it, and the links."""

    def __init__(self, url, text):
        super().__init__()
        self.url, self.text, self.form, self.fields, self.links = url, text, None, {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        at = dict(attributes)
        if tag == "form" and self.form is None:
            self.form = urllib.parse.urljoin(self.url, at.get("action") or self.url)
        elif tag == "input" and at.get("name") and at.get("type") != "submit":
            self.fields[at["name"]] = at.get("value") or ""
        elif tag == "a":
            self.links.append(urllib.parse.urljoin(self.url, at.get("href") or ""))


class Browser:
    """Follows redirects with its cookies, shows pages, fills forms in."""

    def __init__(self, stop_at="nowhere", ca=None):
        self.stop_at = stop_at  # redirects to there are not followed

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_):
                return None

        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Stay, urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
                                                  urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)))

    def open(self, url, fields=None):
        for _ in range(20):
            data = None if fields is None else urllib.parse.urlencode(fields).encode()
            try:
                answer = self.opener.open(urllib.request.Request(url, data), timeout=20)
            except urllib.error.HTTPError as told:
                answer = told
            text, location = answer.read().decode(errors="replace"), answer.headers.get("Location")
            if answer.status not in (301, 302, 303, 307, 308):
                return Page(url, text)
            url, fields = urllib.parse.urljoin(url, location), None
            if url.startswith(self.stop_at):
                return Page(url, "")
        raise AssertionError("redirected for ever: " + url)

    def log_in(self, url, who):
        page = self.open(url)
        for _ in range(8):
            if page.form is None:
                return page
            fields = dict(page.fields)
            fields.update({name: value for name, value in (("login", who), ("password", "any")) if name in fields})
            page = self.open(page.form, fields)
        raise AssertionError("forms for ever: " + page.text)

    def cancel(self, url):
        page = self.open(url)
        if "user_code" in page.fields and "login" not in page.fields:  # by code: confirm, then the page to log in
            page = self.open(page.form, page.fields)
            page = self.open(page.form, page.fields)
        return self.open([link for link in page.links if link.endswith("/abort")][0])


@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "musterd")), "the release binaries are not built: make build")
@unittest.skipUnless(shutil.which("npm") and shutil.which("node"), "no node and npm: tools/install-deps test")
class Oidc(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="muster-oidc-")
        cls.addClassCleanup(folder.cleanup)
        cls.dir, cls.data, cls.port, cls.provider_port = folder.name, folder.name + "/data", free_port(), free_port()
        cls.issuer = "http://127.0.0.1:%d" % cls.provider_port
        cls.provider_folder = installed_provider()
        cls.provider, cls.server = None, None
        cls.log = open(cls.dir + "/log", "w+")
        cls.addClassCleanup(cls.log.close)
        cls.addClassCleanup(lambda: cls.stop("provider"))
        cls.addClassCleanup(lambda: cls.stop("server"))
        cls.put("password", PASSWORD + "\n")
        cls.put("client-secret", SECRET + "\n")
        cls.put("sso.json", json.dumps(cls.settings()))
        made = subprocess.run([BUILD + "/musterd", "init", "--data", cls.data, "--name", "127.0.0.1", "--password-file", cls.dir + "/password"],
                              check=True, capture_output=True, text=True)
        cls.ca = re.search(r"CA SHA-256: (\w+)", made.stdout)[1]
        cls.start_provider()  # which posts logouts to musterd, and believes its CA
        cls.start_server()
        cls.run_muster("admin", "login", cls.url(), "--ca-sha256", cls.ca, "--user", "admin", "--password-file", cls.dir + "/password")
        cls.run_muster("admin", "org", "create", "lab")
        cls.run_muster("admin", "project", "create", "first", "--org", "lab")
        cls.run_muster("admin", "project", "create", "learning", "--org", "lab")

    @classmethod
    def settings(cls, **more):
        return dict({"issuer": cls.issuer, "clientId": "muster", "clientSecretFile": cls.dir + "/client-secret", "scopes": ["openid", "profile", "email", "groups"],
                     "unknown": "create", "emailDomains": ["lab.example"], "loginHours": 8,
                     "rules": [{"claim": "groups", "value": "gpu-admins", "role": "operator", "org": "platform"},
                               {"claim": "groups", "value": "ml", "role": "tenant", "org": "lab", "project": "learning"}]}, **more)

    @classmethod
    def url(cls):
        return "https://127.0.0.1:%d" % cls.port

    @classmethod
    def put(cls, name, text):
        with open(os.open(os.path.join(cls.dir, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(text)

    @classmethod
    def start_provider(cls, *tls):
        cls.provider = subprocess.Popen(["node", cls.provider_folder + "/provider.mjs", str(cls.provider_port), *tls], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True, env=dict(os.environ, CLIENT_SECRET=SECRET, LOGOUT_URI=cls.url() + "/sso/logout", NODE_EXTRA_CA_CERTS=cls.data + "/ca.pem"))
        while True:
            line = cls.provider.stdout.readline()
            if line == "":
                raise AssertionError("the provider ended at once")
            if line.strip() == "ready":
                return

    @classmethod
    def start_server(cls, *more):
        cls.stop("server")
        cls.server = subprocess.Popen([BUILD + "/musterd", "serve", "--data", cls.data, "--listen", "127.0.0.1:%d" % cls.port, "--sso", cls.dir + "/sso.json", *more],
                                      stdout=cls.log, stderr=cls.log)
        tls = ssl.create_default_context(cafile=cls.data + "/ca.pem")
        for _ in range(1500):
            try:
                with socket.create_connection(("127.0.0.1", cls.port)) as raw, tls.wrap_socket(raw, server_hostname="127.0.0.1"):
                    return
            except OSError:
                if cls.server.poll() is not None:
                    break
                time.sleep(0.02)
        raise AssertionError("musterd does not serve")

    @classmethod
    def stop(cls, name):
        process = getattr(cls, name)
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            if process.stdout:
                process.stdout.close()
            setattr(cls, name, None)

    @classmethod
    def environment(cls, who):
        env = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY") and not key.startswith("MUSTER_")}
        return dict(env, MUSTER_CONFIG=os.path.join(cls.dir, who + ".json"))

    @classmethod
    def run_muster(cls, who, *words, code=0):
        done = subprocess.run([BUILD + "/muster", *words], env=cls.environment(who), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if done.returncode != code:
            raise AssertionError((words, done.returncode, done.stdout, done.stderr))
        return done.stdout + done.stderr

    def tell_provider(self, what, to=""):
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open("%s/test/%s?to=%s" % (self.issuer, what, urllib.parse.quote(to)), timeout=20).read().decode()

    def begin(self, who, *more, pattern=r"^  (https?://\S+)$"):
        """The command, waiting, and what it says that the person must open."""
        command = subprocess.Popen([BUILD + "/muster", "login", self.url(), "--ca-sha256", self.ca, "--sso", *more], env=self.environment(who),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(command.wait)
        self.addCleanup(command.stderr.close)
        self.addCleanup(lambda: command.poll() is None and command.kill())
        said = ""
        for line in command.stderr:
            said += line
            found = re.search(pattern, line)
            if found:
                return command, found[1]
        raise AssertionError("it ended without a page to open (%d):\n%s" % (command.wait(), said))

    def end(self, command, code=0):
        said = command.stderr.read()
        self.assertEqual(command.wait(60), code, said)
        return said

    def login(self, who, subject, *more, code=0, browser=None):
        """The whole way in the browser; what the command says at its end, and the page that the person sees last."""
        command, url = self.begin(who, *more)
        page = (browser or Browser()).log_in(url, subject)
        return self.end(command, code), page

    def who(self, name):
        return json.loads(self.run_muster(name, "whoami", "-o", "json"))

    # ---- logins that go well
    def test_1_in_the_browser(self):
        said, page = self.login("alice", ALICE)
        self.assertRegex(said, r"Logged in to https://127.0.0.1:\d+ as alice \(tenant\)")
        self.assertIn("Logged in", page.text)
        me = self.who("alice")
        self.assertEqual((me["name"], me["role"], me["org"]), ("alice", "tenant", "lab"))
        with open(self.dir + "/alice.json") as f:
            account = json.load(f)
        self.assertIn("learning", json.dumps(account), "the rule's project is the one to begin with")
        kept = json.dumps(account)
        self.assertRegex(kept, "mrf_")
        self.assertNotRegex(kept, r"access_token|id_token")
        for token in re.findall(r"eyJ[\w-]+\.([\w-]+)\.", kept):
            said = json.loads(base64.urlsafe_b64decode(token + "=="))
            self.assertRegex(said["iss"], "^srv-", "a token of the provider is kept")
        self.assertEqual(self.who("alice")["id"], me["id"])
        self.login("laptop", ALICE)
        self.assertEqual(self.who("laptop")["id"], me["id"], "the same person, the same account")
        self.login("oscar", OSCAR)
        self.assertEqual(self.who("oscar")["role"], "operator")
        self.assertRegex(self.run_muster("admin", "user", "list"), r"alice\s+tenant")
        listed = json.loads(self.run_muster("alice", "token", "list", "-o", "json"))
        ends = max(each["expiresAt"] for each in listed["items"])
        self.assertLess(ends, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 8 * 3600 + 60)), "loginHours")

    def test_2_every_algorithm_and_new_keys(self):
        for alg in ("PS256", "ES256", "EdDSA", "RS256"):
            self.tell_provider("alg", alg)
            self.login("alice", ALICE)
        self.tell_provider("rotate")
        said, _ = self.login("alice", ALICE)
        self.assertIn("as alice", said, "keys that musterd had not seen")

    def test_3_by_code(self):
        self.tell_provider("slow")
        command, url = self.begin("phone", "--device", pattern=r"^or open (\S+)$")
        page = Browser().log_in(url, ALICE)
        self.assertIsNone(page.form, page.text)
        self.assertIn("as alice", self.end(command))
        self.assertEqual(self.who("phone")["name"], "alice")

    # ---- logins that do not
    def test_4_cancelled(self):
        command, url = self.begin("nobody")
        page = Browser().cancel(url)
        self.assertIn("cancelled", page.text)
        self.assertIn("cancelled at the identity provider", self.end(command, code=1))
        command, url = self.begin("nobody", "--device", pattern=r"^or open (\S+)$")
        Browser().cancel(url)
        self.assertIn("cancelled at the identity provider", self.end(command, code=1))
        self.assertFalse(os.path.exists(self.dir + "/nobody.json"))

    def test_5_a_provider_that_lies(self):
        for lie, said in (("audience", "another program"), ("issuer", "another issuer"), ("nonce", "another login"), ("clock", "clocks")):
            self.tell_provider("lie", lie)
            told, page = self.login("nobody", ALICE, code=4)
            self.assertIn(said, told)
            self.assertIn("Not logged in", page.text)
        self.tell_provider("lie")
        self.login("alice", ALICE)

    def test_6_people_who_may_not(self):
        self.assertIn("not verified your e-mail", self.login("nobody", BOB, code=4)[0])
        self.assertIn("e-mail domain", self.login("nobody", MALLORY, code=4)[0])
        said, _ = self.login("nobody", CAROL, code=4)
        self.assertIn("none of the rules", said)
        self.assertIn("--sso-subject " + CAROL, said)
        self.run_muster("admin", "user", "create", "carol", "--role", "auditor", "--org", "lab", "--sso-subject", CAROL)
        self.login("carol", CAROL)
        self.assertEqual((self.who("carol")["name"], self.who("carol")["role"]), ("carol", "auditor"))
        self.assertIn("has the account carol", self.run_muster("admin", "user", "create", "carola", "--role", "auditor", "--org", "lab", "--sso-subject", CAROL, code=1))

    def test_7_switched_off_stays_off(self):
        self.login("alice", ALICE)
        first = self.who("alice")
        self.run_muster("admin", "user", "disable", first["id"])
        self.run_muster("alice", "whoami", code=4)
        self.assertIn("switched off", self.login("alice", ALICE, code=4)[0])
        done = subprocess.run([BUILD + "/musterd", "sso-forget", first["name"], "--data", self.data], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.login("alice", ALICE)
        self.assertNotEqual(self.who("alice")["id"], first["id"])

    def test_7a_role_and_organisation_follow_the_groups(self):
        self.run_muster("admin", "org", "create", "studio")
        self.put("sso.json", json.dumps(self.settings(rules=self.settings()["rules"] + [{"claim": "groups", "value": "art", "role": "auditor", "org": "studio"}])))
        self.start_server()
        self.login("alice", ALICE)
        self.login("laptop", ALICE)
        first = self.who("alice")
        self.assertEqual((first["role"], first["org"]), ("tenant", "lab"))
        try:
            self.tell_provider("groups", ALICE + ":staff,art")
            self.assertEqual(self.who("alice")["role"], "tenant", "until the next login")
            said, _ = self.login("alice", ALICE)
            self.assertRegex(said, r"as alice\S* \(auditor\)")
            after = self.who("alice")
            self.assertEqual((after["id"], after["role"], after["org"]), (first["id"], "auditor", "studio"), "the same account, another role")
            self.run_muster("laptop", "whoami", code=4)
            self.tell_provider("groups", ALICE + ":staff")
            self.assertIn("no rule here fits", self.login("nobody", ALICE, code=4)[0])
            self.run_muster("alice", "whoami", code=4)
        finally:
            self.tell_provider("groups", ALICE + ":staff,ml")
        self.login("alice", ALICE)
        self.assertEqual((self.who("alice")["id"], self.who("alice")["role"]), (first["id"], "tenant"), "and back, without an operator")
        self.assertRegex(self.run_muster("admin", "audit", "--object", first["id"]), r"is auditor of studio now")
        self.put("sso.json", json.dumps(self.settings()))
        self.start_server()

    def post_logout(self, token, **more):
        context = ssl.create_default_context(cafile=self.data + "/ca.pem")
        request = urllib.request.Request(self.url() + "/sso/logout", urllib.parse.urlencode(dict({"logout_token": token}, **more)).encode())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        try:
            answer = opener.open(request, timeout=20)
        except urllib.error.HTTPError as told:
            answer = told
        self.assertEqual(answer.headers["Cache-Control"], "no-store")
        return answer.status, answer.read().decode()

    def test_7b_a_logout_at_the_provider_is_one_here(self):
        browser = Browser()
        self.login("alice", ALICE, browser=browser)
        self.login("laptop", ALICE)
        self.login("oscar", OSCAR)
        stream = subprocess.Popen([BUILD + "/muster", "events", "-f"], env=self.environment("alice"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(stream.stderr.close)
        self.addCleanup(stream.wait)
        self.addCleanup(lambda: stream.poll() is None and stream.kill())
        time.sleep(1)
        self.assertIsNone(stream.poll(), "the stream is open")
        page = browser.open(self.issuer + "/session/end")
        began = time.monotonic()
        browser.open(page.form, dict(page.fields, logout="yes"))
        stream.wait(5)
        self.assertLess(time.monotonic() - began, 5, "its stream ends with it")
        for who in ("alice", "laptop"):
            self.run_muster(who, "whoami", code=4)
        self.assertEqual(self.who("oscar")["role"], "operator", "nobody else is logged out")

    def test_7c_only_the_providers_word_logs_out(self):
        self.login("alice", ALICE)
        token = lambda **change: self.tell_provider("logout-token", json.dumps(change))  # noqa: E731
        for change, at in (({"nonce": "n"}, "nonce"), ({"aud": "another"}, "another program"), ({"iss": "https://evil.example"}, "issuer"), ({"jti": None}, "id"),
                           ({"events": {}}, "logout"), ({"iat": 1}, "clocks"), ({"sub": None, "sid": None}, "neither")):
            status, said = self.post_logout(token(**change))
            self.assertEqual(status, 400, said)
            self.assertIn("invalid_request", said)
            self.assertIn(at, said)
        good = token(sub=ALICE)
        forged = good[:-8] + "AAAAAAAA"
        self.assertEqual(self.post_logout(forged)[0], 400)
        self.assertEqual(self.post_logout("no token")[0], 400)
        self.assertEqual(self.who("alice")["name"].split("-")[0], "alice", "still in")
        self.assertEqual(self.post_logout(token(sub=BOB, sid=None))[0], 200, "nobody here, and nobody is told so")
        self.assertEqual(self.who("alice")["name"].split("-")[0], "alice")
        # By the session alone, as it was at the last login; and once only.
        only = token(sid="SESSION")
        self.assertEqual(self.post_logout(only), (200, ""))
        self.run_muster("alice", "whoami", code=4)
        self.login("alice", ALICE)
        status, said = self.post_logout(only)
        self.assertEqual(status, 400, "the same word again: " + said)
        self.assertEqual(self.who("alice")["name"].split("-")[0], "alice")

    def test_8_answers_count_once_and_for_their_own_login(self):
        context = ssl.create_default_context(cafile=self.data + "/ca.pem")

        def ask(path, body):
            request = urllib.request.Request(self.url() + "/api/v1/sso/" + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
            try:
                answer = opener.open(request, timeout=20)
            except urllib.error.HTTPError as told:
                answer = told
            return answer.status, json.loads(answer.read())

        def code_of(start):
            """What the provider gives the browser to bring to the port."""
            page = Browser("http://127.0.0.1:%d/" % port).log_in(start["url"], ALICE)
            return {key: value[0] for key, value in urllib.parse.parse_qs(urllib.parse.urlsplit(page.url).query).items()}

        port = free_port()  # nobody listens there
        status, one = ask("begin", {"flow": "browser", "port": port})
        self.assertEqual(status, 200, one)
        status, two = ask("begin", {"flow": "browser", "port": port})
        came = code_of(one)
        self.assertEqual(came["state"], one["state"])
        # Another login's handle with this answer: the state tells.
        status, told = ask("finish", {"handle": two["handle"], "code": came["code"], "state": came["state"], "issuer": came["iss"]})
        self.assertEqual((status, told["field"]), (403, "state"), told)
        status, told = ask("finish", {"handle": one["handle"], "code": came["code"], "state": came["state"], "issuer": "https://evil.example"})
        self.assertEqual((status, told["field"]), (403, "iss"), told)
        status, told = ask("finish", {"handle": one["handle"], "code": came["code"], "state": came["state"], "issuer": came["iss"]})
        self.assertEqual(status, 404, told)
        status, three = ask("begin", {"flow": "browser", "port": port})
        status, told = ask("finish", {"handle": three["handle"], "code": came["code"], "state": three["state"], "issuer": came["iss"]})
        self.assertEqual((status, told["field"]), (409, "invalid_grant"), "PKCE: a code of another login: %s" % told)
        for body, field in (({"flow": "browser"}, "port"), ({"flow": "magic"}, "flow"), ({"flow": "browser", "port": 70000}, "port")):
            status, told = ask("begin", body)
            self.assertEqual((status, told["field"]), (400, field))

    def test_9_a_provider_that_is_away_or_not_ours(self):
        self.put("client-secret", "another secret\n")
        self.start_server()
        self.assertIn("client id or secret is wrong", self.login("nobody", ALICE, code=1)[0])
        self.put("client-secret", SECRET + "\n")
        self.stop("provider")
        self.start_server()
        done = subprocess.run([BUILD + "/muster", "login", self.url(), "--ca-sha256", self.ca, "--sso"], env=self.environment("nobody"), capture_output=True, text=True)
        self.assertEqual(done.returncode, 5, done.stderr)
        self.assertIn("identity provider cannot be reached", done.stderr)
        self.run_muster("admin", "login", self.url(), "--ca-sha256", self.ca, "--user", "admin", "--password-file", self.dir + "/password")
        self.start_provider()
        time.sleep(3.1)  # a failure is kept for three seconds
        self.login("alice", ALICE)
        self.put("wrong.json", json.dumps(self.settings(emailDomain=["x"])))
        done = subprocess.run([BUILD + "/musterd", "serve", "--data", self.data, "--sso", self.dir + "/wrong.json"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("emailDomain is no key here", done.stderr)

    def test_9a_over_tls_of_a_private_ca(self):
        self.login("alice", ALICE)
        before = self.who("alice")
        cert, key = self.dir + "/provider.pem", self.dir + "/provider.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                        "-subj", "/CN=provider", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
        self.stop("provider")
        self.start_provider(cert, key)
        issuer = self.issuer.replace("http:", "https:")
        self.put("sso.json", json.dumps(self.settings(issuer=issuer)))
        self.start_server()
        done = subprocess.run([BUILD + "/muster", "login", self.url(), "--ca-sha256", self.ca, "--sso"], env=self.environment("nobody"), capture_output=True, text=True)
        self.assertIn("identity provider cannot be reached", done.stderr)
        self.log.flush()
        with open(self.dir + "/log") as f:
            self.assertRegex(f.read(), r"certificate of 127.0.0.1:\d+ is not trusted")
        self.put("sso.json", json.dumps(self.settings(issuer=issuer, caFile=cert)))
        self.start_server()
        self.login("alice", ALICE, browser=Browser(ca=cert))
        after = self.who("alice")
        self.assertNotEqual(after["id"], before["id"], "the same subject of another issuer is another person")
        self.assertTrue(after["name"].startswith("alice-"), after)
        self.stop("provider")
        self.start_provider()
        self.put("sso.json", json.dumps(self.settings()))
        self.start_server()

    def test_9b_secrets_and_persons_are_nowhere(self):
        self.login("alice", ALICE)
        with open("/proc/%d/cmdline" % self.server.pid) as f:
            self.assertNotIn(SECRET, f.read())
        self.log.flush()
        with open(self.dir + "/log") as f:
            log = f.read()
        self.assertIn("made for a person of the identity provider", log)
        exported = subprocess.run([BUILD + "/musterd", "journal", "export", "--data", self.data], capture_output=True).stdout
        journal = exported + b"\n".join(base64.b64decode(json.loads(line)["event"]) for line in exported.splitlines())
        self.assertIn(b"alice", journal)
        stored = b""
        for name in os.listdir(self.data):
            if name.startswith("journal.db"):
                with open(os.path.join(self.data, name), "rb") as f:
                    stored += f.read()
        for secret in (SECRET, ALICE, "alice@lab.example", "eyJhbGci"):
            self.assertNotIn(secret, log)
            self.assertNotIn(secret.encode(), journal)
            self.assertNotIn(secret.encode(), stored)


if __name__ == "__main__":
    unittest.main()
