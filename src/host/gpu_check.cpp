#include "host/gpu_check.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <sstream>

#include "host/identity.h"
#include "host/nvml.h"
#include "host/supervisor.h"

namespace muster::host {
namespace {

constexpr const char* kDefaultImage = "muster/ray:2.60.0";

struct Outcome {
  int failed = 0, checked = 0;
  void good(const std::string& text) {
    ++checked;
    std::cout << "OK       " << text << "\n";
  }
  void bad(const std::string& text) {
    ++failed;
    std::cout << "FAILED   " << text << "\n";
  }
  static void skip(const std::string& text) { std::cout << "SKIPPED  " << text << "\n"; }
};

void describe(Outcome& outcome, const std::vector<Device>& devices) {
  Nvml& nvml = Nvml::instance();
  outcome.good(
      fmt::format("driver {}, CUDA up to {}, {} GPUs", nvml.driver_version(), nvml.cuda_version(), devices.size()));
  const auto samples = nvml.samples();
  for (std::size_t i = 0; i < devices.size(); ++i) {
    std::string now;
    for (const auto& s : samples) {
      if (s.uuid != devices[i].uuid) continue;
      now = fmt::format("{}% used, {} of {} MiB, {} C, {} of {} W, {} MHz, ECC {}/{}, Xid {}", s.use_percent,
                        s.memory_used_bytes >> 20, s.memory_total_bytes >> 20, s.temperature_c, s.power_w,
                        s.power_limit_w, s.sm_mhz, s.ecc_corrected, s.ecc_uncorrected, s.xid);
    }
    if (now.empty())
      outcome.bad(fmt::format("GPU {} {} {} answers nothing", i, devices[i].uuid, devices[i].model));
    else
      outcome.good(fmt::format("GPU {} {} {}: {}", i, devices[i].uuid, devices[i].model, now));
  }
}

// Each GPU alone, then none.
void probe(Outcome& outcome, DockerRuntime& runtime, const std::string& image, const std::vector<Device>& devices) {
  std::vector<std::vector<std::string>> sets;
  const auto lendable = Nvml::instance().lendable();
  for (const auto& device : devices) {
    if (std::any_of(lendable.begin(), lendable.end(),
                    [&](const Lendable& each) { return each.device.uuid == device.uuid; }))
      sets.push_back({device.uuid});
    else
      Outcome::skip("a container with " + device.uuid + ": it is in MIG mode");
  }
  sets.emplace_back();
  for (const auto& given : sets) {
    const std::string one = given.empty() ? std::string() : given[0];
    const std::string who = given.empty() ? "a container without GPUs" : "a container with " + one;
    const auto said = runtime.run_once(image, given, kGpuProbe);
    const std::string wrong = said.ok() ? judge_gpu_probe(*said, one) : said.error().message;
    if (wrong.empty())
      outcome.good(who + (given.empty() ? " sees none" : " sees it and no other"));
    else
      outcome.bad(who + ": " + wrong);
  }
}

int finish(const Outcome& outcome, std::size_t gpus) {
  if (outcome.failed == 0)
    std::cout << fmt::format("GPU CHECK OK: {} GPUs, {} checks passed\n", gpus, outcome.checked);
  else
    std::cout << fmt::format("GPU CHECK FAILED: {} of {} checks\n", outcome.failed, outcome.failed + outcome.checked);
  return outcome.failed == 0 ? 0 : 3;
}

}  // namespace

std::string judge_gpu_probe(const std::string& output, const std::string& given) {
  std::istringstream lines(output);
  std::string line, visible;
  int devices = 0, named = 0;
  bool ended = false, found = false;
  while (std::getline(lines, line)) {
    if (line.starts_with("visible=")) visible = line.substr(8);
    if (line.starts_with("device=")) ++devices;
    if (line.starts_with("smi=GPU ")) {
      ++named;
      found = found || line.find(given) != std::string::npos;
    }
    ended = ended || line == "end";
  }
  if (!ended) return "its shell did not come to the end: " + output.substr(0, 300);
  if (given.empty()) {
    if (devices != 0) return fmt::format("it sees {} GPU devices", devices);
    return visible == "void" ? std::string() : "NVIDIA_VISIBLE_DEVICES is '" + visible + "', not 'void'";
  }
  if (visible != given && visible != "void") return "NVIDIA_VISIBLE_DEVICES is '" + visible + "'";  // CDI sets void
  if (devices != 1) return fmt::format("it sees {} GPU devices instead of one", devices);
  if (named > 1) return fmt::format("nvidia-smi lists {} GPUs in it", named);
  return named == 1 && !found ? "nvidia-smi lists another GPU in it" : std::string();
}

int gpu_check(const Layout& layout, const std::string& wanted) {
  Outcome outcome;
  const auto devices = Nvml::instance().devices();
  if (devices.empty()) {
    if (!Nvml::instance().available() && access("/dev/nvidiactl", F_OK) != 0) {
      Outcome::skip("there is no NVIDIA driver on this machine");
      std::cout << "GPU CHECK SKIPPED: no NVIDIA GPU on this machine\n";
      return 0;
    }
    outcome.bad("the NVIDIA driver does not answer; nvidia-smi must work");
    return finish(outcome, 0);
  }
  describe(outcome, devices);
  const auto config = load_config(layout);
  DockerRuntime runtime(docker_options(layout, config.ok() ? config->node_id : "check",
                                       config.ok() ? config->machine : fmt::format("check{}", getpid())));
  const auto engine = runtime.info();
  if (!engine.ok()) {
    outcome.bad("container engine: " + engine.error().message);
    return finish(outcome, devices.size());
  }
  if (engine->gpu_mode == "none") {
    outcome.bad(
        fmt::format("{} {} can give no GPU to a container: install nvidia-container-toolkit, then: nvidia-ctk cdi "
                    "generate --output=/etc/cdi/nvidia.yaml",
                    engine->kind, engine->version));
    return finish(outcome, devices.size());
  }
  outcome.good(fmt::format("{} {} gives GPUs by {}{}", engine->kind, engine->version, engine->gpu_mode,
                           engine->cdi.empty() ? "" : fmt::format(" ({})", fmt::join(engine->cdi, ", "))));
  const std::string image = wanted.empty() ? kDefaultImage : wanted;
  const auto digest = runtime.pull({image, {}, {}}, [](std::uint64_t, std::uint64_t) { return true; });
  if (!digest.ok()) {
    Outcome::skip(fmt::format("containers: {}; name an image with --image", digest.error().message));
    return finish(outcome, devices.size());
  }
  probe(outcome, runtime, digest->digest, devices);
  return finish(outcome, devices.size());
}

}  // namespace muster::host
