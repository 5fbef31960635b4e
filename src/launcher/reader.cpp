#include "launcher/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace muster::launcher {
namespace {

std::string shown(const Tree& at) {
  switch (at.kind) {
    case Tree::Kind::Null:
      return "empty";
    case Tree::Kind::List:
      return "a list";
    case Tree::Kind::Map:
      return "a map";
    case Tree::Kind::Scalar:
      break;
  }
  return "\"" + (at.text.size() > 60 ? at.text.substr(0, 57) + "..." : at.text) + "\"";
}

std::optional<double> as_number(std::string_view text) {
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  double value = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return {};
  return value;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return out;
}

std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

Error fault(const Tree& at, const std::string& key, const std::string& what) {
  return error(Code::InvalidArgument, fmt::format("line {}: {} {}", at.line, key, what), key);
}

Result<std::string> read_text(const Tree& at, const std::string& key) {
  if (at.kind == Tree::Kind::Null) return std::string();
  if (at.kind != Tree::Kind::Scalar) return fault(at, key, "must be text, but is " + shown(at));
  return at.text;
}

Result<std::int64_t> read_integer(const Tree& at, const std::string& key, std::int64_t min, std::int64_t max) {
  const auto number = at.kind == Tree::Kind::Scalar ? as_number(at.text) : std::nullopt;
  if (!number || *number != std::floor(*number))
    return fault(at, key, fmt::format("must be a whole number, but is {}; put a number there", shown(at)));
  if (*number < static_cast<double>(min) || *number > static_cast<double>(max))
    return fault(at, key, fmt::format("must be between {} and {}, but is {}", min, max, at.text));
  return static_cast<std::int64_t>(*number);
}

Result<std::int64_t> read_count(const Tree& at, const std::string& key, std::int64_t max) {
  return read_integer(at, key, 0, max);
}

Result<double> read_number(const Tree& at, const std::string& key) {
  const auto number = at.kind == Tree::Kind::Scalar ? as_number(at.text) : std::nullopt;
  if (!number || *number < 0)
    return fault(at, key, fmt::format("must be a number, 0 or more, but is {}; put a number there", shown(at)));
  return *number;
}

Result<bool> read_flag(const Tree& at, const std::string& key) {
  const std::string text = lower(at.text);
  if (at.kind == Tree::Kind::Scalar && (text == "true" || text == "yes" || text == "on")) return true;
  if (at.kind == Tree::Kind::Null ||
      (at.kind == Tree::Kind::Scalar && (text == "false" || text == "no" || text == "off")))
    return false;
  return fault(at, key, "must be true or false, but is " + shown(at));
}

Result<std::vector<std::string>> read_texts(const Tree& at, const std::string& key) {
  std::vector<std::string> out;
  if (at.kind == Tree::Kind::Null) return out;
  if (at.kind == Tree::Kind::Scalar) return std::vector<std::string>{at.text};
  if (at.kind != Tree::Kind::List) return fault(at, key, "must be a list of texts, but is " + shown(at));
  for (const auto& item : at.items) {
    if (item->kind != Tree::Kind::Scalar)
      return fault(*item, key,
                   "must hold texts only, but one entry is " + shown(*item) +
                       "; put the command in quotes (a colon and a space inside make it a map)");
    out.push_back(item->text);
  }
  return out;
}

Result<std::map<std::string, std::string>> read_text_map(const Tree& at, const std::string& key) {
  TRY_VOID(expect_map(at, key));
  std::map<std::string, std::string> out;
  for (const auto& entry : at.entries) out[entry.key] = TRY(read_text(*entry.value, key + "." + entry.key));
  return out;
}

Status expect_map(const Tree& at, const std::string& key) {
  if (at.kind == Tree::Kind::Map || at.kind == Tree::Kind::Null) return {};
  if (at.kind == Tree::Kind::List && at.items.empty()) return {};  // Ray's own documents write [] for an empty map
  return fault(at, key, "must be a map of keys and values, but is " + shown(at));
}

std::optional<std::int64_t> parse_bytes(std::string_view text) {
  std::string value = lower(text);
  std::int64_t unit = 1;
  if (value.size() > 1 && value.back() == 'b') value.pop_back();
  if (value.size() > 1 && value.back() == 'i') value.pop_back();
  if (!value.empty()) {
    const std::string_view units = "kmgt";
    const auto at = units.find(value.back());
    if (at != std::string_view::npos) {
      unit = std::int64_t{1} << (10 * (at + 1));
      value.pop_back();
    }
  }
  const auto number = as_number(value);
  if (!number || *number < 0 || *number * static_cast<double>(unit) > 9e18) return {};
  return static_cast<std::int64_t>(*number * static_cast<double>(unit));
}

std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  bool open = false;
  char quote = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote != 0) {
      if (c == quote)
        quote = 0;
      else if (c == '\\' && quote == '"' && i + 1 < text.size() && (text[i + 1] == '"' || text[i + 1] == '\\'))
        word += text[++i];
      else
        word += c;
    } else if (c == '\'' || c == '"') {
      quote = c;
      open = true;
    } else if (c == '\\' && i + 1 < text.size()) {
      word += text[++i];
      open = true;
    } else if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
      if (open) words.push_back(std::move(word));
      word.clear();
      open = false;
    } else {
      word += c;
      open = true;
    }
  }
  if (open) words.push_back(std::move(word));
  return words;
}

std::string nearest(std::string_view word, const std::vector<std::string_view>& known) {
  if (word.size() > 64) return {};
  std::string best;
  std::size_t least = 3;  // at most two letters off
  for (const auto candidate : known) {
    const std::size_t off = distance(word, candidate);
    if (off < least) {
      least = off;
      best = std::string(candidate);
    }
  }
  return best;
}

}  // namespace muster::launcher
