// Offers from SetOffer to the end of a lease: who may state them, what a grant holds of them, and when it ends.
#include "model/offer.h"

#include <gtest/gtest.h>

#include "control/control_world.h"
#include "control/life.h"
#include "control/terms.h"

namespace muster::control {
namespace {

Offer priced(std::int64_t price) {
  Offer o;
  o.currency = "EUR", o.price = o.floor = price;
  return o;
}
// Open from now on for so long, by a clock that shows UTC. The world begins on a Tuesday, at 22:13:20.
Offer open_for(const World& w, Millis length, Millis notice = 5min) {
  constexpr std::int64_t kMinute = 60'000;
  Offer o = priced(0);
  const auto minute = static_cast<std::int32_t>((w.now.wall.ms / kMinute + 3 * 1440) % kWeekMinutes);
  o.schedule = "x", o.zone = "UTC", o.notice = notice;
  o.hours = {{minute, minute + static_cast<std::int32_t>(length.count() / kMinute)}};
  return o;
}
ClusterSpec alone(const std::string& name = "demo") {
  ClusterSpec s = World::spec(0, 0);
  s.name = name;
  return s;
}
struct Owned {
  World w;
  NodeId box = w.enrol("box"), den;
  Actor owner() const { return w.as(Role::Supplier, w.supplier); }
  void offer(NodeId node, const Offer& offer) { w.must(SetOffer{node, offer}, owner()); }
};

TEST(Offers, AreTheOwnersWordAlone) {
  Owned o;
  World& w = o.w;
  const Offer asked = priced(1'200'000);
  EXPECT_EQ(w.run(SetOffer{o.box, asked}, w.user()).error().code, Code::NotFound) << "another tenant";
  EXPECT_EQ(w.run(SetOffer{o.box, asked}, w.as(Role::Operator, w.tenant)).error().code, Code::PermissionDenied);
  EXPECT_EQ(w.run(SetOffer{o.box, asked}, w.as(Role::Auditor, {})).error().code, Code::PermissionDenied);
  EXPECT_EQ(w.run(SetOffer{o.box, asked}, World::device(o.box)).error().code, Code::NotFound);
  EXPECT_FALSE(w.run(SetOffer{NodeId{99}, asked}, o.owner()).ok());
  w.must(SetOffer{o.box, asked}, w.as(Role::Tenant, w.supplier));
  EXPECT_EQ(w.state.nodes.at(o.box).offer.version, 1U);
  const int events = w.count<NodeOffered>();
  o.offer(o.box, asked);
  EXPECT_EQ(w.count<NodeOffered>(), events) << "nothing changed, nothing is written";
  o.offer(o.box, priced(0));
  EXPECT_EQ(w.state.nodes.at(o.box).offer.version, 2U);
  Offer bad = asked;
  bad.tenants = {OrgId{77}};
  EXPECT_EQ(w.run(SetOffer{o.box, bad}, o.owner()).error().field, "tenants");
  bad = asked, bad.price = -1;
  EXPECT_EQ(w.run(SetOffer{o.box, bad}, o.owner()).error().field, "offer.price");
  w.must(SetNode{o.box, SetNode::Action::Revoke});
  EXPECT_EQ(w.run(SetOffer{o.box, asked}, o.owner()).error().code, Code::FailedPrecondition);
}

TEST(Offers, AGrantHoldsWhatWasAgreedAndLaterOffersTouchNothingOfIt) {
  Owned o;
  World& w = o.w;
  o.offer(o.box, priced(1'200'000));
  ClusterSpec spec = alone();
  spec.max_price = 1'200'000, spec.currency = "EUR";
  const ClusterId id = w.up(spec);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  const Lease before = w.head(id);
  EXPECT_EQ(before.price, 1'200'000);
  EXPECT_EQ(before.currency, "EUR");
  EXPECT_EQ(before.offer_version, 1U);
  EXPECT_EQ(before.leaves_at, WallTime{});
  Offer dearer = open_for(w, 2h);
  dearer.price = dearer.floor = 9'000'000, dearer.tenants = {w.supplier}, dearer.images = {"other/"};
  o.offer(o.box, dearer);
  w.rounds();
  w.pass(5h);
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(w.head(id), before);
  ClusterSpec next = spec;
  next.name = "next";
  EXPECT_EQ(w.cluster(w.up(next)).state, ClusterState::Queued) << "it counts from the next lease on";
}

TEST(Offers, TheCoreLooksAgain) {
  Owned o;
  World& w = o.w;
  const ClusterId id = ClusterId::parse(w.must(CreateCluster{w.project, alone()}, w.user()).id).value();
  const auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  const auto refused = [&](Offer offer, const char* why) {
    o.offer(o.box, offer);
    w.must(ApplyPlan{groups});
    EXPECT_EQ(w.cluster(id).state, ClusterState::Queued) << why;
  };
  Offer offer = priced(0);
  offer.tenants = {w.supplier};
  refused(offer, "it is offered to others");
  offer = priced(0), offer.images = {"other/"};
  refused(offer, "with other images");
  refused(open_for(w, 2h), "it has no end and the machine has");
  offer = priced(0), offer.longest = 2h;
  refused(offer, "it may last longer");
  Offer closed = open_for(w, 2h);
  closed.hours[0] = {closed.hours[0].to, closed.hours[0].to + 60};
  refused(closed, "it is closed");
  o.offer(o.box, priced(5'000'000));
  w.must(ApplyPlan{groups});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Starting) << "a price that nobody refuses";
}

TEST(Offers, ThePlannerKeepsThemAndSaysWhy) {
  Owned o;
  World& w = o.w;
  o.offer(o.box, priced(1'350'000));
  ClusterSpec spec = alone();
  spec.max_price = 1'200'000, spec.currency = "EUR";
  const ClusterId id = w.up(spec);
  const auto reason = w.planner.queue_of(id, w.now.wall).reason;
  EXPECT_EQ(reason.code, "price") << reason.text;
  EXPECT_NE(reason.text.find("at most 1.20 EUR an hour; the cheapest that fits asks 1.35"), std::string::npos)
      << reason.text;
  EXPECT_EQ(w.planner.refused_by(o.box, w.now.wall).at("price"), 1U);
  ClusterSpec more = spec;
  more.max_price = 1'350'000;
  w.must(UpdateCluster{id, more, 0}, w.user());
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(w.head(id).price, 1'350'000);
  scheduler::Scheduler rebuilt;
  for (const auto& change : planner_snapshot(w.state)) rebuilt.apply(change);
  EXPECT_EQ(rebuilt.waiting(), 0U);
}

TEST(Offers, AFloorAgreesOnWhatTheOtherMayPayAndOwnersPayNothing) {
  Owned o;
  World& w = o.w;
  Offer offer = priced(2'000'000);
  offer.floor = 1'000'000;
  o.offer(o.box, offer);
  ClusterSpec spec = alone();
  spec.max_price = 1'500'000, spec.currency = "EUR";
  EXPECT_EQ(w.head(w.up(spec)).price, 1'500'000);
  const ProjectId own = ProjectId::parse(w.must(CreateProject{w.supplier, "own"}).id).value();
  ClusterSpec mine = alone("mine");
  mine.head.resources.cpu_milli = 500;
  const ClusterId id = ClusterId::parse(w.must(CreateCluster{own, mine}, w.as(Role::Tenant, w.supplier)).id).value();
  w.rounds();
  EXPECT_EQ(w.head(id).price, 0);
  EXPECT_EQ(w.head(id).currency, "");
}

// A worker leaves when its owner wants the machine back, and another takes its place; a head ends its cluster.
TEST(Offers, WhoHiresAMachineThatEndsLeavesInTime) {
  Owned o;
  World& w = o.w;
  const NodeId day = w.enrol("day");
  o.offer(o.box, open_for(w, 90min, 10min));
  ClusterSpec spec = World::spec(1, 1);
  spec.head.resources.cpu_milli = spec.groups[0].request.resources.cpu_milli = 3'000;
  const ClusterId never = w.up(spec);
  EXPECT_EQ(w.cluster(never).state, ClusterState::Queued) << "it never agreed";
  w.must(StopCluster{never, ""}, w.user());  // or it would keep the next machine for itself
  spec.name = "agrees", spec.may_end_early = true;
  w.must(SetNodeTier{day, TrustTier::Verified});  // the head takes the most trusted
  const ClusterId id = w.up(spec);
  ASSERT_EQ(w.cluster(id).state, ClusterState::Running);
  ASSERT_EQ(w.head(id).node, day);
  EXPECT_EQ(w.head(id).leaves_at, WallTime{});
  const Lease worker = w.lease_of(w.slots(id, SlotRole::Worker).at(0));
  ASSERT_EQ(worker.node, o.box);
  const WallTime begun = worker.granted_at;
  EXPECT_GT(worker.leaves_at, begun + 78min);
  EXPECT_LE(worker.leaves_at, begun + 80min);
  w.enrol("spare");
  w.pass(70min);
  w.agents();
  EXPECT_EQ(w.state.leases.at(worker.id).want, LeaseWant::Run);
  w.pass(10min);
  EXPECT_EQ(w.state.leases.at(worker.id).want, LeaseWant::Drain) << "told ten minutes before the end";
  EXPECT_EQ(w.state.leases.at(worker.id).reason, kOfferEnds);
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(w.state.leases.at(worker.id).end, LeaseEnd::Confirmed);
  ASSERT_EQ(w.slots(id, SlotRole::Worker).size(), 1U) << "another machine took its place";
  EXPECT_NE(w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node, o.box) << "closed machines are none";
}

TEST(Offers, AHeadThatMustLeaveEndsItsCluster) {
  Owned o;
  World& w = o.w;
  Offer offer = priced(0);
  offer.longest = 1h;
  o.offer(o.box, offer);
  ClusterSpec spec = alone();
  spec.may_end_early = true;
  const ClusterId id = w.up(spec);
  ASSERT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(w.head(id).leaves_at, w.head(id).granted_at + 1h);
  w.pass(59min);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  w.pass(1min);
  w.rounds(1);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Stopped);
  EXPECT_EQ(w.cluster(id).reason, kOfferEnds);
}

