#pragma once
// What people and programs call the values of enums, in files, flags, reasons and JSON; in the order of the values.
#include <array>
#include <string_view>

#include "model/types.h"

namespace muster {

inline constexpr std::array<std::string_view, 8> kRoleNames{
    "none", "operator", "supplier", "tenant", "auditor", "tenant-admin", "tenant-viewer", "supplier-member"};
inline constexpr std::string_view kRolesInWords =
    "operator, auditor, supplier, supplier-member, tenant-admin, tenant or tenant-viewer";
inline constexpr std::array<std::string_view, 3> kTrustTierNames{"community", "verified", "platform"};
inline constexpr std::array<std::string_view, 3> kGpuSharingNames{"exclusive", "shared", "mig"};
inline constexpr std::array<std::string_view, 5> kPolicyNames{"balanced", "pack", "spread", "cheap", "fast-network"};

}  // namespace muster
