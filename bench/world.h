#pragma once
// A large platform in one process, for benches: musterd's own composition (engine on SQLite, sessions, keeper, planner,
// REST) and virtual machines, each a real agent core that speaks the agents' protocol in protobuf frames over a socket
// that is a queue: challenge, certificate, signature, inventory, heartbeats every 5 s. What is started on them is ready
// at once: every operation of the runtime succeeds, Ray and jobs run as soon as they are told to. Faults end the
// process.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <future>
#include <memory>
#include <mutex>
#include <queue>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "agent/core.h"
#include "base/log.h"
#include "crypto/cert.h"
#include "crypto/random.h"
#include "crypto/sign.h"
#include "overlay/roster.h"
#include "server/app.h"
#include "store/sqlite_store.h"
#include "wire/agent_frames.h"

namespace muster::bench {

using Clock = std::chrono::steady_clock;

[[noreturn]] inline void fail(const std::string& why) {
  fmt::print(stderr, "the bench failed: {}\n", why);
  std::exit(1);
}
inline void say(Clock::time_point begin, const std::string& what) {
  fmt::print(stderr, "{:7.1f} s  {}\n", std::chrono::duration<double>(Clock::now() - begin).count(), what);
}
inline double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
inline std::uint64_t memory_kib(const char* key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key)) return std::strtoull(line.c_str() + std::string_view(key).size() + 1, nullptr, 10);
  return 0;
}

inline control::Actor actor(Role role, OrgId org = {}) {
  control::Actor out;
  out.subject.principal = PrincipalId{9'000'001};  // none that there is an account of: its role counts then
  out.subject.role = role;
  out.subject.org = org;
  return out;
}

// What a driver thread is told: bytes for a machine, or that its link ended.
struct Mail {
  std::uint32_t machine = 0;
  Bytes bytes;
};

// Drives a share of all machines on one thread, as a network thread of the server would carry their frames.
class Driver {
 public:
  void put(std::uint32_t machine, Bytes bytes) {
    {
      const std::lock_guard lock(mutex_);
      mail_.push_back({machine, std::move(bytes)});
    }
    wake_.notify_one();
  }
  std::vector<Mail> take(Millis wait) {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, wait, [this] { return !mail_.empty(); });
    return std::exchange(mail_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Mail> mail_;
};

class Socket final : public net::WebSocket {
 public:
  Socket(Driver& driver, std::uint32_t machine) : driver_(driver), machine_(machine) {}
  void start(std::function<void(Bytes)> on_message, std::function<void(std::string)> on_close) override {
    receive = std::move(on_message);
    closed = std::move(on_close);
  }
  void send(Bytes message) override { driver_.put(machine_, std::move(message)); }
  std::size_t buffered() const override { return 0; }
  void close(std::string reason) override {
    if (!std::exchange(told_, true) && reason != "the control plane restarts")
      fmt::print(stderr, "a link was closed: {}\n", reason);
  }
  std::string peer() const override { return "10.0.0.1:1"; }
  std::function<void(Bytes)> receive;
  std::function<void(std::string)> closed;

 private:
  Driver& driver_;
  const std::uint32_t machine_;
  bool told_ = false;
};

// A roster as machines read it, but for the signatures: to check those is the work of machines, of which there is one
// here for all.
inline Result<agent::OpenedRoster> open_roster(const session::SignedRoster& signed_roster, const Bytes&) {
  const auto roster = overlay::decode_roster(signed_roster.bytes);
  if (!roster) return roster.error();
  agent::OpenedRoster out;
  out.cluster = ClusterId{roster->cluster};
  out.epoch = roster->epoch;
  for (const auto& member : roster->members) {
    RosterEntry entry;
    entry.slot = SlotId{member.slot};
    entry.node = NodeId{member.node};
    entry.role = static_cast<SlotRole>(member.role);
    entry.address = member.address;
    entry.overlay_key = Bytes(member.overlay_key.begin(), member.overlay_key.end());
    entry.device_key = Bytes(member.device_key.begin(), member.device_key.end());
    entry.overlay_signature = member.overlay_signature;
    entry.epoch = {member.epoch.incarnation, member.epoch.leader, member.epoch.counter};
    out.entries.push_back(std::move(entry));
  }
  return out;
}

struct Machine {
  Bytes seed;  // of its device key, which is larger
  crypto::SigningKey key() const { return std::move(crypto::SigningKey::from_seed(seed)).value(); }
  NodeId node;
  std::unique_ptr<agent::Core> core;
  std::shared_ptr<Socket> socket;
  LeaseTime due{0};
  bool ready = false;
};

class World {
 public:
  // `alike`: every machine has 32 CPUs and 128 GiB and takes orders without a look at their signature (when thousands
  // are given at once, that work would be their own); else they are of many sizes.
  World(const std::string& dir, unsigned nodes, unsigned requests, bool alike = false)
      : nodes_(nodes), requests_(requests), alike_(alike) {
    auto store = store::SqliteStore::open({dir + "/journal.db", "", true, 1024});
    if (!store) fail(store.error().message);
    server::App::Options options;
    options.dir = server::DataDir{dir};
    options.store = std::move(*store);
    options.certificate_life = Millis(30LL * 86'400'000);
    auto app = server::App::start(std::move(options));
    if (!app) fail(app.error().message);
    app_ = std::move(*app);
    auto cas = server::load_cas(app_->context().dir);
    if (!cas) fail(cas.error().message);
    ca_ = std::move(cas->ca);
    machines_.resize(nodes);
  }

