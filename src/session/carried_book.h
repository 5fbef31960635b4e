#pragma once
// What members carried for others, as both ends of a pair signed it, added up until the core keeps it. Each end counts
// by itself since its netd began: only what a count rose by is added, and of a pair the smaller of what the one sent
// and the other got is owed. Who carried has no say. After a start of the control plane the first word of an end that
// counted before is where counting begins: too little is kept then, never anything twice. In memory; single-threaded.
// Bounded: kPairsMax pairs, later ones are not counted. Bytes of ciphertext.
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "session/frames.h"

namespace muster::session {

class CarriedBook {
 public:
  static constexpr std::size_t kPairsMax = 65'536;
  explicit CarriedBook(WallTime started = {}) : started_(started) {}

  // A report whose counts were verified, of the member at `end`. `node_at`: whose machine an address of the cluster is.
  using NodeAt = std::function<std::optional<NodeId>(std::uint32_t address)>;
  void note(ClusterId cluster, std::uint32_t end, const NetReport& report, const NodeAt& node_at);

  struct Owed {
    ClusterId cluster;
    NodeId node;  // who carried
    std::uint64_t bytes = 0;
    bool operator==(const Owed&) const = default;
  };
  std::vector<Owed> owed() const;               // not kept yet, in order, each cluster and machine once
  void kept(const std::vector<Owed>& amounts);  // by the core, for good
  void keep_only(const std::function<bool(ClusterId)>& lives);
  std::size_t size() const { return pairs_.size(); }

 private:
  struct Key {
    ClusterId cluster;
    std::uint32_t by = 0, from = 0, to = 0;
    auto operator<=>(const Key&) const = default;
  };
  struct Pair {
    NodeId node;
    std::uint64_t sent = 0, received = 0;
  };
  struct Last {
    WallTime counted_from;
    std::map<std::pair<std::uint32_t, std::uint32_t>, std::pair<std::uint64_t, std::uint64_t>> counts;  // (by, with)
  };
  Pair* pair(const Key& key, NodeId node);
  WallTime started_;
  std::map<Key, Pair> pairs_;
  std::map<std::pair<ClusterId, std::uint32_t>, Last> ends_;
  std::map<std::pair<ClusterId, NodeId>, std::uint64_t> kept_;
};

}  // namespace muster::session
