// The second factor of local accounts: enrol, confirm, show, take away, and its check at a login. Nothing of it enters
// the journal; who did what enters the log.
#include <fmt/format.h>

#include "base/log.h"
#include "crypto/totp.h"
#include "net/address_block.h"
#include "server/api.h"
#include "server/second_factor.h"

namespace muster::server {
namespace {

Resolver own_account(access::Verb verb) {
  return [verb](const control::State&, Call& call) -> Result<Ask> {
    const auto& subject = call.caller.subject;
    return Ask{verb, {access::Kind::Principal, subject.org, {}, subject.principal}};
  };
}
Error wrong_password() {  // not Unauthenticated: the token is good, and a client would ask for a new one
  return error(Code::InvalidArgument, "the password is wrong", "password");
}

}  // namespace

void Api::check_code(const CallPtr& call, const Principal& who, const std::string& code,
                     const std::function<void()>& good) {
  if (code.empty()) {
    const auto held = context_.factors->find(who.id);
    if (!held.ok()) return fail(call, held.error());
    if (!*held) return good();
    return fail(call,
                error(Code::Unauthenticated,
                      "this account has a second factor; send a code of its app or a recovery code as code", "code"));
  }
  const std::string key = who.id.str(), source = net::address_block(call->request.peer);
  if (const auto wait = codes_.begin(key, source, read_clocks().lease))
    return later(call, *wait, "too many codes were tried");
  const auto verdict = context_.factors->check(who.id, code, read_clocks().wall);
  using Verdict = SecondFactors::Verdict;
  using Outcome = LoginGuard::Outcome;
  codes_.done(key, source, read_clocks().lease,
              !verdict.ok() || *verdict == Verdict::NotNeeded ? Outcome::NotTried
              : *verdict == Verdict::Right                    ? Outcome::Right
                                                              : Outcome::Wrong);
  if (!verdict.ok()) return fail(call, verdict.error());
  if (*verdict != Verdict::Wrong) return good();
  log_warn("audit", "{}: the right password with a wrong code of the second factor", key);
  fail(call, error(Code::Unauthenticated,
                   "the code is wrong or was used; take the next one that the app shows, or a recovery code", "code"));
}

std::string Api::account_name(const CallPtr& call) const {
  std::string name;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const auto found = state.principals.find(call->caller.subject.principal);
    if (found != state.principals.end()) name = found->second.name;
  });
  return name;
}

void Api::enrol_totp(const CallPtr& call) {
  const auto request = wire::parse_enrol_totp(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  check_password(call, account_name(call), request->password, wrong_password(), [this, call](const Principal& who) {
    const WallTime now = read_clocks().wall;
    const auto secret = context_.factors->enrol(who.id, now);
    if (!secret.ok()) return fail(call, secret.error());
    const std::string issuer = "Muster " + context_.identity.sans.front();
    ok(call, wire::to_json(wire::TotpEnrolmentView{
                 crypto::base32(*secret), crypto::otpauth_uri(issuer, who.name, *secret), now + kEnrolWithin}));
  });
}

void Api::confirm_totp(const CallPtr& call) {
  const auto request = wire::parse_confirm_totp(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  post(call, [this, call, code = request->code] {
    const PrincipalId who = call->caller.subject.principal;
    const auto recovery = context_.factors->confirm(who, code, read_clocks().wall);
    if (!recovery.ok()) return fail(call, recovery.error());
    log_info("audit", "{} has a second factor now", who.str());
    const auto ended = end_other_logins(call);  // logins without it; that they could not be ended takes no code back
    ok(call,
       wire::to_json(wire::TotpRecoveryView{*recovery, ended.ok() ? *ended : 0, !call->caller.subject.scopes.empty()}));
  });
}

void Api::disable_totp(const CallPtr& call) {
  const auto request = wire::parse_disable_totp(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  if (context_.factor_needed.contains(call->caller.subject.role))
    return fail(call, error(Code::FailedPrecondition,
                            "accounts of your role need a second factor here; for another phone ask an operator for "
                            "`muster user reset-totp`, and set it up anew"));
  check_password(call, account_name(call), request->password, wrong_password(),
                 [this, call, code = request->code](const Principal& who) {
                   check_code(call, who, code, [&] {
                     const Status gone = context_.factors->remove(who.id);
                     if (!gone.ok()) return fail(call, gone.error());
                     log_info("audit", "{} took away the second factor of its account", who.id.str());
                     ok(call, wire::to_json(wire::TotpView{}));
                   });
                 });
}

void Api::add_totp() {
  using access::Verb;
  add("GetTotp", own_account(Verb::Read), [this](const CallPtr& call) {
    post(call, [this, call] {
      const auto held = context_.factors->find(call->caller.subject.principal);
      if (!held.ok()) return fail(call, held.error());
      if (!*held) return ok(call, wire::to_json(wire::TotpView{}));
      ok(call, wire::to_json(wire::TotpView{true, (*held)->since, (*held)->recovery_codes}));
    });
  });
  add("EnrolTotp", own_account(Verb::Update), [this](const CallPtr& call) { enrol_totp(call); });
  add("ConfirmTotp", own_account(Verb::Update), [this](const CallPtr& call) { confirm_totp(call); });
  add("DisableTotp", own_account(Verb::Update), [this](const CallPtr& call) { disable_totp(call); });
  add(
      "ResetTotp",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const Principal* found = find_principal(state, call.id);
        if (found == nullptr) return missing(access::Kind::Principal, call.id);
        call.id = found->id.str();
        return Ask{Verb::Revoke, object_of(*found)};  // not Update: that everybody may of his own account
      },
      [this](const CallPtr& call) {
        const PrincipalId who = *PrincipalId::parse(call->id);
        if (who == call->caller.subject.principal)
          return fail(call, error(Code::FailedPrecondition,
                                  "this is your own account; `muster totp disable` takes its second factor away"));
        post(call, [this, call, who] {
          const Status gone = context_.factors->remove(who);
          if (!gone.ok()) return fail(call, gone.error());
          log_info("audit", "{} took away the second factor of {}", call->caller.subject.principal.str(), who.str());
          read(call, [&](const control::State& state, const scheduler::Scheduler&) {
            return shown_principal(state, who.str());
          });
        });
      });
}

}  // namespace muster::server
