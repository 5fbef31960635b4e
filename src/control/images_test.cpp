// Policies of images: refused when asked, failed when the policy came later, and what a member found behind a name is
// held to them as well.
#include "control/images.h"

#include "control/control_world.h"

namespace muster::control {
namespace {

using namespace std::chrono_literals;

const std::string kGood = "sha256:" + std::string(64, 'a'), kBad = "sha256:" + std::string(64, 'b');
constexpr std::string_view kKey =
    "-----BEGIN PUBLIC KEY-----\n"
    "MCowBQYDK2VwAyEACOOtxY0GZCh08D0t5I2Pe2/e4Wmawf8V39OwOvMSwsM=\n"
    "-----END PUBLIC KEY-----\n";

// The first organisation is the platform's, as after `musterd init`: here the suppliers'.
struct ImageWorld : World {
  ImageWorld() {
    for (const char* name : {"a", "b", "c", "d"}) enrol(name);
  }
  void set(ImagePolicy policy) { must(SetImagePolicy{{}, project, std::move(policy)}, user()); }
  Result<Outcome> ask(const std::string& image) {
    ClusterSpec s = spec(1, 1);
    s.image = image;
    return run(CreateCluster{project, s}, user());
  }
  // What an agent says after it pulled.
  void probed(ClusterId id, const std::string& digest) {
    ObservedLease o = seen(head(id).id, LeasePhase::Creating);
    o.probe.digest = digest;
    must(ReportObserved{head(id).node, 1, {o}, {}}, device(head(id).node));
  }
};

TEST(Images, WhatNoPolicyLetsThroughIsRefusedWithItsReason) {
  ImageWorld w;
  w.set({{"ray", kGood}, {}, false, {}});
  const auto refused = w.ask("ghcr.io/x/y");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::FailedPrecondition);
  EXPECT_EQ(refused.error().field, "spec.image");
  EXPECT_EQ(refused.error().message,
            "image_policy.not_allowed: the image ghcr.io/x/y is none of those that the image policy of project default "
            "allows; `muster images policy show` lists them: take one of them, or have yours added");
  EXPECT_TRUE(w.ask("ray:2").ok());
  JobSpec job;
  job.name = "train", job.entrypoint = "x", job.ephemeral = true, job.cluster_spec = World::spec();
  job.cluster_spec.name = "another", job.cluster_spec.image = "other";
  EXPECT_EQ(w.run(CreateJob{w.project, job}, w.user()).error().field, "spec.cluster_spec.image");
}

TEST(Images, EveryScopeBinds) {
  ImageWorld w;
  w.set({{"ray"}, {}, false, {}});
  w.must(SetImagePolicy{w.tenant, {}, {{}, {"ray:1"}, false, {}}}, w.user());
  w.must(SetImagePolicy{w.supplier, {}, {{}, {"ray:0"}, false, {}}});
  EXPECT_NE(w.ask("ray:1").error().message.find("image policy of organisation lab denies"), std::string::npos);
  EXPECT_NE(w.ask("ray:0").error().message.find("image policy of the platform denies"), std::string::npos);
  EXPECT_EQ(image_policies(w.state, w.project).size(), 3U);
  w.must(SetImagePolicy{w.tenant, {}, {}}, w.user());
  EXPECT_EQ(image_policies(w.state, w.project).size(), 2U) << "one that says nothing is not told to machines";
  EXPECT_TRUE(w.ask("ray:1").ok());
}

TEST(Images, WhoMaySetOne) {
  ImageWorld w;
  const auto set = [&](OrgId org, ProjectId project, const Actor& actor) {
    return w.run(SetImagePolicy{org, project, {{"x"}, {}, false, {}}}, actor);
  };
  const Actor stranger = w.as(Role::Tenant, OrgId{77}), of_platform = w.as(Role::Tenant, w.supplier);
  EXPECT_EQ(set({}, w.project, stranger).error().code, Code::NotFound);
  EXPECT_EQ(set(w.tenant, {}, stranger).error().code, Code::NotFound);
  EXPECT_EQ(set(w.tenant, {}, w.as(Role::Auditor, w.tenant)).error().code, Code::PermissionDenied);
  EXPECT_EQ(set(w.supplier, {}, of_platform).error().code, Code::NotFound)
      << "who belongs to the platform's organisation binds nobody else";
  EXPECT_TRUE(set(w.supplier, {}, w.as(Role::Operator, w.supplier)).ok());
  EXPECT_TRUE(set(w.tenant, {}, w.user()).ok());
  EXPECT_FALSE(set({}, ProjectId{99}, w.user()).ok());
}

TEST(Images, KeysAreLookedAtAndAChangeOfNothingIsNone) {
  ImageWorld w;
  const auto set = [&](std::vector<std::string> keys) {
    return w.run(SetImagePolicy{{}, w.project, {{}, {}, false, std::move(keys)}}, w.user());
  };
  EXPECT_EQ(set({"no key"}).error().field, "policy.keys");
  EXPECT_TRUE(set({std::string(kKey)}).ok());
  const auto events = w.journal.size();
  EXPECT_TRUE(set({std::string(kKey)}).ok());
  EXPECT_EQ(w.journal.size(), events);
}

TEST(Images, WhatIsDeniedByItselfLeavesTheRestOfThePolicy) {
  ImageWorld w;
  const std::string one = "sha256:" + std::string(64, 'a'), two = "sha256:" + std::string(64, 'b');
  w.must(SetImagePolicy{w.supplier, {}, {{"ray"}, {"evil"}, true, {}}});
  w.must(DenyImage{one});
  w.must(DenyImage{two});
  const auto events = w.journal.size();
  w.must(DenyImage{one});
  EXPECT_EQ(w.journal.size(), events) << "once is enough";
  const ImagePolicy& now = w.state.orgs.at(w.supplier).images;
  EXPECT_EQ(now.deny, (std::vector<std::string>{"evil", one, two}));
  EXPECT_EQ(now.allow, std::vector<std::string>{"ray"});
  EXPECT_FALSE(w.run(DenyImage{two + "c d"}, World::system()).ok()) << "a pattern as any other";
  EXPECT_EQ(w.run(DenyImage{two}, w.as(Role::Tenant, w.supplier)).error().code, Code::NotFound);
  EXPECT_EQ(w.state.orgs.at(w.supplier).images.deny.size(), 3U);
}

TEST(Images, AQueuedRequestThatAPolicyTurnsAgainstFailsWhenItWouldStart) {
  ImageWorld w;
  const ClusterId id = ClusterId::parse(w.ask("ray:2")->id).value();
  w.set({{}, {"ray"}, false, {}});
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Failed);
  EXPECT_EQ(w.cluster(id).reason, "image_policy.denied");
}

