#pragma once
// The command line of muster-agent. Exit codes: 0 done, 1 it did not work (the reason is on standard error), 2 wrong
// usage, 3 doctor found something broken.
#include <string>
#include <vector>

namespace muster::host {

int agent_main(const std::vector<std::string>& words);  // without the program's name

}  // namespace muster::host
