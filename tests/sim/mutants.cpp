#include "sim/mutants.h"

#include "base/mutant.h"
#include "sim/sim.h"

namespace muster::sim {

const std::vector<MutantRow>& mutant_table() {
  static const std::vector<MutantRow> table = {
      {"agent.ignore_lease_end", 3, "an agent that is cut off runs on past the end of its lease"},
      {"agent.accept_old_desired", 3, "an older desired revision is applied"},
      {"agent.forget_boot_id", 3, "a lease goes on after a reboot"},
      {"agent.keep_dropped_lease", 3, "a lease that the server dropped is kept"},
      {"agent.log_ack_at_send", 3, "log bytes count as stored when they were only sent"},
      {"session.renew_from_receive", 3, "a lease is counted from the receipt of the renewal"},
      {"session.takeover_no_wait", 3, "a new leader ends leases that it knows nothing about"},
      {"session.renewal_forgotten", 3, "the server does not note that it renewed"},
      {"session.no_freeze", 12, "mass silence freezes nothing"},
      {"session.accept_clone", 8, "two machines with one device key are both served"},
      {"session.renew_ended", 3, "whatever an agent names is renewed"},
      {"control_skip_epoch_check", 3, ""},
      {"control_free_devices_at_decision", 6, ""},
      {"control_reuse_address", 3, ""},
      {"control_forget_freeze", 6, ""},
      {"control_accept_used_join_token", 3, ""},
      {"control_promote_inside_roster", 6, ""},
      {"control_grant_devices_twice", 3, ""},
      {"control_ignore_request_hash", 3, ""},
      {"control_retry_past_limit", 3, ""},
      {"control_accept_wrong_node", 3, ""},
      {"control_forget_revision", 3, ""},
      {"control_stop_never_confirmed", 3, ""},
      {"control_forget_idempotency", 3, ""},
      {"control_skip_access_check", 3, ""},
      {"control_ended_lease_in_desired", 3, ""},
  };
  return table;
}

std::optional<Caught> hunt(std::string_view mutant, std::uint64_t first, std::uint64_t count, std::uint64_t steps) {
#ifdef MUSTER_MUTANTS
  set_mutant(mutant);
#else
  (void)mutant;
#endif
  std::optional<Caught> caught;
  for (std::uint64_t seed = first; seed < first + count && !caught; ++seed) {
    RunOptions options;
    options.seed = seed;
    options.steps = steps;
    const RunResult result = run_simulation(options);
    if (!result.failure.empty()) caught = Caught{seed, result.failure};
  }
#ifdef MUSTER_MUTANTS
  set_mutant("");
#endif
  return caught;
}

}  // namespace muster::sim
