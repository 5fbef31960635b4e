#pragma once
// Working directories and file mounts by content, in a directory of the agent's: "<sha256>" when complete and checked,
// "<sha256>.part" while it comes. The oldest go when the cache grows past its bound. One thread.
#include <string>

#include "agent/ops.h"
#include "base/result.h"
#include "host/unix_socket.h"

namespace muster::host {

inline constexpr std::uint64_t kBlobCacheMax = 8ULL << 30;

class BlobCache {
 public:
  explicit BlobCache(std::string directory);
  Result<agent::BlobState> find(const std::string& blob) const;
  // Appends at exactly `offset`; at `last` the content must have the hash, else the part is thrown away (DataLoss).
  Result<agent::BlobState> write(const std::string& blob, std::uint64_t offset, ByteView data, bool last);
  Result<Fd> open(const std::string& blob) const;

 private:
  void make_room() const;
  std::string directory_;
};

}  // namespace muster::host
