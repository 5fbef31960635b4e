#pragma once
// Passwords of local accounts: argon2id (RFC 9106), stored as "$argon2id$v=19$m=65536,t=3,p=1$SALT$HASH". A hash or a
// check costs about 0.2 s of one core and 64 MiB for as long: never on a core or network thread, and few at a time.
// What was stored as "$scrypt$ln=15,r=8,p=1$SALT$HASH" (RFC 7914) is still checked. Pure; any thread.
#include <string>

#include "base/result.h"

namespace muster::crypto {

Result<std::string> hash_password(std::string_view password);  // InvalidArgument: not 8 to 1024 bytes
bool verify_password(std::string_view password, std::string_view encoded);
bool outdated_hash(std::string_view encoded);  // true: hash the password anew when it is known next

}  // namespace muster::crypto
