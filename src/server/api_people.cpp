// Accounts, organisations, projects, API tokens, login.
#include <fmt/format.h>

#include "base/log.h"
#include "control/quota.h"
#include "crypto/password.h"
#include "crypto/token.h"
#include "net/address_block.h"
#include "server/access_log.h"
#include "server/access_tokens.h"
#include "server/api.h"
#include "server/list.h"
#include "server/second_factor.h"
#include "wire/names.h"

namespace muster::server {
namespace {

constexpr Millis kLoginLifetime{30LL * 86'400'000};
constexpr Millis kTokenLifetimeMax{400LL * 86'400'000};
constexpr const char* kPasswords = "passwords";  // erasable side table: principal id -> crypto/password.h's text
constexpr Millis kHashWait{5000};                // who would wait longer for his turn is told to come again

Resolver own(access::Kind kind, access::Verb verb) {
  return [kind, verb](const control::State&, Call& call) -> Result<Ask> {
    const auto& subject = call.caller.subject;
    return Ask{verb, {kind, subject.org, {}, subject.principal}};
  };
}
Status password_rule(const std::string& password, const std::string& field) {
  if (password.size() < 8 || password.size() > 1024)
    return error(Code::InvalidArgument, field + " must have between 8 and 1024 characters", field);
  return {};
}
Result<std::string> shown(const control::State& state, const std::string& id, const std::string& secret) {
  const auto token = TokenId::parse(id);
  const auto found = token ? state.api_tokens.find(*token) : state.api_tokens.end();
  if (found == state.api_tokens.end()) return error(Code::NotFound, "the token is gone");
  return wire::to_json(wire::ApiTokenView{found->second, secret});
}

}  // namespace

wire::PrincipalView Api::shown_view(const control::State& state, const Principal& principal) const {
  wire::PrincipalView view = principal_view(state, principal);
  view.second_factor = context_.factors->holds(principal.id);
  return view;
}

Result<std::string> Api::shown_principal(const control::State& state, const std::string& id) const {
  const auto principal = PrincipalId::parse(id);
  const auto found = principal ? state.principals.find(*principal) : state.principals.end();
  if (found == state.principals.end()) return error(Code::NotFound, "the account is gone");
  return wire::to_json(shown_view(state, found->second));
}

void Api::later(const CallPtr& call, Millis wait, const std::string& why) const {
  const auto seconds = std::max<std::int64_t>(1, (wait.count() + 999) / 1000);
  const Error refused = error(Code::ResourceExhausted, fmt::format("{}; try again in {} seconds", why, seconds));
  note_refusal(*call, refused);
  net::Response response = problem(refused);
  response.headers["Retry-After"] = std::to_string(seconds);
  answer(call, std::move(response));
}

void Api::post_hashing(const CallPtr& call, std::function<void()> job, std::function<void()> dropped) {
  const auto refuse = [this, call, dropped] {
    if (dropped) dropped();
    later(call, kHashWait, "too many passwords wait to be checked");
  };
  const bool queued = context_.hashing->post([job = std::move(job), refuse, asked = read_clocks().lease] {
    if (asked + kHashWait < read_clocks().lease) return refuse();
    job();
  });
  if (!queued) refuse();
}

void Api::check_password(const CallPtr& call, const std::string& name, const std::string& password, const Error& wrong,
                         std::function<void(const Principal&)> good) {
  const std::string key = name.substr(0, 64), source = net::address_block(call->request.peer);
  if (const auto wait = logins_.begin(key, source, read_clocks().lease))
    return later(call, *wait, "too many attempts to log in");
  const auto done = [this, key, source](LoginGuard::Outcome outcome) {
    logins_.done(key, source, read_clocks().lease, outcome);
  };
  const auto check = [this, call, name, password, wrong, good = std::move(good), done] {
    static const std::string nobody = [] {  // the same work for accounts that do not exist
      auto hash = crypto::hash_password("nobody has this password");
      return hash.ok() ? *hash : std::string();
    }();
    std::optional<Principal> principal;
    context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
      const auto id = state.principal_by_name.find(name);
      if (id != state.principal_by_name.end()) principal = state.principals.at(id->second);
    });
    std::string encoded = nobody;
    if (principal && !principal->disabled) {
      const auto stored = context_.store->get_side(kPasswords, principal->id.str());
      if (!stored.ok()) {
        done(LoginGuard::Outcome::NotTried);
        return fail(call, stored.error());
      }
      if (stored->has_value()) encoded = as_string(**stored);
    }
    const bool right = crypto::verify_password(password, encoded) && encoded != nobody && principal;
    done(right ? LoginGuard::Outcome::Right : LoginGuard::Outcome::Wrong);
    if (!right) return fail(call, wrong);
    if (crypto::outdated_hash(encoded)) {
      const auto hash = crypto::hash_password(password);
      const auto kept = hash.ok() ? replace_password(principal->id, encoded, *hash) : Result<bool>(hash.error());
      if (!kept.ok())
        log_warn("musterd", "the password of {} keeps its old hash: {}", principal->id.str(), kept.error().message);
    }
    good(*principal);
  };
  post_hashing(call, check, [done] { done(LoginGuard::Outcome::NotTried); });
}

