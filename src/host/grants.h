#pragma once
// What each lease of this machine was given, and what is left of what the owner lends: the sum over all leases never
// exceeds it, whatever the agent asks for, and no GPU is given twice, nor more of one than there is where it is shared.
// One file per lease beside its workspace, so a restarted privd knows it. Also which image digests came from a pull
// that the owner's policy allowed. Thread-safe.
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "host/layout.h"
#include "host/nvml.h"
#include "host/policy.h"
#include "host/runtime.h"

namespace muster::host {

struct Grant {
  std::int64_t cpu_milli = 0, memory_bytes = 0;
  std::vector<std::string> devices;
  std::int64_t gpu_share_milli = 0;  // of the one device, 0 = whole ones
  LeaseTime booked{0};               // in this life of privd
  bool operator==(const Grant&) const = default;
};
// What there is: the machine itself.
struct Machine {
  std::int64_t cpu_milli = 0, memory_bytes = 0;
  std::map<std::string, Lendable> gpus = {};  // by UUID; MIG instances in place of their GPUs
};
Machine read_machine();

class Grants {
 public:
  explicit Grants(Layout layout);  // loads what is on disk
  // Cuts the lease's CPUs to what is left, refuses what does not fit, and books it. Booking a lease again replaces it.
  Status book(LaunchSpec& spec, const Policy& policy, const Machine& machine);
  void release(const std::string& lease);
  // A lease that no container belongs to for so long is gone; one that is just being started is not.
  void release_if_older(const std::string& lease, Millis age);
  std::set<std::string> gpus() const;  // booked ones, whole or in part
  std::map<std::string, Grant> all() const;

  void allow_image(const std::string& digest, const std::string& reference);
  bool pulled(const std::string& digest) const;  // for a lease, ever
  // PermissionDenied unless this digest was pulled here under a name that the policy allows.
  Status image_allowed(const std::string& digest, const Policy& policy) const;

 private:
  std::string file(const std::string& lease) const { return layout_.lease(lease) + "/grant.json"; }
  void store(const std::string& lease, const Grant& grant);
  void load_images();

  Layout layout_;
  mutable std::mutex mutex_;
  std::map<std::string, Grant> grants_;
  std::map<std::string, std::vector<std::string>> images_;  // digest -> references
};

}  // namespace muster::host
