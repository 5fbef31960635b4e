#include "server/agents.h"

#include <fmt/format.h>

#include "base/log.h"
#include "crypto/cert.h"
#include "crypto/random.h"
#include "crypto/sign.h"
#include "server/desired.h"
#include "wire/agent_frames.h"

namespace muster::server {
namespace {

constexpr Millis kPump{50};
constexpr Millis kTick{1000};

bool expects_agent(NodeState state) {
  return state == NodeState::Online || state == NodeState::Suspect || state == NodeState::Draining;
}
std::string domain_of(const Node& node) {
  return node.facts.region.empty() ? node.supplier.str() : node.facts.region;
}

}  // namespace

AgentHub::AgentHub(Context& context, Options options)
    : context_(context),
      options_(std::move(options)),
      leases_(options_.lease),
      liveness_(options_.liveness),
      streams_(Streams::Bounds{}),
      follow_(std::make_unique<LogFollow>(context)) {}

AgentHub::~AgentHub() {
  stop();
}

void AgentHub::start() {
  const Now now = read_clocks();
  std::vector<std::pair<NodeId, std::string>> nodes;
  std::vector<LeaseId> live;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    for (const auto& [id, node] : state.nodes) {
      if (expects_agent(node.state)) nodes.emplace_back(id, domain_of(node));
    }
    for (const auto& [node, lease] : state.leases_by_node) live.push_back(lease);
  });
  liveness_.start(nodes, now.lease);
  leases_.start(live, now.lease);
  thread_ = std::thread([this] { run(); });
}

void AgentHub::stop() {
  std::vector<LinkPtr> links;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const auto& [number, link] : links_) links.push_back(link);
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  for (const auto& link : links) link->socket->close("the control plane restarts");
  follow_.reset();
}

// ---- session::Authority

Result<NodeId> AgentHub::verify(const session::Hello& hello, ByteView message) {
  const auto certificate =
      crypto::verify_device_certificate(hello.certificate_pem, context_.identity.ca.cert_pem, read_clocks().wall);
  if (!certificate.ok())
    return error(Code::Unauthenticated, "the device certificate is refused: " + certificate.error().message);
  const auto id = NodeId::parse(certificate->node_id);
  if (!id) return error(Code::Unauthenticated, "the device certificate names no machine");
  Status known = error(Code::Unauthenticated, "this machine is not enrolled here; join it with a new token");
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Node* node = state.find_node(*id);
    if (node == nullptr) return;
    if (node->state == NodeState::Revoked) {
      known =
          error(Code::PermissionDenied, "this machine was revoked; ask its supplier, then join it with a new token");
    } else if (crypto::equal(node->device_key, certificate->device_key)) {
      known = access::check({{}, Role::None, {}, *id, {}}, access::Verb::Report, object_of(*node));
    }
  });
  TRY_VOID(known);
  if (!crypto::verify(certificate->device_key, message, hello.signature))
    return error(Code::Unauthenticated, "the challenge is not signed by this machine's device key");
  return *id;
}

std::string AgentHub::failure_domain(NodeId node) {
  std::string out;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    if (const Node* found = state.find_node(node)) out = domain_of(*found);
  });
  return out;
}
std::vector<LeaseId> AgentHub::live_leases(NodeId node) {
  std::vector<LeaseId> out;
  if (!leading_) return out;
  context_.runner->read(
      [&](const control::State& state, const scheduler::Scheduler&) { out = state.live_leases(node); });
  return out;
}
void AgentHub::heard(NodeId node, const std::string& domain, LeaseTime now) {
  liveness_.heard(node, domain, now);
}
void AgentHub::granted(LeaseId lease, LeaseTime now) {
  leases_.granted(lease, now);
}
void AgentHub::renewed(LeaseId lease, LeaseTime now) {
  leases_.renewed(lease, now);
}

// ---- links

bool AgentHub::send(const LinkPtr& link, const session::ServerFrame& frame) {
  Bytes bytes = wire::encode(frame);
  if (bytes.size() > session::kFrameBytesMax) {
    log_error("agents", "a frame of {} bytes for {} is over the bound and was not sent", bytes.size(),
              link->node.str());
    return false;
  }
  if (link->closed) return false;
  link->socket->send(std::move(bytes));
  return true;
}

