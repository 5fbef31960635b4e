// The server in one process on loopback: real TLS, REST, WebSocket and engine; the agent is played by the test.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <thread>

#include "crypto/access_token.h"
#include "crypto/cert.h"
#include "crypto/file.h"
#include "crypto/password.h"
#include "crypto/random.h"
#include "crypto/totp.h"
#include "crypto/x25519.h"
#include "net/handoff.h"
#include "net/recall_frame.h"
#include "overlay/relay_protocol.h"
#include "overlay/roster.h"
#include "relay/client.h"
#include "relay/relay.h"
#include "server/access_keys.h"
#include "server/agents.h"
#include "server/api.h"
#include "server/app.h"
#include "server/commands.h"
#include "server/desired.h"
#include "server/event_hub.h"
#include "server/host_judge.h"
#include "server/image_scans.h"
#include "server/journal_head.h"
#include "server/relay_book.h"
#include "server/relay_teller.h"
#include "server/second_factor.h"
#include "server/signing_keys.h"
#include "server/test_store.h"
#include "server/way_memory.h"
#include "session/carried.h"
#include "session/link.h"
#include "wire/agent_frames.h"
#include "wire/contract.h"

namespace muster::server {
namespace {

using wire::Json;

struct Answer {
  int status = 0;
  Json body;
  std::map<std::string, std::string> headers;
};

class Platform : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    root_ = std::filesystem::temp_directory_path() / ("muster-server-test-" + std::to_string(::getpid()));
    store_ = std::make_shared<TestStore>();
    std::ofstream(root_ + ".password") << "correct horse battery\n";
    Arguments arguments;
    arguments.options = {{"--data", root_},
                         {"--name", "localhost,127.0.0.1"},
                         {"--operator", "admin"},
                         {"--password-file", root_ + ".password"}};
    const OpenStore open = [](const std::string&, const auto&) -> Result<std::shared_ptr<journal::Store>> {
      return std::shared_ptr<journal::Store>(store_);
    };
    ASSERT_EQ(cmd_init(arguments, open), 0);
    App::Options options;
    options.dir.root = root_;
    options.store = store_;
    options.addresses = std::make_shared<TestAddresses>();
    options.threads = 2;
    options.queue_watch.every = Millis(100), options.queue_watch.rest = Millis(0);
    auto app = App::start(options);
    ASSERT_TRUE(app.ok()) << app.error().message;
    app_ = std::move(*app);
    orgs_.clear();
    admin_ = login("admin", "correct horse battery");
    ASSERT_FALSE(admin_.empty());
  }
  static void TearDownTestSuite() {
    app_.reset();
    store_.reset();
    std::filesystem::remove_all(root_);
    std::filesystem::remove(root_ + ".password");
  }

