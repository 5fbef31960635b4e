#pragma once
// The commands of musterd, one function each, given the store by the program (server never names one). Each returns the
// exit code: 0 done, 1 failed (reason on standard error), 2 wrong usage. Blocking; one a process.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "crypto/key_ring.h"
#include "journal/address_book.h"
#include "journal/store.h"

namespace muster::server {

// ring: of a folder that is encrypted at rest, else null; what they open is then sealed with it.
using OpenStore = std::function<Result<std::shared_ptr<journal::Store>>(const std::string& path,
                                                                        std::shared_ptr<crypto::KeyRing> ring)>;
// Copies the whole database file of a store consistently, also while musterd runs.
using CopyStore = std::function<Status(const std::string& from, const std::string& to)>;

using OpenAddresses = std::function<Result<std::shared_ptr<journal::AddressBook>>(
    const std::string& path, std::shared_ptr<crypto::KeyRing> ring)>;

// Brings the databases of a folder under the ring's current key; plain_allowed: also what is not sealed yet. How many
// things changed.
enum class PlainRows : std::uint8_t { Refused, Sealed };
using ResealRows = std::function<Result<std::uint64_t>(const std::string& journal, const std::string& addresses,
                                                       crypto::KeyRing& ring, PlainRows plain)>;

struct Arguments {
  std::vector<std::string> words;              // what is no option
  std::map<std::string, std::string> options;  // "--data" -> value
  std::string option(const std::string& name, const std::string& otherwise = {}) const;
};
Result<Arguments> parse_arguments(int count, char** values);

int cmd_init(const Arguments& arguments, const OpenStore& open);
int cmd_serve(const Arguments& arguments, const OpenStore& open, const OpenAddresses& open_addresses);
int cmd_passwd(const Arguments& arguments, const OpenStore& open);
int cmd_totp_reset(const Arguments& arguments, const OpenStore& open);
int cmd_sso_forget(const Arguments& arguments, const OpenStore& open);
int cmd_journal(const Arguments& arguments, const OpenStore& open);
int cmd_audit(const Arguments& arguments, const OpenAddresses& open);
int cmd_relay(const Arguments& arguments);
int cmd_signer(const Arguments& arguments);
int cmd_ca(const Arguments& arguments);
int cmd_keys(const Arguments& arguments);
int cmd_at_rest(const Arguments& arguments, const ResealRows& reseal);
int cmd_backup(const Arguments& arguments, const CopyStore& copy);
int cmd_restore(const Arguments& arguments, const OpenStore& open);
Result<std::string> read_password_file(const std::string& path);  // its first line; "-" is standard input
extern const char* const kUsage;

}  // namespace muster::server
