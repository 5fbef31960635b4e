#include "sim/server.h"

#include <algorithm>

#include "server/core_state.h"
#include "sim/node.h"
#include "wire/agent_frames.h"

namespace muster::sim {
SimServer::SimServer(World& world, journal::Store& store, ServerWatcher& watcher, ToAgent to_agent, HangUp hang_up)
    : world_(&world),
      store_(&store),
      watcher_(&watcher),
      to_agent_(std::move(to_agent)),
      hang_up_(std::move(hang_up)) {}

control::Actor SimServer::system_actor() {
  control::Actor actor;
  actor.system = true;
  return actor;
}

void SimServer::start() {
  ++life_;
  Result<engine::Base> base = engine::load_base(*store_);
  if (!base) return world_->fail("I2: the journal does not load: " + base.error().message);
  watcher_->started(*base);
  follower_ = std::make_unique<engine::Follower>(*base, engine::Follower::Options{});
  engine::Engine::Options options;
  options.lane_max = kLaneMax;
  options.digest_every = 64;
  engine_ = std::make_unique<engine::Engine>(options, *store_, std::move(*base), [this] { return follower_->base(); });
  keeper_.start(server::keeper_start(state()), server::CoreState(state()), world_->now());
  server::start_pairs(state(), pairs_, world_->now());
  if (const Status started = engine_->start(now()); !started) world_->note("engine start: " + started.error().message);
  pump();
  world_->after(Millis(1000), [this, life = life_] {
    if (life == life_ && up()) tick();
  });
}

void SimServer::crash() {
  ++life_;
  engine_.reset();
  follower_.reset();
  replies_.clear();
  std::vector<std::uint64_t> open;
  for (const auto& [id, connection] : connections_) open.push_back(id);
  connections_.clear();
  for (const std::uint64_t id : open) hang_up_(id);
}

void SimServer::submit(control::Lane lane, control::Command command, control::Actor actor,
                       std::function<void(const Result<engine::Reply>&)> reply) {
  if (!up()) return reply(error(Code::Unavailable, "down"));
  const std::uint64_t token = next_token_++;
  if (const Status taken = engine_->submit(lane, std::move(command), std::move(actor), token); !taken)
    return reply(taken.error());
  replies_[token] = std::move(reply);
  pump();
}

void SimServer::pump() {
  if (pumping_ || !up()) return;
  pumping_ = true;
  const std::uint64_t life = life_;
  for (bool more = true; more && life == life_ && up();) {
    more = false;
    if (auto batch = engine_->poll(now())) {
      const Millis disk(world_->rng.between(1, 40));
      world_->after(disk, [this, life, request = std::move(*batch)] {
        if (life != life_ || !up()) return;  // died before the commit
        store_->append(request, [this, life](journal::AppendResult result) {
          world_->after(Millis(world_->rng.between(0, 40)), [this, life, result] {
            if (life != life_ || !up()) return;  // died after the commit, before the answer
            engine_->on_append(result, now());
            pump();
          });
        });
      });
    }
    engine::Output out = engine_->take_output();
    follower_->expect(out.digests);
    if (!out.entries.empty()) fold(out.entries);
    for (engine::TokenReply& reply : out.replies) {
      more = true;
      if (reply.token == engine::Engine::kPlanToken) {
        follower_->plan_done(reply.result);
        continue;
      }
      const auto it = replies_.find(reply.token);
      if (it == replies_.end()) continue;
      auto callback = std::move(it->second);
      replies_.erase(it);
      if (reply.result.ok()) watcher_->answered(*reply.result);
      callback(reply.result);
      if (life != life_ || !up()) break;
    }
    if (life != life_ || !up()) break;
    if (auto plan = follower_->plan(now())) {
      if (const Status taken = engine_->submit_plan(std::move(*plan)); !taken) follower_->plan_done(taken.error());
      more = true;
    }
  }
  pumping_ = false;
  if (up() && !poll_set_) {
    poll_set_ = true;
    const LeaseTime due = std::min(engine_->next_deadline(), follower_->next_plan());
    world_->after(std::clamp(due - world_->now(), Millis(1), Millis(1000)), [this] {
      poll_set_ = false;
      pump();
    });
  }
}

void SimServer::fold(const std::vector<Bytes>& entries) {
  std::set<NodeId> touched;
  for (const Bytes& entry : entries) {
    const Result<engine::DurableEvent> folded = follower_->fold(entry);
    if (!folded) return world_->fail("I2: the follower cannot fold an entry: " + folded.error().message);
    watcher_->left(folded->seq, entry);
    world_->note(control::event_name(folded->event));
    world_->note(control::event_subject(folded->event));
    if (world_->verbose) world_->trace(control::describe(folded->event));
    if (const auto* granted_event = std::get_if<control::LeaseGranted>(&folded->event))
      keeper_.granted(granted_event->lease.id, world_->now());
    if (const auto* ended = std::get_if<control::LeaseEnded>(&folded->event)) keeper_.lease_ended(ended->lease);
    if (const ClusterId roster = server::roster_changed_by(state(), folded->event)) keeper_.roster_changed(roster);
    watcher_->durable(*folded, state());
    if (folded->seq % 97 == 0) save_snapshot();
  }
  for (auto& [id, connection] : connections_) {
    push_desired(*connection.session);
  }
  std::vector<std::uint64_t> open;
  for (const auto& [id, connection] : connections_) open.push_back(id);
  for (const std::uint64_t id : open) drain(id);
}

// As musterd does it from time to time; the next start begins from it, or from an older one when it is damaged.
void SimServer::save_snapshot() {
  if (world_->rng.chance(1, 2)) return;
  if (const Status saved = store_->save_snapshot(follower_->snapshot()); !saved) return world_->note("no snapshot");
  if (world_->rng.chance(1, 4)) (void)store_->archive_before(follower_->seq() / 2);
}

session::Desired SimServer::desired_of(NodeId node) const {
  session::Desired desired;
  desired.incarnation = state().incarnation;
  desired.revision = state().nodes.at(node).revision;
  desired.assignments = control::desired_for(state(), node);
  std::set<ClusterId> seen;
  for (const Assignment& a : desired.assignments) {
    if (a.want == LeaseWant::Stop) continue;
    const Bytes secret = sim_sign(controller_key(), as_bytes(a.cluster.str()));
    desired.secrets.push_back({a.lease, secret, secret, secret});
    if (!seen.insert(a.cluster).second) continue;
    const Bytes bytes = encode_roster(a.cluster, a.roster_epoch, a.roster);
    desired.rosters.push_back({a.cluster, bytes, {sim_sign(controller_key(), bytes)}});
  }
  desired.signature = sim_sign(controller_key(), wire::desired_signing_bytes(node, desired));
  return desired;
}

void SimServer::push_desired(session::Server& session) {
  if (!session.welcomed()) return;
  const muster::Node* node = state().find_node(session.node());
  if (node == nullptr) return;
  if (node->state == NodeState::Revoked) return session.refuse("revoked", "this machine was revoked", Millis(0));
  if (node->state == NodeState::Quarantined)
    return session.refuse(std::string(session::kQuarantined), "quarantined", session::kQuarantineRetry);
  session.set_desired(desired_of(session.node()), now());
}

void SimServer::connect(std::uint64_t connection) {
  if (!up()) return hang_up_(connection);
  session::ServerOptions options;
  options.server_id = "sim";
  options.roster_key = controller_key();
  options.incarnation = state().incarnation;
  options.lease = kLease;
  Bytes nonce(32);
  for (auto& byte : nonce) byte = static_cast<std::uint8_t>(world_->rng.below(256));
  auto session = std::make_unique<session::Server>(options, *this, keeper_.directory(), next_session_++, nonce);
  session->open(now());
  connections_[connection].session = std::move(session);
  drain(connection);
}

void SimServer::disconnect(std::uint64_t connection) {
  const auto it = connections_.find(connection);
  if (it == connections_.end()) return;
  it->second.session->close(now());
  connections_.erase(it);
}

void SimServer::drain(std::uint64_t connection) {
  const auto it = connections_.find(connection);
  if (it == connections_.end()) return;
  session::ServerOut out = it->second.session->take();
  const std::uint64_t session_id = it->second.session->session();
  for (const session::ServerFrame& frame : out.send) to_agent_(connection, frame);
  if (out.report) {
    const NodeId node = it->second.session->node();
    control::Actor actor = system_actor();
    control::Command command;
    for (const ObservedLease& lease : out.report->leases)
      if (control::held_by(state(), node, lease)) keeper_.acknowledged(lease.lease, lease.roster_epoch);
    if (out.report->online) {
      command = control::NodeOnline{node, out.report->facts, out.report->leases, out.report->jobs, out.report->boot_id};
    } else {
      actor.system = false;
      actor.subject.node = node;
      command = control::ReportObserved{node, out.report->revision, out.report->leases, out.report->jobs};
    }
    submit(control::Lane::Liveness, std::move(command), actor,
           [this, connection, session_id](const Result<engine::Reply>& reply) {
             const auto c = connections_.find(connection);
             if (c == connections_.end() || c->second.session->session() != session_id) return;
             c->second.session->taken(reply.ok(), now());
             push_desired(*c->second.session);
             drain(connection);
           });
  }
  if (!out.close.empty()) {
    disconnect(connection);
    world_->after(Millis(200), [this, connection] { hang_up_(connection); });
  }
  kick();
}

void SimServer::kick() {
  for (const session::Kicked& kicked : keeper_.directory().take_kicked()) {
    for (auto& [id, other] : connections_) {
      if (other.session->session() != kicked.session) continue;
      other.session->kick(kicked.why, now());
      drain(id);
      break;
    }
  }
}

void SimServer::from_agent(std::uint64_t connection, const session::AgentFrame& frame) {
  const auto it = connections_.find(connection);
  if (it == connections_.end()) return;
  session::Server& session = *it->second.session;
  if (!session.on_frame(frame, now())) {
    if (const auto* chunk = std::get_if<session::LogChunk>(&frame)) {
      Bytes& log = logs[{chunk->job, chunk->attempt}];
      if (chunk->offset <= log.size() && chunk->offset + chunk->data.size() > log.size()) {
        log.insert(log.end(), chunk->data.begin() + static_cast<std::ptrdiff_t>(log.size() - chunk->offset),
                   chunk->data.end());
      }
      to_agent_(connection, session::LogAck{chunk->job, chunk->attempt, log.size()});
    } else if (const auto* net = std::get_if<session::NetReport>(&frame); net != nullptr && session.ready()) {
      server::note_pairs(state(), session.node(), *net, pairs_, world_->now());
    } else if (const auto* pause = std::get_if<session::OwnerPause>(&frame)) {
      control::Actor actor;
      actor.subject.node = session.node();
      // Not stored: the agent says it again on its next session.
      submit(control::Lane::Supplier, control::NodePaused{session.node(), pause->paused, pause->now}, actor,
             [this, connection](const Result<engine::Reply>& reply) {
               if (!reply.ok())
                 world_->after(Millis(1), [this, connection] { disconnect(connection), hang_up_(connection); });
             });
    }
  }
  push_desired(session);
  drain(connection);
}

// As musterd does it: the keeper says each again until the core has it.
void SimServer::tell_core(const session::Verdicts& verdicts) {
  if (verdicts.freeze) {
    world_->note(verdicts.freeze->frozen ? "freeze" : "thaw");
    submit_system(control::SetFreeze{verdicts.freeze->frozen, verdicts.freeze->reason});
  }
  for (const NodeId node : verdicts.contested) {
    world_->note("contested " + node.str());
    submit(control::Lane::Liveness, control::NodeContested{node}, system_actor(),
           [this, node](const Result<engine::Reply>& reply) {
             if (reply.ok()) keeper_.contested_taken(node);
           });
  }
  for (const NodeId node : verdicts.suspect) submit_system(control::NodeSuspect{node});
  for (const NodeId node : verdicts.lost) submit_system(control::NodeLost{node});
  if (!verdicts.expired.empty()) submit_system(control::LeasesExpired{verdicts.expired});
  if (!verdicts.late.empty()) submit_system(control::RostersLate{verdicts.late});
  for (const NodeId node : verdicts.again) {
    for (auto& [id, connection] : connections_)
      if (connection.session->ready() && connection.session->node() == node) connection.session->report_again();
  }
}

void SimServer::tick() {
  const std::uint64_t life = life_;
  tell_core(keeper_.tick(world_->now(), server::CoreState(state()), leading()));
  if (leading() && world_->now() - judged_at_ >= server::kJudgeEvery) {
    judged_at_ = world_->now();
    for (control::JudgePairs& judged : server::judge_all_pairs(state(), pairs_, world_->now()))
      submit_system(std::move(judged));
  }
  if (life != life_ || !up()) return;
  std::vector<std::uint64_t> open;
  for (auto& [id, connection] : connections_) {
    open.push_back(id);
    session::Server& session = *connection.session;
    session.tick(now());
    if (session.ready()) push_desired(session);
  }
  for (const std::uint64_t id : open) {
    if (life == life_ && up()) drain(id);
  }
  pump();
  world_->after(Millis(1000), [this, life] {
    if (life == life_ && up()) tick();
  });
}

Result<NodeId> SimServer::verify(const session::Hello& hello, ByteView message) {
  const std::optional<Bytes> key = unhex(hello.certificate_pem);
  if (!key) return error(Code::Unauthenticated, "certificate");
  const auto it = state().node_by_key.find(*key);
  if (it == state().node_by_key.end()) return error(Code::Unavailable, "this machine is not enrolled yet");
  if (hello.signature != sim_sign(*key, message))
    return error(Code::Unauthenticated, "the signature does not fit the certificate");
  if (state().nodes.at(it->second).state == NodeState::Revoked) return error(Code::PermissionDenied, "revoked");
  if (state().nodes.at(it->second).state == NodeState::Quarantined)
    return error(Code::FailedPrecondition, "quarantined", std::string(session::kQuarantined));
  return it->second;
}

std::string SimServer::failure_domain(NodeId node) {
  const muster::Node* found = state().find_node(node);
  return found == nullptr ? "" : control::failure_domain(*found);
}

std::string SimServer::known_boot(NodeId node) {
  return control::boot_of_leases(state(), node);
}

std::vector<LeaseId> SimServer::live_leases(NodeId node) {
  return leading() ? control::renewable_leases(state(), node) : std::vector<LeaseId>{};
}

void SimServer::heard(NodeId node, const std::string& domain, LeaseTime at) {
  keeper_.heard(node, domain, at);
}

void SimServer::renewed(LeaseId lease, LeaseTime at) {
  keeper_.renewed(lease, at);
  const Lease* found = state().find_lease(lease);
  if (found != nullptr) watcher_->renewed(found->node, lease);
}

}  // namespace muster::sim
