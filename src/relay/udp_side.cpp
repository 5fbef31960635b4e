#include "relay/udp_side.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <boost/asio/ip/udp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstring>

#include "base/endian.h"
#include "base/log.h"
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
      : hub_(std::move(hub)), io_(io), timer_(io), cookies_(cookies), members_(members) {}

  // Another door of the same kind, before start(). It is not there after a fault.
  UdpError open(const udp::endpoint& at) {
    auto door = std::make_unique<Door>(io_);
    UdpError ec;
    door->socket.open(at.protocol(), ec);
    if (ec) return ec;
    door->six = at.address().is_v6();
    const int on = 1;
    const int fd = door->socket.native_handle();
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
    if (door->six) ::setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &probe6, sizeof probe6);
    door->socket.bind(at, ec);
    if (ec) return ec;
    door->sender.set_fd(fd);
    door->sender.set_fd6(fd);
    door->socket.non_blocking(true, ec);
    if (ec) return ec;
    door->number = static_cast<std::uint8_t>(doors_.size());
    doors_.push_back(std::move(door));
    return ec;
  }
  void shut_second() { doors_.resize(std::min<std::size_t>(doors_.size(), 1)); }  // before start()
  std::uint16_t port(std::size_t door) const {
    UdpError ec;
    return doors_[door]->socket.local_endpoint(ec).port();
  }
  std::vector<UdpLegs::Door> sockets() const {
    std::vector<UdpLegs::Door> out;
    for (const auto& door : doors_) out.push_back({door->socket.native_handle(), door->six});
    return out;
  }
  void start(bool sweeps) {
    asio::post(io_, [self = shared_from_this(), sweeps] {
      for (const auto& door : self->doors_) self->wait(*door);
      if (sweeps) self->sweep();
    });
  }
  void close() {
    asio::post(io_, [self = shared_from_this()] {
      UdpError ignored;
      for (const auto& door : self->doors_) door->socket.close(ignored);
      self->timer_.cancel();
    });
  }

 private:
  struct Door {
    explicit Door(Loops::Io& io) : socket(io) {}
    udp::socket socket;
    std::uint8_t number = 0;
    bool six = false;
    net::UdpSender sender;
    net::UdpReceiver received;
  };

  void sweep() {
    hub_->udp.sweep(read_clocks());
    timer_.expires_after(kSweepEvery);
    timer_.async_wait([self = shared_from_this()](UdpError ec) {
      if (!ec && self->doors_[0]->socket.is_open()) self->sweep();
    });
  }

  void wait(Door& door) {
    door.socket.async_wait(udp::socket::wait_read, [self = shared_from_this(), &door](UdpError ec) {
      if (ec || !door.socket.is_open()) return;
      for (int i = 0; i < kRounds && self->read(door); ++i) {
      }
      self->wait(door);
    });
  }

  bool read(Door& door) {  // true: there may be more
    const std::size_t came = door.received.receive(door.socket.native_handle());
    if (came == 0) return false;
    now_ = read_clocks().lease;
    door.received.each(endpoint_from, [&](const ov::Endpoint& from, ByteView datagram) { take(door, from, datagram); });
    for (const auto& each : doors_) each->sender.flush();
    return came == net::UdpReceiver::kBatch;
  }

  static void send(Door& door, const ov::Endpoint& to, ByteView datagram) {
    if (door.six) return door.sender.send6(mapped_address(to), to.port, datagram);
    door.sender.send(to.ip, to.port, datagram);
  }
  Door& door_of(std::uint8_t number) { return *doors_[std::min<std::size_t>(number, doors_.size() - 1)]; }

  void take(Door& door, const ov::Endpoint& from, ByteView datagram) {
    if (members_ && !datagram.empty() && datagram[0] == ov::kUdpRelayMagic) return member(door, from, datagram);
    // An answer is not much longer than its question, so nobody gains by asking in another's name.
    const auto asked = ov::read_stun_request(datagram);
    if (!asked || from.kind != ov::Endpoint::Kind::Udp) return;
    ++hub_->counts.mirrored;
    send(door, from, ov::stun_answer(*asked, from.ip, from.port));
  }

  void member(Door& door, const ov::Endpoint& from, ByteView datagram) {
    auto& counts = hub_->counts;
    using What = ov::UdpRelayLeg::Taken::What;
    const auto leg = ov::is_udp_relay(datagram) ? leg_of(ov::udp_relay_id(datagram)) : nullptr;
    if (!leg) return void(++counts.udp_refused);
    ov::UdpRelayLeg::Taken taken;
    {
      const std::lock_guard lock(leg->mutex);
      taken = leg->end.take(from, datagram, cookies_, now_, door.number);
    }
    if (taken.what == What::Refused) return void(++counts.udp_refused);
    if (taken.what == What::Throttled) return void(++counts.udp_throttled);
    if (taken.challenged) ++counts.udp_challenged;
    if (taken.moved) ++counts.udp_moved;
    if (taken.answer > 0) {
      std::array<std::uint8_t, ov::kUdpRelayDatagramMax> answer{};
      std::copy(taken.answer_head.begin(), taken.answer_head.end(), answer.begin());
      send(door, from, ByteView(answer).first(taken.answer));
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
      std::uint8_t door = 0;
      {
        const std::lock_guard lock(leg->mutex);
        at = leg->end.at(now_);
        door = leg->end.door();
        if (at) leg->end.seal(ov::UdpRelayKind::Data, ov::udp_relay_name(source.place.second), out_.data());
      }
      if (at) {
        std::copy(payload.begin(), payload.end(), out_.begin() + ov::kUdpRelayHeader);
        counts.udp_packets.fetch_add(1, std::memory_order_relaxed);
        count();
        return send(door_of(door), *at, ByteView(out_).first(ov::kUdpRelayHeader + payload.size()));
      }
    }
    if (const auto member = hub_->find_named(cluster, to)) {
      count();
      return member->deliver(source.place.second, payload);
    }
    ++counts.unknown_peer;
    std::optional<ov::Endpoint> at;
    std::uint8_t door = 0;
    {
      const std::lock_guard lock(source.mutex);
      if (now_ - source.told_gone < kGoneEvery) return;
      source.told_gone = now_;
      at = source.end.at(now_);
      door = source.end.door();
      if (at) source.end.seal(ov::UdpRelayKind::Gone, to, out_.data());
    }
    if (at) send(door_of(door), *at, ByteView(out_).first(ov::kUdpRelayHeader));
  }

  UdpLegs::LegPtr leg_of(std::uint32_t id) const { return hub_->udp.by_id(id); }

  const std::shared_ptr<Hub> hub_;
  Loops::Io& io_;
  asio::steady_timer timer_;
  const ov::UdpCookies cookies_;
  const bool members_;
  std::vector<std::unique_ptr<Door>> doors_;
  LeaseTime now_{};
  std::array<std::uint8_t, ov::kUdpRelayDatagramMax> out_{};
};

