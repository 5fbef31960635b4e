#pragma once
// What every command shares: the chosen account, the output form, how a cluster is named. Each command file has one
// add_x() that declares its options and leaves its work in `action`; run() calls it. Exit codes: docs/cli.md.
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "cli/api.h"
#include "cli/table.h"
#include "wire/json.h"

namespace CLI {
class App;
}

namespace muster::cli {

struct Shell {
  std::string output = "table", context, project;
  std::function<Result<int>()> action;

  Result<Api*> api();  // logs in from the config, once
  bool table() const { return output == "table"; }
  bool colour() const;
  // The value as JSON or YAML, or what `text` makes for people.
  void show(const wire::Json& value, const std::function<std::string()>& text) const;
  void show_list(std::vector<wire::Json> items,
                 const std::function<std::string(const std::vector<wire::Json>&)>& text) const;

 private:
  std::unique_ptr<Api> api_;
};

int exit_code(const Error& error);
std::string error_text(const Error& error);
Result<std::string> cluster_name(const std::string& name_or_file);  // the name itself, or cluster_name of a YAML file
std::string short_time(const wire::Json& value);                    // "2026-11-23 01:02:03" of an RFC 3339 text
std::string resources_text(const wire::Json& resources);

void add_login(CLI::App& app, Shell& shell);
void add_passwd(CLI::App& app, Shell& shell);
void add_totp(CLI::App& app, Shell& shell);
void add_up(CLI::App& app, Shell& shell);
void add_plan(CLI::App& app, Shell& shell);
void add_down(CLI::App& app, Shell& shell);
void add_status(CLI::App& app, Shell& shell);
void add_exec(CLI::App& app, Shell& shell);
void add_rsync(CLI::App& app, Shell& shell);
void add_logs(CLI::App& app, Shell& shell);
void add_forward(CLI::App& app, Shell& shell);
void add_job(CLI::App& app, Shell& shell);
void add_queue(CLI::App& app, Shell& shell);
void add_nodes(CLI::App& app, Shell& shell);
void add_net(CLI::App& app, Shell& shell);
void add_top(CLI::App& app, Shell& shell);
void add_events(CLI::App& app, Shell& shell);
void add_token(CLI::App& app, Shell& shell);
void add_registry(CLI::App& app, Shell& shell);
void add_accounts(CLI::App& app, Shell& shell);
void add_service(CLI::App& app, Shell& shell);
void add_grant(CLI::App& app, Shell& shell);
void add_quota(CLI::App& app, Shell& shell);
void add_images(CLI::App& app, Shell& shell);
void add_version(CLI::App& app, Shell& shell);
void add_completion(CLI::App& app, Shell& shell);

}  // namespace muster::cli
