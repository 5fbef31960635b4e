// Policies of images, of organisations and projects: GET and PUT under each. That of the platform's own organisation
// binds everybody, so only its operators set it.
#include "model/node_labels.h"
#include "server/api.h"

namespace muster::server {
namespace {

using access::Kind;
using access::Verb;

access::Object policy_of(OrgId org) {
  return {.kind = Kind::ImagePolicy, .owner = org};
}

Resolver org_policy(Verb verb) {
  return [verb](const control::State& state, Call& call) -> Result<Ask> {
    const auto id = find_org(state, call.id);
    if (!id) return missing(Kind::ImagePolicy, call.id);
    call.id = id->str();
    return Ask{verb, policy_of(verb == Verb::Update && *id == kPlatformOrg ? OrgId{} : *id)};
  };
}
Resolver project_policy(Verb verb) {
  return [verb](const control::State& state, Call& call) -> Result<Ask> {
    const auto id = find_project(state, call.caller.subject, call.id);
    if (!id.ok()) return missing(Kind::ImagePolicy, call.id);
    call.id = id->str();
    return Ask{verb, policy_of(state.projects.find(*id)->second.org)};
  };
}

Result<std::string> shown_of_org(const control::State& state, const std::string& id) {
  return wire::to_json(image_policy_view(state, OrgId::parse(id).value_or(OrgId{})));
}
Result<std::string> shown_of_project(const control::State& state, const std::string& id) {
  return wire::to_json(TRY(image_policy_view(state, ProjectId::parse(id).value_or(ProjectId{}))));
}

}  // namespace

void Api::add_images() {
  add("GetOrgImagePolicy", org_policy(Verb::Read), [this](const CallPtr& call) {
    read(call, [&](const control::State& state, const scheduler::Scheduler&) { return shown_of_org(state, call->id); });
  });
  add("GetProjectImagePolicy", project_policy(Verb::Read), [this](const CallPtr& call) {
    read(call,
         [&](const control::State& state, const scheduler::Scheduler&) { return shown_of_project(state, call->id); });
  });
  add("SetOrgImagePolicy", org_policy(Verb::Update), [this](const CallPtr& call) {
    const auto request = wire::parse_set_image_policy(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    submit(call, control::SetImagePolicy{*OrgId::parse(call->id), {}, request->policy},
           [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return shown_of_org(state, id);
           });
  });
  add("SetProjectImagePolicy", project_policy(Verb::Update), [this](const CallPtr& call) {
    const auto request = wire::parse_set_image_policy(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    submit(call, control::SetImagePolicy{{}, *ProjectId::parse(call->id), request->policy},
           [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return shown_of_project(state, id);
           });
  });
}

}  // namespace muster::server
