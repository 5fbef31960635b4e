// The desk's policy, its log, and the desk in a process of its own behind a socket.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "crypto/file.h"
#include "crypto/hash.h"
#include "crypto/random.h"
#include "overlay/roster.h"
#include "server/commands.h"
#include "server/journal_head.h"
#include "server/signed_book.h"
#include "server/signer_socket.h"
#include "session/frames.h"
#include "wire/agent_frames.h"

namespace muster::server {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

struct Signing : ::testing::Test {
  DataDir dir{(fs::temp_directory_path() / ("muster_signer_" + hex(crypto::random_bytes(6)))).string()};
  crypto::Key32 device = crypto::SigningKey::generate().public_key();
  void SetUp() override {
    ASSERT_TRUE(create_identity(dir, {{"muster.example.org"}, {"muster.example.org:443"}}, read_clocks().wall).ok());
  }
  void TearDown() override { fs::remove_all(dir.root); }
  std::string log() const {
    std::ifstream in(dir.root + "/signer.log", std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static Bytes roster(std::uint64_t incarnation) { return overlay::encode_roster({7, incarnation, 3, {}}); }
  static overlay::RelayToken token(const std::string& relay, Millis life) {
    return {relay, 7, crypto::Key32{}, read_clocks().wall + life};
  }
  static Code refusal(const auto& result) { return result.ok() ? Code::Internal : result.error().code; }
};

TEST_F(Signing, EachKeySignsItsKindOnly) {
  const auto desk = *SigningDesk::open(dir);
  const SignerView view = *desk->view();
  EXPECT_TRUE(view.cas.ca.key_pem.empty()) << "no key is told";
  const auto cert = desk->device_certificate(NodeId{3}, device, 24h);
  ASSERT_TRUE(cert.ok()) << cert.error().message;
  const auto read = crypto::verify_device_certificate(*cert, view.cas.text, read_clocks().wall);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->node_id, "node-3");
  const Bytes bytes = roster(1), signature = desk->roster(bytes)->signature;
  EXPECT_TRUE(overlay::verify_roster(bytes, {signature}, {view.roster_key}).ok());
  EXPECT_FALSE(overlay::verify_roster(bytes, {signature}, {view.command_key}).ok());
  const Bytes order = wire::desired_signing_bytes(NodeId{3}, session::Desired{});
  EXPECT_TRUE(crypto::verify(view.command_key, order, desk->order(order)->signature));
  const auto relayed = *desk->relay_token(token("muster.example.org:443", 6h));
  EXPECT_TRUE(overlay::verify_relay_token(view.relay_key, relayed, "muster.example.org:443", read_clocks().wall).ok());
  const auto proof = *desk->machine_proof(NodeId{3}, device);
  EXPECT_TRUE((*crypto::MachineVerifier::create(view.cas.text))->genuine(proof, device, read_clocks().wall));
  const auto head = desk->head(1, 5, Bytes(32, 1));
  ASSERT_TRUE(head.ok()) << head.error().message;
  EXPECT_TRUE(check_signature(*head, known_audit_keys(dir)).ok());
  const std::string key = crypto::new_ca_key();
  const auto server = desk->server_certificate(crypto::ServerRole::ControlPlane, *crypto::make_ca_request(key, "evil"));
  ASSERT_TRUE(server.ok());
  EXPECT_TRUE(crypto::key_fits({key, *server}));
  EXPECT_EQ(*crypto::common_name(*server), "muster") << "the names are the desk's, not the request's";
}

TEST_F(Signing, TokensAreForTheRelaysThatAreListedNow) {
  const auto desk = *SigningDesk::open(dir);
  const std::string server_id = as_string(*crypto::read_secret_file(dir.key("server_id")));
  const std::string first = "muster.example.org:443", east = "east.example.org:443";
  EXPECT_EQ(refusal(desk->relay_token(token(east, 6h))), Code::PermissionDenied);
  std::this_thread::sleep_for(10ms);  // another time of change
  ASSERT_TRUE(add_relay(dir, server_id, *parse_relay(east, "east")).ok());
  EXPECT_TRUE(desk->relay_token(token(east, 6h)).ok());
  EXPECT_TRUE(desk->relay_token(token(first, 6h)).ok());
  EXPECT_EQ(refusal(desk->relay_token(token(server_id, 6h))), Code::PermissionDenied) << "the name of no relay";
  std::this_thread::sleep_for(10ms);
  ASSERT_TRUE(remove_relay(dir, server_id, east).ok());
  EXPECT_EQ(refusal(desk->relay_token(token(east, 6h))), Code::PermissionDenied);
}

TEST_F(Signing, WhatThePolicyForbidsIsRefusedAndNoted) {
  const auto desk = *SigningDesk::open(dir);
  using enum Code;
  EXPECT_EQ(refusal(desk->device_certificate(NodeId{3}, device, 8 * 24h)), PermissionDenied);
  EXPECT_EQ(refusal(desk->device_certificate(NodeId{0}, device, 24h)), PermissionDenied);
  EXPECT_EQ(refusal(desk->device_certificate(NodeId{3}, device, Millis(-5))), PermissionDenied);
  EXPECT_EQ(refusal(desk->order(to_bytes("muster-roster-v1 and whatever"))), PermissionDenied);
  EXPECT_EQ(refusal(desk->order({})), PermissionDenied);
  EXPECT_FALSE(desk->roster(to_bytes("no roster")).ok());
  EXPECT_EQ(refusal(desk->relay_token(token("elsewhere:443", 6h))), PermissionDenied);
  EXPECT_EQ(refusal(desk->relay_token(token("muster.example.org:443", 13h))), PermissionDenied);
  EXPECT_FALSE(desk->server_certificate(crypto::ServerRole::Relay, "no request").ok());
  ASSERT_TRUE(desk->roster(roster(5)).ok());
  EXPECT_EQ(refusal(desk->roster(roster(4))), PermissionDenied) << "an incarnation that has passed";
  ASSERT_TRUE(desk->head(5, 10, Bytes(32, 1)).ok());
  EXPECT_EQ(refusal(desk->head(5, 9, Bytes(32, 1))), PermissionDenied) << "a journal that was cut off";
  ASSERT_TRUE(desk->head(6, 2, Bytes(32, 1)).ok()) << "a restored one";
  EXPECT_FALSE(desk->ask(SignOp::Device, {Bytes(8)}).ok());
  EXPECT_FALSE(desk->ask(SignOp::Device, {Bytes(8), Bytes(31), Bytes(8)}).ok());
  const std::string said = log();
  EXPECT_NE(said.find(" here device key="), std::string::npos) << said;
  EXPECT_NE(said.find("node-3 device=" + audit_key_id(device) + " seconds=691200 refused: "), std::string::npos)
      << said;
  EXPECT_NE(said.find(" roster key=" + audit_key_id(desk->view()->roster_key) +
                      " cluster=7 incarnation=5 epoch=3 members=0 ok\n"),
            std::string::npos)
      << said;
  struct stat info {};
  ASSERT_EQ(::stat((dir.root + "/signer.log").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(Signing, IdentityTokensNameAllThatTheyAreFor) {
  const auto desk = *SigningDesk::open(dir);
  WorkloadWanted wanted{"https://muster.example.org", "acme", "vision", "train", {2}, {3}, {5}, {9}, {7},
                        {"sts.amazonaws.com"},        1h};
  const auto token = desk->workload_token(wanted);
  ASSERT_TRUE(token.ok()) << token.error().message;
  const auto keys = desk->workload_keys();
  ASSERT_TRUE(keys.ok());
  const auto dot = token->rfind('.');
  EXPECT_TRUE(crypto::verify(keys->front().key, as_bytes(std::string_view(*token).substr(0, dot)),
                             *unbase64url(token->substr(dot + 1))));
  EXPECT_NE(keys->front().key, desk->access_keys()->front().key) << "one key signs one kind";
  EXPECT_NE(log().find("org:acme:project:vision:cluster:train:job:job-7 lease-9 seconds=3600 ok\n"), std::string::npos)
      << log();
  const auto refused = [&](auto change) {
    WorkloadWanted other = wanted;
    change(other);
    return !desk->workload_token(other).ok();
  };
  EXPECT_TRUE(refused([](auto& w) { w.lifetime = 2h; }));
  EXPECT_TRUE(refused([](auto& w) { w.lifetime = Millis(0); }));
  EXPECT_TRUE(refused([](auto& w) { w.issuer = "http://muster.example.org"; }));
  EXPECT_TRUE(refused([](auto& w) { w.org_name = "acme:project:other"; }));
  EXPECT_TRUE(refused([](auto& w) { w.cluster_name = ""; }));
  EXPECT_TRUE(refused([](auto& w) { w.lease = LeaseId{}; }));
  EXPECT_TRUE(refused([](auto& w) { w.audiences = {}; }));
  EXPECT_TRUE(refused([](auto& w) { w.audiences = {"a\",\"b"}; }));
  EXPECT_TRUE(refused([](auto& w) { w.audiences.assign(9, "a"); }));
  EXPECT_FALSE(refused([](auto& w) { w.job = JobId{}; }));
}

TEST_F(Signing, AskedTooOftenItStops) {
  SigningDesk::Options options;
  options.rates[static_cast<std::size_t>(SignOp::Device)] = {3, 1};
  const auto desk = *SigningDesk::open(dir, options);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(desk->device_certificate(NodeId{3}, device, 24h).ok());
  EXPECT_EQ(refusal(desk->device_certificate(NodeId{3}, device, 24h)), Code::ResourceExhausted);
  EXPECT_TRUE(desk->machine_proof(NodeId{3}, device).ok()) << "each kind by itself";
}

// The same roster goes to every member, and most orders repeat what the ones before said.
TEST_F(Signing, WhatWasSignedLatelyIsNotAskedAgain) {
  const std::shared_ptr<Signer> desk = *SigningDesk::open(dir);
  SignedBook book(desk);
  const std::string before = log();
  const auto lines = [&] {
    const std::string text = log();
    return std::count(text.begin() + static_cast<std::ptrdiff_t>(before.size()), text.end(), '\n');
  };
  const WallTime now = read_clocks().wall;
  const Bytes first = roster(1);
  const Bytes signature = book.roster(ClusterId{7}, first)->signature;
  EXPECT_EQ(book.roster(ClusterId{7}, first)->signature, signature);
  EXPECT_EQ(lines(), 1);
  EXPECT_NE(book.roster(ClusterId{7}, roster(2))->signature, signature) << "another roster of the cluster";
  EXPECT_EQ(lines(), 2);
  ASSERT_TRUE(book.proof_of(NodeId{3}, device, now).ok());
  ASSERT_TRUE(book.proof_of(NodeId{3}, device, now + 1h).ok());
  EXPECT_EQ(lines(), 3);
  ASSERT_TRUE(book.proof_of(NodeId{3}, crypto::Key32{}, now).ok()) << "another key of the machine";
  EXPECT_EQ(lines(), 4);
  const auto wanted = token("muster.example.org:443", 6h);
  const auto given = book.relay_token(wanted, now);
  ASSERT_TRUE(given.ok()) << given.error().message;
  auto later = wanted;
  later.not_after = wanted.not_after + SignedBook::kTokenKept;
  EXPECT_EQ(*book.relay_token(later, now), *given);
  EXPECT_EQ(lines(), 5);
  later.not_after = later.not_after + Millis(1);
  EXPECT_NE(*book.relay_token(later, now), *given) << "it would end too early";
  EXPECT_EQ(lines(), 6);
  book.forget();
  ASSERT_TRUE(book.roster(ClusterId{7}, roster(2)).ok());
  EXPECT_EQ(lines(), 7) << "other keys are in use";
}

TEST_F(Signing, WithoutItsLineNothingIsSigned) {
  fs::remove(dir.root + "/signer.log");
  fs::create_directory(dir.root + "/signer.log");
  const auto desk = *SigningDesk::open(dir);
  EXPECT_EQ(refusal(desk->roster(roster(1))), Code::Unavailable);
  fs::remove(dir.root + "/signer.log");
  EXPECT_TRUE(desk->roster(roster(1)).ok());
  SigningDesk::Options options;
  options.log_bytes_max = 200;
  const auto brief = *SigningDesk::open(dir, options);
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(brief->roster(roster(1)).ok());
  EXPECT_TRUE(fs::exists(dir.root + "/signer.log.1"));
}

TEST_F(Signing, TheSocketTakesOnlyWhoMayAsk) {
  const auto desk = *SigningDesk::open(dir);
  const std::string path = dir.root + "/sign.sock";
  {
    const SignerService service(*desk, *listen_for_signer(path), {::geteuid()});
    SignerLink link(path);
    const auto view = link.view();
    ASSERT_TRUE(view.ok()) << view.error().message;
    EXPECT_EQ(view->cas.text, desk->view()->cas.text);
    EXPECT_TRUE(link.device_certificate(NodeId{3}, device, 24h).ok());
    EXPECT_EQ(refusal(link.device_certificate(NodeId{3}, device, 8 * 24h)), Code::PermissionDenied) << "told as it is";
    EXPECT_NE(log().find(fmt::format(" uid {} pid {} device ", ::geteuid(), ::getpid())), std::string::npos) << log();
    Bytes large(5 << 20, 'x');
    EXPECT_EQ(refusal(link.order(large)), Code::PermissionDenied);
    std::vector<std::thread> many;
    for (int i = 0; i < 8; ++i)
      many.emplace_back([&] {
        for (int n = 0; n < 20; ++n) EXPECT_TRUE(link.machine_proof(NodeId{3}, device).ok());
      });
    for (auto& each : many) each.join();
  }
  {  // Started anew under the link.
    SignerLink link(path, 5'000ms);
    const SignerService service(*desk, *listen_for_signer(path), {::geteuid()});
    EXPECT_TRUE(link.view().ok());
  }
  {
    const SignerService service(*desk, *listen_for_signer(path), {::geteuid() + 1});
    SignerLink link(path, 300ms);
    EXPECT_EQ(refusal(link.view()), Code::Unavailable) << "another user's";
  }
  EXPECT_EQ(refusal(SignerLink(path, 200ms).view()), Code::Unavailable);
  EXPECT_FALSE(listen_for_signer(dir.key("secret")).ok()) << "a file that is no socket stays";
  EXPECT_FALSE(listen_for_signer(std::string(200, 'x')).ok());
}

// musterd under one user, the signer under another: who takes musterd over asks, and reads nothing.
TEST_F(Signing, AnotherUserMayAskButNeverRead) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to be two other users";
  constexpr uid_t kSigner = 64'801, kMusterd = 64'802, kStranger = 64'803;
  const std::string apart = dir.root + "-signer";
  std::vector<char*> words;
  for (const char* word : {"musterd", "signer", "split", "--data", dir.root.c_str(), "--to", apart.c_str()})
    words.push_back(const_cast<char*>(word));
  const auto arguments = parse_arguments(static_cast<int>(words.size()), words.data());
  ASSERT_TRUE(arguments.ok());
  ASSERT_EQ(cmd_signer(*arguments), 0);
  for (const char* name : {"ca.key.pem", "root.key.pem", "roster.pem", "command.pem", "relay.pem", "audit.pem"}) {
    EXPECT_FALSE(fs::exists(dir.key(name))) << name;
    EXPECT_TRUE(fs::exists(apart + "/keys/" + name)) << name;
  }
  EXPECT_EQ(load_identity(dir, read_clocks().wall).error().code, Code::FailedPrecondition) << "it says what to do";
  const auto give = [](const std::string& root, uid_t uid) {
    ASSERT_EQ(::chown(root.c_str(), uid, uid), 0);
    for (const auto& entry : fs::recursive_directory_iterator(root))
      ASSERT_EQ(::chown(entry.path().c_str(), uid, uid), 0);
  };
  give(apart, kSigner);
  give(dir.root, kMusterd);
  const std::string socket = "@muster-test-" + hex(crypto::random_bytes(8));
  const int listener = *listen_for_signer(socket);
  const pid_t signer = ::fork();
  if (signer == 0) {
    if (::setgid(kSigner) != 0 || ::setuid(kSigner) != 0) ::_exit(9);
    const auto desk = SigningDesk::open(DataDir{apart});
    if (!desk.ok()) ::_exit(8);
    const SignerService service(**desk, listener, {kMusterd});
    ::pause();
    ::_exit(0);
  }
  ::close(listener);
  const auto as = [&](uid_t uid, auto&& what) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      if (::setgid(uid) != 0 || ::setuid(uid) != 0) ::_exit(9);
      ::_exit(what());
    }
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  EXPECT_EQ(as(kMusterd,
               [&] {
                 const auto link = std::make_shared<SignerLink>(socket);
                 const auto id = load_identity(dir, read_clocks().wall, link);
                 if (!id.ok()) return 1;
                 if (!crypto::verify_chain(id->tls.cert_pem, id->cas.text, read_clocks().wall).ok()) return 2;
                 if (!id->signer->device_certificate(NodeId{3}, device, 24h).ok()) return 3;
                 if (id->signer->device_certificate(NodeId{3}, device, 30 * 24h).ok()) return 4;
                 for (const char* name : {"ca.key.pem", "roster.pem", "command.pem", "relay.pem", "audit.pem"})
                   if (std::ifstream(apart + "/keys/" + name)) return 5;
                 if (std::ifstream("/proc/" + std::to_string(signer) + "/mem")) return 6;
                 return 0;
               }),
            0);
  EXPECT_EQ(as(kStranger, [&] { return SignerLink(socket, 300ms).view().ok() ? 1 : 0; }), 0);
  EXPECT_EQ(as(kMusterd, [&] { return std::ifstream(apart + "/signer.log") ? 1 : 0; }), 0);
  ::kill(signer, SIGKILL);
  ::waitpid(signer, nullptr, 0);
  std::ifstream in(apart + "/signer.log");
  const std::string said{std::istreambuf_iterator<char>(in), {}};
  EXPECT_NE(said.find(fmt::format("uid {} ", kMusterd)), std::string::npos) << said;
  fs::remove_all(apart);
}

}  // namespace
}  // namespace muster::server
