// Addresses of every special range, rules, token bucket and the texts for nft.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"
#include "egress/bucket.h"
#include "egress/rules.h"
#include "egress/ruleset.h"

namespace muster::egress {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Ip ip(std::string_view text) {
  const auto parsed = parse_ip(text);
  EXPECT_TRUE(parsed.has_value()) << text;
  return parsed.value_or(Ip{});
}
Prefix prefix(std::string_view text) {
  return parse_prefix(text).value();
}

TEST(Addresses, EverySpecialRangeFromFirstToLastIsNamed) {
  struct Range {
    const char *first, *last;
    Place place;
  };
  const Range ranges[] = {
      {"0.0.0.0", "0.255.255.255", Place::Unspecified},
      {"10.0.0.0", "10.255.255.255", Place::Private},
      {"100.64.0.0", "100.127.255.255", Place::Cgnat},
      {"127.0.0.0", "127.255.255.255", Place::Loopback},
      {"169.254.0.0", "169.254.255.255", Place::LinkLocal},
      {"172.16.0.0", "172.31.255.255", Place::Private},
      {"192.0.0.0", "192.0.0.255", Place::Reserved},
      {"192.0.2.0", "192.0.2.255", Place::Documentation},
      {"192.88.99.0", "192.88.99.255", Place::SixToFour},
      {"192.168.0.0", "192.168.255.255", Place::Private},
      {"198.18.0.0", "198.19.255.255", Place::Benchmark},
      {"198.51.100.0", "198.51.100.255", Place::Documentation},
      {"203.0.113.0", "203.0.113.255", Place::Documentation},
      {"224.0.0.0", "239.255.255.255", Place::Multicast},
      {"240.0.0.0", "255.255.255.255", Place::Reserved},
      {"::", "::", Place::Unspecified},
      {"::1", "::1", Place::Loopback},
      {"::ffff:0:0", "::ffff:ffff:ffff", Place::Mapped},
      {"::ffff:8.8.8.8", "::ffff:93.184.216.34", Place::Mapped},
      {"::2", "::ffff:ffff", Place::Mapped},
      {"::ffff:0:a00:1", "::ffff:0:ffff:ffff", Place::Translated},
      {"64:ff9b::", "64:ff9b::ffff:ffff", Place::Translated},
      {"64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Place::Translated},
      {"100::", "100::ffff:ffff:ffff:ffff", Place::Reserved},
      {"2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", Place::Teredo},
      {"2001:1::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Place::Reserved},
      {"2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Place::Documentation},
      {"2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Place::SixToFour},
      {"3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", Place::Documentation},
      {"4000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Place::Reserved},
      {"fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Place::Private},
      {"fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Place::Reserved},
      {"fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Place::LinkLocal},
      {"fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Place::Private},
      {"ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Place::Multicast},
      {"2600:1700:1:2:0:5efe:c0a8:101", "2600:1700:1:2:200:5efe:a00:1", Place::Isatap},
  };
  for (const Range& range : ranges) {
    for (const char* text : {range.first, range.last})
      EXPECT_EQ(place_name(place_of(ip(text))), place_name(range.place)) << text;
  }
  for (const char* metadata : {"169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192",
                               "fd00:ec2::254", "fd20:ce::254"})
    EXPECT_EQ(place_of(ip(metadata)), Place::Metadata) << metadata;
}

TEST(Addresses, NeighboursOfSpecialRangesArePublic) {
  for (const char* text : {"1.0.0.0",
                           "9.255.255.255",
                           "11.0.0.0",
                           "100.63.255.255",
                           "100.128.0.0",
                           "126.255.255.255",
                           "128.0.0.0",
                           "169.253.255.255",
                           "169.255.0.0",
                           "172.15.255.255",
                           "172.32.0.0",
                           "191.255.255.255",
                           "192.0.1.0",
                           "192.0.3.0",
                           "192.88.98.255",
                           "192.88.100.0",
                           "192.167.255.255",
                           "192.169.0.0",
                           "198.17.255.255",
                           "198.20.0.0",
                           "198.51.99.255",
                           "198.51.101.0",
                           "203.0.112.255",
                           "203.0.114.0",
                           "223.255.255.255",
                           "8.8.8.8",
                           "168.63.129.15",
                           "168.63.129.17",
                           "2000::1",
                           "2001:200::1",
                           "2001:db7:ffff::",
                           "2001:db9::",
                           "2001:4860:4860::8888",
                           "2003::1",
                           "2606:4700::1111",
                           "3ffe::1",
                           "3fff:1000::1",
                           "2600:1700:1:2:0:5eff:c0a8:101"})
    EXPECT_EQ(place_name(place_of(ip(text))), "public") << text;
}

TEST(Addresses, AreReadStrictly) {
  for (const char* bad : {"", "1", "1.2.3", "1.2.3.4.5", "256.1.1.1", "0x7f.1.1.1", "010.0.0.1", "1.2.3.4 ", " 1.2.3.4",
                          "fe80::1%eth0", "[::1]", "::1::", "12345::", "1.2.3.4:80", "localhost"})
    EXPECT_FALSE(parse_ip(bad).has_value()) << bad;
  for (const char* bad : {"10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/8 ", "::/129", "/8"})
    EXPECT_FALSE(parse_prefix(bad).has_value()) << bad;
  EXPECT_EQ(to_text(prefix("10.1.2.3/9")), "10.0.0.0/9");
  EXPECT_EQ(to_text(prefix("2001:db8:ffff:ffff::1/33")), "2001:db8:8000::/33");
  EXPECT_EQ(to_text(prefix("1.2.3.4")), "1.2.3.4/32");
  EXPECT_TRUE(contains(prefix("0.0.0.0/0"), ip("255.1.2.3")));
  EXPECT_FALSE(contains(prefix("0.0.0.0/0"), ip("::1")));
  for (const char* bad : {"", "0", "70000", "1-", "-1", "9-8", "http", "1-2-3"}) EXPECT_FALSE(parse_ports(bad)) << bad;
  EXPECT_EQ(to_text(*parse_ports("6660-6669")), "6660-6669");
}

// Membership computed bit by bit must agree with the one that the rules use, on random addresses near the edges.
TEST(Addresses, RandomOnesAgreeWithABitwiseReading) {
  Rng rng(7);
  for (int i = 0; i < 5'000; ++i) {
    const Special& near = special_places()[rng.below(special_places().size())];
    Ip each = near.prefix.base;
    const std::size_t flips = rng.below(4);
    for (std::size_t f = 0; f < flips; ++f) {
      const std::size_t bit = rng.below(each.bits());
      each.bytes[bit / 8] ^= static_cast<std::uint8_t>(0x80U >> (bit % 8));
    }
    bool special = false;
    for (const Special& s : special_places()) {
      bool inside = s.prefix.base.six == each.six;
      for (std::size_t bit = 0; inside && bit < s.prefix.bits; ++bit) {
        const auto mask = static_cast<std::uint8_t>(0x80U >> (bit % 8));
        inside = (s.prefix.base.bytes[bit / 8] & mask) == (each.bytes[bit / 8] & mask);
      }
      special = special || inside;
    }
    const bool beyond = each.six && (each.bytes[0] >> 5) != 1;
    const bool open = place_of(each) == Place::Public;
    if (special || beyond)
      EXPECT_FALSE(open) << to_text(each);
    else if (!each.six)
      EXPECT_TRUE(open) << to_text(each);
    EXPECT_EQ(ip(to_text(each)), each);
  }
}

TEST(Rules, LocalNetworksOwnersWishesAndPorts) {
  Rules rules;
  rules.local = {prefix("185.10.20.0/24"), local_network(ip("2600:1700:1:22ff::5"), 64)};
  rules.deny = {prefix("45.0.0.0/8")};
  rules.deny_ports = default_deny_ports();
  EXPECT_EQ(refusal(rules, ip("185.10.20.9"), 443), "local_network");
  EXPECT_EQ(refusal(rules, ip("2600:1700:1:2280::9"), 443), "local_network") << "another subnet of the same home";
  EXPECT_EQ(refusal(rules, ip("2600:1700:1:2300::9"), 443), "");
  EXPECT_EQ(refusal(rules, ip("45.1.1.1"), 443), "owner");
  EXPECT_EQ(refusal(rules, ip("192.168.1.1"), 443), "private");
  for (const std::uint16_t port : {25, 465, 587, 2525, 23, 139, 445, 3389, 6667, 0})
    EXPECT_EQ(refusal(rules, ip("8.8.8.8"), port), "port") << port;
  for (const std::uint16_t port : {22, 80, 443, 8080, 65535})
    EXPECT_EQ(refusal(rules, ip("8.8.8.8"), port), "") << port;
  rules.allow_ports = {{80, 80}, {443, 443}};
  EXPECT_EQ(refusal(rules, ip("8.8.8.8"), 22), "port");
  EXPECT_EQ(refusal(rules, ip("8.8.8.8"), 443), "");
}

TEST(Bucket, HoldsTheRateAndTheBurst) {
  Bucket none;
  EXPECT_EQ(none.take(1 << 30, LeaseTime{0}), 1U << 30);
  Bucket bucket(1000, 500);
  LeaseTime now{5};
  EXPECT_EQ(bucket.take(800, now), 500U);
  EXPECT_EQ(bucket.take(800, now), 0U);
  EXPECT_EQ(bucket.take(800, now + Millis(100)), 100U);
  EXPECT_EQ(bucket.take(800, LeaseTime{0}), 0U) << "a clock that runs back adds nothing";
  EXPECT_EQ(bucket.take(9999, now + Millis(60'000)), 500U) << "the burst is the most that is saved up";
  bucket.give_back(9999);
  EXPECT_EQ(bucket.take(9999, now + Millis(60'000)), 500U);
  // Over a minute of greedy takes at random moments: never above rate x time + burst, hardly below.
  Rng rng(3);
  Bucket line(10'000, 1000);
  std::uint64_t passed = 0;
  std::int64_t ms = 0;
  for (; ms < 60'000; ms += rng.between(1, 40)) passed += line.take(rng.below(5000), LeaseTime{ms});
  EXPECT_LE(passed, 601'000U);
  EXPECT_GE(passed, 590'000U);
}

TEST(Rulesets, NameOnlyOurTableAndCoverEveryRange) {
  HostTable host{64794, {ip("192.168.1.1"), ip("fe80::1")}, {}};
  host.rules.local = {prefix("185.10.20.0/24"), prefix("10.3.0.0/16")};
  host.rules.deny_ports = default_deny_ports();
  const std::string text = host_ruleset(host);
  EXPECT_EQ(text, host_ruleset(host));
  EXPECT_TRUE(text.starts_with("add table inet muster\ndelete table inet muster\ntable inet muster {\n"));
  EXPECT_THAT(text, Not(HasSubstr("flush")));
  EXPECT_THAT(text, HasSubstr("meta skuid 64794 goto egress"));
  EXPECT_THAT(text, HasSubstr("ip daddr 192.168.1.1 udp dport 53 accept"));
  EXPECT_THAT(text, HasSubstr("ip6 daddr fe80::1 tcp dport 53 accept"));
  EXPECT_THAT(text, HasSubstr("185.10.20.0/24"));
  EXPECT_THAT(text, Not(HasSubstr("10.3.0.0/16"))) << "lies in 10.0.0.0/8 already";
  for (const char* range : {"10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "168.63.129.16/32", "fc00::/7",
                            "64:ff9b::/96", "2002::/16", "::/96", "fe80::/10", "ff00::/8"})
    EXPECT_THAT(text, HasSubstr(range));
  const std::string lease = lease_ruleset({0x0ac90002, 16, 4001, 6001, 4002, 0});
  EXPECT_THAT(lease, HasSubstr("meta nfproto ipv4 meta l4proto tcp redirect to :4001"));
  EXPECT_THAT(lease, HasSubstr("meta nfproto ipv6 meta l4proto tcp redirect to :6001"));
  EXPECT_THAT(lease, HasSubstr("meta nfproto ipv4 udp dport 53 redirect to :4002"));
  EXPECT_THAT(lease, Not(HasSubstr("nfproto ipv6 udp dport 53"))) << "a family that is off";
  EXPECT_THAT(lease, HasSubstr("ip daddr 10.201.0.0/16 accept"));
  EXPECT_EQ(to_text(lease_ip6(0x0ac90002)), "fd6d:7573:7465:7200::ac9:2");
}

}  // namespace
}  // namespace muster::egress
