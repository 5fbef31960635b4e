#include "host/thread_crew.h"

#include <algorithm>
#include <charconv>
#include <cstring>

namespace muster::host {
namespace {

constexpr int kAwake = 400;  // looks before a helper sleeps, some 10 to 25 us
constexpr std::size_t kHelpersMax = 8;

void breathe() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

std::size_t parts_of(std::uint64_t state) {
  return state >> 16 & 0xffff;
}
std::size_t next_of(std::uint64_t state) {
  return state & 0xffff;
}

}  // namespace

std::size_t netd_helpers(const char* told, std::size_t cores) {
  std::size_t wanted = 0;
  if (told != nullptr && *told != 0) {
    const char* const end = told + std::strlen(told);
    const auto [stopped, fault] = std::from_chars(told, end, wanted);
    if (fault == std::errc() && stopped == end && wanted <= kHelpersMax) return wanted;
  }
  return cores >= 8 ? 2 : cores >= 4 ? 1 : 0;
}

ThreadCrew::ThreadCrew(std::size_t helpers) {
  for (std::size_t i = 0; i < helpers; ++i) threads_.emplace_back([this] { help(); });
}

ThreadCrew::~ThreadCrew() {
  ends_ = true;
  state_.fetch_add(std::uint64_t{1} << 32);
  state_.notify_all();
  for (auto& thread : threads_) thread.join();
}

// The job is read before the parts are taken: taking them fails when the run has ended meanwhile, and while it has not,
// its job stays.
bool ThreadCrew::take_some() {
  std::uint64_t state = state_.load(std::memory_order_acquire);
  for (;;) {
    const std::size_t first = next_of(state), parts = parts_of(state);
    if (first >= parts) return false;
    const std::size_t some = std::min(kGrain, parts - first);
    Job* const job = job_.load(std::memory_order_relaxed);
    if (!state_.compare_exchange_weak(state, state + some, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    for (std::size_t i = first; i < first + some; ++i) job->part(i);
    done_.fetch_add(some, std::memory_order_release);
    return true;
  }
}

void ThreadCrew::help() {
  int looked = 0;
  while (!ends_.load(std::memory_order_relaxed)) {
    const std::uint64_t state = state_.load(std::memory_order_acquire);
    if (take_some()) {
      looked = 0;
    } else if (++looked < kAwake) {
      breathe();
    } else {
      state_.wait(state, std::memory_order_acquire);
      looked = 0;
    }
  }
}

void ThreadCrew::run(std::size_t count, Job& job) {
  if (threads_.empty() || count < kWorthIt || count > kCountMax) {
    for (std::size_t i = 0; i < count; ++i) job.part(i);
    return;
  }
  const std::uint64_t number = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  job_.store(&job, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  state_.store(number << 32 | std::uint64_t{count} << 16, std::memory_order_release);
  state_.notify_all();
  while (take_some()) {
  }
  for (int i = 0; done_.load(std::memory_order_acquire) != count; ++i) {
    if (i < kAwake)
      breathe();
    else
      std::this_thread::yield();  // a helper was taken off its core in the middle
  }
}

}  // namespace muster::host
