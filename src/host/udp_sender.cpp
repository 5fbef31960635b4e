#include "host/udp_sender.h"

#include <netinet/udp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "host/unix_socket.h"

namespace muster::host {

UdpSender::UdpSender(int fd, bool cut_by_kernel) : fd_(fd), cut_(cut_by_kernel) {}

void UdpSender::send(std::uint32_t ip, std::uint16_t port, ByteView datagram) {
  if (datagram.empty() || datagram.size() > kBytesMax) return;
  const bool same = count_ > 0 && to_.sin_addr.s_addr == htonl(ip) && to_.sin_port == htons(port);
  const bool fits = datagram.size() <= size_ && used_ + datagram.size() <= kBytesMax && count_ < kCountMax;
  const bool ended = used_ != count_ * size_;  // a shorter one is the last
  if (!same || !fits || ended) {
    flush();
    to_.sin_family = AF_INET;
    to_.sin_addr.s_addr = htonl(ip);
    to_.sin_port = htons(port);
    size_ = datagram.size();
  }
  if (data_.empty()) data_.resize(kBytesMax);
  std::memcpy(data_.data() + used_, datagram.data(), datagram.size());
  used_ += datagram.size();
  ++count_;
}

void UdpSender::flush() {
  if (count_ == 0) return;
  if (count_ == 1 || !cut_ || !send_cut()) send_each();
  used_ = count_ = 0;
}

bool UdpSender::send_cut() {
  iovec part{data_.data(), used_};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(std::uint16_t))> control{};
  msghdr message{};
  message.msg_name = &to_;
  message.msg_namelen = sizeof to_;
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
  if (::sendmsg(fd_, &message, MSG_DONTWAIT) >= 0) return true;
  if (errno == EIO || errno == EINVAL || errno == ENOPROTOOPT || errno == EOPNOTSUPP) {
    // EIO: a device that cannot sum what is cut. Each goes alone from now on.
    log_warn("netd", "the kernel cuts no datagrams here ({}); they are sent one by one", errno_text(errno));
    cut_ = false;
    return false;
  }
  return errno != EMSGSIZE;  // longer than this way allows: alone they may be fragmented
}

void UdpSender::send_each() {
  std::array<mmsghdr, kCountMax> messages{};
  std::array<iovec, kCountMax> parts{};
  for (std::size_t i = 0; i < count_; ++i) {
    parts[i] = {data_.data() + i * size_, std::min(size_, used_ - i * size_)};
    messages[i].msg_hdr.msg_name = &to_;
    messages[i].msg_hdr.msg_namelen = sizeof to_;
    messages[i].msg_hdr.msg_iov = &parts[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  std::size_t sent = 0;
  while (sent < count_) {
    const int n = ::sendmmsg(fd_, messages.data() + sent, static_cast<unsigned>(count_ - sent), MSG_DONTWAIT);
    // One that cannot leave is skipped: the protocol's business; an unreachable network shows as unanswered probes.
    if (n < 0 && (errno == EAGAIN || errno == ENOBUFS)) return;
    sent += n > 0 ? static_cast<std::size_t>(n) : 1;
  }
}

}  // namespace muster::host
