#include "control/terms.h"

#include <algorithm>

#include "control/draft.h"
#include "control/mutants.h"
#include "model/offer.h"

namespace muster::control {
namespace {

// The time that is left of its hours, notice taken off; nothing, where they do not suit.
bool time_suits(const State& state, const Cluster& cluster, const Offer& offer, WallTime wall, WallTime& leaves_at) {
  if (offer.longest > Millis(0)) leaves_at = wall + offer.longest;
  if (!offer.hours.empty()) {
    const Openness now = openness(offer, wall);
    const WallTime end = now.until - offer.notice;
    if (!now.open || end <= wall) return false;
    leaves_at = leaves_at.ms == 0 ? end : std::min(leaves_at, end);
  }
  if (leaves_at.ms == 0 || cluster.spec.may_end_early) return true;
  const Millis longest = longest_of(state, cluster);
  return longest > Millis(0) && wall + longest <= leaves_at;
}

}  // namespace

Millis longest_of(const State& state, const Cluster& cluster) {
  Millis longest = cluster.spec.max_lifetime;
  const Job* job = cluster.ephemeral_for ? state.find_job(cluster.ephemeral_for) : nullptr;
  if (job == nullptr || job->spec.timeout.count() <= 0 || job->spec.retries != 0) return longest;
  return longest.count() == 0 ? job->spec.timeout : std::min(longest, job->spec.timeout);
}

std::optional<Terms> terms_for(const State& state, const Cluster& cluster, const Node& node, std::int64_t gpus,
                               std::int32_t share_milli, WallTime wall) {
  const Offer& offer = node.offer;
  Terms out;
  out.version = offer.version;
  if (offer.version == 0 || MUSTER_MUTANT(mutants::kIgnoreOffer)) return out;
  const auto project = state.projects.find(cluster.project);
  const OrgId tenant = project == state.projects.end() ? OrgId{} : project->second.org;
  const bool own = tenant == node.supplier;
  if (!own && !offer.tenants.empty() &&
      std::find(offer.tenants.begin(), offer.tenants.end(), tenant) == offer.tenants.end())
    return {};
  if (!image_offered(offer.images, cluster.spec.image)) return {};
  if (!own) {  // its owner pays nothing for it
    const auto price = agreed_price(asked_price(offer, gpus, share_milli), least_price(offer, gpus, share_milli),
                                    offer.currency, {cluster.spec.max_price, cluster.spec.currency});
    if (!price) return {};
    out.price = *price;
    if (*price > 0) out.currency = offer.currency;
  }
  if (!time_suits(state, cluster, offer, wall, out.leaves_at)) return {};
  return out;
}

Spending spending_of(const State& state, const Cluster& cluster, WallTime wall) {
  Spending out;
  out.so_far = cluster.spent;
  for (const LeaseId id : state.cluster_leases(cluster.id)) {
    const Lease* lease = state.find_lease(id);
    if (lease == nullptr || lease->end != LeaseEnd::None || lease->price == 0) continue;
    out.per_hour[lease->currency] += lease->price;
    out.so_far[lease->currency] += cost_of(lease->price, wall - lease->granted_at);
  }
  return out;
}

bool watch_budget(Draft& d, ClusterId id) {
  const Cluster& cluster = d.cluster(id);
  const TimerKey key{TimerKind::Budget, id.value, 0};
  const auto known = d.state.timers.find(key);
  const WallTime before = known == d.state.timers.end() ? WallTime{} : known->second;
  WallTime at;
  bool used_up = false;
  if (cluster.spec.budget > 0 && !terminal(cluster.state)) {
    Spending now = spending_of(d.state, cluster, d.wall);
    const std::int64_t rate = now.per_hour[cluster.spec.currency];
    const std::int64_t left = cluster.spec.budget - now.so_far[cluster.spec.currency];
    used_up = left <= rate / 3600;  // not another second
    if (used_up && rate > 0) at = d.wall;
    if (!used_up && rate > 0) at = d.wall + Millis((left / rate * 3600 + left % rate * 3600 / rate) * 1000);
  }
  if (at != before) d.emit(TimerSet{TimerKind::Budget, id.value, at});
  return used_up;
}

}  // namespace muster::control
