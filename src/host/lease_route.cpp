#include "host/lease_route.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>

#include "host/unix_socket.h"

namespace muster::host {
namespace {

Error failed(std::string_view what, int code) {
  return error(code == EPERM || code == EACCES ? Code::PermissionDenied : Code::Unavailable,
               fmt::format("cannot {}: {}", what, errno_text(code)));
}

// One rtnetlink request: header, body, attributes; EEXIST counts as done.
class Request {
 public:
  template <typename Body>
  Request(std::uint16_t type, const Body& body) {
    nlmsghdr header{};
    header.nlmsg_type = type;
    header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    std::memcpy(data_.data(), &header, sizeof header);
    std::memcpy(data_.data() + NLMSG_HDRLEN, &body, sizeof body);
    size_ = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof body);
  }
  void attribute(std::uint16_t type, const void* value, std::size_t bytes) {
    const rtattr head{static_cast<std::uint16_t>(RTA_LENGTH(bytes)), type};
    std::memcpy(data_.data() + size_, &head, sizeof head);
    std::memcpy(data_.data() + size_ + RTA_LENGTH(0), value, bytes);
    size_ += RTA_ALIGN(head.rta_len);
  }
  Status send(std::string_view what) {
    const auto length = static_cast<std::uint32_t>(size_);
    std::memcpy(data_.data(), &length, sizeof length);
    const Fd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    if (!fd || ::send(fd.get(), data_.data(), size_, 0) < 0) return failed(what, errno);
    std::array<std::uint8_t, 1024> answer{};
    const ssize_t n = ::recv(fd.get(), answer.data(), answer.size(), 0);
    nlmsghdr head{};
    nlmsgerr told{};
    if (n < static_cast<ssize_t>(NLMSG_LENGTH(sizeof told))) return failed(what, n < 0 ? errno : EPROTO);
    std::memcpy(&head, answer.data(), sizeof head);
    std::memcpy(&told, answer.data() + NLMSG_HDRLEN, sizeof told);
    if (head.nlmsg_type != NLMSG_ERROR || (told.error != 0 && told.error != -EEXIST))
      return failed(what, told.error == 0 ? EPROTO : -told.error);
    return {};
  }

 private:
  alignas(nlmsghdr) std::array<std::uint8_t, 512> data_{};
  std::size_t size_ = 0;
};

Status default_route(unsigned family, int lo, const void* source, std::size_t bytes) {
  rtmsg route{};
  route.rtm_family = static_cast<unsigned char>(family);
  route.rtm_table = RT_TABLE_MAIN;
  route.rtm_protocol = RTPROT_STATIC;
  route.rtm_scope = family == AF_INET ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
  route.rtm_type = RTN_UNICAST;
  Request request(RTM_NEWROUTE, route);
  request.attribute(RTA_OIF, &lo, sizeof lo);
  request.attribute(RTA_PREFSRC, source, bytes);
  return request.send("set the default route of a lease");
}

Status add_address6(int lo, const std::uint8_t* address) {
  ifaddrmsg body{};
  body.ifa_family = AF_INET6;
  body.ifa_prefixlen = 128;
  body.ifa_flags = IFA_F_NODAD;
  body.ifa_index = static_cast<std::uint32_t>(lo);
  Request request(RTM_NEWADDR, body);
  request.attribute(IFA_LOCAL, address, 16);
  request.attribute(IFA_ADDRESS, address, 16);
  return request.send("give a lease its IPv6 address");
}

// Containers without a network have IPv6 switched off; it stays so on the overlay's device. /proc/sys/net shows the
// namespace of the thread that opens it.
bool allow_ipv6() {
  const Fd fd(::open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", O_RDWR | O_CLOEXEC));
  char now = 0;
  if (!fd || ::read(fd.get(), &now, 1) != 1) return false;
  return now == '0' || ::pwrite(fd.get(), "0", 1, 0) == 1;
}

}  // namespace

Status within_namespace(const std::string& path, const std::function<Status()>& work) {
  std::optional<Status> out;
  std::thread([&] {
    if (!path.empty()) {
      const Fd ns(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
      if (!ns || ::setns(ns.get(), CLONE_NEWNET) != 0) {
        out.emplace(failed("enter the network namespace " + path, errno));
        return;
      }
    }
    out.emplace(work());
  }).join();
  return std::move(*out);
}

Result<bool> route_to_loopback(const WayOut& way) {
  const int lo = static_cast<int>(::if_nametoindex("lo"));
  if (lo == 0) return failed("find the loopback device of a lease", errno);
  const std::uint32_t source = htonl(way.address);
  TRY_VOID(default_route(AF_INET, lo, &source, sizeof source));
  const bool six = allow_ipv6() && add_address6(lo, way.address6).ok() &&
                   default_route(AF_INET6, lo, way.address6, sizeof way.address6).ok();
  return six;
}

}  // namespace muster::host
