#include "crypto/key_ring.h"

#include <gtest/gtest.h>

#include <thread>

#include "crypto/random.h"

namespace muster::crypto {
namespace {

Secret32 key_of_byte(std::uint8_t byte) {
  Key32 out;
  out.fill(byte);
  return Secret32(out);
}

KeyRing ring_with(std::uint32_t current) {
  return KeyRing({{1, key_of_byte(1)}, {7, key_of_byte(7)}}, current);
}

TEST(KeyRing, OpensWhatItSealedAtItsPlaceAndNowhereElse) {
  KeyRing ring = ring_with(7);
  for (const std::size_t size : {0u, 1u, 16u, 1000u, 100'000u}) {
    const Bytes plain = random_bytes(size);
    const Bytes sealed = ring.seal("entry 3", plain);
    EXPECT_EQ(sealed.size(), size + KeyRing::kOverhead);
    EXPECT_EQ(KeyRing::key_of(sealed), 7u);
    EXPECT_EQ(ring.open("entry 3", sealed).value(), plain);
    EXPECT_EQ(ring.open("entry 4", sealed).error().code, Code::DataLoss);
  }
}

// The layout is plain XChaCha20-Poly1305, so other programs can open it.
TEST(KeyRing, IsXChaCha20Poly1305WithTheNonceInFront) {
  KeyRing ring = ring_with(1);
  for (int i = 0; i < 3; ++i) {
    const Bytes sealed = ring.seal("here", as_bytes("text"));
    const ByteView nonce = ByteView(sealed).subspan(8, 24), body = ByteView(sealed).subspan(32);
    const auto plain = xchacha_open(key_of_byte(1), nonce.first<24>(), as_bytes("here"), body);
    ASSERT_TRUE(plain);
    EXPECT_EQ(as_string(*plain), "text");
  }
}

TEST(KeyRing, NoNonceTwiceInOneRingNorInAnother) {
  KeyRing one = ring_with(1), other = ring_with(1);
  std::set<Bytes> seen;
  for (int i = 0; i < 1000; ++i) {
    for (KeyRing* ring : {&one, &other}) {
      const Bytes sealed = ring->seal("here", as_bytes("same"));
      EXPECT_TRUE(seen.insert(Bytes(sealed.begin() + 8, sealed.begin() + 32)).second);
    }
  }
  EXPECT_EQ(as_string(one.open("here", other.seal("here", as_bytes("same"))).value()), "same");
}

TEST(KeyRing, AnyChangedByteIsNoticedAndNothingIsToldOfThePlainText) {
  KeyRing ring = ring_with(1);
  const Bytes sealed = ring.seal("here", as_bytes("canary"));
  EXPECT_EQ(as_string(sealed).find("canary"), std::string::npos);
  for (std::size_t i = 0; i < sealed.size(); ++i) {
    Bytes changed = sealed;
    changed[i] ^= 1;
    const auto opened = ring.open("here", changed);
    ASSERT_FALSE(opened.ok()) << i;
    EXPECT_EQ(opened.error().code, Code::DataLoss);
  }
  EXPECT_FALSE(ring.open("here", ByteView(sealed).first(sealed.size() - 1)).ok());
  EXPECT_FALSE(ring.open("here", as_bytes("plain")).ok());
}

TEST(KeyRing, OldKeysOpenAndAKeyThatIsNotHereIsNamed) {
  KeyRing before = ring_with(1), after = ring_with(7), without({{7, key_of_byte(7)}}, 7);
  const Bytes sealed = before.seal("here", as_bytes("text"));
  EXPECT_EQ(as_string(after.open("here", sealed).value()), "text");
  EXPECT_NE(without.open("here", sealed).error().message.find("data key 1"), std::string::npos);
  KeyRing wrong({{1, key_of_byte(9)}}, 1);
  EXPECT_FALSE(wrong.open("here", sealed).ok());
}

TEST(KeyRing, ManyThreadsSealAndOpen) {
  KeyRing ring = ring_with(1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&ring, t] {
      for (int i = 0; i < 500; ++i) {
        const std::string place = "place " + std::to_string(t) + " " + std::to_string(i);
        EXPECT_EQ(as_string(ring.open(place, ring.seal(place, as_bytes(place))).value()), place);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace muster::crypto
