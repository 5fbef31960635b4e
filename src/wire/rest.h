#pragma once
// REST bodies <-> model values. Requests: parse_* read strict JSON (wire/contract.h says what is refused) into plain
// structs, to_json writes them (CLI). Views: what the server shows, as model values plus what it computed, written by
// to_json. Shapes only: whether a value makes sense is decided by model validation and the core. Pure; thread-safe.
// Times are WallTime, 0 = "".
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/types.h"
#include "session/frames.h"
#include "wire/json.h"

namespace muster::wire {

// ---- requests
struct LoginRequest {
  std::string name, password, label, code;
};
struct EnrolTotpRequest {
  std::string password;
};
struct ConfirmTotpRequest {
  std::string code;
};
struct DisableTotpRequest {
  std::string password, code;
};
struct BeginSsoRequest {
  bool device = false;
  std::uint16_t port = 0;  // of the loopback address, in the browser
};
struct FinishSsoRequest {
  std::string handle, code, state, issuer, label;
};
struct RenewLoginRequest {
  std::string refresh_token;
  Bytes next_sha256;
};
struct ChangePasswordRequest {
  std::string old_password, new_password;
};
struct CreatePrincipalRequest {
  std::string name;
  Role role = Role::None;
  std::string org, password;
  std::string sso_subject = {};  // instead of a password
};
struct ChangeRoleRequest {
  std::string id;
  Role role = Role::None;
};
struct CreateOrgRequest {
  std::string name;
};
struct CreateProjectRequest {
  std::string org, name;
};
struct SetQuotaRequest {
  std::string id;
  Quota quota;
  std::optional<Share> share;  // as it is, where it is not given
};
struct SetImagePolicyRequest {
  std::string id;
  ImagePolicy policy;
};
struct SetTierRequest {
  TierShare row;
};
struct SetHeadroomRequest {
  Headroom row;
};
struct CreateApiTokenRequest {
  std::string label;
  std::vector<std::string> scopes;
  Millis lifetime{0};
};
struct CreateServiceAccountRequest {
  std::string name;
  Role role = Role::None;  // None: the caller's own
  std::string org, note;
};
struct CreateGrantRequest {
  std::string project, cluster;
  std::string to = {};  // an id; empty: break-glass
  Right right = Right::None;
  std::string reason;
  Millis lifetime{0};
};
struct CreateJoinTokenRequest {
  std::string org;
  std::map<std::string, std::string> labels;
  Millis lifetime{0};
};
struct NodeActionRequest {
  std::string id, action;
  std::optional<TrustTier> tier;
};
struct OfferText {  // as people say it: organisations by name, hours and zone not made UTC yet
  Offer offer;
  std::vector<std::string> tenants;
};
struct SetOfferRequest {
  std::string id;
  std::optional<OfferText> offer;  // absent: whatever comes, for nothing
};
struct EnrollRequest {
  std::string token, csr_pem, name;
  NodeFacts facts;
  Bytes tpm_key = {}, tpm_signature = {};
};
struct PutRegistryRequest {
  std::string host, username, password;
  Millis lifetime{0};
};
struct CreateClusterRequest {
  ClusterSpec spec;
  std::string project;
};
struct UpdateClusterRequest {
  std::string id;
  ClusterSpec spec;
  std::uint64_t expected_generation = 0;
};
struct CreateJobRequest {
  JobSpec spec;
  std::string project;
};

Result<LoginRequest> parse_login(std::string_view body);
Result<RenewLoginRequest> parse_renew_login(std::string_view body);
Result<BeginSsoRequest> parse_begin_sso(std::string_view body);
Result<FinishSsoRequest> parse_finish_sso(std::string_view body);
Result<ChangePasswordRequest> parse_change_password(std::string_view body);
Result<EnrolTotpRequest> parse_enrol_totp(std::string_view body);
Result<ConfirmTotpRequest> parse_confirm_totp(std::string_view body);
Result<DisableTotpRequest> parse_disable_totp(std::string_view body);
Result<CreatePrincipalRequest> parse_create_principal(std::string_view body);
Result<CreateOrgRequest> parse_create_org(std::string_view body);
Result<CreateProjectRequest> parse_create_project(std::string_view body);
Result<ChangeRoleRequest> parse_change_role(std::string_view body);
Result<SetQuotaRequest> parse_set_quota(std::string_view body);
Result<SetImagePolicyRequest> parse_set_image_policy(std::string_view body);
Result<SetTierRequest> parse_set_tier(std::string_view body);
Result<SetHeadroomRequest> parse_set_headroom(std::string_view body);
Result<CreateServiceAccountRequest> parse_create_service_account(std::string_view body);
Result<CreateGrantRequest> parse_create_grant(std::string_view body);
Result<CreateGrantRequest> parse_break_glass(std::string_view body);
Result<CreateApiTokenRequest> parse_create_api_token(std::string_view body);
Result<CreateApiTokenRequest> parse_create_service_token(std::string_view body);
Result<CreateJoinTokenRequest> parse_create_join_token(std::string_view body);
Result<NodeActionRequest> parse_node_action(std::string_view body);
Result<SetOfferRequest> parse_set_offer(std::string_view body);
Result<EnrollRequest> parse_enroll(std::string_view body);
Result<PutRegistryRequest> parse_put_registry(std::string_view body);
Result<CreateClusterRequest> parse_create_cluster(std::string_view body);
Result<UpdateClusterRequest> parse_update_cluster(std::string_view body);
Result<CreateJobRequest> parse_create_job(std::string_view body);

std::string to_json(const LoginRequest& request);
std::string to_json(const RenewLoginRequest& request);
std::string to_json(const BeginSsoRequest& request);
std::string to_json(const FinishSsoRequest& request);
std::string to_json(const ChangePasswordRequest& request);
std::string to_json(const EnrolTotpRequest& request);
std::string to_json(const ConfirmTotpRequest& request);
std::string to_json(const DisableTotpRequest& request);
std::string to_json(const CreatePrincipalRequest& request);
std::string to_json(const ChangeRoleRequest& request);
std::string to_json(const SetQuotaRequest& request);
std::string to_json(const SetImagePolicyRequest& request);
std::string to_json(const SetTierRequest& request);
std::string to_json(const SetHeadroomRequest& request);
std::string to_json(const CreateServiceAccountRequest& request);
std::string to_json(const CreateGrantRequest& request);
std::string to_json(const CreateApiTokenRequest& request);
std::string to_json(const CreateJoinTokenRequest& request);
std::string to_json(const NodeActionRequest& request);
std::string to_json(const SetOfferRequest& request);
std::string to_json(const EnrollRequest& request);
std::string to_json(const PutRegistryRequest& request);
std::string to_json(const CreateClusterRequest& request);
std::string to_json(const UpdateClusterRequest& request);
std::string to_json(const CreateJobRequest& request);

// A cluster spec out of a Cluster answer (muster up shows the difference).
Result<ClusterSpec> parse_cluster_spec(const Json& value);

// ---- views
struct PrincipalView {
  Principal principal;
  std::string org, default_project;
  bool second_factor = false;
};
struct LoginView {
  std::string token;
  WallTime expires;
  PrincipalView principal;
  bool second_factor_needed = false;
  std::string refresh_token = {};  // empty when it was renewed: the client made the next one
  WallTime refresh_expires = {};   // the end of the login
  Millis lifetime{0};              // of the token, from now on
};
struct SsoStartView {
  std::string handle, url, state, user_code, verification_url, verification_url_complete;
  Millis interval{0};
  WallTime expires;
};
struct SsoAnswerView {
  bool pending = false;
  Millis retry{0};  // while it is pending
  std::optional<LoginView> login;
  std::string project;
};
struct PasswordView {
  std::size_t revoked_tokens = 0;
};
struct TotpView {
  bool enabled = false;
  WallTime since;
  std::size_t recovery_codes_left = 0;
};
struct TotpEnrolmentView {
  std::string secret, uri;
  WallTime expires;
};
struct TotpRecoveryView {
  std::vector<std::string> codes;
  std::size_t revoked_tokens = 0;
  bool log_in_again = false;
};
struct ServiceAccountView {
  Principal principal;
  std::string org;
  std::uint32_t tokens = 0;  // that hold
};
struct GrantView {
  Grant grant;
  std::string owner, cluster;  // names
  bool hide_operator = false;  // from the owner: who looked in is the platform's to know
};
struct ApiTokenView {
  ApiToken token;
  std::string secret;
};
struct JoinTokenView {
  JoinToken token;
  std::string secret;
};
struct EnrollView {
  NodeId node;
  std::string certificate_pem, ca_pem, trust;
  Bytes roster_key, command_key;
  std::vector<std::string> relays;
  std::string server_id;
};
struct NodeLeaseView {
  Lease lease;
  SlotRole role = SlotRole::Worker;
  std::string cluster;
};
// A hole that is known in what a machine runs containers with, or may be there.
struct NodeHoleView {
  std::string id, component, version, fixed, state, what, why, source;
  bool blocks = false;
};
struct NodeView {
  Node node;
  Resources free;
  std::vector<NodeLeaseView> leases;
  std::string not_hired;
  std::vector<std::string> offer_tenants = {};  // by name
  WallTime open_until = {}, opens_at = {};      // 0 = always open
  std::vector<std::string> images = {};         // that the caller may know of
  std::vector<NodeHoleView> holes = {};
  double lease_hours = 0, leases_lost = 0, hours_between = 0; /* losses, as foretold; all fading */
  bool newcomer = false;
  std::map<std::string, std::int32_t> parts_free = {};  // of shared GPUs and MIG instances: thousandths of the GPU
};
struct NodeRefusalsView {
  NodeId node;
  std::uint32_t waiting = 0;
  std::map<std::string, std::uint32_t> refused;
  std::uint64_t seq = 0;
};
struct NodeWayView {
  NodeId node;
  std::string node_name, path;
  std::int64_t kbps = 0;
  std::uint32_t samples = 0;
  double confidence = 0;
  WallTime measured, seen;
  std::int32_t rtt_us = 0;
};
struct NodeWaysView {
  NodeId node;
  std::vector<NodeWayView> ways;
  std::uint64_t seq = 0;
  double place_error = 0;  // 0 = too little is known
  std::uint32_t place_from = 0;
  std::int32_t foretold_rtt_us = 0;
};
struct CarriedView {
  std::int64_t day = 0;  // since 1970, UTC
  NodeId node;
  ClusterId cluster;
  std::string node_name, cluster_name;
  OrgId supplier, tenant;
  std::uint64_t bytes = 0;
};
struct QueueView {
  ClusterId cluster;
  std::string name;
  std::uint32_t position = 0;
  std::string reason_code, reason;
  WallTime expected_start;
  std::uint32_t tier = 0;
  std::int32_t priority = 0;
  WallTime since;
  std::map<std::string, std::string> reason_params = {};
  WallTime start_p50 = {}, start_p90 = {};  // half and nine tenths of the plays had started it by then; 0 = not known
};
struct QuotaScope {
  std::string id, name;
  Quota limit, held;
  Share share = {};
};
struct QuotaView {
  std::optional<QuotaScope> project;
  QuotaScope org;
};
struct ImagePolicyScope {
  std::string id, name;
  ImagePolicy policy;
  std::vector<std::string> fingerprints = {};  // of its keys
};
struct ImagePolicyView {
  ImagePolicyScope platform;
  std::optional<ImagePolicyScope> org, project;
};
struct TiersView {
  struct Row {
    TierShare row;
    std::uint32_t held_permille = 0;
  };
  std::vector<Row> rows;
};
struct HeadroomView {
  struct Row {
    Headroom row;
    std::uint32_t free = 0; /* machines of the model that are wholly free now */
  };
  std::vector<Row> rows;
};
struct ImageFindingView {
  std::string id, severity, package, version, fixed, waived_by;
};
struct ImageScanView {
  std::string image, verdict, why, system;
  std::uint32_t packages = 0, suppliers = 0, found = 0;
  WallTime database;
  std::vector<ImageFindingView> findings;
  std::vector<ClusterId> clusters;
};
struct RegistryView {
  std::string host, username;
  WallTime expires;
};
struct SlotView {
  Slot slot;
  NodeId node;
  std::string node_name;
  LeasePhase phase = LeasePhase::Pending;
  LeaseWant want = LeaseWant::Run;
  std::string reason, ray_node_id;
  bool ray_alive = false;
  std::uint64_t pull_done_bytes = 0, pull_total_bytes = 0;
  std::int64_t price = 0;  // an hour, millionths
  std::string currency = {};
  WallTime leaves_at = {};
  std::int32_t gpu_share_milli = 0;  // of its one GPU; 0 = whole ones
};
// What the newest failures of a cluster's members said, for whoever may read its logs.
struct FailureView {
  SlotId slot;
  SlotRole role = SlotRole::Worker;
  std::string node_name, reason, output;
  WallTime at;
};
struct ClusterView {
  Cluster cluster;
  std::vector<SlotView> slots;
  std::vector<RayNodeReport> ray_nodes;
  std::vector<std::string> differences, warnings;
  std::vector<FailureView> failures;                               // the newest last
  std::map<std::string, std::int64_t> per_hour = {}, so_far = {};  // by currency, millionths
  std::optional<QueueView> queue;
};
// A cluster's network as its machines said last. Addresses are filled for those who may see them.
// What a member says that it carried, and what the two ends signed of it (sent by the first, received by the second).
struct NetForwardedView {
  SlotId from, to;
  std::uint64_t bytes = 0, signed_from = 0, signed_to = 0;
};
struct NetMemberView {
  SlotId slot;
  SlotRole role = SlotRole::Worker;
  std::string node_name;
  std::uint32_t address = 0;  // in the overlay
  WallTime at;                // 0: nothing was said yet
  bool relay_up = false;
  std::string relay, udp;
  std::vector<std::string> seen_as;
  std::uint32_t others = 0;
  std::vector<session::NetRelay> relays = {};
  bool carries = false;
  std::vector<NetForwardedView> forwarded = {};
  std::string mapped = {};
};
struct NetTryView {
  session::NetTry tried;
  std::string path, outcome, address;
};
struct NetRelayTryView {
  session::NetRelayTry tried;
  std::string address, region;
  bool in_use = false;
};
struct NetPairView {
  SlotId from, to;
  session::NetPair pair;  // its own lists and addresses are not shown
  std::string why, address;
  std::vector<NetTryView> tries;
  std::string relay = {};
  std::vector<NetRelayTryView> relays = {};
  std::optional<SlotId> by = {};
  bool slow = false;
};
struct NetView {
  ClusterId cluster;
  std::string name;
  std::vector<NetMemberView> members;
  std::vector<NetPairView> pairs;
  std::uint64_t seq = 0;
  std::int64_t pair_kbps = 0;
};
struct PlanPlaceView {
  SlotRole role = SlotRole::Worker;
  std::string group, gpu_model;
  std::uint32_t gpus = 0;
  std::string region;
  TrustTier tier{};
  bool image_present = false;
  std::int64_t price = 0;  // an hour, millionths
  std::string currency = {};
  WallTime leaves_at = {};
  std::int32_t gpu_share_milli = 0;  // of the one GPU; 0 = whole ones
};
struct PlanView {
  std::vector<PlanPlaceView> places;  // empty: it would wait
  std::optional<QueueView> queue;
};
struct JobView {
  Job job;
  std::string cluster;
};
struct BlobView {
  std::string digest;
  std::uint64_t bytes = 0;
};
struct EventView {
  std::uint64_t seq = 0;
  WallTime at;
  std::string type, subject, text, actor;
  std::map<std::string, std::string> data;
};
// What of one sample the caller may see, beside what the state knows about it.
struct GpuView {
  session::GpuSample sample;
  std::string model;
  LeaseId lease;  // which has it now
};
struct ContainerView {
  session::ContainerSample sample;
  std::string cluster;  // empty: not the caller's
  SlotRole role = SlotRole::Worker;
  std::vector<std::string> gpus;
};
struct TelemetryView {
  NodeId node;
  std::string node_name;
  session::Telemetry sample;  // without its lists
  std::vector<GpuView> gpus;
  std::vector<ContainerView> containers;
};
struct ServerView {
  std::string version, server_id;
  std::uint64_t seq = 0;
  bool read_only = false;
  std::string ca_sha256;
  std::vector<std::string> relays;
  std::uint64_t incarnation = 0;
  std::string trust;  // crypto/trust.h; empty where there is one CA only
};

std::string to_json(const LoginView& view);
std::string to_json(const SsoStartView& view);
std::string to_json(const SsoAnswerView& view);
std::string to_json(const PasswordView& view);
std::string to_json(const TotpView& view);
std::string to_json(const TotpEnrolmentView& view);
std::string to_json(const TotpRecoveryView& view);
std::string to_json(const PrincipalView& view);
std::string to_json(const Org& view, const Quota& held = {});
std::string to_json(const Project& view, const Quota& held = {});
std::string to_json(const QuotaView& view);
std::string to_json(const ImagePolicyView& view);
std::string to_json(const TiersView& view);
std::string to_json(const HeadroomView& view);
std::string to_json(const ServiceAccountView& view);
std::string to_json(const GrantView& view);
std::string to_json(const ApiTokenView& view);
std::string to_json(const JoinTokenView& view);
std::string to_json(const EnrollView& view);
std::string to_json(const NodeView& view);
std::string to_json(const NodeRefusalsView& view);
std::string to_json(const CarriedView& view);
std::string to_json(const NodeWaysView& view);
std::string to_json(const QueueView& view);
std::string to_json(const ClusterView& view);
std::string to_json(const NetView& view);
std::string to_json(const PlanView& view);
std::string to_json(const JobView& view);
std::string to_json(const BlobView& view);
std::string to_json(const EventView& view);
std::string to_json(const TelemetryView& view);
std::string to_json(const ServerView& view);

// A page: items already written by to_json.
std::string to_json(const ImageScanView& view);
std::string to_json(const RegistryView& view);
std::string list_json(const std::vector<std::string>& items, std::string_view next_cursor, std::uint64_t seq);

}  // namespace muster::wire
