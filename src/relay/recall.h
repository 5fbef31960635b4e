#pragma once
// Inside relay: takes from musterd, over the unix socket beside the handoff socket, which overlay keys left their
// clusters and which keys sign tokens (net/recall_frame.h), and tells the hub. What was said stays when musterd dies;
// the next one says all again. One strand.
#include <memory>
#include <string>

#include "relay/hub.h"
#include "relay/unix_door.h"

namespace muster::relay {

class RecallDoor : public std::enable_shared_from_this<RecallDoor> {
 public:
  RecallDoor(boost::asio::io_context& io, std::shared_ptr<Hub> hub);
  Status listen(const std::string& path);
  void close();  // any thread

 private:
  struct Link {
    explicit Link(boost::asio::posix::stream_descriptor s) : socket(std::move(s)) {}
    boost::asio::posix::stream_descriptor socket;
    Bytes bytes;
  };
  using LinkPtr = std::shared_ptr<Link>;

  void watch(const LinkPtr& link);
  bool read(Link& link);  // false: it is over

  UnixDoor<Link> door_;
  const std::shared_ptr<Hub> hub_;
};

}  // namespace muster::relay
