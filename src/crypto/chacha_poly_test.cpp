// Our own ChaCha20-Poly1305 against OpenSSL's: every length up to more than a datagram's, patterns that carry through
// every limb, in place and not, and damage everywhere.
#include "crypto/chacha_poly.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <algorithm>
#include <memory>
#include <random>

#include "crypto/aead.h"

namespace muster::crypto {
namespace {

struct Case {
  Key32 key{};
  AeadNonce nonce{};
  Bytes plain;
};

Bytes reference(const Case& c) {
  const std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)> context(EVP_CIPHER_CTX_new(),
                                                                                EVP_CIPHER_CTX_free);
  Bytes out(c.plain.size() + kAeadTag);
  int size = 0;
  EXPECT_EQ(EVP_EncryptInit_ex(context.get(), EVP_chacha20_poly1305(), nullptr, c.key.data(), c.nonce.data()), 1);
  if (!c.plain.empty())
    EXPECT_EQ(EVP_EncryptUpdate(context.get(), out.data(), &size, c.plain.data(), static_cast<int>(c.plain.size())), 1);
  EXPECT_EQ(EVP_EncryptFinal_ex(context.get(), out.data() + c.plain.size(), &size), 1);
  EXPECT_EQ(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, kAeadTag, out.data() + c.plain.size()), 1);
  return out;
}

// false: as the machine is; true: as one without AVX-512 is.
struct ChaChaPoly : ::testing::TestWithParam<bool> {
  std::mt19937 random{1};
  void SetUp() override {
    if (!chacha_poly_fast()) GTEST_SKIP() << "this machine has no AVX2; OpenSSL does it all";
    chacha_poly_without_avx512(GetParam());
  }
  void TearDown() override { chacha_poly_without_avx512(false); }
  void fill(std::span<std::uint8_t> to, int pattern) {
    for (auto& byte : to)
      byte = pattern == 0   ? static_cast<std::uint8_t>(random())
             : pattern == 1 ? 0xff
             : pattern == 2 ? 0
                            : (random() % 2 == 0 ? 0xff : 0);
  }
  Case make(std::size_t size, int pattern) {
    Case c;
    c.plain.resize(size);
    fill(c.key, pattern), fill(c.nonce, pattern), fill(c.plain, pattern);
    return c;
  }
};

TEST_P(ChaChaPoly, IsOpenSslsForEveryLength) {
  for (std::size_t size = 0; size < 2300; ++size) {
    const Case c = make(size, static_cast<int>(size % 4));
    const Bytes right = reference(c);
    Bytes sealed(size + kAeadTag);
    chacha_poly_seal(c.key, c.nonce, c.plain, sealed.data());
    ASSERT_EQ(sealed, right) << size;
    Bytes opened(size);
    ASSERT_TRUE(chacha_poly_open(c.key, c.nonce, sealed, opened.data())) << size;
    ASSERT_EQ(opened, c.plain) << size;
  }
}

