// Power loss at every write and sync of the SQLite store: everything acknowledged survives, the chain holds, work goes
// on.
#include <sys/stat.h>

#include "contract/disk.h"

namespace muster::contract {
namespace {

using journal::AppendOutcome;
using store::FaultVfs;
using store::Loss;

struct Acknowledged {
  std::vector<Bytes> entries;
  std::vector<Bytes> maybe;
  std::uint64_t epoch = 0;
  Bytes incarnation;
  bool snapshot = false;
};

// A small life of a journal; stops at the first answer that is not a success, as an engine would.
void work(journal::Store& store, Acknowledged& acked, Rng& rng) {
  const auto epoch = store.acquire_leader();
  if (!epoch) return;
  acked.epoch = *epoch;
  for (int i = 0; i < 6; ++i) {
    auto tail = store.tail();
    if (!tail) return;
    auto batch = make_batch(*tail, *epoch, 1 + rng.below(8), rng, 20 + rng.below(3000));
    auto outcome = AppendOutcome::Error;
    store.append(batch, [&](journal::AppendResult result) { outcome = result.outcome; });
    if (outcome != AppendOutcome::Committed) {
      EXPECT_NE(outcome, AppendOutcome::Conflict);
      acked.maybe = *batch.entries;
      return;
    }
    acked.entries.insert(acked.entries.end(), batch.entries->begin(), batch.entries->end());
    if (i == 2) {
      if (!store.put_meta("incarnation", {7})) return;
      acked.incarnation = {7};
    }
    if (i == 3) {
      const std::uint64_t seq = acked.entries.size();
      if (!store.save_snapshot({seq, journal::hash_of(acked.entries.back()), WallTime{1}, Bytes(5000, 3)})) return;
      acked.snapshot = true;
      if (!store.archive_before(seq / 2)) return;
    }
  }
}

void check_after(SqliteDisk& disk, const Acknowledged& acked, std::uint64_t point) {
  auto store = disk.open();
  ASSERT_TRUE(store) << "crash point " << point;
  const auto all = read_everything(*store);
  const Status chain = journal::verify_chain(0, journal::genesis_hash(), all);
  ASSERT_TRUE(chain) << "crash point " << point << ": " << chain.error().message;
  auto expected = acked.entries;
  if (all.size() != expected.size()) expected.insert(expected.end(), acked.maybe.begin(), acked.maybe.end());
  ASSERT_EQ(all.size(), expected.size()) << "crash point " << point
                                         << ": an acknowledged entry is gone, or half a batch is there";
  ASSERT_EQ(all, expected) << "crash point " << point;
  if (!acked.incarnation.empty()) {
    ASSERT_EQ(store->get_meta("incarnation").value(), acked.incarnation);
  }
  if (acked.snapshot) {
    ASSERT_TRUE(store->load_snapshot().value().has_value());
  }
  const auto tail = store->tail().value();
  ASSERT_GE(tail.leader_epoch, acked.epoch);
  const std::uint64_t epoch = store->acquire_leader().value();
  ASSERT_GT(epoch, acked.epoch);
  Rng rng(point);
  ASSERT_EQ(append_wait(*store, make_batch(tail, epoch, 3, rng)).outcome, AppendOutcome::Committed);
}

std::uint64_t operations_of_one_life() {
  SqliteDisk disk(false, FaultVfs::kName);
  auto store = disk.open();
  const std::uint64_t before = FaultVfs::instance().operations();
  Acknowledged acked;
  Rng rng(11);
  work(*store, acked, rng);
  EXPECT_FALSE(acked.entries.empty());
  return FaultVfs::instance().operations() - before;
}

class CrashEverywhere : public testing::TestWithParam<Loss> {};
INSTANTIATE_TEST_SUITE_P(Losses, CrashEverywhere, testing::Values(Loss::All, Loss::Subset, Loss::Torn));

TEST_P(CrashEverywhere, NothingAcknowledgedIsLost) {
  const std::uint64_t points = operations_of_one_life();
  ASSERT_GT(points, 50u);
  for (std::uint64_t point = 1; point <= points; ++point) {
    SqliteDisk disk(false, FaultVfs::kName);
    Acknowledged acked;
    {
      auto store = disk.open();
      FaultVfs::instance().crash_at(point);
      Rng rng(11);
      work(*store, acked, rng);
      FaultVfs::instance().crash_now();
    }
    FaultVfs::instance().recover(GetParam(), point * 31 + 1);
    check_after(disk, acked, point);
    if (HasFatalFailure()) return;
  }
}

TEST(FaultVfsTest, UnsyncedDataIsReallyLost) {
  // The net has no hole: without the sync the same work is lost, so the test above would see it.
  SqliteDisk disk(false, FaultVfs::kName);
  {
    auto db = disk.open();
    FaultVfs::instance().crash_now();
  }
  FaultVfs::instance().recover(Loss::All, 1);
  auto store = disk.open();
  Rng rng(1);
  const std::uint64_t epoch = store->acquire_leader().value();
  FaultVfs::instance().fail_sync(1);
  auto outcome = AppendOutcome::Committed;
  const auto batch = make_batch(store->tail().value(), epoch, 1, rng, 50'000);
  store->append(batch, [&](journal::AppendResult result) { outcome = result.outcome; });
  EXPECT_EQ(outcome, AppendOutcome::Ambiguous) << "a failed sync proves nothing either way";
  FaultVfs::instance().crash_now();
  store.reset();
  FaultVfs::instance().recover(Loss::All, 1);
  store = disk.open();
  EXPECT_TRUE(read_everything(*store).empty());
}

TEST(SqliteFaults, AmbiguousIsSettledByTakingTheLead) {
  SqliteDisk disk(false, FaultVfs::kName);
  auto store = disk.open();
  Rng rng(1);
  const std::uint64_t epoch = store->acquire_leader().value();
  const auto before = store->tail().value();
  FaultVfs::instance().fail_sync(1);
  auto outcome = AppendOutcome::Committed;
  store->append(make_batch(before, epoch, 4, rng), [&](journal::AppendResult result) { outcome = result.outcome; });
  ASSERT_EQ(outcome, AppendOutcome::Ambiguous);
  const std::uint64_t next = store->acquire_leader(epoch).value();
  const auto settled = store->tail().value();
  store.reset();
  FaultVfs::instance().crash_now();
  FaultVfs::instance().recover(Loss::Subset, 5);
  store = disk.open();
  EXPECT_EQ(store->tail().value(), settled) << "what the tail said after the new epoch stays true over a crash";
  EXPECT_EQ(append_wait(*store, make_batch(settled, next, 1, rng)).outcome, AppendOutcome::Committed);
}

TEST(SqliteFaults, FullDiskRefusesAndRecovers) {
  SqliteDisk disk(false, FaultVfs::kName);
  auto store = disk.open();
  Rng rng(1);
  const std::uint64_t epoch = store->acquire_leader().value();
  ASSERT_EQ(append_wait(*store, make_batch(store->tail().value(), epoch, 2, rng)).outcome, AppendOutcome::Committed);
  const auto tail = store->tail().value();
  FaultVfs::instance().full_after(1);
  EXPECT_EQ(append_wait(*store, make_batch(tail, epoch, 9, rng)).outcome, AppendOutcome::DiskFull);
  EXPECT_EQ(store->probe().error().code, Code::ResourceExhausted);
  EXPECT_EQ(store->tail().value(), tail);
  EXPECT_EQ(store->read(1, 10).value().size(), 2u) << "reading goes on";
  FaultVfs::instance().full_after(0);
  EXPECT_TRUE(store->probe());
  EXPECT_EQ(append_wait(*store, make_batch(tail, epoch, 9, rng)).outcome, AppendOutcome::Committed);
}

TEST(SqliteFile, OnlyTheOwnerMayReadIt) {
  SqliteDisk disk(true, "");
  auto store = disk.open();
  Rng rng(1);
  append_wait(*store, make_batch({}, store->acquire_leader().value(), 1, rng));
  for (const char* suffix : {"", "-wal", "-shm", "-snapshots"}) {
    struct stat info {};
    ASSERT_EQ(::stat((disk.path() + suffix).c_str(), &info), 0) << suffix;
    EXPECT_EQ(info.st_mode & 0777, 0600u) << suffix;
  }
}

TEST(SqliteFile, BackupIsCompleteAndNeverOverwrites) {
  SqliteDisk disk(true, "");
  TempDir elsewhere;
  auto opened = store::SqliteStore::open({disk.path(), "", true, 16});
  ASSERT_TRUE(opened);
  auto& store = **opened;
  Rng rng(1);
  append_wait(store, make_batch({}, store.acquire_leader().value(), 100, rng));
  const std::string copy = elsewhere.file("backup.db");
  ASSERT_TRUE(store.backup(copy));
  EXPECT_EQ(store.backup(copy).error().code, Code::AlreadyExists);
  auto other = store::SqliteStore::open({copy, "", true, 16});
  ASSERT_TRUE(other);
  EXPECT_EQ(read_everything(**other), read_everything(store));
  struct stat info {};
  ASSERT_EQ(::stat(copy.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

}  // namespace
}  // namespace muster::contract
