#include "journal/entry.h"

#include <gtest/gtest.h>

#include "base/mutant.h"
#include "base/rng.h"
#include "journal/snapshot.h"

namespace muster::journal {
namespace {

Bytes random_bytes(Rng& rng, std::size_t size) {
  Bytes bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(rng.next());
  return bytes;
}

Entry random_entry(Rng& rng) {
  Entry entry;
  entry.seq = 1 + rng.below(rng.chance(1, 2) ? 200 : ~std::uint64_t{0});
  entry.leader_epoch = rng.below(1'000);
  entry.wall.ms = static_cast<std::int64_t>(rng.below(std::uint64_t{1} << 62));
  entry.actor.principal.value = rng.chance(1, 2) ? rng.below(500) : 0;
  entry.actor.org.value = rng.chance(1, 2) ? rng.next() : 0;
  entry.actor.node.value = rng.chance(1, 3) ? rng.below(100'000) : 0;
  entry.actor.role = static_cast<Role>(rng.below(8));
  entry.actor.system = rng.chance(1, 3);
  if (rng.chance(1, 2)) {
    entry.actor.request_id = std::string(1 + rng.below(kRequestIdBytesMax), 'k');
    if (rng.chance(1, 2)) entry.actor.request_hash = random_bytes(rng, kHashBytes);
  }
  entry.event = random_bytes(rng, rng.below(400));
  entry.prev_hash = random_bytes(rng, kHashBytes);
  return entry;
}

TEST(EntryCodec, RoundTripAndOneEncodingPerValue) {
  Rng rng(1);
  for (int i = 0; i < 2'000; ++i) {
    const Entry entry = random_entry(rng);
    const Bytes stored = encode(entry).value();
    ASSERT_EQ(decode(stored).value(), entry);
    // Any other bytes are refused or mean another entry that encodes to exactly them: nothing is ignored.
    Bytes bent = stored;
    bent[rng.below(bent.size())] ^= static_cast<std::uint8_t>(1 + rng.below(255));
    if (auto other = decode(bent)) {
      ASSERT_EQ(encode(*other).value(), bent);
    }
    ASSERT_FALSE(decode(ByteView(stored).first(rng.below(stored.size()))));
    bent = stored;
    bent.push_back(0);
    ASSERT_FALSE(decode(bent));
  }
}

TEST(EntryCodec, GoldenBytes) {
  Entry entry{300, 2, WallTime{1'700'000'000'000}, {}, {0xAA, 0xBB}, Bytes(kHashBytes, 0x11)};
  entry.actor.principal.value = 7;
  entry.actor.role = Role::Operator;
  entry.actor.request_id = "r";
  EXPECT_EQ(hex(encode(entry).value()), "01" + std::string(64, '1') +
                                            "ac02"
                                            "02"
                                            "80d095ffbc31"
                                            "32"
                                            "07"
                                            "0172"
                                            "00"
                                            "02aabb");
}

TEST(EntryCodec, RefusesWhatDoesNotBelongInAJournal) {
  Rng rng(2);
  Entry entry = random_entry(rng);
  entry.event = Bytes(kEntryBytesMax);
  EXPECT_EQ(encode(entry).error().code, Code::TooLarge);
  entry.event.clear();
  entry.actor.request_id = std::string(kRequestIdBytesMax + 1, 'k');
  EXPECT_EQ(encode(entry).error().field, "request_id");
  entry.actor.request_id.clear();
  entry.actor.request_hash = Bytes(kHashBytes);
  EXPECT_EQ(encode(entry).error().field, "request_hash");
  entry.actor.request_hash.clear();
  entry.wall.ms = -1;
  EXPECT_EQ(encode(entry).error().field, "wall");
  EXPECT_EQ(decode({}).error().code, Code::DataLoss);
}

std::vector<Bytes> make_chain(std::size_t count) {
  std::vector<Bytes> stored;
  Entry entry;
  entry.prev_hash = genesis_hash();
  for (std::size_t i = 1; i <= count; ++i) {
    entry.seq = i;
    entry.wall.ms = static_cast<std::int64_t>(1'000 + i);
    entry.event = {static_cast<std::uint8_t>(i)};
    stored.push_back(encode(entry).value());
    entry.prev_hash = hash_of(stored.back());
  }
  return stored;
}

TEST(Chain, AnyChangedByteIsNoticed) {
  const auto good = make_chain(8);
  ASSERT_TRUE(verify_chain(0, genesis_hash(), good));
  for (std::size_t i = 0; i + 1 < good.size(); ++i) {
    for (std::size_t at = 0; at < good[i].size(); ++at) {
      auto bad = good;
      bad[i][at] ^= 1;
      ASSERT_FALSE(verify_chain(0, genesis_hash(), bad)) << "entry " << i << " byte " << at;
    }
  }
  auto gap = good;
  gap.erase(gap.begin() + 3);
  EXPECT_FALSE(verify_chain(0, genesis_hash(), gap));
  auto swapped = good;
  std::swap(swapped[2], swapped[3]);
  EXPECT_FALSE(verify_chain(0, genesis_hash(), swapped));
#ifdef MUSTER_MUTANTS
  auto bent = good;
  bent[2].back() ^= 1;
  set_mutant("journal.skip_prev_hash");
  EXPECT_TRUE(verify_chain(0, genesis_hash(), bent)) << "without the check nothing is noticed";
  set_mutant("");
#endif
}

TEST(Chain, TimeAndEpochNeverGoBack) {
  Entry first{1, 5, WallTime{100}, {}, {}, genesis_hash()};
  const Bytes stored = encode(first).value();
  for (Entry second :
       {Entry{2, 4, WallTime{100}, {}, {}, hash_of(stored)}, Entry{2, 5, WallTime{99}, {}, {}, hash_of(stored)}}) {
    EXPECT_FALSE(verify_chain(0, genesis_hash(), {stored, encode(second).value()}));
  }
}

TEST(SnapshotCodec, RoundTripAndDamage) {
  Rng rng(3);
  const Snapshot snapshot{77, random_bytes(rng, kHashBytes), WallTime{5}, random_bytes(rng, 500)};
  const Bytes stored = encode(snapshot);
  EXPECT_EQ(decode_snapshot(stored).value(), snapshot);
  for (std::size_t at = 0; at < stored.size(); ++at) {
    Bytes bad = stored;
    bad[at] ^= 0x40;
    ASSERT_EQ(decode_snapshot(bad).error().code, Code::DataLoss) << at;
    ASSERT_FALSE(decode_snapshot(ByteView(stored).first(at)));
  }
}

}  // namespace
}  // namespace muster::journal
