#include "overlay/stun.h"

#include <gtest/gtest.h>

#include <random>

namespace muster::overlay {
namespace {

StunTransaction numbered() {
  return {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
}

TEST(Stun, TheSampleAnswerOfRfc5769IsRead) {
  // Section 2.2: 192.0.2.1 port 32853, behind a SOFTWARE attribute and before integrity and fingerprint.
  const Bytes answer = *unhex(
      "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f722000200008000"
      "1a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96");
  StunTransaction transaction;
  std::copy_n(answer.begin() + 8, 12, transaction.begin());
  EXPECT_TRUE(is_stun_answer(answer));
  EXPECT_EQ(read_stun_answer(answer, transaction), Endpoint::udp(0xc0000201, 32853));
  transaction[0] ^= 1;
  EXPECT_EQ(read_stun_answer(answer, transaction), std::nullopt) << "nobody asked that";
}

TEST(Stun, RoundTrips) {
  const Bytes request = stun_request(numbered());
  EXPECT_EQ(read_stun_request(request), numbered());
  EXPECT_FALSE(is_stun_answer(request));
  const Bytes answer = stun_answer(numbered(), 0xcb007165, 51'820);
  EXPECT_EQ(answer.size(), 32U);
  EXPECT_EQ(read_stun_answer(answer, numbered()), Endpoint::udp(0xcb007165, 51'820));
  EXPECT_EQ(read_stun_request(answer), std::nullopt) << "an answer is never answered";
}

TEST(Stun, DamageIsRefused) {
  std::mt19937 random(1);
  const Bytes answer = stun_answer(numbered(), 0xcb007165, 51'820);
  for (std::size_t n = 0; n < answer.size(); ++n) {
    EXPECT_EQ(read_stun_answer(ByteView(answer).first(n), numbered()), std::nullopt);
    EXPECT_EQ(read_stun_request(ByteView(answer).first(n)), std::nullopt);
  }
  for (int i = 0; i < 20'000; ++i) {
    Bytes damaged = answer;
    damaged.resize(random() % 64);
    for (int k = 0; k < 3 && !damaged.empty(); ++k)
      damaged[random() % damaged.size()] = static_cast<std::uint8_t>(random());
    (void)read_stun_answer(damaged, numbered());
    (void)read_stun_request(damaged);
  }
}

}  // namespace
}  // namespace muster::overlay
