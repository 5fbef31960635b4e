// A whole journal of each released format, kept in tests/data: it must load, fold to the state it always folded to, and
// be written again byte for byte. `contract_test --gtest_also_run_disabled_tests --gtest_filter=*GoldenJournal*Write*`
// writes the one of today's format; a file of a released format never changes.
#include <gtest/gtest.h>

#include <fstream>

#include "base/bytes.h"
#include "contract/disk.h"
#include "control/control_world.h"
#include "engine/core.h"
#include "engine/tools.h"
#include "store/memory_store.h"
#include "testing/test_root.h"

namespace muster::contract {
namespace {

using namespace control;

std::string path_of(std::uint32_t format, const std::string& what) {
  return muster::test_root() + "/tests/data/journal/format-" + std::to_string(format) + what;
}

struct Golden {
  std::vector<Bytes> entries;
  std::string digest;
};

Golden load(std::uint32_t format) {
  Golden golden;
  std::ifstream in(path_of(format, ".hex"));
  for (std::string line; std::getline(in, line);) golden.entries.push_back(unhex(line).value_or(Bytes{}));
  std::ifstream(path_of(format, ".digest")) >> golden.digest;
  return golden;
}

// A life in which everything happens that can happen.
World story() {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name, 2);
  const TokenId token =
      TokenId::parse(w.must(CreateApiToken{w.alice, Bytes(32, 60), "laptop", {"read"}, 1h}).id).value();
  w.must(RevokeApiToken{token});
  const TokenId login =
      TokenId::parse(w.must(CreateApiToken{w.alice, Bytes(32, 62), "cli", {}, 24h, Bytes(32, 63)}).id).value();
  w.must(RenewLogin{Bytes(32, 62), Bytes(32, 63), Bytes(32, 64)}, w.user());
  EXPECT_EQ(w.must(RenewLogin{Bytes(32, 62), Bytes(32, 63), Bytes(32, 65)}, w.user()).id, "reused");
  EXPECT_TRUE(w.state.api_tokens.at(login).revoked);
  const Bytes join(32, 61);
  w.must(RevokeJoinToken{TokenId::parse(w.must(CreateJoinToken{w.supplier, join, {{"pool", "x"}}, 1h}).id).value()});
  w.must(DisablePrincipal{
      PrincipalId::parse(w.must(CreateServiceAccount{w.tenant, "ci", Role::Tenant, "nightly"}, w.user()).id).value()});
  w.must(DisablePrincipal{PrincipalId::parse(w.must(CreatePrincipal{"bob", Role::Auditor, w.tenant}).id).value()});
  w.must(SetQuota{{}, w.project, {8, 64'000, 3}});
  w.must(SetNodeTier{NodeId{1}, TrustTier::Verified});
  Offer offer;
  offer.currency = "EUR", offer.price = offer.floor = 1'000'000, offer.images = {"ray:"};
  for (const std::uint64_t node : {1U, 2U, 3U, 4U}) w.must(SetOffer{NodeId{node}, offer});
  w.must(SetImagePolicy{{}, w.project, {{"ray"}, {"ray:1"}, false, {}}});
  w.must(SetHeadroom{{"H200", 1, 1}});
  w.must(SetTierShare{{3, 100}});
  w.must(ChangePrincipal{PrincipalId::parse(w.must(CreatePrincipal{"eve", Role::Tenant, w.tenant}).id).value(),
                         Role::Auditor, w.supplier});
  const PrincipalId adam =
      PrincipalId::parse(w.must(CreatePrincipal{"adam", Role::TenantAdmin, w.supplier}).id).value();
  const Actor admin = w.as(Role::TenantAdmin, w.supplier, adam);
  const PrincipalId vera =
      PrincipalId::parse(w.must(CreatePrincipal{"vera", Role::TenantViewer, w.supplier}, admin).id).value();
  w.must(CreateApiToken{vera, Bytes(32, 66), "tablet", {}, 24h, Bytes(32, 67)},
         w.as(Role::TenantViewer, w.supplier, vera));
  w.must(ChangePrincipal{vera, Role::Tenant}, admin);
  w.must(CreatePrincipal{"mem", Role::SupplierMember, w.supplier});
  const std::string old_key(16, 'a'), new_key(16, 'b');
  w.must(NoteSigningKeys{5, {{0, old_key, {}, WallTime{9'000}}, {0, new_key, WallTime{8'000}, {}}}});
  w.must(NoteSigningKeys{6, {{0, new_key, WallTime{8'000}, {}}}});
  NodeFacts facts = w.state.nodes.at(NodeId{1}).facts;
  facts.lan = {"192.168.1.5:41000"}, facts.labels = {{"rack", "7"}};
  facts.images = {"ray:2"}, facts.image_bytes = {{"ray:2", 4711}};
  w.must(NodeOnline{NodeId{1}, facts});
  ClusterSpec spec = World::spec(1, 3, 1);
  spec.env = {{"A", "b"}}, spec.max_lifetime = 1h, spec.idle_timeout = 5min, spec.head.labels = {{"team", "x"}};
  spec.groups[0].request.resources.traffic = {1'000, 2'000, 0};
  spec.pair_kbps = 50'000, spec.replace_slow = true;
  Actor alice = w.user();
  alice.request_id = "key-1", alice.request_hash = Bytes(32, 9);
  const ClusterId id = ClusterId::parse(w.must(CreateCluster{w.project, spec}, alice).id).value();
  w.rounds();
  w.must(GrantAccess{false, {}, id, {}, w.supplier, Right::Logs, "help", 1h}, w.user());
  w.must(GrantAccess{false, {}, id, {}, w.supplier, Right::Exec, "", 24h * 30}, w.user());
  w.must(
      JudgePairs{id, {{w.slots(id, SlotRole::Head).at(0)->id, w.slots(id, SlotRole::Worker).at(0)->id, 9'000, true}}});
  w.must(CountCarried{{{id, NodeId{2}, 12'345}}});
  NodeFacts parts = w.state.nodes.at(NodeId{2}).facts;
  parts.devices = {{"GPU-9", "A100", std::int64_t{40} << 30, GpuSharing::Shared},
                   {"MIG-9", "A100", std::int64_t{10} << 30, GpuSharing::Mig, 250, "2g.10gb"}};
  parts.capacity.gpus = 1;
  w.enrol("parts", parts, w.supplier);
  ClusterSpec part = World::spec(1, 1);
  part.name = "part", part.groups[0].request.resources.gpus = 1, part.groups[0].request.gpu_share_milli = 400;
  const ClusterId sharing = ClusterId::parse(w.must(CreateCluster{w.project, part}, w.user()).id).value();
  w.rounds();
  EXPECT_EQ(w.lease_of(w.slots(sharing, SlotRole::Worker).at(0)).share_milli, 400);
  JobSpec job;
  job.name = "train", job.entrypoint = "python train.py", job.cluster = "demo", job.retries = 1;
  const JobId first = JobId::parse(w.must(CreateJob{w.project, job}, w.user()).id).value();
  w.report_job(first, JobState::Running);
  w.report_job(first, JobState::Failed, 3, "driver_lost");
  w.pass(2s);
  w.report_job(first, JobState::Running);
  w.report_job(first, JobState::Succeeded, 0);
  w.must(SetJobLog{first, 2, 4711});
  RayReport ray{id, w.head(id).id, {}, {{{.cpu_milli = 2000}, 1, true}}};
  for (const Slot* slot : w.slots(id, SlotRole::Worker)) ray.nodes.push_back({"n", slot->address, true, Millis(0), {}});
  w.must(ReportRay{w.head(id).node, ray}, World::device(w.head(id).node));
  const NodeId lost = w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node;
  w.must(SetFreeze{true, "silence"});
  w.must(NodeSuspect{lost});
  w.must(NodeLost{lost});
  w.must(SetFreeze{false, ""});
  w.must(NodeOnline{lost});
  w.rounds();
  spec.groups[0].min = 2;
  w.must(UpdateCluster{id, spec, 0}, w.user());
  w.rounds();
  EXPECT_TRUE(w.report(w.lease_of(w.slots(id, SlotRole::Worker).at(0)).id, LeasePhase::Failed, "image_pull").ok());
  w.pass(1min);
  w.must(SetNode{w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node, SetNode::Action::Drain});
  w.rounds();
  w.must(SetNode{NodeId{1}, SetNode::Action::Disable});
  w.must(RaiseIncarnation{"restored"});
  w.pass(2h);
  w.rounds();
  for (int i = 0; i < 3; ++i) w.pass(1h);
  w.pass(25h);
  return w;
}

TEST(GoldenJournal, FoldsToTheStateItAlwaysDid) {
  for (std::uint32_t format = 1; format <= kFormatVersion; ++format) {
    const Golden golden = load(format);
    ASSERT_GT(golden.entries.size(), 90U) << path_of(format, ".hex") << " is missing; see the top of this file";
    State state;
    journal::ChainVerifier chain;
    std::set<std::size_t> seen;
    for (const Bytes& stored : golden.entries) {
      const auto entry = chain.next(stored);
      ASSERT_TRUE(entry.ok()) << entry.error().message;
      const auto event = decode_event(entry->event);
      ASSERT_TRUE(event.ok()) << event.error().message;
      seen.insert(event->index());
      EXPECT_EQ(encode(*event, format), entry->event) << "written again, it has other bytes: entry " << entry->seq;
      apply(state, *event, engine::context_of(*entry));
    }
    // Of format 1: all there are. A later format adds its own types to the story.
    for (std::size_t i = 0; i < 38; ++i) EXPECT_TRUE(seen.contains(i)) << "no event of type " << i + 1;
    EXPECT_EQ(hex(state_digest(state, format)), golden.digest) << "an old journal folds to another state";
  }
}

TEST(GoldenJournal, LoadsFromEveryStore) {
  const Golden golden = load(1);
  store::MemoryStore memory;
  SqliteDisk disk(false, "");
  const std::shared_ptr<journal::Store> sqlite = disk.open();
  for (journal::Store* store : {static_cast<journal::Store*>(&memory), sqlite.get()}) {
    // Its entries name leader epochs of their own; the store's fence must not be behind them.
    std::uint64_t epoch = 0;
    for (const Bytes& stored : golden.entries) epoch = std::max(epoch, journal::decode(stored)->leader_epoch);
    std::uint64_t fence = store->acquire_leader().value();
    while (fence < epoch) fence = store->acquire_leader().value();
    const auto entries = std::make_shared<std::vector<Bytes>>(golden.entries);
    ASSERT_EQ(append_wait(*store, {fence, 0, journal::genesis_hash(), entries}).outcome,
              journal::AppendOutcome::Committed);
    const auto base = engine::load_base(*store);
    ASSERT_TRUE(base.ok()) << base.error().message;
    EXPECT_EQ(hex(state_digest(base->state, 1)), golden.digest);
    EXPECT_TRUE(engine::verify(*store).ok());
  }
}

TEST(GoldenJournal, DISABLED_Write) {
  const World w = story();
  std::vector<Bytes> entries;
  State state;
  Bytes hash = journal::genesis_hash();
  const auto add = [&](const Event& event, EntryContext context) {
    context.seq = entries.size() + 1;
    journal::Entry entry{
        context.seq, context.leader_epoch, context.wall, engine::actor_of(context.actor), encode(event, kFormatVersion),
        hash};
    entries.push_back(journal::encode(entry).value());
    hash = journal::hash_of(entries.back());
    apply(state, event, engine::context_of(entry));
  };
  for (std::size_t i = 0; i < w.journal.size(); ++i) add(w.journal[i], w.contexts[i]);
  add(FormatRaised{kFormatVersion}, w.contexts.back());
  std::ofstream out(path_of(kFormatVersion, ".hex"));
  for (const Bytes& entry : entries) out << hex(entry) << "\n";
  std::ofstream(path_of(kFormatVersion, ".digest")) << hex(state_digest(state, kFormatVersion)) << "\n";
}

}  // namespace
}  // namespace muster::contract
