#pragma once
// `muster-agent run`: starts privd, netd and the agent each under its own identity, and the egress process where the
// owner's policy allows egress; restarts the one that dies (at most once a second each), ends them on SIGTERM. Needs
// root, no systemd. The leases' containers do not depend on any of them.
#include <string>

#include "host/layout.h"
#include "host/runtimes.h"

namespace muster::host {

Status supervise(const Layout& layout, const std::string& program);
// The bodies of the processes.
Status run_privd(const Layout& layout);
Status run_netd_process(const Layout& layout, int socket_fd);
Status run_agent_process(const Layout& layout);
Status run_egress_role(int socket_fd);

DockerOptions docker_options(const Layout& layout, const std::string& node_id, const std::string& machine);
VenvOptions venv_options(const Layout& layout, const std::string& machine);
std::string engine_socket(const Layout& layout);  // of the policy, else the first usual place that exists

}  // namespace muster::host