  server::App& app() { return *app_; }
  engine::Runner& runner() { return *app_->context().runner; }

  std::string must(control::Command command, control::Actor who) {
    auto reply = runner().submit_wait(control::Lane::Operator, std::move(command), std::move(who));
    if (!reply) fail(reply.error().message);
    return reply->outcome.id;
  }

  // `make` gives the next command; many wait at once, as clients of the API would.
  void many(unsigned count, const std::function<control::Command(unsigned)>& make, const control::Actor& who,
            const std::function<void(unsigned, const std::string&)>& done = {}) {
    std::counting_semaphore<> room(4096);
    std::atomic<unsigned> answered{0};
    for (unsigned i = 0; i < count; ++i) {
      room.acquire();
      runner().submit(control::Lane::Operator, make(i), who, [&, i](const Result<engine::Reply>& reply) {
        if (!reply) fail(reply.error().message);
        if (done) done(i, reply->outcome.id);
        ++answered;
        room.release();
      });
    }
    while (answered < count) std::this_thread::sleep_for(Millis(5));
  }

  void enrol() {
    const auto org = OrgId::parse(must(control::CreateOrg{"hall"}, actor(Role::Operator)));
    std::vector<Bytes> tokens(nodes_);
    many(
        nodes_,
        [&](unsigned i) {
          tokens[i] = crypto::random_bytes(32);
          return control::CreateJoinToken{*org, tokens[i], {}, Millis(86'400'000)};
        },
        actor(Role::Operator));
    many(
        nodes_,
        [&](unsigned i) {
          Machine& machine = machines_[i];
          machine.seed = crypto::random_bytes(32);
          const crypto::Key32 key = machine.key().public_key();
          return control::EnrollNode{tokens[i], Bytes(key.begin(), key.end()), fmt::format("box-{}", i), facts(i)};
        },
        control::Actor{}, [&](unsigned i, const std::string& id) { machines_[i].node = *NodeId::parse(id); });
  }

  NodeFacts facts(unsigned i) const {
    NodeFacts out;
    out.hostname = fmt::format("box-{}", i);
    out.arch = "x86_64", out.os = "Debian 12", out.kernel = "6.1", out.agent_version = "0.1.0";
    out.boot_id = fmt::format("boot-{}", i);
    out.region = i % 3 == 0 ? "eu" : "us";
    out.runtimes = {RuntimeKind::Docker};
    out.capacity.cpu_milli = 8000 + 8000 * (i % 8);
    out.capacity.memory_bytes = (std::int64_t{32} << 30) * (1 + i % 4);
    out.capacity.disk_bytes = std::int64_t{500} << 30;
    if (alike_) out.capacity.cpu_milli = 32'000, out.capacity.memory_bytes = std::int64_t{128} << 30;
    return out;
  }

