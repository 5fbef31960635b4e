#include "overlay/noise.h"

#include <cstring>

#include "crypto/aead.h"

namespace muster::overlay {
namespace {

constexpr std::string_view kConstruction = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
constexpr std::size_t kSealedKey = 32 + crypto::kAeadTag;

// HKDF over HMAC-BLAKE2s; outputs beyond the first n are not computed.
template <std::size_t N>
std::array<Secret32, N> derive(const Secret32& chain, ByteView input) {
  Secret32 extracted(crypto::hmac_blake2s(chain.bytes, input));
  std::array<Secret32, N> out;
  for (std::size_t i = 0; i < N; ++i) {
    const std::uint8_t number = static_cast<std::uint8_t>(i + 1);
    out[i].bytes =
        crypto::hmac_blake2s(extracted.bytes, i == 0 ? ByteView{} : ByteView(out[i - 1].bytes), {&number, 1});
  }
  return out;
}

Key32 key_at(ByteView bytes) {
  Key32 out;
  std::memcpy(out.data(), bytes.data(), out.size());
  return out;
}

}  // namespace

Noise::Noise(ByteView prologue, const Key32& responder_static) {
  // Names longer than a hash are hashed; this one is.
  chain_.bytes = crypto::blake2s(as_bytes(kConstruction));
  hash_ = crypto::blake2s(chain_.bytes, prologue);
  mix_hash(responder_static);
}

void Noise::mix_hash(ByteView data) {
  hash_ = crypto::blake2s(hash_, data);
}

void Noise::mix_ephemeral(const Key32& key) {
  mix_hash(key);
  chain_ = derive<1>(chain_, key)[0];
}

void Noise::mix_key(const Secret32& secret) {
  const auto keys = derive<2>(chain_, secret.bytes);
  chain_ = keys[0];
  key_ = keys[1];
}

void Noise::mix_psk(const Secret32& psk) {
  const auto keys = derive<3>(chain_, psk.bytes);
  chain_ = keys[0];
  mix_hash(keys[1].bytes);
  key_ = keys[2];
}

void Noise::encrypt(ByteView plain, Bytes& out) {
  const std::size_t start = out.size();
  out.resize(start + plain.size() + crypto::kAeadTag);
  crypto::SealKey(key_).seal(0, hash_, plain, out.data() + start);
  mix_hash(ByteView(out).subspan(start));
}

bool Noise::decrypt(ByteView sealed, std::span<std::uint8_t> out) {
  if (sealed.size() != out.size() + crypto::kAeadTag) return false;
  if (!crypto::OpenKey(key_).open(0, hash_, sealed, out.data())) return false;
  mix_hash(sealed);
  return true;
}

std::pair<Secret32, Secret32> Noise::split() const {
  const auto keys = derive<2>(chain_, {});
  return {keys[0], keys[1]};
}

std::optional<Noise> write_first(const crypto::X25519Pair& self, const Key32& peer, const Secret32& static_static,
                                 const crypto::X25519Pair& ephemeral, ByteView prologue, ByteView payload, Bytes& out) {
  Noise noise(prologue, peer);
  out.insert(out.end(), ephemeral.public_key.begin(), ephemeral.public_key.end());
  noise.mix_ephemeral(ephemeral.public_key);
  const auto es = crypto::x25519_agree(ephemeral.secret, peer);
  if (!es) return {};
  noise.mix_key(*es);
  noise.encrypt(self.public_key, out);
  noise.mix_key(static_static);
  noise.encrypt(payload, out);
  return noise;
}

std::optional<FirstMessage> read_first(const crypto::X25519Pair& self, ByteView prologue, ByteView message) {
  if (message.size() < 32 + kSealedKey + crypto::kAeadTag) return {};
  FirstMessage first{Noise(prologue, self.public_key), key_at(message), {}, message.subspan(32 + kSealedKey)};
  first.noise.mix_ephemeral(first.ephemeral);
  const auto es = crypto::x25519_agree(self.secret, first.ephemeral);
  if (!es) return {};
  first.noise.mix_key(*es);
  if (!first.noise.decrypt(message.subspan(32, kSealedKey), first.remote_static)) return {};
  return first;
}

bool read_first_payload(FirstMessage& first, const Secret32& static_static, std::span<std::uint8_t> payload) {
  first.noise.mix_key(static_static);
  return first.noise.decrypt(first.sealed_payload, payload);
}

bool write_second(Noise& noise, const Key32& remote_ephemeral, const Key32& remote_static,
                  const crypto::X25519Pair& ephemeral, const Secret32& psk, ByteView payload, Bytes& out) {
  out.insert(out.end(), ephemeral.public_key.begin(), ephemeral.public_key.end());
  noise.mix_ephemeral(ephemeral.public_key);
  const auto ee = crypto::x25519_agree(ephemeral.secret, remote_ephemeral);
  const auto se = crypto::x25519_agree(ephemeral.secret, remote_static);
  if (!ee || !se) return false;
  noise.mix_key(*ee);
  noise.mix_key(*se);
  noise.mix_psk(psk);
  noise.encrypt(payload, out);
  return true;
}

bool read_second(Noise& noise, const crypto::X25519Pair& self, const crypto::X25519Pair& ephemeral, const Secret32& psk,
                 ByteView message, std::span<std::uint8_t> payload) {
  if (message.size() < 32 + crypto::kAeadTag) return false;
  const Key32 remote = key_at(message);
  noise.mix_ephemeral(remote);
  const auto ee = crypto::x25519_agree(ephemeral.secret, remote);
  const auto se = crypto::x25519_agree(self.secret, remote);
  if (!ee || !se) return false;
  noise.mix_key(*ee);
  noise.mix_key(*se);
  noise.mix_psk(psk);
  return noise.decrypt(message.subspan(32), payload);
}

}  // namespace muster::overlay
