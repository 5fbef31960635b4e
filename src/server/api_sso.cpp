// Logins by the operator's identity provider: begun and finished by the command line, which never sees a token of the
// provider, only the code that the browser brought and a handle of ours.
#include <fmt/format.h>

#include "base/log.h"
#include "crypto/random.h"
#include "crypto/secret.h"
#include "net/address_block.h"
#include "server/api.h"
#include "server/sso.h"

namespace muster::server {
namespace {

constexpr Millis kBrowserTime{10 * 60'000};
constexpr Millis kBusyWait{2000};

std::string secret_text() {
  return base64url(crypto::random_bytes(32));
}
Error no_sso() {
  return error(Code::FailedPrecondition,
               "this control plane has no identity provider; log in with a local account: muster login --user NAME");
}

Result<wire::SsoStartView> start_browser(Sso& sso, const std::string& source, std::uint16_t port) {
  SsoLogin login{.source = source, .state = secret_text(), .nonce = secret_text(), .verifier = secret_text()};
  login.redirect_uri = fmt::format("http://127.0.0.1:{}/callback", port);
  wire::SsoStartView view;
  view.url = TRY(sso.provider.authorization_url(login.redirect_uri, login.state, login.nonce, login.verifier));
  view.state = login.state;
  const Now now = read_clocks();
  view.expires = now.wall + kBrowserTime;
  login.ends = now.lease + kBrowserTime;
  view.handle = sso.logins.add(std::move(login), now.lease);
  return view;
}

Result<wire::SsoStartView> start_device(Sso& sso, const std::string& source) {
  const oidc::DeviceCode code = TRY(sso.provider.begin_device());
  const Now now = read_clocks();
  SsoLogin login{.by_device = true, .source = source, .device_code = code.device_code, .interval = code.interval};
  login.next_ask = now.lease + code.interval;
  login.ends = now.lease + code.lifetime;
  wire::SsoStartView view;
  view.user_code = code.user_code;
  view.verification_url = code.url;
  view.verification_url_complete = code.complete_url;
  view.interval = code.interval;
  view.expires = now.wall + code.lifetime;
  view.handle = sso.logins.add(std::move(login), now.lease);
  return view;
}

Result<SsoPeople::Admitted> admit_by_sso(Sso& sso, const wire::FinishSsoRequest& request, const SsoLogin& login) {
  if (login.by_device)
    return sso.people.admit(sso.provider.settings(), TRY(sso.provider.claims_of_device(login.device_code)));
  if (!crypto::equal(as_bytes(request.state), as_bytes(login.state)))
    return error(Code::PermissionDenied, "the browser's answer belongs to another login; begin again", "state");
  if (request.code.empty()) return error(Code::InvalidArgument, "code is required", "code");
  return sso.people.admit(sso.provider.settings(),
                          TRY(sso.provider.claims_of_code(
                              {request.code, login.redirect_uri, login.verifier, login.nonce, request.issuer})));
}

}  // namespace

void Api::begin_sso(const CallPtr& call) {
  const auto request = wire::parse_begin_sso(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  Sso* sso = context_.sso.get();
  if (sso == nullptr) return fail(call, no_sso());
  const std::string source = net::address_block(call->request.peer);
  if (const auto wait = sso->begun.begin(source, source, read_clocks().lease))
    return later(call, *wait, "too many logins were begun from this address");
  const auto done = [sso, source](LoginGuard::Outcome outcome) {
    sso->begun.done(source, source, read_clocks().lease, outcome);
  };
  const auto work = [this, call, sso, source, done, request = *request] {
    auto started = request.device ? start_device(*sso, source) : start_browser(*sso, source, request.port);
    done(started.ok() ? LoginGuard::Outcome::Wrong : LoginGuard::Outcome::NotTried);  // counted, whatever becomes of it
    if (!started.ok()) return fail(call, started.error());
    ok(call, wire::to_json(*started));
  };
  if (sso->pool.post(work)) return;
  done(LoginGuard::Outcome::NotTried);
  later(call, kBusyWait, "too many logins wait for the identity provider");
}

void Api::finish_sso(const CallPtr& call) {
  const auto request = wire::parse_finish_sso(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  Sso* sso = context_.sso.get();
  if (sso == nullptr) return fail(call, no_sso());
  const std::string source = net::address_block(call->request.peer);
  if (const auto wait = sso->failed.begin(source, source, read_clocks().lease))
    return later(call, *wait, "too many logins from this address failed");
  const auto done = [sso, source](LoginGuard::Outcome outcome) {
    sso->failed.done(source, source, read_clocks().lease, outcome);
  };
  const auto found = sso->logins.find(request->handle, read_clocks().lease);
  if (!found) {
    done(LoginGuard::Outcome::Wrong);
    return fail(call, error(Code::NotFound,
                            "this login took too long, or it was finished or given up before; begin again", "handle"));
  }
  if (found->wait) {
    done(LoginGuard::Outcome::NotTried);
    return ok(call, wire::to_json(wire::SsoAnswerView{true, *found->wait, {}, {}}));
  }
  const auto work = [this, call, sso, done, request = *request, login = found->login] {
    const auto admitted = admit_by_sso(*sso, request, login);
    const std::string& field = admitted.ok() ? std::string() : admitted.error().field;
    if (login.by_device && (field == "authorization_pending" || field == "slow_down")) {
      done(LoginGuard::Outcome::NotTried);
      const Millis wait =
          field == "slow_down" ? sso->logins.slower(request.handle, read_clocks().lease) : login.interval;
      return ok(call, wire::to_json(wire::SsoAnswerView{true, wait, {}, {}}));
    }
    const bool again = !admitted.ok() && admitted.error().code == Code::Unavailable;
    if (login.by_device && !again) sso->logins.end(request.handle);
    done(admitted.ok() || again ? LoginGuard::Outcome::NotTried : LoginGuard::Outcome::Wrong);
    if (!admitted.ok()) {
      log_warn("audit", "a login by the identity provider was refused: {} {}", code_name(admitted.error().code), field);
      return fail(call, admitted.error());
    }
    give_login(call, admitted->account, request.label.empty() ? "single sign-on" : request.label, {},
               sso->provider.settings().login_lifetime, [project = admitted->project](const wire::LoginView& view) {
                 return wire::to_json(wire::SsoAnswerView{false, Millis(0), view, project});
               });
  };
  if (sso->pool.post(work)) return;
  done(LoginGuard::Outcome::NotTried);
  later(call, kBusyWait, "too many logins wait for the identity provider");
}

// OpenID Connect Back-Channel Logout 1.0: the provider posts that a login there has ended. The token proves itself, so
// nobody need log in for this; the answer tells nobody whether anybody was logged in here.
void Api::sso_logout(const net::Request& request, const net::ResponderPtr& responder) {
  const auto answer = [responder](int status, std::string_view fault, std::string_view why) {
    net::Response response;
    response.status = status;
    response.headers["Cache-Control"] = "no-store";
    if (status == 503 || status == 429) response.headers["Retry-After"] = "2";
    if (!fault.empty()) {
      wire::Json body = wire::Json::object();
      body.set("error", wire::Json::string(std::string(fault)));
      response.body = body.set("error_description", wire::Json::string(std::string(why))).dump();
    }
    responder->send(std::move(response));
  };
  Sso* sso = context_.sso.get();
  if (sso == nullptr) return answer(404, "invalid_request", "this control plane has no identity provider");
  const auto token = net::form_value(request, "logout_token");
  if (!token) return answer(400, "invalid_request", "send logout_token, once, as application/x-www-form-urlencoded");
  const std::string source = net::address_block(request.peer);
  if (sso->logouts.begin(source, source, read_clocks().lease))
    return answer(429, "temporarily_unavailable", "too many logouts from this address were none");
  const auto done = [sso, source](LoginGuard::Outcome outcome) {
    sso->logouts.done(source, source, read_clocks().lease, outcome);
  };
  const auto work = [sso, done, answer, token = *token] {
    const auto logout = sso->provider.logout_of(token);
    const auto ended =
        logout.ok() ? sso->people.log_out(sso->provider.settings(), *logout) : Result<std::size_t>(logout.error());
    const bool later =
        !ended.ok() && (ended.error().code == Code::Unavailable || ended.error().code == Code::DeadlineExceeded);
    done(ended.ok() || later ? LoginGuard::Outcome::NotTried : LoginGuard::Outcome::Wrong);
    if (ended.ok()) return answer(200, "", "");
    log_warn("audit", "a logout by the identity provider was refused: {} {}", code_name(ended.error().code),
             ended.error().field);
    answer(later ? 503 : 400, later ? "temporarily_unavailable" : "invalid_request", ended.error().message);
  };
  if (sso->pool.post(work)) return;
  done(LoginGuard::Outcome::NotTried);
  answer(503, "temporarily_unavailable", "too many logins wait for the identity provider");
}

void Api::invite_person(const CallPtr& call, const wire::CreatePrincipalRequest& request) {
  Sso* sso = context_.sso.get();
  if (sso == nullptr)
    return fail(call, error(Code::FailedPrecondition,
                            "this control plane has no identity provider; give a password instead of ssoSubject",
                            "ssoSubject"));
  post(call, [this, call, sso, request] {
    const std::string issuer = sso->provider.settings().issuer;
    const Status free = sso->people.check_free(issuer, request.sso_subject, request.name);
    if (!free.ok()) return fail(call, free.error());
    make_principal(call, request, [sso, issuer, subject = request.sso_subject](const engine::Reply& reply) {
      // A repeat writes again: that heals an account whose link was lost between the two stores.
      if (const auto id = PrincipalId::parse(reply.outcome.id))
        static_cast<void>(sso->people.invite(issuer, subject, *id).ok());
    });
  });
}

void Api::add_sso() {
  add_open("BeginSso", [this](const CallPtr& call) { begin_sso(call); });
  add_open("FinishSso", [this](const CallPtr& call) { finish_sso(call); });
}

}  // namespace muster::server
