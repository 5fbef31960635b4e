#include "overlay/offload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "base/endian.h"
#include "overlay/packet.h"

namespace muster::overlay {
namespace {

constexpr std::size_t kIp = 20;
constexpr std::uint32_t kFrom = 0x64400001, kTo = 0x64400002;

struct Written {
  OffloadHeader header;
  Bytes packet;
};
struct Collected : Coalescer::Sink {
  std::vector<Written> all;
  bool takes_joined = true;
  bool write(const OffloadHeader& header, ByteView packet) override {
    if (!takes_joined && header.gso != OffloadHeader::kNone) return false;
    all.push_back({header, Bytes(packet.begin(), packet.end())});
    return true;
  }
};

Bytes pattern(std::size_t size, std::uint8_t first = 0) {
  Bytes out(size);
  for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<std::uint8_t>(first + i * 7);
  return out;
}

std::uint16_t transport_sum(ByteView packet) {
  const bool six = packet[0] >> 4 == 6;
  const std::size_t ip = six ? 40 : (packet[0] & 15U) * std::size_t{4};
  std::uint32_t sum = packet[six ? 6 : 9] + static_cast<std::uint32_t>(packet.size() - ip);
  for (std::size_t i = six ? 8 : 12; i < (six ? 40U : 20U); i += 2) sum += load_be16(packet.data() + i);
  return internet_checksum(packet.subspan(ip), sum);
}

Bytes packet_of(std::uint8_t protocol, ByteView header, ByteView payload) {
  Bytes out(kIp);
  out[0] = 0x45;
  out[6] = 0x40;
  out[8] = 64;
  out[9] = protocol;
  store_be32(out.data() + 12, kFrom);
  store_be32(out.data() + 16, kTo);
  out.insert(out.end(), header.begin(), header.end());
  out.insert(out.end(), payload.begin(), payload.end());
  store_be16(out.data() + 2, static_cast<std::uint16_t>(out.size()));
  store_be16(out.data() + 10, internet_checksum(ByteView(out).first(kIp)));
  return out;
}
// With twelve bytes of options, as a timestamp has.
Bytes tcp(std::uint32_t sequence, ByteView payload, std::uint8_t flags = 16, std::uint16_t port = 5001) {
  Bytes header(32);
  store_be16(header.data(), 40'000);
  store_be16(header.data() + 2, port);
  store_be32(header.data() + 4, sequence);
  store_be32(header.data() + 8, 77);
  header[12] = 8 << 4;
  header[13] = flags;
  store_be16(header.data() + 14, 500);
  header[20] = header[21] = 1;
  header[22] = 8;
  header[23] = 10;
  Bytes out = packet_of(6, header, payload);
  store_be16(out.data() + kIp + 16, transport_sum(out));
  return out;
}
Bytes udp(ByteView payload) {
  Bytes header(8);
  store_be16(header.data(), 40'000);
  store_be16(header.data() + 2, 53);
  store_be16(header.data() + 4, static_cast<std::uint16_t>(8 + payload.size()));
  return packet_of(17, header, payload);
}

// The same over IPv6.
Bytes over6(Bytes packet) {
  constexpr std::size_t kGrown = 20;
  const std::uint8_t protocol = packet[9];
  packet.insert(packet.begin(), kGrown, 0);
  std::fill_n(packet.begin(), 40, std::uint8_t{0});
  packet[0] = 0x60;
  packet[3] = 9;  // a flow label
  store_be16(packet.data() + 4, static_cast<std::uint16_t>(packet.size() - 40));
  packet[6] = protocol;
  packet[7] = 64;
  std::ranges::copy(inner6(kFrom), packet.begin() + 8);
  std::ranges::copy(inner6(kTo), packet.begin() + 24);
  if (protocol == 6) {
    store_be16(packet.data() + 40 + 16, 0);
    store_be16(packet.data() + 40 + 16, transport_sum(packet));
  }
  return packet;
}
OffloadHeader of_tcp6(std::uint16_t segment, std::uint8_t more = 0) {
  return {OffloadHeader::kNeedsChecksum, static_cast<std::uint8_t>(OffloadHeader::kTcp6 | more), 72, segment, 40, 16};
}

std::vector<Bytes> split(const OffloadHeader& header, Bytes packet) {
  Segments segments(header, packet);
  std::vector<Bytes> out;
  while (const auto each = segments.next()) out.emplace_back(each->begin(), each->end());
  return out;
}
OffloadHeader of_tcp(std::uint16_t segment, std::uint8_t more = 0) {
  return {OffloadHeader::kNeedsChecksum, static_cast<std::uint8_t>(OffloadHeader::kTcp4 | more), 52, segment, 20, 16};
}

TEST(Checksum, IsThatOfRfc1071) {
  const Bytes example = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};
  EXPECT_EQ(internet_checksum(example), static_cast<std::uint16_t>(~0xddf2));
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    Bytes data(random() % 1500);
    for (auto& byte : data) byte = static_cast<std::uint8_t>(random() % 3 == 0 ? 0xff : random());
    const auto start = static_cast<std::uint32_t>(random() % 0x40000);
    std::uint64_t sum = start;
    for (std::size_t k = 0; k + 1 < data.size(); k += 2) sum += load_be16(data.data() + k);
    if (data.size() % 2 != 0) sum += static_cast<std::uint64_t>(data.back()) << 8;
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    ASSERT_EQ(internet_checksum(data, start), static_cast<std::uint16_t>(~sum)) << data.size();
  }
}

TEST(Offload, HeaderRoundTrips) {
  const OffloadHeader header = of_tcp(1328);
  EXPECT_EQ(load_offload(store_offload(header).data()), header);
}

TEST(Segments, OfALargeTcpPacketAreCompletePackets) {
  const Bytes data = pattern(5000);
  Bytes large = tcp(0xfffffff0, data, 16 | 8 | 1 | 0x80);  // past the end of the sequence numbers; FIN, PSH, CWR
  store_be16(large.data() + 4, 0xfffe);
  const auto parts = split(of_tcp(1328, OffloadHeader::kEcn), large);
  ASSERT_EQ(parts.size(), 4U);
  Bytes joined;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Bytes& p = parts[i];
    EXPECT_EQ(load_be16(p.data() + 2), p.size());
    EXPECT_LE(p.size(), 1380U);
    EXPECT_EQ(internet_checksum(ByteView(p).first(kIp)), 0);
    EXPECT_EQ(transport_sum(p), 0);
    EXPECT_EQ(load_be32(p.data() + kIp + 4), static_cast<std::uint32_t>(0xfffffff0 + joined.size()));
    EXPECT_EQ(load_be16(p.data() + 4), static_cast<std::uint16_t>(0xfffe + i));
    const std::uint8_t flags = p[kIp + 13];
    EXPECT_EQ(flags & (1 | 8), i == 3 ? 1 | 8 : 0) << "the end is only in the last";
    EXPECT_EQ(flags & 0x80, i == 0 ? 0x80 : 0) << "congestion is told once";
    joined.insert(joined.end(), p.begin() + 52, p.end());
  }
  EXPECT_EQ(joined, data);
}

TEST(Segments, OfALargeUdpPacketAreCompletePackets) {
  const Bytes data = pattern(3000);
  const auto parts = split({OffloadHeader::kNeedsChecksum, OffloadHeader::kUdp, 28, 1200, 20, 6}, udp(data));
  ASSERT_EQ(parts.size(), 3U);
  for (const Bytes& p : parts) {
    EXPECT_EQ(load_be16(p.data() + kIp + 4), p.size() - kIp);
    EXPECT_EQ(transport_sum(p), 0);
  }
  EXPECT_EQ(parts.back().size(), kIp + 8 + 600);
}

TEST(Segments, OfLargeIpv6PacketsAreCompletePackets) {
  const Bytes data = pattern(5000);
  const auto parts = split(of_tcp6(1308, OffloadHeader::kEcn), over6(tcp(0xfffffff0, data, 16 | 8 | 1 | 0x80)));
  ASSERT_EQ(parts.size(), 4U);
  Bytes joined;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Bytes& p = parts[i];
    EXPECT_EQ(40U + load_be16(p.data() + 4), p.size());
    EXPECT_LE(p.size(), 1380U);
    EXPECT_EQ(transport_sum(p), 0);
    EXPECT_EQ(load_be32(p.data() + 44), static_cast<std::uint32_t>(0xfffffff0 + joined.size()));
    EXPECT_EQ(p[53] & (1 | 8 | 0x80), (i == 3 ? 1 | 8 : 0) | (i == 0 ? 0x80 : 0));
    EXPECT_TRUE(std::equal(p.begin() + 6, p.begin() + 40, parts[0].begin() + 6)) << "the header but for its length";
    joined.insert(joined.end(), p.begin() + 72, p.end());
  }
  EXPECT_EQ(joined, data);
  const auto datagrams =
      split({OffloadHeader::kNeedsChecksum, OffloadHeader::kUdp, 48, 1200, 40, 6}, over6(udp(pattern(3000))));
  ASSERT_EQ(datagrams.size(), 3U);
  for (const Bytes& p : datagrams) {
    EXPECT_EQ(load_be16(p.data() + 44), p.size() - 40);
    EXPECT_EQ(transport_sum(p), 0);
  }
  Bytes without = over6(tcp(1, pattern(333)));
  const Bytes right = without;
  std::uint32_t sum = 6 + static_cast<std::uint32_t>(without.size() - 40);
  for (std::size_t i = 8; i < 40; i += 2) sum += load_be16(without.data() + i);
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  store_be16(without.data() + 56, static_cast<std::uint16_t>(sum));
  EXPECT_EQ(split({OffloadHeader::kNeedsChecksum, 0, 0, 0, 40, 16}, without), std::vector<Bytes>{right});
}

