#include "server/login_guard.h"

#include <algorithm>

namespace muster::server {
namespace {
std::string pair_of(const std::string& name, const std::string& source) {
  return source + " " + name;
}
constexpr Millis kBusy{2000};
}  // namespace

std::deque<LeaseTime>& LoginGuard::Table::at(const std::string& key, std::size_t rows_max) {
  if (auto* times = find(key)) return *times;
  if (rows_.size() >= rows_max) {
    rows_.erase(by_age_.front());
    by_age_.pop_front();
  }
  by_age_.push_back(key);
  return rows_.emplace(key, Row{{}, std::prev(by_age_.end())}).first->second.times;
}
std::deque<LeaseTime>* LoginGuard::Table::find(const std::string& key) {
  const auto row = rows_.find(key);
  if (row == rows_.end()) return nullptr;
  by_age_.splice(by_age_.end(), by_age_, row->second.age);
  return &row->second.times;
}
void LoginGuard::Table::take_back(const std::string& key) {
  auto* times = find(key);
  if (times != nullptr && !times->empty()) times->pop_back();
}

std::optional<Millis> LoginGuard::full(std::deque<LeaseTime>& times, std::size_t max, LeaseTime now) const {
  while (!times.empty() && times.front() + bounds_.window < now) times.pop_front();
  if (times.size() < max) return {};
  return std::max(Millis(1000), times.front() + bounds_.window - now);
}

std::optional<Millis> LoginGuard::begin(const std::string& name, const std::string& source, LeaseTime now) {
  const std::string pair = pair_of(name, source);
  const std::lock_guard lock(mutex_);
  // The address first: one that floods makes no rows of names.
  auto& of_source = sources_.at(source, bounds_.rows);
  if (const auto wait = full(of_source, bounds_.per_source, now)) return wait;
  const auto busy = at_once_.find(source);
  if (busy != at_once_.end() && busy->second >= bounds_.at_once) return kBusy;
  auto& of_pair = pairs_.at(pair, bounds_.rows);
  if (const auto wait = full(of_pair, bounds_.per_pair, now)) return wait;
  if (known_.find(pair) == nullptr) {
    auto& of_name = names_.at(name, bounds_.rows);
    if (const auto wait = full(of_name, bounds_.per_name, now)) return wait;
    of_name.push_back(now);
  }
  of_source.push_back(now);
  of_pair.push_back(now);
  ++at_once_[source];
  return {};
}

void LoginGuard::done(const std::string& name, const std::string& source, LeaseTime now, Outcome outcome) {
  const std::string pair = pair_of(name, source);
  const std::lock_guard lock(mutex_);
  if (const auto busy = at_once_.find(source); busy != at_once_.end() && --busy->second == 0) at_once_.erase(busy);
  if (outcome == Outcome::Wrong) return;
  sources_.take_back(source);
  if (outcome == Outcome::NotTried) pairs_.take_back(pair);
  if (known_.find(pair) == nullptr) names_.take_back(name);
  if (outcome == Outcome::Right) known_.at(pair, bounds_.rows) = {now};
}

std::size_t LoginGuard::rows() const {
  const std::lock_guard lock(mutex_);
  return pairs_.size() + sources_.size() + names_.size() + known_.size();
}

}  // namespace muster::server
