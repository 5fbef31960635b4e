#include "control/codec.h"
#include "control/core.h"
#include "crypto/hash.h"

namespace muster::control {
namespace {

template <class A>
void state_fields(A& a, State& s) {
  a(s.seq, s.last_wall, s.incarnation, s.leader_epoch, s.format_version, s.frozen, s.freeze_reason, s.frozen_since,
    s.last, s.orgs, s.projects, s.principals, s.api_tokens, s.join_tokens, s.nodes, s.clusters, s.slots, s.leases,
    s.jobs, s.backoffs, s.requests, s.requests_recorded, s.timers);
  a.since(6, s.headroom);
  a.since(7, s.signing_keys_revision, s.signing_keys);
  a.since(8, s.tier_shares);
  a.since(8, s.grants);
  a.since(8, s.carried);
}

}  // namespace

Bytes encode_state(const State& state, std::uint32_t format) {
  Encoder encoder(format);
  encoder.varint(format);
  state_fields(encoder, const_cast<State&>(state));  // the encoder takes const references
  return encoder.take();
}

Result<State> decode_state(ByteView bytes) {
  Decoder decoder(bytes);
  const std::uint64_t format = decoder.varint();
  if (decoder.ok() && (format == 0 || format > kFormatVersion))
    return error(Code::DataLoss, "a snapshot has format " + std::to_string(format) +
                                     ", which this build does not know; run the version that wrote it");
  decoder.set_format(format);
  State state;
  state_fields(decoder, state);
  if (!decoder.done()) return error(Code::DataLoss, "a snapshot is damaged; delete it and replay the journal");
  rebuild_indexes(state);
  return state;
}

std::uint32_t snapshot_format(ByteView bytes) {
  Decoder decoder(bytes);
  const std::uint64_t format = decoder.varint();
  return decoder.ok() && format <= kFormatVersion ? static_cast<std::uint32_t>(format) : 0;
}

Bytes state_digest(const State& state, std::uint32_t format) {
  const auto digest = crypto::sha256(encode_state(state, format));
  return Bytes(digest.begin(), digest.end());
}

}  // namespace muster::control
