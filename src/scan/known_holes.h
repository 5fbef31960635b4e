#pragma once
// Holes that are known in what a machine runs containers with: kernel, container engine, runtime, NVIDIA driver and
// toolkit. A table with dates and sources (deploy/known-holes.json, or the operator's newer one) is held against the
// versions that a machine says it has. A distribution mends old versions in place, so of its packages only its own
// version numbers count; where the table does not know them, the answer is "unknown", which is not "fine". Pure; tables
// and reports may be hostile.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/time.h"

namespace muster::scan {

inline constexpr std::size_t kHoleTableMax = 4 << 20, kHolesMax = 4'096;

// The components that a table speaks of and a machine reports.
inline constexpr std::string_view kLinux = "linux", kDocker = "docker", kPodman = "podman", kContainerd = "containerd",
                                  kRunc = "runc", kCrun = "crun", kNvidiaDriver = "nvidia-driver",
                                  kNvidiaToolkit = "nvidia-container-toolkit";

// What a machine has of one of them. As a label's value: "none", or "1.1.5" or "1.1.5 debian:12/runc=1.1.5-1+deb12u1".
struct InstalledVersion {
  bool none = false;                             // it looked, and there is none
  std::string upstream;                          // "1.1.5"; may be empty where only the package is known
  std::string system, package, package_version;  // of the distribution: "debian:12", "runc", "1.1.5+ds1-1+deb12u1"
  bool operator==(const InstalledVersion&) const = default;
};
std::string text(const InstalledVersion& version);
InstalledVersion parse_installed(std::string_view text);
// "1.1.5+ds1" and "v1.1.5" as upstream counts: "1.1.5".
std::string upstream_version(std::string_view said);

enum class HoleAction : std::uint8_t { Warn, Block };
struct KnownHole {
  std::string id, component, what;
  HoleAction action = HoleAction::Warn;
  WallTime blocks_from;  // before, it only warns; 0 = at once
  struct Range {
    std::string from, fixed;  // empty: from the beginning; not mended yet
  };
  std::vector<Range> affected;
  struct Package {
    std::string system, package, fixed;  // fixed empty: not mended there; "0": never had it
  };
  std::vector<Package> packages;
  std::vector<std::string> sources;
};
struct HoleTable {
  WallTime date;
  std::vector<KnownHole> holes;
};
Result<HoleTable> parse_holes(std::string_view json);
const HoleTable& built_in_holes();
std::string_view built_in_holes_text();

// The operator's word over the table:
// {"exceptions": [{"id": "CVE-...", "node": "node-3", "owner": "ann", "until": "2027-01-31", "reason": "..."}],
//  "block": ["CVE-..."], "unknown": "warn" | "block", "running": "stay" | "leave"}
struct HoleException {
  std::string id, node;  // node empty: everywhere
  std::string owner, reason;
  WallTime until;
};
struct HolePolicy {
  std::vector<HoleException> exceptions;
  std::vector<std::string> block;  // holes that the table only warns of
  bool block_unknown = false;
  bool running_leaves = false;  // workers move away from a machine with a hole that blocks; else what runs stays
};
Result<HolePolicy> parse_hole_policy(std::string_view json);

enum class HoleState : std::uint8_t { Open, Unknown, Excepted };
std::string_view text(HoleState state);  // "open", "unknown", "excepted"
struct HoleFinding {
  std::string id, component, version, fixed, what, why;  // fixed: where it is mended, as far as the table says
  HoleState state = HoleState::Open;
  bool blocks = false;
  std::string source;
  bool operator==(const HoleFinding&) const = default;
};
// Those that block first. A component that is not among `versions` at all is unknown, once, without an id.
std::vector<HoleFinding> judge_host(const HoleTable& table, const HolePolicy& policy,
                                    const std::map<std::string, InstalledVersion>& versions, std::string_view node,
                                    WallTime now);
// "CVE-2025-23266 in nvidia-container-toolkit 1.17.4, mended in 1.17.8; ..." of those that block; empty: none does.
std::string blocking_text(const std::vector<HoleFinding>& findings, std::size_t bytes_max);

}  // namespace muster::scan
