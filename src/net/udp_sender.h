#pragma once
// Datagrams on their way out of a socket, gathered: those of one size to one place leave in one system call where
// the kernel cuts them (UDP_SEGMENT), others in one sendmmsg. What the kernel refuses to cut is sent one by one, and
// after a refusal that cannot pass the sender cuts nothing any more. A datagram that cannot leave is lost, as on any
// network. One thread; nothing is kept back after flush().
#include <netinet/in.h>

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "base/ipv6.h"

namespace muster::net {

class UdpSender {
 public:
  explicit UdpSender(int fd = -1, bool cut_by_kernel = true);
  void set_fd(int fd) { fd_ = fd; }
  void set_fd6(int fd) { fd6_ = fd; }                                  // without it IPv6 datagrams are lost
  void send(std::uint32_t ip, std::uint16_t port, ByteView datagram);  // host order
  void send6(const Ip6& ip, std::uint16_t port, ByteView datagram);
  void flush();
  bool cut_by_kernel() const { return cut_; }

 private:
  static constexpr std::size_t kBytesMax = 65'000, kCountMax = 64;
  union Place {
    sockaddr base;
    sockaddr_in four;
    sockaddr_in6 six;
  };
  void gather(const Place& to, std::size_t to_size, ByteView datagram);
  int fd() const { return to_.base.sa_family == AF_INET6 ? fd6_ : fd_; }
  bool send_cut();
  void send_each();
  int fd_, fd6_ = -1;
  bool cut_;
  Place to_{};
  std::size_t to_size_ = 0;
  Bytes data_;
  std::size_t used_ = 0, count_ = 0, size_ = 0;  // `size_`: of each but the last
};

}  // namespace muster::net
