#include "overlay/relay_protocol.h"

#include <algorithm>
#include <cstring>

#include "base/endian.h"
#include "crypto/hash.h"
#include "crypto/random.h"
#include "crypto/signing_keys.h"

namespace muster::overlay {
namespace {

constexpr std::string_view kTokenDomain = "muster-relay-token-v1";
constexpr std::string_view kProofDomain = "muster-relay-proof-v1";
constexpr std::size_t kTokenMax = 512;
constexpr std::size_t kMessageMax = 256;

void append(Bytes& out, ByteView part) {
  out.insert(out.end(), part.begin(), part.end());
}

void append_header(Bytes& out, RelayType type, std::size_t size) {
  MUSTER_CHECK(size <= kRelayBodyMax);
  std::uint8_t head[kRelayHeader];
  head[0] = static_cast<std::uint8_t>(type);
  store_be32(head + 1, static_cast<std::uint32_t>(size));
  append(out, head);
}

void append_packet(Bytes& out, RelayType type, const Key32& key, ByteView payload) {
  MUSTER_CHECK(payload.size() <= kRelayPayloadMax);
  append_header(out, type, key.size() + payload.size());
  append(out, key);
  append(out, payload);
}

void append_id(Bytes& out, RelayType type, std::uint64_t id) {
  std::uint8_t raw[8];
  store_be64(raw, id);
  append_header(out, type, sizeof raw);
  append(out, raw);
}

Key32 key_at(ByteView body, std::size_t offset) {
  Key32 key;
  std::memcpy(key.data(), body.data() + offset, key.size());
  return key;
}

Error bad(const char* what) {
  return error(Code::InvalidArgument, std::string("relay protocol: damaged ") + what + "; the connection is cut");
}

// The token is in the proof too, so that a proof made for one token cannot be moved to another.
std::optional<Key32> proof_of(const crypto::Secret32& secret, const Key32& peer, const Key32& nonce,
                              const Key32& ephemeral, const Key32& overlay_key, ByteView token) {
  const auto shared = crypto::x25519_agree(secret, peer);
  if (!shared) return {};
  Bytes key = crypto::hkdf_sha256(shared->bytes, nonce, as_bytes(kProofDomain), 32);
  const Key32 proof = crypto::hmac_sha256(key, crypto::framed(kProofDomain, {nonce, ephemeral, overlay_key, token}));
  crypto::zeroise(key);
  return proof;
}

}  // namespace

void FrameReader::feed(ByteView data) {
  if (start_ == buffer_.size()) {
    buffer_.clear();
    start_ = 0;
  } else if (start_ > kRelayBodyMax) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(start_));
    start_ = 0;
  }
  append(buffer_, data);
}

Result<std::optional<RelayFrame>> FrameReader::next() {
  const ByteView rest = ByteView(buffer_).subspan(start_);
  if (rest.empty()) return std::optional<RelayFrame>{};
  if (rest[0] < 1 || rest[0] > static_cast<std::uint8_t>(RelayType::Keys)) return bad("frame type");
  if (rest.size() < kRelayHeader) return std::optional<RelayFrame>{};
  const std::uint32_t size = load_be32(rest.data() + 1);
  if (size > kRelayBodyMax) return bad("frame length");
  if (rest.size() - kRelayHeader < size) return std::optional<RelayFrame>{};
  start_ += kRelayHeader + size;
  return std::optional<RelayFrame>(RelayFrame{static_cast<RelayType>(rest[0]), rest.subspan(kRelayHeader, size)});
}

