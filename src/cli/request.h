#pragma once
// A YAML file -> the request that the server gets: own machines looked up, report printed, files packed and uploaded.
#include <string>
#include <vector>

#include "cli/shell.h"
#include "launcher/launcher.h"
#include "model/types.h"

namespace muster::cli {

Result<launcher::Launch> read_launch(Shell& shell, const std::string& file, const std::string& image,
                                     bool egress = false);
Status upload_mounts(Shell& shell, launcher::Launch& launch, const std::string& file);
wire::Json spec_json(const ClusterSpec& spec);
// Lines "path: old -> new" for every leaf that differs; at most `max`.
std::vector<std::string> difference(const wire::Json& before, const wire::Json& after, std::size_t max = 200);

// One line that says where a cluster stands.
// "43 % of 2.2 GiB"; what came so far where the whole is not known.
std::string pull_text(std::int64_t done, std::int64_t total);
std::string cluster_progress(const wire::Json& cluster);
// What its members said as they failed, the newest last; empty = nothing is known.
std::string failures_text(const wire::Json& cluster);
// Polls until `done`; shows progress. Ctrl-C says what `left_behind` makes of the cluster as it was last seen, and
// leaves.
Result<wire::Json> wait_cluster(Shell& shell, const std::string& id, const std::function<bool(const wire::Json&)>& done,
                                const std::function<std::string(const wire::Json&)>& left_behind);
// A file_mounts source: ~ is this home, and a relative path is beside the YAML file.
std::string local_path(const std::string& path, const std::string& file);

}  // namespace muster::cli
