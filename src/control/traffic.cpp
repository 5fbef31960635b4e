#include "control/traffic.h"

#include <algorithm>

#include "model/node_labels.h"

namespace muster::control {
namespace {

// A whole number of at most so many digits; all else says nothing (-1).
std::int64_t number_in(const std::string& text, std::size_t digits) {
  if (text.empty() || text.size() > digits) return -1;
  std::int64_t out = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '9') return -1;
    out = out * 10 + (digit - '0');
  }
  return out;
}
std::int64_t said(const Node& node, const std::string& name) {
  const auto label = label_of(node, name);
  return label ? std::max<std::int64_t>(0, number_in(*label, 7)) * 1'000 : 0;
}
// Of the machine's agent alone: a label of its organisation says nothing of an owner's limit.
std::int64_t reported(const Node& node, std::string_view name) {
  const auto label = node.facts.labels.find(std::string(name));
  return label == node.facts.labels.end() ? -1 : number_in(label->second, 12);
}
void narrow(std::int64_t& a, std::int64_t b) {
  a = a == 0 ? b : b == 0 ? a : std::min(a, b);
}
bool enough(std::int64_t need, std::int64_t taken, std::int64_t most) {
  return need <= 0 || (taken <= most && need <= most - taken);
}

}  // namespace

std::string site_of(const Node& node) {
  return label_of(node, "site").value_or("");
}

LinkSaid link_of(const Node& node) {
  LinkSaid out;
  out.up_kbps = said(node, "uplink-mbps"), out.down_kbps = said(node, "downlink-mbps");
  out.lan_kbps = said(node, "lan-mbps");
  out.own_up_kbps = std::max<std::int64_t>(0, reported(node, kUploadLimitLabel));
  out.own_down_kbps = std::max<std::int64_t>(0, reported(node, kDownloadLimitLabel));
  if (const std::int64_t gib = reported(node, kVolumeLeftLabel); gib >= 0) out.volume_left = gib << 30;
  return out;
}

Traffic stated_traffic(const State& state, NodeId node) {
  Traffic out;
  for (const LeaseId id : state.live_leases(node)) {
    const Lease* lease = state.find_lease(id);
    if (lease == nullptr) continue;
    const Traffic& t = lease->resources.traffic;
    out.up_kbps += t.up_kbps, out.down_kbps += t.down_kbps, out.volume_bytes += t.volume_bytes;
  }
  return out;
}

bool TrafficLeft::take(Draft& d, NodeId id, const Traffic& need) {
  if (!need.any()) return true;
  if (!d.pull(id)) return false;
  const Node& node = d.state.nodes.at(id);
  const LinkSaid link = link_of(node);
  const Traffic own = stated_traffic(d.state, id);
  const auto limit = [](std::int64_t kbps) { return kbps > 0 ? kbps : INT64_MAX; };
  if (!enough(need.up_kbps, own.up_kbps, limit(link.own_up_kbps)) ||
      !enough(need.down_kbps, own.down_kbps, limit(link.own_down_kbps)) ||
      !enough(need.volume_bytes, own.volume_bytes, link.volume_left < 0 ? INT64_MAX : link.volume_left))
    return false;
  const std::string site = site_of(node);
  Traffic most{link.up_kbps, link.down_kbps, 0}, taken = own;
  const SiteKey key{node.supplier, site.empty() ? id.str() : site};
  if (!site.empty())
    if (const auto others = d.base.nodes_by_site.find(key); others != d.base.nodes_by_site.end())
      for (const NodeId other : others->second) {
        if (other == id) continue;
        const LinkSaid said = link_of(*d.base.find_node(other));
        narrow(most.up_kbps, said.up_kbps), narrow(most.down_kbps, said.down_kbps);
        if (!d.state.nodes.contains(other) && d.base.live_leases(other).empty()) continue;
        d.pull(other);
        const Traffic there = stated_traffic(d.state, other);
        taken.up_kbps += there.up_kbps, taken.down_kbps += there.down_kbps;
      }
  narrow(most.up_kbps, most.up_kbps == 0 ? kAssumedLinkKbps : 0);
  narrow(most.down_kbps, most.down_kbps == 0 ? kAssumedLinkKbps : 0);
  Traffic& more = more_[key];
  if (!enough(need.up_kbps, taken.up_kbps + more.up_kbps, most.up_kbps) ||
      !enough(need.down_kbps, taken.down_kbps + more.down_kbps, most.down_kbps))
    return false;
  more.up_kbps += need.up_kbps, more.down_kbps += need.down_kbps;
  return true;
}

}  // namespace muster::control
