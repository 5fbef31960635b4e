#pragma once
// What a machine is called when work is placed on it. Labels of its join token are its organisation's word; what its
// agent says of itself (facts) is a claim, which never goes over that word and never puts it into a pool. Pure; any
// thread.
#include <optional>
#include <string>
#include <string_view>

#include "model/types.h"

namespace muster {

inline constexpr std::string_view kJurisdictionLabel = "jurisdiction";

// The organisation that `musterd init` makes: its pools need no organisation before their name.
inline constexpr OrgId kPlatformOrg{1};

// The label's value: the join token's where it has one, else the machine's own claim; nullopt: neither. Of "pool" it
// is pool_of. Of "jurisdiction", whose law data stays under, a machine's own claim is nothing.
std::optional<std::string> label_of(const Node& node, const std::string& name);
std::string region_of(const Node& node);   // the label "region", else what the machine claims; may be empty
bool region_is_claimed(const Node& node);  // nobody but the machine says so

// What agents report of their owners' limits, as labels of the facts: kbit/s of the clusters' networks together, and
// whole GiB left of this month through the filtered way out. No label: no limit.
inline constexpr std::string_view kUploadLimitLabel = "limit-upload-kbps", kDownloadLimitLabel = "limit-download-kbps",
                                  kVolumeLeftLabel = "egress-left-gib";

// Which versions a machine says it runs containers with, as labels of its facts: "version.runc" and so on
// (scan/known_holes.h).
inline constexpr std::string_view kVersionLabelPrefix = "version.";
// Whether containers there have user ids of their own ("user-namespace") or the machine's ("shared-users"), as a label
// of its facts: a claim, as all of them.
inline constexpr std::string_view kIsolationLabel = "isolation", kUserNamespace = "user-namespace",
                                  kSharedUsers = "shared-users";
// Set by the control plane alone, among the facts as they are stored: holes that are known in what the machine runs
// containers with. While it is there nothing new is placed on the machine.
inline constexpr std::string_view kHeldLabel = "held-for-holes";
std::string held_for(const Node& node);  // its value; empty: it is not held

// A named pool is one organisation's: machines get into it by that organisation's join tokens only. Written
// "pool:NAME" where it is the platform's and "pool:ORG/NAME" else; ORG is an id ("org-3") in what is stored and may be
// a name in what people write.
struct PoolName {
  std::string org, name;  // org empty: the platform's
};
std::optional<PoolName> parse_pool(std::string_view text);  // with "pool:" before it; nullopt: not of that form
std::string pool_of(const Node& node);  // "NAME" or "org-3/NAME"; empty: in none. As after "pool:" of a stored spec
bool in_pool(const Node& node, std::string_view pool, OrgId tenant);  // own | market | pool:… as stored in a spec

}  // namespace muster
