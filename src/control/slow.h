#pragma once
// Ways between members that stay below what the cluster asked for, and workers that are replaced for that. What was
// measured is weighed outside (session/pair_table.h); here only what turned is noted, and whoever is at fault is sought
// another machine for: as for a lost worker, a new slot, but it works on until that is granted. Private to control.
#include "control/life.h"

namespace muster::control {

inline constexpr std::size_t kSlowPairsMax = 64;  // of one cluster; what is beyond is not noted

// Where the way stands among those of the cluster, or would.
std::vector<SlowPair>::iterator find_slow(std::vector<SlowPair>& all, SlotId from, SlotId to);
void forget_ways(Cluster& cluster, SlotId slot);  // it left

// Whom to replace for its slow ways: of each pair the one that is in more of them, of two alike the worker rather than
// the head and the younger rather than the older; of those the one that is in the most. Never a head: where that is at
// fault, nobody is. 0: nobody.
SlotId worst_worker(const Draft& d, const Cluster& cluster);

// The worker whose place the next one of this group takes; 0: others are missing.
SlotId replaced_by_next(const State& state, const Cluster& cluster, const Missing& missing, const std::string& group,
                        const FindNode& find_node);
// It is told to leave, its machine is left alone for a while, and the next one has to wait. Another is being granted.
void replace_slow(Draft& d, SlotId slot);

}  // namespace muster::control
