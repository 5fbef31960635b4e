// What agents send beside the session itself: logs, Ray's reports, blobs, certificates, telemetry, streams.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/log.h"
#include "crypto/cert.h"
#include "model/venv_image.h"
#include "server/agents.h"
#include "server/blob_store.h"
#include "server/core_state.h"
#include "server/desired.h"
#include "server/image_scans.h"
#include "server/relay_book.h"
#include "server/way_memory.h"
#include "session/carried.h"

namespace muster::server {
namespace {
constexpr Millis kCertificateEvery{2'000};
}

void AgentHub::other_frame(const LinkPtr& link, const session::AgentFrame& frame) {
  if (const auto* log = std::get_if<session::LogChunk>(&frame)) return on_log(link, *log);
  if (const auto* ray = std::get_if<session::RayReportFrame>(&frame)) return on_ray(link, ray->report);
  if (const auto* blob = std::get_if<session::BlobRequest>(&frame)) return on_blob(link, *blob);
  if (const auto* pull = std::get_if<session::PullReport>(&frame)) return on_pull(link, *pull);
  if (const auto* lock = std::get_if<session::LockOffer>(&frame)) return on_lock(link, *lock);
  if (const auto* packages = std::get_if<session::PackagesOffer>(&frame))
    return context_.images->offered(link->node, *packages);
  if (const auto* trust = std::get_if<session::TrustTaken>(&frame)) return on_trust(link, *trust);
  if (const auto* keys = std::get_if<session::KeysTaken>(&frame)) return on_keys(link, *keys);
  if (const auto* net = std::get_if<session::NetReport>(&frame)) return on_net(link, *net);
  if (const auto* request = std::get_if<session::CertRequest>(&frame)) return on_certificate(link, *request);
  if (const auto* sample = std::get_if<session::Telemetry>(&frame)) return on_telemetry(link, *sample);
  if (const auto* pause = std::get_if<session::OwnerPause>(&frame)) {
    set_owner_word(link->node, pause->paused ? pause->reason : std::string());
    return submit(link->node, control::NodePaused{link->node, pause->paused, pause->now}, [link](bool stored) {
      if (!stored) link->socket->close("the owner's word could not be stored; say it again");
    });
  }
  if (const auto* bye = std::get_if<session::Goodbye>(&frame)) {
    if (bye->leave) submit(link->node, control::NodeLeft{link->node});
    return;
  }
  streams_.from_agent(link->number, frame);
}

void AgentHub::on_log(const LinkPtr& link, const session::LogChunk& chunk) {
  // Only the machine whose head runs the job may write its log.
  bool allowed = false;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Job* job = state.find_job(chunk.job);
    if (job == nullptr || chunk.attempt == 0 || chunk.attempt > job->attempt) return;
    for (const LeaseId id : state.cluster_leases(job->cluster)) {
      const Lease* lease = state.find_lease(id);
      const Slot* slot = lease != nullptr ? state.find_slot(lease->slot) : nullptr;
      if (lease != nullptr && lease->node == link->node && slot != nullptr && slot->role == SlotRole::Head)
        allowed = true;
    }
  });
  if (!allowed) return;
  const std::weak_ptr<Link> weak = link;
  const Status stored = context_.logs->append(chunk.job, chunk.attempt, chunk.offset, chunk.data,
                                              [weak, job = chunk.job, attempt = chunk.attempt](std::uint64_t offset) {
                                                if (const auto held = weak.lock())
                                                  send(held, session::LogAck{job, attempt, offset});
                                              });
  if (stored.ok()) return follow_->poke();
  if (stored.error().code == Code::FailedPrecondition) {
    send(link, session::LogAck{chunk.job, chunk.attempt,
                               context_.logs->size(chunk.job, chunk.attempt)});  // says where to go on
  } else {
    log_warn("logs", "{}", stored.error().message);
  }
}

