#include "relay/udp_side.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <boost/asio/ip/udp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstring>

#include "base/endian.h"
#include "crypto/random.h"
#include "net/udp_receiver.h"
#include "net/udp_sender.h"
#include "overlay/stun.h"

namespace muster::relay {
namespace {

namespace asio = boost::asio;
namespace ov = overlay;
using asio::ip::udp;
using UdpError = boost::system::error_code;
constexpr int kRounds = 8;  // batches, then others get their turn
constexpr int kBuffer = 7 << 20;
constexpr Millis kSweepEvery{1'000}, kGoneEvery{100};
constexpr std::array<std::uint8_t, 12> kMapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

ov::Endpoint endpoint_from(const sockaddr_in6& at) {
  if (at.sin6_family == AF_INET) {
    sockaddr_in four{};
    std::memcpy(&four, &at, sizeof four);
    return ov::Endpoint::udp(ntohl(four.sin_addr.s_addr), ntohs(four.sin_port));
  }
  Ip6 six;
  std::memcpy(six.data(), &at.sin6_addr, six.size());
  if (std::equal(kMapped.begin(), kMapped.end(), six.begin()))
    return ov::Endpoint::udp(load_be32(six.data() + kMapped.size()), ntohs(at.sin6_port));
  return ov::Endpoint::udp6(six, ntohs(at.sin6_port));
}

}  // namespace

Ip6 mapped_address(const ov::Endpoint& at) {
  if (at.kind == ov::Endpoint::Kind::Udp6) return at.six;
  Ip6 out{};
  std::copy(kMapped.begin(), kMapped.end(), out.begin());
  store_be32(out.data() + kMapped.size(), at.ip);
  return out;
}

class UdpSide::Shard : public std::enable_shared_from_this<UdpSide::Shard> {
 public:
  Shard(Loops::Io& io, std::shared_ptr<Hub> hub, const ov::UdpCookies& cookies, bool members)
      : hub_(std::move(hub)), socket_(io), timer_(socket_.get_executor()), cookies_(cookies), members_(members) {}

  UdpError bind(const udp::endpoint& at) {
    UdpError ec;
    socket_.open(at.protocol(), ec);
    if (ec) return ec;
    six_ = at.address().is_v6();
    const int on = 1;
    const int fd = socket_.native_handle();
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    net::UdpReceiver::join_by_kernel(fd);
    for (const int option : {SO_RCVBUFFORCE, SO_SNDBUFFORCE, SO_RCVBUF, SO_SNDBUF}) {
      int now = 0;
      socklen_t size = sizeof now;
      const bool receive = option == SO_RCVBUF || option == SO_RCVBUFFORCE;
      ::getsockopt(fd, SOL_SOCKET, receive ? SO_RCVBUF : SO_SNDBUF, &now, &size);
      if (now < kBuffer) ::setsockopt(fd, SOL_SOCKET, option, &kBuffer, sizeof kBuffer);
    }
    // Nothing is cut on the way: what is too large for a way is lost, as probes must be.
    const int probe = IP_PMTUDISC_PROBE, probe6 = IPV6_PMTUDISC_PROBE;
    ::setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &probe, sizeof probe);
    if (six_) ::setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &probe6, sizeof probe6);
    socket_.bind(at, ec);
    if (ec) return ec;
    sender_.set_fd(fd);
    sender_.set_fd6(fd);
    socket_.non_blocking(true, ec);
    return ec;
  }
  int fd() { return socket_.native_handle(); }
  bool six() const { return six_; }
  void start(bool sweeps) {
    asio::post(socket_.get_executor(), [self = shared_from_this(), sweeps] {
      self->wait();
      if (sweeps) self->sweep();
    });
  }
  void close() {
    asio::post(socket_.get_executor(), [self = shared_from_this()] {
      UdpError ignored;
      self->socket_.close(ignored);
      self->timer_.cancel();
    });
  }

 private:
  void sweep() {
    hub_->udp.sweep(read_clocks());
    timer_.expires_after(kSweepEvery);
    timer_.async_wait([self = shared_from_this()](UdpError ec) {
      if (!ec && self->socket_.is_open()) self->sweep();
    });
  }

  void wait() {
    socket_.async_wait(udp::socket::wait_read, [self = shared_from_this()](UdpError ec) {
      if (ec || !self->socket_.is_open()) return;
      for (int i = 0; i < kRounds && self->read(); ++i) {
      }
      self->wait();
    });
  }

  bool read() {  // true: there may be more
    const std::size_t came = received_.receive(fd());
    if (came == 0) return false;
    now_ = read_clocks().lease;
    received_.each(endpoint_from, [this](const ov::Endpoint& from, ByteView datagram) { take(from, datagram); });
    sender_.flush();
    return came == net::UdpReceiver::kBatch;
  }

  void send(const ov::Endpoint& to, ByteView datagram) {
    if (six_) return sender_.send6(mapped_address(to), to.port, datagram);
    sender_.send(to.ip, to.port, datagram);
  }

