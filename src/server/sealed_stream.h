#pragma once
// A file that is sealed piece by piece, so that it can grow at its end and be read anywhere: a header with a random
// number, then records, each its length (u32, little endian) and at most kStreamRecord bytes, sealed and bound to that
// number and to where they begin. What a crash left of the last records is not counted, and cut off by the next append.
// An object holds what it knows of one file, not the file: every call gets its descriptor. One thread at a time.
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "crypto/key_ring.h"

namespace muster::server {

inline constexpr std::size_t kStreamRecord = 64 << 10;

class SealedStream {
 public:
  static constexpr std::size_t kHeader = 8 + crypto::KeyRing::kOverhead + 16;
  explicit SealedStream(std::shared_ptr<crypto::KeyRing> ring);
  // place: what the file is, such as "log job-3/1". Written at the file's beginning, before or after its records.
  Status write_header(int fd, const std::string& place);
  // false: no such file of this directory; also one that is not sealed.
  Result<bool> read_header(int fd, const std::string& place);
  std::uint32_t key() const { return key_; }
  bool same(const SealedStream& other) const { return id_ == other.id_; }
  Result<std::uint64_t> size(int fd);  // plain bytes
  Status append(int fd, ByteView plain);
  Result<Bytes> read(int fd, std::uint64_t offset, std::size_t max);

 private:
  struct Record {
    std::uint64_t plain = 0, at = 0;  // where it begins: among the plain bytes, in the file
    std::uint32_t size = 0;
  };
  Status catch_up(int fd);
  Result<Bytes> open_record(int fd, const Record& record);
  std::string record_place(std::uint64_t plain) const;

  std::shared_ptr<crypto::KeyRing> ring_;
  Bytes id_;
  std::uint32_t key_ = 0;
  std::vector<Record> index_;  // one in every kStreamRecord plain bytes or so
  std::deque<Record> newest_;
  std::uint64_t plain_end_ = 0, end_ = kHeader;
  bool torn_ = false;  // what lies behind end_ counts for nothing, until the next append cuts it off
};

}  // namespace muster::server
