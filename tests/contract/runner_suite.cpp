// The threaded engine on real SQLite files, and `kill -9` of a process that uses it.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "contract/engine_loop.h"
#include "engine/runner.h"
#include "engine/tools.h"

namespace muster::contract {
namespace {

using control::Lane;
using engine::Runner;

std::unique_ptr<Runner> start(std::shared_ptr<journal::Store> store, std::uint64_t snapshot_every = 200) {
  Runner::Options options;
  options.store = std::move(store);
  options.snapshot_every = snapshot_every;
  options.archive_keep = 100;
  options.digest_every = 64;
  auto runner = Runner::start(options);
  EXPECT_TRUE(runner) << (runner ? "" : runner.error().message);
  return runner ? std::move(*runner) : nullptr;
}

TEST(RunnerOnSqlite, ManySubmittersReadTheirOwnWrites) {
  SqliteDisk disk(true, "");
  auto runner = start(disk.open());
  ASSERT_TRUE(runner);
  std::atomic<std::uint64_t> seen{0};
  auto subscription = runner->subscribe([&](const engine::DurableEvents& events) { seen = events->back().seq; });
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < 150; ++i) {
        const std::string name = "org" + std::to_string(client) + "x" + std::to_string(i);
        auto reply = runner->submit_wait(Lane::Tenant, control::CreateOrg{name}, operator_actor());
        ASSERT_TRUE(reply) << reply.error().message;
        ASSERT_LE(reply->seq, runner->durable_seq());
        ASSERT_TRUE(runner->wait_for(reply->seq, Millis(5'000)));
        runner->read([&](const control::State& state, const scheduler::Scheduler&) {
          ASSERT_TRUE(state.org_by_name.contains(name));
        });
      }
    });
  }
  for (auto& client : clients) client.join();
  const std::uint64_t last = runner->durable_seq();
  ASSERT_TRUE(runner->wait_for(last, Millis(5'000)));
  for (int i = 0; i < 500 && seen < last; ++i) std::this_thread::sleep_for(Millis(10));
  EXPECT_GE(seen.load(), last);
  EXPECT_EQ(runner->replay(last, 10).value().at(0).seq, last);
  EXPECT_FALSE(runner->read_only());
  subscription.reset();
  runner.reset();
  auto store = disk.open();
  EXPECT_TRUE(store->load_snapshot().value().has_value());
  EXPECT_EQ(engine::load_base(*store).value().state.orgs.size(), 600u);
  auto again = start(store);
  EXPECT_EQ(again->submit_wait(Lane::Tenant, control::CreateOrg{"org0x0"}, operator_actor()).error().code,
            Code::AlreadyExists);
}

TEST(RunnerOnSqlite, ASecondProcessFencesTheFirst) {
  SqliteDisk disk(true, "");
  auto first = start(disk.open());
  ASSERT_TRUE(first->submit_wait(Lane::Operator, control::CreateOrg{"one"}, operator_actor()));
  auto second = start(disk.open());
  EXPECT_EQ(first->submit_wait(Lane::Operator, control::CreateOrg{"two"}, operator_actor()).error().code,
            Code::Unavailable);
  EXPECT_TRUE(first->read_only());
  EXPECT_TRUE(second->submit_wait(Lane::Operator, control::CreateOrg{"two"}, operator_actor()));
}

TEST(RunnerOnMemory, FullDiskIsSaidAndPasses) {
  auto store = std::make_shared<store::MemoryStore>();
  auto runner = start(store);
  ASSERT_TRUE(runner->submit_wait(Lane::Operator, control::CreateOrg{"one"}, operator_actor()));
  store->set_disk_full(true);
  EXPECT_EQ(runner->submit_wait(Lane::Operator, control::CreateOrg{"two"}, operator_actor()).error().code,
            Code::Unavailable);
  EXPECT_TRUE(runner->read_only());
  runner->read([](const control::State& state, const scheduler::Scheduler&) { EXPECT_EQ(state.orgs.size(), 1u); });
  store->set_disk_full(false);
  for (int i = 0; i < 300 && runner->read_only(); ++i) std::this_thread::sleep_for(Millis(20));
  EXPECT_TRUE(runner->submit_wait(Lane::Operator, control::CreateOrg{"two"}, operator_actor()));
}

TEST(RunnerOnMemory, StoppingAnswersEverybody) {
  auto store = std::make_shared<store::MemoryStore>();
  std::atomic<int> answers{0};
  {
    auto runner = start(store);
    for (int i = 0; i < 2'000; ++i) {
      runner->submit(Lane::Tenant, control::CreateOrg{"org" + std::to_string(i)}, operator_actor(),
                     [&](Result<engine::Reply>) { ++answers; });
    }
  }
  EXPECT_EQ(answers.load(), 2'000);
}

TEST(JournalTools, VerifyShowExportBackupRestore) {
  SqliteDisk disk(true, "");
  TempDir elsewhere;
  auto opened = store::SqliteStore::open({disk.path(), "", true, 16});
  std::shared_ptr<store::SqliteStore> store(std::move(*opened));
  {
    auto runner = start(store, 20);
    for (int i = 0; i < 50; ++i)
      ASSERT_TRUE(runner->submit_wait(Lane::Operator, control::CreateOrg{"org" + std::to_string(i)}, operator_actor()));
  }
  const auto report = engine::verify(*store);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_GT(report->snapshot_seq, 0u);
  EXPECT_EQ(report->incarnation, 1u);
  std::vector<std::string> lines;
  ASSERT_TRUE(engine::show(*store, 3, 4, [&](const std::string& line) { lines.push_back(line); }));
  ASSERT_TRUE(engine::export_json(*store, 3, 3, [&](const std::string& line) { lines.push_back(line); }));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_NE(lines[0].find("[[\"org-1\",\"org0\""), std::string::npos) << lines[0];
  EXPECT_NE(lines[2].find("\"actor\":\"usr-9001\""), std::string::npos) << lines[2];
  const std::string backup = elsewhere.file("backup.db"), restored = elsewhere.file("restored.db");
  ASSERT_TRUE(store->backup(backup));
  ASSERT_TRUE(store::SqliteStore::restore(backup, restored));
  EXPECT_EQ(store::SqliteStore::restore(backup, restored).error().code, Code::AlreadyExists);
  auto copy = store::SqliteStore::open({restored, "", true, 16});
  const auto raised = engine::raise_incarnation(**copy, read_clocks(), "restored from a backup");
  ASSERT_TRUE(raised) << raised.error().message;
  EXPECT_EQ(*raised, 2u);
  EXPECT_EQ(engine::verify(**copy).value().entries, report->entries + 2);
}

// The child reports every acknowledged name on the pipe until it is killed.
[[noreturn]] void child_main(const std::string& path, int pipe, int round) {
  auto store = store::SqliteStore::open({path, "", true, 1024});
  if (!store) ::_exit(2);
  Runner::Options options;
  options.store = std::shared_ptr<journal::Store>(std::move(*store));
  options.snapshot_every = 100;
  options.archive_keep = 50;
  auto runner = Runner::start(options);
  if (!runner) ::_exit(3);
  for (int i = 0;; ++i) {
    const std::string name = "r" + std::to_string(round) + "n" + std::to_string(i);
    (*runner)->submit(Lane::Tenant, control::CreateOrg{name}, operator_actor(),
                      [pipe, name](Result<engine::Reply> reply) {
                        if (!reply) return;
                        const std::string line = name + "\n";
                        if (::write(pipe, line.data(), line.size()) < 0) ::_exit(4);
                      });
    if (i % 16 == 15) std::this_thread::sleep_for(Millis(1));
  }
}

TEST(KillNine, NothingAcknowledgedIsLost) {
  SqliteDisk disk(true, "");
  Rng rng(static_cast<std::uint64_t>(::getpid()));
  std::vector<std::string> acknowledged;
  for (int round = 0; round < 8; ++round) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::close(ends[0]);
      child_main(disk.path(), ends[1], round);
    }
    ::close(ends[1]);
    std::atomic<bool> busy{false};  // it has begun to acknowledge; on a loaded machine that takes a while
    std::thread killer([child, &busy, wait = rng.below(300)] {
      for (int i = 0; i < 3000 && !busy; ++i) std::this_thread::sleep_for(Millis(10));
      std::this_thread::sleep_for(Millis(wait));
      ::kill(child, SIGKILL);
    });
    std::string text;
    char buffer[4096];
    for (ssize_t got = ::read(ends[0], buffer, sizeof buffer); got > 0; got = ::read(ends[0], buffer, sizeof buffer)) {
      text.append(buffer, static_cast<std::size_t>(got));
      busy = busy || std::count(text.begin(), text.end(), '\n') >= 15;
    }
    ::close(ends[0]);
    killer.join();
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself with " << WEXITSTATUS(status);
    for (std::size_t at = 0, end = text.find('\n'); end != std::string::npos; at = end + 1, end = text.find('\n', at)) {
      acknowledged.push_back(text.substr(at, end - at));
    }
    auto store = disk.open();
    const auto base = engine::load_base(*store);
    ASSERT_TRUE(base) << base.error().message;
    for (const std::string& name : acknowledged)
      ASSERT_TRUE(base->state.org_by_name.contains(name)) << name << " was acknowledged, round " << round;
    const Status chain = journal::verify_chain(0, journal::genesis_hash(), read_everything(*store));
    ASSERT_TRUE(chain) << chain.error().message;
  }
  EXPECT_GT(acknowledged.size(), 100u);
}

}  // namespace
}  // namespace muster::contract
