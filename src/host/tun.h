#pragma once
// Persistent TUN devices inside another network namespace: made and configured by privd (root), read and written by
// netd, which only ever gets the descriptor. The device, its address and its routes outlive every process; who opens it
// again by name gets the same device (FailedPrecondition while another descriptor holds it). A namespace is entered by
// a thread of its own that ends afterwards, so the caller never leaves its own.
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/ipv6.h"
#include "base/result.h"
#include "host/unix_socket.h"

namespace muster::host {

struct TunSpec {
  std::string name = "muster0";  // at most 15 characters
  std::uint32_t address = 0;     // IPv4, host order
  std::uint8_t prefix_bits = 16;
  std::uint32_t mtu = 1420;
  uid_t owner = static_cast<uid_t>(-1);  // may attach without privileges; -1: nobody but root
  std::optional<Ip6> address6;           // left out where the machine has no IPv6
  std::uint8_t prefix6_bits = 96;
};

// namespace_path: "/proc/PID/ns/net" or "/run/netns/NAME"; empty: the caller's own. Idempotent: an existing device is
// configured again. `lo` is set up as well. The descriptor is non-blocking; before each packet
// stands an overlay::OffloadHeader where the kernel can (IFF_VNET_HDR of TUNGETIFF says so).
Result<Fd> create_tun(const std::string& namespace_path, const TunSpec& spec);
// The same device again, as it is.
Result<Fd> open_tun(const std::string& namespace_path, const std::string& name);
Status remove_tun(const std::string& namespace_path, const std::string& name);

}  // namespace muster::host
