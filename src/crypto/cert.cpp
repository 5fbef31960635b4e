#include "crypto/cert.h"

#include <arpa/inet.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <ctime>
#include <memory>
#include <mutex>

#include "crypto/hash.h"
#include "crypto/openssl_ptr.h"
#include "crypto/random.h"
#include "crypto/trust.h"

namespace muster::crypto {
namespace {

using ReqPtr = std::unique_ptr<X509_REQ, Free<X509_REQ, X509_REQ_free>>;
using NamesPtr = std::unique_ptr<GENERAL_NAMES, Free<GENERAL_NAMES, GENERAL_NAMES_free>>;
using StorePtr = std::unique_ptr<X509_STORE, Free<X509_STORE, X509_STORE_free>>;
using StoreCtxPtr = std::unique_ptr<X509_STORE_CTX, Free<X509_STORE_CTX, X509_STORE_CTX_free>>;

constexpr std::size_t kPemBytesMax = 256 << 10;
constexpr std::string_view kNodeUri = "spiffe://muster/node/", kTpmUri = "spiffe://muster/tpm/";
constexpr std::string_view kServerUri = "spiffe://muster/server", kRelayUri = "spiffe://muster/relay";

std::string bio_text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<std::size_t>(size)};
}

Result<CertPtr> parse_cert(std::string_view pem) {
  if (pem.size() > kPemBytesMax) return error(Code::TooLarge, "the certificate is too large");
  CertPtr cert(PEM_read_bio_X509(read_bio(pem).get(), nullptr, nullptr, nullptr));
  if (!cert) return error(Code::InvalidArgument, "this is no X.509 certificate in PEM form");
  return cert;
}
Result<KeyPtr> parse_key(std::string_view pem) {
  KeyPtr key(PEM_read_bio_PrivateKey(read_bio(pem).get(), nullptr, nullptr, const_cast<char*>("")));
  if (!key) return error(Code::DataLoss, "the private key cannot be read; restore it from a backup");
  return key;
}
std::string cert_pem(X509* cert) {
  const BioPtr bio(BIO_new(BIO_s_mem()));
  MUSTER_CHECK(PEM_write_bio_X509(bio.get(), cert) == 1);
  return bio_text(bio.get());
}
std::string key_pem(EVP_PKEY* key) {
  const BioPtr bio(BIO_new(BIO_s_secmem()));
  MUSTER_CHECK(PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  return bio_text(bio.get());
}
bool is_p256(EVP_PKEY* key) {
  return key != nullptr && EVP_PKEY_get_base_id(key) == EVP_PKEY_EC && EVP_PKEY_get_bits(key) == 256;
}
KeyPtr new_p256() {
  KeyPtr key(EVP_EC_gen("P-256"));
  MUSTER_CHECK(key != nullptr);
  return key;
}

void set_name(X509_NAME* name, std::string_view common_name) {
  MUSTER_CHECK(X509_NAME_add_entry_by_txt(name, "O", MBSTRING_UTF8, reinterpret_cast<const unsigned char*>("Muster"), 6,
                                          -1, 0) == 1);
  // X.520 bounds a common name to 64 characters.
  const std::string_view cn = common_name.substr(0, 64);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(cn.data()),
                             static_cast<int>(cn.size()), -1, 0);
}

CertPtr new_cert(EVP_PKEY* key, WallTime now, Millis lifetime) {
  CertPtr cert(X509_new());
  MUSTER_CHECK(cert != nullptr && X509_set_version(cert.get(), X509_VERSION_3) == 1);
  Bytes serial = random_bytes(16);
  serial[0] = static_cast<std::uint8_t>((serial[0] & 0x3f) | 0x40);  // positive and of full length
  const std::unique_ptr<BIGNUM, Free<BIGNUM, BN_free>> number(
      BN_bin2bn(serial.data(), static_cast<int>(serial.size()), nullptr));
  MUSTER_CHECK(BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(cert.get())) != nullptr);
  MUSTER_CHECK(ASN1_TIME_set(X509_getm_notBefore(cert.get()), static_cast<time_t>((now - kBackdate).ms / 1000)) !=
               nullptr);
  MUSTER_CHECK(ASN1_TIME_set(X509_getm_notAfter(cert.get()), static_cast<time_t>((now + lifetime).ms / 1000)) !=
               nullptr);
  MUSTER_CHECK(X509_set_pubkey(cert.get(), key) == 1);
  return cert;
}

