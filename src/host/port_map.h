#pragma once
// How a home's router is asked to lead an outside UDP port to one of this machine: PCP (overlay/pcp.h), NAT-PMP
// (libnatpmp) and UPnP (libminiupnpc), one try each. Only the default gateway is asked. Calls wait, PCP and NAT-PMP for
// two seconds, UPnP for eight at most, or until `stop` becomes readable. UPnP means HTTP and XML of whoever answers, so
// that is done in a child process with little memory, which is killed when it takes too long. What a router says is
// checked for form here; whether its outside address is of use, the caller judges. Errors: NotFound, it does not speak
// the protocol; FailedPrecondition, it does and says no; Cancelled.
#include <cstdint>
#include <string>

#include "base/result.h"
#include "host/links.h"
#include "overlay/pcp.h"

namespace muster::host {

struct Router {
  std::uint32_t gateway = 0, source = 0;  // the default gateway; our address towards it
  bool operator==(const Router&) const = default;
};
// FailedPrecondition: there is none that could be asked, and why.
Result<Router> find_router(Links& links);

enum class MapBy : std::uint8_t { Pcp, NatPmp, Upnp };
const char* map_by_text(MapBy how);

struct Mapping {
  MapBy how = MapBy::Pcp;
  std::uint16_t inside = 0, port = 0;  // port: outside, at ip
  std::uint32_t ip = 0;
  std::uint32_t lifetime_s = 0;  // 0: until it is ended (some UPnP routers know nothing else)
  std::uint32_t epoch_s = 0;     // of the router's memory; not of UPnP
  std::string control, service;  // of UPnP: where it is asked again
  overlay::PcpNonce nonce{};     // of PCP
  bool operator==(const Mapping&) const = default;
};

inline constexpr std::uint32_t kMapLifetimeS = 3600;

// The wish is what we had, and else the same number outside. `now.how` says by what.
Result<Mapping> map_port(const Router& router, const Mapping& wish, int stop);
Status end_mapping(const Router& router, const Mapping& mapping, int stop);
// Does the router still know what it granted so many seconds ago? Nothing is granted anew. NotFound: it does not
// answer; false: it forgot.
Result<bool> still_mapped(const Router& router, Mapping& mapping, std::uint32_t passed_s, int stop);

// Of port_map_upnp.cpp.
Result<Mapping> map_by_upnp(const Router& router, const Mapping& wish, int stop);
Status end_by_upnp(const Router& router, const Mapping& mapping, int stop);
Result<bool> still_by_upnp(const Router& router, const Mapping& mapping, int stop);

enum class Waited : std::uint8_t { Readable, TimedOut, Stopped };
Waited wait_readable(int fd, int stop, Millis time);
std::string ip4_text(std::uint32_t ip);

}  // namespace muster::host
