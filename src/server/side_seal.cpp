#include "server/side_seal.h"

#include "crypto/aead.h"
#include "crypto/hash.h"
#include "crypto/random.h"

namespace muster::server {
namespace {
constexpr std::size_t kNonce = 24;
}

SideSeal::SideSeal(const crypto::Secret32& secret, std::string_view purpose) {
  const Bytes derived = crypto::hkdf_sha256(secret.view(), {}, as_bytes(purpose), 32);
  key_ = crypto::Secret32(*crypto::key32(derived));
}

Bytes SideSeal::seal(const std::string& name, std::string text) const {
  Bytes out = crypto::random_bytes(kNonce);
  const Bytes sealed = crypto::xchacha_seal(key_, std::span<const std::uint8_t, kNonce>(out.data(), kNonce),
                                            as_bytes(name), as_bytes(text));
  crypto::zeroise(text);
  out.insert(out.end(), sealed.begin(), sealed.end());
  return out;
}

std::optional<std::string> SideSeal::open(const std::string& name, ByteView sealed) const {
  if (sealed.size() < kNonce) return {};
  auto plain = crypto::xchacha_open(key_, std::span<const std::uint8_t, kNonce>(sealed.data(), kNonce), as_bytes(name),
                                    sealed.subspan(kNonce));
  if (!plain) return {};
  std::string text = as_string(*plain);
  crypto::zeroise(*plain);
  return text;
}

}  // namespace muster::server
