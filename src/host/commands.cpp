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

#include "base/version.h"
#include "crypto/file.h"
#include "host/agent_process.h"
#include "host/doctor.h"
#include "host/egress_protocol.h"
#include "host/facts.h"
#include "host/gpu_check.h"
#include "host/identity.h"
#include "host/image_check.h"
#include "host/json.h"
#include "host/limits.h"
#include "host/nft.h"
#include "host/nvml.h"
#include "host/owner_commands.h"
#include "host/power.h"
#include "host/supervisor.h"
#include "host/unit.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr const char* kHelp =
    "muster-agent: lends this machine to Muster\n\n"
    "  muster-agent join https://HOST[:PORT] --token-file FILE|- [--name NAME] [--label KEY=VALUE]... [--no-service]\n"
    "                [--tpm auto|require|off] [--tpm-at TCTI]   (a key in the TPM 2.0, to which certificates are "
    "bound)\n"
    "  muster-agent run          starts the agent in the foreground (root; what the service does)\n"
    "  muster-agent status [--wait SECONDS] [--json]   what runs here, what limits apply, does the control plane see "
    "it\n"
    "  muster-agent limits [set KEY VALUE...]  hours, idle-only, CPUs, memory, GPU power, bandwidth; `limits --help`\n"
    "  muster-agent egress       what the containers here reach on the internet: counts and addresses, no contents\n"
    "  muster-agent doctor [https://HOST]   finds what is broken and says how to repair it\n"
    "  muster-agent gpu-check [--image IMAGE]  what the agent sees of the GPUs, and whether a container gets one\n"
    "  muster-agent image-check REPOSITORY@sha256:... --key FILE... [--username NAME --password-file FILE]  is it "
    "signed?\n"
    "  muster-agent pause [--now]           take no new work; --now also stops what runs, within seconds\n"
    "  muster-agent resume                  take work again\n"
    "  muster-agent drain [--no-wait]       take no new work and wait until what runs has moved or ended\n"
    "  muster-agent leave        leaves the platform and removes everything the agent made\n"
    "  muster-agent unit         prints the systemd unit that join installs\n\n"
    "  --state-dir DIR           where everything is kept (default /var/lib/muster)\n\n"
    "  The token is read from a file or from standard input (-), never from the command line:\n"
    "  echo 'mj1....' | sudo muster-agent join https://muster.example.org --token-file -\n";
constexpr const char* kUnit = "/etc/systemd/system/muster-agent.service";

struct Words {
  std::vector<std::string> plain, labels, keys;
  std::string tpm, tpm_at;
  std::string state_dir = "/var/lib/muster", token_file, name, image, wait, username, password_file, bad;
  bool no_service = false, now = false, help = false, json = false, no_wait = false;
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
    else if (word == "--tpm")
      out.tpm = value();
    else if (word == "--tpm-at")
      out.tpm_at = value();
    else if (word == "--image")
      out.image = value();
    else if (word == "--key")
      out.keys.push_back(value());
    else if (word == "--username")
      out.username = value();
    else if (word == "--password-file")
      out.password_file = value();
    else if (word == "--wait")
      out.wait = value();
    else if (word == "--no-wait")
      out.no_wait = true;
    else if (word == "--json")
      out.json = true;
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
  const Status written = crypto::write_public_file(kUnit, as_bytes(unit_text(own_path(), words.state_dir)));
  if (!written.ok()) return written;
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
    if (said.ok() && bool_at(*said, {"ready"})) return {};
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
  if (words.tpm != "" && words.tpm != "auto" && words.tpm != "require" && words.tpm != "off")
    return fail("--tpm is auto (where there is one), require or off, not '" + words.tpm + "'");
  options.tpm = words.tpm == "require" ? TpmUse::Require : words.tpm == "off" ? TpmUse::Off : TpmUse::Auto;
  options.tpm_at = words.tpm_at;
  const auto config = join(options);
  std::fill(options.token.begin(), options.token.end(), '\0');
  if (!config.ok()) return fail(config.error().message);
  std::cout << fmt::format("enrolled as {} ({}){}\n", config->node_id, config->name,
                           config->tpm_key.empty() ? "" : ", bound to this machine's TPM");
  if (words.no_service || !fs::exists("/run/systemd/system")) {
    std::cout << fmt::format(
        "start it with: {0} run --state-dir {1}\nthen see whether it is ready: {0} status --wait 60 --state-dir {1}\n",
        own_path(), layout.root);
    return 0;
  }
  const Status installed = install_service(words);
  if (!installed.ok()) return fail(installed.error().message);
  const Status online = wait_online(layout, 60);
  if (!online.ok()) return fail(online.error().message);
  std::cout << "ready: the control plane sees this machine online\n";
  return 0;
}

