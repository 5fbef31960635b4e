#pragma once
// The packing score for the planner's machines: numbers the GPU models, sums what is free of each, and takes what the
// known clusters ask for as the expected workload. All of it is a function of the present state, never of how that came
// to be, so that a planner that followed every change decides like one built anew. Scores are good between prepare()
// and the next change. Private.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/packing.h"
#include "scheduler/scheduler.h"

namespace muster::scheduler {

class PoolPacking {
 public:
  // A machine that may be planned on, with what is free on it; removed with the same view as it was added.
  void add(const NodeView& node) { count(node, 1); }
  void remove(const NodeView& node) { count(node, -1); }
  bool has_gpus() const { return !models_.empty(); }

  // What a cluster asks for in place of what it did; the same again costs nothing.
  void demand(ClusterId cluster, const std::vector<std::pair<NodeRequest, std::uint32_t>>& needs);
  void prepare();
  // What hosting the need would waste on a machine that qualifies: smaller is better; 0 for all while no machine has a
  // GPU. Equal machines in a row are scored once.
  class ForNeed {
   public:
    ForNeed(const PoolPacking& pool, const NodeRequest& need) : pool_(pool), need_(need) {}
    std::int64_t operator()(const NodeView& node);

   private:
    const PoolPacking& pool_;
    const NodeRequest& need_;
    PackingNode last_;
    std::int64_t waste_ = 0;
    bool known_ = false;
  };

 private:
  struct Shape {
    std::int64_t cpu_milli = 0, gpus = 0;
    std::string model;
    auto operator<=>(const Shape&) const = default;
  };
  using Shapes = std::map<Shape, std::int64_t>;
  struct Model {
    std::int64_t nodes = 0, free_milli = 0;
  };
  void count(const NodeView& node, std::int64_t sign);
  PackingNode node_of(const NodeView& view) const;
  std::int64_t waste_on(const NodeRequest& need, const PackingNode& node) const;
  std::uint32_t index_of(const std::string& model) const;
  PackingTask task_of(const Shape& shape) const;
  std::map<std::string, Model> models_;
  std::map<ClusterId, Shapes> asked_;
  Shapes demand_;  // sum of asked_
  std::int64_t asked_total_ = 0;
  bool demand_stale_ = true, free_stale_ = true;
  std::vector<std::string> names_;  // sorted; the index is the model's number
  Packing packing_;
};

}  // namespace muster::scheduler
