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

std::shared_ptr<const StartForecasts::Map> StartForecasts::get(const engine::Runner& runner) {
  const std::unique_lock one(one_, std::try_to_lock);
  const Now now = read_clocks();
  if (!one || !old()) return last();
  auto made = std::make_shared<Map>();
  std::vector<scheduler::Change> snapshot;
  runner.read([&](const control::State&, const scheduler::Scheduler& scheduler) {
    if (scheduler.waiting() > 0 && scheduler.waiting() <= kWaitingMax) snapshot = scheduler.snapshot();
  });
  if (!snapshot.empty()) {
    scheduler::Scheduler fork;
    for (const scheduler::Change& change : snapshot) fork.apply(change);
    snapshot.clear();
    for (const auto& start : fork.starts(now.wall, {.seed = static_cast<std::uint64_t>(now.wall.ms / kFresh.count())}))
      made->emplace(start.cluster, start);
  }
  const LeaseTime end = read_clocks().lease;
  const std::lock_guard lock(mutex_);
  next_ = end + std::max(kFresh, (end - now.lease) * kRest);
  last_ = std::move(made);
  return last_;
}

}  // namespace muster::server