std::string amount(std::int64_t bytes) {
  if (bytes < 10'000) return fmt::format("{} B", bytes);
  if (bytes < 10'000'000) return fmt::format("{} kB", bytes / 1000);
  return fmt::format("{} MB", bytes / 1'000'000);
}

int do_egress(const Layout& layout) {
  const auto text = ask_agent(layout, "egress", Millis(10'000));
  if (!text.ok()) return fail(text.error().message);
  const auto said = parse_object(*text);
  if (!said.ok()) return fail(said.error().message);
  if (said->contains("error")) return fail(text_at(*said, {"error"}));
  const auto* rows = said->if_contains("egress");
  if (rows == nullptr || !rows->is_array() || rows->get_array().empty()) {
    std::cout << "no lease on this machine has a way out to the internet\n";
    return 0;
  }
  for (const auto& row : rows->get_array()) {
    const EgressCounters c = read_counters(row);
    std::cout << fmt::format("{}  {} open, {} done, {} failed; up {}, down {}; {} names asked\n",
                             text_at(row, {"lease"}), c.open, c.flows, c.failed,
                             amount(static_cast<std::int64_t>(c.up_bytes)),
                             amount(static_cast<std::int64_t>(c.down_bytes)), c.questions);
    std::string refused;
    for (const auto& [code, count] : c.refused)
      refused += fmt::format("{}{} {}", refused.empty() ? "" : ", ", code, count);
    if (!refused.empty()) std::cout << "  refused: " << refused << "\n";
    for (const auto& flow : c.now)
      std::cout << fmt::format("  now {}  up {}, down {}, {} s\n", flow.to,
                               amount(static_cast<std::int64_t>(flow.up_bytes)),
                               amount(static_cast<std::int64_t>(flow.down_bytes)), flow.age_ms / 1000);
    for (const auto& each : c.last_refused)
      std::cout << fmt::format("  refused {} ({}) {} s ago\n", each.what, each.code, each.age_ms / 1000);
  }
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
  Runtimes runtime(docker_options(layout, config->node_id, config->machine), venv_options(layout, config->machine));
  const Status removed = runtime.remove_everything();
  PowerKeeper(Nvml::instance(), layout.power()).reconcile(0, {});
  if (!removed.ok())
    return fail("some containers could not be removed: " + removed.error().message +
                "; start the engine and run leave again");
  std::error_code failure;
  if (const Status leases = remove_tree(layout.leases()); !leases.ok())
    std::cerr << "muster-agent: " << leases.error().message << "\n";
  if (fs::exists(layout.egress_table(), failure)) {
    const Status table = nft_remove();
    if (!table.ok()) std::cerr << "muster-agent: " << table.error().message << "\n";
  }
  for (const auto* part : {"config.json", "paused", "paused.now", "leases", "helper", "run", "agent", "netd", "secrets",
                           "venvs", "policy.json", "images.json", "allowed_images.json", "power.json", "last_input",
                           "egress_volume.json", "tpm.key.pem"})
    fs::remove_all(layout.root + "/" + part, failure);
  fs::remove(layout.root, failure);  // only when nothing else is in it
  std::string others;
  for (const auto& entry : fs::directory_iterator(layout.root, failure)) others += " " + entry.path().string();
  std::cout << fmt::format("{} has left; everything the agent made is removed\n", config->node_id);
  if (!others.empty()) std::cout << "not the agent's, left alone:" << others << "\n";
  return 0;
}

int do_doctor(const Words& words, const Layout& layout) {
  std::string broken;
  for (const auto& finding : examine(layout, words.plain.size() > 1 ? words.plain[1] : std::string())) {
    const char* mark = finding.verdict == Verdict::Good   ? "ok    "
                       : finding.verdict == Verdict::Note ? "note  "
                                                          : "BROKEN";
    std::cout << fmt::format("{} {}: {}\n", mark, finding.step, finding.detail);
    if (!finding.repair.empty()) std::cout << "         -> " << finding.repair << "\n";
    if (finding.verdict == Verdict::Broken) broken += (broken.empty() ? "" : ", ") + finding.step;
  }
  std::cout << (broken.empty() ? "nothing is broken\n" : "broken: " + broken + "\n");
  return broken.empty() ? 0 : 3;
}

int finish(const Status& status) {
  return status.ok() ? 0 : fail(status.error().message);
}

}  // namespace

int agent_main(const std::vector<std::string>& raw) {
  const Words words = parse(raw);
  const std::string verb = words.plain.empty() ? std::string() : words.plain[0];
  if (words.help || verb == "help") {
    std::cout << (verb == "limits" ? limits_help() : kHelp);
    return 0;
  }
  if (!words.bad.empty() || verb.empty()) {
    std::cerr << (words.bad.empty() ? std::string() : "muster-agent: " + words.bad + "\n") << kHelp;
    return 2;
  }
  const Layout layout{words.state_dir};
  if (verb == "join") return do_join(words, layout);
  if (verb == "run") return finish(supervise(layout, own_path()));
  if (verb == "status") return do_status(layout, words.json, Millis(std::atol(words.wait.c_str()) * 1000));
  if (verb == "pause") return do_pause(layout, words.now);
  if (verb == "resume") return do_resume(layout);
  if (verb == "drain") return do_drain(layout, !words.no_wait);
  if (verb == "limits") return do_limits(layout, {words.plain.begin() + 1, words.plain.end()});
  if (verb == "gpu-check") return gpu_check(layout, words.image);
  if (verb == "image-check" && words.plain.size() == 2)
    return image_check(words.plain[1], words.keys, words.username, words.password_file);
  if (verb == "unit") return std::cout << unit_text(own_path(), words.state_dir), 0;
  if (verb == "egress") return do_egress(layout);
  if (verb == "leave") return do_leave(layout);
  if (verb == "doctor") return do_doctor(words, layout);
  if (verb == "version") return std::cout << kVersion << "\n", 0;
  if (verb == "privd-process") return finish(run_privd(layout));
  if (verb == "venv-box" && words.plain.size() == 2) return run_box(words.plain[1]);
  if (verb == "venv-exec" && words.plain.size() == 3) return run_box_exec(words.plain[1], words.plain[2]);
  if (verb == "netd-process") return finish(run_netd_process(layout, 3));
  if (verb == "agent-process") return finish(run_agent_process(layout));
  if (verb == "egress-process") return finish(run_egress_role(3));
  std::cerr << "muster-agent: unknown command '" << verb << "'\n" << kHelp;
  return 2;
}

}  // namespace muster::host
