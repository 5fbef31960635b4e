#pragma once
// Which session speaks for which node, and whether a device key is used twice. A second session with the same boot id
// is a reconnect and replaces the first. With another boot id it is either a machine that rebooted or a clone: the
// newcomer waits, and if the old session still beats meanwhile, both hold the key at once: both are refused. Silence
// makes it a reboot. Also keeps the digest of the last inventory of each node. Single-threaded (the server guards it).
#include <cstdint>
#include <optional>
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

class Directory {
 public:
  explicit Directory(Millis quiet = Millis(12'500)) : quiet_(quiet) {}  // 2.5 heartbeats
  Verdict hello(NodeId node, const std::string& boot_id, std::uint64_t session, LeaseTime now);
  Verdict heard(NodeId node, std::uint64_t session, LeaseTime now);    // a heartbeat: Accept or Clone (or Replaced)
  Verdict waiting(NodeId node, std::uint64_t session, LeaseTime now);  // asked by a session that waits
  void closed(NodeId node, std::uint64_t session);
  std::vector<Kicked> take_kicked();  // other sessions that must be closed now
  std::optional<std::uint64_t> current(NodeId node) const;
  bool alone(NodeId node, std::uint64_t session) const { return current(node) == session; }

  Bytes inventory_digest(NodeId node) const;
  void set_inventory_digest(NodeId node, Bytes digest);
  void forget(NodeId node);

 private:
  struct Entry {
    std::uint64_t session = 0, pending = 0;
    std::string boot_id, pending_boot_id;
    LeaseTime last{0};
    Bytes digest;
  };
  Verdict clone(Entry& entry, std::uint64_t asking);
  void promote(Entry& entry, LeaseTime now);
  Millis quiet_;
  std::unordered_map<NodeId, Entry> nodes_;
  std::vector<Kicked> kicked_;
};

}  // namespace muster::session
