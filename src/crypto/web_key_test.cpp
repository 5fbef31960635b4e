// Keys of web tokens against signatures that OpenSSL makes here and now: each algorithm verifies its own alone.
#include "crypto/web_key.h"

#include <gtest/gtest.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/rsa.h>

#include "crypto/openssl_ptr.h"
#include "crypto/sign.h"

namespace muster::crypto {
namespace {

Bytes number_of(EVP_PKEY& key, const char* name) {
  BIGNUM* value = nullptr;
  EXPECT_EQ(EVP_PKEY_get_bn_param(&key, name, &value), 1) << name;
  Bytes out(static_cast<std::size_t>(BN_num_bytes(value)));
  BN_bn2bin(value, out.data());
  BN_free(value);
  return out;
}
Bytes padded(Bytes bytes) {  // to a coordinate
  bytes.insert(bytes.begin(), 32 - bytes.size(), 0);
  return bytes;
}

Bytes signed_by(EVP_PKEY& key, WebAlg alg, ByteView message) {
  const DigestPtr context(EVP_MD_CTX_new());
  EVP_PKEY_CTX* options = nullptr;
  EXPECT_EQ(EVP_DigestSignInit(context.get(), &options, EVP_sha256(), nullptr, &key), 1);
  if (alg == WebAlg::Ps256) {
    EVP_PKEY_CTX_set_rsa_padding(options, RSA_PKCS1_PSS_PADDING);
    EVP_PKEY_CTX_set_rsa_pss_saltlen(options, RSA_PSS_SALTLEN_DIGEST);
  }
  std::size_t size = 0;
  EVP_DigestSign(context.get(), nullptr, &size, message.data(), message.size());
  Bytes out(size);
  EXPECT_EQ(EVP_DigestSign(context.get(), out.data(), &size, message.data(), message.size()), 1);
  out.resize(size);
  if (alg != WebAlg::Es256) return out;
  const unsigned char* at = out.data();
  ECDSA_SIG* pair = d2i_ECDSA_SIG(nullptr, &at, static_cast<long>(out.size()));
  Bytes raw(64);
  BN_bn2binpad(ECDSA_SIG_get0_r(pair), raw.data(), 32);
  BN_bn2binpad(ECDSA_SIG_get0_s(pair), raw.data() + 32, 32);
  ECDSA_SIG_free(pair);
  return raw;
}

TEST(WebKeys, VerifyWhatTheyAreForAndNothingElse) {
  const KeyPtr rsa_key(EVP_RSA_gen(2048)), ec_key(EVP_EC_gen("P-256"));
  const auto rsa = WebKey::rsa(number_of(*rsa_key, OSSL_PKEY_PARAM_RSA_N), number_of(*rsa_key, OSSL_PKEY_PARAM_RSA_E));
  const auto p256 = WebKey::p256(padded(number_of(*ec_key, OSSL_PKEY_PARAM_EC_PUB_X)),
                                 padded(number_of(*ec_key, OSSL_PKEY_PARAM_EC_PUB_Y)));
  const SigningKey ed_key = SigningKey::generate();
  const auto ed = WebKey::ed25519(ed_key.public_key());
  ASSERT_TRUE(rsa.ok() && p256.ok() && ed.ok());
  const Bytes message = to_bytes("header.payload"), other = to_bytes("header.Payload");
  struct Case {
    WebAlg alg;
    const WebKey& key;
    Bytes signature;
  };
  const Case cases[] = {{WebAlg::Rs256, *rsa, signed_by(*rsa_key, WebAlg::Rs256, message)},
                        {WebAlg::Ps256, *rsa, signed_by(*rsa_key, WebAlg::Ps256, message)},
                        {WebAlg::Es256, *p256, signed_by(*ec_key, WebAlg::Es256, message)},
                        {WebAlg::EdDsa, *ed, ed_key.sign(message)}};
  for (const Case& one : cases) {
    for (const Case& as : cases)
      EXPECT_EQ(as.key.verify(as.alg, message, one.signature), &as == &one)
          << static_cast<int>(one.alg) << " as " << static_cast<int>(as.alg);
    EXPECT_FALSE(one.key.verify(one.alg, other, one.signature));
    for (const std::size_t at : {std::size_t{0}, one.signature.size() / 2, one.signature.size() - 1}) {
      Bytes damaged = one.signature;
      damaged[at] ^= 1;
      EXPECT_FALSE(one.key.verify(one.alg, message, damaged)) << at;
    }
    EXPECT_FALSE(one.key.verify(one.alg, message, {}));
    EXPECT_FALSE(one.key.verify(one.alg, message, ByteView(one.signature).first(one.signature.size() - 1)));
  }
  EXPECT_FALSE(p256->verify(WebAlg::Es256, message, Bytes(64, 0))) << "r = s = 0";
}

TEST(WebKeys, RefuseWeakAndBrokenParts) {
  const KeyPtr small(EVP_RSA_gen(1024)), good(EVP_RSA_gen(2048)), ec(EVP_EC_gen("P-256"));
  const Bytes n = number_of(*good, OSSL_PKEY_PARAM_RSA_N), e{1, 0, 1};
  EXPECT_TRUE(WebKey::rsa(n, e).ok());
  EXPECT_FALSE(WebKey::rsa(number_of(*small, OSSL_PKEY_PARAM_RSA_N), e).ok()) << "1024 bits";
  for (const Bytes& exponent : {Bytes{}, Bytes{1}, Bytes{0}, Bytes{1, 0, 0}, Bytes(9, 1)})
    EXPECT_FALSE(WebKey::rsa(n, exponent).ok()) << hex(exponent);
  EXPECT_FALSE(WebKey::rsa(Bytes(2000, 0xff), e).ok()) << "16,000 bits take seconds a check";
  EXPECT_FALSE(WebKey::rsa({}, e).ok());
  Bytes x = padded(number_of(*ec, OSSL_PKEY_PARAM_EC_PUB_X)), y = padded(number_of(*ec, OSSL_PKEY_PARAM_EC_PUB_Y));
  EXPECT_TRUE(WebKey::p256(x, y).ok());
  y[5] ^= 1;
  EXPECT_FALSE(WebKey::p256(x, y).ok()) << "not on the curve";
  EXPECT_FALSE(WebKey::p256(Bytes(32, 0), Bytes(32, 0)).ok());
  EXPECT_FALSE(WebKey::p256(Bytes(31, 1), y).ok());
  EXPECT_FALSE(WebKey::ed25519(Bytes(31, 1)).ok());
  for (const char* name : {"none", "HS256", "HS512", "RS1", "rs256", "ES384", ""})
    EXPECT_FALSE(web_alg(name).has_value()) << name;
  EXPECT_EQ(hex(web_digest(WebAlg::EdDsa, as_bytes("abc"))).substr(0, 32), "ddaf35a193617abacc417349ae204131");
  EXPECT_EQ(web_digest(WebAlg::Es256, as_bytes("abc")).size(), 32U);
}

}  // namespace
}  // namespace muster::crypto
