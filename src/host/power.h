#pragma once
// The owner's power cap on GPUs, as a level: while a GPU is hired its limit is at most the cap, afterwards it is what
// it was. What it was is kept in a file, so that a privd that died in between still puts it back. One thread at a time.
#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "base/result.h"

namespace muster::host {

class Nvml;

class PowerKeeper {
 public:
  PowerKeeper(Nvml& nvml, std::string path);
  // cap_w 0: no cap. Repeats what failed with the next call.
  void reconcile(std::int64_t cap_w, const std::set<std::string>& hired);
  bool holds_any() const { return !was_.empty(); }

 private:
  void keep();
  Nvml& nvml_;
  std::string path_;
  std::map<std::string, std::uint32_t> was_;  // GPU -> milliwatts before we lowered it
  std::set<std::string> complained_;
};

}  // namespace muster::host
