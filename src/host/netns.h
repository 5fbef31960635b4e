#pragma once
// Network namespaces that outlive every process: pinned by a bind mount at a path of ours. A new one holds only `lo`,
// down. Needs root. Stateless.
#include <string>

#include "base/result.h"

namespace muster::host {

Status pin_netns(const std::string& path);  // idempotent; the directory exists
bool netns_pinned(const std::string& path);
void unpin_netns(const std::string& path);  // gone once nobody is in it

}  // namespace muster::host
