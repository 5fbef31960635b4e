#pragma once
// Inside relay: connections on their way to the server. Given to the newest server that listens on the handoff socket,
// kept until it answers, given again to the next one when it dies before; held for a while when none is there. One
// strand.
#include <boost/asio/steady_timer.hpp>
#include <deque>

#include "net/handoff.h"
#include "relay/hub.h"
#include "relay/unix_door.h"

namespace muster::relay {

class HandoffQueue : public std::enable_shared_from_this<HandoffQueue> {
 public:
  HandoffQueue(boost::asio::io_context& io, std::shared_ptr<Hub> hub, std::size_t held_max, Millis hold_time);
  Status listen(const std::string& path);
  void offer(net::Fd connection);  // any thread
  void close();                    // any thread

 private:
  struct Held {
    net::Fd fd;
    net::Deadline until;
  };
  struct Link {
    explicit Link(boost::asio::posix::stream_descriptor s) : socket(std::move(s)) {}
    boost::asio::posix::stream_descriptor socket;
    std::deque<Held> unanswered;
  };
  using LinkPtr = std::shared_ptr<Link>;

  void came(const LinkPtr& link);
  void watch(const LinkPtr& link);
  void drop(const LinkPtr& link);
  void pump();
  void tick();

  UnixDoor<Link> door_;
  boost::asio::steady_timer timer_;
  const std::shared_ptr<Hub> hub_;
  const std::size_t held_max_;
  const Millis hold_time_;
  std::deque<Held> held_;
};

}  // namespace muster::relay