  void make_core(unsigned i) {
    Machine& machine = machines_[i];
    const auto certificate = crypto::issue_device_certificate(ca_, machine.key().public_key(), machine.node.str(),
                                                              read_clocks().wall, Millis(30LL * 86'400'000));
    if (!certificate) fail(certificate.error().message);
    agent::Options options;
    options.agent_version = "0.1.0";
    options.boot_id = fmt::format("boot-{}", i);
    options.certificate_pem = *certificate;
    options.seed = i + 1;
    agent::Hooks hooks;
    hooks.sign = [&machine](ByteView message) { return machine.key().sign(message); };
    hooks.desired_genuine = [this, &machine](const session::Desired& desired) {
      return alike_ || crypto::verify(app_->context().identity.command_key,
                                      wire::desired_signing_bytes(machine.node, desired), desired.signature);
    };
    hooks.open_roster = open_roster;
    machine.core = std::make_unique<agent::Core>(std::move(options), std::move(hooks), facts(i));
    machine.core->start({}, {}, read_clocks());
  }

  // All machines dial as fast as the server takes them, at most 1,000 at a time.
  void connect() {
    for (unsigned t = 0; t < kDrivers; ++t) threads_.emplace_back([this, t] { drive(t); });
    while (ready_ < nodes_) std::this_thread::sleep_for(Millis(20));
  }

  void queue() {
    std::vector<ProjectId> projects;
    const auto org = OrgId::parse(must(control::CreateOrg{"lab"}, actor(Role::Operator)));
    for (unsigned i = 0; i < 100; ++i)
      projects.push_back(
          *ProjectId::parse(must(control::CreateProject{*org, fmt::format("p{}", i)}, actor(Role::Operator))));
    many(
        requests_,
        [&](unsigned i) {
          control::CreateCluster cluster{projects[i % projects.size()], {}};
          cluster.spec.name = fmt::format("c{}", i);
          cluster.spec.image = "muster/ray:latest";
          cluster.spec.head.resources.cpu_milli = 1000;
          WorkerGroup group;
          group.name = "workers", group.min = 1 + i % 8, group.max = group.min;
          group.request.resources.gpus = 1 + (i / 8) % 8;
          group.request.resources.cpu_milli = 1000 * (1 + (i / 64) % 16);
          cluster.spec.groups.push_back(std::move(group));
          cluster.spec.priority = static_cast<std::int32_t>(i % 5);
          return cluster;
        },
        actor(Role::Tenant, *org));
  }

  // Clusters come and go at a steady pace while plans are made and a snapshot is written every ten seconds.
  void live(unsigned seconds) {
    const auto org = OrgId::parse(must(control::CreateOrg{"busy"}, actor(Role::Operator)));
    const auto project = ProjectId::parse(must(control::CreateProject{*org, "busy"}, actor(Role::Operator)));
    runner().longest_wait();
    const Clock::time_point begin = Clock::now();
    Clock::time_point snapshot = begin + std::chrono::seconds(1);
    std::atomic<unsigned> open{0};
    for (unsigned i = 0; seconds_since(begin) < seconds; ++i) {
      control::CreateCluster cluster{*project, {}};
      cluster.spec.name = fmt::format("live-{}", i);
      cluster.spec.image = "muster/ray:latest";
      cluster.spec.head.resources.gpus = 1;
      ++open;
      runner().submit(control::Lane::Tenant, std::move(cluster), actor(Role::Tenant, *org),
                      [this, &open, org](const Result<engine::Reply>& made) {
                        if (!made) fail(made.error().message);
                        runner().submit(control::Lane::Tenant,
                                        control::StopCluster{*ClusterId::parse(made->outcome.id)},
                                        actor(Role::Tenant, *org), [&open](const Result<engine::Reply>&) { --open; });
                      });
      std::this_thread::sleep_for(Millis(5));
      stalls_.push_back(static_cast<double>(runner().longest_wait().count()) / 1000);
      if (Clock::now() < snapshot) continue;
      runner().snapshot();
      snapshot += std::chrono::seconds(10);
    }
    while (open > 0) std::this_thread::sleep_for(Millis(1));
    std::sort(stalls_.begin(), stalls_.end());
  }

  double worst_stall() const { return stalls_.empty() ? 0 : stalls_.back(); }

  void stop() {
    stopping_ = true;
    for (auto& thread : threads_) thread.join();
    app_->stop();
  }

 private:
  static constexpr unsigned kDrivers = 2;
  static constexpr unsigned kOpenMax = 1000;

