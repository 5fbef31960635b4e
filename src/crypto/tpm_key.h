#pragma once
// A P-256 key that lies in this machine's TPM 2.0, by OpenSSL's provider "tpm2" (package tpm2-openssl), which is loaded
// when it is asked for: what is stored is wrapped by that TPM and of no use elsewhere. And the check of what such a key
// signed, for which no TPM is needed: ECDSA over SHA-256 in DER. A TpmKey is one thread's at a time; calls take a TPM's
// time (up to a second).
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace muster::crypto {

class TpmKey {
 public:
  // Where the TPM is, as the TSS names it ("device:/dev/tpmrm0", "swtpm:host=127.0.0.1,port=2321"); empty: the
  // machine's own. The first call sets an environment variable: before other threads run.
  static Result<TpmKey> create(const std::string& where);
  static Result<TpmKey> load(std::string_view pem, const std::string& where);
  const std::string& wrapped_pem() const;  // not secret by itself, but for the machine's root only
  const Bytes& public_der() const;         // SubjectPublicKeyInfo
  // Over framed(domain, parts), as crypto/sign.h has it.
  Result<Bytes> sign(std::string_view domain, ByteView message) const;

 private:
  struct Impl;
  explicit TpmKey(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

bool tpm_present();  // this machine has a TPM 2.0 with a resource manager

inline constexpr std::size_t kTpmPublicMax = 256, kTpmSignatureMax = 128;
inline constexpr std::string_view kTpmEnrolDomain = "muster-tpm-enrol-v1", kTpmHelloDomain = "muster-tpm-hello-v1";
// public_der: a P-256 key; false also for anything else.
bool tpm_signed(ByteView public_der, std::string_view domain, ByteView message, ByteView signature);

}  // namespace muster::crypto
