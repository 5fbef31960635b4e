// When those that wait will start: the planner itself plays the future on a fork, again and again, with lengths of the
// work drawn from what lasted how long so far, and with more of what came lately. What is promised (an end of life, a
// timeout) is never exceeded.
#include <algorithm>
#include <queue>

#include "scheduler/impl.h"
#include "scheduler/sketch.h"

namespace muster::scheduler {
namespace {

constexpr std::int64_t kShadowPauseMs = 120'000;              // a guess about a guess need not be exact
constexpr std::uint64_t kOwnLeases = std::uint64_t{1} << 62;  // ids of leases that the fork grants
constexpr Millis kTogether{15'000};
constexpr std::uint32_t kPlaysMin = 8;

}  // namespace

// One future. Everything that happens is in `due`, in the order of time.
class Future {
 public:
  Future(Scheduler::Impl& fork, WallTime now, std::uint64_t seed, const ForwardOptions& options)
      : fork_(fork), now_(now), seed_(seed), options_(options), stream_(fork.arrivals, now) {}

  std::uint32_t run(std::vector<std::vector<WallTime>>& starts, const std::map<ClusterId, std::size_t>& rows) {
    holders_.assign(fork_.pool.limit(), 0);
    begin();
    std::size_t left = rows.size();
    const auto started = [&](ClusterId cluster) {
      const auto row = rows.find(cluster);
      if (row == rows.end()) return;
      starts[row->second].push_back(now_);
      --left;
    };
    for (const auto& [cluster, proposal] : std::map(fork_.proposals)) {
      if (fork_.find(cluster) == kNone) {  // places for what is moved
        fork_.drop_proposal(cluster);
        continue;
      }
      started(cluster);
      commit(cluster, {});
    }
    next_arrival();
    const WallTime began = now_, end = now_ + options_.horizon;
    std::uint32_t events = 1;
    while (left > 0 && events < options_.events_max) {
      for (bool more = true; more;) {
        const std::vector<Group> groups = fork_.plan({.groups_max = 256}, now_);
        more = !groups.empty();
        for (const Group& group : groups) {
          if (group.kind == ActionKind::Preempt) {
            for (const LeaseId victim : group.victims) tell_to_leave(victim);
            continue;
          }
          if (group.kind == ActionKind::Move) {
            move(group);
            continue;
          }
          if (group.kind == ActionKind::Start) started(group.cluster);
          commit(group.cluster, group.places);
        }
      }
      const WallTime next = next_event();
      if (next > end) break;
      // What happens within the next three percent of the way there is planned for together.
      const WallTime until = next + std::max(kTogether, (next - began) / 32);
      now_ = std::max(now_, next);
      if (due_.empty() || due_.top().at > until) ++events;
      for (; !due_.empty() && due_.top().at <= until; ++events) {
        const Due due = due_.top();
        due_.pop();
        now_ = std::max(now_, due.at);
        happen(due);
      }
    }
    return events;
  }

 private:
  // What ends or comes next, or the next machine that opens or closes.
  WallTime next_event() const {
    WallTime next = due_.empty() ? kNotYet : due_.top().at;
    if (const std::int64_t wake = fork_.pool.next_wake(); wake > now_.ms) next = std::min(next, WallTime{wake});
    return next;
  }
  struct Due {
    WallTime at;
    ClusterId cluster;                    // ends with all it holds
    LeaseId lease;                        // or this one
    bool operator<(const Due& o) const {  // the earliest is on top
      return std::tuple(o.at, o.cluster, o.lease) < std::tuple(at, cluster, lease);
    }
  };
  struct Run {
    OrgId tenant;
    ProjectId project;
    std::uint8_t tier = 1;
    bool ends = false;
    WallTime since = kNotYet;
    std::vector<LeaseId> leases;
  };