bool add_extension(X509* cert, X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, cert, nullptr, nullptr, 0);
  const std::unique_ptr<X509_EXTENSION, Free<X509_EXTENSION, X509_EXTENSION_free>> extension(
      X509V3_EXT_conf_nid(nullptr, &context, nid, value));
  return extension != nullptr && X509_add_ext(cert, extension.get(), -1) == 1;
}

// Names go in as ASN.1 values, never through OpenSSL's text syntax, so no input can add another name.
bool add_name(GENERAL_NAMES* names, int type, ByteView value) {
  GENERAL_NAME* name = GENERAL_NAME_new();
  ASN1_STRING* text = ASN1_STRING_type_new(type == GEN_IPADD ? V_ASN1_OCTET_STRING : V_ASN1_IA5STRING);
  if (name == nullptr || text == nullptr || ASN1_STRING_set(text, value.data(), static_cast<int>(value.size())) != 1)
    return false;
  GENERAL_NAME_set0_value(name, type, text);
  return sk_GENERAL_NAME_push(names, name) > 0;
}
bool add_san(GENERAL_NAMES* names, const std::string& san) {
  std::array<std::uint8_t, 16> raw{};
  if (inet_pton(AF_INET, san.c_str(), raw.data()) == 1) return add_name(names, GEN_IPADD, ByteView(raw).first(4));
  if (inet_pton(AF_INET6, san.c_str(), raw.data()) == 1) return add_name(names, GEN_IPADD, raw);
  for (char c : san) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                       c == '-' || c == '*' || c == '_';
    if (!plain) return false;
  }
  return !san.empty() && san.size() <= 253 && add_name(names, GEN_DNS, as_bytes(san));
}

Status sign_cert(X509* cert, EVP_PKEY* ca_key) {
  const EVP_MD* md = EVP_PKEY_get_base_id(ca_key) == EVP_PKEY_ED25519 ? nullptr : EVP_sha256();
  if (X509_sign(cert, ca_key, md) == 0)
    return error(Code::Internal, "signing a certificate failed; is the CA key the right one?");
  return {};
}

Result<WallTime> to_wall(const ASN1_TIME* time) {
  std::tm parts{};
  if (time == nullptr || ASN1_TIME_to_tm(time, &parts) != 1)
    return error(Code::InvalidArgument, "the certificate's time is damaged");
  return WallTime{static_cast<std::int64_t>(timegm(&parts)) * 1000};
}

// To read a CA costs ten times as much as to use it, and it is nearly always the same one: the last is kept, under the
// digest of its text. T is immutable or its own guard, so threads share it.
template <typename T>
class LastOne {
 public:
  template <typename Parse>
  Result<std::shared_ptr<T>> get(std::string_view pem, Parse parse) {
    const Digest digest = sha256(as_bytes(pem));
    {
      const std::lock_guard lock(mutex_);
      if (kept_ != nullptr && digest == digest_) return kept_;
    }
    std::shared_ptr<T> fresh = TRY(parse(pem));
    const std::lock_guard lock(mutex_);
    digest_ = digest;
    kept_ = fresh;
    return fresh;
  }

 private:
  std::mutex mutex_;
  Digest digest_{};
  std::shared_ptr<T> kept_;
};

Result<std::shared_ptr<EVP_PKEY>> ca_key_of(std::string_view pem) {
  static auto& last = *new LastOne<EVP_PKEY>;  // never freed: OpenSSL may be gone before it
  return last.get(pem, [](std::string_view text) -> Result<std::shared_ptr<EVP_PKEY>> {
    return std::shared_ptr<EVP_PKEY>(TRY(parse_key(text)));
  });
}

Result<std::shared_ptr<X509>> ca_cert_of(std::string_view pem) {
  static auto& last = *new LastOne<X509>;
  return last.get(pem, [](std::string_view text) -> Result<std::shared_ptr<X509>> {
    return std::shared_ptr<X509>(TRY(parse_cert(text)));
  });
}

// Only what signed itself is believed: the store takes the rest as help on the way there.
Result<std::shared_ptr<X509_STORE>> store_of(std::string_view pem) {
  static auto& last = *new LastOne<X509_STORE>;
  return last.get(pem, [](std::string_view text) -> Result<std::shared_ptr<X509_STORE>> {
    const Trust trust = TRY(parse_trust(text));
    std::shared_ptr<X509_STORE> store = StorePtr(X509_STORE_new());
    bool whole = store != nullptr;
    for (const auto* list : {&trust.roots, &trust.intermediates}) {
      for (const std::string& each : *list) {
        const CertPtr cert = TRY(parse_cert(each));
        whole = whole && X509_STORE_add_cert(store.get(), cert.get()) == 1;
      }
    }
    if (!whole) return error(Code::Internal, "cannot set up certificate verification");
    return store;
  });
}

