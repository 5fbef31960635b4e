#include "crypto/tpm_key.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/provider.h>
#include <unistd.h>

#include <cstdlib>

#include "crypto/openssl_ptr.h"
#include "crypto/sign.h"

namespace muster::crypto {
namespace {

constexpr const char* kTpmDevice = "/dev/tpmrm0";
constexpr const char* kByTpm = "?provider=tpm2";

struct TpmContext {
  OSSL_LIB_CTX* library = nullptr;
  OSSL_PROVIDER *plain = nullptr, *tpm = nullptr;
  TpmContext() = default;
  TpmContext(const TpmContext&) = delete;
  TpmContext& operator=(const TpmContext&) = delete;
  ~TpmContext() {
    if (tpm != nullptr) OSSL_PROVIDER_unload(tpm);
    if (plain != nullptr) OSSL_PROVIDER_unload(plain);
    OSSL_LIB_CTX_free(library);
  }
};

std::string openssl_says() {
  char text[256] = "no reason given";
  if (const auto code = ERR_get_error(); code != 0) ERR_error_string_n(code, text, sizeof text);
  ERR_clear_error();
  return text;
}

Error tpm_fault(std::string_view what) {
  return error(Code::Unavailable, std::string(what) + ": " + openssl_says(), "tpm");
}

Result<std::shared_ptr<TpmContext>> open_tpm(const std::string& where) {
  ERR_clear_error();
  const std::string at = where.empty() ? std::string("device:") + kTpmDevice : where;
  if (const char* now = std::getenv("TPM2OPENSSL_TCTI"); now == nullptr || at != now)
    setenv("TPM2OPENSSL_TCTI", at.c_str(), 1);
  auto context = std::make_shared<TpmContext>();
  context->library = OSSL_LIB_CTX_new();
  if (context->library == nullptr) return tpm_fault("OpenSSL cannot be set up for the TPM");
  context->plain = OSSL_PROVIDER_load(context->library, "default");
  context->tpm = OSSL_PROVIDER_load(context->library, "tpm2");
  if (context->tpm == nullptr || context->plain == nullptr)
    return error(
        Code::Unavailable,
        "the TPM cannot be used; install OpenSSL's provider for it (apt-get install tpm2-openssl) and see that "
        "root may open " +
            std::string(kTpmDevice) + ": " + openssl_says(),
        "tpm");
  return context;
}

std::string drain(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return size > 0 ? std::string(data, static_cast<std::size_t>(size)) : std::string();
}

bool on_p256(EVP_PKEY* key) {
  char group[64] = {};
  std::size_t size = 0;
  if (EVP_PKEY_get_group_name(key, group, sizeof group, &size) != 1) return false;
  return std::string_view(group, size) == "prime256v1" || std::string_view(group, size) == "P-256";
}

}  // namespace

struct TpmKey::Impl {
  std::shared_ptr<TpmContext> context;  // outlives the key
  KeyPtr key;
  std::string pem;
  Bytes public_der;
};

namespace {
// What others see of it.
Result<Bytes> public_of(EVP_PKEY* key) {
  unsigned char* der = nullptr;
  const int size = i2d_PUBKEY(key, &der);
  if (size <= 0) return tpm_fault("the TPM's key has no public half");
  Bytes out(der, der + size);
  free_openssl(der);
  return out;
}
}  // namespace

Result<TpmKey> TpmKey::create(const std::string& where) {
  auto impl = std::make_shared<Impl>();
  impl->context = TRY(open_tpm(where));
  const KeyCtxPtr make(EVP_PKEY_CTX_new_from_name(impl->context->library, "EC", "provider=tpm2"));
  EVP_PKEY* made = nullptr;
  char group[] = "P-256";
  const OSSL_PARAM wanted[] = {OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, group, 0),
                               OSSL_PARAM_construct_end()};
  if (!make || EVP_PKEY_keygen_init(make.get()) != 1 || EVP_PKEY_CTX_set_params(make.get(), wanted) != 1 ||
      EVP_PKEY_generate(make.get(), &made) != 1)
    return tpm_fault("the TPM makes no key");
  impl->key.reset(made);
  const BioPtr bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_PrivateKey_ex(bio.get(), made, nullptr, nullptr, 0, nullptr, nullptr, impl->context->library,
                                  kByTpm) != 1)
    return tpm_fault("the TPM's key cannot be written down");
  impl->pem = drain(bio.get());
  if (impl->pem.find("TSS2 PRIVATE KEY") == std::string::npos)
    return error(Code::Internal, "the key that was made does not lie in the TPM", "tpm");
  impl->public_der = TRY(public_of(made));
  return TpmKey(std::move(impl));
}

Result<TpmKey> TpmKey::load(std::string_view pem, const std::string& where) {
  auto impl = std::make_shared<Impl>();
  if (pem.find("TSS2 PRIVATE KEY") == std::string_view::npos)
    return error(Code::DataLoss, "the file of the TPM's key holds none", "tpm");
  impl->context = TRY(open_tpm(where));
  const BioPtr bio = read_bio(pem);
  impl->key.reset(PEM_read_bio_PrivateKey_ex(bio.get(), nullptr, nullptr, nullptr, impl->context->library, kByTpm));
  if (!impl->key) return tpm_fault("this TPM does not take the key: it is another machine's, or the TPM was cleared");
  impl->pem = pem;
  impl->public_der = TRY(public_of(impl->key.get()));
  return TpmKey(std::move(impl));
}

const std::string& TpmKey::wrapped_pem() const {
  return impl_->pem;
}
const Bytes& TpmKey::public_der() const {
  return impl_->public_der;
}

Result<Bytes> TpmKey::sign(std::string_view domain, ByteView message) const {
  const Bytes framed_message = framed(domain, {message});
  const DigestPtr digest(EVP_MD_CTX_new());
  Bytes out(kTpmSignatureMax);
  std::size_t size = out.size();
  if (!digest ||
      EVP_DigestSignInit_ex(digest.get(), nullptr, "SHA256", impl_->context->library, kByTpm, impl_->key.get(),
                            nullptr) != 1 ||
      EVP_DigestSign(digest.get(), out.data(), &size, framed_message.data(), framed_message.size()) != 1)
    return tpm_fault("the TPM does not sign");
  out.resize(size);
  return out;
}

bool tpm_present() {
  return access(kTpmDevice, F_OK) == 0;
}

bool tpm_signed(ByteView public_der, std::string_view domain, ByteView message, ByteView signature) {
  if (public_der.empty() || public_der.size() > kTpmPublicMax || signature.size() > kTpmSignatureMax) return false;
  const unsigned char* at = public_der.data();
  const KeyPtr key(d2i_PUBKEY(nullptr, &at, static_cast<long>(public_der.size())));
  if (!key || at != public_der.data() + public_der.size() || EVP_PKEY_get_base_id(key.get()) != EVP_PKEY_EC ||
      !on_p256(key.get())) {
    ERR_clear_error();
    return false;
  }
  const Bytes framed_message = framed(domain, {message});
  const DigestPtr digest(EVP_MD_CTX_new());
  const bool good = digest && EVP_DigestVerifyInit(digest.get(), nullptr, EVP_sha256(), nullptr, key.get()) == 1 &&
                    EVP_DigestVerify(digest.get(), signature.data(), signature.size(), framed_message.data(),
                                     framed_message.size()) == 1;
  ERR_clear_error();
  return good;
}

}  // namespace muster::crypto
