// Stated traffic: what machines say reaches the planner, and a plan is looked at again when it is committed.
#include "control/traffic.h"

#include <gtest/gtest.h>

#include "control/control_world.h"
#include "model/node_labels.h"

namespace muster::control {
namespace {

NodeFacts on_site(const std::string& name, const std::string& site, const std::string& up_mbps) {
  NodeFacts facts;
  facts.hostname = name, facts.arch = "x86_64", facts.runtimes = {RuntimeKind::Docker}, facts.egress_allowed = true;
  facts.capacity.cpu_milli = 8'000, facts.capacity.memory_bytes = std::int64_t{16} << 30;
  if (!site.empty()) facts.labels["site"] = site;
  if (!up_mbps.empty()) facts.labels["uplink-mbps"] = up_mbps;
  return facts;
}
ClusterSpec sends(const std::string& name, std::int64_t up_mbps, std::int64_t gib = 0) {
  ClusterSpec s = World::spec(0, 1);
  s.name = name, s.head.resources.traffic = {up_mbps * 1'000, 0, gib << 30}, s.egress = gib > 0;
  return s;
}
ClusterId ask(World& w, const ClusterSpec& spec) {
  return ClusterId::parse(w.must(CreateCluster{w.project, spec}, w.user()).id).value();
}

TEST(Traffic, OfASiteIsSharedAndGivenBack) {
  World w;
  w.enrol("a", on_site("a", "attic", "100"), w.supplier);
  w.enrol("b", on_site("b", "attic", ""), w.supplier);
  const ClusterId first = w.up(sends("first", 60));
  const ClusterId second = ask(w, sends("second", 60));
  w.rounds();
  EXPECT_EQ(w.cluster(second).state, ClusterState::Queued);
  const auto view = w.planner.queue_of(second, w.now.wall);
  EXPECT_EQ(view.reason.code, "uplink_taken") << view.reason.text;
  scheduler::Scheduler rebuilt;
  for (const auto& change : planner_snapshot(w.state)) rebuilt.apply(change);
  EXPECT_EQ(rebuilt.queue_of(second, w.now.wall).reason, view.reason);
  EXPECT_EQ(w.state.nodes_by_site.at({w.supplier, "attic"}).size(), 2U);
  EXPECT_TRUE(decode_state(encode_state(w.state, kFormatVersion)).value() == w.state);
  w.must(StopCluster{first}, w.user());
  w.rounds();
  EXPECT_NE(w.cluster(second).state, ClusterState::Queued) << "it was given back";
}

TEST(Traffic, OwnersLimitsAreWhatTheAgentReports) {
  World w;
  NodeFacts facts = on_site("a", "", "1000");
  facts.labels[std::string(kUploadLimitLabel)] = "50000", facts.labels[std::string(kVolumeLeftLabel)] = "10";
  const NodeId node = w.enrol("a", facts, w.supplier);
  const LinkSaid link = link_of(w.state.nodes.at(node));
  EXPECT_EQ(link.own_up_kbps, 50'000);
  EXPECT_EQ(link.own_down_kbps, 0);
  EXPECT_EQ(link.volume_left, std::int64_t{10} << 30);
  const ClusterId fast = ask(w, sends("fast", 60)), much = ask(w, sends("much", 0, 11));
  w.rounds();
  EXPECT_EQ(w.planner.queue_of(fast, w.now.wall).reason.code, "narrow_uplink");
  EXPECT_EQ(w.planner.queue_of(much, w.now.wall).reason.code, "volume_used");
  facts.labels[std::string(kVolumeLeftLabel)] = "500", facts.labels.erase(std::string(kUploadLimitLabel));
  w.must(NodeOnline{node, facts});
  w.rounds();
  EXPECT_NE(w.cluster(fast).state, ClusterState::Queued);
  EXPECT_NE(w.cluster(much).state, ClusterState::Queued);
}

// Two plans made of the same uplink: the second is dropped without a word. And one gang that takes too much.
TEST(Traffic, TheCoreLooksAgain) {
  World w;
  const NodeId a = w.enrol("a", on_site("a", "attic", "100"), w.supplier);
  const NodeId b = w.enrol("b", on_site("b", "attic", "100"), w.supplier);
  const auto plan = [&](ClusterId cluster, const std::vector<std::pair<SlotRole, NodeId>>& places) {
    ApplyPlan out;
    scheduler::Group group{scheduler::ActionKind::Start, cluster, {}, {}};
    for (const auto& [role, node] : places)
      group.places.push_back({role, role == SlotRole::Head ? "" : w.cluster(cluster).spec.groups[0].name, node});
    out.groups = {group};
    return out;
  };
  ClusterSpec gang = sends("gang", 60);
  gang.groups[0].min = 1, gang.groups[0].request.resources.traffic = {60'000, 0, 0};
  const ClusterId both = ask(w, gang), one = ask(w, sends("one", 60)), two = ask(w, sends("two", 60));
  w.must(plan(both, {{SlotRole::Head, a}, {SlotRole::Worker, b}}));
  EXPECT_EQ(w.cluster(both).state, ClusterState::Queued) << "both at once are more than the site carries";
  w.must(plan(one, {{SlotRole::Head, a}}));
  EXPECT_EQ(w.cluster(one).state, ClusterState::Starting);
  EXPECT_EQ(stated_traffic(w.state, a), (Traffic{60'000, 0, 0}));
  w.must(plan(two, {{SlotRole::Head, b}}));
  EXPECT_EQ(w.cluster(two).state, ClusterState::Queued);
}

TEST(Traffic, RaisesAnOldJournalToTheFormatThatKeepsIt) {
  World w;
  w.state.format_version = 6;
  ask(w, sends("plain", 0));
  EXPECT_EQ(w.state.format_version, 6U) << "nothing is stated";
  ask(w, sends("first", 5));
  EXPECT_EQ(w.state.format_version, kTrafficFormat);
}

TEST(Traffic, SaysWhatIsWrong) {
  World w;
  ClusterSpec spec = sends("first", -1);
  EXPECT_EQ(w.run(CreateCluster{w.project, spec}, w.user()).error().field, "spec.head.resources.up_kbps");
  spec = sends("first", 0, 5);
  spec.egress = false;
  EXPECT_EQ(w.run(CreateCluster{w.project, spec}, w.user()).error().field, "spec.egress");
}

}  // namespace
}  // namespace muster::control
