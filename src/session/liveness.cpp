#include "session/liveness.h"

#include <algorithm>

#include "base/mutant.h"

namespace muster::session {
namespace {
const std::string kEverywhere = "*";  // all domains together are one more
}

Liveness::Liveness(LivenessOptions options) : options_(options) {}

void Liveness::start(const std::vector<std::pair<NodeId, std::string>>& nodes_and_domains, bool frozen, LeaseTime now) {
  for (Shard& each : shards_) {
    const std::lock_guard lock(each.mutex);
    each.nodes.clear();
  }
  for (const auto& [node, domain] : nodes_and_domains) {
    Shard& home = shard(node);
    const std::lock_guard lock(home.mutex);
    // Silence of a node that we have not heard ourselves yet counts only from the end of the grace period on.
    const LeaseTime from = MUSTER_MUTANT("session.no_grace") ? now : now + options_.grace - options_.suspect;
    home.nodes[node] = Entry{from, Heard::Live, domain, true};
  }
  frozen_domains_.clear();
  frozen_ = frozen && !MUSTER_MUTANT("session.freeze_forgotten");
  // Which domain it was is not known any more; whether it still is one shows at the end of the grace period.
  if (frozen_) frozen_domains_[kEverywhere] = Frozen{now, now + options_.grace};
}

void Liveness::heard(NodeId node, const std::string& domain, LeaseTime now) {
  bool returned = false;
  {
    Shard& home = shard(node);
    const std::lock_guard lock(home.mutex);
    const auto [it, fresh] = home.nodes.try_emplace(node, Entry{now, Heard::Live, domain, false});
    Entry& entry = it->second;
    returned = fresh || entry.state != Heard::Live;
    entry.last = entry.awaited ? now : std::max(entry.last, now);
    entry.awaited = false;
    entry.state = Heard::Live;
    entry.domain = domain;
  }
  if (!returned) return;
  const std::lock_guard lock(returned_mutex_);
  returned_.push_back({node, Heard::Live});
}

void Liveness::forget(NodeId node) {
  Shard& home = shard(node);
  const std::lock_guard lock(home.mutex);
  home.nodes.erase(node);
}

std::optional<Heard> Liveness::find(NodeId node) const {
  const Shard& home = shard(node);
  const std::lock_guard lock(home.mutex);
  const auto it = home.nodes.find(node);
  if (it == home.nodes.end()) return std::nullopt;
  return it->second.awaited && it->second.state == Heard::Live ? Heard::Awaited : it->second.state;
}

std::vector<NodeId> Liveness::part(std::size_t number) const {
  const Shard& home = shards_[number % kShards];
  const std::lock_guard lock(home.mutex);
  std::vector<NodeId> out;
  out.reserve(home.nodes.size());
  for (const auto& [node, entry] : home.nodes) out.push_back(node);
  std::sort(out.begin(), out.end());
  return out;
}

// Outside a freeze only fresh silence counts: machines that went away one by one over days are no mass silence. In a
// frozen domain everything since shortly before the freeze counts, so that the freeze lasts as long as that silence.
std::map<std::string, Liveness::Count> Liveness::count(LeaseTime now) const {
  std::map<std::string, Count> counts;
  const auto add = [&](const std::string& domain, Millis silence) {
    Millis horizon = options_.suspect + options_.window;
    if (const auto frozen = frozen_domains_.find(domain); frozen != frozen_domains_.end())
      horizon += now - frozen->second.since;
    Count& sum = counts[domain];
    if (silence < Millis(0)) ++sum.awaited;
    if (silence >= Millis(0) && silence < horizon) ++sum.known;
    if (silence >= options_.suspect && silence < horizon) ++sum.silent;
  };
  for (const Shard& each : shards_) {
    const std::lock_guard lock(each.mutex);
    for (const auto& [node, entry] : each.nodes) {
      add(entry.domain, now - entry.last);
      add(kEverywhere, now - entry.last);
    }
  }
  return counts;
}

// What begins a freeze must be silent; what keeps it may also be awaited, as after a start of the control plane.
bool Liveness::mass(const Count& count, bool frozen) const {
  if (MUSTER_MUTANT("session.no_freeze")) return false;
  if (count.silent == 0 && !frozen) return false;
  const std::uint32_t silent = count.silent + count.awaited, known = count.known + count.awaited;
  return silent >= options_.mass_min && silent * 100 >= known * options_.mass_percent;
}

void Liveness::judge_domains(LeaseTime now, std::vector<LivenessEvent>& out) {
  std::string reason;
  for (const auto& [domain, sum] : count(now)) {
    const auto frozen = frozen_domains_.find(domain);
    if (mass(sum, frozen != frozen_domains_.end())) {
      if (frozen == frozen_domains_.end()) {
        frozen_domains_[domain] = Frozen{now, now};
        reason = std::to_string(sum.silent) + " of " + std::to_string(sum.known) + " nodes of '" + domain +
                 "' fell silent together";
      } else {
        frozen->second.calm_since = std::max(frozen->second.calm_since, now);
        if (now - frozen->second.since >= options_.freeze_max) frozen_domains_.erase(frozen);
      }
    } else if (frozen != frozen_domains_.end() && now - frozen->second.calm_since >= options_.thaw) {
      frozen_domains_.erase(frozen);
    }
  }
  const bool frozen_now = !frozen_domains_.empty();
  if (frozen_now == frozen_) return;
  frozen_ = frozen_now;
  out.emplace_back(FreezeTurned{frozen_now, reason});
}

void Liveness::judge_nodes(LeaseTime now, std::vector<LivenessEvent>& out) {
  std::vector<NodeTurned> turned;
  for (Shard& each : shards_) {
    const std::lock_guard lock(each.mutex);
    for (auto& [node, entry] : each.nodes) {
      const Millis silence = now - entry.last;
      if (silence >= options_.lost && entry.state != Heard::Lost) {
        entry.state = Heard::Lost;
        turned.push_back({node, Heard::Lost});
      } else if (silence >= options_.suspect && entry.state == Heard::Live) {
        entry.state = Heard::Suspect;
        turned.push_back({node, Heard::Suspect});
      }
    }
  }
  std::sort(turned.begin(), turned.end(), [](const NodeTurned& a, const NodeTurned& b) { return a.node < b.node; });
  out.insert(out.end(), turned.begin(), turned.end());
}

std::vector<LivenessEvent> Liveness::tick(LeaseTime now) {
  std::vector<LivenessEvent> out;
  {
    const std::lock_guard lock(returned_mutex_);
    out.assign(returned_.begin(), returned_.end());
    returned_.clear();
  }
  judge_domains(now, out);
  judge_nodes(now, out);
  return out;
}

}  // namespace muster::session
