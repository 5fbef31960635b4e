#pragma once
// What is known to be wrong with packages: records of the OSV format (https://ossf.github.io/osv-schema), as an
// operator drops them into a folder, matched against what an image has. A version that cannot be compared counts as
// affected. Pure; records may be hostile.
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "scan/inventory.h"
#include "wire/json.h"

namespace muster::scan {

inline constexpr std::size_t kRecordMax = 8 << 20, kFindingsMax = 10'000;

enum class Severity : std::uint8_t { Unknown = 0, Low = 1, Medium = 2, High = 3, Critical = 4 };
std::string_view text(Severity severity);
std::optional<Severity> parse_severity(std::string_view text);  // any case; "moderate", "important", "negligible" too

struct Finding {
  std::string id;                       // "CVE-2024-1", or what the record is called
  std::string package, version, fixed;  // fixed: the first version without it; empty: none is known
  Severity severity = Severity::Unknown;
  std::string waived_by;  // owner of the waiver that covers it
  auto operator<=>(const Finding&) const = default;
};

// A record's text, parsed once for several matchers.
Result<wire::Json> parse_record(std::string_view text);

// Records are added one by one and forgotten but for what they say of this inventory.
class Matcher {
 public:
  explicit Matcher(const Inventory& inventory);
  Status add(std::string_view record);
  Status add(const wire::Json& record);
  std::vector<Finding> findings() const;       // sorted, the worst first
  WallTime newest() const { return newest_; }  // of all records' changes
  std::size_t records() const { return records_; }
  const std::set<std::string>& ecosystems() const { return known_; }  // that any record speaks of, without releases

 private:
  const Inventory& inventory_;
  std::multimap<std::string, const Package*> by_name_;  // "Debian/openssl", by source where advisories are
  std::map<std::pair<std::string, std::string>, Finding> found_;
  std::set<std::string> known_;
  WallTime newest_;
  std::size_t records_ = 0;
};

std::optional<WallTime> parse_time(std::string_view text);  // RFC 3339 in UTC, or a day alone
// The base score of a CVSS 3.0 or 3.1 vector as a severity; nothing for what is none.
std::optional<Severity> cvss_severity(std::string_view vector);

}  // namespace muster::scan
