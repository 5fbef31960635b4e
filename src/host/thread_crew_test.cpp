#include "host/thread_crew.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <set>

namespace muster::host {
namespace {

struct Marks final : overlay::Crew::Job {
  std::vector<std::atomic<int>> times;
  std::atomic<int> sum{0};
  explicit Marks(std::size_t count) : times(count) {}
  void part(std::size_t number) noexcept override {
    ++times[number];
    sum += static_cast<int>(number);
  }
};

TEST(ThreadCrew, DoesEachPartOnceHoweverManyHelp) {
  for (const std::size_t helpers : {0U, 1U, 3U}) {
    ThreadCrew crew(helpers);
    EXPECT_EQ(crew.helps(), helpers > 0);
    for (std::size_t run = 0; run < 3'000; ++run) {
      const std::size_t count = run % 97;
      Marks marks(count);
      crew.run(count, marks);
      for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(marks.times[i], 1) << "part " << i << " of " << count;
    }
  }
}

TEST(ThreadCrew, HelpersHelpAlsoAfterTheyHaveSlept) {
  struct Who final : overlay::Crew::Job {
    std::mutex mutex;
    std::set<std::thread::id> threads;
    void part(std::size_t) noexcept override {
      {
        const std::scoped_lock lock(mutex);
        threads.insert(std::this_thread::get_id());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  ThreadCrew crew(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    Who who;
    crew.run(60, who);
    EXPECT_EQ(who.threads.size(), 3U);
  }
}

TEST(ThreadCrew, TheOwnersWordDecidesElseTheCores) {
  EXPECT_EQ(netd_helpers(nullptr, 2), 0U);
  EXPECT_EQ(netd_helpers(nullptr, 4), 1U);
  EXPECT_EQ(netd_helpers(nullptr, 64), 2U);
  EXPECT_EQ(netd_helpers("3", 2), 3U);
  EXPECT_EQ(netd_helpers("0", 64), 0U);
  for (const char* nonsense : {"", "9", "-1", "two", "1x"}) EXPECT_EQ(netd_helpers(nonsense, 4), 1U) << nonsense;
}

}  // namespace
}  // namespace muster::host
