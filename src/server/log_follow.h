#pragma once
// Answers GET /jobs/{id}/logs: streams stored bytes from an offset, and when followed, what is appended until the
// attempt ended and all its bytes are out (attempt 0 goes on with the next attempt of a retried job). One thread serves
// all readers and stops feeding those that do not read. Streams end with the caller's token. Thread-safe.
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "server/context.h"
#include "server/event_hub.h"
#include "server/log_store.h"

namespace muster::server {

class LogFollow {
 public:
  struct Wanted {
    JobId job;
    std::uint32_t attempt = 0;
    std::uint64_t offset = 0;
    bool follow = false;
    Caller caller;
  };
  explicit LogFollow(Context& context, std::size_t readers_max = 4096);
  ~LogFollow();
  Status open(Wanted wanted, net::ResponderPtr responder);
  void poke();  // bytes were appended

 private:
  struct Reader {
    Wanted wanted;
    std::uint32_t attempt = 0;
    bool any = false;
    net::ResponderPtr responder;
    std::shared_ptr<std::atomic<bool>> gone;
    std::shared_ptr<void> guard;
    LeaseTime ended{0};
  };
  void run();
  bool step(Reader& reader);  // false: done with it
  Context& context_;
  const std::size_t readers_max_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Reader> added_;
  std::size_t count_ = 0;
  bool poked_ = false, stopping_ = false;
  std::vector<Reader> readers_;  // of the thread only
  std::thread thread_;
};

}  // namespace muster::server
