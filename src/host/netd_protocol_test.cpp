#include "host/netd_protocol.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace muster::host::netd {
namespace {

Paths some_paths() {
  session::NetPair pair{1, session::NetPath::Direct, {2, 3}, 4, 5, 6, 7, 8, 9, 10, 11, 12, {}};
  pair.rx_bytes_s = 22;
  pair.tx_bytes_s = 23;
  pair.carries_bytes_s = 24;
  pair.carries_age_ms = 25;
  pair.mtu = 26;
  pair.tries = {{{13, 14}, session::NetOrigin::Heard, 15, 16, true, 17}};
  Paths paths;
  paths.report.relay = "relay:443";
  paths.report.seen = {{18, 19}, {0, 19, Bytes(16, 27)}};
  pair.relay = 2;
  pair.relays = {{1, 2, 3, 4}, {2, 5, 6, 7}};
  pair.by = 0x64400003;
  paths.report.pairs = {pair};
  paths.report.relays = {{"relay.example:443", "east", true, 12, 13}};
  paths.report.carries = true;
  paths.report.counted_from = {14};
  paths.report.carried = {{15, 16, 17, 18}};
  paths.report.forwarded = {{19, 20, 21}};
  paths.peer = 22;
  paths.direct = 20;
  paths.limited = 21;
  return paths;
}

TEST(NetdProtocol, EveryMessageComesBack) {
  const Configure configure{
      "lease-1", 0x64400001, 16,  {1, 2, 3},   {{4, 5}, {}}, {Bytes(32, 7)}, {{"relay.example", 443}, {"::1", 1}},
      "PEM",     "muster",   {9}, Bytes(32, 1)};
  for (const Request& r : std::initializer_list<Request>{
           AddLease{"a"}, configure, RemoveLease{"b"}, GetStats{"c"}, GetInfo{}, GetPaths{"d"},
           SetRelays{"e", {{"relay.example:443", "east", {7}}, {}}}, SetMapped{{{0x5db8d822, 7000, {}}}, "PCP"}}) {
    const auto back = decode_request(encode(r));
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(*back, r);
  }
  const Stats stats{true, false, "x", 1, 2, {{3, 4, 5, -6, "relay"}}};
  const Info info{51820, {{"l", Bytes(32, 2), true, false}}};
  for (const Reply& r : std::initializer_list<Reply>{Failed{3, "no"}, Done{}, LeaseKey{Bytes(32, 3)},
                                                     Configured{1, 2, 3}, stats, info, some_paths()}) {
    const auto back = decode_reply(encode(r));
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(*back, r);
  }
}

TEST(NetdProtocol, DamageIsRefused) {
  const std::string good =
      encode(Request(Configure{"lease-1", 1, 16, {1}, {{2}}, {{3}}, {{"h", 1}}, "c", "d", {4}, {5}}));
  for (std::size_t i = 0; i < good.size(); ++i) EXPECT_FALSE(decode_request(good.substr(0, i)).ok()) << i;
  EXPECT_FALSE(decode_request(good + "x").ok());
  Paths strange = some_paths();
  strange.report.pairs[0].path = session::NetPath{9};
  EXPECT_FALSE(decode_reply(encode(Reply(strange))).ok());
  Rng rng(9);
  for (int i = 0; i < 20'000; ++i) {
    std::string bad = good;
    for (int k = 0; k < 2; ++k) bad[rng.below(bad.size())] = static_cast<char>(rng.next());
    (void)decode_request(bad).ok();
    (void)decode_reply(bad).ok();
  }
}

TEST(NetdProtocol, ARelayIsAHostAndAPort) {
  EXPECT_EQ(parse_relay("relay.example:443"), (RelayAddress{"relay.example", 443}));
  for (const char* bad : {"", "relay", ":443", "relay:", "relay:0", "relay:70000", "relay:44x", "relay:-1"})
    EXPECT_FALSE(parse_relay(bad)) << bad;
}

TEST(NetdProtocol, LeaseNamesAreFileNames) {
  EXPECT_TRUE(valid_lease_name("lease-12"));
  for (const char* bad : {"", "-a", "a/b", "..", "A", "a b", "lease_1"}) EXPECT_FALSE(valid_lease_name(bad)) << bad;
}

}  // namespace
}  // namespace muster::host::netd
