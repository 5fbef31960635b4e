#pragma once
// `muster-agent limits`: what the owner lends, shown as a table and changed word by word ("hours 20:00-08:00",
// "upload 20mbit"). Values only; the file is written by the caller and obeyed by privd within a second.
#include <string>
#include <utility>
#include <vector>

#include "host/policy.h"

namespace muster::host {

std::vector<std::pair<std::string, std::string>> describe_limits(const Policy& policy);
// Changes one limit; `value` "default" puts it back. InvalidArgument says how it is written.
Status set_limit(Policy& policy, const std::string& key, const std::string& value);
std::string limits_help();

}  // namespace muster::host
