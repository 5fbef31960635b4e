#include "overlay/member.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/endian.h"
#include "base/rng.h"
#include "overlay/offload_trial.h"
#include "overlay/packet.h"

namespace muster::overlay {
namespace {

constexpr std::uint64_t kCluster = 5;
constexpr std::uint32_t kNet = 0x64400000;  // 100.64.0.0/16

struct Machine : Out {
  crypto::SigningKey device = crypto::SigningKey::generate();
  crypto::X25519Pair key = crypto::x25519_generate();
  std::uint32_t address = 0;
  Endpoint lan;
  LeaseEpoch epoch{1, 1, 1};
  std::unique_ptr<Member> member;
  struct Relayed {
    std::size_t relay;
    Key32 to;
    Bytes datagram;
  };
  std::vector<Relayed> relayed;
  std::vector<std::pair<Endpoint, Bytes>> direct;
  std::vector<Bytes> tun;
  void to_relay(std::size_t relay, const Key32& m, ByteView d) override {
    relayed.push_back({relay, m, Bytes(d.begin(), d.end())});
  }
  void to_udp(std::uint32_t ip, std::uint16_t port, ByteView d) override {
    ++sent_to[ip];
    direct.emplace_back(Endpoint::udp(ip, port), Bytes(d.begin(), d.end()));
  }
  std::map<std::uint32_t, std::size_t> sent_to;
  void to_udp6(const Ip6& ip, std::uint16_t port, ByteView d) override {
    direct.emplace_back(Endpoint::udp6(ip, port), Bytes(d.begin(), d.end()));
  }
  bool may_carry(std::size_t bytes) override {
    carries += bytes;
    return carries <= carries_max;
  }
  std::size_t carries = 0, carries_max = SIZE_MAX;
  void took_test(std::size_t bytes) override { test_bytes += bytes; }
  std::size_t test_bytes = 0;
  void to_tun(ByteView p) override { tun.emplace_back(p.begin(), p.end()); }
  // A socket that hands over at once what was gathered since apart(), on a device that loses what is more than one.
  OffloadTrial* trial = nullptr;
  const Now* now = nullptr;
  bool loses_large = false;
  std::size_t gathered_from = 0;
  void apart() override {
    if (loses_large && trial->large() && direct.size() > gathered_from + 1) direct.resize(gathered_from);
    gathered_from = direct.size();
  }
  std::vector<std::pair<Endpoint, Bytes>> leave() {
    apart();
    gathered_from = 0;
    return std::exchange(direct, {});
  }
  bool compares(const Endpoint& way) const override { return trial != nullptr && way.direct(); }
  void fared(std::uint32_t whom, std::uint64_t sent, std::uint64_t lost) override {
    trial->note(whom, sent, lost, now->lease);
  }
  bool may_reach(const Endpoint& to) override { return std::ranges::find(tunnels, to) == tunnels.end(); }
  std::vector<Endpoint> tunnels;                                             // what lies behind them
  std::uint64_t micros() const override { return (clock += step) + ahead; }  // whoever looks twice sees 1 ms go by
  mutable std::uint64_t clock = 0;
  std::uint64_t slow_udp_us = 0;
  std::uint64_t ahead = 0;  // while something arrives that was long on its way
  std::uint64_t step = 1'000;
  RosterMember entry() const {
    RosterMember m;
    m.slot = m.node = address & 0xff;
    m.role = 2;
    m.address = address;
    m.overlay_key = key.public_key;
    m.device_key = device.public_key();
    m.epoch = epoch;
    m.overlay_signature = sign_overlay_key(device, kCluster, epoch, key.public_key);
    if (lan.kind == Endpoint::Kind::Udp) m.lan = {lan};
    return m;
  }
};

struct Net : ::testing::Test {
  crypto::SigningKey controller = crypto::SigningKey::generate();
  std::vector<std::unique_ptr<Machine>> machines;
  Now now{WallTime{1'795'000'000'000}, LeaseTime{1'000'000}};
  std::uint64_t epoch = 0;
  bool relay_up = true, direct_up = true;
  // Of each relay: does it carry anything, how long does that take, how many datagrams of programs took it.
  struct Relay {
    bool carries = true;
    std::uint64_t takes_us = 0;
    std::size_t data = 0;
  };
  std::vector<Relay> relays{1};
  std::size_t direct_size_max = 2000, relay_data = 0, direct_data = 0;

  void build(int count, bool lan) {
    for (int i = 0; i < count; ++i) {
      auto m = std::make_unique<Machine>();
      m->address = kNet + 1 + static_cast<std::uint32_t>(i);
      if (lan) m->lan = Endpoint::udp(0x0a000001 + static_cast<std::uint32_t>(i), 7000);
      m->member = std::make_unique<Member>(m->key, m->address, 16, Secret32{});
      m->member->set_relays(relays.size(), now);
      for (std::size_t r = 0; r < relays.size(); ++r) m->member->relay_up(r, now);
      machines.push_back(std::move(m));
    }
    roster();
  }
  Roster make_roster(std::size_t without = 999) {
    Roster r{kCluster, 1, ++epoch, {}};
    for (std::size_t i = 0; i < machines.size(); ++i) {
      if (i != without) r.members.push_back(machines[i]->entry());
    }
    return r;
  }
  void roster(std::size_t without = 999) {
    const Bytes bytes = encode_roster(make_roster(without));
    for (auto& m : machines) ASSERT_TRUE(apply(*m, bytes).ok());
  }
  Result<std::size_t> apply(Machine& m, const Bytes& bytes) {
    return m.member->set_roster(bytes, {sign_roster(controller, bytes)}, {controller.public_key()});
  }
  void exchange() {
    for (int round = 0; round < 60; ++round) {
      bool busy = false;
      for (auto& from : machines) {
        auto relayed = std::exchange(from->relayed, {});
        auto direct = from->leave();
        busy = busy || !relayed.empty() || !direct.empty();
        // The nearer a relay, the sooner it brings something.
        std::ranges::stable_sort(relayed, {}, [&](const auto& each) { return relays[each.relay].takes_us; });
        for (auto& [relay, key, d] : relayed) {
          relay_data += d[0] == 4;
          relays[relay].data += d[0] == 4 && d.size() > 150 ? 1 : 0;
          for (auto& to : machines) {
            if (!relay_up || !relays[relay].carries || to->key.public_key != key) continue;
            to->ahead = relays[relay].takes_us;
            to->member->from_relay(relay, from->key.public_key, d, now, *to);
            to->ahead = 0;
          }
        }
        for (auto& [at, d] : direct) {
          direct_data += d[0] == 4;
          for (auto& to : machines) {
            if (direct_up && d.size() <= direct_size_max && to->lan == at) arrive(*to, from->lan, d);
          }
        }
      }
      if (!busy) return;
    }
  }
  void arrive(Machine& to, const Endpoint& from, const Bytes& d) {
    if (from.kind == Endpoint::Kind::Udp6)
      to.member->from_udp6(from.six, from.port, d, now, to);
    else
      to.member->from_udp(from.ip, from.port, d, now, to);
  }
  void run(Millis total) {
    for (Millis t{0}; t < total; t += 250ms) {
      now.lease = now.lease + 250ms;
      now.wall = now.wall + 250ms;
      for (auto& m : machines) m->member->tick(now, *m);
      exchange();
    }
  }
  static Bytes udp_packet(std::uint32_t from, std::uint32_t to, std::size_t size = 200) {
    Bytes p(size, 0x5a);
    p[0] = 0x45;
    store_be16(p.data() + 2, static_cast<std::uint16_t>(size));
    store_be16(p.data() + 6, 0);
    p[9] = 17;
    store_be32(p.data() + 12, from);
    store_be32(p.data() + 16, to);
    return p;
  }
  bool delivers(std::size_t from, std::size_t to, std::size_t size = 200) {
    machines[to]->tun.clear();
    const Bytes p = udp_packet(machines[from]->address, machines[to]->address, size);
    machines[from]->member->from_tun(p, now, *machines[from]);
    exchange();
    return std::ranges::count(machines[to]->tun, p) == 1;
  }
  std::string path(std::size_t from, std::size_t to) {
    for (const MemberStats& s : machines[from]->member->stats()) {
      if (s.address == machines[to]->address) return format_endpoint(s.peer.endpoint);
    }
    return "none";
  }
};

TEST_F(Net, RelayServesEveryPair) {
  build(3, false);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < 3; ++j) {
      if (i == j) continue;
      EXPECT_TRUE(delivers(i, j, kRelayedMtu)) << i << j;
    }
  }
  EXPECT_EQ(path(0, 1), "relay");
}

TEST_F(Net, DirectPathIsFoundUsedAndLeft) {
  build(2, true);
  EXPECT_TRUE(delivers(0, 1));
  run(4s);
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
  EXPECT_EQ(path(1, 0), "10.0.0.1:7000");
  relay_data = 0;
  EXPECT_TRUE(delivers(0, 1));
  EXPECT_EQ(relay_data, 0U);
  direct_up = false;
  run(6s);
  EXPECT_EQ(path(0, 1), "relay");
  EXPECT_TRUE(delivers(0, 1));
  EXPECT_TRUE(delivers(1, 0));
  direct_up = true;
  run(40s);
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
}

