#pragma once
// The two small programs beside a sandboxed virtual environment, both this binary, both apart from privd so that its
// death or update changes nothing: `venv-box DIR` starts the sandbox that DIR/spec.json describes, keeps its output,
// waits for its end and writes it down; `venv-exec DIR ID` runs one more command inside, between a stream on descriptor
// 3 and window sizes on descriptor 4. DIR is root's alone. Errors end as messages in the output or on the stream.
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace muster::host {

// What a sandbox is made of; written by privd, read by both programs.
struct BoxSpec {
  std::string bwrap;
  std::vector<std::string> options;  // of bwrap; never on a command line, for they hold the environment
  std::vector<std::string> command;
  std::vector<std::string> env;      // NAME=VALUE, for commands that come later
  std::vector<std::string> cgroups;  // entrances
  std::string network;               // pinned namespace; empty: bwrap makes an empty one
  std::string sysfs;                 // an empty directory of ours where /sys of that network is mounted; empty: no /sys
  std::string directory;             // where commands begin
  std::string image;                 // digest
  uid_t uid = 0, inner_uid = 1000;
  std::int64_t nofile = 0;
  Bytes seccomp;  // compiled
};
Status write_box_spec(const std::string& dir, const BoxSpec& spec);
Result<BoxSpec> read_box_spec(const std::string& dir);

struct BoxState {
  bool known = false, running = false;
  pid_t box = 0, init = 0, main = 0;  // as this machine counts
  std::int64_t exit_code = 0;
  bool out_of_memory = false;
};
BoxState read_box_state(const std::string& dir);
// A process that may be gone and its number given to another: both must match.
std::uint64_t start_time(pid_t pid);  // 0 = no such process
std::string read_box_output(const std::string& dir, std::size_t bytes_max);

struct BoxExec {
  std::vector<std::string> argv;
  bool tty = false;
};
Status write_box_exec(const std::string& dir, const std::string& id, const BoxExec& exec);
std::int64_t box_exec_code(const std::string& dir, const std::string& id);  // -1: still running; -2: never heard of

int run_box(const std::string& dir);
int run_box_exec(const std::string& dir, const std::string& id);

}  // namespace muster::host
