#pragma once
// The invariants of the platform as small classes: each sees durable events, what agents do, and the whole world after
// every step, and says what broke. They use only what an outside observer could know, never the verdict of the code
// under test.
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "agent/core.h"
#include "control/core.h"
#include "engine/follower.h"
#include "sim/node.h"

namespace muster::sim {

struct View {
  World& world;
  const std::vector<std::unique_ptr<Node>>& nodes;
  const Node* clone = nullptr;
  const control::State* state = nullptr;  // durable, null while the server is down
  std::size_t queued = 0;
  bool leading = false, frozen = false;
};

class Checker {
 public:
  virtual ~Checker() = default;
  virtual void durable(const engine::DurableEvent&, const control::State&, World&) {}
  virtual void op(const Node&, const agent::Op&, const control::State*, World&) {}
  virtual void driver(const Node&, LeaseId, JobId, std::uint32_t, World&) {}
  virtual void sent(const Node&, const session::AgentFrame&, World&) {}
  virtual void renewed(LeaseId, World&) {}
  virtual void step(const View&) {}
};

class Checkers {
 public:
  Checkers();
  template <typename F>
  void each(F f) {
    for (auto& checker : all_) f(*checker);
  }

 private:
  std::vector<std::unique_ptr<Checker>> all_;
};

}  // namespace muster::sim
