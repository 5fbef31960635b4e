#pragma once
// Datagrams from a socket, many in one system call: those of one size from one place may come joined by the kernel
// (UDP_GRO) and are cut again here. What does not fit is dropped, as on any network. 2 MiB of address space, of which
// only what is used costs memory. One thread.
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

#include "base/bytes.h"

namespace muster::net {

class UdpReceiver {
 public:
  static constexpr std::size_t kBatch = 32;  // messages of one call
  UdpReceiver();
  ~UdpReceiver();
  static void join_by_kernel(int fd);  // where the kernel cannot, they come one by one
  std::size_t receive(int fd);         // without waiting; messages that came, 0 also on a fault; kBatch: perhaps more
  // take(place, datagram) for each that came; `place` makes of the sender's address (IPv4 too: see its family) what
  // take wants, once for all that came joined. Valid until the next receive().
  template <class Place, class Take>
  void each(const Place& place, const Take& take) const {
    for (std::size_t i = 0; i < came_; ++i) {
      auto [joined, size] = message(i);
      if (joined.empty()) continue;
      const auto from = place(sender(i));
      for (; !joined.empty(); joined = joined.subspan(std::min(size, joined.size())))
        take(from, joined.first(std::min(size, joined.size())));
    }
  }

 private:
  struct Batch;
  struct Joined {
    ByteView bytes;
    std::size_t each = 1;
  };
  Joined message(std::size_t i) const;
  const sockaddr_in6& sender(std::size_t i) const;
  const std::unique_ptr<Batch> batch_;
  std::size_t came_ = 0;
};

}  // namespace muster::net
