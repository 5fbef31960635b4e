#pragma once
// Job logs: one file per attempt, DIR/<job>/<attempt>.log, appended only at its end (a chunk that repeats stored bytes
// is trimmed, one behind a gap is refused), so agents may send again what was not acknowledged. Acknowledgements follow
// an fsync, batched every 200 ms. An attempt is bounded (default 1 GiB): what comes after is counted and dropped. With
// a key ring files are sealed (server/sealed_stream.h); offsets and bounds stay those of the plain bytes. Thread-safe.
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
#include "server/sealed_stream.h"

namespace muster::server {

inline constexpr std::uint64_t kLogBytesMax = 1ULL << 30;

class LogStore {
 public:
  explicit LogStore(std::string root, std::uint64_t bytes_max = kLogBytesMax, Millis sync_every = Millis(200),
                    std::shared_ptr<crypto::KeyRing> ring = nullptr);
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
  // Under the mutex. Of a sealed file: what is known of it, and with Write a header where there is none yet.
  enum class Header : std::uint8_t { Read, Write };
  Result<SealedStream*> stream(int fd, JobId job, std::uint32_t attempt, Header header) const;
  void run();

  const std::string root_;
  const std::uint64_t bytes_max_;
  const Millis sync_every_;
  const std::shared_ptr<crypto::KeyRing> ring_;  // null: files are in the clear
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::map<std::pair<JobId, std::uint32_t>, Dirty> dirty_;
  mutable std::map<std::pair<JobId, std::uint32_t>, SealedStream> streams_;  // bounded
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace muster::server
