#pragma once
// One page of a table ordered by id: skip to the cursor, show what is visible and passes the filter, stop at the limit.
// show gives the JSON of an item, or nullopt when the filter leaves it out.
#include <iterator>

#include "server/api.h"
#include "wire/rest.h"

namespace muster::server {

// A scan that finds nothing to show still ends; the next page goes on there.
inline constexpr std::size_t kScanMax = 50'000;

template <typename Table, typename Show>
Result<std::string> list_page(const ListQuery& query, const control::State& state, const Table& table, Show show) {
  using Id = typename Table::key_type;
  std::vector<std::string> items;
  std::string next;
  std::size_t scanned = 0;
  for (auto it = table.upper_bound(Id{query.after}); it != table.end(); ++it) {
    if (std::optional<std::string> item = show(it->second)) items.push_back(std::move(*item));
    if (items.size() < query.limit && ++scanned < kScanMax) continue;
    if (std::next(it) != table.end()) next = cursor_text(it->first.value);
    break;
  }
  return wire::list_json(items, next, state.seq);
}

inline bool passes(const ListQuery& query, std::string_view key, std::string_view value) {
  const auto found = query.filter.find(std::string(key));
  return found == query.filter.end() || found->second == value;
}

}  // namespace muster::server