AgentHub::LinkPtr AgentHub::find(NodeId node) const {
  const std::lock_guard lock(mutex_);
  const auto found = by_node_.find(node);
  return found == by_node_.end() ? nullptr : found->second;
}

void AgentHub::accept(net::WebSocketPtr socket) {
  auto link = std::make_shared<Link>();
  link->socket = std::move(socket);
  const Now now = read_clocks();
  session::ServerOptions options;
  options.server_id = context_.identity.server_id;
  const auto& roster_key = context_.identity.roster_key.public_key();
  options.roster_key.assign(roster_key.begin(), roster_key.end());
  options.relays = context_.identity.relays;
  options.heartbeat = options_.heartbeat;
  options.lease = options_.lease;
  context_.runner->read(
      [&](const control::State& state, const scheduler::Scheduler&) { options.incarnation = state.incarnation; });
  const Bytes random = crypto::random_bytes(8);
  std::uint64_t number = 0;
  for (const auto byte : random) number = number << 8 | byte;
  Todo todo;
  {
    const std::lock_guard lock(mutex_);
    link->number = next_link_++;
    session::Authority& authority = *this;
    link->session = std::make_unique<session::Server>(std::move(options), authority, directory_, number | 1,
                                                      crypto::random_bytes(32));
    links_[link->number] = link;
    link->session->open(now);
    flush(link, todo);
  }
  const std::weak_ptr<Link> weak = link;
  link->socket->start(
      [this, weak](const Bytes& message) {
        if (const auto held = weak.lock()) on_message(held, message);
      },
      [this, weak](const std::string&) {
        if (const auto held = weak.lock()) on_close(held);
      });
  for (const auto& job : todo) job();
}

void AgentHub::on_close(const LinkPtr& link) {
  NodeId lost;
  {
    const std::lock_guard lock(mutex_);
    if (link->closed.exchange(true)) return;
    link->session->close(read_clocks());
    links_.erase(link->number);
    const auto found = by_node_.find(link->node);
    if (found != by_node_.end() && found->second == link) {
      by_node_.erase(found);
      lost = link->node;
    }
  }
  if (lost) streams_.link_lost(lost);
}

