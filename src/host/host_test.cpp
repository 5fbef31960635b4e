// The rooms between agent and machine that need no engine: the language of privd, the policy, hostile helpers, local
// sockets.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netdb.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "crypto/file.h"
#include "crypto/hash.h"
#include "host/blob_cache.h"
#include "host/embedded.h"
#include "host/engine_http.h"
#include "host/helper_link.h"
#include "host/json.h"
#include "host/lease_dirs.h"
#include "host/owner_guard.h"
#include "host/policy.h"
#include "host/privd.h"
#include "host/privd_client.h"
#include "host/sandbox.h"

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
  const std::string digest = "sha256:" + std::string(64, 'a');
  const auto denies = parse_policy(R"({"images":["!evil/*","!)" + digest + R"("]})");
  ASSERT_TRUE(denies.ok()) << denies.error().message;
  EXPECT_TRUE(image_allowed(*denies, "muster/ray:2.60.0"));
  EXPECT_FALSE(image_allowed(*denies, "docker.io/evil/miner:1"));
  EXPECT_FALSE(image_allowed(*denies, "muster/ray@" + digest));
  EXPECT_TRUE(image_denied(*denies, digest));
  EXPECT_FALSE(parse_policy(R"({"reserv":{}})").ok());
  EXPECT_FALSE(parse_policy(R"({"allowed_hours":["25:00-26:00"]})").ok());
  EXPECT_FALSE(parse_policy(R"({"max_gpus":"all"})").ok());
}

TEST(Policy, LimitsOfEgress) {
  const auto policy = parse_policy(
      R"({"egress_allowed":true,"egress":{"max_bytes_per_s":5000000,"max_bytes_per_month":1000000000,"max_connections":9,)"
      R"("deny":["45.33.0.0/16","2606:4700::/32"],"deny_ports":["6660-6669"],"allow_ports":["443"],"resolvers":["9.9.9.9"]}})");
  ASSERT_TRUE(policy.ok()) << policy.error().message;
  EXPECT_EQ(policy->egress.max_bytes_per_s, 5'000'000);
  EXPECT_EQ(policy->egress.max_connections, 9);
  EXPECT_EQ(policy->egress.deny.size(), 2U);
  EXPECT_EQ(policy->egress.deny_ports, (std::vector<egress::PortRange>{{6660, 6669}}));
  EXPECT_EQ(policy->egress.allow_ports, (std::vector<egress::PortRange>{{443, 443}}));
  const auto plain = parse_policy("{}");
  EXPECT_FALSE(plain->egress_allowed);
  EXPECT_EQ(plain->egress.deny_ports, egress::default_deny_ports())
      << "mail is refused unless the owner says otherwise";
  EXPECT_TRUE(parse_policy(R"({"egress":{"deny_ports":[]}})")->egress.deny_ports.empty());
  for (const char* bad :
       {R"({"egress":{"deny":["10.0.0.0/33"]}})", R"({"egress":{"deny_ports":[25]}})", R"({"egress":{"deny_port":[]}})",
        R"({"egress":{"resolvers":["dns.example"]}})", R"({"egress":{"max_connections":0}})", R"({"egress":true})"})
    EXPECT_FALSE(parse_policy(bad).ok()) << bad;
}

TEST(EgressProtocol, OrdersAndReportsComeBackAsTheyWere) {
  EgressConfig config;
  config.rules.local = {*egress::parse_prefix("185.10.20.0/24")};
  config.rules.deny_ports = egress::default_deny_ports();
  config.resolvers = {*egress::parse_ip("192.168.1.1"), *egress::parse_ip("2606:4700::1111")};
  config.bytes_per_s = 125'000;
  config.bytes_left = 1LL << 40;
  config.blocked = "firewall";
  for (const EgressOrder& order : {EgressOrder(config), EgressOrder(EgressConfig{}), EgressOrder(AddWay{"lease-7"}),
                                   EgressOrder(RemoveWay{"lease-7"}), EgressOrder(AskReport{true})}) {
    const auto again = parse_order(order_text(order));
    ASSERT_TRUE(again.ok()) << again.error().message;
    EXPECT_EQ(*again, order);
  }
  for (const char* bad : {"", "{}", R"({"op":"shell"})", R"({"op":"add"})", R"({"op":"add","lease":"lease-1","x":1})",
                          R"({"op":"configure","bytes_per_s":1,"bytes_left":-2,"flows_max":1})",
                          R"({"op":"configure","bytes_per_s":1,"bytes_left":1,"flows_max":1,"deny":["lan"]})"})
    EXPECT_FALSE(parse_order(bad).ok()) << bad;
  EgressReport report;
  report.bytes = 99;
  report.leases["lease-7"] = {
      3, 1, 2, 10, 20, 5, {{"private", 4}}, {{"45.33.32.10:443", 1, 2, 3}}, {{"nas", "dns.local_name", 9}}};
  const auto again = parse_report(report_text(report));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*again, report);
  EXPECT_EQ(parse_report(report_text(error(Code::NotFound, "none"))).error().code, Code::NotFound);
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

TEST(UnixSocket, WhoNeverAcceptsIsNotWaitedForForEver) {
  const TempDir dir;
  const std::string path = dir.path + "/full.sock";
  const auto listener = listen_unix(path, SocketKind::Stream, getuid(), getgid(), 0600);
  ASSERT_TRUE(listener.ok());
  ASSERT_EQ(listen(listener->get(), 0), 0);
  const auto first = connect_unix(path, SocketKind::Stream);
  ASSERT_TRUE(first.ok());
  const auto began = std::chrono::steady_clock::now();
  EXPECT_EQ(connect_unix(path, SocketKind::Stream).error().code, Code::Unavailable);
  EXPECT_LT(std::chrono::steady_clock::now() - began, 3 * kConnectWait);
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
  for (const std::string bad : {"SSH-2.0\r\n", "HTTP/1.1 -20 OK\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n",
                                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
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
  Status put_identity(const std::string& lease, const std::string& file, ByteView token) override {
    identities[lease + "/" + file] = as_string(token);
    return {};
  }
  std::map<std::string, std::string> identities;
  Result<EngineInfo> info() override {
    EngineInfo out;
    out.images = images;
    for (const std::string& image : images) out.image_bytes[image] = 7;
    return out;
  }
  std::vector<std::string> images;
  Result<Pulled> pull(const PullSpec&, const Progress&) override {
    return Pulled{digest(), "registry.example/a@" + digest(), {}};
  }
  Status start_probe(const std::string&, const std::string&) override { return {}; }
  Status stop_probe(const std::string&) override { return {}; }
  Result<Launched> launch(const LaunchSpec& spec) override {
    const std::lock_guard lock(mutex);
    launched.push_back(spec);
    Launched told;
    told.network = "/run/netns/x";
    return told;
  }
  Status put_secret(const std::string&, ByteView) override { return {}; }
  Status put_blob(const std::string&, const std::string&, int) override { return {}; }
  Status stop(const std::string& lease, int) override {
    const std::lock_guard lock(mutex);
    std::erase_if(launched, [&](const LaunchSpec& spec) { return spec.lease == lease; });
    return {};
  }
  Status remove(const std::string&) override { return {}; }
  Result<std::vector<LeaseState>> list() override {
    const std::lock_guard lock(mutex);
    std::vector<LeaseState> out;
    for (const auto& spec : launched) {
      LeaseState state;
      state.lease = spec.lease;
      state.namespace_up = state.running = state.exists = true;
      out.push_back(std::move(state));
    }
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
  Result<DiskUse> disk(const std::string&, const DiskUse&) override { return DiskUse{}; }
  Status halt(const std::string&, const std::string&) override { return {}; }
  Result<std::string> logs(const std::string&, std::size_t) override { return std::string("last words \x1b[31m"); }
  Status remove_everything() override { return {}; }
  std::vector<LaunchSpec> seen() {
    const std::lock_guard lock(mutex);
    return launched;
  }

 private:
  std::mutex mutex;
  std::vector<LaunchSpec> launched;  // what runs
};

// Remembers which leases have a way out.
class FakeEgress : public EgressPort {
 public:
  Status open(const LeaseWay& way) override {
    ways[way.lease] = way;
    return {};
  }
  void close(const std::string& lease) override { ways.erase(lease); }
  EgressReport report(bool) override {
    EgressReport out;
    for (const auto& [lease, way] : ways) out.leases[lease].up_bytes = 42;
    return out;
  }
  void adopt(const std::vector<LeaseWay>& found) override {
    for (const auto& way : found) ways[way.lease] = way;
  }
  std::map<std::string, LeaseWay> ways;
};

class PrivdTest : public testing::Test {
 protected:
  void start(uid_t agent_uid) {
    fs::create_directories(layout.sockets());
    PrivdOptions options{layout, agent_uid, getgid()};
    privd = std::make_unique<Privd>(options, runtime, &egress);
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
  FakeEgress egress;
  std::unique_ptr<Privd> privd;
  std::thread thread;
};

TEST_F(PrivdTest, OnlyTheAgentsUidIsServed) {
  start(getuid() + 1);
  EXPECT_TRUE(ask(R"({"id":1,"verb":"list"})").empty());
}

TEST_F(PrivdTest, TheOwnersImagesAreNobodysBusiness) {
  const std::string own = "sha256:" + std::string(64, 'e');
  runtime.images = {own, digest()};
  start(getuid());
  const std::string info = R"({"id":1,"verb":"info"})";
  EXPECT_TRUE(ask(info).at("images").as_array().empty()) << "none was pulled for a lease";
  ASSERT_TRUE(bool_at(ask(R"({"id":1,"verb":"pull","image":"muster/ray:1"})"), {"ok"}));
  const json::object told = ask(info);
  EXPECT_EQ(told.at("images"), json::array{digest()});
  EXPECT_EQ(told.at("image_bytes"), (json::object{{digest(), 7}}));
  EXPECT_EQ(to_text(told).find(own), std::string::npos);
}

TEST_F(PrivdTest, TheOwnersPolicyCannotBeWidened) {
  start(getuid());
  EXPECT_EQ(text_at(ask(launch_text(1)), {"reason"}), "owner.image");  // never pulled for a lease
  EXPECT_EQ(text_at(ask(R"({"id":1,"verb":"pull","image":")" + digest() + R"("})"), {"reason"}), "owner.image");
  EXPECT_TRUE(bool_at(ask(R"({"id":1,"verb":"pull","image":"muster/ray:1"})"), {"ok"}));
  EXPECT_TRUE(bool_at(ask(launch_text(1)), {"ok"}));
  std::ofstream(layout.policy()) << R"({"max_leases":1,"max_gpus":0,"max_cpu_milli":500})";
  EXPECT_EQ(text_at(ask(launch_text(2)), {"reason"}), "owner.max_leases");
  EXPECT_EQ(text_at(ask(launch_text(1, R"(,"devices":["GPU-1"])")), {"reason"}), "owner.max_gpus");
  EXPECT_TRUE(bool_at(ask(launch_text(1, R"(,"cpu_milli":9000)")), {"ok"}));
  EXPECT_EQ(runtime.seen().back().cpu_milli, 500);
  std::ofstream(layout.policy()) << R"({"images":["rayproject/"]})";
  EXPECT_EQ(text_at(ask(launch_text(1)), {"reason"}), "owner.image");
  std::ofstream(layout.policy()) << R"({"images":["!muster/*"]})";
  EXPECT_EQ(text_at(ask(launch_text(1)), {"reason"}), "owner.image");
  std::ofstream(layout.policy()) << "{ damaged";
  EXPECT_FALSE(bool_at(ask(launch_text(1)), {"ok"}));
  fs::remove(layout.policy());
  std::ofstream(layout.paused()) << "x";
  EXPECT_EQ(text_at(ask(launch_text(1)), {"reason"}), "owner.paused");
}

TEST_F(PrivdTest, WhatTheOwnerAllowsMembersReachesNetdWhileAllRuns) {
  start(getuid());
  const auto told = [&] {
    std::ifstream file(layout.bandwidth());
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  for (const char* policy : {R"({"carry_allowed":true})", R"({"carry_allowed":true,"max_carry_bytes_s":4000})",
                             R"({"tests_allowed":true})", "{}"}) {
    std::ofstream(layout.policy()) << policy;
    const std::string wanted = bandwidth_text(load_policy(layout.policy()).value());
    for (int i = 0; i < 250 && told() != wanted; ++i) std::this_thread::sleep_for(20ms);
    EXPECT_EQ(told(), wanted) << policy;
  }
}

TEST_F(PrivdTest, DiskLimitsComeFromTheOwner) {
  start(getuid());
  EXPECT_TRUE(bool_at(ask(R"({"id":1,"verb":"pull","image":"muster/ray:1"})"), {"ok"}));
  EXPECT_TRUE(bool_at(ask(launch_text(1, R"(,"workspace_bytes":1000000)")), {"ok"}));
  EXPECT_EQ(runtime.seen().back().root_bytes_max, 20LL << 30);
  EXPECT_EQ(runtime.seen().back().workspace_bytes_max, 1'000'000);
  std::ofstream(layout.policy()) << R"({"max_root_bytes":5000,"max_workspace_bytes":7000})";
  EXPECT_TRUE(bool_at(ask(launch_text(1, R"(,"workspace_bytes":1000000)")), {"ok"}));
  EXPECT_EQ(runtime.seen().back().root_bytes_max, 5000);
  EXPECT_EQ(runtime.seen().back().workspace_bytes_max, 7000);
  EXPECT_FALSE(bool_at(ask(launch_text(1, R"(,"root_bytes":1)")), {"ok"}));
  EXPECT_EQ(text_at(ask(R"({"id":3,"verb":"logs","lease":"lease-1"})"), {"text"}), "last words .[31m");
}

TEST(DiskWatch, EndsWhoIsOverAndTheLargestForTheReserve) {
  constexpr std::uint64_t gib = 1ULL << 30;
  const LeaseDisk small{"lease-1", {1, 2}, {gib, gib}}, root{"lease-2", {gib, 0}, {gib, 0}},
      workspace{"lease-3", {0, 2 * gib}, {gib, 2 * gib}}, large{"lease-4", {gib, 2 * gib}, {}};
  EXPECT_TRUE(judge_disk({small, large}, 5 * gib, 5 * gib).empty());
  const std::vector<DiskVerdict> over{{"lease-2", "container.root_full"}, {"lease-3", "container.workspace_full"}};
  EXPECT_EQ(judge_disk({small, root, workspace, large}, 0, gib), over);
  const std::vector<DiskVerdict> reserve{{"lease-4", "container.disk_reserve"}};
  EXPECT_EQ(judge_disk({small, large}, gib, 5 * gib), reserve);
  EXPECT_TRUE(judge_disk({small}, 0, 5 * gib).empty());
}

TEST(LeaseDirs, CountsBlocksAndFollowsNoLinks) {
  const TempDir dir, elsewhere;
  std::ofstream(elsewhere.path + "/big") << std::string(1 << 20, 'x');
  const std::uint64_t empty = tree_bytes(dir.path, 0);
  fs::create_directory(dir.path + "/a");
  for (int i = 0; i < 100; ++i) std::ofstream(dir.path + "/a/" + std::to_string(i)) << "x";
  fs::create_symlink(elsewhere.path, dir.path + "/link");
  const std::uint64_t small = tree_bytes(dir.path, 0) - empty;
  EXPECT_GE(small, 100U * 4096);  // a byte costs a block: many small files are not free
  EXPECT_LT(small, 1U << 20);     // the link is not followed
  std::ofstream(dir.path + "/a/big") << std::string(4 << 20, 'x');
  EXPECT_GE(tree_bytes(dir.path, 0), 4U << 20);
  EXPECT_LT(tree_bytes(dir.path, 8192), 4U << 20);  // ends early
  EXPECT_EQ(tree_bytes(dir.path + "/missing", 0), 0U);
}

TEST(LeaseDirs, FilesMoveToOtherIdsOnceAndOthersStay) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  Layout layout{dir.path};
  LeaseDirs dirs(layout, dir.path + "/secrets");
  ASSERT_TRUE(dirs.prepare("lease-1").ok());
  const std::string work = dirs.dir("lease-1") + "/workspace";
  const auto owner = [&](const std::string& name) {
    struct stat info {};
    EXPECT_EQ(::lstat((work + name).c_str(), &info), 0) << name;
    return std::pair(info.st_uid, info.st_gid);
  };
  using Ids = std::pair<uid_t, gid_t>;
  ASSERT_TRUE(dirs.hand_over("lease-1", 1000, 100).ok());
  EXPECT_EQ(owner(""), Ids(1000, 100));
  fs::create_directories(work + "/deep");
  std::ofstream(work + "/deep/file") << "x";
  std::ofstream(work + "/foreign") << "x";
  std::ofstream(dir.path + "/outside") << "x";
  fs::create_hard_link(work + "/deep/file", work + "/again");
  fs::create_symlink(dir.path + "/outside", work + "/link");
  fs::create_directory_symlink(dir.path, work + "/folder");
  for (const auto* name : {"/deep", "/deep/file", "/link", "/folder"})
    ASSERT_EQ(::lchown((work + name).c_str(), 1000, 100), 0);
  ASSERT_EQ(::lchown((work + "/foreign").c_str(), 70'000, 70'000), 0);
  // To ranges that overlap, so that what is moved twice would be seen.
  for (const std::uint32_t first : {400'000u, 400'500u, 500'000u}) {
    ASSERT_TRUE(dirs.hand_over("lease-1", 1000, 100, {first, first + 7, 65'536}).ok());
    for (const auto* name : {"", "/deep", "/deep/file", "/again", "/link", "/folder"})
      EXPECT_EQ(owner(name), Ids(first + 1000, first + 107)) << name;
  }
  EXPECT_EQ(owner("/foreign"), Ids(70'000, 70'000));
  EXPECT_EQ(::geteuid(), 0u);
  struct stat outside {};
  ASSERT_EQ(::stat((dir.path + "/outside").c_str(), &outside), 0);
  EXPECT_EQ(outside.st_uid, 0u) << "a link was followed";
  ASSERT_TRUE(dirs.hand_over("lease-1", 7, 7, {600'000, 600'000, 65'536}, Place::Probe).ok());
  EXPECT_EQ(owner("/deep/file"), Ids(501'000, 500'107)) << "a probe has ids of its own and no workspace";
  EXPECT_EQ(owner("/../probe"), Ids(600'007, 600'007));
  EXPECT_EQ(dirs.hand_over("lease-1", 65'536, 1, {400'000, 400'000, 65'536}).error().code, Code::InvalidArgument);
  ASSERT_TRUE(dirs.hand_over("lease-1", 1000, 100).ok());
  EXPECT_EQ(owner("/again"), Ids(1000, 100)) << "and back to the machine's";
}

TEST(LeaseDirs, CountsAndRemovesWhatIsDeeperThanPathsAndDescriptors) {
  const TempDir dir, elsewhere;
  const std::string top = dir.path + "/top", name(100, 'd');
  fs::create_directory(top);
  std::ofstream(elsewhere.path + "/kept") << "x";
  Fd at(open(top.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (int level = 0; level < 1000; ++level) {
    ASSERT_EQ(mkdirat(at.get(), name.c_str(), 0700), 0) << level;
    ASSERT_EQ(symlinkat(elsewhere.path.c_str(), at.get(), "link"), 0);
    at = Fd(openat(at.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  Fd file(openat(at.get(), "deep", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  const std::string data(4 << 20, 'x');
  ASSERT_EQ(write(file.get(), data.data(), data.size()), static_cast<ssize_t>(data.size()));
  ASSERT_EQ(fsync(file.get()), 0);
  file.reset();
  at.reset();
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const rlimit few{400, before.rlim_max};
  setrlimit(RLIMIT_NOFILE, &few);
  const auto counted = tree_bytes(top, 0);
  const Status removed = remove_tree(top);
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_GE(counted, data.size());
  EXPECT_TRUE(removed.ok()) << removed.error().message;
  EXPECT_FALSE(fs::exists(top));
  EXPECT_TRUE(fs::exists(elsewhere.path + "/kept"));
}

TEST(LeaseDirs, RemovesALinkAndNotWhatItLeadsTo) {
  const TempDir dir;
  fs::create_directory(dir.path + "/kept");
  fs::create_symlink(dir.path + "/kept", dir.path + "/link");
  EXPECT_TRUE(remove_tree(dir.path + "/link").ok());
  EXPECT_FALSE(fs::exists(fs::symlink_status(dir.path + "/link")));
  EXPECT_TRUE(fs::exists(dir.path + "/kept"));
  EXPECT_TRUE(remove_tree(dir.path + "/missing").ok());
}

TEST_F(PrivdTest, EgressIsTheOwnersToGive) {
  start(getuid());
  EXPECT_TRUE(bool_at(ask(R"({"id":1,"verb":"pull","image":"muster/ray:1"})"), {"ok"}));
  EXPECT_EQ(text_at(ask(launch_text(1, R"(,"egress":true)")), {"reason"}), "owner.egress");
  EXPECT_TRUE(runtime.seen().empty()) << "refused before anything was started";
  EXPECT_TRUE(bool_at(ask(launch_text(1, R"(,"cpu_milli":100,"memory_bytes":1000000)")), {"ok"}));
  EXPECT_TRUE(egress.ways.empty()) << "nobody asked for it";
  std::ofstream(layout.policy()) << R"({"egress_allowed":true})";
  EXPECT_TRUE(bool_at(ask(launch_text(2, R"(,"cpu_milli":100,"memory_bytes":1000000,"egress":true,"prefix_bits":20)")),
                      {"ok"}));
  ASSERT_TRUE(egress.ways.contains("lease-2"));
  EXPECT_EQ(egress.ways["lease-2"].network, "/run/netns/x");
  EXPECT_EQ(egress.ways["lease-2"].prefix_bits, 20);
  const auto told = ask(R"({"id":2,"verb":"egress"})");
  EXPECT_NE(to_text(told).find(R"("up_bytes":42)"), std::string::npos);
  EXPECT_TRUE(bool_at(ask(R"({"id":3,"verb":"stop","lease":"lease-2","grace_s":0})"), {"ok"}));
  EXPECT_TRUE(egress.ways.empty()) << "the way ends with the lease";
}

TEST_F(PrivdTest, UnknownVerbsAreRefusedByName) {
  start(getuid());
  const auto answer = ask(R"({"id":5,"verb":"shell","lease":"lease-1"})");
  EXPECT_FALSE(bool_at(answer, {"ok"}));
  EXPECT_EQ(int_at(answer, {"id"}), 5);
  EXPECT_TRUE(runtime.seen().empty());
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

// In a child, which says with its exit code how many of these it could do.
TEST(Sandbox, NetdKeepsOnlyWhatPacketsNeed) {
  const TempDir dir;
  const pid_t child = fork();
  if (child == 0) {
    if (!confine_netd().ok()) _exit(100);
    int wrong = 0;
    const auto refused = [&](long result, int with = EPERM) { wrong += result != -1 || errno != with; };
    char* const none[] = {nullptr};
    refused(execve("/bin/true", none, none));
    refused(syscall(SYS_clone3, nullptr, 0), ENOSYS);
    refused(syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr));
    refused(unshare(CLONE_NEWUSER));
    refused(ptrace(PTRACE_TRACEME, 0, nullptr, nullptr));
    refused(mount("none", dir.path.c_str(), "tmpfs", 0, nullptr));
    refused(socket(AF_UNIX, SOCK_STREAM, 0));
    refused(socket(AF_PACKET, SOCK_RAW, 0));
    refused(kill(getppid(), 0));
    refused(chmod(dir.path.c_str(), 0777));
    refused(symlink("/", (dir.path + "/link").c_str()));
    refused(ioctl(0, TIOCSTI, nullptr));
    wrong += mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
    // What it lives on goes on working.
    wrong += !crypto::write_secret_file(dir.path + "/key", Bytes(32)).ok();
    wrong += !crypto::read_secret_file(dir.path + "/key").ok();
    int ran = 0;
    std::thread([&] { ran = 1; }).join();
    addrinfo hints{}, *found = nullptr;
    hints.ai_flags = AI_ADDRCONFIG;
    wrong += getaddrinfo("localhost", "443", &hints, &found) != 0;
    const int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    _exit(wrong + (ran == 1 ? 0 : 20) + (udp >= 0 ? 0 : 40));
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace muster::host
