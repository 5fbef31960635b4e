// sched-speed: how long the planner takes, on pools of 1k, 10k and 100k machines (1 to 8 GPUs of six models, one in
// four without), with the default policy and every filter on. Pure computation on one thread, no journal, no network;
// times are that thread's CPU time, so that other work on the machine does not show. What is placed is committed and
// ends again, so the pool stays as full as it was; the expected workload has been learned from 20,000 requests before.
//   single_{p50,p99,p999}_us.N   from a new one-machine request to its plan, over 5,000 requests that all differ: 90 %
//       of the GPUs taken, 1,000 requests waiting in vain, ten updates of machines between two requests. Then the same
//       with one thing changed: .full50 .full99 .pending0 .pending100k .avx2 .scalar
//   node_update_us.N             one of those updates, and who it wakes (mean)
//   placements_per_s.N           requests of 50 classes queued at once on a half full pool, planned until all are
//   placed gang{8,64,512}_ms.N          one gang of so many machines with a GPU each, half full (median);
//       .net: with the policy fast-network, machines on sites of 100 and pairs that were measured. position_us.N,
//   explain_us.N  position and reason of one of 100,000 waiting requests; of one of 1,000 (99th percentile) load_s 100k
//   machines and 1 M waiting requests, from a snapshot to the first plan memory_mib.100k              of the scheduler
//   with 100k machines
// Usage: bench_sched_speed [largest pool=100000] [single|placements|gangs|reading|preemption|forward|load]. One JSON
// line per figure; baseline = the bar, where there is one.
#include <fmt/format.h>
#include <malloc.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "base/rng.h"
#include "scheduler/scheduler.h"

