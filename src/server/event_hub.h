#pragma once
// GET /api/v1/events: one thread fans durable events out to Server-Sent Event streams, each only what its caller may
// see. A new stream first catches up from the journal in pages, then is live and told so (`event: live`); an id that is
// archived or from another history gets `event: reset`. Slow readers are dropped at a bound, heartbeats are comments, a
// revoked token closes its streams at once. Transient events (telemetry) have no id and are never replayed.
// Thread-safe; callbacks of the engine only enqueue.
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "access/access.h"
#include "engine/runner.h"
#include "net/net.h"

namespace muster::server {

struct Caller {
  access::Subject subject;
  TokenId token;
  WallTime expires;
  bool known = false;
  GrantId grant = {};  // by which alone this was opened
};

class EventHub {
 public:
  struct Options {
    std::size_t streams_max = 2000, buffered_max = 1 << 20, page = 256, transient_max = 4096, queue_max = 100'000;
    Millis heartbeat{15'000};
  };
  EventHub(const engine::Runner& runner, Options options);
  ~EventHub();
  void start(engine::Runner& runner);
  void stop();  // ends every stream; before the runner goes
  // from: the last seq that the reader has; nullopt = from now on.
  Status open(Caller caller, net::ResponderPtr responder, std::optional<std::uint64_t> from);
  void transient(access::Object object, std::string type, std::string json);
  // Anything else that must end with its token (exec, forward, followed logs). The returned handle unregisters.
  std::shared_ptr<void> guard(const Caller& caller, std::function<void()> close);
  // Told all durable events, in batches, on the hub's thread.
  void on_events(std::function<void(const std::vector<engine::DurableEvent>&)> listener);
  std::size_t streams() const;

 private:
  struct Stream {
    Caller caller;
    net::ResponderPtr responder;
    std::uint64_t next = 0;
    bool live = false;
    std::atomic<bool> gone = false;
  };
  struct Transient {
    access::Object object;
    std::string text;
  };
  struct Guarded {
    Caller caller;
    std::function<void()> close;
  };
  void run();
  void fan_out(const std::vector<engine::DurableEvent>& events);
  bool catch_up(Stream& stream);
  void go_live(Stream& stream);
  void revoke(const control::Event& event);
  void close_expired();
  void write(Stream& stream, const std::string& text);

  const engine::Runner& runner_;
  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<engine::DurableEvents> events_;
  std::size_t events_waiting_ = 0;
  std::deque<Transient> transients_;
  std::deque<std::shared_ptr<Stream>> opened_;
  std::map<std::uint64_t, Guarded> guarded_;
  std::uint64_t next_guard_ = 1, skipped_ = 0;
  std::size_t stream_count_ = 0;
  bool stopping_ = false;
  std::vector<std::function<void(const std::vector<engine::DurableEvent>&)>> listeners_;
  // Of the hub's thread only.
  std::vector<std::shared_ptr<Stream>> streams_;
  std::uint64_t fanned_ = 0;
  std::shared_ptr<void> subscription_;
  std::thread thread_;
};

}  // namespace muster::server
