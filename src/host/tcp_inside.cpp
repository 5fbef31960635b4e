#include "host/tcp_inside.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#include <cerrno>
#include <future>

namespace muster::host {
namespace {

Result<Fd> dial(std::uint32_t address, std::uint16_t port) {
  Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return error(Code::Unavailable, "cannot make a socket: " + errno_text(errno), "tcp");
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(address);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) {
    if (errno != EINPROGRESS)
      return error(Code::Unavailable, fmt::format("port {}: {}", port, errno_text(errno)), "tcp.refused");
    pollfd wait{fd.get(), POLLOUT, 0};
    if (poll(&wait, 1, 5000) <= 0)
      return error(Code::DeadlineExceeded, fmt::format("port {} did not answer within 5 s", port), "tcp.timeout");
    int failure = 0;
    socklen_t size = sizeof failure;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &failure, &size);
    if (failure != 0)
      return error(Code::Unavailable, fmt::format("port {}: {}", port, errno_text(failure)), "tcp.refused");
  }
  const int one = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

}  // namespace

Result<Fd> tcp_inside(const std::string& namespace_path, std::uint32_t address, std::uint16_t port) {
  const Fd ns(open(namespace_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!ns) return error(Code::Unavailable, "cannot open the lease's network: " + errno_text(errno), "tcp");
  auto dialled = std::async(std::launch::async, [&]() -> Result<Fd> {
    if (setns(ns.get(), CLONE_NEWNET) != 0)
      return error(Code::Unavailable, "cannot enter the lease's network: " + errno_text(errno), "tcp");
    return dial(address, port);
  });
  return dialled.get();
}

}  // namespace muster::host
