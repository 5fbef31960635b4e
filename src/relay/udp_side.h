#pragma once
// Inside relay: its UDP ports, a socket of each for each of its threads (SO_REUSEPORT: a member's datagrams stay on
// one). Answers how one is seen (overlay/stun.h) to anybody, and takes datagrams of members (overlay/udp_relay.h): what
// is for a member of the same cluster goes on over UDP where that one wants it so, else over its TLS connection.
// Whoever is not known hears nothing. close() from any thread.
#include <boost/asio/ip/address.hpp>
#include <memory>
#include <optional>
#include <vector>

#include "relay/hub.h"
#include "relay/loops.h"

namespace muster::relay {

struct UdpSideOptions {
  boost::asio::ip::address address;
  std::uint16_t port = 0;
  std::optional<std::uint16_t> second_port;  // for the same, where networks block the first; 0: any
  bool members = true;                       // else only the mirror
};

class UdpSide {
 public:
  static Result<std::unique_ptr<UdpSide>> open(Loops& loops, std::shared_ptr<Hub> hub, const UdpSideOptions& options);
  ~UdpSide();
  std::uint16_t second_port() const { return second_port_; }  // 0: none, or not to be had
  void close();

 private:
  class Shard;
  explicit UdpSide(std::shared_ptr<Hub> hub) : hub_(std::move(hub)) {}
  void open_second(const UdpSideOptions& options);
  const std::shared_ptr<Hub> hub_;
  std::uint16_t second_port_ = 0;
  std::vector<std::shared_ptr<Shard>> shards_;
};

Ip6 mapped_address(const overlay::Endpoint& at);  // of either family, for a socket of IPv6

}  // namespace muster::relay
