#include "host/commands.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

#include "host/agent_process.h"
#include "host/doctor.h"
#include "host/facts.h"
#include "host/identity.h"
#include "host/json.h"
#include "host/supervisor.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr const char* kHelp =
    "muster-agent: lends this machine to Muster\n\n"
    "  muster-agent join https://HOST[:PORT] --token-file FILE|- [--name NAME] [--label KEY=VALUE]... [--no-service]\n"
    "  muster-agent run          starts the agent in the foreground (root; what the service does)\n"
    "  muster-agent status       what runs here, and whether the control plane sees this machine\n"
    "  muster-agent doctor [https://HOST]   finds what is broken and says how to repair it\n"
    "  muster-agent pause [--now]           take no new work; --now also stops what runs\n"
    "  muster-agent resume | drain          work again | let what runs end, take nothing new\n"
    "  muster-agent leave        leaves the platform and removes everything the agent made\n\n"
    "  --state-dir DIR           where everything is kept (default /var/lib/muster)\n\n"
    "  The token is read from a file or from standard input (-), never from the command line:\n"
    "  echo 'mj1....' | sudo muster-agent join https://muster.example.org --token-file -\n";
constexpr const char* kUnit = "/etc/systemd/system/muster-agent.service";

struct Words {
  std::vector<std::string> plain, labels;
  std::string state_dir = "/var/lib/muster", token_file, name, bad;
  bool no_service = false, now = false, help = false;
};

Words parse(const std::vector<std::string>& words) {
  Words out;
  for (std::size_t i = 0; i < words.size(); ++i) {
    std::string word = words[i];
    std::optional<std::string> inlined;
    if (const auto equals = word.find('='); word.starts_with("--") && equals != std::string::npos) {
      inlined = word.substr(equals + 1);
      word.resize(equals);
    }
    const auto value = [&]() -> std::string {
      if (inlined) return *inlined;
      if (i + 1 < words.size()) return words[++i];
      out.bad = word + " needs a value";
      return {};
    };
    if (word == "--state-dir")
      out.state_dir = value();
    else if (word == "--token-file")
      out.token_file = value();
    else if (word == "--name")
      out.name = value();
    else if (word == "--label")
      out.labels.push_back(value());
    else if (word == "--no-service")
      out.no_service = true;
    else if (word == "--now")
      out.now = true;
    else if (word == "--help" || word == "-h")
      out.help = true;
    else if (word.starts_with("-") && word != "-")
      out.bad = "unknown option " + word;
    else
      out.plain.push_back(word);
  }
  while (out.state_dir.size() > 1 && out.state_dir.ends_with('/')) out.state_dir.pop_back();
  if (!out.state_dir.starts_with('/')) out.state_dir = fs::absolute(out.state_dir).string();
  return out;
}

int fail(const std::string& message) {
  std::cerr << "muster-agent: " << message << "\n";
  return 1;
}

