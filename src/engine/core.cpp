#include "engine/core.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/mutant.h"

namespace muster::engine {

using journal::AppendOutcome;

namespace {
// One command may need many entries (a large plan); a batch that is nearly full must still hold it.
constexpr std::size_t kCommandEventsMax = journal::kAppendEntriesMax / 2;

control::Actor system_actor() {
  control::Actor actor;
  actor.system = true;
  return actor;
}
}  // namespace

Engine::Engine(Options options, journal::Store& store, Base base, std::function<Base()> copy_base)
    : options_(options),
      store_(&store),
      copy_base_(std::move(copy_base)),
      base_(std::move(base)),
      durable_seq_(base_.seq),
      published_seq_(base_.seq) {
  MUSTER_CHECK(options_.batch_entries_max + kCommandEventsMax <= journal::kAppendEntriesMax);
}

Status Engine::start(Now now) {
  MUSTER_CHECK(mode_ == Mode::Starting);
  leader_epoch_ = TRY(store_->acquire_leader());
  TRY_VOID(catch_up(*store_, base_, [&](std::uint64_t seq, const Bytes& stored) { publish(stored, seq); }));
  durable_seq_ = base_.seq;
  mode_ = Mode::Leading;
  mode_reason_.clear();
  tick_at_ = now.lease + options_.tick;
  return {};
}

Error Engine::refusal() const {
  return error(Code::Unavailable, mode_reason_);
}

Status Engine::submit(control::Lane lane, control::Command command, control::Actor actor, std::uint64_t token) {
  MUSTER_CHECK(token < kNoToken);
  if (mode_ != Mode::Leading) return refusal();
  auto& queue = lanes_[static_cast<std::size_t>(lane)];
  if (queue.size() >= options_.lane_max) {
    return error(Code::ResourceExhausted, fmt::format("{} requests wait already; try again in a moment", queue.size()));
  }
  queue.push_back({std::move(command), std::move(actor), token});
  return {};
}

Status Engine::submit_plan(control::ApplyPlan plan) {
  if (mode_ != Mode::Leading) return refusal();
  own_.push_back({std::move(plan), system_actor(), kPlanToken});
  return {};
}

std::size_t Engine::queued() const {
  std::size_t count = own_.size();
  for (const auto& lane : lanes_) count += lane.size();
  return count;
}

bool Engine::idle() const {
  return queued() == 0 && waiting_.empty() && !batch_ && !in_flight_;
}

LeaseTime Engine::next_deadline() const {
  if (mode_ == Mode::Recovering || mode_ == Mode::ReadOnly) return retry_at_;
  if (mode_ != Mode::Leading || options_.tick.count() == 0) return {std::numeric_limits<std::int64_t>::max()};
  return tick_at_;
}

Output Engine::take_output() {
  return std::exchange(output_, {});
}

void Engine::answer(std::uint64_t token, Result<Reply> result) {
  if (token != kNoToken) output_.replies.push_back({token, std::move(result)});
}

// ---- deciding

bool Engine::batch_has_room() const {
  return !batch_ || (batch_->size() < options_.batch_entries_max && batch_bytes_ < options_.batch_bytes_max);
}

void Engine::decide_queued(Now now) {
  // Before anything else, and again if it was lost with a failed append.
  if (base_.state.leader_epoch != leader_epoch_)
    decide_one({control::BecomeLeader{leader_epoch_}, system_actor(), kNoToken}, now);
  std::size_t left = options_.decide_max;
  const auto drain = [&](std::deque<Queued>& queue) {
    while (!queue.empty() && left > 0 && batch_has_room()) {
      --left;
      Queued next = std::move(queue.front());
      queue.pop_front();
      decide_one(std::move(next), now);
    }
  };
  drain(own_);
  for (auto& lane : lanes_) drain(lane);
}

void Engine::decide_one(Queued queued, Now now) {
  now.wall = clock_.at(now, base_.state.last_wall);
  const std::uint64_t before = base_.seq;
  auto decision = control::decide(base_.state, queued.command, queued.actor, now);
  Result<Reply> result = decision ? Result<Reply>(Reply{decision->outcome, 0}) : Result<Reply>(decision.error());
  if (decision && !decision->events.empty()) {
    Status appended = append_events(decision->events, queued.actor, now.wall);
    if (!appended) result = appended.error();
  }
  if (result) result->seq = base_.seq;
  // A refusal rests on the state it saw, which may hold what is not durable yet: it waits like everything else.
  if (MUSTER_MUTANT("engine.reply_before_commit")) {
    answer(queued.token, std::move(result));
  } else {
    waiting_.push_back({queued.token, base_.seq, std::move(result)});
  }
  const std::uint64_t every = options_.digest_every;
  if (every > 0 && before / every != base_.seq / every)
    digests_.push_back({base_.seq, control::state_digest(base_.state)});
}

// All events of one command or none: everything is encoded before anything is applied.
Status Engine::append_events(const std::vector<control::Event>& events, const control::Actor& actor, WallTime wall) {
  if (events.size() > kCommandEventsMax) {
    return error(Code::TooLarge, fmt::format("the request changes {} things at once, at most {} are possible; split it",
                                             events.size(), kCommandEventsMax));
  }
  std::vector<Bytes> stored;
  stored.reserve(events.size());
  journal::Entry entry{base_.seq, leader_epoch_, wall, actor_of(actor), {}, base_.hash};
  std::size_t bytes = 0;
  std::uint32_t format = base_.state.format_version;
  for (const control::Event& event : events) {
    if (control::format_needed(event) > format)
      return error(Code::Unsupported,
                   fmt::format("this needs journal format {}, and this journal is kept in format {} so that older "
                               "control planes can read it; upgrade all of them, then raise the format",
                               control::format_needed(event), format));
    ++entry.seq;
    entry.event = control::encode(event, format);
    // What a command raises the format for is stored in the new one.
    if (const auto* raised = std::get_if<control::FormatRaised>(&event)) format = std::max(format, raised->version);
    stored.push_back(TRY(journal::encode(entry)));
    entry.prev_hash = journal::hash_of(stored.back());
    bytes += stored.back().size();
  }
  if (!batch_) {
    batch_ = std::make_shared<std::vector<Bytes>>();
    batch_bytes_ = 0;
    batch_prev_seq_ = base_.seq;
    batch_prev_hash_ = base_.hash;
  }
  control::EntryContext context = context_of(entry);
  context.seq = base_.seq;
  for (const control::Event& event : events) {
    ++context.seq;
    control::apply(base_.state, event, context);
  }
  base_.seq = entry.seq;
  base_.hash = std::move(entry.prev_hash);
  base_.wall = wall;
  batch_bytes_ += bytes;
  batch_->insert(batch_->end(), std::make_move_iterator(stored.begin()), std::make_move_iterator(stored.end()));
  return {};
}

std::optional<journal::AppendRequest> Engine::poll(Now now) {
  if ((mode_ == Mode::Recovering || mode_ == Mode::ReadOnly) && now.lease >= retry_at_) recover(now);
  if (mode_ != Mode::Leading) return std::nullopt;
  if (options_.tick.count() > 0 && now.lease >= tick_at_) {
    tick_at_ = now.lease + options_.tick;
    if (own_.empty()) own_.push_back({control::Tick{}, system_actor(), kNoToken});
  }
  decide_queued(now);
  release_durable();
  if (in_flight_ || !batch_) return std::nullopt;
  in_flight_ = journal::AppendRequest{leader_epoch_, batch_prev_seq_, std::move(batch_prev_hash_), std::move(batch_)};
  batch_.reset();
  return in_flight_;
}

// ---- what the store answered

void Engine::publish(const Bytes& stored, std::uint64_t seq) {
  if (seq <= published_seq_) return;
  output_.entries.push_back(stored);
  published_seq_ = seq;
}

void Engine::release_durable() {
  while (!waiting_.empty() && waiting_.front().seq <= durable_seq_) {
    answer(waiting_.front().token, std::move(waiting_.front().result));
    waiting_.pop_front();
  }
  auto durable =
      std::find_if(digests_.begin(), digests_.end(), [&](const Digest& digest) { return digest.seq > durable_seq_; });
  output_.digests.insert(output_.digests.end(), digests_.begin(), durable);
  digests_.erase(digests_.begin(), durable);
}

void Engine::on_append(const journal::AppendResult& result, Now now) {
  MUSTER_CHECK(in_flight_.has_value());
  const bool believed = result.outcome == AppendOutcome::Ambiguous && MUSTER_MUTANT("engine.skip_tail_reread");
  if (result.outcome == AppendOutcome::Committed || believed) {
    std::uint64_t seq = in_flight_->prev_seq;
    for (const Bytes& stored : *in_flight_->entries) publish(stored, ++seq);
    durable_seq_ = seq;
    in_flight_.reset();
    release_durable();
    return;
  }
  mode_ = Mode::Recovering;
  mode_reason_ = "the journal did not take the last change (" + result.message + "); recovering";
  disk_full_ = result.outcome == AppendOutcome::DiskFull;
  reacquire_ = result.outcome == AppendOutcome::Ambiguous;
  recover(now);
}

void Engine::fail_waiting(const Error& error) {
  for (Waiting& waiting : waiting_) answer(waiting.token, error);
  waiting_.clear();
}

void Engine::fail_queued(const Error& error) {
  for (Queued& queued : own_) answer(queued.token, error);
  own_.clear();
  for (auto& lane : lanes_) {
    for (Queued& queued : lane) answer(queued.token, error);
    lane.clear();
  }
}

// Ends in Leading, or stays out of it with a time to try again (or Fenced for good). Nothing is answered before the
// tail told what became of the append in flight.
void Engine::recover(Now now) {
  retry_at_ = now.lease + options_.probe;
  tick_at_ = now.lease + options_.tick;
  if (mode_ == Mode::Recovering) {
    Status rebuilt = fence_and_rebuild();
    if (mode_ == Mode::Fenced) return;
    if (!rebuilt) {
      mode_reason_ = "the journal cannot be read: " + rebuilt.error().message;
      return;
    }
    mode_ = Mode::Leading;
  }
  if (disk_full_) {
    Status room = store_->probe();
    if (!room) {
      mode_ = Mode::ReadOnly;
      mode_reason_ = "read-only: " + room.error().message;
      fail_queued(refusal());
      return;
    }
    disk_full_ = false;
  }
  mode_ = Mode::Leading;
  mode_reason_.clear();
}

Status Engine::fence_and_rebuild() {
  if (reacquire_) {
    auto epoch = store_->acquire_leader(leader_epoch_);
    if (!epoch && epoch.error().code != Code::Aborted) return epoch.error();
    if (epoch) leader_epoch_ = *epoch;
    reacquire_ = false;
  }
  const journal::Tail tail = TRY(store_->tail());
  TRY_VOID(rebuild());
  if (tail.leader_epoch != leader_epoch_) {
    mode_ = Mode::Fenced;
    mode_reason_ =
        fmt::format("another control plane took over the journal (leader epoch {}, ours {}); this one only reads now",
                    tail.leader_epoch, leader_epoch_);
    fail_queued(refusal());
  }
  return {};
}

// Throws the speculative state away. What the tail holds is published and answered; the rest did not happen.
Status Engine::rebuild() {
  Base fresh = copy_base_();
  bool ours_written = false;
  const std::uint64_t last_ours = in_flight_ ? in_flight_->prev_seq + in_flight_->entries->size() : 0;
  std::vector<Bytes> found;
  TRY_VOID(catch_up(*store_, fresh, [&](std::uint64_t seq, const Bytes& stored) {
    if (in_flight_ && seq == last_ours) ours_written = stored == in_flight_->entries->back();
    found.push_back(stored);
  }));
  std::uint64_t seq = fresh.seq - found.size();
  for (const Bytes& stored : found) publish(stored, ++seq);
  const std::uint64_t durable_of_ours = ours_written ? last_ours : in_flight_ ? in_flight_->prev_seq : durable_seq_;
  in_flight_.reset();
  batch_.reset();
  if (!MUSTER_MUTANT("engine.keep_speculative")) base_ = std::move(fresh);
  durable_seq_ = durable_of_ours;
  release_durable();
  digests_.clear();
  durable_seq_ = std::max(durable_seq_, published_seq_);
  fail_waiting(error(Code::Unavailable, "the change was not stored (" + mode_reason_ + "); ask again"));
  return {};
}

}  // namespace muster::engine
