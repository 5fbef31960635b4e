#include "scheduler/placement.h"

#include <algorithm>

namespace muster::scheduler {
namespace {

std::string region_of(const NodeView& view) {
  const auto it = view.labels.find("region");
  return it == view.labels.end() ? std::string() : it->second;
}
void tidy(std::vector<std::uint32_t>& nodes) {
  std::sort(nodes.begin(), nodes.end());
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
}

}  // namespace

Scheduler::Impl::Placement::Placement(Impl& impl, std::uint32_t item, WallTime now)
    : impl_(impl), domains_(rules_of(impl.classes[impl.items[item].cls].example.policy).domains) {
  if (domains_ == Domains::Any) return;
  const Request& r = impl.classes[impl.items[item].cls].example;
  never_ = impl.excluded(r, now);
  sites_ = suppliers_ = never_;
  if (domains_ == Domains::Together) {
    gather(item, now);
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
}

Found Scheduler::Impl::Placement::best(const Query& query) {
  if (domains_ == Domains::Apart) {
    Query apart = query;
    for (const auto* left_out : {&suppliers_, &sites_}) {
      apart.excluded = left_out;
      if (const Found found = impl_.pool.best(apart)) return found;
    }
  }
  for (const std::vector<std::uint32_t>& wish : wishes_)
    if (const Found found = impl_.pool.best_of(query, wish)) return found;
  return impl_.pool.best(query);
}

// The site, or the region, with enough machines for all of it, and of several the one with the fewest, so that large
// ones stay whole; where none has enough, the one with the most. A cluster that runs stays where it is.
std::vector<std::uint32_t> Scheduler::Impl::Placement::most_fitting(const std::vector<Query>& queries, const Class& c,
                                                                    bool by_site) const {
  struct Place {
    std::vector<std::uint32_t> nodes;
    std::vector<std::size_t> hosts;  // by need
    bool has_members = false;
  };
  const Pool& pool = impl_.pool;
  const auto name_of = [&](std::uint32_t node) { return by_site ? pool.view(node).site : region_of(pool.view(node)); };
  std::map<std::string, Place> places;
  for (std::uint32_t node = 0; node < pool.limit(); ++node) {
    if (!pool.live(node)) continue;
    const std::string name = name_of(node);
    if (name.empty()) continue;
    bool any = false;
    for (std::size_t n = 0; n < queries.size(); ++n) {
      if (!pool.hosts(queries[n], node)) continue;
      Place& place = places[name];
      place.hosts.resize(queries.size());
      ++place.hosts[n];
      if (!std::exchange(any, true)) place.nodes.push_back(node);
    }
  }
  for (const NodeId id : c.example.avoid)
    if (const std::uint32_t node = pool.index_of(id); node != kNone)
      if (const auto it = places.find(name_of(node)); it != places.end()) it->second.has_members = true;
  std::tuple<int, std::int64_t> least{3, 0};
  std::vector<std::uint32_t>* best = nullptr;
  for (auto& [name, place] : places) {
    std::size_t needed = 0;
    bool enough = true;
    for (std::size_t n = 0; n < queries.size(); ++n) {
      needed += c.needs[n].count;
      enough = enough && place.hosts[n] >= needed;
    }
    const auto size = static_cast<std::int64_t>(place.nodes.size());
    const std::tuple<int, std::int64_t> rank = place.has_members ? std::tuple(0, -size)
                                               : enough          ? std::tuple(1, size)
                                                                 : std::tuple(2, -size);
    if (rank < least) least = rank, best = &place.nodes;
  }
  return best == nullptr ? std::vector<std::uint32_t>{} : std::move(*best);
}

void Scheduler::Impl::Placement::gather(std::uint32_t item, WallTime now) {
  const Class& c = impl_.classes[impl_.items[item].cls];
  std::vector<Query> queries;
  for (const CountedNeed& need : c.needs) {
    queries.push_back(impl_.query_for(need, item, now.ms));
    queries.back().excluded = &never_;
  }
  auto site = most_fitting(queries, c, true);
  if (!site.empty()) wishes_.push_back(std::move(site));
  auto region = most_fitting(queries, c, false);
  if (!region.empty()) wishes_.push_back(std::move(region));
}

}  // namespace muster::scheduler
