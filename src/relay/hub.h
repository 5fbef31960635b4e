#pragma once
// The members connected to this relay, found by (cluster, overlay key), who may not connect any more, and the counts of
// everything. Forwarding happens only inside a cluster. Any thread; locks are held for a look-up only.
#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "base/bytes.h"
#include "crypto/secret.h"
#include "relay/token_keys.h"
#include "relay/udp_legs.h"

namespace muster::relay {

class Member {
 public:
  virtual ~Member() = default;
  virtual void deliver(const crypto::Key32& source, ByteView payload) = 0;  // any thread; drops the oldest when full
  virtual void replaced() = 0;                                              // the same key connected again
  virtual void recalled() = 0;                                              // it left its cluster
};

struct Counts {
  std::atomic<std::uint64_t> accepted{0}, refused{0}, not_tls{0}, handed_off{0}, handoff_expired{0},
      handoff_returned{0}, hello_refused{0}, upgrades{0}, members_total{0}, packets{0}, bytes{0}, dropped{0},
      unknown_peer{0}, throttled{0}, mirrored{0}, recalled{0}, udp_packets{0}, udp_refused{0}, udp_throttled{0},
      udp_challenged{0}, udp_moved{0}, keys_refused{0};
  std::atomic<std::int64_t> members{0}, pending{0}, held{0};
};

class Hub {
 public:
  using Key = std::pair<std::uint64_t, crypto::Key32>;
  void join(const Key& key, const std::shared_ptr<Member>& member);  // an older holder of the key is told to go
  void leave(const Key& key, const Member* member);                  // no effect when another holds the key now
  std::shared_ptr<Member> find(const Key& key) const;
  std::shared_ptr<Member> find_named(std::uint64_t cluster, std::uint64_t name) const;  // overlay/udp_relay.h
  // Keys that left their cluster: whoever holds one is told to go and does not come back. All: instead of what was said
  // before. Bounded: beyond kRecalledMax the rest is left out, and their tokens end by themselves.
  enum class Recall : std::uint8_t { All, More };
  static constexpr std::size_t kRecalledMax = 400'000;
  void recall(const std::vector<Key>& keys, Recall how);
  bool recalled(const Key& key) const;
  Counts counts;
  TokenKeys keys;
  UdpLegs udp;
  std::string metrics() const;  // Prometheus text

 private:
  struct Shard {
    mutable std::mutex mutex;
    std::map<Key, std::weak_ptr<Member>> members;
  };
  static std::size_t index(const Key& key) { return key.second[0] % 64; }
  std::array<Shard, 64> shards_;
  mutable std::mutex recall_mutex_;
  std::set<Key> recalled_;
};

}  // namespace muster::relay
