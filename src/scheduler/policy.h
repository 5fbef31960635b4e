#pragma once
// The named placement policies: what counts, and how much, among the machines that would do. What has to hold (hard
// constraints) is not a policy's. A new one is an enumerator of Policy (model/types.h), a row here and a name in
// model/names.h. Private.
#include "scheduler/pool.h"

namespace muster::scheduler {

enum class Domains : std::uint8_t {
  Any = 0,      // where its other machines are does not matter
  Apart = 1,    // not of a supplier and a site that it has a machine of already, as long as there are others
  Together = 2  // such that the slowest pair of them is as fast as can be; never a pair that goes by the relay
};
struct PolicyRules {
  Weights head, other;  // for its head; for all its other machines
  Domains domains = Domains::Any;
};
// How long the work is counts with how reliable a machine is; nothing else depends on it.
enum class Lasts : std::uint8_t { Hours = 0, Day = 1, Days = 2 };
Lasts lasts(std::int64_t length_ms, bool stays);  // 0: not known; stays: for ever, as far as is known
const PolicyRules& rules_of(Policy policy, Lasts length = Lasts::Day);  // an unknown one is Balanced
// Who says what pairs of its machines should carry has them together, whatever else counts.
inline Domains domains_of(const Request& request) {
  return request.pair_kbps > 0 ? Domains::Together : rules_of(request.policy).domains;
}

}  // namespace muster::scheduler
