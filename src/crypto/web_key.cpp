#include "crypto/web_key.h"

#include <openssl/core_names.h>
#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/param_build.h>
#include <openssl/rsa.h>

#include <algorithm>

#include "crypto/openssl_ptr.h"

namespace muster::crypto {
namespace {

constexpr std::size_t kCoordinate = 32;
constexpr int kRsaBitsMin = 2048, kRsaBitsMax = 8192;

using NumberPtr = std::unique_ptr<BIGNUM, Free<BIGNUM, BN_free>>;
using BuilderPtr = std::unique_ptr<OSSL_PARAM_BLD, Free<OSSL_PARAM_BLD, OSSL_PARAM_BLD_free>>;
using ParamsPtr = std::unique_ptr<OSSL_PARAM, Free<OSSL_PARAM, OSSL_PARAM_free>>;
using EcdsaPtr = std::unique_ptr<ECDSA_SIG, Free<ECDSA_SIG, ECDSA_SIG_free>>;

struct ClearErrors {  // what is refused leaves nothing in this thread's queue for others to find
  ~ClearErrors() { ERR_clear_error(); }
};

NumberPtr number(ByteView bytes) {
  return NumberPtr(BN_bin2bn(bytes.data(), static_cast<int>(bytes.size()), nullptr));
}

// Null: OpenSSL refuses the parts.
KeyPtr key_of(const char* kind, OSSL_PARAM_BLD& builder) {
  const ClearErrors after;
  const ParamsPtr params(OSSL_PARAM_BLD_to_param(&builder));
  const KeyCtxPtr context(EVP_PKEY_CTX_new_from_name(nullptr, kind, nullptr));
  EVP_PKEY* key = nullptr;
  if (params == nullptr || context == nullptr || EVP_PKEY_fromdata_init(context.get()) != 1 ||
      EVP_PKEY_fromdata(context.get(), &key, EVP_PKEY_PUBLIC_KEY, params.get()) != 1)
    return nullptr;
  KeyPtr out(key);
  const KeyCtxPtr check(EVP_PKEY_CTX_new_from_pkey(nullptr, key, nullptr));
  if (check == nullptr || EVP_PKEY_public_check_quick(check.get()) != 1) return nullptr;
  return out;
}

Error refused(std::string_view what) {
  return error(Code::InvalidArgument, "a key is no usable " + std::string(what) + " key");
}

// r || s as JWS has it -> DER as OpenSSL wants it; empty: it has not the right length.
Bytes ecdsa_der(ByteView raw) {
  if (raw.size() != 2 * kCoordinate) return {};
  const EcdsaPtr pair(ECDSA_SIG_new());
  NumberPtr r = number(raw.first(kCoordinate)), s = number(raw.last(kCoordinate));
  if (pair == nullptr || r == nullptr || s == nullptr || ECDSA_SIG_set0(pair.get(), r.get(), s.get()) != 1) return {};
  static_cast<void>(r.release());
  static_cast<void>(s.release());
  const int size = i2d_ECDSA_SIG(pair.get(), nullptr);
  if (size <= 0) return {};
  Bytes out(static_cast<std::size_t>(size));
  unsigned char* at = out.data();
  i2d_ECDSA_SIG(pair.get(), &at);
  return out;
}

}  // namespace

struct WebKey::Impl {
  KeyPtr key;
  int kind = 0;  // EVP_PKEY_RSA, EVP_PKEY_EC, EVP_PKEY_ED25519
};

std::optional<WebAlg> web_alg(std::string_view name) {
  if (name == "RS256") return WebAlg::Rs256;
  if (name == "PS256") return WebAlg::Ps256;
  if (name == "ES256") return WebAlg::Es256;
  if (name == "EdDSA" || name == "Ed25519") return WebAlg::EdDsa;  // the second: RFC 9864
  return {};
}

Bytes web_digest(WebAlg alg, ByteView data) {
  const EVP_MD* hash = alg == WebAlg::EdDsa ? EVP_sha512() : EVP_sha256();
  Bytes out(static_cast<std::size_t>(EVP_MD_get_size(hash)));
  MUSTER_CHECK(EVP_Digest(data.data(), data.size(), out.data(), nullptr, hash, nullptr) == 1);
  return out;
}

Result<WebKey> WebKey::rsa(ByteView modulus, ByteView exponent) {
  while (!modulus.empty() && modulus.front() == 0) modulus = modulus.subspan(1);
  while (!exponent.empty() && exponent.front() == 0) exponent = exponent.subspan(1);
  if (modulus.size() > kRsaBitsMax / 8 || exponent.empty() || exponent.size() > 8 || exponent.back() % 2 == 0)
    return refused("RSA");
  const NumberPtr n = number(modulus), e = number(exponent);
  const BuilderPtr builder(OSSL_PARAM_BLD_new());
  if (n == nullptr || e == nullptr || builder == nullptr || BN_num_bits(n.get()) < kRsaBitsMin || BN_is_one(e.get()) ||
      OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_N, n.get()) != 1 ||
      OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_E, e.get()) != 1)
    return refused("RSA");
  KeyPtr key = key_of("RSA", *builder);
  if (key == nullptr) return refused("RSA");
  return WebKey(std::make_shared<const Impl>(Impl{std::move(key), EVP_PKEY_RSA}));
}

