#include "session/pair_table.h"

#include <algorithm>

#include "base/mutant.h"

namespace muster::session {

void PairTable::measured(ClusterId cluster, SlotId from, SlotId to, std::int64_t kbps, LeaseTime at, LeaseTime now) {
  if (kbps <= 0 || from == to || at > now || now - at > kSampleLife) return;
  watch(cluster);
  auto& samples = pairs_[{cluster, from, to}];
  if (!samples.empty() && at - samples.back().at < kSampleGap) return;
  samples.push_back({kbps, at});
  if (samples.size() > kKept) samples.pop_front();
  if (pairs_.size() <= kPairsMax) return;
  pairs_.erase(std::min_element(pairs_.begin(), pairs_.end(),
                                [](const auto& a, const auto& b) { return a.second.back().at < b.second.back().at; }));
}

template <typename Passes>
bool PairTable::last(const std::deque<Sample>& samples, std::size_t count, Millis span, LeaseTime now, Passes passes) {
  if (samples.size() < count) return false;
  const auto first = samples.end() - static_cast<std::ptrdiff_t>(count);
  if (now - first->at > kSampleLife) return false;
  // The earlier ones that pass too stretch the time, so that frequent reports count as well as rare ones.
  auto since = first;
  while (since != samples.begin() && passes(*std::prev(since))) --since;
  return std::all_of(first, samples.end(), passes) && samples.back().at - since->at >= span;
}

std::vector<PairTable::Judged> PairTable::judge(ClusterId cluster, std::int64_t need,
                                                const std::vector<std::pair<SlotId, SlotId>>& slow,
                                                LeaseTime now) const {
  std::vector<Judged> out;
  const std::size_t enough = MUSTER_MUTANT("session.one_sample_judges") ? 1 : kSlowSamples;
  const Millis span = enough == 1 ? Millis(0) : kSlowSpan;
  for (auto it = pairs_.lower_bound({cluster, {}, {}}); it != pairs_.end() && it->first.cluster == cluster; ++it) {
    const auto& samples = it->second;
    const bool below = last(samples, enough, span, now, [&](const Sample& s) { return s.kbps < need; });
    const bool above =
        last(samples, kFineSamples, kFineSpan, now, [&](const Sample& s) { return s.kbps >= need + need / 10; });
    if (!below && !above) continue;
    std::vector<std::int64_t> sorted;
    for (auto s = samples.end() - static_cast<std::ptrdiff_t>(std::min(samples.size(), kSlowSamples));
         s != samples.end(); ++s)
      sorted.push_back(s->kbps);
    std::sort(sorted.begin(), sorted.end());
    out.push_back({it->first.from, it->first.to, sorted[sorted.size() / 2], below});
  }
  for (const auto& [from, to] : slow) {
    const auto found = pairs_.find({cluster, from, to});
    const LeaseTime heard = found == pairs_.end() ? started_ : std::max(started_, found->second.back().at);
    if (now - heard >= kUnknownAfter) out.push_back({from, to, 0, false});
  }
  return out;
}

void PairTable::keep_only(ClusterId cluster, const std::set<SlotId>& members) {
  for (auto it = pairs_.lower_bound({cluster, {}, {}}); it != pairs_.end() && it->first.cluster == cluster;)
    it = members.contains(it->first.from) && members.contains(it->first.to) ? std::next(it) : pairs_.erase(it);
}

void PairTable::forget(ClusterId cluster) {
  watched_.erase(cluster);
  pairs_.erase(pairs_.lower_bound({cluster, {}, {}}), pairs_.lower_bound({ClusterId{cluster.value + 1}, {}, {}}));
}

}  // namespace muster::session
