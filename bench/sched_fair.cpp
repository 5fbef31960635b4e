// sched-fair: a day of a mixed market, played against the planner alone (virtual time, ten seconds a step, no journal).
// 150 machines of 4 or 8 GPUs: steady ones, ones that go home for the night, ones that come and go. 200 tenants of very
// unequal size ask for gangs of 1 to 64 machines with a GPU each in three tiers (0, 1, and 3, which may be
// interrupted), a tenth more than there is. Half of the work states a limit, 1.1 to 3 times what it takes; nobody tells
// the planner how long it takes. The same day is played with one thing of the planner's taken away at a time, or given:
//   fifo           only the first of each tier is looked at
//   no-backfill    nothing goes onto machines that are kept for a gang
//   no-preemption  nobody makes room
//   random-ties    another order among equal machines at every step
//   sampled        seven machines that would do are compared (log2 of all), not all
//   shares         the three tiers are guaranteed 10, 40 and 20 % of the GPUs
// Figures: utilisation (of the GPUs that were there, percent), gang64_p99_wait (hours, of gangs of 64 that came in the
// first 18 hours; those that never started count as waiting until the end), lost (GPU-hours that preemption threw
// away), jain (Jain's index over tenants: what they got of what they asked for), starvation (hours: the longest wait of
// tiers 0 and 1), gini (of the suppliers' earnings, 0 = all alike: GPU-hours hired of those that each offered), and of
// the default alone p90_coverage.tierN (percent of those that waited and had started by the P90
// they were told first) and pinball (loss of that P90, against the P90 of the waits of that size so far). Usage:
// bench_sched_fair [days=3 [default]]: the second for the default alone. Medians over the days; ratio = default /
// ablation, or value / bar.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/rng.h"
#include "scheduler/calibration.h"
#include "scheduler/scheduler.h"

namespace {

using namespace muster;
using namespace muster::scheduler;

constexpr WallTime kDawn{1'700'006'400'000};  // a midnight, UTC
constexpr Millis kStep{10'000}, kDay{86'400'000}, kClearing{30'000};
constexpr std::array<int, 6> kSizes{1, 2, 8, 16, 32, 64};

struct Work {
  ClusterId id;
  OrgId tenant;
  std::uint8_t tier = 1;
  int size = 1;
  Millis length{0}, limit{0};
  WallTime since, started, ends;
  bool running = false;
  std::set<LeaseId> leases;
};
struct Results {
  double utilisation = 0, gang64 = 0, lost = 0, jain = 0, starvation = 0, gini = 0, pinball = 0, pinball_plain = 0;
  std::array<double, 3> coverage{};
};

double seconds(Millis ms) {
  return static_cast<double>(ms.count()) / 1e3;
}
double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(q * static_cast<double>(values.size())))];
}