void append_challenge(Bytes& out, const RelayChallenge& challenge) {
  append_header(out, RelayType::Challenge, 65);
  out.push_back(challenge.version);
  append(out, challenge.nonce);
  append(out, challenge.ephemeral);
}
void append_hello(Bytes& out, const RelayHello& hello) {
  append_header(out, RelayType::Hello, 65 + hello.token.size());
  out.push_back(hello.version);
  append(out, hello.overlay_key);
  append(out, hello.proof);
  append(out, hello.token);
}
void append_welcome(Bytes& out, ByteView udp_grant) {
  append_header(out, RelayType::Welcome, udp_grant.size());
  append(out, udp_grant);
}
void append_send(Bytes& out, const Key32& destination, ByteView payload) {
  append_packet(out, RelayType::Send, destination, payload);
}
void append_recv(Bytes& out, const Key32& source, ByteView payload) {
  append_packet(out, RelayType::Recv, source, payload);
}
void append_peer_gone(Bytes& out, const Key32& key) {
  append_packet(out, RelayType::PeerGone, key, {});
}
void append_ping(Bytes& out, std::uint64_t id) {
  append_id(out, RelayType::Ping, id);
}
void append_pong(Bytes& out, std::uint64_t id) {
  append_id(out, RelayType::Pong, id);
}
void append_error(Bytes& out, RelayErrorCode code, std::string_view message) {
  message = message.substr(0, kMessageMax);
  append_header(out, RelayType::Error, 1 + message.size());
  out.push_back(static_cast<std::uint8_t>(code));
  append(out, as_bytes(message));
}

void append_recall(Bytes& out, ByteView recall) {
  append_header(out, RelayType::Recall, recall.size());
  append(out, recall);
}

void append_keys(Bytes& out, ByteView statement) {
  append_header(out, RelayType::Keys, statement.size());
  append(out, statement);
}

Result<RelayChallenge> parse_challenge(ByteView body) {
  if (body.size() != 65) return bad("challenge");
  return RelayChallenge{key_at(body, 1), key_at(body, 33), body[0]};
}
Result<RelayHello> parse_hello(ByteView body) {
  if (body.size() < 65 || body.size() > 65 + kTokenMax) return bad("hello");
  return RelayHello{body[0], key_at(body, 1), key_at(body, 33), Bytes(body.begin() + 65, body.end())};
}
Result<RelayPacket> parse_packet(ByteView body) {
  if (body.size() <= 32 || body.size() - 32 > kRelayPayloadMax) return bad("packet");
  return RelayPacket{key_at(body, 0), body.subspan(32)};
}
Result<Key32> parse_peer_gone(ByteView body) {
  if (body.size() != 32) return bad("notice");
  return key_at(body, 0);
}
Result<std::uint64_t> parse_ping(ByteView body) {
  if (body.size() != 8) return bad("ping");
  return load_be64(body.data());
}
Result<RelayError> parse_error(ByteView body) {
  if (body.empty() || body.size() > 1 + kMessageMax || body[0] < 1 || body[0] > 7) return bad("error");
  RelayError out{static_cast<RelayErrorCode>(body[0]), as_string(body.subspan(1))};
  if (!valid_utf8(out.message)) return bad("error");
  return out;
}

Bytes sign_relay_token(const crypto::SigningKey& controller, const RelayToken& token, TokenForm form) {
  MUSTER_CHECK(token.relay.size() <= 255);
  Bytes out;
  out.push_back(static_cast<std::uint8_t>(form));
  if (form == TokenForm::Named) append(out, crypto::short_key_id(controller.public_key()));
  out.push_back(static_cast<std::uint8_t>(token.relay.size()));
  append(out, as_bytes(token.relay));
  std::uint8_t raw[8];
  store_be64(raw, token.cluster);
  append(out, raw);
  append(out, token.overlay_key);
  store_be64(raw, static_cast<std::uint64_t>(token.not_after.ms));
  append(out, raw);
  const Bytes signature = controller.sign(kTokenDomain, {out});
  append(out, signature);
  return out;
}

