#include "host/tun.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_tun.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <string_view>
#include <thread>
#include <tuple>

namespace muster::host {
namespace {

Error failed(const std::string& what) {
  const int code = errno;
  const bool denied = code == EPERM || code == EACCES;
  return error(code == EBUSY ? Code::FailedPrecondition
               : denied      ? Code::PermissionDenied
                             : Code::Unavailable,
               fmt::format("cannot {}: {}{}", what, errno_text(code),
                           denied          ? "; privd must run as root"
                           : code == EBUSY ? "; another process still holds the device"
                                           : ""));
}

// A thread can enter a namespace alone; its end undoes it.
Result<Fd> inside(const std::string& namespace_path, const std::function<Result<Fd>()>& work) {
  std::optional<Result<Fd>> out;
  std::thread([&] {
    if (!namespace_path.empty()) {
      const Fd ns(open(namespace_path.c_str(), O_RDONLY | O_CLOEXEC));
      if (!ns || setns(ns.get(), CLONE_NEWNET) != 0) {
        out.emplace(failed("enter the network namespace " + namespace_path));
        return;
      }
    }
    out.emplace(work());
  }).join();
  return std::move(*out);
}

Result<ifreq> request_for(const std::string& name) {
  if (name.empty() || name.size() >= IFNAMSIZ) {
    return error(Code::InvalidArgument, "a TUN name has 1 to 15 characters");
  }
  ifreq request{};
  std::memcpy(request.ifr_name, name.data(), name.size());
  return request;
}

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20  // Linux 6.2
#define TUN_F_USO6 0x40
#endif

// With large packets where the kernel has them: TCP, and UDP from Linux 6.2 on, unless the owner says otherwise
// (host/large.h). A device that an older version left without gets them too.
Result<Fd> attach(const std::string& name) {
  ifreq request = TRY(request_for(name));
  Fd fd(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return failed("open /dev/net/tun (is the kernel module tun there?)");
  request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
  if (ioctl(fd.get(), TUNSETIFF, &request) != 0) {
    if (errno != EINVAL) return failed("attach to the TUN device " + name);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    if (ioctl(fd.get(), TUNSETIFF, &request) != 0) return failed("attach to the TUN device " + name);
    return fd;
  }
  const char* large = std::getenv("MUSTER_TUN_LARGE");
  if (large != nullptr && std::string_view(large) == "off") {
    std::ignore = ioctl(fd.get(), TUNSETOFFLOAD, 0);
    return fd;
  }
  constexpr unsigned kTcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
  if (ioctl(fd.get(), TUNSETOFFLOAD, kTcp | TUN_F_USO4 | TUN_F_USO6) != 0 && ioctl(fd.get(), TUNSETOFFLOAD, kTcp) != 0)
    std::ignore = ioctl(fd.get(), TUNSETOFFLOAD, 0);
  return fd;
}

Status set_address(int socket_fd, const std::string& name, unsigned long what, std::uint32_t address) {
  ifreq request = TRY(request_for(name));
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = htonl(address);
  std::memcpy(&request.ifr_addr, &in, sizeof in);
  if (ioctl(socket_fd, what, &request) != 0) return failed("set the address of " + name);
  return {};
}

// Containers without a network have IPv6 switched off. Where the machine has none, programs inside use IPv4.
void set_address6(const std::string& name, const Ip6& address, std::uint32_t prefix_bits) {
  const Fd off(open(("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6").c_str(), O_WRONLY | O_CLOEXEC));
  const Fd control(socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!off || !control || write(off.get(), "0", 1) != 1) return;
  in6_ifreq request{};
  std::memcpy(&request.ifr6_addr, address.data(), address.size());
  request.ifr6_prefixlen = prefix_bits;
  request.ifr6_ifindex = static_cast<int>(if_nametoindex(name.c_str()));
  std::ignore = ioctl(control.get(), SIOCSIFADDR, &request);  // EEXIST: an earlier life gave it
}

Status set_up(int socket_fd, const std::string& name) {
  ifreq request = TRY(request_for(name));
  if (ioctl(socket_fd, SIOCGIFFLAGS, &request) != 0) return failed("look at the device " + name);
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP | IFF_RUNNING);
  if (ioctl(socket_fd, SIOCSIFFLAGS, &request) != 0) return failed("set the device " + name + " up");
  return {};
}

Status configure(const TunSpec& spec) {
  const Fd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!control) return failed("open a socket");
  TRY_VOID(set_address(control.get(), spec.name, SIOCSIFADDR, spec.address));
  const std::uint32_t mask = spec.prefix_bits == 0 ? 0 : ~std::uint32_t{0} << (32 - spec.prefix_bits);
  TRY_VOID(set_address(control.get(), spec.name, SIOCSIFNETMASK, mask));
  ifreq request = TRY(request_for(spec.name));
  request.ifr_mtu = static_cast<int>(spec.mtu);
  if (ioctl(control.get(), SIOCSIFMTU, &request) != 0) return failed("set the MTU of " + spec.name);
  request.ifr_qlen = 500;
  if (ioctl(control.get(), SIOCSIFTXQLEN, &request) != 0) return failed("set the queue of " + spec.name);
  TRY_VOID(set_up(control.get(), spec.name));
  if (spec.address6) set_address6(spec.name, *spec.address6, spec.prefix6_bits);
  return set_up(control.get(), "lo");
}

}  // namespace

Result<Fd> create_tun(const std::string& namespace_path, const TunSpec& spec) {
  if (spec.prefix_bits > 32 || spec.mtu < 576 || spec.mtu > 65'000) {
    return error(Code::InvalidArgument, "a TUN device needs a prefix of 0 to 32 bits and an MTU of 576 to 65000");
  }
  return inside(namespace_path, [&]() -> Result<Fd> {
    Fd fd = TRY(attach(spec.name));
    if (ioctl(fd.get(), TUNSETPERSIST, 1) != 0) return failed("keep the TUN device " + spec.name);
    if (spec.owner != static_cast<uid_t>(-1) &&
        ioctl(fd.get(), TUNSETOWNER, static_cast<unsigned long>(spec.owner)) != 0) {
      return failed("give the TUN device " + spec.name + " to its owner");
    }
    TRY_VOID(configure(spec));
    return fd;
  });
}

Result<Fd> open_tun(const std::string& namespace_path, const std::string& name) {
  return inside(namespace_path, [&]() -> Result<Fd> {
    // TUNSETIFF would make a missing device; a caller who wants the old one must hear that it is gone.
    if (if_nametoindex(name.c_str()) == 0)
      return error(Code::NotFound, "there is no TUN device " + name + "; create it again");
    return attach(name);
  });
}

Status remove_tun(const std::string& namespace_path, const std::string& name) {
  const auto done = inside(namespace_path, [&]() -> Result<Fd> {
    if (if_nametoindex(name.c_str()) == 0) return Fd();
    Fd fd = TRY(attach(name));
    if (ioctl(fd.get(), TUNSETPERSIST, 0) != 0) return failed("remove the TUN device " + name);
    return Fd();
  });
  if (!done.ok()) return done.error();
  return {};
}

}  // namespace muster::host
