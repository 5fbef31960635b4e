// What the executor makes of an engine that goes away and comes back: whose end it was that a container or its Ray came
// to. privd and the container's helper are played by the test.
#include "host/executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <mutex>

#include "host/verb_server.h"

namespace muster::host {
namespace {
namespace fs = std::filesystem;

constexpr LeaseId kLease{3};

class NoOverlay : public OverlayPort {
 public:
  void attach(const Attach&, std::function<void(Result<Attached>)> done) override { done(Attached{Bytes(32, 2), 4}); }
  void configure(const agent::ConfigureNetwork&, const Bytes&, std::function<void(Status)> done) override { done({}); }
  void detach(LeaseId, bool, std::function<void(Status)> done) override { done({}); }
  void keep_only(const std::set<LeaseId>&) override {}
  std::vector<std::string> lan_endpoints() const override { return {}; }
};

struct ExecutorEngine : ::testing::Test {
  ExecutorEngine() {
    char name[] = "/tmp/muster_executor_XXXXXX";
    layout.root = mkdtemp(name);
    fs::create_directories(layout.agent());
    fs::create_directories(layout.sockets());
    server =
        std::make_unique<lab::VerbServer>(layout.privd_socket(), [this](const Verb& verb) { return answer(verb); });
    privd = std::make_unique<PrivdClient>(poller, layout.privd_socket());
    executor = std::make_unique<Executor>(poller, *privd, overlay, device, layout,
                                          ExecutorHooks{[this](agent::OpResult result) { note(results, result); },
                                                        [this](agent::RuntimeEvent event) { note(events, event); }});
    thread = std::thread([this] { poller.run(); });
    bool adopted = false;
    poller.post([&] {
      executor->adopt([&](const agent::Found&) {
        const std::lock_guard lock(mutex);
        adopted = true;
        changed.notify_all();
      });
    });
    EXPECT_TRUE(until([&] { return adopted; }));
    agent::CreateLease create;
    create.assignment.lease = kLease;
    create.digest = "sha256:" + std::string(64, 'a');
    start(1, create);
    EXPECT_TRUE(until([&] { return !results.empty() && helper; }));
    start(2, agent::StartRay{kLease, SlotRole::Worker, 10, 11, {}, {}, {}, 0});
    EXPECT_TRUE(until([&] { return results.size() == 2; }));
    says(R"({"ev":"ray_ready","node_id":"r"})");
    EXPECT_TRUE(until([&] { return count<agent::RayReady>() == 1; }));
  }
  ~ExecutorEngine() override {
    poller.stop();
    thread.join();
    executor.reset();
    privd.reset();
    server.reset();
    fs::remove_all(layout.root);
  }
  Result<Answer> answer(const Verb& verb) {
    const std::lock_guard lock(mutex);
    Answer out;
    if (verb.kind == VerbKind::Launch) exists = running = true;
    if (verb.kind == VerbKind::Helper) {
      int ends[2];
      if (!running || ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return error(Code::NotFound, "not there", "helper");
      helper.reset(ends[0]);
      out.fds.emplace_back(ends[1]);
      tell(R"({"ev":"hello","phase":"idle"})");
      changed.notify_all();
    }
    if (verb.kind == VerbKind::Pull) out.fields = {{"digest", "sha256:" + std::string(64, 'a')}, {"pinned", pinned}};
    if (verb.kind == VerbKind::List) {
      if (!engine) return error(Code::Unavailable, "not there", "engine.gone");
      boost::json::array rows;
      if (exists)
        rows.push_back(boost::json::object{
            {"lease", kLease.str()}, {"exists", true}, {"running", running}, {"namespace_up", running}});
      out.fields["leases"] = rows;
      out.fields["engine_life"] = life;
    }
    return out;
  }
  void tell(const std::string& line) {
    EXPECT_GT(::send(helper.get(), (line + "\n").data(), line.size() + 1, MSG_NOSIGNAL), 0);
  }
  void says(const std::string& line) {
    const std::lock_guard lock(mutex);
    tell(line);
  }
  template <typename T>
  void note(std::vector<T>& into, T what) {
    const std::lock_guard lock(mutex);
    into.push_back(std::move(what));
    changed.notify_all();
  }
  void start(agent::OpId id, agent::Op op) {
    poller.post([this, id, op = std::move(op)] { executor->start(id, op); });
  }
  bool until(const std::function<bool()>& condition, Millis within = Millis(15'000)) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, within, condition);
  }
  template <typename T>
  std::size_t count() const {
    return static_cast<std::size_t>(std::count_if(events.begin(), events.end(), [](const agent::RuntimeEvent& event) {
      return std::holds_alternative<T>(event);
    }));
  }
  // What was found when the engine came back.
  agent::AdoptedLease found() {
    EXPECT_TRUE(until([this] { return count<agent::EngineBack>() == 1; }));
    const std::lock_guard lock(mutex);
    for (const auto& event : events) {
      const auto* back = std::get_if<agent::EngineBack>(&event);
      if (back != nullptr && !back->found.leases.empty()) return back->found.leases[0];
    }
    ADD_FAILURE() << "nothing was found";
    return {};
  }
  void nobody_is_blamed() {
    EXPECT_FALSE(
        until([this] { return count<agent::RayExited>() + count<agent::ContainerExited>() > 0; }, Millis(3'000)));
    EXPECT_EQ(count<agent::EngineGone>(), 1U);
    EXPECT_EQ(count<agent::EngineBack>(), 1U);
  }

  Layout layout;
  std::mutex mutex;
  std::condition_variable changed;
  bool engine = true, exists = false, running = false;  // under mutex, as what follows
  std::uint64_t life = 7;
  std::string pinned;  // of what is pulled
  Fd helper;
  std::vector<agent::OpResult> results;
  std::vector<agent::RuntimeEvent> events;
  std::unique_ptr<lab::VerbServer> server;
  Poller poller;
  NoOverlay overlay;
  crypto::SigningKey device = crypto::SigningKey::generate();
  std::unique_ptr<PrivdClient> privd;
  std::unique_ptr<Executor> executor;
  std::thread thread;
};

// What privd pulled is judged by the agent before anything of it runs.
TEST_F(ExecutorEngine, AnImageThatNoPolicyLetsThroughIsNeverReady) {
  const std::string manifest = "sha256:" + std::string(64, 'b');
  const auto pull = [&](const std::string& found, ImagePolicy policy) {
    static agent::OpId id = 100;
    agent::EnsureImage op{kLease, "registry.example/app@" + manifest, RuntimeKind::Docker, {}, {}, {}};
    op.asked = "registry.example/app:1";
    op.policies = {ImagePolicy{}, std::move(policy)};
    {
      const std::lock_guard lock(mutex);
      results.clear();
      pinned = found;
    }
    start(++id, op);
    EXPECT_TRUE(until([&] { return !results.empty(); }));
    const std::lock_guard lock(mutex);
    const agent::OpResult& result = results.at(0);
    return result.ok ? std::string("ready") : result.reason + (result.permanent ? "" : ", again");
  };
  const std::string key =
      "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEACOOtxY0GZCh08D0t5I2Pe2/e4Wmawf8V39OwOvMSwsM=\n-----END PUBLIC "
      "KEY-----\n";
  const std::string app = "registry.example/app@" + manifest;
  EXPECT_EQ(pull(app, {{"registry.example/app:1"}, {}, true, {}}), "ready") << "by the name that was asked for";
  EXPECT_EQ(pull(app, {{"registry.example/app:2"}, {}, false, {}}), "image_policy.not_allowed");
  EXPECT_EQ(pull(app, {{}, {manifest}, false, {}}), "image_policy.denied");
  EXPECT_EQ(pull("", {{}, {"sha256:" + std::string(64, 'a')}, false, {}}), "image_policy.denied");
  EXPECT_EQ(pull("", {{}, {}, false, {key}}), "image_signature.no_registry");
  EXPECT_EQ(pull("127.0.0.1:1/app@" + manifest, {{}, {}, false, {key}}), "image_signature.unreachable, again");
}

// What is installed in an image comes with its probe, is kept for the next lease, and is never waited for in vain.
TEST_F(ExecutorEngine, WhatIsInAnImageComesWithItsProbe) {
  static agent::OpId id = 200;
  const auto probe = [&](const std::string& digest) {
    {
      const std::lock_guard lock(mutex);
      results.clear(), helper.reset();
    }
    start(++id, agent::ProbeImage{kLease, digest, RuntimeKind::Docker});
  };
  const auto result = [&] {
    EXPECT_TRUE(until([&] { return !results.empty(); }));
    const std::lock_guard lock(mutex);
    return results.empty() ? agent::OpResult{} : results[0];
  };
  const std::string found = R"({"ev":"probe","ray":"2.55.1","python":"3.11","token_auth":true,"rocksdb":true})";
  const auto list = [](const std::string& path, const std::string& text, bool more) {
    return R"({"ev":"list","path":")" + path + R"(","data":")" + base64(as_bytes(text)) + R"(","more":)" +
           (more ? "true}" : "false}");
  };
  probe("sha256:1");
  ASSERT_TRUE(until([&] { return static_cast<bool>(helper); }));
  says(list("var/lib/dpkg/status", "Package: early\nVersion: 1\n", false));  // nobody asked
  says(found);
  says(list("etc/os-release", "ID=debian\nVERSION_ID=12\n", false));
  says(list("var/lib/dpkg/status", "Package: bash\nVersion: ", true));
  says(list("var/lib/dpkg/status", "5.2\n", false));
  says(list("etc/shadow", "root", false));  // no list of packages
  says(R"({"ev":"lists_end","whole":true})");
  const agent::OpResult whole = result();
  EXPECT_TRUE(whole.ok);
  EXPECT_EQ(whole.packages, "muster-packages 1\nsystem Debian:12\nskipped 1\n=Debian:12\nbash 5.2\n");
  probe("sha256:1");
  EXPECT_EQ(result().packages, whole.packages) << "known";
  probe("sha256:2");
  ASSERT_TRUE(until([&] { return static_cast<bool>(helper); }));
  says(found);
  says(R"({"ev":"fault","op":"lists","text":"it broke"})");
  const agent::OpResult broken = result();
  EXPECT_TRUE(broken.ok) << "the image runs all the same";
  EXPECT_EQ(broken.packages, "muster-packages 1\nsystem \nskipped 1\n");
}

TEST_F(ExecutorEngine, ARayThatEndsByItselfIsTold) {
  says(R"({"ev":"ray_exit","code":9})");
  EXPECT_TRUE(until([this] { return count<agent::RayExited>() == 1; }));
}

TEST_F(ExecutorEngine, AContainerThatEndsByItselfIsTold) {
  {
    const std::lock_guard lock(mutex);
    running = false;
    helper.reset();
  }
  EXPECT_TRUE(until([this] { return count<agent::ContainerExited>() == 1; }));
  EXPECT_EQ(count<agent::EngineGone>(), 0U);
}

TEST_F(ExecutorEngine, WhatAnEngineTakesAlongIsNotBlamed) {
  {
    const std::lock_guard lock(mutex);
    engine = running = false;
    tell(R"({"ev":"ray_exit","code":-15})");
    helper.reset();
  }
  EXPECT_TRUE(until([this] { return count<agent::EngineGone>() == 1; }));
  {
    const std::lock_guard lock(mutex);
    engine = true;
    ++life;
  }
  EXPECT_FALSE(found().container_running);
  nobody_is_blamed();
}

TEST_F(ExecutorEngine, ARestartThatNobodySawIsKnownByItsLife) {
  {
    const std::lock_guard lock(mutex);
    running = false;
    ++life;
    tell(R"({"ev":"ray_exit","code":-15})");
    helper.reset();
  }
  EXPECT_FALSE(found().container_running);
  nobody_is_blamed();
}

TEST_F(ExecutorEngine, AnEngineThatKeepsItsContainersFindsTheirRayRunning) {
  {
    const std::lock_guard lock(mutex);
    engine = false;
  }
  EXPECT_TRUE(until([this] { return count<agent::EngineGone>() == 1; }));
  {
    const std::lock_guard lock(mutex);
    engine = true;
    ++life;
  }
  const agent::AdoptedLease lease = found();
  EXPECT_TRUE(lease.container_running && lease.ray_running && lease.ray_ready);
  EXPECT_EQ(lease.roster_epoch, 4U);
  nobody_is_blamed();
}

}  // namespace
}  // namespace muster::host
