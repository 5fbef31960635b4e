#pragma once
// Datagrams on their way out of a socket, gathered: those of one size to one place leave in one system call where
// the kernel cuts them (UDP_SEGMENT), others in one sendmmsg. What the kernel refuses to cut is sent one by one, and
// after a refusal that cannot pass all that goes by this socket is, until forgive(). A datagram that cannot leave is
// lost, as on any network. One thread; nothing is kept back after flush().
#include <netinet/in.h>

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "base/ipv6.h"

namespace muster::net {

class UdpSender {
 public:
  explicit UdpSender(int fd = -1, bool cut_by_kernel = true);
  void set_fd(int fd) { four_ = {fd, false}; }
  void set_fd6(int fd) { six_ = {fd, false}; }                         // without it IPv6 datagrams are lost
  void send(std::uint32_t ip, std::uint16_t port, ByteView datagram);  // host order
  void send6(const Ip6& ip, std::uint16_t port, ByteView datagram);
  void flush();
  void set_cut(bool by_kernel);  // the owner's word, or what experience says
  // May anything be cut; has the kernel said that it cannot; whatever it said is asked anew.
  bool cut_by_kernel() const { return cut_; }
  bool refused() const { return four_.refused || six_.refused; }
  void forgive() { four_.refused = six_.refused = false; }

 private:
  static constexpr std::size_t kBytesMax = 65'000, kCountMax = 64;
  union Place {
    sockaddr base;
    sockaddr_in four;
    sockaddr_in6 six;
  };
  struct Socket {
    int fd = -1;
    bool refused = false;
  };
  void gather(const Place& to, std::size_t to_size, ByteView datagram);
  Socket& socket() { return to_.base.sa_family == AF_INET6 ? six_ : four_; }
  bool send_cut();
  void send_each();
  Socket four_, six_;
  bool cut_;
  Place to_{};
  std::size_t to_size_ = 0;
  Bytes data_;
  std::size_t used_ = 0, count_ = 0, size_ = 0;  // `size_`: of each but the last
};

}  // namespace muster::net
