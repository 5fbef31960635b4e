#pragma once
// Datagrams on their way out of netd's socket, gathered: those of one size to one place leave in one system call where
// the kernel cuts them (UDP_SEGMENT), others in one sendmmsg. What the kernel refuses to cut is sent one by one, and
// after a refusal that cannot pass the sender cuts nothing any more. A datagram that cannot leave is lost, as on any
// network. One thread; nothing is kept back after flush().
#include <netinet/in.h>

#include <array>
#include <cstdint>

#include "base/bytes.h"

namespace muster::host {

class UdpSender {
 public:
  explicit UdpSender(int fd = -1, bool cut_by_kernel = true);
  void set_fd(int fd) { fd_ = fd; }
  void send(std::uint32_t ip, std::uint16_t port, ByteView datagram);  // host order
  void flush();
  bool cut_by_kernel() const { return cut_; }

 private:
  static constexpr std::size_t kBytesMax = 65'000, kCountMax = 64;
  bool send_cut();
  void send_each();
  int fd_;
  bool cut_;
  sockaddr_in to_{};
  Bytes data_;
  std::size_t used_ = 0, count_ = 0, size_ = 0;  // `size_`: of each but the last
};

}  // namespace muster::host
