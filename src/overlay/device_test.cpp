#include "overlay/device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <thread>

#include "base/endian.h"
#include "base/rng.h"
#include "crypto/aead.h"
#include "overlay/session.h"

namespace muster::overlay {
namespace {

Bytes ip_packet(std::uint32_t from, std::uint32_t to, std::size_t size, std::uint8_t fill = 0) {
  Bytes out(std::max<std::size_t>(size, 20), fill);
  out[0] = 0x45;
  store_be16(out.data() + 2, static_cast<std::uint16_t>(out.size()));
  store_be32(out.data() + 12, from);
  store_be32(out.data() + 16, to);
  return out;
}

struct Box : Sink {
  std::vector<std::pair<Endpoint, Bytes>> sent;
  std::vector<Bytes> delivered, controls;
  void send(const Endpoint& to, ByteView d) override { sent.emplace_back(to, Bytes(d.begin(), d.end())); }
  void deliver(ByteView p) override { delivered.emplace_back(p.begin(), p.end()); }
  void control(const Key32&, const Endpoint&, ByteView m) override { controls.emplace_back(m.begin(), m.end()); }
  std::vector<Bytes> take() {
    std::vector<Bytes> out;
    for (auto& [to, bytes] : sent) out.push_back(std::move(bytes));
    sent.clear();
    return out;
  }
};

constexpr std::uint32_t kA = 0x0a640001, kB = 0x0a640002;

struct Two : ::testing::Test {
  crypto::X25519Pair key_a = crypto::x25519_generate(), key_b = crypto::x25519_generate();
  Endpoint at_a = Endpoint::udp(0x7f000001, 1111), at_b = Endpoint::udp(0x7f000001, 2222);
  DeviceOptions options;
  Secret32 psk;
  std::unique_ptr<Device> a, b;
  Box box_a, box_b;
  Now now{WallTime{1'795'000'000'000}, LeaseTime{1'000'000}};

