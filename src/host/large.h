#pragma once
// Large packets between netd and the kernel: datagrams that the kernel cuts (UDP_SEGMENT), and TCP segments that the
// TUN takes joined. Each may be switched off by the owner (MUSTER_UDP_LARGE, MUSTER_TUN_LARGE in the environment of the
// agent's service: auto, on or off), is off on kernels that are known to damage them, goes off where the kernel refuses
// it, and where comparison shows that it loses what single ones do not (overlay/offload_trial.h). netd's thread only.
#include <string_view>

#include "base/time.h"
#include "overlay/offload_trial.h"
#include "session/frames.h"

namespace muster::host {

// Auto: all of the above. On: also on kernels of the list, and nothing is compared; a refusal counts all the same.
enum class LargeMode : std::uint8_t { Auto, On, Off };
LargeMode large_mode(const char* word);  // what is neither "on" nor "off" is Auto; null too

// Why not, on a kernel of that release (uname -r); empty where nothing is known against it.
struct KernelFaults {
  std::string_view udp_segments, tun_joins, udp_joins;
};
KernelFaults kernel_faults(std::string_view release);

inline constexpr Millis kRefusedFor{600'000};  // then the kernel is asked again

class Large {
 public:
  Large(LargeMode mode, std::string_view fault);
  // Of `sent` bytes by that way `lost` did not arrive.
  void note(std::uint64_t way, std::uint64_t sent, std::uint64_t lost, LeaseTime now);
  void refused(LeaseTime now);
  bool tick(LeaseTime now);  // true: state() has changed since the last call
  session::NetLarge state() const;
  bool used() const { return state() == session::NetLarge::Used; }
  bool counts(LeaseTime now) const;  // is note() of any use now?
  bool asks_again(LeaseTime now);    // true once, when a refusal is that long ago
  const overlay::OffloadTrial& trial() const { return trial_; }

 private:
  LargeMode mode_;
  bool bad_kernel_;
  LeaseTime refused_until_;
  overlay::OffloadTrial trial_;
  session::NetLarge told_ = session::NetLarge::Used;
};

}  // namespace muster::host
