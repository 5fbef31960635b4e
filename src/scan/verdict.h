#pragma once
// What is made of a scan: pass, warn, block, not scanned or stale. What was not scanned is never clean: no packages
// found, no record of one of their ecosystems, a scanner that failed. Pure.
#include <string>
#include <vector>

#include "scan/osv.h"

namespace muster::scan {

enum class Outcome : std::uint8_t { Pass, Warn, Block, NotScanned, Stale };
std::string_view text(Outcome outcome);  // "pass", "warn", "block", "not scanned", "stale"

struct Waiver {             // somebody takes it upon himself, until then
  std::string id, package;  // package empty: in all
  std::string owner, reason;
  WallTime until;
};
// {"waivers": [{"id": "CVE-...", "package": "openssl", "owner": "ann@example.org", "until": "2026-12-31", "reason":
// "..."}]}
Result<std::vector<Waiver>> parse_waivers(std::string_view text);

struct Facts {
  std::string scanner;     // "muster 0.1.0"; what a plug-in calls itself
  WallTime database;       // of what it knows; 0 = it did not say
  std::string incomplete;  // why it is no whole scan; empty: it is one
  std::vector<Finding> findings;
};
struct Rules {
  Severity block = Severity::High;     // from this one on
  Millis fresh{7LL * 24 * 3'600'000};  // older databases are stale
  bool only_fixed = false;             // what has no fix yet never blocks
  std::vector<Waiver> waivers;
};
// The operator's word for what the platform scans by itself:
// {"block": "high", "only_fixed": false, "max_age_days": 7, "waivers": [...], "deny": false}
struct ScanPolicy {
  Rules rules;
  bool deny = false;  // an image that is condemned gets no more machines
};
Result<ScanPolicy> parse_scan_policy(std::string_view text);
struct Verdict {
  Outcome outcome = Outcome::NotScanned;
  std::string why;                // a sentence
  std::vector<Finding> findings;  // with who waived them
  std::vector<Waiver> expired;    // that would have covered one of them
};
Verdict judge(Facts facts, const Rules& rules, WallTime now);

// The whole of our own scan, without waivers: facts of an inventory and of what a matcher of it was told.
Facts facts_of(const Inventory& inventory, const Matcher& matcher, std::string scanner);
// What a scanner plug-in prints: {"scanner": "trivy 0.50", "database": "2026-11-28T06:00:00Z", "findings": [{"id":
// "CVE-2024-1", "package": "openssl", "version": "3.0.1", "fixed": "3.0.2", "severity": "high"}]}
Result<Facts> parse_report(std::string_view text);
std::string report_json(const Facts& facts);

}  // namespace muster::scan
