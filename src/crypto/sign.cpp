#include "crypto/sign.h"

#include <algorithm>

#include "base/endian.h"
#include "crypto/openssl_ptr.h"
#include "crypto/random.h"

namespace muster::crypto {
namespace {

std::shared_ptr<EVP_PKEY> ed25519_key(const Secret32& seed) {
  KeyPtr key(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, seed.bytes.data(), seed.bytes.size()));
  MUSTER_CHECK(key != nullptr);
  return key;
}

void append_framed(Bytes& out, ByteView part) {
  append_be(out, static_cast<std::uint32_t>(part.size()));
  out.insert(out.end(), part.begin(), part.end());
}

}  // namespace

Bytes framed(std::string_view domain, std::initializer_list<ByteView> parts) {
  Bytes out;
  append_framed(out, as_bytes(domain));
  for (ByteView part : parts) append_framed(out, part);
  return out;
}

SigningKey SigningKey::generate() {
  return std::move(from_seed(random_key32())).value();
}

Result<SigningKey> SigningKey::from_seed(ByteView seed) {
  if (seed.size() != 32) return error(Code::InvalidArgument, "an Ed25519 seed has 32 bytes");
  SigningKey out;
  std::copy(seed.begin(), seed.end(), out.seed_.bytes.begin());
  out.key_ = ed25519_key(out.seed_);
  std::size_t size = out.public_.size();
  MUSTER_CHECK(EVP_PKEY_get_raw_public_key(out.key_.get(), out.public_.data(), &size) == 1 && size == 32);
  return out;
}

Result<SigningKey> SigningKey::from_pem(std::string_view pem) {
  const BioPtr bio = read_bio(pem);
  // An empty passphrase instead of a prompt on the terminal for an encrypted file.
  const KeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, const_cast<char*>("")));
  if (key == nullptr || EVP_PKEY_get_base_id(key.get()) != EVP_PKEY_ED25519) {
    return error(Code::DataLoss,
                 "the file holds no Ed25519 private key in PEM form; restore it from a backup or enrol again");
  }
  Secret32 seed;
  std::size_t size = seed.bytes.size();
  if (EVP_PKEY_get_raw_private_key(key.get(), seed.bytes.data(), &size) != 1 || size != 32) {
    return error(Code::DataLoss, "the Ed25519 private key cannot be read");
  }
  return from_seed(seed.bytes);
}

std::string SigningKey::to_pem() const {
  const BioPtr bio(BIO_new(BIO_s_secmem()));
  MUSTER_CHECK(bio != nullptr &&
               PEM_write_bio_PKCS8PrivateKey(bio.get(), key_.get(), nullptr, nullptr, 0, nullptr, nullptr) == 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return {data, static_cast<std::size_t>(size)};
}

Bytes SigningKey::sign(ByteView message) const {
  const DigestPtr context(EVP_MD_CTX_new());
  Bytes out(kSignatureBytes);
  std::size_t size = out.size();
  MUSTER_CHECK(context != nullptr && EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key_.get()) == 1);
  MUSTER_CHECK(EVP_DigestSign(context.get(), out.data(), &size, message.data(), message.size()) == 1 && size == 64);
  return out;
}

bool verify(ByteView public_key, ByteView message, ByteView signature) {
  if (public_key.size() != 32 || signature.size() != kSignatureBytes) return false;
  const KeyPtr key(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, public_key.data(), public_key.size()));
  const DigestPtr context(EVP_MD_CTX_new());
  if (key == nullptr || context == nullptr) return false;
  if (EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get()) != 1) return false;
  return EVP_DigestVerify(context.get(), signature.data(), signature.size(), message.data(), message.size()) == 1;
}

}  // namespace muster::crypto
