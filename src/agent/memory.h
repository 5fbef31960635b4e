#pragma once
// What one agent must remember over restarts: how far it has seen the server (incarnation, revision), when each lease
// ends and whether it was fenced, the highest roster epochs, which job attempts were handed to Ray and how they ended,
// how much of each log the server has. Own compact encoding with a version and a checksum; damaged bytes decode to
// nothing. Bounded.
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "base/time.h"
#include "model/types.h"

namespace muster::agent {

using JobKey = std::pair<JobId, std::uint32_t>;  // job and attempt

struct LeaseMemory {
  Epoch epoch;
  LeaseTime end{0};
  bool over = false, failed = false;
  std::string reason;
  bool operator==(const LeaseMemory&) const = default;
};
struct JobMemory {
  LeaseId lease;
  JobState state = JobState::Starting;
  std::int32_t exit_code = -1;
  std::string reason;
  std::uint64_t log_bytes = 0, acked = 0;
  bool operator==(const JobMemory&) const = default;
};
struct Memory {
  std::string boot_id;
  std::uint64_t incarnation = 0, revision = 0;
  bool paused = false, leaving = false;
  bool pause_now = false;    // what runs is stopped too
  bool pause_untold = true;  // the server has not taken the owner's last word yet
  std::map<LeaseId, LeaseMemory> leases;
  std::map<ClusterId, std::uint64_t> roster_epochs;
  std::map<JobKey, JobMemory> jobs;
  bool operator==(const Memory&) const = default;
};

Bytes encode(const Memory& memory);
std::optional<Memory> decode_memory(ByteView bytes);

}  // namespace muster::agent
