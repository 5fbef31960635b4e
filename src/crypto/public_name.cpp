#include "crypto/public_name.h"

#include <fmt/format.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <array>
#include <ctime>

#include "crypto/hash.h"
#include "crypto/openssl_ptr.h"
#include "crypto/random.h"

namespace muster::crypto {

struct AccountKey::Impl {
  KeyPtr key;
};

namespace {

constexpr std::size_t kNumberBytes = 32;  // bytes of one number of P-256
constexpr const char* kAcmeIdentifier = "1.3.6.1.5.5.7.1.31";
constexpr Millis kProofLife{3'600'000};

using BigPtr = std::unique_ptr<BIGNUM, Free<BIGNUM, BN_free>>;
using SigPtr = std::unique_ptr<ECDSA_SIG, Free<ECDSA_SIG, ECDSA_SIG_free>>;
using RequestPtr = std::unique_ptr<X509_REQ, Free<X509_REQ, X509_REQ_free>>;
using AltNamesPtr = std::unique_ptr<GENERAL_NAMES, Free<GENERAL_NAMES, GENERAL_NAMES_free>>;
using ExtensionPtr = std::unique_ptr<X509_EXTENSION, Free<X509_EXTENSION, X509_EXTENSION_free>>;

KeyPtr read_private(std::string_view pem) {
  KeyPtr key(PEM_read_bio_PrivateKey(read_bio(pem).get(), nullptr, nullptr, const_cast<char*>("")));
  ERR_clear_error();
  return key;
}
bool on_curve(EVP_PKEY* key) {
  char group[64] = {};
  std::size_t size = 0;
  return key != nullptr && EVP_PKEY_get_base_id(key) == EVP_PKEY_EC &&
         EVP_PKEY_get_group_name(key, group, sizeof group, &size) == 1 && std::string_view(group) == "prime256v1";
}
std::string private_text(EVP_PKEY* key) {
  const BioPtr bio(BIO_new(BIO_s_secmem()));
  MUSTER_CHECK(PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return {data, static_cast<std::size_t>(size)};
}
std::string coordinate(EVP_PKEY* key, const char* which) {
  BIGNUM* number = nullptr;
  MUSTER_CHECK(EVP_PKEY_get_bn_param(key, which, &number) == 1);
  const BigPtr owned(number);
  std::array<std::uint8_t, kNumberBytes> bytes{};
  MUSTER_CHECK(BN_bn2binpad(number, bytes.data(), kNumberBytes) == kNumberBytes);
  return base64url(bytes);
}

AltNamesPtr alt_names(const std::vector<std::string>& names) {
  AltNamesPtr out(GENERAL_NAMES_new());
  for (const std::string& each : names) {
    GENERAL_NAME* name = GENERAL_NAME_new();
    ASN1_STRING* text = ASN1_STRING_type_new(V_ASN1_IA5STRING);
    MUSTER_CHECK(name != nullptr && ASN1_STRING_set(text, each.data(), static_cast<int>(each.size())) == 1);
    GENERAL_NAME_set0_value(name, GEN_DNS, text);
    MUSTER_CHECK(sk_GENERAL_NAME_push(out.get(), name) > 0);
  }
  return out;
}

}  // namespace

AccountKey AccountKey::make() {
  KeyPtr key(EVP_EC_gen("P-256"));
  MUSTER_CHECK(key != nullptr);
  return AccountKey(std::make_shared<Impl>(Impl{std::move(key)}));
}

Result<AccountKey> AccountKey::from_pem(std::string_view pem) {
  KeyPtr key = read_private(pem);
  if (!on_curve(key.get())) return error(Code::DataLoss, "this is no private key on the curve P-256 in PEM form");
  return AccountKey(std::make_shared<Impl>(Impl{std::move(key)}));
}

std::string AccountKey::pem() const {
  return private_text(impl_->key.get());
}

std::string AccountKey::jwk() const {
  EVP_PKEY* key = impl_->key.get();
  return fmt::format(R"({{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}})", coordinate(key, OSSL_PKEY_PARAM_EC_PUB_X),
                     coordinate(key, OSSL_PKEY_PARAM_EC_PUB_Y));
}

std::string AccountKey::thumbprint() const {
  return base64url(sha256(as_bytes(jwk())));
}

Bytes AccountKey::sign(ByteView data) const {
  const DigestPtr context(EVP_MD_CTX_new());
  std::size_t size = 0;
  MUSTER_CHECK(EVP_DigestSignInit(context.get(), nullptr, EVP_sha256(), nullptr, impl_->key.get()) == 1 &&
               EVP_DigestSign(context.get(), nullptr, &size, data.data(), data.size()) == 1);
  Bytes der(size);
  MUSTER_CHECK(EVP_DigestSign(context.get(), der.data(), &size, data.data(), data.size()) == 1);
  const unsigned char* at = der.data();
  const SigPtr both(d2i_ECDSA_SIG(nullptr, &at, static_cast<long>(size)));
  MUSTER_CHECK(both != nullptr);
  Bytes out(2 * kNumberBytes);
  MUSTER_CHECK(BN_bn2binpad(ECDSA_SIG_get0_r(both.get()), out.data(), kNumberBytes) == kNumberBytes &&
               BN_bn2binpad(ECDSA_SIG_get0_s(both.get()), out.data() + kNumberBytes, kNumberBytes) == kNumberBytes);
  return out;
}

bool valid_public_name(std::string_view name) {
  if (name.empty() || name.size() > 253 || name.find('.') == std::string_view::npos) return false;
  bool letter = false;  // in the last label: an address is no name
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t end = std::min(name.find('.', at), name.size());
    const std::string_view label = name.substr(at, end - at);
    if (label.empty() || label.size() > 63 || label.front() == '-' || label.back() == '-') return false;
    letter = false;
    for (const char c : label) {
      const bool alphabetic = c >= 'a' && c <= 'z';
      if (!alphabetic && !(c >= '0' && c <= '9') && c != '-') return false;
      letter = letter || alphabetic;
    }
    at = end + 1;
  }
  return letter;
}

Result<Bytes> make_name_request(std::string_view key_pem, const std::vector<std::string>& names) {
  const bool good = !names.empty() && names.size() <= kPublicNamesMax &&
                    std::all_of(names.begin(), names.end(), [](const auto& each) { return valid_public_name(each); });
  if (!good) return error(Code::InvalidArgument, "a certificate is for one to sixteen names like muster.example.org");
  const KeyPtr key = read_private(key_pem);
  if (!on_curve(key.get())) return error(Code::DataLoss, "the key of the public name cannot be read");
  const RequestPtr request(X509_REQ_new());
  MUSTER_CHECK(X509_REQ_set_version(request.get(), X509_REQ_VERSION_1) == 1 &&
               X509_REQ_set_pubkey(request.get(), key.get()) == 1);
  const AltNamesPtr alternatives = alt_names(names);
  STACK_OF(X509_EXTENSION)* extensions = sk_X509_EXTENSION_new_null();
  X509_EXTENSION* extension = X509V3_EXT_i2d(NID_subject_alt_name, 0, alternatives.get());
  MUSTER_CHECK(extension != nullptr && sk_X509_EXTENSION_push(extensions, extension) > 0);
  const bool added = X509_REQ_add_extensions(request.get(), extensions) == 1;
  sk_X509_EXTENSION_pop_free(extensions, X509_EXTENSION_free);
  MUSTER_CHECK(added && X509_REQ_sign(request.get(), key.get(), EVP_sha256()) > 0);
  unsigned char* der = nullptr;
  const int size = i2d_X509_REQ(request.get(), &der);
  MUSTER_CHECK(size > 0);
  Bytes out(der, der + size);
  free_openssl(der);
  return out;
}

Result<KeyAndCert> make_name_proof(const std::string& name, std::string_view key_authorization, WallTime now) {
  if (!valid_public_name(name)) return error(Code::InvalidArgument, "'" + name + "' is no name of the public web");
  const KeyPtr key(EVP_EC_gen("P-256"));
  const CertPtr cert(X509_new());
  MUSTER_CHECK(key != nullptr && cert != nullptr && X509_set_version(cert.get(), X509_VERSION_3) == 1);
  ASN1_INTEGER_set(X509_get_serialNumber(cert.get()), 1);
  MUSTER_CHECK(
      ASN1_TIME_set(X509_getm_notBefore(cert.get()), static_cast<time_t>((now - kBackdate).ms / 1000)) != nullptr &&
      ASN1_TIME_set(X509_getm_notAfter(cert.get()), static_cast<time_t>((now + kProofLife).ms / 1000)) != nullptr &&
      X509_set_pubkey(cert.get(), key.get()) == 1);
  const AltNamesPtr alternatives = alt_names({name});
  MUSTER_CHECK(X509_add1_ext_i2d(cert.get(), NID_subject_alt_name, alternatives.get(), 0, X509V3_ADD_DEFAULT) == 1);
  const Digest digest = sha256(as_bytes(key_authorization));
  Bytes value{4, 32};  // an OCTET STRING of 32 bytes
  value.insert(value.end(), digest.begin(), digest.end());
  const std::unique_ptr<ASN1_OBJECT, Free<ASN1_OBJECT, ASN1_OBJECT_free>> identifier(OBJ_txt2obj(kAcmeIdentifier, 1));
  const std::unique_ptr<ASN1_OCTET_STRING, Free<ASN1_OCTET_STRING, ASN1_OCTET_STRING_free>> held(
      ASN1_OCTET_STRING_new());
  MUSTER_CHECK(ASN1_OCTET_STRING_set(held.get(), value.data(), static_cast<int>(value.size())) == 1);
  const ExtensionPtr extension(X509_EXTENSION_create_by_OBJ(nullptr, identifier.get(), 1, held.get()));
  MUSTER_CHECK(extension != nullptr && X509_add_ext(cert.get(), extension.get(), -1) == 1);
  MUSTER_CHECK(X509_sign(cert.get(), key.get(), EVP_sha256()) > 0);
  const BioPtr bio(BIO_new(BIO_s_mem()));
  MUSTER_CHECK(PEM_write_bio_X509(bio.get(), cert.get()) == 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return KeyAndCert{private_text(key.get()), {data, static_cast<std::size_t>(size)}};
}

Result<std::vector<std::string>> dns_names(std::string_view cert_pem) {
  const CertPtr cert(PEM_read_bio_X509(read_bio(cert_pem).get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  if (!cert) return error(Code::InvalidArgument, "this is no X.509 certificate in PEM form");
  const AltNamesPtr names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(cert.get(), NID_subject_alt_name, nullptr, nullptr)));
  std::vector<std::string> out;
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* each = sk_GENERAL_NAME_value(names.get(), i);
    if (each->type != GEN_DNS) continue;
    std::string name(reinterpret_cast<const char*>(ASN1_STRING_get0_data(each->d.dNSName)),
                     static_cast<std::size_t>(ASN1_STRING_length(each->d.dNSName)));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    out.push_back(std::move(name));
  }
  return out;
}

}  // namespace muster::crypto