Status verify_parsed(X509* cert, X509_STORE* store, WallTime now, int purpose) {
  const StoreCtxPtr context(X509_STORE_CTX_new());
  MUSTER_CHECK(context != nullptr);
  if (X509_STORE_CTX_init(context.get(), store, cert, nullptr) != 1)
    return error(Code::Internal, "cannot set up certificate verification");
  X509_VERIFY_PARAM* param = X509_STORE_CTX_get0_param(context.get());
  X509_VERIFY_PARAM_set_time(param, static_cast<time_t>(now.ms / 1000));
  X509_VERIFY_PARAM_set_depth(param, 1);
  if (purpose != 0) X509_STORE_CTX_set_purpose(context.get(), purpose);
  if (X509_verify_cert(context.get()) == 1) return {};
  const int code = X509_STORE_CTX_get_error(context.get());
  const char* why = X509_verify_cert_error_string(code);
  return error(Code::Unauthenticated, std::string("the certificate is not accepted: ") + why +
                                          (code == X509_V_ERR_CERT_HAS_EXPIRED || code == X509_V_ERR_CERT_NOT_YET_VALID
                                               ? "; check the clock, or enrol again"
                                               : ""));
}

Result<Key32> ed25519_key(EVP_PKEY* key) {
  Key32 out;
  std::size_t size = out.size();
  if (key == nullptr || EVP_PKEY_get_base_id(key) != EVP_PKEY_ED25519 ||
      EVP_PKEY_get_raw_public_key(key, out.data(), &size) != 1 || size != 32) {
    return error(Code::InvalidArgument, "a device key must be Ed25519");
  }
  return out;
}

std::string uri_of(const GENERAL_NAME& name) {
  const ASN1_STRING* uri = name.d.uniformResourceIdentifier;
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)), static_cast<std::size_t>(ASN1_STRING_length(uri))};
}

Result<KeyAndCert> self_signed(std::string_view common_name, WallTime now, Millis lifetime, const char* constraints) {
  const KeyPtr key = new_p256();
  const CertPtr cert = new_cert(key.get(), now, lifetime);
  set_name(X509_get_subject_name(cert.get()), common_name);
  X509_set_issuer_name(cert.get(), X509_get_subject_name(cert.get()));
  if (!add_extension(cert.get(), cert.get(), NID_basic_constraints, constraints) ||
      !add_extension(cert.get(), cert.get(), NID_key_usage, "critical,keyCertSign,cRLSign") ||
      !add_extension(cert.get(), cert.get(), NID_subject_key_identifier, "hash")) {
    return error(Code::Internal, "cannot build the CA certificate");
  }
  TRY_VOID(sign_cert(cert.get(), key.get()));
  return KeyAndCert{key_pem(key.get()), cert_pem(cert.get())};
}

Result<std::string> csr_pem(EVP_PKEY* key, const EVP_MD* md, std::string_view common_name) {
  const ReqPtr request(X509_REQ_new());
  MUSTER_CHECK(request != nullptr);
  set_name(X509_REQ_get_subject_name(request.get()), common_name);
  if (X509_REQ_set_pubkey(request.get(), key) != 1 || X509_REQ_sign(request.get(), key, md) == 0)
    return error(Code::Internal, "cannot build the certificate request");
  const BioPtr bio(BIO_new(BIO_s_mem()));
  MUSTER_CHECK(PEM_write_bio_X509_REQ(bio.get(), request.get()) == 1);
  return bio_text(bio.get());
}
// Its own signature holds.
Result<ReqPtr> parse_request(std::string_view pem) {
  if (pem.size() > kPemBytesMax) return error(Code::TooLarge, "the certificate request is too large", "csr");
  ReqPtr request(PEM_read_bio_X509_REQ(read_bio(pem).get(), nullptr, nullptr, nullptr));
  if (!request) return error(Code::InvalidArgument, "this is no certificate request in PEM form", "csr");
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  if (key == nullptr || X509_REQ_verify(request.get(), key) != 1)
    return error(Code::InvalidArgument, "the certificate request does not prove possession of its key", "csr");
  return request;
}

