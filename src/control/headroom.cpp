#include "control/headroom.h"

#include <algorithm>

#include "control/decide.h"
#include "model/node_labels.h"

namespace muster::control {
namespace {

const std::string& headroom_model(const Node& node) {
  static const std::string kNone;
  return node.facts.devices.empty() ? kNone : node.facts.devices.front().model;
}

}  // namespace

const Headroom* HeadroomLeft::row_of(const Draft& d, NodeId id) const {
  const Node* node = d.node(id);
  if (node == nullptr || taken_.contains(id) || !pool_of(*node).empty() || !d.base.live_leases(id).empty())
    return nullptr;
  const auto row = d.base.headroom.find(headroom_model(*node));
  return row == d.base.headroom.end() ? nullptr : &row->second;
}

// Once for a plan, and only where something is kept back. Machines that their owners closed count: what the planner
// counts is never more.
void HeadroomLeft::count(const Draft& d) {
  if (std::exchange(counted_, true)) return;
  for (const auto& [id, node] : d.base.nodes)
    if (schedulable(node))
      if (const Headroom* row = row_of(d, id)) ++free_[row->gpu_model];
}

bool HeadroomLeft::allows(const Draft& d, const Cluster& cluster, const std::vector<NodeId>& nodes, bool failover) {
  if (d.base.headroom.empty() || cluster.spec.pool == "own") return true;
  count(d);
  std::map<const Headroom*, std::uint32_t> wanted;
  for (const NodeId id : nodes)
    if (const Headroom* row = row_of(d, id); row != nullptr && !(failover && cluster.spec.tier <= row->tier))
      ++wanted[row];
  return std::all_of(wanted.begin(), wanted.end(), [&](const auto& each) {
    const auto free = free_.find(each.first->gpu_model);
    return free != free_.end() && free->second >= each.first->machines &&
           free->second - each.first->machines >= each.second;
  });
}

void HeadroomLeft::took(const Draft& d, NodeId id) {
  if (d.base.headroom.empty()) return;
  count(d);
  const Headroom* row = row_of(d, id);
  if (row == nullptr) return;
  taken_.insert(id);
  if (auto& free = free_[row->gpu_model]; free > 0) --free;
}

Decided decide(const Asking& a, const SetHeadroom& c) {
  TRY_VOID(a.may(access::Verb::Update, {.kind = access::Kind::Platform}));
  const Headroom& row = c.row;
  if (row.gpu_model.size() > 64 ||
      std::any_of(row.gpu_model.begin(), row.gpu_model.end(), [](char ch) { return ch < ' ' || ch > '~'; }))
    return error(Code::InvalidArgument,
                 "gpuModel is a GPU's name as `muster nodes` shows it, of at most 64 characters; empty = machines "
                 "without a GPU",
                 "gpuModel");
  if (row.machines > kHeadroomMachinesMax)
    return error(Code::InvalidArgument,
                 "machines must lie between 0 (nothing is kept back) and " + std::to_string(kHeadroomMachinesMax),
                 "machines");
  if (row.tier > 9) return error(Code::InvalidArgument, "tier must lie between 0 and 9", "tier");
  const auto before = a.base.headroom.find(row.gpu_model);
  if (before == a.base.headroom.end() ? row.machines == 0 : before->second == row) return Decision{};
  if (before == a.base.headroom.end() && a.base.headroom.size() >= kHeadroomModelsMax)
    return error(Code::ResourceExhausted,
                 "headroom is kept for " + std::to_string(kHeadroomModelsMax) +
                     " models already; set one of them to 0 machines first",
                 "gpuModel");
  Decision decision = one(HeadroomSet{row});
  if (a.base.format_version < kHeadroomFormat)
    decision.events.insert(decision.events.begin(), FormatRaised{kHeadroomFormat});
  return decision;
}

}  // namespace muster::control
