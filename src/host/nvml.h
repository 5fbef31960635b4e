#pragma once
// NVIDIA's management library, loaded at run time where a driver brought it; without one there are no devices. The C
// interface is NVML's documented, stable one (nvml.h); MUSTER_NVML names another library (tests use a fake). One
// instance per process, loaded on first use; calls from one thread.
#include <vector>

#include "model/types.h"
#include "session/frames.h"

namespace muster::host {

class Nvml {
 public:
  static Nvml& instance();
  bool available() const { return library_ != nullptr; }
  std::vector<Device> devices() const;
  std::vector<session::GpuSample> samples() const;
  std::string driver_version() const;

 private:
  Nvml();
  void* library_ = nullptr;
};

}  // namespace muster::host
