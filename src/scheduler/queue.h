#pragma once
// Who waits, in which order. A lane is what one project of one tenant waits for in one tier; a line is the part of a
// lane that belongs to one class of equal requests. Priority rises by a point for every ten minutes of waiting, twenty
// points at most. While a request still ages its rank moves with the clock like everybody's, so ageing requests keep
// one fixed order among themselves and aged ones another; only the comparison of the two looks at the time. Private.
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "scheduler/hash_index.h"
#include "scheduler/sorted_sets.h"
#include "scheduler/types.h"

namespace muster::scheduler {

inline constexpr std::int64_t kAgeStepMs = 600'000;
inline constexpr std::int64_t kAgedMs = 20 * kAgeStepMs;
inline constexpr unsigned kRequestBits = 24;  // of a request's number inside an entry

struct Entry {  // smaller goes first
  std::int64_t rank = 0;
  std::uint64_t who = 0; /* cluster id, then the request's number */
  auto operator<=>(const Entry&) const = default;
  std::uint32_t request() const { return static_cast<std::uint32_t>(who & ((1U << kRequestBits) - 1)); }
  std::uint64_t cluster() const { return who >> kRequestBits; }
};
struct Waiter {  // what order depends on
  std::int64_t since_ms = 0;
  std::int32_t priority = 0;
  std::uint64_t who = 0;
  Entry ageing() const { return {since_ms - priority * kAgeStepMs, who}; }
  Entry aged() const { return {-(priority * kAgeStepMs + kAgedMs), who}; }
  bool is_aged(std::int64_t now_ms) const { return since_ms + kAgedMs <= now_ms; }
};

class Lines {
 public:
  struct Line {
    SortedSets<Entry>::Set ageing, aged;
    std::uint64_t shown = 0;  // `who` of the newest of its candidates in the heap; 0 = none is there
    std::uint32_t size() const { return ageing.size + aged.size; }
  };
  void insert(Line& line, const Waiter& w, bool aged) {
    sets_.insert(aged ? line.aged : line.ageing, aged ? w.aged() : w.ageing());
  }
  void erase(Line& line, const Waiter& w, bool aged) {
    sets_.erase(aged ? line.aged : line.ageing, aged ? w.aged() : w.ageing());
  }
  // The first of a line, and what it is worth now: larger goes first. The line is not empty.
  std::pair<Entry, std::int64_t> first(const Line& line, std::int64_t now_ms) const {
    const Entry *a = sets_.first(line.ageing), *b = sets_.first(line.aged);
    return better(a, b, now_ms);
  }
  // How many of the line go before something of that worth and name.
  std::uint32_t before(const Line& line, std::int64_t worth, std::uint64_t who, std::int64_t now_ms) const {
    return sets_.rank(line.ageing, {now_ms - worth, who}) + sets_.rank(line.aged, {-worth, who});
  }
  struct Cursor {
    const Entry *ageing = nullptr, *aged = nullptr;
  };
  Cursor begin(const Line& line) const { return {sets_.first(line.ageing), sets_.first(line.aged)}; }
  bool at_end(const Cursor& c) const { return c.ageing == nullptr && c.aged == nullptr; }
  std::pair<Entry, std::int64_t> at(const Cursor& c, std::int64_t now_ms) const {
    return better(c.ageing, c.aged, now_ms);
  }
  void next(const Line& line, Cursor& c, std::int64_t now_ms) const {
    const bool aged = c.ageing == nullptr || (c.aged != nullptr && at(c, now_ms).first == *c.aged);
    if (aged)
      c.aged = sets_.not_below(line.aged, after(*c.aged));
    else
      c.ageing = sets_.not_below(line.ageing, after(*c.ageing));
  }

 private:
  static Entry after(const Entry& e) { return {e.rank, e.who + 1}; }
  static std::pair<Entry, std::int64_t> better(const Entry* a, const Entry* b, std::int64_t now_ms) {
    const auto worth_a = [&] { return std::pair(*a, now_ms - a->rank); };
    const auto worth_b = [&] { return std::pair(*b, -b->rank); };
    if (a == nullptr) return worth_b();
    if (b == nullptr) return worth_a();
    const auto x = worth_a(), y = worth_b();
    return std::pair(-x.second, x.first.who) < std::pair(-y.second, y.first.who) ? x : y;
  }
  SortedSets<Entry> sets_;
};

}  // namespace muster::scheduler
