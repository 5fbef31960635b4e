// I7: mass silence never causes mass eviction. "Everyone vanished" means that we are cut off.
#include <algorithm>

#include "sim/checkers.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

class NoMassEviction final : public Checker {
 public:
  NoMassEviction() : Checker("I7") {}
  void durable(const DurableEvent& event, const State& after, World& world) override {
    const auto* left = std::get_if<control::SlotLeft>(&event.event);
    const bool replaces = std::holds_alternative<control::SlotPromoted>(event.event) ||
                          std::holds_alternative<control::LeaseGranted>(event.event);
    if (open_ && !replaces) fail(world, "a silent worker was evicted without a replacement during a mass silence");
    const bool silence = after.frozen || (silent_since_ != LeaseTime{0} && world.now() - silent_since_ > Millis(9000));
    open_ = left != nullptr && silence && left->reason == "node_lost";
    const auto* freeze = std::get_if<control::FreezeSet>(&event.event);
    if (freeze != nullptr && !freeze->frozen && silent_since_ != LeaseTime{0} &&
        world.now() - silent_since_ > Millis(20'000))
      fail(world, "a freeze ended while most machines were still silent");
    leases(event, after, world);
  }
  void step(const View& view) override {
    const bool mass = is_mass(view);
    if (!mass)
      silent_since_ = LeaseTime{0};
    else if (silent_since_ == LeaseTime{0})
      silent_since_ = view.world.now();
    if (!view.leading)
      leading_ = LeaseTime{0};
    else if (leading_ == LeaseTime{0})
      leading_ = view.world.now();
    if (!mass || !view.leading)
      seen_since_ = LeaseTime{0};
    else if (seen_since_ == LeaseTime{0})
      seen_since_ = view.world.now();
    if (seen_since_ == LeaseTime{0}) return;
    looked_at();
    // 75 s of grace after a start, 7 s of silence, ticks, a commit.
    const Millis silence = view.world.now() - seen_since_;
    const Millis limit(seen_since_ - leading_ < Millis(95'000) ? 95'000 : 25'000);
    if (silence > limit && silence < limit + Millis(2000) && !view.frozen)
      fail(view.world, "most machines are silent and nothing is frozen");
  }

 private:
  // Most machines fell silent at one moment and are silent since.
  static bool is_mass(const View& view) {
    std::size_t silent = 0, on = 0;
    std::map<std::int64_t, std::size_t> together;
    for (const auto& node : view.nodes) {
      if (!node->id) continue;
      ++on;
      if (node->silent && node->cut_online && node->powered) ++together[node->cut_at.ms];
    }
    for (const auto& [at, count] : together) silent = std::max(silent, count);
    return silent >= 6 && silent * 100 >= on * 50;
  }
  // What was wanted when the freeze began does not expire in it.
  void leases(const DurableEvent& event, const State& after, World& world) {
    const auto* ended = std::get_if<control::LeaseEnded>(&event.event);
    if (ended != nullptr && ended->end == LeaseEnd::Expired && after.frozen && ended->reason == "lease_expired" &&
        after.find_lease(ended->lease) != nullptr && wanted_.contains(ended->lease))
      fail(world, ended->lease.str() + " was ended while everyone was silent");
    if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) wanted_.insert(granted->lease.id);
    std::erase_if(wanted_, [&](LeaseId id) {
      const Lease* lease = after.find_lease(id);
      return lease == nullptr || lease->want == LeaseWant::Stop;
    });
  }
  bool open_ = false;
  LeaseTime silent_since_{0}, seen_since_{0}, leading_{0};
  std::set<LeaseId> wanted_;
};

}  // namespace

CheckerPtr no_mass_eviction() {
  return std::make_unique<NoMassEviction>();
}

}  // namespace muster::sim
