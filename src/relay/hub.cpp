#include "relay/hub.h"

#include <fmt/format.h>

#include "base/endian.h"

namespace muster::relay {

void Hub::join(const Key& key, const std::shared_ptr<Member>& member) {
  std::shared_ptr<Member> older;
  {
    Shard& shard = shards_[index(key)];
    const std::lock_guard lock(shard.mutex);
    auto& place = shard.members[key];
    older = place.lock();
    place = member;
  }
  if (older && older != member) older->replaced();
}

void Hub::leave(const Key& key, const Member* member) {
  Shard& shard = shards_[index(key)];
  const std::lock_guard lock(shard.mutex);
  const auto it = shard.members.find(key);
  if (it == shard.members.end()) return;
  const auto holder = it->second.lock();
  if (holder == nullptr || holder.get() == member) shard.members.erase(it);
}

std::shared_ptr<Member> Hub::find(const Key& key) const {
  const Shard& shard = shards_[index(key)];
  const std::lock_guard lock(shard.mutex);
  const auto it = shard.members.find(key);
  return it == shard.members.end() ? nullptr : it->second.lock();
}

std::shared_ptr<Member> Hub::find_named(std::uint64_t cluster, std::uint64_t name) const {
  Key from{cluster, {}};
  store_be64(from.second.data(), name);
  const Shard& shard = shards_[index(from)];
  const std::lock_guard lock(shard.mutex);
  const auto it = shard.members.lower_bound(from);
  const bool found =
      it != shard.members.end() && it->first.first == cluster && overlay::udp_relay_name(it->first.second) == name;
  return found ? it->second.lock() : nullptr;
}

void Hub::recall(const std::vector<Key>& keys, Recall how) {
  {
    const std::lock_guard lock(recall_mutex_);
    if (how == Recall::All) recalled_.clear();
    for (const Key& key : keys) {
      if (recalled_.size() >= kRecalledMax) break;
      recalled_.insert(key);
    }
  }
  // After they are in the set: who joins meanwhile looks there once more.
  for (const Key& key : keys) {
    udp.cut(key);
    if (const auto member = find(key)) {
      ++counts.recalled;
      member->recalled();
    }
  }
}

bool Hub::recalled(const Key& key) const {
  const std::lock_guard lock(recall_mutex_);
  return recalled_.contains(key);
}

std::string Hub::metrics() const {
  std::string out;
  auto line = [&](std::string_view name, std::string_view kind, auto value) {
    out += fmt::format("# TYPE muster_relay_{} {}\nmuster_relay_{} {}\n", name, kind, name, value);
  };
  line("accepted_total", "counter", counts.accepted.load());
  line("refused_total", "counter", counts.refused.load());
  line("not_tls_total", "counter", counts.not_tls.load());
  line("handed_off_total", "counter", counts.handed_off.load());
  line("handoff_expired_total", "counter", counts.handoff_expired.load());
  line("handoff_returned_total", "counter", counts.handoff_returned.load());
  line("hello_refused_total", "counter", counts.hello_refused.load());
  line("upgrades_total", "counter", counts.upgrades.load());
  line("members_total", "counter", counts.members_total.load());
  line("packets_total", "counter", counts.packets.load());
  line("bytes_total", "counter", counts.bytes.load());
  line("dropped_total", "counter", counts.dropped.load());
  line("unknown_peer_total", "counter", counts.unknown_peer.load());
  line("throttled_total", "counter", counts.throttled.load());
  line("mirrored_total", "counter", counts.mirrored.load());
  line("recalled_total", "counter", counts.recalled.load());
  line("udp_packets_total", "counter", counts.udp_packets.load());
  line("udp_refused_total", "counter", counts.udp_refused.load());
  line("udp_throttled_total", "counter", counts.udp_throttled.load());
  line("udp_challenged_total", "counter", counts.udp_challenged.load());
  line("udp_moved_total", "counter", counts.udp_moved.load());
  line("keys_refused_total", "counter", counts.keys_refused.load());
  line("keys_revision", "gauge", keys.revision());
  line("udp_members", "gauge", udp.in_use());
  line("members", "gauge", counts.members.load());
  line("pending", "gauge", counts.pending.load());
  line("held", "gauge", counts.held.load());
  return out;
}

}  // namespace muster::relay
