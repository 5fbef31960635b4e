// Policies of images. Setting one stops nothing that runs: it holds for what starts from now on.
#include <algorithm>

#include "control/decide.h"
#include "control/images.h"
#include "crypto/pem_key.h"
#include "model/node_labels.h"

namespace muster::control {

Decided decide(const Asking& a, const SetImagePolicy& c) {
  const auto project = a.base.projects.find(c.project);
  const bool known = project != a.base.projects.end();
  const OrgId org = !c.project ? c.org : known ? project->second.org : OrgId{};
  // That of the platform is nobody's own: it binds everybody.
  const OrgId owner = !c.project && org == kPlatformOrg ? OrgId{} : org;
  TRY_VOID(a.may(access::Verb::Update, {.kind = access::Kind::ImagePolicy, .owner = owner}));
  if (c.project && !known) return missing("project", c.project.str());
  if (!c.project && !a.base.orgs.contains(org)) return missing("organisation", org.str());
  TRY_VOID(validate(c.policy, "policy"));
  for (const std::string& key : c.policy.keys)
    if (const auto read = crypto::PemKey::parse(key); !read.ok())
      return error(Code::InvalidArgument, read.error().message, "policy.keys");
  const std::string id = c.project ? c.project.str() : org.str();
  const ImagePolicy& before = c.project ? project->second.images : a.base.orgs.at(org).images;
  if (before == c.policy) return Decision{{}, {id}};
  Decision decision = one(ImagePolicySet{org, c.project, c.policy}, id);
  if (a.base.format_version < kImageFormat) decision.events.insert(decision.events.begin(), FormatRaised{kImageFormat});
  return decision;
}

Decided decide(const Asking& a, const DenyImage& c) {
  const auto platform = a.base.orgs.find(kPlatformOrg);
  if (platform == a.base.orgs.end()) return missing("organisation", kPlatformOrg.str());
  SetImagePolicy set{kPlatformOrg, {}, platform->second.images};
  auto& denied = set.policy.deny;
  if (std::find(denied.begin(), denied.end(), c.digest) == denied.end()) denied.push_back(c.digest);
  return decide(a, set);
}

}  // namespace muster::control
