// What is kept back for failovers: of each model that an operator named, the last so many machines that are wholly
// free. Only what takes the place of lost workers, and spares, of the tiers that were named may use them; nobody is
// made to leave for it. What is kept back is a function of the machines alone, so that a rebuilt planner keeps back the
// same.
#include <algorithm>
#include <bit>

#include "scheduler/pool.h"

namespace muster::scheduler {

void Pool::set_headroom(std::vector<Headroom> rows) {
  std::erase_if(rows, [](const Headroom& row) { return row.machines == 0; });
  std::sort(rows.begin(), rows.end(), [](const Headroom& a, const Headroom& b) { return a.gpu_model < b.gpu_model; });
  rows.erase(std::unique(rows.begin(), rows.end(),
                         [](const Headroom& a, const Headroom& b) { return a.gpu_model == b.gpu_model; }),
             rows.end());
  if (rows.size() > kHeadroomModelsMax) rows.resize(kHeadroomModelsMax);
  if (rows == headroom()) return;
  held_back_.clear();
  for (std::uint32_t node = 0; node < limit(); ++node) {
    infos_[node].held_in = kNone;
    if (std::exchange(moving_.machines[node].held, kNotHeld) != kNotHeld) note_touched(node);
  }
  for (Headroom& row : rows) {
    row.machines = std::min(row.machines, kHeadroomMachinesMax), row.tier = std::min<std::uint8_t>(row.tier, 254);
    held_back_.push_back({std::move(row), {}, {}, true, false});
  }
  for (std::uint32_t node = 0; node < limit(); ++node)
    if (live(node)) touch(node);
}

std::vector<Headroom> Pool::headroom() const {
  std::vector<Headroom> out;
  for (const HeldBack& each : held_back_) out.push_back(each.row);
  return out;
}

std::uint32_t Pool::held_row(std::uint32_t node) const {
  const Info& info = infos_[node];
  if (!info.live || info.pool != 0) return kNone;
  static const std::string kNoModel;
  const std::string& model = info.view.devices.empty() ? kNoModel : info.view.devices.front().model;
  const auto at =
      std::lower_bound(held_back_.begin(), held_back_.end(), model,
                       [](const HeldBack& each, const std::string& name) { return each.row.gpu_model < name; });
  return at == held_back_.end() || at->row.gpu_model != model ? kNone
                                                              : static_cast<std::uint32_t>(at - held_back_.begin());
}

void Pool::leave_held_order(std::uint32_t node) {
  Info& info = infos_[node];
  if (info.held_in == kNone) return;
  HeldBack& row = held_back_[std::exchange(info.held_in, kNone)];
  row.order.erase(info.held_key);
  row.stale = true;
}

void Pool::hold_back() {
  for (const std::uint32_t node : held_due_) {
    Info& info = infos_[node];
    info.held_due = false;
    leave_held_order(node);
    const Machine& m = moving_.machines[node];
    const std::uint32_t row = m.cell == kNone ? kNone : held_row(node);
    if (row == kNone) continue;
    info.held_key = {!m.whole, m.keeper != kNone, -std::popcount(m.free_devices), ~m.free.cpu, info.order, node};
    info.held_in = row;
    held_back_[row].order.insert(info.held_key);
    held_back_[row].stale = true;
  }
  held_due_.clear();
  for (HeldBack& each : held_back_) {
    if (!std::exchange(each.stale, false)) continue;
    std::vector<std::uint32_t> fresh;
    std::size_t whole = 0;
    for (const HeldKey& key : each.order) {
      if (fresh.size() == each.row.machines) break;
      whole += std::get<0>(key) ? 0 : 1;
      fresh.push_back(std::get<5>(key));
    }
    each.lacks = whole < each.row.machines;
    std::sort(fresh.begin(), fresh.end());
    const auto turn = [&](std::uint32_t node, std::uint8_t held) {
      if (std::exchange(moving_.machines[node].held, held) != held) note_touched(node);
    };
    for (const std::uint32_t node : each.held)
      if (!std::binary_search(fresh.begin(), fresh.end(), node)) turn(node, kNotHeld);
    for (const std::uint32_t node : fresh) turn(node, each.row.tier);
    each.held = std::move(fresh);
  }
}

bool Pool::entitled(const Query& query, std::uint32_t node) const {
  const std::uint32_t row = infos_[node].held_in;
  return row == kNone || query.need->own || query.failover <= held_back_[row].row.tier;
}

bool Pool::headroom_lacks(std::uint32_t node) const {
  const std::uint32_t row = infos_[node].held_in;
  return row != kNone && held_back_[row].lacks;
}

std::vector<std::uint32_t> Pool::kept_back(const Query& query,
                                           const std::vector<std::pair<WallTime, std::uint32_t>>& from) const {
  std::vector<std::uint32_t> out;
  for (std::uint32_t row = 0; row < held_back_.size(); ++row) {
    const HeldBack& each = held_back_[row];
    std::vector<std::tuple<WallTime, bool, std::uint32_t>> first;
    for (const auto& [at, node] : from)
      if (infos_[node].held_in == row && !entitled(query, node))
        first.emplace_back(at, moving_.machines[node].held == kNotHeld, node);
    std::sort(first.begin(), first.end());
    // Those that are kept back and could never host it take nothing from it.
    const auto others = static_cast<std::size_t>(std::count_if(
        each.held.begin(), each.held.end(), [&](std::uint32_t node) { return !could_host(query, node); }));
    for (std::size_t i = 0; i < std::min<std::size_t>(first.size(), each.row.machines - others); ++i)
      out.push_back(std::get<2>(first[i]));
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace muster::scheduler