  static net::Endpoint endpoint() {
    net::Endpoint out;
    out.host = "127.0.0.1";
    out.port = app_->port();
    out.ca_pem = app_->context().cas.get()->text;
    out.use_proxy_env = false;
    return out;
  }
  static Answer call(const std::string& method, const std::string& target, const std::string& body = "",
                     const std::string& token = admin_, std::map<std::string, std::string> headers = {}) {
    net::Client client(endpoint());
    if (!token.empty()) headers["Authorization"] = "Bearer " + token;
    if (!body.empty()) headers["Content-Type"] = "application/json";
    const auto response = client.call({method, target, headers, body, Millis(20'000)});
    if (!response.ok()) {
      ADD_FAILURE() << method << " " << target << ": " << response.error().message;
      return {};
    }
    Answer out{response->status, {}, response->headers};
    if (auto parsed = wire::parse_json(response->body, {.bytes = 8 << 20}); parsed.ok()) out.body = std::move(*parsed);
    return out;
  }
  static std::string login(const std::string& name, const std::string& password) {
    return call("POST", "/api/v1/login", wire::to_json(wire::LoginRequest{name, password, "test", {}}), "")
        .body["token"]
        .text();
  }
  static std::string user(const std::string& name, Role role, const std::string& org) {
    if (orgs_.insert(org).second) {
      EXPECT_EQ(call("POST", "/api/v1/orgs", "{\"name\":\"" + org + "\"}").status / 100 * 100, 200);
    }
    EXPECT_EQ(call("POST", "/api/v1/users",
                   wire::to_json(wire::CreatePrincipalRequest{name, role, org, "password-of-" + name}))
                  .status,
              200);
    return login(name, "password-of-" + name);
  }
  template <typename F>
  static bool eventually(F condition, Millis limit = Millis(20'000)) {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (std::chrono::steady_clock::now() < end) {
      if (condition()) return true;
      std::this_thread::sleep_for(Millis(50));
    }
    return condition();
  }

  static inline std::string root_, admin_;
  static inline std::set<std::string> orgs_;  // that app_ has
  static inline std::shared_ptr<TestStore> store_;
  static inline std::unique_ptr<App> app_;
};

// A machine that obeys: whatever is desired is observed as ready.
// What every machine says that it runs.
const std::string kImage = "sha256:" + std::string(64, 'a');

class FakeAgent {
 public:
  // trust: what it believes; without roots it is an agent of before them.
  FakeAgent(net::Endpoint endpoint, NodeId node, std::string certificate, crypto::SigningKey key, NodeFacts facts,
            Bytes command_key, crypto::Trust trust = {}, std::optional<crypto::SigningKeys> keys = {})
      : trust_(std::move(trust)),
        keys_of_server_(std::move(keys)),
        node_(node),
        certificate_(std::move(certificate)),
        key_(std::move(key)),
        facts_(std::move(facts)),
        command_key_(std::move(command_key)),
        loop_(net::Loop::create(1)) {
    loop_->dial_websocket(std::move(endpoint), "/agent/v1", {}, [this](Result<net::WebSocketPtr> socket) {
      if (!socket.ok()) {
        const std::lock_guard lock(mutex_);
        closed_ = socket.error().message;
        return;
      }
      socket_ = *socket;
      socket_->start([this](const Bytes& message) { on_message(message); },
                     [this](const std::string& why) {
                       const std::lock_guard lock(mutex_);
                       closed_ = why.empty() ? "closed" : why;
                     });
    });
  }
  ~FakeAgent() {
    beating_ = false;
    beats_.join();
    loop_->stop();
  }
  struct Seen {
    std::string closed;
    bool welcomed = false, genuine = true, hanging = false;
    int told = 0;
    crypto::Trust trust;
    std::optional<crypto::SigningKeys> keys;
    int dropped = 0, rosters = 0;  // orders that no believed key signed; rosters that one did
    std::string certificate;
    session::Desired desired;
    std::uint64_t log_acked = 0;
    crypto::X25519Pair overlay;  // of the lease that came last
    session::Refused refused;
  };
  Seen seen() {
    const std::lock_guard lock(mutex_);
    Seen out = seen_;
    out.closed = closed_;
    return out;
  }
  void send(const session::AgentFrame& frame) { socket_->send(wire::encode(frame)); }

 private:
  void on_message(const Bytes& message) {
    const auto frame = wire::decode_server_frame(message);
    if (!frame.ok()) return;
    if (const auto* challenge = std::get_if<session::Challenge>(&*frame)) {
      session::Hello hello;
      hello.certificate_pem = certificate_;
      hello.signature = key_.sign(session::hello_message(*challenge));
      hello.boot_id = "boot-1";
      send(hello);
    } else if (std::get_if<session::Welcome>(&*frame)) {
      if (!trust_.roots.empty()) say_trust();
      if (keys_of_server_) say_keys();
      send(session::Inventory{facts_, {}, {}});
      const std::lock_guard lock(mutex_);
      seen_.welcomed = true;
    } else if (const auto* refused = std::get_if<session::Refused>(&*frame)) {
      const std::lock_guard lock(mutex_);
      seen_.refused = *refused;
    } else if (const auto* ack = std::get_if<session::LogAck>(&*frame)) {
      const std::lock_guard lock(mutex_);
      seen_.log_acked = ack->offset;
    } else if (const auto* open = std::get_if<session::StreamOpen>(&*frame)) {
      if (!open->argv.empty() && open->argv.back() == "hang") {
        const std::lock_guard lock(mutex_);
        seen_.hanging = true;
        return;
      }
      send(session::StreamData{open->stream, 0, to_bytes(open->argv.empty() ? "tcp" : open->argv.back())});
      send(session::StreamClose{open->stream, 7, ""});
    } else if (const auto* told = std::get_if<session::TrustTold>(&*frame)) {
      {
        const std::lock_guard lock(mutex_);
        auto learnt = crypto::believe(trust_, *crypto::parse_trust(as_string(told->pem)));
        if (learnt.ok()) trust_ = std::move(*learnt);
        ++seen_.told;
        seen_.trust = trust_;
      }
      say_trust();
    } else if (const auto* stated = std::get_if<session::KeysTold>(&*frame)) {
      {
        const std::lock_guard lock(mutex_);
        auto learnt = crypto::believe(*keys_of_server_, *crypto::parse_signing_keys(as_string(stated->text)), trust_);
        if (learnt.ok()) keys_of_server_ = std::move(*learnt);
        seen_.keys = keys_of_server_;
      }
      say_keys();
    } else if (const auto* issued = std::get_if<session::CertIssued>(&*frame)) {
      const std::lock_guard lock(mutex_);
      seen_.certificate = as_string(issued->der_chain_pem);
    } else if (const auto* desired = std::get_if<session::Desired>(&*frame)) {
      obey(*desired);
    }
  }
  void say_trust() {
    const crypto::Digest digest = crypto::sha256(as_bytes(crypto::trust_text(trust_)));
    send(session::TrustTaken{trust_.revision, {digest.begin(), digest.end()}});
  }
  void say_keys() {
    session::KeysTaken taken;
    if (keys_of_server_->revision != 0) {
      const crypto::Digest digest = crypto::sha256(as_bytes(crypto::signing_keys_text(*keys_of_server_)));
      taken = {keys_of_server_->revision, {digest.begin(), digest.end()}};
    }
    send(taken);
  }
  // As the agent of a machine does; false: it is dropped.
  bool believed(const session::Desired& desired) {
    const WallTime now = read_clocks().wall;
    const auto of = [&](crypto::KeyKind kind) { return crypto::believed_keys(*keys_of_server_, kind, now); };
    const bool good = crypto::signer_of(of(crypto::KeyKind::Order), desired.signature_key,
                                        wire::desired_signing_bytes(node_, desired), desired.signature)
                          .has_value();
    if (!good) ++seen_.dropped;
    for (const auto& roster : desired.rosters)
      if (good && crypto::signer_of(of(crypto::KeyKind::Roster), roster.keys.at(0),
                                    overlay::roster_message(roster.bytes), roster.signatures.at(0)))
        ++seen_.rosters;
    return good;
  }
  void obey(const session::Desired& desired) {
    {
      const std::lock_guard lock(mutex_);
      if (keys_of_server_ && !believed(desired)) return;
      if (keys_of_server_) {
        const auto key = desired_key(desired);
        command_key_.assign(key.begin(), key.end());
      }
      seen_.desired = desired;
      seen_.genuine =
          seen_.genuine && crypto::verify(command_key_, wire::desired_signing_bytes(node_, desired), desired.signature);
    }
    session::Observed observed;
    observed.revision = desired.revision;
    for (const auto& assignment : desired.assignments) {
      ObservedLease lease;
      lease.lease = assignment.lease;
      lease.epoch = assignment.epoch;
      lease.roster_epoch = assignment.roster_epoch;
      auto& pair = keys_[assignment.lease];
      if (pair.secret.zero()) pair = crypto::x25519_generate();
      {
        const std::lock_guard lock(mutex_);
        seen_.overlay = pair;
      }
      lease.overlay_key.assign(pair.public_key.begin(), pair.public_key.end());
      lease.overlay_signature = overlay::sign_overlay_key(
          key_, assignment.cluster.value,
          {assignment.epoch.incarnation, assignment.epoch.leader, assignment.epoch.counter}, pair.public_key);
      lease.probe = {kImage, "2.55.0", "3.11.2", true, true};
      lease.phase = assignment.want == LeaseWant::Stop      ? LeasePhase::Stopped
                    : assignment.want == LeaseWant::Standby ? LeasePhase::Standby
                                                            : LeasePhase::Ready;
      if (assignment.cluster_name == "broken" && assignment.want == LeaseWant::Run) {
        lease.phase = LeasePhase::Failed;
        lease.reason = "setup.failed";
        lease.output = "setup command 1 ended with exit code 7\nno such package\n";
      }
      observed.leases.push_back(std::move(lease));
      for (const auto& job : assignment.jobs)
        observed.jobs.push_back({job.job, job.attempt, JobState::Running, -1, "", 0});
    }
    send(observed);
  }
  crypto::Key32 desired_key(const session::Desired& desired) const {
    return *crypto::signer_of(crypto::believed_keys(*keys_of_server_, crypto::KeyKind::Order, read_clocks().wall),
                              desired.signature_key, wire::desired_signing_bytes(node_, desired), desired.signature);
  }
  crypto::Trust trust_;
  std::optional<crypto::SigningKeys> keys_of_server_;  // those that it believes; none: an agent of before statements
  NodeId node_;
  std::string certificate_;
  crypto::SigningKey key_;
  NodeFacts facts_;
  Bytes command_key_;
  std::mutex mutex_;
  Seen seen_;
  std::string closed_;
  std::map<LeaseId, crypto::X25519Pair> keys_;
  net::WebSocketPtr socket_;
  std::unique_ptr<net::Loop> loop_;
  std::atomic<bool> beating_{true};
  std::thread beats_{[this] {
    for (std::uint64_t turn = 1; beating_; ++turn) {
      std::this_thread::sleep_for(Millis(100));
      if (turn % 20 == 0 && seen().welcomed) send(session::Heartbeat{turn, {}});
    }
  }};
};

// ---- the data folder

std::string file_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
struct Install {
  DataDir dir{std::filesystem::temp_directory_path() / ("muster_folder_" + hex(crypto::random_bytes(6)))};
  const WallTime now = read_clocks().wall;
  Install() { EXPECT_TRUE(create_identity(dir, {{"muster.example.org"}, {"muster.example.org:443"}}, now).ok()); }
  ~Install() { std::filesystem::remove_all(dir.root); }
  crypto::KeyAndCert own() const { return {file_text(dir.key("tls.key.pem")), file_text(dir.key("tls.cert.pem"))}; }
  crypto::KeyAndCert relay() const {
    return {file_text(dir.relay() + "/key.pem"), file_text(dir.relay() + "/cert.pem")};
  }
  void expect_apart() const {
    EXPECT_EQ(crypto::server_role(own().cert_pem).value(), crypto::ServerRole::ControlPlane);
    EXPECT_EQ(crypto::server_role(relay().cert_pem).value(), crypto::ServerRole::Relay);
    EXPECT_TRUE(crypto::key_fits(own()));
    EXPECT_TRUE(crypto::key_fits(relay()));
    EXPECT_FALSE(crypto::key_fits({relay().key_pem, own().cert_pem})) << "the relay has a key of its own";
  }
};

TEST(DataFolder, TheRelaysKeyIsNotMusterds) {
  const Install folder;
  folder.expect_apart();
  const auto own = folder.own(), relay = folder.relay();
  ASSERT_TRUE(load_identity(folder.dir, folder.now).ok());
  EXPECT_EQ(folder.own().key_pem, own.key_pem);
  EXPECT_EQ(folder.relay().key_pem, relay.key_pem);
  ASSERT_TRUE(load_identity(folder.dir, folder.now + Millis(61LL * 86'400'000)).ok());
  EXPECT_NE(folder.own().key_pem, own.key_pem) << "renewed";
  EXPECT_NE(folder.relay().key_pem, relay.key_pem);
  folder.expect_apart();
}

TEST(DataFolder, RelaysAreListedByRegionAndEachHasAKeyAndANameOfItsOwn) {
  const Install folder;
  const auto id = load_identity(folder.dir, folder.now).value();
  const auto run = [&](std::vector<std::string> words, std::map<std::string, std::string> options = {}) {
    Arguments arguments;
    arguments.words = std::move(words);
    arguments.words.insert(arguments.words.begin(), "relay");
    arguments.options = std::move(options);
    arguments.options["--data"] = folder.dir.root;
    return cmd_relay(arguments);
  };
  const auto listed = [&] { return read_relays(folder.dir, id.server_id).value(); };
  const std::string first = "muster.example.org:443", east = "east.example.org:443";
  EXPECT_EQ(listed(), (std::vector<RelayEntry>{{first, "", first}}));
  RelayBook book(folder.dir, id.server_id, id.relay_list);
  EXPECT_FALSE(book.refresh());
  const std::string out = folder.dir.root + "/for-east";
  EXPECT_EQ(run({"add", east}), 2) << "a region must be said";
  EXPECT_EQ(run({"add", "no port"}, {{"--region", "east"}}), 2);
  EXPECT_EQ(run({"add", "host:0"}, {{"--region", "east"}}), 2);
  EXPECT_EQ(run({"add", "host\nother:443"}, {{"--region", "east"}}), 2);
  EXPECT_EQ(run({"add", east}, {{"--region", "e a"}}), 2);
  EXPECT_EQ(run({"add", east}, {{"--region", "east"}, {"--out", out}}), 0);
  EXPECT_EQ(listed().at(1), (RelayEntry{east, "east", east}));
  EXPECT_EQ(run({"add", east}, {{"--region", "west"}}), 1) << "listed already";
  EXPECT_EQ(run({"add", first}, {{"--region", "home"}}), 0) << "the first one only gets a region";
  EXPECT_EQ(listed().at(0), (RelayEntry{first, "home", first}));
  EXPECT_TRUE(book.refresh());
  EXPECT_EQ(*book.relays(), listed());
  EXPECT_FALSE(book.refresh());
  const crypto::KeyAndCert own{file_text(out + "/key.pem"), file_text(out + "/cert.pem")};
  EXPECT_TRUE(crypto::key_fits(own));
  EXPECT_EQ(crypto::server_role(own.cert_pem).value(), crypto::ServerRole::Relay);
  EXPECT_NE(own.key_pem, folder.relay().key_pem);
  EXPECT_EQ(file_text(out + "/relay_id"), east + "\n");
  EXPECT_EQ(file_text(out + "/controller.pub"), file_text(folder.dir.relay() + "/controller.pub"));
  EXPECT_EQ(run({"files", east}, {{"--out", out}}), 1) << "a key that is there is not overwritten";
  EXPECT_EQ(run({"files", east}, {{"--out", out + "-2"}}), 0);
  EXPECT_EQ(run({"files", "other:443"}, {{"--out", out + "-3"}}), 1);
  EXPECT_EQ(run({"remove", "other:443"}), 1);
  for (int i = 0; listed().size() < kRelaysListed; ++i)
    EXPECT_EQ(run({"add", "r" + std::to_string(i) + ".example.org:443"}, {{"--region", "more"}}), 0);
  EXPECT_EQ(run({"add", "one-more.example.org:443"}, {{"--region", "more"}}), 1);
  EXPECT_EQ(run({"list"}), 0);
  while (listed().size() > 1) EXPECT_EQ(run({"remove", listed().back().address}), 0);
  EXPECT_EQ(run({"remove", first}), 1) << "the last one stays";
  EXPECT_EQ(run({"other"}), 2);
  // Those of `musterd init` all go by the first one's name, as they were set up.
  ASSERT_TRUE(crypto::write_secret_file(folder.dir.key("relays"), as_bytes("a:443\nb:443\nc:443 east\n")).ok());
  EXPECT_EQ(listed(),
            (std::vector<RelayEntry>{{"a:443", "", "a:443"}, {"b:443", "", "a:443"}, {"c:443", "east", "c:443"}}));
  EXPECT_EQ(run({"remove", "a:443"}), 1) << "b goes by its name";
  EXPECT_EQ(run({"remove", "b:443"}), 0);
  EXPECT_EQ(run({"remove", "a:443"}), 0);
  EXPECT_EQ(listed().size(), 1U);
}

TEST(DataFolder, OneOfBeforeRolesIsPutRightAtTheStart) {
  const Install folder;
  const auto ca = load_cas(folder.dir)->ca;
  const auto shared =
      *crypto::issue_server_certificate(ca, {}, "muster", {"muster"}, folder.now, Millis(90LL * 86'400'000));
  ASSERT_TRUE(crypto::write_secret_file(folder.dir.key("tls.key.pem"), as_bytes(shared.key_pem)).ok());
  ASSERT_TRUE(crypto::write_secret_file(folder.dir.key("tls.cert.pem"), as_bytes(shared.cert_pem)).ok());
  ASSERT_TRUE(crypto::write_secret_file(folder.dir.relay() + "/key.pem", as_bytes(shared.key_pem)).ok());
  ASSERT_TRUE(crypto::write_secret_file(folder.dir.relay() + "/cert.pem", as_bytes(shared.cert_pem)).ok());
  const auto id = load_identity(folder.dir, folder.now);
  ASSERT_TRUE(id.ok()) << id.error().message;
  folder.expect_apart();
  EXPECT_EQ(id->tls.key_pem, folder.own().key_pem);
  EXPECT_NE(folder.own().key_pem, shared.key_pem);
  EXPECT_NE(folder.relay().key_pem, shared.key_pem);
  // A machine that died between two files of a pair.
  ASSERT_TRUE(crypto::write_secret_file(folder.dir.key("tls.key.pem"), as_bytes(shared.key_pem)).ok());
  ASSERT_TRUE(crypto::write_secret_file(folder.dir.relay() + "/key.pem", as_bytes(shared.key_pem)).ok());
  ASSERT_TRUE(load_identity(folder.dir, folder.now).ok());
  folder.expect_apart();
}

// ---- roots and CAs

bool believed_by(const std::string& leaf_bundle, const std::string& bundle, WallTime now) {
  return crypto::verify_chain(leaf_bundle, bundle, now).ok();
}

TEST(DataFolder, AnotherCaSignsFromNowOnAndTheOneBeforeStaysBelieved) {
  const Install folder;
  const auto before = *load_identity(folder.dir, folder.now);
  ASSERT_EQ(before.cas.trust.revision, 1u);
  ASSERT_TRUE(rotate_ca(folder.dir, "", When::Safe, folder.now).ok());
  const auto id = load_identity(folder.dir, folder.now);
  ASSERT_TRUE(id.ok()) << id.error().message;
  EXPECT_NE(ca_id(id->cas.ca.cert_pem), ca_id(before.cas.ca.cert_pem));
  EXPECT_EQ(id->cas.pin, before.cas.pin) << "the root is the same, and so what people and join tokens know";
  EXPECT_EQ(id->cas.trust.intermediates.size(), 2u);
  EXPECT_NE(id->tls.key_pem, before.tls.key_pem) << "both servers have certificates of it at once";
  folder.expect_apart();
  for (const auto& leaf : {before.tls.cert_pem, id->tls.cert_pem, folder.relay().cert_pem})
    EXPECT_TRUE(believed_by(leaf, id->cas.text, folder.now));
  EXPECT_TRUE(folder.relay().cert_pem.ends_with(id->cas.ca.cert_pem + id->cas.trust.roots.front()));
  // Retired when nothing of it is in use, or at once when its key leaked.
  const std::string old_id = ca_id(before.cas.ca.cert_pem);
  EXPECT_FALSE(retire_ca(folder.dir, old_id, "", When::Safe, folder.now).ok());
  EXPECT_FALSE(retire_ca(folder.dir, ca_id(id->cas.ca.cert_pem), "", When::Now, folder.now).ok()) << "in use";
  EXPECT_EQ(retire_ca(folder.dir, "0123", "", When::Now, folder.now).error().code, Code::NotFound);
  ASSERT_TRUE(retire_ca(folder.dir, old_id, "", When::Safe, folder.now + kCaSettles).ok());
  const auto after = *load_identity(folder.dir, folder.now);
  EXPECT_EQ(after.cas.trust.revision, 2u);
  EXPECT_TRUE(crypto::gave_up(after.cas.trust, before.cas.ca.cert_pem));
  EXPECT_FALSE(believed_by(before.tls.cert_pem, after.cas.text, folder.now));
  EXPECT_TRUE(believed_by(before.tls.cert_pem, after.cas.ever, folder.now));
  EXPECT_EQ(after.tls.key_pem, id->tls.key_pem);
  EXPECT_TRUE(crypto::believe(before.cas.trust, after.cas.trust).ok()) << "signed by the root";
  EXPECT_EQ(after.cas.history.size(), 1u);
}

TEST(DataFolder, ACaThatNearsItsEndIsFollowedWhereItsRootCanSign) {
  const Install folder;
  const auto before = *load_identity(folder.dir, folder.now);
  EXPECT_EQ(load_identity(folder.dir, folder.now + kCaLifetime / 2)->cas.ca.cert_pem, before.cas.ca.cert_pem);
  const WallTime late = folder.now + kCaLifetime * 3 / 4;
  const auto after = *load_identity(folder.dir, late);
  EXPECT_NE(after.cas.ca.cert_pem, before.cas.ca.cert_pem);
  EXPECT_TRUE(believed_by(after.tls.cert_pem, after.cas.text, late));
}

TEST(DataFolder, ARootThatIsKeptElsewhereSignsThere) {
  Install folder;
  std::filesystem::remove_all(folder.dir.root);
  const std::string offline = folder.dir.root + ".root", next = folder.dir.root + ".next";
  ASSERT_TRUE(create_identity(folder.dir, {{"muster.example.org"}, {}, offline}, folder.now).ok());
  EXPECT_FALSE(std::filesystem::exists(folder.dir.key("root.key.pem")));
  const auto root_key = file_text(offline).substr(0, 200);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.dir.root))
    if (entry.is_regular_file()) EXPECT_EQ(file_text(entry.path()).find(root_key), std::string::npos) << entry.path();
  const auto before = *load_identity(folder.dir, folder.now);
  EXPECT_EQ(rotate_ca(folder.dir, "", When::Safe, folder.now).error().code, Code::FailedPrecondition);
  const auto request = request_ca(folder.dir);
  ASSERT_TRUE(request.ok()) << request.error().message;
  const auto cert = sign_request(offline, *request, folder.now);
  ASSERT_TRUE(cert.ok()) << cert.error().message;
  EXPECT_FALSE(install_ca(folder.dir, before.cas.ca.cert_pem, When::Safe, folder.now).ok()) << "another request's";
  const auto stranger = *crypto::create_root("root", folder.now);
  EXPECT_FALSE(
      install_ca(folder.dir, *crypto::certify_ca(stranger, *request, folder.now, kCaLifetime), When::Safe, folder.now)
          .ok())
      << "another root's";
  ASSERT_TRUE(install_ca(folder.dir, *cert, When::Safe, folder.now).ok());
  const auto after = *load_identity(folder.dir, folder.now);
  EXPECT_EQ(after.cas.ca.cert_pem, *cert);
  EXPECT_TRUE(believed_by(after.tls.cert_pem, before.cas.trust.roots.front() + *cert, folder.now));
  // Another root needs the word of the one before.
  EXPECT_FALSE(add_root(folder.dir, "", next, folder.now).ok());
  EXPECT_EQ(add_root(folder.dir, offline, offline, folder.now).error().code, Code::AlreadyExists);
  ASSERT_TRUE(add_root(folder.dir, offline, next, folder.now).ok());
  EXPECT_FALSE(std::filesystem::exists(folder.dir.key("root.key.pem")));
  EXPECT_TRUE(crypto::believe(before.cas.trust, load_identity(folder.dir, folder.now)->cas.trust).ok());
  // A CA of the new root alone, or the end of the old one, waits for the machines that do not know it.
  EXPECT_FALSE(rotate_ca(folder.dir, next, When::Safe, folder.now).ok());
  ASSERT_TRUE(write_behind(folder.dir, {2, {"node-3 attic"}}).ok());
  const auto refused = rotate_ca(folder.dir, next, When::Safe, folder.now);
  EXPECT_NE(refused.error().message.find("node-3 attic"), std::string::npos) << refused.error().message;
  ASSERT_TRUE(write_behind(folder.dir, {2, {}}).ok());
  EXPECT_FALSE(rotate_ca(folder.dir, offline, When::Safe, folder.now).ok()) << "not the newest root";
  ASSERT_TRUE(rotate_ca(folder.dir, next, When::Safe, folder.now).ok());
  ASSERT_TRUE(retire_ca(folder.dir, ca_id(before.cas.trust.roots.front()), next, When::Safe, folder.now).ok());
  const auto alone = *load_identity(folder.dir, folder.now);
  EXPECT_EQ(alone.cas.trust.roots.size(), 1u);
  EXPECT_FALSE(believed_by(before.tls.cert_pem, alone.cas.text, folder.now));
  std::filesystem::remove(offline);
  std::filesystem::remove(next);
}

// One CA that signs everything, as before roots: it goes on as it is, and gets a root without anybody noticing.
TEST(DataFolder, OneOfBeforeRootsGoesOnAndMayGetOne) {
  const Install folder;
  const auto ca = *crypto::create_ca("Muster CA srv-old", folder.now);
  for (const auto& entry : std::filesystem::directory_iterator(folder.dir.root + "/keys"))
    if (entry.path().filename().string().starts_with("trust")) std::filesystem::remove(entry.path());
  std::filesystem::remove(folder.dir.key("root.key.pem"));
  ASSERT_TRUE(crypto::write_secret_file(folder.dir.key("ca.cert.pem"), as_bytes(ca.cert_pem)).ok());
  ASSERT_TRUE(crypto::write_secret_file(folder.dir.key("ca.key.pem"), as_bytes(ca.key_pem)).ok());
  const auto old = load_identity(folder.dir, folder.now);
  ASSERT_TRUE(old.ok()) << old.error().message;
  EXPECT_EQ(old->cas.trust.revision, 0u);
  EXPECT_EQ(old->cas.pin, *crypto::certificate_sha256(ca.cert_pem));
  EXPECT_TRUE(believed_by(old->tls.cert_pem, ca.cert_pem, folder.now));
  EXPECT_FALSE(rotate_ca(folder.dir, "", When::Now, folder.now).ok()) << "there is no root yet";
  ASSERT_TRUE(add_root(folder.dir, "", "", folder.now).ok());
  const auto rooted = *load_identity(folder.dir, folder.now);
  EXPECT_EQ(rooted.cas.trust.revision, 1u);
  EXPECT_EQ(load_cas(folder.dir)->ca.key_pem, ca.key_pem);
  EXPECT_EQ(rooted.tls.key_pem, old->tls.key_pem) << "nothing changes for who knows the CA only";
  EXPECT_TRUE(believed_by(rooted.tls.cert_pem, rooted.cas.trust.roots.front() + rooted.cas.chain(), folder.now));
  EXPECT_TRUE(crypto::believe(*crypto::parse_trust(ca.cert_pem), rooted.cas.trust).ok());
  EXPECT_FALSE(rotate_ca(folder.dir, "", When::Safe, folder.now).ok()) << "nobody knows the root yet";
  ASSERT_TRUE(write_behind(folder.dir, {1, {}}).ok());
  ASSERT_TRUE(rotate_ca(folder.dir, "", When::Safe, folder.now).ok());
  ASSERT_TRUE(retire_ca(folder.dir, ca_id(ca.cert_pem), "", When::Safe, folder.now).ok());
  const auto done = *load_identity(folder.dir, folder.now);
  EXPECT_TRUE(believed_by(done.tls.cert_pem, done.cas.text, folder.now));
  EXPECT_TRUE(believed_by(old->tls.cert_pem, done.cas.text, folder.now)) << "its key is still a CA's under the root";
}

TEST_F(Platform, MachinesStayWhileCasAndRootsChange) {
  const std::string supplier = user("roots", Role::Supplier, "roots-hall");
  const DataDir& dir = app_->context().dir;
  const auto enrol = [&](const std::string& name, const crypto::SigningKey& key) {
    wire::EnrollRequest request;
    request.token = call("POST", "/api/v1/join-tokens", "{}", supplier).body["secret"].text();
    request.csr_pem = *crypto::make_csr(key, name);
    request.name = request.facts.hostname = name;
    request.facts.arch = "x86_64";
    request.facts.boot_id = "boot-1";
    return std::pair(request.facts, call("POST", "/api/v1/enroll", wire::to_json(request), "").body);
  };
  const auto key = crypto::SigningKey::generate(), away_key = crypto::SigningKey::generate();
  const auto [facts, said] = enrol("stays", key);
  const auto [away_facts, away_said] = enrol("away", away_key);
  const auto node = *NodeId::parse(said["nodeId"].text()), away = *NodeId::parse(away_said["nodeId"].text());
  const auto first = *crypto::parse_trust(said["trust"].text());
  EXPECT_EQ(first.revision, app_->context().cas.get()->trust.revision);
  FakeAgent agent(endpoint(), node, said["certificatePem"].text(), key, facts, *unbase64(said["commandKey"].text()),
                  first);
  ASSERT_TRUE(eventually([&] { return agent.seen().welcomed; }));

  // Another CA: told at once, and machines' certificates are of it from then on.
  const std::string before = app_->context().cas.get()->ca.cert_pem;
  ASSERT_TRUE(rotate_ca(dir, "", When::Safe, read_clocks().wall).ok());
  ASSERT_TRUE(app_->renew_certificate().ok());
  ASSERT_TRUE(eventually([&] { return agent.seen().trust.intermediates.size() == first.intermediates.size() + 1; }));
  agent.send(session::CertRequest{to_bytes(*crypto::make_csr(key, node.str()))});
  ASSERT_TRUE(eventually([&] { return !agent.seen().certificate.empty(); }));
  const std::string in_use = app_->context().cas.get()->ca.cert_pem;
  EXPECT_TRUE(crypto::issued_by(agent.seen().certificate, in_use));
  EXPECT_TRUE(crypto::verify_device_certificate(agent.seen().certificate, crypto::trust_text(agent.seen().trust),
                                                read_clocks().wall)
                  .ok());

  // Another root: the machine that is away is named, and is led there when it comes.
  ASSERT_TRUE(add_root(dir, "", "", read_clocks().wall).ok());
  ASSERT_TRUE(app_->renew_certificate().ok());
  ASSERT_TRUE(eventually([&] { return agent.seen().trust.roots.size() == 2; }));
  const auto behind = [&] {
    const auto read = read_behind(dir);
    std::string text;
    if (read.ok() && read->revision == first.revision + 1)
      for (const auto& each : read->machines) text += each + ";";
    return text;
  };
  EXPECT_TRUE(eventually([&] { return behind().find(away.str() + " away;") != std::string::npos; })) << behind();
  EXPECT_TRUE(eventually([&] { return !behind().empty() && behind().find(node.str() + " ") == std::string::npos; }))
      << behind();
  EXPECT_FALSE(rotate_ca(dir, "", When::Safe, read_clocks().wall).ok());
  // The CA of the beginning leaked and is given up; who still has a certificate of it comes in on proof of its key.
  ASSERT_TRUE(retire_ca(dir, ca_id(before), "", When::Now, read_clocks().wall).ok());
  ASSERT_TRUE(app_->renew_certificate().ok());
  net::Endpoint old_root = endpoint();
  old_root.ca_pem = crypto::roots_pem(first);
  FakeAgent late(old_root, away, away_said["certificatePem"].text(), away_key, away_facts,
                 *unbase64(away_said["commandKey"].text()), first);
  ASSERT_TRUE(eventually([&] { return late.seen().trust.revision == first.revision + 2; }))
      << late.seen().closed << late.seen().refused.message;
  EXPECT_EQ(late.seen().told, 2) << "over the revision between";
  EXPECT_TRUE(crypto::gave_up(late.seen().trust, before));
  late.send(session::CertRequest{to_bytes(*crypto::make_csr(away_key, away.str()))});
  ASSERT_TRUE(eventually([&] { return !late.seen().certificate.empty(); }));
  EXPECT_TRUE(agent.seen().closed.empty()) << "nobody's link was cut: " << agent.seen().closed;
  const auto metrics = [&] {
    net::Client client(endpoint());
    return client.call({.target = "/metrics"})->body;
  };
  EXPECT_NE(metrics().find("certificate_remaining_seconds{certificate=\"root\"}"), std::string::npos);
  EXPECT_NE(metrics().find("muster_trust_machines_behind"), std::string::npos);
}

TEST_F(Platform, MachinesLearnAnotherSigningKeyAndWorkGoesOn) {
  const std::string supplier = user("keysmith", Role::Supplier, "keys-hall");
  const DataDir& dir = app_->context().dir;
  const auto enrol = [&](const std::string& name, const crypto::SigningKey& key) {
    wire::EnrollRequest request;
    request.token = call("POST", "/api/v1/join-tokens", "{}", supplier).body["secret"].text();
    request.csr_pem = *crypto::make_csr(key, name);
    request.name = request.facts.hostname = name;
    request.facts.arch = "x86_64";
    request.facts.boot_id = "boot-1";
    return std::pair(request.facts, call("POST", "/api/v1/enroll", wire::to_json(request), "").body);
  };
  // What a machine knows when it enrolled.
  const auto first = [](const Json& said) {
    return crypto::SigningKeys{said["serverId"].text(),
                               0,
                               {{crypto::KeyKind::Roster, *crypto::key32(*unbase64(said["rosterKey"].text())), {}, {}},
                                {crypto::KeyKind::Order, *crypto::key32(*unbase64(said["commandKey"].text())), {}, {}}},
                               {},
                               {}};
  };
  const auto key = crypto::SigningKey::generate(), away_key = crypto::SigningKey::generate();
  const auto [facts, said] = enrol("learns", key);
  const auto [away_facts, away_said] = enrol("sleeps", away_key);
  const auto node = *NodeId::parse(said["nodeId"].text()), away = *NodeId::parse(away_said["nodeId"].text());
  FakeAgent agent(endpoint(), node, said["certificatePem"].text(), key, facts, {},
                  *crypto::parse_trust(said["trust"].text()), first(said));
  ASSERT_TRUE(eventually([&] { return agent.seen().keys.has_value(); })) << agent.seen().closed;
  const auto before = *agent.seen().keys;
  EXPECT_EQ(before.revision, app_->context().keys.get()->statement.revision);
  const auto has = [&](FakeAgent& each, std::uint64_t more_than) {
    return eventually([&] { return each.seen().keys && each.seen().keys->revision > more_than; });
  };
  const auto order_key = [&] { return hex(agent.seen().desired.signature_key); };
  ASSERT_TRUE(eventually([&] { return !order_key().empty(); }));

  // Another key of each kind: told at once, orders by it follow, nobody's link is cut.
  for (const auto kind : {crypto::KeyKind::Roster, crypto::KeyKind::Order}) {
    const auto id = rotate_signing_key(dir, {.kind = kind}, read_clocks().wall);
    ASSERT_TRUE(id.ok()) << id.error().message;
  }
  const std::string old_order = order_key();
  ASSERT_TRUE(app_->renew_certificate().ok());
  ASSERT_TRUE(has(agent, before.revision));
  ASSERT_TRUE(eventually([&] { return order_key() != old_order; })) << "orders are told anew";
  EXPECT_EQ(agent.seen().dropped, 0);
  EXPECT_EQ(crypto::believed_keys(*agent.seen().keys, crypto::KeyKind::Order, read_clocks().wall).size(), 2u);
  const auto behind = [&] {
    const auto read = read_keys_behind(dir);
    std::string text;
    if (read.ok() && read->revision == app_->context().keys.get()->statement.revision)
      for (const auto& each : read->machines) text += each + ";";
    return text;
  };
  EXPECT_TRUE(eventually([&] { return behind().find(away.str() + " sleeps;") != std::string::npos; })) << behind();
  EXPECT_TRUE(eventually([&] { return behind().find(node.str() + " ") == std::string::npos; })) << behind();

  // One that leaked: the signer uses another before musterd was told of it, and asks by itself.
  const auto known = agent.seen().keys->revision;
  ASSERT_TRUE(rotate_signing_key(dir, {.kind = crypto::KeyKind::Order, .compromised = true}, read_clocks().wall).ok());
  ASSERT_TRUE(app_->context().identity.signer->view().ok());
  app_->context().agents->trust_changed();  // whatever makes new orders
  ASSERT_TRUE(has(agent, known));
  EXPECT_EQ(crypto::believed_keys(*agent.seen().keys, crypto::KeyKind::Order, read_clocks().wall).size(), 1u);

  // Who slept through both is led there when it comes, by the CA that it believes.
  FakeAgent late(endpoint(), away, away_said["certificatePem"].text(), away_key, away_facts, {},
                 *crypto::parse_trust(away_said["trust"].text()), first(away_said));
  ASSERT_TRUE(has(late, known)) << late.seen().closed << late.seen().refused.message;
  ASSERT_TRUE(eventually([&] { return !late.seen().desired.signature.empty(); })) << "and gets its orders";
  EXPECT_TRUE(agent.seen().closed.empty()) << agent.seen().closed;
  const auto audited = [&] {
    std::string out;
    const auto page = call("GET", "/api/v1/audit?filter=verb=rotate");
    for (const auto& each : page.body["items"].items()) out += each["text"].text() + "\n";
    return out;
  };
  EXPECT_TRUE(eventually([&] { return audited().find(old_order + " is believed no longer") != std::string::npos; }))
      << audited();
}

TEST_F(Platform, EveryOperationHasAHandlerAndARule) {
  for (const auto& operation : wire::operations()) {
    EXPECT_TRUE(app_->api().has_route(operation.name)) << operation.name;
    if (operation.name == "GetServer" || operation.name == "Login" || operation.name == "Enroll" ||
        operation.name == "BeginSso" || operation.name == "FinishSso" || operation.name == "RenewLogin" ||
        !operation.streams.empty())
      continue;
    std::string path = operation.path;
    if (const auto open = path.find('{'); open != std::string::npos)
      path.replace(open, path.find('}') - open + 1, "x-1");
    EXPECT_EQ(call(operation.method, path, operation.method == "GET" ? "" : "{}", "").status, 401)
        << operation.name << ": without a token everything is closed";
  }
}

TEST_F(Platform, TheAuditTrailSaysWhoDidWhatAndFromWhere) {
  const std::string ada = user("ada", Role::Tenant, "ada-org"), bob = user("bob", Role::Supplier, "bob-org");
  const std::string auditor = user("argus", Role::Auditor, "argus-org");
  const auto made = call("POST", "/api/v1/projects", R"({"name":"vault"})", ada);
  ASSERT_EQ(made.status, 200) << made.body.dump();
  const std::string request = made.headers.at("muster-request-id");
  EXPECT_TRUE(request.starts_with("req-")) << request;
  const std::string target = "/api/v1/audit?limit=1000&filter=object=" + made.body["id"].text();
  const auto one = [&](const std::string& token) {
    const auto page = call("GET", target, "", token);
    EXPECT_EQ(page.status, 200) << page.body.dump();
    EXPECT_TRUE(wire::check_json("AuditList", page.body).ok()) << page.body.dump();
    return page.body["items"].items().size() == 1 ? page.body["items"].items()[0] : wire::Json();
  };
  EXPECT_TRUE(eventually([&] { return one(auditor)["address"].text() == "127.0.0.1"; })) << one(auditor).dump();
  const auto seen = one(auditor);
  EXPECT_EQ(seen["actor"]["kind"].text(), "tenant");
  EXPECT_EQ(seen["actor"]["name"].text(), "ada");
  EXPECT_EQ(seen["requestId"].text(), request);
  EXPECT_EQ(seen["verb"].text(), "create");
  EXPECT_EQ(seen["object"]["kind"].text(), "project");
  EXPECT_EQ(seen["object"]["name"].text(), "vault");
  EXPECT_EQ(seen["outcome"].text(), "done");
  EXPECT_EQ(one(admin_).dump(), seen.dump()) << "operators and auditors see the same";
  EXPECT_EQ(one(ada)["actor"]["name"].text(), "ada");
  EXPECT_EQ(one(ada)["address"].text(), "") << "addresses are for operators and auditors";
  EXPECT_EQ(one(bob).dump(), wire::Json().dump()) << "a foreign object looks missing";

  const auto everything = [&](const std::string& token, const std::string& filter, int limit) {
    std::vector<wire::Json> out;
    std::string cursor;
    do {
      const auto page = call("GET",
                             "/api/v1/audit?limit=" + std::to_string(limit) + "&filter=" + filter +
                                 (cursor.empty() ? "" : "&cursor=" + cursor),
                             "", token);
      EXPECT_EQ(page.status, 200) << page.body.dump();
      for (const auto& item : page.body["items"].items()) out.push_back(item);
      cursor = page.body["nextCursor"].text();
    } while (!cursor.empty());
    return out;
  };
  const auto hers = everything(ada, "", 1000);
  ASSERT_GE(hers.size(), 4U) << "organisation, account, login, project";
  for (const auto& item : hers) {
    EXPECT_EQ(item["object"]["orgId"].text(), seen["object"]["orgId"].text());
    const bool own = item["actor"]["kind"].text() == "tenant";
    EXPECT_EQ(item["actor"]["id"].text().empty(), !own) << "of a foreign actor only the kind: " << item.dump();
    EXPECT_EQ(item["requestId"].text().empty(), !own);
  }
  EXPECT_EQ(everything(ada, "", 1).size(), hers.size()) << "page by page the same";
  EXPECT_TRUE(everything(bob, "org=ada-org", 1000).empty());
  EXPECT_TRUE(everything(bob, "actor=ada", 1000).empty());
  EXPECT_FALSE(everything(auditor, "actor=ada", 1000).empty());
  EXPECT_TRUE(everything(auditor, "actor=ada,verb=revoke", 1000).empty());
  EXPECT_TRUE(everything(auditor, "since=2999-01-01T00:00:00Z", 1000).empty());
  EXPECT_TRUE(everything(auditor, "until=1999-01-01T00:00:00Z", 1000).empty());
  EXPECT_EQ(call("GET", "/api/v1/audit?filter=since=yesterday", "", auditor).status, 400);
  EXPECT_EQ(call("DELETE", "/api/v1/audit", "", auditor).status, 405) << "nobody changes it";
  const auto narrow = call("POST", "/api/v1/tokens",
                           wire::to_json(wire::CreateApiTokenRequest{"narrow", {"clusters"}, Millis(0)}), ada);
  EXPECT_EQ(call("GET", "/api/v1/audit", "", narrow.body["secret"].text()).status, 403);
}

TEST_F(Platform, WhatWasRefusedIsAddedUpForThoseWhoMayKnow) {
  const std::string cleo = user("cleo", Role::Tenant, "cleo-org"), dan = user("dan", Role::Tenant, "dan-org");
  const std::string auditor = user("iris", Role::Auditor, "iris-org");
  for (int n = 0; n < 7; ++n) EXPECT_EQ(call("POST", "/api/v1/orgs", R"({"name":"mine"})", cleo).status, 403);
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", "mst_nonsense").status, 401);
  const auto row = [&](const std::string& token, const std::string& actor, const std::string& operation) {
    const auto page = call("GET", "/api/v1/audit/refused?limit=1000&filter=actor=" + actor, "", token);
    EXPECT_EQ(page.status, 200) << page.body.dump();
    EXPECT_TRUE(wire::check_json("RefusalList", page.body).ok()) << page.body.dump();
    for (const auto& item : page.body["items"].items()) {
      if (item["operation"].text() == operation) return item;
    }
    return wire::Json();
  };
  const auto seen = row(auditor, "cleo", "CreateOrg");
  EXPECT_EQ(seen["count"].text(), "7");
  EXPECT_EQ(seen["code"].text(), "permission_denied");
  EXPECT_TRUE(eventually([&] { return row(auditor, "cleo", "CreateOrg")["lastAddress"].text() == "127.0.0.1"; }));
  EXPECT_EQ(row(cleo, "cleo", "CreateOrg")["count"].text(), "7");
  EXPECT_EQ(row(cleo, "cleo", "CreateOrg")["lastAddress"].text(), "");
  EXPECT_EQ(row(dan, "cleo", "CreateOrg").dump(), wire::Json().dump());
  EXPECT_EQ(row(auditor, "nobody", "WhoAmI")["code"].text(), "unauthenticated");
  EXPECT_EQ(row(dan, "nobody", "WhoAmI").dump(), wire::Json().dump());
}

TEST_F(Platform, TheHeadIsSignedDailyAndForAuditors) {
  const std::string auditor = user("hera", Role::Auditor, "hera-org"), gus = user("gus", Role::Tenant, "gus-org");
  EXPECT_EQ(call("GET", "/api/v1/audit/head", "", gus).status, 404);
  const auto made = call("GET", "/api/v1/audit/head", "", auditor);
  ASSERT_EQ(made.status, 200) << made.body.dump();
  EXPECT_TRUE(wire::check_json("JournalHead", made.body).ok());
  const auto head = parse_head(made.body.dump());
  ASSERT_TRUE(head.ok());
  const auto keys = known_audit_keys(app_->context().dir);
  EXPECT_TRUE(check_signature(*head, keys).ok());
  const auto report = verify_head(*store_, *head, {});
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->verdict, HeadReport::Verdict::Holds) << report->text;
  EXPECT_EQ(kept_heads(app_->context().dir, keys).size(), 1U) << "the first of the day";
  ASSERT_TRUE(app_->sign_due_head().ok());
  EXPECT_EQ(kept_heads(app_->context().dir, keys).size(), 1U) << "one a day";
  const auto pem = app_->context().dir.key("audit.pem");
  std::filesystem::remove(pem);
  ASSERT_TRUE(load_identity(app_->context().dir, read_clocks().wall).ok());
  EXPECT_TRUE(std::filesystem::exists(pem)) << "a folder of an older program gets one";
}

