#pragma once
// Who is heard from, beside the core: a table sharded by node, on LeaseTime, with damped transitions as output. A node
// is Suspect after 7 s and Lost after 12 s without a heartbeat (every 5 s), so a single lost node is known within 13 s
// at a tick of 1 s, before the bar of 15 s. When a failure domain falls silent together (at least 5 nodes and at least
// 30 % of those that were heard shortly before), *we* are cut off: Freeze is on until enough of them returned or
// `freeze_max` passed. After a start or a change of leader a node that was not heard since has a grace period; one that
// was heard has none; but while many are still awaited, one that falls silent again is taken as a sign that they are
// cut off, too. heard() is thread-safe per shard; tick() is for one thread. Freeze comes before the losses it covers:
// the core still learns who is silent (a lost worker may be replaced in a new slot, which its roster fences), but
// evicts nothing. A freeze that stood when leadership began stands until the grace period told who came back.
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/id.h"
#include "base/time.h"

namespace muster::session {

struct LivenessOptions {
  Millis suspect{7000}, lost{12'000}, grace{75'000};  // longer than the agents' longest back-off
  // Mass silence: within `window` at least `mass_min` nodes and `mass_percent` of a domain went silent. Fewer than
  // mass_min nodes are never "mass": with four machines in a room, losing two is what two broken machines look like,
  // and a replacement that proves unneeded costs less than a cluster that waits for ever.
  Millis window{20'000};
  std::uint32_t mass_min = 5, mass_percent = 30;
  Millis thaw{15'000};           // calm for so long before the freeze ends
  Millis freeze_max{3'600'000};  // longer than any lease: by then the silence is the truth
};
enum class Heard : std::uint8_t { Live = 1, Suspect = 2, Lost = 3, Awaited = 4 /* not since the start */ };
struct NodeTurned {
  NodeId node;
  Heard now = Heard::Live;
  bool operator==(const NodeTurned&) const = default;
};
struct FreezeTurned {
  bool frozen = false;
  std::string reason;
  bool operator==(const FreezeTurned&) const = default;
};
using LivenessEvent = std::variant<NodeTurned, FreezeTurned>;

class Liveness {
 public:
  explicit Liveness(LivenessOptions options = {});
  // Leadership begins: every node in the list was live when the state was written (or, if `frozen`, when the freeze
  // began) and gets the grace period.
  void start(const std::vector<std::pair<NodeId, std::string>>& nodes_and_domains, bool frozen, LeaseTime now);
  void heard(NodeId node, const std::string& domain, LeaseTime now);
  void forget(NodeId node);                        // revoked, left
  std::vector<LivenessEvent> tick(LeaseTime now);  // every second or so
  bool frozen() const { return frozen_; }
  std::optional<Heard> find(NodeId node) const;
  std::vector<NodeId> part(std::size_t number) const;  // one shard of all known nodes; numbers wrap around

 private:
  struct Entry {
    LeaseTime last{0};
    Heard state = Heard::Live;
    std::string domain;
    bool awaited = false;
  };
  struct Shard {
    mutable std::mutex mutex;
    std::unordered_map<NodeId, Entry> nodes;
  };
  struct Count {
    std::uint32_t known = 0, silent = 0, awaited = 0;
  };
  struct Frozen {
    LeaseTime since{0}, calm_since{0};
  };
  static constexpr std::size_t kShards = 16;
  Shard& shard(NodeId node) { return shards_[node.value % kShards]; }
  const Shard& shard(NodeId node) const { return shards_[node.value % kShards]; }
  std::map<std::string, Count> count(LeaseTime now) const;
  bool mass(const Count& count, bool frozen) const;
  void judge_domains(LeaseTime now, std::vector<LivenessEvent>& out);
  void judge_nodes(LeaseTime now, std::vector<LivenessEvent>& out);

  LivenessOptions options_;
  std::array<Shard, kShards> shards_;
  std::mutex returned_mutex_;
  std::vector<NodeTurned> returned_;  // by heard(), told at the next tick
  std::map<std::string, Frozen> frozen_domains_;
  bool frozen_ = false;
};

}  // namespace muster::session
