#pragma once
// Bounds and sanity of what people and agents send. Every error names the field by its dotted path and says the limit.
// Pure; nothing here asks whether an object exists or whether the caller may do it.
#include <string_view>

#include "base/result.h"
#include "model/types.h"

namespace muster {

inline constexpr std::uint32_t kWorkersMax = 1000;      // of one cluster, all groups together
inline constexpr std::int32_t kGpuShareLeast = 10;      // thousandths of a GPU
inline constexpr std::size_t kSpecBytesMax = 48 << 10;  // a spec must fit one journal entry

bool valid_name(std::string_view name);  // [a-z0-9][a-z0-9-_]{0,62}
Status validate_name(std::string_view name, const std::string& field);
Status validate_title(std::string_view text,
                      const std::string& field);  // people's and machines' names: 1..200 bytes of printable UTF-8
Status validate(const ClusterSpec& spec, const std::string& field = "spec");
Status validate(const JobSpec& spec, const std::string& field = "spec");
Status validate(const NodeFacts& facts, const std::string& field = "facts");
Status validate_labels(const std::map<std::string, std::string>& labels, const std::string& field);

}  // namespace muster
