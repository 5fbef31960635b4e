#include "cli/completion.h"

#include <fmt/format.h>

namespace muster::cli {
namespace {

using Commands = std::map<std::string, Completable>;

// The path is what leads from the command to the cursor without options: at most two words of ours. Variables are named
// so that none is one of zsh's own (path, words).
std::string bash(const Commands& commands) {
  std::string out =
      "_muster() {\n  local typed=\"${COMP_WORDS[COMP_CWORD]}\" at=\"\" i offered=\"\" names=\"\" files=\"\"\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n    case \"$at ${COMP_WORDS[i]}\" in\n";
  for (const auto& [path, command] : commands)
    if (!path.empty())
      out += fmt::format("      \"{}\") at=\"{}\" ;;\n", path.find(' ') == std::string::npos ? " " + path : path, path);
  out += "    esac\n  done\n  case \"$at\" in\n";
  for (const auto& [path, command] : commands)
    out += fmt::format("    \"{}\") offered=\"{}\"{}{} ;;\n", path, fmt::join(command.words, " "),
                       command.names.empty() ? "" : " names=" + command.names, command.files ? " files=1" : "");
  out +=
      "  esac\n  if [[ -n \"$names\" && \"$typed\" != -* ]]; then offered=\"$offered $(muster completion --names "
      "$names "
      "2>/dev/null)\"; fi\n"
      "  COMPREPLY=($(compgen -W \"$offered\" -- \"$typed\"))\n"
      "  if [[ -n \"$files\" && \"$typed\" != -* ]]; then COMPREPLY+=($(compgen -f -- \"$typed\")); fi\n"
      "}\ncomplete -o filenames -F _muster muster\n";
  return out;
}

std::string fish(const Commands& commands) {
  std::string out;
  for (const auto& [path, command] : commands) {
    std::string condition = "__fish_use_subcommand";
    if (const auto space = path.find(' '); space != std::string::npos)
      condition = fmt::format("__fish_seen_subcommand_from {}; and __fish_seen_subcommand_from {}",
                              path.substr(0, space), path.substr(space + 1));
    else if (!path.empty())
      condition = "__fish_seen_subcommand_from " + path;
    // Below a command with sub-commands these are offered until one is typed.
    std::string below;
    for (const auto& word : command.words)
      if (!word.starts_with("--")) below += " " + word;
    if (!path.empty() && !below.empty()) condition += "; and not __fish_seen_subcommand_from" + below;
    const std::string head = fmt::format("complete -c muster -n '{}'{}", condition, command.files ? "" : " -f");
    for (const auto& word : command.words)
      out += head + (word.starts_with("--") ? " -l " + word.substr(2) : " -a " + word) + "\n";
    if (!command.names.empty())
      out += fmt::format("{} -a '(muster completion --names {} 2>/dev/null)'\n", head, command.names);
  }
  return out;
}

}  // namespace

std::string completion_script(const std::string& shell, const Commands& commands) {
  if (shell == "fish") return fish(commands);
  if (shell == "zsh")
    return "(( $+functions[compdef] )) || { autoload -U compinit && compinit }\nautoload -U +X bashcompinit && "
           "bashcompinit\n" +
           bash(commands);
  return bash(commands);
}

}  // namespace muster::cli
