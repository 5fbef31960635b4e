// Service accounts: what programs of an organisation log in as.
#include "server/api.h"
#include "server/list.h"
#include "wire/names.h"

namespace muster::server {
namespace {

using access::Kind;
using access::Verb;

wire::ServiceAccountView service_view(const control::State& state, const Principal& principal, std::uint32_t tokens) {
  wire::ServiceAccountView view{principal, {}, tokens};
  if (const auto org = state.orgs.find(principal.org); org != state.orgs.end()) view.org = org->second.name;
  return view;
}
bool holds(const ApiToken& token) {
  return !token.revoked && (token.expires.ms == 0 || token.expires > read_clocks().wall);
}

Result<std::string> shown_service(const control::State& state, const std::string& id) {
  const auto principal = PrincipalId::parse(id);
  const auto found = principal ? state.principals.find(*principal) : state.principals.end();
  if (found == state.principals.end()) return error(Code::NotFound, "the service account is gone");
  std::uint32_t tokens = 0;
  for (const auto& [token_id, token] : state.api_tokens)
    if (token.owner == *principal && !found->second.disabled && holds(token)) ++tokens;
  return wire::to_json(service_view(state, found->second, tokens));
}

// The service account of the path, by name or id.
Resolver service(Verb verb) {
  return [verb](const control::State& state, Call& call) -> Result<Ask> {
    const Principal* found = find_service(state, call.caller.subject, call.id);
    if (found == nullptr) return missing(Kind::ServiceAccount, call.id);
    call.id = found->id.str();
    return Ask{verb, object_of(*found)};
  };
}

}  // namespace

void Api::add_services() {
  add(
      "CreateServiceAccount",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const auto request = TRY(wire::parse_create_service_account(call.request.body));
        return Ask{Verb::Create,
                   {Kind::ServiceAccount, TRY(wanted_org(state, call.caller.subject, request.org)), {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto request = wire::parse_create_service_account(call->request.body);
        if (!request.ok()) return fail(call, request.error());
        Result<OrgId> org = OrgId{};
        context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
          org = wanted_org(state, call->caller.subject, request->org);
        });
        if (!org.ok()) return fail(call, org.error());
        Role role = request->role == Role::None ? call->caller.subject.role : request->role;
        // What an administrator may is said, not a habit of programs.
        if (request->role == Role::None && role == Role::TenantAdmin) role = Role::Tenant;
        submit(call, control::CreateServiceAccount{*org, request->name, role, request->note},
               [](const control::State& state, const scheduler::Scheduler&, const engine::Reply& reply) {
                 return shown_service(state, reply.outcome.id);
               });
      });
  add(
      "ListServiceAccounts",
      [](const control::State&, Call& call) -> Result<Ask> {
        const auto& subject = call.caller.subject;
        return Ask{Verb::List, {Kind::ServiceAccount, subject.org, {}, subject.principal}};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"name", "role"});
        if (!query.ok()) return fail(call, query.error());
        read(call, [&](const control::State& state, const scheduler::Scheduler&) {
          std::map<PrincipalId, std::uint32_t> tokens;
          for (const auto& [id, token] : state.api_tokens)
            if (holds(token)) ++tokens[token.owner];
          return list_page(*query, state, state.principals, [&](const Principal& each) -> std::optional<std::string> {
            if (!each.service || !access::visible(call->caller.subject, object_of(each)) ||
                !passes(*query, "name", each.name) || !passes(*query, "role", wire::text(each.role)))
              return {};
            const auto count = tokens.find(each.id);
            const bool none = each.disabled || count == tokens.end();
            return wire::to_json(service_view(state, each, none ? 0 : count->second));
          });
        });
      });
  add("DisableServiceAccount", service(Verb::Delete), [this](const CallPtr& call) {
    submit(call, control::DisablePrincipal{*PrincipalId::parse(call->id)},
           [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return shown_service(state, id);
           });
  });
  add("CreateServiceToken", service(Verb::Update), [this](const CallPtr& call) {
    const auto request = wire::parse_create_service_token(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    create_token(call, *PrincipalId::parse(call->id), *request);
  });
  add("ListServiceTokens", service(Verb::Read), [this](const CallPtr& call) {
    const auto query = list_query(call->request, {"label"});
    if (!query.ok()) return fail(call, query.error());
    read(call, [&](const control::State& state, const scheduler::Scheduler&) {
      return list_page(*query, state, state.api_tokens, [&](const ApiToken& token) -> std::optional<std::string> {
        if (token.owner.str() != call->id || !passes(*query, "label", token.label)) return {};
        return wire::to_json(wire::ApiTokenView{token, {}});
      });
    });
  });
}

}  // namespace muster::server
