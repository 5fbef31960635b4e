#pragma once
// Which session speaks for which node, and whether a device key is used on two machines. A second session with the same
// boot id is a reconnect and replaces the first. With another boot id the machine was rebooted, or somebody copied it:
//  - a rebooted machine is never heard under its old boot id again, so an old boot that speaks clearly after the new
//  one
//    began (the agent says for how long its machine is up) proves two machines: both are refused, and the node is told
//    to the core as contested. Until the core has it (forget()) nobody is served for the node, and from then on the
//    core says who is: it keeps the node in quarantine;
//  - until the old boot has been silent for `quiet` the newcomer waits; after a start of the control plane the silence
//    counts from there.
// Also keeps the digest of the last inventory of each node. Single-threaded (the server guards it).
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/id.h"
#include "base/time.h"

namespace muster::session {

enum class Verdict : std::uint8_t { Accept = 1, Wait = 2, Clone = 3, Replaced = 4 };
struct Kicked {
  std::uint64_t session = 0;
  Verdict why = Verdict::Replaced;
  bool operator==(const Kicked&) const = default;
};
// What a Hello says about its machine. `known_boot` is the boot that the core believes its leases are held by, empty
// when it holds none: then there is nothing to wait for.
struct Caller {
  std::string boot_id;
  LeaseTime booted{0};  // on the server's clock: now - uptime, so never too early by more than the way of the frame
  std::string known_boot;
};

class Directory {
 public:
  struct Options {
    Millis quiet{75'000};   // longer than the longest back-off of an agent that is alive
    Millis margin{15'000};  // frames may be under way for so long
  };
  Directory() : Directory(Options{}) {}
  explicit Directory(Options options) : options_(options) {}
  void start(LeaseTime now);  // leadership begins: nobody is known
  Verdict hello(NodeId node, const Caller& caller, std::uint64_t session, LeaseTime now);
  Verdict heard(NodeId node, std::uint64_t session, LeaseTime now);    // a heartbeat: Accept or Clone (or Replaced)
  Verdict waiting(NodeId node, std::uint64_t session, LeaseTime now);  // asked by a session that waits
  void closed(NodeId node, std::uint64_t session);
  std::vector<Kicked> take_kicked();  // other sessions that must be closed now
  std::set<NodeId> take_contested();  // found to be two machines since the last call
  std::optional<std::uint64_t> current(NodeId node) const;
  bool alone(NodeId node, std::uint64_t session) const { return current(node) == session; }

  Bytes inventory_digest(NodeId node) const;
  void set_inventory_digest(NodeId node, Bytes digest);
  void forget(NodeId node);

 private:
  static constexpr LeaseTime kLongAgo{std::numeric_limits<std::int64_t>::min() / 4};
  struct Boot {
    std::string id;
    LeaseTime booted = kLongAgo;
    LeaseTime spoke = kLongAgo;  // its last word since the start
  };
  struct Entry {
    std::uint64_t session = 0, pending = 0;
    Boot boot, newcomer;
    bool contested = false;
    Bytes digest;
  };
  bool two_machines(const Entry& entry) const;
  bool quiet(const Entry& entry, LeaseTime now) const;
  Verdict clone(NodeId node, Entry& entry, std::uint64_t asking);
  void take_over(Entry& entry);
  Options options_;
  LeaseTime started_{0};
  std::unordered_map<NodeId, Entry> nodes_;
  std::vector<Kicked> kicked_;
  std::set<NodeId> contested_;
};

}  // namespace muster::session