class Market {
 public:
  Market(std::uint64_t seed, const std::string& variant)
      : rng_(seed),
        variant_(variant),
        s_({.backfill = variant != "no-backfill", .sampled = variant == "sampled" ? 7U : 0U}) {
    if (variant == "no-preemption") s_.apply(FreezeChanged{true});
    if (variant == "shares") s_.apply(TierSharesChanged{{100, 400, 0, 200}});
    for (std::uint64_t i = 1; i <= 150; ++i) {
      NodeView n;
      n.node = NodeId{i}, n.supplier = OrgId{1'000 + i % 40}, n.arch = "x86_64", n.schedulable = true;
      n.runtimes = {RuntimeKind::Docker};
      const int gpus = rng_.chance(1, 3) ? 8 : 4;
      for (int g = 0; g < gpus; ++g)
        n.devices.push_back(
            {fmt::format("gpu-{}-{}", i, g), rng_.chance(1, 2) ? "A100" : "L4", std::int64_t{40} << 30});
      n.capacity.cpu_milli = gpus * 8'000, n.capacity.memory_bytes = std::int64_t{256} << 30, n.capacity.gpus = gpus;
      for (const Device& d : n.devices) n.free_devices.push_back(d.uuid);
      n.free = n.capacity;
      nodes_[n.node] = n;
      s_.apply(NodeChanged{n});
    }
    arrivals();
  }

  Results run() {
    double used = 0, there = 0;
    std::size_t next = 0;
    for (WallTime now = kDawn; now < kDawn + kDay; now = now + kStep) {
      now_ = now;
      churn();
      while (next < day_.size() && day_[next].since <= now) ask(day_[next++]);
      end();
      if (variant_ == "random-ties") s_.apply(DayChanged{rng_.next()});
      if (variant_ == "fifo") offer_first();
      for (int rounds = 0; rounds < 200; ++rounds) {
        const auto groups = s_.plan({}, now);
        for (const Group& g : groups) commit(g);
        if (variant_ == "fifo") offer_first();
        if (groups.empty()) break;
      }
      for (const auto& [id, n] : nodes_) {
        if (!n.schedulable) continue;
        const auto all = static_cast<double>(n.devices.size()),
                   hired = all - static_cast<double>(n.free_devices.size());
        there += all, used += hired;
        offered_by_[n.supplier].first += hired, offered_by_[n.supplier].second += all;
      }
      if (variant_ == "default" && (now - kDawn).count() % 900'000 == 0) foretell();
    }
    Results r;
    r.utilisation = 100 * used / there;
    r.lost = lost_ / 3600;
    std::vector<double> gang64, got;
    std::map<OrgId, std::pair<double, double>> tenants;
    for (const auto& [id, w] : work_) {
      const double waited = seconds((w.started.ms != 0 ? w.started : now_) - w.since) / 3600;
      if (w.size == 64 && w.since < kDawn + 18 * kDay / 24) gang64.push_back(waited);
      if (w.tier <= 1 && w.since < kDawn + 18 * kDay / 24) r.starvation = std::max(r.starvation, waited);
      auto& [had, asked] = tenants[w.tenant];
      asked += w.size * seconds(w.length);
      if (w.started.ms != 0) had += w.size * seconds(std::min(w.ends, now_) - w.started);
    }
    r.gini = gini();
    r.gang64 = quantile(gang64, 0.99);
    double sum = 0, squares = 0;
    for (const auto& [tenant, t] : tenants)
      sum += t.first / t.second, squares += t.first / t.second * t.first / t.second;
    r.jain = sum * sum / (static_cast<double>(tenants.size()) * squares);
    judge(r);
    return r;
  }

 private:
  double gini() const {
    std::vector<double> earned;
    for (const auto& [supplier, hired] : offered_by_)
      earned.push_back(hired.second > 0 ? hired.first / hired.second : 0);
    std::sort(earned.begin(), earned.end());
    double sum = 0, ranked = 0;
    for (std::size_t i = 0; i < earned.size(); ++i) sum += earned[i], ranked += static_cast<double>(i + 1) * earned[i];
    const auto n = static_cast<double>(earned.size());
    return sum > 0 ? 2 * ranked / (n * sum) - (n + 1) / n : 0;
  }
  // Demand of tenants falls off as 1/rank; there is somewhat more in the afternoon.
  void arrivals() {
    double gpus = 0;
    for (const auto& [id, n] : nodes_) gpus += static_cast<double>(n.devices.size());
    const double wanted = 1.1 * gpus * 86'400 * 0.8;  // GPU-seconds; a fifth of the machines is away, as a rule
    double asked = 0;
    for (std::uint64_t id = 1; asked < wanted; ++id) {
      Work w;
      w.id = ClusterId{id};
      std::uint64_t rank = 1 + rng_.below(200);
      for (int again = 0; again < 2; ++again) rank = std::min(rank, 1 + rng_.below(200));
      w.tenant = OrgId{rank};
      const std::uint64_t kind = rng_.below(100);
      w.size = kSizes[kind < 55 ? 0 : kind < 75 ? 1 : kind < 88 ? 2 : kind < 94 ? 3 : kind < 98 ? 4 : 5];
      const std::uint64_t tier = rng_.below(10);
      w.tier = tier < 1 ? 0 : tier < 6 ? 1 : 3;
      double ms = 300'000;
      while (ms < 2.4e7 && rng_.chance(3, 4)) ms *= 1.5;
      w.length = Millis(static_cast<std::int64_t>(ms) * rng_.between(70, 130) / 100);
      if (rng_.chance(1, 2)) w.limit = w.length * rng_.between(11, 30) / 10;
      const std::int64_t at =
          rng_.chance(1, 2) ? rng_.between(0, kDay.count() - 1) : rng_.between(kDay.count() / 3, kDay.count() * 3 / 4);
      w.since = kDawn + Millis(at);
      asked += w.size * seconds(w.length);
      day_.push_back(w);
    }
    std::sort(day_.begin(), day_.end(), [](const Work& a, const Work& b) { return a.since < b.since; });
  }
  Request request_of(const Work& w) const {
    Request r;
    r.cluster = w.id, r.tenant = w.tenant, r.project = ProjectId{w.tenant.value}, r.tier = w.tier, r.since = w.since;
    r.pool = "market", r.arch = "x86_64", r.image = "ray", r.longest = w.limit;
    Bundle b;
    b.request.resources.cpu_milli = 4'000, b.request.resources.memory_bytes = std::int64_t{16} << 30;
    b.request.resources.gpus = 1;
    b.role = SlotRole::Head, b.count = 1;
    r.gang.push_back(b);
    if (w.size > 1)
      b.role = SlotRole::Worker, b.group = "w", b.count = static_cast<std::uint32_t>(w.size - 1), r.gang.push_back(b);
    return r;
  }
  void ask(const Work& w) {
    work_[w.id] = w;
    waiting_.insert(w.id);
    if (variant_ != "fifo") s_.apply(RequestChanged{request_of(w)});
  }
  void offer_first() {
    std::map<std::uint8_t, ClusterId> first;
    for (const ClusterId id : waiting_) {
      const Work& w = work_[id];
      auto [it, fresh] = first.try_emplace(w.tier, id);
      if (!fresh && w.since < work_[it->second].since) it->second = id;
    }
    for (const auto& [tier, id] : first)
      if (offered_.insert(id).second) s_.apply(RequestChanged{request_of(work_[id])});
  }
  void shift(const LeaseView& l, bool take) {
    NodeView& n = nodes_.at(l.node);
    const std::int64_t sign = take ? -1 : 1;
    n.free.cpu_milli += sign * l.resources.cpu_milli, n.free.memory_bytes += sign * l.resources.memory_bytes;
    n.free.gpus += sign * l.resources.gpus;
    for (const std::string& d : l.devices) {
      if (take)
        std::erase(n.free_devices, d);
      else
        n.free_devices.push_back(d);
    }
    n.whole = n.free_devices.size() == n.devices.size();
    ++n.version;
    s_.apply(NodeChanged{n});
  }
  void drop(LeaseId id) {
    const auto it = leases_.find(id);
    if (it == leases_.end()) return;
    work_[it->second.cluster].leases.erase(id);
    s_.apply(LeaseGone{id, now_});
    shift(it->second, false);
    leases_.erase(it);
    leaving_.erase(id);
  }
  void commit(const Group& g) {
    if (g.kind == ActionKind::Preempt) {
      for (const LeaseId v : g.victims) {
        LeaseView& l = leases_.at(v);
        lost_ += seconds(now_ - l.since);
        l.leaving = l.preempted = true;
        leaving_[v] = now_ + kClearing;
        s_.apply(LeaseChanged{l});
      }
      return;
    }
    Work& w = work_.at(g.cluster);
    for (const Place& p : g.places) {
      LeaseView l;
      l.lease = LeaseId{++last_lease_}, l.cluster = g.cluster, l.node = p.node, l.role = p.role,
      l.resources = p.resources;
      l.devices = p.devices, l.tenant = w.tenant, l.project = ProjectId{w.tenant.value}, l.tier = w.tier,
      l.since = now_;
      leases_.emplace(l.lease, l);
      w.leases.insert(l.lease);
      shift(l, true);
      s_.apply(LeaseChanged{l});
    }
    if (g.kind == ActionKind::Start) {
      w.running = true, w.started = now_, w.ends = now_ + w.length;
      ends_.emplace(w.ends, w.id);
      if (w.limit.count() > 0) s_.apply(TermsChanged{w.id, now_ + w.limit, {}});
      waiting_.erase(w.id);
      calibration_.started(w.id, now_);
      if (const auto it = told_.find(w.id); it != told_.end()) it->second.started = now_;
      waits_[w.size].push_back(seconds(now_ - w.since));
    }
    s_.apply(RequestGone{w.id});
    lack(w);
  }
  void lack(const Work& w) {  // what a running one lost is asked for again
    if (!w.running || static_cast<int>(w.leases.size()) >= w.size) return;
    Request r = request_of(w);
    r.grow = {r.gang.back()}, r.gang.clear(), r.running = true;
    r.grow[0].count = static_cast<std::uint32_t>(w.size) - static_cast<std::uint32_t>(w.leases.size());
    for (const LeaseId id : w.leases) r.avoid.push_back(leases_.at(id).node);
    s_.apply(RequestChanged{r});
  }
  void finish(Work& w) {
    for (const LeaseId id : std::set<LeaseId>(w.leases)) drop(id);
    w.running = false;
    s_.apply(TermsGone{w.id});
    s_.apply(RequestGone{w.id});
  }
  void end() {
    for (auto it = leaving_.begin(); it != leaving_.end();) {
      const auto [id, at] = *it++;
      if (at > now_) continue;
      const ClusterId cluster = leases_.at(id).cluster;
      drop(id);
      lack(work_.at(cluster));
    }
    while (!ends_.empty() && ends_.begin()->first <= now_) {
      Work& w = work_.at(ends_.begin()->second);
      ends_.erase(ends_.begin());
      if (w.running) finish(w);
    }
  }
  // A third is steady, a third is away from six in the evening to eight in the morning (an hour more or less), a third
  // fails every eight hours or so for twenty minutes.
  void churn() {
    const std::int64_t minute = (now_ - kDawn).count() / 60'000;
    if ((now_ - kDawn).count() % 60'000 != 0) return;
    for (auto& [id, n] : nodes_) {
      bool there = true;
      if (id.value % 3 == 1) {
        const auto shift = static_cast<std::int64_t>(id.value * 7 % 120) - 60;
        there = minute >= 8 * 60 + shift && minute < 18 * 60 + shift;
        there = there || id.value % 2 == 0;  // half of them only by day
      } else if (id.value % 3 == 2) {
        if (down_[id] > 0)
          --down_[id];
        else if (rng_.chance(1, 480))
          down_[id] = 20;
        there = down_[id] == 0;
      }
      if (there == n.schedulable) continue;
      n.schedulable = there;
      s_.apply(NodeChanged{n});
      if (there) continue;
      std::set<ClusterId> hit;
      for (const auto& [lease, l] : std::map<LeaseId, LeaseView>(leases_))
        if (l.node == id) hit.insert(l.cluster), drop(lease);
      for (const ClusterId cluster : hit) lack(work_.at(cluster));
    }
  }
  void foretell() {
    for (const StartForecast& f : s_.starts(now_, {.samples = 24, .seed = static_cast<std::uint64_t>(now_.ms)})) {
      if (f.p90.ms == 0 || !waiting_.contains(f.cluster)) continue;
      const Work& w = work_.at(f.cluster);
      const auto kind = Calibration::kind_of(w.tier, static_cast<std::uint32_t>(w.size));
      told_.try_emplace(f.cluster, Told{now_,
                                        calibration_.corrected(f, kind, now_).p90,
                                        {},
                                        waits_[w.size].size() >= 10 ? quantile(waits_[w.size], 0.9) : -1});
      calibration_.told(f, kind, now_);
    }
  }
  void judge(Results& r) {
    std::array<std::pair<int, int>, 3> by_tier{};
    int compared = 0;
    for (const auto& [id, t] : told_) {
      const Work& w = work_.at(id);
      if (t.at - w.since < Millis(60'000) && t.started.ms != 0 && t.started - w.since < Millis(60'000)) continue;
      if (t.started.ms == 0 && t.p90 > now_) continue;  // nobody will know
      const bool held = t.started.ms != 0 && t.started <= t.p90 + kStep;
      auto& [n, good] = by_tier[w.tier == 0 ? 0U : w.tier == 1 ? 1U : 2U];
      ++n, good += held ? 1 : 0;
      if (t.plain < 0 || t.started.ms == 0) continue;
      const auto loss = [&](double said, double was) { return was > said ? 0.9 * (was - said) : 0.1 * (said - was); };
      r.pinball += loss(seconds(t.p90 - w.since), seconds(t.started - w.since));
      r.pinball_plain += loss(t.plain, seconds(t.started - w.since));
      ++compared;
    }
    for (std::size_t i = 0; i < 3; ++i)
      r.coverage[i] = by_tier[i].first == 0 ? 0 : 100.0 * by_tier[i].second / by_tier[i].first;
    if (compared > 0) r.pinball /= compared, r.pinball_plain /= compared;
  }

  struct Told {
    WallTime at, p90, started;
    double plain = -1;
  };
  Rng rng_;
  std::string variant_;
  Scheduler s_;
  Calibration calibration_;
  WallTime now_ = kDawn;
  std::map<NodeId, NodeView> nodes_;
  std::map<NodeId, int> down_;
  std::vector<Work> day_;
  std::map<OrgId, std::pair<double, double>> offered_by_;  // supplier: hired, offered
  std::map<ClusterId, Work> work_;
  std::set<ClusterId> waiting_, offered_;
  std::map<LeaseId, LeaseView> leases_;
  std::map<LeaseId, WallTime> leaving_;
  std::multimap<WallTime, ClusterId> ends_;
  std::map<ClusterId, Told> told_;
  std::map<int, std::vector<double>> waits_;
  std::uint64_t last_lease_ = 0;
  double lost_ = 0;
};

void print(const std::string& name, double value, const std::string& unit, std::size_t runs, double baseline = 0) {
  fmt::print("{{\"name\": \"sched-fair.{}\", \"value\": {:.4g}, \"unit\": \"{}\"", name, value, unit);
  if (baseline != 0) fmt::print(", \"baseline\": {:.4g}, \"ratio\": {:.3f}", baseline, value / baseline);
  fmt::print(", \"runs\": {}}}\n", runs);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const auto days = static_cast<std::uint64_t>(std::max(1L, argc > 1 ? std::atol(argv[1]) : 3L));
  std::map<std::string, Results> medians;
  for (const std::string variant :
       {"default", "fifo", "no-backfill", "no-preemption", "random-ties", "sampled", "shares"}) {
    std::vector<Results> all;
    for (std::uint64_t seed = 1; seed <= days; ++seed) {
      all.push_back(Market(seed, variant).run());
      fmt::print(stderr, "# {} day {}: utilisation {:.1f} %, 64-gangs {:.2f} h, lost {:.1f} GPU-h\n", variant, seed,
                 all.back().utilisation, all.back().gang64, all.back().lost);
    }
    const auto median = [&](auto member) {
      std::vector<double> values;
      for (const Results& r : all) values.push_back(member(r));
      return quantile(values, 0.5);
    };
    Results& m = medians[variant];
    m.utilisation = median([](const Results& r) { return r.utilisation; });
    m.gang64 = median([](const Results& r) { return r.gang64; });
    m.lost = median([](const Results& r) { return r.lost; });
    m.jain = median([](const Results& r) { return r.jain; });
    m.gini = median([](const Results& r) { return r.gini; });
    m.starvation = median([](const Results& r) { return r.starvation; });
    m.pinball = median([](const Results& r) { return r.pinball; });
    m.pinball_plain = median([](const Results& r) { return r.pinball_plain; });
    for (std::size_t i = 0; i < 3; ++i) m.coverage[i] = median([i](const Results& r) { return r.coverage[i]; });
  }
  const Results& ours = medians["default"];
  for (const auto& [variant, r] : medians) {
    const std::string suffix = variant == "default" ? "" : "." + variant;
    print("utilisation" + suffix, r.utilisation, "%", days, suffix.empty() ? 0 : ours.utilisation);
    print("gang64_p99_wait" + suffix, r.gang64, "h", days, suffix.empty() ? 0 : ours.gang64);
    print("lost" + suffix, r.lost, "GPU-h", days, suffix.empty() ? 0 : ours.lost);
    print("jain" + suffix, r.jain, "", days, suffix.empty() ? 0 : ours.jain);
    print("gini" + suffix, r.gini, "", days, suffix.empty() ? 0 : ours.gini);
    print("starvation" + suffix, r.starvation, "h", days, suffix.empty() ? 0 : ours.starvation);
  }
  for (const auto& [i, tier] : {std::pair{0U, 0}, {1U, 1}, {2U, 3}})
    print(fmt::format("p90_coverage.tier{}", tier), ours.coverage[i], "%", days, 90);
  print("pinball", ours.pinball, "s", days, ours.pinball_plain);
}
