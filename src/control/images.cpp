#include "control/images.h"

#include "control/quota.h"
#include "model/node_labels.h"

namespace muster::control {

std::vector<PolicyScope> policy_scopes(const State& state, ProjectId id) {
  std::vector<PolicyScope> out;
  const auto project = state.projects.find(id);
  const auto platform = state.orgs.find(kPlatformOrg);
  if (platform != state.orgs.end()) out.push_back({"the platform", &platform->second.images});
  if (project == state.projects.end()) return out;
  const auto org = state.orgs.find(project->second.org);
  if (org != state.orgs.end() && org != platform)
    out.push_back({"organisation " + org->second.name, &org->second.images});
  out.push_back({"project " + project->second.name, &project->second.images});
  return out;
}

std::vector<ImagePolicy> image_policies(const State& state, ProjectId project) {
  std::vector<ImagePolicy> out;
  for (const PolicyScope& scope : policy_scopes(state, project))
    if (*scope.policy != ImagePolicy{}) out.push_back(*scope.policy);
  return out;
}

std::optional<ImageRefusal> image_refusal(const State& state, ProjectId project, const std::string& image,
                                          const std::vector<std::string>& digests) {
  for (const PolicyScope& scope : policy_scopes(state, project))
    if (auto refusal = image_refusal(*scope.policy, scope.whose, image, digests)) return refusal;
  return {};
}

Status image_permitted(const State& state, ProjectId project, const std::string& image, const std::string& field) {
  const auto refusal = image_refusal(state, project, image);
  if (!refusal) return {};
  return error(Code::FailedPrecondition, refusal->code + ": " + refusal->text, field + ".image");
}

std::optional<ImageRefusal> image_refusal(const State& state, const Cluster& cluster) {
  std::vector<std::string> digests;
  if (std::string digest = image_digest(cluster.probe->digest); !digest.empty()) digests.push_back(std::move(digest));
  return image_refusal(state, cluster.project, cluster.spec.image, digests);
}

std::vector<ClusterId> bound_by(const State& state, const ImagePolicySet& event) {
  std::vector<ClusterId> out;
  const auto add = [&](ProjectId project) {
    const auto some = living_clusters(state, project);
    out.insert(out.end(), some.begin(), some.end());
  };
  if (event.project) {
    add(event.project);
  } else if (event.org == kPlatformOrg) {
    for (const auto& [id, project] : state.projects) add(id);
  } else {
    for (const ProjectId project : projects_of(state, event.org)) add(project);
  }
  return out;
}

}  // namespace muster::control
