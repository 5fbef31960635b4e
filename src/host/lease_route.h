#pragma once
// Work inside another network namespace, on a thread of its own that ends afterwards: the caller never leaves its own.
// Sockets and child processes made by the work belong to the namespace. Needs root. Any thread.
#include <functional>
#include <string>

#include "base/result.h"

namespace muster::host {

// path: "/proc/PID/ns/net" or "/run/netns/NAME"; empty: the caller's own.
Status within_namespace(const std::string& path, const std::function<Status()>& work);

// In the namespace where it is called: the default routes over `lo` that let programs start a connection to anywhere
// (it is turned to a listener before it leaves), sent from `address`; for IPv6, which may be missing, from an address
// that it adds to `lo`. Says whether IPv6 is there. Idempotent.
struct WayOut {
  std::uint32_t address = 0;  // IPv4, host order
  std::uint8_t address6[16] = {};
};
Result<bool> route_to_loopback(const WayOut& way);

}  // namespace muster::host
