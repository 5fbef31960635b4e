#include "server/desired.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/log.h"
#include "crypto/hash.h"
#include "model/image_name.h"
#include "model/venv_image.h"
#include "model/workload_identity.h"
#include "overlay/relay_protocol.h"
#include "overlay/roster.h"
#include "wire/agent_frames.h"

namespace muster::server {
namespace {

constexpr Millis kRelayTokenLifetime{6LL * 3'600'000};
static_assert(kRelayTokenLifetime - SignedBook::kTokenKept >= 2 * kOrdersRenewed);

Bytes derive(const Identity& identity, std::string_view purpose, const Cluster& cluster) {
  const auto mac = crypto::hmac_sha256(
      identity.secret.view(),
      as_bytes(fmt::format("muster-{}-v1|{}|{}", purpose, cluster.id.str(), cluster.created_at.ms)));
  return {mac.begin(), mac.end()};
}

overlay::Roster draft_roster(const control::State& state, const Assignment& assignment) {
  overlay::Roster out;
  out.cluster = assignment.cluster.value;
  out.incarnation = state.incarnation;
  out.epoch = assignment.roster_epoch;
  for (const auto& entry : assignment.roster) {
    const auto overlay_key = crypto::key32(entry.overlay_key);
    const auto device_key = crypto::key32(entry.device_key);
    if (!overlay_key || !device_key) continue;  // not in the overlay yet
    overlay::RosterMember member;
    member.slot = entry.slot.value;
    member.node = entry.node.value;
    member.role = static_cast<std::uint8_t>(entry.role);
    member.address = entry.address;
    member.overlay_key = *overlay_key;
    member.device_key = *device_key;
    member.overlay_signature = entry.overlay_signature;
    member.epoch = {entry.epoch.incarnation, entry.epoch.leader, entry.epoch.counter};
    for (const auto& lan : entry.lan) {
      if (member.lan.size() >= overlay::kLanEndpointsMax) break;
      if (const auto endpoint = overlay::parse_udp_endpoint(lan)) member.lan.push_back(*endpoint);
    }
    out.members.push_back(std::move(member));
  }
  return out;
}

Result<session::SignedRoster> sign(const overlay::Roster& roster, WallTime now, SignedBook& book) {
  session::SignedRoster out;
  out.cluster = ClusterId{roster.cluster};
  std::vector<crypto::MachineProof> proofs;
  for (const auto& member : roster.members)
    proofs.push_back(TRY(book.proof_of(NodeId{member.node}, member.device_key, now)));
  out.machines = crypto::encode_machine_proofs(proofs);
  out.bytes = overlay::encode_roster(roster);
  Signed made = TRY(book.roster(out.cluster, out.bytes));
  out.signatures.push_back(std::move(made.signature));
  out.keys.push_back(std::move(made.key_id));
  return out;
}

// One token a name: relays of before share the first one's. A relay that the signer does not know of is not told.
void grant_relays(const std::vector<RelayEntry>& relays, const Identity& identity, SignedBook& book, WallTime now,
                  overlay::RelayToken wanted, session::LeaseSecrets& secrets) {
  std::map<std::string, Bytes> tokens;
  const auto token_for = [&](const std::string& relay) {
    const auto [made, anew] = tokens.try_emplace(relay);
    if (!anew) return made->second;
    wanted.relay = relay;
    auto token = book.relay_token(wanted, now);
    if (token.ok())
      made->second = std::move(*token);
    else
      log_error("agents", "{} gets no token for the relay {}: {}", secrets.lease.str(), relay, token.error().message);
    return made->second;
  };
  secrets.relay_token = token_for(relays.empty() ? identity.server_id : relays.front().id);
  for (const RelayEntry& relay : relays) {
    Bytes token = secrets.relays.size() < session::kRelaysMax ? token_for(relay.id) : Bytes();
    if (!token.empty()) secrets.relays.push_back({relay.address, relay.region, std::move(token)});
  }
}

// Who asked for it: the cluster in its environment, for all members; a job in its metadata, for the head, where its
// driver runs.
void add_identities(const control::State& state, const Cluster& cluster, const Assignment& assignment,
                    std::size_t secrets, OrdersDraft& out) {
  const auto project = state.projects.find(cluster.project);
  if (project == state.projects.end()) return;
  const auto org = state.orgs.find(project->second.org);
  if (org == state.orgs.end()) return;
  const auto add = [&](std::string name, const std::string& audience, JobId job) {
    auto audiences = parse_audiences(audience);
    if (!audiences) return;  // of before such names were checked
    WorkloadWanted wanted;
    wanted.org_name = org->second.name, wanted.project_name = project->second.name;
    wanted.cluster_name = cluster.spec.name, wanted.org = org->first, wanted.project = project->first;
    wanted.cluster = cluster.id, wanted.lease = assignment.lease, wanted.job = job;
    wanted.audiences = std::move(*audiences);
    out.identities.push_back({secrets, std::move(name), std::move(wanted)});
  };
  if (const auto asked = cluster.spec.env.find(std::string(kIdentityAudienceEnv)); asked != cluster.spec.env.end())
    add(std::string(kIdentityFile), asked->second, cluster.ephemeral_for);
  for (const JobOrder& job : assignment.jobs) {
    const auto asked = job.metadata.find(std::string(kIdentityAudienceMetadata));
    if (asked != job.metadata.end() && !job.stop)
      add(std::string(kIdentityFile) + "-" + job.job.str(), asked->second, job.job);
  }
}

// Only while the machine has not the image yet.
void add_registry(const control::State& state, const Cluster& cluster, const Assignment& assignment,
                  const RegistryStore* registries, WallTime now, session::LeaseSecrets& secrets) {
  const Lease* lease = state.find_lease(assignment.lease);
  if (registries == nullptr || lease == nullptr || lease->phase > LeasePhase::Pulling ||
      cluster.spec.runtime != RuntimeKind::Docker)
    return;
  const auto project = state.projects.find(cluster.project);
  if (project == state.projects.end()) return;
  const auto account = registries->find(project->second.org, image_registry(cluster.spec.image), now);
  if (!account) return;
  secrets.registry_user = account->username;
  secrets.registry_password = to_bytes(account->password);
}

}  // namespace

Bytes ray_token(const Identity& identity, const Cluster& cluster) {
  return to_bytes(hex(derive(identity, "ray-token", cluster)));
}

OrdersDraft draft_orders(const control::State& state, const Identity& identity, NodeId node, WallTime now,
                         const RegistryStore* registries) {
  OrdersDraft out;
  out.node = node;
  session::Desired& desired = out.desired;
  const Node* found = state.find_node(node);
  desired.incarnation = state.incarnation;
  desired.revision = found != nullptr ? found->revision : 0;
  desired.assignments = control::desired_for(state, node);
  std::set<ClusterId> rostered;
  for (const auto& assignment : desired.assignments) {
    const Cluster* cluster = state.find_cluster(assignment.cluster);
    if (cluster == nullptr || assignment.want == LeaseWant::Stop) continue;
    session::LeaseSecrets secrets;
    secrets.lease = assignment.lease;
    secrets.ray_token = ray_token(identity, *cluster);
    secrets.psk = derive(identity, "psk", *cluster);
    for (const auto& entry : assignment.roster) {
      const auto key = crypto::key32(entry.overlay_key);
      if (entry.slot == assignment.slot && key)
        out.members.push_back({desired.secrets.size(), cluster->id.value, *key});
    }
    add_registry(state, *cluster, assignment, registries, now, secrets);
    add_identities(state, *cluster, assignment, desired.secrets.size(), out);
    desired.secrets.push_back(std::move(secrets));
    if (!rostered.insert(assignment.cluster).second) continue;
    overlay::Roster roster = draft_roster(state, assignment);
    if (!roster.members.empty()) out.rosters.push_back(std::move(roster));  // else there is nobody to speak to yet
  }
  return out;
}

session::Desired sign_orders(OrdersDraft draft, const Identity& identity, WallTime now, SignedBook& book,
                             const std::vector<RelayEntry>& relays, WorkloadIdentity* workloads) {
  session::Desired out = std::move(draft.desired);
  for (const OrdersDraft::Member& member : draft.members)
    grant_relays(relays, identity, book, now, {{}, member.cluster, member.overlay_key, now + kRelayTokenLifetime},
                 out.secrets[member.secrets]);
  for (OrdersDraft::Identity& identity_of : draft.identities) {
    if (workloads == nullptr) break;
    auto token = workloads->token(std::move(identity_of.wanted), now);
    auto& secrets = out.secrets[identity_of.secrets];
    if (!token.ok())
      log_error("agents", "{} gets no identity token: {}", secrets.lease.str(), token.error().message);
    else if (secrets.identities.size() < session::kIdentitiesMax)
      secrets.identities.push_back({std::move(identity_of.name), to_bytes(*token)});
  }
  for (const overlay::Roster& roster : draft.rosters) {
    auto done = sign(roster, now, book);
    if (done.ok())
      out.rosters.push_back(std::move(*done));
    else
      log_error("agents", "the roster of {} is not told: {}", ClusterId{roster.cluster}.str(), done.error().message);
  }
  auto signature = identity.signer->order(wire::desired_signing_bytes(draft.node, out));
  if (signature.ok())
    out.signature = std::move(signature->signature), out.signature_key = std::move(signature->key_id);
  else
    log_error("agents", "the orders of {} are not told: {}", draft.node.str(), signature.error().message);
  return out;
}

bool names_blob(const std::vector<Assignment>& assignments, const std::string& digest) {
  for (const auto& assignment : assignments) {
    for (const auto& file : assignment.files) {
      if (file.blob == digest) return true;
    }
    if (assignment.runtime == RuntimeKind::Venv) {
      const auto image = parse_venv_image(assignment.image);
      if (image.ok() && image->lock == digest) return true;
    }
    for (const auto& job : assignment.jobs) {
      if (job.working_dir_blob == digest) return true;
    }
  }
  return false;
}

}  // namespace muster::server
