#pragma once
// May this machine work now? OwnerGate decides from the owner's policy, the pause file and signs of the owner's
// presence (pure); OwnerSigns reads those signs: keyboard and mouse, terminals, GPU and CPU use of programs that are
// not ours. privd asks before every start and stops what runs when `stop` is set; nothing that server or agent say
// changes it. One thread each.
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/time.h"
#include "host/policy.h"
#include "host/unix_socket.h"

namespace muster::host {

class Nvml;

struct Gate {
  bool open = true;
  bool stop = false;         // what runs must end at once
  std::string reason, text;  // "owner.hours", "outside the owner's hours (20:00-08:00)"
  bool operator==(const Gate&) const = default;
};
struct Signs {
  std::optional<Millis> input_ago;  // since a key, the mouse or a terminal was used; empty = nothing is known
  bool gpu = false;                 // a program of the owner's holds a GPU
  std::int64_t load_percent = 0;    // CPUs used by programs that are not ours, of all there are
  std::int64_t disk_free = -1;      // bytes below the state directory; -1 = not known
};
struct PauseFile {
  bool present = false, now = false;
};

class OwnerGate {
 public:
  Gate decide(const Result<Policy>& policy, const PauseFile& pause, int minute_of_day, const Signs& signs,
              LeaseTime now);

 private:
  Gate by_disk(const Policy& policy, const Signs& signs);
  Gate by_idle(const IdleRule& rule, const Signs& signs, LeaseTime now);
  std::optional<LeaseTime> busy_at_;
  std::string busy_with_;
  bool disk_low_ = false;
};

// PATH: take nothing new; PATH.now: end what runs. Only that they exist counts, so that it works on a full disk.
PauseFile read_pause(const std::string& path);
int minute_of_day();

// A program that lives and is in none of these control groups holds a GPU.
bool owner_on_gpu(Nvml& nvml, const std::set<std::string>& groups);

class OwnerSigns {
 public:
  struct Places {
    std::string dev = "/dev", proc = "/proc";
    std::string last_input;  // a file whose time remembers the last key over a restart of privd; empty = none
  };
  explicit OwnerSigns(Places places) : places_(std::move(places)) {}
  // groups: control groups of our leases; our_cpu_ns: what they used so far together. About once a second.
  Signs read(const IdleRule& rule, Nvml& nvml, const std::set<std::string>& groups, std::uint64_t our_cpu_ns, Now now);

 private:
  void open_inputs(LeaseTime now);
  bool input_happened();
  std::optional<Millis> terminal_ago(WallTime now) const;
  std::int64_t load(std::uint64_t our_cpu_ns, LeaseTime now);

  Places places_;
  std::map<std::string, Fd> inputs_;
  std::optional<LeaseTime> scanned_, input_at_;
  bool remembered_ = false;
  std::uint64_t busy_ticks_ = 0, ours_ns_ = 0;
  std::optional<LeaseTime> load_at_;
  double load_percent_ = 0;  // smoothed over about ten seconds
};

}  // namespace muster::host
