#include "wire/names.h"

#include <fmt/format.h>

#include <array>

#include "model/names.h"

namespace muster::wire {
namespace {

template <typename E, std::size_t N>
std::string_view pick(E value, const std::array<std::string_view, N>& names) {
  const auto index = static_cast<std::size_t>(value);
  return index < N ? names[index] : "unknown";
}
template <typename E, std::size_t N>
std::optional<E> search(std::string_view wanted, const std::array<std::string_view, N>& names, std::size_t from) {
  for (std::size_t i = from; i < N; ++i) {
    if (names[i] == wanted) return static_cast<E>(i);
  }
  return {};
}
constexpr std::array<std::string_view, 3> kRuntimes{"", "docker", "venv"};
constexpr std::array<std::string_view, 10> kNodeStates{"",     "enrolled", "admitted", "online",  "suspect",
                                                       "lost", "draining", "disabled", "revoked", "quarantined"};
constexpr std::array<std::string_view, 7> kClusterStates{"",         "queued",  "starting", "running",
                                                         "stopping", "stopped", "failed"};
constexpr std::array<std::string_view, 4> kSlotRoles{"", "head", "worker", "spare"};
constexpr std::array<std::string_view, 5> kWants{"", "run", "standby", "drain", "stop"};
constexpr std::array<std::string_view, 9> kPhases{"pending", "pulling",  "creating", "standby", "starting",
                                                  "ready",   "draining", "stopped",  "failed"};
constexpr std::array<std::string_view, 8> kJobStates{"",         "queued",    "starting", "running",
                                                     "stopping", "succeeded", "failed",   "stopped"};
constexpr std::array<std::string_view, 6> kRights{"", "look", "logs", "submit", "exec", "manage"};

}  // namespace

std::string_view text(Right value) {
  return pick(value, kRights);
}
std::optional<Right> parse_right(std::string_view text) {
  return search<Right>(text, kRights, 1);
}
std::string_view text(Role value) {
  return pick(value, kRoleNames);
}
std::string_view text(RuntimeKind value) {
  return pick(value, kRuntimes);
}
std::string_view text(TrustTier value) {
  return pick(value, kTrustTierNames);
}
std::string_view text(Policy value) {
  return pick(value, kPolicyNames);
}
std::string_view text(NodeState value) {
  return pick(value, kNodeStates);
}
std::string_view text(GpuSharing value) {
  return pick(value, kGpuSharingNames);
}
std::string_view text(ClusterState value) {
  return pick(value, kClusterStates);
}
std::string_view text(SlotRole value) {
  return pick(value, kSlotRoles);
}
std::string_view text(LeaseWant value) {
  return pick(value, kWants);
}
std::string_view text(LeasePhase value) {
  return pick(value, kPhases);
}
std::string_view text(JobState value) {
  return pick(value, kJobStates);
}
std::optional<Role> parse_role(std::string_view wanted) {
  return search<Role>(wanted, kRoleNames, 1);
}
std::optional<RuntimeKind> parse_runtime(std::string_view wanted) {
  return search<RuntimeKind>(wanted, kRuntimes, 1);
}
std::optional<TrustTier> parse_tier(std::string_view wanted) {
  return search<TrustTier>(wanted, kTrustTierNames, 0);
}
std::optional<GpuSharing> parse_gpu_sharing(std::string_view wanted) {
  return search<GpuSharing>(wanted, kGpuSharingNames, 0);
}
std::optional<Policy> parse_policy(std::string_view wanted) {
  return search<Policy>(wanted, kPolicyNames, 0);
}
std::string address_text(std::uint32_t address) {
  if (address == 0) return {};
  return fmt::format("{}.{}.{}.{}", address >> 24, (address >> 16) & 255, (address >> 8) & 255, address & 255);
}

}  // namespace muster::wire