void AgentHub::on_ray(const LinkPtr& link, const RayReport& report) {
  bool allowed = false;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Lease* lease = state.find_lease(report.lease);
    const Slot* slot = lease != nullptr ? state.find_slot(lease->slot) : nullptr;
    allowed = lease != nullptr && lease->node == link->node && lease->cluster == report.cluster &&
              lease->end == LeaseEnd::None && slot != nullptr && slot->role == SlotRole::Head;
  });
  if (!allowed) return;
  {
    const std::lock_guard lock(facts_mutex_);
    ray_[report.cluster] = {report, read_clocks().wall};
  }
  submit(link->node, control::ReportRay{link->node, report});
}

void AgentHub::on_blob(const LinkPtr& link, const session::BlobRequest& request) {
  session::BlobChunk chunk;
  chunk.blob = request.blob;
  chunk.offset = request.offset;
  bool named = false;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    named = names_blob(control::desired_for(state, link->node), request.blob);
  });
  const Status may = access::check({{}, Role::None, {}, link->node, {}}, access::Verb::Read,
                                   {access::Kind::Blob, {}, named ? link->node : NodeId{}, {}});
  if (!may.ok()) {
    chunk.error = "no assignment of this machine names this blob";
    send(link, chunk);
    return;
  }
  const bool queued = context_.pool->post([this, link, chunk]() mutable {
    auto bytes = context_.blobs->read(chunk.blob, chunk.offset, session::kChunkBytesMax, chunk.last);
    if (bytes.ok()) {
      chunk.data = std::move(*bytes);
    } else {
      chunk.error = bytes.error().message;
    }
    send(link, chunk);
  });
  if (queued) return;
  chunk.error = "the server is busy; ask again";
  send(link, chunk);
}

void AgentHub::on_pull(const LinkPtr& link, const session::PullReport& report) {
  bool pulling = false;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Lease* lease = state.find_lease(report.lease);
    pulling = lease != nullptr && lease->node == link->node && lease->end == LeaseEnd::None &&
              lease->phase <= LeasePhase::Pulling;
  });
  if (!pulling) return;
  const std::lock_guard lock(facts_mutex_);
  pulls_[report.lease] = {report.done_bytes, report.total_bytes};
}

// Only of leases that the machine has; those that ended are forgotten with the next report.
namespace {
void keep_plain(std::string& name) {
  std::erase_if(name, [](char c) { return c <= ' ' || c > '~'; });
}
}  // namespace

void AgentHub::note_carried(const session::NetReport& report) {
  if (report.carried.empty()) return;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Lease* lease = state.find_lease(report.lease);
    const Slot* slot = lease == nullptr ? nullptr : state.find_slot(lease->slot);
    const Cluster* cluster = lease == nullptr ? nullptr : state.find_cluster(lease->cluster);
    if (slot == nullptr || cluster == nullptr) return;
    std::map<std::uint32_t, NodeId> machines;
    for (const SlotId id : cluster->slots)
      if (const Slot* each = state.find_slot(id))
        if (const Lease* held = state.find_lease(each->lease)) machines.emplace(each->address, held->node);
    const std::lock_guard lock(facts_mutex_);
    carried_.note(cluster->id, slot->address, report, [&](std::uint32_t address) {
      const auto found = machines.find(address);
      return found == machines.end() ? std::nullopt : std::optional(found->second);
    });
  });
}

