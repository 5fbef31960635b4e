#include "server/sso_people.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "base/log.h"
#include "crypto/hash.h"
#include "crypto/sign.h"
#include "server/views.h"
#include "wire/names.h"

namespace muster::server {
namespace {

constexpr const char *kSsoTable = "sso", *kSessionTable = "sso-sessions";
constexpr int kNamesTried = 50, kEndings = 20;
constexpr std::size_t kHeardMax = 100'000, kSessionTextMax = 255;
constexpr Millis kPruneEvery{3'600'000};
constexpr Millis kFollowerWait{5000};

control::Actor the_system() {
  control::Actor actor;
  actor.system = true;
  return actor;
}

// As it may be shown to the person himself; empty where it is no plain text.
std::string shown_subject(const wire::Json& claims) {
  const std::string& subject = claims["sub"].text();
  const bool plain =
      std::all_of(subject.begin(), subject.end(), [](char c) { return c > ' ' && c < 0x7f && c != '"'; });
  return plain ? subject : std::string();
}

}  // namespace

SsoPeople::SsoPeople(const crypto::Secret32& secret, std::shared_ptr<journal::Store> store, engine::Runner& runner)
    : key_(crypto::hkdf_sha256(secret.view(), {}, as_bytes("muster-sso-person-v1"), 32)),
      store_(std::move(store)),
      runner_(runner) {}

std::string SsoPeople::row_of(const std::string& issuer, const std::string& subject) const {
  return hex(crypto::hmac_sha256(key_, oidc::person_key(issuer, subject)));
}

Result<std::optional<SsoPeople::Link>> SsoPeople::find(const std::string& row) const {
  const auto bytes = TRY(store_->get_side(kSsoTable, row));
  if (!bytes) return std::optional<Link>();
  std::istringstream in(as_string(*bytes));
  std::string account, how;
  int form = 0;
  const auto id = in >> form >> account >> how ? PrincipalId::parse(account) : std::nullopt;
  if (form != 1 || !id || (how != "rules" && how != "invited"))
    return error(Code::DataLoss, "the link between the identity provider and an account cannot be read");
  return std::optional(Link{*id, how == "rules"});
}

Status SsoPeople::put(const std::string& row, const Link& link) {
  return store_->put_side(kSsoTable, row,
                          to_bytes(fmt::format("1 {} {}", link.account.str(), link.by_rules ? "rules" : "invited")));
}

Result<std::size_t> SsoPeople::forget(journal::Store& store, PrincipalId account) {
  std::size_t count = 0;
  const std::string wanted = fmt::format("1 {} ", account.str());
  for (std::string after;;) {
    const auto rows = TRY(store.list_side(kSsoTable, after, 1000));
    if (rows.empty()) return count;
    for (const auto& [row, bytes] : rows) {
      after = row;
      if (!as_string(bytes).starts_with(wanted)) continue;
      TRY_VOID(store.erase_side(kSsoTable, row));
      ++count;
    }
  }
}

std::optional<Principal> SsoPeople::account_of(PrincipalId id) const {
  std::optional<Principal> out;
  runner_.read([&](const control::State& state, const scheduler::Scheduler&) {
    const auto found = state.principals.find(id);
    if (found != state.principals.end()) out = found->second;
  });
  return out;
}

Status SsoPeople::check_free(const std::string& issuer, const std::string& subject, const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto link = TRY(find(row_of(issuer, subject)));
  const auto account = link ? account_of(link->account) : std::nullopt;
  if (!account || account->name == name) return {};  // of that name: a repeat, or the core says that it is taken
  return error(Code::AlreadyExists,
               fmt::format("this person has the account {}; take the link away first: musterd sso-forget {}",
                           account->name, account->name),
               "ssoSubject");
}

Status SsoPeople::invite(const std::string& issuer, const std::string& subject, PrincipalId account) {
  const std::lock_guard lock(mutex_);
  return put(row_of(issuer, subject), {account, false});
}

Result<SsoPeople::Admitted> SsoPeople::admit(const oidc::Settings& settings, const wire::Json& claims) {
  TRY_VOID(oidc::check_email(settings, claims));
  const std::lock_guard lock(mutex_);
  const std::string row = row_of(settings.issuer, claims["sub"].text());
  const oidc::Rule* rule = oidc::find_rule(settings, claims);
  const auto link = TRY(find(row));
  const auto known = link ? account_of(link->account) : std::nullopt;
  const bool makes = !known && settings.unknown == oidc::Unknown::Create && rule != nullptr;
  if (known || makes) {
    Admitted out = known ? TRY(admit_known(*link, *known, rule)) : TRY(make(settings, claims, row, *rule));
    // Without it a logout that names the session alone would find nobody.
    TRY_VOID(note_session(settings, claims, out.account.id));
    return out;
  }
  const std::string subject = shown_subject(claims);
  return error(
      Code::PermissionDenied,
      fmt::format(
          "the identity provider knows you, but {}; ask an operator{}",
          settings.unknown == oidc::Unknown::Create ? "none of the rules here lets you in" : "no account here is yours",
          subject.empty() ? std::string()
                          : fmt::format(" to make one: muster user create NAME --sso-subject {}", subject)));
}

Result<SsoPeople::Admitted> SsoPeople::admit_known(const Link& link, const Principal& account, const oidc::Rule* rule) {
  if (account.disabled)
    return error(Code::PermissionDenied,
                 fmt::format("your account {} is switched off here; ask an operator", account.name));
  if (!link.by_rules) return Admitted{account, rule != nullptr ? rule->project : std::string()};
  std::optional<OrgId> org;
  runner_.read([&](const control::State& state, const scheduler::Scheduler&) {
    if (rule != nullptr) org = find_org(state, rule->org);
  });
  if (rule != nullptr && org) return follow(account, *rule, *org);
  TRY_VOID(end_logins(account.id));
  log_warn("audit", "{}: the identity provider's rules no longer fit; its logins are ended", account.id.str());
  if (rule != nullptr)
    return error(Code::PermissionDenied,
                 fmt::format("the rule for you names the organisation {}, which is not here, so the logins of your "
                             "account {} are ended; ask the operator to make it: muster org create {}",
                             rule->org, account.name, rule->org));
  return error(Code::PermissionDenied,
               fmt::format("no rule here fits what the identity provider says of you any more, so the logins of your "
                           "account {} are ended; ask there for a group that may come in, then log in again",
                           account.name));
}

// Its logins end before it becomes something else: what they opened was opened as what it was.
Result<SsoPeople::Admitted> SsoPeople::follow(const Principal& account, const oidc::Rule& rule, OrgId org) {
  if (rule.role == account.role && org == account.org) return Admitted{account, rule.project};
  TRY_VOID(end_logins(account.id));
  const auto reply =
      runner_.submit_wait(control::Lane::Operator, control::ChangePrincipal{account.id, rule.role, org}, the_system());
  if (!reply.ok() && reply.error().code == Code::FailedPrecondition)
    return error(Code::PermissionDenied,
                 fmt::format("your account {} cannot become what the identity provider says now: {}", account.name,
                             reply.error().message));
  if (!reply.ok()) return reply.error();
  if (!runner_.wait_for(reply->seq, kFollowerWait))
    return error(Code::Unavailable, "your account is being changed; log in again in a moment");
  log_info("audit", "{} is {} of {} now, as the identity provider says", account.id.str(), wire::text(rule.role),
           org.str());
  Principal changed = account;
  changed.role = rule.role, changed.org = org;
  return Admitted{std::move(changed), rule.project};
}

Result<SsoPeople::Admitted> SsoPeople::make(const oidc::Settings& settings, const wire::Json& claims,
                                            const std::string& row, const oidc::Rule& rule) {
  std::optional<OrgId> org;
  runner_.read([&](const control::State& state, const scheduler::Scheduler&) { org = find_org(state, rule.org); });
  if (!org)
    return error(Code::FailedPrecondition,
                 fmt::format("the rule for you names the organisation {}, which is not here; ask the operator to make "
                             "it: muster org create {}",
                             rule.org, rule.org));
  const std::string base = oidc::account_name(settings, claims);
  for (int number = 1; number <= kNamesTried; ++number) {
    const std::string name = number == 1 ? base : fmt::format("{}-{}", base, number);
    // The key makes a repeat after a crash find what was made before its link was written.
    control::Actor actor = the_system();
    const auto asked =
        crypto::sha256(crypto::framed("muster-sso-account-v1", {as_bytes(row), as_bytes(name), as_bytes(org->str()),
                                                                as_bytes(wire::text(rule.role))}));
    actor.request_id = "sso-" + hex(asked);
    actor.request_hash.assign(asked.begin(), asked.end());
    const auto reply =
        runner_.submit_wait(control::Lane::Operator, control::CreatePrincipal{name, rule.role, *org}, std::move(actor));
    if (!reply.ok() && reply.error().code == Code::AlreadyExists) continue;
    if (!reply.ok()) return reply.error();
    const auto id = PrincipalId::parse(reply->outcome.id);
    if (!id || !runner_.wait_for(reply->seq, kFollowerWait))
      return error(Code::Unavailable, "your account is being made; log in again in a moment");
    const auto account = account_of(*id);
    if (!account || account->disabled) continue;  // of an earlier life of this person
    TRY_VOID(put(row, {*id, true}));
    log_info("audit", "{} was made for a person of the identity provider", id->str());
    return Admitted{*account, rule.project};
  }
  return error(Code::AlreadyExists, fmt::format("too many accounts are named like {}; ask an operator for one", base));
}

Status SsoPeople::end_logins(PrincipalId account) {
  for (int i = 0; i < kEndings; ++i) {  // some thousands each
    std::size_t left = 0;
    runner_.read([&](const control::State& state, const scheduler::Scheduler&) {
      left = control::logins_of(state, account, {}, read_clocks().wall).size();
    });
    if (left == 0) return {};
    const auto reply = runner_.submit_wait(control::Lane::Operator, control::RevokeLogins{account, {}}, the_system());
    if (!reply.ok() || !runner_.wait_for(reply->seq, kFollowerWait)) break;
  }
  log_error("audit", "{}: its logins could not be ended; disable the account", account.str());
  return error(Code::Unavailable, "the logins of the account could not be ended now; try again");
}

// ---- sessions there

std::string SsoPeople::session_row(const std::string& issuer, const std::string& session) const {
  return hex(crypto::hmac_sha256(key_, crypto::framed("muster-sso-session-v1", {as_bytes(issuer), as_bytes(session)})));
}

Status SsoPeople::note_session(const oidc::Settings& settings, const wire::Json& claims, PrincipalId account) {
  const wire::Json* session = claims.find("sid");
  if (session == nullptr || !session->is(wire::Json::Kind::String) || session->text().empty() ||
      session->text().size() > kSessionTextMax)
    return {};
  const WallTime now = read_clocks().wall;
  if (now - pruned_ > kPruneEvery || now < pruned_) {
    pruned_ = now;
    for (std::string after;;) {
      const auto rows = TRY(store_->list_side(kSessionTable, after, 1000));
      if (rows.empty()) break;
      for (const auto& [row, bytes] : rows) {
        after = row;
        std::istringstream in(as_string(bytes));
        int form = 0;
        std::string who;
        std::int64_t ends = 0;
        if (!(in >> form >> who >> ends) || ends <= now.ms) TRY_VOID(store_->erase_side(kSessionTable, row));
      }
    }
  }
  return store_->put_side(kSessionTable, session_row(settings.issuer, session->text()),
                          to_bytes(fmt::format("1 {} {}", account.str(), (now + settings.login_lifetime).ms)));
}

Result<std::optional<PrincipalId>> SsoPeople::account_of_session(const std::string& row) const {
  const auto bytes = TRY(store_->get_side(kSessionTable, row));
  if (!bytes) return std::optional<PrincipalId>();
  std::istringstream in(as_string(*bytes));
  int form = 0;
  std::string who;
  in >> form >> who;
  return form == 1 ? PrincipalId::parse(who) : std::nullopt;
}

// With the mutex held.
Status SsoPeople::heard(const std::string& id, WallTime now) {
  std::erase_if(heard_, [&](const auto& each) { return each.second <= now; });
  const auto digest = crypto::sha256(as_bytes(id));
  const Bytes key(digest.begin(), digest.end());
  if (heard_.contains(key))
    return error(Code::FailedPrecondition, "this word of the identity provider was heard before", "jti");
  if (heard_.size() >= kHeardMax) return error(Code::Unavailable, "too many logouts at once; say it again in a minute");
  return {};
}

Result<std::size_t> SsoPeople::log_out(const oidc::Settings& settings, const oidc::Logout& logout) {
  const std::lock_guard lock(mutex_);
  const WallTime now = read_clocks().wall;
  TRY_VOID(heard(logout.id, now));
  std::set<PrincipalId> accounts;
  if (!logout.subject.empty()) {
    if (const auto link = TRY(find(row_of(settings.issuer, logout.subject)))) accounts.insert(link->account);
  }
  const std::string row = logout.session.empty() ? std::string() : session_row(settings.issuer, logout.session);
  if (!row.empty()) {
    if (const auto account = TRY(account_of_session(row))) accounts.insert(*account);
  }
  for (const PrincipalId account : accounts) {
    TRY_VOID(end_logins(account));
    log_info("audit", "{}: the identity provider ended its logins", account.str());
  }
  if (!row.empty()) TRY_VOID(store_->erase_side(kSessionTable, row));
  // Only now: what failed may be said again.
  const auto digest = crypto::sha256(as_bytes(logout.id));
  heard_[Bytes(digest.begin(), digest.end())] = now + oidc::kLogoutFresh + 2 * oidc::kSkew;
  return accounts.size();
}

}  // namespace muster::server
