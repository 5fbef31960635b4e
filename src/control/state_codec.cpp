#include "control/codec.h"
#include "control/core.h"
#include "crypto/hash.h"

namespace muster::control {
namespace {

constexpr std::uint64_t kSnapshotVersion = 1;

template <class A>
void state_fields(A& a, State& s) {
  a(s.seq, s.last_wall, s.incarnation, s.leader_epoch, s.format_version, s.frozen, s.freeze_reason, s.last, s.orgs,
    s.projects, s.principals, s.api_tokens, s.join_tokens, s.nodes, s.clusters, s.slots, s.leases, s.jobs, s.backoffs,
    s.requests, s.requests_recorded, s.timers);
}

}  // namespace

Bytes encode_state(const State& state) {
  Encoder encoder;
  encoder.varint(kSnapshotVersion);
  state_fields(encoder, const_cast<State&>(state));  // the encoder takes const references
  return encoder.take();
}

Result<State> decode_state(ByteView bytes) {
  Decoder decoder(bytes);
  const std::uint64_t version = decoder.varint();
  if (decoder.ok() && version != kSnapshotVersion)
    return error(Code::DataLoss, "a snapshot has version " + std::to_string(version) +
                                     ", which this build does not know; run the version that wrote it");
  State state;
  state_fields(decoder, state);
  if (!decoder.done()) return error(Code::DataLoss, "a snapshot is damaged; delete it and replay the journal");
  rebuild_indexes(state);
  return state;
}

Bytes state_digest(const State& state) {
  const auto digest = crypto::sha256(encode_state(state));
  return Bytes(digest.begin(), digest.end());
}

}  // namespace muster::control
