#include "cli/ray_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <filesystem>

#include "cli/shell.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

enum class Fate : std::uint8_t { Silent, Noted, Refused };
enum class Value : std::uint8_t { None, One, Repeated };
struct RayFlag {
  std::string_view set;
  const char* flags;
  Value value;
  Fate fate;
  const char* text;  // what it means here
};
constexpr std::array kFlags = {
    RayFlag{"log", "--log-style", Value::One, Fate::Silent, "no effect: there is one style"},
    RayFlag{"log", "--log-color", Value::One, Fate::Silent, "no effect: NO_COLOR turns colour off"},
    RayFlag{"verbose", "--verbose,-v", Value::None, Fate::Silent, "no effect: everything that matters is said"},
    RayFlag{"cache", "--no-config-cache", Value::None, Fate::Noted, "no effect: the file is read anew each time"},
    RayFlag{"shells", "--redirect-command-output", Value::None, Fate::Noted,
            "no effect: what setup commands write stays in the container, and their end is shown when they fail"},
    RayFlag{"shells", "--use-login-shells,--use-normal-shells", Value::None, Fate::Noted,
            "no effect: commands run in the image's own shell"},
    RayFlag{"usage", "--disable-usage-stats", Value::None, Fate::Silent, "no effect: usage statistics are always off"},
    RayFlag{"restart", "--no-restart", Value::None, Fate::Noted,
            "no effect: `up` never restarts Ray in a cluster that runs"},
    RayFlag{"restart", "--restart-only", Value::None, Fate::Refused,
            "Ray is restarted when it ends by itself; to begin anew: muster down, then muster up"},
    RayFlag{"screen", "--screen,--tmux", Value::None, Fate::Refused,
            "a durable job goes on without this terminal: muster job submit --cluster CLUSTER -- COMMAND"},
    RayFlag{"screen", "--extra-screen-args", Value::One, Fate::Refused, "there is no screen here; see --screen"},
    RayFlag{"workers", "--workers-only,-w", Value::None, Fate::Refused,
            "workers follow demand; to have none, set max_workers: 0 in the file and run muster up FILE"},
    RayFlag{"workers", "--keep-min-workers", Value::None, Fate::Refused,
            "workers above the minimum leave by themselves after idle_timeout_minutes"},
    RayFlag{"client", "--headers", Value::One, Fate::Noted, "no effect: your login is what counts"},
    RayFlag{"client", "--verify", Value::One, Fate::Noted, "no effect: the server's certificate is always checked"},
    RayFlag{"client", "--job-id", Value::One, Fate::Refused, "is old in Ray too: use --submission-id"},
    RayFlag{"client", "--address", Value::One, Fate::Refused,
            "names one Ray cluster's own port; here clusters have names: --cluster NAME. Ray's own `ray job submit "
            "--address` works through muster port-forward"},
};

}  // namespace

bool ClusterChoice::is_file() const {
  if (given.ends_with(".yaml") || given.ends_with(".yml")) return true;
  std::error_code ignored;
  return given.find('/') != std::string::npos && std::filesystem::exists(given, ignored);
}

Result<std::string> ClusterChoice::name() const {
  if (!override.empty()) return override;
  return cluster_name(given);
}

void add_cluster(CLI::App& command, ClusterChoice& choice) {
  command.add_option("cluster", choice.given, "name, id or YAML file")->required();
  command.add_option("--cluster-name,-n", choice.override, "instead of the file's cluster_name");
}

void add_ray_flags(CLI::App& command, std::initializer_list<std::string_view> sets) {
  for (const RayFlag& flag : kFlags) {
    if (std::find(sets.begin(), sets.end(), flag.set) == sets.end()) continue;
    const std::string name = flag.flags, text = flag.text;
    const auto met = [name, text, fate = flag.fate] {
      if (fate == Fate::Refused) throw CLI::ValidationError(name, text);
      if (fate == Fate::Noted) say(name + " has " + text);
    };
    CLI::Option* option = flag.value == Value::None
                              ? command.add_flag_callback(name, met, text)
                              : command.add_option_function<std::vector<std::string>>(
                                    name, [met](const std::vector<std::string>&) { met(); }, text);
    option->group("As in ray");
    if (flag.value == Value::One) option->expected(1);
  }
}

}  // namespace muster::cli