TEST(Offers, AFreezeWaitsWithTheNotice) {
  Owned o;
  World& w = o.w;
  Offer offer = priced(0);
  offer.longest = 1h;
  o.offer(o.box, offer);
  ClusterSpec spec = alone();
  spec.may_end_early = true;
  const ClusterId id = w.up(spec);
  w.must(SetFreeze{true, "silence"});
  w.pass(61min);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  w.must(SetFreeze{false, ""});
  w.pass(31s);
  EXPECT_NE(w.cluster(id).state, ClusterState::Running);
}

TEST(Offers, LimitedWorkFitsIntoHours) {
  Owned o;
  World& w = o.w;
  o.offer(o.box, open_for(w, 4h, 30min));
  ClusterSpec spec = alone();
  spec.max_lifetime = 5h;
  EXPECT_EQ(w.cluster(w.up(spec)).state, ClusterState::Queued);
  spec.name = "short", spec.max_lifetime = 2h;
  const ClusterId id = w.up(spec);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  w.pass(2h);
  w.rounds();
  EXPECT_EQ(w.cluster(id).reason, "max_lifetime");
  EXPECT_TRUE(w.state.leases.empty() || w.count<LeaseWantChanged>() > 0);
}

TEST(Offers, HoursComeAgainEveryWeekWithoutAnyWord) {
  Owned o;
  World& w = o.w;
  Offer nights = priced(0);
  nights.schedule = "x", nights.zone = "UTC", nights.notice = 10min;
  nights.hours = parse_schedule("Mon-Sun 18:00-08:00", "x").value();
  o.offer(o.box, nights);
  for (int day = 0; day < 60; ++day) w.pass(24h);  // nothing but time
  ClusterSpec spec = alone();
  spec.max_lifetime = 1h;
  EXPECT_EQ(w.cluster(w.up(spec)).state, ClusterState::Running) << "it is night again";
  EXPECT_GE(w.count<TimerSet>(), 8);
  o.offer(o.box, priced(0));
  EXPECT_FALSE(w.state.timers.contains({TimerKind::Offer, o.box.value, 0}));
}

