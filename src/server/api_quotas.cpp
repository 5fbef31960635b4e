// Quotas of organisations and projects: GET and PUT under each; what the platform keeps back for failovers.
#include "server/api.h"

namespace muster::server {
namespace {

using access::Kind;
using access::Verb;

Resolver org(Verb verb) {
  return [verb](const control::State& state, Call& call) -> Result<Ask> {
    const auto id = find_org(state, call.id);
    if (!id) return missing(Kind::Org, call.id);
    call.id = id->str();
    return Ask{verb, object_of(state.orgs.find(*id)->second)};
  };
}
Resolver project(Verb verb) {
  return [verb](const control::State& state, Call& call) -> Result<Ask> {
    const auto id = find_project(state, call.caller.subject, call.id);
    if (!id.ok()) return missing(Kind::Project, call.id);
    call.id = id->str();
    return Ask{verb, object_of(state.projects.find(*id)->second)};
  };
}
Resolver platform(Verb verb) {
  return [verb](const control::State&, Call&) -> Result<Ask> { return Ask{verb, {.kind = Kind::Platform}}; };
}
template <class Id>
Result<std::string> shown(const control::State& state, const std::string& id) {
  return wire::to_json(TRY(quota_view(state, Id::parse(id).value_or(Id{}))));
}

}  // namespace

void Api::add_quotas() {
  add("GetOrgQuota", org(Verb::Read), [this](const CallPtr& call) {
    read(call, [&](const control::State& state, const scheduler::Scheduler&) { return shown<OrgId>(state, call->id); });
  });
  add("GetProjectQuota", project(Verb::Read), [this](const CallPtr& call) {
    read(call,
         [&](const control::State& state, const scheduler::Scheduler&) { return shown<ProjectId>(state, call->id); });
  });
  add("SetOrgQuota", org(Verb::Update), [this](const CallPtr& call) {
    const auto request = wire::parse_set_quota(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    submit(call, control::SetQuota{*OrgId::parse(call->id), {}, request->quota, request->share},
           [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return shown<OrgId>(state, id);
           });
  });
  add("SetProjectQuota", project(Verb::Update), [this](const CallPtr& call) {
    const auto request = wire::parse_set_quota(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    submit(call, control::SetQuota{{}, *ProjectId::parse(call->id), request->quota, request->share},
           [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return shown<ProjectId>(state, id);
           });
  });
  add("GetTiers", platform(Verb::Read), [this](const CallPtr& call) {
    read(call, [](const control::State& state, const scheduler::Scheduler& scheduler) -> Result<std::string> {
      return wire::to_json(tiers_view(state, scheduler));
    });
  });
  add("SetTier", platform(Verb::Update), [this](const CallPtr& call) {
    const auto request = wire::parse_set_tier(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    submit(call, control::SetTierShare{request->row},
           [](const control::State& state, const scheduler::Scheduler& scheduler,
              const engine::Reply&) -> Result<std::string> { return wire::to_json(tiers_view(state, scheduler)); });
  });
  add("GetHeadroom", platform(Verb::Read), [this](const CallPtr& call) {
    read(call, [](const control::State& state, const scheduler::Scheduler&) -> Result<std::string> {
      return wire::to_json(headroom_view(state));
    });
  });
  add("SetHeadroom", platform(Verb::Update), [this](const CallPtr& call) {
    const auto request = wire::parse_set_headroom(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    submit(call, control::SetHeadroom{request->row},
           [](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) -> Result<std::string> {
             return wire::to_json(headroom_view(state));
           });
  });
}

}  // namespace muster::server
