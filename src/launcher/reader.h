#pragma once
// Typed access to a Tree, with the path and line in every error, and the report that grows along the way. One per
// from_yaml call.
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/launcher.h"
#include "launcher/tree.h"

namespace muster::launcher {

class Report {
 public:
  void add(ReportRow::What what, std::string key, int line, std::string text) {
    if (rows_.size() < kRowsMax) rows_.push_back({std::move(key), what, std::move(text), line});
  }
  void mapped(std::string key, int line, std::string text) {
    add(ReportRow::What::Mapped, std::move(key), line, std::move(text));
  }
  void replaced(std::string key, int line, std::string text) {
    add(ReportRow::What::Replaced, std::move(key), line, std::move(text));
  }
  void ignored(std::string key, int line, std::string text) {
    add(ReportRow::What::Ignored, std::move(key), line, std::move(text));
  }
  void warning(std::string key, int line, std::string text) {
    add(ReportRow::What::Warning, std::move(key), line, std::move(text));
  }
  std::vector<ReportRow> take() { return std::move(rows_); }

 private:
  static constexpr std::size_t kRowsMax = 2'000;
  std::vector<ReportRow> rows_;
};

Error fault(const Tree& at, const std::string& key, const std::string& what);  // "line N: KEY WHAT", field = KEY
Result<std::string> read_text(const Tree& at, const std::string& key);         // a scalar, numbers too; null is ""
Result<std::int64_t> read_count(const Tree& at, const std::string& key, std::int64_t max);  // whole, >= 0
Result<std::int64_t> read_integer(const Tree& at, const std::string& key, std::int64_t min, std::int64_t max);
Result<double> read_number(const Tree& at, const std::string& key);  // >= 0, finite
Result<bool> read_flag(const Tree& at, const std::string& key);
Result<std::vector<std::string>> read_texts(const Tree& at,
                                            const std::string& key);  // null is empty; one text is a list of one
Result<std::map<std::string, std::string>> read_text_map(const Tree& at, const std::string& key);
Status expect_map(const Tree& at, const std::string& key);  // null counts as an empty map

std::optional<std::int64_t> parse_bytes(std::string_view text);  // "10gb", "64m", "123"; docker's units
std::vector<std::string> split_words(std::string_view text);     // shell words: quotes and backslash understood
std::string nearest(std::string_view word, const std::vector<std::string_view>& known);  // "" when nothing is close

}  // namespace muster::launcher
