#pragma once
// Which account is a person's whom the identity provider vouches for. A person is issuer and subject, never an e-mail
// address or a name; the link lies beside the journal in the erasable side table "sso", under a keyed hash, so neither
// journal nor database tells who it is. A link is by the rules (role and organisation follow what they say at each
// login) or by an operator's invitation (the account is what he made it). Sessions at the provider lie beside them in
// "sso-sessions", the same way, for as long as a login of theirs may hold. Blocks on store and engine. Thread-safe.
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "engine/runner.h"
#include "journal/store.h"
#include "oidc/id_token.h"
#include "oidc/settings.h"

namespace muster::server {

class SsoPeople {
 public:
  SsoPeople(const crypto::Secret32& secret, std::shared_ptr<journal::Store> store, engine::Runner& runner);

  struct Admitted {
    Principal account;
    std::string project;  // name that the rule says, may be empty
  };
  // Finds or makes the account, and makes it what the rules say now: logins and streams that it had as something else
  // end first. PermissionDenied: switched off, unknown, or no rule fits any more (its logins are ended then).
  Result<Admitted> admit(const oidc::Settings& settings, const wire::Json& claims);
  // A login there has ended: those of the account here end with it. The number of accounts that was about, 0: of
  // nobody here, or over already. FailedPrecondition: this word was heard before. Unavailable: not done, say it again.
  Result<std::size_t> log_out(const oidc::Settings& settings, const oidc::Logout& logout);

  // For accounts that an operator makes for somebody. AlreadyExists: the person has another one than `name`.
  Status check_free(const std::string& issuer, const std::string& subject, const std::string& name);
  Status invite(const std::string& issuer, const std::string& subject, PrincipalId account);
  // The person may begin anew; also from another process. The number of links that are gone.
  static Result<std::size_t> forget(journal::Store& store, PrincipalId account);

 private:
  struct Link {
    PrincipalId account;
    bool by_rules = false;
  };
  std::string row_of(const std::string& issuer, const std::string& subject) const;
  Result<std::optional<Link>> find(const std::string& row) const;
  Status put(const std::string& row, const Link& link);
  std::optional<Principal> account_of(PrincipalId id) const;
  Result<Admitted> admit_known(const Link& link, const Principal& account, const oidc::Rule* rule);
  Result<Admitted> make(const oidc::Settings& settings, const wire::Json& claims, const std::string& row,
                        const oidc::Rule& rule);
  Result<Admitted> follow(const Principal& account, const oidc::Rule& rule, OrgId org);
  Status end_logins(PrincipalId account);
  std::string session_row(const std::string& issuer, const std::string& session) const;
  Status note_session(const oidc::Settings& settings, const wire::Json& claims, PrincipalId account);
  Result<std::optional<PrincipalId>> account_of_session(const std::string& row) const;
  Status heard(const std::string& id, WallTime now);

  const Bytes key_;
  const std::shared_ptr<journal::Store> store_;
  engine::Runner& runner_;
  std::mutex mutex_;                 // one at a time: two first logins of one person make one account
  std::map<Bytes, WallTime> heard_;  // ids of logouts, hashed, until they are too old to be taken anyway
  WallTime pruned_{0};
};

}  // namespace muster::server
