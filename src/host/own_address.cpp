#include "host/own_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "host/unix_socket.h"

namespace muster::host {
namespace {

template <typename Address>
std::optional<Address> source_towards(Address to) {
  const int family = reinterpret_cast<const sockaddr&>(to).sa_family;
  const Fd fd(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  socklen_t size = sizeof to;
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&to), &size) != 0)
    return {};
  return to;
}

}  // namespace

std::optional<std::uint32_t> own_address(std::uint32_t towards) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(towards);
  to.sin_port = htons(9);
  const auto source = source_towards(to);
  return source ? std::optional(ntohl(source->sin_addr.s_addr)) : std::nullopt;
}

std::optional<Ip6> own_address6() {
  sockaddr_in6 to{};
  to.sin6_family = AF_INET6;
  std::memcpy(&to.sin6_addr, kFar6.data(), kFar6.size());
  to.sin6_port = htons(9);
  const auto source = source_towards(to);
  if (!source) return {};
  Ip6 out;
  std::memcpy(out.data(), &source->sin6_addr, out.size());
  return is_global(out) || is_unique_local(out) ? std::optional(out) : std::nullopt;
}

}  // namespace muster::host
