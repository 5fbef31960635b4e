#include "session/keeper.h"

namespace muster::session {

void Keeper::start(const Start& start, const CoreView& core, LeaseTime now) {
  liveness_.start(start.nodes, start.frozen, now);
  leases_.start(start.leases, now);
  directory_.start(now);
  rosters_.start();
  // Who is on the way back needs its time before it can acknowledge anything.
  const LeaseTime back = now + options_.liveness.grace;
  for (const ClusterId cluster : start.clusters) {
    const auto roster = core.roster_of(cluster);
    if (!roster) continue;
    rosters_.update(cluster, roster->epoch, roster->members, back);
    rosters_.demand(cluster, back);
  }
  doubtful_.clear();
  asked_.clear();
  rosters_dirty_.clear();
  contested_.clear();
  freeze_told_.reset();
  freeze_reason_.clear();
  freeze_asked_ = expired_asked_ = late_asked_ = contested_asked_ = LeaseTime{0};
}

bool Keeper::due(LeaseTime& asked, LeaseTime now) const {
  if (asked != LeaseTime{0} && now - asked < options_.repeat) return false;
  asked = now;
  return true;
}

void Keeper::judge_nodes(LeaseTime now, const CoreView& core, Verdicts& out) {
  for (const NodeId node : liveness_.part(sweep_++)) doubtful_.insert(node);
  for (auto it = doubtful_.begin(); it != doubtful_.end();) {
    const NodeId node = *it;
    const auto state = core.state_of(node);
    const auto heard = liveness_.find(node);
    if (!state || *state == NodeState::Revoked || *state == NodeState::Quarantined) liveness_.forget(node);
    bool differs = false;
    if (state && heard) {
      const bool up = *state == NodeState::Online || *state == NodeState::Draining;
      const bool doubted = *state == NodeState::Suspect;
      differs = (*heard == Heard::Lost && (up || doubted)) || (*heard == Heard::Suspect && up) ||
                (*heard == Heard::Live && (doubted || *state == NodeState::Lost || *state == NodeState::Admitted));
    }
    if (!differs) {
      asked_.erase(node);
      it = doubtful_.erase(it);
      continue;
    }
    ++it;
    auto& [told, at] = asked_[node];
    if (told == *heard && now - at < options_.repeat) continue;
    told = *heard;
    at = now;
    (told == Heard::Lost ? out.lost : told == Heard::Suspect ? out.suspect : out.again).push_back(node);
  }
}

void Keeper::judge_freeze(LeaseTime now, const CoreView& core, Verdicts& out) {
  const bool frozen = liveness_.frozen();
  if (core.frozen() == frozen) return freeze_told_.reset();
  if (freeze_told_ == frozen && !due(freeze_asked_, now)) return;
  freeze_told_ = frozen;
  freeze_asked_ = now;
  out.freeze = FreezeTurned{frozen, frozen ? freeze_reason_ : std::string()};
}

Verdicts Keeper::tick(LeaseTime now, const CoreView& core, bool leading) {
  for (const LivenessEvent& event : liveness_.tick(now)) {
    if (const auto* node = std::get_if<NodeTurned>(&event)) doubtful_.insert(node->node);
    if (const auto* freeze = std::get_if<FreezeTurned>(&event)) freeze_reason_ = freeze->reason;
  }
  for (const NodeId node : directory_.take_contested()) contested_.insert(node);
  Verdicts out;
  if (!leading) return out;
  for (const ClusterId cluster : std::exchange(rosters_dirty_, {})) {
    if (const auto roster = core.roster_of(cluster))
      rosters_.update(cluster, roster->epoch, roster->members, now);
    else
      rosters_.forget(cluster);
  }
  judge_freeze(now, core, out);  // before the losses that it covers
  judge_nodes(now, core, out);
  if (!contested_.empty() && due(contested_asked_, now)) out.contested.assign(contested_.begin(), contested_.end());
  if (auto expired = leases_.expired(now); !expired.empty() && due(expired_asked_, now))
    out.expired = std::move(expired);
  if (auto late = rosters_.late(now); !late.empty() && due(late_asked_, now)) out.late = std::move(late);
  return out;
}

}  // namespace muster::session
