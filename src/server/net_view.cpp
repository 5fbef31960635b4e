#include "server/net_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "base/ipv4.h"
#include "base/ipv6.h"
#include "wire/names.h"

namespace muster::server {
namespace {
using session::NetPath;

std::optional<Ip6> six_of(const session::NetPlace& at) {
  Ip6 six;
  if (at.six.size() != six.size()) return {};
  std::copy(at.six.begin(), at.six.end(), six.begin());
  return six;
}
std::string place_text(const session::NetPlace& at) {
  if (const auto six = six_of(at)) return fmt::format("[{}]:{}", text_of(*six), at.port);
  return fmt::format("{}:{}", wire::address_text(at.ip), at.port);
}

bool at_home(const session::NetPlace& at) {
  const auto six = six_of(at);
  return six ? is_unique_local(*six) : is_private(at.ip);
}

// No relay tells it how its socket is seen: nothing that it could tell others, so nobody can knock.
bool blocked(const NetFacts& facts) {
  return facts.report.relay_up && facts.report.seen.empty() && !facts.report.relay_only && !facts.report.in_tunnel;
}
std::string udp_text(const session::NetReport& report) {
  if (report.relay_only) return "hidden";
  if (!report.relay_up) return "unknown";
  if (report.seen.empty() && report.in_tunnel) return "tunnel";
  if (report.seen.empty()) return "blocked";
  if (std::all_of(report.seen.begin(), report.seen.end(), [](const auto& at) { return !at.six.empty(); }))
    return "unknown";
  const bool kept = std::all_of(report.seen.begin(), report.seen.end(),
                                [&](const auto& at) { return !at.six.empty() || at.port == report.udp_port; });
  return kept ? "kept" : "changed";
}

std::string outcome_of(const session::NetTry& tried) {
  if (tried.full) return "carries full packets";
  if (tried.tunnel) return "not tried: the way there leads through a tunnel of this machine, or to its own containers";
  if (tried.answered > 0) return "answers, but not at full size";
  return tried.sent > 0 ? "no answer" : "not tried yet";
}

// Where a machine is stays hidden; an address in the overlay is no secret.
wire::NetTryView try_view(const session::NetTry& tried, bool addresses) {
  if (tried.origin == session::NetOrigin::Offered)
    return {tried, "peer", outcome_of(tried), wire::address_text(tried.at.ip)};
  return {tried, at_home(tried.at) ? "lan" : "direct", outcome_of(tried),
          addresses ? place_text(tried.at) : std::string()};
}

// What `by` says that it carried, beside what the two ends signed.
std::uint64_t signed_for(const NetFacts* end, std::uint32_t by, std::uint32_t with, bool sent) {
  std::uint64_t out = 0;
  if (end == nullptr) return out;
  for (const session::NetCarried& each : end->report.carried)
    if (each.by == by && each.with == with) out += sent ? each.sent : each.received;
  return out;
}
void add_forwarded(wire::NetMemberView& member, const session::NetReport& report,
                   const std::map<std::uint32_t, SlotId>& slots, const std::map<SlotId, NetFacts>& facts) {
  for (const session::NetForwarded& each : report.forwarded) {
    const auto from = slots.find(each.from), to = slots.find(each.to);
    if (from == slots.end() || to == slots.end()) continue;
    const auto facts_of = [&](SlotId slot) {
      const auto found = facts.find(slot);
      return found == facts.end() ? nullptr : &found->second;
    };
    member.forwarded.push_back({from->second, to->second, each.bytes,
                                signed_for(facts_of(from->second), member.address, each.to, true),
                                signed_for(facts_of(to->second), member.address, each.from, false)});
  }
}

// By which relay a pair goes, or would go, and how far it is by the others.
void add_relays(const session::NetReport& report, const session::NetPair& pair, wire::NetPairView& shown) {
  const auto at = [&](std::uint32_t number) {
    return number == 0 || number > report.relays.size() ? nullptr : &report.relays[number - 1];
  };
  if (const auto* relay = at(pair.relay)) shown.relay = relay->address;
  for (const session::NetRelayTry& tried : pair.relays)
    if (const auto* relay = at(tried.relay))
      shown.relays.push_back({tried, relay->address, relay->region, tried.relay == pair.relay});
}

std::string why_relayed(const session::NetPair& pair, const NetFacts& from, const NetFacts* to) {
  if (from.report.relay_only) return "its owner hides this machine's address (relay-only), so nothing goes directly";
  if (pair.hidden || (to != nullptr && to->report.relay_only))
    return "the other machine's owner hides its address (relay-only), so nothing goes directly";
  if (blocked(from)) return "no UDP reaches this machine: the relay's UDP port does not answer it";
  if (to != nullptr && blocked(*to)) return "no UDP reaches the other machine: the relay's UDP port does not answer it";
  const bool astray = !pair.tries.empty() && std::ranges::all_of(pair.tries, &session::NetTry::tunnel);
  if (astray || (pair.tries.empty() && from.report.in_tunnel))
    return "the way from this machine leads through another tunnel (a VPN), inside which no direct way is tried";
  if (to != nullptr && pair.tries.empty() && to->report.in_tunnel)
    return "the way from the other machine leads through another tunnel (a VPN), inside which no direct way is tried";
  std::uint32_t sent = 0;
  bool small = false, full = false;
  for (const auto& tried : pair.tries) {
    sent += tried.sent;
    small = small || tried.answered > 0;
    full = full || tried.full;
  }
  if (pair.tries.empty()) return "the other machine told no address that could be tried";
  if (full) return "a direct way was there and died; it is tried again";
  if (small) return "a direct way answers small probes only: full packets do not fit through it";
  if (sent == 0) return "the direct ways are about to be tried";
  return fmt::format(
      "none of {} addresses answered {} probes: a NAT that gives every destination another port, or a firewall",
      pair.tries.size(), sent);
}
}  // namespace

namespace {
// A way that is narrower than what the tunnel offers.
std::string narrow(const session::NetPair& pair) {
  return pair.mtu == 0 || pair.mtu >= session::kNetMtuFull
             ? std::string()
             : fmt::format("; something on the way carries less than usual: packets of {} bytes, larger ones are cut",
                           pair.mtu);
}
// A relay that answers over TLS only, though its UDP port is reached.
std::string by_udp(const session::NetPair& pair, const NetFacts& from) {
  if (pair.relay_udp) return "; the relay's UDP port takes full packets";
  const auto& relays = from.report.relays;
  if (pair.relay == 0 || pair.relay > relays.size()) return {};
  const session::NetRelay& relay = relays[pair.relay - 1];
  if (!relay.up || relay.udp_rtt_us == 0 || blocked(from)) return {};
  return "; over TLS, since full packets do not come back from the relay's UDP port, or it is of an older version";
}
// What its machine hands over packet by packet, which costs it processor time and speed.
std::string one_by_one(const NetFacts& from) {
  std::string out;
  for (const auto& [large, what] : {std::pair(from.report.large_udp, "large datagrams"),
                                    std::pair(from.report.large_tun, "large packets for its container")})
    if (large != session::NetLarge::None && large != session::NetLarge::Used)
      out += fmt::format("; {} are {}", what, session::text(large));
  return out;
}
std::string why_this_path(const session::NetPair& pair, const NetFacts& from, const NetFacts* to) {
  switch (pair.path) {
    case NetPath::None:
      return "they have not talked yet";
    case NetPath::Relay:
      return why_relayed(pair, from, to) + by_udp(pair, from);
    case NetPath::Peer:
      return "another member carries it, which both reach directly: " + why_relayed(pair, from, to);
    case NetPath::Lan:
      return "an address on a network that both share answered a probe of full size" + narrow(pair);
    case NetPath::Direct:
      return "a public address answered a probe of full size" + narrow(pair);
  }
  return {};
}
}  // namespace

std::string why_path(const session::NetPair& pair, const NetFacts& from, const NetFacts* to) {
  return why_this_path(pair, from, to) + (pair.path == NetPath::None ? std::string() : one_by_one(from));
}

scheduler::PathsChanged paths_seen(const control::State& state, NodeId node, const NetFacts& facts) {
  constexpr std::uint64_t kSettledMs = 60'000;    // by the relay for so long: no direct way was found
  constexpr std::uint64_t kRecentMs = 3'600'000;  // what a full way carried
  scheduler::PathsChanged out;
  const Lease* lease = state.find_lease(facts.report.lease);
  const Cluster* cluster = lease == nullptr || lease->node != node ? nullptr : state.find_cluster(lease->cluster);
  if (cluster == nullptr) return out;
  std::map<std::uint32_t, const session::NetPair*> pairs;
  for (const session::NetPair& pair : facts.report.pairs)
    if (pair.path != NetPath::None && (pair.path != NetPath::Relay || pair.age_ms >= kSettledMs))
      pairs.emplace(pair.address, &pair);
  for (const SlotId id : cluster->slots) {
    if (pairs.empty()) break;
    const Slot* slot = state.find_slot(id);
    const auto found = slot == nullptr ? pairs.end() : pairs.find(slot->address);
    const Lease* other = found == pairs.end() ? nullptr : state.find_lease(slot->lease);
    if (other == nullptr || other->node == node) continue;
    const session::NetPair& pair = *found->second;
    scheduler::PathSeen path{node, other->node, scheduler::PathKind::Direct, 0, 0, facts.at};
    if (pair.path == NetPath::Relay) path.kind = scheduler::PathKind::Relay;
    if (pair.path == NetPath::Lan) path.kind = scheduler::PathKind::Lan;
    path.rtt_us = static_cast<std::int32_t>(std::min<std::uint32_t>(pair.rtt_us, 60'000'000));
    if (pair.carries_age_ms < kRecentMs)
      path.kbps = static_cast<std::int64_t>(std::min<std::uint64_t>(pair.carries_bytes_s, 1ULL << 40) / 125);
    if (path.kbps > 0) path.measured = facts.at - Millis(static_cast<std::int64_t>(pair.carries_age_ms));
    out.paths.push_back(path);
  }
  return out;
}

wire::NetView net_view(const control::State& state, const access::Subject& caller, const Cluster& cluster,
                       const FindNet& find) {
  const bool addresses = access::check(caller, access::Verb::Read, {access::Kind::Platform, {}, {}, {}}).ok();
  wire::NetView view;
  view.cluster = cluster.id;
  view.name = cluster.spec.name;
  view.seq = state.seq;
  view.pair_kbps = cluster.spec.pair_kbps;
  std::map<std::uint32_t, SlotId> slots;
  std::map<SlotId, NetFacts> facts;
  for (const SlotId id : cluster.slots) {
    const Slot* slot = state.find_slot(id);
    const Lease* lease = slot == nullptr ? nullptr : state.find_lease(slot->lease);
    if (lease == nullptr || lease->end != LeaseEnd::None) continue;
    wire::NetMemberView member;
    member.slot = id;
    member.role = slot->role;
    member.address = slot->address;
    if (const Node* node = state.find_node(lease->node)) member.node_name = node->name;
    slots[slot->address] = id;
    if (const auto told = find(lease->node, lease->id)) {
      member.at = told->at;
      member.relay_up = told->report.relay_up;
      member.relay = told->report.relay;
      member.relays = told->report.relays;
      member.carries = told->report.carries;
      member.udp = udp_text(told->report);
      member.mapped = told->report.mapped;
      member.others = told->report.others;
      if (addresses)
        for (const auto& at : told->report.seen) member.seen_as.push_back(place_text(at));
      facts[id] = *told;
    }
    view.members.push_back(std::move(member));
  }
  for (auto& member : view.members)
    if (const auto told = facts.find(member.slot); told != facts.end())
      add_forwarded(member, told->second.report, slots, facts);
  for (const auto& [from, told] : facts) {
    for (const session::NetPair& pair : told.report.pairs) {
      const auto to = slots.find(pair.address);
      if (to == slots.end() || to->second == from) continue;
      const auto other = facts.find(to->second);
      wire::NetPairView shown;
      shown.from = from;
      shown.to = to->second;
      shown.pair = pair;
      shown.why = why_path(pair, told, other == facts.end() ? nullptr : &other->second);
      const bool direct = pair.path == NetPath::Lan || pair.path == NetPath::Direct;
      if (addresses && direct) shown.address = place_text(pair.at);
      add_relays(told.report, pair, shown);
      if (const auto by = slots.find(pair.by); pair.path == NetPath::Peer && by != slots.end()) shown.by = by->second;
      for (const session::NetTry& tried : pair.tries) shown.tries.push_back(try_view(tried, addresses));
      shown.slow = std::any_of(cluster.slow.begin(), cluster.slow.end(),
                               [&](const SlowPair& each) { return each.from == shown.from && each.to == shown.to; });
      view.pairs.push_back(std::move(shown));
    }
  }
  return view;
}

}  // namespace muster::server
