#pragma once
// A YAML file -> the request that the server gets: own machines looked up, report printed, files packed and uploaded.
#include <string>
#include <vector>

#include "cli/shell.h"
#include "launcher/launcher.h"
#include "model/types.h"

namespace muster::cli {

Result<launcher::Launch> read_launch(Shell& shell, const std::string& file, const std::string& image);
Status upload_mounts(Shell& shell, launcher::Launch& launch, const std::string& file);
wire::Json spec_json(const ClusterSpec& spec);
// Lines "path: old -> new" for every leaf that differs; at most `max`.
std::vector<std::string> difference(const wire::Json& before, const wire::Json& after, std::size_t max = 200);

// One line that says where a cluster stands.
std::string cluster_progress(const wire::Json& cluster);
// Polls until `done`; shows progress. Ctrl-C says `left_behind` and leaves.
Result<wire::Json> wait_cluster(Shell& shell, const std::string& id, const std::function<bool(const wire::Json&)>& done,
                                const std::string& left_behind);

}  // namespace muster::cli
