// sched-speed: how long the planner takes, on pools of 1k, 10k and 100k machines (1 to 8 GPUs of six models, one in
// four without) that are half full, with the default policy and every filter on. Pure computation on one thread, no
// journal, no network; times are that thread's CPU time, so that other work on the machine does not show.
//   single_p99_us.N     from a new one-machine request to its plan: 99th percentile over 1,000 distinct requests; p50
//   besides placements_per_s.N  requests of 50 classes queued at once, planned until all are placed load_s.N building
//   the state from a full snapshot of machines
// Usage: bench_sched_speed [largest pool=100000]. One JSON line per figure.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/rng.h"
#include "scheduler/scheduler.h"

namespace {

using namespace muster;
using namespace muster::scheduler;
struct Clock {
  using time_point = std::int64_t;  // nanoseconds of this thread
  static time_point now() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
  }
};

constexpr WallTime kNow{1'700'000'000'000};
const std::vector<std::string> kModels{"A10", "A100", "H100", "L4", "T4", "V100"};

double micros_since(Clock::time_point start) {
  return static_cast<double>(Clock::now() - start) / 1e3;
}

NodeView machine(std::uint64_t id, Rng& rng) {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{1 + rng.below(500)}, n.arch = "x86_64", n.schedulable = true,
  n.runtimes = {RuntimeKind::Docker};
  n.labels["region"] = rng.chance(1, 2) ? "eu" : "us";
  const std::uint64_t gpus = rng.chance(1, 4) ? 0 : 1ULL << rng.below(4);
  n.free.cpu_milli = static_cast<std::int64_t>(std::max<std::uint64_t>(8, gpus * 12) * 1000),
  n.free.memory_bytes = std::int64_t{64} << 30;
  const std::string& model = kModels[rng.below(kModels.size())];
  for (std::uint64_t i = 0; i < gpus; ++i)
    n.devices.push_back({fmt::format("gpu-{}-{}", id, i), model, std::int64_t{24} << 30});
  for (const Device& d : n.devices)
    if (rng.chance(1, 2)) n.free_devices.push_back(d.uuid);
  n.free.gpus = static_cast<std::int64_t>(n.free_devices.size());
  if (rng.chance(1, 2)) n.free.cpu_milli = n.free.cpu_milli * rng.between(2, 9) / 10;
  n.whole = n.free_devices.size() == n.devices.size();
  return n;
}

Request request(std::uint64_t id, Rng& rng) {
  Request r;
  r.cluster = ClusterId{id}, r.tenant = OrgId{1 + rng.below(200)}, r.since = kNow, r.pool = "market", r.arch = "x86_64",
  r.image = "ray";
  Bundle head;
  head.role = SlotRole::Head;
  head.request.resources.cpu_milli = rng.between(500, 4000),
  head.request.resources.memory_bytes = std::int64_t{1} << 30;
  if (rng.chance(3, 4)) head.request.resources.gpus = rng.between(1, 2);
  if (head.request.resources.gpus > 0 && rng.chance(1, 3)) head.request.gpu_model = kModels[rng.below(kModels.size())];
  if (rng.chance(1, 4)) head.request.constraints["region"] = "eu";
  r.gang.push_back(head);
  return r;
}

void print(const std::string& name, double value, const char* unit, std::size_t runs) {
  fmt::print(
      "{{\"name\": \"sched-speed.{}\", \"value\": {:.3f}, \"unit\": \"{}\", \"baseline\": null, \"ratio\": null, "
      "\"runs\": {}}}\n",
      name, value, unit, runs);
  std::fflush(stdout);
}

void measure(std::uint64_t machines, const std::string& label) {
  Rng rng(42);
  std::vector<NodeView> views;
  for (std::uint64_t i = 1; i <= machines; ++i) views.push_back(machine(i, rng));
  Scheduler scheduler;
  const auto loading = Clock::now();
  for (const NodeView& view : views) scheduler.apply(NodeChanged{view});
  scheduler.plan({}, kNow);
  print("load_s." + label, micros_since(loading) / 1e6, "s", 1);

  std::vector<double> times;
  for (std::uint64_t i = 1; i <= 1000; ++i) {
    const Request r = request(i, rng);
    const auto start = Clock::now();
    scheduler.apply(DemandChanged{r.cluster, {{r.gang.front().request, 1}}});
    scheduler.apply(RequestChanged{r});
    const auto groups = scheduler.plan({1}, kNow);
    times.push_back(micros_since(start));
    scheduler.apply(RequestGone{r.cluster});
    scheduler.plan({}, kNow);
  }
  std::sort(times.begin(), times.end());
  print("single_p50_us." + label, times[times.size() / 2], "us", times.size());
  print("single_p99_us." + label, times[times.size() * 99 / 100], "us", times.size());

  std::vector<Request> classes;
  for (int i = 0; i < 50; ++i) classes.push_back(request(1, rng));
  const std::uint64_t wanted = std::min<std::uint64_t>(machines / 4, 5'000);
  for (std::uint64_t i = 0; i < wanted; ++i) {
    Request r = classes[rng.below(classes.size())];
    r.cluster = ClusterId{10'000 + i};
    scheduler.apply(DemandChanged{r.cluster, {{r.gang.front().request, 1}}});
    scheduler.apply(RequestChanged{r});
  }
  std::size_t placed = 0;
  const auto start = Clock::now();
  for (;;) {
    const auto groups = scheduler.plan({64}, kNow);
    if (groups.empty()) break;
    placed += groups.size();
  }
  print("placements_per_s." + label, static_cast<double>(placed) / micros_since(start) * 1e6, "placements/s", placed);
}

}  // namespace

int main(int argc, char** argv) {
  const long largest = argc > 1 ? std::atol(argv[1]) : 100'000;
  for (const auto& [machines, label] :
       {std::pair{1'000L, "1k"}, std::pair{10'000L, "10k"}, std::pair{100'000L, "100k"}})
    if (machines <= largest) measure(static_cast<std::uint64_t>(machines), label);
}
