#pragma once
// Who a cluster or job says it is to services outside of the platform (clouds, Vault): it asks for identity tokens by
// naming their audience. A cluster does so in its environment, a job in its metadata, so that both see what was asked.
// Pure.
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace muster {

inline constexpr std::string_view kIdentityAudienceEnv = "MUSTER_IDENTITY_AUDIENCE";
inline constexpr std::string_view kIdentityAudienceMetadata = "muster_identity_audience";
inline constexpr std::string_view kIdentityFile = "identity";  // of the cluster; of a job: "identity-job-7"
inline constexpr std::size_t kAudiencesMax = 8, kAudienceBytesMax = 255;

// "sts.amazonaws.com,https://vault.example.org": one or more, each of printable ASCII without quotes, backslashes and
// blanks. Nothing: not of that form.
std::optional<std::vector<std::string>> parse_audiences(std::string_view text);
bool valid_audience(std::string_view text);

}  // namespace muster
