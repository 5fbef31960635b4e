// Sets the password of a local account in the data directory, for who lost it. Passwords lie in a side table of the
// store, not in the journal, so it neither takes the lead from a musterd that serves nor waits for it to stop: that one
// reads the table at each login.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>

#include "crypto/password.h"
#include "crypto/random.h"
#include "engine/core.h"
#include "server/commands.h"
#include "server/identity.h"

namespace muster::server {
namespace {

struct Set {
  std::string password;
  bool generated = false;
};

Result<Set> set_password(const Arguments& arguments, const OpenStore& open) {
  const DataDir dir{arguments.option("--data")};
  const std::string& name = arguments.words[1];
  if (!std::filesystem::exists(dir.key("ca.key.pem")))
    return error(Code::NotFound, fmt::format("{} holds no control plane", dir.root));
  Set out;
  if (const auto file = arguments.option("--password-file"); !file.empty()) {
    out.password = TRY(read_password_file(file));
  } else {
    out.password = base64url(crypto::random_bytes(12));
    out.generated = true;
  }
  const auto store = TRY(open(dir.journal()));
  const auto base = TRY(engine::load_base(*store));
  const auto found = base.state.principal_by_name.find(name);
  if (found == base.state.principal_by_name.end())
    return error(Code::NotFound, fmt::format("there is no account {}; `muster user list` shows them", name));
  const Principal& principal = base.state.principals.at(found->second);
  if (principal.disabled)
    return error(Code::FailedPrecondition, fmt::format("the account {} is disabled for good; make another", name));
  const std::string hash = TRY(crypto::hash_password(out.password));
  TRY_VOID(store->put_side("passwords", principal.id.str(), to_bytes(hash)));
  return out;
}

}  // namespace

int cmd_passwd(const Arguments& arguments, const OpenStore& open) {
  if (arguments.option("--data").empty() || arguments.words.size() != 2) {
    std::fputs(kUsage, stderr);
    return 2;
  }
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

}  // namespace muster::server
