// Sets the password of a local account, takes away its second factor or its link to a person of the identity provider,
// in the data directory. All
// lie in side tables of the store, not in the journal, so this neither takes the lead from a musterd that serves nor
// waits for it to stop: that one reads the tables at each login.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>

#include "crypto/password.h"
#include "crypto/random.h"
#include "engine/core.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/identity.h"
#include "server/second_factor.h"
#include "server/sso_people.h"

namespace muster::server {
namespace {

struct Set {
  std::string password;
  bool generated = false;
};

struct Account {
  std::shared_ptr<journal::Store> store;
  PrincipalId id;
};
enum class Disabled : std::uint8_t { Refused, Allowed };
Result<Account> open_account(const Arguments& arguments, const OpenStore& open, Disabled disabled = Disabled::Refused) {
  const DataDir dir = TRY(open_data_dir(arguments));
  const std::string& name = arguments.words[1];
  if (!holds_platform(dir)) return error(Code::NotFound, fmt::format("{} holds no control plane", dir.root));
  const auto store = TRY(open(dir.journal(), ring_of(dir)));
  const auto base = TRY(engine::load_base(*store));
  const auto found = base.state.principal_by_name.find(name);
  if (found == base.state.principal_by_name.end())
    return error(Code::NotFound, fmt::format("there is no account {}; `muster user list` shows them", name));
  const Principal& principal = base.state.principals.at(found->second);
  if (principal.disabled && disabled == Disabled::Refused)
    return error(Code::FailedPrecondition, fmt::format("the account {} is disabled for good; make another", name));
  return Account{store, principal.id};
}

Result<Set> set_password(const Arguments& arguments, const OpenStore& open) {
  Set out;
  if (const auto file = arguments.option("--password-file"); !file.empty()) {
    out.password = TRY(read_password_file(file));
  } else {
    out.password = base64url(crypto::random_bytes(12));
    out.generated = true;
  }
  const Account account = TRY(open_account(arguments, open));
  const std::string hash = TRY(crypto::hash_password(out.password));
  TRY_VOID(account.store->put_side("passwords", account.id.str(), to_bytes(hash)));
  return out;
}

Status reset_totp(const Arguments& arguments, const OpenStore& open) {
  const Account account = TRY(open_account(arguments, open));
  return SecondFactors::reset(*account.store, account.id);
}

bool names_an_account(const Arguments& arguments) {
  if (!arguments.option("--data").empty() && arguments.words.size() == 2) return true;
  std::fputs(kUsage, stderr);
  return false;
}

}  // namespace

int cmd_passwd(const Arguments& arguments, const OpenStore& open) {
  if (!names_an_account(arguments)) return 2;
  const auto done = set_password(arguments, open);
  if (!done.ok()) {
    fmt::print(stderr, "musterd passwd: {}\n", done.error().message);
    return 1;
  }
  const std::string& name = arguments.words[1];
  if (done->generated)
    fmt::print("{} has the password {} (shown once)\n", name, done->password);
  else
    fmt::print("{} has a new password.\n", name);
  fmt::print("Logins that exist go on: log in and run `muster passwd` to end them.\n");
  return 0;
}

int cmd_totp_reset(const Arguments& arguments, const OpenStore& open) {
  if (!names_an_account(arguments)) return 2;
  const Status done = reset_totp(arguments, open);
  if (!done.ok()) {
    fmt::print(stderr, "musterd totp-reset: {}\n", done.error().message);
    return 1;
  }
  fmt::print("{} has no second factor any more: its password alone logs in, until `muster totp enable`.\n",
             arguments.words[1]);
  return 0;
}

int cmd_sso_forget(const Arguments& arguments, const OpenStore& open) {
  if (!names_an_account(arguments)) return 2;
  const auto account = open_account(arguments, open, Disabled::Allowed);
  const auto gone =
      account.ok() ? SsoPeople::forget(*account->store, account->id) : Result<std::size_t>(account.error());
  if (!gone.ok()) {
    fmt::print(stderr, "musterd sso-forget: {}\n", gone.error().message);
    return 1;
  }
  if (*gone == 0) {
    fmt::print("{} belongs to nobody of the identity provider: nothing to forget.\n", arguments.words[1]);
    return 0;
  }
  fmt::print(
      "{} belongs to nobody of the identity provider any more: who had it begins with a new account. Its logins go on "
      "until they end; `muster user disable` ends them.\n",
      arguments.words[1]);
  return 0;
}

}  // namespace muster::server