  void begin() {
    for (const auto& [id, lease] : fork_.leases) {
      const std::uint32_t node = fork_.pool.index_of(lease.node);
      if (node == kNone) continue;
      held_.emplace(id, fork_.pool.taken_by(lease, node));
      ++holders_[node];
      Run& run = runs_[lease.cluster];
      run.tenant = lease.tenant, run.project = lease.project, run.tier = lease.tier;
      run.since = std::min(run.since, lease.since);
      run.leases.push_back(id);
      if (lease.leaving) due_.push({now_ + kLeaving, {}, id});
    }
    for (auto& [cluster, run] : runs_) ends(cluster, run, now_ - run.since);
  }
  // When it ends, if that can be said.
  void ends(ClusterId cluster, Run& run, Millis elapsed) {
    if (std::exchange(run.ends, true)) return;
    const auto drawn = fork_.run_times.length(run.tenant, elapsed, draw(cluster));
    WallTime at = drawn ? run.since + *drawn : kNotYet;
    if (const auto promised = fork_.ends.find(cluster); promised != fork_.ends.end())
      at = std::min(at, promised->second);
    if (at < kNotYet) due_.push({std::max(at, now_) + kLeaving, cluster, {}});
  }
  void commit(ClusterId cluster, const std::vector<Place>& places) {
    const std::uint32_t item = fork_.find(cluster);
    Run& run = runs_[cluster];
    Millis longest{0};
    if (item != kNone) {
      const auto& lane = fork_.lanes[fork_.items[item].lane];
      run.tenant = lane.tenant, run.project = lane.project, run.tier = lane.tier;
      longest = fork_.classes[fork_.items[item].cls].example.longest;
    }
    const std::vector<Taken> taken = fork_.withdraw(cluster);  // it came true
    fork_.drop_request(cluster);
    for (std::size_t i = 0; i < taken.size(); ++i) {
      const LeaseId id{kOwnLeases + ++granted_};
      ++holders_[taken[i].node];
      run.since = std::min(run.since, now_);
      run.leases.push_back(id);
      held_.emplace(id, taken[i]);
      LeaseView lease;
      lease.lease = id, lease.cluster = cluster, lease.node = fork_.pool.view(taken[i].node).node;
      lease.tenant = run.tenant, lease.project = run.project, lease.tier = run.tier, lease.since = now_;
      if (i < places.size())
        lease.role = places[i].role, lease.resources = places[i].resources, lease.devices = places[i].devices,
        lease.share_milli = places[i].share_milli;
      fork_.apply(LeaseChanged{lease});
    }
    if (longest.count() > 0 && !fork_.ends.contains(cluster)) fork_.ends[cluster] = now_ + longest;
    ends(cluster, run, Millis(0));
  }
  // They leave, and go on elsewhere at once.
  void move(const Group& group) {
    const std::vector<Taken> taken = fork_.withdraw(move_name(group.cluster));
    for (std::size_t i = 0; i < std::min(taken.size(), group.victims.size()); ++i) {
      LeaseView lease = fork_.leases.at(group.victims[i]);
      tell_to_leave(lease.lease, true);
      const LeaseId id{kOwnLeases + ++granted_};
      ++holders_[taken[i].node];
      runs_[lease.cluster].leases.push_back(id);
      held_.emplace(id, taken[i]);
      lease.lease = id, lease.node = fork_.pool.view(taken[i].node).node, lease.since = now_;
      lease.devices = group.places[i].devices;
      fork_.apply(LeaseChanged{lease});
    }
  }
  void next_arrival() {
    if (stream_.gap_ms > 0) due_.push({now_ + Millis(stream_.gap(seed_, ++arrived_)), {}, {}});
  }
  void arrive() {
    RequestChanged change{fork_.arrivals[stream_.kind(seed_, arrived_, fork_.arrivals)].request};
    change.request.cluster = ClusterId{kOwnClusters + arrived_}, change.request.since = now_;
    next_arrival();
    fork_.apply(change);
  }
  void tell_to_leave(LeaseId id, bool moved = false) {
    LeaseView lease = fork_.leases.at(id);
    lease.leaving = lease.preempted = true, lease.moved = moved;
    fork_.apply(LeaseChanged{lease});
    due_.push({now_ + kLeaving, {}, id});
  }
  void free(LeaseId id) {
    const auto it = held_.find(id);
    if (it == held_.end()) return;
    Taken taken = it->second;
    held_.erase(it);
    taken.whole = --holders_[taken.node] == 0;
    taken.devices = fork_.holders_of(taken.node).drop(taken.devices);
    fork_.pool.give_back(taken);
    fork_.apply(LeaseGone{id});
  }
  void happen(const Due& due) {
    if (due.lease) return free(due.lease);
    if (!due.cluster) return arrive();
    const auto run = runs_.find(due.cluster);
    if (run == runs_.end()) return;
    for (const LeaseId id : run->second.leases) free(id);
    runs_.erase(run);
    fork_.apply(RequestGone{due.cluster});  // what it wanted besides
  }
  std::uint32_t draw(ClusterId cluster) const {
    return static_cast<std::uint32_t>(hash_with(seed_, cluster.value) >> 32);
  }

  Scheduler::Impl& fork_;
  WallTime now_;
  std::uint64_t seed_;
  const ForwardOptions& options_;
  const Stream stream_;
  std::uint64_t granted_ = 0, arrived_ = 0;
  std::map<LeaseId, Taken> held_;
  std::map<ClusterId, Run> runs_;
  std::vector<std::uint32_t> holders_;  // leases on each machine
  std::priority_queue<Due> due_;
};

std::vector<StartForecast> Scheduler::starts(WallTime now, const ForwardOptions& options) const {
  std::map<ClusterId, std::size_t> rows;
  std::vector<StartForecast> out;
  for (const auto& item : impl_->items) {
    if (!item.live || impl_->classes[item.cls].grows) continue;
    rows.emplace(item.cluster, 0);
  }
  for (auto& [cluster, row] : rows) {
    row = out.size();
    out.push_back({cluster, {}, {}, 0});
  }
  if (rows.empty()) return out;
  std::vector<std::vector<WallTime>> starts(out.size());
  std::uint32_t samples = 0;
  if (rows.size() + impl_->pool.count() > options.exact_max) {
    Impl fork(*impl_);
    fork.playing = true;
    Sketch sketch(fork, now, rows);
    std::vector<WallTime> played(out.size());
    for (; samples < options.samples; ++samples) {
      sketch.play(hash_with(options.seed, samples), options, played);
      for (std::size_t row = 0; row < out.size(); ++row) starts[row].push_back(played[row]);
    }
  }
  for (std::uint64_t events = 0; samples < options.samples && (samples < kPlaysMin || events < options.events_all);
       ++samples) {
    Impl fork(*impl_);
    fork.shadow_pause_ms = kShadowPauseMs, fork.playing = true;
    Future future(fork, now, hash_with(options.seed, samples), options);
    events += future.run(starts, rows);
    for (auto& times : starts) times.resize(samples + 1, kNotYet);  // those that did not start in it
  }
  for (std::size_t row = 0; row < out.size(); ++row) {
    auto& times = starts[row];
    std::sort(times.begin(), times.end());
    const auto quantile = [&](std::size_t percent) {
      const WallTime t = times[std::min(times.size() - 1, (times.size() * percent + 99) / 100 - 1)];
      return t < kNotYet ? t : WallTime{};
    };
    out[row].p50 = quantile(50), out[row].p90 = quantile(90), out[row].samples = samples;
  }
  return out;
}

}  // namespace muster::scheduler
