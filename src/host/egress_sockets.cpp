#include "host/egress_sockets.h"

#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6/ip6_tables.h>

#include <cstring>

namespace muster::host {

SocketAddress socket_address(const egress::Ip& ip, std::uint16_t port) {
  SocketAddress out;
  if (ip.six) {
    sockaddr_in6 at{};
    at.sin6_family = AF_INET6;
    at.sin6_port = htons(port);
    std::memcpy(&at.sin6_addr, ip.bytes.data(), 16);
    std::memcpy(&out.storage, &at, sizeof at);
    out.size = sizeof at;
  } else {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    std::memcpy(&at.sin_addr, ip.bytes.data(), 4);
    std::memcpy(&out.storage, &at, sizeof at);
    out.size = sizeof at;
  }
  return out;
}

std::optional<IpPort> ip_port(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    sockaddr_in at{};
    std::memcpy(&at, &address, sizeof at);
    return IpPort{egress::Ip::four(ntohl(at.sin_addr.s_addr)), ntohs(at.sin_port)};
  }
  if (address.ss_family != AF_INET6) return {};
  sockaddr_in6 at{};
  std::memcpy(&at, &address, sizeof at);
  return IpPort{egress::Ip::from_bytes({at.sin6_addr.s6_addr, 16}), ntohs(at.sin6_port)};
}

std::optional<IpPort> original_destination(int fd) {
  sockaddr_storage local{}, original{};
  socklen_t size = sizeof local;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&local), &size) != 0) return {};
  const bool six = local.ss_family == AF_INET6;
  size = sizeof original;
  if (::getsockopt(fd, six ? SOL_IPV6 : SOL_IP, six ? IP6T_SO_ORIGINAL_DST : SO_ORIGINAL_DST, &original, &size) != 0)
    return {};
  return ip_port(original);
}

bool is_own_address(const egress::Ip& ip) {
  const Fd fd(::socket(ip.six ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const SocketAddress at = socket_address(ip, 9);
  if (!fd || ::connect(fd.get(), at.get(), at.size) != 0) return false;
  sockaddr_storage local{};
  socklen_t size = sizeof local;
  if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&local), &size) != 0) return true;
  const auto from = ip_port(local);
  return !from || from->ip == ip;
}

bool has_route(bool six) {
  const Fd fd(::socket(six ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto somewhere = egress::parse_ip(six ? "2620:fe::fe" : "9.9.9.9");
  const SocketAddress at = socket_address(*somewhere, 9);
  return fd && ::connect(fd.get(), at.get(), at.size) == 0;
}

void reset_on_close(int fd) {
  const linger now{1, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

}  // namespace muster::host
