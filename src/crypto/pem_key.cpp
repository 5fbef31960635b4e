#include "crypto/pem_key.h"

#include <openssl/core_names.h>
#include <openssl/err.h>

#include <algorithm>

#include "crypto/hash.h"
#include "crypto/openssl_ptr.h"

namespace muster::crypto {
namespace {

constexpr std::size_t kPemMax = 16 << 10, kSignatureMax = 512;

struct QuietErrors {  // what is refused leaves nothing in this thread's queue for others to find
  ~QuietErrors() { ERR_clear_error(); }
};

bool on_p256(EVP_PKEY& key) {
  char group[32] = {};
  std::size_t size = 0;
  return EVP_PKEY_get_base_id(&key) == EVP_PKEY_EC && EVP_PKEY_get_group_name(&key, group, sizeof group, &size) == 1 &&
         std::string_view(group, size) == "prime256v1";
}

Error unusable(std::string_view why) {
  return error(
      Code::InvalidArgument,
      "a key " + std::string(why) + "; give the public key of a P-256 or Ed25519 pair in PEM, such as cosign.pub");
}

}  // namespace

struct PemKey::Impl {
  KeyPtr key;
  bool ed25519 = false;
  std::string fingerprint;
};

Result<PemKey> PemKey::parse(std::string_view pem) {
  const QuietErrors after;
  if (pem.size() > kPemMax) return unusable("is too long");
  if (pem.find("PRIVATE") != std::string_view::npos) return unusable("is a private one, which belongs nowhere else");
  constexpr std::string_view kBegin = "-----BEGIN ";
  const auto first = pem.find(kBegin);
  if (first == std::string_view::npos || pem.find(kBegin, first + 1) != std::string_view::npos)
    return unusable("is not exactly one block of PEM");
  const BioPtr bio = read_bio(pem);
  KeyPtr key(PEM_read_bio_PUBKEY(bio.get(), nullptr, nullptr, nullptr));
  if (key == nullptr) return unusable("cannot be read");
  const bool ed25519 = EVP_PKEY_get_base_id(key.get()) == EVP_PKEY_ED25519;
  if (!ed25519 && !on_p256(*key)) return unusable("is of another kind");
  if (!ed25519) {
    const KeyCtxPtr check(EVP_PKEY_CTX_new_from_pkey(nullptr, key.get(), nullptr));
    if (check == nullptr || EVP_PKEY_public_check(check.get()) != 1) return unusable("is no point of its curve");
  }
  Bytes der(static_cast<std::size_t>(std::max(0, i2d_PUBKEY(key.get(), nullptr))));
  unsigned char* at = der.data();
  if (der.empty() || i2d_PUBKEY(key.get(), &at) <= 0) return unusable("cannot be read");
  return PemKey(std::make_shared<const Impl>(Impl{std::move(key), ed25519, sha256_hex(der)}));
}

bool PemKey::verify(ByteView message, ByteView signature) const {
  const QuietErrors after;
  const DigestPtr context(EVP_MD_CTX_new());
  if (signature.empty() || signature.size() > kSignatureMax || context == nullptr ||
      EVP_DigestVerifyInit(context.get(), nullptr, impl_->ed25519 ? nullptr : EVP_sha256(), nullptr,
                           impl_->key.get()) != 1)
    return false;
  return EVP_DigestVerify(context.get(), signature.data(), signature.size(), message.data(), message.size()) == 1;
}

const std::string& PemKey::fingerprint() const {
  return impl_->fingerprint;
}
std::string_view PemKey::kind() const {
  return impl_->ed25519 ? "ed25519" : "p256";
}

}  // namespace muster::crypto
