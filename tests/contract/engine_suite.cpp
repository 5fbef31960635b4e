// What the engine promises on top of any store: nothing leaves before it is durable, failures are told apart by the
// tail.
#include <set>

#include "base/mutant.h"
#include "contract/engine_loop.h"

namespace muster::contract {
namespace {

using control::Lane;
using engine::Mode;
using store::Fault;

class EngineOnMemory : public testing::Test {
 protected:
  store::MemoryStore store_;
  EngineLoop loop_{store_};
  void SetUp() override { ASSERT_TRUE(loop_.run()); }
  void TearDown() override { EXPECT_EQ(loop_.fault, ""); }
  Code code(std::uint64_t token) { return loop_.replies.at(token) ? Code{} : loop_.replies.at(token).error().code; }
  bool has_org(const std::string& name) { return loop_.follower->state().org_by_name.contains(name); }
};

TEST_F(EngineOnMemory, TakesTheLeadFirst) {
  EXPECT_EQ(loop_.core->mode(), Mode::Leading);
  EXPECT_EQ(loop_.follower->state().leader_epoch, 1u);
  EXPECT_EQ(store_.tail().value().seq, 2u) << "the lead, and the format of a new journal";
}

TEST_F(EngineOnMemory, NothingLeavesBeforeTheCommit) {
  const auto first = loop_.create_org("acme"), again = loop_.create_org("acme");
  loop_.poll();
  EXPECT_FALSE(loop_.answered(first));
  EXPECT_FALSE(loop_.answered(again)) << "the refusal rests on what is not durable yet";
  EXPECT_FALSE(has_org("acme"));
  loop_.deliver();
  EXPECT_EQ(loop_.replies.at(first).value().outcome.id, "org-1");
  EXPECT_EQ(loop_.replies.at(first).value().seq, loop_.follower->seq());
  EXPECT_EQ(code(again), Code::AlreadyExists);
  EXPECT_TRUE(has_org("acme"));
}

TEST_F(EngineOnMemory, OneBatchInFlightTheRestIsOneGroup) {
  loop_.create_org("first");
  loop_.poll();
  ASSERT_TRUE(loop_.batch);
  for (int i = 0; i < 500; ++i) loop_.create_org("org" + std::to_string(i));
  const auto in_flight = loop_.batch;
  EXPECT_FALSE(loop_.core->poll(loop_.now).has_value());
  const std::uint64_t syncs = store_.syncs();
  EXPECT_TRUE(loop_.run());
  EXPECT_EQ(store_.syncs(), syncs + 2);
  EXPECT_EQ(loop_.replies.size(), 501u);
  EXPECT_EQ(loop_.events.size(), store_.tail().value().seq);
}

TEST_F(EngineOnMemory, ARefusalThatSawLostStateBecomesUnavailable) {
  const auto first = loop_.create_org("acme"), again = loop_.create_org("acme");
  store_.inject(Fault::Error);
  loop_.run();
  EXPECT_EQ(code(first), Code::Unavailable);
  EXPECT_EQ(code(again), Code::Unavailable);
  const auto third = loop_.create_org("acme");
  loop_.run();
  EXPECT_EQ(loop_.replies.at(third).value().outcome.id, "org-1");
}

TEST_F(EngineOnMemory, AmbiguousIsAnsweredByTheTail) {
  store_.inject(Fault::AmbiguousWritten);
  const auto written = loop_.create_org("written");
  loop_.run();
  EXPECT_TRUE(loop_.replies.at(written).ok());
  store_.inject(Fault::AmbiguousLost);
  const auto lost = loop_.create_org("lost");
  loop_.run();
  EXPECT_EQ(code(lost), Code::Unavailable);
  store_.inject(Fault::AmbiguousLate);
  const auto late = loop_.create_org("late");
  loop_.run();
  EXPECT_EQ(code(late), Code::Unavailable);
  store_.settle();
  const auto after = loop_.create_org("after");
  loop_.run();
  EXPECT_TRUE(loop_.replies.at(after).ok());
  EXPECT_TRUE(has_org("written") && has_org("after"));
  EXPECT_FALSE(has_org("lost") || has_org("late"));
  EXPECT_EQ(loop_.core->leader_epoch(), 4u) << "each doubt took a new epoch, which fences the late write";
}

TEST_F(EngineOnMemory, FullDiskIsReadOnlyUntilThereIsRoom) {
  store_.set_disk_full(true);
  const auto refused = loop_.create_org("acme");
  loop_.run();
  EXPECT_EQ(code(refused), Code::Unavailable);
  EXPECT_EQ(loop_.core->mode(), Mode::ReadOnly);
  const auto at_once = loop_.create_org("acme");
  EXPECT_EQ(code(at_once), Code::Unavailable);
  EXPECT_NE(loop_.replies.at(at_once).error().message.find("full"), std::string::npos);
  loop_.advance(Millis(1'500));
  loop_.run();
  EXPECT_EQ(loop_.core->mode(), Mode::ReadOnly);
  store_.set_disk_full(false);
  loop_.advance(loop_.core->next_deadline() - loop_.now.lease);
  loop_.run();
  EXPECT_EQ(loop_.core->mode(), Mode::Leading);
  const auto good = loop_.create_org("acme");
  loop_.run();
  EXPECT_TRUE(loop_.replies.at(good).ok());
}

TEST_F(EngineOnMemory, ADeposedLeaderChangesNothingMore) {
  EngineLoop rival(store_);
  ASSERT_TRUE(rival.run());
  const auto stale = loop_.create_org("stale");
  loop_.run();
  EXPECT_EQ(code(stale), Code::Unavailable);
  EXPECT_EQ(loop_.core->mode(), Mode::Fenced);
  EXPECT_EQ(loop_.follower->state().leader_epoch, 2u) << "it still learns what the new leader wrote";
  const auto good = rival.create_org("good");
  rival.run();
  EXPECT_TRUE(rival.replies.at(good).ok());
  EXPECT_EQ(rival.fault, "");
}

TEST_F(EngineOnMemory, LanesAreServedInOrderAndBounded) {
  engine::Engine::Options options = EngineLoop::quiet();
  options.lane_max = 2;
  EngineLoop loop(store_, options);
  loop.run();
  const auto tenant = loop.create_org("same", Lane::Tenant), liveness = loop.create_org("same", Lane::Liveness);
  loop.create_org("x", Lane::Tenant);
  const auto full = loop.create_org("y", Lane::Tenant);
  EXPECT_EQ(loop.replies.at(full).error().code, Code::ResourceExhausted);
  loop.run();
  EXPECT_TRUE(loop.replies.at(liveness).ok());
  EXPECT_EQ(loop.replies.at(tenant).error().code, Code::AlreadyExists);
  EXPECT_EQ(loop.fault, "");
  SetUp();
}

TEST_F(EngineOnMemory, RestartFromASnapshotEqualsReplay) {
  for (int i = 0; i < 50; ++i) loop_.create_org("org" + std::to_string(i));
  loop_.run();
  ASSERT_TRUE(store_.save_snapshot(loop_.follower->snapshot()));
  for (int i = 50; i < 80; ++i) loop_.create_org("org" + std::to_string(i));
  loop_.run();
  ASSERT_TRUE(store_.save_snapshot(loop_.follower->snapshot()));
  ASSERT_TRUE(store_.archive_before(20));
  loop_.create_org("last");
  loop_.run();
  const Bytes digest = control::state_digest(loop_.follower->state());
  EXPECT_EQ(control::state_digest(engine::load_base(store_).value().state), digest);
  store_.corrupt_newest_snapshot();
  EXPECT_EQ(control::state_digest(engine::load_base(store_).value().state), digest) << "from the older snapshot";
}

// ---- random lives -------------------------------------------------------------------------------------------------

// Runs one seeded life with faults and restarts; returns the first broken promise, empty if none.
std::string random_life(std::uint64_t seed) {
  Rng rng(seed);
  store::MemoryStore store;
  std::set<std::string> promised;  // acknowledged names
  std::set<std::string> denied;    // names whose creation was told to exist already
  int made = 0;
  for (int life = 0; life < 4; ++life) {
    store.reopen();
    EngineLoop loop(store, EngineLoop::quiet(), 1'700'000'000'000 + static_cast<std::int64_t>(rng.below(1'000)));
    if (!loop.fault.empty()) return "restart: " + loop.fault;
    for (const std::string& name : promised) {
      if (!loop.core->state_for_tests().org_by_name.contains(name)) return "acknowledged and lost: " + name;
    }
    std::map<std::uint64_t, std::string> asked;
    for (int step = 0; step < 30 && !store.crashed(); ++step) {
      if (rng.chance(1, 6))
        store.inject(static_cast<Fault>(1 + rng.below(7)), static_cast<std::uint32_t>(rng.below(3)));
      for (std::uint64_t i = rng.below(5); i > 0; --i) {
        const std::string name =
            "n" + std::to_string(rng.chance(1, 4) ? rng.below(static_cast<std::uint64_t>(made) + 1) : ++made);
        asked[loop.create_org(name)] = name;
      }
      loop.poll();
      if (rng.chance(3, 4)) loop.deliver();
      if (rng.chance(1, 5)) store.settle();
      if (rng.chance(1, 8)) {
        if (store.save_snapshot(loop.follower->snapshot())) {
          const auto loaded = store.load_snapshot().value();
          if (!loaded || loaded->seq < loop.follower->seq()) return "a saved snapshot cannot be loaded";
        }
      }
      store.set_disk_full(false);
      loop.advance(Millis(rng.below(800)));
      if (!loop.fault.empty()) return loop.fault;
    }
    if (!store.crashed() && rng.chance(1, 2)) {
      store.inject(Fault::None);
      for (int i = 0; i < 8; ++i) {
        loop.run();
        loop.advance(Millis(1'100));
      }
      if (loop.core->mode() != Mode::Leading || !loop.core->idle())
        return "healed, yet no progress: " + loop.core->mode_reason();
      if (loop.replies.size() != asked.size()) return "a command was never answered";
    }
    for (const auto& [token, name] : asked) {
      const auto reply = loop.replies.find(token);
      if (reply == loop.replies.end()) continue;
      if (reply->second) {
        if (!promised.insert(name).second) return "created twice: " + name;
      } else if (reply->second.error().code == Code::AlreadyExists) {
        denied.insert(name);
      }
    }
  }
  store.reopen();
  store.settle();
  const auto base = engine::load_base(store);
  if (!base) return base.error().message;
  for (const auto& names : {promised, denied}) {
    for (const std::string& name : names) {
      if (!base->state.org_by_name.contains(name)) return "told and lost: " + name;
    }
  }
  const Status chain = journal::verify_chain(0, journal::genesis_hash(), read_everything(store));
  return chain ? "" : chain.error().message;
}

TEST(EngineLives, KeepEveryPromise) {
  for (std::uint64_t seed = 1; seed <= 150; ++seed) ASSERT_EQ(random_life(seed), "") << "seed " << seed;
}

#ifdef MUSTER_MUTANTS
class EngineMutants : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, EngineMutants,
                         testing::Values("engine.reply_before_commit", "engine.skip_tail_reread",
                                         "engine.keep_speculative", "journal.snapshot_wrong_seq"));
TEST_P(EngineMutants, AreCaughtWithinOneHundredLives) {
  bool caught = false;
  for (std::uint64_t seed = 1; seed <= 100 && !caught; ++seed) {
    set_mutant(GetParam());
    caught = !random_life(seed).empty();
  }
  set_mutant("");
  EXPECT_TRUE(caught);
}
#endif

}  // namespace
}  // namespace muster::contract