int run_program(const std::vector<std::string>& argv) {
  std::vector<char*> raw;
  for (const auto& word : argv) raw.push_back(const_cast<char*>(word.c_str()));
  raw.push_back(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    execvp(raw[0], raw.data());
    _exit(127);
  }
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return 127;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

std::string own_path() {
  std::error_code failure;
  const auto path = fs::read_symlink("/proc/self/exe", failure);
  return failure ? "/usr/local/bin/muster-agent" : path.string();
}

Status install_service(const Words& words) {
  std::ofstream unit(kUnit);
  unit
      << "[Unit]\nDescription=Muster agent\nAfter=network-online.target docker.service\nWants=network-online.target\n\n"
      << "[Service]\nExecStart=" << own_path() << " run --state-dir " << words.state_dir
      << "\nRestart=always\nRestartSec=2\nKillMode=mixed\nLimitNOFILE=65536\n\n"
      << "[Install]\nWantedBy=multi-user.target\n";
  unit.close();
  if (!unit) return error(Code::Unavailable, fmt::format("cannot write {}", kUnit));
  if (run_program({"systemctl", "daemon-reload"}) != 0 ||
      run_program({"systemctl", "enable", "--now", "muster-agent.service"}) != 0) {
    return error(Code::Unavailable, "systemctl did not start muster-agent.service; see: journalctl -u muster-agent");
  }
  return {};
}

// Ready is what the control plane says, not that a process started.
Status wait_online(const Layout& layout, int seconds) {
  std::string last;
  for (int i = 0; i < seconds * 2; ++i) {
    const auto status = ask_agent(layout, "status", Millis(2000));
    const auto said = status.ok() ? parse_object(*status) : Result<json::object>(status.error());
    if (said.ok() && bool_at(*said, {"online"})) return {};
    last = said.ok() ? text_at(*said, {"refusal"}) + text_at(*said, {"link_fault"}) : said.error().message;
    std::this_thread::sleep_for(Millis(500));
  }
  return error(Code::DeadlineExceeded, fmt::format("the control plane does not see this machine online after {} s: {}; "
                                                   "`muster-agent doctor` names the broken step",
                                                   seconds, last));
}

int do_join(const Words& words, const Layout& layout) {
  if (words.plain.size() != 2 || words.token_file.empty()) {
    std::cerr << "usage: muster-agent join https://HOST[:PORT] --token-file FILE|-\n";
    return 2;
  }
  if (geteuid() != 0) return fail("join writes to " + layout.root + " and starts as root; use sudo");
  JoinOptions options;
  options.layout = layout;
  options.server = words.plain[1];
  options.name = words.name;
  for (const auto& label : words.labels) {
    const auto equals = label.find('=');
    if (equals == std::string::npos || equals == 0) return fail("a label is written KEY=VALUE, not '" + label + "'");
    options.labels[label.substr(0, equals)] = label.substr(equals + 1);
  }
  if (words.token_file == "-") {
    std::getline(std::cin, options.token);
  } else {
    std::ifstream file(words.token_file);
    if (!std::getline(file, options.token)) return fail("cannot read a token from " + words.token_file);
  }
  while (!options.token.empty() && std::isspace(static_cast<unsigned char>(options.token.back())) != 0)
    options.token.pop_back();
  const auto config = join(options);
  std::fill(options.token.begin(), options.token.end(), '\0');
  if (!config.ok()) return fail(config.error().message);
  std::cout << fmt::format("enrolled as {} ({})\n", config->node_id, config->name);
  if (words.no_service || !fs::exists("/run/systemd/system")) {
    std::cout << fmt::format("start it with: {} run --state-dir {}\n", own_path(), layout.root);
    return 0;
  }
  const Status installed = install_service(words);
  if (!installed.ok()) return fail(installed.error().message);
  const Status online = wait_online(layout, 60);
  if (!online.ok()) return fail(online.error().message);
  std::cout << "ready: the control plane sees this machine online\n";
  return 0;
}

int do_status(const Layout& layout) {
  const auto text = ask_agent(layout, "status", Millis(5000));
  if (!text.ok()) return fail(text.error().message);
  const auto said = parse_object(*text);
  if (!said.ok()) return fail(said.error().message);
  std::cout << fmt::format(
      "machine  {} ({})\nserver   {}\nlink     {}\nwork     {}\n", text_at(*said, {"node"}), text_at(*said, {"name"}),
      text_at(*said, {"server"}),
      bool_at(*said, {"online"}) ? "online" : "offline " + text_at(*said, {"refusal"}) + text_at(*said, {"link_fault"}),
      bool_at(*said, {"paused"}) ? "paused by the owner" : "open");
  if (const auto* leases = said->if_contains("leases"); leases != nullptr && leases->is_array()) {
    for (const auto& lease : leases->get_array()) {
      std::cout << fmt::format("  {}  cluster {}  {} {}\n", text_at(lease, {"lease"}), text_at(lease, {"cluster"}),
                               text_at(lease, {"phase"}), text_at(lease, {"reason"}));
    }
  }
  return bool_at(*said, {"online"}) ? 0 : 1;
}

int do_owner(const std::string& verb, const Words& words, const Layout& layout) {
  if (verb == "pause") std::ofstream(layout.paused()) << "by the owner\n";  // privd starts nothing while it is there
  std::error_code ignored;
  if (verb == "resume") fs::remove(layout.paused(), ignored);
  const auto answer = ask_agent(layout, verb == "pause" && words.now ? "pause-now" : verb, Millis(5000));
  if (!answer.ok()) return fail(answer.error().message);
  if (verb == "pause" && words.now) {  // ends when nothing runs any more
    for (int i = 0; i < 60; ++i) {
      const auto status = ask_agent(layout, "status", Millis(2000));
      const auto said = status.ok() ? parse_object(*status) : Result<json::object>(status.error());
      const auto* leases = said.ok() ? said->if_contains("leases") : nullptr;
      const bool busy =
          leases != nullptr && leases->is_array() &&
          std::any_of(leases->get_array().begin(), leases->get_array().end(), [](const json::value& lease) {
            const std::string phase = text_at(lease, {"phase"});
            return phase != "stopped" && phase != "failed" && phase != "pending";
          });
      if (!busy) break;
      std::this_thread::sleep_for(Millis(500));
    }
  }
  std::cout << verb << ": done\n";
  return 0;
}

int do_leave(const Layout& layout) {
  if (geteuid() != 0) return fail("leave removes what join and run made; use sudo");
  const auto config = load_config(layout);
  if (!config.ok()) return fail(config.error().message);
  const auto told = ask_agent(layout, "leave", Millis(5000));
  if (!told.ok())
    std::cerr << "muster-agent: " << told.error().message << "; the control plane will notice by itself\n";
  for (int i = 0; told.ok() && i < 120 && ask_agent(layout, "status", Millis(1000)).ok(); ++i)
    std::this_thread::sleep_for(Millis(500));
  if (fs::exists(kUnit) && run_program({"systemctl", "disable", "--now", "muster-agent.service"}) == 0) {
    std::error_code ignored;
    fs::remove(kUnit, ignored);
    run_program({"systemctl", "daemon-reload"});
  }
  pid_t supervisor = 0;
  std::ifstream(layout.sockets() + "/supervisor.pid") >> supervisor;
  if (supervisor > 1) kill(supervisor, SIGTERM);
  for (int i = 0; supervisor > 1 && i < 40 && kill(supervisor, 0) == 0; ++i) std::this_thread::sleep_for(Millis(250));
  DockerRuntime runtime(docker_options(layout, config->node_id, config->machine));
  const Status removed = runtime.remove_everything();
  if (!removed.ok())
    return fail("some containers could not be removed: " + removed.error().message +
                "; start the engine and run leave again");
  std::error_code failure;
  for (const auto* part :
       {"config.json", "paused", "leases", "helper", "run", "agent", "netd", "secrets", "policy.json"})
    fs::remove_all(layout.root + "/" + part, failure);
  fs::remove(layout.root, failure);  // only when nothing else is in it
  std::cout << fmt::format("{} has left; everything the agent made is removed\n", config->node_id);
  return 0;
}

int do_doctor(const Words& words, const Layout& layout) {
  bool broken = false;
  for (const auto& finding : examine(layout, words.plain.size() > 1 ? words.plain[1] : std::string())) {
    const char* mark = finding.verdict == Verdict::Good   ? "ok    "
                       : finding.verdict == Verdict::Note ? "note  "
                                                          : "BROKEN";
    std::cout << fmt::format("{} {}: {}\n", mark, finding.step, finding.detail);
    if (!finding.repair.empty()) std::cout << "         -> " << finding.repair << "\n";
    broken = broken || finding.verdict == Verdict::Broken;
  }
  return broken ? 3 : 0;
}

int finish(const Status& status) {
  return status.ok() ? 0 : fail(status.error().message);
}

}  // namespace

