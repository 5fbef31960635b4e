#include "crypto/public_name.h"

#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "crypto/hash.h"
#include "crypto/web_key.h"

namespace muster::crypto {
namespace {

TEST(PublicName, AnAccountSignsWhatItsPublicKeyVerifies) {
  const AccountKey key = AccountKey::make();
  const std::string jwk = key.jwk();
  EXPECT_EQ(key.thumbprint(), base64url(sha256(as_bytes(jwk))));
  const auto coordinate_at = [&](const char* name) {
    return *unbase64url(std::string_view(jwk).substr(jwk.find(name) + 5, 43));
  };
  const auto web = WebKey::p256(coordinate_at("\"x\":\""), coordinate_at("\"y\":\""));
  ASSERT_TRUE(web.ok()) << web.error().message;
  // Short numbers are padded: seen only once in a few hundred.
  for (int i = 0; i < 600; ++i) {
    const std::string text = "message " + std::to_string(i);
    const Bytes signature = key.sign(as_bytes(text));
    ASSERT_EQ(signature.size(), 64U);
    ASSERT_TRUE(web->verify(WebAlg::Es256, as_bytes(text), signature)) << i;
    ASSERT_FALSE(web->verify(WebAlg::Es256, as_bytes(text + "."), signature));
  }
  const auto again = AccountKey::from_pem(key.pem());
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->jwk(), jwk);
  EXPECT_FALSE(AccountKey::from_pem("nothing").ok());
}

TEST(PublicName, NamesAreThoseOfTheWeb) {
  for (const char* good : {"muster.example.org", "a.b", "1-x.example", "xn--bcher-kva.example"})
    EXPECT_TRUE(valid_public_name(good)) << good;
  for (const char* bad : {"", "localhost", "a..b", ".a.b", "a.b.", "-a.b", "a-.b", "A.b", "a b.c", "*.a.b", "192.0.2.1",
                          "a/b.c", "a.b\n"})
    EXPECT_FALSE(valid_public_name(bad)) << bad;
  EXPECT_FALSE(valid_public_name(std::string(64, 'a') + ".org"));
  EXPECT_FALSE(valid_public_name(std::string(250, 'a') + ".org"));
}

TEST(PublicName, ARequestIsForItsNamesAndKey) {
  const std::string key = new_ca_key();
  const auto request = make_name_request(key, {"a.example.org", "b.example.org"});
  ASSERT_TRUE(request.ok()) << request.error().message;
  const unsigned char* at = request->data();
  X509_REQ* read = d2i_X509_REQ(nullptr, &at, static_cast<long>(request->size()));
  ASSERT_NE(read, nullptr);
  EXPECT_EQ(X509_REQ_verify(read, X509_REQ_get0_pubkey(read)), 1);
  EXPECT_EQ(X509_NAME_entry_count(X509_REQ_get_subject_name(read)), 0);
  X509_REQ_free(read);
  const std::string text = as_string(*request);
  EXPECT_NE(text.find("a.example.org"), std::string::npos);
  EXPECT_NE(text.find("b.example.org"), std::string::npos);
  EXPECT_FALSE(make_name_request(key, {}).ok());
  EXPECT_FALSE(make_name_request(key, {"a.example.org\nDNS:evil.org"}).ok());
  EXPECT_FALSE(make_name_request(key, std::vector<std::string>(17, "a.example.org")).ok());
  EXPECT_FALSE(make_name_request("no key", {"a.example.org"}).ok());
}

TEST(PublicName, AProofHoldsTheDigestOfTheAuthorization) {
  const WallTime now = read_clocks().wall;
  const auto proof = make_name_proof("m.example.org", "token.thumbprint", now);
  ASSERT_TRUE(proof.ok()) << proof.error().message;
  EXPECT_TRUE(key_fits(*proof));
  EXPECT_EQ(*dns_names(proof->cert_pem), std::vector<std::string>{"m.example.org"});
  EXPECT_LT(*certificate_expiry(proof->cert_pem), now + Millis(2 * 3'600'000));
  BIO* bio = BIO_new_mem_buf(proof->cert_pem.data(), static_cast<int>(proof->cert_pem.size()));
  X509* cert = PEM_read_bio_X509(bio, nullptr, nullptr, nullptr);
  BIO_free(bio);
  ASN1_OBJECT* identifier = OBJ_txt2obj("1.3.6.1.5.5.7.1.31", 1);
  const int index = X509_get_ext_by_OBJ(cert, identifier, -1);
  ASSERT_GE(index, 0);
  X509_EXTENSION* extension = X509_get_ext(cert, index);
  EXPECT_EQ(X509_EXTENSION_get_critical(extension), 1);
  const ASN1_OCTET_STRING* value = X509_EXTENSION_get_data(extension);
  const auto digest = sha256(as_bytes(std::string_view("token.thumbprint")));
  Bytes expected{4, 32};
  expected.insert(expected.end(), digest.begin(), digest.end());
  EXPECT_EQ(Bytes(ASN1_STRING_get0_data(value), ASN1_STRING_get0_data(value) + ASN1_STRING_length(value)), expected);
  ASN1_OBJECT_free(identifier);
  X509_free(cert);
  EXPECT_FALSE(make_name_proof("localhost", "x", now).ok());
}

}  // namespace
}  // namespace muster::crypto