Result<std::unique_ptr<UdpSide>> UdpSide::open(Loops& loops, std::shared_ptr<Hub> hub, const UdpSideOptions& options) {
  std::unique_ptr<UdpSide> out(new UdpSide(std::move(hub)));
  const ov::UdpCookies cookies{ov::Secret32(crypto::random_key32())};
  for (std::size_t i = 0; i < loops.size(); ++i) {
    auto shard = std::make_shared<Shard>(loops.io(i), out->hub_, cookies, options.members);
    if (const UdpError failed = shard->open({options.address, options.port}))
      return error(Code::Unavailable, failed.message());
    out->shards_.push_back(std::move(shard));
  }
  out->open_second(options);
  if (options.members) out->hub_->udp.set_doors(out->shards_[0]->sockets(), out->second_port_);
  for (std::size_t i = 0; i < out->shards_.size(); ++i) out->shards_[i]->start(i == 0);
  return out;
}

// All goes on without it.
void UdpSide::open_second(const UdpSideOptions& options) {
  if (!options.second_port) return;
  std::uint16_t port = *options.second_port;
  for (const auto& shard : shards_) {
    if (const UdpError failed = shard->open({options.address, port})) {
      log_warn("relay", "UDP port {} is not to be had beside {} ({})", port, options.port, failed.message());
      for (const auto& each : shards_) each->shut_second();
      return;
    }
    port = shard->port(1);
  }
  second_port_ = port;
}

UdpSide::~UdpSide() {
  close();
}

void UdpSide::close() {
  hub_->udp.set_doors({}, 0);
  for (const auto& shard : shards_) shard->close();
}

}  // namespace muster::relay