int agent_main(const std::vector<std::string>& raw) {
  const Words words = parse(raw);
  const std::string verb = words.plain.empty() ? std::string() : words.plain[0];
  if (words.help || verb == "help") {
    std::cout << kHelp;
    return 0;
  }
  if (!words.bad.empty() || verb.empty()) {
    std::cerr << (words.bad.empty() ? std::string() : "muster-agent: " + words.bad + "\n") << kHelp;
    return 2;
  }
  const Layout layout{words.state_dir};
  if (verb == "join") return do_join(words, layout);
  if (verb == "run") return finish(supervise(layout, own_path()));
  if (verb == "status") return do_status(layout);
  if (verb == "pause" || verb == "resume" || verb == "drain") return do_owner(verb, words, layout);
  if (verb == "leave") return do_leave(layout);
  if (verb == "doctor") return do_doctor(words, layout);
  if (verb == "version") return std::cout << kAgentVersion << "\n", 0;
  if (verb == "privd-process") return finish(run_privd(layout));
  if (verb == "netd-process") return finish(run_netd_process(layout, 3));
  if (verb == "agent-process") return finish(run_agent_process(layout));
  std::cerr << "muster-agent: unknown command '" << verb << "'\n" << kHelp;
  return 2;
}

}  // namespace muster::host
