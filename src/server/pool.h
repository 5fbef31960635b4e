#pragma once
// Threads for work that may block: password hashing, files, waiting for a seq. The queue is bounded; a full one
// refuses, so that a flood becomes 429 instead of memory. Thread-safe; the destructor runs what is queued no more and
// joins.
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace muster::server {

class Pool {
 public:
  Pool(int threads, std::size_t queue_max);
  ~Pool();
  bool post(std::function<void()> job);  // false: full or stopping
  void stop();

 private:
  void run();
  const std::size_t queue_max_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace muster::server
