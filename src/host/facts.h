#pragma once
// What this machine is, read from /proc and NVML where a driver is. Capacity is what is left after the owner's reserve
// and caps; the driver's and CUDA's version are labels (gpu.driver, gpu.cuda), so that a request can ask for them.
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "host/layout.h"
#include "model/types.h"

namespace muster::host {

std::string host_name();
std::string machine_arch();  // "x86_64" | "aarch64"
std::string boot_id();
NodeFacts gather_facts(const Layout& layout, const std::map<std::string, std::string>& labels);

std::uint64_t memory_info(std::string_view key);  // bytes of one line of /proc/meminfo, "MemTotal:"

}  // namespace muster::host
