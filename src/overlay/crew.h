#pragma once
// Hands that help with work of many equal parts: sealing and opening packets takes half of a tunnel's time, and each
// packet is on its own. This room has no threads: whoever has some gives them by this interface; Alone has none.
#include <cstddef>

namespace muster::overlay {

class Crew {
 public:
  class Job {
   public:
    virtual ~Job() = default;
    // Perhaps on several threads at once, for different parts; must not throw.
    virtual void part(std::size_t number) noexcept = 0;
  };
  virtual ~Crew() = default;
  virtual bool helps() const = 0;  // false: run() would do it all on the caller's thread
  // part(0) to part(count - 1), each once, in any order; returns when all are done, and what they wrote is seen.
  virtual void run(std::size_t count, Job& job) = 0;
};

class Alone final : public Crew {
 public:
  bool helps() const override { return false; }
  void run(std::size_t count, Job& job) override {
    for (std::size_t i = 0; i < count; ++i) job.part(i);
  }
};

}  // namespace muster::overlay
