#pragma once
// The commands of musterd, one function each, given the store by the program (server never names one). Each returns the
// exit code: 0 done, 1 failed (reason on standard error), 2 wrong usage. Blocking; one a process.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "journal/address_book.h"
#include "journal/store.h"

namespace muster::server {

using OpenStore = std::function<Result<std::shared_ptr<journal::Store>>(const std::string& path)>;
// Copies the whole database file of a store consistently, also while musterd runs.
using CopyStore = std::function<Status(const std::string& from, const std::string& to)>;

using OpenAddresses = std::function<Result<std::shared_ptr<journal::AddressBook>>(const std::string& path)>;

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
int cmd_backup(const Arguments& arguments, const CopyStore& copy);
int cmd_restore(const Arguments& arguments, const OpenStore& open);
Result<std::string> read_password_file(const std::string& path);  // its first line; "-" is standard input
extern const char* const kUsage;

}  // namespace muster::server
