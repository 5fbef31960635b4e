#include "sim/checkers.h"

namespace muster::sim {

Checkers::Checkers() {
  for (const auto make : {one_holder, fenced_by_rosters, sound_decisions, nothing_lost, within_lease, self_fence,
                          no_early_fence, no_mass_eviction, only_valid, no_copy_for_reboot, bounded, within_quota,
                          fair_preemption, within_offer, sparing_replacement})
    all_.push_back(make());
}

}  // namespace muster::sim