struct MachineNames {
  std::string node;
  Bytes tpm;
};
// The machine's name, and behind it the TPM key that it is bound to, where there is one; nothing else.
Result<MachineNames> names_of_machine(X509* cert) {
  const NamesPtr names(static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(cert, NID_subject_alt_name, nullptr, nullptr)));
  const int count = names ? sk_GENERAL_NAME_num(names.get()) : 0;
  if (count != 1 && count != 2) return error(Code::Unauthenticated, "the certificate names no single machine");
  MachineNames out;
  for (int i = 0; i < count; ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) return error(Code::Unauthenticated, "the certificate names no machine");
    const std::string text = uri_of(*name);
    const std::string_view kind = i == 0 ? kNodeUri : kTpmUri;
    if (!text.starts_with(kind)) return error(Code::Unauthenticated, "the certificate is not a machine's");
    if (i == 0) {
      out.node = text.substr(kind.size());
    } else {
      const auto digest = unhex(std::string_view(text).substr(kind.size()));
      if (!digest || digest->size() != 32) return error(Code::Unauthenticated, "the certificate names no key of a TPM");
      out.tpm = *digest;
    }
  }
  return out;
}

}  // namespace

Result<KeyAndCert> create_ca(std::string_view common_name, WallTime now, Millis lifetime) {
  return self_signed(common_name, now, lifetime, "critical,CA:TRUE,pathlen:0");
}
Result<KeyAndCert> create_root(std::string_view common_name, WallTime now, Millis lifetime) {
  return self_signed(common_name, now, lifetime, "critical,CA:TRUE,pathlen:1");
}

std::string new_ca_key() {
  return key_pem(new_p256().get());
}

Result<std::string> make_ca_request(std::string_view pem, std::string_view common_name) {
  const KeyPtr key = TRY(parse_key(pem));
  return csr_pem(key.get(), EVP_sha256(), common_name);
}

Result<std::string> certify_ca(const KeyAndCert& root, std::string_view request_pem, WallTime now, Millis lifetime) {
  const CertPtr root_cert = TRY(parse_cert(root.cert_pem));
  const KeyPtr root_key = TRY(parse_key(root.key_pem));
  if (X509_check_private_key(root_cert.get(), root_key.get()) != 1)
    return error(Code::InvalidArgument, "the root's key and its certificate do not belong together");
  const ReqPtr request = TRY(parse_request(request_pem));
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  if (!is_p256(key)) return error(Code::InvalidArgument, "a CA's key must be P-256", "csr");
  const WallTime root_end = TRY(to_wall(X509_get0_notAfter(root_cert.get())));
  const CertPtr cert = new_cert(key, now, std::min(lifetime, root_end - now));
  X509_set_subject_name(cert.get(), X509_REQ_get_subject_name(request.get()));
  X509_set_issuer_name(cert.get(), X509_get_subject_name(root_cert.get()));
  if (!add_extension(cert.get(), root_cert.get(), NID_basic_constraints, "critical,CA:TRUE,pathlen:0") ||
      !add_extension(cert.get(), root_cert.get(), NID_key_usage, "critical,keyCertSign,cRLSign") ||
      !add_extension(cert.get(), root_cert.get(), NID_subject_key_identifier, "hash") ||
      !add_extension(cert.get(), root_cert.get(), NID_authority_key_identifier, "keyid:always")) {
    return error(Code::Internal, "cannot build the CA certificate");
  }
  TRY_VOID(sign_cert(cert.get(), root_key.get()));
  return cert_pem(cert.get());
}

Result<std::string> common_name(std::string_view pem) {
  const CertPtr cert = TRY(parse_cert(pem));
  std::array<char, 256> text{};
  if (X509_NAME_get_text_by_NID(X509_get_subject_name(cert.get()), NID_commonName, text.data(), text.size()) < 0)
    return error(Code::InvalidArgument, "the certificate has no common name");
  return std::string(text.data());
}

bool issued_by(std::string_view pem, std::string_view ca_pem) {
  const auto cert = parse_cert(pem);
  const auto ca = parse_cert(ca_pem);
  const bool by_it = cert.ok() && ca.ok() && X509_check_issued(ca->get(), cert->get()) == X509_V_OK &&
                     X509_verify(cert->get(), X509_get0_pubkey(ca->get())) == 1;
  ERR_clear_error();
  return by_it;
}

Result<KeyAndCert> issue_server_certificate(const KeyAndCert& ca, std::optional<ServerRole> role,
                                            std::string_view common_name, const std::vector<std::string>& sans,
                                            WallTime now, Millis lifetime) {
  const std::string key = new_ca_key();
  const std::string request = TRY(make_ca_request(key, common_name));
  std::string cert = TRY(certify_server(ca, role, common_name, sans, request, now, lifetime));
  return KeyAndCert{key, std::move(cert)};
}

