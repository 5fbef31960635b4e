#include "server/agents.h"

#include <fmt/format.h>

#include <atomic>
#include <latch>

#include "base/log.h"
#include "control/revised.h"
#include "crypto/cert.h"
#include "crypto/random.h"
#include "crypto/sign.h"
#include "crypto/tpm_key.h"
#include "model/node_labels.h"
#include "server/core_state.h"
#include "server/desired.h"
#include "server/host_judge.h"
#include "server/registry_store.h"
#include "server/relay_book.h"
#include "server/reliability_book.h"
#include "server/way_memory.h"
#include "server/workload_identity.h"
#include "wire/agent_frames.h"

namespace muster::server {
namespace {

constexpr Millis kPump{50}, kPause{10};  // between two looks at who needs orders: at most, at least
constexpr Millis kTick{1000};
constexpr std::size_t kSweepTicks = 30;
constexpr std::size_t kWorthHelp = 16;  // machines that need orders: then two threads write them

session::Keeper::Options keeping(const AgentHub::Options& options) {
  session::Keeper::Options out;
  out.liveness = options.liveness;
  out.lease = options.lease;
  return out;
}

}  // namespace

AgentHub::AgentHub(Context& context, Options options)
    : context_(context),
      options_(std::move(options)),
      keeper_(keeping(options_)),
      carried_(read_clocks().wall),
      streams_(Streams::Bounds{}),
      follow_(std::make_unique<LogFollow>(context)) {}

AgentHub::~AgentHub() {
  stop();
}

void AgentHub::start() {
  const Now now = read_clocks();
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    keeper_.start(keeper_start(state), CoreState(state), now.lease);
    start_pairs(state, pairs_, now.lease);
  });
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

// Signatures cost most of a connection, so they are checked before the mutex is taken.
AgentHub::Proof AgentHub::prove(const session::Hello& hello, ByteView message) const {
  const WallTime now = read_clocks().wall;
  Proof proof;
  proof.expiry = crypto::certificate_expiry(hello.certificate_pem);
  // A machine that slept past the end of its certificate still holds its device key, and proves it below. It may come
  // in for a while, to have its certificate renewed (note_certificate).
  const bool ended = proof.expiry.ok() && *proof.expiry <= now;
  if (ended && now - *proof.expiry > context_.reenrol_within) {
    proof.certificate =
        error(Code::Unauthenticated,
              fmt::format("the device certificate ended {} days ago; `muster-agent leave`, then join with a new token",
                          (now - *proof.expiry).count() / 86'400'000));
    return proof;
  }
  const auto cas = context_.cas.get();
  const WallTime at = ended ? *proof.expiry - Millis(1) : now;
  proof.certificate = crypto::verify_device_certificate(hello.certificate_pem, cas->text, at);
  if (!proof.certificate.ok() && !cas->trust.given_up.empty()) {
    auto once = crypto::verify_device_certificate(hello.certificate_pem, cas->ever, at);
    if ((proof.given_up = once.ok())) proof.certificate = std::move(once);
  }
  if (proof.certificate.ok()) {
    proof.signed_by_it = crypto::verify(proof.certificate->device_key, message, hello.signature);
    if (const Bytes& bound = proof.certificate->tpm; proof.signed_by_it && !bound.empty()) {
      const crypto::Digest shown = crypto::sha256(hello.tpm_key);
      proof.tpm_missing = !crypto::equal(bound, Bytes(shown.begin(), shown.end())) ||
                          !crypto::tpm_signed(hello.tpm_key, crypto::kTpmHelloDomain, message, hello.tpm_signature);
    }
    return proof;
  }
  // Not valid yet by this server's clock only: that passes, an identity that is given up does not come back.
  const bool early =
      proof.expiry.ok() &&
      crypto::verify_device_certificate(hello.certificate_pem, cas->text, *proof.expiry - Millis(1)).ok();
  proof.certificate = error(early ? Code::Unavailable : Code::Unauthenticated,
                            "the device certificate is refused: " + proof.certificate.error().message);
  return proof;
}

