#pragma once
// The owner's policy: a JSON file under the state directory that only root writes. privd reads it before every start
// and refuses what it does not allow; neither server nor agent can widen it. Missing file = the defaults below. A
// damaged file allows nothing (the owner meant something, we do not know what). Values only; no threads.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "egress/rules.h"

namespace muster::host {

struct HourRange {
  int from_minute = 0, to_minute = 24 * 60;
  bool operator==(const HourRange&) const = default;
};  // local time; from > to wraps over midnight

// Work only while the owner is away: for `minutes` nobody typed or moved the mouse, no program of the owner's used a
// GPU and the owner's programs used at most load_percent of all CPUs.
struct IdleRule {
  std::int64_t minutes = 0;  // 0 = also while the owner is there
  std::int64_t load_percent = 25;
  bool input = true, terminals = true, gpu = true, load = true;  // which signs count
  bool operator==(const IdleRule&) const = default;
};

// Limits on what containers may reach, where egress is allowed at all.
struct EgressPolicy {
  std::int64_t max_bytes_per_s = 0, max_bytes_per_month = 0;  // each way; both ways together; 0 = no limit
  std::int64_t max_connections = 256;                         // open at once in one lease
  std::vector<egress::Prefix> deny;                           // besides what is never allowed
  std::vector<egress::PortRange> deny_ports = egress::default_deny_ports();
  std::vector<egress::PortRange> allow_ports;  // empty = all that are not denied
  std::vector<egress::Ip> resolvers;           // empty = those of /etc/resolv.conf
  bool operator==(const EgressPolicy&) const = default;
};

struct Policy {
  std::int64_t reserve_cpu_milli = 0, reserve_memory_bytes = 1LL << 30, reserve_disk_bytes = 5LL << 30;
  std::int64_t max_cpu_milli = 0, max_memory_bytes = 0;  // 0 = the machine less the reserve
  std::int64_t max_gpus = -1;                            // -1 = all
  std::vector<std::string> gpu_uuids;                    // only these; empty = any
  bool gpu_sharing = false;          // one GPU may serve several leases of one organisation at a time, memory not apart
  std::int64_t max_gpu_power_w = 0;  // while hired; 0 = as the driver has it
  std::int64_t max_upload_bytes_s = 0, max_download_bytes_s = 0;  // of the clusters' networks together; 0 = unlimited
  bool carry_allowed = false;  // what other members of its clusters send each other may go through this machine
  std::int64_t max_carry_bytes_s = 0, max_carry_bytes_per_month = 0;  // of that; 0 = no limit
  bool tests_allowed = false;  // short tests of how much direct ways to other members carry, sent and received
  std::int64_t max_test_bytes_s = 2'500'000, max_test_bytes_per_month = 1LL << 30;  // of those; 0 = no limit
  bool relay_only = false;             // other members never learn where this machine is: all goes by relays
  bool port_mapping = true;            // the home's router is asked to let members in
  std::vector<std::string> endpoints;  // ADDRESS:PORT at which this machine's UDP port is reached from outside
  std::int64_t udp_port = 0;           // of it; 0 = that of the first endpoint, else any
  std::int64_t max_leases = 8;
  std::int64_t max_root_bytes = 20LL << 30;  // what one container may write into its root
  std::int64_t max_workspace_bytes = 0;      // of one lease; 0 = what is free less the reserve
  bool egress_allowed = false;
  EgressPolicy egress;
  bool exec_allowed = true;              // people may open a shell in containers of their lease
  std::vector<HourRange> allowed_hours;  // empty = always
  std::int64_t stop_after_minutes = 10;  // how long running work may go on after the allowed hours ended
  IdleRule idle;
  std::vector<std::string> images;    // prefixes, and "!pattern" of what is denied; no prefix = any
  std::string engine_socket;          // empty = the engine's usual place
  std::vector<std::string> runtimes;  // "docker", "venv"; empty = the engine where there is one, else venv
  std::string python_index, uv;       // package index and uv of virtual environments; empty = PyPI, the usual place
  std::int64_t metrics_port = 0;      // Prometheus metrics on 127.0.0.1; 0 = off
  bool operator==(const Policy&) const = default;
};

Result<Policy> parse_policy(std::string_view text);
Result<Policy> load_policy(const std::string& path);  // missing file: defaults
std::string policy_text(const Policy& policy);        // what parse_policy reads back
Result<HourRange> parse_hours(std::string_view text);
std::string hours_text(const std::vector<HourRange>& ranges);
bool hour_allowed(const Policy& policy, int minute_of_day);
int minutes_since_allowed(const Policy& policy, int minute_of_day);  // 0 while allowed
bool gpu_allowed(const Policy& policy, const std::string& uuid);
bool image_allowed(const Policy& policy, const std::string& image);
bool image_denied(const Policy& policy, const std::string& digest);  // by itself, whatever names it came under

}  // namespace muster::host
