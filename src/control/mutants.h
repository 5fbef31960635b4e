#pragma once
// The faults planted in control, by the names set_mutant() takes. Each is one wrong decision that a tired programmer
// could make.
#include <string_view>

#include "base/mutant.h"

namespace muster::control::mutants {

struct Row {
  std::string_view name, what;
};

inline constexpr std::string_view kSkipEpochCheck = "control_skip_epoch_check";
inline constexpr std::string_view kFreeDevicesAtDecision = "control_free_devices_at_decision";
inline constexpr std::string_view kReuseAddress = "control_reuse_address";
inline constexpr std::string_view kForgetFreeze = "control_forget_freeze";
inline constexpr std::string_view kAcceptUsedJoinToken = "control_accept_used_join_token";
inline constexpr std::string_view kPromoteInsideRoster = "control_promote_inside_roster";
inline constexpr std::string_view kGrantDevicesTwice = "control_grant_devices_twice";
inline constexpr std::string_view kPartialGang = "control_partial_gang";
inline constexpr std::string_view kIgnoreRequestHash = "control_ignore_request_hash";
inline constexpr std::string_view kRetryPastLimit = "control_retry_past_limit";
inline constexpr std::string_view kKeepRemovedLease = "control_keep_removed_lease";
inline constexpr std::string_view kAcceptWrongNode = "control_accept_wrong_node";
inline constexpr std::string_view kForgetRevision = "control_forget_revision";
inline constexpr std::string_view kStopNeverConfirmed = "control_stop_never_confirmed";
inline constexpr std::string_view kForgetIdempotency = "control_forget_idempotency";
inline constexpr std::string_view kStalePlan = "control_stale_plan";
inline constexpr std::string_view kSkipAccessCheck = "control_skip_access_check";
inline constexpr std::string_view kEndedLeaseInDesired = "control_ended_lease_in_desired";
inline constexpr std::string_view kExpireWhileFrozen = "control_expire_while_frozen";
inline constexpr std::string_view kKeepLeasesOverReboot = "control_keep_leases_over_reboot";
inline constexpr std::string_view kBelieveContested = "control_believe_contested";
inline constexpr std::string_view kKeepLateMember = "control_keep_late_member";
inline constexpr std::string_view kIgnoreQuota = "control_ignore_quota";
inline constexpr std::string_view kIgnoreOffer = "control_ignore_offer";
inline constexpr std::string_view kMixTenants = "control_mix_tenants";
inline constexpr std::string_view kReplaceHead = "control_replace_head";
inline constexpr std::string_view kReplaceAtOnce = "control_replace_at_once";
inline constexpr std::string_view kForgetApart = "control_forget_apart";

inline constexpr Row kAll[] = {
    {kSkipEpochCheck, "an observation with a stale epoch is believed"},
    {kFreeDevicesAtDecision, "devices are free when the stop is ordered, not when it is confirmed"},
    {kReuseAddress, "a replacement gets the overlay address of the slot before it"},
    {kForgetFreeze, "mass silence evicts workers that nothing replaces"},
    {kAcceptUsedJoinToken, "a one-use token enrols a second machine"},
    {kPromoteInsideRoster, "the spare is promoted while the lost worker stays in the roster"},
    {kGrantDevicesTwice, "a grant does not look at the devices that other leases hold"},
    {kPartialGang, "a start is committed with one worker missing"},
    {kIgnoreRequestHash, "the same idempotency key answers for another request"},
    {kRetryPastLimit, "a job is tried once more than its retries allow"},
    {kKeepRemovedLease, "the lease of a removed slot is not told to stop"},
    {kAcceptWrongNode, "a node may report about the lease of another node"},
    {kForgetRevision, "a roster change does not raise the members' desired revision"},
    {kStopNeverConfirmed, "a confirmed stop does not end the lease"},
    {kForgetIdempotency, "a repeated request makes a second object"},
    {kStalePlan, "a plan is applied although the cluster no longer wants it"},
    {kSkipAccessCheck, "the core does not check the caller's rights again"},
    {kEndedLeaseInDesired, "a lease that ended is still sent to its node"},
    {kExpireWhileFrozen, "leases end for everyone when we are the ones cut off"},
    {kKeepLeasesOverReboot, "a machine under a new boot id goes on with the leases of the old one"},
    {kBelieveContested, "of two machines with one key the one confirms what the other runs"},
    {kKeepLateMember, "who does not acknowledge a roster stays a member"},
    {kIgnoreQuota, "a plan is applied although it exceeds a quota that others used up meanwhile"},
    {kIgnoreOffer, "machines are given away whatever their owners ask"},
    {kMixTenants, "shares of one GPU go to two organisations"},
    {kReplaceHead, "a head is replaced for its slow ways"},
    {kReplaceAtOnce, "workers with slow ways are replaced one right after the other"},
    {kForgetApart, "a machine is taken again by the cluster that it was too slow for"},
};

}  // namespace muster::control::mutants
