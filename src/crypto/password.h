#pragma once
// Passwords of local accounts: scrypt (RFC 7914), stored as "$scrypt$ln=15,r=8,p=1$SALT$HASH" (base64url). Costs about
// 0.1 s and 32 MiB: never call it on a core or network thread.
#include <string>

#include "base/result.h"

namespace muster::crypto {

Result<std::string> hash_password(std::string_view password);
bool verify_password(std::string_view password, std::string_view encoded);

}  // namespace muster::crypto
