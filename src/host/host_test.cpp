// The rooms between agent and machine that need no engine: the language of privd, the policy, hostile helpers, local
// sockets.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "crypto/hash.h"
#include "host/blob_cache.h"
#include "host/embedded.h"
#include "host/engine_http.h"
#include "host/helper_link.h"
#include "host/json.h"
#include "host/policy.h"
#include "host/privd.h"
#include "host/privd_client.h"

namespace muster::host {
namespace {
namespace fs = std::filesystem;

struct TempDir {
  TempDir() {
    char name[] = "/tmp/muster-host-XXXXXX";
    path = mkdtemp(name);
  }
  ~TempDir() { fs::remove_all(path); }
  std::string path;
};

std::string digest() {
  return "sha256:" + std::string(64, 'a');
}

TEST(PrivdVerbs, WhatIsWrittenIsRead) {
  Verb verb;
  verb.id = 7;
  verb.kind = VerbKind::Launch;
  verb.lease = "lease-3";
  verb.launch.lease = "lease-3";
  verb.launch.image = digest();
  verb.launch.cpu_milli = 1500;
  verb.launch.env = {{"A", "b c"}};
  verb.launch.devices = {"GPU-1234"};
  verb.launch.address = 0x0ac90001;
  verb.launch.head = true;
  const auto back = parse_verb(verb_text(verb));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->launch.env, verb.launch.env);
  EXPECT_EQ(back->launch.devices, verb.launch.devices);
  EXPECT_EQ(back->launch.address, verb.launch.address);
  EXPECT_TRUE(back->launch.head);
}

TEST(PrivdVerbs, RefusesWhatIsNotTyped) {
  const std::vector<std::string> bad{R"({"id":1,"verb":"shell","lease":"lease-1"})",
                                     R"({"id":1,"verb":"stop","lease":"../lease-1"})",
                                     R"({"id":1,"verb":"stop","lease":"lease-1/../x"})",
                                     R"({"id":1,"verb":"stop","lease":"lease-1","privileged":true})",
                                     R"({"id":1,"verb":"stop","lease":"lease-1","grace_s":"9"})",
                                     R"({"id":0,"verb":"list"})",
                                     R"({"id":1,"verb":"exec","lease":"lease-1","argv":[]})",
                                     R"({"id":1,"verb":"exec","lease":"lease-1","argv":[1]})",
                                     R"({"id":1,"verb":"exec_code","lease":"lease-1","exec":"../../images/json"})",
                                     R"({"id":1,"verb":"read_archive","lease":"lease-1","path":"/tmp/../etc/shadow"})",
                                     R"({"id":1,"verb":"read_archive","lease":"lease-1","path":"etc/shadow"})",
                                     R"({"id":1,"verb":"blob","lease":"lease-1","blob":"../../../etc/cron.d/x"})",
                                     R"({"id":1,"verb":"pull","image":"../../containers/json?x"})",
                                     R"({"id":1,"verb":"launch","lease":"lease-1","image":"alpine","address":1})",
                                     R"({"id":1,"verb":"launch","lease":"lease-1","address":1,"image":"sha256:)" +
                                         std::string(64, 'a') + R"(","env":{"A=B":"c"}})",
                                     R"({"id":1,"verb":"launch","lease":"lease-1","address":1,"image":"sha256:)" +
                                         std::string(64, 'a') + R"(","binds":["/:/host"]})",
                                     R"([1])",
                                     "{",
                                     ""};
  for (const auto& text : bad) EXPECT_FALSE(parse_verb(text).ok()) << text;
}

TEST(Policy, DefaultsReadAndWrap) {
  const auto policy = parse_policy(
      R"({"reserve":{"memory_bytes":17179869184,"cpus":1.5},"allowed_hours":["20:00-08:00"],"egress_allowed":true,"images":["muster/"]})");
  ASSERT_TRUE(policy.ok()) << policy.error().message;
  EXPECT_EQ(policy->reserve_cpu_milli, 1500);
  EXPECT_TRUE(hour_allowed(*policy, 23 * 60));
  EXPECT_TRUE(hour_allowed(*policy, 7 * 60 + 59));
  EXPECT_FALSE(hour_allowed(*policy, 8 * 60));
  EXPECT_TRUE(image_allowed(*policy, "muster/ray:2.60.0"));
  EXPECT_FALSE(image_allowed(*policy, "evil/miner"));
  EXPECT_FALSE(parse_policy(R"({"reserv":{}})").ok());
  EXPECT_FALSE(parse_policy(R"({"allowed_hours":["25:00-26:00"]})").ok());
  EXPECT_FALSE(parse_policy(R"({"max_gpus":"all"})").ok());
}