TEST_F(Platform, RefusalsAreProblemDetails) {
  const std::string tenant = user("refused", Role::Tenant, "refused-org");
  struct Row {
    const char* method;
    const char* path;
    const char* body;
    bool admin;
    int status;
    const char* code;
    const char* field;
  };
  const Row table[] = {
      {"GET", "/api/v1/nothing", "", true, 404, "not_found", ""},
      {"PUT", "/api/v1/orgs", "{}", true, 405, "unsupported", ""},
      {"POST", "/api/v1/orgs", "{\"nam\":\"x\"}", true, 400, "invalid_argument", "nam"},
      {"POST", "/api/v1/orgs", "{\"name\":7}", true, 400, "invalid_argument", "name"},
      {"POST", "/api/v1/orgs", "{\"name\":\"x\"", true, 400, "invalid_argument", ""},
      {"POST", "/api/v1/orgs", "{\"name\":\"platform\"}", true, 409, "already_exists", "name"},
      {"POST", "/api/v1/orgs", "{\"name\":\"theirs\"}", false, 403, "permission_denied", ""},
      {"GET", "/api/v1/users?limit=0", "", true, 400, "invalid_argument", "limit"},
      {"GET", "/api/v1/nodes?filter=colour=red", "", true, 400, "invalid_argument", "filter"},
      {"GET", "/api/v1/nodes?cursor=xx", "", true, 400, "invalid_argument", "cursor"},
      {"GET", "/api/v1/nodes?min_seq=x", "", true, 400, "invalid_argument", "min_seq"},
      {"GET", "/api/v1/nodes/node-99", "", true, 404, "not_found", ""},
      {"GET", "/api/v1/clusters/cl-99", "", false, 404, "not_found", ""},
      {"DELETE", "/api/v1/users/usr-1", "", false, 404, "not_found", ""},
      {"POST", "/api/v1/jobs", "{\"entrypoint\":\"x\",\"cluster\":\"none\"}", false, 404, "not_found", "cluster"},
      {"POST", "/api/v1/login", "{\"name\":\"admin\",\"password\":\"wrong wrong\"}", false, 401, "unauthenticated", ""},
  };
  for (const auto& row : table) {
    const auto answer = call(row.method, row.path, row.body, row.admin ? admin_ : tenant);
    EXPECT_EQ(answer.status, row.status) << row.method << " " << row.path << " " << answer.body.dump();
    EXPECT_EQ(answer.body["code"].text(), row.code) << row.path;
    EXPECT_EQ(answer.body["field"].text(), row.field) << row.path << " " << answer.body.dump();
    EXPECT_TRUE(wire::check_json("Problem", answer.body).ok());
  }
}

// Answers are kept; a call may be answered later, by another thread.
class KeptAnswer final : public net::Responder {
 public:
  void send(net::Response response) override {
    const std::lock_guard lock(mutex_);
    response_ = std::move(response);
    ready_.notify_all();
  }
  void start_stream(net::Response head) override { send(std::move(head)); }
  bool write(std::string) override { return false; }
  std::size_t buffered() const override { return 0; }
  void finish() override {}
  void on_close(std::function<void()>) override {}
  net::Response wait(Millis limit = Millis(20'000)) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, limit, [this] { return response_.has_value(); });
    return response_.value_or(net::Response{0, {}, {}, {}});
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::optional<net::Response> response_;
};

TEST_F(Platform, APasswordIsChangedByItsOwnerAndEndsTheOtherLogins) {
  const std::string mine = user("pam", Role::Tenant, "pam-org"), other = login("pam", "password-of-pam");
  const std::string program =
      call("POST", "/api/v1/tokens", R"({"label":"ci","scopes":["read"]})", mine).body["secret"].text();
  ASSERT_FALSE(other.empty() || program.empty());
  const auto change = [&](const std::string& old, const std::string& fresh, const std::string& token) {
    return call("POST", "/api/v1/password", wire::to_json(wire::ChangePasswordRequest{old, fresh}), token);
  };
  const auto status_of = [&](const std::string& token) { return call("GET", "/api/v1/whoami", "", token).status; };
  EXPECT_EQ(change("not it at all", "another password", mine).body["field"].text(), "oldPassword");
  EXPECT_EQ(change("password-of-pam", "short", mine).body["field"].text(), "newPassword");
  EXPECT_EQ(change("password-of-pam", "password-of-pam", mine).status, 400);
  EXPECT_EQ(change("password-of-pam", "another password", program).status, 403) << "a token that may only read";
  EXPECT_EQ(status_of(other), 200);
  const auto changed = change("password-of-pam", "another password", mine);
  ASSERT_EQ(changed.status, 200) << changed.body.dump();
  EXPECT_TRUE(wire::check_json("ChangePasswordResponse", changed.body).ok());
  EXPECT_EQ(changed.body["revokedTokens"].text(), "1");
  EXPECT_EQ(status_of(mine), 200);
  EXPECT_EQ(status_of(other), 401);
  EXPECT_EQ(status_of(program), 200) << "tokens of programs have scopes and stay";
  EXPECT_EQ(status_of(admin_), 200) << "nobody else's";
  EXPECT_TRUE(login("pam", "password-of-pam").empty());
  EXPECT_FALSE(login("pam", "another password").empty());
}

TEST_F(Platform, ALostPasswordIsSetInTheDataDirectory) {
  const std::string token = user("otto", Role::Auditor, "otto-org");
  const OpenStore open = [](const std::string&, const auto&) -> Result<std::shared_ptr<journal::Store>> {
    return std::shared_ptr<journal::Store>(store_);
  };
  Arguments arguments;
  arguments.words = {"passwd", "otto"};
  arguments.options = {{"--data", root_}, {"--password-file", root_ + ".password"}};
  std::ofstream(root_ + ".password") << "found again at last\n";
  EXPECT_EQ(cmd_passwd(arguments, open), 0);
  EXPECT_TRUE(login("otto", "password-of-otto").empty());
  EXPECT_FALSE(login("otto", "found again at last").empty());
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", token).status, 200) << "and the server went on";
  arguments.words[1] = "nobody-at-all";
  EXPECT_EQ(cmd_passwd(arguments, open), 1);
  arguments.words.pop_back();
  EXPECT_EQ(cmd_passwd(arguments, open), 2);
  arguments.words = {"passwd", "otto"};
  arguments.options["--data"] = root_ + "-elsewhere";
  EXPECT_EQ(cmd_passwd(arguments, open), 1);
}

TEST_F(Platform, AnOldHashHoldsAndIsReplacedAtTheNextLogin) {
  const std::string id = call("GET", "/api/v1/whoami", "", user("olga", Role::Auditor, "olga-org")).body["id"].text();
  // Python's scrypt of "correct horse", as musterd stored it before.
  const std::string old = "$scrypt$ln=15,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$XGYmKKxOsQaKKH4qoqICriSOmNsE1h0zJ-c0LbbscJc";
  ASSERT_FALSE(id.empty());
  ASSERT_TRUE(store_->put_side("passwords", id, to_bytes(old)));
  const auto stored = [&] { return as_string(store_->get_side("passwords", id).value().value()); };
  EXPECT_TRUE(login("olga", "correct horsf").empty());
  EXPECT_EQ(stored(), old);
  const auto in =
      call("POST", "/api/v1/login", wire::to_json(wire::LoginRequest{"olga", "correct horse", "test", {}}), "");
  EXPECT_EQ(in.status, 200) << in.body.dump();
  const std::string fresh = stored();
  EXPECT_TRUE(fresh.starts_with("$argon2id$")) << fresh;
  EXPECT_FALSE(login("olga", "correct horse").empty());
  EXPECT_EQ(stored(), fresh) << "once";
}

// An authenticator app.
Bytes unbase32(std::string_view text) {
  Bytes out;
  std::uint32_t held = 0;
  int bits = 0;
  for (const char c : text) {
    held = (held << 5 | static_cast<std::uint32_t>(c >= 'A' ? c - 'A' : c - '2' + 26)) & 0xffffU;
    if ((bits += 5) >= 8) out.push_back(static_cast<std::uint8_t>(held >> (bits -= 8)));
  }
  return out;
}
std::uint64_t step_now() {
  return crypto::totp_step(read_clocks().wall);
}
std::string none_of(const Bytes& secret) {  // a code that is not its now
  for (int i = 0;; ++i) {
    const std::string code = std::to_string(100'000 + i);
    if (!crypto::match_totp(secret, code, read_clocks().wall, 0)) return code;
  }
}

class SecondFactor : public Platform {
 protected:
  struct Enrolled {
    std::string token;
    Bytes secret;
    std::uint64_t step = 0;  // whose code confirmed it; that of the next one is good for another half minute at least
    std::vector<std::string> recovery;
    int ended = 0;
  };
  static Answer try_login(const std::string& name, const std::string& password, const std::string& code) {
    return call("POST", "/api/v1/login", wire::to_json(wire::LoginRequest{name, password, "test", code}), "");
  }
  static Enrolled enrol(const std::string& name, const std::string& token) {
    Enrolled out{token, {}, 0, {}, 0};
    const auto begun = call("POST", "/api/v1/totp", R"({"password":"password-of-)" + name + "\"}", token);
    EXPECT_EQ(begun.status, 200) << begun.body.dump();
    EXPECT_TRUE(wire::check_json("TotpEnrolment", begun.body).ok());
    EXPECT_EQ(begun.body["uri"].text(), "otpauth://totp/Muster%20localhost:" + name +
                                            "?secret=" + begun.body["secret"].text() + "&issuer=Muster%20localhost");
    out.secret = unbase32(begun.body["secret"].text());
    EXPECT_EQ(
        call("POST", "/api/v1/totp/confirm", R"({"code":")" + none_of(out.secret) + "\"}", token).body["field"].text(),
        "code");
    out.step = step_now();
    const auto done =
        call("POST", "/api/v1/totp/confirm", R"({"code":")" + crypto::hotp(out.secret, out.step) + "\"}", token);
    EXPECT_EQ(done.status, 200) << done.body.dump();
    EXPECT_TRUE(wire::check_json("TotpRecovery", done.body).ok());
    for (const auto& each : done.body["recoveryCodes"].items()) out.recovery.push_back(each.text());
    EXPECT_EQ(out.recovery.size(), kRecoveryCodes);
    out.ended = std::stoi(done.body["revokedTokens"].text());
    return out;
  }
  static std::string id_of(const std::string& token) {
    return call("GET", "/api/v1/whoami", "", token).body["id"].text();
  }
};

