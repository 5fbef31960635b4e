#include "sim/mutants.h"

#include <map>

#include "base/mutant.h"
#include "control/mutants.h"
#include "sim/sim.h"

namespace muster::sim {
namespace {

namespace planted = control::mutants;

std::string_view of_control(std::string_view name) {
  for (const planted::Row& row : planted::kAll)
    if (row.name == name) return row.what;
  return "?";
}
MutantRow core(std::string_view name, std::uint32_t seeds) {
  return {name, seeds, of_control(name)};
}

#ifdef MUSTER_MUTANTS
std::string failure_of(std::uint64_t seed, std::uint64_t steps) {
  RunOptions options;
  options.seed = seed;
  options.steps = steps;
  return run_simulation(options).failure;
}

// A seed that fails without any mutant says nothing about one. Remembered: most mutants are caught by the same few
// seeds.
bool holds_by_itself(std::uint64_t seed, std::uint64_t steps) {
  static std::map<std::pair<std::uint64_t, std::uint64_t>, bool> known;
  const auto [it, fresh] = known.try_emplace({seed, steps}, false);
  if (fresh) it->second = failure_of(seed, steps).empty();
  return it->second;
}
#endif

}  // namespace

const std::vector<MutantRow>& mutant_table() {
  static const std::vector<MutantRow> table = {
      {"agent.ignore_lease_end", 30, "an agent that is cut off runs on past the end of its lease"},
      {"agent.accept_old_desired", 30, "an older desired revision is applied"},
      {"agent.forget_boot_id", 30, "a lease goes on after a reboot"},
      {"agent.keep_dropped_lease", 30, "a lease that the server dropped is kept"},
      {"agent.log_ack_at_send", 60, "log bytes count as stored when they were only sent"},
      {"session.renew_from_receive", 30, "a lease is counted from the receipt of the renewal"},
      {"session.takeover_no_wait", 30, "a new leader ends leases that it knows nothing about"},
      {"session.renewal_forgotten", 30, "the server does not note that it renewed"},
      {"session.renew_ended", 30, "whatever an agent names is renewed"},
      {"session.no_freeze", 30, "mass silence freezes nothing"},
      {"session.no_grace", 30, "after a start everybody who was not heard yet is silent at once"},
      {"session.freeze_forgotten", 30, "a restart forgets the freeze that the journal holds"},
      {"session.accept_clone", 30, "two machines with one device key are both served"},
      {"session.roster_unacknowledged", 30, "nobody asks whether members took a new roster"},
      {"engine.reply_before_commit", 30, "a reply leaves before its entry is durable"},
      {"engine.skip_tail_reread", 30, "an ambiguous append is believed to have happened"},
      {"engine.keep_speculative", 30, "after a failed append the state that was never stored is kept"},
      core(planted::kSkipEpochCheck, 30),
      core(planted::kFreeDevicesAtDecision, 30),
      core(planted::kReuseAddress, 30),
      core(planted::kForgetFreeze, 30),
      core(planted::kAcceptUsedJoinToken, 30),
      core(planted::kPromoteInsideRoster, 30),
      core(planted::kGrantDevicesTwice, 30),
      core(planted::kPartialGang, 30),
      core(planted::kIgnoreRequestHash, 30),
      core(planted::kRetryPastLimit, 30),
      core(planted::kKeepRemovedLease, 30),
      core(planted::kAcceptWrongNode, 30),
      core(planted::kForgetRevision, 30),
      core(planted::kStopNeverConfirmed, 30),
      core(planted::kForgetIdempotency, 30),
      core(planted::kSkipAccessCheck, 30),
      core(planted::kEndedLeaseInDesired, 30),
      core(planted::kKeepLateMember, 30),
      core(planted::kIgnoreQuota, 30),
      core(planted::kMixTenants, 60),
      core(planted::kIgnoreOffer, 30),
  };
  return table;
}

std::optional<Caught> hunt(std::string_view mutant, std::uint64_t first, std::uint64_t count, std::uint64_t steps) {
#ifdef MUSTER_MUTANTS
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    set_mutant(mutant);
    std::string failure = failure_of(seed, steps);
    set_mutant("");
    if (!failure.empty() && holds_by_itself(seed, steps)) return Caught{seed, std::move(failure)};
  }
#else
  (void)mutant, (void)first, (void)count, (void)steps;
#endif
  return std::nullopt;
}

}  // namespace muster::sim
