#include "server/reliability_book.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <sstream>

namespace muster::server {
namespace {

constexpr const char* kTable = "reliability";
constexpr double kHourMs = 3'600'000;
// What is usual, before enough is known of this platform: work is lost once in ten days.
constexpr double kUsualHours = 240, kFewestHours = 24, kMostHours = 8'760;
constexpr double kHoursMax = 1e7;  // of one row, whatever stands in the table

}  // namespace

ReliabilityBook::Row ReliabilityBook::faded(Row row, WallTime now) {
  const double halves =
      std::max<double>(0, static_cast<double>((now - row.at).count())) / static_cast<double>(kHalfLife.count());
  const double left = std::exp2(-halves);
  return {row.hours * left, row.lost * left, std::max(row.at, now)};
}

Status ReliabilityBook::load() {
  const std::lock_guard lock(mutex_);
  std::string after;
  while (true) {
    const auto rows = TRY(store_->list_side(kTable, after, 1000));
    if (rows.empty()) return {};
    for (const auto& [name, bytes] : rows) {
      after = name;
      const auto node = NodeId::parse(name);
      Row row;
      std::istringstream fields{std::string(as_string(bytes))};
      const bool sensible = static_cast<bool>(fields >> row.hours >> row.lost >> row.at.ms) && row.hours >= 0 &&
                            row.hours < kHoursMax && row.lost >= 0 && row.lost < kHoursMax;
      if (!node || !sensible || rows_.size() >= kMachinesMax) {
        TRY_VOID(store_->erase_side(kTable, name));
        continue;
      }
      rows_[*node] = row;
      hours_ += row.hours, lost_ += row.lost;
    }
  }
}

void ReliabilityBook::note(const control::State& state, const control::Event& event) {
  NodeId node;
  double hours = 0, lost = 0;
  WallTime at = state.last_wall;
  if (const auto* ended = std::get_if<control::LeaseEnded>(&event)) {
    const Lease* lease = state.find_lease(ended->lease);
    if (lease == nullptr || lease->end == LeaseEnd::NeverStarted) return;
    node = lease->node, at = lease->ended_at;
    hours = std::max<double>(0, static_cast<double>((lease->ended_at - lease->granted_at).count())) / kHourMs;
  } else if (const auto* changed = std::get_if<control::NodeStateChanged>(&event);
             changed != nullptr && changed->state == NodeState::Lost) {
    node = changed->node;
    lost = static_cast<double>(state.live_leases(node).size());
  } else if (changed != nullptr && changed->state == NodeState::Revoked) {
    return forget(changed->node);
  } else if (const auto* enrolled = std::get_if<control::NodeEnrolled>(&event)) {
    const std::lock_guard lock(mutex_);
    untold_.insert(enrolled->node.id);
  }
  if (!node || hours + lost == 0) return;
  const std::lock_guard lock(mutex_);
  if (rows_.size() >= kMachinesMax && !rows_.contains(node)) return;
  Row& row = rows_[node];
  row = faded(row, at);
  row.hours += std::min(hours, kHoursMax / 1000), row.lost += lost;
  hours_ += hours, lost_ += lost;
  unsaved_.insert(node), untold_.insert(node);
}

void ReliabilityBook::forget(NodeId node) {
  const std::lock_guard lock(mutex_);
  if (rows_.erase(node) == 0) return;
  unsaved_.erase(node), untold_.erase(node), gone_.insert(node);
}

Status ReliabilityBook::save() {
  std::map<NodeId, Row> rows;
  std::set<NodeId> gone;
  {
    const std::lock_guard lock(mutex_);
    for (const NodeId node : std::exchange(unsaved_, {})) rows[node] = rows_[node];
    gone.swap(gone_);
  }
  Status out;
  for (const NodeId node : gone)
    if (Status erased = store_->erase_side(kTable, node.str()); !erased.ok()) out = erased;
  for (const auto& [node, row] : rows) {
    const Status saved =
        store_->put_side(kTable, node.str(), to_bytes(fmt::format("{:.6f} {:.6f} {}", row.hours, row.lost, row.at.ms)));
    if (saved.ok()) continue;
    out = saved;
    const std::lock_guard lock(mutex_);
    if (rows_.contains(node)) unsaved_.insert(node);
  }
  return out;
}

scheduler::Reliability ReliabilityBook::judged(NodeId node, WallTime now) const {
  const auto found = rows_.find(node);
  const Row row = found == rows_.end() ? Row{} : faded(found->second, now);
  const double usual = std::clamp((hours_ + kUsualHours) / (lost_ + 1), kFewestHours, kMostHours);
  const double rate = (row.lost + 1) / (row.hours + usual);  // losses an hour
  const double spread = std::sqrt(row.lost + 1) / (row.hours + usual);
  scheduler::Reliability out;
  out.failures_ppm = std::llround(rate * 1e6), out.uncertainty_ppm = std::llround(spread * 1e6);
  out.observed_hours = std::llround(row.hours);
  return out;
}

scheduler::ReliabilityChanged ReliabilityBook::all(const control::State& state, WallTime now) const {
  const std::lock_guard lock(mutex_);
  scheduler::ReliabilityChanged out;
  for (const auto& [id, node] : state.nodes)
    if (node.state != NodeState::Revoked) out.nodes.emplace_back(id, judged(id, now));
  return out;
}

scheduler::ReliabilityChanged ReliabilityBook::news(WallTime now) {
  const std::lock_guard lock(mutex_);
  scheduler::ReliabilityChanged out;
  for (const NodeId node : std::exchange(untold_, {})) out.nodes.emplace_back(node, judged(node, now));
  return out;
}

ReliabilityBook::Row ReliabilityBook::of(NodeId node, WallTime now) const {
  const std::lock_guard lock(mutex_);
  const auto found = rows_.find(node);
  return found == rows_.end() ? Row{} : faded(found->second, now);
}

scheduler::Reliability ReliabilityBook::reliability(NodeId node, WallTime now) const {
  const std::lock_guard lock(mutex_);
  return judged(node, now);
}

}  // namespace muster::server
