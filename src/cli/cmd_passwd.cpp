// passwd: a new password for one's own account
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/config.h"
#include "cli/passwd.h"
#include "cli/shell.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

Result<Passwords> ask() {
  Passwords out;
  out.old_one = TRY(ask_password("Old password: "));
  out.new_one = TRY(ask_password("New password: "));
  const std::string again = TRY(ask_password("New password again: "));
  if (again != out.new_one)
    return error(Code::InvalidArgument, "the new password was typed in two ways; nothing is changed");
  return out;
}

Result<int> passwd(Shell& shell, const std::string& file) {
  Api* api = TRY(shell.api());
  Passwords passwords;
  if (file.empty()) {
    passwords = TRY(ask());
  } else {
    const std::string text = TRY(read_file(file, 4'096));
    passwords = TRY(passwords_of(text));
  }
  const std::string ended = TRY(change_password(*api, passwords));
  say(fmt::format("The password is changed; other logins that ended with it: {}. Tokens with scopes go on.", ended));
  return 0;
}

}  // namespace

Result<Passwords> passwords_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const auto end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    lines.emplace_back(line);
  }
  if (lines.size() != 2 || lines[0].empty() || lines[1].empty())
    return error(Code::InvalidArgument, "the file must hold two lines: the old password and the new one");
  return Passwords{lines[0], lines[1]};
}

Result<std::string> change_password(Api& api, const Passwords& passwords) {
  const auto answer = TRY(api.send("POST", "/api/v1/password",
                                   wire::to_json(wire::ChangePasswordRequest{passwords.old_one, passwords.new_one})));
  return clean(answer["revokedTokens"].text());
}

void add_passwd(CLI::App& app, Shell& shell) {
  auto file = std::make_shared<std::string>();
  auto* command = app.add_subcommand("passwd", "Change the password of your account, and end its other logins");
  command->add_option("--password-file", *file,
                      "read two lines, the old password and the new one, from a file, - for standard input");
  command->footer("Example:\n  muster passwd");
  command->callback([file, &shell] { shell.action = [file, &shell] { return passwd(shell, *file); }; });
}

}  // namespace muster::cli
