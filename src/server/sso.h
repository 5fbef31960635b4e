#pragma once
// Everything of logins by an identity provider in one place; absent where none is configured. The threads are its own:
// a provider that hangs makes nobody else wait.
#include "server/login_guard.h"
#include "server/pool.h"
#include "server/sso_people.h"
#include "server/sso_provider.h"
#include "server/sso_table.h"

namespace muster::server {

struct Sso {
  Sso(SsoProvider::Options options, const crypto::Secret32& secret, std::shared_ptr<journal::Store> store,
      engine::Runner& runner)
      : provider(std::move(options)), people(secret, std::move(store), runner) {}
  SsoProvider provider;
  SsoTable logins;
  SsoPeople people;
  // By address alone (both keys): who begins, and who answers with handles that are none or logins that fail.
  LoginGuard begun{{.per_pair = 60, .per_name = 60, .at_once = 16}};
  LoginGuard failed{{.per_pair = 60, .per_name = 60, .at_once = 16}};
  LoginGuard logouts{{.per_pair = 60, .per_name = 60, .at_once = 16}};  // who posts ends of logins that are none
  Pool pool{4, 64};                                                     // last: its threads use the rest
};

}  // namespace muster::server
