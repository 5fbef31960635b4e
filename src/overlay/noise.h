#pragma once
// The Noise handshake IKpsk2 with 25519, ChaChaPoly and BLAKE2s (noiseprotocol.org, WireGuard whitepaper section 5.4),
// for any prologue and payload; WireGuard's messages are framed in device.cpp. Noise is the symmetric state: chaining
// key and transcript hash; it wipes itself. Every key encrypts once, so nonces are zero. Pure; one thread per object.
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "crypto/hash.h"
#include "crypto/x25519.h"

namespace muster::overlay {

using crypto::Key32;
using crypto::Secret32;

inline constexpr std::string_view kWireGuardPrologue = "WireGuard v1 zx2c4 Jason@zx2c4.com";

class Noise {
 public:
  Noise(ByteView prologue, const Key32& responder_static);
  void mix_hash(ByteView data);
  void mix_ephemeral(const Key32& key);  // transcript and, as psk patterns demand, the chaining key
  void mix_key(const Secret32& secret);
  void mix_psk(const Secret32& psk);
  void encrypt(ByteView plain, Bytes& out);                    // appends plain.size() + 16
  bool decrypt(ByteView sealed, std::span<std::uint8_t> out);  // out: sealed.size() - 16
  std::pair<Secret32, Secret32> split() const;                 // initiator's sending key, responder's sending key

 private:
  Secret32 chain_, key_;
  Key32 hash_{};
};

// What the responder learns from the first message.
struct FirstMessage {
  Noise noise;
  Key32 ephemeral{}, remote_static{};
  ByteView sealed_payload;
};

// e, es, s, ss, payload. static_static = DH(own static, peer static).
std::optional<Noise> write_first(const crypto::X25519Pair& self, const Key32& peer, const Secret32& static_static,
                                 const crypto::X25519Pair& ephemeral, ByteView prologue, ByteView payload, Bytes& out);
// The same in two halves: the caller looks the sender up between them. The second half checks the payload.
std::optional<FirstMessage> read_first(const crypto::X25519Pair& self, ByteView prologue, ByteView message);
bool read_first_payload(FirstMessage& first, const Secret32& static_static, std::span<std::uint8_t> payload);

// e, ee, se, psk, payload.
bool write_second(Noise& noise, const Key32& remote_ephemeral, const Key32& remote_static,
                  const crypto::X25519Pair& ephemeral, const Secret32& psk, ByteView payload, Bytes& out);
bool read_second(Noise& noise, const crypto::X25519Pair& self, const crypto::X25519Pair& ephemeral, const Secret32& psk,
                 ByteView message, std::span<std::uint8_t> payload);

}  // namespace muster::overlay