Result<std::string> certify_server(const KeyAndCert& ca, std::optional<ServerRole> role, std::string_view common_name,
                                   const std::vector<std::string>& sans, std::string_view request_pem, WallTime now,
                                   Millis lifetime) {
  const CertPtr ca_cert = TRY(parse_cert(ca.cert_pem));
  const KeyPtr ca_key = TRY(parse_key(ca.key_pem));
  const ReqPtr request = TRY(parse_request(request_pem));
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  if (!is_p256(key)) return error(Code::InvalidArgument, "a server's key must be P-256", "csr");
  const CertPtr cert = new_cert(key, now, lifetime);
  set_name(X509_get_subject_name(cert.get()), common_name);
  X509_set_issuer_name(cert.get(), X509_get_subject_name(ca_cert.get()));
  const NamesPtr names(GENERAL_NAMES_new());
  for (const std::string& san : sans) {
    if (!add_san(names.get(), san))
      return error(Code::InvalidArgument, "'" + san + "' is neither a DNS name nor an IP address", "sans");
  }
  if ((role && !add_name(names.get(), GEN_URI, as_bytes(*role == ServerRole::Relay ? kRelayUri : kServerUri))) ||
      X509_add1_ext_i2d(cert.get(), NID_subject_alt_name, names.get(), 0, X509V3_ADD_DEFAULT) != 1 ||
      !add_extension(cert.get(), ca_cert.get(), NID_basic_constraints, "critical,CA:FALSE") ||
      !add_extension(cert.get(), ca_cert.get(), NID_key_usage, "critical,digitalSignature") ||
      !add_extension(cert.get(), ca_cert.get(), NID_ext_key_usage, "serverAuth") ||
      !add_extension(cert.get(), ca_cert.get(), NID_subject_key_identifier, "hash") ||
      !add_extension(cert.get(), ca_cert.get(), NID_authority_key_identifier, "keyid:always")) {
    return error(Code::Internal, "cannot build the server certificate");
  }
  TRY_VOID(sign_cert(cert.get(), ca_key.get()));
  return cert_pem(cert.get());
}

Result<std::optional<ServerRole>> server_role(std::string_view pem) {
  const CertPtr cert = TRY(parse_cert(pem));
  const NamesPtr names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(cert.get(), NID_subject_alt_name, nullptr, nullptr)));
  std::optional<ServerRole> role;
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const std::string uri = uri_of(*name);
    if (role || (uri != kServerUri && uri != kRelayUri))
      return error(Code::Unauthenticated, "the certificate states more than one role, or one that is not a server's");
    role = uri == kRelayUri ? ServerRole::Relay : ServerRole::ControlPlane;
  }
  return role;
}

bool key_fits(const KeyAndCert& pair) {
  const auto cert = parse_cert(pair.cert_pem);
  const auto key = parse_key(pair.key_pem);
  const bool fits = cert.ok() && key.ok() && X509_check_private_key(cert->get(), key->get()) == 1;
  ERR_clear_error();
  return fits;
}

Result<std::string> make_csr(const SigningKey& device_key, std::string_view common_name) {
  const KeyPtr key(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, device_key.seed().bytes.data(), 32));
  MUSTER_CHECK(key != nullptr);
  return csr_pem(key.get(), nullptr, common_name);
}

Result<Key32> verify_csr(std::string_view csr_pem) {
  const ReqPtr request = TRY(parse_request(csr_pem));
  return ed25519_key(X509_REQ_get0_pubkey(request.get()));
}

