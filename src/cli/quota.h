#pragma once
// What a project or an organisation may hold and what it holds, for `muster quota`. Limits of 0 are none.
#include <cstdint>
#include <optional>
#include <string>

#include "cli/api.h"

namespace muster::cli {

struct QuotaChange {  // what is not named stays as it is
  std::optional<std::int64_t> gpus, clusters;
  std::optional<double> cpus;
  std::optional<std::int64_t> weight = {}, guarantee_gpus = {};
  std::optional<double> guarantee_cpus = {};
  bool shares() const { return weight || guarantee_gpus || guarantee_cpus; }
  bool any() const { return gpus || clusters || cpus || shares(); }
};
// Reads what holds at `target` (".../quota") and puts it back with the change; the answer is the new view.
Result<wire::Json> change_quota(Api& api, const std::string& target, const QuotaChange& change);
// What tiers hold and are guaranteed, as `muster tiers` shows it.
std::string tiers_table(const wire::Json& view, bool colour);
// The machines that are kept back for failovers, as `muster headroom` shows them.
std::string headroom_table(const wire::Json& view, bool colour);
std::string quota_table(const wire::Json& view, bool colour);
std::string held_text(const wire::Json& held, const wire::Json& limit, std::string_view what);  // "4 of 8", "4"

}  // namespace muster::cli
