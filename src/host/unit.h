#pragma once
// The systemd unit of the agent, as text: what `join` installs and `muster-agent unit` prints for packagers.
#include <string>

namespace muster::host {

std::string unit_text(const std::string& program, const std::string& state_dir);

}  // namespace muster::host
