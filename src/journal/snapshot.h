#pragma once
// A snapshot: the encoded state after entry `seq`, bound to that entry's hash, closed by a digest over everything, so a
// torn or foreign snapshot is never taken for a good one. Pure values, no I/O.
#include "journal/entry.h"

namespace muster::journal {

struct Snapshot {
  std::uint64_t seq = 0;
  Bytes entry_hash;  // hash of entry seq
  WallTime wall;     // of entry seq
  Bytes state;       // control::encode_state
  bool operator==(const Snapshot&) const = default;
};
Bytes encode(const Snapshot& snapshot);
Result<Snapshot> decode_snapshot(ByteView stored);  // DataLoss

}  // namespace muster::journal
