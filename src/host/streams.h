#pragma once
// Streams that people open into a lease's container: commands with or without a terminal, TCP connections, tar archives
// in and out. Bytes flow under credit both ways (session::kStreamWindowBytes at first), so a slow side stops the other
// one and nothing piles up here. The access check was the server's; the lease must run here. Poller's thread. At most
// kStreamsMax at once.
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "host/privd_client.h"
#include "session/frames.h"

namespace muster::host {

inline constexpr std::size_t kStreamsMax = 512;

class Streams {
 public:
  using Send = std::function<void(session::AgentFrame)>;
  // Address of the lease in its overlay, or nullopt when nothing may be opened into it now.
  using Find = std::function<std::optional<std::uint32_t>(LeaseId)>;
  Streams(Poller& poller, PrivdClient& privd, Send send, Find find);
  ~Streams();
  bool on_frame(const session::ServerFrame& frame);  // false: not a stream's
  void close_all();                                  // the link is gone

 private:
  struct Stream {
    session::StreamOpen open;
    Fd fd, outcome;
    std::string exec, demux, told;
    Bytes pending;  // from the peer, not yet written
    std::uint64_t credit = session::kStreamWindowBytes;
    bool peer_eof = false, local_eof = false, shut = false;
    bool held = false;  // the terminal has no size yet: `pending` waits
  };
  void open(const session::StreamOpen& request);
  void opened(std::uint64_t id, Result<PrivdReply> reply);
  void set_size(const Stream& stream, PrivdDone done);
  void release(std::uint64_t id);
  void on_ready(std::uint64_t id, Poller::Ready ready);
  void read_some(std::uint64_t id, Stream& stream);
  void write_some(std::uint64_t id, Stream& stream);
  void deliver(std::uint64_t id, Stream& stream, ByteView data);
  void on_outcome(std::uint64_t id);
  void ended(std::uint64_t id);
  void close(std::uint64_t id, int code, std::string error);
  void interest(Stream& stream);

  Poller& poller_;
  PrivdClient& privd_;
  Send send_;
  Find find_;
  std::map<std::uint64_t, Stream> streams_;
};

}  // namespace muster::host