Result<bool> Api::replace_password(PrincipalId who, const std::string& checked, const std::string& hash) {
  const std::lock_guard lock(password_mutex_);
  const auto held = TRY(context_.store->get_side(kPasswords, who.str()));
  if (!held || as_string(*held) != checked) return false;
  TRY_VOID(context_.store->put_side(kPasswords, who.str(), to_bytes(hash)));
  return true;
}

void Api::login(const CallPtr& call) {
  const auto request = wire::parse_login(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  const Error wrong = error(Code::Unauthenticated, "name or password is wrong");
  check_password(call, request->name, request->password, wrong, [this, call, request = *request](const Principal& who) {
    check_code(call, who, request.code, [&] {
      const std::string label = request.label.empty() ? "login" : request.label;
      const auto render = [](const wire::LoginView& view) { return wire::to_json(view); };
      if (!context_.factor_needed.contains(who.role)) return give_login(call, who, label, {}, kLoginLifetime, render);
      const auto held = context_.factors->find(who.id);
      if (!held.ok()) return fail(call, held.error());
      if (*held) return give_login(call, who, label, {}, kLoginLifetime, render);
      log_info("audit", "{} logs in to set up the second factor that its role needs", who.id.str());
      give_login(call, who, label, {std::string(access::kSecondFactorScope)}, kEnrolWithin, render);
    });
  });
}

void Api::give_login(const CallPtr& call, const Principal& who, const std::string& label,
                     const std::vector<std::string>& scopes, Millis lifetime,
                     std::function<std::string(const wire::LoginView&)> render) {
  call->caller.subject = {who.id, who.role, who.org, {}, {}};
  const auto refresh = crypto::make_refresh_token();
  submit_login(call,
               control::CreateApiToken{who.id, refresh.hashes.session, label.substr(0, 64), scopes, lifetime,
                                       refresh.hashes.rotating},
               refresh.text, std::move(render));
}

// What the command made or renewed is told with a token for requests, which is signed once the command is durable.
void Api::submit_login(const CallPtr& call, control::Command command, const std::string& refresh,
                       std::function<std::string(const wire::LoginView&)> render) {
  const auto issued = std::make_shared<Result<std::string>>(error(Code::Unavailable, "not signed"));
  const auto login_of = [](const control::State& state, const engine::Reply& reply) -> const ApiToken* {
    const auto id = TokenId::parse(reply.outcome.id);
    const auto found = id ? state.api_tokens.find(*id) : state.api_tokens.end();
    return found == state.api_tokens.end() ? nullptr : &found->second;
  };
  const auto sign = [this, issued, who = call->caller.subject.principal](const engine::Reply& reply) {
    const auto id = TokenId::parse(reply.outcome.id);
    if (!id) return;  // reused
    // It may end a little after its login: that is looked up with each request.
    *issued = context_.tokens->issue(who, *id, crypto::kAccessLifetimeMax);
  };
  submit(
      call, std::move(command),
      [this, issued, refresh, login_of, render = std::move(render)](
          const control::State& state, const scheduler::Scheduler&, const engine::Reply& reply) -> Result<std::string> {
        if (reply.outcome.id == "reused")
          return error(Code::Unauthenticated,
                       "this refresh token was used up before, so somebody else may have it: the login has ended for "
                       "both; log in again (muster login), and see muster audit",
                       "refreshToken");
        if (reply.outcome.replayed)
          return error(Code::FailedPrecondition, "this login was answered before; log in again with another key",
                       "Idempotency-Key");
        const ApiToken* login = login_of(state, reply);
        if (login == nullptr) return error(Code::Internal, "the login is gone");
        const std::string token = TRY(*issued);
        const WallTime now = read_clocks().wall;
        const Millis lifetime = std::min(crypto::kAccessLifetimeMax, login->expires - now);
        return render(wire::LoginView{token, now + lifetime, shown_view(state, state.principals.at(login->owner)),
                                      !login->scopes.empty(), refresh, login->expires, lifetime});
      },
      sign);
}

void Api::renew_login(const CallPtr& call) {
  const auto request = wire::parse_renew_login(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  const auto hashes = crypto::parse_refresh_token(request->refresh_token);
  if (!hashes.ok()) return fail(call, hashes.error());
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const ApiToken* login = state.find_api_token(hashes->session);
    const auto owner = login == nullptr ? state.principals.end() : state.principals.find(login->owner);
    if (owner != state.principals.end())
      call->caller.subject = {owner->second.id, owner->second.role, owner->second.org, {}, {}};
  });
  submit_login(call, control::RenewLogin{hashes->session, hashes->rotating, request->next_sha256}, {},
               [](const wire::LoginView& view) { return wire::to_json(view); });
}