Result<NodeId> AgentHub::verify(const session::Hello&, ByteView) {
  MUSTER_CHECK(proof_ != nullptr);
  if (!proof_->certificate.ok()) return proof_->certificate.error();
  const crypto::DeviceCertificate& certificate = *proof_->certificate;
  const auto id = NodeId::parse(certificate.node_id);
  if (!id) return error(Code::Unauthenticated, "the device certificate names no machine");
  Status known = error(Code::Unauthenticated, "this machine is not enrolled here; join it with a new token");
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Node* node = state.find_node(*id);
    if (node == nullptr) return;
    if (node->state == NodeState::Revoked) {
      known = error(Code::PermissionDenied, "this machine was revoked; ask its supplier, then join it with a new token",
                    "revoked");
    } else if (node->state == NodeState::Quarantined) {
      known =
          error(Code::FailedPrecondition, std::string(session::kQuarantinedText), std::string(session::kQuarantined));
    } else if (crypto::equal(node->device_key, certificate.device_key)) {
      known = access::check({{}, Role::None, {}, *id, {}}, access::Verb::Report, object_of(*node));
    }
  });
  TRY_VOID(known);
  if (!proof_->signed_by_it)
    return error(Code::Unauthenticated, "the challenge is not signed by this machine's device key");
  if (proof_->tpm_missing)
    return error(Code::Unauthenticated,
                 "this machine's certificate is bound to a key in its TPM, which did not sign: the TPM was cleared or "
                 "exchanged, or this is a copy on another machine. `muster-agent leave`, then join with a new token");
  return *id;
}

std::string AgentHub::failure_domain(NodeId node) {
  std::string out;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    if (const Node* found = state.find_node(node)) out = control::failure_domain(*found);
  });
  return out;
}
std::string AgentHub::known_boot(NodeId node) {
  std::string out;
  context_.runner->read(
      [&](const control::State& state, const scheduler::Scheduler&) { out = control::boot_of_leases(state, node); });
  return out;
}
std::vector<LeaseId> AgentHub::live_leases(NodeId node) {
  std::vector<LeaseId> out;
  if (!leading_) return out;
  context_.runner->read(
      [&](const control::State& state, const scheduler::Scheduler&) { out = control::renewable_leases(state, node); });
  return out;
}
std::string AgentHub::held(NodeId node) {
  std::string out;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    if (const Node* found = state.find_node(node)) out = held_for(*found);
  });
  return out;
}
void AgentHub::heard(NodeId node, const std::string& domain, LeaseTime now) {
  keeper_.heard(node, domain, now);
}
void AgentHub::granted(LeaseId lease, LeaseTime now) {
  keeper_.granted(lease, now);
}
void AgentHub::renewed(LeaseId lease, LeaseTime now) {
  keeper_.renewed(lease, now);
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
  link->since = now.lease;
  session::ServerOptions options;
  options.server_id = context_.identity.server_id;
  const auto roster_key =
      context_.keys.signing(crypto::KeyKind::Roster, read_clocks().wall, context_.identity.roster_key);
  options.roster_key.assign(roster_key.begin(), roster_key.end());
  // For agents that know no grants: those relays for which the one token of theirs is good.
  const auto relays = context_.relays->relays();
  for (const RelayEntry& relay : *relays)
    if (relay.id == relays->front().id) options.relays.push_back(relay.address);
  for (const RelayEntry& relay : *relays)
    if (options.probe_relays.size() < session::kRelaysMax) options.probe_relays.push_back(relay.address);
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
    link->session = std::make_unique<session::Server>(std::move(options), authority, keeper_.directory(), number | 1,
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
  streams_.link_lost(link->number);  // also of a connection that another one of the same machine took over from
  if (!lost) return;
  const std::lock_guard lock(facts_mutex_);
  nets_.erase(lost);
  telemetry_.erase(lost);  // what a machine that is away did last is no news
}

void AgentHub::on_message(const LinkPtr& link, const Bytes& message) {
  const auto frame = wire::decode_agent_frame(message);
  const auto* hello = frame.ok() ? std::get_if<session::Hello>(&*frame) : nullptr;
  Proof proof;
  if (hello != nullptr && !std::exchange(link->proved, true)) proof = prove(*hello, link->session->hello_bytes());
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
      proof_ = &proof;
      other = !link->session->on_frame(*frame, now) && link->session->welcomed();
      proof_ = nullptr;
      if (hello != nullptr) note_certificate(link, proof, now);
      if (!before && link->session->welcomed()) {
        link->node = link->session->node();
        by_node_[link->node] = link;
        dirty_.insert(link->node);
        wake_.notify_all();
        if (live_) send(link, session::Watch{true});
      }
    }
    flush(link, todo);
  }
  for (const auto& job : todo) job();
  if (other) other_frame(link, *frame);
}

