// Parts of GPUs: shares of one within an organisation, and MIG instances. What a grant holds, what the core refuses
// whatever is proposed, and what quotas and prices make of it.
#include "control/gpus.h"

#include "control/control_world.h"
#include "control/quota.h"

namespace muster::control {
namespace {

using namespace std::chrono_literals;

struct PartsWorld : World {
  OrgId others;
  ProjectId theirs;
  PrincipalId bob;
  NodeId box;
  explicit PartsWorld(int heads = 4) {
    others = OrgId::parse(must(CreateOrg{"school"}).id).value();
    theirs = ProjectId::parse(must(CreateProject{others, "default"}).id).value();
    bob = PrincipalId::parse(must(CreatePrincipal{"bob", Role::Tenant, others}).id).value();
    for (int i = 0; i < heads; ++i) enrol("h" + std::to_string(i));
  }
  Actor stranger() const { return as(Role::Tenant, others, bob); }
  static NodeFacts facts_with(std::vector<Device> devices) {
    NodeFacts facts;
    facts.hostname = "box", facts.arch = "x86_64", facts.region = "eu";
    facts.runtimes = {RuntimeKind::Docker, RuntimeKind::Venv};
    facts.capacity.cpu_milli = 16'000, facts.capacity.memory_bytes = std::int64_t{64} << 30;
    facts.devices = std::move(devices);
    for (const Device& d : facts.devices) facts.capacity.gpus += d.sharing == GpuSharing::Mig ? 0 : 1;
    return facts;
  }
  static Device gpu(const std::string& uuid, GpuSharing sharing) {
    return {uuid, "A100", std::int64_t{40} << 30, sharing};
  }
  static Device instance(const std::string& uuid, std::int32_t part) {
    return {uuid, "A100", (std::int64_t{40} << 30) * part / kGpuMilli, GpuSharing::Mig, part, "fake"};
  }
  void machine(std::vector<Device> devices) { box = enrol("box", facts_with(std::move(devices)), supplier); }
  static ClusterSpec share_spec(const std::string& name, std::int32_t milli) {
    ClusterSpec s = World::spec(1, 1);
    s.name = name, s.groups[0].request.resources.cpu_milli = 1000;
    s.groups[0].request.resources.gpus = 1, s.groups[0].request.gpu_share_milli = milli;
    return s;
  }
  ClusterId ask(const ClusterSpec& spec, bool ours = true) {
    return ClusterId::parse(must(CreateCluster{ours ? project : theirs, spec}, ours ? user() : stranger()).id).value();
  }
  ClusterId start(const ClusterSpec& spec, bool ours = true) {
    const ClusterId id = ask(spec, ours);
    rounds();
    return id;
  }
  bool runs(ClusterId id) const { return cluster(id).state == ClusterState::Running; }
  const Lease& worker(ClusterId id) const { return lease_of(slots(id, SlotRole::Worker).at(0)); }
  void stop(ClusterId id, bool ours = true) {
    must(StopCluster{id, "done"}, ours ? user() : stranger());
    rounds();
  }
  // A planner that is made anew from the state says the same of this cluster's worker.
  void expect_same_plan(ClusterId id) {
    scheduler::Scheduler rebuilt;
    for (const auto& change : planner_snapshot(state)) rebuilt.apply(change);
    const auto place_of = [&](const std::vector<scheduler::Group>& groups) -> std::optional<scheduler::Place> {
      for (const auto& group : groups)
        for (const auto& place : group.places)
          if (group.cluster == id && place.role == SlotRole::Worker) {
            scheduler::Place worker = place;
            worker.node_version = 0;  // it rises with orders too, of which planners hear nothing
            return worker;
          }
      return {};
    };
    const auto again = rebuilt.plan({}, now.wall);
    auto groups = planner.plan({}, now.wall);
    EXPECT_EQ(place_of(groups), place_of(again));
    if (!groups.empty()) must(ApplyPlan{std::move(groups)});
  }
  scheduler::Group group_for(ClusterId id, std::vector<std::string> devices, std::int32_t share) const {
    scheduler::Group group;
    group.cluster = id;
    scheduler::Place head, worker;
    head.role = SlotRole::Head, head.node = state.nodes.begin()->first;
    worker.group = "workers", worker.node = box, worker.devices = std::move(devices), worker.share_milli = share;
    group.places = {head, worker};
    return group;
  }
};

TEST(Gpus, SharesOfOneGoToTheWorkOfOneOrganisation) {
  PartsWorld w(6);
  w.machine({PartsWorld::gpu("GPU-1", GpuSharing::Shared)});
  const ClusterId a = w.ask(PartsWorld::share_spec("a", 500));
  w.expect_same_plan(a);
  w.rounds();
  ASSERT_TRUE(w.runs(a));
  EXPECT_EQ(w.worker(a).share_milli, 500);
  EXPECT_EQ(w.worker(a).devices, std::vector<std::string>{"GPU-1"});
  EXPECT_EQ(w.worker(a).resources.gpus, 1) << "Ray counts one";
  const Assignment told = desired_for(w.state, w.box).at(0);
  EXPECT_EQ(told.gpu_share_milli, 500);
  EXPECT_NE(std::find(told.must_understand.begin(), told.must_understand.end(), "gpu_share"),
            told.must_understand.end())
      << "an agent that knows no shares would hold the whole GPU";
  EXPECT_EQ(free_resources(w.state, w.state.nodes.at(w.box)).gpus, 0);
  EXPECT_TRUE(free_devices(w.state, w.state.nodes.at(w.box)).empty());
  const ClusterId foreign = w.ask(PartsWorld::share_spec("foreign", 300), false);
  w.expect_same_plan(foreign);
  w.rounds();
  EXPECT_FALSE(w.runs(foreign)) << "another organisation's";
  const ClusterId b = w.ask(PartsWorld::share_spec("b", 400));
  w.expect_same_plan(b);
  w.rounds();
  EXPECT_TRUE(w.runs(b));
  const ClusterId c = w.start(PartsWorld::share_spec("c", 200));
  EXPECT_FALSE(w.runs(c)) << "a tenth is left";
  EXPECT_EQ(parts_free(w.state, w.state.nodes.at(w.box)).at("GPU-1"), 100);
  EXPECT_TRUE(decode_state(encode_state(w.state, kFormatVersion)).value() == w.state);
  w.stop(a);
  EXPECT_TRUE(w.runs(c)) << "what ended gave its share back";
  EXPECT_FALSE(w.runs(foreign));
  w.stop(b), w.stop(c);
  EXPECT_TRUE(w.runs(foreign)) << "nobody else is there any more";
  EXPECT_EQ(w.count<FormatRaised>(), 1) << "a new platform begins with the newest";
}

TEST(Gpus, WhoHasAGpuWholeSharesItWithNobodyAndTheOtherWayRound) {
  PartsWorld w(6);
  w.machine({PartsWorld::gpu("GPU-1", GpuSharing::Shared), PartsWorld::gpu("GPU-2", GpuSharing::Exclusive)});
  ClusterSpec whole = PartsWorld::share_spec("whole", 0);
  whole.groups[0].request.resources.gpus = 2;
  const ClusterId both = w.start(whole);
  ASSERT_TRUE(w.runs(both)) << "a GPU that may be shared may be had whole";
  const ClusterId part = w.start(PartsWorld::share_spec("part", 100));
  EXPECT_FALSE(w.runs(part));
  w.stop(both);
  ASSERT_TRUE(w.runs(part));
  EXPECT_EQ(w.worker(part).devices.at(0), "GPU-1") << "the other one's owner does not share it";
  EXPECT_FALSE(w.runs(w.start(whole)));
  const ClusterId second = w.start(PartsWorld::share_spec("one", 0));
  EXPECT_TRUE(w.runs(second));
  EXPECT_EQ(w.worker(second).devices.at(0), "GPU-2");
}

TEST(Gpus, WhateverIsProposedTheCoreGrantsNoMoreThanThereIs) {
  PartsWorld w(6);
  w.machine({PartsWorld::gpu("GPU-1", GpuSharing::Shared), PartsWorld::gpu("GPU-2", GpuSharing::Exclusive),
             PartsWorld::instance("MIG-1", 250)});
  const ClusterId first = w.start(PartsWorld::share_spec("first", 500));
  ASSERT_TRUE(w.runs(first));
  const auto refused = [&](ClusterId id, std::vector<std::string> devices, std::int32_t share) {
    w.must(ApplyPlan{{w.group_for(id, std::move(devices), share)}});
    return w.cluster(id).state == ClusterState::Queued;
  };
  const ClusterId much = w.ask(PartsWorld::share_spec("much", 600));
  EXPECT_TRUE(refused(much, {"GPU-1"}, 600)) << "half is left";
  EXPECT_TRUE(refused(w.ask(PartsWorld::share_spec("some", 400)), {"GPU-1"}, 100)) << "not what was asked for";
  EXPECT_TRUE(refused(much, {"GPU-1"}, 0)) << "nor whole";
  EXPECT_TRUE(refused(much, {"GPU-2"}, 600)) << "its owner does not share it";
  EXPECT_TRUE(refused(much, {"MIG-1"}, 600)) << "the instance is smaller";
  EXPECT_TRUE(refused(much, {"GPU-1", "GPU-1"}, 600));
  EXPECT_TRUE(refused(much, {"GPU-3"}, 600));
  const ClusterId foreign = w.ask(PartsWorld::share_spec("foreign", 200), false);
  EXPECT_TRUE(refused(foreign, {"GPU-1"}, 200)) << "another organisation has a share of it";
  const ClusterId whole = w.ask(PartsWorld::share_spec("whole", 0));
  EXPECT_TRUE(refused(whole, {"GPU-1"}, 0)) << "some of it is held";
  EXPECT_TRUE(refused(whole, {"MIG-1"}, 0)) << "an instance is no whole GPU";
  ClusterSpec venv = PartsWorld::share_spec("venv", 200);
  venv.runtime = RuntimeKind::Venv, venv.image = "venv:ray==2.60.0";
  EXPECT_TRUE(refused(w.ask(venv), {"MIG-1"}, 200)) << "a virtual environment cannot be kept to one instance";
  EXPECT_FALSE(refused(foreign, {"MIG-1"}, 200)) << "and this is right";
  EXPECT_TRUE(refused(w.ask(PartsWorld::share_spec("late", 50), false), {"MIG-1"}, 50)) << "one lease has it";
}

TEST(Gpus, TwoInOnePlanDoNotGetMoreThanThereIsTogether) {
  PartsWorld w(6);
  w.machine({PartsWorld::gpu("GPU-1", GpuSharing::Shared)});
  const ClusterId a = w.ask(PartsWorld::share_spec("a", 600)), b = w.ask(PartsWorld::share_spec("b", 600)),
                  c = w.ask(PartsWorld::share_spec("c", 300), false);
  auto second = w.group_for(b, {"GPU-1"}, 600), third = w.group_for(c, {"GPU-1"}, 300);
  second.places[0].node = std::next(w.state.nodes.begin())->first;
  third.places[0].node = std::next(w.state.nodes.begin(), 2)->first;
  w.must(ApplyPlan{{w.group_for(a, {"GPU-1"}, 600), second, third}});
  EXPECT_EQ(w.cluster(a).state, ClusterState::Starting);
  EXPECT_EQ(w.cluster(b).state, ClusterState::Queued);
  EXPECT_EQ(w.cluster(c).state, ClusterState::Queued) << "of another organisation";
}

TEST(Gpus, MigInstancesAreOneLeasesEachAndOfWhomeverItIs) {
  PartsWorld w(8);
  w.machine({PartsWorld::instance("MIG-1", 250), PartsWorld::instance("MIG-2", 500)});
  const ClusterId whole = w.start(PartsWorld::share_spec("whole", 0));
  EXPECT_FALSE(w.runs(whole));
  EXPECT_EQ(w.planner.queue_of(whole, w.now.wall).reason.code, "no_such_machines") << "none has a whole GPU";
  const ClusterId small = w.ask(PartsWorld::share_spec("small", 200));
  w.expect_same_plan(small);
  w.rounds();
  ASSERT_TRUE(w.runs(small));
  EXPECT_EQ(w.worker(small).devices.at(0), "MIG-1") << "the smallest that does";
  const ClusterId foreign = w.ask(PartsWorld::share_spec("foreign", 200), false);
  w.expect_same_plan(foreign);
  w.rounds();
  ASSERT_TRUE(w.runs(foreign)) << "instances keep organisations apart";
  EXPECT_EQ(w.worker(foreign).devices.at(0), "MIG-2");
  const ClusterId more = w.start(PartsWorld::share_spec("more", 100));
  EXPECT_FALSE(w.runs(more)) << "what is left of an instance is nobody's";
  EXPECT_EQ(w.planner.queue_of(more, w.now.wall).reason.params.at("exist"), "1") << "but it could be had";
  const ClusterId large = w.start(PartsWorld::share_spec("large", 600));
  EXPECT_EQ(w.planner.queue_of(large, w.now.wall).reason.params.at("exist"), "0");
  w.stop(small);
  EXPECT_TRUE(w.runs(more));
}

TEST(Gpus, QuotasCountShares) {
  PartsWorld w(8);
  w.machine({PartsWorld::gpu("GPU-1", GpuSharing::Shared), PartsWorld::gpu("GPU-2", GpuSharing::Shared)});
  w.must(SetQuota{{}, w.project, {1, 0, 0}});
  const ClusterId a = w.start(PartsWorld::share_spec("a", 500)), b = w.start(PartsWorld::share_spec("b", 500));
  EXPECT_TRUE(w.runs(a) && w.runs(b)) << "two halves are one";
  const ClusterId c = w.start(PartsWorld::share_spec("c", 300));
  EXPECT_FALSE(w.runs(c));
  const auto waits = quota_waits(w.state);
  ASSERT_EQ(waits.size(), 1U);
  EXPECT_EQ(waits[0].reason.text, "needs 0.3 GPUs more and project default holds 1 of the 1 that its quota allows");
  ClusterSpec two = PartsWorld::share_spec("two", 600);
  two.groups[0].min = two.groups[0].max = 2;
  EXPECT_EQ(w.run(CreateCluster{w.project, two}, w.user()).error().code, Code::FailedPrecondition) << "never fits";
  w.stop(a);
  EXPECT_TRUE(w.runs(c));
}

TEST(Gpus, AShareCostsItsPart) {
  PartsWorld w;
  w.machine({PartsWorld::gpu("GPU-1", GpuSharing::Shared)});
  Offer offer;
  offer.currency = "EUR", offer.price = offer.floor = 100'000, offer.gpu_price = offer.gpu_floor = 1'000'000;
  w.must(SetOffer{w.box, offer}, w.as(Role::Supplier, w.supplier));
  ClusterSpec spec = PartsWorld::share_spec("a", 250);
  spec.currency = "EUR", spec.max_price = 349'999;
  const ClusterId dear = w.start(spec);
  EXPECT_FALSE(w.runs(dear));
  const auto why = w.planner.queue_of(dear, w.now.wall).reason;
  EXPECT_EQ(why.params.at("refused_price"), "1") << why.text;
  EXPECT_NE(why.text.find("0.25 of a GPU"), std::string::npos) << why.text;
  spec.name = "b", spec.max_price = 350'000;
  const ClusterId fits = w.start(spec);
  ASSERT_TRUE(w.runs(fits));
  EXPECT_EQ(w.worker(fits).price, 350'000);
}

TEST(Gpus, WhatARequestMayAskFor) {
  PartsWorld w;
  const auto field = [&](const auto& change) {
    ClusterSpec s = PartsWorld::share_spec("a", 500);
    change(s.groups[0].request);
    return w.run(CreateCluster{w.project, s}, w.user()).error().field;
  };
  EXPECT_EQ(field([](NodeRequest& r) { r.gpu_share_milli = 1000; }), "spec.groups.0.request.gpu_share");
  EXPECT_EQ(field([](NodeRequest& r) { r.gpu_share_milli = 9; }), "spec.groups.0.request.gpu_share");
  EXPECT_EQ(field([](NodeRequest& r) { r.gpu_share_milli = -1; }), "spec.groups.0.request.gpu_share");
  EXPECT_EQ(field([](NodeRequest& r) { r.resources.gpus = 2; }), "spec.groups.0.request.gpu_share");
  EXPECT_EQ(field([](NodeRequest& r) { r.resources.gpus = 0; }), "spec.groups.0.request.gpu_share");
  EXPECT_EQ(field([](NodeRequest& r) { r.whole_machine = true; }), "spec.groups.0.request.gpu_share");
}

TEST(Gpus, TheFirstUseRaisesTheFormat) {
  PartsWorld w;
  w.state.format_version = 8;
  w.enrol("plain", 1);
  w.must(CreateCluster{w.project, World::spec()}, w.user());
  EXPECT_EQ(w.state.format_version, 8u) << "whole GPUs need none";
  w.machine({PartsWorld::gpu("GPU-1", GpuSharing::Shared)});
  EXPECT_EQ(w.state.format_version, kGpuFormat) << "a machine that shares";
  w.state.format_version = 8;
  NodeOnline back{w.box};
  back.facts = PartsWorld::facts_with({PartsWorld::instance("MIG-1", 250)});
  w.must(back);
  EXPECT_EQ(w.state.format_version, kGpuFormat) << "and one that changed";
  w.state.format_version = 8;
  w.must(CreateCluster{w.project, PartsWorld::share_spec("a", 500)}, w.user());
  EXPECT_EQ(w.state.format_version, kGpuFormat) << "older members would grant the whole GPU";
}

}  // namespace
}  // namespace muster::control