TEST_F(Net, ABusyWayIsAskedHowMuchItCarriesAndHeldToThat) {
  build(2, true);
  EXPECT_TRUE(delivers(0, 1));
  run(4s);
  Machine &from = *machines[0], &to = *machines[1];
  const auto way = [&] { return from.member->way(to.address); };
  ASSERT_NE(way().member, nullptr);
  from.step = to.step = 0;  // time goes by here alone
  EXPECT_FALSE(way().relay);
  EXPECT_EQ(from.member->way(kNet + 99).member, nullptr);
  // A thousand packets a second; what is sent takes so many microseconds until it is there.
  const auto busy = [&](std::uint64_t first_us, std::uint64_t more_us, int rounds) {
    for (int i = 0; i < rounds; ++i) {
      now.lease = now.lease + 50ms;
      for (int k = 0; k < 50; ++k) {
        from.member->from_tun(udp_packet(from.address, to.address, 1'300), now, from);
        from.member->sent(to.address, 1'332, now, from);
      }
      const std::uint64_t takes = first_us + more_us * static_cast<std::uint64_t>(i);
      from.clock += takes;
      to.clock += takes;
      exchange();
      from.clock += 60'000 - std::min<std::uint64_t>(takes, 60'000);
      to.clock += 60'000 - std::min<std::uint64_t>(takes, 60'000);
      to.tun.clear();
    }
  };
  busy(5'000, 0, 20);
  EXPECT_EQ(way().bytes_s, 0U) << "it is as quick as when nothing was sent";
  EXPECT_EQ(from.member->stats().at(0).carries_bytes_s, 0U);
  busy(5'000, 8'000, 15);
  const std::uint64_t held = way().bytes_s;
  EXPECT_GT(held, 100'000U);
  EXPECT_LT(held, 1'332'000U) << "less than what was sent when the queue grew";
  EXPECT_GT(from.member->stats().at(0).carries_bytes_s, held);
  EXPECT_LT(now.lease - from.member->stats().at(0).carries_since, 1s);
  EXPECT_EQ(to.member->way(from.address).bytes_s, 0U) << "each direction for itself";
  direct_up = false;
  run(6s);
  EXPECT_TRUE(way().relay);
  EXPECT_EQ(way().bytes_s, 0U) << "another way, another pace";
}

TEST_F(Net, WhereWhatIsHandedOverTogetherVanishesItGoesOneByOneAndProbesAlwaysDo) {
  build(2, true);
  std::array<OffloadTrial, 2> trials;
  for (std::size_t i = 0; i < 2; ++i) machines[i]->trial = &trials[i], machines[i]->now = &now;
  machines[0]->loses_large = true;
  EXPECT_TRUE(delivers(0, 1));
  run(4s);
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000") << "probes go alone, so the way is found";
  EXPECT_EQ(path(1, 0), "10.0.0.1:7000") << "answers too";
  const auto burst = [&](std::size_t from, std::size_t to) {
    machines[to]->tun.clear();
    for (int i = 0; i < 10; ++i)
      machines[from]->member->from_tun(udp_packet(machines[from]->address, machines[to]->address, 1'300), now,
                                       *machines[from]);
    exchange();
    return machines[to]->tun.size();
  };
  EXPECT_EQ(burst(0, 1), 0U);
  EXPECT_EQ(burst(1, 0), 10U);
  int rounds = 0;
  for (; rounds < 40 && trials[0].state() != OffloadTrial::State::Single; ++rounds) {
    burst(0, 1);
    burst(1, 0);
    run(250ms);
  }
  EXPECT_LT(rounds, 20);
  EXPECT_EQ(burst(0, 1), 10U);
  EXPECT_EQ(trials[0].lost_single(), 0U);
  EXPECT_GT(trials[0].lost_large(), 90U);
  EXPECT_EQ(trials[1].state(), OffloadTrial::State::Large) << "the other end loses nothing";
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
  // A restarted member counts anew, and that is no loss.
  machines[0]->loses_large = false;
  trials[0] = {};
  machines[1]->member = std::make_unique<Member>(machines[1]->key, machines[1]->address, 16, Secret32{});
  machines[1]->member->set_relays(relays.size(), now);
  machines[1]->member->relay_up(0, now);
  roster();
  machines[1]->member->greet(now, *machines[1]);
  for (int i = 0; i < 40; ++i) burst(0, 1), run(250ms);
  EXPECT_EQ(trials[0].state(), OffloadTrial::State::Large);
}

TEST_F(Net, AWayThatCarriesLittleIsNotUsed) {
  direct_size_max = kInnerSizes.back() + 31;  // one byte less than the least of them, sealed
  build(2, true);
  EXPECT_TRUE(delivers(0, 1));
  run(20s);
  EXPECT_EQ(path(0, 1), "relay");
  EXPECT_TRUE(delivers(0, 1, kRelayedMtu));
  const MemberStats s = machines[0]->member->stats().at(0);
  ASSERT_EQ(s.tried.size(), 1U);
  EXPECT_EQ(s.tried[0].at, machines[1]->lan);
  EXPECT_EQ(s.tried[0].origin, Origin::Roster);
  EXPECT_GT(s.tried[0].sent, 2U);
  EXPECT_FALSE(s.tried[0].full);
}

// A packet of that size from 0 to 1: whole, in pieces that make it up, or "" where it did not come.
std::string comes_as(Net& net, std::size_t size, bool may_be_cut) {
  Machine &from = *net.machines[0], &to = *net.machines[1];
  to.tun.clear();
  from.tun.clear();
  Bytes packet = Net::udp_packet(from.address, to.address, size);
  for (std::size_t i = 20; i < size; ++i) packet[i] = static_cast<std::uint8_t>(i);
  store_be16(packet.data() + 6, may_be_cut ? 0 : 0x4000);
  from.member->from_tun(packet, net.now, from);
  net.exchange();
  if (to.tun == std::vector<Bytes>{packet}) return "whole";
  Bytes payload;
  for (const Bytes& piece : to.tun) {
    EXPECT_EQ(internet_checksum(ByteView(piece).first(20)), 0);
    EXPECT_EQ(load_be16(piece.data() + 2), piece.size());
    EXPECT_EQ((load_be16(piece.data() + 6) & 0x1fffU) * 8, payload.size());
    EXPECT_EQ((load_be16(piece.data() + 6) & 0x2000U) != 0, &piece != &to.tun.back());
    payload.insert(payload.end(), piece.begin() + 20, piece.end());
  }
  return payload == Bytes(packet.begin() + 20, packet.end()) ? "pieces" : "";
}

TEST_F(Net, ANarrowWayIsUsedForWhatItCarries) {
  direct_size_max = 1400;  // 1,368 inside
  build(2, true);
  EXPECT_TRUE(delivers(0, 1));
  run(4s);
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
  EXPECT_EQ(path(1, 0), "10.0.0.1:7000");
  EXPECT_EQ(machines[0]->member->stats().at(0).mtu, 1300U);
  relay_data = 0;
  EXPECT_EQ(comes_as(*this, 1300, false), "whole");
  EXPECT_EQ(comes_as(*this, kInnerMtu, true), "pieces");
  EXPECT_EQ(comes_as(*this, kInnerMtu, false), "");
  ASSERT_EQ(machines[0]->tun.size(), 1U) << "its program is told the size that fits";
  EXPECT_EQ(machines[0]->tun[0][21], 4);
  EXPECT_EQ(load_be16(machines[0]->tun[0].data() + 26), 1300);
  EXPECT_EQ(comes_as(*this, kInnerMtu, false), "");
  EXPECT_TRUE(machines[0]->tun.empty()) << "once for a row of packets";
  EXPECT_EQ(relay_data, 0U);
  const MemberStats s = machines[0]->member->stats().at(0);
  EXPECT_FALSE(s.tried.at(0).full);
  direct_size_max = 2000;  // another way in the middle
  run(70s);
  EXPECT_EQ(machines[0]->member->stats().at(0).mtu, kInnerMtu);
  EXPECT_EQ(comes_as(*this, kInnerMtu, false), "whole");
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
}

TEST_F(Net, AWayThatBecomesNarrowIsNoBlackHole) {
  build(2, true);
  EXPECT_TRUE(delivers(0, 1));
  run(4s);
  ASSERT_EQ(path(0, 1), "10.0.0.2:7000");
  direct_size_max = 1300;  // small probes go on being answered
  for (int i = 0; i < 48 && comes_as(*this, kInnerMtu, false).empty() && machines[0]->tun.empty(); ++i) run(250ms);
  run(2s);
  EXPECT_EQ(machines[0]->member->stats().at(0).mtu, 1200U);
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000") << "what fits goes directly again";
  EXPECT_EQ(comes_as(*this, 1200, false), "whole");
  direct_size_max = 500;
  run(12s);
  EXPECT_EQ(path(0, 1), "relay");
  EXPECT_EQ(comes_as(*this, kRelayedMtu, false), "whole");
  EXPECT_EQ(comes_as(*this, kInnerMtu, true), "pieces");
  EXPECT_EQ(comes_as(*this, kInnerMtu, false), "") << "it says so";
}

TEST_F(Net, LossAloneMakesNoWayNarrow) {
  build(2, true);
  EXPECT_TRUE(delivers(0, 1));
  run(4s);
  Rng rng(7);
  const std::uint32_t changes = machines[0]->member->stats().at(0).changes;
  for (int i = 0; i < 2'400; ++i) {  // ten minutes in which a tenth is lost
    direct_up = rng.below(10) != 0;
    run(250ms);
  }
  EXPECT_LE(machines[0]->member->stats().at(0).changes, changes + 2);
  direct_up = true;
  run(40s);
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
}

TEST_F(Net, Ipv6IsFoundByWhatMembersTellOfThemselves) {
  build(2, false);
  Ip6 six{0x26, 0x00, 0x17};
  for (auto& m : machines) {
    six[15] = static_cast<std::uint8_t>(m->address);
    m->lan = Endpoint::udp6(six, 7000);
  }
  EXPECT_TRUE(delivers(0, 1));
  for (auto& m : machines) m->member->set_public({m->lan}, now, *m);
  run(3s);
  EXPECT_EQ(path(0, 1), "[2600:1700::2]:7000");
  EXPECT_EQ(path(1, 0), "[2600:1700::1]:7000");
  relay_data = 0;
  EXPECT_TRUE(delivers(0, 1, kInnerMtu));
  EXPECT_EQ(relay_data, 0U);
  // Elsewhere, with another address and nobody who said so: heard at once, and it is told.
  machines[0]->lan.six[5] = 9;
  relay_data = 0;
  machines[0]->member->moved(true, now);
  EXPECT_TRUE(delivers(0, 1)) << "nothing is lost on a way that was left";
  EXPECT_EQ(relay_data, 1U);
  machines[0]->member->set_public({machines[0]->lan}, now, *machines[0]);
  run(1'500ms);
  EXPECT_TRUE(delivers(1, 0)) << "who hears that another has moved does not wait for the old way to be dead";
  run(6s);
  EXPECT_EQ(path(1, 0), "[2600:1700:9::1]:7000");
  EXPECT_TRUE(delivers(1, 0));
}

TEST_F(Net, SaysHowFarItIsWhatIsLostAndWhatWasTried) {
  build(2, true);
  direct_up = false;
  const auto stats = [&] { return machines[0]->member->stats().at(0); };
  EXPECT_EQ(stats().rtt_us, 0U);
  EXPECT_TRUE(delivers(0, 1));
  run(30s);
  MemberStats s = stats();
  EXPECT_GE(s.rtt_us, 1'000U);
  EXPECT_LT(s.rtt_us, 10'000U);
  EXPECT_EQ(s.relay_rtt_us, s.rtt_us);
  EXPECT_EQ(s.changes, 0U);
  EXPECT_GE(s.asked, 3U) << "by the relay, small probes now and then";
  EXPECT_EQ(s.lost, 0U);
  ASSERT_EQ(s.tried.size(), 1U);
  EXPECT_GT(s.tried[0].sent, 3U);
  EXPECT_EQ(s.tried[0].answered, 0U);
  direct_up = true;
  run(40s);
  s = stats();
  EXPECT_EQ(s.changes, 1U);
  EXPECT_TRUE(s.tried[0].full);
  EXPECT_GE(s.tried[0].rtt_us, 1'000U);
  EXPECT_EQ(s.rtt_us, s.tried[0].rtt_us);
  EXPECT_LT(now.lease - s.since, 40s);
  EXPECT_GT(s.asked, 5U);
  EXPECT_EQ(s.lost, 0U);
  direct_up = false;
  run(2s);
  direct_up = true;
  run(5s);
  s = stats();
  EXPECT_EQ(s.changes, 1U) << "two probes are no reason to leave";
  EXPECT_GE(s.lost, 1U);
  EXPECT_LE(s.lost, 3U);
  run(60s);
  EXPECT_EQ(stats().lost, 0U) << "of the last ones only";
  EXPECT_EQ(stats().asked, kLossWindow);
}

TEST_F(Net, DirectWorksWithoutAnyRelay) {
  relay_up = false;
  build(2, true);
  delivers(0, 1);
  run(8s);
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
  EXPECT_TRUE(delivers(0, 1));
}

TEST_F(Net, HandshakesDoNotWaitForALateRelay) {
  relay_up = false;
  build(2, false);
  EXPECT_FALSE(delivers(0, 1));
  relay_up = true;
  machines[0]->member->relay_up(0, now);
  run(500ms);
  EXPECT_EQ(machines[1]->tun.size(), 1U);  // what was staged
  EXPECT_TRUE(delivers(0, 1));
}

// ---- several relays
struct Relays : Net {
  void begin(std::initializer_list<std::uint64_t> millis) {
    relays.clear();
    for (const std::uint64_t ms : millis) relays.push_back({true, ms * 1'000, 0});
    build(2, false);
    for (auto& m : machines) m->clock = 1'000, m->step = 0;  // only the relays take time
    EXPECT_TRUE(delivers(0, 1));
  }
  MemberStats stats(std::size_t of = 0) { return machines[of]->member->stats().at(0); }
  // Talking all the time, both ways; how many of the last second's packets arrived.
  int talk(Millis total) {
    int arrived = 0;
    for (Millis t{0}; t < total; t += 250ms) {
      run(250ms);
      const int both = static_cast<int>(delivers(0, 1)) + static_cast<int>(delivers(1, 0));
      if (total - t <= 1s) arrived += both;
    }
    return arrived;
  }
  std::size_t used(std::size_t of = 0) { return stats(of).relay.value_or(99); }
};

TEST_F(Relays, EachPairUsesTheNearestFromEndToEnd) {
  begin({60, 25, 10});
  EXPECT_EQ(used(), 2U) << "it brought the handshake first";
  EXPECT_EQ(talk(6s), 8);
  for (std::size_t of : {0U, 1U}) {
    EXPECT_EQ(used(of), 2U);
    const MemberStats s = stats(of);
    ASSERT_EQ(s.relays.size(), 3U) << "all of them are measured";
    EXPECT_NEAR(s.relays[0].rtt_us, 60'000, 5'000);
    EXPECT_NEAR(s.relays[1].rtt_us, 25'000, 5'000);
    EXPECT_NEAR(s.relays[2].rtt_us, 10'000, 5'000);
    EXPECT_EQ(s.relay_rtt_us, s.relays[2].rtt_us);
    EXPECT_EQ(s.rtt_us, s.relay_rtt_us);
  }
  relays[0].data = relays[1].data = relays[2].data = 0;
  EXPECT_TRUE(delivers(0, 1));
  EXPECT_EQ(relays[2].data, 1U);
  EXPECT_EQ(relays[0].data + relays[1].data, 0U);
  // The net changes: the first is nearer now.
  relays[0].takes_us = 2'000;
  EXPECT_EQ(talk(150s), 8) << "round trips are smoothed: it takes a while";
  EXPECT_EQ(used(0), 0U);
  EXPECT_EQ(used(1), 0U);
}

TEST_F(Relays, WhatIsOnlyALittleNearerIsNoReasonToChange) {
  begin({20, 30});
  talk(10s);
  ASSERT_EQ(used(), 0U);
  const std::uint32_t changes = stats().changes;
  relays[1].takes_us = 17'000;
  talk(60s);
  EXPECT_EQ(used(), 0U);
  relays[0].takes_us = 4'000, relays[1].takes_us = 1'000;
  talk(60s);
  EXPECT_EQ(used(), 0U) << "a quarter of the time, but 3 ms";
  EXPECT_EQ(stats().changes, changes);
}

TEST_F(Relays, OneThatDiesSilentlyIsLeftWithinSecondsAndReturnedToLater) {
  begin({40, 10});
  talk(10s);
  ASSERT_EQ(used(), 1U);
  relays[1].carries = false;
  Millis dead{0};
  while (dead < 10s && talk(250ms) < 2) dead += 250ms;
  EXPECT_LE(dead, 3s);
  EXPECT_GE(dead, 1s) << "one lost probe is no reason";
  EXPECT_EQ(used(0), 0U);
  EXPECT_EQ(used(1), 0U);
  EXPECT_EQ(stats().changes, 1U);
  talk(20s);
  relays[1].carries = true;
  talk(3s);
  EXPECT_EQ(used(), 0U) << "one answer is not enough";
  talk(20s);
  EXPECT_EQ(used(0), 1U);
  EXPECT_EQ(used(1), 1U);
  // Again and again: each change is kept for a while, so that a pair does not swing.
  relays[1].carries = false;
  talk(6s);
  EXPECT_EQ(used(), 0U);
  relays[1].carries = true;
  talk(8s);
  EXPECT_EQ(used(), 0U);
  EXPECT_EQ(stats().changes, 3U);
}

TEST_F(Relays, OneThatIsDownOrLacksTheMemberIsLeftAtOnce) {
  begin({40, 10});
  talk(10s);
  ASSERT_EQ(used(), 1U);
  machines[0]->member->relay_down(1, now);
  EXPECT_EQ(used(), 0U);
  EXPECT_TRUE(delivers(0, 1));
  machines[1]->member->relay_lacks(1, machines[0]->key.public_key, now);
  EXPECT_EQ(used(1), 0U);
  EXPECT_TRUE(delivers(1, 0));
  machines[0]->member->relay_up(1, now);
  EXPECT_EQ(used(), 0U) << "not measured anew yet";
  talk(40s);
  EXPECT_EQ(used(0), 1U);
  EXPECT_EQ(used(1), 1U);
  for (std::size_t r : {0U, 1U}) machines[0]->member->relay_down(r, now);
  machines[0]->member->relay_up(0, now);
  EXPECT_EQ(used(), 0U);
  EXPECT_TRUE(delivers(0, 1));
}

TEST_F(Relays, WhereNoneAnswersThePairStaysAndGoesOn) {
  begin({10, 40});
  talk(10s);
  ASSERT_EQ(used(), 0U);
  for (auto& relay : relays) relay.carries = false;
  talk(30s);
  EXPECT_EQ(used(), 0U) << "the other does not answer either";
  EXPECT_EQ(stats().changes, 0U);
  for (auto& relay : relays) relay.carries = true;
  talk(10s);
  EXPECT_TRUE(delivers(0, 1));
  // An idle pair costs little: of each relay a small probe now and then.
  run(30s);
  const auto sent = [&] { return stats().relays[0].sent + stats().relays[1].sent; };
  const std::uint32_t before = sent();
  run(60s);
  EXPECT_LE(sent() - before, 16U);
  // Another list: what was known of those before is forgotten.
  for (auto& m : machines) {
    m->member->set_relays(1, now);
    m->member->relay_up(0, now);
  }
  EXPECT_TRUE(stats().relays.empty());
  EXPECT_TRUE(delivers(0, 1));
}

TEST_F(Net, RemovedMemberIsCutOffAtOnce) {
  build(3, false);
  ASSERT_TRUE(delivers(0, 2));
  const Bytes late = udp_packet(machines[2]->address, machines[0]->address);
  machines[2]->member->from_tun(late, now, *machines[2]);
  const Bytes bytes = encode_roster(make_roster(2));
  ASSERT_TRUE(apply(*machines[0], bytes).ok());
  machines[0]->tun.clear();
  exchange();
  EXPECT_TRUE(machines[0]->tun.empty());  // even what was in the air
  // A TCP segment to it is answered with a reset that its sender believes.
  Bytes tcp = udp_packet(machines[0]->address, machines[2]->address, 60);
  tcp[9] = 6;
  std::fill(tcp.begin() + 20, tcp.end(), std::uint8_t{0});
  store_be16(tcp.data() + 20, 1234);
  store_be16(tcp.data() + 22, 80);
  store_be32(tcp.data() + 28, 0xabcdef01);
  tcp[32] = 5 << 4;
  tcp[33] = 16 | 8;
  machines[0]->member->from_tun(tcp, now, *machines[0]);
  ASSERT_EQ(machines[0]->tun.size(), 1U);
  const Bytes& answer = machines[0]->tun[0];
  EXPECT_EQ(packet_ends(answer)->source, machines[2]->address);
  EXPECT_EQ(load_be16(answer.data() + 20), 80);
  EXPECT_EQ(load_be16(answer.data() + 22), 1234);
  EXPECT_EQ(load_be32(answer.data() + 24), 0xabcdef01);
  EXPECT_EQ(answer[33], 4);
  EXPECT_EQ(internet_checksum(ByteView(answer).first(20)), 0);
  std::uint32_t sum = 6 + 20;
  for (std::size_t i = 12; i < 20; i += 2) sum += load_be16(answer.data() + i);
  EXPECT_EQ(internet_checksum(ByteView(answer).subspan(20), sum), 0);
  // And the one removed, once it hears, has no peers.
  ASSERT_TRUE(apply(*machines[2], bytes).ok());
  EXPECT_TRUE(machines[2]->member->stats().empty());
}

Bytes udp6_packet(std::uint32_t from, std::uint32_t to, std::size_t size) {
  Bytes out(size, 5);
  std::fill_n(out.begin(), 40, std::uint8_t{0});
  out[0] = 0x60;
  store_be16(out.data() + 4, static_cast<std::uint16_t>(size - 40));
  out[6] = 17;
  out[7] = 64;
  std::ranges::copy(inner6(from), out.begin() + 8);
  std::ranges::copy(inner6(to), out.begin() + 24);
  return out;
}

TEST_F(Net, Ipv6GoesBetweenTheSameMembersAndNoOthers) {
  build(3, true);
  Machine &a = *machines[0], &b = *machines[1], &c = *machines[2];
  const Bytes packet = udp6_packet(a.address, b.address, kRelayedMtu);
  a.member->from_tun(packet, now, a);
  run(4s);
  EXPECT_EQ(b.tun, std::vector<Bytes>{packet});
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
  b.tun.clear();
  // Another source than one's own, at the first end and, since that one could be changed, at the other.
  a.member->from_tun(udp6_packet(c.address, b.address, 100), now, a);
  EXPECT_TRUE(a.direct.empty() && a.relayed.empty());
  a.member->from_tun(udp6_packet(a.address, kNet + 77, 100), now, a);
  ASSERT_EQ(a.tun.size(), 1U) << "nobody's";
  EXPECT_EQ(a.tun[0][40], 1);
  Device fellow(b.key);
  struct Into : Sink {
    Machine* machine;
    const Now* now;
    const Machine* from;
    void send(const Endpoint&, ByteView d) override {
      machine->member->from_relay(0, from->key.public_key, d, *now, *machine);
    }
    void deliver(ByteView) override {}
    void control(const Key32&, const Endpoint&, ByteView) override {}
  } into;
  into.machine = &a, into.now = &now, into.from = &b;
  fellow.set_peers({PeerConfig{a.key.public_key, {}, {a.address}, Endpoint::relay(a.key.public_key), {}}});
  now.wall = now.wall + 1min;
  fellow.start_handshake(a.key.public_key, now, into);
  for (const auto& [relay, to, d] : std::exchange(a.relayed, {}))
    if (to == b.key.public_key) fellow.decapsulate(d, Endpoint::relay(a.key.public_key), now, into);
  ASSERT_TRUE(fellow.has_session(a.key.public_key));
  a.tun.clear();
  for (const std::uint32_t source : {c.address, a.address, kNet + 77}) {
    fellow.encapsulate(udp6_packet(source, a.address, 100), now, into);
    EXPECT_TRUE(a.tun.empty()) << source;
  }
  fellow.encapsulate(udp6_packet(b.address, a.address, 100), now, into);
  EXPECT_EQ(a.tun.size(), 1U);
}

TEST_F(Net, Ipv6OverANarrowWay) {
  direct_size_max = 1400;  // 1,368 inside
  build(2, true);
  EXPECT_TRUE(delivers(0, 1));
  run(4s);
  Machine &a = *machines[0], &b = *machines[1];
  ASSERT_EQ(a.member->stats().at(0).mtu, 1300U);
  const auto arrived = [&](std::size_t size) {
    b.tun.clear();
    a.tun.clear();
    now.lease = now.lease + 1ms;
    a.member->from_tun(udp6_packet(a.address, b.address, size), now, a);
    exchange();
    return b.tun.size();
  };
  EXPECT_EQ(arrived(1300), 1U);
  EXPECT_EQ(arrived(kInnerMtu), 0U);
  ASSERT_EQ(a.tun.size(), 1U) << "its program is told the size that fits";
  EXPECT_EQ(a.tun[0][40], 2);
  EXPECT_EQ(load_be32(a.tun[0].data() + 44), 1300U);
  direct_size_max = 1260;  // 1,228 inside: less than IPv6 has to get
  for (int i = 0; i < 60 && a.member->stats().at(0).mtu != 1200U; ++i) {
    (void)arrived(1300);
    run(250ms);
  }
  ASSERT_EQ(a.member->stats().at(0).mtu, 1200U);
  EXPECT_EQ(arrived(1280), 2U) << "in pieces";
  EXPECT_TRUE(a.tun.empty());
}

TEST_F(Net, UnreachableAndTooLargeAreAnswered) {
  build(2, false);
  machines[0]->member->from_tun(udp_packet(machines[0]->address, kNet + 77), now, *machines[0]);
  ASSERT_EQ(machines[0]->tun.size(), 1U);
  EXPECT_EQ(machines[0]->tun[0][20], 3);
  EXPECT_EQ(machines[0]->tun[0][21], 13);
  machines[0]->member->from_tun(udp_packet(machines[0]->address, machines[1]->address, kInnerMtu + 1), now,
                                *machines[0]);
  ASSERT_EQ(machines[0]->tun.size(), 2U);
  EXPECT_EQ(machines[0]->tun[1][21], 4);
  EXPECT_EQ(load_be16(machines[0]->tun[1].data() + 26), kRelayedMtu) << "by the relay";
  EXPECT_EQ(internet_checksum(ByteView(machines[0]->tun[1]).subspan(20)), 0);
  EXPECT_FALSE(refuse_packet(machines[0]->tun[0]).has_value());  // no error about an error
  EXPECT_FALSE(refuse_packet(udp_packet(1, 0xe0000001)).has_value());
}

TEST_F(Net, ForeignSourcesNeitherLeaveNorArrive) {
  build(3, false);
  ASSERT_TRUE(delivers(0, 1));
  Machine &a = *machines[0], &b = *machines[1];
  for (const std::uint32_t source : {machines[2]->address, b.address, kNet + 77, std::uint32_t{0x08080808}, 0U}) {
    b.tun.clear();
    a.member->from_tun(udp_packet(source, b.address), now, a);
    EXPECT_TRUE(a.relayed.empty()) << source;
    exchange();
    EXPECT_TRUE(b.tun.empty()) << source;
  }
  a.member->from_tun(Bytes{0x45}, now, a);
  a.member->from_tun(Bytes(40, 0x60), now, a);  // IPv6 between no two members
  EXPECT_TRUE(a.relayed.empty());

  // A member that runs something else than our code: it sends what it likes under its own key.
  struct Attacker : Sink {
    std::vector<Bytes> sent;
    void send(const Endpoint&, ByteView d) override { sent.emplace_back(d.begin(), d.end()); }
    void deliver(ByteView) override {}
    void control(const Key32&, const Endpoint&, ByteView) override {}
  } sink;
  Device device(a.key);
  device.set_peers(
      {PeerConfig{b.key.public_key, {}, {b.address, 0x08080808, 0x7f000001}, Endpoint::relay(b.key.public_key), {}}});
  const auto attack = [&](std::uint32_t from, std::uint32_t to) {
    b.tun.clear();
    const Bytes packet = udp_packet(from, to);
    device.encapsulate(packet, now, sink);
    for (int i = 0; i < 6; ++i) {
      for (const Bytes& d : std::exchange(sink.sent, {})) b.member->from_relay(0, a.key.public_key, d, now, b);
      for (const auto& [relay, key, d] : std::exchange(b.relayed, {}))
        if (key == a.key.public_key) device.decapsulate(d, Endpoint::relay(b.key.public_key), now, sink);
    }
    return std::ranges::count(b.tun, packet);
  };
  run(6s);
  EXPECT_EQ(attack(a.address, b.address), 1) << "what is honest arrives";
  EXPECT_EQ(attack(machines[2]->address, b.address), 0) << "another member's address";
  EXPECT_EQ(attack(0x08080808, b.address), 0);
  EXPECT_EQ(attack(a.address, 0x08080808), 0) << "b is no router";
  EXPECT_EQ(attack(a.address, 0x7f000001), 0) << "nor has it a loopback for others";
}

TEST_F(Net, RostersAreOrderedSignedAndChecked) {
  build(3, false);
  const Bytes older = encode_roster(Roster{kCluster, 1, 0, {}});
  EXPECT_EQ(apply(*machines[0], older).error().code, Code::Aborted);
  Roster r = make_roster();
  const Bytes good = encode_roster(r);
  EXPECT_EQ(decode_roster(good).value(), r);
  EXPECT_FALSE(machines[0]->member->set_roster(good, {}, {controller.public_key()}).ok());
  EXPECT_FALSE(
      machines[0]
          ->member->set_roster(good, {sign_roster(crypto::SigningKey::generate(), good)}, {controller.public_key()})
          .ok());
  const auto tenant = crypto::SigningKey::generate();
  EXPECT_FALSE(
      machines[0]
          ->member->set_roster(good, {sign_roster(controller, good)}, {controller.public_key(), tenant.public_key()})
          .ok());
  EXPECT_TRUE(machines[0]
                  ->member
                  ->set_roster(good, {sign_roster(controller, good), sign_roster(tenant, good)},
                               {controller.public_key(), tenant.public_key()})
                  .ok());
  EXPECT_TRUE(apply(*machines[0], good).ok());  // the same again
  // A key that the machine's device did not sign, or signed for another lease, never becomes a peer.
  r = make_roster();
  r.members[1].overlay_key = crypto::x25519_generate().public_key;
  r.members[2].epoch.counter = 9;
  const auto rejected = apply(*machines[0], encode_roster(r));
  ASSERT_TRUE(rejected.ok());
  EXPECT_EQ(*rejected, 2U);
  EXPECT_TRUE(machines[0]->member->stats().empty());
  Roster restored{kCluster, 2, 1, {machines[0]->entry(), machines[1]->entry()}};
  EXPECT_TRUE(apply(*machines[0], encode_roster(restored)).ok());  // a higher incarnation wins against any epoch
  EXPECT_TRUE(decode_roster(encode_roster(Roster{1, 1, 1, {machines[0]->entry()}})).ok());
  EXPECT_FALSE(decode_roster(encode_roster(Roster{1, 1, 1, {machines[0]->entry(), machines[0]->entry()}})).ok());
}

// Whoever holds the key that signs rosters, and nothing else, adds a machine of his own making.
TEST_F(Net, AMachineThatNobodyEnrolledIsLeftOut) {
  build(4, false);
  const auto ca = crypto::create_ca("test", now.wall).value();
  const auto verifier = crypto::MachineVerifier::create(ca.cert_pem).value();
  const auto proof = [&](std::size_t of, std::uint64_t node, WallTime when) {
    return crypto::prove_machine(ca, node, machines[of]->device.public_key(), when).value();
  };
  const auto rejected = [&](const std::vector<crypto::MachineProof>& proofs) {
    const Bytes bytes = encode_roster(make_roster()), beside = crypto::encode_machine_proofs(proofs);
    const auto out = machines[0]->member->set_roster(bytes, {sign_roster(controller, bytes)}, {controller.public_key()},
                                                     MachineProofs{verifier.get(), beside, now.wall});
    return out.ok() ? *out : 99;
  };
  const std::vector<crypto::MachineProof> all{proof(0, 1, now.wall), proof(1, 2, now.wall), proof(2, 3, now.wall),
                                              proof(3, 4, now.wall)};
  EXPECT_EQ(rejected(all), 0U);
  EXPECT_EQ(machines[0]->member->stats().size(), 3U);
  // One without a proof, one with another machine's, one that ended.
  EXPECT_EQ(rejected({all[0], proof(1, 3, now.wall), proof(3, 4, now.wall - 10 * 24h)}), 3U);
  EXPECT_TRUE(machines[0]->member->stats().empty());
  EXPECT_FALSE(machines[0]->member->knows(machines[1]->key.public_key));
  EXPECT_EQ(rejected(all), 0U);
  EXPECT_EQ(machines[0]->member->stats().size(), 3U);
  const auto liar = crypto::create_ca("liar", now.wall).value();
  EXPECT_EQ(rejected({all[0], all[1], all[2],
                      crypto::prove_machine(liar, 4, machines[3]->device.public_key(), now.wall).value()}),
            1U);
  EXPECT_EQ(rejected({}), 4U) << "also we ourselves are nobody then";
  const Bytes bytes = encode_roster(make_roster()), damaged(79);
  EXPECT_FALSE(machines[0]
                   ->member
                   ->set_roster(bytes, {sign_roster(controller, bytes)}, {controller.public_key()},
                                MachineProofs{verifier.get(), damaged, now.wall})
                   .ok());
}

TEST_F(Net, DamagedRostersNeverCrash) {
  build(3, true);
  const Bytes good = encode_roster(make_roster());
  Rng rng(1);
  for (std::size_t i = 0; i < good.size(); ++i) (void)decode_roster(ByteView(good).first(i)).ok();
  for (int i = 0; i < 5'000; ++i) {
    Bytes bad = good;
    for (int k = 0; k < 3; ++k) bad[rng.below(bad.size())] = static_cast<std::uint8_t>(rng.next());
    (void)decode_roster(bad).ok();
  }
  for (int i = 0; i < 20'000; ++i) {
    Bytes packet(rng.below(80));
    for (auto& byte : packet) byte = static_cast<std::uint8_t>(rng.next());
    if (!packet.empty()) packet[0] = static_cast<std::uint8_t>(0x40 | (packet[0] & 15));
    (void)refuse_packet(packet);
    machines[0]->member->from_tun(packet, now, *machines[0]);
  }
}

TEST(Endpoints, SixIsWrittenShort) {
  const auto text = [](std::initializer_list<int> groups) {
    Ip6 ip{};
    std::size_t at = 0;
    for (const int group : groups) {
      ip[at++] = static_cast<std::uint8_t>(group >> 8);
      ip[at++] = static_cast<std::uint8_t>(group);
    }
    return text_of(ip);
  };
  EXPECT_EQ(text({0x2001, 0xdb8, 0, 0, 0, 0, 0, 1}), "2001:db8::1");
  EXPECT_EQ(text({0x2001, 0xdb8, 0, 1, 1, 1, 1, 1}), "2001:db8:0:1:1:1:1:1") << "one zero is no gap";
  EXPECT_EQ(text({0x2001, 0, 0, 1, 0, 0, 0, 1}), "2001:0:0:1::1");
  EXPECT_EQ(text({0x2001, 0xdb8, 0, 0, 1, 0, 0, 1}), "2001:db8::1:0:0:1") << "the first of equals";
  EXPECT_EQ(text({0xfd00, 1, 2, 3, 4, 5, 0, 0}), "fd00:1:2:3:4:5::");
  EXPECT_EQ(text({0, 0, 0, 0, 0, 0, 0, 0}), "::");
  EXPECT_EQ(text({0, 0, 0, 0, 0, 0, 0, 1}), "::1");
}

TEST(Endpoints, Text) {
  EXPECT_EQ(format_endpoint(*parse_udp_endpoint("192.168.1.7:51820")), "192.168.1.7:51820");
  for (const char* bad : {"", "1.2.3:4", "1.2.3.4", "1.2.3.4:", "1.2.3.4:0", "1.2.3.4:65536", "256.1.1.1:5",
                          "a.b.c.d:1", "1.2.3.4:5x", "::1:5"}) {
    EXPECT_FALSE(parse_udp_endpoint(bad)) << bad;
  }
}

// Machines behind NATs of their own, which let nothing in that was not asked for (address and port).
struct Behind : Net {
  enum class Kind : std::uint8_t { Cone, Symmetric, Closed, Open /* lets everybody in */ };
  struct Nat {
    Kind kind = Kind::Cone;
    std::uint32_t ip = 0;
    std::map<Endpoint, std::uint16_t, bool (*)(const Endpoint&, const Endpoint&)> ports{less};
    std::vector<std::pair<std::uint16_t, Endpoint>> open;  // from this port of ours somebody may be answered
    std::uint16_t next = 40'000;
  };
  static bool less(const Endpoint& a, const Endpoint& b) { return std::pair(a.ip, a.port) < std::pair(b.ip, b.port); }
  std::vector<Nat> nats;
  std::size_t strays = 0;  // that no NAT let in

  void behind(std::initializer_list<Kind> kinds) {
    build(static_cast<int>(kinds.size()), false);
    for (const Kind kind : kinds) {
      nats.emplace_back();
      nats.back().kind = kind;
      nats.back().ip = 0xcb007100 + static_cast<std::uint32_t>(nats.size());
    }
  }
  std::uint16_t port_for(Nat& nat, const Endpoint& to) {
    const Endpoint key = nat.kind == Kind::Symmetric ? to : Endpoint{};
    const auto [it, fresh] = nat.ports.try_emplace(key, nat.next);
    if (fresh) nat.next = static_cast<std::uint16_t>(nat.next + 7);
    return it->second;
  }
  void pass() {
    for (int round = 0; round < 60; ++round) {
      bool busy = false;
      for (std::size_t i = 0; i < machines.size(); ++i) {
        auto relayed = std::exchange(machines[i]->relayed, {});
        auto direct = std::exchange(machines[i]->direct, {});
        busy = busy || !relayed.empty() || !direct.empty();
        for (auto& [relay, key, d] : relayed)
          for (auto& to : machines)
            if (to->key.public_key == key) to->member->from_relay(relay, machines[i]->key.public_key, d, now, *to);
        for (auto& [at, d] : direct) through(i, at, d);
      }
      if (!busy) return;
    }
  }
  void arrive(Machine& to, const Endpoint& source, const Bytes& d) {
    to.ahead += to.slow_udp_us;
    to.member->from_udp(source.ip, source.port, d, now, to);
    to.ahead -= to.slow_udp_us;
  }
  void through(std::size_t i, const Endpoint& at, const Bytes& d) {
    if (nats[i].kind == Kind::Closed) return;
    const std::uint16_t port = port_for(nats[i], at);
    nats[i].open.emplace_back(port, at);
    const Endpoint source = Endpoint::udp(nats[i].ip, port);
    for (std::size_t j = 0; j < machines.size(); ++j) {
      if (nats[j].ip != at.ip) continue;
      if (nats[j].kind == Kind::Open
              ? at.port == port_for(nats[j], {})
              : std::ranges::find(nats[j].open, std::pair(at.port, source)) != nats[j].open.end())
        arrive(*machines[j], source, d);
      else
        ++strays;
    }
  }
  // What a server far away would say: the mapping towards it.
  void learn() {
    for (std::size_t i = 0; i < machines.size(); ++i) {
      if (nats[i].kind == Kind::Closed) continue;
      const Endpoint mapped = Endpoint::udp(nats[i].ip, port_for(nats[i], Endpoint::udp(0x08080808, 443)));
      machines[i]->member->set_public({mapped}, now, *machines[i]);
    }
    pass();
  }
  void go(Millis total) {
    for (Millis t{0}; t < total; t += 250ms) {
      now.lease = now.lease + 250ms;
      now.wall = now.wall + 250ms;
      for (auto& m : machines) m->member->tick(now, *m);
      pass();
    }
  }
  void talk(std::size_t from, std::size_t to) {
    const Bytes p = udp_packet(machines[from]->address, machines[to]->address);
    machines[from]->member->from_tun(p, now, *machines[from]);
    pass();
  }
  bool direct(std::size_t from, std::size_t to) { return path(from, to).starts_with("203.0.113."); }
};

TEST_F(Behind, TwoNatsAreOpenedFromBothSidesWithinSeconds) {
  behind({Kind::Cone, Kind::Cone});
  talk(0, 1);
  learn();
  EXPECT_FALSE(direct(0, 1)) << "the relay serves at once";
  go(2s);
  EXPECT_TRUE(direct(0, 1)) << path(0, 1);
  EXPECT_TRUE(direct(1, 0)) << path(1, 0);
  EXPECT_LT(strays, 20U);
  go(60s);
  EXPECT_TRUE(direct(0, 1));
}

TEST_F(Behind, WhatIsToldIsSaidAgainSoonForItMayBeLost) {
  behind({Kind::Cone, Kind::Cone});
  talk(0, 1);
  relay_up = false;  // just when both learn where they are
  learn();
  go(500ms);
  relay_up = true;
  EXPECT_FALSE(direct(0, 1));
  go(6s);
  EXPECT_TRUE(direct(0, 1)) << path(0, 1);
  EXPECT_TRUE(direct(1, 0)) << path(1, 0);
}

// ---- carried by another member: 0 and 1 can never reach each other, and both reach 2
struct Carrying : Behind {
  void begin(std::initializer_list<Kind> kinds = {Kind::Symmetric, Kind::Symmetric, Kind::Open}) {
    behind(kinds);
    two().member->set_carries(true, now, two());
    talk(0, 1);
    learn();
  }
  Machine& two() { return *machines[2]; }
  // Talks for so long; how many of the packets of the last second arrived.
  int talk_on(Millis total, std::size_t size = 200) {
    int arrived = 0;
    for (Millis t{0}; t < total; t += 250ms) {
      go(250ms);
      for (const auto& [from, to] : {std::pair(0U, 1U), std::pair(1U, 0U)}) {
        const Bytes p = udp_packet(machines[from]->address, machines[to]->address, size);
        machines[to]->tun.clear();
        machines[from]->member->from_tun(p, now, *machines[from]);
        pass();
        if (total - t <= 1s) arrived += static_cast<int>(std::ranges::count(machines[to]->tun, p));
      }
    }
    return arrived;
  }
  bool carried() { return path(0, 1) == "peer 100.64.0.3" && path(1, 0) == "peer 100.64.0.3"; }
  bool relayed() { return path(0, 1) == "relay" && path(1, 0) == "relay"; }
  MemberStats of(std::size_t from, std::size_t to) {
    for (const MemberStats& s : machines[from]->member->stats())
      if (s.address == machines[to]->address) return s;
    return {};
  }
};

TEST_F(Carrying, AMemberCarriesBetweenTwoThatCannotReachEachOther) {
  begin();
  EXPECT_TRUE(relayed());
  EXPECT_EQ(talk_on(10s), 8);
  ASSERT_TRUE(carried()) << path(0, 1) << ", " << path(1, 0);
  EXPECT_EQ(talk_on(4s, kRelayedMtu), 8) << "full packets pass";
  EXPECT_FALSE(machines[0]->member->way(machines[1]->address).relay);
  const MemberStats s = of(0, 1);
  EXPECT_EQ(s.by, two().address);
  EXPECT_GT(s.rtt_us, 0U);
  EXPECT_EQ(s.lost, 0U);
  ASSERT_EQ(s.carriers.size(), 1U);
  EXPECT_TRUE(s.carriers[0].full);
  // Each end counts for itself, and they agree with who carried.
  const auto a = machines[0]->member->carried(), b = machines[1]->member->carried();
  const auto by = two().member->forwarded();
  ASSERT_EQ(a.size(), 1U);
  ASSERT_EQ(b.size(), 1U);
  ASSERT_EQ(by.size(), 2U);
  EXPECT_EQ(a[0].by, two().address);
  EXPECT_EQ(a[0].with, machines[1]->address);
  EXPECT_GT(a[0].sent, 8'000U);
  EXPECT_EQ(by[0].from, machines[0]->address);
  EXPECT_EQ(by[0].bytes, b[0].received);
  EXPECT_EQ(by[1].bytes, a[0].received);
  EXPECT_LE(by[0].bytes, a[0].sent);
  EXPECT_NEAR(static_cast<double>(by[0].bytes), static_cast<double>(a[0].sent), 1'000) << "but for the first probes";
  EXPECT_NEAR(static_cast<double>(by[1].bytes), static_cast<double>(b[0].sent), 1'000);
  // An idle pair keeps it; who carries gets nothing for its own program.
  EXPECT_TRUE(two().tun.empty());
  go(30s);
  EXPECT_TRUE(carried());
}

TEST_F(Carrying, WithoutAnOfferOrBeyondTheCapNothingIsCarried) {
  begin();
  two().member->set_carries(false, now, two());
  talk_on(20s);
  EXPECT_TRUE(relayed());
  EXPECT_TRUE(two().member->forwarded().empty());
  two().member->set_carries(true, now, two());
  two().carries_max = 0;
  talk_on(20s);
  EXPECT_TRUE(relayed()) << "the cap is reached: no probe comes through";
  EXPECT_TRUE(two().member->forwarded().empty() || two().member->forwarded()[0].bytes == 0);
  two().carries_max = SIZE_MAX;
  talk_on(60s);
  ASSERT_TRUE(carried());
  two().member->set_carries(false, now, two());
  pass();
  EXPECT_EQ(talk_on(1s), 8) << "it says so itself, and nobody waits for it";
  EXPECT_TRUE(relayed());
}

TEST_F(Carrying, WhenItGoesTheRelayTakesOver) {
  begin();
  talk_on(10s);
  ASSERT_TRUE(carried());
  nats[2].kind = Kind::Closed;
  talk_on(6s);
  EXPECT_TRUE(relayed());
  EXPECT_EQ(talk_on(2s), 8);
  nats[2].kind = Kind::Open;
  talk_on(90s);
  EXPECT_TRUE(carried()) << "it is tried again";
  // It leaves the roster: at once, also for what was to be sent this moment.
  const Bytes without = encode_roster(make_roster(2));
  for (std::size_t i : {0U, 1U}) ASSERT_TRUE(apply(*machines[i], without).ok());
  EXPECT_TRUE(relayed());
  EXPECT_EQ(talk_on(1s), 8);
}

TEST_F(Carrying, ADirectWayIsBetter) {
  begin({Kind::Cone, Kind::Cone, Kind::Open});
  talk_on(5s);
  const std::size_t before = two().carries;
  talk_on(30s);
  EXPECT_TRUE(direct(0, 1));
  EXPECT_TRUE(direct(1, 0));
  EXPECT_EQ(two().carries, before) << "not even probes";
}

TEST_F(Carrying, ADetourIsNotTaken) {
  begin();
  // It is far from both, the relay is near.
  for (auto& m : machines) m->slow_udp_us = 50'000;
  talk_on(30s);
  EXPECT_TRUE(relayed());
}

TEST_F(Net, FillerGoesOnlyToWhoTakesItAndReachesNoProgram) {
  build(2, true);
  Machine &a = *machines[0], &b = *machines[1];
  EXPECT_TRUE(delivers(0, 1));
  run(6s);
  ASSERT_NE(path(0, 1), "relay");
  EXPECT_FALSE(a.member->begin_test(b.address, now)) << "it does not say that it takes tests";
  b.member->set_tests(true, now, b);
  run(3s);
  EXPECT_TRUE(a.member->stats().at(0).takes_tests);
  EXPECT_FALSE(b.member->stats().at(0).takes_tests);
  EXPECT_FALSE(a.member->fill(b.address, 1'000, now, a)) << "none was begun";
  ASSERT_TRUE(a.member->begin_test(b.address, now));
  a.tun.clear(), b.tun.clear();
  EXPECT_TRUE(a.member->fill(b.address, 10'000, now, a));
  exchange();
  EXPECT_GE(b.test_bytes, 10'000U);
  EXPECT_LT(b.test_bytes, 12'000U);
  EXPECT_EQ(a.test_bytes, 0U) << "nobody sends filler because somebody else does";
  EXPECT_TRUE(a.tun.empty() && b.tun.empty());
  EXPECT_EQ(a.member->stats().at(0).tested, now.lease);
  // b's owner changes his mind in the middle of it.
  b.member->set_tests(false, now, b);
  exchange();
  EXPECT_FALSE(a.member->fill(b.address, 1'000, now, a));
  a.member->end_test(b.address);
  EXPECT_FALSE(a.member->begin_test(b.address, now));
  // Never by the relay: it is others'.
  b.member->set_tests(true, now, b);
  run(3s);
  direct_up = false;
  run(8s);
  ASSERT_EQ(path(0, 1), "relay");
  EXPECT_FALSE(a.member->begin_test(b.address, now));
  EXPECT_FALSE(a.member->begin_test(kNet + 99, now));
}

// A member that runs something else than our code asks for what it likes.
TEST_F(Net, WhoCarriesDoesNothingElseForAnybody) {
  build(4, true);
  Machine &a = *machines[0], &b = *machines[1], &r = *machines[2], &far = *machines[3];
  far.lan = {};  // where the roster says it is nobody answers
  for (std::size_t to : {0U, 1U, 3U}) EXPECT_TRUE(delivers(2, to));
  r.member->set_carries(true, now, r);
  run(6s);
  ASSERT_NE(path(2, 0), "relay");
  ASSERT_NE(path(2, 1), "relay");
  struct Attacker : Sink {
    std::vector<Bytes> sent;
    void send(const Endpoint&, ByteView d) override { sent.emplace_back(d.begin(), d.end()); }
    void deliver(ByteView) override {}
    void control(const Key32&, const Endpoint&, ByteView) override {}
  } sink;
  Device device(a.key);
  device.set_peers({PeerConfig{r.key.public_key, {}, {r.address}, Endpoint::udp(r.lan.ip, r.lan.port), {}}});
  now.lease = now.lease + 1s, now.wall = now.wall + 1s;
  const auto bring = [&](bool by_relay) {
    for (int i = 0; i < 4; ++i) {
      for (const Bytes& d : std::exchange(sink.sent, {}))
        by_relay ? r.member->from_relay(0, a.key.public_key, d, now, r)
                 : r.member->from_udp(a.lan.ip, a.lan.port, d, now, r);
      if (r.direct.size() + r.relayed.size() > 0 && device.has_session(r.key.public_key)) return;
      for (const auto& [at, d] : std::exchange(r.direct, {}))
        device.decapsulate(d, Endpoint::udp(r.lan.ip, r.lan.port), now, sink);
      r.relayed.clear();
    }
  };
  device.start_handshake(r.key.public_key, now, sink);
  bring(false);
  ASSERT_TRUE(device.has_session(r.key.public_key));
  r.direct.clear();
  // Returns how many datagrams r sent because of it.
  const auto ask = [&](std::uint32_t to, const Bytes& datagram, bool by_relay = false, std::uint8_t kind = 5) {
    r.direct.clear();
    r.relayed.clear();
    r.tun.clear();
    Bytes message(5 + datagram.size());
    message[0] = kind;
    store_be32(message.data() + 1, to);
    std::copy(datagram.begin(), datagram.end(), message.begin() + 5);
    EXPECT_TRUE(device.send_control(r.key.public_key, Endpoint::udp(r.lan.ip, r.lan.port), message, now, sink));
    bring(by_relay);
    EXPECT_TRUE(r.tun.empty());
    return r.direct.size() + r.relayed.size();
  };
  Bytes fine(300, 7);
  fine[0] = 4, fine[1] = fine[2] = fine[3] = 0;
  ASSERT_EQ(ask(b.address, fine), 1U) << "what is honest is carried";
  EXPECT_EQ(r.direct[0].first, b.lan);
  EXPECT_LE(r.direct[0].second.size(), fine.size() + 5 + 32 + 16) << "one for one, and hardly larger";
  EXPECT_EQ(ask(b.address, fine, true), 0U) << "only from whom we reach directly";
  EXPECT_EQ(ask(a.address, fine), 0U) << "not back to itself";
  EXPECT_EQ(ask(r.address, fine), 0U);
  EXPECT_EQ(ask(far.address, fine), 0U) << "not to whom we do not reach directly";
  EXPECT_EQ(ask(kNet + 77, fine), 0U) << "not out of the roster";
  EXPECT_EQ(ask(0x08080808, fine), 0U);
  EXPECT_EQ(ask(b.address, udp_packet(a.address, b.address)), 0U) << "ciphertext only";
  EXPECT_EQ(ask(b.address, Bytes(300, 0)), 0U);
  EXPECT_EQ(ask(b.address, Bytes(fine.begin(), fine.begin() + 20)), 0U);
  Bytes long_one = fine;
  long_one.resize(1'500);
  EXPECT_EQ(ask(b.address, long_one), 0U);
  EXPECT_EQ(ask(b.address, {}), 0U);
  EXPECT_EQ(ask(b.address, fine, false, 6), 0U) << "what was carried is opened, and this is nothing";
  EXPECT_EQ(ask(b.address, fine), 1U);
  r.carries_max = r.carries;
  EXPECT_EQ(ask(b.address, fine), 0U) << "beyond the cap";
  r.carries_max = SIZE_MAX;
  r.member->set_carries(false, now, r);
  EXPECT_EQ(ask(b.address, fine), 0U) << "the owner said no";
  r.member->set_carries(true, now, r);
  EXPECT_EQ(ask(b.address, fine), 1U);
  ASSERT_TRUE(apply(r, encode_roster(make_roster(0))).ok());
  EXPECT_EQ(ask(b.address, fine), 0U) << "who left the roster is cut off at once";
  EXPECT_EQ(r.member->forwarded().size(), 1U);
}

TEST_F(Behind, AMappingThatChangesIsFoundAgain) {
  behind({Kind::Cone, Kind::Cone});
  talk(0, 1);
  learn();
  go(2s);
  ASSERT_TRUE(direct(0, 1));
  nats[0].ip += 100;  // another address, and nothing is known of what was open
  nats[0].ports.clear();
  nats[0].open.clear();
  go(5s);
  EXPECT_FALSE(direct(1, 0)) << path(1, 0);
  learn();
  go(3s);
  EXPECT_TRUE(direct(0, 1)) << path(0, 1);
  EXPECT_TRUE(direct(1, 0)) << path(1, 0);
}

TEST_F(Behind, WhatCannotBeOpenedStaysOnTheRelayAndFloodsNobody) {
  behind({Kind::Symmetric, Kind::Cone, Kind::Closed});
  talk(0, 1);
  talk(0, 2);
  talk(1, 2);
  learn();
  go(10s);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 3; ++j)
      if (i != j) EXPECT_FALSE(direct(i, j)) << i << j;
  strays = 0;
  go(600s);
  EXPECT_LT(strays, 600U) << "a few small packets every half minute";
  talk(0, 2);
  EXPECT_FALSE(machines[2]->tun.empty());
}

TEST_F(Behind, NonsenseIsNotTried) {
  behind({Kind::Cone, Kind::Cone});
  talk(0, 1);
  std::vector<Endpoint> bad;
  for (const std::uint32_t ip : {0x7f000001U, 0xe0000001U, 0xffffffffU, 0xa9fea9feU, 0x00000001U, kNet + 9})
    bad.push_back(Endpoint::udp(ip, 7));
  for (const Ip6& six :
       {Ip6{}, Ip6{0xfe, 0x80}, Ip6{0xff, 0x02}, Ip6{0x20, 0x02, 10, 0, 0, 1}, Ip6{0x20, 0x01, 0, 0, 1},
        Ip6{0, 0x64, 0xff, 0x9b}, Ip6{0xfe, 0xc0}, inner6(kNet + 9), inner6(0x0a000001)})
    bad.push_back(Endpoint::udp6(six, 7));
  for (std::size_t i = 0; i < bad.size(); i += 3) {
    machines[0]->member->set_public(
        {bad.begin() + static_cast<std::ptrdiff_t>(i), bad.begin() + static_cast<std::ptrdiff_t>(i) + 3}, now,
        *machines[0]);
    pass();
    for (int k = 0; k < 8; ++k) {
      now.lease = now.lease + 250ms;
      for (auto& m : machines) m->member->tick(now, *m);
      for (const auto& [at, d] : machines[1]->direct) EXPECT_TRUE(std::ranges::find(bad, at) == bad.end());
      pass();
    }
  }
}

// What one of them sends while all want to talk to all.
TEST_F(Net, WhoHidesSendsAndTakesNothingDirectly) {
  build(3, true);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 3; ++j)
      if (i != j) EXPECT_TRUE(delivers(i, j));
  run(3s);
  ASSERT_EQ(path(0, 1), "10.0.0.2:7000");
  Machine& hider = *machines[0];
  hider.member->set_relay_only(true, now, hider);
  exchange();
  for (auto& m : machines) m->sent_to.clear();
  // What went straight from or to it, while all talk to all: new handshakes every two minutes among it.
  const auto straight = [&](int seconds) {
    for (int i = 0; i < seconds; ++i) {
      run(1s);
      for (std::size_t from = 0; from < 3; ++from)
        for (std::size_t to = 0; to < 3; ++to)
          if (from != to) EXPECT_TRUE(delivers(from, to)) << from << to;
    }
    std::size_t out = machines[1]->sent_to[hider.lan.ip] + machines[2]->sent_to[hider.lan.ip];
    for (const auto& [ip, count] : hider.sent_to) out += count;
    return out;
  };
  EXPECT_EQ(path(0, 1), "relay");
  EXPECT_EQ(path(1, 0), "relay") << "the other one was told";
  EXPECT_EQ(straight(200), 0U) << "handshakes among them";
  roster();  // says where it was
  hider.member->set_public({Endpoint::udp(0x5db8d822, 7000)}, now, hider);
  EXPECT_TRUE(delivers(0, 1));
  EXPECT_TRUE(delivers(2, 0));
  EXPECT_EQ(straight(200), 0U);
  for (std::size_t i = 1; i < 3; ++i) {
    for (const MemberStats& s : machines[i]->member->stats()) {
      EXPECT_EQ(s.hidden, s.address == hider.address);
      if (s.address == hider.address) EXPECT_TRUE(s.tried.empty()) << "nothing of where it was is left";
    }
  }
  EXPECT_EQ(path(1, 2), "10.0.0.3:7000") << "the others have nothing to do with it";
  // Who knows it from before and does not listen gets no answer.
  const std::size_t before = hider.direct.size();
  for (std::size_t i = 0; i < 200; ++i) hider.member->from_udp(0x0a000002, 7000, Bytes(148, 1), now, hider);
  EXPECT_EQ(hider.direct.size(), before);
  hider.member->set_relay_only(false, now, hider);
  exchange();
  roster();
  run(20s);
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
  EXPECT_EQ(path(1, 0), "10.0.0.1:7000");
}

TEST_F(Net, WhoHidesIsToldNothingAndCarriedByNobody) {
  build(3, true);
  machines[2]->member->set_carries(true, now, *machines[2]);
  Machine& hider = *machines[0];
  hider.member->set_relay_only(true, now, hider);
  EXPECT_TRUE(delivers(0, 1));
  EXPECT_TRUE(delivers(0, 2));
  for (int i = 0; i < 60; ++i) {
    EXPECT_TRUE(delivers(1, 0));
    run(1s);
  }
  EXPECT_EQ(path(0, 1), "relay");
  EXPECT_EQ(path(1, 0), "relay");
  for (const MemberStats& s : hider.member->stats()) EXPECT_TRUE(s.carriers.empty() && s.tried.empty());
  EXPECT_TRUE(hider.sent_to.empty());
}

TEST_F(Net, NothingIsTriedWhereTheWayLeadsThroughATunnel) {
  build(2, true);
  machines[0]->tunnels = {machines[1]->lan};
  EXPECT_TRUE(delivers(0, 1));
  for (Millis t{0}; t < 60s; t += 250ms) {
    now.lease = now.lease + 250ms;
    for (auto& m : machines) m->member->tick(now, *m);
    EXPECT_TRUE(machines[0]->direct.empty()) << "neither probes nor handshakes nor answers to those of the other";
    exchange();
  }
  EXPECT_EQ(path(0, 1), "relay");
  EXPECT_EQ(path(1, 0), "relay") << "which never got an answer";
  const auto tried = machines[0]->member->stats().at(0).tried;
  ASSERT_EQ(tried.size(), 1U);
  EXPECT_TRUE(tried[0].barred);
  machines[0]->tunnels.clear();
  run(40s);
  EXPECT_EQ(path(0, 1), "10.0.0.2:7000");
  // It comes up while the way is in use.
  machines[0]->tunnels = {machines[1]->lan};
  run(1s);
  EXPECT_EQ(path(0, 1), "relay");
  run(5s);
  EXPECT_EQ(path(1, 0), "relay");
  EXPECT_TRUE(delivers(0, 1));
}

}  // namespace
}  // namespace muster::overlay
