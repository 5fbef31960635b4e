#pragma once
// What is shown of the state: pure functions from the follower's copy (under its lock), the planner's queue and what is
// kept in memory (Ray's own reports) to the wire's views. Differences between what Ray and what the machines say are
// computed here. Objects are looked up by id, or by name in the caller's organisation.
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "access/access.h"
#include "control/core.h"
#include "scan/known_holes.h"
#include "scheduler/scheduler.h"
#include "wire/rest.h"

namespace muster::server {

struct PullFacts {
  std::uint64_t done_bytes = 0, total_bytes = 0;
};
struct RayFacts {
  RayReport report;
  WallTime at;
};

// Objects as the access check sees them.
access::Object object_of(const control::State& state, const Cluster& cluster);
access::Object object_of(const control::State& state, const Job& job);
access::Object object_of(const Node& node);
access::Object object_of(const Principal& principal);
access::Object object_of(const control::State& state, const ApiToken& token);
access::Object object_of(const Grant& grant);
access::Object object_of(const JoinToken& token);
access::Object object_of(const Project& project);
access::Object object_of(const Org& org);

// By id, or by name in the projects of the caller's organisation (an operator's also anywhere, when only one matches).
const Cluster* find_cluster(const control::State& state, const access::Subject& caller, const std::string& text);
const Job* find_job(const control::State& state, const access::Subject& caller, const std::string& text);
const Node* find_node(const control::State& state, const access::Subject& caller, const std::string& text);
const Principal* find_principal(const control::State& state, const std::string& text);  // a person
const Principal* find_service(const control::State& state, const access::Subject& caller, const std::string& text);
std::optional<OrgId> find_org(const control::State& state, const std::string& text);
// The organisation that a body names by name or id; an empty text is the caller's own.
Result<OrgId> wanted_org(const control::State& state, const access::Subject& subject, const std::string& text);
// "" = the first project of the caller's organisation.
Result<ProjectId> find_project(const control::State& state, const access::Subject& caller, const std::string& text);

std::map<ClusterId, wire::QueueView> queue_views(const control::State& state, const scheduler::Scheduler& scheduler,
                                                 WallTime now);
// Of a project and its organisation, or of an organisation alone.
Result<wire::QuotaView> quota_view(const control::State& state, ProjectId project);
Result<wire::QuotaView> quota_view(const control::State& state, OrgId org);
// Of the platform, of an organisation and it, or of a project and both.
wire::ImagePolicyView image_policy_view(const control::State& state, OrgId org);
Result<wire::ImagePolicyView> image_policy_view(const control::State& state, ProjectId project);
wire::TiersView tiers_view(const control::State& state, const scheduler::Scheduler& scheduler);
wire::HeadroomView headroom_view(const control::State& state);
wire::PrincipalView principal_view(const control::State& state, const Principal& principal);
// owner: why the owner's limits keep the machine from being hired, as its agent says; empty = they do not. holes: as
// judged; told to its supplier and the platform only.
wire::NodeView node_view(const control::State& state, const access::Subject& caller, const Node& node,
                         const std::string& owner, const std::vector<scan::HoleFinding>& holes);
// A supplier and an operator see the machine; a tenant sees of it only the containers and GPUs of clusters that are
// its.
enum class Sight : std::uint8_t { Machine, OwnContainers };
bool hires_from(const control::State& state, const access::Subject& caller, const Node& node);
wire::TelemetryView telemetry_view(const control::State& state, const access::Subject& caller, const Node& node,
                                   const session::Telemetry& sample, Sight sight);
using FindPull = std::function<std::optional<PullFacts>(LeaseId)>;
wire::ClusterView cluster_view(const control::State& state, const Cluster& cluster, const RayFacts* ray,
                               const FindPull& pull = {});
wire::PlanView plan_view(const control::State& state, const control::WhatIf& asked,
                         const scheduler::Forecast& forecast);
wire::JobView job_view(const control::State& state, const Job& job);
std::vector<std::string> differences(const wire::ClusterView& view, const RayFacts* ray);

}  // namespace muster::server
