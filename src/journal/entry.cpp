#include "journal/entry.h"

#include <fmt/format.h>

#include <limits>

#include "base/mutant.h"
#include "crypto/hash.h"
#include "journal/codec.h"

namespace muster::journal {
namespace {

constexpr std::uint8_t kFormat = 1;
constexpr std::uint8_t kSystem = 0x01, kPrincipal = 0x02, kOrg = 0x04, kNode = 0x08, kRequest = 0x10;
constexpr unsigned kRoleShift = 5;  // the three high bits, which the roles fill: a ninth needs another kFormat
static_assert(static_cast<unsigned>(Role::SupplierMember) == 7);

Error damaged(std::string_view what) {
  return error(Code::DataLoss,
               fmt::format("journal entry is damaged: {}; run 'musterd journal verify' and restore a backup", what));
}

void encode_actor(Writer& out, const EntryActor& actor) {
  std::uint8_t flags = static_cast<std::uint8_t>(static_cast<unsigned>(actor.role) << kRoleShift);
  if (actor.system) flags |= kSystem;
  if (actor.principal) flags |= kPrincipal;
  if (actor.org) flags |= kOrg;
  if (actor.node) flags |= kNode;
  if (!actor.request_id.empty()) flags |= kRequest;
  out.byte(flags);
  if (actor.principal) out.number(actor.principal.value);
  if (actor.org) out.number(actor.org.value);
  if (actor.node) out.number(actor.node.value);
  if (actor.request_id.empty()) return;
  out.sized(as_bytes(actor.request_id));
  out.sized(actor.request_hash);
}

std::uint64_t present(Reader& in, bool flagged, bool& good) {
  if (!flagged) return 0;
  const std::uint64_t value = in.number();
  good = good && value != 0;
  return value;
}

bool decode_actor(Reader& in, EntryActor& actor) {
  const std::uint8_t flags = in.byte();
  actor.role = static_cast<Role>(flags >> kRoleShift);
  actor.system = (flags & kSystem) != 0;
  bool good = true;
  actor.principal.value = present(in, (flags & kPrincipal) != 0, good);
  actor.org.value = present(in, (flags & kOrg) != 0, good);
  actor.node.value = present(in, (flags & kNode) != 0, good);
  if (!good) return false;
  if ((flags & kRequest) == 0) return true;
  actor.request_id = as_string(in.sized());
  const ByteView hash = in.sized();
  actor.request_hash.assign(hash.begin(), hash.end());
  return !actor.request_id.empty() && actor.request_id.size() <= kRequestIdBytesMax &&
         (hash.empty() || hash.size() == kHashBytes);
}

Status check_fields(const Entry& entry) {
  const EntryActor& actor = entry.actor;
  if (entry.seq == 0) return error(Code::InvalidArgument, "journal entries are counted from 1", "seq");
  if (entry.wall.ms < 0) return error(Code::InvalidArgument, "the wall time is before 1970; set the clock", "wall");
  if (entry.prev_hash.size() != kHashBytes)
    return error(Code::InvalidArgument, "the previous hash must be 32 bytes", "prev_hash");
  if (actor.request_id.size() > kRequestIdBytesMax) {
    return error(Code::InvalidArgument,
                 fmt::format("the idempotency key has {} bytes, at most {} are allowed", actor.request_id.size(),
                             kRequestIdBytesMax),
                 "request_id");
  }
  const std::size_t hash = actor.request_hash.size();
  if ((hash != 0 && hash != kHashBytes) || (hash != 0 && actor.request_id.empty())) {
    return error(Code::InvalidArgument, "a request hash is 32 bytes and belongs to an idempotency key", "request_hash");
  }
  return {};
}

}  // namespace

const Bytes& genesis_hash() {
  static const Bytes zero(kHashBytes, 0);
  return zero;
}

Result<Bytes> encode(const Entry& entry) {
  TRY_VOID(check_fields(entry));
  Writer out(entry.event.size() + 96);
  out.byte(kFormat);
  out.raw(entry.prev_hash);
  out.number(entry.seq);
  out.number(entry.leader_epoch);
  out.number(static_cast<std::uint64_t>(entry.wall.ms));
  encode_actor(out, entry.actor);
  out.sized(entry.event);
  Bytes bytes = out.take();
  if (bytes.size() > kEntryBytesMax) {
    return error(Code::TooLarge,
                 fmt::format("the change needs {} bytes in the journal, at most {} fit into one entry; make it smaller "
                             "or upload large parts as blobs",
                             bytes.size(), kEntryBytesMax));
  }
  return bytes;
}

Result<Entry> decode(ByteView stored) {
  if (stored.size() > kEntryBytesMax) return damaged("longer than an entry can be");
  Reader in(stored);
  if (in.byte() != kFormat) return damaged("unknown entry format");
  Entry entry;
  const ByteView prev = in.raw(kHashBytes);
  entry.prev_hash.assign(prev.begin(), prev.end());
  entry.seq = in.number();
  entry.leader_epoch = in.number();
  const std::uint64_t wall = in.number();
  if (!in.ok() || entry.seq == 0 || wall > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return damaged("bad header");
  }
  entry.wall.ms = static_cast<std::int64_t>(wall);
  if (!decode_actor(in, entry.actor) || !in.ok()) return damaged("bad actor");
  const ByteView event = in.sized();
  if (!in.done()) return damaged("bad length");
  entry.event.assign(event.begin(), event.end());
  return entry;
}

Bytes hash_of(ByteView stored) {
  const crypto::Digest digest = crypto::sha256(stored);
  return Bytes(digest.begin(), digest.end());
}

Result<Entry> ChainVerifier::next(ByteView stored) {
  auto decoded = decode(stored);
  if (!decoded) return error(Code::DataLoss, fmt::format("entry {}: {}", seq_ + 1, decoded.error().message));
  const Entry& entry = *decoded;
  if (entry.seq != seq_ + 1) return damaged(fmt::format("seq {} follows {}", entry.seq, seq_));
  if (entry.prev_hash != hash_ && !MUSTER_MUTANT("journal.skip_prev_hash")) {
    return damaged(fmt::format("entry {} does not continue the chain: it names another predecessor", entry.seq));
  }
  if (entry.leader_epoch < leader_epoch_) return damaged(fmt::format("entry {} goes back in leader epoch", entry.seq));
  if (entry.wall < wall_) return damaged(fmt::format("entry {} goes back in time", entry.seq));
  seq_ = entry.seq;
  hash_ = hash_of(stored);
  leader_epoch_ = entry.leader_epoch;
  wall_ = entry.wall;
  return decoded;
}

Status verify_chain(std::uint64_t after_seq, const Bytes& after_hash, const std::vector<Bytes>& stored) {
  ChainVerifier chain(after_seq, after_hash);
  for (const Bytes& bytes : stored) {
    auto entry = chain.next(bytes);
    if (!entry) return entry.error();
  }
  return {};
}

}  // namespace muster::journal
