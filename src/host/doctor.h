#pragma once
// `muster-agent doctor`: walks everything between this machine and useful work, in order, and says for each broken step
// what to do. Safe at any time: it changes nothing that stays (doctor_firewall.h); needs root for the engine's socket.
#include <string>
#include <vector>

#include "host/layout.h"

namespace muster::host {

enum class Verdict { Good, Note, Broken };
struct Finding {
  std::string step;
  Verdict verdict = Verdict::Good;
  std::string detail, repair;
};
// server: the control plane to try when this machine is not enrolled yet; may be empty.
std::vector<Finding> examine(const Layout& layout, const std::string& server);

}  // namespace muster::host
