#include "cli/completion.h"

#include <fmt/format.h>

namespace muster::cli {
namespace {

// The path is what leads from the command to the cursor without options: at most two words of ours.
std::string bash(const std::map<std::string, std::vector<std::string>>& words) {
  std::string out =
      "_muster() {\n  local word=\"${COMP_WORDS[COMP_CWORD]}\" path=\"\" i\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n    case \"$path ${COMP_WORDS[i]}\" in\n";
  for (const auto& [path, list] : words)
    if (!path.empty())
      out +=
          fmt::format("      \"{}\") path=\"{}\" ;;\n", path.find(' ') == std::string::npos ? " " + path : path, path);
  out += "    esac\n  done\n  local words=\"\"\n  case \"$path\" in\n";
  for (const auto& [path, list] : words)
    out += fmt::format("    \"{}\") words=\"{}\" ;;\n", path, fmt::join(list, " "));
  out +=
      "  esac\n  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n  if [[ ${#COMPREPLY[@]} -eq 0 ]]; then "
      "COMPREPLY=($(compgen -f -- \"$word\")); fi\n}\ncomplete -o filenames -F _muster muster\n";
  return out;
}

std::string fish(const std::map<std::string, std::vector<std::string>>& words) {
  std::string out;
  for (const auto& [path, list] : words) {
    std::string condition = "__fish_use_subcommand";
    if (const auto space = path.find(' '); space != std::string::npos)
      condition = fmt::format("__fish_seen_subcommand_from {}; and __fish_seen_subcommand_from {}",
                              path.substr(0, space), path.substr(space + 1));
    else if (!path.empty())
      condition = "__fish_seen_subcommand_from " + path;
    for (const auto& word : list) {
      if (word.rfind("--", 0) == 0)
        out += fmt::format("complete -c muster -n '{}' -l {}\n", condition, word.substr(2));
      else
        out += fmt::format("complete -c muster -n '{}' -a {}\n", condition, word);
    }
  }
  return out;
}

}  // namespace

std::string completion_script(const std::string& shell, const std::map<std::string, std::vector<std::string>>& words) {
  if (shell == "fish") return fish(words);
  if (shell == "zsh") return "autoload -U +X bashcompinit && bashcompinit\n" + bash(words);
  return bash(words);
}

}  // namespace muster::cli