// With the mutex held. Counted on the boot clock: a step of the wall clock ends no link.
void AgentHub::note_certificate(const LinkPtr& link, const Proof& proof, Now now) {
  if (!proof.expiry.ok() || link->renew_by != LeaseTime{0}) return;
  if (proof.certificate.ok()) link->tpm = proof.certificate->tpm;
  const Millis left = proof.given_up ? Millis(0) : std::max(Millis(0), *proof.expiry - now.wall);
  link->renew_by = now.lease + left + kRenewGrace;
}

// With the mutex held.
void AgentHub::flush(const LinkPtr& link, Todo& todo) {
  session::ServerOut out = link->session->take();
  for (const auto& frame : out.send) send(link, frame);
  if (out.report) {
    context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
      for (const ObservedLease& lease : out.report->leases)
        if (control::held_by(state, link->node, lease)) {
          keeper_.acknowledged(lease.lease, lease.roster_epoch);
          if (!lease.output.empty()) note_failure(state, lease);
        }
    });
    todo.push_back([this, link, report = std::move(*out.report)]() mutable { this->report(link, std::move(report)); });
  }
  if (!out.close.empty()) todo.push_back([link, why = out.close] { link->socket->close(why); });
}

void AgentHub::report(const LinkPtr& link, session::Report report) {
  control::Command command;
  if (report.online) {
    std::optional<std::string> held;
    if (report.facts) held = context_.hosts->judge(link->node, *report.facts);
    command = control::NodeOnline{link->node,
                                  std::move(report.facts),
                                  std::move(report.leases),
                                  std::move(report.jobs),
                                  std::move(report.boot_id),
                                  std::move(held)};
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
                            if (done) done(reply.ok());
                          });
}

// Without the mutex: signing takes long, and the signer may be another process. Only out of pump_desired, so that no
// two threads do it for the same machine.
void AgentHub::bring_desired(NodeId node) {
  LinkPtr link;
  Now now;
  std::optional<OrdersDraft> draft;
  const auto relays = context_.relays->relays();
  {
    const std::lock_guard lock(mutex_);
    const auto found = by_node_.find(node);
    if (found == by_node_.end() || found->second->closed) return;
    link = found->second;
    now = read_clocks();
    context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
      const Node* known = state.find_node(node);
      if (known == nullptr ||
          (link->built && !link->stale && link->built_relays == relays &&
           link->built_incarnation == state.incarnation && link->built_revision == known->revision &&
           now.lease - link->built_at < link->renew_after))
        return;
      draft = draft_orders(state, context_.identity, node, now.wall, context_.registries.get());
    });
    if (!draft) return;
    link->stale = false;
  }
  const Millis renew_after = draft->identities.empty()
                                 ? kOrdersRenewed
                                 : std::min(kOrdersRenewed, context_.workloads->lifetime() / kIdentityRenewals);
  session::Desired desired = sign_orders(std::move(*draft), context_.identity, now.wall, *context_.signatures, *relays,
                                         context_.workloads.get());
  // By a key of which nobody has heard yet: the signer knows more than this process, which asks it (run).
  if (!desired.signature.empty() && !keys_named(desired)) {
    keys_unknown_ = true;
    desired.signature.clear();
  }
  Todo todo;
  {
    const std::lock_guard lock(mutex_);
    const auto found = by_node_.find(node);
    if (link->closed || found == by_node_.end() || found->second != link) return;
    link->built_relays = relays;
    link->built = !desired.signature.empty();
    link->built_at = now.lease;
    link->renew_after = renew_after;
    link->built_incarnation = desired.incarnation;
    link->built_revision = desired.revision;
    if (link->built) link->session->renew_desired(std::move(desired), now);
    flush(link, todo);
  }
  for (const auto& job : todo) job();
}

