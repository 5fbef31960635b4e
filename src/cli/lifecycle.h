#pragma once
// up and down as other commands use them too (exec --start, submit --stop).
#include <cstdint>
#include <optional>
#include <string>

#include "cli/ray_flags.h"
#include "cli/shell.h"

namespace muster::cli {

struct UpOptions {
  ClusterChoice cluster;  // a file, or - for standard input
  std::string image;
  std::optional<std::uint32_t> spares, min_workers, max_workers;
  std::string max_price, budget;  // "1.20 EUR"; empty = as the file says
  bool yes = false, no_wait = false, dry_run = false, egress = false;
};
Result<int> up(Shell& shell, const UpOptions& options);

struct DownOptions {
  ClusterChoice cluster;
  bool yes = false, no_wait = false;
};
Result<int> down(Shell& shell, const DownOptions& options);

}  // namespace muster::cli