TEST(Budgets, EndAClusterWhenItHasCostSoMuch) {
  Owned o;
  World& w = o.w;
  const NodeId other = w.enrol("other");
  o.offer(o.box, priced(1'000'000));
  o.offer(other, priced(1'000'000));
  ClusterSpec spec = World::spec(1, 1);
  spec.head.resources.cpu_milli = spec.groups[0].request.resources.cpu_milli = 3'000;
  spec.budget = 4'000'000, spec.currency = "EUR";
  const ClusterId id = w.up(spec);
  ASSERT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(spending_of(w.state, w.cluster(id), w.now.wall).per_hour,
            (std::map<std::string, std::int64_t>{{"EUR", 2'000'000}}));
  w.pass(1h);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  const std::int64_t half = spending_of(w.state, w.cluster(id), w.now.wall).so_far.at("EUR");
  EXPECT_NEAR(static_cast<double>(half), 2e6, 2e3);
  w.must(NodeLost{w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node});  // it may run on: it is paid until it ended
  w.pass(59min);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  w.pass(2min);
  w.rounds();
  EXPECT_EQ(w.cluster(id).reason, kBudget);
  const std::int64_t all = spending_of(w.state, w.cluster(id), w.now.wall).so_far.at("EUR");
  EXPECT_LE(all, 4'100'000);
  EXPECT_GE(all, 3'990'000);
}