Result<std::size_t> Api::end_other_logins(const CallPtr& call) {
  const control::RevokeLogins command{call->caller.subject.principal, call->caller.token};
  control::Actor actor;
  actor.subject = call->caller.subject;
  actor.request_id = call->request_id;
  context_.access->came_from(actor_text(actor.subject), call->request_id, call->request.peer, read_clocks().wall);
  const auto left = [&] {
    std::size_t count = 0;
    context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
      count = control::logins_of(state, command.owner, command.keep, read_clocks().wall).size();
    });
    return count;
  };
  const std::size_t first = left();
  for (std::size_t before = first; before > 0;) {
    const auto reply = TRY(context_.runner->submit_wait(lane_of(call->caller.subject), command, actor));
    if (!context_.runner->wait_for(reply.seq, Millis(10'000)))
      return error(Code::Unavailable, "this server is behind; the rest will end when you change it once more");
    const std::size_t now = left();
    if (now >= before) break;  // somebody logs in as fast as we end it: with the new password
    before = now;
  }
  return first;
}

void Api::change_password(const CallPtr& call) {
  const auto request = wire::parse_change_password(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  if (const Status rule = password_rule(request->new_password, "newPassword"); !rule.ok())
    return fail(call, rule.error());
  if (request->new_password == request->old_password)
    return fail(call, error(Code::InvalidArgument, "newPassword is the old one; choose another", "newPassword"));
  // Not Unauthenticated: the token is good, and a client would ask for a new one.
  const Error wrong =
      error(Code::InvalidArgument,
            "the old password is wrong; if an earlier try got no answer, the new one may hold already", "oldPassword");
  check_password(call, account_name(call), request->old_password, wrong,
                 [this, call, password = request->new_password](const Principal& who) {
                   const auto hash = crypto::hash_password(password);
                   if (!hash.ok()) return fail(call, hash.error());
                   const Status kept = [&] {
                     const std::lock_guard lock(password_mutex_);
                     return context_.store->put_side(kPasswords, who.id.str(), to_bytes(*hash));
                   }();
                   if (!kept.ok()) return fail(call, kept.error());
                   log_info("audit", "{} changed the password of its account", who.id.str());
                   const auto ended = end_other_logins(call);
                   if (!ended.ok())
                     return fail(
                         call, error(ended.error().code, "the password is changed, but other logins may still hold: " +
                                                             ended.error().message));
                   ok(call, wire::to_json(wire::PasswordView{*ended}));
                 });
}

void Api::create_principal(const CallPtr& call) {
  const auto request = wire::parse_create_principal(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  if (!request->sso_subject.empty()) {
    // A person of the provider is the platform's to place: an administrator could claim those of other organisations.
    if (call->caller.subject.role == Role::Operator) return invite_person(call, *request);
    return fail(call, error(Code::PermissionDenied,
                            "operators alone make accounts for people of the identity provider; give a password",
                            "ssoSubject"));
  }
  if (const Status rule = password_rule(request->password, "password"); !rule.ok()) return fail(call, rule.error());
  const auto make = [this, call, request = *request] {
    const auto hash = crypto::hash_password(request.password);
    if (!hash.ok()) return fail(call, hash.error());
    make_principal(call, request, [this, hash = *hash](const engine::Reply& reply) {
      // A repeat writes again: that heals an account whose password was lost between the two stores.
      static_cast<void>(context_.store->put_side(kPasswords, reply.outcome.id, to_bytes(hash)).ok());
    });
  };
  post_hashing(call, make, {});
}

void Api::make_principal(const CallPtr& call, const wire::CreatePrincipalRequest& request,
                         std::function<void(const engine::Reply&)> keep) {
  Result<OrgId> org = OrgId{};
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    org = wanted_org(state, call->caller.subject, request.org);
  });
  if (!org.ok()) return fail(call, org.error());
  submit(
      call, control::CreatePrincipal{request.name, request.role, *org},
      [this](const control::State& state, const scheduler::Scheduler&, const engine::Reply& reply) {
        return shown_principal(state, reply.outcome.id);
      },
      std::move(keep));
}

void Api::add_people() {
  using access::Kind;
  using access::Verb;
  add_open("Login", [this](const CallPtr& call) { login(call); });
  add_open("RenewLogin", [this](const CallPtr& call) { renew_login(call); });
  add("Logout", own(Kind::ApiToken, Verb::Revoke), [this](const CallPtr& call) {
    const TokenId token = call->caller.token;
    submit(call, control::RevokeApiToken{token},
           [id = token.str()](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return shown(state, id, {});
           });
  });
  add("WhoAmI", own(Kind::Principal, Verb::Read), [this](const CallPtr& call) {
    read(call, [&](const control::State& state, const scheduler::Scheduler&) {
      return shown_principal(state, call->caller.subject.principal.str());
    });
  });
  add("ChangePassword", own(Kind::Principal, Verb::Update), [this](const CallPtr& call) { change_password(call); });
  add(
      "CreateOrg",
      [](const control::State&, Call&) -> Result<Ask> {
        return Ask{Verb::Create, {Kind::Org, {}, {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto request = wire::parse_create_org(call->request.body);
        if (!request.ok()) return fail(call, request.error());
        submit(call, control::CreateOrg{request->name},
               [](const control::State& state, const scheduler::Scheduler&,
                  const engine::Reply& reply) -> Result<std::string> {
                 const auto id = OrgId::parse(reply.outcome.id);
                 const auto found = id ? state.orgs.find(*id) : state.orgs.end();
                 if (found == state.orgs.end()) return error(Code::NotFound, "the organisation is gone");
                 return wire::to_json(found->second, control::held_of(state, found->first));
               });
      });
  add("ListOrgs", own(Kind::Org, Verb::List), [this](const CallPtr& call) {
    const auto query = list_query(call->request, {"name"});
    if (!query.ok()) return fail(call, query.error());
    read(call, [&](const control::State& state, const scheduler::Scheduler&) {
      return list_page(*query, state, state.orgs, [&](const Org& org) -> std::optional<std::string> {
        if (!access::visible(call->caller.subject, object_of(org)) || !passes(*query, "name", org.name)) return {};
        return wire::to_json(org, control::held_of(state, org.id));
      });
    });
  });
  add(
      "CreateProject",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const auto request = TRY(wire::parse_create_project(call.request.body));
        return Ask{Verb::Create, {Kind::Project, TRY(wanted_org(state, call.caller.subject, request.org)), {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto request = wire::parse_create_project(call->request.body);
        if (!request.ok()) return fail(call, request.error());
        Result<OrgId> org = OrgId{};
        context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
          org = wanted_org(state, call->caller.subject, request->org);
        });
        if (!org.ok()) return fail(call, org.error());
        submit(call, control::CreateProject{*org, request->name},
               [](const control::State& state, const scheduler::Scheduler&,
                  const engine::Reply& reply) -> Result<std::string> {
                 const auto id = ProjectId::parse(reply.outcome.id);
                 const auto found = id ? state.projects.find(*id) : state.projects.end();
                 if (found == state.projects.end()) return error(Code::NotFound, "the project is gone");
                 return wire::to_json(found->second, control::held_of(state, found->first));
               });
      });
  add("ListProjects", own(Kind::Project, Verb::List), [this](const CallPtr& call) {
    const auto query = list_query(call->request, {"name"});
    if (!query.ok()) return fail(call, query.error());
    read(call, [&](const control::State& state, const scheduler::Scheduler&) {
      return list_page(*query, state, state.projects, [&](const Project& project) -> std::optional<std::string> {
        if (!access::visible(call->caller.subject, object_of(project)) || !passes(*query, "name", project.name))
          return {};
        return wire::to_json(project, control::held_of(state, project.id));
      });
    });
  });
  add(
      "CreatePrincipal",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const auto request = TRY(wire::parse_create_principal(call.request.body));
        const OrgId org = TRY(wanted_org(state, call.caller.subject, request.org));
        return Ask{Verb::Create, {.kind = Kind::Principal, .owner = org, .role = request.role}};
      },
      [this](const CallPtr& call) { create_principal(call); });
  add("ListPrincipals", own(Kind::Principal, Verb::List), [this](const CallPtr& call) {
    const auto query = list_query(call->request, {"name", "role"});
    if (!query.ok()) return fail(call, query.error());
    post(call, [this, call, query = *query] {
      const Role role = call->caller.subject.role;
      const bool own = role == Role::Tenant || role == Role::TenantViewer || role == Role::SupplierMember;
      if (!own) {  // who sees accounts of others
        const Status known = context_.factors->load();
        if (!known.ok()) return fail(call, known.error());
      }
      read(call, [&](const control::State& state, const scheduler::Scheduler&) {
        return list_page(query, state, state.principals, [&](const Principal& principal) -> std::optional<std::string> {
          if (principal.service || !access::visible(call->caller.subject, object_of(principal)) ||
              !passes(query, "name", principal.name) || !passes(query, "role", wire::text(principal.role)))
            return {};
          return wire::to_json(shown_view(state, principal));
        });
      });
    });
  });
  add(
      "ChangeRole",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const Principal* found = find_principal(state, call.id);
        if (found == nullptr) return missing(Kind::Principal, call.id);
        call.id = found->id.str();
        return Ask{Verb::Delete, object_of(*found)};  // what it is; what it is to be is asked at commit
      },
      [this](const CallPtr& call) {
        const auto request = wire::parse_change_role(call->request.body);
        if (!request.ok()) return fail(call, request.error());
        submit(call, control::ChangePrincipal{*PrincipalId::parse(call->id), request->role},
               [this, id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
                 return shown_principal(state, id);
               });
      });
  add(
      "DisablePrincipal",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const Principal* found = find_principal(state, call.id);
        if (found == nullptr) return missing(Kind::Principal, call.id);
        call.id = found->id.str();
        return Ask{Verb::Delete, object_of(*found)};
      },
      [this](const CallPtr& call) {
        submit(call, control::DisablePrincipal{*PrincipalId::parse(call->id)},
               [this, id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
                 return shown_principal(state, id);
               });
      });
}

void Api::create_token(const CallPtr& call, PrincipalId owner, const wire::CreateApiTokenRequest& request) {
  if (request.lifetime > kTokenLifetimeMax)
    return fail(call, error(Code::InvalidArgument, "lifetimeSeconds must be at most 400 days", "lifetimeSeconds"));
  const auto token = crypto::make_api_token();
  const Millis lifetime = request.lifetime == Millis(0) ? kLoginLifetime : request.lifetime;
  submit(call, control::CreateApiToken{owner, token.hash, request.label, request.scopes, lifetime},
         [token](const control::State& state, const scheduler::Scheduler&, const engine::Reply& reply) {
           // The secret of the first answer cannot be told again: only its hash was kept.
           return shown(state, reply.outcome.id, reply.outcome.replayed ? std::string() : token.text);
         });
}

void Api::add_tokens() {
  using access::Kind;
  using access::Verb;
  add("CreateApiToken", own(Kind::ApiToken, Verb::Create), [this](const CallPtr& call) {
    const auto request = wire::parse_create_api_token(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    create_token(call, call->caller.subject.principal, *request);
  });
  add("ListApiTokens", own(Kind::ApiToken, Verb::List), [this](const CallPtr& call) {
    const auto query = list_query(call->request, {"label"});
    if (!query.ok()) return fail(call, query.error());
    read(call, [&](const control::State& state, const scheduler::Scheduler&) {
      return list_page(*query, state, state.api_tokens, [&](const ApiToken& token) -> std::optional<std::string> {
        const access::Object object = object_of(state, token);
        if (!access::visible(call->caller.subject, object) || !passes(*query, "label", token.label)) return {};
        // Whoever sees all tokens sees all; others find those of a service account with it.
        const Role role = call->caller.subject.role;
        if (object.kind == Kind::ServiceAccount && token.owner != call->caller.subject.principal &&
            role != Role::Operator && role != Role::Auditor)
          return {};
        return wire::to_json(wire::ApiTokenView{token, {}});
      });
    });
  });
  add(
      "RevokeApiToken",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const auto id = TokenId::parse(call.id);
        const auto found = id ? state.api_tokens.find(*id) : state.api_tokens.end();
        if (found == state.api_tokens.end()) return missing(Kind::ApiToken, call.id);
        return Ask{Verb::Revoke, object_of(state, found->second)};
      },
      [this](const CallPtr& call) {
        submit(call, control::RevokeApiToken{*TokenId::parse(call->id)},
               [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
                 return shown(state, id, {});
               });
      });
}

}  // namespace muster::server
