#include "host/links.h"

#include <linux/if_arp.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <tuple>

#include "base/endian.h"

namespace muster::host {
namespace {

constexpr std::size_t kLinksMax = 4096, kAnswerMax = 4 << 20, kSaidMax = 4096;
constexpr Millis kSaidFor{2'000};
// Of a root server, which is not asked: any address of the internet shows the way there.
constexpr std::uint32_t kFar = 0xc6290004;

// What packs packets into others. Not here: ppp, by which many homes reach the internet in the first place.
constexpr std::array<std::string_view, 20> kTunnels = {
    "wireguard", "tun",       "ovpn", "ipip", "ip6tnl", "sit",   "gre",    "gretap",  "ip6gre", "ip6gretap",
    "erspan",    "ip6erspan", "vti",  "vti6", "xfrm",   "vxlan", "geneve", "bareudp", "gtp",    "amt"};

template <typename T>
void put(Bytes& out, const T& value) {
  const auto* raw = reinterpret_cast<const std::uint8_t*>(&value);
  out.insert(out.end(), raw, raw + sizeof value);
  out.resize(NLMSG_ALIGN(out.size()));
}
template <typename Body>
Bytes question(std::uint16_t type, std::uint16_t flags, std::uint32_t number, const Body& body) {
  Bytes out;
  nlmsghdr head{};
  head.nlmsg_type = type;
  head.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
  head.nlmsg_seq = number;
  put(out, head);
  put(out, body);
  return out;
}
void close_question(Bytes& message) {
  const auto size = static_cast<std::uint32_t>(message.size());
  std::memcpy(message.data(), &size, sizeof size);  // nlmsg_len comes first
}

// Each attribute of a row: its number and what it holds.
template <typename Each>
void attributes(ByteView row, Each each) {
  while (row.size() >= sizeof(rtattr)) {
    rtattr head{};
    std::memcpy(&head, row.data(), sizeof head);
    if (head.rta_len < sizeof head || head.rta_len > row.size()) return;
    each(head.rta_type & NLA_TYPE_MASK, row.subspan(sizeof head, head.rta_len - sizeof head));
    row = row.subspan(std::min<std::size_t>(RTA_ALIGN(head.rta_len), row.size()));
  }
}
std::string text_in(ByteView value) {
  const auto end = std::find(value.begin(), value.end(), 0);
  return {value.begin(), end};
}
int number_in(ByteView value) {
  std::int32_t out = 0;
  if (value.size() >= sizeof out) std::memcpy(&out, value.data(), sizeof out);
  return out;
}
std::uint32_t address_in(ByteView value) {
  return value.size() == 4 ? load_be32(value.data()) : 0;
}

// Each message of an answer, without its head.
template <typename Body, typename Each>
void messages(ByteView answer, std::uint16_t type, Each each) {
  while (answer.size() >= sizeof(nlmsghdr)) {
    nlmsghdr head{};
    std::memcpy(&head, answer.data(), sizeof head);
    if (head.nlmsg_len < sizeof head || head.nlmsg_len > answer.size()) return;
    const ByteView row = answer.subspan(sizeof head, head.nlmsg_len - sizeof head);
    if (head.nlmsg_type == type && row.size() >= sizeof(Body)) {
      Body body{};
      std::memcpy(&body, row.data(), sizeof body);
      each(body, row.subspan(std::min<std::size_t>(NLMSG_ALIGN(sizeof body), row.size())));
    }
    answer = answer.subspan(std::min<std::size_t>(NLMSG_ALIGN(head.nlmsg_len), answer.size()));
  }
}

// Whether the last message is in it, or one that says no.
bool whole(ByteView answer, bool dump) {
  bool ended = false;
  while (answer.size() >= sizeof(nlmsghdr)) {
    nlmsghdr head{};
    std::memcpy(&head, answer.data(), sizeof head);
    if (head.nlmsg_len < sizeof head || head.nlmsg_len > answer.size()) return true;
    ended = ended || !dump || head.nlmsg_type == NLMSG_DONE || head.nlmsg_type == NLMSG_ERROR;
    answer = answer.subspan(std::min<std::size_t>(NLMSG_ALIGN(head.nlmsg_len), answer.size()));
  }
  return ended;
}

}  // namespace

void judge_links(std::vector<Link>& links, int outward) {
  for (Link& link : links) {
    const bool by_kind = std::find(kTunnels.begin(), kTunnels.end(), link.kind) != kTunnels.end();
    const bool by_type = link.type == ARPHRD_TUNNEL || link.type == ARPHRD_TUNNEL6 || link.type == ARPHRD_SIT ||
                         link.type == ARPHRD_IPGRE || link.type == ARPHRD_IP6GRE;
    if (by_kind || by_type) link.what = Link::What::Tunnel;
    if (link.kind != "bridge" || link.index == outward) continue;
    // Where hardware is plugged to it, a network is behind it.
    const bool wired = std::any_of(links.begin(), links.end(), [&](const Link& port) {
      return port.master == link.index && port.kind != "veth" && port.kind != "tun";
    });
    if (!wired) link.what = Link::What::Containers;
  }
}

bool Links::open() {
  if (fd_) return true;
  fd_ = Fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  const timeval patience{0, 200'000};
  if (fd_) ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  return static_cast<bool>(fd_);
}

// The kernel's whole answer. After a fault the socket is made anew, so that no late answer is taken for the next.
bool Links::ask(const void* message, std::size_t size, Bytes& answer) {
  if (!open()) return false;
  nlmsghdr asked{};
  std::memcpy(&asked, message, sizeof asked);
  const bool dump = (asked.nlmsg_flags & NLM_F_DUMP) == NLM_F_DUMP;
  bool good = ::send(fd_.get(), message, size, 0) == static_cast<ssize_t>(size);
  answer.clear();
  Bytes part(32 << 10);
  while (good) {
    sockaddr_nl from{};
    socklen_t from_size = sizeof from;
    const ssize_t n =
        ::recvfrom(fd_.get(), part.data(), part.size(), 0, reinterpret_cast<sockaddr*>(&from), &from_size);
    if (n < 0 && errno == EINTR) continue;
    if (n > 0 && from.nl_pid != 0) continue;  // not the kernel
    good = n > 0 && answer.size() + static_cast<std::size_t>(n) <= kAnswerMax;
    if (!good) break;
    const ByteView came(part.data(), static_cast<std::size_t>(n));
    answer.insert(answer.end(), came.begin(), came.end());
    answer.resize(NLMSG_ALIGN(answer.size()));
    if (whole(came, dump)) return true;
  }
  fd_.reset();
  return false;
}

std::vector<Link> Links::list() {
  std::vector<Link> out;
  Bytes message = question(RTM_GETLINK, NLM_F_DUMP, ++number_, ifinfomsg{}), answer;
  close_question(message);
  if (!ask(message.data(), message.size(), answer)) return out;
  messages<ifinfomsg>(answer, RTM_NEWLINK, [&](const ifinfomsg& info, ByteView rest) {
    if (out.size() >= kLinksMax) return;
    Link& link = out.emplace_back();
    link.index = info.ifi_index;
    link.type = info.ifi_type;
    attributes(rest, [&](int type, ByteView value) {
      if (type == IFLA_IFNAME) link.name = text_in(value);
      if (type == IFLA_MASTER) link.master = number_in(value);
      if (type == IFLA_LINKINFO)
        attributes(value, [&](int of, ByteView kind) {
          if (of == IFLA_INFO_KIND) link.kind = text_in(kind);
        });
    });
  });
  const auto away = outward();
  judge_links(out, away ? away->link : 0);
  return out;
}

std::optional<Route> Links::route(const overlay::Endpoint& to) {
  const bool six = to.kind == overlay::Endpoint::Kind::Udp6;
  rtmsg body{};
  body.rtm_family = six ? AF_INET6 : AF_INET;
  body.rtm_dst_len = six ? 128 : 32;
  Bytes message = question(RTM_GETROUTE, 0, ++number_, body), address, answer;
  if (six)
    address.assign(to.six.begin(), to.six.end());
  else
    append_be(address, to.ip);
  rtattr head{};
  head.rta_type = RTA_DST;
  head.rta_len = static_cast<std::uint16_t>(sizeof head + address.size());
  put(message, head);
  message.insert(message.end(), address.begin(), address.end());
  close_question(message);
  if (!ask(message.data(), message.size(), answer)) return {};
  std::optional<Route> out;
  messages<rtmsg>(answer, RTM_NEWROUTE, [&](const rtmsg&, ByteView rest) {
    Route& route = out.emplace();
    attributes(rest, [&](int type, ByteView value) {
      if (type == RTA_OIF) route.link = number_in(value);
      if (type == RTA_GATEWAY) route.gateway = address_in(value);
      if (type == RTA_PREFSRC) route.source = address_in(value);
    });
  });
  return out;
}

std::optional<Route> Links::outward() {
  return route(overlay::Endpoint::udp(kFar, 9));
}

bool WayGuard::leads_astray(const overlay::Endpoint& to, LeaseTime now) {
  if (const auto said = said_.find(to); said != said_.end() && now < said->second.until) return said->second.tunnel;
  if (now >= known_until_) {
    known_.clear();
    for (const Link& link : links_.list()) known_[link.index] = link.what;
    known_until_ = now + kSaidFor;
  }
  const auto route = links_.route(to);
  const auto by = route ? known_.find(route->link) : known_.end();
  const bool tunnel = by != known_.end() && by->second != Link::What::Plain;
  if (said_.size() >= kSaidMax) said_.clear();
  said_[to] = {tunnel, now + kSaidFor};
  return tunnel;
}

bool WayGuard::may_reach(const overlay::Endpoint& to, LeaseTime now) {
  return !to.direct() || !leads_astray(to, now);
}

bool WayGuard::outward_in_tunnel(LeaseTime now) {
  return leads_astray(overlay::Endpoint::udp(kFar, 9), now);
}

}  // namespace muster::host