namespace {

using namespace muster;
using namespace muster::scheduler;

constexpr WallTime kNow{1'700'000'000'000};
constexpr std::int64_t kGib = std::int64_t{1} << 30;
const std::vector<std::string> kModels{"A10", "A100", "H100", "L4", "T4", "V100"};

double cpu_us() {  // of this thread
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
}

NodeView machine(std::uint64_t id, std::uint64_t full_percent, Rng& rng) {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{1 + rng.below(500)}, n.arch = "x86_64", n.schedulable = true,
  n.runtimes = {RuntimeKind::Docker};
  n.labels["region"] = rng.chance(1, 2) ? "eu" : "us";
  const std::uint64_t gpus = rng.chance(1, 4) ? 0 : 1ULL << rng.below(4);
  n.free.cpu_milli = static_cast<std::int64_t>(std::max<std::uint64_t>(8, gpus * 12) * 1000),
  n.free.memory_bytes = 64 * kGib;
  n.capacity = n.free, n.capacity.gpus = static_cast<std::int64_t>(gpus);
  const std::string& model = kModels[rng.below(kModels.size())];
  for (std::uint64_t i = 0; i < gpus; ++i) n.devices.push_back({fmt::format("gpu-{}-{}", id, i), model, 24 * kGib});
  for (const Device& d : n.devices)
    if (!rng.chance(full_percent, 100)) n.free_devices.push_back(d.uuid);
  n.free.gpus = static_cast<std::int64_t>(n.free_devices.size());
  if (rng.chance(full_percent, 100)) n.free.cpu_milli = n.free.cpu_milli * rng.between(2, 9) / 10;
  n.whole = n.free_devices.size() == n.devices.size() && n.free.cpu_milli == n.capacity.cpu_milli;
  return n;
}

Request request(std::uint64_t id, Rng& rng) {
  Request r;
  r.cluster = ClusterId{id}, r.tenant = OrgId{1 + rng.below(200)}, r.project = ProjectId{r.tenant.value};
  r.since = kNow, r.pool = "market", r.arch = "x86_64", r.image = "ray";
  Bundle head;
  head.role = SlotRole::Head;
  head.request.resources.cpu_milli = rng.between(500, 4000), head.request.resources.memory_bytes = kGib;
  if (rng.chance(3, 4)) head.request.resources.gpus = rng.between(1, 2);
  if (head.request.resources.gpus > 0 && rng.chance(1, 3)) head.request.gpu_model = kModels[rng.below(kModels.size())];
  if (rng.chance(1, 4)) head.request.constraints["region"] = "eu";
  r.gang.push_back(head);
  return r;
}

Request hopeless(std::uint64_t id, std::uint64_t kind) {  // more memory than any machine has
  Rng rng(kind);
  Request r = request(id, rng);
  r.gang.front().request.resources.memory_bytes = (65 + static_cast<std::int64_t>(kind)) * kGib;
  return r;
}

void print(const std::string& name, double value, const char* unit, std::size_t runs, double bar = 0) {
  fmt::print(R"({{"name": "sched-speed.{}", "value": {:.3f}, "unit": "{}", "baseline": {}, "ratio": {}, "runs": {}}})"
             "\n",
             name, value, unit, bar > 0 ? fmt::format("{}", bar) : "null",
             bar > 0 ? fmt::format("{:.3f}", value / bar) : "null", runs);
  std::fflush(stdout);
}

// The scheduler with machines, and somebody who commits what it plans.
class Site {
 public:
  Site(std::uint64_t machines, std::uint64_t full_percent, Simd simd) : scheduler_({simd, false}) {
    Rng rng(42);
    for (std::uint64_t i = 1; i <= machines; ++i) views_.push_back(machine(i, full_percent, rng));
    const auto in_use = [] {
      const auto info = mallinfo2();
      return info.uordblks + info.hblkhd;
    };
    const std::size_t before = in_use();
    for (const NodeView& view : views_) scheduler_.apply(NodeChanged{view});
    memory_ = in_use() - before;
    for (std::uint64_t i = 0; i < 20'000; ++i)
      scheduler_.apply(DemandChanged{ClusterId{kSeen + i}, {{request(1, rng).gang.front().request, 1}}});
    scheduler_.plan({}, kNow);
  }
  Scheduler& scheduler() { return scheduler_; }
  double memory_mib() const { return static_cast<double>(memory_) / (1 << 20); }
  void wait_in_vain(std::uint64_t n) {
    for (std::uint64_t i = 0; i < n; ++i) scheduler_.apply(RequestChanged{hopeless(kWaiting + i, i % 1'000)});
    scheduler_.plan({}, kNow);
  }
  std::vector<Group> ask(const Request& r) {  // two copies of it, as its owner has to make
    scheduler_.apply(DemandChanged{r.cluster, {{r.gang.front().request, 1}}});
    scheduler_.apply(RequestChanged{r});
    return scheduler_.plan({1}, kNow);
  }
  void commit(const std::vector<Group>& groups, bool keep = false) {
    for (const Group& group : groups) {
      for (const Place& place : group.places) move(place, -1), tell(place.node);
      scheduler_.apply(RequestGone{group.cluster});
      if (!keep) running_.push_back(group);
    }
    while (running_.size() > 50) end(running_.front()), running_.pop_front();
  }
  void end(const Group& group) {
    for (const Place& place : group.places) move(place, 1), tell(place.node);
    scheduler_.apply(DemandChanged{group.cluster, {}});
  }
  void remember(Rng& rng) {  // how long work of 200 tenants lasted
    remembers_ = true;
    for (std::uint64_t i = 0; i < 4'000; ++i) {
      LeaseView l;
      l.lease = LeaseId{kSeen}, l.cluster = ClusterId{kSeen}, l.node = NodeId{kSeen};
      l.tenant = OrgId{1 + i % 200}, l.project = ProjectId{l.tenant.value}, l.role = SlotRole::Head;
      l.since = kNow - Millis(90'000'000);
      scheduler_.apply(LeaseChanged{l});
      scheduler_.apply(LeaseGone{l.lease, l.since + Millis(rng.between(600'000, 14'400'000))});
    }
  }
  // One lease on every machine, of all its GPUs; every other one may be interrupted.
  void occupy(Rng& rng) {
    for (std::size_t i = 0; i < views_.size(); ++i) {
      LeaseView l;
      l.lease = LeaseId{1 + i}, l.cluster = ClusterId{kRunning + i}, l.node = views_[i].node;
      l.role = i % 2 == 0 ? SlotRole::Worker : SlotRole::Head, l.tier = 3;
      l.tenant = OrgId{1 + i % 200}, l.project = ProjectId{l.tenant.value};
      l.since = kNow - Millis(rng.between(300'000, 36'000'000));
      l.resources = views_[i].free, l.resources.gpus = static_cast<std::int64_t>(views_[i].devices.size());
      for (const Device& d : views_[i].devices) l.devices.push_back(d.uuid);
      views_[i].free_devices.clear(), views_[i].free = {}, views_[i].whole = false;
      scheduler_.apply(NodeChanged{views_[i]});
      scheduler_.apply(LeaseChanged{l});
      const Millis left(rng.between(60'000, 7'200'000));
      if (i % 3 != 0 || !remembers_) scheduler_.apply(TermsChanged{l.cluster, kNow + left, {}});
    }
    scheduler_.plan({}, kNow);
  }
  // Sites of 100 machines, and a hundred thousand pairs that were measured.
  void connect(Rng& rng) {
    for (std::size_t i = 0; i < views_.size(); ++i) {
      views_[i].site = fmt::format("site-{}", i / 100);
      if (rng.chance(1, 2)) views_[i].link = {.up_kbps = rng.between(10'000, 1'000'000), .down_kbps = 1'000'000};
      scheduler_.apply(NodeChanged{views_[i]});
    }
    PathsChanged paths;
    for (std::size_t i = 0; i < 100'000; ++i) {
      const NodeId from = views_[rng.below(views_.size())].node, to = views_[rng.below(views_.size())].node;
      const PathKind kind = rng.chance(1, 4) ? PathKind::Relay : PathKind::Direct;
      paths.paths.push_back({from, to, kind, rng.between(1'000, 1'000'000), 20'000, kNow});
    }
    scheduler_.apply(paths);
    scheduler_.plan({}, kNow);
  }
  void update(Rng& rng) {  // some work ends or begins on it
    NodeView& view = views_[rng.below(views_.size())];
    view.free.cpu_milli = view.capacity.cpu_milli * rng.between(1, 10) / 10;
    scheduler_.apply(NodeChanged{view});
  }

 private:
  static constexpr std::uint64_t kSeen = 10'000'000, kWaiting = 20'000'000, kRunning = 40'000'000;
  void move(const Place& place, int sign) {
    NodeView& view = views_[place.node.value - 1];
    view.free.cpu_milli = std::max<std::int64_t>(0, view.free.cpu_milli + sign * place.resources.cpu_milli);
    view.free.memory_bytes += sign * place.resources.memory_bytes, view.free.gpus += sign * place.resources.gpus;
    for (const std::string& uuid : place.devices)
      if (sign < 0)
        std::erase(view.free_devices, uuid);
      else
        view.free_devices.push_back(uuid);
    view.whole = false;
  }
  void tell(NodeId id) { scheduler_.apply(NodeChanged{views_[id.value - 1]}); }
  Scheduler scheduler_;
  std::vector<NodeView> views_;
  std::deque<Group> running_;
  std::size_t memory_ = 0;
  bool remembers_ = false;
};

struct Case {
  std::string suffix;
  std::uint64_t full = 90, pending = 1'000;
  Simd simd = Simd::Avx512;
};

double percentile(std::vector<double>& sorted, std::size_t permille) {
  return sorted[std::min(sorted.size() - 1, sorted.size() * permille / 1'000)];
}

// The same series three times; of each request the fastest, so that what else runs on the machine does not show.
void singles(std::uint64_t machines, const std::string& label, const Case& c, double bar) {
  constexpr std::uint64_t kRequests = 5'000;
  std::vector<double> times(kRequests, 1e12);
  double updates = 1e12;
  std::size_t placed = 0;
  for (int run = 0; run < 3; ++run) {
    Site site(machines, c.full, c.simd);
    site.wait_in_vain(c.pending);
    Rng rng(7);
    double spent = 0;
    placed = 0;
    for (std::uint64_t i = 0; i < kRequests; ++i) {
      const double begin = cpu_us();
      for (int k = 0; k < 10; ++k) site.update(rng);
      site.scheduler().plan({}, kNow);
      spent += cpu_us() - begin;
      const Request r = request(i + 1, rng);
      const double start = cpu_us();
      const auto groups = site.ask(r);
      times[i] = std::min(times[i], cpu_us() - start);
      placed += groups.size();
      site.commit(groups);
      if (groups.empty()) site.scheduler().apply(RequestGone{r.cluster});
      site.scheduler().plan({}, kNow);
    }
    updates = std::min(updates, spent);
  }
  std::sort(times.begin(), times.end());
  const std::string name = label + c.suffix;
  print("single_p50_us." + name, percentile(times, 500), "us", times.size());
  print("single_p99_us." + name, percentile(times, 990), "us", times.size(), bar);
  print("single_p999_us." + name, percentile(times, 999), "us", times.size());
  if (c.suffix.empty()) print("node_update_us." + label, updates / kRequests / 10, "us", kRequests * 10);
  if (placed < kRequests / 4) std::abort();  // the pool is too full to say anything
}

void placements(std::uint64_t machines, const std::string& label, double bar) {
  Site site(machines, 50, Simd::Avx512);
  Rng rng(8);
  std::vector<Request> classes;
  for (int i = 0; i < 50; ++i) classes.push_back(request(1, rng));
  const std::uint64_t wanted = std::min<std::uint64_t>(machines / 4, 20'000);
  for (std::uint64_t i = 0; i < wanted; ++i) {
    Request r = classes[rng.below(classes.size())];
    r.cluster = ClusterId{1 + i};
    site.scheduler().apply(DemandChanged{r.cluster, {{r.gang.front().request, 1}}});
    site.scheduler().apply(RequestChanged{r});
  }
  std::size_t placed = 0;
  const double start = cpu_us();
  for (;;) {
    const auto groups = site.scheduler().plan({64}, kNow);
    if (groups.empty()) break;
    placed += groups.size();
  }
  print("placements_per_s." + label, static_cast<double>(placed) / (cpu_us() - start) * 1e6, "placements/s", placed,
        bar);
}

void gangs(std::uint64_t machines, const std::string& label, bool net = false) {
  Site site(machines, 50, Simd::Avx512);
  Rng rng(9);
  if (net) site.connect(rng);
  std::uint64_t id = 0;
  for (const std::uint32_t size : {8U, 64U, 512U}) {
    if (size > machines / 10) continue;
    std::vector<double> times;
    for (int run = 0; run < 21; ++run) {
      Request r = request(++id, rng);
      if (net) r.policy = Policy::FastNetwork;
      r.gang.front().request = {};
      r.gang.front().request.resources = {.cpu_milli = 1000, .memory_bytes = kGib};
      Bundle workers;
      workers.group = "w", workers.count = size - 1;
      workers.request.resources = {.cpu_milli = rng.between(1000, 2000), .memory_bytes = 4 * kGib, .gpus = 1};
      r.gang.push_back(workers);
      const double start = cpu_us();
      const auto groups = site.ask(r);
      times.push_back((cpu_us() - start) / 1e3);
      site.commit(groups, true);
      for (const Group& group : groups) site.end(group);
      site.scheduler().plan({}, kNow);
    }
    std::sort(times.begin(), times.end());
    print(fmt::format("gang{}_ms.{}{}", size, label, net ? ".net" : ""), times[times.size() / 2], "ms", times.size(),
          size == 64 && machines == 100'000 ? 2 : 0);
  }
}

void reading(std::uint64_t machines, const std::string& label) {
  for (const std::uint64_t pending : {1'000U, 100'000U}) {
    Site site(machines, 90, Simd::Avx512);
    site.wait_in_vain(pending);
    Rng rng(10);
    std::vector<double> times;
    for (int i = 0; i < 1'000; ++i) {
      const ClusterId cluster{20'000'000 + rng.below(pending)};
      const double start = cpu_us();
      const QueueView view = site.scheduler().queue_of(cluster, kNow);
      times.push_back(cpu_us() - start);
      if (view.position == 0) std::abort();
    }
    std::sort(times.begin(), times.end());
    if (pending == 1'000)
      print("explain_us." + label, percentile(times, 990), "us", times.size(), machines == 10'000 ? 1'000 : 0);
    else
      print("position_us." + label, percentile(times, 990), "us", times.size());
  }
}

// A full pool, where every other machine runs what may be interrupted: one request of a better tier, and one gang.
void preemption(std::uint64_t machines, const std::string& label) {
  Rng rng(11);
  Site site(machines, 0, Simd::Avx512);
  site.occupy(rng);
  for (const std::uint32_t size : {1U, 8U}) {
    std::vector<double> times;
    for (std::uint64_t i = 0; i < 200; ++i) {
      Request r = request(1 + i + size * 1'000ULL, rng);
      r.tier = 0;
      Bundle worker = r.gang.front();
      worker.role = SlotRole::Worker, worker.group = "w", worker.count = size - 1;
      worker.request.gpu_model.clear(), worker.request.constraints.clear();
      if (size > 1) r.gang.push_back(worker);
      const double start = cpu_us();
      const auto groups = site.ask(r);
      times.push_back(cpu_us() - start);
      if (groups.empty() || groups[0].kind != ActionKind::Preempt) std::abort();
      site.scheduler().apply(RequestGone{r.cluster});
      site.scheduler().plan({}, kNow);
    }
    std::sort(times.begin(), times.end());
    print(fmt::format("preempt{}_p99_us.{}", size, label), percentile(times, 990), "us", times.size());
  }
}

// What all that wait are told (1,000 of them, then 10,000). They came in the last hour and more comes at that rate; of
// a third of what runs nobody knows the end, but how long such work lasted; every other machine may be cleared for a
// better tier.
void forward(std::uint64_t machines, std::uint64_t waiting, const std::string& label) {
  std::vector<double> times;
  std::uint32_t samples = 0;
  for (int run = 0; run < 3; ++run) {
    Rng rng(12);
    Site site(machines, 0, Simd::Avx512);
    site.remember(rng);
    site.occupy(rng);
    for (std::uint64_t i = 0; i < waiting; ++i) {
      Request r = request(1 + i, rng);
      r.since = kNow - Millis(static_cast<std::int64_t>((waiting - i) * 3'600'000 / waiting));
      site.scheduler().apply(RequestChanged{r});
    }
    site.scheduler().plan({}, kNow);
    const double start = cpu_us();
    samples = site.scheduler().starts(kNow).front().samples;
    times.push_back((cpu_us() - start) / 1e6);
  }
  std::sort(times.begin(), times.end());
  print("forward_s." + label, times[1], "s", samples, machines == 10'000 ? 1 : 0);
}

void load() {
  Rng rng(42);
  std::vector<NodeView> views;
  for (std::uint64_t i = 1; i <= 100'000; ++i) views.push_back(machine(i, 90, rng));
  std::vector<Request> kinds;
  for (std::uint64_t i = 0; i < 1'000; ++i) kinds.push_back(hopeless(1, i));
  Scheduler scheduler;
  const double start = cpu_us();
  for (const NodeView& view : views) scheduler.apply(NodeChanged{view});
  RequestChanged change;
  for (std::uint64_t i = 0; i < 1'000'000; ++i) {
    if (i % 1'000 == 0) change.request = kinds[i / 1'000];
    change.request.cluster = ClusterId{1 + i};
    scheduler.apply(change);
  }
  scheduler.plan({}, kNow);
  print("load_s", (cpu_us() - start) / 1e6, "s", 1, 2);
}

void measure(std::uint64_t machines, const std::string& label, const std::string& part) {
  const std::map<std::uint64_t, std::pair<double, double>> bars{
      {1'000, {5, 0}}, {10'000, {20, 100'000}}, {100'000, {60, 50'000}}};
  const auto [single, rate] = bars.at(machines);
  const auto wanted = [&](const char* name) { return part.empty() || part == name; };
  if (wanted("single")) {
    singles(machines, label, {}, single);
    for (const Case& c : {Case{".full50", 50, 1'000, Simd::Avx512}, Case{".full99", 99, 1'000, Simd::Avx512},
                          Case{".pending0", 90, 0, Simd::Avx512}, Case{".pending100k", 90, 100'000, Simd::Avx512},
                          Case{".avx2", 90, 1'000, Simd::Avx2}, Case{".scalar", 90, 1'000, Simd::Scalar}})
      singles(machines, label, c, 0);
  }
  if (wanted("placements")) placements(machines, label, rate);
  if (wanted("gangs")) gangs(machines, label), gangs(machines, label, true);
  if (wanted("reading")) reading(machines, label);
  if (wanted("preemption")) preemption(machines, label);
  if (wanted("forward")) forward(machines, std::min<std::uint64_t>(machines, 10'000), label);
}

}  // namespace

int main(int argc, char** argv) {
  const long largest = argc > 1 ? std::atol(argv[1]) : 100'000;
  const std::string part = argc > 2 ? argv[2] : "";
  for (const auto& [machines, label] :
       {std::pair{1'000L, "1k"}, std::pair{10'000L, "10k"}, std::pair{100'000L, "100k"}})
    if (machines <= largest) measure(static_cast<std::uint64_t>(machines), label, part);
  if (largest >= 100'000 && (part.empty() || part == "load")) {
    print("memory_mib.100k", Site(100'000, 90, Simd::Avx512).memory_mib(), "MiB", 1);
    load();
  }
}