  // The runtime of a machine on which everything succeeds at once.
  static void run(Machine& machine, const agent::StartOp& start) {
    agent::OpResult result;
    result.op = start.id;
    const agent::Op& op = start.op;
    if (std::holds_alternative<agent::EnsureImage>(op)) {
      result.value = agent::ImageReady{"sha256:" + std::string(64, 'a'), {}, {}};
    } else if (const auto* probe = std::get_if<agent::ProbeImage>(&op)) {
      result.value = ImageProbe{probe->digest, "2.55.1", "3.11", true, true};
    } else if (const auto* create = std::get_if<agent::CreateLease>(&op)) {
      const Assignment& lease = create->assignment;
      overlay::Key32 key{};
      for (std::size_t i = 0; i < 8; ++i) key[i] = static_cast<std::uint8_t>(lease.lease.value >> (8 * i));
      result.value = agent::LeaseCreated{Bytes(key.begin(), key.end()), Bytes(crypto::kSignatureBytes, 7)};
    } else if (std::holds_alternative<agent::ReadJobLog>(op)) {
      result.value = agent::LogData{};
    } else if (std::holds_alternative<agent::FindBlob>(op) || std::holds_alternative<agent::WriteBlob>(op)) {
      result.value = agent::BlobState{true, 1};
    }
    const Now now = read_clocks();
    machine.core->on_result(result, now);
    if (const auto* ray = std::get_if<agent::StartRay>(&op)) {
      machine.core->on_event(agent::RayReady{ray->lease, fmt::format("{:056x}", ray->lease.value)}, now);
    } else if (const auto* job = std::get_if<agent::SubmitJob>(&op)) {
      machine.core->on_event(
          agent::JobStatus{job->lease, {job->order.job, job->order.attempt, JobState::Running, 0, "", 0}}, now);
    }
  }

  void perform(unsigned number, Driver& driver) {
    Machine& machine = machines_[number];
    for (auto actions = machine.core->take_actions(); !actions.empty(); actions = machine.core->take_actions())
      for (const agent::Action& action : actions) carry_out(machine, number, driver, action);
    machine.due = machine.core->next_deadline();
  }

  void carry_out(Machine& machine, unsigned number, Driver& driver, const agent::Action& action) {
    if (std::holds_alternative<agent::Dial>(action)) {
      machine.socket = std::make_shared<Socket>(driver, number);
      app_->context().agents->accept(machine.socket);
      machine.core->on_link_up(read_clocks());
    } else if (const auto* frame = std::get_if<agent::SendFrame>(&action)) {
      if (machine.socket) machine.socket->receive(wire::encode(frame->frame));
    } else if (std::holds_alternative<agent::DropLink>(action)) {
      fail("a machine dropped its link");
    } else if (const auto* start = std::get_if<agent::StartOp>(&action)) {
      run(machine, *start);
    }
  }

  void drive(unsigned share) {
    Driver& driver = drivers_[share];
    std::priority_queue<std::pair<std::int64_t, std::uint32_t>, std::vector<std::pair<std::int64_t, std::uint32_t>>,
                        std::greater<>>
        due;
    unsigned next = share, opening = 0;
    const auto after = [&](std::uint32_t number) {
      Machine& machine = machines_[number];
      perform(number, driver);
      due.emplace(machine.due.ms, number);
      if (!machine.ready && machine.core->ready()) {
        machine.ready = true;
        --opening;
        ++ready_;
      }
    };
    while (!stopping_) {
      for (; next < nodes_ && opening < kOpenMax; next += kDrivers) {
        make_core(next);
        ++opening;
        after(next);
      }
      for (Mail& mail : driver.take(Millis(next < nodes_ ? 0 : 20))) {
        const auto frame = wire::decode_server_frame(mail.bytes);
        if (!frame) fail(frame.error().message);
        machines_[mail.machine].core->on_frame(*frame, read_clocks());
        after(mail.machine);
      }
      const LeaseTime now = read_clocks().lease;
      while (!due.empty() && due.top().first <= now.ms) {
        const std::uint32_t number = due.top().second;
        due.pop();
        if (machines_[number].due > now) continue;  // moved on since
        machines_[number].core->tick(read_clocks());
        after(number);
      }
    }
  }

  const unsigned nodes_, requests_;
  const bool alike_;
  std::unique_ptr<server::App> app_;
  crypto::KeyAndCert ca_;  // itself: no policy stands between the machines and their certificates
  std::vector<Machine> machines_;
  std::array<Driver, kDrivers> drivers_;
  std::vector<std::thread> threads_;
  std::vector<double> stalls_;
  std::atomic<unsigned> ready_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace muster::bench
