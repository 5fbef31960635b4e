#include "host/poller.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>

#include "base/check.h"

namespace muster::host {
namespace {

std::int64_t monotonic_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

std::uint32_t interest(bool read, bool write) {
  return (read ? static_cast<std::uint32_t>(EPOLLIN) : 0U) | (write ? static_cast<std::uint32_t>(EPOLLOUT) : 0U);
}

// The generation travels beside the descriptor, so an event of a closed and reused number is not taken for the new one.
std::uint64_t tag(int fd, std::uint64_t generation) {
  return (generation << 32) | static_cast<std::uint32_t>(fd);
}

}  // namespace

Poller::Poller() : epoll_(epoll_create1(EPOLL_CLOEXEC)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  MUSTER_CHECK(epoll_ >= 0 && wake_ >= 0);
  watch(wake_, true, false, [this](Ready) {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto n = ::read(wake_, &count, sizeof count);
  });
}

Poller::~Poller() {
  close(wake_);
  close(epoll_);
}

void Poller::watch(int fd, bool read, bool write, Callback callback) {
  const std::uint64_t generation = next_++ & 0xffffffffU;
  epoll_event event{};
  event.events = interest(read, write);
  event.data.u64 = tag(fd, generation);
  MUSTER_CHECK(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0);
  watches_[fd] = Watch{generation, std::move(callback)};
}

void Poller::rearm(int fd, bool read, bool write) {
  const auto it = watches_.find(fd);
  if (it == watches_.end()) return;
  epoll_event event{};
  event.events = interest(read, write);
  event.data.u64 = tag(fd, it->second.generation);
  epoll_ctl(epoll_, EPOLL_CTL_MOD, fd, &event);
}

void Poller::unwatch(int fd) {
  if (watches_.erase(fd) != 0) epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
}

std::uint64_t Poller::after(Millis delay, std::function<void()> f) {
  const std::uint64_t id = next_++;
  timers_[id] = Timer{monotonic_ms() + std::max<std::int64_t>(0, delay.count()), std::move(f)};
  return id;
}

void Poller::cancel(std::uint64_t timer) {
  timers_.erase(timer);
}

void Poller::post(std::function<void()> f) {
  {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(f));
  }
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto n = ::write(wake_, &one, sizeof one);
}

void Poller::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  post([] {});
}

int Poller::wait_ms() const {
  std::int64_t due = -1;
  for (const auto& [id, timer] : timers_) due = due < 0 ? timer.due_ms : std::min(due, timer.due_ms);
  if (due < 0) return -1;
  return static_cast<int>(std::clamp<std::int64_t>(due - monotonic_ms(), 0, 60'000));
}

void Poller::run_timers() {
  const std::int64_t now = monotonic_ms();
  std::vector<std::pair<std::int64_t, std::uint64_t>> due;
  for (const auto& [id, timer] : timers_) {
    if (timer.due_ms <= now) due.emplace_back(timer.due_ms, id);
  }
  std::sort(due.begin(), due.end());
  for (const auto& [when, id] : due) {
    const auto it = timers_.find(id);
    if (it == timers_.end()) continue;  // cancelled by an earlier one
    const auto f = std::move(it->second.f);
    timers_.erase(it);
    f();
  }
}

void Poller::run_posted() {
  std::vector<std::function<void()>> batch;
  {
    const std::lock_guard lock(mutex_);
    batch.swap(posted_);
  }
  for (auto& f : batch) f();
}

void Poller::run() {
  std::array<epoll_event, 64> events{};
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    const int n = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), wait_ms());
    for (int i = 0; i < n; ++i) {
      const auto& event = events[static_cast<std::size_t>(i)];
      const int fd = static_cast<int>(event.data.u64 & 0xffffffffU);
      const auto it = watches_.find(fd);
      if (it == watches_.end() || tag(fd, it->second.generation) != event.data.u64) continue;
      const auto callback = it->second.callback;  // a copy: the callback may unwatch itself
      callback(Ready{(event.events & EPOLLIN) != 0, (event.events & EPOLLOUT) != 0,
                     (event.events & (EPOLLHUP | EPOLLERR)) != 0});
    }
    run_posted();
    run_timers();
  }
}

}  // namespace muster::host
