#pragma once
// Whose policies of images bind a cluster, and what they say. The platform's organisation speaks for everybody, an
// organisation for its projects, a project for itself; all of them bind. Only reads. Private to control and whoever
// shows it.
#include <optional>
#include <string>
#include <vector>

#include "control/state.h"
#include "model/image_policy.h"

namespace muster::control {

struct PolicyScope {
  std::string whose;  // "organisation lab"
  const ImagePolicy* policy;
};
std::vector<PolicyScope> policy_scopes(const State& state, ProjectId project);   // the widest first; empty ones too
std::vector<ImagePolicy> image_policies(const State& state, ProjectId project);  // that say anything
std::optional<ImageRefusal> image_refusal(const State& state, ProjectId project, const std::string& image,
                                          const std::vector<std::string>& digests = {});
// Refuses a request whose image no policy lets through, by `field`.image.
Status image_permitted(const State& state, ProjectId project, const std::string& image, const std::string& field);
// With what its first member found behind the name.
std::optional<ImageRefusal> image_refusal(const State& state, const Cluster& cluster);
std::vector<ClusterId> bound_by(const State& state, const ImagePolicySet& event);  // the living clusters

}  // namespace muster::control