void AgentHub::on_message(const LinkPtr& link, const Bytes& message) {
  const auto frame = wire::decode_agent_frame(message);
  Todo todo;
  bool other = false;
  {
    const std::lock_guard lock(mutex_);
    if (link->closed) return;
    if (!frame.ok()) {
      link->session->refuse("protocol", frame.error().message, Millis(60'000));
    } else {
      const Now now = read_clocks();
      const bool before = link->session->welcomed();
      other = !link->session->on_frame(*frame, now) && link->session->welcomed();
      if (!before && link->session->welcomed()) {
        link->node = link->session->node();
        by_node_[link->node] = link;
        bring_desired(link, now);
        if (live_) send(link, session::Watch{true});
      }
    }
    flush(link, todo);
  }
  for (const auto& job : todo) job();
  if (other) other_frame(link, *frame);
}

// With the mutex held.
void AgentHub::flush(const LinkPtr& link, Todo& todo) {
  session::ServerOut out = link->session->take();
  for (const auto& frame : out.send) send(link, frame);
  if (out.report)
    todo.push_back([this, link, report = std::move(*out.report)]() mutable { this->report(link, std::move(report)); });
  if (!out.close.empty()) todo.push_back([link, why = out.close] { link->socket->close(why); });
}

void AgentHub::report(const LinkPtr& link, session::Report report) {
  control::Command command;
  if (report.online) {
    command =
        control::NodeOnline{link->node, std::move(report.facts), std::move(report.leases), std::move(report.jobs)};
  } else {
    command = control::ReportObserved{link->node, report.revision, std::move(report.leases), std::move(report.jobs)};
  }
  submit(link->node, std::move(command), [this, link](bool ok) {
    Todo todo;
    {
      const std::lock_guard lock(mutex_);
      link->session->taken(ok, read_clocks());
      flush(link, todo);
    }
    for (const auto& job : todo) job();
  });
}

void AgentHub::submit(NodeId node, control::Command command, std::function<void(bool)> done) {
  control::Actor actor;
  actor.subject.node = node;
  // That a machine is online is the session's own finding: only the control plane may say it.
  actor.system = std::holds_alternative<control::NodeOnline>(command);
  context_.runner->submit(control::Lane::Liveness, std::move(command), std::move(actor),
                          [node, done = std::move(done)](const Result<engine::Reply>& reply) {
                            if (!reply.ok())
                              log_debug("agents", "a report of {} was not taken: {}", node.str(),
                                        reply.error().message);
                            if (done) done(reply.ok());
                          });
}

void AgentHub::submit_system(control::Command command, std::function<void(bool)> done) {
  control::Actor actor;
  actor.system = true;
  context_.runner->submit(control::Lane::Liveness, std::move(command), std::move(actor),
                          [done = std::move(done)](const Result<engine::Reply>& reply) {
                            if (!reply.ok()) log_warn("agents", "the core refused: {}", reply.error().message);
                            // Only what may go better later is asked again.
                            const bool later = !reply.ok() && (reply.error().code == Code::Unavailable ||
                                                               reply.error().code == Code::ResourceExhausted);
                            done(!later);
                          });
}

void AgentHub::bring_desired(const LinkPtr& link, Now now) {
  if (!link->node) return;
  session::Desired desired;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Node* node = state.find_node(link->node);
    if (node == nullptr ||
        (link->built && link->built_incarnation == state.incarnation && link->built_revision == node->revision))
      return;
    desired = build_desired(state, context_.identity, link->node, now.wall);
    link->built = true;
    link->built_incarnation = desired.incarnation;
    link->built_revision = desired.revision;
  });
  if (!desired.signature.empty()) link->session->set_desired(std::move(desired), now);
}

// ---- time

void AgentHub::on_event(const engine::DurableEvent& event) {
  if (const auto* ended = std::get_if<control::LeaseEnded>(&event.event)) {
    const std::lock_guard lock(mutex_);
    leases_.ended(ended->lease);
  } else if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) {
    // Counted from here even if the machine never connects: it may have left before its first Desired.
    const std::lock_guard lock(mutex_);
    leases_.granted(granted->lease.id, read_clocks().lease);
  } else if (const auto* changed = std::get_if<control::NodeStateChanged>(&event.event)) {
    if (changed->state == NodeState::Revoked) {
      const std::lock_guard lock(mutex_);
      refused_.insert(changed->node);
    }
  } else if (const auto* archived = std::get_if<control::Archived>(&event.event)) {
    const std::lock_guard lock(facts_mutex_);
    for (const ClusterId id : archived->clusters) ray_.erase(id);
  }
  {
    const std::lock_guard lock(mutex_);
    dirty_ = true;
  }
  wake_.notify_one();
}

void AgentHub::run() {
  auto next_tick = std::chrono::steady_clock::now();
  while (true) {
    Todo todo;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, kPump, [this] { return stopping_; });
      if (stopping_) return;
    }
    const bool due = std::chrono::steady_clock::now() >= next_tick;
    if (due) {
      next_tick = std::chrono::steady_clock::now() + kTick;
      // A deposed leader must not renew: the store knows the newest leader epoch.
      const auto tail = context_.store->tail();
      std::uint64_t epoch = 0;
      context_.runner->read(
          [&](const control::State& state, const scheduler::Scheduler&) { epoch = state.leader_epoch; });
      const std::lock_guard lock(mutex_);
      leading_ = tail.ok() && tail->leader_epoch == epoch;
    }
    {
      const std::lock_guard lock(mutex_);
      const Now now = read_clocks();
      if (dirty_) pump_desired(now, todo);
      if (due) tick(now, todo);
    }
    for (const auto& job : todo) job();
    streams_.tick();
  }
}

void AgentHub::pump_desired(Now now, Todo& todo) {
  dirty_ = false;
  std::vector<LinkPtr> stale;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    for (const auto& [id, link] : by_node_) {
      const Node* node = state.find_node(id);
      if (node != nullptr &&
          (!link->built || node->revision != link->built_revision || state.incarnation != link->built_incarnation))
        stale.push_back(link);
    }
  });
  for (const auto& link : stale) {
    bring_desired(link, now);
    flush(link, todo);
  }
}

