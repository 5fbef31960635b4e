#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "cli/api.h"
#include "cli/archive.h"
#include "cli/audit.h"
#include "cli/channel.h"
#include "cli/cluster_logs.h"
#include "cli/completion.h"
#include "cli/config.h"
#include "cli/follow.h"
#include "cli/forward.h"
#include "cli/http_gate.h"
#include "cli/images.h"
#include "cli/net.h"
#include "cli/offer.h"
#include "cli/passwd.h"
#include "cli/qr.h"
#include "cli/quota.h"
#include "cli/request.h"
#include "cli/runtime_env.h"
#include "cli/scan.h"
#include "cli/shell.h"
#include "cli/sso.h"
#include "cli/table.h"
#include "cli/totp.h"
#include "crypto/hash.h"
#include "testing/test_root.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

namespace fs = std::filesystem;

wire::Json json(const std::string& text) {
  auto parsed = wire::parse_json(text);
  EXPECT_TRUE(parsed.ok()) << text;
  return parsed.ok() ? *parsed : wire::Json();
}

struct Folder {
  fs::path path = fs::temp_directory_path() / ("muster_cli_test_" + std::to_string(::getpid()));
  Folder() {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
  void put(const std::string& name, const std::string& text) const {
    fs::create_directories((path / name).parent_path());
    std::ofstream(path / name, std::ios::binary) << text;
  }
};
std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// ---- audit
TEST(AuditLines, CefAndSyslogKeepTheirShapeWhateverNamesHold) {
  const auto entry = json(
      R"({"seq":"12","at":"2026-11-23T01:02:03.456Z","actor":{"kind":"tenant","id":"usr-3","name":"a|b","orgId":"org-2"},)"
      R"("requestId":"k=1","verb":"stop","object":{"kind":"cluster","id":"cl-4","name":"x]\"y","orgId":"org-2"},)"
      R"("outcome":"failed","event":"cluster.state|changed","text":"cluster a=b\nis down|now","address":"192.0.2.1"})");
  EXPECT_EQ(
      cef_line(entry),
      "CEF:0|Muster|musterd|0.1.0|cluster.state\\|changed|cluster a=b is down\\|now|6|rt=2026-11-23T01:02:03.456Z "
      "suser=usr-3 spriv=tenant outcome=failed act=stop externalId=12 requestContext=k\\=1 src=192.0.2.1 "
      "destinationServiceName=cluster duid=cl-4 fname=x]\"y cs1=org-2 cs1Label=organisation");
  EXPECT_EQ(syslog_line(entry, "control.example"),
            "<108>1 2026-11-23T01:02:03.456Z control.example musterd - cluster.state|changed [muster@32473 "
            "actor=\"usr-3\" actorKind=\"tenant\" outcome=\"failed\" verb=\"stop\" seq=\"12\" request=\"k=1\" "
            "address=\"192.0.2.1\" objectKind=\"cluster\" object=\"cl-4\" objectName=\"x\\]\\\"y\" org=\"org-2\"] "
            "cluster a=b is down|now");
  EXPECT_NE(audit_line(entry).find("tenant usr-3 (a|b)"), std::string::npos);
}
TEST(AuditLines, RefusalsToo) {
  const auto entry = json(
      R"({"actor":{"kind":"nobody"},"operation":"Login","code":"unauthenticated","count":"9","firstAt":"2026-11-23T01:00:00.000Z",)"
      R"("lastAt":"2026-11-23T01:02:03.000Z","lastRequestId":"req-1","lastAddress":""})");
  EXPECT_EQ(
      cef_line(entry),
      "CEF:0|Muster|musterd|0.1.0|Login|Login was refused to nobody, 9 times (unauthenticated)|6|"
      "rt=2026-11-23T01:02:03.000Z suser=nobody spriv=nobody outcome=refused cnt=9 start=2026-11-23T01:00:00.000Z "
      "requestContext=req-1 reason=unauthenticated");
  EXPECT_TRUE(syslog_line(entry, "").starts_with(
      "<108>1 2026-11-23T01:02:03.000Z - musterd - Login [muster@32473 actor=\"nobody\""));
}

