#pragma once
// What a user of Ray's own commands types: a cluster as name, id or YAML file with -n, and the flags of `ray up`, `ray
// exec` and the rest. A flag that needs nothing here is accepted with a note, one that would mislead is refused with
// the reason and the way to go instead.
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/result.h"

namespace CLI {
class App;
}

namespace muster::cli {

struct ClusterChoice {
  std::string given;     // name, id or file
  std::string override;  // -n: used instead of the file's cluster_name
  bool is_file() const;
  Result<std::string> name() const;
};
void add_cluster(CLI::App& command, ClusterChoice& choice);
// Sets: "log" (style and colour), "verbose", "cache", "shells", "restart", "usage", "screen" (refused), "workers"
// (refused), "client" (of ray job).
void add_ray_flags(CLI::App& command, std::initializer_list<std::string_view> sets);

}  // namespace muster::cli
