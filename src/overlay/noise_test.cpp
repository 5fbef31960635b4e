#include "overlay/noise.h"

#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"
#include "crypto/aead.h"
#include "crypto/random.h"
#include "overlay/replay.h"

namespace muster::overlay {
namespace {

Bytes from_hex(std::string_view text) {
  return unhex(text).value();
}
crypto::X25519Pair pair_hex(std::string_view text) {
  crypto::X25519Pair out;
  out.secret = Secret32(*crypto::key32(from_hex(text)));
  out.public_key = crypto::x25519_public(out.secret);
  return out;
}

// Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as published with the cacophony vector set.
struct Vector {
  crypto::X25519Pair initiator = pair_hex("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1");
  crypto::X25519Pair initiator_ephemeral = pair_hex("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a");
  crypto::X25519Pair responder = pair_hex("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893");
  crypto::X25519Pair responder_ephemeral = pair_hex("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b");
  Secret32 psk = Secret32(*crypto::key32(from_hex("54686973206973206d7920417573747269616e20706572737065637469766521")));
  Bytes prologue = from_hex("4a6f686e2047616c74");
  Bytes payload1 = from_hex("4c756477696720766f6e204d69736573"), payload2 = from_hex("4d757272617920526f746862617264");
  std::string message1 =
      "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944001e21de9f98ddd8e2ad57527207feb56253c9c94a9e4967"
      "82ecfcb2a75fbcaf"
      "1b52948cc48daefe660c62119ab5000980c84831215f2441eba616548e832985464cf17e51ee93109008399a21f7e13f";
  std::string message2 =
      "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843cb765f2caef0751b8f007572dab0322217755c0632f36571"
      "7edbf34d33e87a";
  std::string transport1 = "8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7";
  std::string transport2 = "07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef";
};

TEST(Noise, PublishedVectorBothRoles) {
  const Vector v;
  const Secret32 ss = *crypto::x25519_agree(v.initiator.secret, v.responder.public_key);
  Bytes first_bytes;
  auto noise_i =
      write_first(v.initiator, v.responder.public_key, ss, v.initiator_ephemeral, v.prologue, v.payload1, first_bytes);
  ASSERT_TRUE(noise_i);
  EXPECT_EQ(hex(first_bytes), v.message1);
  auto first = read_first(v.responder, v.prologue, first_bytes);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->remote_static, v.initiator.public_key);
  Bytes payload(v.payload1.size());
  ASSERT_TRUE(read_first_payload(*first, ss, payload));
  EXPECT_EQ(payload, v.payload1);
  Bytes second_bytes;
  ASSERT_TRUE(write_second(first->noise, first->ephemeral, first->remote_static, v.responder_ephemeral, v.psk,
                           v.payload2, second_bytes));
  EXPECT_EQ(hex(second_bytes), v.message2);
  payload.resize(v.payload2.size());
  ASSERT_TRUE(read_second(*noise_i, v.initiator, v.initiator_ephemeral, v.psk, second_bytes, payload));
  EXPECT_EQ(payload, v.payload2);
  const auto [send, receive] = noise_i->split();
  EXPECT_EQ(first->noise.split().first.bytes, send.bytes);
  const Bytes plain1 = from_hex("462e20412e20486179656b"), plain2 = from_hex("4361726c204d656e676572");
  Bytes sealed(plain1.size() + 16);
  crypto::SealKey(send).seal(0, {}, plain1, sealed.data());
  EXPECT_EQ(hex(sealed), v.transport1);
  crypto::SealKey(receive).seal(0, {}, plain2, sealed.data());
  EXPECT_EQ(hex(sealed), v.transport2);
}

TEST(Noise, WrongPskPrologueOrBitIsRefused) {
  const Vector v;
  const Secret32 ss = *crypto::x25519_agree(v.initiator.secret, v.responder.public_key);
  EXPECT_FALSE(read_first(v.responder, as_bytes("other"), from_hex(v.message1)));
  Bytes bytes;
  auto noise =
      write_first(v.initiator, v.responder.public_key, ss, v.initiator_ephemeral, v.prologue, v.payload1, bytes);
  Bytes payload(v.payload2.size());
  Noise copy = *noise;
  EXPECT_FALSE(read_second(copy, v.initiator, v.initiator_ephemeral, Secret32{}, from_hex(v.message2), payload));
  Bytes bad = from_hex(v.message2);
  bad[40] ^= 1;
  copy = *noise;
  EXPECT_FALSE(read_second(copy, v.initiator, v.initiator_ephemeral, v.psk, bad, payload));
}

TEST(Replay, EdgesOfTheWindow) {
  ReplayWindow window;
  EXPECT_TRUE(window.accept(0));
  EXPECT_FALSE(window.accept(0));
  EXPECT_TRUE(window.accept(kReplayWindow));
  EXPECT_TRUE(window.accept(1));  // the oldest still inside
  EXPECT_FALSE(window.accept(0));
  EXPECT_TRUE(window.accept(1'000'000));
  EXPECT_FALSE(window.accept(1'000'000 - kReplayWindow));
  EXPECT_TRUE(window.accept(1'000'001 - kReplayWindow));
  EXPECT_TRUE(window.accept(~std::uint64_t{0} - (1 << 13)));
}

TEST(Replay, MatchesASetUnderRandomOrder) {
  Rng rng(7);
  for (int round = 0; round < 20; ++round) {
    ReplayWindow window;
    std::set<std::uint64_t> seen;
    std::uint64_t highest = 0;
    std::uint64_t base = rng.below(1 << 20);
    for (int i = 0; i < 20'000; ++i) {
      if (rng.chance(1, 500)) base += rng.below(20'000);
      base += rng.below(3);
      const std::uint64_t counter = base - std::min<std::uint64_t>(base, rng.below(rng.chance(1, 10) ? 12'000 : 40));
      const bool expected = !seen.contains(counter) && (seen.empty() || counter + kReplayWindow > highest);
      ASSERT_EQ(window.accept(counter), expected) << round << " " << i << " " << counter;
      if (expected) {
        seen.insert(counter);
        highest = std::max(highest, counter);
      }
    }
  }
}

}  // namespace
}  // namespace muster::overlay
