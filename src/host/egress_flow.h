#pragma once
// One TCP connection of a lease on its way out: a socket from the lease's namespace, a socket of the machine's, bytes
// carried between them under the owner's rate. Half-closes travel; a failure on either side resets both. Nothing is
// kept but what one side did not take yet (at most kPiece bytes a direction). Poller's thread only; the host outlives
// it and destroys it after closed().
#include <functional>
#include <string>

#include "egress/address.h"
#include "host/poller.h"
#include "host/unix_socket.h"

namespace muster::host {

class Flow;
enum class Way : std::uint8_t { Up = 0, Down = 1 };  // out of the lease, into it

class FlowHost {
 public:
  virtual ~FlowHost() = default;
  virtual std::size_t may_pass(Way way, std::size_t wanted) = 0;  // 0: wait, resume() comes
  virtual void passed(Flow& flow, Way way, std::size_t allowed, std::size_t bytes) = 0;
  virtual void wait_for_rate(Flow& flow, Way way) = 0;
  virtual void closed(Flow& flow, bool connected) = 0;  // may not destroy it before it returned to the poller
};

class Flow {
 public:
  static constexpr std::size_t kPiece = 64 << 10;

  Flow(Poller& poller, FlowHost& host, std::uint64_t id, Fd inside, const egress::Ip& ip, std::uint16_t port);
  ~Flow();
  // Starts the connection; an error says why it cannot be. closed() is not called then.
  Status connect(bool* own_address);
  void resume(Way way);
  void tick(std::int64_t now_ms);  // gives up on connections that are not answered
  void abort();                    // reset both sides, now

  std::uint64_t id() const { return id_; }
  const egress::Ip& ip() const { return ip_; }
  std::uint16_t port() const { return port_; }
  std::string to() const;
  bool connected() const { return connected_; }
  std::uint64_t bytes(Way way) const { return half_[static_cast<std::size_t>(way)].total; }
  std::int64_t since_ms = 0;
  void* owner = nullptr;  // the host's

 private:
  struct Side {
    Fd fd;
    bool watched = false, read = false, write = false;
  };
  struct Half {
    Bytes pending;  // what `to` did not take yet
    std::size_t at = 0;
    bool ended = false, closed = false, waiting = false;  // peer's end seen; passed on; for the rate
    std::uint64_t total = 0;
  };
  Side& from(Way way) { return sides_[static_cast<std::size_t>(way)]; }
  Side& to(Way way) { return sides_[1 - static_cast<std::size_t>(way)]; }
  Half& half(Way way) { return half_[static_cast<std::size_t>(way)]; }
  void ready(std::size_t side, Poller::Ready what);
  bool established();
  void pump(Way way);
  bool flush(Way way);
  void update();
  void watch(std::size_t side, bool read, bool write);
  void finish(bool reset);

  Poller& poller_;
  FlowHost& host_;
  std::uint64_t id_;
  egress::Ip ip_;
  std::uint16_t port_;
  Side sides_[2];  // inside, outside
  Half half_[2];   // up: from inside; down: from outside
  bool connected_ = false, done_ = false;
};

}  // namespace muster::host
