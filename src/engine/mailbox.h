#pragma once
// A queue between two threads: put() from any thread, take_all() by its one reader, who may also wait until a time.
// Closing it wakes the reader; what is put afterwards is dropped. Bounded by its users (lanes, backpressure), not here.
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

namespace muster::engine {

template <typename T>
class Mailbox {
 public:
  bool put(T item) {
    {
      std::lock_guard lock(mutex_);
      if (closed_) return false;
      items_.push_back(std::move(item));
    }
    changed_.notify_one();
    return true;
  }
  // Empty only when the time passed or the box was closed.
  std::vector<T> take_all(std::chrono::milliseconds wait) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, wait, [&] { return closed_ || !items_.empty(); });
    return std::exchange(items_, {});
  }
  void close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
  }
  bool closed() const {
    std::lock_guard lock(mutex_);
    return closed_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<T> items_;
  bool closed_ = false;
};

}  // namespace muster::engine
