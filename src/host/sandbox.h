#pragma once
// How the agent's processes give up what they do not need: uid, groups, capabilities, new privileges and, for
// those that talk to the network, the system calls that they never make. Called once at the start of a process, before
// there are threads.
#include <sys/types.h>

#include "base/result.h"

namespace muster::host {

Status become(uid_t uid, gid_t gid);  // no supplementary groups, no capabilities, no new privileges
Status confine_agent();               // seccomp: no exec, mounts, namespaces, tracing, kernel modules, keyrings
// seccomp: only what carrying packets needs; no programs, no unix sockets, no memory that runs
Status confine_netd();
Status confine_egress();  // seccomp: only what relaying needs; no files, programs, listeners, other families

}  // namespace muster::host
