#pragma once
// Limits of a sandbox without an engine: one control group a lease, under muster-<machine>, in the v1 hierarchies where
// the memory controller is there, else in the unified v2 one. Made and removed by privd (root); processes enter by
// writing their pid before they give up their rights. Stateless but for the names; every call may come again.
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"

namespace muster::host {

struct CgroupLimits {
  std::int64_t memory_bytes = 0, cpu_milli = 0, pids = 0;  // 0 = none
};
struct CgroupUse {
  std::uint64_t cpu_ns = 0, memory_bytes = 0, pids = 0, oom_kills = 0;
};

class Cgroups {
 public:
  explicit Cgroups(std::string machine, std::string root = "/sys/fs/cgroup");
  bool unified() const { return unified_; }
  // Which of memory, cpu and pids this machine cannot limit; empty = all is well.
  std::string missing() const;
  Status create(const std::string& name,
                const CgroupLimits& limits) const;                    // also changes the limits of one that exists
  std::vector<std::string> entrances(const std::string& name) const;  // cgroup.procs files to write a pid to
  CgroupUse use(const std::string& name) const;
  bool populated(const std::string& name) const;
  Status kill_all(const std::string& name, Millis patience) const;  // until nobody is left
  Status remove(const std::string& name) const;                     // kill_all first
  void remove_all() const;                                 // everything of this machine's enrolment that is empty
  std::string memory_path(const std::string& name) const;  // its memory directory, to be shown inside the sandbox

 private:
  std::vector<std::string> dirs(const std::string& name) const;
  std::string dir(const std::string& controller, const std::string& name) const;
  std::string root_, parent_;
  bool unified_ = false;
};

}  // namespace muster::host
