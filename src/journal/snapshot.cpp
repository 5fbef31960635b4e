#include "journal/snapshot.h"

#include <algorithm>

#include "base/mutant.h"
#include "crypto/hash.h"
#include "journal/codec.h"

namespace muster::journal {
namespace {
constexpr std::string_view kMagic = "MUSTSNP1";
Error damaged_snapshot(std::string_view what) {
  return error(Code::DataLoss,
               "snapshot is damaged (" + std::string(what) + "); an older one and the journal are used instead");
}
}  // namespace

Bytes encode(const Snapshot& snapshot) {
  Writer out(snapshot.state.size() + 128);
  out.raw(as_bytes(kMagic));
  out.number(MUSTER_MUTANT("journal.snapshot_wrong_seq") ? snapshot.seq + 1 : snapshot.seq);
  out.raw(snapshot.entry_hash);
  out.number(static_cast<std::uint64_t>(snapshot.wall.ms));
  out.sized(snapshot.state);
  Bytes bytes = out.take();
  const crypto::Digest digest = crypto::sha256(bytes);
  bytes.insert(bytes.end(), digest.begin(), digest.end());
  return bytes;
}

Result<Snapshot> decode_snapshot(ByteView stored) {
  if (stored.size() < kHashBytes) return damaged_snapshot("too short");
  const ByteView body = stored.first(stored.size() - kHashBytes);
  const crypto::Digest digest = crypto::sha256(body);
  if (!std::equal(digest.begin(), digest.end(), stored.last(kHashBytes).begin()))
    return damaged_snapshot("digest differs");
  Reader in(body);
  if (as_string(in.raw(kMagic.size())) != kMagic) return damaged_snapshot("unknown format");
  Snapshot snapshot;
  snapshot.seq = in.number();
  const ByteView hash = in.raw(kHashBytes);
  snapshot.entry_hash.assign(hash.begin(), hash.end());
  snapshot.wall.ms = static_cast<std::int64_t>(in.number());
  const ByteView state = in.sized();
  if (!in.done() || snapshot.wall.ms < 0) return damaged_snapshot("bad length");
  snapshot.state.assign(state.begin(), state.end());
  return snapshot;
}

}  // namespace muster::journal