// ---- time

void AgentHub::on_events(const std::vector<engine::DurableEvent>& events) {
  std::set<ClusterId> rosters;
  std::set<NodeId> nodes;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    for (const auto& event : events) {
      if (const ClusterId roster = roster_changed_by(state, event.event)) rosters.insert(roster);
      control::add_revised_nodes(state, event.event, nodes);
      context_.reliability->note(state, event.event);
    }
  });
  {
    const std::lock_guard lock(facts_mutex_);
    for (const auto& event : events) {
      if (const auto* ended = std::get_if<control::LeaseEnded>(&event.event)) pulls_.erase(ended->lease);
      const auto* seen = std::get_if<control::LeaseObserved>(&event.event);
      if (seen != nullptr && seen->phase > LeasePhase::Pulling) pulls_.erase(seen->lease);
      if (const auto* archived = std::get_if<control::Archived>(&event.event))
        for (const ClusterId id : archived->clusters) ray_.erase(id), failures_.erase(id);
    }
  }
  const LeaseTime now = read_clocks().lease;
  const std::lock_guard lock(mutex_);
  for (const auto& event : events) note_event(event.event, now);
  for (const ClusterId roster : rosters) keeper_.roster_changed(roster);
  dirty_.merge(nodes);
  if (!dirty_.empty()) wake_.notify_all();
}

// With the mutex held.
void AgentHub::note_event(const control::Event& event, LeaseTime now) {
  if (const auto* ended = std::get_if<control::LeaseEnded>(&event)) keeper_.lease_ended(ended->lease);
  // Counted from here even if the machine never connects: it may have left before its first Desired.
  if (const auto* granted = std::get_if<control::LeaseGranted>(&event)) keeper_.granted(granted->lease.id, now);
  if (const auto* changed = std::get_if<control::NodeStateChanged>(&event);
      changed != nullptr && (changed->state == NodeState::Revoked || changed->state == NodeState::Quarantined))
    refused_.insert(changed->node);
}

void AgentHub::run() {
  auto next_tick = std::chrono::steady_clock::now();
  while (true) {
    Todo todo;
    const auto pause_ends = std::chrono::steady_clock::now() + kPause;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, kPump, [this] { return stopping_ || !dirty_.empty(); });
      wake_.wait_until(lock, pause_ends, [this] { return stopping_; });
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
      if (due) sweep();
      if (due) tick(now, todo);
    }
    for (const auto& job : todo) job();
    if (due && keys_unknown_.exchange(false)) {
      if (const Status asked = refresh_keys(context_); !asked.ok())
        log_warn("agents", "the signer signs with a key that it does not name: {}", asked.error().message);
    }
    pump_desired();
    streams_.tick();
  }
}

// With the mutex held. A part of all machines every second, also without a reason: no lost event leaves one behind.
void AgentHub::sweep() {
  std::size_t left = links_.size() / kSweepTicks + 1;
  for (auto it = links_.upper_bound(swept_); left > 0; ++it, --left) {
    if (it == links_.end()) {
      swept_ = 0;
      return;
    }
    swept_ = it->first;
    if (it->second->node) dirty_.insert(it->second->node);
  }
}

