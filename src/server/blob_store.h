#pragma once
// Uploaded files (working directories, file mounts), named by their SHA-256 under DIR. An upload goes to a temporary
// file and is renamed when its digest is known. Which organisation holds which blob is kept in the side table "blobs";
// the sum per organisation is bounded. Files are shared between organisations, the right to use them is not.
// With a key ring files are sealed (server/sealed_stream.h). Thread-safe.
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/bytes.h"
#include "base/id.h"
#include "base/result.h"
#include "crypto/hash.h"
#include "journal/store.h"
#include "server/sealed_stream.h"

namespace muster::server {

class BlobStore {
 public:
  struct Bounds {
    std::uint64_t blob_bytes = 512ULL << 20;
    std::uint64_t org_bytes = 20ULL << 30;
  };
  BlobStore(std::string root, std::shared_ptr<journal::Store> store, Bounds bounds,
            std::shared_ptr<crypto::KeyRing> ring = nullptr);
  Status load();  // the side table, once at start; removes left-over temporary files

  class Upload {
   public:
    ~Upload();
    Status chunk(ByteView data);
    struct Done {
      std::string digest;
      std::uint64_t bytes = 0;
    };
    Result<Done> end();

   private:
    friend class BlobStore;
    Status write(ByteView data);
    BlobStore* blobs_ = nullptr;
    OrgId org_;
    std::string temp_;
    int fd_ = -1;
    std::uint64_t bytes_ = 0;
    crypto::Sha256 hash_;
    std::unique_ptr<SealedStream> sealed_;
    Bytes waiting_;  // until a whole record is there
  };
  Result<std::shared_ptr<Upload>> begin(OrgId org);
  bool holds(OrgId org, const std::string& digest) const;
  Result<Bytes> read(const std::string& digest, std::uint64_t offset, std::size_t max, bool& last) const;

 private:
  Result<Upload::Done> keep(OrgId org, const std::string& temp, const std::string& digest, std::uint64_t bytes);
  const std::string root_;
  const std::shared_ptr<journal::Store> store_;
  const Bounds bounds_;
  const std::shared_ptr<crypto::KeyRing> ring_;  // null: files are in the clear
  mutable std::mutex mutex_;
  mutable std::mutex streams_mutex_;
  mutable std::map<std::string, SealedStream> streams_;  // by digest, bounded
  std::map<OrgId, std::map<std::string, std::uint64_t>> held_;
  std::map<OrgId, std::uint64_t> sums_;
  std::uint64_t next_temp_ = 0;
};

}  // namespace muster::server