TEST(Images, WhatRunsGoesOnAndGetsNoMoreMachines) {
  ImageWorld w;
  const ClusterId id = w.up(World::spec(1, 3));
  ASSERT_EQ(w.cluster(id).state, ClusterState::Running);
  const NodeId node = w.head(id).node;
  const auto revision = w.state.nodes.at(node).revision;
  w.set({{}, {"ray"}, false, {}});
  EXPECT_GT(w.state.nodes.at(node).revision, revision) << "its agents are told";
  ASSERT_EQ(desired_for(w.state, node).at(0).image_policies.size(), 1U);
  EXPECT_EQ(desired_for(w.state, node).at(0).must_understand, std::vector<std::string>{"image_policy"});
  const NodeId lost = w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node;
  w.silent.insert(lost);
  w.must(NodeLost{lost});
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_TRUE(w.slots(id, SlotRole::Worker).empty()) << "no machine for it any more";
  w.set({});
  w.rounds();
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 1U);
  EXPECT_TRUE(desired_for(w.state, node).at(0).must_understand.empty());
}

TEST(Images, WhatIsFoundBehindANameIsHeldToThePolicy) {
  const auto outcome = [](ImagePolicy policy, const std::string& image, const std::string& found) {
    ImageWorld w;
    w.set(std::move(policy));
    const ClusterId id = ClusterId::parse(w.ask(image)->id).value();
    w.plan();
    w.probed(id, found);
    return w.cluster(id).state == ClusterState::Failed ? w.cluster(id).reason : std::string("goes on");
  };
  EXPECT_EQ(outcome({{}, {kBad}, false, {}}, "ray:2", "ray@" + kGood), "goes on");
  EXPECT_EQ(outcome({{}, {kBad}, false, {}}, "ray:2", "ray@" + kBad), "image_policy.denied");
  EXPECT_EQ(outcome({{}, {kBad}, false, {}}, "ray:2", kBad), "image_policy.denied") << "an image imported by hand";
  EXPECT_EQ(outcome({}, "ray:2", "evil.example/ray@" + kGood), "image_probe.other_image");
  EXPECT_EQ(outcome({}, "ray@" + kGood, "ray@" + kBad), "image_probe.other_image");
  EXPECT_EQ(outcome({}, "ray@" + kGood, "ray@" + kGood), "goes on");
}

// Of two equal machines the one that has it is chosen, by the name as it was ordered.
TEST(Images, WorkGoesWhereItsImageIs) {
  for (const int has_it : {0, 1}) {
    World w;
    const std::vector<NodeId> nodes{w.enrol("a"), w.enrol("b")};
    const NodeId there = nodes.at(static_cast<std::size_t>(has_it));
    NodeFacts facts = w.state.nodes.at(there).facts;
    facts.images = {"ray:2", "sha256:" + std::string(64, 'a')}, facts.image_bytes["ray:2"] = std::int64_t{4} << 30;
    w.must(NodeOnline{there, facts});
    ClusterSpec spec = World::spec(0, 1);
    spec.image = "ray:2";
    const ClusterId id = w.up(spec);
    EXPECT_EQ(w.lease_of(w.slots(id, SlotRole::Head).at(0)).node, there);
    const auto orders = desired_for(w.state, there);
    ASSERT_EQ(orders.size(), 1U);
    EXPECT_EQ(orders[0].image_asked, "ray:2")
        << "so that the machine can say which name it has, whatever it is pinned to";
    EXPECT_TRUE(decode_state(encode_state(w.state, kFormatVersion)).value() == w.state);
  }
}

TEST(Images, OlderFormatsCannotHoldTheirSizes) {
  World w;
  w.state.format_version = 6;
  const NodeId node = w.enrol("a");
  NodeFacts facts = w.state.nodes.at(node).facts;
  facts.images = {"ray:2"}, facts.image_bytes["ray:2"] = 7;
  w.must(NodeOnline{node, facts});
  EXPECT_EQ(w.state.nodes.at(node).facts.images, facts.images);
  EXPECT_TRUE(w.state.nodes.at(node).facts.image_bytes.empty());
  EXPECT_EQ(w.state.format_version, 6U);
}

TEST(Images, OlderFormatsCannotHoldAPolicy) {
  ImageWorld w;
  w.state.format_version = 4;
  const auto before = w.journal.size();
  w.set({{"ray"}, {}, false, {}});
  ASSERT_TRUE(std::holds_alternative<FormatRaised>(w.journal.at(before)));
  EXPECT_EQ(w.state.format_version, kImageFormat);
  const auto again = decode_state(encode_state(w.state));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->projects.at(w.project).images.allow, std::vector<std::string>{"ray"});
}

}  // namespace
}  // namespace muster::control
