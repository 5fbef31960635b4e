#include "server/start_forecasts.h"

#include <algorithm>
#include <vector>

namespace muster::server {
namespace {

constexpr Millis kFresh{10'000};
constexpr std::int64_t kRest = 20;           // times as long as a play took
constexpr std::size_t kWaitingMax = 20'000;  // ten thousand take a second (sketched): whoever asks waits for it

}  // namespace

std::shared_ptr<const StartForecasts::Map> StartForecasts::last() const {
  const std::lock_guard lock(mutex_);
  return last_;
}

bool StartForecasts::old() const {
  const std::lock_guard lock(mutex_);
  return read_clocks().lease >= next_;
}

// What came of those that were foretold.
void StartForecasts::look_back(const control::State& state) {
  std::vector<ClusterId> open;
  calibration_.each_open([&](ClusterId id) { open.push_back(id); });
  for (const ClusterId id : open) {
    const Cluster* cluster = state.find_cluster(id);
    if (cluster != nullptr && cluster->state == ClusterState::Queued) continue;
    WallTime granted = cluster == nullptr ? WallTime{} : cluster->started_at;  // its first machine; later it also runs
    if (cluster != nullptr)
      for (const LeaseId lease : state.cluster_leases(id))
        if (const Lease* l = state.find_lease(lease); l != nullptr && (granted.ms == 0 || l->granted_at < granted))
          granted = l->granted_at;
    if (granted.ms != 0)
      calibration_.started(id, granted);
    else
      calibration_.forget(id);
  }
}

std::shared_ptr<const StartForecasts::Map> StartForecasts::get(const engine::Runner& runner) {
  const std::unique_lock one(one_, std::try_to_lock);
  const Now now = read_clocks();
  if (!one || !old()) return last();
  auto made = std::make_shared<Map>();
  std::vector<scheduler::Change> snapshot;
  std::map<ClusterId, std::uint32_t> kinds;  // of those that wait
  runner.read([&](const control::State& state, const scheduler::Scheduler& scheduler) {
    if (scheduler.waiting() > 0 && scheduler.waiting() <= kWaitingMax) snapshot = scheduler.snapshot();
    look_back(state);
    for (const scheduler::Change& change : snapshot)
      if (const auto* asked = std::get_if<scheduler::RequestChanged>(&change)) {
        std::uint32_t machines = 0;
        for (const scheduler::Bundle& bundle : asked->request.gang) machines += std::min(bundle.count, 1'000U);
        kinds.emplace(asked->request.cluster, scheduler::Calibration::kind_of(asked->request.tier, machines));
      }
  });
  if (!snapshot.empty()) {
    scheduler::Scheduler fork;
    for (const scheduler::Change& change : snapshot) fork.apply(change);
    snapshot.clear();
    for (const auto& start :
         fork.starts(now.wall, {.seed = static_cast<std::uint64_t>(now.wall.ms / kFresh.count())})) {
      const std::uint32_t kind = kinds[start.cluster];
      made->emplace(start.cluster, calibration_.corrected(start, kind, now.wall));
      calibration_.told(start, kind, now.wall);
    }
  }
  const LeaseTime end = read_clocks().lease;
  const std::lock_guard lock(mutex_);
  next_ = end + std::max(kFresh, (end - now.lease) * kRest);
  last_ = std::move(made);
  return last_;
}

}  // namespace muster::server
