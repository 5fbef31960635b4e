#include "session/directory.h"

#include <algorithm>
#include <utility>

#include "base/mutant.h"

namespace muster::session {

void Directory::start(LeaseTime now) {
  nodes_.clear();
  kicked_.clear();
  contested_.clear();
  started_ = now;
}

// The boot that began earlier has spoken clearly after the other one began.
bool Directory::two_machines(const Entry& entry) const {
  if (MUSTER_MUTANT("session.accept_clone") || entry.newcomer.id.empty()) return false;
  const bool served_first = entry.boot.booted <= entry.newcomer.booted;
  const Boot& earlier = served_first ? entry.boot : entry.newcomer;
  const Boot& later = served_first ? entry.newcomer : entry.boot;
  return earlier.spoke > later.booted + options_.margin;
}

bool Directory::quiet(const Entry& entry, LeaseTime now) const {
  return MUSTER_MUTANT("session.accept_clone") || now - std::max(entry.boot.spoke, started_) >= options_.quiet;
}

void Directory::take_over(Entry& entry) {
  if (entry.session != 0) kicked_.push_back({entry.session, Verdict::Replaced});
  entry.session = std::exchange(entry.pending, 0);
  entry.boot = std::exchange(entry.newcomer, {});
}

// Nothing is believed of either from here on, and neither is served until the core has the node in quarantine.
Verdict Directory::clone(NodeId node, Entry& entry, std::uint64_t asking) {
  for (const std::uint64_t session : {std::exchange(entry.session, 0), std::exchange(entry.pending, 0)}) {
    if (session != 0 && session != asking) kicked_.push_back({session, Verdict::Clone});
  }
  entry.boot = entry.newcomer = {};
  entry.contested = true;
  contested_.insert(node);
  return Verdict::Clone;
}

Verdict Directory::hello(NodeId node, const Caller& caller, std::uint64_t session, LeaseTime now) {
  const auto [it, fresh] = nodes_.try_emplace(node);
  Entry& entry = it->second;
  if (entry.contested) return Verdict::Clone;
  if (entry.boot.id.empty()) entry.boot.id = caller.known_boot;
  const Boot speaking{caller.boot_id, caller.booted, now};
  if (entry.boot.id.empty() || entry.boot.id == caller.boot_id) {
    if (entry.session != 0) kicked_.push_back({entry.session, Verdict::Replaced});
    entry.session = session;
    entry.boot = speaking;
    return two_machines(entry) ? clone(node, entry, session) : Verdict::Accept;
  }
  if (entry.pending != 0) kicked_.push_back({entry.pending, Verdict::Replaced});
  entry.pending = session;
  entry.newcomer = speaking;
  if (two_machines(entry)) return clone(node, entry, session);
  if (!quiet(entry, now)) return Verdict::Wait;
  take_over(entry);
  return Verdict::Accept;
}

Verdict Directory::heard(NodeId node, std::uint64_t session, LeaseTime now) {
  const auto it = nodes_.find(node);
  if (it == nodes_.end() || it->second.session != session) return Verdict::Replaced;
  it->second.boot.spoke = now;
  return two_machines(it->second) ? clone(node, it->second, session) : Verdict::Accept;
}

Verdict Directory::waiting(NodeId node, std::uint64_t session, LeaseTime now) {
  const auto it = nodes_.find(node);
  if (it == nodes_.end()) return Verdict::Replaced;
  Entry& entry = it->second;
  if (entry.session == session) return Verdict::Accept;
  if (entry.pending != session) return Verdict::Replaced;
  if (!quiet(entry, now)) return Verdict::Wait;
  take_over(entry);
  return Verdict::Accept;
}

void Directory::closed(NodeId node, std::uint64_t session) {
  const auto it = nodes_.find(node);
  if (it == nodes_.end()) return;
  if (it->second.session == session) it->second.session = 0;
  // What a newcomer said stays evidence after it hung up.
  if (it->second.pending == session) it->second.pending = 0;
}

std::vector<Kicked> Directory::take_kicked() {
  return std::exchange(kicked_, {});
}
std::set<NodeId> Directory::take_contested() {
  return std::exchange(contested_, {});
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
