// Rights for a time on what is somebody else's: given by its owner, or taken by an operator (break-glass).
#include "server/api.h"
#include "server/list.h"
#include "wire/names.h"

namespace muster::server {
namespace {

using access::Kind;
using access::Verb;

wire::GrantView grant_view(const control::State& state, const access::Subject& reader, const Grant& grant) {
  wire::GrantView view{grant, {}, {}, false};
  if (const auto org = state.orgs.find(grant.owner); org != state.orgs.end()) view.owner = org->second.name;
  if (const Cluster* cluster = state.find_cluster(grant.cluster)) view.cluster = cluster->spec.name;
  view.hide_operator = grant.break_glass && reader.role != Role::Operator && reader.role != Role::Auditor;
  return view;
}
// Its owner, who has it, and whoever runs or audits the platform.
bool grant_visible(const access::Subject& reader, const Grant& grant) {
  return access::visible(reader, object_of(grant)) || access::visible(reader, {Kind::Grant, grant.to_org, {}, {}});
}

struct Target {
  ProjectId project;
  ClusterId cluster;
  OrgId owner;
};
// What is to be shared; missing where the caller may not see it.
Result<Target> target_of(const control::State& state, const access::Subject& caller,
                         const wire::CreateGrantRequest& request) {
  if (!request.cluster.empty()) {
    const Cluster* cluster = find_cluster(state, caller, request.cluster);
    if (cluster == nullptr || !access::visible(caller, object_of(state, *cluster)))
      return missing(Kind::Cluster, request.cluster);
    return Target{cluster->project, cluster->id, object_of(state, *cluster).owner};
  }
  const ProjectId id = TRY(find_project(state, caller, request.project));
  return Target{id, {}, state.projects.at(id).org};
}

control::GrantAccess command_of(const wire::CreateGrantRequest& request, const Target& target, bool break_glass) {
  control::GrantAccess out;
  out.break_glass = break_glass;
  out.project = target.project, out.cluster = target.cluster;
  out.right = request.right, out.reason = request.reason, out.lifetime = request.lifetime;
  if (const auto account = PrincipalId::parse(request.to)) out.to = *account;
  if (const auto org = OrgId::parse(request.to)) out.to_org = *org;
  return out;
}

}  // namespace

void Api::add_grants() {
  const auto give = [this](const std::string& name, Kind kind, auto parse) {
    add(
        name,
        [kind, parse](const control::State& state, Call& call) -> Result<Ask> {
          const auto request = TRY(parse(call.request.body));
          const Target target = TRY(target_of(state, call.caller.subject, request));
          return Ask{Verb::Create, {kind, target.owner, {}, {}}};
        },
        [this, kind, parse](const CallPtr& call) {
          const auto request = parse(call->request.body);
          if (!request.ok()) return fail(call, request.error());
          Result<Target> target = error(Code::Internal, "not looked up");
          context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
            target = target_of(state, call->caller.subject, *request);
          });
          if (!target.ok()) return fail(call, target.error());
          submit(call, command_of(*request, *target, kind == Kind::BreakGlass),
                 [call](const control::State& state, const scheduler::Scheduler&,
                        const engine::Reply& reply) -> Result<std::string> {
                   const auto id = GrantId::parse(reply.outcome.id);
                   const auto found = id ? state.grants.find(*id) : state.grants.end();
                   if (found == state.grants.end()) return error(Code::NotFound, "the grant has ended already");
                   return wire::to_json(grant_view(state, call->caller.subject, found->second));
                 });
        });
  };
  give("CreateGrant", Kind::Grant, [](const std::string& body) { return wire::parse_create_grant(body); });
  give("BreakGlass", Kind::BreakGlass, [](const std::string& body) { return wire::parse_break_glass(body); });
  add(
      "ListGrants",
      [](const control::State&, Call& call) -> Result<Ask> {
        const auto& subject = call.caller.subject;
        return Ask{Verb::List, {Kind::Grant, subject.org, {}, subject.principal}};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"right"});
        if (!query.ok()) return fail(call, query.error());
        read(call, [&](const control::State& state, const scheduler::Scheduler&) {
          return list_page(*query, state, state.grants, [&](const Grant& grant) -> std::optional<std::string> {
            if (!grant_visible(call->caller.subject, grant) || !passes(*query, "right", wire::text(grant.right)))
              return {};
            return wire::to_json(grant_view(state, call->caller.subject, grant));
          });
        });
      });
  add(
      "RevokeGrant",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const auto id = GrantId::parse(call.id);
        const auto found = id ? state.grants.find(*id) : state.grants.end();
        if (found == state.grants.end()) return missing(Kind::Grant, call.id);
        Ask ask{Verb::Revoke, object_of(found->second)};
        // Who sees an organisation's grants as one of its members learns that he may not end them, nobody else does.
        if (!grant_visible(call.caller.subject, found->second)) return missing(Kind::Grant, call.id);
        return ask;
      },
      [this](const CallPtr& call) {
        Result<wire::GrantView> view = error(Code::NotFound, "the grant has ended already");
        context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
          const auto found = state.grants.find(*GrantId::parse(call->id));
          if (found != state.grants.end()) view = grant_view(state, call->caller.subject, found->second);
        });
        if (!view.ok()) return fail(call, view.error());
        submit(call, control::RevokeGrant{*GrantId::parse(call->id)},
               [view = *view](const control::State&, const scheduler::Scheduler&,
                              const engine::Reply&) -> Result<std::string> { return wire::to_json(view); });
      });
}

}  // namespace muster::server
