#include "overlay/packet.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/endian.h"

namespace muster::overlay {
namespace {

constexpr std::uint32_t kHere = 0x64400001, kThere = 0x64400002;

Bytes six(std::uint8_t protocol, ByteView payload, std::uint32_t from = kHere, std::uint32_t to = kThere) {
  Bytes out(40);
  out[0] = 0x60;
  store_be16(out.data() + 4, static_cast<std::uint16_t>(payload.size()));
  out[6] = protocol;
  out[7] = 64;
  std::ranges::copy(inner6(from), out.begin() + 8);
  std::ranges::copy(inner6(to), out.begin() + 24);
  out.insert(out.end(), payload.begin(), payload.end());
  return out;
}
std::uint16_t sum_of(ByteView packet) {  // 0: right
  std::uint32_t sum = packet[6] + static_cast<std::uint32_t>(packet.size() - 40);
  for (std::size_t i = 8; i < 40; i += 2) sum += load_be16(packet.data() + i);
  return internet_checksum(packet.subspan(40), sum);
}
Bytes counted(std::size_t size) {
  Bytes out(size);
  for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<std::uint8_t>(i * 7);
  return out;
}

TEST(Inner6, IsOnesOwnAddressBehindAPrefix) {
  EXPECT_EQ(text_of(inner6(kHere)), "fd4d:7573:7465:7200::6440:1");
  const auto ends = packet_ends(six(17, counted(20)));
  ASSERT_TRUE(ends);
  EXPECT_EQ(ends->source, kHere);
  EXPECT_EQ(ends->destination, kThere);
  EXPECT_EQ(ends->bytes, 60U);
}

TEST(Inner6, WhatIsBetweenNoTwoMembersHasNoEnds) {
  for (const std::size_t at : {8U, 19U, 24U, 35U}) {  // the first and last byte of both prefixes
    Bytes other = six(17, counted(20));
    other[at] ^= 1;
    EXPECT_FALSE(packet_ends(other)) << at;
  }
  Bytes longer = six(17, counted(20));
  store_be16(longer.data() + 4, 21);
  EXPECT_FALSE(packet_ends(longer)) << "longer than it is";
  for (std::size_t size = 0; size < 40; ++size) {
    const Bytes part(longer.begin(), longer.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_FALSE(packet_ends(part)) << size;
    EXPECT_FALSE(refuse_packet(part)) << size;
  }
  Bytes multicast = six(17, counted(20));
  multicast[24] = 0xff, multicast[25] = 2;
  EXPECT_FALSE(refuse_packet(multicast));
}

TEST(Refusals, OfIpv6AreThoseOfARouter) {
  Bytes segment(20);
  store_be16(segment.data(), 1234);
  store_be16(segment.data() + 2, 80);
  store_be32(segment.data() + 8, 0xabcdef01);
  segment[12] = 5 << 4;
  segment[13] = 16;
  const auto reset = refuse_packet(six(6, segment));
  ASSERT_TRUE(reset);
  EXPECT_EQ(packet_ends(*reset)->source, kThere);
  EXPECT_EQ(packet_ends(*reset)->destination, kHere);
  EXPECT_EQ(load_be16(reset->data() + 40), 80);
  EXPECT_EQ(load_be32(reset->data() + 44), 0xabcdef01);
  EXPECT_EQ((*reset)[53], 4);
  EXPECT_EQ(sum_of(*reset), 0);
  EXPECT_FALSE(refuse_packet(*reset)) << "no reset for a reset";

  const auto prohibited = refuse_packet(six(17, counted(1340)));
  ASSERT_TRUE(prohibited);
  EXPECT_EQ((*prohibited)[6], 58);
  EXPECT_EQ((*prohibited)[40], 1);
  EXPECT_EQ((*prohibited)[41], 1);
  EXPECT_EQ(prohibited->size(), 1280U) << "an error is no larger than every link carries";
  EXPECT_EQ(sum_of(*prohibited), 0);
  EXPECT_FALSE(refuse_packet(*prohibited)) << "no error about an error";
  Bytes echo(8);
  echo[0] = 128;
  EXPECT_TRUE(refuse_packet(six(58, echo)));

  const auto big = refuse_too_large(six(17, counted(1340)), 1300);
  ASSERT_TRUE(big);
  EXPECT_EQ((*big)[40], 2);
  EXPECT_EQ(load_be32(big->data() + 44), 1300U);
  EXPECT_EQ(sum_of(*big), 0);
  EXPECT_FALSE(refuse_too_large(six(17, counted(1340)), 1200)) << "no such thing is told of less than 1,280";
}

TEST(Fragments, OfIpv6AreMadeOnlyWhereNoLinkWouldBeSoNarrow) {
  const Bytes data = counted(1340);
  const Bytes packet = six(17, data);
  EXPECT_TRUE(fragments(packet, 1300, 7).empty()) << "its sender is told";
  const auto parts = fragments(packet, 1200, 7);
  ASSERT_EQ(parts.size(), 2U);
  Bytes joined;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Bytes& part = parts[i];
    EXPECT_LE(part.size(), 1200U);
    ASSERT_TRUE(packet_ends(part));
    EXPECT_EQ(packet_ends(part)->bytes, part.size());
    EXPECT_EQ(part[6], 44);
    EXPECT_EQ(part[40], 17);
    const std::uint16_t place = load_be16(part.data() + 42);
    EXPECT_EQ(place & ~7, joined.size());
    EXPECT_EQ(place & 1, i == 0 ? 1 : 0);
    EXPECT_EQ(load_be32(part.data() + 44), 7U);
    joined.insert(joined.end(), part.begin() + 48, part.end());
  }
  EXPECT_EQ(joined, data);
  EXPECT_TRUE(fragments(six(0, data), 1200, 7).empty()) << "extension headers are not taken apart";
  EXPECT_TRUE(fragments(parts[0], 600, 8).empty()) << "a fragment is not cut again";
}

}  // namespace
}  // namespace muster::overlay
