// totp: the second factor of one's own account
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/config.h"
#include "cli/qr.h"
#include "cli/shell.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "cli/totp.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct TotpOptions {
  std::string password_file, code_file;
};

std::vector<std::string> lines_of_text(const std::string& text) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find('\n', at), text.size());
    out.push_back(text.substr(at, end - at));
    if (!out.back().empty() && out.back().back() == '\r') out.back().pop_back();
    at = end + 1;
  }
  return out;
}

Result<Proof> password_or_ask(const TotpOptions& options) {
  Proof proof = TRY(read_proof(options.password_file, options.code_file));
  if (proof.password.empty()) proof.password = TRY(ask_password("Password: "));
  return proof;
}

Result<int> enable_totp(Shell& shell, const TotpOptions& options) {
  Api* api = TRY(shell.api());
  const Proof proof = TRY(password_or_ask(options));
  const auto begun = TRY(api->send("POST", "/api/v1/totp", wire::to_json(wire::EnrolTotpRequest{proof.password})));
  const std::string uri = clean(begun["uri"].text());
  if (const auto code = encode_qr(uri); code.ok() && stderr_is_terminal()) say("\n" + qr_text(*code));
  say(fmt::format("Scan this with an authenticator app, or give it the key {}:\n{}\n", clean(begun["secret"].text()),
                  uri));
  const auto confirm = [&](const std::string& code) {
    return code.empty() ? Result<wire::Json>(error(Code::Unauthenticated, "no code given", "code"))
                        : api->send("POST", "/api/v1/totp/confirm", wire::to_json(wire::ConfirmTotpRequest{code}));
  };
  const auto done = TRY(call_with_code(confirm, proof.code, ask_code));
  say(fmt::format(
      "The second factor is in force; other logins that ended with it: {}.\n"
      "Keep these recovery codes where the phone is not. Each stands for a code once; they are not shown again.",
      clean(done["revokedTokens"].text())));
  if (done["logInAgain"].truth()) say("Log in again with a code of the app: muster login");
  shell.show(done, [&] {
    std::string text;
    for (const auto& each : done["recoveryCodes"].items()) text += clean(each.text()) + "\n";
    return text;
  });
  return 0;
}

Result<int> disable_totp(Shell& shell, const TotpOptions& options) {
  Api* api = TRY(shell.api());
  Proof proof = TRY(password_or_ask(options));
  if (proof.code.empty()) proof.code = TRY(ask_code());
  TRY(api->send("POST", "/api/v1/totp/disable", wire::to_json(wire::DisableTotpRequest{proof.password, proof.code})));
  say("The second factor is taken away: the password alone logs in.");
  return 0;
}

Result<int> totp_status(Shell& shell) {
  Api* api = TRY(shell.api());
  const auto held = TRY(api->get("/api/v1/totp"));
  shell.show(held, [&]() -> std::string {
    if (!held["enabled"].truth()) return "off; `muster totp enable` sets one up\n";
    return fmt::format("on since {}, recovery codes left: {}\n", short_time(held["since"]),
                       clean(held["recoveryCodesLeft"].dump()));
  });
  return 0;
}

}  // namespace

Result<Proof> read_proof(const std::string& password_file, const std::string& code_file) {
  Proof out;
  std::vector<std::string> lines;
  if (!password_file.empty()) {
    std::string text = TRY(read_file(password_file, 4'096));
    lines = lines_of_text(text);
    if (lines.empty() || lines[0].empty())
      return error(Code::InvalidArgument, "--password-file: its first line must be the password");
    out.password = lines[0];
  }
  if (code_file.empty()) return out;
  if (code_file != password_file) {
    std::string text = TRY(read_file(code_file, 4'096));
    lines = lines_of_text(text);
    lines.insert(lines.begin(), std::string());
  }
  if (lines.size() < 2 || lines[1].empty())
    return error(Code::InvalidArgument,
                 "--code-file: its first line must be the code, or the second where it is the file of the password");
  out.code = lines[1];
  return out;
}

Result<wire::Json> call_with_code(const std::function<Result<wire::Json>(const std::string& code)>& call,
                                  std::string code, const std::function<Result<std::string>()>& ask) {
  const bool given = !code.empty();
  for (int asked = 0;; ++asked) {
    auto answer = call(code);
    if (answer.ok() || answer.error().field != "code" || given || asked == 3) return answer;
    if (asked > 0) say(answer.error().message);
    code = TRY(ask());
  }
}

Result<std::string> ask_code() {
  auto code = ask_line("Code of the second factor: ");
  if (code.ok()) return code;
  return error(Code::InvalidArgument,
               "this account has a second factor; type its code at a terminal, or use --code-file");
}

void add_totp(CLI::App& app, Shell& shell) {
  auto* parent = app.add_subcommand("totp", "The second factor of your account: codes of an authenticator app");
  parent->require_subcommand(1);
  const auto options = std::make_shared<TotpOptions>();
  const auto proofs = [&](CLI::App* command) {
    command->add_option("--password-file", options->password_file,
                        "read the password from a file, - for standard input");
    command->add_option(
        "--code-file", options->code_file,
        "read the code from a file, - for standard input; the line after the password if it is the same");
  };
  auto* enable_command = parent->add_subcommand("enable", "Set one up, and end other logins of the account");
  proofs(enable_command);
  enable_command->footer("Example:\n  muster totp enable");
  enable_command->callback(
      [options, &shell] { shell.action = [options, &shell] { return enable_totp(shell, *options); }; });
  auto* disable_command = parent->add_subcommand("disable", "Take it away, with the password and a code");
  proofs(disable_command);
  disable_command->footer("Example:\n  muster totp disable");
  disable_command->callback(
      [options, &shell] { shell.action = [options, &shell] { return disable_totp(shell, *options); }; });
  auto* status_command = parent->add_subcommand("status", "Whether there is one, and how many recovery codes are left");
  status_command->footer("Example:\n  muster totp status");
  status_command->callback([&shell] { shell.action = [&shell] { return totp_status(shell); }; });
}

}  // namespace muster::cli
