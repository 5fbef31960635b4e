#include "session/directory.h"

#include <utility>

#include "base/mutant.h"

namespace muster::session {

void Directory::promote(Entry& entry, LeaseTime now) {
  if (entry.session != 0) kicked_.push_back({entry.session, Verdict::Replaced});
  entry.session = std::exchange(entry.pending, 0);
  entry.boot_id = std::exchange(entry.pending_boot_id, {});
  entry.last = now;
}

Verdict Directory::clone(Entry& entry, std::uint64_t asking) {
  for (const std::uint64_t session : {std::exchange(entry.session, 0), std::exchange(entry.pending, 0)}) {
    if (session != 0 && session != asking) kicked_.push_back({session, Verdict::Clone});
  }
  return Verdict::Clone;
}

Verdict Directory::hello(NodeId node, const std::string& boot_id, std::uint64_t session, LeaseTime now) {
  Entry& entry = nodes_[node];
  const bool silent = now - entry.last >= quiet_;
  if (entry.pending != 0 && entry.pending_boot_id != boot_id && entry.boot_id != boot_id) return clone(entry, session);
  if (entry.session == 0 || entry.boot_id == boot_id || silent || MUSTER_MUTANT("session.accept_clone")) {
    if (entry.pending != 0) kicked_.push_back({entry.pending, Verdict::Replaced});
    entry.pending = session;
    entry.pending_boot_id = boot_id;
    promote(entry, now);
    return Verdict::Accept;
  }
  if (entry.pending != 0) kicked_.push_back({entry.pending, Verdict::Replaced});
  entry.pending = session;
  entry.pending_boot_id = boot_id;
  return Verdict::Wait;
}

Verdict Directory::heard(NodeId node, std::uint64_t session, LeaseTime now) {
  const auto it = nodes_.find(node);
  if (it == nodes_.end() || it->second.session != session) return Verdict::Replaced;
  it->second.last = now;
  return it->second.pending != 0 ? clone(it->second, session) : Verdict::Accept;
}

Verdict Directory::waiting(NodeId node, std::uint64_t session, LeaseTime now) {
  const auto it = nodes_.find(node);
  if (it == nodes_.end()) return Verdict::Replaced;
  Entry& entry = it->second;
  if (entry.session == session) return Verdict::Accept;
  if (entry.pending != session) return Verdict::Replaced;
  if (entry.session != 0 && now - entry.last < quiet_) return Verdict::Wait;
  promote(entry, now);
  return Verdict::Accept;
}

void Directory::closed(NodeId node, std::uint64_t session) {
  const auto it = nodes_.find(node);
  if (it == nodes_.end()) return;
  if (it->second.session == session) it->second.session = 0;
  if (it->second.pending == session) it->second.pending = 0, it->second.pending_boot_id.clear();
}

std::vector<Kicked> Directory::take_kicked() {
  return std::exchange(kicked_, {});
}

std::optional<std::uint64_t> Directory::current(NodeId node) const {
  const auto it = nodes_.find(node);
  return it == nodes_.end() || it->second.session == 0 ? std::nullopt : std::optional(it->second.session);
}

Bytes Directory::inventory_digest(NodeId node) const {
  const auto it = nodes_.find(node);
  return it == nodes_.end() ? Bytes{} : it->second.digest;
}

void Directory::set_inventory_digest(NodeId node, Bytes digest) {
  nodes_[node].digest = std::move(digest);
}
void Directory::forget(NodeId node) {
  nodes_.erase(node);
}

}  // namespace muster::session
