#include <fmt/format.h>

#include "model/names.h"
#include "muster/v1/api.pb.h"
#include "wire/message_json.h"
#include "wire/names.h"
#include "wire/rest.h"
#include "wire/rest_spec.h"

namespace muster::wire {
namespace {

template <typename Message>
Result<Message> decode(std::string_view body) {
  const Json value = TRY(parse_json(body));
  Message message;
  TRY_VOID(read_message(value, message));
  return message;
}
Status required(std::string_view value, std::string_view field) {
  if (value.empty()) return error(Code::InvalidArgument, fmt::format("{} is required", field), std::string(field));
  return {};
}

}  // namespace

Result<LoginRequest> parse_login(std::string_view body) {
  const auto m = TRY(decode<v1::LoginRequest>(body));
  TRY_VOID(required(m.name(), "name"));
  TRY_VOID(required(m.password(), "password"));
  return LoginRequest{m.name(), m.password(), m.label(), m.code()};
}

Result<BeginSsoRequest> parse_begin_sso(std::string_view body) {
  const auto m = TRY(decode<v1::BeginSsoRequest>(body));
  if (m.flow() != "browser" && m.flow() != "device")
    return error(Code::InvalidArgument, "flow must be browser or device", "flow");
  if (m.flow() == "browser" && (m.port() == 0 || m.port() > 65'535))
    return error(Code::InvalidArgument, "port must be the port (1-65535) on 127.0.0.1 that you listen on", "port");
  return BeginSsoRequest{m.flow() == "device", static_cast<std::uint16_t>(m.port())};
}

Result<FinishSsoRequest> parse_finish_sso(std::string_view body) {
  const auto m = TRY(decode<v1::FinishSsoRequest>(body));
  TRY_VOID(required(m.handle(), "handle"));
  for (const std::string* each : {&m.handle(), &m.code(), &m.state(), &m.issuer()})
    if (each->size() > 8192) return error(Code::InvalidArgument, "a text is longer than 8192 characters");
  return FinishSsoRequest{m.handle(), m.code(), m.state(), m.issuer(), m.label()};
}

Result<ChangePasswordRequest> parse_change_password(std::string_view body) {
  const auto m = TRY(decode<v1::ChangePasswordRequest>(body));
  TRY_VOID(required(m.old_password(), "oldPassword"));
  TRY_VOID(required(m.new_password(), "newPassword"));
  return ChangePasswordRequest{m.old_password(), m.new_password()};
}

Result<EnrolTotpRequest> parse_enrol_totp(std::string_view body) {
  const auto m = TRY(decode<v1::EnrolTotpRequest>(body));
  TRY_VOID(required(m.password(), "password"));
  return EnrolTotpRequest{m.password()};
}

Result<ConfirmTotpRequest> parse_confirm_totp(std::string_view body) {
  const auto m = TRY(decode<v1::ConfirmTotpRequest>(body));
  TRY_VOID(required(m.code(), "code"));
  return ConfirmTotpRequest{m.code()};
}

Result<DisableTotpRequest> parse_disable_totp(std::string_view body) {
  const auto m = TRY(decode<v1::DisableTotpRequest>(body));
  TRY_VOID(required(m.password(), "password"));
  TRY_VOID(required(m.code(), "code"));
  return DisableTotpRequest{m.password(), m.code()};
}

Result<RenewLoginRequest> parse_renew_login(std::string_view body) {
  const auto m = TRY(decode<v1::RenewLoginRequest>(body));
  TRY_VOID(required(m.refresh_token(), "refreshToken"));
  auto next = unhex(m.next_sha256());
  if (!next || next->size() != 32)
    return error(Code::InvalidArgument, "nextSha256 must be a SHA-256 in 64 hex digits", "nextSha256");
  return RenewLoginRequest{m.refresh_token(), std::move(*next)};
}

namespace {
Error no_role() {
  return error(Code::InvalidArgument, fmt::format("role must be {}", kRolesInWords), "role");
}
}  // namespace

Result<CreatePrincipalRequest> parse_create_principal(std::string_view body) {
  const auto m = TRY(decode<v1::CreatePrincipalRequest>(body));
  TRY_VOID(required(m.name(), "name"));
  if (m.sso_subject().empty()) TRY_VOID(required(m.password(), "password"));
  if (!m.sso_subject().empty() && !m.password().empty())
    return error(Code::InvalidArgument, "give a password or an ssoSubject, not both", "ssoSubject");
  if (m.sso_subject().size() > 255)
    return error(Code::InvalidArgument, "ssoSubject has more than 255 characters", "ssoSubject");
  const auto role = parse_role(m.role());
  if (!role) return no_role();
  return CreatePrincipalRequest{m.name(), *role, m.org(), m.password(), m.sso_subject()};
}

Result<ChangeRoleRequest> parse_change_role(std::string_view body) {
  const auto m = TRY(decode<v1::ChangeRoleRequest>(body));
  const auto role = parse_role(m.role());
  if (!role) return no_role();
  return ChangeRoleRequest{m.id(), *role};
}

Result<CreateOrgRequest> parse_create_org(std::string_view body) {
  const auto m = TRY(decode<v1::CreateOrgRequest>(body));
  TRY_VOID(required(m.name(), "name"));
  return CreateOrgRequest{m.name()};
}

Result<CreateProjectRequest> parse_create_project(std::string_view body) {
  const auto m = TRY(decode<v1::CreateProjectRequest>(body));
  TRY_VOID(required(m.name(), "name"));
  return CreateProjectRequest{m.org(), m.name()};
}

Result<SetQuotaRequest> parse_set_quota(std::string_view body) {
  const auto m = TRY(decode<v1::SetQuotaRequest>(body));
  const auto cpu_milli = TRY(read_milli(m.cpus(), "cpus"));
  SetQuotaRequest out{m.id(), {m.gpus(), cpu_milli, m.clusters()}, {}};
  if (m.has_share())
    out.share = Share{m.share().weight() == 0 ? Share{}.weight : m.share().weight(), m.share().guarantee_gpus(),
                      TRY(read_milli(m.share().guarantee_cpus(), "share.guaranteeCpus"))};
  return out;
}

Result<SetImagePolicyRequest> parse_set_image_policy(std::string_view body) {
  const auto m = TRY(decode<v1::SetImagePolicyRequest>(body));
  return SetImagePolicyRequest{m.id(), read(m.policy())};
}

Result<SetTierRequest> parse_set_tier(std::string_view body) {
  const auto m = TRY(decode<v1::SetTierRequest>(body));
  if (m.tier() > kTierMax) return error(Code::InvalidArgument, "tier must lie between 0 and 9", "tier");
  return SetTierRequest{{static_cast<std::uint8_t>(m.tier()), m.guarantee_permille()}};
}

Result<SetHeadroomRequest> parse_set_headroom(std::string_view body) {
  const auto m = TRY(decode<v1::SetHeadroomRequest>(body));
  if (m.tier() > 9) return error(Code::InvalidArgument, "tier must lie between 0 and 9", "tier");
  return SetHeadroomRequest{{m.gpu_model(), m.machines(), static_cast<std::uint8_t>(m.tier())}};
}

Result<CreateServiceAccountRequest> parse_create_service_account(std::string_view body) {
  const auto m = TRY(decode<v1::CreateServiceAccountRequest>(body));
  TRY_VOID(required(m.name(), "name"));
  const auto role = m.role().empty() ? std::optional(Role::None) : parse_role(m.role());
  if (!role) return no_role();
  return CreateServiceAccountRequest{m.name(), *role, m.org(), m.note()};
}

Result<CreateApiTokenRequest> parse_create_service_token(std::string_view body) {
  const auto m = TRY(decode<v1::CreateServiceTokenRequest>(body));
  const auto lifetime = TRY(read_seconds(m.lifetime_seconds(), "lifetimeSeconds"));
  return CreateApiTokenRequest{m.label(), {m.scopes().begin(), m.scopes().end()}, lifetime};
}

namespace {

template <class Message>
Result<CreateGrantRequest> read_grant(const Message& m) {
  if (m.project().empty() == m.cluster().empty())
    return error(Code::InvalidArgument, "name a project or a cluster, not both", "cluster");
  const auto right = parse_right(m.right());
  if (!right) return error(Code::InvalidArgument, "right must be look, logs, submit, exec or manage", "right");
  const auto lifetime = TRY(read_seconds(m.lifetime_seconds(), "lifetimeSeconds"));
  return CreateGrantRequest{m.project(), m.cluster(), {}, *right, m.reason(), lifetime};
}
template <class Message>
void write_grant(const CreateGrantRequest& request, Message& m) {
  m.set_project(request.project);
  m.set_cluster(request.cluster);
  m.set_right(std::string(text(request.right)));
  m.set_reason(request.reason);
  m.set_lifetime_seconds(request.lifetime.count() / 1000);
}

}  // namespace

Result<CreateGrantRequest> parse_create_grant(std::string_view body) {
  const auto m = TRY(decode<v1::CreateGrantRequest>(body));
  TRY_VOID(required(m.to(), "to"));
  CreateGrantRequest out = TRY(read_grant(m));
  out.to = m.to();
  return out;
}
Result<CreateGrantRequest> parse_break_glass(std::string_view body) {
  const auto m = TRY(decode<v1::BreakGlassRequest>(body));
  TRY_VOID(required(m.reason(), "reason"));
  return read_grant(m);
}

Result<CreateApiTokenRequest> parse_create_api_token(std::string_view body) {
  const auto m = TRY(decode<v1::CreateApiTokenRequest>(body));
  const auto lifetime = TRY(read_seconds(m.lifetime_seconds(), "lifetimeSeconds"));
  return CreateApiTokenRequest{m.label(), {m.scopes().begin(), m.scopes().end()}, lifetime};
}

Result<CreateJoinTokenRequest> parse_create_join_token(std::string_view body) {
  const auto m = TRY(decode<v1::CreateJoinTokenRequest>(body));
  const auto lifetime = TRY(read_seconds(m.lifetime_seconds(), "lifetimeSeconds"));
  return CreateJoinTokenRequest{m.org(), {m.labels().begin(), m.labels().end()}, lifetime};
}

Result<PutRegistryRequest> parse_put_registry(std::string_view body) {
  const auto m = TRY(decode<v1::PutRegistryRequest>(body));
  TRY_VOID(required(m.host(), "host"));
  TRY_VOID(required(m.username(), "username"));
  TRY_VOID(required(m.password(), "password"));
  const auto lifetime = TRY(read_seconds(m.lifetime_seconds(), "lifetimeSeconds"));
  return PutRegistryRequest{m.host(), m.username(), m.password(), lifetime};
}

Result<NodeActionRequest> parse_node_action(std::string_view body) {
  const auto m = TRY(decode<v1::NodeActionRequest>(body));
  NodeActionRequest out{m.id(), m.action(), {}};
  if (!m.tier().empty()) {
    out.tier = parse_tier(m.tier());
    if (!out.tier) return error(Code::InvalidArgument, "tier must be community, verified or platform", "tier");
  }
  if (out.action.empty() && !out.tier)
    return error(Code::InvalidArgument, "action is required: admit, disable, enable, drain, undrain or revoke",
                 "action");
  return out;
}

Result<SetOfferRequest> parse_set_offer(std::string_view body) {
  const auto m = TRY(decode<v1::SetOfferRequest>(body));
  SetOfferRequest out{m.id(), {}};
  if (m.has_offer()) out.offer = TRY(read(m.offer(), "offer"));
  return out;
}

Result<EnrollRequest> parse_enroll(std::string_view body) {
  const auto m = TRY(decode<v1::EnrollRequest>(body));
  TRY_VOID(required(m.token(), "token"));
  TRY_VOID(required(m.csr_pem(), "csrPem"));
  auto facts = TRY(read(m.facts(), "facts"));
  EnrollRequest out{m.token(), m.csr_pem(), m.name(), std::move(facts)};
  const auto key = unbase64(m.tpm_key()), signature = unbase64(m.tpm_signature());
  if (!key || key->size() > 256) return error(Code::InvalidArgument, "is no base64 of a public key", "tpmKey");
  if (!signature || signature->size() > 128 || key->empty() != signature->empty())
    return error(Code::InvalidArgument, "is no base64 of a signature by tpmKey", "tpmSignature");
  out.tpm_key = *key, out.tpm_signature = *signature;
  return out;
}

Result<CreateClusterRequest> parse_create_cluster(std::string_view body) {
  const auto m = TRY(decode<v1::CreateClusterRequest>(body));
  if (!m.has_spec()) return error(Code::InvalidArgument, "spec is required", "spec");
  return CreateClusterRequest{TRY(read(m.spec(), "spec")), m.project()};
}

Result<UpdateClusterRequest> parse_update_cluster(std::string_view body) {
  const auto m = TRY(decode<v1::UpdateClusterRequest>(body));
  if (!m.has_spec()) return error(Code::InvalidArgument, "spec is required", "spec");
  auto spec = TRY(read(m.spec(), "spec"));
  return UpdateClusterRequest{m.id(), std::move(spec), m.expected_generation()};
}

Result<CreateJobRequest> parse_create_job(std::string_view body) {
  const auto m = TRY(decode<v1::CreateJobRequest>(body));
  TRY_VOID(required(m.entrypoint(), "entrypoint"));
  if (m.cluster().empty() == !m.has_cluster_spec()) {
    return error(
        Code::InvalidArgument,
        "give either cluster (a name or id) or clusterSpec (an own cluster for this job), not both and not neither",
        "cluster");
  }
  if (!m.runtime_env_json().empty()) {
    const auto env = parse_json(m.runtime_env_json());
    if (!env.ok() || !env->is(Json::Kind::Object))
      return error(Code::InvalidArgument, "runtimeEnvJson must be the text of a JSON object", "runtimeEnvJson");
  }
  if (!m.driver_json().empty()) {
    const auto driver = parse_json(m.driver_json());
    bool known = driver.ok() && driver->is(Json::Kind::Object);
    for (const auto& [key, value] : known ? driver->members() : std::vector<Json::Member>{})
      known = known && (key == "num_cpus" || key == "num_gpus" || key == "memory" || key == "resources" ||
                        key == "label_selector");
    if (!known)
      return error(Code::InvalidArgument,
                   "driverJson must be the text of a JSON object with num_cpus, num_gpus, memory, resources or "
                   "label_selector",
                   "driverJson");
  }
  CreateJobRequest out;
  out.project = m.project();
  JobSpec& spec = out.spec;
  spec.name = m.name();
  spec.entrypoint = m.entrypoint();
  spec.cluster = m.cluster();
  spec.ephemeral = m.has_cluster_spec();
  if (spec.ephemeral) spec.cluster_spec = TRY(read(m.cluster_spec(), "clusterSpec"));
  spec.runtime_env_json = m.runtime_env_json();
  spec.driver_json = m.driver_json();
  spec.working_dir_blob = m.working_dir_blob();
  spec.metadata = {m.metadata().begin(), m.metadata().end()};
  spec.retries = m.retries();
  spec.timeout = TRY(read_seconds(m.timeout_seconds(), "timeoutSeconds"));
  return out;
}

Result<ClusterSpec> parse_cluster_spec(const Json& value) {
  v1::ClusterSpec spec;
  TRY_VOID(read_message(value, spec));
  return read(spec, "");
}

std::string to_json(const LoginRequest& request) {
  v1::LoginRequest m;
  m.set_name(request.name);
  m.set_password(request.password);
  m.set_label(request.label);
  m.set_code(request.code);
  return write_message(m);
}
std::string to_json(const BeginSsoRequest& request) {
  v1::BeginSsoRequest m;
  m.set_flow(request.device ? "device" : "browser");
  m.set_port(request.port);
  return write_message(m);
}
std::string to_json(const FinishSsoRequest& request) {
  v1::FinishSsoRequest m;
  m.set_handle(request.handle);
  m.set_code(request.code);
  m.set_state(request.state);
  m.set_issuer(request.issuer);
  m.set_label(request.label);
  return write_message(m);
}
std::string to_json(const ChangePasswordRequest& request) {
  v1::ChangePasswordRequest m;
  m.set_old_password(request.old_password);
  m.set_new_password(request.new_password);
  return write_message(m);
}
std::string to_json(const EnrolTotpRequest& request) {
  v1::EnrolTotpRequest m;
  m.set_password(request.password);
  return write_message(m);
}
std::string to_json(const ConfirmTotpRequest& request) {
  v1::ConfirmTotpRequest m;
  m.set_code(request.code);
  return write_message(m);
}
std::string to_json(const DisableTotpRequest& request) {
  v1::DisableTotpRequest m;
  m.set_password(request.password);
  m.set_code(request.code);
  return write_message(m);
}
std::string to_json(const RenewLoginRequest& request) {
  v1::RenewLoginRequest m;
  m.set_refresh_token(request.refresh_token);
  m.set_next_sha256(hex(request.next_sha256));
  return write_message(m);
}
std::string to_json(const CreatePrincipalRequest& request) {
  v1::CreatePrincipalRequest m;
  m.set_name(request.name);
  m.set_role(std::string(text(request.role)));
  m.set_org(request.org);
  m.set_password(request.password);
  m.set_sso_subject(request.sso_subject);
  return write_message(m);
}
std::string to_json(const ChangeRoleRequest& request) {
  v1::ChangeRoleRequest m;
  m.set_id(request.id);
  m.set_role(std::string(text(request.role)));
  return write_message(m);
}
std::string to_json(const SetQuotaRequest& request) {
  v1::SetQuotaRequest m;
  m.set_id(request.id);
  m.set_gpus(request.quota.gpus);
  m.set_cpus(static_cast<double>(request.quota.cpu_milli) / 1000);
  m.set_clusters(request.quota.clusters);
  if (request.share) write(*request.share, *m.mutable_share());
  return write_message(m);
}
std::string to_json(const SetImagePolicyRequest& request) {
  v1::SetImagePolicyRequest m;
  m.set_id(request.id);
  write(request.policy, *m.mutable_policy());
  return write_message(m);
}
std::string to_json(const SetTierRequest& request) {
  v1::SetTierRequest m;
  m.set_tier(request.row.tier);
  m.set_guarantee_permille(request.row.permille);
  return write_message(m);
}
std::string to_json(const SetHeadroomRequest& request) {
  v1::SetHeadroomRequest m;
  m.set_gpu_model(request.row.gpu_model);
  m.set_machines(request.row.machines);
  m.set_tier(request.row.tier);
  return write_message(m);
}
std::string to_json(const CreateServiceAccountRequest& request) {
  v1::CreateServiceAccountRequest m;
  m.set_name(request.name);
  if (request.role != Role::None) m.set_role(std::string(text(request.role)));
  m.set_org(request.org);
  m.set_note(request.note);
  return write_message(m);
}
std::string to_json(const CreateGrantRequest& request) {
  if (request.to.empty()) {
    v1::BreakGlassRequest m;
    write_grant(request, m);
    return write_message(m);
  }
  v1::CreateGrantRequest m;
  write_grant(request, m);
  m.set_to(request.to);
  return write_message(m);
}
std::string to_json(const CreateApiTokenRequest& request) {
  v1::CreateApiTokenRequest m;
  m.set_label(request.label);
  for (const auto& scope : request.scopes) m.add_scopes(scope);
  m.set_lifetime_seconds(request.lifetime.count() / 1000);
  return write_message(m);
}
std::string to_json(const CreateJoinTokenRequest& request) {
  v1::CreateJoinTokenRequest m;
  m.set_org(request.org);
  m.mutable_labels()->insert(request.labels.begin(), request.labels.end());
  m.set_lifetime_seconds(request.lifetime.count() / 1000);
  return write_message(m);
}
std::string to_json(const NodeActionRequest& request) {
  v1::NodeActionRequest m;
  m.set_id(request.id);
  m.set_action(request.action);
  if (request.tier) m.set_tier(std::string(text(*request.tier)));
  return write_message(m);
}
std::string to_json(const SetOfferRequest& request) {
  v1::SetOfferRequest m;
  m.set_id(request.id);
  if (request.offer) write(request.offer->offer, request.offer->tenants, *m.mutable_offer());
  return write_message(m);
}
std::string to_json(const EnrollRequest& request) {
  v1::EnrollRequest m;
  m.set_token(request.token);
  m.set_csr_pem(request.csr_pem);
  m.set_name(request.name);
  write(request.facts, *m.mutable_facts());
  m.set_tpm_key(base64(request.tpm_key));
  m.set_tpm_signature(base64(request.tpm_signature));
  return write_message(m);
}
std::string to_json(const PutRegistryRequest& request) {
  v1::PutRegistryRequest m;
  m.set_host(request.host);
  m.set_username(request.username);
  m.set_password(request.password);
  m.set_lifetime_seconds(request.lifetime.count() / 1000);
  return write_message(m);
}

std::string to_json(const CreateClusterRequest& request) {
  v1::CreateClusterRequest m;
  write(request.spec, *m.mutable_spec());
  m.set_project(request.project);
  return write_message(m);
}
std::string to_json(const UpdateClusterRequest& request) {
  v1::UpdateClusterRequest m;
  m.set_id(request.id);
  write(request.spec, *m.mutable_spec());
  m.set_expected_generation(request.expected_generation);
  return write_message(m);
}
std::string to_json(const CreateJobRequest& request) {
  v1::CreateJobRequest m;
  const JobSpec& spec = request.spec;
  m.set_name(spec.name);
  m.set_entrypoint(spec.entrypoint);
  m.set_cluster(spec.cluster);
  if (spec.ephemeral) write(spec.cluster_spec, *m.mutable_cluster_spec());
  m.set_runtime_env_json(spec.runtime_env_json);
  m.set_driver_json(spec.driver_json);
  m.set_working_dir_blob(spec.working_dir_blob);
  m.mutable_metadata()->insert(spec.metadata.begin(), spec.metadata.end());
  m.set_retries(spec.retries);
  m.set_timeout_seconds(spec.timeout.count() / 1000);
  m.set_project(request.project);
  return write_message(m);
}

}  // namespace muster::wire
