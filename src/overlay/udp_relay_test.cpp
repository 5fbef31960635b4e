// The UDP side of the relay, both ends on a wire of our own: who gets an answer, where it goes, and when the way
// counts.
#include "overlay/udp_relay.h"

#include <gtest/gtest.h>

#include "base/endian.h"
#include "crypto/random.h"
#include "overlay/relay_protocol.h"

namespace muster::overlay {
namespace {

using What = UdpRelayLeg::Taken::What;
const Endpoint kHome = Endpoint::udp(0xcb007101, 4000), kElsewhere = Endpoint::udp(0xcb007102, 4000),
               kSixth = Endpoint::udp6({0x26, 7, 1}, 4000);

UdpGrant grant_of(std::uint32_t id = 77) {
  return {id, Secret32(crypto::random_key32())};
}
Bytes whole(const UdpRelayLeg::Taken& taken) {
  Bytes out(taken.answer);
  if (!out.empty()) std::copy(taken.answer_head.begin(), taken.answer_head.end(), out.begin());
  return out;
}

struct UdpWire : ::testing::Test {
  UdpGrant grant = grant_of();
  UdpCookies cookies{Secret32(crypto::random_key32())};
  LeaseTime now{1'000'000};
  UdpMemberLeg member{grant, now};
  UdpRelayLeg relay{grant, 1 << 20};
  Endpoint from = kHome;
  std::size_t room = SIZE_MAX;  // larger ones are lost
  bool up = true, down = true;
  int challenged = 0, moved = 0;
  std::size_t asked = 0, answered = 0;

