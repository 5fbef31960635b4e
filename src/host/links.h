#pragma once
// The network interfaces of this machine and which way its packets take, as the kernel says over rtnetlink; of the
// network namespace of the thread that asked first. What matters of an interface is whether packets that leave by it
// are packed into others (a tunnel), or never leave the machine (a bridge to which only containers are plugged): no
// member is reached there. Nothing is sent on the network. One thread; a question waits 0.2 s at most.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "host/unix_socket.h"
#include "overlay/device.h"

namespace muster::host {

struct Link {
  enum class What : std::uint8_t { Plain, Tunnel, Containers };
  int index = 0, master = 0;  // master: the bridge it is plugged to; 0 = none
  std::uint16_t type = 0;     // ARPHRD_*
  std::string name, kind;     // kind: of its driver, "wireguard", "tun", "bridge", "veth"; empty: hardware, mostly
  What what = What::Plain;
  bool operator==(const Link&) const = default;
};
// Fills `what`. `outward`: the interface by which packets for the internet leave; 0 = none.
void judge_links(std::vector<Link>& links, int outward);

struct Route {
  int link = 0;
  std::uint32_t gateway = 0, source = 0;  // host order; 0 = none, or of IPv6
};

class Links {
 public:
  std::vector<Link> list();  // judged; empty: the kernel does not say
  std::optional<Route> route(const overlay::Endpoint& to);
  std::optional<Route> outward();  // towards the internet by IPv4

 private:
  bool open();
  bool ask(const void* message, std::size_t size, Bytes& answer);
  Fd fd_;
  std::uint32_t number_ = 0;
};

// Which direct ways there may be: none by a tunnel, or to this machine's own containers. Asked for each probe, so
// answers are kept for two seconds.
class WayGuard {
 public:
  bool may_reach(const overlay::Endpoint& to, LeaseTime now);
  bool outward_in_tunnel(LeaseTime now);  // of the way to the internet by IPv4

 private:
  bool leads_astray(const overlay::Endpoint& to, LeaseTime now);
  Links links_;
  std::map<int, Link::What> known_;
  LeaseTime known_until_{0};
  struct Said {
    bool tunnel = false;
    LeaseTime until;
  };
  std::map<overlay::Endpoint, Said, bool (*)(const overlay::Endpoint&, const overlay::Endpoint&)> said_{
      [](const overlay::Endpoint& a, const overlay::Endpoint& b) {
        return std::tie(a.kind, a.ip, a.six) < std::tie(b.kind, b.ip, b.six);
      }};
};

}  // namespace muster::host
