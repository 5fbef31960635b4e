#include "overlay/shaper.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "base/endian.h"
#include "base/rng.h"

namespace muster::overlay {
namespace {

constexpr std::uint64_t kMs = 1'000, kSecond = 1'000'000;
constexpr std::uint16_t kBulkPort = 6381;
constexpr std::uint32_t kUs = 0x64400001, kThem = 0x64400002;

struct Given {
  std::uint32_t to = kThem;
  std::uint16_t from_port = 40'000, to_port = kBulkPort;
  std::size_t payload = 1'300;
  std::uint32_t sequence = 0;
  std::uint8_t flags = 16;
};
Bytes tcp_of(const Given& g) {
  Bytes p(40 + g.payload, 0x5a);
  std::fill_n(p.begin(), 40, std::uint8_t{0});
  p[0] = 0x45;
  store_be16(p.data() + 2, static_cast<std::uint16_t>(p.size()));
  p[8] = 64;
  p[9] = 6;
  store_be32(p.data() + 12, kUs);
  store_be32(p.data() + 16, g.to);
  store_be16(p.data() + 20, g.from_port);
  store_be16(p.data() + 22, g.to_port);
  store_be32(p.data() + 24, g.sequence);
  p[32] = 5 << 4;
  p[33] = g.flags;
  return p;
}
OffloadHeader large_header() {
  return {OffloadHeader::kNeedsChecksum, OffloadHeader::kTcp4, 40, 1'340, 20, 16};
}

struct Exit : Shaper::Gate {
  std::map<std::uint32_t, Shaper::Way> ways;
  std::int64_t shared = -1;  // bytes that all may still send; -1 = no limit
  struct Passed {
    std::uint32_t to;
    std::uint16_t from_port;
    Load load;
    std::size_t bytes;
    std::uint32_t sequence;
  };
  std::vector<Passed> passed;
  Shaper::Way way(std::uint32_t to) override { return ways[to]; }
  Millis wait(Load) override { return Millis(shared == 0 ? 1 : 0); }
  void pass(std::uint32_t to, Load load, ByteView p) override {
    if (shared > 0) shared = std::max<std::int64_t>(0, shared - static_cast<std::int64_t>(p.size()));
    passed.push_back({to, load_be16(p.data() + 20), load, p.size(), load_be32(p.data() + 24)});
  }
  std::size_t bytes(const std::function<bool(const Passed&)>& of) const {
    std::size_t out = 0;
    for (const Passed& p : passed) out += of(p) ? p.bytes : 0;
    return out;
  }
};

TEST(FlowMark, TellsPortsAcksAndNonsenseApart) {
  EXPECT_TRUE(mark_flow(tcp_of({}), kBulkPort).known_bulk);
  EXPECT_TRUE(mark_flow(tcp_of({.from_port = kBulkPort, .to_port = 5}), kBulkPort).known_bulk);
  EXPECT_FALSE(mark_flow(tcp_of({.to_port = 6380}), kBulkPort).known_bulk);
  EXPECT_TRUE(mark_flow(tcp_of({.payload = 0}), kBulkPort).bare_ack);
  EXPECT_FALSE(mark_flow(tcp_of({.payload = 1}), kBulkPort).bare_ack);
  EXPECT_FALSE(mark_flow(tcp_of({.payload = 0, .flags = 17}), kBulkPort).bare_ack) << "an end must not overtake data";
  EXPECT_NE(mark_flow(tcp_of({}), kBulkPort).hash, mark_flow(tcp_of({.from_port = 40'001}), kBulkPort).hash);
  Rng rng(3);
  for (int i = 0; i < 20'000; ++i) {
    Bytes nonsense(rng.below(70));
    for (auto& byte : nonsense) byte = static_cast<std::uint8_t>(rng.next());
    (void)mark_flow(nonsense, kBulkPort);
  }
}

TEST(Shaper, AHeartbeatNeverWaitsBehindBulk) {
  Shaper shaper(kBulkPort);
  Exit exit;
  exit.ways[kThem].bytes_s = 625'000;  // 5 Mbit/s
  std::uint64_t now = kSecond, worst = 0, bulk = 0;
  for (int ms = 0; ms < 10'000; ++ms, now += kMs) {
    if (ms % 50 == 0) shaper.push(kThem, large_header(), tcp_of({.payload = 60'000}), now);
    if (ms % 100 == 7) shaper.push(kThem, {}, tcp_of({.to_port = 6379, .payload = 80}), now);
    exit.passed.clear();
    shaper.run(now, exit);
    for (const auto& p : exit.passed) {
      bulk += p.load == Load::Bulk ? p.bytes : 0;
      if (p.load == Load::Control) worst = std::max<std::uint64_t>(worst, static_cast<std::uint64_t>(ms) % 100 - 7);
    }
  }
  EXPECT_LE(worst, 3U) << "ms";
  EXPECT_GE(bulk, 10 * 625'000 * 9 / 10);
  EXPECT_GT(shaper.dropped(), 10U) << "senders must notice";
}

TEST(Shaper, ControlMayTakeFourFifthsWhileBulkWaits) {
  for (const bool with_bulk : {true, false}) {
    Shaper shaper(kBulkPort);
    Exit exit;
    exit.ways[kThem].bytes_s = 1'000'000;
    std::uint64_t now = kSecond;
    for (int ms = 0; ms < 10'000; ++ms, now += kMs) {
      for (int i = 0; i < 20; ++i) shaper.push(kThem, {}, tcp_of({.payload = 0}), now);  // 1.44 MB/s, sealed
      if (with_bulk) shaper.push(kThem, {}, tcp_of({}), now);
      shaper.run(now, exit);
    }
    const auto sealed = [&](Load load) {
      return exit.bytes([&](const auto& p) { return p.load == load; }) +
             32U * static_cast<std::size_t>(std::ranges::count(exit.passed, load, &Exit::Passed::load));
    };
    EXPECT_LE(sealed(Load::Control) + sealed(Load::Bulk), 10'200'000U);
    EXPECT_GE(sealed(Load::Control), with_bulk ? 7'800'000U : 9'800'000U);
    if (!with_bulk) continue;
    EXPECT_LE(sealed(Load::Control), 8'200'000U);
    EXPECT_GE(sealed(Load::Bulk), 1'800'000U);
  }
}

TEST(Shaper, AFlowThatSendsMuchIsBulkOnAnyPort) {
  Shaper shaper(kBulkPort);
  Exit exit;
  exit.ways[kThem].bytes_s = 1'000'000;
  std::uint64_t now = kSecond;
  for (int ms = 0; ms < 3'000; ++ms, now += kMs) {
    shaper.push(kThem, {}, tcp_of({.from_port = 1, .to_port = 10'002}), now);
    if (ms % 20 == 0) shaper.push(kThem, {}, tcp_of({.from_port = 2, .to_port = 10'002, .payload = 200}), now);
    shaper.run(now, exit);
  }
  for (const auto& p : exit.passed)
    if (p.from_port == 2) EXPECT_EQ(p.load, Load::Control);
  EXPECT_GE(exit.bytes([](const auto& p) { return p.from_port == 1 && p.load == Load::Bulk; }), 2'500'000U);
}

TEST(Shaper, MembersShareAlikeAndSoDoTheFlowsOfEach) {
  Shaper shaper(kBulkPort);
  Exit exit;
  std::uint64_t now = kSecond;
  for (int ms = 0; ms < 10'000; ++ms, now += kMs) {
    for (std::uint16_t flow = 0; flow < 3; ++flow)
      for (int i = 0; i <= flow; ++i)
        shaper.push(kThem, {}, tcp_of({.from_port = static_cast<std::uint16_t>(100 + flow)}), now);
    shaper.push(kThem + 1, {}, tcp_of({.to = kThem + 1, .from_port = 200}), now);
    exit.shared = 1'200;
    shaper.run(now, exit);
  }
  const auto all = static_cast<double>(exit.bytes([](const auto&) { return true; }));
  const auto share = [&](std::uint32_t to, std::uint16_t port) {
    return static_cast<double>(
               exit.bytes([&](const auto& p) { return p.to == to && (port == 0 || p.from_port == port); })) /
           all;
  };
  EXPECT_NEAR(share(kThem, 0), 0.5, 0.05);
  EXPECT_NEAR(share(kThem + 1, 0), 0.5, 0.05);
  for (std::uint16_t flow = 100; flow < 103; ++flow) EXPECT_NEAR(share(kThem, flow), 1.0 / 6, 0.03) << flow;
}

TEST(Shaper, BulkWaitsWhereThereIsNoRoomAndControlDoesNot) {
  Shaper shaper(kBulkPort);
  Exit exit;
  exit.ways[kThem].room = false;
  shaper.push(kThem, {}, tcp_of({}), kSecond);
  shaper.push(kThem, {}, tcp_of({.to_port = 6379, .payload = 50}), kSecond);
  EXPECT_GT(shaper.run(kSecond, exit), 0U);
  ASSERT_EQ(exit.passed.size(), 1U);
  EXPECT_EQ(exit.passed[0].load, Load::Control);
  EXPECT_TRUE(shaper.holds(kThem));
  exit.ways[kThem].room = true;
  EXPECT_EQ(shaper.run(kSecond + kMs, exit), 0U);
  EXPECT_EQ(exit.passed.size(), 2U);
  EXPECT_TRUE(shaper.empty());
  EXPECT_FALSE(shaper.holds(kThem));
}

// Whatever is sent, limited and changed: within a flow everything leaves in the order it came, at most once.
TEST(Shaper, WithinAFlowTheOrderStays) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Rng rng(seed);
    Shaper shaper(kBulkPort);
    Exit exit;
    std::map<std::pair<std::uint32_t, std::uint16_t>, std::uint32_t> sent;
    std::uint64_t now = kSecond, pushed = 0;
    for (int step = 0; step < 4'000; ++step, now += rng.below(3 * kMs)) {
      for (std::uint64_t i = rng.below(4); i > 0; --i) {
        Given g;
        g.to = kThem + static_cast<std::uint32_t>(rng.below(3));
        g.from_port = static_cast<std::uint16_t>(rng.below(6));
        g.to_port = g.from_port < 3 ? kBulkPort : 10'002;
        const bool big = rng.chance(1, 4);
        g.payload = big ? 1 + rng.below(60'000) : 1 + rng.below(1'340);
        g.sequence =
            std::exchange(sent[{g.to, g.from_port}], sent[{g.to, g.from_port}] + static_cast<std::uint32_t>(g.payload));
        shaper.push(g.to, big ? large_header() : OffloadHeader{}, tcp_of(g), now);
        pushed += g.payload;
      }
      if (rng.chance(1, 50)) {
        exit.ways[kThem + static_cast<std::uint32_t>(rng.below(3))] = {
            rng.chance(1, 3) ? 0 : 16'000 + rng.below(5'000'000), rng.chance(3, 4)};
        exit.shared = rng.chance(1, 2) ? -1 : 0;
      }
      if (exit.shared >= 0) exit.shared = static_cast<std::int64_t>(rng.below(20'000));
      shaper.run(now, exit);
      ASSERT_LE(shaper.memory(), Shaper::kMemoryMax);
    }
    exit.shared = -1;
    exit.ways.clear();
    for (int i = 0; i < 1'000 && !shaper.empty(); ++i, now += kMs) shaper.run(now, exit);
    EXPECT_TRUE(shaper.empty());
    EXPECT_EQ(shaper.memory(), 0U);
    std::map<std::pair<std::uint32_t, std::uint16_t>, std::uint32_t> next;
    std::uint64_t passed = 0;
    for (const auto& p : exit.passed) {
      std::uint32_t& at = next[{p.to, p.from_port}];
      ASSERT_GE(p.sequence, at) << seed;
      at = p.sequence + static_cast<std::uint32_t>(p.bytes - 40);
      ASSERT_LE(at, (sent[{p.to, p.from_port}])) << seed;
      passed += p.bytes - 40;
    }
    EXPECT_LE(passed, pushed);
    EXPECT_GT(passed, 0U);
  }
}

TEST(Shaper, AFlowThatQuietsDownDoesNotOvertakeItself) {
  Shaper shaper(kBulkPort);
  Exit exit;
  exit.ways[kThem] = {16'000, false};
  std::uint32_t sequence = 0;
  const auto push = [&](std::uint64_t now) {
    shaper.push(kThem, {}, tcp_of({.to_port = 10'002, .sequence = sequence++}), now);
    shaper.run(now, exit);
  };
  for (int i = 0; i < 6; ++i) push(kSecond);  // more than it may at once
  EXPECT_LT(exit.passed.size(), 6U);
  push(kSecond + 900 * kMs);  // by now it would be control
  exit.ways[kThem].room = true;
  for (int ms = 900; ms < 2'000; ++ms) shaper.run(kSecond + static_cast<std::uint64_t>(ms) * kMs, exit);
  EXPECT_TRUE(shaper.empty());
  EXPECT_TRUE(std::ranges::is_sorted(exit.passed, {}, &Exit::Passed::sequence));
}

TEST(Shaper, BulkThatComesTooFastLosesASegmentNowAndThen) {
  Shaper shaper(kBulkPort);
  Exit exit;
  exit.ways[kThem].bytes_s = 1'000'000;
  std::uint64_t now = kSecond, pushed = 0;
  for (int ms = 0; ms < 3'000; ++ms, now += kMs) {
    if (ms % 12 == 0) shaper.push(kThem, large_header(), tcp_of({.payload = 13'000}), now), ++pushed;
    shaper.run(now, exit);
  }
  EXPECT_GE(shaper.dropped(), 8U);
  EXPECT_LE(shaper.dropped(), 60U);
  EXPECT_GE(exit.bytes([](const auto&) { return true; }), 2'850'000U)
      << "what is dropped leaves no hole in what is sent";
  EXPECT_GT(pushed, 200U);
}

TEST(Shaper, AFloodIsBoundedAndLeavesTheOthersAlone) {
  Shaper shaper(kBulkPort);
  Exit exit;
  for (std::uint32_t to = kThem; to < kThem + 20; ++to) exit.ways[to].bytes_s = 100'000;
  Rng rng(8);
  std::uint64_t now = kSecond, heartbeats = 0;
  std::set<std::uint32_t> heard;
  for (int ms = 0; ms < 4'000; ++ms, now += kMs) {
    for (int i = 0; i < 40; ++i) {
      const auto to = kThem + static_cast<std::uint32_t>(rng.below(20));
      shaper.push(to, large_header(),
                  tcp_of({.to = to, .from_port = static_cast<std::uint16_t>(rng.next()), .payload = 60'000}), now);
      shaper.push(to, {},
                  tcp_of({.to = to,
                          .from_port = static_cast<std::uint16_t>(rng.below(4)),
                          .to_port = 10'002,
                          .payload = 100 + rng.below(300)}),
                  now);
    }
    if (ms % 100 == 0)
      shaper.push(kThem, {}, tcp_of({.to_port = 6379, .payload = 80, .sequence = static_cast<std::uint32_t>(ms)}), now),
          ++heartbeats;
    ASSERT_LE(shaper.memory(), Shaper::kMemoryMax);
    exit.passed.clear();
    shaper.run(now, exit);
    for (const auto& p : exit.passed)
      if (p.load == Load::Control && p.bytes == 120) heard.insert(p.sequence);
  }
  EXPECT_EQ(heard.size(), heartbeats);
  for (int ms = 0; ms < 30'000 && !shaper.empty(); ++ms, now += kMs) shaper.run(now, exit);
  EXPECT_TRUE(shaper.empty()) << "what is too late goes, so that a flood is over soon";
}

TEST(Shaper, NonsenseIsSurvived) {
  Shaper shaper(kBulkPort);
  Exit exit;
  exit.ways[kThem].bytes_s = 1'000'000;
  Rng rng(5);
  std::uint64_t now = kSecond;
  for (int i = 0; i < 30'000; ++i, now += 100) {
    Bytes nonsense(rng.below(2'000));
    for (auto& byte : nonsense) byte = static_cast<std::uint8_t>(rng.next());
    OffloadHeader header{static_cast<std::uint8_t>(rng.next()),      static_cast<std::uint8_t>(rng.below(6)),
                         static_cast<std::uint16_t>(rng.next()),     static_cast<std::uint16_t>(rng.below(1'500)),
                         static_cast<std::uint16_t>(rng.below(100)), static_cast<std::uint16_t>(rng.below(100))};
    if (rng.chance(1, 2) && !nonsense.empty()) nonsense[0] = 0x45;
    shaper.push(kThem, header, nonsense, now);
    exit.passed.clear();
    shaper.run(now, exit);
  }
  for (int ms = 0; ms < 10'000 && !shaper.empty(); ++ms, now += kMs) shaper.run(now, exit);
  EXPECT_TRUE(shaper.empty());
}

}  // namespace
}  // namespace muster::overlay
