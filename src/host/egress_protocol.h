#pragma once
// What privd and the egress process say to each other on a local SOCK_SEQPACKET socket: one JSON order, one JSON
// answer, in order; a lease's listeners travel beside Add. privd (root) is trusted, and read strictly all the same.
// Values only.
#include <boost/json/object.hpp>
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"
#include "egress/rules.h"

namespace muster::host {

// Everything the process is held to; replaces what it had. Flows that no longer may be are cut.
struct EgressConfig {
  egress::Rules rules;
  std::vector<egress::Ip> resolvers;
  std::uint64_t bytes_per_s = 0;  // each way, over all leases; 0: no limit
  std::int64_t bytes_left = -1;   // of the owner's volume, both ways together; -1: no limit
  std::uint32_t flows_max = 256;  // open at once in one lease
  std::string blocked;            // why nothing may pass now, or empty
  bool operator==(const EgressConfig&) const = default;
};

// Where the descriptors of Add are: TCP and DNS on the namespace's loopback, IPv4, then IPv6 where it has one.
struct AddWay {
  std::string lease;
  bool operator==(const AddWay&) const = default;
};
struct RemoveWay {
  std::string lease;
  bool operator==(const RemoveWay&) const = default;
};
struct AskReport {
  bool flows = false;  // with the open flows and the last refusals
  bool operator==(const AskReport&) const = default;
};
using EgressOrder = std::variant<EgressConfig, AddWay, RemoveWay, AskReport>;

// Metadata only: where to, how much, how often. Nothing of what was said.
struct EgressFlow {
  std::string to;  // "93.184.216.34:443"
  std::uint64_t up_bytes = 0, down_bytes = 0, age_ms = 0;
  bool operator==(const EgressFlow&) const = default;
};
struct EgressRefusal {
  std::string what, code;  // an address with port, or a name
  std::uint64_t age_ms = 0;
  bool operator==(const EgressRefusal&) const = default;
};
struct EgressCounters {
  std::uint64_t flows = 0, open = 0, failed = 0, up_bytes = 0, down_bytes = 0, questions = 0;
  std::map<std::string, std::uint64_t> refused;  // by code; of questions as "dns.<code>"
  std::vector<EgressFlow> now;
  std::vector<EgressRefusal> last_refused;
  bool operator==(const EgressCounters&) const = default;
};
struct EgressReport {
  std::uint64_t bytes = 0;  // passed since the process started, all leases
  std::map<std::string, EgressCounters> leases;
  bool operator==(const EgressReport&) const = default;
};

boost::json::object counters_json(const std::string& lease, const EgressCounters& counters);
EgressCounters read_counters(const boost::json::value& row);  // absent members read as 0
std::string order_text(const EgressOrder& order);
Result<EgressOrder> parse_order(std::string_view text);
std::string report_text(const Result<EgressReport>& report);  // also the answer to the other orders: an empty report
Result<EgressReport> parse_report(std::string_view text);

}  // namespace muster::host