TEST(HelperEvents, HostileLinesAreBounded) {
  const auto job = parse_helper_event(
      R"({"ev":"job","job":"job-3","attempt":1,"state":"RUNNING","exit_code":-1,"message":"","log_bytes":12,"surprise":1})");
  ASSERT_TRUE(job.ok()) << job.error().message;
  EXPECT_EQ(std::get<HelperJob>(*job).log_bytes, 12U);
  EXPECT_FALSE(parse_helper_event(R"({"ev":"job","job":"3","attempt":1,"state":"RUNNING"})").ok());
  EXPECT_FALSE(parse_helper_event(R"({"ev":"job_log","job":"job-3","attempt":1,"offset":-1,"data":""})").ok());
  EXPECT_FALSE(parse_helper_event(R"({"ev":"job_log","job":"job-3","attempt":1,"offset":0,"data":"!!"})").ok());
  EXPECT_FALSE(parse_helper_event(R"({"ev":"launch_missiles"})").ok());
  EXPECT_FALSE(parse_helper_event(std::string(100, '[')).ok());
  const auto report = parse_helper_event(
      R"({"ev":"report","nodes":[{"node_id":"ab","ip":"10.201.0.1","alive":true,"idle_s":1.5,"total":{"CPU":2.0,"memory":1e9,"x":1e300}},{"node_id":5}],)"
      R"("demands":[{"bundle":{"CPU":0.5},"count":3,"strict_spread":true},{"bundle":{"CPU":-4},"count":1}]})");
  ASSERT_TRUE(report.ok()) << report.error().message;
  const auto& seen = std::get<HelperReport>(*report);
  ASSERT_EQ(seen.nodes.size(), 1U);
  EXPECT_EQ(seen.nodes[0].address, 0x0ac90001U);
  EXPECT_EQ(seen.nodes[0].total.cpu_milli, 2000);
  EXPECT_EQ(seen.nodes[0].idle, Millis(1500));
  ASSERT_EQ(seen.demands.size(), 2U);
  EXPECT_EQ(seen.demands[0].bundle.cpu_milli, 500);
  EXPECT_EQ(seen.demands[1].bundle.cpu_milli, 0);
}

TEST(LocalSockets, ContainersCannotLeadTheConnectAstray) {
  const TempDir dir;
  const auto elsewhere = listen_unix(dir.path + "/real.sock", SocketKind::Stream, getuid(), getgid(), 0600);
  ASSERT_TRUE(elsewhere.ok());
  fs::create_directory(dir.path + "/run");
  EXPECT_EQ(connect_beneath(dir.path + "/run", "helper.sock").error().code, Code::NotFound);
  fs::create_symlink(dir.path + "/real.sock", dir.path + "/run/helper.sock");
  EXPECT_EQ(connect_beneath(dir.path + "/run", "helper.sock").error().code, Code::PermissionDenied);
  fs::remove(dir.path + "/run/helper.sock");
  std::ofstream(dir.path + "/run/helper.sock") << "x";
  EXPECT_EQ(connect_beneath(dir.path + "/run", "helper.sock").error().code, Code::PermissionDenied);
  EXPECT_EQ(connect_beneath(dir.path + "/run", "../real.sock").error().code, Code::PermissionDenied);
  fs::remove(dir.path + "/run/helper.sock");
  const auto good = listen_unix(dir.path + "/run/helper.sock", SocketKind::Stream, getuid(), getgid(), 0600);
  ASSERT_TRUE(good.ok());
  EXPECT_TRUE(connect_beneath(dir.path + "/run", "helper.sock").ok());
}