void AgentHub::on_net(const LinkPtr& link, const session::NetReport& report) {
  if (report.version != session::kNetReportVersion) return;
  std::set<LeaseId> live;
  Bytes device_key;
  scheduler::PathsChanged paths;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    for (const LeaseId id : state.live_leases(link->node)) live.insert(id);
    if (live.contains(report.lease)) {
      paths = paths_seen(state, link->node, {report, read_clocks().wall});
      const std::lock_guard lock(facts_mutex_);
      note_pairs(state, link->node, report, pairs_, read_clocks().lease);
    }
    if (const Node* node = state.find_node(link->node)) device_key = node->device_key;
  });
  if (!paths.paths.empty()) {
    context_.ways->note(paths);
    context_.runner->tell_planner({std::move(paths)});
  }
  if (live.contains(report.lease)) {
    std::vector<session::RelaySeen> seen;
    for (const session::NetRelay& relay : report.relays)
      if (relay.up) seen.push_back({relay.address, relay.udp_rtt_us != 0 ? relay.udp_rtt_us : relay.rtt_us});
    note_relays(link->node, seen);
  }
  const bool counts_signed = report.carried.empty() || session::verify_carried(device_key, report);
  if (counts_signed && live.contains(report.lease)) note_carried(report);
  if (!counts_signed) log_warn("agents", "{}: what it says of carried traffic is not signed by it", link->node.str());
  const std::lock_guard lock(facts_mutex_);
  auto& leases = nets_[link->node];
  std::erase_if(leases, [&](const auto& each) { return !live.contains(each.first); });
  if (!live.contains(report.lease)) return;
  std::size_t others = 0;
  for (const auto& [id, facts] : leases) others += id == report.lease ? 0 : facts.report.pairs.size();
  NetFacts& kept = leases[report.lease];
  kept = {report, read_clocks().wall};
  if (!counts_signed) kept.report.carried.clear();
  keep_plain(kept.report.relay);  // machines may name anything, and people read it on a terminal
  for (session::NetRelay& relay : kept.report.relays) keep_plain(relay.address), keep_plain(relay.region);
  kept.report.pairs.resize(
      std::min(report.pairs.size(), session::kNetPairsOfMachineMax - std::min(others, session::kNetPairsOfMachineMax)));
}

// The first member of a cluster says what its reference was resolved to; the others will be told to take exactly that.
// It comes from a supplier's machine: only a lock that fulfils the tenant's own reference is kept, among his blobs.
void AgentHub::on_lock(const LinkPtr& link, const session::LockOffer& offer) {
  std::string image;
  OrgId org;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Lease* lease = state.find_lease(offer.lease);
    const Cluster* cluster = lease == nullptr ? nullptr : state.find_cluster(lease->cluster);
    if (cluster == nullptr || lease->node != link->node || lease->end != LeaseEnd::None ||
        cluster->spec.runtime != RuntimeKind::Venv)
      return;
    image = cluster->spec.image;
    const auto project = state.projects.find(cluster->project);
    if (project != state.projects.end()) org = project->second.org;
  });
  if (image.empty() || !org) return;
  const auto wanted = parse_venv_image(image);
  const auto parsed = parse_lock(as_string(offer.lock));
  const Status fulfils = !parsed.ok()  ? Status(parsed.error())
                         : wanted.ok() ? lock_fulfils(*parsed, *wanted)
                                       : Status(wanted.error());
  if (!fulfils.ok())
    return log_warn("agents", "{} offered a lock that is refused: {}", link->node.str(), fulfils.error().message);
  auto upload = context_.blobs->begin(org);
  Status kept = upload.ok() ? (*upload)->chunk(offer.lock) : Status(upload.error());
  if (kept.ok()) {
    const auto done = (*upload)->end();
    if (!done.ok()) kept = done.error();
  }
  if (!kept.ok()) log_warn("agents", "a lock of {} cannot be kept: {}", link->node.str(), kept.error().message);
}

void AgentHub::on_certificate(const LinkPtr& link, const session::CertRequest& request) {
  const auto key = crypto::verify_csr(as_string(request.csr_pem));
  if (!key.ok())
    return log_warn("agents", "{} sent a certificate request that is refused: {}", link->node.str(),
                    key.error().message);
  bool same = false;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Node* node = state.find_node(link->node);
    same = node != nullptr && node->state != NodeState::Revoked && crypto::equal(node->device_key, *key);
  });
  if (!same) return log_warn("agents", "{} asked for a certificate for a key that is not its own", link->node.str());
  const LeaseTime now = read_clocks().lease;
  Bytes tpm;
  {
    const std::lock_guard lock(mutex_);
    if (link->issued_at != LeaseTime{0} && now - link->issued_at < kCertificateEvery) return;
    link->issued_at = now;
    tpm = link->tpm;
  }
  const auto issued = context_.identity.signer->device_certificate(link->node, *key, context_.certificate_life, tpm);
  if (!issued.ok())
    return log_error("agents", "no certificate could be issued for {}: {}", link->node.str(), issued.error().message);
  {
    const std::lock_guard lock(mutex_);
    link->renew_by = now + context_.certificate_life + kRenewGrace;
  }
  log_info("agents", "{} has a new certificate", link->node.str());
  send(link, session::CertIssued{to_bytes(*issued)});
}

