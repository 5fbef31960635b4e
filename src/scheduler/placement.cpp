#include "scheduler/placement.h"

#include <algorithm>
#include <map>

namespace muster::scheduler {
namespace {

// Of a larger pool so many machines are looked at: its own sites, the smallest sites that are large enough, then
// whatever comes next in an order that another day begins elsewhere.
constexpr std::size_t kTogetherLookedAt = 2'048;

void tidy(std::vector<std::uint32_t>& nodes) {
  std::sort(nodes.begin(), nodes.end());
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
}

}  // namespace

Scheduler::Impl::Placement::Placement(Impl& impl, std::uint32_t item, WallTime now, Reach reach)
    : impl_(impl), now_(now), domains_(domains_of(impl.classes[impl.items[item].cls].example)) {
  if (domains_ == Domains::Any) return;
  const Request& r = impl.classes[impl.items[item].cls].example;
  never_ = impl.excluded(r, now);
  sites_ = suppliers_ = never_;
  if (domains_ == Domains::Together) {
    for (const NodeId id : r.avoid)
      if (const std::uint32_t node = impl.pool.index_of(id); node != kNone) leave_out_relayed_from(node);
    gather(impl.classes[impl.items[item].cls], item, reach);
    return;
  }
  for (const NodeId id : r.avoid)
    if (const std::uint32_t node = impl.pool.index_of(id); node != kNone) leave_out_domains_of(node);
}

void Scheduler::Impl::Placement::leave_out_domains_of(std::uint32_t node) {
  const NodeView& view = impl_.pool.view(node);
  sites_.push_back(node);
  if (!view.site.empty()) impl_.pool.each_of_site(view.site, [&](std::uint32_t other) { sites_.push_back(other); });
  impl_.pool.each_of_supplier(view.supplier, [&](std::uint32_t other) { suppliers_.push_back(other); });
  tidy(sites_);
  suppliers_.insert(suppliers_.end(), sites_.begin(), sites_.end());
  tidy(suppliers_);
}

void Scheduler::Impl::Placement::chose(std::uint32_t node) {
  if (domains_ == Domains::Apart) leave_out_domains_of(node);
  if (domains_ == Domains::Together) leave_out_relayed_from(node);
}

Found Scheduler::Impl::Placement::best(std::uint32_t need, const Query& query) {
  if (domains_ == Domains::Apart) {
    Query apart = query;
    for (const auto* left_out : {&suppliers_, &sites_}) {
      apart.excluded = left_out;
      if (const Found found = impl_.pool.best(apart)) return found;
    }
  }
  if (!together_.empty()) {
    for (std::size_t& i = looked_at_[need]; i < wishes_[need].size(); ++i) {
      const Found& wish = wishes_[need][i];
      if (!impl_.pool.hosts(query, wish.node) || !leaves_enough(need, wish.node)) continue;
      --left_[need];
      return wish;
    }
  }
  return impl_.pool.best(query);
}

// ---- together
void Scheduler::Impl::each_too_slow(const Request& request, WallTime now,
                                    const std::function<void(std::uint32_t)>& each) const {
  if (request.pair_kbps <= 0 || network.empty()) return;
  for (const NodeId id : request.avoid)
    if (const std::uint32_t member = pool.index_of(id); member != kNone)
      for (const Network::Near& near : network.of(member))
        if (near.seen.fresh(now.ms) && near.seen.below(request.pair_kbps)) each(near.other);
}

bool Scheduler::Impl::suit_each_other(const Class& c, const std::vector<std::uint32_t>& nodes, WallTime now) const {
  if (network.empty() || domains_of(c.example) != Domains::Together) return true;
  for (const std::uint32_t node : nodes)
    for (const Network::Near& near : network.of(node))
      if (near.seen.kind == PathKind::Relay && near.seen.fresh(now.ms) &&
          std::find(nodes.begin(), nodes.end(), near.other) != nodes.end())
        return false;
  return true;
}

// There are machines enough, but not such as may go together.
bool Scheduler::Impl::network_stands_against(std::uint32_t item, WallTime now) const {
  const Class& c = classes[items[item].cls];
  if (network.empty() || domains_of(c.example) != Domains::Together) return false;
  const auto out = excluded(c.example, now);
  std::vector<std::uint32_t> counts;
  std::vector<Query> queries;
  for (const CountedNeed& need : c.needs) {
    counts.push_back(need.count);
    queries.push_back(query_for(need, item, now.ms));
    queries.back().excluded = &out;
  }
  Matching all(std::move(counts));
  for (std::uint32_t node = 0; node < pool.limit() && !all.complete(); ++node)
    for (std::uint32_t n = 0; n < queries.size(); ++n)
      if (pool.live(node) && pool.hosts(queries[n], node)) all.add(node, n);
  return all.complete();
}

void Scheduler::Impl::Placement::leave_out_relayed_from(std::uint32_t node) {
  for (const Network::Near& near : impl_.network.of(node))
    if (near.seen.kind == PathKind::Relay && near.seen.fresh(now_.ms)) impl_.pool.mark(near.other);
}

std::vector<std::uint32_t> Scheduler::Impl::Placement::candidates(const std::vector<Query>& queries,
                                                                  const std::vector<std::uint32_t>& members,
                                                                  std::uint32_t needed) const {
  const Pool& pool = impl_.pool;
  std::vector<std::uint32_t> out;
  const auto look = [&](std::uint32_t node) {
    if (pool.live(node) && !pool.marked(node) &&
        std::any_of(queries.begin(), queries.end(), [&](const Query& q) { return pool.hosts(q, node); }))
      out.push_back(node);
  };
  if (pool.count() <= kTogetherLookedAt) {
    for (std::uint32_t node = 0; node < pool.limit(); ++node) look(node);
    return out;
  }
  for (const std::uint32_t member : members)
    if (const std::string& site = pool.view(member).site; !site.empty()) pool.each_of_site(site, look);
  std::size_t looked = 0;
  pool.sites_from(needed, [&](const std::string& site) {
    pool.each_of_site(site, [&](std::uint32_t node) { look(node), ++looked; });
    return looked < kTogetherLookedAt;
  });
  const auto begin = static_cast<std::uint32_t>(impl_.seed % pool.limit());
  for (std::uint32_t i = 0; i < pool.limit() && out.size() < kTogetherLookedAt; ++i) look((begin + i) % pool.limit());
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

void Scheduler::Impl::Placement::gather(const Class& c, std::uint32_t item, Reach reach) {
  Pool& pool = impl_.pool;
  if (c.needs.empty() || c.needs.size() > 64) return;
  std::vector<Query> queries;
  Tight gang;
  std::uint32_t needed = 0;
  for (const CountedNeed& need : c.needs) {
    queries.push_back(impl_.query_for(need, item, now_.ms, reach));
    queries.back().excluded = &never_;
    gang.counts.push_back(need.count), needed += need.count;
  }
  std::vector<std::uint32_t> nodes;
  for (const NodeId id : c.example.avoid)  // its own
    if (const std::uint32_t node = pool.index_of(id); node != kNone) nodes.push_back(node);
  gang.members = static_cast<std::uint32_t>(nodes.size());
  if (gang.members == 0 && needed < 2) return;
  const std::vector<std::uint32_t> open = candidates(queries, nodes, needed);
  nodes.insert(nodes.end(), open.begin(), open.end());
  std::vector<std::uint32_t> sites, regions;  // of this gang, so that their numbers are dense; 0 is not known
  for (const std::uint32_t node : nodes) sites.push_back(pool.site_of(node)), regions.push_back(pool.region_of(node));
  tidy(sites), tidy(regions);
  const auto number = [](const std::vector<std::uint32_t>& of, std::uint32_t symbol) {
    const auto at = std::lower_bound(of.begin(), of.end(), symbol) - of.begin();
    return static_cast<std::uint32_t>(at) + (of.front() == 0 ? 0 : 1);
  };
  std::vector<std::uint32_t>& places = impl_.places_in_gang;
  if (!impl_.network.empty() && places.size() < pool.limit()) places.resize(pool.limit(), kNone);
  for (std::uint32_t i = 0; i < nodes.size(); ++i) {
    const NodeView& view = pool.view(nodes[i]);
    gang.spots.push_back(
        spot_of(view.link, number(sites, pool.site_of(nodes[i])), number(regions, pool.region_of(nodes[i]))));
    if (nodes[i] < impl_.places.size()) gang.spots.back().at = impl_.places[nodes[i]];
    // What others have taken of the way out is not there for it.
    const Flow taken = i < gang.members ? pool.machine(nodes[i]).flow : Flow{};  // what a member has is its own
    const Flow left = pool.flow_left(nodes[i]).plus(taken);
    gang.spots.back().world_kbps = std::min<std::int64_t>(gang.spots.back().world_kbps, std::min(left.up, left.down));
    std::uint64_t hosts = 0;
    for (std::size_t n = 0; n < queries.size() && i >= gang.members; ++n)
      if (pool.hosts(queries[n], nodes[i])) hosts |= std::uint64_t{1} << n;
    gang.hosts.push_back(hosts);
    if (!impl_.network.empty()) places[nodes[i]] = i;
  }
  for (std::uint32_t i = 0; i < nodes.size() && !impl_.network.empty(); ++i) {
    const auto begin = static_cast<std::ptrdiff_t>(gang.known.size());
    for (const Network::Near& near : impl_.network.of(nodes[i])) {
      const std::uint32_t j = places[near.other];
      if (j == kNone || j <= i || !near.seen.known(now_.ms)) continue;
      gang.known.push_back({i, j, near.seen.applied_to(gang.spots[i], gang.spots[j], now_.ms)});
    }
    std::sort(gang.known.begin() + begin, gang.known.end(),
              [](const auto& one, const auto& two) { return one.b < two.b; });
  }
  if (!impl_.network.empty())
    for (const std::uint32_t node : nodes) places[node] = kNone;
  auto found = tightest(gang);
  if (!found && c.grows && needed > 1) {  // one more is better than none
    gang.counts.assign(gang.counts.size(), 0), gang.counts.front() = 1;
    found = tightest(gang);
  }
  if (!found) return;
  for (const std::uint32_t i : found->machines) together_.push_back(nodes[i]), hosts_.push_back(gang.hosts[i]);
  left_ = gang.counts, looked_at_.assign(queries.size(), 0), wishes_.resize(queries.size());
  for (std::size_t n = 0; n < queries.size(); ++n) {
    std::vector<std::pair<std::pair<std::int64_t, std::uint64_t>, std::uint32_t>> order;
    for (const std::uint32_t node : together_)
      if (pool.hosts(queries[n], node)) {
        const auto [value, place] = pool.value(queries[n], node);
        order.push_back({{-value, place}, node});
      }
    std::sort(order.begin(), order.end());
    for (const auto& [value, node] : order) wishes_[n].push_back({node, -value.first});
  }
}

// Without this one the rest of the gang still finds its machines among those that suit each other.
bool Scheduler::Impl::Placement::leaves_enough(std::uint32_t need, std::uint32_t node) const {
  if (left_.size() == 1 || left_[need] == 0) return true;
  std::vector<std::uint32_t> left = left_;
  --left[need];
  std::uint32_t all = 0;
  for (const std::uint32_t n : left) all += n;
  std::vector<std::uint32_t> others, hosting(left.size());  // of together_; how many of them host each need
  for (std::uint32_t i = 0; i < together_.size(); ++i) {
    if (together_[i] == node || impl_.pool.marked(together_[i])) continue;
    others.push_back(i);
    for (std::size_t n = 0; n < left.size(); ++n) hosting[n] += static_cast<std::uint32_t>(hosts_[i] >> n & 1U);
  }
  if (std::all_of(hosting.begin(), hosting.end(), [&](std::uint32_t n) { return n >= all; })) return true;
  Matching matching(left);
  for (const std::uint32_t i : others)
    for (std::uint32_t n = 0; n < left.size() && !matching.complete(); ++n)
      if ((hosts_[i] >> n & 1U) != 0) matching.add(i, n);
  return matching.complete();
}

}  // namespace muster::scheduler