void AgentHub::turn(NodeId node, session::Heard heard, Todo& todo) {
  if (heard == session::Heard::Live) {
    turned_.erase(node);
    const auto found = by_node_.find(node);
    if (found != by_node_.end()) {
      found->second->session->report_again();
      flush(found->second, todo);
    }
    return;
  }
  turned_[node] = heard;
}

void AgentHub::tick(Now now, Todo& todo) {
  for (const NodeId node : std::exchange(refused_, {})) {
    liveness_.forget(node);
    const auto found = by_node_.find(node);
    if (found == by_node_.end()) continue;
    found->second->session->refuse("revoked", "this machine was revoked", Millis(0));
    flush(found->second, todo);
  }
  for (const auto& event : liveness_.tick(now.lease)) {
    if (const auto* node = std::get_if<session::NodeTurned>(&event)) turn(node->node, node->now, todo);
    if (const auto* freeze = std::get_if<session::FreezeTurned>(&event)) freeze_ = *freeze;
  }
  // Each transition is sent until the core took it; the newest one wins.
  if (leading_) {
    for (const auto& [node, heard] : turned_) {
      control::Command command = control::NodeSuspect{node};
      if (heard == session::Heard::Lost) command = control::NodeLost{node};
      todo.push_back([this, node = node, heard = heard, command = std::move(command)] {
        submit_system(command, [this, node, heard](bool settled) {
          const std::lock_guard lock(mutex_);
          const auto found = turned_.find(node);
          if (settled && found != turned_.end() && found->second == heard) turned_.erase(found);
        });
      });
    }
    if (freeze_) {
      todo.push_back([this, freeze = *freeze_] {
        submit_system(control::SetFreeze{freeze.frozen, freeze.reason}, [this, freeze](bool settled) {
          const std::lock_guard lock(mutex_);
          if (settled && freeze_ == freeze) freeze_.reset();
        });
      });
    }
    const auto expired = leases_.expired(now.lease);
    if (!expired.empty() && !expiring_) {
      expiring_ = true;
      todo.push_back([this, expired] {
        submit_system(control::LeasesExpired{expired}, [this](bool) {
          const std::lock_guard lock(mutex_);
          expiring_ = false;
        });
      });
    }
  }
  for (const auto& [number, link] : links_) {
    const bool before = link->session->welcomed();
    link->session->tick(now);
    if (!before && link->session->welcomed()) {  // waited behind another session of the same key
      link->node = link->session->node();
      by_node_[link->node] = link;
      bring_desired(link, now);
    }
    flush(link, todo);
  }
  for (const auto& kicked : directory_.take_kicked()) {
    for (const auto& [number, link] : links_) {
      if (link->session->session() != kicked.session) continue;
      link->session->kick(kicked.why, now);
      flush(link, todo);
    }
  }
  const bool live = now.lease < watch_until_;
  if (live != live_) {
    live_ = live;
    for (const auto& [id, link] : by_node_) send(link, session::Watch{live});
  }
}

void AgentHub::watch() {
  const std::lock_guard lock(mutex_);
  watch_until_ = read_clocks().lease + Millis(30'000);
}

AgentHub::Counts AgentHub::counts() const {
  const std::lock_guard lock(mutex_);
  return {by_node_.size(), streams_.size(), leases_.size(), liveness_.frozen(), leading_};
}

std::optional<RayFacts> AgentHub::ray(ClusterId cluster) const {
  const std::lock_guard lock(facts_mutex_);
  const auto found = ray_.find(cluster);
  return found == ray_.end() ? std::nullopt : std::optional(found->second);
}
std::optional<session::Telemetry> AgentHub::telemetry(NodeId node) const {
  const std::lock_guard lock(facts_mutex_);
  const auto found = telemetry_.find(node);
  return found == telemetry_.end() || found->second.empty() ? std::nullopt : std::optional(found->second.back());
}

}  // namespace muster::server
