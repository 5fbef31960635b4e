#pragma once
// What a machine's owner says about how others may reach it, in a small file that only root writes (privd does, from
// the policy) and that netd and the agent read: one setting a line, unknown ones skipped. Missing: the defaults.
// Damaged: relay only, since the owner may have meant to hide. Values only.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "overlay/device.h"

namespace muster::host {

struct Policy;

inline constexpr std::size_t kOwnEndpointsMax = 2;  // of each family: a third place is left for how relays see us

struct OwnerNetwork {
  bool relay_only = false, port_mapping = true;
  std::uint16_t udp_port = 0;                // where members' packets come to; 0 = any
  std::vector<overlay::Endpoint> endpoints;  // where that port is reached from outside
  bool operator==(const OwnerNetwork&) const = default;
  bool has_ipv4() const;  // one of the endpoints is of IPv4
};

// "198.51.100.7:41641", "[2001:db8::1]:41641"; refuses with the reason what nobody else could reach.
Result<overlay::Endpoint> parse_own_endpoint(std::string_view text);
Result<std::vector<overlay::Endpoint>> parse_own_endpoints(const std::vector<std::string>& texts);
std::string own_endpoint_text(const overlay::Endpoint& endpoint);

OwnerNetwork owner_network(const Policy& policy);
std::string owner_network_text(const OwnerNetwork& network);
Result<OwnerNetwork> parse_owner_network(std::string_view text);
OwnerNetwork read_owner_network(const std::string& path);

// Reads again what changed; cheap otherwise. One thread.
class OwnerNetworkFile {
 public:
  explicit OwnerNetworkFile(std::string path) : path_(std::move(path)) {}
  bool refresh();  // true: it says something else now
  const OwnerNetwork& now() const { return now_; }

 private:
  std::string path_;
  OwnerNetwork now_;
  std::int64_t seen_ns_ = -1;
};

}  // namespace muster::host
