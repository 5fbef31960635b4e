#pragma once
// The invariants of the platform, each a class of its own: it sees durable events, what agents do, what the server
// answers, and the whole world after every step, and says what broke. They use only what an outside observer could
// know, never the verdict of the code under test. I8 (after the heal everything agrees) is healing.cpp, I11 (the same
// seed gives the same trace) the hash over everything, compared by sim_test and `muster-sim --twice`.
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "agent/core.h"
#include "control/core.h"
#include "engine/follower.h"
#include "journal/store.h"
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
  explicit Checker(std::string_view invariant) : invariant_(invariant) {}
  virtual ~Checker() = default;
  Checker(const Checker&) = delete;
  Checker& operator=(const Checker&) = delete;
  // What became durable, with the state after it.
  virtual void durable(const engine::DurableEvent&, const control::State&, World&) {}
  // What left the server: stored bytes of an entry, the answer to a command. And a start from the journal.
  virtual void left(std::uint64_t /*seq*/, const Bytes& /*entry*/, const journal::Store&, World&) {}
  virtual void answered(const engine::Reply&, World&) {}
  virtual void acknowledged(const std::string& /*request*/, const std::string& /*id*/, const control::State*, World&) {}
  virtual void started(const engine::Base&, const journal::Store&, World&) {}
  // What machines do.
  virtual void op(const Node&, const agent::Op&, const control::State*, World&) {}
  virtual void driver(const Node&, LeaseId, JobId, std::uint32_t, World&) {}
  virtual void sent(const Node&, const session::AgentFrame&, World&) {}
  virtual void renewed(LeaseId, World&) {}
  virtual void step(const View&) {}
  const std::string& invariant() const { return invariant_; }
  std::uint64_t looked() const { return looked_; }

 protected:
  void fail(World& world, const std::string& what) const { world.fail(invariant_ + ": " + what); }
  void looked_at() { ++looked_; }  // something was really compared

 private:
  std::string invariant_;
  std::uint64_t looked_ = 0;
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

using CheckerPtr = std::unique_ptr<Checker>;
CheckerPtr one_holder();           // I1: of a device, a lease, a job attempt, an address
CheckerPtr fenced_by_rosters();    // I1: who left is cut off from all who stay
CheckerPtr sound_decisions();      // I1: gangs whole, retries bounded, members replaced before promotion
CheckerPtr nothing_lost();         // I2
CheckerPtr within_lease();         // I4
CheckerPtr self_fence();           // I5
CheckerPtr no_early_fence();       // I6
CheckerPtr no_mass_eviction();     // I7
CheckerPtr only_valid();           // I9
CheckerPtr no_copy_for_reboot();   // I9: a copied machine is not taken for the machine itself
CheckerPtr bounded();              // I10
CheckerPtr within_quota();         // I13
CheckerPtr fair_preemption();      // I14
CheckerPtr within_offer();         // I15
CheckerPtr sparing_replacement();  // I16

}  // namespace muster::sim
