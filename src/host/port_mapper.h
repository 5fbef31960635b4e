#pragma once
// Keeps a UDP port of this machine reachable through its home's router while it is wanted: asks the default gateway by
// PCP, NAT-PMP or UPnP (port_map.h), renews at half of what was granted, notices a router that forgot, and ends the
// mapping when it is wanted no more. The router is believed only so far: an outside address that is not public is of no
// use, and said so. A thread of its own, which exists while a port is wanted; `tell` is called on it. One router, one
// port, one question at a time; what fails is tried again after a minute, then ever less often, and at once at another
// router. When this object ends the mapping stays for whoever comes after it with the same secret, until it runs out.
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "host/port_map.h"

namespace muster::host {

struct MapOptions {
  Millis look{20'000}, look_upnp{60'000}, again{60'000}, again_max{1'800'000};
  std::uint32_t lifetime_max_s = 24 * 3600;  // whatever a router grants is looked at again by then
  std::vector<MapBy> by = {MapBy::Pcp, MapBy::NatPmp, MapBy::Upnp};  // in that order
};
struct MapState {
  std::optional<Mapping> mapping;
  std::string detail;  // why not, for people; empty while there is a mapping
  bool operator==(const MapState&) const = default;
};

class PortMapper {
 public:
  using Tell = std::function<void(const MapState&)>;
  PortMapper(Bytes secret, Tell tell, MapOptions options = {});
  ~PortMapper();  // waits for a moment at most
  PortMapper(const PortMapper&) = delete;
  PortMapper& operator=(const PortMapper&) = delete;
  void want(std::uint16_t port);  // 0 = none; any thread, the same again is nothing new

 private:
  void run();
  Millis step(std::uint16_t port);
  void attempt(std::uint16_t port);
  void renew();
  void look();
  void drop();
  void took(Mapping mapping);
  void say(MapState state);
  overlay::PcpNonce nonce(std::uint16_t port) const;

  const Bytes secret_;
  const Tell tell_;
  const MapOptions options_;
  Fd stop_;  // readable when this ends
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint16_t wanted_ = 0;  // under mutex_
  bool ends_ = false;         // under mutex_
  std::thread thread_;
  // Of the thread.
  Links links_;
  std::optional<Router> router_;
  std::optional<Mapping> mapping_;
  std::optional<MapState> said_;
  LeaseTime next_try_, renew_at_, until_, looked_;
  Millis wait_{0};
  int misses_ = 0;
};

}  // namespace muster::host
