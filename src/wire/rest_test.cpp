#include "wire/rest.h"

#include <gtest/gtest.h>

#include <set>

#include "wire/contract.h"
#include "wire/openapi.h"

namespace muster::wire {
namespace {

ClusterSpec sample_spec() {
  ClusterSpec spec;
  spec.name = "alpha";
  spec.image = "muster/ray:1";
  spec.head.resources.cpu_milli = 1500;
  spec.head.resources.custom_milli["tpu"] = 250;
  spec.head.pinned = {NodeId{3}};
  spec.groups.push_back({"workers", 1, 4, {}, {"pip install x"}, {{"A", "b"}}});
  spec.groups[0].request.whole_machine = true;
  spec.groups[0].request.resources.traffic = {20'000, 100'000, std::int64_t{5} << 30};
  spec.groups[0].request.constraints["region"] = "eu";
  spec.groups.push_back({"parts", 0, 1, {}, {}, {}});
  spec.groups[1].request.resources.gpus = 1, spec.groups[1].request.gpu_share_milli = 250;
  spec.env["K"] = "v";
  spec.files.push_back({"/data", "ab12"});
  spec.spares = 1;
  spec.egress = true;
  spec.tier = 0;
  spec.priority = -7;
  spec.idle_timeout = Millis(300'000);
  spec.policy = Policy::FastNetwork, spec.min_trust = TrustTier::Verified;
  spec.max_price = 1'200'000, spec.budget = 40'000'000, spec.currency = "EUR", spec.may_end_early = true;
  spec.pair_kbps = 200'000, spec.replace_slow = true;
  return spec;
}

TEST(Rest, ClusterSpecSurvivesTheRoundTrip) {
  const ClusterSpec spec = sample_spec();
  const auto back = parse_create_cluster(to_json(CreateClusterRequest{spec, "prj-1"}));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->spec, spec);
  EXPECT_EQ(back->project, "prj-1");
}

TEST(Rest, DefaultsComeFromTheModel) {
  const auto request = parse_create_cluster(R"({"spec":{"name":"a","image":"i"}})");
  ASSERT_TRUE(request.ok()) << request.error().message;
  ClusterSpec expected;
  expected.name = "a";
  expected.image = "i";
  EXPECT_EQ(request->spec, expected);
}

TEST(Rest, OffersSurviveTheRoundTripAndKnowTheirDefaults) {
  SetOfferRequest request{"node-3", OfferText{}};
  Offer& offer = request.offer->offer;
  offer.currency = "EUR", offer.price = 1'200'000, offer.gpu_price = 800'000, offer.floor = 1'000'000;
  offer.images = {"muster/"}, offer.longest = Millis(12LL * 3'600'000), offer.notice = Millis(900'000);
  offer.schedule = "Mon 09:00-17:00", offer.zone = "Europe/Berlin", offer.hours = {{540, 1020}};
  request.offer->tenants = {"lab", "org-3"};
  const auto back = parse_set_offer(to_json(request));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->offer->offer, offer);
  EXPECT_EQ(back->offer->tenants, request.offer->tenants);
  const auto least = parse_set_offer(R"({"offer":{"priceMicros":"5","gpuPriceMicros":"7"}})");
  ASSERT_TRUE(least.ok()) << least.error().message;
  EXPECT_EQ(least->offer->offer.floor, 5) << "no floor is the price";
  EXPECT_EQ(least->offer->offer.gpu_floor, 7);
  EXPECT_EQ(least->offer->offer.currency, "credits");
  EXPECT_FALSE(parse_set_offer("{}")->offer.has_value());
  for (const auto& [body, field] : {std::pair{R"({"offer":{"hours":"always"}})", "offer.hours"},
                                    std::pair{R"({"offer":{"timezone":"UTC"}})", "offer.timezone"},
                                    std::pair{R"({"offer":{"noticeSeconds":"-1"}})", "offer.noticeSeconds"},
                                    std::pair{R"({"offer":{"priceMicros":1.5}})", "offer.priceMicros"},
                                    std::pair{R"({"offer":{"prise":1}})", "offer.prise"}})
    EXPECT_EQ(parse_set_offer(body).error().field, field) << body;
  const auto priced = parse_create_cluster(R"({"spec":{"name":"a","image":"i","budgetMicros":"5"}})");
  EXPECT_EQ(priced->spec.currency, "credits");
}

TEST(Rest, ImagePoliciesSurviveTheRoundTrip) {
  const SetImagePolicyRequest request{"prj-1", {{"ghcr.io/team/*"}, {"sha256:1"}, true, {"-----BEGIN"}}};
  const auto back = parse_set_image_policy(to_json(request));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->policy, request.policy);
  EXPECT_EQ(back->id, "prj-1");
  EXPECT_EQ(parse_set_image_policy("{}")->policy, ImagePolicy{});
  EXPECT_EQ(parse_set_image_policy(R"({"policy":{"alow":["a"]}})").error().field, "policy.alow");
}

TEST(Rest, TierSharesSurviveTheRoundTrip) {
  const auto back = parse_set_tier(to_json(SetTierRequest{{3, 150}}));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->row, (TierShare{3, 150}));
  EXPECT_EQ(parse_set_tier("{}")->row, TierShare{});
  EXPECT_EQ(parse_set_tier(R"({"tier":10})").error().field, "tier");
  EXPECT_FALSE(parse_set_tier(R"({"guaranteePermille":-1})").ok());
}

