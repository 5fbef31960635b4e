#pragma once
// The journal as an audit trail: who did what to which object, oldest first, read from the store on demand. What only
// keeps the house (timers, observations, rosters) is left out. An entry is visible to whoever may read the audit of the
// organisation that owns its object; an actor of another organisation is shown by its kind alone. One call looks at
// kAuditScanMax entries at most and keeps one chunk of them in memory; the next goes on where it stopped. Blocks on the
// disk: pool threads only.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "access/access.h"
#include "control/core.h"
#include "engine/follower.h"
#include "journal/store.h"
#include "server/context.h"
#include "wire/audit_views.h"

namespace muster::server {

inline constexpr std::size_t kAuditScanMax = 250'000;

struct AuditQuery {
  std::size_t limit = 100;
  std::uint64_t after = 0;  // entries behind this seq
  // Id, name or kind; exact. Empty = any.
  std::string actor, object, verb, org;
  std::optional<WallTime> since, until;  // since <= at < until
};
struct AuditPage {
  std::vector<wire::AuditView> items;
  std::uint64_t next = 0;  // go on behind this seq; 0 = nothing is left
  std::uint64_t seq = 0;   // looked at up to here
};
Result<AuditPage> read_audit(const Context& context, const access::Subject& reader, const AuditQuery& query,
                             std::size_t scan_max = kAuditScanMax);

// The verb and the kind of the object of what matters; nullopt: housekeeping.
struct AuditMeaning {
  std::string_view verb, kind;
  bool failed = false;
};
std::optional<AuditMeaning> audit_meaning(const control::Event& event);

std::optional<WallTime> parse_utc(const std::string& text);  // "2026-11-23T01:02:03Z", with or without milliseconds
bool reads_everything(const access::Subject& reader);

}  // namespace muster::server