TEST(Segments, AMissingChecksumIsFilledIn) {
  Bytes packet = tcp(1, pattern(333));
  const Bytes right = packet;
  std::uint32_t sum = 6 + static_cast<std::uint32_t>(packet.size() - kIp);
  for (std::size_t i = 12; i < 20; i += 2) sum += load_be16(packet.data() + i);
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  store_be16(packet.data() + kIp + 16, static_cast<std::uint16_t>(sum));
  EXPECT_EQ(split({OffloadHeader::kNeedsChecksum, 0, 0, 0, 20, 16}, packet), std::vector<Bytes>{right});
  EXPECT_EQ(split({}, right), std::vector<Bytes>{right}) << "nothing to do";
}

TEST(Segments, NothingComesOutOfNonsense) {
  const Bytes good = tcp(1, pattern(3000));
  EXPECT_TRUE(split(of_tcp(0), good).empty());
  EXPECT_TRUE(split({OffloadHeader::kNeedsChecksum, 0, 0, 0, 65'000, 16}, good).empty());
  EXPECT_TRUE(split({0, 4, 52, 1328, 20, 16}, good).empty()) << "said to be TCP over IPv6";
  EXPECT_TRUE(split(of_tcp(1328), over6(good)).empty());
  Bytes extended = over6(good);
  extended[6] = 0;  // hop-by-hop options
  EXPECT_TRUE(split(of_tcp6(1308), extended).empty());
  EXPECT_TRUE(split(of_tcp(1328), udp(pattern(3000))).empty());
  EXPECT_TRUE(split(of_tcp(1328), Bytes(19)).empty());
  std::mt19937 random(2);
  for (int i = 0; i < 20'000; ++i) {  // bounds: the sanitizers look
    Bytes packet = i % 2 == 0 ? good : udp(pattern(2000));
    if (i % 3 == 0) packet = over6(packet);
    packet.resize(random() % packet.size() + 1);
    for (int k = 0; k < 4; ++k)
      packet[random() % std::min<std::size_t>(packet.size(), 60)] = static_cast<std::uint8_t>(random());
    const OffloadHeader header{static_cast<std::uint8_t>(random() % 2),    static_cast<std::uint8_t>(random() % 8),
                               static_cast<std::uint16_t>(random()),       static_cast<std::uint16_t>(random() % 3000),
                               static_cast<std::uint16_t>(random() % 100), static_cast<std::uint16_t>(random() % 40)};
    for (const Bytes& each : split(header, packet)) ASSERT_GE(each.size(), kIp);
  }
}

TEST(Coalescer, JoinsATrainAndTheKernelsHalfSplitsItAgain) {
  const Bytes data = pattern(20'000);
  const std::vector<Bytes> parts = split(of_tcp(1328), tcp(1000, data, 16 | 8));
  Coalescer coalescer(true);
  Collected out;
  for (const Bytes& part : parts) coalescer.add(part, out);
  EXPECT_TRUE(out.all.empty() || out.all.size() == 1);
  coalescer.flush(out);
  ASSERT_EQ(out.all.size(), 1U);
  EXPECT_EQ(out.all[0].header, of_tcp(1328));
  EXPECT_EQ(internet_checksum(ByteView(out.all[0].packet).first(kIp)), 0);
  const auto again = split(out.all[0].header, out.all[0].packet);
  ASSERT_EQ(again.size(), parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) EXPECT_EQ(again[i], parts[i]) << i;
}

TEST(Coalescer, JoinsIpv6Trains) {
  const Bytes data = pattern(20'000);
  const std::vector<Bytes> parts = split(of_tcp6(1308), over6(tcp(1000, data, 16 | 8)));
  Coalescer coalescer(true);
  Collected out;
  for (const Bytes& part : parts) coalescer.add(part, out);
  coalescer.flush(out);
  ASSERT_EQ(out.all.size(), 1U);
  EXPECT_EQ(out.all[0].header, of_tcp6(1308));
  EXPECT_EQ(split(out.all[0].header, out.all[0].packet), parts);
  const auto joined = [&](Bytes second) {
    Coalescer two(true);
    Collected into;
    two.add(over6(tcp(1000, pattern(1000))), into);
    two.add(second, into);
    two.flush(into);
    return into.all.size() == 1;
  };
  const Bytes next = over6(tcp(2000, pattern(1000)));
  EXPECT_TRUE(joined(next));
  EXPECT_FALSE(joined(tcp(2000, pattern(1000)))) << "the same ports over IPv4";
  for (const std::size_t at : {1U, 3U, 7U, 23U, 39U}) {  // class, label, hops, source, destination
    Bytes other = next;
    other[at] ^= 1;
    store_be16(other.data() + 56, 0);
    store_be16(other.data() + 56, transport_sum(other));
    EXPECT_FALSE(joined(other)) << at;
  }
  Bytes damaged = next;
  damaged[100] ^= 1;
  EXPECT_FALSE(joined(damaged));
}

TEST(Coalescer, OnlyWhatBelongsTogetherIsJoined) {
  const Bytes data = pattern(1000);
  const Bytes first = tcp(1000, data);
  const auto joined = [&](Bytes second) {
    Coalescer coalescer(true);
    Collected out;
    coalescer.add(first, out);
    coalescer.add(second, out);
    coalescer.flush(out);
    return out.all.size() == 1;
  };
  const auto changed = [&](std::size_t at, std::uint8_t value, bool resum = true) {
    Bytes p = tcp(2000, data);
    p[at] = value;
    if (resum) {
      store_be16(p.data() + 10, 0);
      store_be16(p.data() + 10, internet_checksum(ByteView(p).first(kIp)));
      store_be16(p.data() + kIp + 16, 0);
      store_be16(p.data() + kIp + 16, transport_sum(p));
    }
    return p;
  };
  EXPECT_TRUE(joined(tcp(2000, data)));
  EXPECT_TRUE(joined(tcp(2000, pattern(10))));
  EXPECT_FALSE(joined(tcp(2001, data))) << "a gap";
  EXPECT_FALSE(joined(tcp(2000, pattern(1001)))) << "longer than the first";
  EXPECT_FALSE(joined(tcp(2000, data, 16, 5002))) << "another flow";
  EXPECT_FALSE(joined(tcp(2000, data, 16 | 1))) << "FIN";
  EXPECT_FALSE(joined(tcp(2000, data, 16 | 4))) << "RST";
  EXPECT_FALSE(joined(tcp(2000, {}))) << "no data";
  EXPECT_FALSE(joined(changed(1, 3))) << "marked as congested";
  EXPECT_FALSE(joined(changed(8, 63)));
  EXPECT_FALSE(joined(changed(6, 0x20))) << "a fragment";
  EXPECT_FALSE(joined(changed(kIp + 11, 78))) << "another acknowledgement";
  EXPECT_FALSE(joined(changed(kIp + 15, 1))) << "another window";
  EXPECT_FALSE(joined(changed(kIp + 31, 9))) << "another timestamp";
  EXPECT_FALSE(joined(changed(100, 1, false))) << "a wrong checksum";
  EXPECT_FALSE(joined(changed(11, 1, false)));
  EXPECT_FALSE(joined(udp(data)));
}

// Whatever comes: the same packets in the same order, whole, as if nothing had been joined.
TEST(Coalescer, ChangesNothingButTheNumberOfWrites) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    Coalescer coalescer(true);
    Collected out;
    std::vector<Bytes> sent;
    std::uint32_t sequence[2] = {static_cast<std::uint32_t>(random()), static_cast<std::uint32_t>(random())};
    for (int i = 0; i < 60; ++i) {
      const std::size_t flow = random() % 5 == 0 ? 1 : 0;
      const std::size_t size = random() % 6 == 0 ? random() % 1000 : 1000;
      if (random() % 12 == 0) sequence[flow] += 5;
      Bytes p = tcp(sequence[flow], pattern(size, static_cast<std::uint8_t>(i)), random() % 7 == 0 ? 24 : 16,
                    static_cast<std::uint16_t>(5001 + flow));
      sequence[flow] += static_cast<std::uint32_t>(size);
      if (random() % 15 == 0) p = udp(pattern(size));
      if (round % 3 == 0 || random() % 20 == 0) p = over6(p);
      if (random() % 15 == 0) p[random() % p.size()] ^= 1;
      sent.push_back(p);
      coalescer.add(p, out);
      if (random() % 20 == 0) coalescer.flush(out);
    }
    coalescer.flush(out);
    std::vector<Bytes> got;
    for (const Written& w : out.all) {
      if (w.header.gso == OffloadHeader::kNone) {
        got.push_back(w.packet);
        continue;
      }
      for (Bytes& each : split(w.header, w.packet)) got.push_back(std::move(each));
    }
    ASSERT_EQ(got.size(), sent.size());
    for (std::size_t i = 0; i < sent.size(); ++i) {
      // The identification of a packet that may not be fragmented says nothing (RFC 6864); it and what sums it differ.
      if (got[i][0] >> 4 == 4 && sent[i].size() == got[i].size())
        store_be16(got[i].data() + 4, load_be16(sent[i].data() + 4));
      if (got[i][0] >> 4 == 4 && sent[i].size() == got[i].size())
        store_be16(got[i].data() + 10, load_be16(sent[i].data() + 10));
      ASSERT_EQ(got[i], sent[i]) << i;
    }
  }
}

TEST(Coalescer, WhatIsRefusedJoinedIsGivenOneByOne) {
  const std::vector<Bytes> parts = split(of_tcp(1328), tcp(1000, pattern(20'000), 16 | 8));
  Coalescer coalescer(true);
  Collected out;
  out.takes_joined = false;
  for (const Bytes& part : parts) coalescer.add(part, out);
  coalescer.flush(out);
  EXPECT_EQ(coalescer.counts().refused, 1U);
  ASSERT_EQ(out.all.size(), parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) EXPECT_EQ(out.all[i].packet, parts[i]) << i;
  out.takes_joined = true;
  coalescer.set(false, true, out);
  for (const Bytes& part : parts) coalescer.add(part, out);
  coalescer.flush(out);
  EXPECT_EQ(out.all.size(), 2 * parts.size()) << "nothing is joined any more";
}

TEST(Coalescer, CountsWhatComesAgainAndNotWhatFillsAGap) {
  for (const bool join : {true, false}) {
    Coalescer coalescer(true);
    Collected out;
    coalescer.set(join, true, out);
    const std::uint32_t first = 0xffff'f000;  // past the end of the sequence numbers
    const auto add = [&](std::uint32_t at, std::size_t bytes, std::uint16_t port = 5001) {
      coalescer.add(tcp(first + at, pattern(bytes), 16, port), out);
    };
    for (std::uint32_t at = 0; at < 10'000; at += 1'000) add(at, 1'000);
    add(12'000, 1'000);  // two are missing
    add(13'000, 1'000);
    add(10'000, 1'000);  // one of them
    coalescer.flush(out);
    EXPECT_EQ(coalescer.counts().data, 13'000U);
    EXPECT_EQ(coalescer.counts().again, 0U) << join;
    add(11'000, 1'000);
    add(0, 1'000, 5002);  // another flow
    coalescer.flush(out);
    EXPECT_EQ(coalescer.counts().again, 0U) << join;
    for (std::uint32_t at = 2'000; at < 6'000; at += 1'000) add(at, 1'000);
    add(13'500, 1'000);  // half of it was there
    coalescer.flush(out);
    EXPECT_EQ(coalescer.counts().again, 4'500U) << join;
    EXPECT_EQ(coalescer.counts().data, 20'000U);
  }
}

TEST(Coalescer, PassesEverythingOnWhereTheDeviceTakesNoLargePackets) {
  Coalescer coalescer(false);
  Collected out;
  coalescer.add(tcp(1000, pattern(100)), out);
  coalescer.add(tcp(1100, pattern(100)), out);
  EXPECT_EQ(out.all.size(), 2U);
}

}  // namespace
}  // namespace muster::overlay
