#pragma once
// For tests: a plain WireGuard interface of our Device, with a TUN and a UDP socket, as foreign implementations talk to
// it.
#include <poll.h>
#include <sys/uio.h>

#include <atomic>
#include <mutex>

#include "host/netd_lab.h"
#include "host/tun.h"
#include "overlay/device.h"
#include "overlay/offload.h"

namespace muster::host::lab {

// A UDP socket inside the namespace; nothing where the port is taken.
inline Fd udp_at(const std::string& ns, std::uint16_t port) {
  Fd udp;
  inside(ns, [&] {
    Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof at) == 0) udp = std::move(fd);
  });
  return udp;
}

// A Device with its two descriptors, run by one thread.
class WireRunner : overlay::Sink, overlay::Coalescer::Sink {
 public:
  WireRunner(const crypto::X25519Pair& key, const overlay::PeerConfig& peer, Fd tun, Fd udp)
      : device_(key), tun_(std::move(tun)), udp_(std::move(udp)), thread_([this] { run(); }) {
    device_.set_peers({peer});
    ready_ = true;
  }
  ~WireRunner() override {
    stop_ = true;
    thread_.join();
  }
  overlay::PeerStats stats() {
    const std::lock_guard lock(mutex_);
    return device_.stats().at(0);
  }
  std::uint64_t lost() const { return lost_; }  // that the TUN did not take

 private:
  void send(const overlay::Endpoint& to, ByteView d) override {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(to.ip);
    at.sin_port = htons(to.port);
    ::sendto(udp_.get(), d.data(), d.size(), 0, reinterpret_cast<sockaddr*>(&at), sizeof at);
  }
  void deliver(ByteView p) override { arriving_.add(p, *this); }
  bool write(const overlay::OffloadHeader& header, ByteView p) override {
    auto before = overlay::store_offload(header);
    const iovec parts[] = {{before.data(), before.size()}, {const_cast<std::uint8_t*>(p.data()), p.size()}};
    if (::writev(tun_.get(), parts, 2) > 0) return true;
    ++lost_;
    return false;
  }
  void control(const crypto::Key32&, const overlay::Endpoint&, ByteView) override {}
  void run() {
    constexpr std::size_t kBefore = overlay::OffloadHeader::kBytes;
    Bytes buffer(65'536 + kBefore);
    while (!stop_) {
      pollfd fds[] = {{tun_.get(), POLLIN, 0}, {udp_.get(), POLLIN, 0}};
      ::poll(fds, 2, 50);
      if (!ready_) continue;
      const std::lock_guard lock(mutex_);
      const Now now = read_clocks();
      for (int i = 0; i < 64; ++i) {
        const ssize_t n = ::read(tun_.get(), buffer.data(), buffer.size());
        if (n <= static_cast<ssize_t>(kBefore)) break;
        const auto packet = std::span(buffer).first(static_cast<std::size_t>(n)).subspan(kBefore);
        overlay::Segments segments(overlay::load_offload(buffer.data()), packet);
        while (const auto each = segments.next()) device_.encapsulate(*each, now, *this);
      }
      for (int i = 0; i < 64; ++i) {
        sockaddr_in from{};
        socklen_t size = sizeof from;
        const ssize_t n = ::recvfrom(udp_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT,
                                     reinterpret_cast<sockaddr*>(&from), &size);
        if (n <= 0) break;
        device_.decapsulate(ByteView(buffer).first(static_cast<std::size_t>(n)),
                            overlay::Endpoint::udp(ntohl(from.sin_addr.s_addr), ntohs(from.sin_port)), now, *this);
      }
      arriving_.flush(*this);
      device_.tick(now, *this);
    }
  }
  overlay::Device device_;
  overlay::Coalescer arriving_{true};
  Fd tun_, udp_;
  std::mutex mutex_;  // of device_
  std::atomic<std::uint64_t> lost_{0};
  std::atomic<bool> stop_{false}, ready_{false};
  std::thread thread_;
};

}  // namespace muster::host::lab
