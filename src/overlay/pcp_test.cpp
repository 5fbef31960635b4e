#include "overlay/pcp.h"

#include <gtest/gtest.h>

#include "base/endian.h"
#include "base/rng.h"

namespace muster::overlay {
namespace {

const PcpMap kAsked{0xc0a80117, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 41641, 3600, 0, 41641};

Bytes joined(Bytes one, const Bytes& more) {
  one.insert(one.end(), more.begin(), more.end());
  return one;
}
// As a router would answer it.
Bytes answer_to(const PcpMap& asked, std::uint8_t code = 0, std::uint32_t ip = 0x5db8d822,
                std::uint16_t port = 50'000) {
  Bytes out{2, 0x81, 0, code};
  append_be(out, asked.lifetime_s);
  append_be(out, std::uint32_t{1234});
  out.insert(out.end(), 12, 0);
  out.insert(out.end(), asked.nonce.begin(), asked.nonce.end());
  out.insert(out.end(), {17, 0, 0, 0});
  append_be(out, asked.port);
  append_be(out, port);
  out.insert(out.end(), 10, 0);
  out.insert(out.end(), {0xff, 0xff});
  append_be(out, ip);
  return out;
}

TEST(Pcp, ARequestIsAsTheRfcDrawsIt) {
  const Bytes request = pcp_map_request(kAsked);
  ASSERT_EQ(request.size(), kPcpMapBytes);
  EXPECT_EQ(hex(request),
            "0201000000000e10"
            "00000000000000000000ffffc0a80117"
            "0102030405060708090a0b0c"
            "11000000a2a9a2a9"
            "00000000000000000000ffff00000000");
  EXPECT_EQ(hex(pcp_announce_request(kAsked.client)), "020000000000000000000000000000000000ffffc0a80117");
}

TEST(Pcp, AnAnswerIsReadAndNothingElse) {
  const auto answer = read_pcp_map(answer_to(kAsked), kAsked);
  ASSERT_TRUE(answer);
  EXPECT_EQ(*answer, (PcpAnswer{PcpCode::Success, 3600, 1234, 0x5db8d822, 50'000}));
  EXPECT_EQ(read_pcp_map(answer_to(kAsked, 8), kAsked)->code, PcpCode::NoResources);
  EXPECT_EQ(read_pcp_map(answer_to(kAsked, 8), kAsked)->ip, 0U);
  EXPECT_FALSE(read_pcp_map(pcp_map_request(kAsked), kAsked)) << "our own question";
  EXPECT_FALSE(read_pcp_announce(answer_to(kAsked)));
  Bytes announce = answer_to(kAsked);
  announce.resize(kPcpHeader);
  announce[1] = 0x80;
  EXPECT_EQ(read_pcp_announce(announce)->epoch_s, 1234U);
  EXPECT_FALSE(read_pcp_map(announce, kAsked));
}

TEST(Pcp, WhatIsNotOursDoesNotCount) {
  const auto with = [](std::size_t at, std::uint8_t value) {
    Bytes out = answer_to(kAsked);
    out[at] = value;
    return read_pcp_map(out, kAsked);
  };
  EXPECT_FALSE(with(24, 99)) << "another nonce";
  EXPECT_FALSE(with(36, 6)) << "TCP";
  EXPECT_FALSE(with(41, 0)) << "another port";
  EXPECT_FALSE(with(1, 0x82)) << "another opcode";
  EXPECT_FALSE(with(3, 14)) << "a code that there is not";
  EXPECT_FALSE(with(0, 3)) << "another version";
  EXPECT_FALSE(with(54, 0)) << "an IPv6 address outside";
  EXPECT_FALSE(read_pcp_map(answer_to(kAsked, 0, 0), kAsked)) << "no address";
  EXPECT_FALSE(read_pcp_map(answer_to(kAsked, 0, 1, 0), kAsked)) << "no port";
  PcpMap end = kAsked;
  end.lifetime_s = 0;
  EXPECT_TRUE(read_pcp_map(answer_to(end, 0, 0, 0), end)) << "the end of a mapping has none";
  EXPECT_FALSE(read_pcp_map(answer_to(end), kAsked)) << "a mapping that lives for no time is none";
}

TEST(Pcp, NatPmpSaysSo) {
  const Bytes old{0, 0x81, 0, 1, 0, 0, 0, 9};
  ASSERT_TRUE(read_pcp_map(old, kAsked));
  EXPECT_EQ(read_pcp_map(old, kAsked)->code, PcpCode::UnsupportedVersion);
  EXPECT_FALSE(read_pcp_map(Bytes{0, 0x81, 0, 2, 0, 0, 0, 9}, kAsked));
  EXPECT_FALSE(read_pcp_map(Bytes{0, 1, 0, 1}, kAsked));
}

TEST(Pcp, OptionsEndWhereTheMessageDoes) {
  Bytes good = joined(answer_to(kAsked), {200, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0});
  EXPECT_TRUE(read_pcp_map(good, kAsked)) << "one that nobody knows is skipped";
  good[kPcpMapBytes + 3] = 9;
  EXPECT_FALSE(read_pcp_map(good, kAsked)) << "it says that it is longer than it is";
  EXPECT_FALSE(read_pcp_map(joined(answer_to(kAsked), Bytes(1044, 0)), kAsked)) << "more than a message may have";
}

// Cut anywhere, and with any bytes in it, it is refused or read within its bounds.
TEST(Pcp, HostileBytes) {
  Rng rng(7);
  const Bytes whole = joined(answer_to(kAsked), {1, 0, 0, 4, 9, 9, 9, 9});
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_EQ(read_pcp_map(cut, kAsked).has_value(), size == kPcpMapBytes) << size;
  }
  for (int i = 0; i < 20'000; ++i) {
    Bytes any = whole;
    for (std::uint64_t n = rng.below(6); n > 0; --n)
      any[rng.below(any.size())] = static_cast<std::uint8_t>(rng.below(256));
    any.resize(rng.below(any.size() + 1));
    (void)read_pcp_map(any, kAsked);
    (void)read_pcp_announce(any);
  }
}

TEST(Pcp, ARouterThatForgotIsNoticedByItsClock) {
  EXPECT_FALSE(pcp_lost_state(1000, 1020, 20));
  EXPECT_FALSE(pcp_lost_state(1000, 1019, 20)) << "clocks differ a little";
  EXPECT_FALSE(pcp_lost_state(1000, 999, 0));
  EXPECT_TRUE(pcp_lost_state(1000, 5, 20)) << "it restarted";
  EXPECT_TRUE(pcp_lost_state(10, 11, 600)) << "it restarted, and has run for as long again";
  EXPECT_TRUE(pcp_lost_state(10, 5000, 20)) << "another one";
  EXPECT_FALSE(pcp_lost_state(0, 86'400, 86'500));
}

}  // namespace
}  // namespace muster::overlay