  void SetUp() override { make(); }
  void make() {
    a = std::make_unique<Device>(key_a, options);
    b = std::make_unique<Device>(key_b, options);
    a->set_peers({PeerConfig{key_b.public_key, psk, {kB}, at_b, {}}});
    b->set_peers({PeerConfig{key_a.public_key, psk, {kA}, {}, {}}});
  }
  void pass(Millis d) {
    now.wall = now.wall + d;
    now.lease = now.lease + d;
  }
  void exchange() {  // until silence
    for (int i = 0; i < 50 && (!box_a.sent.empty() || !box_b.sent.empty()); ++i) {
      for (const Bytes& d : box_a.take()) b->decapsulate(d, at_a, now, box_b);
      for (const Bytes& d : box_b.take()) a->decapsulate(d, at_b, now, box_a);
    }
  }
  void run(Millis total, Millis step = Millis(250)) {
    for (Millis t{0}; t < total; t += step) {
      pass(step);
      a->tick(now, box_a);
      b->tick(now, box_b);
      exchange();
    }
  }
  Encapsulated a_sends(std::size_t size = 100) { return a->encapsulate(ip_packet(kA, kB, size), now, box_a); }
  Encapsulated b_sends(std::size_t size = 100) { return b->encapsulate(ip_packet(kB, kA, size), now, box_b); }
};

TEST_F(Two, HandshakeThenDataBothWays) {
  EXPECT_EQ(a_sends(), Encapsulated::Staged);
  ASSERT_EQ(box_a.sent.size(), 1U);
  EXPECT_EQ(box_a.sent[0].second.size(), kInitiationBytes);
  exchange();
  ASSERT_EQ(box_b.delivered.size(), 1U);
  EXPECT_EQ(box_b.delivered[0], ip_packet(kA, kB, 100));
  for (std::size_t size : {20U, 21U, 31U, 32U, 1419U, 1420U, 1500U, 9000U, 65000U}) {
    EXPECT_EQ(b_sends(size), Encapsulated::Sent);
    exchange();
    EXPECT_EQ(box_a.delivered.back(), ip_packet(kB, kA, size));
  }
  EXPECT_EQ(a->stats()[0].handshakes, 1U);
  EXPECT_EQ(b->stats()[0].handshakes, 1U);
}

TEST_F(Two, DatagramsArePadded) {
  a_sends();
  exchange();
  a_sends(33);
  EXPECT_EQ(box_a.sent.back().second.size(), kTransportHeader + 48 + 16);
  a_sends(1419);
  EXPECT_EQ(box_a.sent.back().second.size(), kTransportHeader + 1420 + 16);  // not above the MTU
}

TEST_F(Two, PskMustMatch) {
  a->set_peers({PeerConfig{key_b.public_key, Secret32(crypto::x25519_generate().public_key), {kB}, at_b, {}}});
  a_sends();
  exchange();
  run(20s);
  EXPECT_TRUE(box_b.delivered.empty());
}

TEST_F(Two, UnknownAddressesSourcesAndPeers) {
  EXPECT_EQ(a->encapsulate(ip_packet(kA, 0x01020304, 60), now, box_a), Encapsulated::NoPeer);
  EXPECT_EQ(a->encapsulate(Bytes{0x60, 1, 2}, now, box_a), Encapsulated::Invalid);
  a_sends();
  exchange();
  a->encapsulate(ip_packet(0x01020304, kB, 60), now, box_a);  // a source that is not A's
  exchange();
  EXPECT_EQ(box_b.delivered.size(), 1U);
  EXPECT_EQ(b->stats()[0].dropped, 1U);
  b->set_peers({});
  a_sends();
  exchange();
  EXPECT_EQ(box_b.delivered.size(), 1U);
  EXPECT_FALSE(b->has_peer(key_a.public_key));
}

TEST_F(Two, ReplayedAndForgedDatagramsAreDropped) {
  a_sends();
  exchange();
  a_sends();
  const Bytes datagram = box_a.take().back();
  for (std::size_t i = 0; i < datagram.size(); ++i) {
    Bytes bad = datagram;
    bad[i] ^= 0x10;
    b->decapsulate(bad, Endpoint::udp(9, 9), now, box_b);
  }
  EXPECT_EQ(box_b.delivered.size(), 1U);
  EXPECT_EQ(b->stats()[0].endpoint, at_a);  // forgeries do not move the endpoint
  b->decapsulate(datagram, at_a, now, box_b);
  b->decapsulate(datagram, at_a, now, box_b);
  EXPECT_EQ(box_b.delivered.size(), 2U);
}

TEST_F(Two, ReplayedInitiationIsIgnored) {
  a_sends();
  const Bytes initiation = box_a.sent[0].second;
  exchange();
  pass(1s);
  b->decapsulate(initiation, at_a, now, box_b);
  EXPECT_TRUE(box_b.sent.empty());
}

TEST_F(Two, ARestartOnAClockSetBackIsHeardWithTheStampsItKept) {
  a_sends();
  exchange();
  ASSERT_EQ(box_b.delivered.size(), 1U);
  const WallTime kept = a->latest_stamp();
  EXPECT_GE(kept, now.wall - Millis(1000));
  now.wall = now.wall - Millis(3 * 3600 * 1000);
  for (const bool remembers : {false, true}) {
    pass(Millis(100));  // initiations that follow at once count as a flood
    a = std::make_unique<Device>(key_a, options);
    if (remembers) a->stamp_from(kept + Millis(1000));
    a->set_peers({PeerConfig{key_b.public_key, psk, {kB}, at_b, {}}});
    box_b.delivered.clear();
    a_sends();
    exchange();
    EXPECT_EQ(box_b.delivered.size(), remembers ? 1U : 0U);
  }
}

TEST_F(Two, RoamsWithAuthenticatedPackets) {
  a_sends();
  exchange();
  const Endpoint moved = Endpoint::udp(0x7f000002, 3333);
  a_sends();
  for (const Bytes& d : box_a.take()) b->decapsulate(d, moved, now, box_b);
  b_sends();
  EXPECT_EQ(box_b.sent.back().first, moved);
}

TEST_F(Two, RekeysAfterTwoMinutesWithoutLoss) {
  a_sends();
  exchange();
  std::size_t sent = 1;
  for (int i = 0; i < 4'000; ++i) {
    run(250ms);
    a_sends();
    ++sent;
    exchange();
  }
  EXPECT_EQ(box_b.delivered.size(), sent);
  const auto handshakes = a->stats()[0].handshakes;
  EXPECT_GE(handshakes, 8U);  // 1,000 s
  EXPECT_LE(handshakes, 10U);
}

TEST_F(Two, ReceiverInitiatesNothingButOldSessionsEnd) {
  a_sends();
  exchange();
  run(181s);
  EXPECT_FALSE(a->has_session(key_b.public_key));
  EXPECT_EQ(a_sends(), Encapsulated::Staged);
  exchange();
  EXPECT_EQ(box_b.delivered.size(), 2U);
}

TEST_F(Two, RetriesThenGivesUpAndRecovers) {
  a_sends();
  box_a.take();
  std::size_t initiations = 0;
  for (int i = 0; i < 4 * 120; ++i) {
    pass(250ms);
    a->tick(now, box_a);
    initiations += box_a.take().size();
  }
  EXPECT_GE(initiations, 15U);
  EXPECT_LE(initiations, 18U);
  a_sends();
  exchange();
  EXPECT_EQ(box_b.delivered.size(), 1U);  // what was staged before was given up
}

TEST_F(Two, KeepaliveAnswersDataAndSilenceStartsAHandshake) {
  a_sends();
  exchange();
  const auto before = b->stats()[0].tx_packets;
  run(11s);
  EXPECT_EQ(b->stats()[0].tx_packets, before + 1);
  a_sends();
  box_a.take();  // lost, and nothing comes back
  bool initiated = false;
  for (int i = 0; i < 4 * 17; ++i) {
    pass(250ms);
    a->tick(now, box_a);
    for (const Bytes& d : box_a.take()) initiated |= d.size() == kInitiationBytes;
  }
  EXPECT_TRUE(initiated);
}

TEST_F(Two, BothStartAtOnce) {
  b->set_endpoint(key_a.public_key, at_a);
  a_sends();
  b_sends();
  const auto from_a = box_a.take(), from_b = box_b.take();
  for (const Bytes& d : from_a) b->decapsulate(d, at_a, now, box_b);
  for (const Bytes& d : from_b) a->decapsulate(d, at_b, now, box_a);
  exchange();
  EXPECT_EQ(box_a.delivered.size(), 1U);
  EXPECT_EQ(box_b.delivered.size(), 1U);
  for (int i = 0; i < 20; ++i) {
    a_sends();
    b_sends();
    exchange();
  }
  EXPECT_EQ(box_a.delivered.size(), 21U);
  EXPECT_EQ(box_b.delivered.size(), 21U);
}

TEST_F(Two, UnderLoadACookieIsDemandedAndServes) {
  options.load_handshakes_per_s = 0;  // always under load
  make();
  a_sends();
  const auto first = box_a.take();
  b->decapsulate(first[0], at_a, now, box_b);
  auto replies = box_b.take();
  ASSERT_EQ(replies.size(), 1U);
  EXPECT_EQ(replies[0].size(), kCookieBytes);
  Bytes forged = replies[0];
  forged[40] ^= 1;
  a->decapsulate(forged, at_b, now, box_a);
  a->decapsulate(replies[0], at_b, now, box_a);
  pass(6s);
  a->tick(now, box_a);
  const auto second = box_a.take();
  ASSERT_EQ(second.size(), 1U);
  b->decapsulate(second[0], Endpoint::udp(1, 1), now, box_b);  // the cookie is bound to the source
  EXPECT_EQ(box_b.take()[0].size(), kCookieBytes);
  b->decapsulate(second[0], at_a, now, box_b);
  replies = box_b.take();
  ASSERT_EQ(replies.size(), 1U);
  EXPECT_EQ(replies[0].size(), kResponseBytes);
  // A is under load too and demands a cookie of the response's sender; the next attempt has both.
  a->decapsulate(replies[0], at_b, now, box_a);
  exchange();
  run(12s);
  EXPECT_EQ(box_b.delivered.size(), 1U);
}

TEST_F(Two, ControlMessagesTravelSealed) {
  EXPECT_FALSE(a->send_control(key_b.public_key, at_b, Bytes{1, 2, 3}, now, box_a));
  a_sends();
  exchange();
  EXPECT_TRUE(a->send_control(key_b.public_key, at_b, Bytes{1, 2, 3}, now, box_a));
  exchange();
  ASSERT_EQ(box_b.controls.size(), 1U);
  EXPECT_EQ(box_b.controls[0], (Bytes{1, 2, 3}));
}

// Loss, duplication and reordering, with rekeys in between: whatever arrives is what was sent, nothing twice; and when
// the network heals, packets flow again within a handshake's time.
// Does every part, the last first, each on a thread of its own.
struct Backwards : Crew {
  std::size_t parts = 0;
  bool helps() const override { return true; }
  void run(std::size_t count, Job& job) override {
    parts += count;
    std::vector<std::thread> threads;
    for (std::size_t i = count; i-- > 0;) threads.emplace_back([&job, i] { job.part(i); });
    for (auto& thread : threads) thread.join();
  }
};

TEST_F(Two, WhatACrewSealsIsWhatIsSealedAloneAndInItsOrder) {
  a_sends();
  exchange();
  Backwards crew;
  const std::vector<std::size_t> sizes = {100, 1380, 20, 65'000, 1380, 1380, 33, 47, 48, 49};
  a->hold(crew);
  for (const std::size_t size : sizes) EXPECT_EQ(a_sends(size), Encapsulated::Sent);
  EXPECT_TRUE(a->send_control(key_b.public_key, at_b, Bytes{1, 2, 3}, now, box_a));
  EXPECT_TRUE(box_a.sent.empty());
  a->release(crew, box_a);
  ASSERT_EQ(box_a.sent.size(), sizes.size() + 1);
  if (crypto::packets_on_many_threads()) EXPECT_EQ(crew.parts, 3U) << "four a part";
  for (std::size_t i = 0; i < sizes.size(); ++i)
    EXPECT_EQ(load_le64(box_a.sent[i].second.data() + 8), load_le64(box_a.sent[0].second.data() + 8) + i);
  box_b.delivered.clear();
  exchange();
  ASSERT_EQ(box_b.delivered.size(), sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) EXPECT_EQ(box_b.delivered[i], ip_packet(kA, kB, sizes[i]));
  EXPECT_EQ(box_b.controls.size(), 1U);
  a_sends();  // nothing is held any more
  EXPECT_EQ(box_a.sent.size(), 1U);
}

TEST_F(Two, MoreThanCanBeHeldGoesAtOnceAndInItsOrder) {
  a_sends();
  exchange();
  box_b.delivered.clear();
  Backwards crew;
  a->hold(crew);
  for (std::size_t i = 0; i < 2 * Device::kHeldMax + 5; ++i)
    a->encapsulate(ip_packet(kA, kB, 100, static_cast<std::uint8_t>(i)), now, box_a);
  EXPECT_EQ(box_a.sent.size(), 2 * Device::kHeldMax);
  a->release(crew, box_a);
  exchange();
  ASSERT_EQ(box_b.delivered.size(), 2 * Device::kHeldMax + 5);
  for (std::size_t i = 0; i < box_b.delivered.size(); ++i)
    ASSERT_EQ(box_b.delivered[i].back(), static_cast<std::uint8_t>(i));
}

TEST_F(Two, WhoIsAloneSealsAndOpensRowsToo) {
  a_sends();
  exchange();
  box_b.delivered.clear();
  Alone alone;
  for (const std::size_t count : {1U, 2U, 16U, 17U, 45U}) {
    a->hold(alone);
    for (std::size_t i = 0; i < count; ++i)
      a->encapsulate(ip_packet(kA, kB, 20 + 97 * i % 1'400, static_cast<std::uint8_t>(i)), now, box_a);
    EXPECT_EQ(box_a.sent.size(), (count - 1) / Device::kHeldAlone * Device::kHeldAlone);
    a->release(alone, box_a);
    const std::vector<Bytes> datagrams = box_a.take();
    ASSERT_EQ(datagrams.size(), count);
    const std::vector<ByteView> views(datagrams.begin(), datagrams.end());
    b->open_ahead(views, alone, now);
    for (const ByteView view : views) b->decapsulate(view, at_a, now, box_b);
    ASSERT_EQ(box_b.delivered.size(), count);
    for (std::size_t i = 0; i < count; ++i)
      EXPECT_EQ(box_b.delivered[i], ip_packet(kA, kB, 20 + 97 * i % 1'400, static_cast<std::uint8_t>(i)));
    box_b.delivered.clear();
  }
}

TEST_F(Two, WhatWasOpenedAheadIsTakenOnceAndOnlyIfGenuine) {
  a_sends();
  exchange();
  box_b.delivered.clear();
  for (std::size_t i = 0; i < 40; ++i) a->encapsulate(ip_packet(kA, kB, 200, static_cast<std::uint8_t>(i)), now, box_a);
  std::vector<Bytes> datagrams = box_a.take();
  datagrams[7][30] ^= 1;                             // damaged
  datagrams[9] = datagrams[8];                       // a replay
  datagrams[11] = Bytes(20, 4);                      // too short
  store_le32(datagrams[13].data() + 4, 0xdeadbeef);  // of no session
  const std::vector<ByteView> views(datagrams.begin(), datagrams.end());
  Backwards crew;
  b->open_ahead(views, crew, now);
  if (crypto::packets_on_many_threads()) EXPECT_EQ(crew.parts, 10U);
  EXPECT_TRUE(box_b.delivered.empty()) << "opening is all that was done";
  const std::uint64_t dropped = b->stats()[0].dropped;
  for (std::size_t i = 0; i < views.size(); ++i)
    if (i != 20) b->decapsulate(views[i], at_a, now, box_b);  // one is taken away in between
  EXPECT_EQ(box_b.delivered.size(), 35U);
  EXPECT_EQ(b->stats()[0].dropped, dropped + 2);
  for (const Bytes& packet : box_b.delivered) EXPECT_EQ(packet, ip_packet(kA, kB, 200, packet.back()));
  for (const ByteView view : views) b->decapsulate(view, at_a, now, box_b);  // again: only the one that was left out
  EXPECT_EQ(box_b.delivered.size(), 36U);
}

TEST_F(Two, WhatWasOpenedAheadOfASessionsEndIsWorthNothing) {
  a_sends();
  exchange();
  box_b.delivered.clear();
  a_sends();
  const std::vector<Bytes> datagrams = box_a.take();
  const std::vector<ByteView> views(datagrams.begin(), datagrams.end());
  Backwards crew;
  b->open_ahead(views, crew, now);
  b->set_peers({});
  b->set_peers({PeerConfig{key_a.public_key, psk, {kA}, {}, {}}});
  b->decapsulate(views[0], at_a, now, box_b);
  EXPECT_TRUE(box_b.delivered.empty());
  // The same memory with other bytes in it, and nothing opened ahead for them.
  b->open_ahead({}, crew, now);
  pass(6s);
  a->start_handshake(key_b.public_key, now, box_a);
  exchange();
  a_sends();
  exchange();
  EXPECT_EQ(box_b.delivered.size(), 1U);
}

TEST(DeviceProperty, RandomNetworkNeverCorruptsAndHeals) {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    Rng rng(seed);
    const auto key_a = crypto::x25519_generate(), key_b = crypto::x25519_generate();
    Device a(key_a), b(key_b);
    const Endpoint at_a = Endpoint::udp(1, 1), at_b = Endpoint::udp(2, 2);
    a.set_peers({PeerConfig{key_b.public_key, {}, {kB}, at_b, {}}});
    b.set_peers({PeerConfig{key_a.public_key, {}, {kA}, at_a, {}}});
    Now now{WallTime{1'795'000'000'000}, LeaseTime{1}};
    struct Flight {
      std::int64_t at;
      bool to_b;
      Bytes data;
    };
    std::vector<Flight> air;
    Box box_a, box_b;
    std::set<std::uint32_t> got_a, got_b;
    std::uint32_t number = 0;
    const auto ship = [&](Box& box, bool to_b, std::uint64_t loss) {
      for (Bytes& d : box.take()) {
        if (rng.chance(loss, 100)) continue;
        if (rng.chance(5, 100)) air.push_back({now.lease.ms + rng.between(0, 900), to_b, d});
        air.push_back({now.lease.ms + rng.between(0, 300), to_b, std::move(d)});
      }
    };
    const auto drain = [&](Box& box, std::set<std::uint32_t>& got, std::uint32_t from, std::uint32_t to) {
      for (const Bytes& p : box.delivered) {
        const std::uint32_t n = load_be32(p.data() + 20);
        Bytes expected = ip_packet(from, to, 24 + n % 1400, static_cast<std::uint8_t>(n));
        store_be32(expected.data() + 20, n);
        ASSERT_EQ(p, expected);
        ASSERT_TRUE(got.insert(n).second) << "twice: " << n;
      }
      box.delivered.clear();
    };
    const auto step = [&](std::uint64_t loss) {
      now.lease = now.lease + 100ms;
      now.wall = now.wall + 100ms;
      for (int i = 0; i < 3; ++i) {
        const bool from_a = rng.chance(1, 2);
        ++number;
        Bytes p = ip_packet(from_a ? kA : kB, from_a ? kB : kA, 24 + number % 1400, static_cast<std::uint8_t>(number));
        store_be32(p.data() + 20, number);
        from_a ? a.encapsulate(p, now, box_a) : b.encapsulate(p, now, box_b);
      }
      a.tick(now, box_a);
      b.tick(now, box_b);
      ship(box_a, true, loss);
      ship(box_b, false, loss);
      std::stable_sort(air.begin(), air.end(), [](const Flight& x, const Flight& y) { return x.at < y.at; });
      while (!air.empty() && air.front().at <= now.lease.ms) {
        const Flight f = std::move(air.front());
        air.erase(air.begin());
        f.to_b ? b.decapsulate(f.data, at_a, now, box_b) : a.decapsulate(f.data, at_b, now, box_a);
      }
      drain(box_a, got_a, kB, kA);
      drain(box_b, got_b, kA, kB);
    };
    for (int i = 0; i < 2'500; ++i) step(rng.below(40));  // 250 s: two rekeys
    for (int i = 0; i < 300; ++i) step(100);
    for (int i = 0; i < 150; ++i) step(0);
    const std::size_t before_a = got_a.size(), before_b = got_b.size();
    for (int i = 0; i < 50; ++i) step(0);
    EXPECT_GT(got_a.size(), before_a + 40) << "seed " << seed;
    EXPECT_GT(got_b.size(), before_b + 40) << "seed " << seed;
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(DeviceProperty, RandomBytesNeverCrash) {
  Rng rng(11);
  const auto key = crypto::x25519_generate(), peer = crypto::x25519_generate();
  Device device(key);
  device.set_peers({PeerConfig{peer.public_key, {}, {kB}, {}, {}}});
  Box box;
  const Now now{WallTime{1'795'000'000'000}, LeaseTime{1}};
  for (int i = 0; i < 20'000; ++i) {
    Bytes bytes(rng.below(200));
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(rng.next());
    if (bytes.size() > 4 && rng.chance(3, 4)) {
      bytes[0] = static_cast<std::uint8_t>(1 + rng.below(4));
      bytes[1] = bytes[2] = bytes[3] = 0;
      constexpr std::size_t sizes[] = {kInitiationBytes, kResponseBytes, kCookieBytes, 32};
      bytes.resize(sizes[bytes[0] - 1]);
    }
    device.decapsulate(bytes, Endpoint::udp(3, 3), now, box);
  }
  EXPECT_TRUE(box.delivered.empty());
  EXPECT_TRUE(box.sent.empty());
}

}  // namespace
}  // namespace muster::overlay