TEST(Rest, HeadroomSurvivesTheRoundTrip) {
  const SetHeadroomRequest request{{"NVIDIA H100", 3, 1}};
  const auto back = parse_set_headroom(to_json(request));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->row, request.row);
  EXPECT_EQ(parse_set_headroom("{}")->row, Headroom{});
  EXPECT_EQ(parse_set_headroom(R"({"tier":10})").error().field, "tier");
  EXPECT_FALSE(parse_set_headroom(R"({"machines":-1})").ok());
}

struct Refusal {
  const char* body;
  Code code;
  const char* field;
};
TEST(Rest, RefusalsNameTheField) {
  const Refusal table[] = {
      {"{}", Code::InvalidArgument, "spec"},
      {"[]", Code::InvalidArgument, ""},
      {R"({"spec":{"nam":"a"}})", Code::InvalidArgument, "spec.nam"},
      {R"({"spec":{"policy":"fastest"}})", Code::InvalidArgument, "spec.policy"},
      {R"({"spec":{"minTrust":"friend"}})", Code::InvalidArgument, "spec.minTrust"},
      {R"({"spec":{"maxPriceMicros":"-1"}})", Code::InvalidArgument, "spec.maxPriceMicros"},
      {R"({"spec":{"name":7}})", Code::InvalidArgument, "spec.name"},
      {R"({"spec":{"name":"a\u0000"}})", Code::InvalidArgument, "spec.name"},
      {R"({"spec":{"head":{"resources":{"cpus":"many"}}}})", Code::InvalidArgument, "spec.head.resources.cpus"},
      {R"({"spec":{"head":{"resources":{"cpus":-1}}}})", Code::InvalidArgument, "spec.head.resources.cpus"},
      {R"({"spec":{"head":{"gpuShare":1}}})", Code::InvalidArgument, "spec.head.gpuShare"},
      {R"({"spec":{"head":{"gpuShare":0.0001}}})", Code::InvalidArgument, "spec.head.gpuShare"},
      {R"({"spec":{"head":{"gpuShare":-0.5}}})", Code::InvalidArgument, "spec.head.gpuShare"},
      {R"({"spec":{"groups":[{},{"min":-1}]}})", Code::InvalidArgument, "spec.groups[1].min"},
      {R"({"spec":{"groups":[{},{"min":1.5}]}})", Code::InvalidArgument, "spec.groups[1].min"},
      {R"({"spec":{"groups":{}}})", Code::InvalidArgument, "spec.groups"},
      {R"({"spec":{"env":{"A":1}}})", Code::InvalidArgument, "spec.env.A"},
      {R"({"spec":{"egress":"yes"}})", Code::InvalidArgument, "spec.egress"},
      {R"({"spec":{"runtime":"vm"}})", Code::InvalidArgument, "spec.runtime"},
      {R"({"spec":{"head":{"pinnedNodes":["x"]}}})", Code::InvalidArgument, "spec.head.pinnedNodes[0]"},
      {R"({"spec":{"shmBytes":"1","shm_bytes":"1"}})", Code::InvalidArgument, "spec.shm_bytes"},
      {R"({"spec":{"idleTimeoutSeconds":"-1"}})", Code::InvalidArgument, "spec.idleTimeoutSeconds"},
      {R"({"spec":{"name":"a","name":"b"}})", Code::InvalidArgument, "name"},
  };
  for (const auto& row : table) {
    const auto request = parse_create_cluster(row.body);
    ASSERT_FALSE(request.ok()) << row.body;
    EXPECT_EQ(request.error().code, row.code) << row.body;
    EXPECT_EQ(request.error().field, row.field) << row.body << " " << request.error().message;
  }
}