Result<WebKey> WebKey::p256(ByteView x, ByteView y) {
  if (x.size() != kCoordinate || y.size() != kCoordinate) return refused("P-256");
  Bytes point{4};  // uncompressed
  point.insert(point.end(), x.begin(), x.end());
  point.insert(point.end(), y.begin(), y.end());
  const BuilderPtr builder(OSSL_PARAM_BLD_new());
  if (builder == nullptr ||
      OSSL_PARAM_BLD_push_utf8_string(builder.get(), OSSL_PKEY_PARAM_GROUP_NAME, "prime256v1", 0) != 1 ||
      OSSL_PARAM_BLD_push_octet_string(builder.get(), OSSL_PKEY_PARAM_PUB_KEY, point.data(), point.size()) != 1)
    return refused("P-256");
  KeyPtr key = key_of("EC", *builder);
  if (key == nullptr) return refused("P-256");
  return WebKey(std::make_shared<const Impl>(Impl{std::move(key), EVP_PKEY_EC}));
}

Result<WebKey> WebKey::ed25519(ByteView x) {
  if (x.size() != 32) return refused("Ed25519");
  KeyPtr key(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, x.data(), x.size()));
  if (key == nullptr) return refused("Ed25519");
  return WebKey(std::make_shared<const Impl>(Impl{std::move(key), EVP_PKEY_ED25519}));
}

bool WebKey::fits(WebAlg alg) const {
  switch (alg) {
    case WebAlg::Rs256:
    case WebAlg::Ps256:
      return impl_->kind == EVP_PKEY_RSA;
    case WebAlg::Es256:
      return impl_->kind == EVP_PKEY_EC;
    case WebAlg::EdDsa:
      return impl_->kind == EVP_PKEY_ED25519;
  }
  return false;
}

bool WebKey::verify(WebAlg alg, ByteView message, ByteView signature) const {
  if (!fits(alg)) return false;
  const ClearErrors after;
  const DigestPtr context(EVP_MD_CTX_new());
  EVP_PKEY_CTX* options = nullptr;
  const EVP_MD* digest = alg == WebAlg::EdDsa ? nullptr : EVP_sha256();
  if (context == nullptr || EVP_DigestVerifyInit(context.get(), &options, digest, nullptr, impl_->key.get()) != 1)
    return false;
  if (alg == WebAlg::Ps256 && (EVP_PKEY_CTX_set_rsa_padding(options, RSA_PKCS1_PSS_PADDING) != 1 ||
                               EVP_PKEY_CTX_set_rsa_pss_saltlen(options, RSA_PSS_SALTLEN_DIGEST) != 1 ||
                               EVP_PKEY_CTX_set_rsa_mgf1_md(options, EVP_sha256()) != 1))
    return false;
  const Bytes der = alg == WebAlg::Es256 ? ecdsa_der(signature) : Bytes(signature.begin(), signature.end());
  if (der.empty()) return false;
  return EVP_DigestVerify(context.get(), der.data(), der.size(), message.data(), message.size()) == 1;
}

}  // namespace muster::crypto
