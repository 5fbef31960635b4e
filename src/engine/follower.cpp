#include "engine/follower.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "control/planner.h"

namespace muster::engine {

Follower::Follower(const Base& base, Options options) : options_(options), base_(base), chain_(base.seq, base.hash) {
  control::planner_snapshot(base_.state, [this](const scheduler::Change& change) { scheduler_.apply(change); });
}

Result<DurableEvent> Follower::fold(const Bytes& stored) {
  return fold(TRY(read(stored)));
}

Result<Follower::Read> Follower::read(const Bytes& stored) {
  journal::Entry entry = TRY(chain_.next(stored));
  auto event = control::decode_event(entry.event);
  if (!event) return error(event.error().code, fmt::format("entry {}: {}", entry.seq, event.error().message));
  return Read{std::move(entry), chain_.hash(), std::move(*event)};
}

Result<DurableEvent> Follower::fold(Read read) {
  const journal::Entry& entry = read.entry;
  const control::EntryContext context = context_of(entry);
  control::apply(base_.state, read.event, context);
  base_.seq = entry.seq;
  base_.hash = std::move(read.hash);
  base_.wall = entry.wall;
  for (const scheduler::Change& change : control::planner_changes(base_.state, read.event)) {
    scheduler_.apply(change);
    changed_ = true;
  }
  while (!expected_.empty() && expected_.front().seq <= base_.seq) {
    const Digest digest = std::move(expected_.front());
    expected_.pop_front();
    if (digest.seq == base_.seq && digest.digest != control::state_digest(base_.state)) {
      return error(Code::DataLoss,
                   fmt::format("leader and follower disagree about the state after entry {}", base_.seq));
    }
  }
  return DurableEvent{entry.seq, entry.wall, context.actor, std::move(read.event)};
}

void Follower::expect(const std::vector<Digest>& digests) {
  expected_.insert(expected_.end(), digests.begin(), digests.end());
}

std::optional<control::ApplyPlan> Follower::plan(Now now) {
  const WallTime wall = clock_.at(now, base_.state.last_wall);
  if (plan_out_ || base_.seq < plan_after_seq_ || now.lease < not_before_) return std::nullopt;
  if (!changed_ && now.lease < next_plan_) return std::nullopt;
  changed_ = false;
  next_plan_ = now.lease + options_.plan_every;
  not_before_ = now.lease + options_.plan_pause;
  control::ApplyPlan plan{scheduler_.plan({options_.plan_groups_max}, wall)};
  if (plan.groups.empty()) return std::nullopt;
  if (plan.groups.size() >= options_.plan_groups_max) changed_ = true, not_before_ = now.lease;  // there is more
  plan_out_ = true;
  return plan;
}

void Follower::plan_done(const Result<Reply>& reply) {
  plan_out_ = false;
  if (reply) plan_after_seq_ = reply->seq;
}

void Follower::note(const std::vector<scheduler::Change>& facts) {
  for (const scheduler::Change& fact : facts) scheduler_.apply(fact);
}

LeaseTime Follower::next_plan() const {
  if (plan_out_ || base_.seq < plan_after_seq_) return {std::numeric_limits<std::int64_t>::max()};
  return changed_ ? not_before_ : std::max(next_plan_, not_before_);
}

journal::Snapshot Follower::snapshot() const {
  return {base_.seq, base_.hash, base_.wall, control::encode_state(base_.state)};
}

}  // namespace muster::engine
