// I15: no lease begins against the offer that is in force on its machine then, its terms are what that offer says, and
// an offer that changes touches no lease that runs.
#include <algorithm>
#include <tuple>

#include "sim/checkers.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

constexpr std::int64_t kMinute = 60'000, kDay = 24 * 60 * kMinute, kWeek = 7 * kDay;

class WithinOffer final : public Checker {
 public:
  WithinOffer() : Checker("I15") {}
  void started(const engine::Base& base, const journal::Store&, World&) override {
    for (const auto& [id, node] : base.state.nodes) offers_[id] = node.offer;
    for (const auto& [id, lease] : base.state.leases) agreed_.try_emplace(id, terms_of(lease));
  }
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) {
      agreed_[granted->lease.id] = terms_of(granted->lease);
      const std::string wrong = look(granted->lease, after, event.at);
      if (!wrong.empty()) fail(world, granted->lease.id.str() + " began " + wrong);
    }
    const auto* offered = std::get_if<control::NodeOffered>(&event.event);
    if (offered == nullptr) return;
    offers_[offered->node] = offered->offer;
    for (const LeaseId id : after.live_leases(offered->node)) {
      looked_at();
      if (const auto known = agreed_.find(id); known != agreed_.end() && known->second != terms_of(after.leases.at(id)))
        fail(world, "another offer changed the terms of " + id.str());
    }
  }

 private:
  using Terms = std::tuple<std::uint64_t, std::int64_t, std::string, WallTime>;
  static Terms terms_of(const Lease& lease) {
    return {lease.offer_version, lease.price, lease.currency, lease.leaves_at};
  }

  std::string look(const Lease& lease, const State& state, WallTime at) {
    const Offer& offer = offers_[lease.node];
    if (lease.offer_version != offer.version) return "under another offer than the one in force";
    if (offer.version == 0) return {};
    looked_at();
    const Cluster& cluster = state.clusters.at(lease.cluster);
    const ClusterSpec& spec = cluster.spec;
    const OrgId tenant = state.projects.at(cluster.project).org, owner = state.nodes.at(lease.node).supplier;
    if (tenant != owner && !offer.tenants.empty() &&
        std::count(offer.tenants.begin(), offer.tenants.end(), tenant) == 0)
      return "for an organisation that its owner does not take";
    bool image = offer.images.empty();
    for (const std::string& begin : offer.images) image = image || spec.image.rfind(begin, 0) == 0;
    if (!image) return "with an image that its owner does not take";
    const std::string money =
        tenant == owner ? (lease.price == 0 ? "" : "at a price for its own owner") : price(lease, offer, spec);
    return money.empty() ? times(lease, offer, state, cluster, at) : money;
  }

  static std::string price(const Lease& lease, const Offer& offer, const ClusterSpec& spec) {
    const auto gpus = [&](std::int64_t each) {
      return lease.share_milli > 0 ? each * lease.share_milli / kGpuMilli : each * lease.resources.gpus;
    };
    const std::int64_t asked = offer.price + gpus(offer.gpu_price);
    const std::int64_t least = offer.floor + gpus(offer.gpu_floor);
    if (asked == 0) return lease.price == 0 ? "" : "at a price though nothing is asked";
    if (!spec.currency.empty() && spec.currency != offer.currency) return "in another currency than it may pay in";
    if (lease.currency != offer.currency) return "in another currency than is asked";
    if (spec.max_price > 0 && lease.price > spec.max_price) return "above its limit";
    if (lease.price < least || lease.price > asked) return "at another price than its owner takes";
    return lease.price == asked || lease.price == spec.max_price ? "" : "at a price of nobody's";
  }

  // The simulated owners live by UTC.
  static std::string times(const Lease& lease, const Offer& offer, const State& state, const Cluster& cluster,
                           WallTime at) {
    if (!offer.hours.empty()) {
      const std::int64_t week_ms = (at.ms + 3 * kDay) % kWeek;  // the first of January 1970 was a Thursday
      std::int64_t end = 0;
      for (const WeekHours& hours : offer.hours)
        if (week_ms >= hours.from * kMinute && week_ms < hours.to * kMinute) end = at.ms - week_ms + hours.to * kMinute;
      if (end == 0) return "outside its owner's hours";
      if (lease.leaves_at.ms == 0 || lease.leaves_at.ms > end - offer.notice.count()) return "to stay beyond the hours";
    }
    if (offer.longest > Millis(0) && (lease.leaves_at.ms == 0 || lease.leaves_at > at + offer.longest))
      return "to stay longer than its owner takes";
    if (lease.leaves_at.ms == 0) return {};
    if (lease.leaves_at <= at) return "when it should have left already";
    if (cluster.spec.may_end_early) return {};
    Millis life = cluster.spec.max_lifetime;
    if (const auto job = state.jobs.find(cluster.ephemeral_for);
        job != state.jobs.end() && job->second.spec.timeout > Millis(0) && job->second.spec.retries == 0)
      life = life == Millis(0) ? job->second.spec.timeout : std::min(life, job->second.spec.timeout);
    if (life == Millis(0)) return "without an end on a machine that ends";
    return at + life > lease.leaves_at ? "though it may last longer than its machine is there" : "";
  }

  std::map<NodeId, Offer> offers_;
  std::map<LeaseId, Terms> agreed_;
};

}  // namespace

CheckerPtr within_offer() {
  return std::make_unique<WithinOffer>();
}

}  // namespace muster::sim
