#pragma once
// Commands in a cluster's containers: with this terminal, or fed and read by the program.
#include <functional>
#include <string>

#include "cli/channel.h"

namespace muster::cli {

// stdin/stdout/stderr of this process; with tty the terminal is raw and its size follows. Returns the command's exit
// code.
Result<int> exec_here(const Account& account, ExecRequest request);

struct Feed {
  std::function<Result<std::string>()> input;      // next piece; empty = end
  std::function<Status(std::string_view)> output;  // standard output
};
// Returns what was written to standard error; a non-zero exit is an error that holds it.
Result<std::string> exec_fed(const Account& account, const ExecRequest& request, const Feed& feed);
Result<std::string> exec_output(const Account& account, const ExecRequest& request, std::size_t max_bytes = 1 << 20);

}  // namespace muster::cli
