#pragma once
// Small things about internet sockets that the egress process and its helpers share. Any thread.
#include <netinet/in.h>
#include <sys/socket.h>

#include <optional>

#include "egress/address.h"
#include "host/unix_socket.h"

namespace muster::host {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
SocketAddress socket_address(const egress::Ip& ip, std::uint16_t port);
struct IpPort {
  egress::Ip ip;
  std::uint16_t port = 0;
};
std::optional<IpPort> ip_port(const sockaddr_storage& address);

// Where a connection that a nat rule turned to us was going (SO_ORIGINAL_DST).
std::optional<IpPort> original_destination(int fd);
// Asked of the kernel's routing, without sending anything.
bool is_own_address(const egress::Ip& ip);
bool has_route(bool six);  // to the public internet of that family
void reset_on_close(int fd);

}  // namespace muster::host
