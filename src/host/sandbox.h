#pragma once
// How the agent's processes give up what they do not need: uid, groups, capabilities, new privileges and, for the
// process that talks to the network, the system calls that it never makes. Called once at the start of a process.
#include <sys/types.h>

#include "base/result.h"

namespace muster::host {

Status become(uid_t uid, gid_t gid);  // no supplementary groups, no capabilities, no new privileges
Status confine_agent();               // seccomp: no exec, mounts, namespaces, tracing, kernel modules, keyrings
Status confine_egress();  // seccomp: only what relaying needs; no files, programs, listeners, other families

}  // namespace muster::host
