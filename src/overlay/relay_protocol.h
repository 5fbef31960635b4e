#pragma once
// What a member and muster-relay say to each other over TLS (ALPN "muster-relay/1", or an HTTP upgrade:
// relay/upgrade.h). Sans-I/O: codec, token and proof only.
//   relay -> member  Challenge {version, nonce, ephemeral X25519 key}
//   member -> relay  Hello {version, overlay key, proof, token}      proof = HMAC over a key that only DH(overlay,
//   ephemeral) gives relay -> member  Welcome, then Recv{source key, payload}, PeerGone{key}, Error{code, message}
//   member -> relay  Send{destination key, payload}; either way Ping/Pong{8 bytes}
//   anybody -> relay, before the hello  Keys{statement of signing keys}: it speaks for itself (crypto/signing_keys.h)
//   control plane -> relay  Recall{net/recall_frame.h}: it says hello as a member of kControlCluster, which has no
//   others
// Frame: type u8, length u32 big endian, body. The relay forwards only between keys whose tokens name the same cluster.
// Bounds: body <= kRelayBodyMax; a peer that breaks a rule is cut. Values; FrameReader is for one thread.
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "crypto/sign.h"
#include "crypto/x25519.h"

namespace muster::overlay {

using crypto::Key32;

inline constexpr std::string_view kRelayAlpn = "muster-relay/1";
inline constexpr std::uint8_t kRelayVersion = 1;
inline constexpr std::size_t kRelayHeader = 5;
inline constexpr std::size_t kRelayPayloadMax = (64 << 10) - 64;
inline constexpr std::size_t kRelayBodyMax = 64 << 10;
inline constexpr std::uint64_t kControlCluster =
    0;                                            // no cluster has this id: tokens for it are the control plane's own
inline constexpr Millis kRelayPingEvery{15'000};  // either side; no frame for three of them: the connection is dead

enum class RelayType : std::uint8_t {
  Challenge = 1,
  Hello = 2,
  Welcome = 3,
  Send = 4,
  Recv = 5,
  PeerGone = 6,
  Ping = 7,
  Pong = 8,
  Error = 9,
  Recall = 10,
  Keys = 11
};
enum class RelayErrorCode : std::uint8_t {
  BadFrame = 1,
  BadToken = 2,
  BadProof = 3,
  Version = 4,
  Replaced = 5 /* same key connected again */,
  Busy = 6,
  Expired = 7
};

// ---- frames
struct RelayFrame {
  RelayType type;
  ByteView body;
};  // body points into the reader; valid until its next call
class FrameReader {
 public:
  void feed(ByteView data);                  // bytes as they come
  Result<std::optional<RelayFrame>> next();  // nullopt: need more; an error: cut the connection
  std::size_t buffered() const { return buffer_.size() - start_; }

 private:
  Bytes buffer_;
  std::size_t start_ = 0;
};

struct RelayChallenge {
  Key32 nonce{}, ephemeral{};
  std::uint8_t version = kRelayVersion;
};
struct RelayHello {
  std::uint8_t version = kRelayVersion;
  Key32 overlay_key{}, proof{};
  Bytes token;
};
struct RelayPacket {
  Key32 key{};
  ByteView payload;
};  // of Send (destination) and Recv (source)
struct RelayError {
  RelayErrorCode code = RelayErrorCode::BadFrame;
  std::string message;
};

// append_*: one whole frame at the end of out (out is reused by the caller: no allocation per packet once warm).
void append_challenge(Bytes& out, const RelayChallenge& challenge);
void append_hello(Bytes& out, const RelayHello& hello);
void append_welcome(Bytes& out, ByteView udp_grant = {});  // of udp_relay.h; older members do not look at it
void append_send(Bytes& out, const Key32& destination, ByteView payload);
void append_recv(Bytes& out, const Key32& source, ByteView payload);
void append_peer_gone(Bytes& out, const Key32& key);
void append_ping(Bytes& out, std::uint64_t id);
void append_pong(Bytes& out, std::uint64_t id);
void append_error(Bytes& out, RelayErrorCode code, std::string_view message);
void append_recall(Bytes& out, ByteView recall);  // of kRelayBodyMax at most
void append_keys(Bytes& out, ByteView statement);

Result<RelayChallenge> parse_challenge(ByteView body);
Result<RelayHello> parse_hello(ByteView body);
Result<RelayPacket> parse_packet(ByteView body);
Result<Key32> parse_peer_gone(ByteView body);
Result<std::uint64_t> parse_ping(ByteView body);  // and Pong
Result<RelayError> parse_error(ByteView body);

// ---- token: the controller allows this overlay key to use this relay for this cluster until then
struct RelayToken {
  std::string relay;
  std::uint64_t cluster = 0;
  Key32 overlay_key{};
  WallTime not_after;
  bool operator==(const RelayToken&) const = default;
};
// Named: with the id of the key (crypto::short_key_id), which relays of before do not read.
enum class TokenForm : std::uint8_t { Plain = 1, Named = 2 };
Bytes sign_relay_token(const crypto::SigningKey& controller, const RelayToken& token,
                       TokenForm form = TokenForm::Plain);  // relay name <= 255 bytes
// One of `controllers`, which are believed now, must have signed it; signer: which one.
Result<RelayToken> verify_relay_token(const std::vector<Key32>& controllers, ByteView bytes, std::string_view relay,
                                      WallTime now, Key32* signer = nullptr);
inline Result<RelayToken> verify_relay_token(const Key32& controller, ByteView bytes, std::string_view relay,
                                             WallTime now) {
  return verify_relay_token(std::vector{controller}, bytes, relay, now);
}
// Does it name a key that is none of these?
bool token_of_another_key(const std::vector<Key32>& controllers, ByteView bytes);

// ---- hello: proof of possession of the overlay key
struct RelayDoor {
  Key32 nonce{};
  crypto::X25519Pair ephemeral;
};  // the relay's side, one per connection
RelayDoor open_door();
inline RelayChallenge challenge_of(const RelayDoor& door) {
  return {door.nonce, door.ephemeral.public_key};
}
Result<RelayHello> make_hello(const RelayChallenge& challenge, const crypto::X25519Pair& overlay, ByteView token);
// Version, token (signature, relay, time), key binding and proof; the token tells the cluster.
Result<RelayToken> check_hello(const RelayDoor& door, const RelayHello& hello, const std::vector<Key32>& controllers,
                               std::string_view relay, WallTime now, Key32* signer = nullptr);
inline Result<RelayToken> check_hello(const RelayDoor& door, const RelayHello& hello, const Key32& controller,
                                      std::string_view relay, WallTime now) {
  return check_hello(door, hello, std::vector{controller}, relay, now);
}

}  // namespace muster::overlay