// ---- output
TEST(TableText, AlignsByCodePointsAndCleans) {
  Table table({"A", "LONGER"});
  table.add({"grün", "x"});
  table.add({"\033[31mred\a", ""});
  EXPECT_EQ(table.text(false), "A        LONGER\ngrün     x\n[31mred  -\n");
  EXPECT_NE(table.text(true).find("\033[1mA\033[0m"), std::string::npos);
}
TEST(TableText, YamlQuotesWhatNeedsIt) {
  EXPECT_EQ(yaml_text(json(R"({"a":"x","b":"true","c":[{"d":1,"e":""},"y: z"],"f":{},"g":[]})")),
            "a: x\nb: \"true\"\nc:\n  - d: 1\n    e: \"\"\n  - \"y: z\"\nf: {}\ng: []\n");
}
TEST(TableText, Units) {
  EXPECT_EQ(size_text(1536), "1.5 KiB");
  EXPECT_EQ(size_text(12), "12 B");
  EXPECT_EQ(mbps_text(200'000), "200 Mbit/s");
  EXPECT_EQ(mbps_text(12'345), "12.3 Mbit/s");
  EXPECT_EQ(duration_text(200), "3 m 20 s");
  EXPECT_EQ(parse_duration("2h30m"), 9'000);
  EXPECT_EQ(parse_duration("90"), 90);
  EXPECT_FALSE(parse_duration("1x"));
  EXPECT_FALSE(parse_duration(""));
  EXPECT_FALSE(parse_duration("-5"));
  EXPECT_EQ(quote_shell({"python", "a b.py", "it's"}), "python 'a b.py' 'it'\\''s'");
  EXPECT_EQ(quote_shell({"echo $HOME && ls"}), "echo $HOME && ls");
  EXPECT_EQ(escape_url("a b/%"), "a%20b%2F%25");
}

// ---- difference
TEST(Difference, NamesTheLeaves) {
  const auto before = json(R"({"image":"a","spares":0,"groups":[{"name":"w","min":1}],"env":{"A":"1"}})");
  const auto after = json(R"({"image":"b","groups":[{"name":"w","min":2}],"env":{"A":"1","B":"2"},"egress":true})");
  EXPECT_EQ(difference(before, after),
            (std::vector<std::string>{"egress: (nothing) -> true", "env.B: (nothing) -> \"2\"", "groups[w].min: 1 -> 2",
                                      "image: \"a\" -> \"b\""}));
  EXPECT_TRUE(difference(before, before).empty());
  EXPECT_EQ(difference(before, after, 2).back(), "... and 2 more");
}
TEST(Difference, SpecSurvivesItsJson) {
  ClusterSpec spec;
  spec.name = "x";
  spec.groups.push_back({.name = "w", .min = 1, .max = 2});
  const auto first = spec_json(spec);
  EXPECT_EQ(first["groups"].items().size(), 1u);
  spec.spares = 2;
  EXPECT_EQ(difference(first, spec_json(spec)).size(), 1u);
}

// ---- archives
TEST(Archive, ZipIsReadByPython) {
  Folder folder;
  folder.put("src/b.txt", "bee");
  folder.put("src/a/deep.py", std::string(200'000, 'x'));
  folder.put("src/.gitignore", "*.log\n/out/\n");
  folder.put("src/run.log", "no");
  folder.put("src/out/x", "no");
  folder.put("src/.git/config", "no");
  folder.put("src/grün.txt", "");
  auto packed = pack((folder.path / "src").string(), Format::Zip);
  ASSERT_TRUE(packed.ok()) << packed.error().message;
  const TemporaryFile temporary(packed->file);
  EXPECT_EQ(packed->files, 4u);
  const std::string script =
      "import zipfile,sys; z=zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; assert "
      "z.namelist()==['.gitignore','a/deep.py','b.txt','gr\\u00fcn.txt'], z.namelist(); assert z.read('b.txt')==b'bee'";
  EXPECT_EQ(std::system(("python3 -c \"" + script + "\" " + packed->file).c_str()), 0);
  auto again = pack((folder.path / "src/").string(), Format::Zip);
  ASSERT_TRUE(again.ok());
  const TemporaryFile second(again->file);
  EXPECT_EQ(again->sha256, packed->sha256);
}
TEST(Archive, TarRoundTripInPieces) {
  Folder folder;
  const std::string long_name = std::string(80, 'd') + "/" + std::string(90, 'f');
  folder.put("src/" + long_name, "long");
  folder.put("src/big", std::string(70'001, 'q'));
  folder.put("src/empty", "");
  folder.put("src/secret", "s");
  fs::permissions(folder.path / "src/secret", fs::perms::owner_read);
  fs::create_directory(folder.path / "src/nothing");
  fs::permissions(folder.path / "src/nothing", fs::perms::owner_all | fs::perms::group_read);
  fs::create_symlink("/etc/passwd", folder.path / "src/out");
  fs::create_symlink("../" + std::string(120, 'u'), folder.path / "src/up");
  fs::create_symlink(long_name, folder.path / "src/link");
  auto packed = pack((folder.path / "src").string(), Format::Tar);
  ASSERT_TRUE(packed.ok());
  const TemporaryFile temporary(packed->file);
  EXPECT_EQ(packed->skipped, 0u);
  EXPECT_EQ(std::system(("tar -tf " + packed->file + " >/dev/null").c_str()), 0);
  fs::create_directories(folder.path / "dst");
  Unpacker unpacker((folder.path / "dst").string());
  const std::string bytes = slurp(packed->file);
  for (std::size_t at = 0; at < bytes.size(); at += 333)
    ASSERT_TRUE(unpacker.feed(std::string_view(bytes).substr(at, 333)).ok());
  ASSERT_TRUE(unpacker.finish().ok());
  EXPECT_EQ(unpacker.skipped(), 2u) << "links that lead out of the target";
  EXPECT_EQ(fs::read_symlink(folder.path / "dst/link"), long_name);
  EXPECT_EQ(fs::status(folder.path / "dst/secret").permissions(), fs::perms::owner_read);
  EXPECT_EQ(fs::status(folder.path / "dst/nothing").permissions(), fs::perms::owner_all | fs::perms::group_read);
  EXPECT_FALSE(fs::is_symlink(fs::symlink_status(folder.path / "dst/out")));
  EXPECT_FALSE(fs::is_symlink(fs::symlink_status(folder.path / "dst/up")));
  EXPECT_EQ(slurp(folder.path / "dst" / long_name), "long");
  EXPECT_EQ(slurp(folder.path / "dst/big").size(), 70'001u);
  EXPECT_TRUE(fs::exists(folder.path / "dst/empty"));
}
TEST(Archive, UnpackStaysInside) {
  Folder folder;
  folder.put("evil", "x");
  ASSERT_EQ(
      std::system(("cd " + folder.path.string() + " && tar -cPf evil.tar --transform 's,evil,../out,' evil").c_str()),
      0);
  fs::create_directories(folder.path / "dst");
  Unpacker unpacker((folder.path / "dst").string());
  EXPECT_FALSE(unpacker.feed(slurp(folder.path / "evil.tar")).ok());
  EXPECT_FALSE(fs::exists(folder.path / "out"));
  Unpacker noise((folder.path / "dst").string());
  EXPECT_FALSE(noise.feed(std::string(512, 'z')).ok());
  fs::create_directory_symlink(folder.path, folder.path / "dst/evil");
  folder.put("in/evil/planted", "x");
  auto packed = pack((folder.path / "in").string(), Format::Tar);
  const TemporaryFile temporary(packed->file);
  Unpacker linked((folder.path / "dst").string());
  EXPECT_FALSE(linked.feed(slurp(packed->file)).ok());
  EXPECT_FALSE(fs::exists(folder.path / "planted"));
}
// A container may send anything: nothing of it lands outside, and a second copy over the first one works.
TEST(Archive, HostileLinksLeadNowhere) {
  Folder folder;
  const auto python = [&](const std::string& body) {
    folder.put("make.py",
               "import tarfile, io\nt = tarfile.open('" + (folder.path / "t.tar").string() +
                   "', 'w')\n"
                   "def add(name, kind=tarfile.REGTYPE, link='', data=b'', mode=0o644):\n"
                   "  i = tarfile.TarInfo(name); i.type = kind; i.linkname = link; i.size = len(data); i.mode = mode\n"
                   "  t.addfile(i, io.BytesIO(data))\n" +
                   body + "t.close()\n");
    EXPECT_EQ(std::system(("python3 " + (folder.path / "make.py").string()).c_str()), 0);
    return slurp(folder.path / "t.tar");
  };
  fs::create_directories(folder.path / "dst");
  const auto feed = [&](const std::string& bytes) {
    Unpacker unpacker((folder.path / "dst/").string());
    const Status fed = unpacker.feed(bytes);
    return fed.ok() ? unpacker.finish() : fed;
  };
  EXPECT_FALSE(feed(python("add('d', tarfile.SYMTYPE, '.')\nadd('d/../../x', data=b'x')\n")).ok());
  EXPECT_FALSE(feed(python("add('in', tarfile.SYMTYPE, 'sub')\nadd('in/x', data=b'x')\n")).ok());
  EXPECT_TRUE(
      feed(python("add('s', mode=0o6755)\nadd('h', tarfile.LNKTYPE, '../../etc/passwd')\nadd('p', tarfile.FIFOTYPE)\n"))
          .ok());
  EXPECT_EQ(fs::status(folder.path / "dst/s").permissions(), static_cast<fs::perms>(0755)) << "no set-user-id";
  EXPECT_FALSE(fs::exists(folder.path / "dst/h"));
  const std::string twice = python("add('f', tarfile.SYMTYPE, 's')\nadd('g', data=b'1')\n");
  EXPECT_TRUE(feed(twice).ok());
  EXPECT_TRUE(feed(twice).ok());
  fs::remove(folder.path / "dst/g");
  folder.put("mine", "mine");
  fs::create_symlink(folder.path / "mine", folder.path / "dst/g");
  EXPECT_TRUE(feed(twice).ok());
  EXPECT_EQ(slurp(folder.path / "mine"), "mine") << "a link in the place of a file is replaced, not written through";
  Unpacker one((folder.path / "dst").string(), "renamed");
  EXPECT_TRUE(one.feed(python("add('any', data=b'abc')\n")).ok());
  EXPECT_EQ(slurp(folder.path / "dst/renamed"), "abc");
}
TEST(Archive, ZipHoldsWhatLinksPointTo) {
  Folder folder;
  folder.put("lib/code.py", "code");
  fs::create_directories(folder.path / "src");
  fs::create_directory_symlink(folder.path / "lib", folder.path / "src/lib");
  fs::create_directory_symlink(folder.path / "src", folder.path / "src/loop");
  fs::create_symlink("nowhere", folder.path / "src/broken");
  auto packed = pack((folder.path / "src").string(), Format::Zip);
  ASSERT_TRUE(packed.ok());
  const TemporaryFile temporary(packed->file);
  EXPECT_EQ(std::system(("python3 -c \"import zipfile,sys; z=zipfile.ZipFile(sys.argv[1]); assert "
                         "z.read('lib/code.py')==b'code', z.namelist(); assert len(z.namelist())<=2\" " +
                         packed->file)
                            .c_str()),
            0);
}
TEST(Archive, Patterns) {
  EXPECT_TRUE(matches("*.pyc", "a/b/c.pyc"));
  EXPECT_TRUE(matches("**/.git", ".git"));
  EXPECT_TRUE(matches("**/.git/**", "x/.git"));
  EXPECT_TRUE(matches("a/*.txt", "a/b.txt"));
  EXPECT_FALSE(matches("a/*.txt", "c/a/b.txt"));
  EXPECT_FALSE(matches("b", "ab"));
}

// ---- API
class FakeTransport : public Transport {
 public:
  struct State {
    std::vector<Call> calls;
    std::vector<Result<net::Response>> answers;
    std::vector<std::vector<std::string>> chunks;
    Millis slept{0};
  };
  explicit FakeTransport(State& state) : state_(state) {}
  Result<net::Response> call(const Call& call) override { return next(call); }
  Result<net::Response> stream(const Call& call, const std::function<bool(std::string_view)>& on_chunk) override {
    if (!state_.chunks.empty()) {
      for (const auto& chunk : state_.chunks.front()) on_chunk(chunk);
      state_.chunks.erase(state_.chunks.begin());
    }
    return next(call);
  }
  Result<net::Response> upload(const Call& call, const std::string&,
                               const std::function<void(std::uint64_t)>&) override {
    return next(call);
  }
  void sleep(Millis time) override { state_.slept = state_.slept + time; }

 private:
  Result<net::Response> next(const Call& call) {
    state_.calls.push_back(call);
    if (state_.answers.empty()) return error(Code::Internal, "no answer left");
    auto answer = state_.answers.front();
    state_.answers.erase(state_.answers.begin());
    return answer;
  }
  State& state_;
};
net::Response ok(const std::string& body) {
  return {.status = 200, .body = body};
}
Api api_of(FakeTransport::State& state) {
  return {std::make_unique<FakeTransport>(state), Account{.server = "https://x", .token = "secret"}};
}

TEST(ApiCalls, MutationsRetryUnderOneKey) {
  FakeTransport::State state;
  state.answers = {error(Code::Unavailable, "lost"),
                   net::Response{.status = 503, .body = R"({"code":"unavailable","detail":"later"})"},
                   ok(R"({"id":"cl-1"})")};
  auto api = api_of(state);
  const auto answer = api.send("POST", "/api/v1/clusters", "{}");
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  ASSERT_EQ(state.calls.size(), 3u);
  EXPECT_EQ(state.calls[0].headers.at("idempotency-key").size(), 32u);
  EXPECT_EQ(state.calls[0].headers.at("idempotency-key"), state.calls[2].headers.at("idempotency-key"));
  EXPECT_EQ(state.calls[0].headers.at("authorization"), "Bearer secret");
  EXPECT_EQ(state.slept, Millis(600));
}
TEST(Quota, ChangesWhatIsNamedAndKeepsTheRest) {
  const std::string view =
      R"({"project":{"id":"prj-1","name":"default","limit":{"gpus":"8","cpus":1.5,"clusters":"0"},)"
      R"("held":{"gpus":"4","cpus":0.5,"clusters":"2"},"share":{"weight":"250","guaranteeGpus":"2",)"
      R"("guaranteeCpus":1.5}},"org":{"id":"org-1","name":"lab","limit":{"gpus":"0","cpus":0,)"
      R"("clusters":"0"},"held":{"gpus":"5","cpus":12,"clusters":"3"},"share":{"weight":"100","guaranteeGpus":"0",)"
      R"("guaranteeCpus":0}}})";
  FakeTransport::State state;
  state.answers = {ok(view), ok(view)};
  auto api = api_of(state);
  const auto answer = change_quota(api, "/api/v1/projects/default/quota", {.gpus = 0, .clusters = 3, .cpus = {}});
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  ASSERT_EQ(state.calls.size(), 2u);
  EXPECT_EQ(state.calls[1].method, "PUT");
  EXPECT_EQ(state.calls[1].target, "/api/v1/projects/default/quota");
  const auto put = wire::parse_set_quota(state.calls[1].body);
  ASSERT_TRUE(put.ok()) << put.error().message;
  EXPECT_EQ(put->quota, (Quota{0, 1'500, 3}));
  EXPECT_EQ(quota_table(*answer, false),
            "OF            NAME     GPUS    CPUS        CLUSTERS  WEIGHT  GUARANTEED\n"
            "project       default  4 of 8  0.5 of 1.5  2         250     2 GPU, 1.5 CPU\n"
            "organisation  lab      5       12          3         100     -\n");
  EXPECT_FALSE(put->share.has_value()) << "what only operators change is not sent";
  state.calls.clear(), state.answers = {ok(view), ok(view)};
  ASSERT_TRUE(change_quota(api, "/x", {.gpus = {}, .clusters = {}, .cpus = {}, .guarantee_gpus = 4}).ok());
  EXPECT_EQ(wire::parse_set_quota(state.calls.at(1).body)->share, (Share{250, 4, 1'500}));
  state.answers = {ok(view)};
  EXPECT_FALSE(change_quota(api, "/x", {.gpus = {}, .clusters = {}, .cpus = -1}).ok());
}
TEST(Quota, TiersAreShown) {
  const auto view = wire::parse_json(
      R"({"rows":[{"tier":0,"guaranteePermille":0,"heldPermille":125},{"tier":3,"guaranteePermille":200,"heldPermille":0}]})");
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(tiers_table(*view, false),
            "TIER  GUARANTEED  HOLDS\n"
            "0     -           12.5 %\n"
            "3     20 %        0 %\n");
}
TEST(Quota, HeadroomIsShown) {
  const auto view = wire::parse_json(
      R"({"rows":[{"gpuModel":"","machines":1,"tier":0,"free":4},{"gpuModel":"NVIDIA H100","machines":2,"tier":1,"free":1}]})");
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(headroom_table(*view, false),
            "GPU          KEPT BACK  FREE  FOR TIERS\n"
            "(none)       1          4     0\n"
            "NVIDIA H100  2          1     0-1\n");
}
TEST(Images, ChangesWhatIsNamedOfTheNarrowestAndKeepsTheRest) {
  const std::string view =
      R"({"platform":{"id":"org-1","name":"platform","policy":{"deny":["evil/*"]}},)"
      R"("org":{"id":"org-2","name":"lab","policy":{}},)"
      R"("project":{"id":"prj-1","name":"default","policy":{"allow":["a","b"],"requireDigest":true,"keys":["K"]},)"
      R"("keyFingerprints":["ab12"]}})";
  FakeTransport::State state;
  auto api = api_of(state);
  const auto put = [&](const ImagePolicyChange& change) {
    state.calls.clear(), state.answers = {ok(view), ok(view)};
    const auto answer = change_image_policy(api, "/api/v1/projects/default/image-policy", change);
    EXPECT_TRUE(answer.ok()) << (answer.ok() ? "" : answer.error().message);
    EXPECT_EQ(state.calls.at(1).target, "/api/v1/projects/default/image-policy");
    return wire::parse_set_image_policy(state.calls.at(1).body)->policy;
  };
  EXPECT_EQ(put({.deny = {"c"}}), (ImagePolicy{{"a", "b"}, {"c"}, true, {"K"}}));
  EXPECT_EQ(put({.allow = {"all"}, .keys = {"none"}, .require_digest = false}), ImagePolicy{});
  const Folder folder;
  std::ofstream(folder.path / "cosign.pub") << "-----BEGIN PUBLIC KEY-----";
  EXPECT_EQ(put({.keys = {(folder.path / "cosign.pub").string()}}).keys,
            std::vector<std::string>{"-----BEGIN PUBLIC KEY-----"});
  state.answers = {ok(view)};
  EXPECT_FALSE(change_image_policy(api, "/x", {.keys = {"/nonexistent"}}).ok());
  EXPECT_EQ(image_policy_text(json(view)),
            "everybody, by the platform\n  denied    evil/*\norganisation lab\n  every image may run\nproject default\n"
            "  allowed   a\n  allowed   b\n  named     by their digests (IMAGE@sha256:...)\n"
            "  signed    with one of these keys (SHA-256):\n            ab12\n");
}
// deploy/scanners, with programs that answer as those scanners document it.
TEST(Images, AdaptersOfOtherScannersSayWhatTheyFound) {
  const Folder folder;
  const auto program = [&](const std::string& name, const std::string& body) {
    const std::string path = (folder.path / name).string();
    std::ofstream(path) << "#!/bin/sh\n" << body;
    fs::permissions(path, fs::perms::owner_all);
  };
  program(
      "trivy",
      R"sh(case "$1" in version) echo '{"Version":"0.50.1","VulnerabilityDB":{"Version":2,"UpdatedAt":"2026-11-28T06:11:42.5Z"}}' ;;
image) [ "${11}" = image.tar ] || exit 3
echo '{"SchemaVersion":2,"Results":[{"Target":"x (debian 12.4)","Class":"os-pkgs","Vulnerabilities":[{"VulnerabilityID":"CVE-2024-1",
"PkgName":"libssl3","InstalledVersion":"3.0.11-1","FixedVersion":"3.0.12-1","Severity":"HIGH"},{"VulnerabilityID":"CVE-2024-2","PkgName":"bash",
"InstalledVersion":"5.2","Severity":"LOW"}]},{"Target":"Python","Class":"lang-pkgs"}]}' ;; esac
)sh");
  program("grype",
          R"sh([ "$1" = docker-archive:image.tar ] || exit 3
echo '{"matches":[{"vulnerability":{"id":"CVE-2024-1","severity":"Critical","fix":{"versions":["3.0.12-1"],"state":"fixed"}},
"artifact":{"name":"libssl3","version":"3.0.11-1"}}],"descriptor":{"name":"grype","version":"0.74.0","db":{"built":"2026-11-28T01:02:03Z"}}}'
)sh");
  const std::string before = std::getenv("PATH");
  ::setenv("PATH", (folder.path.string() + ":" + before).c_str(), 1);
  const std::string adapters = muster::test_root() + "/deploy/scanners/";
  const auto trivy = ask_scanner(adapters + "trivy-report", "image.tar");
  const auto grype = ask_scanner(adapters + "grype-report", "image.tar");
  program("trivy", "exit 1\n");
  EXPECT_FALSE(ask_scanner(adapters + "trivy-report", "image.tar").ok());
  ::setenv("PATH", before.c_str(), 1);
  ASSERT_TRUE(trivy.ok()) << trivy.error().message;
  EXPECT_EQ(trivy->scanner, "trivy 0.50.1");
  EXPECT_EQ(trivy->database, *scan::parse_time("2026-11-28T06:11:42Z"));
  ASSERT_EQ(trivy->findings.size(), 2U);
  EXPECT_EQ(trivy->findings[0],
            (scan::Finding{"CVE-2024-1", "libssl3", "3.0.11-1", "3.0.12-1", scan::Severity::High, {}}));
  ASSERT_TRUE(grype.ok()) << grype.error().message;
  EXPECT_EQ(grype->scanner, "grype 0.74.0");
  EXPECT_EQ(grype->findings[0].severity, scan::Severity::Critical);
  EXPECT_EQ(grype->findings[0].fixed, "3.0.12-1");
}

TEST(Images, VerdictsOfThePlatformForPeople) {
  const auto rows = wire::parse_json(
      R"([{"image":"r.example/app@sha256:ab","verdict":"block","why":"1 finding is high or worse","system":"Debian:12","packages":300,"found":1,)"
      R"("findings":[{"id":"CVE-1","severity":"high","package":"libssl3","version":"1","fixed":"","waivedBy":""}]}])");
  ASSERT_TRUE(rows.ok());
  EXPECT_EQ(verdicts_text(rows->items(), false, false),
            "VERDICT  IMAGE                    SYSTEM     PACKAGES  FOUND  WHY\n"
            "block    r.example/app@sha256:ab  Debian:12  300       1      1 finding is high or worse\n");
  EXPECT_NE(verdicts_text(rows->items(), true, false).find("CVE-1  high      libssl3  1        -"), std::string::npos)
      << verdicts_text(rows->items(), true, false);
  EXPECT_TRUE(verdicts_text({}, false, false).starts_with("No verdicts"));
}

TEST(Images, ScansAFolderByADatabaseAndAsksPlugIns) {
  const Folder folder;
  const auto write = [&](const std::string& name, const std::string& text) {
    fs::create_directories((folder.path / name).parent_path());
    std::ofstream(folder.path / name) << text;
    return (folder.path / name).string();
  };
  const std::string root = (folder.path / "root").string(), osv = (folder.path / "osv").string();
  write("root/etc/os-release", "ID=debian\nVERSION_ID=12\n");
  write("root/var/lib/dpkg/status",
        "Package: libssl3\nStatus: install ok installed\nSource: openssl\nVersion: 3.0.9-1\n");
  write("osv/deep/CVE-2024-1.json",
        R"({"id":"CVE-2024-1","modified":"2026-11-20T00:00:00Z","database_specific":{"severity":"HIGH"},)"
        R"("affected":[{"package":{"ecosystem":"Debian:12","name":"openssl"},)"
        R"("ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"0"},{"fixed":"3.0.11-1"}]}]}]})");
  const auto facts = scan_image(root, osv);
  ASSERT_TRUE(facts.ok()) << facts.error().message;
  const auto verdict = scan::judge(*facts, {}, *scan::parse_time("2026-11-21"));
  EXPECT_EQ(verdict_text(*facts, verdict, false),
            "ID          SEVERITY  PACKAGE  VERSION  FIXED IN  WAIVED BY\n"
            "CVE-2024-1  high      libssl3  3.0.9-1  3.0.11-1  -\n\n"
            "block: 1 finding is high or worse (by " +
                facts->scanner + ")\n");
  fs::create_directories(folder.path / "empty");
  const auto unknown = scan_image(root, (folder.path / "empty").string());
  EXPECT_EQ(scan::judge(*unknown, {}, *scan::parse_time("2026-11-21")).outcome, scan::Outcome::NotScanned);
  EXPECT_FALSE(scan_image(root, (folder.path / "nowhere").string()).ok());
  EXPECT_FALSE(scan_image((folder.path / "nowhere").string(), osv).ok());
  write("osv/broken.json", "{");
  EXPECT_NE(scan_image(root, osv).error().message.find("broken.json"), std::string::npos);

  const std::string plug_in =
      write("scanner", "#!/bin/sh\ntest \"$1\" = image.tar && echo '" +
                           scan::report_json({"other 1", WallTime{86'400'000}, {}, {}}) + "'\n");
  fs::permissions(plug_in, fs::perms::owner_all);
  const auto said = ask_scanner(plug_in, "image.tar");
  ASSERT_TRUE(said.ok()) << said.error().message;
  EXPECT_EQ(said->scanner, "other 1");
  EXPECT_FALSE(ask_scanner(plug_in, "another.tar").ok()) << "it ended with 1";
  EXPECT_FALSE(ask_scanner((folder.path / "nowhere").string(), "image.tar").ok());
}
TEST(Offers, ChangesWhatIsNamedAndKeepsTheRest) {
  const std::string none = R"({"id":"node-3","name":"pc"})";
  const std::string some =
      R"({"id":"node-3","name":"pc","offer":{"currency":"EUR","priceMicros":"1200000","gpuPriceMicros":"800000",)"
      R"("floorMicros":"1200000","gpuFloorMicros":"500000","tenants":["lab"],"images":["muster/"],)"
      R"("maxLeaseSeconds":"43200","hours":"Mon-Fri 18:00-08:00","timezone":"Europe/Berlin","noticeSeconds":"900",)"
      R"("openUntil":"2026-11-30T07:00:00Z"}})";
  FakeTransport::State state;
  auto api = api_of(state);
  const auto put = [&](const std::string& before, OfferChange change) {
    state.calls.clear(), state.answers = {ok(before), ok(some)};
    change.node = "pc";
    const auto answer = change_offer(api, change);
    EXPECT_TRUE(answer.ok()) << answer.error().message;
    EXPECT_EQ(state.calls.at(1).method + " " + state.calls.at(1).target, "PUT /api/v1/nodes/pc/offer");
    return wire::parse_set_offer(state.calls.at(1).body).value().offer;
  };
  const auto first = put(none, {.price = "1.20 EUR", .hours = "Mon-Fri 18:00-08:00", .zone = "Europe/Berlin"});
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->offer.price, 1'200'000);
  EXPECT_EQ(first->offer.floor, 1'200'000);
  EXPECT_EQ(first->offer.currency, "EUR");
  EXPECT_EQ(first->offer.hours.size(), 5U);
  const auto cheaper = put(some, {.price = "1", .tenants = {"all"}, .max_hours = 2.5});
  EXPECT_EQ(cheaper->offer.currency, "EUR") << "an amount without a name is of the currency in force";
  EXPECT_EQ(cheaper->offer.price, 1'000'000);
  EXPECT_EQ(cheaper->offer.floor, 1'000'000) << "where there was no floor there is none";
  EXPECT_EQ(cheaper->offer.gpu_floor, 500'000);
  EXPECT_EQ(cheaper->offer.longest, Millis(9'000'000));
  EXPECT_TRUE(cheaper->tenants.empty());
  EXPECT_EQ(cheaper->offer.images, std::vector<std::string>{"muster/"});
  EXPECT_EQ(cheaper->offer.zone, "Europe/Berlin");
  const auto always = put(some, {.hours = "always"});
  EXPECT_TRUE(always->offer.hours.empty());
  EXPECT_EQ(always->offer.zone, "");
  EXPECT_FALSE(put(some, {.clear = true}).has_value());
  for (const OfferChange& bad :
       {OfferChange{.price = "much"}, OfferChange{.price = "1 EUR", .gpu_price = "2 USD"}, OfferChange{.max_hours = -1},
        OfferChange{.notice = "soon"}, OfferChange{.hours = "Mon 09:00-17:00"}}) {
    state.calls.clear(), state.answers = {ok(none)};
    EXPECT_FALSE(change_offer(api, bad).ok());
    EXPECT_EQ(state.calls.size(), 1U) << "nothing was sent";
  }
  const auto node = *wire::parse_json(some);
  EXPECT_EQ(asks_text(node), "1.20 EUR + 0.80/GPU");
  EXPECT_EQ(asks_text(*wire::parse_json(none)), "-");
  const std::string text = offer_text(node);
  for (const char* part : {"1.20 EUR an hour, and 0.80 EUR for each GPU", "at least  1.20 EUR", "tenants   lab",
                           "at most 12 h", "open until 2026-11-30 07:00:00", "told to leave 15 m"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
}
TEST(Net, ShowsTheMatrixAndExplainsAPair) {
  const auto net = *wire::parse_json(R"({"clusterId":"cl-1","name":"demo","pairKbps":"100000","members":[
    {"slot":"slot-1","role":"head","nodeName":"home","address":"100.64.0.1","reported":true,"at":"2026-11-29T10:00:00Z",
     "relayUp":true,"relay":"relay:443","udp":"kept","others":1,"carries":true,
     "relays":[{"address":"east:443","region":"east","up":true,"rttMs":9.5,"udpRttMs":8.5,"byUdp":true},{"address":"west:443","region":"west"}],
     "forwarded":[{"from":"slot-2","to":"slot-1","bytes":"4096","signedFrom":"3072","signedTo":"2048"}]},
    {"slot":"slot-2","role":"worker","nodeName":"cafe","address":"100.64.0.2","udp":"unknown"}],
   "pairs":[{"from":"slot-1","to":"slot-2","path":"relay-udp","rttMs":41.5,"loss":0.125,"probes":32,"ageSeconds":"90",
     "handshakeSeconds":"5","rxBytes":"2048","txBytes":"0","relayRttMs":41.5,"changes":1,"why":"no UDP",
     "relay":"east:443","relays":[{"address":"east:443","region":"east","rttMs":41.5,"sent":9,"answered":8,"inUse":true},
     {"address":"west:443","region":"west","rttMs":120,"sent":3,"answered":3}],
     "rxBytesS":"0","txBytesS":"1048576","carriesBytesS":"1572864","carriesAgeSeconds":"7","slow":true,"tested":true,
     "tries":[{"path":"direct","origin":"told","sent":9,"outcome":"no answer"}]}]})");
  const std::string text = net_text(net, false);
  EXPECT_NE(text.find("FROM \\ TO  home  cafe"), std::string::npos) << text;
  EXPECT_NE(text.find("relay-udp east 42 ms"), std::string::npos) << "where there are several, which: " << text;
  EXPECT_NE(text.find("home  east:443  east    up     UDP   9.5 ms  8.5 ms"), std::string::npos) << text;
  EXPECT_NE(text.find("home  west:443  west    down   -     -       -"), std::string::npos) << text;
  EXPECT_NE(text.find("\nMay carry for others: home\n"), std::string::npos) << text;
  EXPECT_NE(text.find("home        cafe  home  4.0 KiB  3.0 KiB         2.0 KiB"), std::string::npos) << text;
  EXPECT_NE(text.find("12 %"), std::string::npos) << text;
  EXPECT_NE(text.find("2.0 KiB"), std::string::npos) << text;
  EXPECT_NE(text.find("1.0 MiB/s"), std::string::npos) << text;
  EXPECT_NE(text.find("Each pair should carry 100 Mbit/s each way"), std::string::npos) << text;
  EXPECT_NE(text.find("1.5 MiB/s tested slow"), std::string::npos) << text;
  EXPECT_EQ(net_member(net, "head").value(), "slot-1");
  EXPECT_EQ(net_member(net, "cafe").value(), "slot-2");
  EXPECT_EQ(net_member(net, "100.64.0.2").value(), "slot-2");
  EXPECT_EQ(net_member(net, "nobody").error().code, Code::NotFound);
  const std::string why = explain_text(net, "slot-1", "slot-2");
  EXPECT_NE(why.find("home -> cafe"), std::string::npos) << why;
  EXPECT_NE(why.find("why    no UDP"), std::string::npos) << why;
  EXPECT_NE(why.find("slow   it stays below the 100 Mbit/s that the cluster asks for"), std::string::npos) << why;
  EXPECT_NE(why.find("speed  1.0 MiB/s out, - in; it carries 1.5 MiB/s out, as measured 7 s ago by a test"),
            std::string::npos)
      << why;
  EXPECT_NE(why.find("told by the other): no answer, 0 of 9 probes answered"), std::string::npos) << why;
  EXPECT_NE(why.find("relay  east:443 (east): 42 ms from end to end, 8 of 9 probes answered; the one in use"),
            std::string::npos)
      << why;
  EXPECT_NE(why.find("relay  west:443 (west): 120 ms from end to end, 3 of 3 probes answered\n"), std::string::npos);
  EXPECT_NE(why.find("has not reported yet"), std::string::npos) << "of the other end nothing is known: " << why;
}
TEST(Net, ListsWhatWasMeasured) {
  const auto node = wire::parse_json(R"({"nodeId":"node-1","ways":[
    {"nodeId":"node-2","nodeName":"cafe","path":"direct","kbps":"200000","samples":6,"confidence":0.75,"rttMs":12.5,
     "measuredAt":"2026-11-30T10:00:00Z","seenAt":"2026-11-30T10:00:00Z"},
    {"nodeId":"node-3","path":"relay","kbps":"0","seenAt":"2026-11-30T10:00:00Z"}]})");
  const std::string text = ways_text(*node, false);
  EXPECT_NE(text.find("cafe    direct  200 Mbit/s  6      75 %"), std::string::npos) << text;
  EXPECT_NE(text.find("node-3  relay   -           0      0 %         -"), std::string::npos) << text;
  EXPECT_NE(ways_text(*wire::parse_json("{}"), false).find("Nothing was measured"), std::string::npos);
}
TEST(Net, ListsWhatWasCarriedAndAddsItUp) {
  const auto rows = wire::parse_json(R"({"items":[
    {"day":"2026-11-30","nodeId":"node-1","nodeName":"home","clusterId":"cl-4","clusterName":"demo","tenantOrgId":"org-3","bytes":"2048"},
    {"day":"2026-12-01","nodeId":"node-2","clusterId":"cl-5","tenantOrgId":"org-4","bytes":"1024"}]})");
  const std::string text = carried_rows((*rows)["items"].items(), false);
  EXPECT_NE(text.find("2026-11-30  home        demo         org-3  2.0 KiB"), std::string::npos) << text;
  EXPECT_NE(text.find("2026-12-01  node-2      cl-5         org-4  1.0 KiB"), std::string::npos) << text;
  EXPECT_NE(text.find("Together 3.0 KiB"), std::string::npos) << text;
  EXPECT_NE(carried_rows({}, false).find("Nothing was carried"), std::string::npos);
}
TEST(Passwd, TwoLinesGoIntoTheBodyAndNowhereElse) {
  for (const char* text : {"", "one", "one\n", "one\ntwo\nthree\n", "\ntwo\n"})
    EXPECT_FALSE(passwords_of(text).ok()) << text;
  const auto read = passwords_of("old one\r\nnew one\n");
  ASSERT_TRUE(read.ok());
  FakeTransport::State state;
  state.answers = {
      ok(R"({"revokedTokens":"3"})"),
      net::Response{.status = 400, .body = R"({"code":"invalid_argument","detail":"the old password is wrong"})"}};
  auto api = api_of(state);
  EXPECT_EQ(change_password(api, *read).value(), "3");
  ASSERT_EQ(state.calls.size(), 1u);
  EXPECT_EQ(state.calls[0].method + " " + state.calls[0].target, "POST /api/v1/password");
  const auto sent = wire::parse_change_password(state.calls[0].body);
  ASSERT_TRUE(sent.ok());
  EXPECT_EQ(sent->old_password + "/" + sent->new_password, "old one/new one");
  for (const auto& [name, value] : state.calls[0].headers) EXPECT_EQ(value.find("one"), std::string::npos) << name;
  EXPECT_EQ(change_password(api, *read).error().message, "the old password is wrong");
}

TEST(Totp, ACodeIsAskedForWhereTheServerWantsOne) {
  std::vector<std::string> sent;
  int asked = 0;
  const auto ask = [&]() -> Result<std::string> { return "code-" + std::to_string(++asked); };
  const auto server = [&](const std::string& good, const std::string& field = "code") {
    return [&sent, good, field](const std::string& code) -> Result<wire::Json> {
      sent.push_back(code);
      if (code == good) return json(R"({"token":"t"})");
      return error(Code::Unauthenticated, "no", field);
    };
  };
  EXPECT_EQ((*call_with_code(server(""), "", ask))["token"].text(), "t");
  EXPECT_EQ(asked, 0) << "no second factor";
  EXPECT_TRUE(call_with_code(server("code-2"), "", ask).ok());
  EXPECT_EQ(sent, (std::vector<std::string>{"", "", "code-1", "code-2"}));
  asked = 0;
  EXPECT_FALSE(call_with_code(server("x"), "", ask).ok());
  EXPECT_EQ(asked, 3);
  asked = 0;
  EXPECT_FALSE(call_with_code(server("x"), "from a file", ask).ok());
  EXPECT_FALSE(call_with_code(server("x", ""), "", ask).ok()) << "the password is wrong";
  EXPECT_EQ(asked, 0);
}
TEST(Totp, PasswordAndCodeComeFromFiles) {
  Folder folder;
  folder.put("password", "pass word\n");
  folder.put("code", "123456\n");
  folder.put("both", "pass word\r\n123456\r\n");
  const std::string at = folder.path.string() + "/";
  const auto read = [&](const std::string& password, const std::string& code) {
    const auto proof = read_proof(password, code);
    return proof.ok() ? proof->password + "/" + proof->code : proof.error().message.substr(0, 11);
  };
  EXPECT_EQ(read("", ""), "/");
  EXPECT_EQ(read(at + "password", ""), "pass word/");
  EXPECT_EQ(read("", at + "code"), "/123456");
  EXPECT_EQ(read(at + "password", at + "code"), "pass word/123456");
  EXPECT_EQ(read(at + "both", at + "both"), "pass word/123456");
  EXPECT_EQ(read(at + "password", at + "password"), "--code-file");
}

// What a browser would do with the port of a login.
std::string browse(std::uint16_t port, const std::string& request) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string out;
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
      ::send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
    char buffer[4096];
    for (ssize_t n; (n = ::recv(fd, buffer, sizeof buffer, 0)) > 0;) out.append(buffer, static_cast<std::size_t>(n));
  }
  ::close(fd);
  return out;
}
std::string get(const std::string& target) {
  return "GET " + target + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
}

TEST(Sso, OnlyTheAnswerWithItsStateEndsTheWait) {
  const auto callback = Callback::open();
  ASSERT_TRUE(callback.ok());
  const std::uint16_t port = (*callback)->port();
  const int silent = ::socket(AF_INET, SOCK_STREAM, 0);  // as browsers open them ahead
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(silent, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  std::string page;
  std::vector<std::string> refused;
  std::thread browser([&] {
    for (const auto& other :
         {get("/"), get("/callback?code=c"), get("/callback?code=c&state=other"), get("/callback?state=right"),
          std::string("POST /callback?code=c&state=right HTTP/1.1\r\n\r\n"), std::string("\x16\x03\x01\r\n\r\n"),
          "GET /" + std::string(20'000, 'x')})
      refused.push_back(browse(port, other));
    page = browse(port, get("/callback?code=c%2B1&state=right&iss=https%3A%2F%2Fa.example"));
  });
  const auto answer = (*callback)->wait("right", Millis(20'000));
  (*callback)->tell("Logged in", "<b>");
  browser.join();
  ::close(silent);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->code + " " + answer->issuer, "c+1 https://a.example");
  ASSERT_EQ(refused.size(), 7U);
  for (const auto& each : refused) EXPECT_TRUE(each.empty() || each.starts_with("HTTP/1.1 4")) << each;
  EXPECT_NE(page.find("&lt;b&gt;"), std::string::npos) << page;
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  EXPECT_EQ((*callback)->wait("right", Millis(1)).error().code, Code::DeadlineExceeded);
}

TEST(Sso, ACancelledLoginSaysSoInTheTerminalAndInTheBrowser) {
  const auto callback = Callback::open();
  ASSERT_TRUE(callback.ok());
  std::vector<std::string> calls;
  std::string told;
  SsoWorld world;
  world.call = [&](const std::string& target, const std::string&) -> Result<wire::Json> {
    calls.push_back(target);
    return json(R"({"handle":"h","url":"https://login.example/?a=b","state":"st"})");
  };
  world.tell = [&](const std::string& text) { told += text; };
  std::string page;
  std::thread browser([&] { page = browse((*callback)->port(), get("/callback?error=access_denied&state=st")); });
  const auto done = login_in_browser(world, **callback, Millis(20'000));
  browser.join();
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code, Code::Cancelled);
  EXPECT_NE(told.find("https://login.example/?a=b"), std::string::npos);
  EXPECT_NE(page.find("cancelled"), std::string::npos) << page;
  EXPECT_EQ(calls, std::vector<std::string>{"/api/v1/sso/begin"}) << "there is no code to send";
  world.call = [](const std::string&, const std::string&) -> Result<wire::Json> {
    return json(R"({"handle":"h","url":"file:///etc/passwd","state":"st"})");
  };
  EXPECT_EQ(login_in_browser(world, **callback, Millis(1)).error().code, Code::PermissionDenied);
}

TEST(Sso, ByCodeItAsksAsOftenAsItIsTold) {
  std::vector<Result<wire::Json>> answers = {
      json(R"({"handle":"h","userCode":"WDJB-MJHT","verificationUrl":"https://a.example/d","intervalSeconds":"3"})"),
      json(R"({"pending":true,"retrySeconds":"3"})"),
      error(Code::Unavailable, "the network is away"),
      json(R"({"pending":true,"retrySeconds":"8"})"),
      error(Code::ResourceExhausted, "too many"),
      json(R"({"login":{"token":"t"},"project":"p"})")};
  std::size_t at = 0;
  std::vector<std::int64_t> slept;
  std::string told;
  SsoWorld world;
  world.call = [&](const std::string&, const std::string&) { return answers.at(at++); };
  world.tell = [&](const std::string& text) { told += text; };
  world.sleep = [&](Millis time) { slept.push_back(time.count()); };
  const auto done = login_by_code(world);
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ((*done)["login"]["token"].text(), "t");
  EXPECT_EQ(slept, (std::vector<std::int64_t>{3000, 3000, 3000, 8000, 8000}));
  EXPECT_NE(told.find("WDJB-MJHT"), std::string::npos);
  answers = {answers[0], error(Code::FailedPrecondition, "the code was not used in time; begin again")};
  at = 0;
  EXPECT_EQ(login_by_code(world).error().code, Code::FailedPrecondition);
}

// The digests are of what Python's qrcode 8.2 draws, row by row, with the same masks.
TEST(Qr, IsDrawnAsOthersDoIt) {
  const auto rows = [](std::size_t size, int mask) {
    std::string text, out;
    for (std::size_t i = 0; i < size; ++i) text += static_cast<char>('a' + i * 7 % 26);
    const auto code = encode_qr(text, mask);
    for (int row = 0; code.ok() && row < code->size; ++row)
      for (int column = 0; column < code->size; ++column) out += code->at(row, column) ? '1' : '0';
    return std::to_string(code.ok() ? code->size : 0) + " " + crypto::sha256_hex(as_bytes(out)).substr(0, 16);
  };
  EXPECT_EQ(rows(17, 0), "21 e47fabc0d3fe2eef");
  EXPECT_EQ(rows(30, 1), "25 d1cf90ef60b1b97c");
  EXPECT_EQ(rows(53, 2), "29 cc3b0295cc85265c");
  EXPECT_EQ(rows(70, 3), "33 8ad034a6381b7c58");
  EXPECT_EQ(rows(106, 4), "37 92b597267de0f2f4");
  EXPECT_EQ(rows(110, 5), "41 7c3aeded0b9f105a");
  EXPECT_EQ(rows(150, 6), "45 7aae430247f02cc3");
  EXPECT_EQ(rows(192, 7), "49 f597160ebc3b63ee");
  EXPECT_EQ(rows(230, 0), "53 7341b205c42c2399");
  EXPECT_EQ(encode_qr(std::string(231, 'x')).error().code, Code::TooLarge);
  const auto best = encode_qr("otpauth://totp/x");
  ASSERT_TRUE(best.ok());
  const std::string text = qr_text(*best);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), (best->size + 9) / 2);
}

TEST(ApiCalls, ProblemsBecomeErrors) {
  FakeTransport::State state;
  state.answers = {
      net::Response{.status = 404, .body = R"({"code":"not_found","detail":"no such cluster","field":"id"})"},
      net::Response{.status = 403, .body = "<html>"}};
  auto api = api_of(state);
  const auto missing = api.get("/api/v1/clusters/x");
  EXPECT_EQ(missing.error(), error(Code::NotFound, "no such cluster", "id"));
  EXPECT_EQ(exit_code(missing.error()), 3);
  EXPECT_EQ(exit_code(api.get("/x").error()), 4);
  EXPECT_EQ(exit_code(error(Code::Unavailable, "")), 5);
  EXPECT_EQ(exit_code(error(Code::InvalidArgument, "")), 2);
  EXPECT_EQ(exit_code(error(Code::Aborted, "")), 1);
}
TEST(ApiCalls, ListsFollowTheCursor) {
  FakeTransport::State state;
  state.answers = {ok(R"({"items":[{"id":"a"}],"nextCursor":"p 2"})"), ok(R"({"items":[{"id":"b"}],"nextCursor":""})")};
  auto api = api_of(state);
  const auto items = api.list("/api/v1/nodes");
  ASSERT_TRUE(items.ok());
  EXPECT_EQ(items->size(), 2u);
  EXPECT_EQ(state.calls[1].target, "/api/v1/nodes?limit=500&cursor=p%202");
}
TEST(ApiCalls, UploadChecksTheDigest) {
  FakeTransport::State state;
  state.answers = {ok(R"({"digest":"aa","bytes":"1"})"), ok(R"({"digest":"bb","bytes":"1"})")};
  auto api = api_of(state);
  EXPECT_TRUE(api.upload("f", "aa", nullptr).ok());
  EXPECT_EQ(api.upload("f", "aa", nullptr).error().code, Code::DataLoss);
}

// ---- following
TEST(Follow, ResumesAtTheByteAndEndsWithTheJob) {
  FakeTransport::State state;
  const std::string running = R"({"id":"job-1","state":"running","attempt":1})";
  state.chunks = {{"one ", "two "}, {}, {"three"}, {}};
  state.answers = {ok(running),
                   error(Code::Unavailable, "cut"),
                   ok(running),
                   error(Code::Unavailable, "down"),
                   ok(running),
                   ok(""),
                   ok(R"({"id":"job-1","state":"failed","attempt":1,"exitCode":7})"),
                   ok("")};
  auto api = api_of(state);
  std::string log;
  const auto end = follow_job(api, "job-1", {}, {[&](std::string_view bytes) { log += bytes; }, nullptr});
  ASSERT_TRUE(end.ok()) << end.error().message;
  EXPECT_EQ(log, "one two three");
  EXPECT_EQ(job_exit_code(*end), 7);
  EXPECT_EQ(state.calls[3].target, "/api/v1/jobs/job-1/logs?offset=8&attempt=1&follow=true");
  EXPECT_EQ(state.calls[7].target, "/api/v1/jobs/job-1/logs?offset=13&attempt=1");
}
TEST(Follow, ANewAttemptStartsItsLogAnew) {
  FakeTransport::State state;
  state.chunks = {{"first"}, {"second"}};
  state.answers = {ok(R"({"id":"job-1","state":"running","attempt":1})"), ok(""),
                   ok(R"({"id":"job-1","state":"succeeded","attempt":2})"), ok("")};
  auto api = api_of(state);
  std::string log, notes;
  const auto end =
      follow_job(api, "job-1", {},
                 {[&](std::string_view bytes) { log += bytes; }, [&](const std::string& note) { notes += note; }});
  ASSERT_TRUE(end.ok());
  EXPECT_EQ(log, "firstsecond");
  EXPECT_NE(notes.find("attempt 2"), std::string::npos);
  EXPECT_EQ(state.calls[3].target, "/api/v1/jobs/job-1/logs?offset=0&attempt=2");
  EXPECT_EQ(job_exit_code(*end), 0);
}
TEST(Follow, SseInAnyPieces) {
  const std::string text = ": hello\n\nid: 7\nevent: cluster\ndata: {\"a\":1}\n\ndata: x\ndata: y\r\n\r\n";
  for (std::size_t size = 1; size < 12; ++size) {
    SseParser parser;
    std::vector<SseEvent> events;
    for (std::size_t at = 0; at < text.size(); at += size)
      parser.feed(std::string_view(text).substr(at, size), [&](const SseEvent& e) { events.push_back(e); });
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[0].id + events[0].type + events[0].data, "7cluster{\"a\":1}");
    EXPECT_EQ(events[1].data, "x\ny");
    EXPECT_EQ(events[1].id, "7");
  }
}

// ---- gate
TEST(Gate, OneTimeLinkThenCookie) {
  HttpGate gate(8265, "once", "cookie1", "raytoken");
  EXPECT_EQ(gate.link(), "http://localhost:8265/?muster=once");
  const std::string host = "Host: localhost:8265\r\n";
  EXPECT_NE(gate.decide("GET / HTTP/1.1\r\n" + host + "\r\n").text.find("403"), std::string::npos);
  EXPECT_NE(gate.decide("GET /?muster=wrong HTTP/1.1\r\n" + host + "\r\n").text.find("403"), std::string::npos);
  const auto first = gate.decide("GET /?muster=once HTTP/1.1\r\n" + host + "\r\n");
  EXPECT_FALSE(first.pass);
  EXPECT_NE(first.text.find("303"), std::string::npos);
  EXPECT_NE(first.text.find("Set-Cookie: muster_forward=cookie1; Path=/; HttpOnly; SameSite=Strict\r\n"),
            std::string::npos);
  EXPECT_EQ(first.text.find("raytoken"), std::string::npos);
  EXPECT_NE(gate.decide("GET /?muster=once HTTP/1.1\r\n" + host + "\r\n").text.find("403"), std::string::npos);
  EXPECT_NE(gate.decide("GET /?muster= HTTP/1.1\r\n" + host + "\r\n").text.find("403"), std::string::npos);
  const auto pass = gate.decide(
      "GET /api HTTP/1.1\r\n" + host +
      "Cookie: a=1; muster_forward=cookie1\r\nAuthorization: Bearer other\r\nConnection: keep-alive\r\n\r\n");
  ASSERT_TRUE(pass.pass);
  EXPECT_EQ(pass.text,
            "GET /api HTTP/1.1\r\nHost: localhost:8265\r\nCookie: a=1\r\nAuthorization: Bearer raytoken\r\nConnection: "
            "close\r\n\r\n");
}
TEST(Gate, HostAndOriginAreChecked) {
  HttpGate gate(8265, "once", "c", "t");
  const std::string cookie = "Cookie: muster_forward=c\r\n\r\n";
  EXPECT_TRUE(gate.decide("GET / HTTP/1.1\r\nHost: 127.0.0.1:8265\r\n" + cookie).pass);
  EXPECT_FALSE(gate.decide("GET / HTTP/1.1\r\nHost: evil.example:8265\r\n" + cookie).pass);
  EXPECT_FALSE(gate.decide("GET / HTTP/1.1\r\nHost: localhost:80\r\n" + cookie).pass);
  EXPECT_FALSE(gate.decide("GET / HTTP/1.1\r\n" + cookie).pass);
  EXPECT_FALSE(gate.decide("GET / HTTP/1.1\r\nHost: localhost:8265\r\nHost: evil\r\n" + cookie).pass);
  EXPECT_FALSE(gate.decide("POST / HTTP/1.1\r\nHost: localhost:8265\r\nOrigin: http://evil.example\r\n" + cookie).pass);
  EXPECT_FALSE(gate.decide("POST / HTTP/1.1\r\nHost: localhost:8265\r\nOrigin: null\r\n" + cookie).pass);
  EXPECT_TRUE(
      gate.decide("POST / HTTP/1.1\r\nHost: localhost:8265\r\nOrigin: http://localhost:8265\r\n" + cookie).pass);
  EXPECT_FALSE(gate.decide("GET http://x/ HTTP/1.1\r\nHost: localhost:8265\r\n" + cookie).pass);
  EXPECT_FALSE(gate.decide("GARBAGE\r\n\r\n").pass);
  EXPECT_NE(
      gate.decide("GET /ws HTTP/1.1\r\nHost: localhost:8265\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + cookie)
          .text.find("Connection: Upgrade"),
      std::string::npos);
}

// ---- the rest
TEST(Config, IsKeptPrivate) {
  Folder folder;
  const std::string path = (folder.path / "muster/config.json").string();
  Config config;
  config.accounts["default"] = {"https://h", "PEM", "tok", "alice", "p"};
  config.accounts["default"].context = "default";
  config.accounts["renewed"] = {"https://h", "PEM", "tok", "alice", "p", "mrf_a.b", "mrf_a.c", 4'711, "renewed"};
  ASSERT_TRUE(save_config(path, config).ok());
  EXPECT_EQ(fs::status(path).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_EQ(fs::status(fs::path(path).parent_path()).permissions(), fs::perms::owner_all);
  const auto back = load_config(path);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(*back, config);
  EXPECT_TRUE(load_config((folder.path / "none").string())->accounts.empty());
  folder.put("bad.json", "{");
  EXPECT_FALSE(load_config((folder.path / "bad.json").string()).ok());
  EXPECT_EQ(choose_account({}, "").error().code, Code::Unauthenticated);
}
TEST(Arguments, Tunnels) {
  EXPECT_EQ(parse_tunnel("18265:8265")->local, 18'265);
  EXPECT_EQ(parse_tunnel("8265")->remote, 8'265);
  EXPECT_EQ(parse_tunnel("0:80")->local, 0);
  for (const char* bad : {"", ":", "a", "0", "70000", "80:", "1:2:3"}) EXPECT_FALSE(parse_tunnel(bad).ok()) << bad;
}
TEST(Arguments, ExecTargetsAndExits) {
  EXPECT_EQ(
      exec_target({.cluster = "a b", .slot = "slot-2", .argv = {"sh", "-c", "x y"}, .tty = true, .rows = 3, .cols = 4}),
      "/api/v1/clusters/a%20b/exec?argv=sh&argv=-c&argv=x%20y&tty=1&rows=3&cols=4&slot=slot-2");
  EXPECT_EQ(parse_exit(std::string("\0\0\1\2boom", 8))->code, 258);
  EXPECT_EQ(parse_exit(std::string("\xff\xff\xff\xff", 4))->code, -1);
  EXPECT_FALSE(parse_exit("abc"));
}
TEST(Arguments, ClusterNameFromFile) {
  Folder folder;
  folder.put("c.yaml", "cluster_name: fromfile\nprovider: {type: aws}\n");
  EXPECT_EQ(*cluster_name((folder.path / "c.yaml").string()), "fromfile");
  EXPECT_EQ(*cluster_name("plain"), "plain");
  EXPECT_EQ(cluster_name("missing.yaml").error().code, Code::NotFound);
}
TEST(Completion, KnowsSubcommandsAndAsksForNames) {
  const std::map<std::string, Completable> commands = {{"", {{"job", "--output"}}},
                                                       {"job", {{"submit"}}},
                                                       {"job submit", {{"--cluster"}}},
                                                       {"down", {{"--yes"}, "clusters", true}}};
  const auto text = completion_script("bash", commands);
  EXPECT_NE(text.find("\"job submit\") at=\"job submit\""), std::string::npos);
  EXPECT_NE(text.find("\"down\") offered=\"--yes\" names=clusters files=1"), std::string::npos);
  EXPECT_NE(completion_script("zsh", {}).find("bashcompinit"), std::string::npos);
  EXPECT_NE(completion_script("fish", commands).find("muster completion --names clusters"), std::string::npos);
}

TEST(ClusterLogs, FramesKeepTheirPlaceAndRefuseNoise) {
  std::string text;
  LogFrames frames(
      [&](const std::string& file, std::string_view bytes) { text += file + ":" + std::string(bytes) + ";"; });
  const std::string stream = "s1 raylet.out 10 3\nabcs1 gcs_server.out 0 4\nx\ny\n";
  for (const char c : stream) ASSERT_TRUE(frames.feed({&c, 1}).ok());
  EXPECT_EQ(
      text,
      "raylet.out:a;raylet.out:b;raylet.out:c;gcs_server.out:x;gcs_server.out:\n;gcs_server.out:y;gcs_server.out:\n;");
  EXPECT_EQ(frames.offsets().at("raylet.out"), 13U);
  ASSERT_TRUE(frames.feed("s1 raylet.out 13 5\nde").ok());
  EXPECT_EQ(frames.offsets().at("raylet.out"), 15U) << "cut in the middle: it goes on after what was shown";
  frames.restart();
  ASSERT_TRUE(frames.feed("s2 raylet.out 0 1\nz").ok());
  EXPECT_EQ(frames.offsets().size(), 1U) << "another session begins anew";
  for (const char* noise :
       {"../x raylet.out 0 1\n", "s a 0 99999999\n", "s a -1 1\n", "s a 0 1 more\n", "bash: no python\n"}) {
    LogFrames other([](const std::string&, std::string_view) {});
    EXPECT_FALSE(other.feed(noise).ok()) << noise;
  }
  EXPECT_FALSE(frames.feed(std::string(5'000, 'n')).ok());
}
TEST(RuntimeEnv, WhatIsHereTravelsAlong) {
  Folder folder;
  folder.put("requirements.txt", "numpy==1.26  # fixed\n\n# nothing\nrequests\n");
  folder.put("conda.yaml", "dependencies: [pip, {pip: [torch]}]\n");
  const auto env = resolve_runtime_env(
      "working_dir: ./src\nexcludes: ['*.ckpt']\npip: requirements.txt\nconda: conda.yaml\nenv_vars: {A: '1', B: "
      "two}\n",
      folder.path.string());
  ASSERT_TRUE(env.ok()) << env.error().message;
  EXPECT_EQ(env->working_dir, (folder.path / "./src").string());
  EXPECT_EQ(env->excludes, std::vector<std::string>{"*.ckpt"});
  EXPECT_EQ(
      env->json,
      R"({"pip":["numpy==1.26","requests"],"conda":{"dependencies":["pip",{"pip":["torch"]}]},"env_vars":{"A":"1","B":"two"}})");
  EXPECT_EQ(resolve_runtime_env(R"({"working_dir": "https://x/y.zip"})", ".")->json,
            R"({"working_dir":"https://x/y.zip"})");
  EXPECT_EQ(resolve_runtime_env(R"({"py_modules": ["./mine"]})", ".").error().field, "py_modules");
  folder.put("bad.txt", "-r other.txt\n");
  EXPECT_EQ(resolve_runtime_env("pip: bad.txt", folder.path.string()).error().field, "pip");
  EXPECT_FALSE(resolve_runtime_env("[1, 2]", ".").ok());
  EXPECT_FALSE(resolve_runtime_env("pip: missing.txt", folder.path.string()).ok());
}

}  // namespace
}  // namespace muster::cli
