#pragma once
// muster passwd: the caller's own password. Pure but for the call; blocking.
#include "cli/api.h"

namespace muster::cli {

struct Passwords {
  std::string old_one, new_one;
};
// The first two lines of a file: the old password and the new one.
Result<Passwords> passwords_of(std::string_view text);
// How many other logins of the account were ended.
Result<std::string> change_password(Api& api, const Passwords& passwords);

}  // namespace muster::cli
