#include "overlay/relay_protocol.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/rng.h"
#include "crypto/random.h"

namespace muster::overlay {
namespace {

struct RelayDoorTest : ::testing::Test {
  crypto::SigningKey controller = crypto::SigningKey::generate();
  crypto::X25519Pair member = crypto::x25519_generate();
  WallTime now{1'795'000'000'000};
  RelayToken token{"relay-1", 7, member.public_key, now + 1h};
  Bytes signed_token = sign_relay_token(controller, token);
};

TEST_F(RelayDoorTest, HonestMemberEnters) {
  const RelayDoor door = open_door();
  const auto hello = make_hello(challenge_of(door), member, signed_token);
  ASSERT_TRUE(hello.ok());
  Bytes wire;
  append_hello(wire, *hello);
  FrameReader reader;
  reader.feed(wire);
  const auto frame = reader.next();
  ASSERT_TRUE(frame.ok() && frame.value());
  EXPECT_EQ((*frame)->type, RelayType::Hello);
  const auto entered = check_hello(door, *parse_hello((*frame)->body), controller.public_key(), "relay-1", now);
  ASSERT_TRUE(entered.ok()) << entered.error().message;
  EXPECT_EQ(*entered, token);
}

TEST_F(RelayDoorTest, RefusesForeignRelayKeyTimeProofAndSigner) {
  const RelayDoor door = open_door();
  const auto hello = make_hello(challenge_of(door), member, signed_token).value();
  const auto& key = controller.public_key();
  EXPECT_FALSE(check_hello(door, hello, key, "relay-2", now).ok());
  EXPECT_FALSE(check_hello(door, hello, key, "relay-1", now + 1h).ok());
  EXPECT_FALSE(check_hello(door, hello, crypto::SigningKey::generate().public_key(), "relay-1", now).ok());
  EXPECT_FALSE(check_hello(open_door(), hello, key, "relay-1", now).ok());  // a proof is for one connection
  const auto thief = crypto::x25519_generate();
  auto stolen = make_hello(challenge_of(door), thief, signed_token).value();
  EXPECT_FALSE(check_hello(door, stolen, key, "relay-1", now).ok());
  stolen.overlay_key = member.public_key;
  EXPECT_FALSE(check_hello(door, stolen, key, "relay-1", now).ok());
  for (std::size_t i = 0; i < signed_token.size(); ++i) {
    Bytes bad = signed_token;
    bad[i] ^= 1;
    EXPECT_FALSE(verify_relay_token(key, bad, "relay-1", now).ok()) << i;
  }
}

TEST(FrameReader, EveryFrameInAnyPieces) {
  Rng rng(3);
  const Key32 key = crypto::random_key32();
  for (int round = 0; round < 50; ++round) {
    Bytes wire;
    std::vector<Bytes> payloads;
    for (int i = 0; i < 30; ++i) {
      Bytes payload = crypto::random_bytes(1 + rng.below(rng.chance(1, 10) ? kRelayPayloadMax : 1500));
      append_send(wire, key, payload);
      payloads.push_back(std::move(payload));
      append_ping(wire, rng.next());
    }
    FrameReader reader;
    std::size_t seen = 0, pings = 0;
    for (std::size_t at = 0; at < wire.size();) {
      const std::size_t n = std::min<std::size_t>(wire.size() - at, 1 + rng.below(9000));
      reader.feed(ByteView(wire).subspan(at, n));
      at += n;
      for (;;) {
        const auto frame = reader.next();
        ASSERT_TRUE(frame.ok());
        if (!frame.value()) break;
        if ((*frame)->type == RelayType::Ping) {
          ++pings;
          continue;
        }
        const auto packet = parse_packet((*frame)->body);
        ASSERT_TRUE(packet.ok());
        EXPECT_EQ(packet->key, key);
        EXPECT_TRUE(std::ranges::equal(packet->payload, payloads[seen++]));
      }
    }
    EXPECT_EQ(seen, 30U);
    EXPECT_EQ(pings, 30U);
    EXPECT_EQ(reader.buffered(), 0U);
  }
}

TEST(FrameReader, DamageIsAnErrorNeverACrash) {
  FrameReader zero;
  zero.feed(Bytes{0, 0, 0, 0, 0});
  EXPECT_FALSE(zero.next().ok());
  FrameReader large;
  large.feed(Bytes{4, 0, 1, 0, 1});
  EXPECT_FALSE(large.next().ok());
  Rng rng(5);
  for (int i = 0; i < 20'000; ++i) {
    Bytes bytes(rng.below(120));
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(rng.next());
    FrameReader reader;
    reader.feed(bytes);
    for (int k = 0; k < 10; ++k) {
      const auto frame = reader.next();
      if (!frame.ok() || !frame.value()) break;
    }
    (void)parse_challenge(bytes).ok();
    (void)parse_hello(bytes).ok();
    (void)parse_packet(bytes).ok();
    (void)parse_error(bytes).ok();
    (void)parse_ping(bytes).ok();
    (void)parse_peer_gone(bytes).ok();
  }
}

}  // namespace
}  // namespace muster::overlay