// An engine that answers every connection with the same bytes.
class FakeEngine {
 public:
  FakeEngine(const std::string& path, std::string answer)
      : listener_(*listen_unix(path, SocketKind::Stream, getuid(), getgid(), 0600)), thread_([this, answer] {
          while (true) {
            const Fd peer(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
            if (!peer) return;
            char buffer[4096];
            const ssize_t n = read(peer.get(), buffer, sizeof buffer);
            if (n > 0) asked = std::string(buffer, static_cast<std::size_t>(n));
            [[maybe_unused]] const auto sent = send(peer.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
          }
        }) {}
  ~FakeEngine() {
    shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  std::string asked;

 private:
  Fd listener_;
  std::thread thread_;
};

TEST(EngineHttp, ReadsLengthsChunksAndRefusesNonsense) {
  const TempDir dir;
  const std::string path = dir.path + "/engine.sock";
  const EngineHttp http(path);
  {
    FakeEngine engine(path, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    const auto reply = http.call({.target = "/version"});
    ASSERT_TRUE(reply.ok()) << reply.error().message;
    EXPECT_EQ(reply->body, "hello");
  }
  {
    FakeEngine engine(path,
                      "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    const auto reply = http.call({.target = "/x"});
    ASSERT_TRUE(reply.ok()) << reply.error().message;
    EXPECT_EQ(reply->status, 404);
    EXPECT_EQ(reply->body, "abcde");
  }
  for (const std::string bad : {"SSH-2.0\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
                                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n"}) {
    FakeEngine engine(path, bad);
    EXPECT_FALSE(http.call({.target = "/", .timeout = Millis(2000)}).ok()) << bad;
  }
  FakeEngine engine(path, "HTTP/1.1 200 OK\r\n\r\n");
  EXPECT_FALSE(http.hijack({.method = "POST", .target = "/exec/1/start", .timeout = Millis(2000)}).ok());
}

// A runtime with behaviour enough for privd: it remembers what was asked of it.
class FakeRuntime : public Runtime {
 public:
  Result<EngineInfo> info() override { return EngineInfo{}; }
  Result<std::string> pull(const std::string&, const RegistryAuth&, const Progress&) override { return digest(); }
  Status start_probe(const std::string&, const std::string&) override { return {}; }
  Status stop_probe(const std::string&) override { return {}; }
  Result<Launched> launch(const LaunchSpec& spec) override {
    launched.push_back(spec);
    return Launched{};
  }
  Status put_secret(const std::string&, ByteView) override { return {}; }
  Status put_blob(const std::string&, const std::string&, int) override { return {}; }
  Status stop(const std::string&, int) override { return {}; }
  Status remove(const std::string&) override { return {}; }
  Result<std::vector<LeaseState>> list() override {
    std::vector<LeaseState> out;
    for (const auto& spec : launched) out.push_back({spec.lease, true, true, true, 0, false, 1});
    return out;
  }
  Result<Fd> connect_helper(const std::string&, Place) override { return error(Code::NotFound, "none"); }
  Result<ExecOpen> exec(const std::string&, const std::vector<std::string>&, bool) override {
    return error(Code::NotFound, "none");
  }
  Status resize(const std::string&, const std::string&, int, int) override { return {}; }
  Result<std::int64_t> exec_code(const std::string&, const std::string&) override { return std::int64_t{0}; }
  Result<Fd> connect_tcp(const std::string&, std::uint32_t, std::uint16_t) override {
    return error(Code::NotFound, "none");
  }
  Result<Fd> open_tun(const std::string&) override { return error(Code::NotFound, "none"); }
  Status read_archive(const std::string&, const std::string&, int) override { return {}; }
  Status write_archive(const std::string&, const std::string&, int) override { return {}; }
  Result<std::vector<Usage>> usage() override { return std::vector<Usage>{}; }
  Status remove_everything() override { return {}; }
  std::vector<LaunchSpec> launched;
};

class PrivdTest : public testing::Test {
 protected:
  void start(uid_t agent_uid) {
    fs::create_directories(layout.sockets());
    PrivdOptions options{layout, agent_uid, getgid()};
    privd = std::make_unique<Privd>(options, runtime);
    ASSERT_TRUE(privd->listen().ok());
    thread = std::thread([this] { privd->run(); });
  }
  void TearDown() override {
    if (privd) privd->stop();
    if (thread.joinable()) thread.join();
  }
  json::object ask(const std::string& text) {
    const auto fd = connect_unix(layout.privd_socket(), SocketKind::Seqpacket);
    if (!fd.ok() || !send_message(fd->get(), text).ok()) return {};
    const auto reply = receive_message(fd->get());
    if (!reply.ok() || reply->text.empty()) return {};
    const auto parsed = parse_object(reply->text);
    return parsed.ok() ? *parsed : json::object{};
  }
  std::string launch_text(int lease, const std::string& more = {}) {
    return fmt::format(R"({{"id":1,"verb":"launch","lease":"lease-{}","image":"{}","address":1{}}})", lease, digest(),
                       more);
  }
  TempDir dir;
  Layout layout{dir.path};
  FakeRuntime runtime;
  std::unique_ptr<Privd> privd;
  std::thread thread;
};

TEST_F(PrivdTest, OnlyTheAgentsUidIsServed) {
  start(getuid() + 1);
  EXPECT_TRUE(ask(R"({"id":1,"verb":"list"})").empty());
}

TEST_F(PrivdTest, TheOwnersPolicyCannotBeWidened) {
  start(getuid());
  EXPECT_TRUE(bool_at(ask(launch_text(1)), {"ok"}));
  std::ofstream(layout.policy()) << R"({"max_leases":1,"max_gpus":0,"max_cpu_milli":500})";
  EXPECT_EQ(text_at(ask(launch_text(2)), {"reason"}), "owner.max_leases");
  EXPECT_EQ(text_at(ask(launch_text(1, R"(,"devices":["GPU-1"])")), {"reason"}), "owner.max_gpus");
  EXPECT_TRUE(bool_at(ask(launch_text(1, R"(,"cpu_milli":9000)")), {"ok"}));
  EXPECT_EQ(runtime.launched.back().cpu_milli, 500);
  std::ofstream(layout.policy()) << "{ damaged";
  EXPECT_FALSE(bool_at(ask(launch_text(1)), {"ok"}));
  fs::remove(layout.policy());
  std::ofstream(layout.paused()) << "x";
  EXPECT_EQ(text_at(ask(launch_text(1)), {"reason"}), "owner.paused");
}

TEST_F(PrivdTest, UnknownVerbsAreRefusedByName) {
  start(getuid());
  const auto answer = ask(R"({"id":5,"verb":"shell","lease":"lease-1"})");
  EXPECT_FALSE(bool_at(answer, {"ok"}));
  EXPECT_EQ(int_at(answer, {"id"}), 5);
  EXPECT_TRUE(runtime.launched.empty());
}

TEST(BlobCache, ContentMustBeWhatItsNameSays) {
  const TempDir dir;
  BlobCache cache(dir.path + "/blobs");
  const std::string name = crypto::sha256_hex(as_bytes("hello world"));
  EXPECT_FALSE(cache.find("../../etc/passwd").ok());
  ASSERT_TRUE(cache.write(name, 0, as_bytes("hello "), false).ok());
  EXPECT_EQ(cache.find(name)->have, 6U);
  EXPECT_EQ(cache.write(name, 99, as_bytes("gap"), false)->have, 6U);
  const auto done = cache.write(name, 6, as_bytes("world"), true);
  ASSERT_TRUE(done.ok());
  EXPECT_TRUE(done->complete);
  const std::string other = crypto::sha256_hex(as_bytes("else"));
  EXPECT_EQ(cache.write(other, 0, as_bytes("wrong"), true).error().code, Code::DataLoss);
  EXPECT_EQ(cache.find(other)->have, 0U);
}

TEST(Embedded, HelperAndProfileAreTheFilesOfTheTree) {
  EXPECT_NE(ray_helper_source().find("def main()"), std::string_view::npos);
  EXPECT_TRUE(parse_object(seccomp_profile()).ok());
}

}  // namespace
}  // namespace muster::host
