#pragma once
// One journal entry and its bytes. An entry is encoded once; what is hashed (SHA-256) is exactly what is stored, and it
// holds the hash of the entry before it, so a chain of entries cannot be changed without being noticed. Decoding is
// strict: one value has one encoding, every byte is consumed. Pure values, no I/O. Sizes in bytes, times in ms.
#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/id.h"
#include "base/result.h"
#include "base/time.h"
#include "model/types.h"

namespace muster::journal {

inline constexpr std::size_t kHashBytes = 32;
inline constexpr std::size_t kEntryBytesMax = 64 * 1024;  // a whole encoded entry; larger things go by digest
inline constexpr std::size_t kRequestIdBytesMax = 256;

// Who caused it: ids only, never names, addresses or secrets.
struct EntryActor {
  PrincipalId principal;
  OrgId org;
  NodeId node;
  Role role = Role::None;
  bool system = false;
  std::string request_id;  // idempotency key; empty = none
  Bytes request_hash;      // SHA-256 of the request; empty or 32 bytes
  bool operator==(const EntryActor&) const = default;
};
struct Entry {
  std::uint64_t seq = 0;  // 1 = first
  std::uint64_t leader_epoch = 0;
  WallTime wall;  // never decreases along the journal
  EntryActor actor;
  Bytes event;      // encoded by control
  Bytes prev_hash;  // hash of entry seq-1; 32 zero bytes before the first
  bool operator==(const Entry&) const = default;
};

const Bytes& genesis_hash();               // 32 zero bytes
Result<Bytes> encode(const Entry& entry);  // TooLarge above kEntryBytesMax, InvalidArgument for malformed fields
Result<Entry> decode(ByteView stored);     // DataLoss with what is wrong
Bytes hash_of(ByteView stored);

// Follows a chain: each stored entry must be seq+1, name the last hash, not go back in time or leader epoch.
class ChainVerifier {
 public:
  ChainVerifier() : ChainVerifier(0, genesis_hash()) {}
  ChainVerifier(std::uint64_t seq, Bytes hash) : seq_(seq), hash_(std::move(hash)) {}
  Result<Entry> next(ByteView stored);  // DataLoss names the seq and the fault; the verifier stays where it was
  std::uint64_t seq() const { return seq_; }
  const Bytes& hash() const { return hash_; }

 private:
  std::uint64_t seq_;
  Bytes hash_;
  std::uint64_t leader_epoch_ = 0;
  WallTime wall_;
};
Status verify_chain(std::uint64_t after_seq, const Bytes& after_hash, const std::vector<Bytes>& stored);

}  // namespace muster::journal
