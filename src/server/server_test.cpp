// The server in one process on loopback: real TLS, REST, WebSocket and engine; the agent is played by the test.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <thread>

#include "crypto/cert.h"
#include "crypto/random.h"
#include "crypto/x25519.h"
#include "overlay/roster.h"
#include "server/api.h"
#include "server/app.h"
#include "server/commands.h"
#include "server/desired.h"
#include "server/test_store.h"
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
    const OpenStore open = [](const std::string&) -> Result<std::shared_ptr<journal::Store>> {
      return std::shared_ptr<journal::Store>(store_);
    };
    ASSERT_EQ(cmd_init(arguments, open), 0);
    App::Options options;
    options.dir.root = root_;
    options.store = store_;
    options.threads = 2;
    auto app = App::start(options);
    ASSERT_TRUE(app.ok()) << app.error().message;
    app_ = std::move(*app);
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
    out.ca_pem = app_->context().identity.ca.cert_pem;
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
    return call("POST", "/api/v1/login", wire::to_json(wire::LoginRequest{name, password, "test"}), "")
        .body["token"]
        .text();
  }
  static std::string user(const std::string& name, Role role, const std::string& org) {
    EXPECT_EQ(call("POST", "/api/v1/orgs", "{\"name\":\"" + org + "\"}").status / 100 * 100, 200);
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
  static inline std::shared_ptr<TestStore> store_;
  static inline std::unique_ptr<App> app_;
};

// A machine that obeys: whatever is desired is observed as ready.
class FakeAgent {
 public:
  FakeAgent(net::Endpoint endpoint, NodeId node, std::string certificate, crypto::SigningKey key, NodeFacts facts,
            Bytes command_key)
      : node_(node),
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
    session::Desired desired;
    std::uint64_t log_acked = 0;
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
    } else if (const auto* desired = std::get_if<session::Desired>(&*frame)) {
      obey(*desired);
    }
  }
  void obey(const session::Desired& desired) {
    {
      const std::lock_guard lock(mutex_);
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
      lease.overlay_key.assign(pair.public_key.begin(), pair.public_key.end());
      lease.overlay_signature = overlay::sign_overlay_key(
          key_, assignment.cluster.value,
          {assignment.epoch.incarnation, assignment.epoch.leader, assignment.epoch.counter}, pair.public_key);
      lease.probe = {"sha256:ab", "2.55.0", "3.11.2", true, true};
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

TEST_F(Platform, EveryOperationHasAHandlerAndARule) {
  for (const auto& operation : wire::operations()) {
    EXPECT_TRUE(app_->api().has_route(operation.name)) << operation.name;
    if (operation.name == "GetServer" || operation.name == "Login" || operation.name == "Enroll" ||
        !operation.streams.empty())
      continue;
    std::string path = operation.path;
    if (const auto open = path.find('{'); open != std::string::npos)
      path.replace(open, path.find('}') - open + 1, "x-1");
    EXPECT_EQ(call(operation.method, path, operation.method == "GET" ? "" : "{}", "").status, 401)
        << operation.name << ": without a token everything is closed";
  }
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
  const OpenStore open = [](const std::string&) -> Result<std::shared_ptr<journal::Store>> {
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
  EXPECT_NEAR(days("ca"), 3650, 0.1);
  EXPECT_TRUE(app_->renew_certificate().ok());
}

TEST_F(Platform, ALoginFloodFromOneAddressShutsNobodyElseOut) {
  Api api(app_->context());  // with counters of its own
  const auto login_from = [&](const std::string& peer, const std::string& name, const std::string& password) {
    net::Request request;
    request.method = "POST", request.path = "/api/v1/login", request.peer = peer;
    request.body = wire::to_json(wire::LoginRequest{name, password, "flood"});
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
  EXPECT_EQ(call("PUT", of_project, R"({"cpus":1})", tenant).status, 200);
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
  std::atomic<bool> ended = false, told = false;
  std::thread reader([&] {
    net::Client client(endpoint());
    const auto response = client.stream(
        {"GET", "/api/v1/events", {{"Authorization", "Bearer " + secret}, {"Last-Event-ID", "0"}}, "", Millis(30'000)},
        [&](std::string_view chunk) {
          if (chunk.find("event: org.created") != std::string_view::npos) told = true;
          return true;
        });
    static_cast<void>(response.ok());
    ended = true;
  });
  EXPECT_TRUE(eventually([&] { return told.load(); }));
  EXPECT_FALSE(ended);
  EXPECT_EQ(call("DELETE", "/api/v1/tokens/" + made.body["id"].text()).status, 200);
  EXPECT_TRUE(eventually([&] { return ended.load(); }, Millis(5000)));
  reader.join();
  EXPECT_EQ(call("GET", "/api/v1/whoami", "", secret).status, 401);
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
    return *crypto::issue_device_certificate(app_->context().identity.ca, of.public_key(), node.str(),
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
  const auto made = call("POST", "/api/v1/clusters", wire::to_json(request), tenant);
  ASSERT_EQ(made.status, 200) << made.body.dump();
  EXPECT_EQ(call("GET", "/api/v1/clusters/" + made.body["id"].text(), "", supplier).status, 404)
      << "a foreign cluster looks missing";
  EXPECT_TRUE(
      eventually([&] { return call("GET", "/api/v1/clusters/demo", "", tenant).body["state"].text() == "running"; },
                 Millis(30'000)))
      << call("GET", "/api/v1/clusters/demo", "", tenant).body.dump(1);
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
  const auto roster = overlay::verify_roster(seen.desired.rosters[0].bytes, seen.desired.rosters[0].signatures,
                                             {app_->context().identity.roster_key.public_key()});
  ASSERT_TRUE(roster.ok()) << roster.error().message;
  EXPECT_EQ(roster->roster.members.size(), 1u);
  EXPECT_EQ(roster->rejected, 0u);

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
  EXPECT_EQ(
      client.call({"GET", "/api/v1/jobs/hello/logs", {{"Authorization", "Bearer " + tenant}}, "", Millis(10'000)})
          ->body,
      "hello, world\n");
  EXPECT_EQ(call("POST", "/api/v1/nodes/box/action", R"({"id":"other","action":"drain"})", supplier).status, 400);
  EXPECT_EQ(call("POST", "/api/v1/nodes/box/action", R"({"id":"box","action":"drain"})", supplier).status, 200);
  EXPECT_EQ(call("POST", "/api/v1/nodes/box/action", R"({"action":"revoke"})", supplier).status, 200);
  EXPECT_TRUE(eventually([&] { return second.seen().refused.code == "revoked"; }, Millis(5000)))
      << "revocation takes effect at once";
}

}  // namespace
}  // namespace muster::server