TEST(Budgets, ALargerOneLetsItGoOnAndASmallerOneEndsIt) {
  Owned o;
  World& w = o.w;
  o.offer(o.box, priced(1'000'000));
  ClusterSpec spec = alone();
  spec.budget = 1'000'000, spec.currency = "EUR";
  const ClusterId id = w.up(spec);
  w.pass(30min);
  ClusterSpec more = spec;
  more.budget = 3'000'000;
  w.must(UpdateCluster{id, more, 0}, w.user());
  w.pass(2h);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  ClusterSpec euros = more;
  euros.currency = "USD";
  EXPECT_EQ(w.run(UpdateCluster{id, euros, 0}, w.user()).error().field, "spec.currency");
  more.budget = 1'000'000;
  w.must(UpdateCluster{id, more, 0}, w.user());
  EXPECT_EQ(w.cluster(id).reason, kBudget);
  ClusterSpec nameless = alone("nameless");
  nameless.budget = 5;
  EXPECT_EQ(w.run(CreateCluster{w.project, nameless}, w.user()).error().field, "spec.currency");
}

TEST(Offers, RaiseAnOldJournalToTheFormatThatKeepsThem) {
  Owned o;
  World& w = o.w;
  const auto first_of = [&](const Command& command, const Actor& actor) {
    w.state.format_version = 3;
    const std::size_t before = w.journal.size();
    w.must(command, actor);
    return std::pair(w.state.format_version, std::holds_alternative<FormatRaised>(w.journal.at(before)));
  };
  EXPECT_EQ(first_of(SetOffer{o.box, priced(5)}, o.owner()), std::pair(4U, true));
  ClusterSpec spec = alone("plain");
  EXPECT_EQ(first_of(CreateCluster{w.project, spec}, w.user()), std::pair(3U, false));
  spec.name = "limited", spec.max_price = 5, spec.currency = "EUR";
  EXPECT_EQ(first_of(CreateCluster{w.project, spec}, w.user()), std::pair(4U, true));
  spec = alone("ends"), spec.may_end_early = true;
  EXPECT_EQ(first_of(CreateCluster{w.project, spec}, w.user()), std::pair(4U, true));
  spec = alone("plain"), spec.may_end_early = true;
  EXPECT_EQ(first_of(UpdateCluster{ClusterId{1}, spec, 0}, w.user()), std::pair(4U, true));
  const auto again = decode_state(encode_state(w.state));
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(*again == w.state);
}

}  // namespace
}  // namespace muster::control