  std::uint64_t micros() const { return static_cast<std::uint64_t>(now.ms) * 1000; }
  UdpRelayLeg::Taken to_relay(ByteView datagram) {
    auto taken = relay.take(from, datagram, cookies, now);
    challenged += taken.challenged ? 1 : 0;
    moved += taken.moved ? 1 : 0;
    asked += datagram.size();
    answered += taken.answer;
    EXPECT_LE(answered, asked);
    return taken;
  }
  void to_member(const UdpRelayLeg::Taken& taken) {
    const Bytes answer = whole(taken);
    if (!answer.empty() && down && answer.size() <= room) member.take(answer, now, micros());
  }
  void run(Millis time) {
    for (const LeaseTime end = now + time; now < end; now = now + 50ms)
      for (int i = 0; i < 8; ++i) {
        const Bytes ping = member.due(now, micros());
        if (ping.empty()) break;
        if (up && ping.size() <= room) to_member(to_relay(ping));
      }
  }
  Bytes data(std::size_t size = 1'000) {
    Bytes out;
    member.wrap(Key32{9, 9}, Bytes(size, 5), now, out);
    return out;
  }
};

TEST(UdpGrant, TravelsInWelcomeAndOlderOnesHaveNone) {
  const UdpGrant grant = grant_of(0xa1b2c3d4);
  Bytes frame;
  append_welcome(frame, encode_udp_grant(grant));
  FrameReader reader;
  reader.feed(frame);
  const auto welcome = reader.next();
  ASSERT_TRUE(welcome.ok() && *welcome);
  const auto read = decode_udp_grant((*welcome)->body);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->id, grant.id);
  EXPECT_EQ(read->key.bytes, grant.key.bytes);
  EXPECT_FALSE(decode_udp_grant({}));
  Bytes other = encode_udp_grant(grant);
  EXPECT_FALSE(decode_udp_grant(ByteView(other).first(36)));
  other.push_back(1);
  EXPECT_TRUE(decode_udp_grant(other)) << "a later version may say more";
  EXPECT_EQ(read->second_port, 0U);
  UdpGrant two = grant;
  two.second_port = 3478;
  EXPECT_EQ(decode_udp_grant(encode_udp_grant(two))->second_port, 3478U);
  other[0] = 2;
  EXPECT_FALSE(decode_udp_grant(other));
}

TEST_F(UdpWire, IsGoodOnceAFullPingCameBackFromAnAddressThatReadsWhatItGets) {
  EXPECT_FALSE(member.usable());
  run(50ms);
  EXPECT_TRUE(member.usable());
  EXPECT_EQ(challenged, 1);
  EXPECT_EQ(relay.at(now), kHome);
  run(5s);
  EXPECT_EQ(challenged, 1) << "once";
  const auto taken = to_relay(data());
  ASSERT_EQ(taken.what, What::Data);
  EXPECT_EQ(taken.to, udp_relay_name(Key32{9, 9}));
  EXPECT_EQ(taken.payload.size(), 1'000U);
  EXPECT_EQ(taken.answer, 0U);
  Bytes back(kUdpRelayHeader + 3, 8);
  relay.seal(UdpRelayKind::Data, 1234, back.data());
  const auto got = member.take(back, now, micros());
  EXPECT_EQ(got.what, UdpMemberLeg::Taken::What::Data);
  EXPECT_EQ(got.name, 1234U);
  EXPECT_EQ(Bytes(got.payload.begin(), got.payload.end()), Bytes(3, 8));
  EXPECT_EQ(member.take(back, now, micros()).what, UdpMemberLeg::Taken::What::Refused) << "twice";
}

TEST_F(UdpWire, WhoIsNotAuthenticHearsNothing) {
  run(50ms);
  const Bytes good = data();
  for (std::size_t i = 0; i < kUdpRelayHeader; ++i) {
    Bytes bad = good;
    bad[i] ^= 1;
    const auto taken = to_relay(bad);
    EXPECT_EQ(taken.what, What::Refused) << i;
    EXPECT_EQ(taken.answer, 0U);
  }
  for (std::size_t size = 0; size < kUdpRelayHeader; ++size)
    EXPECT_EQ(to_relay(ByteView(good).first(size)).what, What::Refused);
  EXPECT_EQ(to_relay(Bytes(kUdpRelayDatagramMax + 1, 0xc7)).what, What::Refused);
  EXPECT_EQ(to_relay(good).what, What::Data) << "what was changed took no number away";
  EXPECT_EQ(to_relay(good).what, What::Refused) << "seen";
  UdpMemberLeg stranger(grant_of(grant.id), now);
  EXPECT_EQ(to_relay(stranger.due(now, 1)).what, What::Refused);
  Bytes own(kUdpRelayHeader);
  relay.seal(UdpRelayKind::Data, 1, own.data());
  EXPECT_EQ(to_relay(own).what, What::Refused) << "the other direction has another key";
}

TEST_F(UdpWire, NobodyElseMovesIt) {
  run(50ms);
  ASSERT_EQ(relay.at(now), kHome);
  // Somebody on the way sends a ping on from an address of its own: it only gets a cookie, and nothing moves.
  now = now + 2s;
  member.wants(1'000, now);
  const Bytes ping = member.due(now, micros());
  ASSERT_FALSE(ping.empty());
  from = kElsewhere;
  auto taken = to_relay(ping);
  EXPECT_TRUE(taken.challenged);
  EXPECT_EQ(taken.answer, kUdpRelayHeader);
  EXPECT_EQ(relay.at(now), kHome);
  EXPECT_EQ(to_relay(ping).answer, 0U) << "again, as it was";
  // With the cookie of another address, or port, or family, or of long ago, it does not move either.
  UdpRelaySealer sealer(grant, UdpRelayEnd::Member);
  Bytes own(kUdpRelayHeader);
  for (int i = 0; i < 100; ++i) sealer.seal(UdpRelayKind::Ping, 0, own.data());
  const auto with = [&](std::uint64_t cookie) {
    sealer.seal(UdpRelayKind::PingUse, cookie, own.data());
    return to_relay(own);
  };
  EXPECT_TRUE(with(cookies.cookie(grant.id, kHome, now)).challenged);
  EXPECT_TRUE(with(cookies.cookie(grant.id + 1, kElsewhere, now)).challenged);
  EXPECT_TRUE(with(cookies.cookie(grant.id, Endpoint::udp(kElsewhere.ip, 4001), now)).challenged);
  now = now + 1s;
  EXPECT_TRUE(with(cookies.cookie(grant.id, kSixth, now)).challenged);
  EXPECT_TRUE(with(cookies.cookie(grant.id, kElsewhere, now - 60s)).challenged);
  EXPECT_TRUE(with(0).challenged);
  EXPECT_EQ(moved, 0);
  EXPECT_FALSE(with(cookies.cookie(grant.id, kElsewhere, now)).challenged);
  EXPECT_EQ(relay.at(now), kElsewhere);
}

TEST_F(UdpWire, ANatThatGivesAnotherAddressCostsOneRoundTrip) {
  run(2s);
  for (const Endpoint& other : {kElsewhere, kSixth}) {
    from = other;
    const auto taken = to_relay(data());
    EXPECT_EQ(taken.what, What::Data) << "what it sends gets through";
    EXPECT_TRUE(taken.challenged);
    EXPECT_NE(relay.at(now), other);
    to_member(taken);
    run(50ms);
    EXPECT_EQ(relay.at(now), other);
    EXPECT_TRUE(member.usable());
  }
  EXPECT_EQ(moved, 2);
}

// What is for it leaves from the port that its last ping from there came to: the NAT lets nothing else in.
TEST_F(UdpWire, TheRelayAnswersFromThePortThatIsUsed) {
  run(2s);
  EXPECT_EQ(relay.door(), 0);
  const auto to_door = [&](Endpoint at, std::uint8_t door) {
    member.hurry(now);
    return relay.take(at, member.due(now, micros()), cookies, now, door);
  };
  auto taken = to_door(kHome, 1);
  EXPECT_GT(taken.answer, 0U);
  EXPECT_FALSE(taken.challenged) << "the address is known to be its own";
  EXPECT_EQ(relay.door(), 1);
  taken = to_door(kElsewhere, 0);
  EXPECT_TRUE(taken.challenged);
  EXPECT_EQ(relay.door(), 1) << "not by who may not read what is sent there";
}

TEST_F(UdpWire, SaysHowOftenAWayCameToNothing) {
  up = false;
  run(20s);
  EXPECT_GE(member.failed(), 3U);
  EXPECT_LE(member.failed(), 8U);
  const std::uint32_t before = member.failed();
  up = true;
  member.hurry(now);
  run(2s);
  ASSERT_TRUE(member.usable());
  to_relay(data());
  up = false;
  run(3s);
  EXPECT_FALSE(member.usable());
  EXPECT_EQ(member.failed(), before) << "a way that died is tried once more before another one";
}

TEST_F(UdpWire, AWayThatTakesNoFullPacketsIsNotUsed) {
  room = 1'300;
  run(20s);
  EXPECT_FALSE(member.usable());
  EXPECT_FALSE(relay.at(now)) << "nothing is brought that way either";
  EXPECT_LT(asked, 3'000U) << "it is asked ever less often";
  room = SIZE_MAX;
  run(kUdpRelayWaitMax);
  EXPECT_TRUE(member.usable());
  // It becomes narrow while it is in use.
  for (int i = 0; i < 3; ++i) to_relay(data()), run(1s);
  room = 1'300;
  to_relay(data());
  run(3'200ms);
  EXPECT_FALSE(member.usable());
}

TEST_F(UdpWire, ADeadWayIsLeftInTimeByBothEndsAndTriedAgain) {
  for (const std::size_t size : {1'000U, 100U})
    for (bool* dead : {&up, &down}) {
      run(kUdpRelayWaitMax + 5s);
      ASSERT_TRUE(member.usable());
      to_relay(data(size));
      run(2s);
      EXPECT_TRUE(member.wants(size, now));
      *dead = false;
      run(size >= kUdpRelayLarge ? 3'200ms : 4'200ms);
      EXPECT_FALSE(member.usable()) << size;
      EXPECT_FALSE(member.wants(size, now));
      run(500ms);
      EXPECT_FALSE(relay.at(now)) << "the relay heard nothing, or was told";
      *dead = true;
      member.hurry(now);
      run(50ms);
      EXPECT_TRUE(member.usable());
    }
}

TEST_F(UdpWire, ASilentWayCostsLittleAndIsLookedAtBeforeItIsUsed) {
  run(20s);
  const std::size_t before = asked;
  run(60s);
  EXPECT_LE(asked - before, 5 * kUdpRelayHeader) << "small ones, four a minute";
  EXPECT_TRUE(member.usable());
  EXPECT_FALSE(relay.at(now));
  EXPECT_FALSE(member.wants(1'000, now)) << "over TLS until it answered";
  run(50ms);
  EXPECT_TRUE(member.wants(1'000, now));
  EXPECT_TRUE(relay.at(now));
  run(30s);
  up = false;  // dies unseen
  run(5s);
  EXPECT_FALSE(member.wants(1'000, now)) << "nothing is lost to it";
  run(3s);
  EXPECT_FALSE(member.usable());
}

TEST_F(UdpWire, ALostPingIsNoDeath) {
  run(1s);
  int lost = 0;
  for (int i = 0; i < 200; ++i) {
    to_relay(data(100));
    up = i % 4 != 0;  // a quarter of the time
    run(250ms);
    lost += member.usable() ? 0 : 1;
  }
  EXPECT_EQ(lost, 0);
}

TEST_F(UdpWire, NobodySendsMoreThanItsShare) {
  run(1s);
  std::size_t taken = 0, refused = 0;
  for (int i = 0; i < 3'000; ++i) (to_relay(data()).what == What::Data ? taken : refused)++;
  EXPECT_NEAR(static_cast<double>(taken), (1 << 20) / 1037.0, 20);
  now = now + 500ms;
  taken = 0;
  for (int i = 0; i < 3'000; ++i) taken += to_relay(data()).what == What::Data ? 1U : 0U;
  EXPECT_NEAR(static_cast<double>(taken), (1 << 19) / 1037.0, 20) << "and goes on";
  now = now + 1s;
  UdpRelaySealer sealer(grant, UdpRelayEnd::Member);
  Bytes ping(kUdpRelayHeader);
  for (int i = 0; i < 20'000; ++i) sealer.seal(UdpRelayKind::Ping, 0, ping.data());
  std::size_t pongs = 0, challenges = 0;
  for (int i = 0; i < 100; ++i) {
    sealer.seal(UdpRelayKind::Ping, 0, ping.data());
    from = i < 50 ? kElsewhere : kHome;
    const auto answer = to_relay(ping);
    challenges += answer.challenged ? 1U : 0U;
    pongs += answer.answer > 0 && !answer.challenged ? 1U : 0U;
  }
  EXPECT_LE(challenges, 5U);
  EXPECT_LE(pongs, 20U);
}

}  // namespace
}  // namespace muster::overlay
