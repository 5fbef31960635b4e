// Our AEADs, X25519 and Ed25519 against Project Wycheproof's vectors (tests/data/wycheproof): what must come out, and
// what must be refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "crypto/aead.h"
#include "crypto/sign.h"
#include "crypto/x25519.h"

namespace muster::crypto {
namespace {

struct Vector {
  int number = 0;
  std::string result;
  std::vector<Bytes> fields;
  bool valid() const { return result == "valid"; }
};

std::vector<Vector> vectors_of(const std::string& name) {
  std::ifstream in(std::string(MUSTER_TEST_ROOT) + "/tests/data/wycheproof/" + name + ".txt");
  EXPECT_TRUE(in.good()) << name;
  std::vector<Vector> out;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("#")) continue;
    std::istringstream words(line);
    Vector vector;
    words >> vector.number >> vector.result;
    for (std::string word; words >> word;) vector.fields.push_back(word == "-" ? Bytes{} : unhex(word).value());
    out.push_back(std::move(vector));
  }
  return out;
}

// opened: nullopt when it was refused.
void check_aead(const Vector& v, const Bytes& sealed, const std::optional<Bytes>& opened) {
  const Bytes &plain = v.fields[3], &cipher = v.fields[4], &tag = v.fields[5];
  Bytes expected = cipher;
  expected.insert(expected.end(), tag.begin(), tag.end());
  EXPECT_EQ(sealed == expected, v.valid()) << v.number;
  ASSERT_EQ(opened.has_value(), v.valid()) << v.number;
  if (opened) EXPECT_EQ(*opened, plain) << v.number;
}

TEST(Wycheproof, ChaCha20Poly1305) {
  std::size_t checked = 0, fast = 0;
  for (const Vector& v : vectors_of("chacha20_poly1305")) {
    const Bytes &iv = v.fields[1], &ad = v.fields[2], &plain = v.fields[3];
    if (iv.size() != 12) continue;  // other sizes cannot be asked for
    AeadNonce nonce{};
    std::copy(iv.begin(), iv.end(), nonce.begin());
    const Secret32 key(key32(v.fields[0]).value());
    Bytes cipher = v.fields[4];
    cipher.insert(cipher.end(), v.fields[5].begin(), v.fields[5].end());
    Bytes sealed(plain.size() + kAeadTag), opened(plain.size());
    SealKey(key).seal_nonce(nonce, ad, plain, sealed.data());
    const bool ok = OpenKey(key).open_nonce(nonce, ad, cipher, opened.data());
    check_aead(v, sealed, ok ? std::optional(opened) : std::nullopt);
    ++checked;
    if (!ad.empty() || !chacha_poly_fast()) continue;
    chacha_poly_seal(key.bytes, nonce, plain, sealed.data());
    const bool fast_ok = chacha_poly_open(key.bytes, nonce, cipher, opened.data());
    check_aead(v, sealed, fast_ok ? std::optional(opened) : std::nullopt);
    ++fast;
  }
  EXPECT_EQ(checked, 316U);
  EXPECT_TRUE(!chacha_poly_fast() || fast > 50) << fast;
}

TEST(Wycheproof, XChaCha20Poly1305) {
  std::size_t checked = 0;
  for (const Vector& v : vectors_of("xchacha20_poly1305")) {
    const Bytes& iv = v.fields[1];
    if (iv.size() != 24) continue;
    const Secret32 key(key32(v.fields[0]).value());
    const std::span<const std::uint8_t, 24> nonce(iv.data(), 24);
    Bytes cipher = v.fields[4];
    cipher.insert(cipher.end(), v.fields[5].begin(), v.fields[5].end());
    check_aead(v, xchacha_seal(key, nonce, v.fields[2], v.fields[3]), xchacha_open(key, nonce, v.fields[2], cipher));
    ++checked;
  }
  EXPECT_EQ(checked, 306U);
}

TEST(Wycheproof, X25519) {
  std::size_t refused = 0, agreed = 0;
  for (const Vector& v : vectors_of("x25519")) {
    const Bytes& shared = v.fields[2];
    const auto secret = x25519_agree(Secret32(key32(v.fields[1]).value()), key32(v.fields[0]).value());
    const bool zero = std::all_of(shared.begin(), shared.end(), [](std::uint8_t byte) { return byte == 0; });
    ASSERT_EQ(secret.has_value(), !zero) << v.number;  // a low-order point gives zero, and is refused
    if (secret) EXPECT_EQ(Bytes(secret->bytes.begin(), secret->bytes.end()), shared) << v.number;
    ++(zero ? refused : agreed);
  }
  EXPECT_EQ(refused + agreed, 518U);
  EXPECT_GT(refused, 20U);
}

TEST(Wycheproof, Ed25519) {
  std::size_t checked = 0;
  for (const Vector& v : vectors_of("ed25519")) {
    EXPECT_EQ(verify(v.fields[0], v.fields[1], v.fields[2]), v.valid()) << v.number;
    ++checked;
  }
  EXPECT_EQ(checked, 150U);
}

}  // namespace
}  // namespace muster::crypto
