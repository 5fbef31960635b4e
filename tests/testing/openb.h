#pragma once
// Replays the openb trace (tests/data/openb) against a placement policy, as the FGD paper did (Weng et al., USENIX
// ATC'23): tasks arrive one by one until 130 % of the GPUs are asked for, each is placed on the best node or dropped,
// nothing departs. The policies here are the paper's, as controls; they may use floating point. Scores are kept per
// (task shape, node) until the node changes or the policy's generation does. Single-threaded; the same seed gives the
// same replay.
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace muster::testing::openb {

struct Task {
  std::int64_t cpu = 0, memory = 0;
  int devices = 0, share = 0;
  std::uint32_t models = ~0U;
  int shape = 0;
  std::int64_t gpu() const { return std::int64_t{devices} * share; }
};
struct Node {
  std::int64_t cpu = 0, memory = 0;
  int devices = 0;
  std::uint32_t model = 0;
  std::array<int, 8> free{};
  std::int64_t idle() const;
};
struct Trace {
  std::vector<Node> nodes;
  std::vector<Task> tasks;
  std::vector<Task> shapes;  /* without memory */
  std::int64_t capacity = 0; /* milli-GPU */
};

// `error` is set when a file is missing or has another format.
Trace load(const std::string& folder, const std::string& variant, std::string& error);
// Mean allocated percent by "variant/policy/arrived".
std::map<std::string, double> published(const std::string& folder);
// The variants of a folder, sorted.
std::vector<std::string> variants(const std::string& folder);

bool fits(const Node& node, const Task& task);  // memory aside
void take(Node& node, const Task& task, int device);

struct Choice {
  std::int64_t score = 0;
  int device = 0;
};
class Policy {
 public:
  virtual ~Policy() = default;
  virtual void begin(const Trace&, const std::vector<Node>&) {}
  virtual void arrived(const Task&, const std::vector<Node>&) {}
  virtual std::uint64_t generation() const { return 0; }
  virtual Choice score(const Node& node, std::size_t index, const Task& task) = 0;  // the node fits; highest wins
  virtual void changed(const Node&, std::size_t) {}                                 // the node took a task
  virtual std::int64_t price(std::uint32_t, const Task&) const { return 0; }        // of a model, taken off the score
  virtual bool spread_to_100() const {
    return false;
  }  // scores are stretched to 0..100 over the nodes that fit, per decision
};
class Fgd : public Policy {  // with the trace's own workload, as published
 public:
  void begin(const Trace& trace, const std::vector<Node>& nodes) override;
  Choice score(const Node& node, std::size_t index, const Task& task) override;
  void changed(const Node& node, std::size_t index) override { before_[index] = fragmentation(node); }

 private:
  double fragmentation(const Node& node) const;
  std::vector<std::pair<double, Task>> target_;
  std::vector<double> before_;
};
class BestFit : public Policy {
 public:
  Choice score(const Node& node, std::size_t index, const Task& task) override;
  bool spread_to_100() const override { return true; }
};

// One seed's order of machines and arrivals.
struct Draw {
  std::vector<Node> nodes;
  std::vector<Task> tasks;
};
Draw draw(const Trace& trace, std::uint64_t seed);
// Allocated percent by arrived percent; empty fields hold the one before.
using Curve = std::array<double, 140>;
class Tally {
 public:
  explicit Tally(const Trace& trace) : capacity_(static_cast<double>(trace.capacity > 0 ? trace.capacity : 1)) {}
  void count(const Task& task, bool placed);
  void moved(const Task& task, bool placed) { allocated_ -= placed ? 0 : task.gpu(); }  // it left and came back
  Curve curve() const;

 private:
  double capacity_ = 1;
  std::int64_t arrived_ = 0, allocated_ = 0;
  std::array<std::pair<double, int>, 140> events_{};
};
Curve replay(const Trace& trace, std::uint64_t seed, Policy& policy);

}  // namespace muster::testing::openb