void AgentHub::pump_desired() {
  std::vector<NodeId> nodes;
  {
    const std::lock_guard lock(mutex_);
    nodes.assign(dirty_.begin(), dirty_.end());
    dirty_.clear();
  }
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < nodes.size(); i = next++) bring_desired(nodes[i]);
  };
  std::latch helped(1);
  const bool help = nodes.size() >= kWorthHelp && orders_.post([&] {
    work();
    helped.count_down();
  });
  work();
  if (help) helped.wait();
}

// The keeper says each again until the core has it.
void AgentHub::tell_core(const session::Verdicts& verdicts, Todo& todo) {
  const auto tell = [&](control::Command command) {
    todo.push_back([this, command = std::move(command)] { submit_system(command); });
  };
  if (verdicts.freeze) tell(control::SetFreeze{verdicts.freeze->frozen, verdicts.freeze->reason});
  for (const NodeId node : verdicts.contested) {
    todo.push_back([this, node] {
      submit_system(control::NodeContested{node}, [this, node](bool ok) {
        const std::lock_guard lock(mutex_);
        if (ok) keeper_.contested_taken(node);
      });
    });
  }
  for (const NodeId node : verdicts.suspect) tell(control::NodeSuspect{node});
  for (const NodeId node : verdicts.lost) tell(control::NodeLost{node});
  if (!verdicts.expired.empty()) tell(control::LeasesExpired{verdicts.expired});
  if (!verdicts.late.empty()) tell(control::RostersLate{verdicts.late});
  for (const NodeId node : verdicts.again) {
    const auto found = by_node_.find(node);
    if (found == by_node_.end()) continue;
    found->second->session->report_again();
    flush(found->second, todo);
  }
}

void AgentHub::tick(Now now, Todo& todo) {
  // The operator changed the list: orders have a token for each.
  if (context_.relays->refresh()) {
    for (const auto& [node, link] : by_node_) dirty_.insert(node);
  }
  for (const NodeId node : std::exchange(refused_, {})) {
    keeper_.forget(node);
    const auto found = by_node_.find(node);
    if (found == by_node_.end()) continue;
    NodeState is = NodeState::Revoked;
    context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
      if (const Node* known = state.find_node(node)) is = known->state;
    });
    if (is == NodeState::Quarantined)
      found->second->session->refuse(std::string(session::kQuarantined), std::string(session::kQuarantinedText),
                                     session::kQuarantineRetry);
    else if (is == NodeState::Revoked)  // else somebody enabled it meanwhile
      found->second->session->refuse("revoked", "this machine was revoked", Millis(0));
    flush(found->second, todo);
  }
  session::Verdicts verdicts;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    verdicts = keeper_.tick(now.lease, CoreState(state), leading_);
  });
  tell_core(verdicts, todo);
  if (leading_ && now.lease - judged_at_ >= kJudgeEvery) {
    judged_at_ = now.lease;
    judge_ways(now.lease, todo);
  }
  if (now.lease - places_at_ >= options_.places_every) {
    places_at_ = now.lease;
    if (auto moved = context_.ways->moved(); !moved.places.empty()) context_.runner->tell_planner({std::move(moved)});
    tell_reliability(now, todo);
  }
  if (now.lease - ways_at_ >= options_.ways_every) {
    ways_at_ = now.lease;
    todo.push_back([this] {
      context_.pool->post([this] {
        if (const Status saved = context_.ways->save(read_clocks().wall); !saved.ok())
          log_warn("agents", "what was measured between machines is not kept: {}", saved.error().message);
        if (const Status saved = context_.reliability->save(); !saved.ok())
          log_warn("agents", "how reliable machines are is not kept: {}", saved.error().message);
      });
    });
  }
  if (leading_ && now.lease - carried_at_ >= options_.carried_every) {
    carried_at_ = now.lease;
    count_carried(todo);
  }
  note_behind(now.lease, todo);
  follow_keys(now.wall);
  for (const auto& [number, link] : links_) {
    const bool before = link->session->welcomed();
    link->session->tick(now);
    if (!before && link->session->welcomed()) {  // waited behind another session of the same key
      link->node = link->session->node();
      by_node_[link->node] = link;
      dirty_.insert(link->node);
    }
    if (link->renew_by != LeaseTime{0} && now.lease >= link->renew_by)
      link->session->refuse("certificate_expired", "this machine's certificate ended and was not renewed",
                            Millis(1000));
    flush(link, todo);
  }
  std::map<std::uint64_t, session::Verdict> kicked;
  for (const auto& each : keeper_.directory().take_kicked()) kicked.emplace(each.session, each.why);
  for (auto it = links_.begin(); it != links_.end() && !kicked.empty(); ++it) {
    const auto found = kicked.find(it->second->session->session());
    if (found == kicked.end()) continue;
    it->second->session->kick(found->second, now);
    flush(it->second, todo);
  }
  const bool live = now.lease < watch_until_;
  if (live != live_) {
    live_ = live;
    for (const auto& [id, link] : by_node_) send(link, session::Watch{live});
  }
}

