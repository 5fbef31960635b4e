#pragma once
// The agent's event loop: file descriptors, timers and posted functions on one thread (epoll, eventfd,
// CLOCK_MONOTONIC). Everything registered runs on the thread inside run(); only post() and stop() may be called from
// other threads. A watch ends with unwatch(); closing a descriptor without unwatching it first is a programmer error.
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "base/time.h"

namespace muster::host {

class Poller {
 public:
  Poller();
  ~Poller();
  Poller(const Poller&) = delete;
  Poller& operator=(const Poller&) = delete;

  struct Ready {
    bool readable = false, writable = false, hung_up = false;
  };
  using Callback = std::function<void(Ready)>;
  void watch(int fd, bool read, bool write, Callback callback);
  void rearm(int fd, bool read, bool write);  // change what is waited for
  void unwatch(int fd);

  std::uint64_t after(Millis delay, std::function<void()> f);  // id for cancel()
  void cancel(std::uint64_t timer);
  void post(std::function<void()> f);
  void run();
  void stop();

 private:
  int wait_ms() const;
  void run_timers();
  void run_posted();

  struct Watch {
    std::uint64_t generation = 0;
    Callback callback;
  };
  struct Timer {
    std::int64_t due_ms = 0;
    std::function<void()> f;
  };
  int epoll_ = -1, wake_ = -1;
  bool stopping_ = false;  // under mutex_
  std::uint64_t next_ = 1;
  std::map<int, Watch> watches_;
  std::map<std::uint64_t, Timer> timers_;
  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;  // under mutex_
};

}  // namespace muster::host
