#pragma once
// What one container uses, read from the kernel's files of its control group (version 1 and 2) by the pid of a process
// in it: no engine is asked, so it is cheap enough for once a second. Any thread; no state.
#include <sys/types.h>

#include <cstdint>
#include <string>

#include "base/result.h"

namespace muster::host {

struct ContainerUse {
  std::uint64_t cpu_ns = 0, memory_bytes = 0, pids = 0;  // memory without the page cache that could be dropped
};
struct NetCount {
  std::uint64_t rx_bytes = 0, tx_bytes = 0;  // all devices of the process's namespace but lo
};
// Its group's path below the memory hierarchy (or the only one): the same for all processes of a container.
std::string cgroup_of(pid_t pid);
Result<ContainerUse> container_use(pid_t pid);
NetCount net_count(pid_t pid);
NetCount parse_net_dev(std::string_view text);

}  // namespace muster::host
