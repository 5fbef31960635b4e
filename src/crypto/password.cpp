#include "crypto/password.h"

#include <openssl/evp.h>

#include "crypto/random.h"

namespace muster::crypto {
namespace {
constexpr std::string_view kPrefix = "$scrypt$ln=15,r=8,p=1$";
constexpr std::size_t kPasswordBytesMax = 1024;

bool derive(std::string_view password, ByteView salt, Secret32& out) {
  return EVP_PBE_scrypt(password.data(), password.size(), salt.data(), salt.size(), 1ULL << 15, 8, 1, 64ULL << 20,
                        out.bytes.data(), out.bytes.size()) == 1;
}
}  // namespace

Result<std::string> hash_password(std::string_view password) {
  if (password.size() < 8 || password.size() > kPasswordBytesMax) {
    return error(Code::InvalidArgument, "a password has 8 to 1024 bytes; choose another", "password");
  }
  const Bytes salt = random_bytes(16);
  Secret32 key;
  if (!derive(password, salt, key))
    return error(Code::ResourceExhausted, "not enough memory to hash a password; try again");
  return std::string(kPrefix) + base64url(salt) + "$" + base64url(key.bytes);
}

bool verify_password(std::string_view password, std::string_view encoded) {
  if (password.size() > kPasswordBytesMax || !encoded.starts_with(kPrefix)) return false;
  encoded.remove_prefix(kPrefix.size());
  const std::size_t split = encoded.find('$');
  if (split == std::string_view::npos) return false;
  const auto salt = unbase64url(encoded.substr(0, split));
  const auto stored = unbase64url(encoded.substr(split + 1));
  Secret32 key;
  return salt && stored && derive(password, *salt, key) && equal(key.bytes, *stored);
}

}  // namespace muster::crypto
