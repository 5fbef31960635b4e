#pragma once
// What a zone's clock shows against UTC, for years to come: read from the system's time zone database (TZif, RFC 9636)
// or from a fixed offset. Blocking file reads of some kilobytes; no shared state, any thread.
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "model/types.h"

namespace muster::server {

inline constexpr const char* kZoneFolder = "/usr/share/zoneinfo";
inline constexpr Millis kZoneYears{std::int64_t{10} * 366 * 24 * 3'600'000};

// "UTC", "+02:00", "UTC+2", or a name of the database such as "Europe/Berlin". The first offset holds from 1970 on; the
// others follow in order until `from` and kZoneYears. Errors name what may be given instead.
Result<std::vector<ZoneOffset>> zone_offsets(const std::string& zone, WallTime from, const std::string& field,
                                             const std::string& folder = kZoneFolder);
// The same of a file's bytes. Damaged bytes give an error.
Result<std::vector<ZoneOffset>> zone_offsets(ByteView tzif, WallTime from);

}  // namespace muster::server
