#pragma once
// ~/.config/muster/config.json: contexts {server, CA, token, project}. The file is 0600, its folder 0700, written whole
// and renamed. MUSTER_CONFIG names another file; MUSTER_SERVER, MUSTER_CA_FILE, MUSTER_TOKEN_FILE and MUSTER_PROJECT
// win over the context.
#include <map>
#include <string>

#include "base/result.h"

namespace muster::cli {

struct Account {
  std::string server, ca_pem, token, user, project;
  // Of a login (session.h): what renews the token, what will renew it next, and when it is due by this clock.
  std::string refresh = {}, refresh_next = {};
  std::int64_t renew_at_ms = 0;
  std::string context = {};  // its name in the config; empty: it is not from there
  bool operator==(const Account&) const = default;
};
struct Config {
  std::string current = "default";
  std::map<std::string, Account> accounts;
  bool operator==(const Config&) const = default;
};

std::string config_path();
Result<Config> load_config(const std::string& path);  // a missing file is an empty config
Status save_config(const std::string& path, const Config& config);
Result<Account> choose_account(const Config& config, const std::string& context);  // with the environment applied

Result<std::string> read_file(const std::string& path, std::size_t max_bytes);  // "-" is standard input
Status write_secret_file(const std::string& path, const std::string& text);     // 0600, replaced as a whole

}  // namespace muster::cli
