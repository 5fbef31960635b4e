#include "host/owner_commands.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <thread>

#include "crypto/file.h"
#include "host/agent_process.h"
#include "host/identity.h"
#include "host/json.h"
#include "host/limits.h"
#include "host/nvml.h"
#include "host/owner.h"
#include "host/supervisor.h"

namespace muster::host {
namespace {

constexpr Millis kPoll{250};

Result<json::object> agent_status(const Layout& layout, const std::string& command = "status") {
  const std::string text = TRY(ask_agent(layout, command, Millis(5000)));
  return parse_object(text);
}

// Leases of which something may still run.
std::vector<std::string> running(const json::object& status) {
  std::vector<std::string> out;
  const auto* leases = status.if_contains("leases");
  if (leases == nullptr || !leases->is_array()) return out;
  for (const auto& lease : leases->get_array()) {
    const std::string phase = text_at(lease, {"phase"});
    if (phase != "stopped" && phase != "failed" && phase != "pending") out.push_back(text_at(lease, {"lease"}));
  }
  return out;
}

Status touch(const std::string& path) {
  const Fd file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (!file) return error(Code::Unavailable, fmt::format("cannot make {}: {}", path, errno_text(errno)));
  return {};
}

std::string link_text(const json::object& status) {
  if (bool_at(status, {"ready"})) return "online";
  if (bool_at(status, {"online"})) return "online, not yet taken by the control plane";
  std::string why = text_at(status, {"refusal"});
  if (why.empty()) why = text_at(status, {"link_fault"});
  return "offline" + (why.empty() ? std::string() : ": " + why);
}

std::string work_text(const json::object& status) {
  const std::string owner = text_at(status, {"owner"});
  if (!owner.empty()) return "not hired: " + owner;
  if (const std::string held = text_at(status, {"held"}); !held.empty())
    return "not hired: known holes: " + held + "; `muster-agent doctor` says more";
  if (bool_at(status, {"disk_full"})) return "not hired: the agent cannot write its state; free some disk";
  if (bool_at(status, {"paused"})) return "not hired: paused";
  return "open";
}

void print_limits(const Layout& layout) {
  const auto policy = load_policy(layout.policy());
  if (!policy.ok()) {
    std::cout << "limits   " << policy.error().message << "\n";
    return;
  }
  const auto usual = describe_limits(Policy{}), set = describe_limits(*policy);
  std::string text;
  for (std::size_t i = 0; i < set.size(); ++i) {
    if (set[i].second != usual[i].second)
      text += fmt::format("{}{} {}", text.empty() ? "" : "; ", set[i].first, set[i].second);
  }
  std::cout << "limits   " << (text.empty() ? "none but the usual reserve" : text) << "\n";
}

// How members get to this machine; nothing where nothing is special.
std::string ways_line(const json::object& said) {
  const auto ways = [&](const char* key) { return text_at(said, {"ways", key}); };
  if (bool_at(said, {"ways", "relay_only"}))
    return "ways     by relays only: other members never learn this machine's address\n";
  std::string out;
  const std::int64_t port = int_at(said, {"ways", "udp_port"}), wanted = int_at(said, {"ways", "udp_port_wanted"});
  if (wanted != 0 && port != 0 && port != wanted)
    out += fmt::format("ways     UDP port {} is taken by another program; {} is used until it is free\n", wanted, port);
  if (!ways("mapped").empty())
    out += fmt::format("ways     the router leads {} to UDP port {} ({})\n", ways("mapped"), port, ways("mapped_by"));
  else if (bool_at(said, {"ways", "port_mapping"}) && !ways("not_mapped").empty())
    out += fmt::format("ways     no port of the router leads here: {}\n", ways("not_mapped"));
  return out;
}

int print_status(const Layout& layout, const json::object& said) {
  std::cout << fmt::format("machine  {} ({})\nserver   {}\nlink     {}\nwork     {}\n", text_at(said, {"node"}),
                           text_at(said, {"name"}), text_at(said, {"server"}), link_text(said), work_text(said));
  if (const std::string fault = text_at(said, {"engine_fault"}); !fault.empty())
    std::cout << "engine   " << fault << "\n";
  print_limits(layout);
  std::cout << ways_line(said);
  if (const auto* leases = said.if_contains("leases"); leases != nullptr && leases->is_array()) {
    for (const auto& lease : leases->get_array()) {
      std::cout << fmt::format("  {}  cluster {}  {} {}\n", text_at(lease, {"lease"}), text_at(lease, {"cluster"}),
                               text_at(lease, {"phase"}), text_at(lease, {"reason"}));
      const std::int64_t direct = int_at(lease, {"network", "direct"}), relayed = int_at(lease, {"network", "relayed"});
      const std::int64_t carried = int_at(lease, {"network", "carried"});
      if (direct + relayed + carried > 0)
        std::cout << fmt::format("      talks to {} other members: {} directly, {} through the relay{}\n",
                                 direct + relayed + carried, direct, relayed,
                                 carried == 0 ? "" : fmt::format(", {} by another member", carried));
    }
  }
  return bool_at(said, {"ready"}) ? 0 : 1;
}

// The agent does not run: its containers may.
int stop_without_agent(const Layout& layout) {
  const auto config = load_config(layout);
  if (!config.ok()) return fail(config.error().message);
  DockerRuntime runtime(docker_options(layout, config->node_id, config->machine));
  const auto leases = runtime.list();
  if (!leases.ok())
    return fail("the agent does not run and the container engine does not answer: " + leases.error().message);
  for (const auto& lease : *leases) {
    const Status stopped = runtime.stop(lease.lease, 3);
    if (!stopped.ok()) return fail(stopped.error().message);
  }
  std::cout << "pause: done; the agent does not run\n";
  return 0;
}

std::string gpu_text() {
  Nvml& nvml = Nvml::instance();
  std::string out;
  for (const auto& gpu : nvml.samples())
    out += fmt::format("  GPU {}: {} of {} MiB in use\n", gpu.uuid, gpu.memory_used_bytes >> 20,
                       gpu.memory_total_bytes >> 20);
  return out;
}

int show_limits(const Layout& layout) {
  const auto policy = load_policy(layout.policy());
  if (!policy.ok()) return fail(policy.error().message);
  for (const auto& [key, value] : describe_limits(*policy)) std::cout << fmt::format("{:<14} {}\n", key, value);
  const auto status = agent_status(layout, "look");
  if (status.ok()) std::cout << fmt::format("{:<14} {}\n", "now", work_text(*status));
  return 0;
}

int write_limits(const Layout& layout, const Policy& policy) {
  if (geteuid() != 0) return fail("only root may change what this machine lends; use sudo");
  const Status written = crypto::write_public_file(layout.policy(), as_bytes(policy_text(policy) + "\n"));
  return written.ok() ? 0 : fail(written.error().message);
}

}  // namespace

int fail(const std::string& message) {
  std::cerr << "muster-agent: " << message << "\n";
  return 1;
}

int do_status(const Layout& layout, bool as_json, Millis wait) {
  const auto end = std::chrono::steady_clock::now() + wait;
  auto said = agent_status(layout);
  while (std::chrono::steady_clock::now() < end && !(said.ok() && bool_at(*said, {"ready"}))) {
    std::this_thread::sleep_for(kPoll);
    said = agent_status(layout);
  }
  if (!said.ok()) return fail(said.error().message);
  if (!as_json) return print_status(layout, *said);
  std::cout << to_text(*said) << "\n";
  return bool_at(*said, {"ready"}) ? 0 : 1;
}

int do_pause(const Layout& layout, bool now) {
  if (geteuid() != 0) return fail("only root may pause this machine; use sudo");
  const auto began = std::chrono::steady_clock::now();
  const Status made = touch(now ? layout.paused() + ".now" : layout.paused());
  if (!made.ok()) return fail(made.error().message);
  auto status = agent_status(layout, "look");
  if (!status.ok() && now) return stop_without_agent(layout);
  if (!status.ok()) {
    std::cout << "pause: done; the agent does not run, nothing is started while it is paused\n";
    return 0;
  }
  for (int i = 0; i < 160; ++i) {
    const bool heard = status.ok() && bool_at(*status, {"paused"});
    const auto busy = status.ok() ? running(*status) : std::vector<std::string>{};
    if (heard && (!now || busy.empty())) {
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
      if (now)
        std::cout << fmt::format("pause: done, nothing of Muster's runs any more ({:.1f} s)\n{}", took.count(),
                                 gpu_text());
      else
        std::cout << fmt::format("pause: done; {} leases wind down, nothing new comes\n", busy.size());
      return 0;
    }
    std::this_thread::sleep_for(kPoll);
    status = agent_status(layout);
  }
  return fail(
      "the machine is paused, but something still runs after 40 s; see `muster-agent status` and the engine's log");
}

int do_resume(const Layout& layout) {
  if (geteuid() != 0) return fail("only root may resume this machine; use sudo");
  unlink((layout.paused() + ".now").c_str());
  if (unlink(layout.paused().c_str()) != 0 && errno != ENOENT)
    return fail(fmt::format("cannot remove {}: {}", layout.paused(), errno_text(errno)));
  auto status = agent_status(layout, "look");
  if (!status.ok()) return fail(status.error().message);
  for (int i = 0; i < 40; ++i) {
    const std::string reason = text_at(*status, {"owner_reason"});
    if (!bool_at(*status, {"paused"})) {
      std::cout << "resume: done, this machine can be hired\n";
      return 0;
    }
    if (!reason.empty() && reason != "owner.paused") {
      std::cout << "resume: done, but not hired now: " << text_at(*status, {"owner"}) << "\n";
      return 0;
    }
    std::this_thread::sleep_for(kPoll);
    status = agent_status(layout);
    if (!status.ok()) return fail(status.error().message);
  }
  return fail("the agent still counts as paused; see its log");
}

int do_drain(const Layout& layout, bool wait) {
  const int paused = do_pause(layout, false);
  if (paused != 0 || !wait) return paused;
  std::size_t told = 0;
  while (true) {
    const auto status = agent_status(layout);
    if (!status.ok()) return fail(status.error().message);
    const auto busy = running(*status);
    if (busy.empty()) break;
    if (busy.size() != told)
      std::cout << fmt::format("drain: waiting for {} (Ctrl-C stops waiting, not the drain)\n", fmt::join(busy, ", "))
                << std::flush;
    told = busy.size();
    std::this_thread::sleep_for(Millis(1000));
  }
  std::cout << "drain: done, nothing runs; `muster-agent resume` takes work again\n";
  return 0;
}

int do_limits(const Layout& layout, const std::vector<std::string>& words) {
  if (words.empty() || words[0] == "show") return show_limits(layout);
  if (words[0] == "reset" && words.size() == 1) {
    Policy policy;
    if (const auto before = load_policy(layout.policy()); before.ok()) policy.engine_socket = before->engine_socket;
    return write_limits(layout, policy) != 0 ? 1 : show_limits(layout);
  }
  if (words[0] != "set" || words.size() < 3 || words.size() % 2 == 0) {
    std::cerr << limits_help();
    return 2;
  }
  auto policy = load_policy(layout.policy());
  if (!policy.ok()) return fail(policy.error().message + "; `muster-agent limits reset` starts anew");
  for (std::size_t i = 1; i + 1 < words.size(); i += 2) {
    const Status set = set_limit(*policy, words[i], words[i + 1]);
    if (!set.ok()) return fail(set.error().message);
  }
  return write_limits(layout, *policy) != 0 ? 1 : show_limits(layout);
}

}  // namespace muster::host
