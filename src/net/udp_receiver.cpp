#include "net/udp_receiver.h"

#include <netinet/udp.h>

#include <cstring>

namespace muster::net {

struct UdpReceiver::Batch {
  static constexpr std::size_t kSize = 65'536;
  std::array<std::array<std::uint8_t, kSize>, kBatch> data;
  std::array<sockaddr_in6, kBatch> from;
  struct alignas(cmsghdr) Control {
    std::array<char, CMSG_SPACE(sizeof(int))> bytes;
  };
  std::array<Control, kBatch> control;
  std::array<iovec, kBatch> parts;
  std::array<mmsghdr, kBatch> messages;
};

UdpReceiver::UdpReceiver() : batch_(std::make_unique_for_overwrite<Batch>()) {}
UdpReceiver::~UdpReceiver() = default;

void UdpReceiver::join_by_kernel(int fd) {
  const int on = 1;
  ::setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof on);
}

std::size_t UdpReceiver::receive(int fd) {
  Batch& b = *batch_;
  for (std::size_t i = 0; i < kBatch; ++i) {
    b.parts[i] = {b.data[i].data(), Batch::kSize};
    b.messages[i] = {};
    msghdr& message = b.messages[i].msg_hdr;
    message.msg_name = &b.from[i];
    message.msg_namelen = sizeof b.from[i];
    message.msg_iov = &b.parts[i];
    message.msg_iovlen = 1;
    message.msg_control = b.control[i].bytes.data();
    message.msg_controllen = b.control[i].bytes.size();
  }
  const int n = ::recvmmsg(fd, b.messages.data(), kBatch, MSG_DONTWAIT, nullptr);
  came_ = n > 0 ? static_cast<std::size_t>(n) : 0;
  return came_;
}

UdpReceiver::Joined UdpReceiver::message(std::size_t i) const {
  mmsghdr& came = batch_->messages[i];
  if ((came.msg_hdr.msg_flags & MSG_TRUNC) != 0) return {};
  const ByteView bytes = ByteView(batch_->data[i]).first(came.msg_len);
  for (cmsghdr* c = CMSG_FIRSTHDR(&came.msg_hdr); c != nullptr; c = CMSG_NXTHDR(&came.msg_hdr, c)) {
    int size = 0;
    if (c->cmsg_level != SOL_UDP || c->cmsg_type != UDP_GRO || c->cmsg_len < CMSG_LEN(sizeof size)) continue;
    std::memcpy(&size, CMSG_DATA(c), sizeof size);
    if (size > 0) return {bytes, static_cast<std::size_t>(size)};
  }
  return {bytes, std::max<std::size_t>(bytes.size(), 1)};
}

const sockaddr_in6& UdpReceiver::sender(std::size_t i) const {
  return batch_->from[i];
}

}  // namespace muster::net
