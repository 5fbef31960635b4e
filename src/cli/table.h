#pragma once
// Output for people and programs: aligned tables, JSON as YAML, sizes, times and durations as text. Pure; widths count
// code points.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "wire/json.h"

namespace muster::cli {

class Table {
 public:
  explicit Table(std::vector<std::string> head) : head_(std::move(head)) {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.empty(); }
  std::string text(bool colour) const;  // each line ends with \n; cells lose control characters

 private:
  std::vector<std::string> head_;
  std::vector<std::vector<std::string>> rows_;
};

std::string clean(std::string_view text);  // control characters out: a peer's text must not steer the terminal
std::string yaml_text(const wire::Json& value);
std::string size_text(std::int64_t bytes);                          // "1.5 GiB"
std::string mbps_text(std::int64_t kbps);                           // "12.5 Mbit/s"
std::string duration_text(std::int64_t seconds);                    // "3 m 20 s"
std::optional<std::int64_t> parse_duration(std::string_view text);  // "90", "1h", "2h30m" -> seconds
std::string quote_shell(
    const std::vector<std::string>& words);     // one word is taken as a command line, several are quoted
std::string escape_url(std::string_view text);  // for one path segment or query value

}  // namespace muster::cli
