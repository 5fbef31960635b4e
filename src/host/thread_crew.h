#pragma once
// Threads that help netd seal and open packets (overlay/crew.h). They wait for work awake for some ten microseconds
// after the last, then asleep: an idle machine pays nothing. The caller works too, so what comes is done even when no
// helper has woken, and waits only for the parts that helpers have begun. run() is one thread's at a time.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "overlay/crew.h"

namespace muster::host {

// Beside netd's own thread. `told` (MUSTER_NETD_HELPERS: 0 to 8) decides; else one where the machine has four cores,
// two where it has eight: below that packets would take from work what they gain. Bad values count as not told.
std::size_t netd_helpers(const char* told, std::size_t cores);

class ThreadCrew final : public overlay::Crew {
 public:
  explicit ThreadCrew(std::size_t helpers);
  ~ThreadCrew() override;
  bool helps() const override { return !threads_.empty(); }
  void run(std::size_t count, Job& job) override;

 private:
  static constexpr std::size_t kGrain = 4;     // parts that a thread takes at once
  static constexpr std::size_t kWorthIt = 12;  // fewer parts the caller does alone
  static constexpr std::size_t kCountMax = 0xffff;
  void help();
  bool take_some();
  std::vector<std::thread> threads_;
  std::atomic<bool> ends_{false};
  std::atomic<Job*> job_{nullptr};
  // The run's number (32 bits), its parts (16) and the next one (16): in one word, so that who comes late can take
  // nothing of another run.
  alignas(64) std::atomic<std::uint64_t> state_{0};
  alignas(64) std::atomic<std::size_t> done_{0};
};

}  // namespace muster::host
