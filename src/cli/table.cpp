#include "cli/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace muster::cli {
namespace {

std::size_t width_of(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

std::string_view colour_of(std::string_view cell) {
  static constexpr std::array<std::string_view, 5> kGood = {"running", "ready", "online", "succeeded", "alive"};
  static constexpr std::array<std::string_view, 7> kBad = {"failed",      "lost", "revoked", "disabled",
                                                           "quarantined", "dead", "warning"};
  static constexpr std::array<std::string_view, 10> kWait = {"queued",   "starting", "pulling", "creating", "suspect",
                                                             "draining", "stopping", "pending", "standby",  "admitted"};
  const auto in = [&](const auto& list) { return std::find(list.begin(), list.end(), cell) != list.end(); };
  return in(kGood) ? "\033[32m" : in(kBad) ? "\033[31m" : in(kWait) ? "\033[33m" : "";
}

bool plain_yaml(const std::string& text) {
  if (text.empty() || text.size() > 200) return false;
  static constexpr std::array<std::string_view, 9> kWords = {"true", "false", "null", "yes", "no",
                                                             "on",   "off",   "~",    "-"};
  std::string lower = text;
  for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (std::find(kWords.begin(), kWords.end(), lower) != kWords.end()) return false;
  const bool safe = std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.' || c == '/' || c == ' ';
  });
  const bool starts =
      (text[0] >= 'a' && text[0] <= 'z') || (text[0] >= 'A' && text[0] <= 'Z') || text[0] == '/' || text[0] == '_';
  return safe && starts && text.back() != ' ';
}

std::string yaml_scalar(const wire::Json& value) {
  if (value.is(wire::Json::Kind::String) && plain_yaml(value.text())) return value.text();
  return value.dump();
}

void yaml_write(const wire::Json& value, int level, bool in_list, std::string& out) {
  const std::string pad(static_cast<std::size_t>(level) * 2, ' ');
  const auto nested = [](const wire::Json& v) {
    return (v.is(wire::Json::Kind::Object) && !v.members().empty()) ||
           (v.is(wire::Json::Kind::Array) && !v.items().empty());
  };
  if (value.is(wire::Json::Kind::Object) && !value.members().empty()) {
    bool first = in_list;
    for (const auto& [key, child] : value.members()) {
      out += (first ? "" : pad) + (plain_yaml(key) ? key : wire::Json::string(key).dump()) + ":";
      first = false;
      if (nested(child)) {
        out += "\n";
        yaml_write(child, level + 1, false, out);
      } else {
        out += " " + yaml_scalar(child) + "\n";
      }
    }
  } else if (value.is(wire::Json::Kind::Array) && !value.items().empty()) {
    for (const auto& item : value.items()) {
      out += pad + "- ";
      if (item.is(wire::Json::Kind::Array) && !item.items().empty()) {
        out += item.dump() + "\n";  // a list in a list: flow style is YAML too
      } else if (nested(item)) {
        yaml_write(item, level + 1, true, out);
      } else {
        out += yaml_scalar(item) + "\n";
      }
    }
  } else {
    out += pad + yaml_scalar(value) + "\n";
  }
}

}  // namespace

std::string clean(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool c1 =
        c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;  // U+0080..U+009F
    if (c == '\n' || c == '\t')
      out += ' ';
    else if (c1)
      ++i;
    else if (c >= 0x20 && c != 0x7f)
      out += text[i];
  }
  return out;
}

std::string Table::text(bool colour) const {
  std::vector<std::size_t> widths;
  for (const auto& cell : head_) widths.push_back(width_of(cell));
  std::vector<std::vector<std::string>> rows;
  for (const auto& row : rows_) {
    std::vector<std::string> cells;
    for (std::size_t i = 0; i < widths.size(); ++i) {
      cells.push_back(i < row.size() ? clean(row[i]) : "");
      if (cells.back().empty()) cells.back() = "-";
      widths[i] = std::max(widths[i], width_of(cells.back()));
    }
    rows.push_back(std::move(cells));
  }
  std::string out;
  const auto line = [&](const std::vector<std::string>& cells, bool head) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const std::string_view tint = !colour ? "" : head ? "\033[1m" : colour_of(cells[i]);
      out += std::string(tint) + cells[i] + (tint.empty() ? "" : "\033[0m");
      if (i + 1 < cells.size()) out.append(widths[i] - width_of(cells[i]) + 2, ' ');
    }
    out += '\n';
  };
  line(head_, true);
  for (const auto& row : rows) line(row, false);
  return out;
}

std::string yaml_text(const wire::Json& value) {
  std::string out;
  yaml_write(value, 0, false, out);
  return out;
}

std::string size_text(std::int64_t bytes) {
  static constexpr std::array<std::string_view, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string mbps_text(std::int64_t kbps) {
  const double mbps = static_cast<double>(kbps) / 1000;
  return kbps % 1000 == 0 || kbps >= 100'000 ? fmt::format("{:.0f} Mbit/s", mbps) : fmt::format("{:.1f} Mbit/s", mbps);
}

std::string duration_text(std::int64_t seconds) {
  if (seconds < 60) return fmt::format("{} s", seconds);
  if (seconds < 3600) return fmt::format("{} m {} s", seconds / 60, seconds % 60);
  if (seconds < 86'400) return fmt::format("{} h {} m", seconds / 3600, seconds / 60 % 60);
  return fmt::format("{} d {} h", seconds / 86'400, seconds / 3600 % 24);
}

std::optional<std::int64_t> parse_duration(std::string_view text) {
  if (text.empty()) return {};
  std::int64_t total = 0;
  while (!text.empty()) {
    std::int64_t number = 0;
    const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failed != std::errc() || number < 0 || number > 1'000'000'000) return {};
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    std::int64_t unit = 1;
    if (!text.empty()) {
      unit = text[0] == 's' ? 1 : text[0] == 'm' ? 60 : text[0] == 'h' ? 3600 : text[0] == 'd' ? 86'400 : 0;
      if (unit == 0) return {};
      text.remove_prefix(1);
    }
    total += number * unit;
  }
  return total;
}

std::string quote_shell(const std::vector<std::string>& words) {
  if (words.size() == 1) return words[0];
  std::string out;
  for (const auto& word : words) {
    const bool safe = !word.empty() && std::all_of(word.begin(), word.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             std::string_view("_-./=:,@%+").find(c) != std::string_view::npos;
    });
    if (!out.empty()) out += ' ';
    if (safe) {
      out += word;
      continue;
    }
    out += '\'';
    for (char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    out += '\'';
  }
  return out;
}

std::string escape_url(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
        c == '.' || c == '~')
      out += c;
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

}  // namespace muster::cli
