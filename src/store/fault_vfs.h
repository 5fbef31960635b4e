#pragma once
// A SQLite VFS for tests: real files through the system's VFS, but it remembers what was written and not yet synced. At
// a crash every later call fails, and recover() puts onto the disk what a power loss could have left: all that was
// synced, and of the rest any subset, the pieces torn at sectors. One instance, process-wide name; single-threaded use
// except where SQLite locks.
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/rng.h"

namespace muster::store {

enum class Loss : std::uint8_t { All /* nothing unsynced survives */, Subset, Torn };

class FaultVfs {
 public:
  static constexpr const char* kName = "muster-fault";
  static FaultVfs& instance();  // registers on first use

  void reset();  // forget every file; no connection may be open
  // Dies at the n-th (1 = next) write, truncate or sync from now on, before it takes effect on the disk.
  void crash_at(std::uint64_t operation);
  void crash_now();
  bool crashed() const;
  std::uint64_t operations() const;  // writes, truncates and syncs since reset()
  // The same for a process of its own: at that operation the disk is left as after recover(), and the process gets
  // SIGKILL.
  void kill_at(std::uint64_t operation, Loss loss);
  // Writes fail with SQLITE_FULL from the n-th on; 0 = room again.
  void full_after(std::uint64_t operation);
  void fail_sync(std::uint64_t operation);  // that sync answers an I/O error and syncs nothing
  // After a crash, with all connections closed: rewrites the files and lets a new "process" run.
  void recover(Loss loss, std::uint64_t seed);

  struct Change {
    std::uint64_t offset = 0;
    Bytes bytes;
    bool truncate = false;
  };
  struct File {
    Bytes synced;
    std::vector<Change> unsynced;
  };
  // For the shim only.
  int before_write(const std::string& path, Change change);
  int before_sync(const std::string& path);
  void opened(const std::string& path);
  void removed(const std::string& path);

 private:
  FaultVfs() = default;
  bool tick();  // counts one operation; true = the process is dead now
  void leave(Loss loss, std::uint64_t seed);
  mutable std::mutex mutex_;
  std::map<std::string, File> files_;
  std::uint64_t operations_ = 0, crash_at_ = 0, kill_at_ = 0, full_from_ = 0, fail_sync_at_ = 0;
  Loss kill_loss_ = Loss::All;
  bool crashed_ = false;
};

}  // namespace muster::store