TEST_P(ChaChaPoly, IsOpenSslsForLongAndUnalignedOnes) {
  for (int i = 0; i < 60; ++i) {
    const Case c = make(random() % 70'000, i % 4);
    const Bytes right = reference(c);
    Bytes room(c.plain.size() + kAeadTag + 64);
    std::uint8_t* at = room.data() + 1 + i;
    chacha_poly_seal(c.key, c.nonce, c.plain, at);
    ASSERT_TRUE(std::equal(right.begin(), right.end(), at)) << c.plain.size();
  }
}

// The end of each packet is at work beside the beginning of the next.
TEST_P(ChaChaPoly, RowsAreWhatEachIsAlone) {
  for (int round = 0; round < 300; ++round) {
    const bool in_place = round % 3 == 0;
    std::vector<Case> cases;
    std::vector<Bytes> sealed, opened;
    for (std::size_t i = random() % 12; i > 0; --i)
      cases.push_back(make(random() % 2'000 * (random() % 4 != 0), round % 4));
    for (const Case& c : cases) {
      sealed.push_back(in_place ? c.plain : Bytes());
      sealed.back().resize(c.plain.size() + kAeadTag);
      opened.emplace_back(c.plain.size());
    }
    std::vector<AeadPacket> row;
    for (std::size_t i = 0; i < cases.size(); ++i)
      row.push_back({.key = cases[i].key.data(),
                     .nonce = cases[i].nonce,
                     .in = in_place ? ByteView(sealed[i]).first(cases[i].plain.size()) : ByteView(cases[i].plain),
                     .out = sealed[i].data()});
    chacha_poly_seal(row);
    for (std::size_t i = 0; i < cases.size(); ++i) {
      EXPECT_TRUE(row[i].good);
      ASSERT_EQ(sealed[i], reference(cases[i])) << i << " of " << cases.size();
    }
    const std::size_t forged = cases.empty() ? 0 : random() % cases.size();
    for (std::size_t i = 0; i < cases.size(); ++i) {
      if (i == forged) sealed[i][random() % sealed[i].size()] ^= 4;
      row[i].in = sealed[i], row[i].out = in_place ? sealed[i].data() : opened[i].data();
    }
    if (!cases.empty() && round % 5 == 0)
      row.push_back({.key = cases[0].key.data(), .in = ByteView(sealed[0]).first(7)});
    chacha_poly_open(row);
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const Bytes out(row[i].out, row[i].out + cases[i].plain.size());
      ASSERT_EQ(row[i].good, i != forged) << i << " of " << cases.size();
      ASSERT_EQ(out, i == forged ? Bytes(out.size()) : cases[i].plain);
    }
    if (row.size() > cases.size()) EXPECT_FALSE(row.back().good) << "too short";
  }
}

TEST_P(ChaChaPoly, WorksInPlace) {
  for (const std::size_t size : {0UL, 1UL, 447UL, 448UL, 449UL, 960UL, 1392UL, 1500UL, 9000UL}) {
    const Case c = make(size, 0);
    Bytes buffer = c.plain;
    buffer.resize(size + kAeadTag);
    chacha_poly_seal(c.key, c.nonce, ByteView(buffer).first(size), buffer.data());
    EXPECT_EQ(buffer, reference(c)) << size;
    EXPECT_TRUE(chacha_poly_open(c.key, c.nonce, buffer, buffer.data())) << size;
    EXPECT_TRUE(std::equal(c.plain.begin(), c.plain.end(), buffer.begin())) << size;
  }
}

TEST_P(ChaChaPoly, ReleasesNothingThatIsNotAuthentic) {
  for (const std::size_t size : {0UL, 1UL, 64UL, 448UL, 1000UL, 1392UL}) {
    const Case c = make(size, 0);
    Bytes sealed(size + kAeadTag);
    chacha_poly_seal(c.key, c.nonce, c.plain, sealed.data());
    for (std::size_t at = 0; at < sealed.size(); at += at + 20 < sealed.size() ? 1 + random() % 20 : 1) {
      Bytes damaged = sealed;
      damaged[at] ^= static_cast<std::uint8_t>(1U << (random() % 8));
      Bytes out(size, 7);
      ASSERT_FALSE(chacha_poly_open(c.key, c.nonce, damaged, out.data())) << size << " " << at;
      ASSERT_EQ(out, Bytes(size)) << "wiped";
    }
    Bytes out(size);
    for (std::size_t less = 0; less < sealed.size(); less += 1 + random() % 40)
      EXPECT_FALSE(chacha_poly_open(c.key, c.nonce, ByteView(sealed).first(less), out.data())) << less;
    AeadNonce other = c.nonce;
    other[11] ^= 1;
    EXPECT_FALSE(chacha_poly_open(c.key, other, sealed, out.data()));
  }
}

TEST_P(ChaChaPoly, IsWhatSealKeyUses) {
  const Case c = make(1392, 0);
  AeadNonce nonce{};
  nonce[4] = 9;
  Case counted = c;
  counted.nonce = nonce;
  Bytes sealed(c.plain.size() + kAeadTag), opened(c.plain.size());
  SealKey(Secret32(c.key)).seal(9, {}, c.plain, sealed.data());
  EXPECT_EQ(sealed, reference(counted));
  OpenKey open{Secret32(c.key)};
  EXPECT_TRUE(open.open(9, {}, sealed, opened.data()));
  EXPECT_EQ(opened, c.plain);
  EXPECT_FALSE(open.open(9, as_bytes("more"), sealed, opened.data())) << "additional data counts";
}

INSTANTIATE_TEST_SUITE_P(OnThisMachine, ChaChaPoly, ::testing::Bool());

}  // namespace
}  // namespace muster::crypto
