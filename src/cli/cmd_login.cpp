// login, logout, whoami
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <thread>

#include "cli/config.h"
#include "cli/session.h"
#include "cli/shell.h"
#include "cli/sso.h"
#include "cli/terminal.h"
#include "cli/totp.h"
#include "crypto/trust.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct LoginOptions {
  std::string server, ca_sha256, ca_file, user, password_file, code_file, label = "muster cli";
  bool sso = false, device = false, no_browser = false;
};
constexpr Millis kBrowserPatience{10 * 60'000};

Result<net::Endpoint> login_endpoint(const LoginOptions& options, const Config& config) {
  net::Endpoint endpoint = TRY(net::parse_url(options.server));
  if (!options.ca_file.empty()) {
    endpoint.ca_pem = TRY(read_file(options.ca_file, 1 << 20));
    return endpoint;
  }
  if (!options.ca_sha256.empty()) {
    std::string digits;
    for (const char c : options.ca_sha256)
      if (c != ':' && c != ' ') digits += c;
    const auto pin = unhex(digits);
    if (!pin || pin->size() != 32)
      return error(Code::InvalidArgument, "--ca-sha256 wants the 64 hex digits that `musterd init` printed");
    endpoint.ca_sha256 = *pin;
    return endpoint;
  }
  for (const auto& [name, account] : config.accounts)
    if (account.server == options.server && !account.ca_pem.empty()) {
      endpoint.ca_pem = account.ca_pem;
      return endpoint;
    }
  return error(Code::InvalidArgument,
               "whom to trust is not known yet: give --ca-sha256 HEX (printed by `musterd init`) or --ca-file FILE");
}

Result<wire::Json> post(net::Client& client, const std::string& target, const std::string& body) {
  const auto answer = TRY(client.call(
      {.method = "POST", .target = target, .headers = {{"content-type", "application/json"}}, .body = body}));
  if (answer.status != 200) return problem_of(answer.status, answer.body);
  return wire::parse_json(answer.body);
}

Result<wire::Json> by_password(net::Client& client, const LoginOptions& options) {
  Proof proof = TRY(read_proof(options.password_file, options.code_file));
  if (proof.password.empty()) proof.password = TRY(ask_password("Password of " + options.user + ": "));
  const auto call = [&](const std::string& code) {
    return post(client, "/api/v1/login",
                wire::to_json(wire::LoginRequest{options.user, proof.password, options.label, code}));
  };
  return call_with_code(call, proof.code, ask_code);
}

Result<wire::Json> by_provider(net::Client& client, const LoginOptions& options) {
  SsoWorld world;
  world.call = [&](const std::string& target, const std::string& body) { return post(client, target, body); };
  world.tell = say;
  world.sleep = [](Millis time) { std::this_thread::sleep_for(time); };
  world.label = options.label;
  if (options.device) return login_by_code(world);
  if (!options.no_browser && has_desktop()) world.open_url = start_browser;
  const auto callback = TRY(Callback::open());
  return login_in_browser(world, *callback, kBrowserPatience);
}

// The other roots and the CAs that a root which is believed already leads to; without them, what was believed before.
std::string learnt(net::Client& client, const std::string& before) {
  const auto answer = client.call({.target = "/api/v1/server"});
  const auto body = answer.ok() && answer->status == 200 ? wire::parse_json(answer->body) : Result<wire::Json>(Error{});
  if (!body.ok() || (*body)["trust"].text().empty()) return before;
  const auto first = crypto::parse_trust(before), told = crypto::parse_trust((*body)["trust"].text());
  if (!first.ok() || !told.ok()) return before;
  const auto believed = crypto::believe(*first, *told);
  return believed.ok() ? crypto::trust_text(*believed) : before;
}

Result<int> login(Shell& shell, const LoginOptions& options) {
  if (options.sso == !options.user.empty())
    return error(Code::InvalidArgument,
                 "give --user NAME for a local account, or --sso for the identity provider of the control plane");
  if (!options.sso && (options.device || options.no_browser))
    return error(Code::InvalidArgument, "--device and --no-browser go with --sso");
  if (options.sso && !(options.password_file.empty() && options.code_file.empty()))
    return error(Code::InvalidArgument, "with --sso the identity provider asks for passwords and codes, not muster");
  const net::Endpoint endpoint = TRY(login_endpoint(options, TRY(load_config(config_path()))));
  net::Client client(endpoint);
  const auto answer = TRY(options.sso ? by_provider(client, options) : by_password(client, options));
  const wire::Json& body = options.sso ? answer["login"] : answer;
  const std::string user = options.sso ? clean(body["principal"]["name"].text()) : options.user;
  Account account{.server = options.server,
                  .ca_pem = endpoint.ca_pem.empty() ? client.last_ca_pem() : endpoint.ca_pem,
                  .token = {},
                  .user = user,
                  .project = options.sso ? answer["project"].text() : ""};
  take_login(account, body);
  if (account.ca_pem.empty()) return error(Code::Internal, "the server did not show its CA");
  account.ca_pem = learnt(client, account.ca_pem);
  const std::string name = shell.context.empty() ? "default" : shell.context;
  const auto lock = TRY(ConfigLock::hold());
  Config config = TRY(load_config(config_path()));
  config.accounts[name] = account;
  config.current = name;
  TRY_VOID(save_config(config_path(), config));
  say(fmt::format("Logged in to {} as {} ({}), until {}.", options.server, user,
                  clean(body["principal"]["role"].text()),
                  short_time(body[body["refreshExpiresAt"].text().empty() ? "expiresAt" : "refreshExpiresAt"])));
  if (body["secondFactorNeeded"].truth())
    say("Your role needs a second factor: set it up now with `muster totp enable`; until then nothing else works.");
  return 0;
}

Result<int> logout(Shell& shell) {
  const Config before = TRY(load_config(config_path()));
  const std::string name = shell.context.empty() ? before.current : shell.context;
  const auto known = before.accounts.find(name);
  if (known == before.accounts.end()) return error(Code::NotFound, "there is no context " + name);
  Status ended;
  if (!known->second.token.empty()) {
    Api api(net_transport(TRY(endpoint_of(known->second))), known->second);
    api.set_patience(Millis(5'000));
    const auto answer = api.send("POST", "/api/v1/logout");
    if (!answer.ok()) ended = answer.error();
  }
  // Whatever the control plane says, this machine has no login any more.
  const auto lock = TRY(ConfigLock::hold());
  Config config = TRY(load_config(config_path()));
  if (const auto found = config.accounts.find(name); found != config.accounts.end())
    found->second.token.clear(), found->second.refresh.clear(), found->second.refresh_next.clear();
  TRY_VOID(save_config(config_path(), config));
  if (known->second.token.empty())
    say("Context " + name + " had no login.");
  else if (ended.ok())
    say("Logged out: the login of context " + name + " has ended, here and at the control plane.");
  else if (ended.error().code == Code::Unauthenticated)
    say("Logged out: the login of context " + name + " had ended at the control plane already.");
  else
    say("The login of context " + name + " is removed from this machine, but the control plane did not end it: " +
        ended.error().message + ". `muster token revoke` ends it there.");
  return 0;
}

Result<int> whoami(Shell& shell) {
  Api* api = TRY(shell.api());
  const auto me = TRY(api->get("/api/v1/whoami"));
  shell.show(me, [&] {
    Table table({"ID", "NAME", "ROLE", "ORGANISATION", "PROJECT", "SERVER"});
    table.add({me["id"].text(), me["name"].text(), me["role"].text(), me["org"].text(), me["defaultProject"].text(),
               api->account().server});
    return table.text(shell.colour());
  });
  return 0;
}

}  // namespace

void add_login(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<LoginOptions>();
  auto* login_command = app.add_subcommand("login", "Log in to a control plane");
  login_command->add_option("server", options->server, "https://HOST[:PORT]")->required();
  login_command->add_option("--user,-u", options->user, "account name");
  login_command->add_flag("--sso", options->sso, "log in by the control plane's identity provider, in a browser here");
  login_command->add_flag("--device", options->device, "with --sso: by a code that is entered in a browser elsewhere");
  login_command->add_flag("--no-browser", options->no_browser, "with --sso: only show the page, start no browser");
  login_command->add_option("--ca-sha256", options->ca_sha256,
                            "SHA-256 of the server's CA, as `musterd init` printed it");
  login_command->add_option("--ca-file", options->ca_file, "the CA's PEM file");
  login_command->add_option("--password-file", options->password_file,
                            "read the password from a file, - for standard input");
  login_command->add_option(
      "--code-file", options->code_file,
      "read the code of a second factor from a file, - for standard input; it is asked for otherwise");
  login_command->add_option("--label", options->label, "name of the token in `muster token list`");
  login_command->footer(
      "Example:\n  muster login https://muster.example --ca-sha256 3f2a... --user alice\n"
      "  muster login https://muster.example --ca-sha256 3f2a... --sso");
  login_command->callback([options, &shell] { shell.action = [options, &shell] { return login(shell, *options); }; });
  auto* logout_command = app.add_subcommand("logout", "End the login, here and at the control plane");
  logout_command->footer("Example:\n  muster logout --context work");
  logout_command->callback([&shell] { shell.action = [&shell] { return logout(shell); }; });
  auto* whoami_command = app.add_subcommand("whoami", "Show who this token belongs to");
  whoami_command->footer("Example:\n  muster whoami -o json");
  whoami_command->callback([&shell] { shell.action = [&shell] { return whoami(shell); }; });
}

}  // namespace muster::cli
