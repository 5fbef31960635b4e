#include "crypto/password.h"

#include <argon2.h>
#include <openssl/evp.h>

#include "crypto/random.h"

namespace muster::crypto {
namespace {
constexpr std::uint32_t kPasses = 3, kMemoryKib = 64 << 10, kLanes = 1;
constexpr std::string_view kPrefix = "$argon2id$v=19$m=65536,t=3,p=1$";
constexpr std::string_view kScrypt = "$scrypt$ln=15,r=8,p=1$";
constexpr std::size_t kPasswordBytesMax = 1024, kSaltBytes = 16, kHashBytes = 32, kEncodedBytesMax = 128;

bool verify_scrypt(std::string_view password, std::string_view salt_and_hash) {
  const std::size_t split = salt_and_hash.find('$');
  if (split == std::string_view::npos) return false;
  const auto salt = unbase64url(salt_and_hash.substr(0, split));
  const auto stored = unbase64url(salt_and_hash.substr(split + 1));
  Secret32 key;
  return salt && stored &&
         EVP_PBE_scrypt(password.data(), password.size(), salt->data(), salt->size(), 1ULL << 15, 8, 1, 64ULL << 20,
                        key.bytes.data(), key.bytes.size()) == 1 &&
         equal(key.bytes, *stored);
}
}  // namespace

Result<std::string> hash_password(std::string_view password) {
  if (password.size() < 8 || password.size() > kPasswordBytesMax)
    return error(Code::InvalidArgument, "a password has 8 to 1024 bytes; choose another", "password");
  const Bytes salt = random_bytes(kSaltBytes);
  std::string encoded(kEncodedBytesMax, '\0');
  const int rc = argon2id_hash_encoded(kPasses, kMemoryKib, kLanes, password.data(), password.size(), salt.data(),
                                       salt.size(), kHashBytes, encoded.data(), encoded.size());
  encoded.resize(encoded.find('\0'));
  if (rc != ARGON2_OK || !encoded.starts_with(kPrefix))
    return error(Code::ResourceExhausted, "not enough memory to hash a password; try again");
  return encoded;
}

bool verify_password(std::string_view password, std::string_view encoded) {
  if (password.size() > kPasswordBytesMax || encoded.size() > kEncodedBytesMax) return false;
  if (encoded.starts_with(kScrypt)) return verify_scrypt(password, encoded.substr(kScrypt.size()));
  // The prefix first: what is stored never chooses how much memory a check takes.
  return encoded.starts_with(kPrefix) &&
         argon2id_verify(std::string(encoded).c_str(), password.data(), password.size()) == ARGON2_OK;
}

bool outdated_hash(std::string_view encoded) {
  return !encoded.starts_with(kPrefix);
}

}  // namespace muster::crypto
