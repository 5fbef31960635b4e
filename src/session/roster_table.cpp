#include "session/roster_table.h"

#include <algorithm>
#include <set>

#include "base/mutant.h"

namespace muster::session {

void RosterTable::update(ClusterId id, std::uint64_t epoch, const std::vector<RosterMember>& members, LeaseTime from) {
  Cluster& cluster = clusters_[id];
  if (epoch < cluster.epoch) return;  // told out of order
  cluster.epoch = epoch;
  std::set<LeaseId> stay;
  for (const RosterMember& member : members) {
    stay.insert(member.lease);
    cluster.members.try_emplace(member.lease, Member{member.head, from});
  }
  const std::size_t left = std::erase_if(cluster.members, [&](const auto& each) { return !stay.contains(each.first); });
  if (left == 0 || cluster.members.empty()) return;
  cluster.removals.push_back({epoch, from});
  // Too many at once: the later one stands for both, and the time of the first stays.
  if (cluster.removals.size() > kPendingMax) {
    cluster.removals[1].at = cluster.removals[0].at;
    cluster.removals.pop_front();
  }
}

void RosterTable::demand(ClusterId id, LeaseTime from) {
  const auto it = clusters_.find(id);
  if (it == clusters_.end() || it->second.members.empty()) return;
  it->second.removals.push_back({it->second.epoch, from});
}

void RosterTable::forget(ClusterId id) {
  clusters_.erase(id);
}

void RosterTable::acknowledged(LeaseId lease, std::uint64_t epoch) {
  std::uint64_t& known = acknowledged_[lease];
  known = std::max(known, epoch);
}

std::uint64_t RosterTable::word_of(LeaseId lease) const {
  const auto it = acknowledged_.find(lease);
  return it == acknowledged_.end() ? 0 : it->second;
}

std::vector<LeaseId> RosterTable::late(LeaseTime now) {
  std::vector<LeaseId> out;
  if (MUSTER_MUTANT("session.roster_unacknowledged")) return out;
  for (auto& [id, cluster] : clusters_) {
    if (cluster.removals.empty()) continue;
    std::uint64_t by_all = cluster.epoch;
    for (const auto& [lease, member] : cluster.members) {
      const std::uint64_t word = word_of(lease);
      by_all = std::min(by_all, word);
      const auto first = std::find_if(cluster.removals.begin(), cluster.removals.end(),
                                      [&](const Removal& removal) { return removal.epoch > word; });
      if (first == cluster.removals.end()) continue;
      const LeaseTime since = std::max(first->at, member.joined);
      if (now - since >= (member.head ? options_.head_limit : options_.limit)) out.push_back(lease);
    }
    while (!cluster.removals.empty() && cluster.removals.front().epoch <= by_all) cluster.removals.pop_front();
  }
  return out;
}

bool RosterTable::acknowledged_by_all(ClusterId id, std::uint64_t epoch, LeaseId but) const {
  const auto it = clusters_.find(id);
  if (it == clusters_.end()) return false;
  return std::all_of(it->second.members.begin(), it->second.members.end(),
                     [&](const auto& each) { return each.first == but || word_of(each.first) >= epoch; });
}

}  // namespace muster::session
