#include "host/nvml.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>

#include "base/log.h"

namespace muster::host {
namespace {

// The part of the C interface that we use; 0 = success everywhere.
using Handle = void*;
struct Memory {
  unsigned long long total, free, used;
};
struct Utilization {
  unsigned int gpu, memory;
};

template <typename F>
F symbol(void* library, const char* name) {
  return reinterpret_cast<F>(dlsym(library, name));
}

template <typename Visit>
void each_device(void* library, Visit visit) {
  if (library == nullptr) return;
  const auto count_of = symbol<int (*)(unsigned int*)>(library, "nvmlDeviceGetCount_v2");
  const auto handle_of = symbol<int (*)(unsigned int, Handle*)>(library, "nvmlDeviceGetHandleByIndex_v2");
  const auto uuid_of = symbol<int (*)(Handle, char*, unsigned int)>(library, "nvmlDeviceGetUUID");
  unsigned int count = 0;
  if (count_of == nullptr || handle_of == nullptr || uuid_of == nullptr || count_of(&count) != 0) return;
  for (unsigned int i = 0; i < count && i < 64; ++i) {
    Handle handle = nullptr;
    std::array<char, 96> uuid{};
    if (handle_of(i, &handle) == 0 && uuid_of(handle, uuid.data(), uuid.size() - 1) == 0)
      visit(handle, std::string(uuid.data()));
  }
}

}  // namespace

Nvml& Nvml::instance() {
  static Nvml nvml;
  return nvml;
}

Nvml::Nvml() {
  const char* path = std::getenv("MUSTER_NVML");
  void* library = dlopen(path != nullptr ? path : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return;
  const auto init = symbol<int (*)()>(library, "nvmlInit_v2");
  if (init == nullptr || init() != 0) {
    log_warn("agent", "the NVIDIA driver's library is there but does not start; see `muster-agent doctor`");
    return;
  }
  library_ = library;
}

std::vector<Device> Nvml::devices() const {
  std::vector<Device> out;
  const auto name_of =
      library_ != nullptr ? symbol<int (*)(Handle, char*, unsigned int)>(library_, "nvmlDeviceGetName") : nullptr;
  const auto memory_of =
      library_ != nullptr ? symbol<int (*)(Handle, Memory*)>(library_, "nvmlDeviceGetMemoryInfo") : nullptr;
  each_device(library_, [&](Handle handle, std::string uuid) {
    Device device;
    device.uuid = std::move(uuid);
    std::array<char, 96> name{};
    if (name_of != nullptr && name_of(handle, name.data(), name.size() - 1) == 0) device.model = name.data();
    Memory memory{};
    if (memory_of != nullptr && memory_of(handle, &memory) == 0)
      device.memory_bytes = static_cast<std::int64_t>(memory.total);
    out.push_back(std::move(device));
  });
  return out;
}

std::vector<session::GpuSample> Nvml::samples() const {
  std::vector<session::GpuSample> out;
  if (library_ == nullptr) return out;
  const auto use_of = symbol<int (*)(Handle, Utilization*)>(library_, "nvmlDeviceGetUtilizationRates");
  const auto heat_of = symbol<int (*)(Handle, int, unsigned int*)>(library_, "nvmlDeviceGetTemperature");
  const auto power_of = symbol<int (*)(Handle, unsigned int*)>(library_, "nvmlDeviceGetPowerUsage");
  const auto memory_of = symbol<int (*)(Handle, Memory*)>(library_, "nvmlDeviceGetMemoryInfo");
  each_device(library_, [&](Handle handle, std::string uuid) {
    session::GpuSample sample;
    sample.uuid = std::move(uuid);
    Utilization use{};
    if (use_of != nullptr && use_of(handle, &use) == 0) sample.use_percent = use.gpu;
    if (heat_of != nullptr) heat_of(handle, 0, &sample.temperature_c);
    unsigned int milliwatts = 0;
    if (power_of != nullptr && power_of(handle, &milliwatts) == 0) sample.power_w = milliwatts / 1000;
    Memory memory{};
    if (memory_of != nullptr && memory_of(handle, &memory) == 0) sample.memory_used_bytes = memory.used;
    out.push_back(std::move(sample));
  });
  return out;
}

std::string Nvml::driver_version() const {
  std::array<char, 96> text{};
  const auto version_of =
      library_ != nullptr ? symbol<int (*)(char*, unsigned int)>(library_, "nvmlSystemGetDriverVersion") : nullptr;
  if (version_of == nullptr || version_of(text.data(), text.size() - 1) != 0) return {};
  return text.data();
}

}  // namespace muster::host
