#include "sim/mutants.h"

#include "base/mutant.h"
#include "sim/sim.h"

namespace muster::sim {

const std::vector<MutantRow>& mutant_table() {
  static const std::vector<MutantRow> table = {
      {"agent.ignore_lease_end", 10, "an agent that is cut off runs on past the end of its lease"},
      {"agent.accept_old_roster", 10, "an older roster replaces a newer one"},
      {"agent.accept_old_desired", 10, "an older desired revision is applied"},
      {"agent.forget_boot_id", 10, "a lease goes on after a reboot"},
      {"agent.keep_dropped_lease", 10, "a lease that the server dropped is kept"},
      {"agent.log_ack_at_send", 10, "log bytes count as stored when they were only sent"},
      {"session.renew_from_receive", 10, "a lease is counted from the receipt of the renewal"},
      {"session.takeover_no_wait", 10, "a new leader ends leases that it knows nothing about"},
      {"session.renewal_forgotten", 10, "the server does not note that it renewed"},
      {"session.no_freeze", 10, "mass silence freezes nothing"},
      {"session.accept_clone", 20, "two machines with one device key are both served"},
      {"session.renew_ended", 10, "whatever an agent names is renewed"},
      {"control_skip_epoch_check", 20, ""},
      {"control_free_devices_at_decision", 10, ""},
      {"control_reuse_address", 10, ""},
      {"control_forget_freeze", 20, ""},
      {"control_accept_used_join_token", 10, ""},
      {"control_promote_inside_roster", 20, ""},
      {"control_grant_devices_twice", 20, ""},
      {"control_ignore_request_hash", 10, ""},
      {"control_retry_past_limit", 20, ""},
      {"control_accept_wrong_node", 20, ""},
      {"control_forget_revision", 10, ""},
      {"control_stop_never_confirmed", 10, ""},
      {"control_forget_idempotency", 10, ""},
      {"control_skip_access_check", 10, ""},
      {"control_ended_lease_in_desired", 10, ""},
      {"control_expire_while_frozen", 20, ""},
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
