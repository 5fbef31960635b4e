#pragma once
// The texts that the API uses for enumerations of the model ("running", "head", ...): lower case, stable, the same in
// REST, SSE, CLI and filters. parse_* accept exactly these texts.
#include <optional>
#include <string>
#include <string_view>

#include "model/types.h"

namespace muster::wire {

std::string_view text(Role value);
std::string_view text(RuntimeKind value);
std::string_view text(TrustTier value);
std::string_view text(Policy value);
std::string_view text(GpuSharing value);
std::string_view text(NodeState value);
std::string_view text(ClusterState value);
std::string_view text(SlotRole value);
std::string_view text(LeaseWant value);
std::string_view text(LeasePhase value);
std::string_view text(JobState value);
std::string_view text(Right value);
std::optional<Role> parse_role(std::string_view text);
std::optional<Right> parse_right(std::string_view text);
std::optional<RuntimeKind> parse_runtime(std::string_view text);
std::optional<TrustTier> parse_tier(std::string_view text);
std::optional<Policy> parse_policy(std::string_view text);
std::optional<GpuSharing> parse_gpu_sharing(std::string_view text);
std::string address_text(std::uint32_t address);  // host order -> "10.64.0.1"

}  // namespace muster::wire
