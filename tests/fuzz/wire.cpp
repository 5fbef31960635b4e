// Frames of agents and of the control plane, JSON, and the body of every REST request.
#include "fuzz/fuzz.h"
#include "wire/agent_frames.h"
#include "wire/contract.h"
#include "wire/random_frames.h"
#include "wire/rest.h"

namespace muster::fuzz {
namespace {

Seeds seeds_agent_frame() {
  Seeds out;
  wire::Gen gen{Rng(1)};
  for (int i = 0; i < 60; ++i) out.push_back(wire::encode(gen.agent()));
  return out;
}
FUZZ_TARGET(agent_frame, 16 << 10) {
  const auto frame = wire::decode_agent_frame(input);
  if (!frame.ok()) return;
  const auto again = wire::decode_agent_frame(wire::encode(*frame));
  MUSTER_CHECK(again.ok() && *again == *frame);
  if (const auto* bye = std::get_if<session::Goodbye>(&*frame)) plant(bye->reason.size() > 2 && bye->reason[0] < 'a');
}

Seeds seeds_server_frame() {
  Seeds out;
  wire::Gen gen{Rng(2)};
  for (int i = 0; i < 60; ++i) out.push_back(wire::encode(gen.server()));
  return out;
}
FUZZ_TARGET(server_frame, 16 << 10) {
  const auto frame = wire::decode_server_frame(input);
  if (!frame.ok()) return;
  const auto again = wire::decode_server_frame(wire::encode(*frame));
  MUSTER_CHECK(again.ok() && *again == *frame);
  if (const auto* desired = std::get_if<session::Desired>(&*frame)) {
    (void)wire::desired_signing_bytes(NodeId{7}, *desired);
  }
  if (const auto* no = std::get_if<session::Refused>(&*frame)) plant(no->code.size() > 2 && no->code[0] < 'a');
}

Seeds seeds_json() {
  Seeds out;
  for (const char* text :
       {"null", "true", "-12.5e+3", R"("a\u00e9\ud83d\ude00\n")", "[]", "{}", R"([1,[2,[3]],{"a":[]}])",
        R"({"a":{"b":["c",1,false,null]},"d":1e2,"e":"\"\\\/\b\f\n\r\t"})",
        R"({"n":9223372036854775807,"m":"-9223372036854775808"})", R"([0,{"a":1},{"b":[]}])", R"([{"a":1,"b":2},0])"})
    out.push_back(to_bytes(text));
  return out;
}
FUZZ_TARGET(json, 4 << 10) {
  const auto value = wire::parse_json(as_string(input));
  if (!value.ok()) return;
  const auto again = wire::parse_json(value->dump());
  MUSTER_CHECK(again.ok() && *again == *value);
  (void)value->integer();
  (void)value->real();
  (void)(*value)["a"]["b"].text();
  plant(value->items().size() == 3 && value->items()[1].is(wire::Json::Kind::Object) &&
        value->items()[1].members().size() == 2);
}

template <typename Parse>
void parse_twice(Parse parse, std::string_view body) {  // what was read is written, read and written as the same again
  const auto request = parse(body);
  if (!request.ok()) return;
  if constexpr (requires { wire::to_json(*request); }) {
    const std::string text = wire::to_json(*request);
    const auto again = parse(text);
    MUSTER_CHECK(again.ok() && wire::to_json(*again) == text);
  }
}

