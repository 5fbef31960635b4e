#include "host/port_map.h"

#include <fmt/format.h>
#include <natpmp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>

#include "base/ipv4.h"

namespace muster::host {
namespace {

constexpr std::array<Millis, 3> kPatience{Millis(250), Millis(500), Millis(1'000)};
constexpr Millis kNatPmpPatience{1'750};

Error silent() {
  return error(Code::NotFound, "no answer", "router.silent");
}
Error stopped() {
  return error(Code::Cancelled, "this program ends", "router.stop");
}
Error says_no(const std::string& why) {
  return error(Code::FailedPrecondition, why, "router.refuses");
}
LeaseTime lease_now() {
  return read_clocks().lease;
}

// ---- PCP
Result<Fd> towards(const Router& router) {
  Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(router.gateway);
  at.sin_port = htons(overlay::kPcpPort);
  // Connected: the kernel lets nothing in but from there.
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0)
    return error(Code::NotFound, "no way to the router: " + errno_text(errno), "router.silent");
  return fd;
}

template <typename Read>
Result<overlay::PcpAnswer> ask_pcp(const Router& router, const Bytes& request, int stop, Read read) {
  const Fd fd = TRY(towards(router));
  Bytes buffer(overlay::kPcpBytesMax + 1);
  for (const Millis patience : kPatience) {
    ::send(fd.get(), request.data(), request.size(), 0);
    const LeaseTime until = lease_now() + patience;
    for (Millis left = patience; left > Millis(0); left = until - lease_now()) {
      const Waited waited = wait_readable(fd.get(), stop, left);
      if (waited == Waited::Stopped) return stopped();
      if (waited == Waited::TimedOut) break;
      const ssize_t n = ::recv(fd.get(), buffer.data(), buffer.size(), 0);
      if (n < 0 && errno == ECONNREFUSED) return silent();  // nobody listens there
      if (n <= 0) continue;
      if (const auto answer = read(ByteView(buffer.data(), static_cast<std::size_t>(n)))) return *answer;
    }
  }
  return silent();
}

overlay::PcpMap pcp_map(const Router& router, const Mapping& wish, std::uint32_t lifetime_s) {
  return {router.source, wish.nonce, wish.inside, lifetime_s, wish.ip, wish.port == 0 ? wish.inside : wish.port};
}

Result<Mapping> map_by_pcp(const Router& router, const Mapping& wish, int stop) {
  const overlay::PcpMap asked = pcp_map(router, wish, kMapLifetimeS);
  const auto answer = TRY(ask_pcp(router, overlay::pcp_map_request(asked), stop,
                                  [&](ByteView d) { return overlay::read_pcp_map(d, asked); }));
  if (answer.code == overlay::PcpCode::UnsupportedVersion) return silent();
  if (answer.code != overlay::PcpCode::Success) return says_no(overlay::pcp_code_text(answer.code));
  Mapping out = wish;
  out.ip = answer.ip;
  out.port = answer.port;
  out.lifetime_s = answer.lifetime_s;
  out.epoch_s = answer.epoch_s;
  return out;
}

// ---- NAT-PMP
class NatPmp {
 public:
  explicit NatPmp(const Router& router) { open_ = initnatpmp(&state_, 1, htonl(router.gateway)) == 0; }
  ~NatPmp() {
    if (open_) closenatpmp(&state_);
  }
  NatPmp(const NatPmp&) = delete;
  NatPmp& operator=(const NatPmp&) = delete;

  Result<natpmpresp_t> address(int stop) {
    if (!open_ || sendpublicaddressrequest(&state_) < 0) return silent();
    return answer(NATPMP_RESPTYPE_PUBLICADDRESS, stop);
  }
  Result<natpmpresp_t> map(std::uint16_t inside, std::uint16_t outside, std::uint32_t lifetime_s, int stop) {
    if (!open_ || sendnewportmappingrequest(&state_, NATPMP_PROTOCOL_UDP, inside, outside, lifetime_s) < 0)
      return silent();
    const auto said = TRY(answer(NATPMP_RESPTYPE_UDPPORTMAPPING, stop));
    if (said.pnu.newportmapping.privateport != inside) return says_no("it answered another question");
    return said;
  }

 private:
  Result<natpmpresp_t> answer(std::uint16_t type, int stop) {
    const LeaseTime until = lease_now() + kNatPmpPatience;
    while (lease_now() < until) {
      timeval next{};
      getnatpmprequesttimeout(&state_, &next);
      const Millis wait(
          std::clamp<std::int64_t>(next.tv_sec * 1000 + next.tv_usec / 1000, 1, (until - lease_now()).count() + 1));
      if (wait_readable(state_.s, stop, wait) == Waited::Stopped) return stopped();
      natpmpresp_t said{};
      const int got = readnatpmpresponseorretry(&state_, &said);
      if (got == NATPMP_TRYAGAIN) continue;
      if (got == NATPMP_ERR_WRONGPACKETSOURCE) continue;
      if (got == 0 && said.type == type) return said;
      if (got == 0) continue;  // of an earlier question
      if (got == NATPMP_ERR_NOTAUTHORIZED) return says_no("it is not allowed; switch port mapping on in the router");
      if (got == NATPMP_ERR_NETWORKFAILURE) return says_no("it has no connection itself");
      if (got == NATPMP_ERR_OUTOFRESOURCES) return says_no("it has no room for more mappings");
      return silent();
    }
    return silent();
  }
  natpmp_t state_{};
  bool open_ = false;
};

Result<Mapping> map_by_natpmp(const Router& router, const Mapping& wish, int stop) {
  NatPmp natpmp(router);
  const auto address = TRY(natpmp.address(stop));
  const auto said = TRY(natpmp.map(wish.inside, wish.port == 0 ? wish.inside : wish.port, kMapLifetimeS, stop));
  const auto& granted = said.pnu.newportmapping;
  if (granted.mappedpublicport == 0 || granted.lifetime == 0) return says_no("it granted nothing");
  Mapping out = wish;
  out.ip = ntohl(address.pnu.publicaddress.addr.s_addr);
  out.port = granted.mappedpublicport;
  out.lifetime_s = granted.lifetime;
  out.epoch_s = said.epoch;
  return out;
}

}  // namespace

std::string ip4_text(std::uint32_t ip) {
  return fmt::format("{}.{}.{}.{}", ip >> 24, ip >> 16 & 255, ip >> 8 & 255, ip & 255);
}

const char* map_by_text(MapBy how) {
  return how == MapBy::Pcp ? "PCP" : how == MapBy::NatPmp ? "NAT-PMP" : "UPnP";
}

Waited wait_readable(int fd, int stop, Millis time) {
  std::array<pollfd, 2> fds{{{fd, POLLIN, 0}, {stop, POLLIN, 0}}};
  const int ready = ::poll(fds.data(), stop >= 0 ? 2 : 1, static_cast<int>(std::max<std::int64_t>(time.count(), 0)));
  if (ready > 0 && fds[1].revents != 0) return Waited::Stopped;
  return ready > 0 ? Waited::Readable : Waited::TimedOut;
}

Result<Router> find_router(Links& links) {
  const auto route = links.outward();
  if (!route) return says_no("no way leads to the internet by IPv4");
  for (const Link& link : links.list())
    if (link.index == route->link && link.what != Link::What::Plain)
      return says_no("the way to the internet leads through " + link.name + ", a tunnel: there is no router to ask");
  if (is_public(route->source)) return says_no("this machine has a public address, there is no NAT to get through");
  if (route->gateway == 0 || route->source == 0) return says_no("no gateway leads to the internet");
  return Router{route->gateway, route->source};
}

Result<Mapping> map_port(const Router& router, const Mapping& wish, int stop) {
  if (wish.how == MapBy::Pcp) return map_by_pcp(router, wish, stop);
  if (wish.how == MapBy::NatPmp) return map_by_natpmp(router, wish, stop);
  return map_by_upnp(router, wish, stop);
}

Status end_mapping(const Router& router, const Mapping& mapping, int stop) {
  if (mapping.how == MapBy::Pcp) {
    const overlay::PcpMap asked = pcp_map(router, mapping, 0);
    TRY(ask_pcp(router, overlay::pcp_map_request(asked), stop,
                [&](ByteView d) { return overlay::read_pcp_map(d, asked); }));
    return {};
  }
  if (mapping.how == MapBy::Upnp) return end_by_upnp(router, mapping, stop);
  NatPmp natpmp(router);
  TRY(natpmp.map(mapping.inside, 0, 0, stop));
  return {};
}

Result<bool> still_mapped(const Router& router, Mapping& mapping, std::uint32_t passed_s, int stop) {
  if (mapping.how == MapBy::Upnp) return still_by_upnp(router, mapping, stop);
  std::uint32_t epoch = 0;
  if (mapping.how == MapBy::Pcp) {
    const auto answer =
        TRY(ask_pcp(router, overlay::pcp_announce_request(router.source), stop, overlay::read_pcp_announce));
    if (answer.code != overlay::PcpCode::Success) return silent();
    epoch = answer.epoch_s;
  } else {
    NatPmp natpmp(router);
    const auto said = TRY(natpmp.address(stop));
    if (ntohl(said.pnu.publicaddress.addr.s_addr) != mapping.ip) return false;
    epoch = said.epoch;
  }
  const bool lost = overlay::pcp_lost_state(mapping.epoch_s, epoch, passed_s);
  mapping.epoch_s = epoch;
  return !lost;
}

}  // namespace muster::host