TEST(Rest, AShareIsOfOneGpu) {
  const auto request = parse_create_cluster(R"({"spec":{"name":"a","groups":[{"request":{"gpuShare":0.5}}]}})");
  ASSERT_TRUE(request.ok()) << request.error().message;
  EXPECT_EQ(request->spec.groups[0].request.gpu_share_milli, 500);
  EXPECT_EQ(request->spec.groups[0].request.resources.gpus, 1);
  NodeView node;
  node.node.facts.devices = {{"GPU-1", "A100", 40, GpuSharing::Shared},
                             {"MIG-1", "A100", 10, GpuSharing::Mig, 250, "2g.10gb"}};
  node.parts_free = {{"GPU-1", 400}, {"MIG-1", 0}};
  const std::string json = to_json(node);
  EXPECT_NE(json.find(R"("sharing":"shared")"), std::string::npos) << json;
  EXPECT_NE(json.find(R"("free":0.4)"), std::string::npos) << json;
  EXPECT_NE(json.find(R"("profile":"2g.10gb")"), std::string::npos) << json;
}

TEST(Rest, JobNeedsExactlyOneKindOfCluster) {
  EXPECT_FALSE(parse_create_job(R"({"entrypoint":"x"})").ok());
  EXPECT_FALSE(parse_create_job(R"({"entrypoint":"x","cluster":"a","clusterSpec":{}})").ok());
  EXPECT_FALSE(parse_create_job(R"({"entrypoint":"x","cluster":"a","runtimeEnvJson":"[1]"})").ok());
  const auto job = parse_create_job(R"({"entrypoint":"x","cluster":"a","retries":2,"timeoutSeconds":"60"})");
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(job->spec.timeout, Millis(60'000));
  EXPECT_FALSE(job->spec.ephemeral);
}

// Every view must have exactly the shape that the contract, and with it the OpenAPI document, promises.
TEST(Rest, ViewsMatchTheContract) {
  ClusterView cluster;
  cluster.cluster.spec = sample_spec();
  cluster.slots.push_back({});
  cluster.ray_nodes.push_back({"ab", 0x0a400001, true, Millis(2000), {}});
  cluster.differences.push_back("bad \xff bytes");
  cluster.failures.push_back({{}, {}, "box", "setup.failed", "bad \xff bytes", {}});
  cluster.queue = QueueView{};
  NodeView node;
  node.node.facts.devices.push_back({"GPU-1", "H100", 1});
  node.node.facts.runtimes.push_back(RuntimeKind::Docker);
  node.leases.push_back({});
  TelemetryView telemetry;
  telemetry.gpus.push_back({});
  telemetry.containers.push_back({});
  NetView net;
  net.members.push_back({});
  net.pairs.push_back({});
  net.pairs[0].tries.push_back({});
  const std::vector<std::pair<const char*, std::string>> views = {
      {"ClusterNet", to_json(net)},
      {"LoginResponse", to_json(LoginView{})},
      {"SsoStart", to_json(SsoStartView{"h", "https://a", "s", "", "", "", Millis(5000), {}})},
      {"SsoAnswer", to_json(SsoAnswerView{true, Millis(5000), {}, {}})},
      {"SsoAnswer", to_json(SsoAnswerView{false, {}, LoginView{}, "p"})},
      {"Plan", to_json(PlanView{{{}}, QueueView{}})},
      {"Principal", to_json(PrincipalView{})},
      {"TotpStatus", to_json(TotpView{true, {}, 3})},
      {"TotpEnrolment", to_json(TotpEnrolmentView{"A", "otpauth:", {}})},
      {"TotpRecovery", to_json(TotpRecoveryView{{"a"}, 1})},
      {"Org", to_json(Org{})},
      {"Project", to_json(Project{})},
      {"QuotaView", to_json(QuotaView{QuotaScope{}, {}})},
      {"ImagePolicyView",
       to_json(ImagePolicyView{{}, ImagePolicyScope{"o", "n", {{"a"}, {}, true, {"k"}}, {"f"}}, {}})},
      {"ImageScan", to_json(ImageScanView{"a", "block", "w", "Debian:12", 1, 1, 1, {}, {{}}, {ClusterId{1}}})},
      {"Grant", to_json(GrantView{})},
      {"ServiceAccount", to_json(ServiceAccountView{})},
      {"ApiToken", to_json(ApiTokenView{})},
      {"JoinToken", to_json(JoinTokenView{})},
      {"EnrollResponse", to_json(EnrollView{})},
      {"Node", to_json(node)},
      {"QueueEntry", to_json(QueueView{})},
      {"Cluster", to_json(cluster)},
      {"Job", to_json(JobView{})},
      {"Blob", to_json(BlobView{})},
      {"Event", to_json(EventView{})},
      {"TelemetryView", to_json(telemetry)},
      {"ServerInfo", to_json(ServerView{})},
      {"ClusterList", list_json({to_json(cluster)}, "c", 7)},
      {"QueueList", list_json({}, "", 7)},
      {"TelemetryList", list_json({to_json(telemetry)}, "", 7)},
      {"Problem", problem_json(error(Code::NotFound, "no \xff"))}};
  for (const auto& [message, text] : views) {
    const auto value = parse_json(text);
    ASSERT_TRUE(value.ok()) << message << ": " << value.error().message;
    const auto shape = check_json(message, *value);
    EXPECT_TRUE(shape.ok()) << message << ": " << (shape.ok() ? "" : shape.error().message);
  }
}

TEST(OpenApi, HoldsEveryOperationOnceAndResolvesReferences) {
  const auto document = parse_json(openapi_json(), {.bytes = 8 << 20});
  ASSERT_TRUE(document.ok()) << document.error().message;
  EXPECT_EQ((*document)["openapi"].text(), "3.1.0");
  std::set<std::string> ids;
  for (const auto& op : operations()) {
    std::string method = op.method;
    for (char& c : method) c = static_cast<char>(c | 0x20);
    const auto& found = (*document)["paths"][op.path][method];
    EXPECT_EQ(found["operationId"].text(), op.name);
    EXPECT_TRUE(ids.insert(op.name).second);
    EXPECT_NE((*document)["components"]["schemas"].find(op.response), nullptr) << op.response;
    // Each {name} of the path is a declared parameter.
    const auto open = op.path.find('{');
    if (open == std::string::npos) continue;
    const auto name = op.path.substr(open + 1, op.path.find('}') - open - 1);
    bool declared = false;
    for (const auto& p : found["parameters"].items())
      declared = declared || (p["name"].text() == name && p["in"].text() == "path");
    EXPECT_TRUE(declared) << op.name;
  }
  const std::string& text = openapi_json();
  for (std::size_t at = text.find("#/components/"); at != std::string::npos; at = text.find("#/components/", at + 1)) {
    const auto path = text.substr(at + 13, text.find('"', at) - at - 13);
    const auto slash = path.find('/');
    EXPECT_NE((*document)["components"][path.substr(0, slash)].find(path.substr(slash + 1)), nullptr) << path;
  }
}

}  // namespace
}  // namespace muster::wire
