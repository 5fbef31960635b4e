#pragma once
// The scheduler's packing score as a policy of the openb replay. It learns the workload from the arrivals alone.
#include "scheduler/packing.h"
#include "testing/openb.h"

namespace muster::testing::openb {

class OurPacking : public Policy {
 public:
  void begin(const Trace&, const std::vector<Node>& nodes) override {
    packing_ = {};
    arrivals_ = 0;
    refresh(nodes);
  }
  void arrived(const Task& task, const std::vector<Node>& nodes) override {
    packing_.observe(packing_task(task));
    if (generation_ != packing_.generation()) refresh(nodes);
    constexpr std::uint64_t kRepriceEvery = 16;
    if (++arrivals_ >= kRepriceEvery && arrivals_ % kRepriceEvery != 0) return;
    std::array<std::int64_t, scheduler::kPackingModels> free{};
    for (const Node& node : nodes) free[node.model] += node.idle();
    packing_.reprice(free);
  }
  std::uint64_t generation() const override { return packing_.generation(); }
  Choice score(const Node& node, std::size_t index, const Task& task) override {
    const auto choice = packing_.score(packing_node(node), packing_task(task), before_[index]);
    return {choice.score, static_cast<int>(choice.device)};
  }
  void changed(const Node& node, std::size_t index) override {
    before_[index] = packing_.fragmentation(packing_node(node));
  }
  std::int64_t price(std::uint32_t model, const Task& task) const override {
    return packing_.price(model, packing_task(task));
  }

  static scheduler::PackingTask packing_task(const Task& task) {
    return {task.cpu, task.devices, task.share, task.models};
  }
  static scheduler::PackingNode packing_node(const Node& node) {
    scheduler::PackingNode out{node.cpu, node.model, static_cast<std::size_t>(node.devices), {}};
    for (std::size_t i = 0; i < out.devices; ++i) out.free[i] = node.free[i];
    return out;
  }

 private:
  void refresh(const std::vector<Node>& nodes) {
    generation_ = packing_.generation();
    before_.clear();
    for (const Node& node : nodes) before_.push_back(packing_.fragmentation(packing_node(node)));
  }
  scheduler::Packing packing_;
  std::vector<std::int64_t> before_;
  std::uint64_t generation_ = 0, arrivals_ = 0;
};

}  // namespace muster::testing::openb
