// muster-agent: one binary, three processes; see src/host/commands.h.
#include <string>
#include <vector>

#include "host/commands.h"

int main(int argc, char** argv) {
  return muster::host::agent_main(std::vector<std::string>(argv + 1, argv + argc));
}