// Only relays that there are: a machine may say anything.
void AgentHub::note_relays(NodeId node, const std::vector<session::RelaySeen>& seen) {
  const auto relays = context_.relays->relays();
  for (const session::RelaySeen& each : seen)
    if (std::any_of(relays->begin(), relays->end(), [&](const RelayEntry& r) { return r.address == each.address; }))
      context_.ways->note_relay(node, each.address, each.rtt_us, read_clocks().wall);
}

void AgentHub::on_telemetry(const LinkPtr& link, const session::Telemetry& sample) {
  {
    const std::lock_guard lock(facts_mutex_);
    auto& ring = telemetry_[link->node];
    ring.push_back(sample);
    while (ring.size() > options_.ring) ring.pop_front();
  }
  set_owner_word(link->node, sample.owner);
  if (!sample.relays.empty()) note_relays(link->node, sample.relays);
  std::optional<access::Object> object;
  std::string view;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Node* node = state.find_node(link->node);
    if (node == nullptr) return;
    object = object_of(*node);
    view = wire::to_json(telemetry_view(state, {}, *node, sample, Sight::Machine));
  });
  if (!object) return;
  object->kind = access::Kind::Telemetry;
  context_.events->transient(*object, "telemetry", view);
}

void AgentHub::open_stream(const CallPtr& call, net::WebSocketPtr user) {
  session::StreamOpen open;
  const auto number = [&](const char* key) {
    return std::strtoul(call->request.query_value(key).value_or("0").c_str(), nullptr, 10);
  };
  if (call->operation->name == "ForwardCluster") {
    const auto port = number("port");
    if (port < 1 || port > 65535) return Streams::refuse(user, "port must be between 1 and 65535");
    open.kind = session::StreamKind::Tcp;
    open.port = static_cast<std::uint16_t>(port);
  } else {
    std::size_t bytes = 0;
    for (const auto& [key, value] : call->request.query) {
      if (key != "argv") continue;
      open.argv.push_back(value);
      bytes += value.size() + 1;
    }
    if (open.argv.empty() || open.argv.size() > 256 || bytes > (64 << 10))
      return Streams::refuse(user, "argv must hold 1 to 256 words of together at most 64 KiB");
    open.tty = call->request.query_value("tty").value_or("0") == "1";
    open.rows = static_cast<std::uint16_t>(number("rows"));
    open.cols = static_cast<std::uint16_t>(number("cols"));
  }
  std::string fault;
  NodeId node;
  const std::string wanted = call->request.query_value("slot").value_or("");
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Cluster* cluster = state.find_cluster(*ClusterId::parse(call->id));
    const Slot* slot = cluster == nullptr ? nullptr : state.find_head(*cluster);
    if (cluster != nullptr && !wanted.empty()) {
      const auto id = SlotId::parse(wanted);
      slot = id && std::find(cluster->slots.begin(), cluster->slots.end(), *id) != cluster->slots.end()
                 ? state.find_slot(*id)
                 : nullptr;
    }
    const Lease* lease = slot == nullptr ? nullptr : state.find_lease(slot->lease);
    if (lease == nullptr || lease->end != LeaseEnd::None) {
      fault = wanted.empty() ? "the cluster has no head yet; see its status"
                             : "the cluster has no such slot; see its status";
      return;
    }
    open.lease = lease->id;
    node = lease->node;
  });
  if (!fault.empty()) return Streams::refuse(user, fault);
  const LinkPtr link = find(node);
  if (!link) return Streams::refuse(user, "the machine is not connected just now; try again");
  log_info("audit", "{} opens {} on {} {}", call->caller.subject.principal.str(), call->operation->name, call->id,
           open.lease.str());
  const std::weak_ptr<Link> weak = link;
  streams_.open(
      node, link->number,
      [weak](const session::ServerFrame& frame) {
        const auto held = weak.lock();
        return held != nullptr && send(held, frame);
      },
      std::move(open), std::move(user),
      [this, caller = call->caller](std::function<void()> close) {
        return context_.events->guard(caller, std::move(close));
      });
}

}  // namespace muster::server