  void take(const ov::Endpoint& from, ByteView datagram) {
    if (members_ && !datagram.empty() && datagram[0] == ov::kUdpRelayMagic) return member(from, datagram);
    // An answer is not much longer than its question, so nobody gains by asking in another's name.
    const auto asked = ov::read_stun_request(datagram);
    if (!asked || from.kind != ov::Endpoint::Kind::Udp) return;
    ++hub_->counts.mirrored;
    send(from, ov::stun_answer(*asked, from.ip, from.port));
  }

  void member(const ov::Endpoint& from, ByteView datagram) {
    auto& counts = hub_->counts;
    using What = ov::UdpRelayLeg::Taken::What;
    const auto leg = ov::is_udp_relay(datagram) ? leg_of(ov::udp_relay_id(datagram)) : nullptr;
    if (!leg) return void(++counts.udp_refused);
    ov::UdpRelayLeg::Taken taken;
    {
      const std::lock_guard lock(leg->mutex);
      taken = leg->end.take(from, datagram, cookies_, now_);
    }
    if (taken.what == What::Refused) return void(++counts.udp_refused);
    if (taken.what == What::Throttled) return void(++counts.udp_throttled);
    if (taken.challenged) ++counts.udp_challenged;
    if (taken.moved) ++counts.udp_moved;
    if (taken.answer > 0) {
      std::array<std::uint8_t, ov::kUdpRelayDatagramMax> answer{};
      std::copy(taken.answer_head.begin(), taken.answer_head.end(), answer.begin());
      send(from, ByteView(answer).first(taken.answer));
    }
    if (taken.what == What::Data) forward(*leg, taken.to, taken.payload);
  }

  void forward(UdpLegs::Leg& source, std::uint64_t to, ByteView payload) {
    Loops::carried();
    auto& counts = hub_->counts;
    const std::uint64_t cluster = source.place.first;
    const auto count = [&] {
      counts.packets.fetch_add(1, std::memory_order_relaxed);
      counts.bytes.fetch_add(payload.size(), std::memory_order_relaxed);
    };
    if (const auto leg = hub_->udp.by_name(cluster, to)) {
      std::optional<ov::Endpoint> at;
      {
        const std::lock_guard lock(leg->mutex);
        at = leg->end.at(now_);
        if (at) leg->end.seal(ov::UdpRelayKind::Data, ov::udp_relay_name(source.place.second), out_.data());
      }
      if (at) {
        std::copy(payload.begin(), payload.end(), out_.begin() + ov::kUdpRelayHeader);
        counts.udp_packets.fetch_add(1, std::memory_order_relaxed);
        count();
        return send(*at, ByteView(out_).first(ov::kUdpRelayHeader + payload.size()));
      }
    }
    if (const auto member = hub_->find_named(cluster, to)) {
      count();
      return member->deliver(source.place.second, payload);
    }
    ++counts.unknown_peer;
    std::optional<ov::Endpoint> at;
    {
      const std::lock_guard lock(source.mutex);
      if (now_ - source.told_gone < kGoneEvery) return;
      source.told_gone = now_;
      at = source.end.at(now_);
      if (at) source.end.seal(ov::UdpRelayKind::Gone, to, out_.data());
    }
    if (at) send(*at, ByteView(out_).first(ov::kUdpRelayHeader));
  }

  UdpLegs::LegPtr leg_of(std::uint32_t id) const { return hub_->udp.by_id(id); }

  const std::shared_ptr<Hub> hub_;
  udp::socket socket_;
  asio::steady_timer timer_;
  const ov::UdpCookies cookies_;
  const bool members_;
  bool six_ = false;
  LeaseTime now_{};
  net::UdpSender sender_;
  std::array<std::uint8_t, ov::kUdpRelayDatagramMax> out_{};
  net::UdpReceiver received_;
};

Result<std::unique_ptr<UdpSide>> UdpSide::open(Loops& loops, std::shared_ptr<Hub> hub, const UdpSideOptions& options) {
  std::unique_ptr<UdpSide> out(new UdpSide(std::move(hub)));
  const ov::UdpCookies cookies{ov::Secret32(crypto::random_key32())};
  for (std::size_t i = 0; i < loops.size(); ++i) {
    auto shard = std::make_shared<Shard>(loops.io(i), out->hub_, cookies, options.members);
    if (const UdpError failed = shard->bind({options.address, options.port}))
      return error(Code::Unavailable, failed.message());
    out->shards_.push_back(std::move(shard));
  }
  if (options.members) out->hub_->udp.set_socket(out->shards_[0]->fd(), out->shards_[0]->six());
  for (std::size_t i = 0; i < out->shards_.size(); ++i) out->shards_[i]->start(i == 0);
  return out;
}

UdpSide::~UdpSide() {
  close();
}

void UdpSide::close() {
  hub_->udp.set_socket(-1, false);
  for (const auto& shard : shards_) shard->close();
}

}  // namespace muster::relay
