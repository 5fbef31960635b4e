// Ways out of sites are used up by what states it, shared by the machines of a site, and given back when work ends.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/rng.h"
#include "scheduler/scheduler.h"

namespace muster::scheduler::flow_test {
namespace {

using namespace std::chrono_literals;
constexpr WallTime kT0{1'000'000'000};

Traffic traffic(std::int64_t up_mbps, std::int64_t down_mbps = 0, std::int64_t gib = 0) {
  return {up_mbps * 1'000, down_mbps * 1'000, gib << 30};
}
NodeView at_site(std::uint64_t id, const std::string& site, std::int64_t up_mbps, std::int64_t down_mbps = 0) {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{7}, n.arch = "x86_64", n.schedulable = true, n.site = site;
  n.free.cpu_milli = 8'000, n.free.memory_bytes = std::int64_t{16} << 30;
  n.capacity = n.free, n.runtimes = {RuntimeKind::Docker};
  n.link.up_kbps = up_mbps * 1'000, n.link.down_kbps = down_mbps * 1'000;
  return n;
}
Request asks(std::uint64_t id, const Traffic& t, std::uint32_t machines = 1, std::int64_t cpus = 1) {
  Request r;
  r.cluster = ClusterId{id}, r.tenant = OrgId{500}, r.since = kT0 + Millis(static_cast<std::int64_t>(id)),
  r.pool = "market", r.arch = "x86_64", r.image = "ray";
  Bundle b;
  b.group = "w", b.count = machines, b.request.resources.cpu_milli = cpus * 1'000, b.request.resources.traffic = t;
  r.gang = {b};
  return r;
}

// A pool that does what is planned, as the core would.
struct Site {
  Scheduler s;
  std::map<NodeId, NodeView> nodes;
  std::map<LeaseId, LeaseView> leases;
  std::map<ClusterId, Request> waiting;
  WallTime now = kT0;
  std::uint64_t next_lease = 1;

  void set(const NodeView& n) {
    nodes[n.node] = n;
    s.apply(NodeChanged{n});
  }
  void ask(const Request& r) {
    waiting[r.cluster] = r;
    s.apply(RequestChanged{r});
  }
  void book(const LeaseView& l, int sign) {
    NodeView& n = nodes.at(l.node);
    n.free.cpu_milli -= sign * l.resources.cpu_milli;
    n.traffic.up_kbps += sign * l.resources.traffic.up_kbps,
        n.traffic.down_kbps += sign * l.resources.traffic.down_kbps;
    n.traffic.volume_bytes += sign * l.resources.traffic.volume_bytes;
    n.whole = n.free.cpu_milli == n.capacity.cpu_milli, ++n.version;
    s.apply(NodeChanged{n});
  }
  void commit(const Group& g) {
    const auto request = waiting.extract(g.cluster);
    for (const Place& p : g.places) {
      LeaseView l;
      l.lease = LeaseId{next_lease++}, l.cluster = g.cluster, l.node = p.node, l.resources = p.resources, l.since = now;
      if (!request.empty()) l.tenant = request.mapped().tenant, l.tier = request.mapped().tier;
      leases[l.lease] = l;
      s.apply(LeaseChanged{l});
      book(l, 1);
    }
    s.apply(RequestGone{g.cluster});
  }
  std::vector<Group> step() {
    const auto groups = s.plan({}, now);
    for (const Group& g : groups)
      if (g.kind == ActionKind::Start) commit(g);
    return groups;
  }
  std::set<std::uint64_t> settle() {  // what started
    std::set<std::uint64_t> out;
    for (;;) {
      const auto groups = step();
      if (groups.empty()) return out;
      for (const Group& g : groups) out.insert(g.cluster.value);
    }
  }
  void end(ClusterId cluster) {
    std::vector<LeaseView> gone;
    for (const auto& [id, l] : leases)
      if (l.cluster == cluster) gone.push_back(l);
    for (const LeaseView& l : gone) {
      leases.erase(l.lease);
      s.apply(LeaseGone{l.lease, now});
      book(l, -1);
    }
  }
  Reason why(std::uint64_t id) const { return s.queue_of(ClusterId{id}, now).reason; }

  // ---- the law, by looking at everything
  using Key = std::pair<OrgId, std::string>;
  static Key key(const NodeView& n) { return {n.supplier, n.site.empty() ? "node " + n.node.str() : n.site}; }
  Traffic most(const Key& of) const {
    Traffic out;
    for (const auto& [id, n] : nodes) {
      if (key(n) != of) continue;
      const auto narrow = [](std::int64_t& a, std::int64_t b) { a = a == 0 ? b : b == 0 ? a : std::min(a, b); };
      narrow(out.up_kbps, n.link.up_kbps), narrow(out.down_kbps, n.link.down_kbps);
    }
    if (out.up_kbps == 0) out.up_kbps = 20'000;
    if (out.down_kbps == 0) out.down_kbps = 20'000;
    return out;
  }
  Traffic taken(const Key& of) const {
    Traffic out;
    for (const auto& [id, n] : nodes)
      if (key(n) == of) out.up_kbps += n.traffic.up_kbps, out.down_kbps += n.traffic.down_kbps;
    return out;
  }
  bool fits(const NodeView& n, const Traffic& t) const {  // beside what is there
    const Traffic limit = most(key(n)), used = taken(key(n));
    const auto ok = [](std::int64_t need, std::int64_t have, std::int64_t of) {
      return need == 0 || need + have <= of;
    };
    if (!ok(t.up_kbps, used.up_kbps, limit.up_kbps) || !ok(t.down_kbps, used.down_kbps, limit.down_kbps)) return false;
    if (n.link.own_up_kbps > 0 && !ok(t.up_kbps, n.traffic.up_kbps, n.link.own_up_kbps)) return false;
    if (n.link.own_down_kbps > 0 && !ok(t.down_kbps, n.traffic.down_kbps, n.link.own_down_kbps)) return false;
    return n.link.quota_bytes < 0 || ok(t.volume_bytes, n.traffic.volume_bytes, n.link.quota_bytes);
  }
  // So many machines of the one kind, each another, tried in every way.
  bool could(const Request& r, std::uint32_t left, std::uint64_t from = 0) {
    if (left == 0) return true;
    const Resources& need = r.gang[0].request.resources;
    for (auto& [id, n] : nodes) {
      if (id.value <= from || n.free.cpu_milli < need.cpu_milli || !fits(n, need.traffic)) continue;
      const NodeView before = n;
      n.traffic.up_kbps += need.traffic.up_kbps, n.traffic.down_kbps += need.traffic.down_kbps;
      n.traffic.volume_bytes += need.traffic.volume_bytes;
      const bool found = could(r, left - 1, id.value);
      n = before;
      if (found) return true;
    }
    return false;
  }
};

TEST(Uplinks, AreSharedByTheMachinesOfASite) {
  Site w;
  for (std::uint64_t i = 1; i <= 3; ++i) w.set(at_site(i, "attic", 100, 500));
  w.ask(asks(1, traffic(60)));
  w.ask(asks(2, traffic(60)));
  EXPECT_EQ(w.settle(), std::set<std::uint64_t>{1});
  const Reason reason = w.why(2);
  EXPECT_EQ(reason.code, "uplink_taken");
  EXPECT_EQ(reason.params.at("uplink_taken"), "3");
  EXPECT_EQ(
      reason.text,
      "needs 1 machine with 1 CPU and 60 Mbit/s up free; 0 are free; of 3 more the site's uplink is taken by work "
      "that stated it");
  w.ask(asks(3, traffic(40, 400)));
  w.ask(asks(4, {}));
  EXPECT_EQ(w.settle(), (std::set<std::uint64_t>{3, 4})) << "less fits beside it, and nothing is counted unstated";
  w.end(ClusterId{3});
  EXPECT_EQ(w.settle(), std::set<std::uint64_t>{});
  w.end(ClusterId{1});
  EXPECT_EQ(w.settle(), std::set<std::uint64_t>{2}) << "what ended on another machine of the site gave it back";
}

TEST(Uplinks, AreASuppliersOwnAndAsWideAsTheNarrowestSays) {
  Site w;
  w.set(at_site(1, "attic", 100));
  w.set(at_site(2, "attic", 50));
  NodeView other = at_site(3, "attic", 0);
  other.supplier = OrgId{8};
  w.set(other);
  w.ask(asks(1, traffic(60)));
  EXPECT_TRUE(w.settle().empty());
  EXPECT_EQ(w.why(1).code, "narrow_uplink") << w.why(1).text;
  EXPECT_EQ(w.s.refused_by(NodeId{1}, w.now), (std::map<std::string, std::uint32_t>{{"link", 1}}));
  w.set(at_site(2, "attic", 70));
  EXPECT_EQ(w.settle(), std::set<std::uint64_t>{1}) << "what one machine says wakes who waits for another";
  w.ask(asks(2, traffic(20)));
  ASSERT_EQ(w.settle(), std::set<std::uint64_t>{2}) << "20 Mbit/s is taken where nothing is said";
  EXPECT_EQ(w.nodes.at(NodeId{3}).traffic.up_kbps, 20'000);
}

TEST(Uplinks, OwnersLimitsAndTheMonthsVolumeAreTheMachinesOwn) {
  Site w;
  NodeView n = at_site(1, "attic", 1'000);
  n.link.own_up_kbps = 50'000, n.link.quota_bytes = std::int64_t{100} << 30;
  w.set(n);
  w.ask(asks(1, traffic(30, 0, 80)));
  EXPECT_EQ(w.settle(), std::set<std::uint64_t>{1});
  w.ask(asks(2, traffic(30)));
  EXPECT_TRUE(w.settle().empty()) << "the owner lets 50 out";
  EXPECT_EQ(w.why(2).code, "uplink_taken");
  w.ask(asks(3, traffic(1, 0, 21)));
  EXPECT_TRUE(w.settle().empty());
  EXPECT_EQ(w.why(3).code, "volume_used");
  EXPECT_EQ(w.why(3).text,
            "needs 1 machine with 1 CPU and 1 Mbit/s up and 21 GiB to transfer free; 0 are free; of 1 more the monthly "
            "volume is nearly used");
  w.ask(asks(4, traffic(1, 0, 20)));
  EXPECT_EQ(w.settle(), std::set<std::uint64_t>{4});
  NodeView next_month = w.nodes.at(NodeId{1});
  next_month.link.quota_bytes = std::int64_t{200} << 30;
  w.set(next_month);
  EXPECT_EQ(w.settle(), std::set<std::uint64_t>{3});
}

TEST(Uplinks, AGangSpreadsOverSitesOrWaits) {
  Site w;
  for (std::uint64_t i = 1; i <= 3; ++i) w.set(at_site(i, "attic", 100));
  w.ask(asks(1, traffic(40), 3));
  EXPECT_TRUE(w.settle().empty()) << "two of them are what the site carries";
  EXPECT_EQ(w.why(1).code, "uplink_taken") << w.why(1).text;
  w.set(at_site(4, "cellar", 100));
  EXPECT_EQ(w.settle(), std::set<std::uint64_t>{1});
}

TEST(Uplinks, WhoWaitedLongGetsItBeforeAStreamOfSmallOnes) {
  Site w;
  for (std::uint64_t i = 1; i <= 2; ++i) w.set(at_site(i, "attic", 100));
  w.ask(asks(1, traffic(45)));
  w.ask(asks(2, traffic(45)));
  ASSERT_EQ(w.settle().size(), 2U);
  w.ask(asks(3, traffic(90)));
  ASSERT_TRUE(w.settle().empty());
  std::uint64_t next = 10;
  bool started = false;
  for (int minute = 0; minute < 30 && !started; ++minute) {  // one ends, and another like it comes, all the time
    w.now = w.now + 60s;
    const ClusterId ends = w.leases.begin()->second.cluster;
    w.end(ends);
    Request small = asks(next++, traffic(45));
    small.since = w.now;
    if (w.waiting.size() < 3) w.ask(small);
    started = w.settle().contains(3);
    if (w.leases.empty()) break;
  }
  EXPECT_TRUE(started) << "ten minutes on, what is given back is kept for it";
}

TEST(Uplinks, WhatIsInTheWayOfAnEarlierTierLeaves) {
  Site w;
  w.set(at_site(1, "attic", 100));
  Request low = asks(1, traffic(80));
  low.tier = 3;
  w.ask(low);
  ASSERT_EQ(w.settle().size(), 1U);
  w.now = w.now + 300s;
  w.ask(asks(2, traffic(50)));
  const auto groups = w.s.plan({}, w.now);
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].kind, ActionKind::Preempt);
  EXPECT_EQ(groups[0].victims, std::vector<LeaseId>{w.leases.begin()->first});
}

// Random pools and streams: nothing that starts overdraws an uplink, an owner's limit or a month; what waits could not
// have been placed in any way (one kind of machine); and a scheduler built anew from the snapshot plans the same.
TEST(Uplinks, AreNeverOverdrawnAndNeverLeftUnused) {
  std::size_t starts = 0, waits = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    Rng rng(seed);
    Site w;
    const auto machine = [&](std::uint64_t id) {
      const auto site = rng.below(4);
      NodeView n =
          at_site(id, site == 0 ? "" : "site" + std::to_string(site), rng.chance(1, 4) ? 0 : rng.between(1, 12) * 10,
                  rng.chance(1, 2) ? 0 : rng.between(1, 12) * 10);
      n.supplier = OrgId{7 + rng.below(2)};
      if (rng.chance(1, 4)) n.link.own_up_kbps = rng.between(1, 6) * 10'000;
      if (rng.chance(1, 4)) n.link.quota_bytes = rng.between(0, 40) << 30;
      return n;
    };
    for (std::uint64_t id = 1; id <= 6; ++id) w.set(machine(id));
    std::uint64_t next = 1;
    for (int step = 0; step < 60; ++step) {
      w.now = w.now + 5s;  // less than ten minutes in all: nothing is kept for anybody
      const auto what = rng.below(8);
      if (what < 5) {
        const Traffic t =
            rng.chance(1, 6) ? Traffic{} : traffic(rng.between(0, 7) * 10, rng.between(0, 4) * 10, rng.between(0, 12));
        Request r = asks(next++, t, static_cast<std::uint32_t>(rng.between(1, 3)), rng.between(1, 4));
        r.since = w.now;
        w.ask(r);
      } else if (what == 5 && !w.leases.empty()) {
        auto it = w.leases.begin();
        std::advance(it, rng.below(w.leases.size()));
        w.end(it->second.cluster);
      } else if (what == 6) {  // something else is said of the machine
        const NodeView& old = w.nodes.at(NodeId{1 + rng.below(6)});
        NodeView n = machine(old.node.value);
        n.supplier = old.supplier, n.free = old.free, n.traffic = old.traffic, n.version = old.version + 1,
        n.whole = old.whole;
        if (old.traffic.any()) n.site = old.site, n.link = old.link;
        w.set(n);
      } else if (!w.waiting.empty()) {
        const ClusterId gone = w.waiting.begin()->first;
        w.waiting.erase(gone), w.s.apply(RequestGone{gone});
      }
      for (;;) {
        Scheduler rebuilt;
        for (const Change& c : w.s.snapshot()) rebuilt.apply(c);
        const auto groups = w.s.plan({}, w.now);
        ASSERT_EQ(groups, rebuilt.plan({}, w.now)) << "seed " << seed << " step " << step;
        if (groups.empty()) break;
        for (const Group& g : groups) {
          Resources need = w.waiting.at(g.cluster).gang[0].request.resources;
          for (const Place& p : g.places) {
            ASSERT_TRUE(w.fits(w.nodes.at(p.node), need.traffic)) << "seed " << seed << " step " << step;
            LeaseView l;
            l.lease = LeaseId{w.next_lease++}, l.cluster = g.cluster, l.node = p.node, l.resources = p.resources;
            l.since = w.now, w.leases[l.lease] = l;
            EXPECT_EQ(p.resources.traffic, need.traffic);
            NodeView& n = w.nodes.at(p.node);  // told to the scheduler below, once all is checked
            n.free.cpu_milli -= need.cpu_milli, n.traffic.up_kbps += need.traffic.up_kbps, n.whole = false, ++n.version;
            n.traffic.down_kbps += need.traffic.down_kbps, n.traffic.volume_bytes += need.traffic.volume_bytes;
          }
          ++starts;
        }
        for (const Group& g : groups) {
          for (const auto& [id, l] : w.leases)
            if (l.cluster == g.cluster) w.s.apply(LeaseChanged{l}), w.s.apply(NodeChanged{w.nodes.at(l.node)});
          w.waiting.erase(g.cluster), w.s.apply(RequestGone{g.cluster});
        }
      }
      for (const auto& [id, r] : w.waiting) {
        ASSERT_FALSE(w.could(r, r.gang[0].count))
            << "seed " << seed << " step " << step << ": " << id.str() << " waits";
        ++waits;
      }
    }
  }
  EXPECT_GT(starts, 400U);
  EXPECT_GT(waits, 400U);
}

// Kinds that differ: never overdrawn, though the one uplink that all fit on is not always found.
TEST(Uplinks, MixedGangsAreNeverOverdrawn) {
  std::size_t started = 0;
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    Rng rng(seed);
    Site w;
    for (std::uint64_t id = 1; id <= 6; ++id)
      w.set(at_site(id, "site" + std::to_string(rng.below(3)), rng.between(2, 12) * 10));
    for (std::uint64_t c = 1; c <= 6; ++c) {
      Request r = asks(c, traffic(rng.between(0, 6) * 10), static_cast<std::uint32_t>(rng.between(1, 2)));
      r.policy = rng.chance(1, 3) ? Policy::FastNetwork : rng.chance(1, 3) ? Policy::Spread : Policy::Balanced;
      Bundle other = r.gang[0];
      other.group = "x", other.request.resources.cpu_milli = rng.between(1, 8) * 1'000;
      other.request.resources.traffic = traffic(rng.between(0, 9) * 10);
      r.gang.push_back(other);
      w.ask(r);
    }
    started += w.settle().size();
    for (const auto& [id, n] : w.nodes)
      ASSERT_LE(w.taken(Site::key(n)).up_kbps, w.most(Site::key(n)).up_kbps) << "seed " << seed;
  }
  EXPECT_GT(started, 400U);
}

// Where its size and the machine's way in are known, the image's way there is part of the start.
TEST(Images, TheTimeToFetchOneIsCountedIntoTheStart) {
  Site w;
  w.set(at_site(1, "attic", 100, 80));
  NodeView holder = at_site(2, "cellar", 100, 80);
  holder.images = {"ray", "sha256:1"}, holder.image_bytes = {{"ray", 3'000'000'000}};
  w.set(holder);
  Request small = asks(1, {}, 1, 8);
  w.ask(small);
  const auto first = w.s.plan({}, w.now);
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first[0].places.at(0).node, NodeId{2}) << "the one that has it";
  w.commit(first[0]);
  w.ask(asks(2, {}, 1, 8));
  const QueueView view = w.s.queue_of(ClusterId{2}, w.now);
  ASSERT_TRUE(view.known);
  EXPECT_EQ(view.expected_start, w.now + 300s) << "3 GB by 80 Mbit/s";
  EXPECT_EQ(view.reason.params.at("image_minutes"), "5") << view.reason.text;
  NodeView slower = w.nodes.at(NodeId{1});
  slower.link.own_down_kbps = 40'000;
  w.set(slower);
  EXPECT_EQ(w.s.queue_of(ClusterId{2}, w.now).expected_start, w.now + 600s) << "its owner lets 40 in";
  slower.link.own_down_kbps = slower.link.down_kbps = 0;
  w.set(slower);
  EXPECT_EQ(w.s.queue_of(ClusterId{2}, w.now).expected_start, w.now) << "nothing is said of its way in";
  Request other = asks(3, {}, 1, 8);
  other.image = "another";
  w.ask(other);
  EXPECT_FALSE(w.s.queue_of(ClusterId{3}, w.now).reason.params.contains("image_minutes")) << "nobody knows its size";
}

TEST(Uplinks, TakeHostileNumbers) {
  Site w;
  NodeView n = at_site(1, "attic", 100);
  n.link.own_down_kbps = -5, n.link.quota_bytes = -7, n.link.up_kbps = INT64_MAX;
  n.traffic = {INT64_MAX, INT64_MIN, INT64_MAX};
  w.set(n);
  NodeView other = at_site(2, "attic", 0);
  other.link.up_kbps = INT64_MIN;
  w.set(other);
  w.ask(asks(1, {INT64_MAX, INT64_MAX, INT64_MAX}));
  w.ask(asks(2, {INT64_MIN, -1, -1}));
  w.ask(asks(3, {1, 0, 0}));
  const auto started = w.s.plan({}, w.now);
  ASSERT_EQ(started.size(), 1U) << "the one that asks for less than nothing";
  EXPECT_EQ(started[0].cluster, ClusterId{2});
  EXPECT_FALSE(w.why(1).text.empty());
}

}  // namespace
}  // namespace muster::scheduler::flow_test
