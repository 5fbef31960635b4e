#pragma once
// privd's eye on what leases write to disk: every few seconds (a tenth of the time at most, so that a million small
// files slow only the watch) it counts root and workspace of each running lease and halts the one that is over its
// limit, or the largest when the owner's reserve is touched; and it ends the probe of an image that fills the disk.
// Own thread between start() and stop().
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "host/layout.h"
#include "host/runtime.h"

namespace muster::host {

struct LeaseDisk {
  std::string lease;
  DiskUse use, limit;  // limit 0 = none
  bool operator==(const LeaseDisk&) const = default;
};
struct DiskVerdict {
  std::string lease, reason;  // container.root_full | container.workspace_full | container.disk_reserve
  bool operator==(const DiskVerdict&) const = default;
};
// Who must end. `free` and `reserve` in bytes; nobody small ends for the reserve, since it would not help.
std::vector<DiskVerdict> judge_disk(const std::vector<LeaseDisk>& leases, std::uint64_t free, std::uint64_t reserve);

class DiskWatch {
 public:
  DiskWatch(Layout layout, Runtime& runtime) : layout_(std::move(layout)), runtime_(runtime) {}
  ~DiskWatch() { stop(); }
  void start();
  void stop();

 private:
  void run();
  void look();
  void look_at_probes();
  Layout layout_;
  Runtime& runtime_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // under mutex_
  std::thread thread_;
};

}  // namespace muster::host
