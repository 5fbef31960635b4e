#pragma once
// Starting other programs from privd, a process with threads: everything is prepared before fork, between fork and exec
// there are only system calls. The child gives up what `Child` says in a fixed order: control groups, network, limits,
// groups and ids, and takes no descriptors but those named. Thread-safe: stateless.
#include <sys/types.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "base/time.h"
#include "host/unix_socket.h"

namespace muster::host {

struct Child {
  std::vector<std::string> argv, env;  // env as NAME=VALUE
  std::string program;                 // path; empty = argv[0]
  std::vector<std::string> cgroups;    // cgroup.procs files to enter
  std::string network;                 // a pinned network namespace; empty = ours
  std::string directory = "/";
  uid_t uid = 0;
  gid_t gid = 0;
  std::int64_t nofile = 0;               // soft and hard; 0 = as ours
  std::vector<std::pair<int, int>> fds;  // ours -> its number; 0, 1 and 2 are /dev/null unless named
  bool detached = false;                 // its own session, and nobody's child: it outlives us
};

// Returns once the program runs (exec succeeded). detached: the pid is the program's, which the kernel reaps.
Result<pid_t> start_child(const Child& child);

struct Ended {
  int code = -1;  // 128 + signal
  std::string out, err;
};
struct RunLimits {
  std::size_t out_max = 1 << 20, err_max = 16 << 10;  // of err the end is kept
  Millis timeout{60'000};
  std::function<bool()> tick;  // about every 250 ms; false ends it
};
// Starts it, feeds `input`, waits for its end; on a timeout or a tick that says no its whole session is killed.
Result<Ended> run_child(Child child, std::string_view input, const RunLimits& limits);

std::string find_program(const std::string& name);  // on the usual path of root; empty = not installed

}  // namespace muster::host