// What changed; now and then of all machines, beside the loop: there may be very many.
void AgentHub::tell_reliability(Now now, Todo& todo) {
  if (auto news = context_.reliability->news(now.wall); !news.nodes.empty())
    context_.runner->tell_planner({std::move(news)});
  if (reliability_at_ != LeaseTime{0} && now.lease - reliability_at_ < options_.reliability_every) return;
  reliability_at_ = now.lease;
  todo.push_back([this] {
    context_.pool->post([this] {
      scheduler::ReliabilityChanged all;
      context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
        all = context_.reliability->all(state, read_clocks().wall);
      });
      if (!all.nodes.empty()) context_.runner->tell_planner({std::move(all)});
    });
  });
}

void AgentHub::judge_ways(LeaseTime now, Todo& todo) {
  std::vector<control::JudgePairs> judged;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const std::lock_guard lock(facts_mutex_);
    judged = judge_all_pairs(state, pairs_, now);
  });
  for (auto& each : judged) todo.push_back([this, command = std::move(each)] { submit_system(command); });
}

// One amount at a time is on its way: what the core does not take stays owed.
void AgentHub::count_carried(Todo& todo) {
  std::vector<session::CarriedBook::Owed> owed;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const std::lock_guard lock(facts_mutex_);
    carried_.keep_only([&](ClusterId id) { return state.find_cluster(id) != nullptr; });
    if (!counting_) owed = carried_.owed();
    counting_ = counting_ || !owed.empty();
  });
  if (owed.empty()) return;
  todo.push_back([this, owed = std::move(owed)] {
    control::CountCarried command;
    for (const auto& each : owed) command.amounts.push_back({each.cluster, each.node, each.bytes});
    submit_system(std::move(command), [this, owed](bool ok) {
      const std::lock_guard lock(facts_mutex_);
      counting_ = false;
      if (ok) carried_.kept(owed);
    });
  });
}