Result<std::string> issue_device_certificate(const KeyAndCert& ca, const Key32& device_key, std::string_view node_id,
                                             WallTime now, Millis lifetime, ByteView tpm) {
  const std::shared_ptr<X509> issuer = TRY(ca_cert_of(ca.cert_pem));
  X509* const ca_cert = issuer.get();
  const std::shared_ptr<EVP_PKEY> ca_key = TRY(ca_key_of(ca.key_pem));
  const KeyPtr key(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, device_key.data(), device_key.size()));
  if (!key) return error(Code::InvalidArgument, "the device key is not a valid Ed25519 key");
  const CertPtr cert = new_cert(key.get(), now, lifetime);
  set_name(X509_get_subject_name(cert.get()), node_id);
  X509_set_issuer_name(cert.get(), X509_get_subject_name(ca_cert));
  const NamesPtr names(GENERAL_NAMES_new());
  const std::string uri = std::string(kNodeUri) + std::string(node_id);
  const std::string bound = tpm.empty() ? std::string() : std::string(kTpmUri) + hex(tpm);
  if (!add_name(names.get(), GEN_URI, as_bytes(uri)) ||
      (!bound.empty() && !add_name(names.get(), GEN_URI, as_bytes(bound))) ||
      X509_add1_ext_i2d(cert.get(), NID_subject_alt_name, names.get(), 0, X509V3_ADD_DEFAULT) != 1 ||
      !add_extension(cert.get(), ca_cert, NID_basic_constraints, "critical,CA:FALSE") ||
      !add_extension(cert.get(), ca_cert, NID_key_usage, "critical,digitalSignature") ||
      !add_extension(cert.get(), ca_cert, NID_ext_key_usage, "clientAuth") ||
      !add_extension(cert.get(), ca_cert, NID_authority_key_identifier, "keyid:always")) {
    return error(Code::Internal, "cannot build the device certificate");
  }
  TRY_VOID(sign_cert(cert.get(), ca_key.get()));
  return cert_pem(cert.get());
}

Result<DeviceCertificate> verify_device_certificate(std::string_view pem, std::string_view ca_pem, WallTime now) {
  const CertPtr cert = TRY(parse_cert(pem));
  const std::shared_ptr<X509_STORE> store = TRY(store_of(ca_pem));
  TRY_VOID(verify_parsed(cert.get(), store.get(), now, X509_PURPOSE_SSL_CLIENT));
  // A certificate without the extension would pass the purpose check: ours always carry it.
  if ((X509_get_extension_flags(cert.get()) & EXFLAG_XKUSAGE) == 0 ||
      (X509_get_extended_key_usage(cert.get()) & XKU_SSL_CLIENT) == 0) {
    return error(Code::Unauthenticated, "the certificate is not a machine's");
  }
  DeviceCertificate out;
  MachineNames machine_names = TRY(names_of_machine(cert.get()));
  out.node_id = std::move(machine_names.node);
  out.tpm = std::move(machine_names.tpm);
  out.device_key = TRY(ed25519_key(X509_get0_pubkey(cert.get())));
  out.not_before = TRY(to_wall(X509_get0_notBefore(cert.get())));
  out.not_after = TRY(to_wall(X509_get0_notAfter(cert.get())));
  const ASN1_INTEGER* serial = X509_get0_serialNumber(cert.get());
  out.serial = hex({ASN1_STRING_get0_data(serial), static_cast<std::size_t>(ASN1_STRING_length(serial))});
  return out;
}

Status verify_chain(std::string_view pem, std::string_view ca_pem, WallTime now) {
  const CertPtr cert = TRY(parse_cert(pem));
  const std::shared_ptr<X509_STORE> store = TRY(store_of(ca_pem));
  return verify_parsed(cert.get(), store.get(), now, 0);
}

static Bytes der_sha256(X509* cert) {
  unsigned char* der = nullptr;
  const int size = i2d_X509(cert, &der);
  MUSTER_CHECK(size > 0);
  const Digest digest = sha256({der, static_cast<std::size_t>(size)});
  free_openssl(der);
  return {digest.begin(), digest.end()};
}

Result<Bytes> certificate_sha256(std::string_view pem) {
  const CertPtr cert = TRY(parse_cert(pem));
  return der_sha256(cert.get());
}

Result<WallTime> certificate_expiry(std::string_view pem) {
  const CertPtr cert = TRY(parse_cert(pem));
  return to_wall(X509_get0_notAfter(cert.get()));
}

Result<Validity> certificate_validity(std::string_view pem) {
  const CertPtr cert = TRY(parse_cert(pem));
  return Validity{TRY(to_wall(X509_get0_notBefore(cert.get()))), TRY(to_wall(X509_get0_notAfter(cert.get())))};
}

Result<std::string> find_certificate(std::string_view bundle_pem, ByteView wanted) {
  if (bundle_pem.size() > kPemBytesMax) return error(Code::TooLarge, "the certificate bundle is too large");
  const BioPtr bio = read_bio(bundle_pem);
  for (;;) {
    const CertPtr cert(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
    if (!cert) break;
    if (equal(der_sha256(cert.get()), wanted)) return cert_pem(cert.get());
  }
  return error(Code::Unauthenticated,
               "the server's certificates do not contain the CA that the token pins; is the address right?");
}

}  // namespace muster::crypto
