#include "host/egress_flow.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "host/egress_sockets.h"

namespace muster::host {
namespace {

constexpr std::int64_t kConnectMs = 20'000;
constexpr int kPiecesPerTurn = 4;

void tune(int fd) {
  const int one = 1, idle = 60, every = 20, count = 6;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

std::array<std::uint8_t, Flow::kPiece>& scratch() {
  static std::array<std::uint8_t, Flow::kPiece> buffer;  // one thread
  return buffer;
}

}  // namespace

Flow::Flow(Poller& poller, FlowHost& host, std::uint64_t id, Fd inside, const egress::Ip& ip, std::uint16_t port)
    : poller_(poller), host_(host), id_(id), ip_(ip), port_(port) {
  sides_[0].fd = std::move(inside);
}

Flow::~Flow() {
  for (std::size_t i = 0; i < 2; ++i) {
    if (sides_[i].watched) poller_.unwatch(sides_[i].fd.get());
  }
}

std::string Flow::to() const {
  return ip_.six ? "[" + egress::to_text(ip_) + "]:" + std::to_string(port_)
                 : egress::to_text(ip_) + ":" + std::to_string(port_);
}

Status Flow::connect(bool* own_address) {
  reset_on_close(sides_[0].fd.get());  // until there is a connection behind it
  *own_address = is_own_address(ip_);
  if (*own_address) return error(Code::PermissionDenied, "an address of this machine");
  Fd out(::socket(ip_.six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!out) return error(Code::ResourceExhausted, "no socket: " + errno_text(errno));
  tune(out.get());
  tune(sides_[0].fd.get());
  const SocketAddress at = socket_address(ip_, port_);
  if (::connect(out.get(), at.get(), at.size) != 0 && errno != EINPROGRESS)
    return error(Code::Unavailable, errno_text(errno));
  sides_[1].fd = std::move(out);
  watch(1, false, true);
  return {};
}

void Flow::ready(std::size_t side, Poller::Ready what) {
  if (done_) return;
  if (!connected_) {
    if (side == 1 && !established()) return;
    if (!connected_) return;
  }
  const Way reading = side == 0 ? Way::Up : Way::Down, writing = side == 0 ? Way::Down : Way::Up;
  if (what.writable || what.hung_up) {
    if (!flush(writing)) return;
    if (half(writing).pending.empty()) pump(writing);
  }
  if (!done_ && (what.readable || what.hung_up)) pump(reading);
  if (!done_) update();
}

bool Flow::established() {
  int failure = 0;
  socklen_t size = sizeof failure;
  if (::getsockopt(sides_[1].fd.get(), SOL_SOCKET, SO_ERROR, &failure, &size) != 0) failure = errno;
  sockaddr_storage peer{};
  size = sizeof peer;
  if (failure == 0 && ::getpeername(sides_[1].fd.get(), reinterpret_cast<sockaddr*>(&peer), &size) != 0) return false;
  if (failure != 0) {
    finish(true);
    return false;
  }
  const linger polite{0, 0};
  ::setsockopt(sides_[0].fd.get(), SOL_SOCKET, SO_LINGER, &polite, sizeof polite);
  connected_ = true;
  return true;
}

// Writes what is kept; false when the flow ended over it.
bool Flow::flush(Way way) {
  Half& h = half(way);
  while (!h.pending.empty()) {
    const ssize_t n = ::send(to(way).fd.get(), h.pending.data() + h.at, h.pending.size() - h.at, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) {
      finish(true);
      return false;
    }
    h.at += static_cast<std::size_t>(n);
    if (h.at == h.pending.size()) Bytes().swap(h.pending), h.at = 0;
  }
  return true;
}

void Flow::pump(Way way) {
  Half& h = half(way);
  auto& buffer = scratch();
  for (int i = 0; i < kPiecesPerTurn && !done_ && h.pending.empty() && !h.ended; ++i) {
    const std::size_t allowed = host_.may_pass(way, buffer.size());
    if (allowed == 0) {
      if (!h.waiting) host_.wait_for_rate(*this, way);
      h.waiting = true;
      return;
    }
    const ssize_t n = ::recv(from(way).fd.get(), buffer.data(), allowed, 0);
    const bool again = n < 0 && (errno == EAGAIN || errno == EINTR);
    host_.passed(*this, way, allowed, n > 0 ? static_cast<std::size_t>(n) : 0);
    if (done_) return;  // the volume is used up
    if (again) return;
    if (n < 0) return finish(true);
    if (n == 0) {
      h.ended = true;
      break;
    }
    h.total += static_cast<std::uint64_t>(n);
    const ssize_t sent = ::send(to(way).fd.get(), buffer.data(), static_cast<std::size_t>(n), MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return finish(true);
    const auto taken = static_cast<std::ptrdiff_t>(std::max<ssize_t>(sent, 0));
    if (taken < n) h.pending.assign(buffer.begin() + taken, buffer.begin() + n), h.at = 0;
  }
  if (h.ended && h.pending.empty() && !h.closed && !done_) {
    h.closed = true;
    ::shutdown(to(way).fd.get(), SHUT_WR);
  }
  if (half_[0].closed && half_[1].closed) finish(false);
}

void Flow::resume(Way way) {
  if (done_) return;
  half(way).waiting = false;
  pump(way);
  if (!done_) update();
}

void Flow::update() {
  for (const Way way : {Way::Up, Way::Down}) {
    const auto side = static_cast<std::size_t>(way);
    const Half &reading = half_[side], &writing = half_[1 - side];
    watch(side, !reading.ended && !reading.waiting && reading.pending.empty(), !writing.pending.empty());
  }
}

// A side that waits for nothing is not watched at all: the kernel would report its hang-up for ever.
void Flow::watch(std::size_t index, bool read, bool write) {
  Side& side = sides_[index];
  if (side.watched && side.read == read && side.write == write) return;
  side.read = read;
  side.write = write;
  if (!read && !write) {
    if (side.watched) poller_.unwatch(side.fd.get());
    side.watched = false;
  } else if (side.watched) {
    poller_.rearm(side.fd.get(), read, write);
  } else {
    side.watched = true;
    poller_.watch(side.fd.get(), read, write, [this, index](Poller::Ready what) { ready(index, what); });
  }
}

void Flow::tick(std::int64_t now_ms) {
  if (!done_ && !connected_ && now_ms - since_ms > kConnectMs) finish(true);
}

void Flow::abort() {
  if (!done_) finish(true);
}

void Flow::finish(bool reset) {
  done_ = true;
  for (Side& side : sides_) {
    if (side.watched) poller_.unwatch(side.fd.get());
    side.watched = false;
    if (reset && side.fd) reset_on_close(side.fd.get());
    side.fd.reset();
  }
  for (Half& h : half_) Bytes().swap(h.pending);
  host_.closed(*this, connected_);
}

}  // namespace muster::host
