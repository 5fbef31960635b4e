#include "net/udp_sender.h"

#include <netinet/udp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"

namespace muster::net {
namespace {
constexpr std::size_t kCarriedEverywhere = 1'232;  // with headers 1,280 bytes
}

UdpSender::UdpSender(int fd, bool cut_by_kernel) : four_{fd, false}, cut_(cut_by_kernel) {}

void UdpSender::set_cut(bool by_kernel) {
  flush();
  cut_ = by_kernel;
}

void UdpSender::send(std::uint32_t ip, std::uint16_t port, ByteView datagram) {
  Place to{};
  to.four.sin_family = AF_INET;
  to.four.sin_addr.s_addr = htonl(ip);
  to.four.sin_port = htons(port);
  gather(to, sizeof to.four, datagram);
}

void UdpSender::send6(const Ip6& ip, std::uint16_t port, ByteView datagram) {
  if (six_.fd < 0) return;
  Place to{};
  to.six = {};
  to.six.sin6_family = AF_INET6;
  std::memcpy(&to.six.sin6_addr, ip.data(), ip.size());
  to.six.sin6_port = htons(port);
  gather(to, sizeof to.six, datagram);
}

void UdpSender::gather(const Place& to, std::size_t to_size, ByteView datagram) {
  if (datagram.empty() || datagram.size() > kBytesMax) return;
  const bool same = count_ > 0 && to_size == to_size_ && std::memcmp(&to, &to_, to_size) == 0;
  const bool fits = datagram.size() <= size_ && used_ + datagram.size() <= kBytesMax && count_ < kCountMax;
  const bool ended = used_ != count_ * size_;  // a shorter one is the last
  if (!same || !fits || ended) {
    flush();
    to_ = to;
    to_size_ = to_size;
    size_ = datagram.size();
  }
  if (data_.empty()) data_.resize(kBytesMax);
  std::memcpy(data_.data() + used_, datagram.data(), datagram.size());
  used_ += datagram.size();
  ++count_;
}

void UdpSender::flush() {
  if (count_ == 0) return;
  if (count_ == 1 || !cut_ || socket().refused || !send_cut()) send_each();
  used_ = count_ = 0;
}

bool UdpSender::send_cut() {
  iovec part{data_.data(), used_};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(std::uint16_t))> control{};
  msghdr message{};
  message.msg_name = &to_;
  message.msg_namelen = static_cast<socklen_t>(to_size_);
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* segment = CMSG_FIRSTHDR(&message);
  segment->cmsg_level = SOL_UDP;
  segment->cmsg_type = UDP_SEGMENT;
  segment->cmsg_len = CMSG_LEN(sizeof(std::uint16_t));
  const auto size = static_cast<std::uint16_t>(size_);
  std::memcpy(CMSG_DATA(segment), &size, sizeof size);
  if (::sendmsg(socket().fd, &message, MSG_DONTWAIT) >= 0) return true;
  // Of large ones EINVAL may also mean that the device carries less.
  const bool invalid = errno == EINVAL && size_ <= kCarriedEverywhere;
  if (errno == EIO || invalid || errno == ENOPROTOOPT || errno == EOPNOTSUPP) {
    // EIO: a device that cannot sum what is cut. Each goes alone from now on.
    log_warn("udp", "the kernel cuts no datagrams here ({}); they are sent one by one", std::strerror(errno));
    socket().refused = true;
    return false;
  }
  return errno != EMSGSIZE && errno != EINVAL;  // longer than this way allows: the short last one may pass alone
}

void UdpSender::send_each() {
  std::array<mmsghdr, kCountMax> messages{};
  std::array<iovec, kCountMax> parts{};
  for (std::size_t i = 0; i < count_; ++i) {
    parts[i] = {data_.data() + i * size_, std::min(size_, used_ - i * size_)};
    messages[i].msg_hdr.msg_name = &to_;
    messages[i].msg_hdr.msg_namelen = static_cast<socklen_t>(to_size_);
    messages[i].msg_hdr.msg_iov = &parts[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  std::size_t sent = 0;
  while (sent < count_) {
    const int n = ::sendmmsg(socket().fd, messages.data() + sent, static_cast<unsigned>(count_ - sent), MSG_DONTWAIT);
    // One that cannot leave is skipped: the protocol's business; an unreachable network shows as unanswered probes.
    if (n < 0 && (errno == EAGAIN || errno == ENOBUFS)) return;
    sent += n > 0 ? static_cast<std::size_t>(n) : 1;
  }
}

}  // namespace muster::net