TEST_F(SecondFactor, IsAskedForAtALoginAndACodeCountsOnce) {
  const std::string token = user("tess", Role::Tenant, "tess-org"), other = login("tess", "password-of-tess");
  EXPECT_EQ(call("POST", "/api/v1/totp", R"({"password":"wrong wrong"})", token).body["field"].text(), "password");
  EXPECT_FALSE(call("GET", "/api/v1/whoami", "", token).body["secondFactor"].truth());
  const Enrolled tess = enrol("tess", token);
  EXPECT_EQ(tess.ended, 1);
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", other).status, 401) << "who logged in without it is out";
  EXPECT_TRUE(call("GET", "/api/v1/whoami", "", token).body["secondFactor"].truth());
  EXPECT_TRUE(call("GET", "/api/v1/users?filter=name=tess").body["items"].items().at(0)["secondFactor"].truth());
  EXPECT_EQ(call("POST", "/api/v1/totp", R"({"password":"password-of-tess"})", token).status, 409) << "there is one";
  const std::string next = crypto::hotp(tess.secret, std::max(tess.step + 1, step_now()));
  const auto asked = try_login("tess", "password-of-tess", "");
  EXPECT_EQ(asked.status, 401);
  EXPECT_EQ(asked.body["field"].text(), "code") << asked.body.dump();
  EXPECT_EQ(try_login("tess", "wrong wrong", next).body["field"].text(), "")
      << "the password first; the code stays good";
  EXPECT_EQ(try_login("tess", "password-of-tess", crypto::hotp(tess.secret, tess.step)).status, 401) << "it confirmed";
  const auto good = try_login("tess", "password-of-tess", next);
  EXPECT_EQ(good.status, 200) << good.body.dump();
  EXPECT_TRUE(good.body["principal"]["secondFactor"].truth());
  EXPECT_EQ(try_login("tess", "password-of-tess", next).body["field"].text(), "code") << "used";
  // At rest it is sealed, and nothing of it is in the journal.
  const Bytes row = store_->get_side("totp", id_of(token)).value().value();
  const auto journal = store_->read_all(1, 100'000).value();
  for (const std::string& open : {as_string(tess.secret), hex(tess.secret), crypto::base32(tess.secret)}) {
    EXPECT_EQ(as_string(row).find(open), std::string::npos);
    for (const Bytes& entry : journal) EXPECT_EQ(as_string(entry).find(open), std::string::npos);
  }
}

TEST_F(SecondFactor, WhereTheRoleNeedsItAPasswordAloneOnlySetsItUp) {
  const std::string before = user("nora", Role::Supplier, "nora-org");
  const std::string free = user("toni", Role::Tenant, "toni-org");
  app_->context().factor_needed = {Role::Supplier, Role::Operator};
  const auto first = try_login("nora", "password-of-nora", "");
  EXPECT_EQ(first.status, 200) << first.body.dump();
  EXPECT_TRUE(first.body["secondFactorNeeded"].truth());
  EXPECT_TRUE(wire::check_json("LoginResponse", first.body).ok());
  const std::string narrow = first.body["token"].text();
  EXPECT_FALSE(try_login("toni", "password-of-toni", "").body["secondFactorNeeded"].truth()) << "another role";
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", narrow).status, 200);
  for (const char* path : {"/api/v1/nodes", "/api/v1/clusters", "/api/v1/events", "/api/v1/tokens", "/api/v1/audit"}) {
    const auto refused = call("GET", path, "", narrow);
    EXPECT_EQ(refused.status, 403) << path;
    EXPECT_NE(refused.body.dump().find("muster totp enable"), std::string::npos) << refused.body.dump();
  }
  EXPECT_EQ(call("POST", "/api/v1/tokens", R"({"label":"x","lifetimeSeconds":"600"})", narrow).status, 403);
  // Set up with it; then it and the logins without a code are of no more use.
  const Enrolled nora = enrol("nora", narrow);
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", before).status, 401);
  EXPECT_EQ(call("GET", "/api/v1/nodes", "", narrow).status, 403) << "nobody gave a code for it";
  const auto good = try_login("nora", "password-of-nora", nora.recovery[0]);
  EXPECT_EQ(good.status, 200) << good.body.dump();
  EXPECT_FALSE(good.body["secondFactorNeeded"].truth());
  EXPECT_EQ(call("GET", "/api/v1/nodes", "", good.body["token"].text()).status, 200);
  const auto kept =
      call("POST", "/api/v1/totp/disable",
           wire::to_json(wire::DisableTotpRequest{"password-of-nora", nora.recovery[1]}), good.body["token"].text());
  EXPECT_EQ(kept.status, 409) << "it is not the account's to take away";
  // Who loses it is where he began.
  EXPECT_TRUE(app_->context().factors->remove(*PrincipalId::parse(id_of(narrow))).ok());
  EXPECT_TRUE(try_login("nora", "password-of-nora", "").body["secondFactorNeeded"].truth());
  app_->context().factor_needed.clear();
}

TEST_F(SecondFactor, RecoveryCodesCountOnceAndPasswordWithCodeTakesItAway) {
  const Enrolled rhea = enrol("rhea", user("rhea", Role::Supplier, "rhea-org"));
  EXPECT_EQ(try_login("rhea", "password-of-rhea", rhea.recovery[0]).status, 200);
  EXPECT_EQ(try_login("rhea", "password-of-rhea", rhea.recovery[0]).status, 401) << "used";
  std::string loud = rhea.recovery[1];
  for (char& c : loud) c = c == '-' ? ' ' : c >= 'a' ? static_cast<char>(c - 32) : c;
  EXPECT_EQ(try_login("rhea", "password-of-rhea", loud).status, 200) << "as people type it";
  const auto held = call("GET", "/api/v1/totp", "", rhea.token);
  EXPECT_TRUE(wire::check_json("TotpStatus", held.body).ok());
  EXPECT_EQ(held.body["recoveryCodesLeft"].dump(), "8");
  const auto disable = [&](const std::string& password, const std::string& code) {
    return call("POST", "/api/v1/totp/disable", wire::to_json(wire::DisableTotpRequest{password, code}), rhea.token);
  };
  EXPECT_EQ(disable("password-of-rhea", "").body["field"].text(), "code");
  EXPECT_EQ(disable("password-of-rhea", none_of(rhea.secret)).body["field"].text(), "code");
  EXPECT_EQ(disable("wrong wrong", rhea.recovery[2]).body["field"].text(), "password");
  EXPECT_EQ(disable("password-of-rhea", rhea.recovery[2]).status, 200);
  EXPECT_EQ(try_login("rhea", "password-of-rhea", "").status, 200);
  EXPECT_FALSE(call("GET", "/api/v1/totp", "", rhea.token).body["enabled"].truth());
}

TEST_F(SecondFactor, AnOperatorOrTheDataDirectoryTakesALostOneAway) {
  const Enrolled lost = enrol("lois", user("lois", Role::Tenant, "lois-org"));
  const std::string path = "/api/v1/users/" + id_of(lost.token) + "/totp";
  EXPECT_EQ(call("DELETE", path, "", lost.token).status, 403) << "not its owner: he shows a code";
  EXPECT_EQ(call("DELETE", "/api/v1/users/" + id_of(admin_) + "/totp").status, 409) << "nor an operator his own";
  EXPECT_EQ(call("DELETE", "/api/v1/users/usr-99999/totp").status, 404);
  EXPECT_EQ(call("DELETE", "/api/v1/users/louis/totp").status, 404);
  const auto reset = call("DELETE", "/api/v1/users/lois/totp");  // by name as well as by id
  EXPECT_EQ(reset.status, 200) << reset.body.dump();
  EXPECT_FALSE(reset.body["secondFactor"].truth());
  EXPECT_EQ(try_login("lois", "password-of-lois", "").status, 200);

  enrol("lois", lost.token);
  EXPECT_EQ(try_login("lois", "password-of-lois", "").status, 401);
  const OpenStore open = [](const std::string&, const auto&) -> Result<std::shared_ptr<journal::Store>> {
    return std::shared_ptr<journal::Store>(store_);
  };
  Arguments arguments;
  arguments.words = {"totp-reset", "lois"};
  arguments.options = {{"--data", root_}};
  EXPECT_EQ(cmd_totp_reset(arguments, open), 0);
  EXPECT_EQ(try_login("lois", "password-of-lois", "").status, 200) << "while it serves";
  EXPECT_FALSE(call("GET", "/api/v1/whoami", "", lost.token).body["secondFactor"].truth());
  arguments.words[1] = "nobody-at-all";
  EXPECT_EQ(cmd_totp_reset(arguments, open), 1);
  arguments.words.pop_back();
  EXPECT_EQ(cmd_totp_reset(arguments, open), 2);
}

TEST_F(SecondFactor, WhoKnowsThePasswordGuessesTenCodesAndShutsOutNobody) {
  const Enrolled gus = enrol("gus", user("gus", Role::Tenant, "gus-org"));
  Api api(app_->context());  // with counters of its own
  const auto login_from = [&](const std::string& peer, const std::string& code) {
    net::Request request;
    request.method = "POST", request.path = "/api/v1/login", request.peer = peer;
    request.body = wire::to_json(wire::LoginRequest{"gus", "password-of-gus", "guess", code});
    const auto answer = std::make_shared<KeptAnswer>();
    api.handle(std::move(request), answer);
    return answer->wait().status;
  };
  EXPECT_EQ(login_from("192.0.2.7:1", gus.recovery[0]), 200);
  for (int i = 0; i < 10; ++i)
    EXPECT_EQ(login_from("198.51.100." + std::to_string(i) + ":1", none_of(gus.secret)), 401) << i;
  EXPECT_EQ(login_from("203.0.113.9:1", gus.recovery[1]), 429) << "ten for an account from everywhere";
  EXPECT_EQ(login_from("192.0.2.7:2", gus.recovery[1]), 200) << "but where it is used from";
}

TEST(SecondFactors, PendingOnesEndAndWhatCannotBeReadRefuses) {
  const auto store = std::make_shared<TestStore>();
  const crypto::Secret32 key(crypto::random_key32());
  SecondFactors factors(key, store);
  const PrincipalId ann{1}, bob{2};
  const WallTime now{1'800'000'000'000};
  const auto code_at = [](const Bytes& secret, WallTime when) { return crypto::hotp(secret, crypto::totp_step(when)); };
  EXPECT_EQ(factors.confirm(ann, "123456", now).error().code, Code::FailedPrecondition) << "nothing was begun";
  Bytes secret = factors.enrol(ann, now).value();
  EXPECT_EQ(factors.check(ann, "", now).value(), SecondFactors::Verdict::NotNeeded) << "not in force yet";
  const WallTime late = now + kEnrolWithin + Millis(1);
  EXPECT_FALSE(factors.confirm(ann, code_at(secret, late), late).ok()) << "too late";
  secret = factors.enrol(ann, now).value();
  std::string wrong = "100000";
  while (crypto::match_totp(secret, wrong, now, 0)) wrong = std::to_string(std::stoi(wrong) + 1);
  for (std::uint32_t i = 0; i < kEnrolTries; ++i) EXPECT_EQ(factors.confirm(ann, wrong, now).error().field, "code");
  EXPECT_EQ(factors.confirm(ann, code_at(secret, now), now).error().code, Code::FailedPrecondition)
      << "guessed too often";
  secret = factors.enrol(ann, now).value();
  EXPECT_TRUE(factors.confirm(ann, code_at(secret, now), now).ok());
  EXPECT_TRUE(factors.holds(ann));
  EXPECT_FALSE(factors.enrol(ann, now).ok()) << "the one in force stays";

  const WallTime next = now + crypto::kTotpStep;
  EXPECT_EQ(factors.check(ann, code_at(secret, next), next).value(), SecondFactors::Verdict::Right);
  SecondFactors again(key, store);
  ASSERT_TRUE(again.load());
  EXPECT_TRUE(again.holds(ann));
  EXPECT_EQ(again.check(ann, code_at(secret, next), next).value(), SecondFactors::Verdict::Wrong)
      << "used before the restart";
  const Bytes row = store->get_side("totp", ann.str()).value().value();
  ASSERT_TRUE(store->put_side("totp", bob.str(), row));
  EXPECT_EQ(again.check(bob, "123456", next).error().code, Code::DataLoss) << "sealed for somebody else";
  SecondFactors stranger(crypto::Secret32(crypto::random_key32()), store);
  EXPECT_EQ(stranger.find(ann).error().code, Code::DataLoss) << "without the key nobody logs in";
  ASSERT_TRUE(stranger.load());
  EXPECT_TRUE(stranger.holds(ann));
  EXPECT_TRUE(stranger.remove(ann));
  EXPECT_EQ(stranger.check(ann, "", next).value(), SecondFactors::Verdict::NotNeeded);
}

TEST_F(Platform, MetricsSayHowLongTheCertificatesLive) {
  net::Client client(endpoint());
  const auto metrics = client.call({"GET", "/metrics", {}, "", Millis(20'000)});
  ASSERT_TRUE(metrics.ok());
  const auto days = [&](const std::string& name) {
    const std::string start = "\nmuster_certificate_remaining_seconds{certificate=\"" + name + "\"} ";
    const auto at = metrics->body.find(start);
    return at == std::string::npos ? -1 : std::stod(metrics->body.substr(at + start.size())) / 86'400;
  };
  EXPECT_NEAR(days("server"), 90, 0.1);
  EXPECT_NEAR(days("ca"), 365, 0.1);
  EXPECT_NEAR(days("root"), 7300, 0.1);
  EXPECT_TRUE(app_->renew_certificate().ok());
}

TEST_F(Platform, ALoginFloodFromOneAddressShutsNobodyElseOut) {
  Api api(app_->context());  // with counters of its own
  const auto login_from = [&](const std::string& peer, const std::string& name, const std::string& password) {
    net::Request request;
    request.method = "POST", request.path = "/api/v1/login", request.peer = peer;
    request.body = wire::to_json(wire::LoginRequest{name, password, "flood", {}});
    auto answer = std::make_shared<KeptAnswer>();
    api.handle(std::move(request), answer);
    return answer;
  };
  std::vector<std::shared_ptr<KeptAnswer>> flood;
  for (int i = 0; i < 30'000; ++i)
    flood.push_back(
        login_from("[2001:db8::" + std::to_string(i % 10'000) + "]:4711", "n" + std::to_string(i), "wrong"));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(login_from("203.0.113.5:1", "admin", "correct horse battery")->wait().status, 200);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(4)) << "behind four of one address at most";
  int checked = 0, later = 0;
  for (const auto& each : flood) {
    const auto answer = each->wait();
    if (answer.status == 401) ++checked;
    if (answer.status == 429) {
      ++later;
      EXPECT_GE(std::stoi(answer.headers.at("Retry-After")), 1);
    }
  }
  EXPECT_EQ(checked + later, 30'000);
  EXPECT_LE(checked, 60);
  // The ten attempts for one name from one address are over; from another one the right password is taken.
  for (int i = 0; i < 10; ++i) EXPECT_EQ(login_from("198.51.100.1:9", "admin", "wrong wrong")->wait().status, 401);
  EXPECT_EQ(login_from("198.51.100.1:9", "admin", "correct horse battery")->wait().status, 429);
  EXPECT_EQ(login_from("198.51.100.2:9", "admin", "correct horse battery")->wait().status, 200);
}

TEST(Logins, AreCountedByNameAddressAndBothInBoundedTables) {
  using Outcome = LoginGuard::Outcome;
  LeaseTime now{1'000'000};
  LoginGuard guard({.per_pair = 3, .per_source = 5, .per_name = 8, .at_once = 2, .rows = 50, .window = Millis(60'000)});
  const auto attempt = [&](const std::string& name, const std::string& source, Outcome outcome = Outcome::Wrong) {
    const auto wait = guard.begin(name, source, now);
    if (!wait) guard.done(name, source, now, outcome);
    return !wait;
  };
  EXPECT_TRUE(attempt("amy", "home", Outcome::Right));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(attempt("amy", "a"));
  EXPECT_EQ(guard.begin("amy", "a", now).value_or(Millis(0)), Millis(60'000)) << "and says when";
  EXPECT_TRUE(attempt("bob", "a") && attempt("cid", "a"));
  EXPECT_FALSE(attempt("dan", "a")) << "five from one address, whatever the names";
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(attempt("amy", "b" + std::to_string(i)));
  EXPECT_FALSE(attempt("amy", "c")) << "eight for one name from anywhere";
  EXPECT_TRUE(attempt("amy", "home")) << "but not from where that account is used";
  // What succeeds costs the others behind the same address nothing.
  for (int i = 0; i < 30; ++i) EXPECT_TRUE(attempt("office" + std::to_string(i), "office", Outcome::Right));
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(guard.begin("eve" + std::to_string(i), "slow", now).has_value());
  EXPECT_EQ(guard.begin("eve", "slow", now).value_or(Millis(0)), Millis(2000)) << "two of one address at once";
  guard.done("eve0", "slow", now, Outcome::NotTried);
  EXPECT_FALSE(guard.begin("eve", "slow", now).has_value());
  // Full tables refuse nobody: the oldest row goes.
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(attempt("n" + std::to_string(i), "s" + std::to_string(i))) << i;
  EXPECT_LE(guard.rows(), 200u);
  now = now + Millis(60'001);
  EXPECT_TRUE(attempt("amy", "a"));
}

TEST_F(Platform, AForeignObjectIsToldLikeAMissingOne) {
  const std::string tenant = user("fiona", Role::Tenant, "first-org"),
                    other = user("frank", Role::Tenant, "second-org");
  const std::string project = call("POST", "/api/v1/projects", R"({"name":"main"})", tenant).body["id"].text();
  call("POST", "/api/v1/projects", R"({"name":"main"})", other);
  // Word for word, or ids could be tried out.
  const auto told = [&](const std::string& method, const std::string& path, const std::string& id) {
    std::string text = call(method, "/api/v1/" + path + id, "", other).body["detail"].text();
    const auto at = text.find(id);
    return at == std::string::npos ? text : text.replace(at, id.size(), "ID");
  };
  const auto id_of = [&](const std::string& path, const std::string& body) {
    return call("POST", "/api/v1/" + path, body, tenant).body["id"].text();
  };
  EXPECT_EQ(told("GET", "clusters/", id_of("clusters", R"({"spec":{"name":"theirs","image":"i"}})")),
            told("GET", "clusters/", "cl-999"));
  EXPECT_EQ(told("DELETE", "jobs/", id_of("jobs", R"({"entrypoint":"true","cluster":"theirs"})")),
            told("DELETE", "jobs/", "job-999"));
  EXPECT_EQ(told("DELETE", "tokens/", id_of("tokens", R"({"label":"t"})")), told("DELETE", "tokens/", "tok-999"));
  EXPECT_EQ(told("DELETE", "join-tokens/", id_of("join-tokens", "{}")), told("DELETE", "join-tokens/", "tok-999"));
  const auto made_in = [&](const std::string& id) {
    const auto answer =
        call("POST", "/api/v1/clusters", R"({"spec":{"name":"c","image":"i"},"project":")" + id + R"("})", other);
    return std::to_string(answer.status) + answer.body["field"].text() +
           std::to_string(answer.body["detail"].text().size() - id.size());
  };
  EXPECT_EQ(made_in(project), made_in("prj-999"));
  EXPECT_EQ(told("GET", "projects/", project + "/quota").find("there is no project"), 0U);
  EXPECT_EQ(call("DELETE", "/api/v1/clusters/theirs", "", tenant).status, 200) << "it would start in a later test";
}

TEST_F(Platform, ImagePoliciesAreSetShownAndRefuse) {
  const std::string tenant = user("ina", Role::Tenant, "image-org"), other = user("ingo", Role::Tenant, "other-org"),
                    auditor = user("ilse", Role::Auditor, "image-org"),
                    supplier = user("ivo", Role::Supplier, "image-org");
  const std::string project = call("POST", "/api/v1/projects", R"({"name":"main"})", tenant).body["id"].text();
  const std::string of_project = "/api/v1/projects/main/image-policy", of_org = "/api/v1/orgs/image-org/image-policy",
                    of_platform = "/api/v1/orgs/org-1/image-policy";
  const auto set = call("PUT", of_project, R"({"policy":{"allow":["muster/*"],"requireDigest":true}})", tenant);
  ASSERT_EQ(set.status, 200) << set.body.dump();
  EXPECT_TRUE(wire::check_json("ImagePolicyView", set.body).ok());
  EXPECT_EQ(set.body["project"]["policy"]["allow"].dump(), R"(["muster/*"])");
  EXPECT_EQ(set.body["org"]["name"].text(), "image-org");
  const std::string key =
      R"("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEACOOtxY0GZCh08D0t5I2Pe2/e4Wmawf8V39OwOvMSwsM=\n-----END PUBLIC KEY-----\n")";
  const auto keyed = call("PUT", of_org, R"({"policy":{"keys":[)" + key + "]}}", tenant);
  EXPECT_EQ(keyed.body["org"]["keyFingerprints"].items().at(0).text().size(), 64U) << keyed.body.dump();
  EXPECT_EQ(call("PUT", of_org, R"({"policy":{"keys":["none"]}})", tenant).body["field"].text(), "policy.keys");
  EXPECT_EQ(call("PUT", of_project, R"({"policy":{"deny":["a b"]}})", tenant).body["field"].text(), "policy.deny");
  EXPECT_EQ(call("GET", of_project, "", auditor).status, 200);
  EXPECT_EQ(call("PUT", of_project, "{}", auditor).status, 403);
  EXPECT_EQ(call("GET", of_org, "", supplier).status, 404);
  EXPECT_EQ(call("PUT", of_platform, "{}", tenant).status, 404);
  for (const std::string& foreign : {"/api/v1/projects/" + project + "/image-policy", of_org}) {
    EXPECT_EQ(call("GET", foreign, "", other).status, 404) << foreign;
    EXPECT_EQ(call("PUT", foreign, "{}", other).status, 404) << foreign;
  }
  EXPECT_EQ(call("PUT", of_platform, R"({"policy":{"deny":["muster/evil"]}})").status, 200);
  EXPECT_EQ(call("GET", of_project, "", tenant).body["platform"]["policy"]["deny"].dump(), R"(["muster/evil"])");

  wire::CreateClusterRequest request;
  request.spec.name = "demo", request.spec.head.resources.cpu_milli = 1000;
  const auto refused = [&](const std::string& image) {
    request.spec.image = image;
    for (const char* path : {"/api/v1/clusters", "/api/v1/plan"}) {
      const auto answer = call("POST", path, wire::to_json(request), tenant);
      EXPECT_EQ(answer.body["code"].text(), "failed_precondition") << path << answer.body.dump();
      EXPECT_EQ(answer.body["field"].text(), "spec.image") << path;
      request.spec.name = "plan";
      const std::string detail = answer.body["detail"].text();
      if (std::string_view(path) == "/api/v1/plan") return detail.substr(0, detail.find(':'));
    }
    return std::string();
  };
  EXPECT_EQ(refused("python:3.11"), "image_policy.not_allowed");
  EXPECT_EQ(refused("muster/ray:1"), "image_policy.no_digest");
  EXPECT_EQ(refused("muster/evil@sha256:" + std::string(64, 'a')), "image_policy.denied");
  EXPECT_EQ(call("PUT", of_platform, "{}").status, 200) << "it would bind later tests";
  const auto audit = call("GET", "/api/v1/audit?filter=verb=limit-images", "", tenant);
  EXPECT_EQ(audit.status, 200) << audit.body.dump();
  EXPECT_GE(audit.body["items"].items().size(), 2U) << audit.body.dump();
}

TEST_F(Platform, TiersAreGuaranteedByOperatorsAndShown) {
  const std::string tenant = user("tierney", Role::Tenant, "tier-org"),
                    auditor = user("tiernan", Role::Auditor, "tier-org");
  const std::string row = R"({"tier":3,"guaranteePermille":200})";
  const auto set = call("PUT", "/api/v1/tiers", row);
  ASSERT_EQ(set.status, 200) << set.body.dump();
  EXPECT_TRUE(wire::check_json("TiersView", set.body).ok());
  EXPECT_EQ(set.body["rows"].dump(), R"([{"tier":3,"guaranteePermille":200,"heldPermille":0}])");
  EXPECT_EQ(call("GET", "/api/v1/tiers", "", auditor).body["rows"].dump(), set.body["rows"].dump());
  EXPECT_EQ(call("PUT", "/api/v1/tiers", row, auditor).status, 403);
  EXPECT_GE(call("PUT", "/api/v1/tiers", row, tenant).status, 403);
  EXPECT_GE(call("GET", "/api/v1/tiers", "", tenant).status, 403);
  EXPECT_EQ(call("PUT", "/api/v1/tiers", R"({"tier":10})").body["field"].text(), "tier");
  const auto all = call("PUT", "/api/v1/tiers", R"({"tier":1,"guaranteePermille":801})");
  EXPECT_EQ(all.body["field"].text(), "guaranteePermille") << all.body.dump();
  EXPECT_EQ(call("PUT", "/api/v1/tiers", R"({"tier":3})").body["rows"].items().size(), 0U);
}

TEST_F(Platform, HeadroomIsSetByOperatorsAndShown) {
  const std::string tenant = user("hedda", Role::Tenant, "headroom-org"),
                    auditor = user("heidi", Role::Auditor, "headroom-org");
  const std::string row = R"({"gpuModel":"no such GPU","machines":2,"tier":1})";
  const auto set = call("PUT", "/api/v1/headroom", row);
  ASSERT_EQ(set.status, 200) << set.body.dump();
  EXPECT_TRUE(wire::check_json("HeadroomView", set.body).ok());
  EXPECT_EQ(set.body["rows"].dump(), R"([{"gpuModel":"no such GPU","machines":2,"tier":1,"free":0}])");
  EXPECT_EQ(call("GET", "/api/v1/headroom", "", auditor).body["rows"].dump(), set.body["rows"].dump());
  EXPECT_EQ(call("PUT", "/api/v1/headroom", row, auditor).status, 403);
  EXPECT_GE(call("PUT", "/api/v1/headroom", row, tenant).status, 403);
  EXPECT_GE(call("GET", "/api/v1/headroom", "", tenant).status, 403);
  EXPECT_EQ(call("PUT", "/api/v1/headroom", R"({"tier":10})").body["field"].text(), "tier");
  EXPECT_EQ(call("PUT", "/api/v1/headroom", R"({"machines":10001})").body["field"].text(), "machines");
  EXPECT_EQ(call("PUT", "/api/v1/headroom", R"({"gpuModel":"no such GPU"})").body["rows"].items().size(), 0U);
}

TEST_F(Platform, QuotasAreSetShownAndHoldBack) {
  const std::string tenant = user("quentin", Role::Tenant, "quota-org"),
                    other = user("quirin", Role::Tenant, "other-org");
  const std::string project = call("POST", "/api/v1/projects", R"({"name":"main"})", tenant).body["id"].text();
  const std::string of_project = "/api/v1/projects/main/quota", of_org = "/api/v1/orgs/quota-org/quota";
  const auto set = call("PUT", of_project, R"({"gpus":"8","cpus":1.5,"clusters":"3"})", tenant);
  ASSERT_EQ(set.status, 200) << set.body.dump();
  EXPECT_TRUE(wire::check_json("QuotaView", set.body).ok());
  EXPECT_EQ(set.body["project"]["name"].text(), "main");
  EXPECT_EQ(set.body["project"]["limit"].dump(), R"({"gpus":"8","cpus":1.5,"clusters":"3"})");
  EXPECT_EQ(set.body["org"]["name"].text(), "quota-org");
  EXPECT_EQ(call("PUT", of_org, R"({"gpus":"1"})", tenant).status, 403) << "operators bound organisations";
  EXPECT_EQ(call("PUT", of_org, R"({"gpus":"1","clusters":"0"})").status, 200);
  EXPECT_EQ(call("GET", of_project, "", tenant).body["org"]["limit"]["gpus"].text(), "1");
  EXPECT_EQ(call("GET", of_org, "", tenant).body["project"].dump(), "null");
  for (const std::string& foreign : {"/api/v1/projects/" + project + "/quota", of_org}) {
    EXPECT_EQ(call("GET", foreign, "", other).status, 404) << foreign;
    EXPECT_EQ(call("PUT", foreign, "{}", other).status, 404) << foreign;
  }
  const std::string share = R"({"gpus":"1","share":{"weight":"200","guaranteeGpus":"1"}})";
  EXPECT_EQ(call("PUT", of_project, share, tenant).status, 403) << "it is at the others' expense";
  EXPECT_EQ(call("PUT", of_org, R"({"gpus":"1","share":{"guaranteeGpus":"2"}})").body["field"].text(),
            "share.guaranteeGpus");
  EXPECT_EQ(call("PUT", of_org, share).body["org"]["share"].dump(),
            R"({"weight":"200","guaranteeGpus":"1","guaranteeCpus":0})");
  EXPECT_EQ(call("PUT", of_org, R"({"gpus":"1"})").body["org"]["share"]["weight"].text(), "200") << "it stays";
  EXPECT_EQ(call("PUT", of_project, R"({"gpus":"-1"})", tenant).body["field"].text(), "gpus");
  EXPECT_EQ(call("PUT", of_project, R"({"cpus":-1})", tenant).body["field"].text(), "cpus");
  EXPECT_EQ(call("PUT", of_project, R"({"disks":1})", tenant).status, 400);
  EXPECT_EQ(call("PUT", "/api/v1/projects/none/quota", "{}", tenant).status, 404);
  const auto projects = call("GET", "/api/v1/projects", "", tenant);
  ASSERT_EQ(projects.body["items"].items().size(), 1u);
  for (const auto& each : projects.body["items"].items()) {
    EXPECT_EQ(each["quota"]["cpus"].dump(), "1.5");
    EXPECT_EQ(each["held"]["clusters"].text(), "0");
  }

  wire::CreateClusterRequest request;
  request.spec.name = "demo", request.spec.image = "muster/ray:1", request.spec.head.resources.cpu_milli = 2000;
  const auto refused = call("POST", "/api/v1/clusters", wire::to_json(request), tenant);
  EXPECT_EQ(refused.status, call("POST", "/api/v1/clusters", wire::to_json(request), tenant).status);
  EXPECT_EQ(refused.body["code"].text(), "failed_precondition") << refused.body.dump();
  EXPECT_NE(refused.body["detail"].text().find("needs 2 CPUs and the quota of project main allows 1.5"),
            std::string::npos)
      << refused.body.dump();
  EXPECT_EQ(call("PUT", of_project, R"({"cpus":2})", tenant).status, 200);
  const auto made = call("POST", "/api/v1/clusters", wire::to_json(request), tenant);
  ASSERT_EQ(made.status, 200) << made.body.dump();
  // Who listens is told that it waits for something else now; nobody else is.
  std::atomic<bool> over = false;
  std::atomic<int> told = 0, live = 0;
  std::mutex texts_mutex;
  std::string texts;
  std::vector<std::thread> readers;
  for (const std::string& token : {tenant, other})
    readers.emplace_back([&, token] {
      net::Client client(endpoint());
      const auto response =
          client.stream({"GET", "/api/v1/events", {{"Authorization", "Bearer " + token}}, "", Millis(30'000)},
                        [&](std::string_view chunk) {
                          if (chunk.find("event: live") != std::string_view::npos) ++live;
                          if (chunk.find("event: queue.changed") != std::string_view::npos) {
                            told += token == tenant ? 1 : 100;
                            const std::lock_guard lock(texts_mutex);
                            texts += chunk;
                          }
                          return !over;
                        });
      static_cast<void>(response.ok());
    });
  EXPECT_TRUE(eventually([&] { return live == 2; }));
  std::this_thread::sleep_for(Millis(300));  // it is seen as it waits now
  EXPECT_EQ(call("PUT", of_project, R"({"cpus":1})", tenant).status, 200);
  EXPECT_TRUE(eventually([&] { return told == 1; })) << told;
  over = true;
  EXPECT_EQ(
      call("POST", "/api/v1/tokens", R"({"label":"so that something happens","lifetimeSeconds":"60"})", tenant).status,
      200);
  EXPECT_EQ(
      call("POST", "/api/v1/tokens", R"({"label":"so that something happens","lifetimeSeconds":"60"})", other).status,
      200);
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(told, 1);
  EXPECT_NE(texts.find("demo waits: "), std::string::npos) << texts;
  EXPECT_NE(texts.find("\"reasonCode\":\"quota\""), std::string::npos) << texts;
  const auto queue = call("GET", "/api/v1/clusters/demo", "", tenant).body["queue"];
  EXPECT_EQ(queue["reasonCode"].text(), "quota");
  EXPECT_EQ(queue["reasonParams"]["limit"].text(), "1") << queue.dump();
  EXPECT_GE(queue["position"].integer(), 1);
  const auto list = call("GET", "/api/v1/queue", "", tenant);
  ASSERT_EQ(list.body["items"].items().size(), 1u) << list.body.dump();
  EXPECT_EQ(list.body["items"].items()[0]["reasonCode"].text(), "quota");
  EXPECT_EQ(call("PUT", of_project, "{}", tenant).status, 200) << "no limits any more";
  EXPECT_NE(call("GET", "/api/v1/clusters/demo", "", tenant).body["queue"]["reasonCode"].text(), "quota");
  EXPECT_EQ(call("DELETE", "/api/v1/clusters/demo", "", tenant).status, 200);
}

TEST_F(Platform, ARepeatedKeyIsDoneOnce) {
  const std::map<std::string, std::string> key = {{"Idempotency-Key", "k-1"}};
  const auto first = call("POST", "/api/v1/orgs", "{\"name\":\"once\"}", admin_, key);
  const auto second = call("POST", "/api/v1/orgs", "{\"name\":\"once\"}", admin_, key);
  EXPECT_EQ(first.status, 200);
  EXPECT_EQ(second.status, 200);
  EXPECT_EQ(first.body["id"], second.body["id"]);
  EXPECT_GE(call("POST", "/api/v1/orgs", "{\"name\":\"other\"}", admin_, key).status, 400);
}

TEST_F(Platform, ListsPageByCursor) {
  for (const char* name : {"page-a", "page-b", "page-c"})
    EXPECT_EQ(call("POST", "/api/v1/orgs", std::string("{\"name\":\"") + name + "\"}").status, 200);
  std::set<std::string> seen;
  std::string cursor;
  do {
    const auto answer = call("GET", "/api/v1/orgs?limit=2&cursor=" + cursor);
    ASSERT_EQ(answer.status, 200);
    for (const auto& item : answer.body["items"].items()) EXPECT_TRUE(seen.insert(item["id"].text()).second);
    cursor = answer.body["nextCursor"].text();
  } while (!cursor.empty());
  EXPECT_GE(seen.size(), 4u);
}

TEST_F(Platform, ARevokedTokenEndsItsStream) {
  const auto made = call("POST", "/api/v1/tokens", R"({"label":"stream","lifetimeSeconds":"600"})");
  ASSERT_EQ(made.status, 200) << made.body.dump();
  const std::string secret = made.body["secret"].text();
  std::atomic<bool> ended = false, told = false, live = false;
  std::thread reader([&] {
    net::Client client(endpoint());
    const auto response = client.stream(
        {"GET", "/api/v1/events", {{"Authorization", "Bearer " + secret}, {"Last-Event-ID", "0"}}, "", Millis(30'000)},
        [&](std::string_view chunk) {
          if (chunk.find("event: org.created") != std::string_view::npos) told = true;
          if (chunk.find("event: live\ndata: {\"seq\":") != std::string_view::npos) live = true;
          return true;
        });
    static_cast<void>(response.ok());
    ended = true;
  });
  EXPECT_TRUE(eventually([&] { return told.load(); }));
  EXPECT_TRUE(eventually([&] { return live.load(); })) << "that this was all so far";
  EXPECT_FALSE(ended);
  EXPECT_EQ(call("DELETE", "/api/v1/tokens/" + made.body["id"].text()).status, 200);
  EXPECT_TRUE(eventually([&] { return ended.load(); }, Millis(5000)));
  reader.join();
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", secret).status, 401);
}

TEST_F(Platform, AServiceAccountHasTokensAloneAndEndsWithItsStreams) {
  const std::string ann = user("svc-ann", Role::Tenant, "svc-lab"), eve = user("svc-eve", Role::Tenant, "svc-other");
  const auto made = call("POST", "/api/v1/service-accounts", R"({"name":"ci","note":"nightly training"})", ann);
  ASSERT_EQ(made.status, 200) << made.body.dump();
  EXPECT_EQ(made.body["role"].text(), "tenant") << "its maker's";
  EXPECT_EQ(made.body["org"].text(), "svc-lab");
  const std::string id = made.body["id"].text(), path = "/api/v1/service-accounts/ci";
  EXPECT_EQ(call("POST", "/api/v1/service-accounts", R"({"name":"root","role":"operator"})", ann).status, 403);
  // Others have no such account, whatever they call it.
  for (const std::string& asked : {std::string("ci"), id}) {
    const std::string their = "/api/v1/service-accounts/" + asked;
    const auto foreign = call("DELETE", their, "", eve),
               none = call("DELETE", "/api/v1/service-accounts/nobody", "", eve);
    EXPECT_EQ(foreign.status, 404);
    std::string text = foreign.body["detail"].text();
    if (const auto at = text.find(asked); at != std::string::npos) text.replace(at, asked.size(), "nobody");
    EXPECT_EQ(text, none.body["detail"].text());
    EXPECT_EQ(call("GET", their + "/tokens", "", eve).status, 404);
    EXPECT_EQ(call("POST", their + "/tokens", "{}", eve).status, 404);
  }
  EXPECT_EQ(call("DELETE", "/api/v1/users/" + id, "", admin_).status, 404) << "it is no person";
  EXPECT_EQ(call("GET", "/api/v1/users", "", admin_).body.dump().find(id), std::string::npos);
  EXPECT_EQ(call("GET", "/api/v1/service-accounts", "", eve).body["items"].items().size(), 0u);

  const auto token = call("POST", path + "/tokens", R"({"label":"runner","scopes":["clusters"]})", ann);
  ASSERT_EQ(token.status, 200) << token.body.dump();
  EXPECT_FALSE(token.body["expiresAt"].text().empty());
  const std::string secret = token.body["secret"].text();
  EXPECT_EQ(call("GET", "/api/v1/clusters", "", secret).status, 200);
  EXPECT_EQ(call("GET", "/api/v1/nodes", "", secret).status, 403) << "out of its scopes";
  const std::string wide = call("POST", path + "/tokens", R"({"label":"wide"})", ann).body["secret"].text();
  const auto me = call("GET", "/api/v1/whoami", "", wide);
  EXPECT_TRUE(me.body["service"].truth());
  EXPECT_EQ(me.body["name"].text(), "ci");
  for (const char* target : {"/api/v1/tokens", "/api/v1/service-accounts/ci/tokens"})
    EXPECT_EQ(call("POST", target, "{}", wide).status, 403) << target << ": it makes itself no token";
  EXPECT_EQ(call("POST", "/api/v1/service-accounts", R"({"name":"more"})", wide).status, 403);
  EXPECT_EQ(call("POST", "/api/v1/password", R"({"oldPassword":"12345678","newPassword":"123456789"})", wide).status,
            403);
  EXPECT_EQ(call("POST", "/api/v1/login", R"({"name":"ci","password":"12345678"})", "").status, 401);
  EXPECT_EQ(call("GET", path + "/tokens", "", ann).body["items"].items().size(), 2u);
  EXPECT_EQ(call("GET", "/api/v1/tokens", "", ann).body.dump().find("runner"), std::string::npos)
      << "a person's own list is of his own";

  std::atomic<bool> live = false, ended = false;
  std::thread reader([&] {
    net::Client client(endpoint());
    const auto response =
        client.stream({"GET", "/api/v1/events", {{"Authorization", "Bearer " + wide}}, "", Millis(30'000)},
                      [&](std::string_view chunk) {
                        if (chunk.find("event: live") != std::string_view::npos) live = true;
                        return true;
                      });
    static_cast<void>(response.ok());
    ended = true;
  });
  EXPECT_TRUE(eventually([&] { return live.load(); }));
  EXPECT_FALSE(ended);
  const auto gone = call("DELETE", path, "", ann);
  EXPECT_EQ(gone.status, 200);
  EXPECT_TRUE(gone.body["disabled"].truth());
  EXPECT_TRUE(eventually([&] { return ended.load(); }, Millis(5000)));
  reader.join();
  EXPECT_EQ(call("GET", "/api/v1/clusters", "", secret).status, 401);
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", wide).status, 401);
  EXPECT_EQ(call("GET", path + "/tokens", "", ann).status, 404) << "its name is free again";
  const auto trail = call("GET", "/api/v1/audit?filter=verb=create&limit=1000", "", ann);
  EXPECT_NE(trail.body.dump().find("service account ci (tenant) was made: nightly training"), std::string::npos);
  EXPECT_NE(call("GET", "/api/v1/audit?limit=1000", "", ann).body.dump().find("service account ci was disabled"),
            std::string::npos);
}

TEST_F(Platform, AnAdministratorHasASayInAccountsOfHisOrganisation) {
  const std::string ann = user("adm-ann", Role::Tenant, "adm-lab");
  ASSERT_EQ(call("POST", "/api/v1/projects", R"({"name":"first"})", ann).status, 200) << "there is no administrator";
  const std::string ben = user("adm-ben", Role::TenantAdmin, "adm-lab");
  EXPECT_EQ(call("POST", "/api/v1/projects", R"({"name":"second"})", ann).status, 403) << "from now on there is one";
  EXPECT_EQ(call("POST", "/api/v1/projects", R"({"name":"second"})", ben).status, 200);
  const std::string eve = user("adm-eve", Role::TenantAdmin, "adm-other");
  const std::string own = user("adm-own", Role::Supplier, "adm-hall");

  const auto made = [](const std::string& body, const std::string& token) {
    return call("POST", "/api/v1/users", body, token);
  };
  const auto vera = made(R"({"name":"adm-vera","role":"tenant-viewer","password":"password-of-vera"})", ben);
  ASSERT_EQ(vera.status, 200) << vera.body.dump();
  EXPECT_EQ(vera.body["role"].text(), "tenant-viewer");
  EXPECT_EQ(vera.body["org"].text(), "adm-lab");
  EXPECT_TRUE(wire::check_json("Principal", vera.body).ok());
  for (const char* role : {"operator", "auditor", "supplier", "supplier-member"})
    EXPECT_EQ(made(std::string(R"({"name":"x","role":")") + role + R"(","password":"password-of-x"})", ben).status, 403)
        << role;
  EXPECT_EQ(made(R"({"name":"x","role":"tenant","org":"adm-other","password":"password-of-x"})", ben).status, 404);
  EXPECT_EQ(made(R"({"name":"x","role":"tenant","password":"password-of-x"})", ann).status, 403);
  EXPECT_EQ(made(R"({"name":"x","role":"tenant","ssoSubject":"s-1"})", ben).status, 403);
  EXPECT_EQ(made(R"({"name":"x","role":"tenant","org":"adm-lab","ssoSubject":"s-1"})", admin_).status, 409)
      << "there is no provider here";
  EXPECT_EQ(made(R"({"name":"adm-mem","role":"supplier-member","password":"password-of-mem"})", own).status, 200);
  EXPECT_EQ(made(R"({"name":"x","role":"supplier","password":"password-of-x"})", own).status, 403);

  const auto names = [](const std::string& token) {
    const Json list = call("GET", "/api/v1/users?limit=1000", "", token).body;
    std::string out;
    for (const auto& each : list["items"].items()) out += each["name"].text() + " ";
    return out;
  };
  EXPECT_EQ(names(ben), "adm-ann adm-ben adm-vera ");
  EXPECT_EQ(names(ann), "adm-ann ");
  EXPECT_EQ(names(own), "adm-own adm-mem ");
  const std::string anns_id = call("GET", "/api/v1/whoami", "", ann).body["id"].text();
  for (const std::string& asked : {std::string("adm-ann"), anns_id}) {
    const std::string their = "/api/v1/users/" + asked, none = "/api/v1/users/nobody-here";
    for (const auto& [method, suffix, body] :
         {std::tuple("PUT", "/role", R"({"role":"tenant-viewer"})"), std::tuple("DELETE", "", "")}) {
      const auto foreign = call(method, their + suffix, body, eve), missing = call(method, none + suffix, body, eve);
      EXPECT_EQ(foreign.status, 404);
      std::string text = foreign.body["detail"].text();
      if (const auto at = text.find(asked); at != std::string::npos) text.replace(at, asked.size(), "nobody-here");
      EXPECT_EQ(text, missing.body["detail"].text());
    }
  }
  const auto role = [](const std::string& who, const std::string& to, const std::string& token) {
    return call("PUT", "/api/v1/users/" + who + "/role", "{\"role\":\"" + to + "\"}", token);
  };
  EXPECT_EQ(role("adm-ann", "tenant-admin", ann).status, 403) << "nobody makes himself more";
  EXPECT_EQ(role("adm-ann", "operator", ben).status, 403);
  EXPECT_EQ(role("adm-ann", "king", ben).body["field"].text(), "role");
  EXPECT_EQ(role("adm-ben", "tenant", ben).status, 409) << "the last one stays";
  EXPECT_EQ(role("admin", "tenant", ben).status, 404);
  EXPECT_EQ(call("DELETE", "/api/v1/users/adm-vera", "", ben).status, 200);
  EXPECT_EQ(login("adm-vera", "password-of-vera"), "");
}

TEST_F(Platform, AnotherRoleCountsAtOnceAndEndsWhatWasOpen) {
  const std::string ann = user("role-ann", Role::Tenant, "role-lab");
  const std::string ben = user("role-ben", Role::TenantAdmin, "role-lab");
  ASSERT_EQ(call("POST", "/api/v1/projects", R"({"name":"main"})", ben).status, 200);
  const std::string spec = R"({"spec":{"name":"mine","image":"muster/ray:2.60.0","head":{"resources":{"cpus":1}}}})";
  const auto made = call("POST", "/api/v1/clusters", spec, ann);
  ASSERT_EQ(made.status, 200) << made.body.dump();
  const std::string path = "/api/v1/clusters/" + made.body["id"].text();
  const std::string wide = call("POST", "/api/v1/tokens", R"({"label":"wide"})", ann).body["secret"].text();
  const std::string narrow =
      call("POST", "/api/v1/tokens", R"({"label":"narrow","scopes":["clusters"]})", ann).body["secret"].text();
  const std::string reading =
      call("POST", "/api/v1/tokens", R"({"label":"reading","scopes":["read"]})", ann).body["secret"].text();
  const auto who = PrincipalId::parse(call("GET", "/api/v1/whoami", "", ann).body["id"].text());
  ASSERT_TRUE(who.has_value());

  std::atomic<bool> live = false, ended = false, closed = false;
  Caller shell;  // as one that a member opened with a token that goes on
  shell.subject = {.principal = *who, .role = Role::Tenant};
  const auto guard = app_->context().events->guard(shell, [&] { closed = true; });
  std::thread reader([&] {
    net::Client client(endpoint());
    const auto response =
        client.stream({"GET", "/api/v1/events", {{"Authorization", "Bearer " + reading}}, "", Millis(30'000)},
                      [&](std::string_view chunk) {
                        if (chunk.find("event: live") != std::string_view::npos) live = true;
                        return true;
                      });
    static_cast<void>(response.ok());
    ended = true;
  });
  EXPECT_TRUE(eventually([&] { return live.load(); }));
  EXPECT_FALSE(ended);
  const auto changed = call("PUT", "/api/v1/users/role-ann/role", R"({"role":"tenant-viewer"})", ben);
  EXPECT_EQ(changed.status, 200) << changed.body.dump();
  EXPECT_EQ(changed.body["role"].text(), "tenant-viewer");
  EXPECT_TRUE(eventually([&] { return ended.load() && closed.load(); }, Millis(5000)));
  reader.join();
  for (const std::string& gone : {ann, wide}) EXPECT_EQ(call("GET", "/api/v1/whoami", "", gone).status, 401);
  const std::string again = login("role-ann", "password-of-role-ann");
  for (const std::string& now : {narrow, again}) {
    EXPECT_EQ(call("GET", path, "", now).status, 200) << "she looks";
    EXPECT_EQ(call("DELETE", path, "", now).status, 403);
    EXPECT_EQ(call("PUT", path, spec, now).status, 403);
    EXPECT_EQ(call("POST", "/api/v1/clusters", spec, now).status, 403);
    EXPECT_EQ(call("POST", "/api/v1/jobs", R"({"name":"j","entrypoint":"true","cluster":"mine"})", now).status, 403);
    EXPECT_EQ(call("POST", "/api/v1/blobs", "x", now, {{"Content-Type", "application/octet-stream"}}).status, 403);
  }
  for (const char* seen : {"queue", "jobs", "projects", "audit", "nodes", "telemetry", "carried", "grants"})
    EXPECT_EQ(call("GET", std::string("/api/v1/") + seen, "", again).status, 200) << seen;
  EXPECT_EQ(call("POST", "/api/v1/tokens", R"({"label":"all"})", again).body["field"].text(), "scopes");
  EXPECT_EQ(call("POST", "/api/v1/tokens", R"({"label":"look","scopes":["read"]})", again).status, 200);
  EXPECT_EQ(call("GET", "/api/v1/registries", "", again).status, 403);
  const std::string trail = call("GET", "/api/v1/audit?limit=1000", "", ben).body.dump();
  EXPECT_NE(trail.find("account role-ann is tenant-viewer of role-lab now"), std::string::npos) << trail;
  EXPECT_EQ(call("DELETE", path, "", ben).status, 200);
}

struct LoggedIn {
  std::string token, refresh;
};
LoggedIn logged_in(const Answer& answer) {
  return {answer.body["token"].text(), answer.body["refreshToken"].text()};
}

TEST_F(Platform, ALoginIsATokenOfTenMinutesThatIsRenewed) {
  user("ren-ann", Role::Tenant, "ren-lab");
  const auto answer = call("POST", "/api/v1/login", R"({"name":"ren-ann","password":"password-of-ren-ann"})", "");
  ASSERT_EQ(answer.status, 200) << answer.body.dump();
  LoggedIn now = logged_in(answer);
  EXPECT_TRUE(now.token.starts_with("eyJ"));
  EXPECT_LE(answer.body["expiresInSeconds"].integer(), 600);
  EXPECT_GT(answer.body["expiresInSeconds"].integer(), 590);
  EXPECT_LT(answer.body["expiresAt"].text(), answer.body["refreshExpiresAt"].text());
  const auto renew = [&](const std::string& shown, const std::string& next) {
    return call("POST", "/api/v1/login/renew",
                wire::to_json(wire::RenewLoginRequest{shown, crypto::parse_refresh_token(next)->rotating}), "");
  };
  const std::string first = now.refresh, second = crypto::next_refresh_token(first).text;
  const auto renewed = renew(first, second);
  ASSERT_EQ(renewed.status, 200) << renewed.body.dump();
  EXPECT_TRUE(renewed.body["refreshToken"].text().empty()) << "the client made it";
  EXPECT_TRUE(wire::check_json("LoginResponse", renewed.body).ok());
  const std::string token = renewed.body["token"].text();
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", token).body["name"].text(), "ren-ann");
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", now.token).status, 200) << "the one before has its ten minutes";
  EXPECT_EQ(renew(first, second).status, 200) << "the answer was lost";
  // The parts of a refresh token open nothing by themselves, and a bent token neither.
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", "mst_" + first.substr(4, 43)).status, 401);
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", first).status, 401);
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", token + "x").status, 401);
  EXPECT_EQ(renew("mrf_x.y", second).status, 400);
  EXPECT_EQ(renew(crypto::make_refresh_token().text, second).status, 401);
  const auto listed = call("GET", "/api/v1/tokens", "", token).body.dump();
  EXPECT_NE(listed.find("\"login\":true"), std::string::npos) << listed;
  EXPECT_EQ(listed.find(first.substr(4, 43)), std::string::npos);
  EXPECT_EQ(call("POST", "/api/v1/logout", "", token).status, 200);
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", token).status, 401) << "at once, whatever its end says";
  EXPECT_EQ(renew(second, crypto::next_refresh_token(second).text).status, 401);
}

TEST_F(Platform, AUsedRefreshTokenEndsTheLoginItsStreamsAndIsInTheAudit) {
  user("reuse-ann", Role::Tenant, "reuse-lab");
  const auto answer = call("POST", "/api/v1/login", R"({"name":"reuse-ann","password":"password-of-reuse-ann"})", "");
  const LoggedIn owner = logged_in(answer);
  const std::string other = login("reuse-ann", "password-of-reuse-ann");
  const auto renew = [&](const std::string& shown, const std::string& next) {
    return call("POST", "/api/v1/login/renew",
                wire::to_json(wire::RenewLoginRequest{shown, crypto::parse_refresh_token(next)->rotating}), "");
  };
  const std::string second = crypto::next_refresh_token(owner.refresh).text;
  const auto renewed = renew(owner.refresh, second);
  ASSERT_EQ(renewed.status, 200);
  const std::string token = renewed.body["token"].text();
  std::atomic<bool> live = false, ended = false;
  std::thread reader([&] {
    net::Client client(endpoint());
    const auto response =
        client.stream({"GET", "/api/v1/events", {{"Authorization", "Bearer " + token}}, "", Millis(30'000)},
                      [&](std::string_view chunk) {
                        if (chunk.find("event: live") != std::string_view::npos) live = true;
                        return true;
                      });
    static_cast<void>(response.ok());
    ended = true;
  });
  EXPECT_TRUE(eventually([&] { return live.load(); }));
  EXPECT_FALSE(ended);
  // A thief has the first one, and makes a next one of his own.
  const auto stolen = renew(owner.refresh, crypto::next_refresh_token(owner.refresh).text);
  EXPECT_EQ(stolen.status, 401);
  EXPECT_NE(stolen.body["detail"].text().find("used up before"), std::string::npos) << stolen.body.dump();
  EXPECT_TRUE(eventually([&] { return ended.load(); }, Millis(5000)));
  reader.join();
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", token).status, 401);
  EXPECT_EQ(renew(second, crypto::next_refresh_token(second).text).status, 401) << "the owner's end too";
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", other).status, 200) << "another login of the account goes on";
  const std::string trail = call("GET", "/api/v1/audit?filter=object=login&limit=1000", "", other).body.dump();
  EXPECT_NE(trail.find("a used refresh token came again"), std::string::npos) << trail;
}

TEST_F(Platform, AnotherAccessKeySignsAndACompromisedOneIsBelievedNoLonger) {
  const DataDir& dir = app_->context().dir;
  const auto answer = call("POST", "/api/v1/login", R"({"name":"admin","password":"correct horse battery"})", "");
  const std::string before = answer.body["token"].text();
  ASSERT_TRUE(rotate_short_key(dir, ShortKey::Access, false, read_clocks().wall).ok());
  ASSERT_TRUE(app_->renew_certificate().ok());
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", before).status, 200);
  const std::string after = login("admin", "correct horse battery");
  EXPECT_NE(before.substr(0, before.find('.')), after.substr(0, after.find('.'))) << "they name their keys";
  ASSERT_TRUE(rotate_short_key(dir, ShortKey::Access, true, read_clocks().wall).ok());
  ASSERT_TRUE(app_->renew_certificate().ok());
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", after).status, 401);
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", before).status, 401);
  const std::string next = crypto::next_refresh_token(answer.body["refreshToken"].text()).text;
  const auto renewed = call("POST", "/api/v1/login/renew",
                            wire::to_json(wire::RenewLoginRequest{answer.body["refreshToken"].text(),
                                                                  crypto::parse_refresh_token(next)->rotating}),
                            "");
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", renewed.body["token"].text()).status, 200) << "the login goes on";
  admin_ = login("admin", "correct horse battery");  // of all tests
}

TEST_F(Platform, AGrantOpensOneClusterForATimeAndClosesWithItsStreams) {
  const std::string ann = user("gr-ann", Role::Tenant, "gr-lab"), bob = user("gr-bob", Role::Tenant, "gr-other");
  ASSERT_EQ(call("POST", "/api/v1/projects", R"({"org":"gr-lab","name":"main"})", ann).status, 200);
  const auto made =
      call("POST", "/api/v1/clusters",
           R"({"spec":{"name":"shared","image":"muster/ray:2.60.0","head":{"resources":{"cpus":1}}}})", ann);
  ASSERT_EQ(made.status, 200) << made.body.dump();
  const std::string cluster = made.body["id"].text(), path = "/api/v1/clusters/" + cluster;
  const std::string bobs_id = call("GET", "/api/v1/whoami", "", bob).body["id"].text();
  EXPECT_EQ(call("GET", path, "", bob).status, 404);
  EXPECT_EQ(
      call("POST", "/api/v1/grants",
           wire::to_json(wire::CreateGrantRequest{"", cluster, bobs_id, Right::Manage, "mine", Millis(3'600'000)}), bob)
          .status,
      404)
      << "what he does not see he cannot share";
  const auto grant = call(
      "POST", "/api/v1/grants",
      wire::to_json(wire::CreateGrantRequest{"", "shared", bobs_id, Right::Look, "have a look", Millis(3'600'000)}),
      ann);
  ASSERT_EQ(grant.status, 200) << grant.body.dump();
  EXPECT_TRUE(wire::check_json("Grant", grant.body).ok());
  EXPECT_EQ(call("GET", path, "", bob).status, 200);
  EXPECT_EQ(call("DELETE", path, "", bob).status, 403) << "he only looks";
  EXPECT_NE(call("GET", "/api/v1/clusters", "", bob).body.dump().find(cluster), std::string::npos);
  for (const std::string& who : {ann, bob, admin_})
    EXPECT_EQ(call("GET", "/api/v1/grants", "", who).body["items"].items().size(), 1u);
  const std::string eve = user("gr-eve", Role::Tenant, "gr-third");
  EXPECT_EQ(call("GET", "/api/v1/grants", "", eve).body["items"].items().size(), 0u);
  const std::string one = "/api/v1/grants/" + grant.body["id"].text();
  EXPECT_EQ(call("DELETE", one, "", eve).status, 404);
  std::atomic<bool> live = false, ended = false, seen = false;
  std::thread reader([&] {
    net::Client client(endpoint());
    const auto response = client.stream(
        {"GET", "/api/v1/events", {{"Authorization", "Bearer " + bob}, {"Last-Event-ID", "0"}}, "", Millis(30'000)},
        [&](std::string_view chunk) {
          if (chunk.find("cluster shared was asked for") != std::string_view::npos) seen = true;
          if (chunk.find("event: live") != std::string_view::npos) live = true;
          return true;
        });
    static_cast<void>(response.ok());
    ended = true;
  });
  EXPECT_TRUE(eventually([&] { return live.load(); }));
  EXPECT_TRUE(seen) << "its events are his to see meanwhile";
  EXPECT_FALSE(ended);
  EXPECT_EQ(call("DELETE", one, "", ann).status, 200);
  EXPECT_TRUE(eventually([&] { return ended.load(); }, Millis(5000)));
  reader.join();
  EXPECT_EQ(call("GET", path, "", bob).status, 404);
  EXPECT_EQ(call("GET", "/api/v1/clusters", "", bob).body.dump().find(cluster), std::string::npos);
  const std::string trail = call("GET", "/api/v1/audit?filter=object=grant&limit=1000", "", ann).body.dump();
  EXPECT_NE(trail.find("the right look on cluster shared was given to " + bobs_id), std::string::npos) << trail;
  EXPECT_NE(trail.find("ended: revoked"), std::string::npos) << trail;
  EXPECT_EQ(call("DELETE", path, "", ann).status, 200);
}

TEST_F(Platform, BreakGlassIsSeenByTheOwnerWithItsReason) {
  const std::string ann = user("bg-ann", Role::Tenant, "bg-lab");
  ASSERT_EQ(call("POST", "/api/v1/projects", R"({"org":"bg-lab","name":"main"})", ann).status, 200);
  const auto made =
      call("POST", "/api/v1/clusters",
           R"({"spec":{"name":"private","image":"muster/ray:2.60.0","head":{"resources":{"cpus":1}}}})", ann);
  const std::string cluster = made.body["id"].text();
  const auto job = call("POST", "/api/v1/jobs", R"({"name":"secret","entrypoint":"true","cluster":"private"})", ann);
  ASSERT_EQ(job.status, 200) << job.body.dump();
  const std::string logs = "/api/v1/jobs/" + job.body["id"].text() + "/logs";
  EXPECT_EQ(call("GET", logs, "", admin_).status, 403) << "operators do not look into containers";
  const auto take = [&](const std::string& reason, const std::string& token) {
    return call("POST", "/api/v1/break-glass",
                wire::to_json(wire::CreateGrantRequest{"", cluster, "", Right::Logs, reason, Millis(600'000)}), token);
  };
  EXPECT_EQ(take("why not", admin_).body["field"].text(), "reason");
  EXPECT_EQ(take("incident 4711: runaway", ann).status, 403);
  const auto taken = take("incident 4711: runaway", admin_);
  ASSERT_EQ(taken.status, 200) << taken.body.dump();
  EXPECT_EQ(call("GET", logs, "", admin_).status, 200);
  const auto seen = call("GET", "/api/v1/grants", "", ann);
  ASSERT_EQ(seen.body["items"].items().size(), 1u) << seen.body.dump();
  const auto& shown = seen.body["items"].items()[0];
  EXPECT_TRUE(shown["breakGlass"].truth());
  EXPECT_EQ(shown["reason"].text(), "incident 4711: runaway");
  EXPECT_TRUE(shown["to"].text().empty()) << "who it was is the platform's to know";
  const std::string trail = call("GET", "/api/v1/audit?filter=verb=break-glass&limit=100", "", ann).body.dump();
  EXPECT_NE(trail.find("an operator took the right logs on cluster private"), std::string::npos) << trail;
  EXPECT_NE(trail.find("incident 4711: runaway"), std::string::npos);
  EXPECT_EQ(call("DELETE", "/api/v1/grants/" + taken.body["id"].text(), "", ann).status, 403);
  EXPECT_EQ(call("DELETE", "/api/v1/grants/" + taken.body["id"].text(), "", admin_).status, 200);
  EXPECT_EQ(call("GET", logs, "", admin_).status, 403);
  EXPECT_EQ(call("DELETE", "/api/v1/clusters/" + cluster, "", ann).status, 200);
}

// Streams begin while others write: what is not durable for them yet comes a moment later, and nobody is told that it
// is gone.
TEST_F(Platform, AStreamThatBeginsUnderWritesMissesNothing) {
  std::atomic<bool> over = false;
  std::thread writer([&] {
    for (int i = 0; !over; ++i) {
      call("POST", "/api/v1/orgs", R"({"name":"written-)" + std::to_string(i) + R"("})");
      std::this_thread::sleep_for(Millis(3));
    }
  });
  int resets = 0, live = 0;
  for (int i = 0; i < 15; ++i) {
    std::string text;  // the newest chunk, and the end of what came before it
    net::Client client(endpoint());
    const auto response = client.stream(
        {"GET", "/api/v1/events", {{"Authorization", "Bearer " + admin_}, {"Last-Event-ID", "0"}}, "", Millis(10'000)},
        [&](std::string_view chunk) {
          text = text.substr(text.size() - std::min<std::size_t>(text.size(), 12)) + std::string(chunk);
          if (text.find("event: reset") != std::string::npos) ++resets;
          if (text.find("event: live") == std::string::npos) return true;
          ++live;
          return false;
        });
    static_cast<void>(response.ok());
  }
  over = true;
  writer.join();
  EXPECT_EQ(resets, 0);
  EXPECT_EQ(live, 15);
}

// A machine that slept past the end of its certificate comes back on proof of its device key; not after too long, not
// with another key, not when it was revoked.
TEST_F(Platform, AnEndedCertificateIsRenewedOnProofOfTheKeyForAWhile) {
  const std::string supplier = user("night", Role::Supplier, "nighthall");
  wire::EnrollRequest enrol;
  enrol.token = call("POST", "/api/v1/join-tokens", "{}", supplier).body["secret"].text();
  const auto key = crypto::SigningKey::generate();
  enrol.csr_pem = *crypto::make_csr(key, "sleeper");
  enrol.name = enrol.facts.hostname = "sleeper";
  enrol.facts.arch = "x86_64";
  enrol.facts.boot_id = "boot-1";
  const auto enrolled = call("POST", "/api/v1/enroll", wire::to_json(enrol), "");
  ASSERT_EQ(enrolled.status, 200) << enrolled.body.dump();
  const auto node = *NodeId::parse(enrolled.body["nodeId"].text());
  const auto ended = [&](const crypto::SigningKey& of, Millis ago) {  // after a life of a second
    return *crypto::issue_device_certificate(load_cas(app_->context().dir)->ca, of.public_key(), node.str(),
                                             read_clocks().wall - ago - Millis(1000), Millis(1000));
  };
  const auto come = [&](const crypto::SigningKey& with, const std::string& certificate, auto&& see) {
    FakeAgent agent(endpoint(), node, certificate, with, enrol.facts, *unbase64(enrolled.body["commandKey"].text()));
    return eventually([&] { return see(agent); });
  };
  EXPECT_TRUE(come(key, ended(key, 40 * 24h), [](FakeAgent& agent) {
    return agent.seen().refused.message.find("ended 40 days ago") != std::string::npos;
  }));
  const auto stranger = crypto::SigningKey::generate();
  EXPECT_TRUE(come(stranger, ended(key, 1s), [](FakeAgent& agent) { return !agent.seen().refused.code.empty(); }));
  EXPECT_TRUE(come(stranger, ended(stranger, 1s), [](FakeAgent& agent) { return !agent.seen().refused.code.empty(); }));
  EXPECT_TRUE(come(key, ended(key, 1s), [&](FakeAgent&) {
    return call("GET", "/api/v1/nodes/sleeper", "", supplier).body["state"].text() == "online";
  }));
  EXPECT_EQ(call("POST", "/api/v1/nodes/" + node.str() + "/action", R"({"action":"revoke"})", supplier).status, 200);
  EXPECT_TRUE(come(key, ended(key, 1s),
                   [](FakeAgent& agent) { return agent.seen().refused.message.find("revoked") != std::string::npos; }));
}

// What a relay is told beside its handoff socket.
struct Recalls {
  std::string path;
  net::Fd listener, connection;
  Bytes bytes;
  explicit Recalls(const std::string& handoff) : path(net::recall_path(handoff)) {
    auto made = net::listen_unix(path, 0600);
    if (made.ok()) listener = std::move(*made);
  }
  ~Recalls() { ::unlink(path.c_str()); }
  Recalls(const Recalls&) = delete;
  Recalls& operator=(const Recalls&) = delete;
  bool accept() {
    bytes.clear();
    if (!net::await_fd(listener.get(), POLLIN, net::deadline_in(Millis(10'000))).ok()) return false;
    connection = net::Fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    return static_cast<bool>(connection);
  }
  std::optional<net::RecallFrame> next() {
    while (true) {
      const auto frame = net::take_recall(bytes);
      if (!frame.ok()) return {};
      if (*frame) return **frame;
      std::array<std::uint8_t, 4096> buffer;
      if (!net::await_fd(connection.get(), POLLIN, net::deadline_in(Millis(10'000))).ok()) return {};
      const ssize_t n = ::recv(connection.get(), buffer.data(), buffer.size(), 0);
      if (n <= 0) return {};
      bytes.insert(bytes.end(), buffer.begin(), buffer.begin() + n);
    }
  }
};

// muster-relay on "another machine": it holds the files of `musterd relay files` and no socket of musterd's.
struct FarRelay {
  explicit FarRelay(const Context& context) {
    net::Fd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    if (::bind(probe.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0 ||
        ::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&at), &size) != 0)
      return;
    probe.reset();  // the port is free again, for a moment
    address = "127.0.0.1:" + std::to_string(ntohs(at.sin_port));
    const std::string folder = context.dir.root + "-far";
    if (const Status written = write_relay_folder(context.identity, folder, address); !written.ok()) {
      ADD_FAILURE() << written.error().message;
      return;
    }
    const auto file = [&](const char* name) { return as_string(*crypto::read_secret_file(folder + name)); };
    relay::RelayOptions options;
    options.address = "127.0.0.1";
    options.port = ntohs(at.sin_port);
    options.tls = {file("/cert.pem"), file("/key.pem")};
    options.controller_key = context.identity.relay_key;
    options.relay_id = address;
    options.mirror = false;
    auto made = relay::Relay::create(std::move(options));
    if (made.ok())
      relay = std::move(*made);
    else
      ADD_FAILURE() << made.error().message;
    ca_pem = context.cas.get()->text;
    std::filesystem::remove_all(folder);
  }
  void join(const crypto::X25519Pair& pair, Bytes token) {
    relay::ClientOptions options;
    options.endpoint.host = "127.0.0.1";
    options.endpoint.port = relay->port();
    options.endpoint.ca_pem = ca_pem;
    options.endpoint.server_name = net::kRelayName;
    options.endpoint.use_proxy_env = false;
    options.overlay = pair;
    options.token = std::move(token);
    client = std::make_unique<relay::Client>(std::move(options));
    client->start({[](const crypto::Key32&, ByteView) {}, {}, {}});
  }
  std::string address, ca_pem;
  std::unique_ptr<relay::Relay> relay;
  std::unique_ptr<relay::Client> client;  // ends before the relay
};

// Machines tell what is in an image; what the operator's database says of it reaches who runs it, and who only hears of
// it never.
TEST_F(Platform, WhatIsInImagesIsJudgedAndWhoRunsThemIsTold) {
  const std::string tenant = user("scan-tom", Role::Tenant, "scan-t"), other = user("scan-tim", Role::Tenant, "scan-o");
  ASSERT_EQ(call("POST", "/api/v1/projects", R"({"name":"main"})", tenant).status, 200);
  std::vector<std::unique_ptr<FakeAgent>> agents;
  std::vector<std::string> suppliers;
  const auto enrol = [&](const std::string& name) {
    suppliers.push_back(user("scan-" + name, Role::Supplier, "scan-org-" + name));
    const auto key = crypto::SigningKey::generate();
    wire::EnrollRequest request;
    request.token = call("POST", "/api/v1/join-tokens", "{}", suppliers.back()).body["secret"].text();
    request.csr_pem = *crypto::make_csr(key, name);
    request.name = name;
    NodeFacts& facts = request.facts;
    facts.hostname = name, facts.arch = "x86_64", facts.boot_id = "boot-1", facts.runtimes = {RuntimeKind::Docker};
    facts.capacity.cpu_milli = 4'000, facts.capacity.memory_bytes = 16LL << 30;
    const auto enrolled = call("POST", "/api/v1/enroll", wire::to_json(request), "");
    EXPECT_EQ(enrolled.status, 200) << enrolled.body.dump();
    agents.push_back(std::make_unique<FakeAgent>(endpoint(), *NodeId::parse(enrolled.body["nodeId"].text()),
                                                 enrolled.body["certificatePem"].text(), key, facts,
                                                 *unbase64(enrolled.body["commandKey"].text())));
  };
  enrol("scan-a"), enrol("scan-b");
  wire::CreateClusterRequest request;
  request.spec.name = "scanned", request.spec.image = "muster/ray:1";
  request.spec.head.resources.cpu_milli = 3'000, request.spec.head.resources.memory_bytes = 1LL << 30;
  request.spec.groups = {{"w", 1, 1, request.spec.head, {}, {}}};
  const auto made = call("POST", "/api/v1/clusters", wire::to_json(request), tenant);
  ASSERT_EQ(made.status, 200) << made.body.dump();
  const auto shown = [&] { return call("GET", "/api/v1/clusters/scanned", "", tenant).body; };
  ASSERT_TRUE(eventually([&] { return shown()["state"].text() == "running"; }, Millis(30'000))) << shown().dump(1);
  const auto lease_of = [&](std::size_t i) { return agents[i]->seen().desired.assignments.at(0).lease; };
  const std::string old_list =
      "muster-packages 1\nsystem Debian:12\nskipped 0\n=Debian:12\nlibssl3 3.0.11-1 openssl 3.0.11-1\n";
  std::string new_list = old_list;
  new_list.replace(new_list.find("3.0.11-1 openssl 3.0.11-1"), 25, "3.0.13-1 openssl 3.0.13-1");
  const auto scans = [&](const std::string& token) {
    return call("GET", "/api/v1/image-scans", "", token).body["items"].items();
  };
  const auto verdict = [&](const std::string& token) {
    const auto rows = scans(token);
    return rows.empty() ? std::string() : rows[0]["verdict"].text() + ": " + rows[0]["why"].text();
  };
  ImageScans& book = *app_->context().images;
  const DataDir dir = app_->context().dir;
  const auto put = [](const std::string& path, const std::string& text) { std::ofstream(path) << text; };
  const auto advise = [&](const std::string& fixed, const std::string& day) {
    put(dir.advisories() + "/CVE-2999-1.json",
        R"({"id":"CVE-2999-1","modified":")" + day + R"(T00:00:00Z","database_specific":{"severity":"HIGH"},)" +
            R"("affected":[{"package":{"ecosystem":"Debian:12","name":"openssl"},"ranges":[{"type":"ECOSYSTEM",)" +
            R"("events":[{"introduced":"0"},{"fixed":")" + fixed + "\"}]}]}]}");
  };
  const std::string today = format_utc(read_clocks().wall).substr(0, 10);

  // Not a word without a database, of a lease that is another's, or of what is no list.
  agents[0]->send(session::PackagesOffer{lease_of(0), kImage, old_list});
  agents[1]->send(session::PackagesOffer{lease_of(0), kImage, new_list});
  agents[1]->send(session::PackagesOffer{lease_of(1), "sha256:" + std::string(64, 'b'), new_list});
  agents[1]->send(session::PackagesOffer{lease_of(1), kImage, "anything"});
  agents[1]->send(session::LogChunk{JobId{1}, 1, 0, {}});
  std::this_thread::sleep_for(Millis(300));
  EXPECT_TRUE(scans(admin_).empty());
  ASSERT_TRUE(std::filesystem::create_directories(dir.advisories()));
  advise("3.0.11-1", today);
  app_->judge_images();
  ASSERT_TRUE(eventually([&] { return verdict(admin_) == "pass: nothing is known against it"; })) << verdict(admin_);
  EXPECT_EQ(scans(admin_).size(), 1U);
  EXPECT_EQ(scans(admin_)[0]["suppliers"].integer(), 1);
  EXPECT_EQ(scans(admin_)[0]["packages"].integer(), 1);
  EXPECT_EQ(scans(tenant)[0]["clusters"].items().at(0).text(), made.body["id"].text());
  EXPECT_TRUE(scans(other).empty()) << "it runs nothing of it";
  EXPECT_EQ(call("GET", "/api/v1/image-scans", "", suppliers[0]).status, 403);
  EXPECT_TRUE(shown()["warnings"].items().empty()) << shown()["warnings"].dump();

  // A newer database condemns it while it runs.
  put(dir.scan_policy(), R"({"deny":true})");
  advise("3.0.12-1", today);
  app_->judge_images();
  ASSERT_TRUE(eventually([&] { return verdict(tenant) == "block: 1 finding is high or worse"; })) << verdict(tenant);
  EXPECT_EQ(scans(tenant)[0]["findings"].items().at(0)["fixed"].text(), "3.0.12-1");
  EXPECT_EQ(shown()["warnings"].items().at(0).text(),
            "the image is condemned: 1 finding is high or worse, such as CVE-2999-1 in libssl3 3.0.11-1, mended in "
            "3.0.12-1; `muster images verdicts` shows all");
  EXPECT_EQ(shown()["state"].text(), "running") << "what runs goes on";
  const auto denied = [&] {
    return call("GET", "/api/v1/orgs/org-1/image-policy", "", admin_).body["platform"]["policy"]["deny"].items().size();
  };
  EXPECT_EQ(denied(), 0U) << "one community machine's word denies nothing";
  net::Client client(endpoint());
  const auto metrics = client.call({"GET", "/metrics", {{"Authorization", "Bearer " + admin_}}, "", Millis(10'000)});
  EXPECT_NE(metrics->body.find("muster_images{verdict=\"block\"} 1\n"), std::string::npos) << metrics->body;
  // Another supplier's machine says the same; one that says better things of it clears nothing.
  agents[1]->send(session::PackagesOffer{lease_of(1), kImage, new_list});
  ASSERT_TRUE(eventually([&] { return scans(tenant)[0]["suppliers"].integer() == 2; }));
  EXPECT_EQ(verdict(tenant), "block: 1 finding is high or worse");
  EXPECT_EQ(denied(), 0U) << "they disagree";
  agents[1]->send(session::PackagesOffer{lease_of(1), kImage, old_list});
  EXPECT_TRUE(eventually([&] { return denied() == 1; }));
  request.spec.name = "another", request.spec.image = kImage;
  const auto refused = call("POST", "/api/v1/clusters", wire::to_json(request), tenant);
  EXPECT_EQ(refused.body["detail"].text().substr(0, 20), "image_policy.denied:") << refused.body.dump();

  // Faults leave what is in force: of the policy, of one record, of an old database.
  put(dir.scan_policy(), R"({"blok":"high"})");
  EXPECT_FALSE(book.judge_all().ok());
  EXPECT_EQ(verdict(tenant), "block: 1 finding is high or worse");
  put(dir.scan_policy(), R"({"waivers":[{"id":"CVE-2999-1","owner":"ann","until":"2999-01-01"}]})");
  put(dir.advisories() + "/broken.json", "{");
  EXPECT_FALSE(book.judge_all().ok());
  EXPECT_EQ(verdict(tenant), "pass: nothing is known against it but 1 waived finding");
  advise("3.0.11-1", "2020-01-01");
  ASSERT_EQ(::unlink((dir.advisories() + "/broken.json").c_str()), 0);
  EXPECT_TRUE(book.judge_all().ok());
  EXPECT_EQ(verdict(tenant).substr(0, 7), "stale: ");
  EXPECT_NE(shown()["warnings"].items().at(0).text().find("stale"), std::string::npos);
  // After a restart it knows without being told.
  ImageScans again(app_->context());
  ASSERT_TRUE(again.load().ok());
  EXPECT_TRUE(again.judge_all().ok());
  ASSERT_EQ(again.list().size(), 1U);
  EXPECT_EQ(again.list()[0].suppliers, 2U);
  ASSERT_EQ(call("DELETE", "/api/v1/clusters/scanned", "", tenant).status, 200);
  std::filesystem::remove_all(dir.advisories());
  ASSERT_EQ(::unlink(dir.scan_policy().c_str()), 0);
  EXPECT_TRUE(book.judge_all().ok());
  EXPECT_TRUE(scans(admin_).empty());
  ASSERT_EQ(call("PUT", "/api/v1/orgs/org-1/image-policy", R"({"policy":{}})", admin_).status, 200);
  for (const std::string name : {"scan-a", "scan-b"})
    EXPECT_EQ(call("POST", "/api/v1/nodes/" + name + "/action", R"({"action":"revoke"})", admin_).status, 200);
}

TEST_F(Platform, AMachineWithAKnownHoleGetsNothingNewUntilItIsMended) {
  const std::string supplier = user("hole-sue", Role::Supplier, "hole-org"),
                    tenant = user("hole-tom", Role::Tenant, "hole-t");
  ASSERT_EQ(call("POST", "/api/v1/projects", R"({"name":"main"})", tenant).status, 200);
  const auto key = crypto::SigningKey::generate();
  wire::EnrollRequest enrol;
  enrol.token = call("POST", "/api/v1/join-tokens", "{}", supplier).body["secret"].text();
  enrol.csr_pem = *crypto::make_csr(key, "holey");
  enrol.name = "holey";
  NodeFacts& facts = enrol.facts;
  facts.hostname = "holey", facts.arch = "x86_64", facts.boot_id = "boot-1", facts.runtimes = {RuntimeKind::Docker};
  facts.capacity.cpu_milli = 16'000, facts.capacity.memory_bytes = 64LL << 30;
  const auto enrolled = call("POST", "/api/v1/enroll", wire::to_json(enrol), "");
  ASSERT_EQ(enrolled.status, 200) << enrolled.body.dump();
  const auto node = *NodeId::parse(enrolled.body["nodeId"].text());
  for (const char* part : {"linux", "docker", "containerd", "runc", "nvidia-driver"})
    facts.labels["version." + std::string(part)] = "none";
  facts.labels["version.nvidia-container-toolkit"] = "1.17.4";
  const auto shown = [&](const std::string& token) { return call("GET", "/api/v1/nodes/holey", "", token).body; };
  const auto with = [&](NodeFacts said) {
    return std::make_unique<FakeAgent>(endpoint(), node, enrolled.body["certificatePem"].text(), key, std::move(said),
                                       *unbase64(enrolled.body["commandKey"].text()));
  };
  auto agent = with(facts);
  ASSERT_TRUE(eventually([&] { return shown(supplier)["notHired"].text().starts_with("known holes: CVE-2025-23266"); }))
      << shown(supplier).dump(1);
  EXPECT_EQ(shown(supplier)["state"].text(), "online");
  EXPECT_TRUE(shown(supplier)["holes"].items().at(0)["blocks"].truth());
  EXPECT_EQ(shown(supplier)["holes"].items().at(0)["fixed"].text(), "1.17.8");
  EXPECT_EQ(shown(admin_)["holes"].items().at(0)["id"].text(), "CVE-2025-23266");
  EXPECT_FALSE(shown(supplier)["claimedLabels"].find("held-for-holes") != nullptr) << "no word of the machine's";

  wire::CreateClusterRequest request;
  request.spec.name = "hopeful", request.spec.image = "muster/ray:1";
  request.spec.head.resources.cpu_milli = 1000;
  EXPECT_FALSE(call("POST", "/api/v1/plan", wire::to_json(request), tenant).body["startsNow"].truth())
      << "nothing is placed on it";
  // Silence heals nothing, and a machine's own word neither.
  agent.reset();
  NodeFacts silent = facts;
  silent.labels = {{"held-for-holes", ""}, {"marker", "2"}};
  agent = with(silent);
  ASSERT_TRUE(eventually([&] { return shown(supplier)["claimedLabels"]["marker"].text() == "2"; }));
  EXPECT_TRUE(shown(supplier)["notHired"].text().starts_with("known holes: CVE-2025-23266")) << shown(supplier).dump(1);

  // The operator grants an exception, takes it back, brings a table of his own.
  const auto put = [](const std::string& path, const std::string& text) { std::ofstream(path) << text; };
  const DataDir dir = app_->context().dir;
  put(dir.hole_policy(), R"({"exceptions":[{"id":"CVE-2025-23266","node":")" + node.str() +
                             R"(","owner":"ann","until":"2999-01-01"},{"id":"CVE-2025-23267","owner":"ann",)"
                             R"("until":"2999-01-01"},{"id":"CVE-2026-24260","owner":"ann","until":"2999-01-01"}]})");
  app_->judge_hosts();
  EXPECT_TRUE(eventually([&] { return shown(supplier)["notHired"].text().find("known holes") == std::string::npos; }))
      << shown(supplier).dump(1);
  EXPECT_EQ(shown(supplier)["holes"].items().at(0)["state"].text(), "excepted");
  put(dir.hole_policy(), "{\"exeptions\":[]}");
  EXPECT_FALSE(app_->context().hosts->refresh().ok()) << "a faulty file is no policy";
  EXPECT_EQ(shown(supplier)["notHired"].text().find("known holes"), std::string::npos) << "what was in force stays";
  ASSERT_EQ(::unlink(dir.hole_policy().c_str()), 0);
  app_->judge_hosts();
  EXPECT_TRUE(eventually([&] { return shown(supplier)["notHired"].text().starts_with("known holes"); }));
  put(dir.known_holes(), R"({"date":"2999-01-01","holes":[{"id":"CVE-2999-1","component":"nvidia-container-toolkit",)"
                         R"("action":"block","affected":[{"fixed":"1.17.5"}],"sources":["here"]}]})");
  app_->judge_hosts();
  EXPECT_TRUE(eventually([&] { return shown(supplier)["notHired"].text().starts_with("known holes: CVE-2999-1 in"); }));
  // Mended: judged anew by the report alone.
  agent.reset();
  facts.labels["version.nvidia-container-toolkit"] = "1.17.5";
  agent = with(facts);
  EXPECT_TRUE(eventually([&] { return shown(supplier)["notHired"].text().find("known holes") == std::string::npos; }))
      << shown(supplier).dump(1);
  ASSERT_EQ(::unlink(dir.known_holes().c_str()), 0);
  app_->judge_hosts();
  EXPECT_TRUE(eventually([&] { return shown(supplier)["notHired"].text().starts_with("known holes"); }))
      << "by the table that came with it";
  agent.reset();
  EXPECT_EQ(call("POST", "/api/v1/nodes/holey/action", R"({"action":"revoke"})", supplier).status, 200);
}

TEST_F(Platform, AMachineEnrolsAndAClusterRunsOnIt) {
  const std::string supplier = user("sue", Role::Supplier, "sue-org");
  const std::string tenant = user("tom", Role::Tenant, "tom-org");
  ASSERT_EQ(call("POST", "/api/v1/projects", R"({"name":"main"})", tenant).status, 200);
  const auto join = call("POST", "/api/v1/join-tokens", "{}", supplier);
  ASSERT_EQ(join.status, 200) << join.body.dump();

  const auto key = crypto::SigningKey::generate();
  wire::EnrollRequest enrol;
  enrol.token = join.body["secret"].text();
  enrol.csr_pem = *crypto::make_csr(key, "box");
  enrol.name = "box";
  NodeFacts& facts = enrol.facts;
  facts.hostname = "box";
  facts.arch = "x86_64";
  facts.boot_id = "boot-1";
  facts.capacity.cpu_milli = 16'000;
  facts.capacity.memory_bytes = 64LL << 30;
  facts.capacity.disk_bytes = 500LL << 30;
  facts.capacity.object_store_bytes = 16LL << 30;
  facts.runtimes = {RuntimeKind::Docker};
  const auto enrolled = call("POST", "/api/v1/enroll", wire::to_json(enrol), "");
  ASSERT_EQ(enrolled.status, 200) << enrolled.body.dump();
  EXPECT_EQ(call("POST", "/api/v1/enroll", wire::to_json(enrol), "").body["nodeId"].text(),
            enrolled.body["nodeId"].text())
      << "whose answer was lost asks again with the same key";
  wire::EnrollRequest other = enrol;
  other.csr_pem = *crypto::make_csr(crypto::SigningKey::generate(), "box");
  EXPECT_EQ(call("POST", "/api/v1/enroll", wire::to_json(other), "").status, 401) << "a join token works once";
  const auto node = NodeId::parse(enrolled.body["nodeId"].text());
  ASSERT_TRUE(node.has_value());
  FakeAgent agent(endpoint(), *node, enrolled.body["certificatePem"].text(), key, facts,
                  *unbase64(enrolled.body["commandKey"].text()));
  EXPECT_TRUE(eventually([&] {
    return call("GET", "/api/v1/nodes/box", "", supplier).body["state"].text() == "online";
  })) << agent.seen().closed
      << agent.seen().refused.message;

  wire::CreateClusterRequest request;
  request.spec.name = "demo";
  request.spec.image = "muster/ray:1";
  request.spec.head.resources.cpu_milli = 1000;
  request.spec.head.resources.memory_bytes = 2LL << 30;
  wire::CreateClusterRequest nameless = request;
  nameless.spec.env["MUSTER_IDENTITY_AUDIENCE"] = "has a blank";
  EXPECT_EQ(call("POST", "/api/v1/plan", wire::to_json(nameless), tenant).status, 400);
  request.spec.env["MUSTER_IDENTITY_AUDIENCE"] = "vault.example.org";
  auto plan = call("POST", "/api/v1/plan", wire::to_json(request), tenant);
  ASSERT_EQ(plan.status, 200) << plan.body.dump();
  EXPECT_TRUE(plan.body["startsNow"].truth()) << plan.body.dump();
  ASSERT_EQ(plan.body["places"].items().size(), 1U);
  EXPECT_EQ(plan.body["places"].items().front()["role"].text(), "head");
  wire::CreateClusterRequest larger = request;
  larger.spec.head.resources.cpu_milli = 99'000;
  plan = call("POST", "/api/v1/plan", wire::to_json(larger), tenant);
  EXPECT_FALSE(plan.body["startsNow"].truth());
  EXPECT_EQ(plan.body["queue"]["position"].integer(), 1) << plan.body.dump();
  EXPECT_FALSE(plan.body["queue"]["reason"].text().empty());
  EXPECT_EQ(call("POST", "/api/v1/plan", wire::to_json(request), supplier).status, 403);
  EXPECT_TRUE(call("GET", "/api/v1/clusters", "", tenant).body["items"].items().empty()) << "nothing was made";

  // Its owner asks a price: who may pay less waits and hears of it, and the owner of him.
  const auto offer = [&](const std::string& body, const std::string& token) {
    return call("PUT", "/api/v1/nodes/box/offer", body, token);
  };
  const std::string dear =
      R"({"offer":{"currency":"EUR","priceMicros":"1350000","tenants":["tom-org"],"hours":"Mon-Sun 00:00-23:59",)"
      R"("timezone":"Europe/Berlin","maxLeaseSeconds":"86400"}})";
  EXPECT_EQ(offer(dear, tenant).status, 404) << "another organisation's machine";
  EXPECT_EQ(offer(dear, admin_).status, 403) << "an operator states no price for others";
  EXPECT_EQ(offer(R"({"offer":{"tenants":["nobody-there"]}})", supplier).body["field"].text(), "offer.tenants[0]");
  EXPECT_EQ(offer(R"({"offer":{"hours":"Mon-Sun 00:00-23:59"}})", supplier).body["field"].text(), "offer.timezone");
  EXPECT_EQ(offer(R"({"offer":{"hours":"Sat, Sun","timezone":"Mars/Base"}})", supplier).body["field"].text(),
            "offer.timezone");
  const auto stated = offer(dear, supplier);
  ASSERT_EQ(stated.status, 200) << stated.body.dump();
  EXPECT_EQ(stated.body["offer"]["tenants"].items().at(0).text(), "tom-org");
  EXPECT_FALSE((stated.body["offer"]["openUntil"].text() + stated.body["offer"]["opensAt"].text()).empty());
  wire::CreateClusterRequest frugal = request;
  frugal.spec.max_price = 1'200'000, frugal.spec.currency = "EUR", frugal.spec.may_end_early = true;
  frugal.spec.name = "frugal";
  plan = call("POST", "/api/v1/plan", wire::to_json(frugal), tenant);
  EXPECT_EQ(plan.body["queue"]["reasonCode"].text(), "price") << plan.body.dump();
  EXPECT_NE(plan.body["queue"]["reason"].text().find("asks 1.35"), std::string::npos) << plan.body.dump();
  ASSERT_EQ(call("POST", "/api/v1/clusters", wire::to_json(frugal), tenant).status, 200);
  EXPECT_TRUE(eventually([&] {
    return call("GET", "/api/v1/nodes/box/refusals", "", supplier).body["refused"]["price"].integer() == 1;
  })) << call("GET", "/api/v1/nodes/box/refusals", "", supplier).body.dump();
  EXPECT_EQ(call("GET", "/api/v1/nodes/box/refusals", "", tenant).status, 404);
  EXPECT_EQ(call("DELETE", "/api/v1/clusters/frugal", "", tenant).status, 200);
  ASSERT_EQ(offer(R"({"offer":{"currency":"EUR","priceMicros":"1200000"}})", supplier).status, 200);
  plan = call("POST", "/api/v1/plan", wire::to_json(frugal), tenant);
  EXPECT_TRUE(plan.body["startsNow"].truth()) << plan.body.dump();
  EXPECT_EQ(plan.body["places"].items().at(0)["priceMicros"].integer(), 1'200'000) << plan.body.dump();
  const auto made = call("POST", "/api/v1/clusters", wire::to_json(request), tenant);
  ASSERT_EQ(made.status, 200) << made.body.dump();
  EXPECT_EQ(call("GET", "/api/v1/clusters/" + made.body["id"].text(), "", supplier).status, 404)
      << "a foreign cluster looks missing";
  EXPECT_TRUE(
      eventually([&] { return call("GET", "/api/v1/clusters/demo", "", tenant).body["state"].text() == "running"; },
                 Millis(30'000)))
      << call("GET", "/api/v1/clusters/demo", "", tenant).body.dump(1);
  const auto paid = call("GET", "/api/v1/clusters/demo", "", tenant);
  EXPECT_EQ(paid.body["perHour"].items().at(0)["micros"].integer(), 1'200'000) << paid.body.dump(1);
  EXPECT_EQ(paid.body["slots"].items().at(0)["currency"].text(), "EUR");
  EXPECT_EQ(call("GET", "/api/v1/nodes/box", "", supplier).body["leases"].items().at(0)["priceMicros"].integer(),
            1'200'000);
  EXPECT_EQ(offer("{}", supplier).status, 200) << "from now on for nothing again";
  EXPECT_EQ(call("GET", "/api/v1/clusters/demo", "", tenant).body["perHour"].items().size(), 1U)
      << "what runs keeps its terms";
  // Its key is known to the control plane, so the next Desired brings the roster and a relay token.
  EXPECT_TRUE(eventually([&] {
    const auto now = agent.seen();
    return now.desired.secrets.size() == 1 && !now.desired.secrets[0].relay_token.empty();
  }));
  const auto seen = agent.seen();
  EXPECT_TRUE(seen.genuine) << "every Desired is signed by the controller";
  ASSERT_EQ(seen.desired.secrets.size(), 1u);
  EXPECT_EQ(seen.desired.secrets[0].ray_token.size(), 64u);
  EXPECT_EQ(seen.desired.secrets[0].psk.size(), 32u);
  EXPECT_FALSE(seen.desired.secrets[0].relay_token.empty());
  ASSERT_EQ(seen.desired.rosters.size(), 1u);
  const auto keys = app_->context().keys.get();
  const auto* signer = crypto::signing_key(keys->statement, crypto::KeyKind::Roster, read_clocks().wall);
  ASSERT_NE(signer, nullptr);
  const auto roster =
      overlay::verify_roster(seen.desired.rosters[0].bytes, seen.desired.rosters[0].signatures, {signer->key});
  ASSERT_TRUE(roster.ok()) << roster.error().message;
  EXPECT_EQ(roster->roster.members.size(), 1u);
  EXPECT_EQ(roster->rejected, 0u);
  // The CA vouches for its machines, so that a member need not believe who only signs rosters.
  const auto verifier = crypto::MachineVerifier::create(app_->context().cas.get()->text).value();
  overlay::Roster proven = roster->roster;
  const Bytes& proofs = seen.desired.rosters[0].machines;
  EXPECT_EQ(overlay::drop_unproven(proven, {verifier.get(), proofs, read_clocks().wall}).value(), 0u);
  EXPECT_EQ(proofs.size(), crypto::kMachineProofBytes);
  // It says who it is to services outside, by a key that is published and goes on being so after another one signs.
  ASSERT_EQ(seen.desired.secrets[0].identities.size(), 1u);
  EXPECT_EQ(seen.desired.secrets[0].identities[0].name, "identity");
  const auto kid_of = [](const std::string& jwt) {
    const auto header = wire::parse_json(as_string(unbase64url(jwt.substr(0, jwt.find('.'))).value_or(Bytes())));
    return header.ok() ? (*header)["kid"].text() : std::string();
  };
  const auto published = [&] { return call("GET", "/.well-known/jwks.json", "", "").body.dump(); };
  const std::string identity = as_string(seen.desired.secrets[0].identities[0].token);
  const std::string payload =
      as_string(unbase64url(identity.substr(identity.find('.') + 1, identity.rfind('.') - identity.find('.') - 1))
                    .value_or(Bytes()));
  EXPECT_NE(payload.find(R"("sub":"org:tom-org:project:main:cluster:demo")"), std::string::npos) << payload;
  EXPECT_NE(payload.find(R"("aud":"vault.example.org")"), std::string::npos) << payload;
  const auto discovery = call("GET", "/.well-known/openid-configuration", "", "").body;
  EXPECT_EQ(discovery["jwks_uri"].text(), discovery["issuer"].text() + "/.well-known/jwks.json");
  EXPECT_NE(payload.find("\"iss\":\"" + discovery["issuer"].text() + "\""), std::string::npos) << payload;
  const std::string kid = kid_of(identity);
  ASSERT_FALSE(kid.empty());
  EXPECT_NE(published().find(kid), std::string::npos) << published();
  ASSERT_TRUE(rotate_short_key(app_->context().dir, ShortKey::Workload, false, read_clocks().wall).ok());
  ASSERT_TRUE(app_->renew_certificate().ok());
  EXPECT_NE(published().find(kid), std::string::npos) << "its tokens live on: " << published();
  EXPECT_EQ(call("GET", "/.well-known/jwks.json", "", "").body["keys"].items().size(), 2U);
  ASSERT_TRUE(rotate_short_key(app_->context().dir, ShortKey::Workload, true, read_clocks().wall).ok());
  ASSERT_TRUE(app_->renew_certificate().ok());
  EXPECT_EQ(published().find(kid), std::string::npos) << "compromised: " << published();

  // A relay token lasts hours, and is renewed long before its end.
  const auto token =
      overlay::verify_relay_token(app_->context().identity.relay_key, seen.desired.secrets[0].relay_token,
                                  app_->context().identity.relay_id(), read_clocks().wall);
  ASSERT_TRUE(token.ok()) << token.error().message;
  EXPECT_LE(token->not_after, read_clocks().wall + Millis(6LL * 3'600'000));
  EXPECT_GE(token->not_after, read_clocks().wall + 2 * kOrdersRenewed);

  // The operator lists another relay while all of this runs: machines are told within seconds, with a token for it.
  const DataDir folder = app_->context().dir;
  const std::string& ours = app_->context().identity.server_id;
  ASSERT_TRUE(add_relay(folder, ours, parse_relay("relay-east.example.org:443", "east").value()).ok());
  const auto grants = [&] {
    const auto now = agent.seen();
    return now.desired.secrets.empty() ? std::vector<session::RelayGrant>() : now.desired.secrets[0].relays;
  };
  ASSERT_TRUE(eventually([&] { return !grants().empty() && grants().back().region == "east"; }));
  EXPECT_TRUE(agent.seen().genuine) << "older agents come to the same bytes";
  EXPECT_EQ(grants().back().address, "relay-east.example.org:443");
  const auto verified = [&](const std::string& relay) {
    return overlay::verify_relay_token(app_->context().identity.relay_key, grants().back().token, relay,
                                       read_clocks().wall);
  };
  ASSERT_TRUE(verified("relay-east.example.org:443").ok());
  EXPECT_EQ(verified("relay-east.example.org:443")->overlay_key, token->overlay_key);
  EXPECT_EQ(verified("another.example.org:443").error().code, Code::PermissionDenied) << "a token is for one relay";
  const auto listed = call("GET", "/api/v1/server", "", tenant).body["relays"].items();
  EXPECT_TRUE(std::any_of(listed.begin(), listed.end(),
                          [](const auto& each) { return each.text() == "relay-east.example.org:443"; }));

  // One on another machine (a real one), with a member that goes by it.
  FarRelay far(app_->context());
  ASSERT_TRUE(far.relay);
  ASSERT_TRUE(add_relay(folder, ours, parse_relay(far.address, "near").value()).ok());
  ASSERT_TRUE(eventually([&] { return !grants().empty() && grants().back().region == "near"; }));
  far.join(agent.seen().overlay, grants().back().token);
  EXPECT_TRUE(eventually([&] { return far.client->state() == relay::ClientState::Up; }));
  EXPECT_TRUE(eventually([&] {
    return far.relay->metrics().find("muster_relay_members_total 2\n") != std::string::npos;
  })) << "the member and the control plane";

  // A relay is told at once who left already, and then of everybody who leaves.
  Recalls recalls(root_ + "-handoff");
  RelayTeller teller(app_->context(), root_ + "-handoff");
  teller.start();
  ASSERT_TRUE(recalls.accept());
  auto told = recalls.next();
  ASSERT_TRUE(told.has_value());
  EXPECT_EQ(told->kind, net::RecallFrame::Kind::All);
  const auto member = std::pair(roster->roster.cluster, roster->roster.members[0].overlay_key);
  EXPECT_EQ(std::count(told->entries.begin(), told->entries.end(), member), 0) << "it is a member";

  const auto job =
      call("POST", "/api/v1/jobs", R"({"name":"hello","entrypoint":"python hi.py","cluster":"demo"})", tenant);
  ASSERT_EQ(job.status, 200) << job.body.dump();
  const auto id = JobId::parse(job.body["id"].text());
  ASSERT_TRUE(
      eventually([&] { return call("GET", "/api/v1/jobs/hello", "", tenant).body["state"].text() == "running"; }));
  agent.send(session::LogChunk{*id, 1, 0, to_bytes("hello, ")});
  agent.send(session::LogChunk{*id, 1, 7, to_bytes("world\n")});
  agent.send(session::LogChunk{*id, 1, 99, to_bytes("a gap")});
  EXPECT_TRUE(eventually([&] { return agent.seen().log_acked == 13; }));
  net::Client client(endpoint());
  const auto log = client.call(
      {"GET", "/api/v1/jobs/hello/logs?offset=7", {{"Authorization", "Bearer " + tenant}}, "", Millis(10'000)});
  ASSERT_TRUE(log.ok());
  EXPECT_EQ(log->body, "world\n");

  // How the members reach each other: the tenant learns the kind of the way, the operator also where it leads.
  enrol.token = call("POST", "/api/v1/join-tokens", "{}", supplier).body["secret"].text();
  const auto shed_key = crypto::SigningKey::generate();
  enrol.csr_pem = *crypto::make_csr(shed_key, "shed");
  enrol.name = facts.hostname = "shed";
  const auto shed_enrolled = call("POST", "/api/v1/enroll", wire::to_json(enrol), "");
  ASSERT_EQ(shed_enrolled.status, 200) << shed_enrolled.body.dump();
  FakeAgent shed(endpoint(), *NodeId::parse(shed_enrolled.body["nodeId"].text()),
                 shed_enrolled.body["certificatePem"].text(), shed_key, facts,
                 *unbase64(shed_enrolled.body["commandKey"].text()));
  request.spec.name = "pair";
  WorkerGroup group;
  group.name = "w";
  group.min = group.max = 1;
  group.request = request.spec.head;
  request.spec.groups = {group};
  ASSERT_EQ(call("POST", "/api/v1/clusters", wire::to_json(request), tenant).status, 200);
  const auto held_by = [&](FakeAgent& machine, SlotRole role) {
    for (const auto& each : machine.seen().desired.assignments)
      if (each.cluster_name == "pair" && each.role == role) return std::optional(each);
    return std::optional<Assignment>();
  };
  const auto lease_of = [&](SlotRole role) {
    const auto in_box = held_by(agent, role);
    return in_box ? in_box : held_by(shed, role);
  };
  const auto tell = [&](SlotRole role, const session::NetReport& report) {
    (held_by(agent, role) ? agent : shed).send(report);
  };
  ASSERT_TRUE(eventually([&] { return lease_of(SlotRole::Head) && lease_of(SlotRole::Worker); }))
      << call("GET", "/api/v1/clusters/pair", "", tenant).body.dump(1);
  session::NetReport net;
  net.lease = lease_of(SlotRole::Head)->lease;
  net.relay_up = true;
  net.udp_port = 4500;
  net.seen = {{0xcb007109, 61'000}, {0, 4500, {0x26, 0, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7}}};
  session::NetPair pair;
  pair.address = lease_of(SlotRole::Worker)->address;
  pair.path = session::NetPath::Direct;
  pair.at = {0xcb007108, 4501};
  pair.rtt_us = 12'300;
  pair.asked = 32;
  pair.lost = 8;
  pair.carries_bytes_s = 1'250'000;
  pair.carries_age_ms = 4'200;
  pair.mtu = 1200;
  pair.tries = {{pair.at, session::NetOrigin::Told, 9, 7, true, 12'300}};
  pair.relay = 2;
  pair.relays = {{1, 9, 0, 0}, {2, 9, 9, 41'000}, {99, 1, 1, 1}};
  net.relays = {{"relay-a:443", "east", false, 0, 0}, {"relay-b:443", "w\x1b[1mest", true, 9'000, 8'000}};
  session::NetPair stranger = pair;
  stranger.address = 1;
  net.pairs = {pair, stranger};
  net.large_udp = session::NetLarge::Lost;
  net.large_tun = session::NetLarge::Used;
  tell(SlotRole::Head, net);
  session::NetReport foreign = net, newer = net;
  foreign.lease = {999'999};
  tell(SlotRole::Head, foreign);
  newer.version = session::kNetReportVersion + 1;
  newer.pairs.clear();
  tell(SlotRole::Head, newer);
  net.lease = lease_of(SlotRole::Worker)->lease;
  net.seen.clear();
  net.pairs = {pair};
  net.pairs[0].address = lease_of(SlotRole::Head)->address;
  net.pairs[0].path = session::NetPath::Relay;
  net.large_udp = net.large_tun = session::NetLarge::None;  // an older agent
  tell(SlotRole::Worker, net);
  const session::NetReport before_udp = net;
  const auto pairs_seen = [&](const std::string& token) {
    return call("GET", "/api/v1/clusters/pair/net", "", token).body;
  };
  EXPECT_TRUE(eventually([&] { return pairs_seen(tenant)["pairs"].items().size() == 2; }))
      << pairs_seen(tenant).dump(1);
  const auto for_tenant = pairs_seen(tenant), for_operator = pairs_seen(admin_);
  EXPECT_TRUE(wire::check_json("ClusterNet", for_tenant).ok());
  ASSERT_EQ(for_tenant["members"].items().size(), 2U);
  EXPECT_EQ(for_tenant["members"].items()[0]["udp"].text(), "changed");
  EXPECT_EQ(for_tenant["members"].items()[1]["udp"].text(), "blocked");
  const auto first = for_tenant["pairs"].items()[0];
  EXPECT_EQ(first["path"].text(), "direct");
  EXPECT_DOUBLE_EQ(first["rttMs"].real(), 12.3);
  EXPECT_DOUBLE_EQ(first["loss"].real(), 0.25);
  EXPECT_EQ(first["carriesBytesS"].integer(), 1'250'000);
  EXPECT_EQ(first["carriesAgeSeconds"].integer(), 4);
  EXPECT_EQ(first["tries"].items().at(0)["outcome"].text(), "carries full packets");
  EXPECT_EQ(first["relay"].text(), "relay-b:443");
  ASSERT_EQ(first["relays"].items().size(), 2U) << "what is not in the machine's own list is not shown";
  EXPECT_DOUBLE_EQ(first["relays"].items()[1]["rttMs"].real(), 41.0);
  EXPECT_TRUE(first["relays"].items()[1]["inUse"].truth());
  ASSERT_EQ(for_tenant["members"].items()[0]["relays"].items().size(), 2U);
  EXPECT_DOUBLE_EQ(for_tenant["members"].items()[0]["relays"].items()[1]["udpRttMs"].real(), 8.0);
  EXPECT_EQ(for_tenant.dump().find("\\u001b"), std::string::npos) << "machines may name anything";
  EXPECT_EQ(for_tenant["pairs"].items()[1]["why"].text(),
            "no UDP reaches this machine: the relay's UDP port does not answer it");
  EXPECT_EQ(for_tenant.dump().find("203.0.113."), std::string::npos)
      << "where a supplier is stays hidden: " << for_tenant.dump(1);
  EXPECT_EQ(for_operator["pairs"].items()[0]["address"].text(), "203.0.113.8:4501");
  EXPECT_EQ(for_operator["members"].items()[0]["seenAs"].items().at(0).text(), "203.0.113.9:61000");
  EXPECT_EQ(for_operator["members"].items()[0]["seenAs"].items().at(1).text(), "[2600:1700::7]:4500");
  EXPECT_EQ(for_tenant.dump().find("2600:"), std::string::npos);
  EXPECT_NE(first["why"].text().find("packets of 1200 bytes"), std::string::npos) << first["why"].text();
  EXPECT_NE(first["why"].text().find("; large datagrams are off, since they got lost where single ones did not"),
            std::string::npos)
      << first["why"].text();
  EXPECT_EQ(first["why"].text().find("its container"), std::string::npos) << "those are used, as usual";
  EXPECT_EQ(call("GET", "/api/v1/clusters/pair/net", "", supplier).status, 404);
  // The same by the relay over UDP, and over TLS though its UDP port is there.
  net.seen = {{0xcb007107, 4500}};
  tell(SlotRole::Worker, net);
  const auto why_of_worker = [&] { return pairs_seen(tenant)["pairs"].items()[1]["why"].text(); };
  EXPECT_TRUE(eventually([&] { return why_of_worker().find("; over TLS, since full packets") != std::string::npos; }))
      << why_of_worker();
  net.pairs[0].relay_udp = net.relays[1].by_udp = true;
  tell(SlotRole::Worker, net);
  EXPECT_TRUE(eventually([&] { return pairs_seen(tenant)["pairs"].items()[1]["path"].text() == "relay-udp"; }));
  EXPECT_NE(why_of_worker().find("; the relay's UDP port takes full packets"), std::string::npos) << why_of_worker();
  EXPECT_TRUE(pairs_seen(tenant)["members"].items()[1]["relays"].items()[1]["byUdp"].truth());
  EXPECT_NE(client.call({"GET", "/metrics", {{"Authorization", "Bearer " + admin_}}, "", Millis(10'000)})
                ->body.find("muster_net_pairs{path=\"relay-udp\"} 1\n"),
            std::string::npos);
  net = before_udp;
  // The planner learns of it too; a way by the relay counts once no other was found for a minute.
  const auto planner_knows = [&] {
    std::vector<scheduler::PathSeen> out;
    app_->context().runner->read([&](const control::State&, const scheduler::Scheduler& planner) {
      for (const scheduler::Change& change : planner.snapshot())
        if (const auto* paths = std::get_if<scheduler::PathsChanged>(&change)) out = paths->paths;
    });
    return out;
  };
  EXPECT_TRUE(eventually([&] { return planner_knows().size() == 2; }));  // each way round
  for (const scheduler::PathSeen& path : planner_knows()) {
    EXPECT_EQ(path.kind, scheduler::PathKind::Direct);
    EXPECT_EQ(path.rtt_us, 12'300);
  }
  net.pairs[0].age_ms = 61'000;
  tell(SlotRole::Worker, net);
  EXPECT_TRUE(eventually([&] { return planner_knows().at(0).kind == scheduler::PathKind::Relay; }));
  const auto known = planner_knows();
  EXPECT_EQ(std::max(known.at(0).kbps, known.at(1).kbps), 10'000);
  const auto metrics = client.call({"GET", "/metrics", {{"Authorization", "Bearer " + admin_}}, "", Millis(10'000)});
  EXPECT_NE(metrics->body.find("muster_net_pairs{path=\"direct\"} 2\n"), std::string::npos) << metrics->body;
  EXPECT_NE(metrics->body.find("muster_relay_members{relay=\"relay-east.example.org:443\",region=\"east\"} 0\n"),
            std::string::npos)
      << metrics->body;
  EXPECT_EQ(metrics->body.find("relay-b:443"), std::string::npos) << "only relays of the operator's list";
  // Full again and again for a minute, and never what the cluster asks for.
  const auto pair_cluster = [&] { return call("GET", "/api/v1/clusters/pair", "", tenant).body; };
  EXPECT_EQ(pair_cluster()["slowPairs"].items().size(), 0U);
  request.spec.pair_kbps = 100'000;
  const auto asks =
      call("PUT", "/api/v1/clusters/pair", wire::to_json(wire::UpdateClusterRequest{"", request.spec, 0}), tenant);
  ASSERT_EQ(asks.status, 200) << asks.body.dump(1);
  net.pairs[0].path = session::NetPath::Direct;
  for (const std::uint64_t age : {66'000, 44'000, 22'000, 0}) {
    net.pairs[0].carries_bytes_s = 1'250'000 + age, net.pairs[0].carries_age_ms = age;
    tell(SlotRole::Worker, net);
  }
  EXPECT_TRUE(eventually([&] { return pair_cluster()["slowPairs"].items().size() == 1; })) << pair_cluster().dump(1);
  EXPECT_TRUE(wire::check_json("Cluster", pair_cluster()).ok());
  EXPECT_EQ(pair_cluster()["slowPairs"].items().at(0)["kbps"].integer(), 10'352) << "the middle one";
  EXPECT_EQ(pair_cluster()["replacing"].text(), "") << "it does not ask for that";
  const auto slow_seen = pairs_seen(tenant);
  EXPECT_EQ(slow_seen["pairKbps"].integer(), 100'000);
  int slow_ways = 0;
  for (const auto& each : slow_seen["pairs"].items()) slow_ways += each["slow"].truth() ? 1 : 0;
  EXPECT_EQ(slow_ways, 1) << slow_seen.dump(1);
  EXPECT_NE(client.call({"GET", "/metrics", {{"Authorization", "Bearer " + admin_}}, "", Millis(10'000)})
                ->body.find("muster_net_pairs_slow 1\n"),
            std::string::npos);
  const auto degraded = call("GET", "/api/v1/audit?filter=verb=degrade", "", tenant).body["items"].items();
  EXPECT_EQ(degraded.size(), 1U);
  request.spec.pair_kbps = 0;
  // It outlasts the cluster and the server: what is written is what is told to the planner at the next start.
  const auto ways = call("GET", "/api/v1/nodes/box/ways", "", supplier);
  ASSERT_EQ(ways.status, 200) << ways.body.dump();
  EXPECT_TRUE(wire::check_json("NodeWays", ways.body).ok());
  ASSERT_EQ(ways.body["ways"].items().size(), 1U) << ways.body.dump(1);
  EXPECT_EQ(ways.body["ways"].items()[0]["nodeName"].text(), "shed");
  EXPECT_GT(ways.body["ways"].items()[0]["confidence"].real(), 0.3);
  EXPECT_EQ(call("GET", "/api/v1/nodes/box/ways", "", tenant).status, 404);
  ASSERT_TRUE(app_->context().ways->save(read_clocks().wall).ok());
  WayMemory again(app_->context().store);
  ASSERT_TRUE(again.load(read_clocks().wall).ok());
  EXPECT_EQ(again.known(read_clocks().wall).paths, app_->context().ways->known(read_clocks().wall).paths);
  EXPECT_EQ(again.known(read_clocks().wall).paths.size(), 2U);
  // By round trips to each other and to the relays it is worked out where they lie, and the planner is told.
  const auto book = app_->context().relays->relays();
  ASSERT_EQ(book->size(), 2U);
  for (int i = 0; i < 30; ++i)
    for (SlotRole role : {SlotRole::Head, SlotRole::Worker}) {
      session::Telemetry sample;
      sample.relays = {{(*book)[0].address, 20'000}, {(*book)[1].address, 30'000}, {"stranger:443", 1}};
      (held_by(agent, role) ? agent : shed).send(sample);
    }
  const auto place = [&](const std::string& query = "?to=shed") {
    return call("GET", "/api/v1/nodes/box/ways" + query, "", supplier).body;
  };
  EXPECT_TRUE(eventually([&] { return place()["foretoldRttMs"].real() > 0; })) << place().dump(1);
  EXPECT_TRUE(wire::check_json("NodeWays", place()).ok());
  EXPECT_EQ(place()["placeFrom"].integer(), 3) << "the other and two relays; of a stranger nothing is taken";
  EXPECT_LE(place()["placeError"].real(), session::Coordinates::kErrorMax);
  EXPECT_EQ(place("")["foretoldRttMs"].real(), 0);
  EXPECT_EQ(call("GET", "/api/v1/nodes/box/ways?to=nobody", "", supplier).status, 404);
  EXPECT_TRUE(eventually([&] {
    std::size_t told = 0;
    app_->context().runner->read([&](const control::State&, const scheduler::Scheduler& planner) {
      for (const scheduler::Change& change : planner.snapshot())
        if (const auto* at = std::get_if<scheduler::CoordinatesChanged>(&change)) told = at->places.size();
    });
    return told == 2;
  }));
  // What was carried is shown to the owner of the machine and to the owner of the cluster, to each what is his.
  const auto pair_id = ClusterId::parse(pair_cluster()["id"].text());
  control::Actor system;
  system.system = true;
  ASSERT_TRUE(
      app_->context()
          .runner->submit_wait(control::Lane::Liveness, control::CountCarried{{{*pair_id, *node, 4'096}}}, system)
          .ok());
  const auto carried = [&](const std::string& token, const std::string& filter = "") {
    return call("GET", "/api/v1/carried" + filter, "", token).body;
  };
  EXPECT_TRUE(wire::check_json("CarriedList", carried(tenant)).ok());
  ASSERT_EQ(carried(tenant)["items"].items().size(), 1U) << carried(tenant).dump(1);
  EXPECT_EQ(carried(tenant)["items"].items()[0]["bytes"].integer(), 4'096);
  EXPECT_EQ(carried(tenant)["items"].items()[0]["clusterName"].text(), "pair");
  ASSERT_EQ(carried(supplier)["items"].items().size(), 1U);
  EXPECT_EQ(carried(supplier)["items"].items()[0]["nodeName"].text(), "box");
  EXPECT_EQ(carried(supplier)["items"].items()[0]["clusterName"].text(), "") << "how tenants call theirs is theirs";
  EXPECT_EQ(carried(user("nora", Role::Tenant, "nora-org"))["items"].items().size(), 0U);
  EXPECT_EQ(carried(tenant, "?filter=node=box,since=2026-01-01")["items"].items().size(), 1U);
  EXPECT_EQ(carried(tenant, "?filter=node=other")["items"].items().size(), 0U);
  EXPECT_EQ(carried(tenant, "?filter=since=9000-01-01")["items"].items().size(), 0U);
  EXPECT_EQ(call("GET", "/api/v1/carried?filter=since=yesterday", "", tenant).status, 400);
  // What the head carried for the worker, as it says, and what the worker signs of it; a forged count is nothing.
  const auto key_of = [&](SlotRole role) -> const crypto::SigningKey& { return held_by(agent, role) ? key : shed_key; };
  const std::uint32_t head = lease_of(SlotRole::Head)->address, worker = lease_of(SlotRole::Worker)->address;
  session::NetReport carrying;
  carrying.lease = lease_of(SlotRole::Head)->lease;
  carrying.carries = true;
  carrying.forwarded = {{worker, head, 5'000}, {worker, 77, 9}};
  tell(SlotRole::Head, carrying);
  session::NetReport counts;
  counts.lease = lease_of(SlotRole::Worker)->lease;
  counts.counted_from = read_clocks().wall;
  counts.carried = {{head, head, 4'900, 100}};
  counts.counts_signature = session::sign_carried(key_of(SlotRole::Worker), counts);
  tell(SlotRole::Worker, counts);
  const auto signed_of = [&] {
    const auto members = pairs_seen(tenant)["members"].items();
    const auto forwarded = members.empty() ? std::vector<wire::Json>() : members[0]["forwarded"].items();
    return forwarded.size() == 1 ? forwarded[0]["signedFrom"].integer() : -1;
  };
  EXPECT_TRUE(eventually([&] { return signed_of() == 4'900; })) << pairs_seen(tenant).dump(1);
  EXPECT_TRUE(pairs_seen(tenant)["members"].items()[0]["carries"].truth());
  ++counts.carried[0].sent;
  tell(SlotRole::Worker, counts);
  EXPECT_TRUE(eventually([&] { return signed_of() == 0; })) << pairs_seen(tenant).dump(1);
  request.spec.groups.clear();
  EXPECT_EQ(call("DELETE", "/api/v1/clusters/pair", "", tenant).status, 200);
  EXPECT_EQ(call("POST", "/api/v1/nodes/shed/action", R"({"action":"disable"})", supplier).status, 200);

  // What a setup command said as it failed is for those who may read logs, and for nobody else.
  const std::string auditor = user("audrey", Role::Auditor, "audit-org");
  request.spec.name = "broken";
  const auto broken = call("POST", "/api/v1/clusters", wire::to_json(request), tenant);
  ASSERT_EQ(broken.status, 200) << broken.body.dump();
  const std::string broken_path = "/api/v1/clusters/" + broken.body["id"].text();
  EXPECT_TRUE(eventually([&] { return call("GET", broken_path, "", tenant).body["state"].text() == "failed"; }));
  const auto failed = call("GET", broken_path, "", tenant).body;
  EXPECT_EQ(failed["reason"].text(), "head_failed:setup.failed");
  ASSERT_EQ(failed["failures"].items().size(), 1U) << failed.dump(1);
  const auto failure = failed["failures"].items().front();
  EXPECT_EQ(failure["nodeName"].text(), "box");
  EXPECT_EQ(failure["output"].text(), "setup command 1 ended with exit code 7\nno such package\n");
  const auto looked = call("GET", broken_path, "", auditor);
  EXPECT_EQ(looked.body["state"].text(), "failed") << looked.body.dump();
  EXPECT_TRUE(looked.body["failures"].items().empty());

  // A stream ends with the connection that carried it, also when the machine has made another one meanwhile.
  std::mutex mutex;
  std::string last;
  net::WebSocketPtr user_end;
  const auto loop = net::Loop::create(1);
  loop->dial_websocket(endpoint(), "/api/v1/clusters/demo/exec?argv=hang", {{"Authorization", "Bearer " + tenant}},
                       [&](Result<net::WebSocketPtr> socket) {
                         const std::lock_guard lock(mutex);
                         if (!socket.ok()) return void(last = socket.error().message);
                         user_end = *socket;
                         user_end->start(
                             [&](const Bytes& message) {
                               const std::lock_guard inner(mutex);
                               last = as_string(message);
                             },
                             [](const std::string&) {});
                       });
  EXPECT_TRUE(eventually([&] { return agent.seen().hanging; }));
  FakeAgent second(endpoint(), *node, enrolled.body["certificatePem"].text(), key, facts,
                   *unbase64(enrolled.body["commandKey"].text()));
  EXPECT_TRUE(eventually([&] { return second.seen().welcomed; })) << second.seen().refused.message;
  EXPECT_TRUE(eventually([&] {
    const std::lock_guard lock(mutex);
    return last.find("the connection to the machine was lost") != std::string::npos;
  })) << last;
  loop->stop();
  user_end.reset();

  EXPECT_EQ(call("DELETE", "/api/v1/clusters/demo", "", tenant).status, 200);
  EXPECT_TRUE(eventually([&] {
    return call("GET", "/api/v1/clusters/" + made.body["id"].text(), "", tenant).body["state"].text() == "stopped";
  }));
  teller.on_events(std::vector<engine::DurableEvent>{
      engine::DurableEvent{0, {}, {}, control::ClusterStateChanged{ClusterId{member.first}}}});
  told = recalls.next();
  ASSERT_TRUE(told.has_value());
  EXPECT_EQ(told->kind, net::RecallFrame::Kind::More);
  EXPECT_EQ(std::count(told->entries.begin(), told->entries.end(), member), 1) << "it left";
  EXPECT_TRUE(eventually([&] { return far.client->state() == relay::ClientState::Refused; }, Millis(5000)))
      << "a relay on another machine hears it too";
  recalls.connection.reset();  // the relay restarts
  ASSERT_TRUE(recalls.accept());
  told = recalls.next();
  ASSERT_TRUE(told.has_value());
  EXPECT_EQ(told->kind, net::RecallFrame::Kind::All);
  EXPECT_EQ(std::count(told->entries.begin(), told->entries.end(), member), 1);
  teller.stop();
  EXPECT_EQ(
      client.call({"GET", "/api/v1/jobs/hello/logs", {{"Authorization", "Bearer " + tenant}}, "", Millis(10'000)})
          ->body,
      "hello, world\n");
  EXPECT_EQ(call("POST", "/api/v1/nodes/box/action", R"({"id":"other","action":"drain"})", supplier).status, 400);
  const std::string passer_by = user("stan", Role::Supplier, "strangers");
  const std::string box = call("GET", "/api/v1/nodes/box", "", supplier).body["id"].text();
  for (const std::string& id : {box, std::string("node-999")}) {
    EXPECT_EQ(call("POST", "/api/v1/nodes/" + id + "/action", R"({"id":"other","action":"drain"})", passer_by).status,
              404);
    EXPECT_EQ(call("PUT", "/api/v1/nodes/" + id + "/offer", R"({"id":"other","offer":{}})", passer_by).status, 404);
  }
  // The history holds jobs and clusters; each is shown as what it is.
  const std::string stopped = made.body["id"].text();
  EXPECT_EQ(call("GET", "/api/v1/clusters/" + stopped, "", tenant).status, 200);
  EXPECT_EQ(call("GET", "/api/v1/jobs/" + stopped, "", tenant).status, 404);
  EXPECT_EQ(call("GET", "/api/v1/jobs/" + stopped + "/logs", "", tenant).status, 404);
  EXPECT_EQ(call("POST", "/api/v1/nodes/box/action", R"({"id":"box","action":"drain"})", supplier).status, 200);
  EXPECT_EQ(call("POST", "/api/v1/nodes/box/action", R"({"action":"revoke"})", supplier).status, 200);
  EXPECT_TRUE(eventually([&] { return second.seen().refused.code == "revoked"; }, Millis(5000)))
      << "revocation takes effect at once";
}

TEST_F(Platform, AShareOfAGpuGoesFromTheApiToTheMachine) {
  const std::string supplier = user("sid", Role::Supplier, "sid-org");
  const std::string tenant = user("pat", Role::Tenant, "pat-org"), other = user("una", Role::Tenant, "una-org");
  for (const std::string& token : {tenant, other})
    ASSERT_EQ(call("POST", "/api/v1/projects", R"({"name":"main"})", token).status, 200);
  const auto key = crypto::SigningKey::generate();
  wire::EnrollRequest enrol;
  enrol.token = call("POST", "/api/v1/join-tokens", "{}", supplier).body["secret"].text();
  enrol.csr_pem = *crypto::make_csr(key, "parted");
  enrol.name = "parted";
  NodeFacts& facts = enrol.facts;
  facts.hostname = "parted", facts.arch = "x86_64", facts.boot_id = "boot-1";
  facts.capacity.cpu_milli = 16'000, facts.capacity.memory_bytes = 64LL << 30, facts.capacity.gpus = 1;
  facts.devices = {Device{"GPU-1", "A100", 40LL << 30, GpuSharing::Shared}};
  facts.runtimes = {RuntimeKind::Docker};
  const auto enrolled = call("POST", "/api/v1/enroll", wire::to_json(enrol), "");
  ASSERT_EQ(enrolled.status, 200) << enrolled.body.dump();
  FakeAgent agent(endpoint(), *NodeId::parse(enrolled.body["nodeId"].text()), enrolled.body["certificatePem"].text(),
                  key, facts, *unbase64(enrolled.body["commandKey"].text()));
  ASSERT_TRUE(
      eventually([&] { return call("GET", "/api/v1/nodes/parted", "", supplier).body["state"].text() == "online"; }));

  const std::string body = R"({"spec":{"name":"half","image":"muster/ray:1","head":{"gpuShare":0.5,)"
                           R"("resources":{"cpus":1,"memoryBytes":"2147483648"}}}})";
  const auto plan = call("POST", "/api/v1/plan", body, tenant);
  ASSERT_TRUE(plan.body["startsNow"].truth()) << plan.body.dump();
  EXPECT_EQ(plan.body["places"].items().at(0)["gpuShare"].real(), 0.5);
  EXPECT_EQ(plan.body["places"].items().at(0)["gpuModel"].text(), "A100");
  ASSERT_EQ(call("POST", "/api/v1/clusters", body, tenant).status, 200);
  ASSERT_TRUE(
      eventually([&] { return call("GET", "/api/v1/clusters/half", "", tenant).body["state"].text() == "running"; },
                 Millis(30'000)))
      << call("GET", "/api/v1/clusters/half", "", tenant).body.dump(1);
  EXPECT_EQ(call("GET", "/api/v1/clusters/half", "", tenant).body["slots"].items().at(0)["gpuShare"].real(), 0.5);
  const auto order = agent.seen().desired.assignments.at(0);
  EXPECT_EQ(order.gpu_share_milli, 500);
  EXPECT_EQ(order.devices, std::vector<std::string>{"GPU-1"});
  EXPECT_EQ(order.resources.gpus, 1);
  const auto shown = call("GET", "/api/v1/nodes/parted", "", supplier).body["devices"].items().at(0);
  EXPECT_EQ(shown["sharing"].text(), "shared");
  EXPECT_EQ(shown["free"].real(), 0.5);
  const auto foreign = call("POST", "/api/v1/plan", body, other);
  EXPECT_FALSE(foreign.body["startsNow"].truth()) << "another organisation has a share of it";
  EXPECT_NE(foreign.body["queue"]["reason"].text().find("0.5 of a GPU"), std::string::npos) << foreign.body.dump();
  EXPECT_EQ(call("POST", "/api/v1/nodes/parted/action", R"({"action":"revoke"})", supplier).status, 200);
}

}  // namespace
}  // namespace muster::server
