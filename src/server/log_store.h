#pragma once
// Job logs: one file per attempt, DIR/<job>/<attempt>.log, appended only at its end (a chunk that repeats stored bytes
// is trimmed, one behind a gap is refused), so agents may send again what was not acknowledged. Acknowledgements follow
// an fsync, batched every 200 ms. An attempt is bounded (default 1 GiB): what comes after is counted and dropped.
// Thread-safe.
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "base/id.h"
#include "base/result.h"
#include "base/time.h"

namespace muster::server {

class LogStore {
 public:
  explicit LogStore(std::string root, std::uint64_t bytes_max = 1ULL << 30, Millis sync_every = Millis(200));
  ~LogStore();
  // acknowledged(offset): bytes below it are on disk; called from the sync thread.
  Status append(JobId job, std::uint32_t attempt, std::uint64_t offset, ByteView data,
                std::function<void(std::uint64_t)> acknowledged);
  Result<std::string> read(JobId job, std::uint32_t attempt, std::uint64_t offset,
                           std::size_t max) const;  // "" at the end
  std::uint64_t size(JobId job, std::uint32_t attempt) const;
  std::uint32_t newest_attempt(JobId job) const;  // 0 = none

 private:
  struct Dirty {
    std::uint64_t upto = 0;
    std::function<void(std::uint64_t)> acknowledged;
  };
  std::string path(JobId job, std::uint32_t attempt) const;
  void run();

  const std::string root_;
  const std::uint64_t bytes_max_;
  const Millis sync_every_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::map<std::pair<JobId, std::uint32_t>, Dirty> dirty_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace muster::server
