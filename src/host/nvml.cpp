#include "host/nvml.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/log.h"

namespace muster::host {
namespace {

// The part of the C interface that we use; 0 = success everywhere.
constexpr int kSuccess = 0, kTimedOut = 10, kInsufficientSize = 7;
constexpr unsigned kDevicesMax = 64, kInstancesMax = 16;
constexpr std::string_view kMigMark = " MIG ";
constexpr std::size_t kFaultsPerTurn = 16;
constexpr unsigned long long kXidEvent = 8;
struct Memory {
  unsigned long long total, free, used;
};
struct Utilization {
  unsigned int gpu, memory;
};
struct Event {
  void* device;
  unsigned long long type, data;
  unsigned int gpu_instance, compute_instance;
};
struct Process {
  unsigned int pid;
  unsigned long long memory;
  unsigned int gpu_instance, compute_instance;
};

using GetNumber = int (*)(void*, unsigned int*);
using GetKind = int (*)(void*, int, unsigned int*);
using GetText = int (*)(void*, char*, unsigned int);

}  // namespace

template <typename F>
F Nvml::symbol(const char* name) const {
  return library_ == nullptr ? nullptr : reinterpret_cast<F>(dlsym(library_, name));
}

// What says that the driver under us is another one than the one we opened.
bool Nvml::good(int code) {
  constexpr int kUninitialised = 1, kDriverNotLoaded = 9, kGpuLost = 15, kResetRequired = 16, kVersionMismatch = 18;
  if (code == kUninitialised || code == kDriverNotLoaded || code == kGpuLost || code == kResetRequired ||
      code == kVersionMismatch)
    lost_ = true;
  return code == kSuccess;
}

template <typename Visit>
void Nvml::each_device(Visit visit) {
  const auto count_of = symbol<int (*)(unsigned int*)>("nvmlDeviceGetCount_v2");
  const auto handle_of = symbol<int (*)(unsigned int, Handle*)>("nvmlDeviceGetHandleByIndex_v2");
  const auto uuid_of = symbol<GetText>("nvmlDeviceGetUUID");
  unsigned int count = 0;
  if (count_of == nullptr || handle_of == nullptr || uuid_of == nullptr || !good(count_of(&count))) return;
  for (unsigned int i = 0; i < count && i < kDevicesMax; ++i) {
    Handle handle = nullptr;
    std::array<char, 97> uuid{};
    if (good(handle_of(i, &handle)) && good(uuid_of(handle, uuid.data(), uuid.size() - 1)))
      visit(handle, std::string(uuid.data()));
  }
}

Nvml& Nvml::instance() {
  static Nvml nvml;
  return nvml;
}

Nvml::Nvml(std::string library) : path_(std::move(library)) {
  if (path_.empty()) {
    const char* named = std::getenv("MUSTER_NVML");
    path_ = named != nullptr ? named : "libnvidia-ml.so.1";
  }
  const std::lock_guard lock(mutex_);
  open();
}

Nvml::~Nvml() {
  const std::lock_guard lock(mutex_);
  close();
}

// The version of the kernel's driver and the device files: cheap to look at, unlike a restart of the library.
std::string Nvml::presence() const {
  std::ifstream version("/proc/driver/nvidia/version");
  std::string out;
  std::getline(version, out);
  std::vector<std::string> names;
  if (DIR* dev = opendir("/dev")) {
    while (const dirent* entry = readdir(dev)) {
      if (std::string_view(entry->d_name).starts_with("nvidia")) names.emplace_back(entry->d_name);
    }
    closedir(dev);
  }
  std::sort(names.begin(), names.end());
  for (const auto& name : names) out += "," + name;
  return out;
}

void Nvml::open() {
  presence_ = presence();
  void* library = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return;
  library_ = library;
  lost_ = false;
  const auto init = symbol<int (*)()>("nvmlInit_v2");
  const int code = init == nullptr ? -1 : init();
  if (code == kSuccess) {
    complained_ = false;
    return watch_faults();
  }
  if (!complained_)
    log_warn("agent", "the NVIDIA driver's library is there but does not start (code {}); see `muster-agent doctor`",
             code);
  complained_ = true;
  dlclose(std::exchange(library_, nullptr));
}

void Nvml::close() {
  if (library_ == nullptr) return;
  if (const auto free_set = symbol<int (*)(Handle)>("nvmlEventSetFree"); free_set != nullptr && events_ != nullptr)
    free_set(events_);
  events_ = nullptr;
  uuid_of_.clear();
  if (const auto shutdown = symbol<int (*)()>("nvmlShutdown")) shutdown();
  dlclose(std::exchange(library_, nullptr));
}

void Nvml::refresh() {
  const std::lock_guard lock(mutex_);
  if (library_ != nullptr && !lost_ && presence() == presence_) return;
  close();
  open();
}

bool Nvml::available() const {
  const std::lock_guard lock(mutex_);
  return library_ != nullptr;
}

std::optional<Device> Nvml::describe(Handle handle, std::string uuid) {
  const auto name_of = symbol<GetText>("nvmlDeviceGetName");
  const auto memory_of = symbol<int (*)(Handle, Memory*)>("nvmlDeviceGetMemoryInfo");
  Device device;
  device.uuid = std::move(uuid);
  std::array<char, 97> name{};
  if (name_of != nullptr && good(name_of(handle, name.data(), name.size() - 1))) device.model = name.data();
  Memory memory{};
  // A card that fell off the bus is still counted, but answers nothing.
  if (memory_of == nullptr || !good(memory_of(handle, &memory))) return {};
  device.memory_bytes = static_cast<std::int64_t>(memory.total);
  return device;
}

std::vector<Device> Nvml::devices() {
  const std::lock_guard lock(mutex_);
  std::vector<Device> out;
  each_device([&](Handle handle, std::string uuid) {
    if (auto device = describe(handle, std::move(uuid))) out.push_back(std::move(*device));
  });
  return out;
}

std::vector<Lendable> Nvml::lendable() {
  const std::lock_guard lock(mutex_);
  std::vector<Lendable> out;
  int index = -1;
  each_device([&](Handle handle, std::string uuid) {
    auto device = describe(handle, std::move(uuid));
    if (!device) return;
    ++index;  // as in devices()
    if (in_mig_mode(handle)) return add_instances(handle, *device, index, out);
    const std::string own = device->uuid;
    out.push_back({std::move(*device), own, index, -1});
  });
  return out;
}

// Not every GPU has the mode, and not every driver the question.
bool Nvml::in_mig_mode(Handle handle) {
  const auto mode_of = symbol<int (*)(Handle, unsigned int*, unsigned int*)>("nvmlDeviceGetMigMode");
  unsigned int now = 0, next = 0;
  return mode_of != nullptr && mode_of(handle, &now, &next) == kSuccess && now == 1;
}

void Nvml::add_instances(Handle handle, const Device& gpu, int index, std::vector<Lendable>& out) {
  const auto most_of = symbol<GetNumber>("nvmlDeviceGetMaxMigDeviceCount");
  const auto instance_of = symbol<int (*)(Handle, unsigned int, Handle*)>("nvmlDeviceGetMigDeviceHandleByIndex");
  const auto uuid_of = symbol<GetText>("nvmlDeviceGetUUID");
  unsigned int most = 0;
  if (most_of == nullptr || instance_of == nullptr || !good(most_of(handle, &most))) return;
  for (unsigned int i = 0; i < std::min(most, kInstancesMax); ++i) {
    Handle instance = nullptr;
    std::array<char, 97> uuid{};
    if (instance_of(handle, i, &instance) != kSuccess) continue;  // none there
    if (!good(uuid_of(instance, uuid.data(), uuid.size() - 1))) continue;
    auto device = describe(instance, uuid.data());
    if (!device) continue;
    const auto mark = device->model.find(kMigMark);  // "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
    if (mark == std::string::npos || gpu.memory_bytes <= 0) continue;
    device->profile = device->model.substr(mark + kMigMark.size());
    if (device->profile.find("c.") != std::string::npos) continue;  // "1c.3g.20gb": others compute in its memory
    device->model = gpu.model;
    device->sharing = GpuSharing::Mig;
    // Memory comes in eighths of the GPU, less what the driver keeps.
    const std::int64_t eighths = (device->memory_bytes * 16 / gpu.memory_bytes + 1) / 2;
    device->part_milli = static_cast<std::int32_t>(std::clamp<std::int64_t>(eighths, 1, 8) * kGpuMilli / 8);
    out.push_back({std::move(*device), gpu.uuid, index, static_cast<int>(i)});
  }
}

std::vector<session::GpuSample> Nvml::samples() {
  const std::lock_guard lock(mutex_);
  take_faults();
  std::vector<session::GpuSample> out;
  const auto use_of = symbol<int (*)(Handle, Utilization*)>("nvmlDeviceGetUtilizationRates");
  const auto heat_of = symbol<GetKind>("nvmlDeviceGetTemperature");
  const auto power_of = symbol<GetNumber>("nvmlDeviceGetPowerUsage");
  const auto limit_of = symbol<GetNumber>("nvmlDeviceGetPowerManagementLimit");
  const auto clock_of = symbol<GetKind>("nvmlDeviceGetClockInfo");
  const auto memory_of = symbol<int (*)(Handle, Memory*)>("nvmlDeviceGetMemoryInfo");
  const auto errors_of = symbol<int (*)(Handle, int, int, unsigned long long*)>("nvmlDeviceGetTotalEccErrors");
  each_device([&](Handle handle, std::string uuid) {
    session::GpuSample sample;
    sample.uuid = std::move(uuid);
    Memory memory{};
    if (memory_of == nullptr || !good(memory_of(handle, &memory))) return;
    sample.memory_used_bytes = memory.used;
    sample.memory_total_bytes = memory.total;
    Utilization use{};
    if (use_of != nullptr && good(use_of(handle, &use))) sample.use_percent = use.gpu;
    unsigned int value = 0;
    if (heat_of != nullptr && good(heat_of(handle, 0, &value))) sample.temperature_c = value;
    if (power_of != nullptr && good(power_of(handle, &value))) sample.power_w = (value + 500) / 1000;
    if (limit_of != nullptr && good(limit_of(handle, &value))) sample.power_limit_w = (value + 500) / 1000;
    if (clock_of != nullptr && good(clock_of(handle, 1, &value))) sample.sm_mhz = value;
    if (clock_of != nullptr && good(clock_of(handle, 2, &value))) sample.memory_mhz = value;
    unsigned long long errors = 0;
    if (errors_of != nullptr && good(errors_of(handle, 0, 0, &errors))) sample.ecc_corrected = errors;
    if (errors_of != nullptr && good(errors_of(handle, 1, 0, &errors))) sample.ecc_uncorrected = errors;
    if (const auto xid = xids_.find(sample.uuid); xid != xids_.end())
      std::tie(sample.xid, sample.xid_count) = xid->second;
    out.push_back(std::move(sample));
  });
  return out;
}

void Nvml::watch_faults() {
  const auto create = symbol<int (*)(Handle*)>("nvmlEventSetCreate");
  const auto watch = symbol<int (*)(Handle, unsigned long long, Handle)>("nvmlDeviceRegisterEvents");
  if (create == nullptr || watch == nullptr || create(&events_) != kSuccess) {
    events_ = nullptr;
    return;
  }
  each_device([&](Handle handle, const std::string& uuid) {
    if (watch(handle, kXidEvent, events_) == kSuccess) uuid_of_[handle] = uuid;
  });
}

void Nvml::take_faults() {
  const auto wait = symbol<int (*)(Handle, Event*, unsigned int)>("nvmlEventSetWait_v2");
  if (wait == nullptr || events_ == nullptr || uuid_of_.empty()) return;
  for (std::size_t i = 0; i < kFaultsPerTurn; ++i) {
    Event event{};
    const int code = wait(events_, &event, 0);
    if (code == kTimedOut || !good(code)) return;
    const auto device = uuid_of_.find(event.device);
    if (event.type != kXidEvent || device == uuid_of_.end()) continue;
    auto& [last, count] = xids_[device->second];
    last = static_cast<std::uint32_t>(event.data);
    ++count;
    log_warn("agent", "GPU {} reports fault Xid {}", device->second, event.data);
  }
}

std::vector<GpuProcess> Nvml::processes() {
  const std::lock_guard lock(mutex_);
  std::vector<GpuProcess> out;
  using List = int (*)(Handle, unsigned int*, Process*);
  const std::array<List, 2> lists{symbol<List>("nvmlDeviceGetComputeRunningProcesses_v3"),
                                  symbol<List>("nvmlDeviceGetGraphicsRunningProcesses_v3")};
  each_device([&](Handle handle, const std::string& uuid) {
    for (const List list : lists) {
      if (list == nullptr) continue;
      std::array<Process, 256> found{};
      unsigned int count = found.size();
      const int code = list(handle, &count, found.data());
      if (code != kInsufficientSize && !good(code)) continue;
      for (unsigned int i = 0; i < std::min<unsigned int>(count, found.size()); ++i)
        out.push_back({uuid, found[i].pid, found[i].memory});
    }
  });
  return out;
}

std::string Nvml::driver_version() {
  const std::lock_guard lock(mutex_);
  std::array<char, 97> text{};
  const auto version_of = symbol<int (*)(char*, unsigned int)>("nvmlSystemGetDriverVersion");
  if (version_of == nullptr || !good(version_of(text.data(), text.size() - 1))) return {};
  return text.data();
}

std::string Nvml::cuda_version() {
  const std::lock_guard lock(mutex_);
  const auto version_of = symbol<int (*)(int*)>("nvmlSystemGetCudaDriverVersion_v2");
  int version = 0;
  if (version_of == nullptr || !good(version_of(&version)) || version <= 0) return {};
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

Result<Nvml::Handle> Nvml::find(const std::string& uuid) {
  Handle found = nullptr;
  each_device([&](Handle handle, const std::string& each) {
    if (each == uuid) found = handle;
  });
  if (found == nullptr) return error(Code::NotFound, "there is no GPU " + uuid + " on this machine now", "gpu.missing");
  return found;
}

Result<Nvml::Power> Nvml::power(const std::string& uuid) {
  const std::lock_guard lock(mutex_);
  const Handle handle = TRY(find(uuid));
  const auto limit_of = symbol<GetNumber>("nvmlDeviceGetPowerManagementLimit");
  const auto default_of = symbol<GetNumber>("nvmlDeviceGetPowerManagementDefaultLimit");
  const auto range_of =
      symbol<int (*)(Handle, unsigned int*, unsigned int*)>("nvmlDeviceGetPowerManagementLimitConstraints");
  Power out;
  if (limit_of == nullptr || !good(limit_of(handle, &out.limit_mw)))
    return error(Code::Unsupported, "GPU " + uuid + " has no power limit that could be set", "gpu.power");
  if (default_of == nullptr || !good(default_of(handle, &out.default_mw))) out.default_mw = out.limit_mw;
  if (range_of == nullptr || !good(range_of(handle, &out.min_mw, &out.max_mw))) out.min_mw = out.max_mw = 0;
  return out;
}

Status Nvml::set_power_limit(const std::string& uuid, std::uint32_t milliwatts) {
  const std::lock_guard lock(mutex_);
  const Handle handle = TRY(find(uuid));
  const auto set = symbol<int (*)(Handle, unsigned int)>("nvmlDeviceSetPowerManagementLimit");
  const int code = set == nullptr ? -1 : set(handle, milliwatts);
  if (code == kSuccess) return {};
  return error(
      Code::Unavailable,
      fmt::format("the driver does not set the power limit of GPU {} to {} W (code {})", uuid, milliwatts / 1000, code),
      "gpu.power");
}

}  // namespace muster::host
