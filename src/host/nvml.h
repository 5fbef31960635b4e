#pragma once
// NVIDIA's management library, loaded at run time where a driver brought it; without one there are no devices. The C
// interface is NVML's documented, stable one (nvml.h); MUSTER_NVML names another library (tests use a fake). A driver
// that is installed, replaced or lost later is noticed by refresh(). One instance per process, loaded on first use.
// Thread-safe: one lock around the library.
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/types.h"
#include "session/frames.h"

namespace muster::host {

struct GpuProcess {
  std::string uuid;
  std::uint32_t pid = 0;
  std::uint64_t memory_bytes = 0;
  bool operator==(const GpuProcess&) const = default;
};

// What leases may have: a GPU, or in place of one in MIG mode each instance that fills its part of the GPU, as the
// administrator made it (compute instances that share one are not lent).
struct Lendable {
  Device device;
  std::string gpu;                // the UUID of the GPU; of a GPU its own
  int gpu_index = 0, index = -1;  // of the GPU in NVML's order; of the instance on it, -1 = it is a GPU
};

class Nvml {
 public:
  explicit Nvml(std::string library = {});  // empty: MUSTER_NVML, else the driver's
  ~Nvml();
  Nvml(const Nvml&) = delete;
  static Nvml& instance();
  // Loads the library when it is there by now, and anew after it lost the driver. Cheap when nothing changed.
  void refresh();
  bool available() const;
  std::vector<Device> devices();  // in NVML's order: an index here is a GPU's number for the driver's tools
  std::vector<Lendable> lendable();
  std::vector<session::GpuSample> samples();
  std::vector<GpuProcess> processes();  // of any user, compute and graphics
  std::string driver_version();
  std::string cuda_version();  // "12.4": the newest that the driver runs
  struct Power {
    std::uint32_t limit_mw = 0, default_mw = 0, min_mw = 0, max_mw = 0;
  };
  Result<Power> power(const std::string& uuid);
  Status set_power_limit(const std::string& uuid, std::uint32_t milliwatts);  // needs root

 private:
  using Handle = void*;
  void open();
  void close();
  void watch_faults();
  void take_faults();
  std::string presence() const;
  bool good(int code);
  template <typename F>
  F symbol(const char* name) const;
  template <typename Visit>
  void each_device(Visit visit);
  std::optional<Device> describe(Handle handle, std::string uuid);
  bool in_mig_mode(Handle handle);
  void add_instances(Handle handle, const Device& gpu, int index, std::vector<Lendable>& out);
  Result<Handle> find(const std::string& uuid);

  std::string path_;
  mutable std::mutex mutex_;
  void* library_ = nullptr;
  Handle events_ = nullptr;
  bool lost_ = false, complained_ = false;
  std::string presence_;
  std::map<std::string, std::pair<std::uint32_t, std::uint32_t>> xids_;  // last code, count; outlives a reload
  std::map<Handle, std::string> uuid_of_;                                // of the devices whose faults are watched
};

}  // namespace muster::host
