#pragma once
// What the owner says to the machine from a shell: status, pause, resume, drain, limits. Each returns an exit code and
// prints for people. pause and drain work on the state directory that privd watches, so they hold with the agent dead.
#include <string>
#include <vector>

#include "base/time.h"
#include "host/layout.h"

namespace muster::host {

int fail(const std::string& message);  // prints it, returns 1

int do_status(const Layout& layout, bool json, Millis wait);  // wait: until the control plane has it ready
int do_pause(const Layout& layout, bool now);
int do_resume(const Layout& layout);
int do_drain(const Layout& layout, bool wait);
int do_limits(const Layout& layout, const std::vector<std::string>& words);  // after "limits"

}  // namespace muster::host