Seeds seeds_rest() {
  wire::CreateClusterRequest cluster;
  cluster.spec.name = "alpha";
  cluster.spec.image = "muster/ray:1";
  cluster.spec.head.resources.custom_milli["tpu"] = 250;
  cluster.spec.head.pinned = {NodeId{3}};
  cluster.spec.groups.push_back({"workers", 1, 4, {}, {"pip install x"}, {{"A", "b"}}});
  cluster.spec.groups[0].request.constraints["region"] = "eu";
  cluster.spec.env["K"] = "v";
  cluster.spec.files.push_back({"/data", "ab12"});
  cluster.spec.idle_timeout = Millis(300'000);
  wire::CreateJobRequest job;
  job.spec.name = "j";
  job.spec.entrypoint = "python x.py";
  job.spec.cluster = "alpha";
  job.spec.retries = 2;
  job.spec.timeout = Millis(60'000);
  wire::EnrollRequest enroll{"mj1.a.b", "-----BEGIN", "box", {}};
  enroll.facts.devices.push_back({"GPU-1", "H100", 80 << 20});
  enroll.facts.runtimes.push_back(RuntimeKind::Docker);
  const std::string bodies[] = {
      wire::to_json(wire::LoginRequest{"ann", "secret", "laptop"}),
      wire::to_json(wire::ChangePasswordRequest{"a", "b"}),
      wire::to_json(wire::CreatePrincipalRequest{"bob", Role::Tenant, "org-1", "pw"}),
      R"({"name":"acme"})",
      R"({"org":"org-1","name":"p"})",
      wire::to_json(wire::SetQuotaRequest{"org-1", {8, 64'000, 4}}),
      wire::to_json(wire::CreateApiTokenRequest{"ci", {"jobs"}, Millis(3'600'000)}),
      wire::to_json(wire::CreateJoinTokenRequest{"org-1", {{"zone", "a"}}, Millis(3'600'000)}),
      wire::to_json(wire::NodeActionRequest{"node-1", "drain", TrustTier::Verified}),
      wire::to_json(enroll),
      wire::to_json(wire::PutRegistryRequest{"ghcr.io", "u", "p", Millis(60'000)}),
      wire::to_json(cluster),
      wire::to_json(wire::UpdateClusterRequest{"cl-1", cluster.spec, 3}),
      wire::to_json(job),
      wire::to_json(wire::EnrolTotpRequest{"pw"}),
      wire::to_json(wire::ConfirmTotpRequest{"123456"}),
      wire::to_json(wire::DisableTotpRequest{"pw", "123456"}),
      R"({"device":true,"port":4711})",
      R"({"handle":"h","code":"c","state":"s","issuer":"https://id.example","label":"laptop"})",
      R"({"id":"node-1","offer":{"prices":{"H100":1000000},"currency":"EUR"}})",
      wire::to_json(wire::SetImagePolicyRequest{"org-1", {{"ghcr.io/*"}, {"evil"}, true, {"-----BEGIN"}}}),
      wire::to_json(wire::SetHeadroomRequest{{"H100", 2, 1}}),
      wire::to_json(wire::SetTierRequest{{3, 150}}),
      wire::to_json(wire::ChangeRoleRequest{"usr-3", Role::TenantViewer}),
  };
  Seeds out;
  for (std::uint8_t kind = 0; kind < std::size(bodies); ++kind) out.push_back(Bytes{kind} + bodies[kind]);
  return out;
}
FUZZ_TARGET(rest, 6 << 10) {
  Input in(input);
  const std::uint8_t kind = in.byte();
  const std::string_view body = in.text();
  switch (kind) {
    case 0:
      return parse_twice(wire::parse_login, body);
    case 1:
      return parse_twice(wire::parse_change_password, body);
    case 2:
      return parse_twice(wire::parse_create_principal, body);
    case 3:
      return parse_twice(wire::parse_create_org, body);
    case 4:
      return parse_twice(wire::parse_create_project, body);
    case 5:
      return parse_twice(wire::parse_set_quota, body);
    case 6:
      return parse_twice(wire::parse_create_api_token, body);
    case 7:
      return parse_twice(wire::parse_create_join_token, body);
    case 8:
      return parse_twice(wire::parse_node_action, body);
    case 9:
      return parse_twice(wire::parse_enroll, body);
    case 10:
      return parse_twice(wire::parse_put_registry, body);
    case 11: {
      const auto request = wire::parse_create_cluster(body);
      if (request.ok()) plant(request->spec.groups.size() == 1 && request->spec.name != "alpha");
      return parse_twice(wire::parse_create_cluster, body);
    }
    case 12:
      return parse_twice(wire::parse_update_cluster, body);
    case 13:
      return parse_twice(wire::parse_create_job, body);
    case 14:
      return parse_twice(wire::parse_enrol_totp, body);
    case 15:
      return parse_twice(wire::parse_confirm_totp, body);
    case 16:
      return parse_twice(wire::parse_disable_totp, body);
    case 17:
      return (void)wire::parse_begin_sso(body).ok();
    case 18:
      return (void)wire::parse_finish_sso(body).ok();
    case 19:
      return (void)wire::parse_set_offer(body).ok();
    case 20:
      return parse_twice(wire::parse_set_image_policy, body);
    case 21:
      return parse_twice(wire::parse_set_headroom, body);
    case 23:
      return parse_twice(wire::parse_change_role, body);
    default: {
      const auto value = wire::parse_json(body);
      if (value.ok()) (void)wire::check_json("Cluster", *value).ok();
    }
  }
}

}  // namespace
}  // namespace muster::fuzz
