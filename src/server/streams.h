#pragma once
// Exec and forward: a user's WebSocket joined to a stream of an agent's connection. Flow control both ways: bytes to
// the agent wait for its credit and pause the user's socket, credit goes back to the agent as the user's socket drains.
// Bounded streams per agent and in all; a stream ends with the link, the user's socket or the user's token.
// Thread-safe; never calls back into its owner while locked.
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "net/net.h"
#include "server/event_hub.h"
#include "session/frames.h"

namespace muster::server {

class Streams {
 public:
  struct Bounds {
    std::size_t per_node = 256, in_all = 10'000, pending_bytes = 4 << 20, user_buffer = 512 << 10;
  };
  using Send = std::function<bool(const session::ServerFrame&)>;  // to the agent; false: the link is gone
  explicit Streams(Bounds bounds) : bounds_(bounds) {}
  // open.stream is filled in here. link: the agent's connection that carries it; it ends with that one, whatever
  // connections the machine makes later.
  void open(NodeId node, std::uint64_t link, Send send, session::StreamOpen open, net::WebSocketPtr user,
            std::function<std::shared_ptr<void>(std::function<void()>)> guard);
  void from_agent(std::uint64_t link, const session::AgentFrame& frame);
  void link_lost(std::uint64_t link);
  void tick();  // gives credit back as users drain
  std::size_t size() const;
  static void refuse(const net::WebSocketPtr& user, const std::string& why);

 private:
  struct Stream {
    std::uint64_t id = 0, link = 0;
    NodeId node;
    Send send;
    net::WebSocketPtr user;
    std::uint64_t credit = session::kStreamWindowBytes, owed = 0;
    std::deque<Bytes> pending;
    std::size_t pending_bytes = 0;
    bool paused = false, eof = false, eof_sent = false;
    std::shared_ptr<void> guard;
  };
  using StreamPtr = std::shared_ptr<Stream>;
  void from_user(std::uint64_t id, Bytes message);
  void user_gone(std::uint64_t id);
  void push(Stream& stream);
  void end(std::uint64_t id, std::int32_t exit_code, const std::string& why, bool tell_agent);

  const Bounds bounds_;
  mutable std::mutex mutex_;
  std::map<std::uint64_t, StreamPtr> streams_;
  std::map<NodeId, std::size_t> per_node_;
  std::uint64_t next_ = 1;
};

}  // namespace muster::server