void AgentHub::watch() {
  const std::lock_guard lock(mutex_);
  watch_until_ = read_clocks().lease + Millis(30'000);
}

AgentHub::Counts AgentHub::counts() const {
  const std::lock_guard lock(mutex_);
  return {by_node_.size(), streams_.size(), keeper_.leases().size(), keeper_.frozen(), leading_};
}

std::optional<RayFacts> AgentHub::ray(ClusterId cluster) const {
  const std::lock_guard lock(facts_mutex_);
  const auto found = ray_.find(cluster);
  return found == ray_.end() ? std::nullopt : std::optional(found->second);
}
std::vector<std::pair<NodeId, session::Telemetry>> AgentHub::latest_telemetry(std::size_t max) const {
  std::vector<std::pair<NodeId, session::Telemetry>> out;
  {
    const std::lock_guard lock(facts_mutex_);
    for (const auto& [node, ring] : telemetry_) {
      if (out.size() >= max) break;
      if (!ring.empty()) out.emplace_back(node, ring.back());
    }
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return out;
}
std::string AgentHub::owner_word(NodeId node) const {
  const std::lock_guard lock(facts_mutex_);
  const auto found = owner_.find(node);
  return found == owner_.end() ? std::string() : found->second;
}
void AgentHub::set_owner_word(NodeId node, const std::string& text) {
  const std::lock_guard lock(facts_mutex_);
  if (text.empty())
    owner_.erase(node);
  else
    owner_[node] = text;
}
std::optional<PullFacts> AgentHub::pull(LeaseId lease) const {
  const std::lock_guard lock(facts_mutex_);
  const auto found = pulls_.find(lease);
  return found == pulls_.end() ? std::nullopt : std::optional(found->second);
}
std::vector<wire::FailureView> AgentHub::failures(ClusterId cluster) const {
  const std::lock_guard lock(facts_mutex_);
  const auto found = failures_.find(cluster);
  if (found == failures_.end()) return {};
  return {found->second.begin(), found->second.end()};
}
// Said again with every report until the lease is gone: one entry for each.
void AgentHub::note_failure(const control::State& state, const ObservedLease& seen) {
  const Lease* lease = state.find_lease(seen.lease);
  const Slot* slot = lease == nullptr ? nullptr : state.find_slot(lease->slot);
  if (slot == nullptr) return;
  const Node* node = state.find_node(lease->node);
  wire::FailureView failure{slot->id,    slot->role,  node == nullptr ? "" : node->name,
                            seen.reason, seen.output, read_clocks().wall};
  const std::lock_guard lock(facts_mutex_);
  auto& all = failures_[lease->cluster];
  const auto known = std::find_if(all.begin(), all.end(), [&](const auto& each) { return each.slot == slot->id; });
  if (known != all.end()) {
    if (known->output == failure.output && known->reason == failure.reason) return;
    all.erase(known);
  }
  all.push_back(std::move(failure));
  while (all.size() > kFailuresKept) all.pop_front();
}
std::optional<NetFacts> AgentHub::net(NodeId node, LeaseId lease) const {
  const std::lock_guard lock(facts_mutex_);
  const auto leases = nets_.find(node);
  if (leases == nets_.end()) return {};
  const auto found = leases->second.find(lease);
  return found == leases->second.end() ? std::nullopt : std::optional(found->second);
}
AgentHub::NetCounts AgentHub::net_counts() const {
  NetCounts out;
  const std::lock_guard lock(facts_mutex_);
  for (const auto& [node, leases] : nets_)
    for (const auto& [lease, facts] : leases) {
      for (const session::NetRelay& relay : facts.report.relays) out.on_relay[relay.address] += relay.up ? 1 : 0;
      for (const session::NetPair& pair : facts.report.pairs) {
        if (pair.path == session::NetPath::Relay) ++(pair.relay_udp ? out.relayed_udp : out.relayed);
        out.lan += pair.path == session::NetPath::Lan ? 1 : 0;
        out.direct += pair.path == session::NetPath::Direct ? 1 : 0;
        out.peer += pair.path == session::NetPath::Peer ? 1 : 0;
        out.limited += pair.carries_bytes_s > 0 ? 1 : 0;
      }
    }
  return out;
}
std::optional<session::Telemetry> AgentHub::telemetry(NodeId node) const {
  const std::lock_guard lock(facts_mutex_);
  const auto found = telemetry_.find(node);
  return found == telemetry_.end() || found->second.empty() ? std::nullopt : std::optional(found->second.back());
}

}  // namespace muster::server