bool token_of_another_key(const std::vector<Key32>& controllers, ByteView bytes) {
  if (bytes.size() < 1 + crypto::kKeyIdBytes || bytes[0] != static_cast<std::uint8_t>(TokenForm::Named)) return false;
  const ByteView id = bytes.subspan(1, crypto::kKeyIdBytes);
  return std::none_of(controllers.begin(), controllers.end(), [&](const Key32& key) {
    const Bytes own = crypto::short_key_id(key);
    return std::equal(id.begin(), id.end(), own.begin(), own.end());
  });
}

Result<RelayToken> verify_relay_token(const std::vector<Key32>& controllers, ByteView bytes, std::string_view relay,
                                      WallTime now, Key32* signer) {
  const Error refused = error(Code::Unauthenticated, "the relay token is damaged or not signed by this control plane");
  if (bytes.empty() || bytes.size() > kTokenMax) return refused;
  const bool named = bytes[0] == static_cast<std::uint8_t>(TokenForm::Named);
  if (!named && bytes[0] != static_cast<std::uint8_t>(TokenForm::Plain)) return refused;
  const std::size_t head = named ? 1 + crypto::kKeyIdBytes : 1;
  if (bytes.size() <= head) return refused;
  const std::size_t name = bytes[head];
  if (bytes.size() != head + 1 + name + 8 + 32 + 8 + crypto::kSignatureBytes) return refused;
  if (token_of_another_key(controllers, bytes))
    return error(Code::Unauthenticated, "the relay token is signed by a key that is not believed here (any more)");
  const ByteView body = bytes.first(bytes.size() - crypto::kSignatureBytes);
  const auto by = crypto::signer_of(controllers, named ? body.subspan(1, crypto::kKeyIdBytes) : ByteView(),
                                    crypto::framed(kTokenDomain, {body}), bytes.last(crypto::kSignatureBytes));
  if (!by) return refused;
  const ByteView said = body.subspan(head);
  RelayToken out;
  out.relay = as_string(said.subspan(1, name));
  out.cluster = load_be64(said.data() + 1 + name);
  out.overlay_key = key_at(said, 9 + name);
  out.not_after = WallTime{static_cast<std::int64_t>(load_be64(said.data() + 41 + name))};
  if (out.relay != relay) return error(Code::PermissionDenied, "the relay token is for another relay");
  if (now >= out.not_after)
    return error(Code::Unauthenticated, "the relay token has expired; the agent gets a new one from the control plane");
  if (signer != nullptr) *signer = *by;
  return out;
}

RelayDoor open_door() {
  return {crypto::random_key32(), crypto::x25519_generate()};
}

Result<RelayHello> make_hello(const RelayChallenge& challenge, const crypto::X25519Pair& overlay, ByteView token) {
  if (challenge.version != kRelayVersion)
    return error(Code::Unsupported, "the relay speaks another version; update the older side");
  const auto proof =
      proof_of(overlay.secret, challenge.ephemeral, challenge.nonce, challenge.ephemeral, overlay.public_key, token);
  if (!proof) return bad("challenge");
  return RelayHello{kRelayVersion, overlay.public_key, *proof, Bytes(token.begin(), token.end())};
}

Result<RelayToken> check_hello(const RelayDoor& door, const RelayHello& hello, const std::vector<Key32>& controllers,
                               std::string_view relay, WallTime now, Key32* signer) {
  if (hello.version != kRelayVersion) return error(Code::Unsupported, "this relay speaks version 1; update the agent");
  RelayToken token = TRY(verify_relay_token(controllers, hello.token, relay, now, signer));
  if (token.overlay_key != hello.overlay_key)
    return error(Code::PermissionDenied, "the relay token is for another key");
  const auto proof = proof_of(door.ephemeral.secret, hello.overlay_key, door.nonce, door.ephemeral.public_key,
                              hello.overlay_key, hello.token);
  if (!proof || !crypto::equal(*proof, hello.proof))
    return error(Code::Unauthenticated, "no proof of possession of the overlay key");
  return token;
}

}  // namespace muster::overlay
