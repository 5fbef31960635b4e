#include "sim/server.h"

#include <algorithm>

#include "crypto/hash.h"
#include "sim/node.h"
#include "wire/agent_frames.h"

namespace muster::sim {
namespace {
Bytes digest_of(const Bytes& bytes) {
  const crypto::Digest digest = crypto::sha256(bytes);
  return Bytes(digest.begin(), digest.begin() + 8);
}
}  // namespace

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
  // Whatever left before the crash must still be there, byte for byte.
  if (base->seq < published_hashes_.size())
    watcher_->journal_rewritten("the tail moved back behind an acknowledged entry");
  const Result<std::vector<Bytes>> entries = store_->read_all(1, published_hashes_.size());
  for (std::size_t i = 0; entries.ok() && i < std::min(entries->size(), published_hashes_.size()); ++i) {
    if (digest_of((*entries)[i]) != published_hashes_[i])
      watcher_->journal_rewritten("entry " + std::to_string(i + 1) + " changed");
  }
  // What was committed without an answer is now read back and thereby public.
  if (const auto rest = store_->read_all(published_hashes_.size() + 1, 1'000'000); rest.ok()) {
    for (const Bytes& entry : *rest) published_hashes_.push_back(digest_of(entry));
  }
  follower_ = std::make_unique<engine::Follower>(*base, engine::Follower::Options{});
  engine::Engine::Options options;
  options.lane_max = 512;
  options.digest_every = 64;
  engine_ = std::make_unique<engine::Engine>(options, *store_, std::move(*base), [this] { return follower_->base(); });
  std::vector<std::pair<NodeId, std::string>> known;
  std::vector<LeaseId> live;
  for (const auto& [id, node] : state().nodes) {
    if (node.state == NodeState::Online || node.state == NodeState::Suspect || node.state == NodeState::Draining)
      known.emplace_back(id, failure_domain(id));
  }
  for (const auto& [id, lease] : state().leases) {
    if (lease.end == LeaseEnd::None) live.push_back(id);
  }
  liveness_.start(known, world_->now());
  leases_.start(live, world_->now());
  directory_ = session::Directory();
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
      if (reply.result.ok() && reply.result->seq > published_hashes_.size())
        world_->fail("I2: a reply left before its entry was durable");
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
    // The store must hold it: a reply or a view of something that a crash undoes would be a lie.
    const auto stored = store_->read_all(folded->seq, 1);
    if (stored.ok() && (stored->empty() || stored->front() != entry))
      world_->fail("I2: an entry left the engine before the store had it");
    if (folded->seq == published_hashes_.size() + 1) published_hashes_.push_back(digest_of(entry));
    world_->note(control::event_name(folded->event));
    world_->note(control::event_subject(folded->event));
    if (const auto* granted_event = std::get_if<control::LeaseGranted>(&folded->event))
      leases_.granted(granted_event->lease.id, world_->now());
    if (const auto* ended = std::get_if<control::LeaseEnded>(&folded->event)) leases_.ended(ended->lease);
    watcher_->durable(*folded, state());
  }
  for (auto& [id, connection] : connections_) {
    push_desired(*connection.session);
  }
  std::vector<std::uint64_t> open;
  for (const auto& [id, connection] : connections_) open.push_back(id);
  for (const std::uint64_t id : open) drain(id);
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
  auto session = std::make_unique<session::Server>(options, *this, directory_, next_session_++, nonce);
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
    if (out.report->online) {
      command = control::NodeOnline{node, out.report->facts, out.report->leases, out.report->jobs};
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
  for (const session::Kicked& kicked : directory_.take_kicked()) {
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

void SimServer::tick() {
  const std::uint64_t life = life_;
  for (const session::LivenessEvent& event : liveness_.tick(world_->now())) {
    if (const auto* freeze = std::get_if<session::FreezeTurned>(&event)) {
      world_->note(freeze->frozen ? "freeze" : "thaw");
      submit_system(control::SetFreeze{freeze->frozen, freeze->reason});
    }
  }
  // Level-triggered: what the table says is compared with what the core holds, so a refused command is asked again.
  if (leading()) {
    if (state().frozen != liveness_.frozen()) submit_system(control::SetFreeze{liveness_.frozen(), "mass silence"});
    for (const auto& [id, node] : state().nodes) {
      const auto heard_state = liveness_.find(id);
      if (!heard_state) continue;
      if (*heard_state == session::Heard::Lost &&
          (node.state == NodeState::Online || node.state == NodeState::Suspect || node.state == NodeState::Draining)) {
        submit_system(control::NodeLost{id});
      } else if (*heard_state == session::Heard::Suspect &&
                 (node.state == NodeState::Online || node.state == NodeState::Draining)) {
        submit_system(control::NodeSuspect{id});
      }
    }
    if (const std::vector<LeaseId> expired = leases_.expired(world_->now()); !expired.empty())
      submit_system(control::LeasesExpired{expired});
  }
  std::vector<std::uint64_t> open;
  for (auto& [id, connection] : connections_) {
    open.push_back(id);
    session::Server& session = *connection.session;
    session.tick(now());
    if (!session.ready()) continue;
    const muster::Node* node = state().find_node(session.node());
    const bool lost = node != nullptr && (node->state == NodeState::Lost || node->state == NodeState::Suspect ||
                                          node->state == NodeState::Admitted);
    if (lost && liveness_.find(session.node()) == session::Heard::Live) session.report_again();
    push_desired(session);
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
  return it->second;
}

std::string SimServer::failure_domain(NodeId node) {
  const muster::Node* found = state().find_node(node);
  return found == nullptr ? "" : found->supplier.str();
}

std::vector<LeaseId> SimServer::live_leases(NodeId node) {
  if (!leading()) return {};
  std::vector<LeaseId> live;
  for (const LeaseId lease : state().live_leases(node)) {
    if (state().leases.at(lease).want != LeaseWant::Stop) live.push_back(lease);
  }
  return live;
}

void SimServer::heard(NodeId node, const std::string& domain, LeaseTime at) {
  liveness_.heard(node, domain, at);
}

void SimServer::renewed(LeaseId lease, LeaseTime at) {
  leases_.renewed(lease, at);
  const Lease* found = state().find_lease(lease);
  if (found != nullptr) watcher_->renewed(found->node, lease);
}

}  // namespace muster::sim
