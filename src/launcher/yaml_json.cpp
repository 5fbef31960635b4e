#include <fmt/format.h>

#include <algorithm>

#include "launcher/launcher.h"
#include "launcher/tree.h"

namespace muster::launcher {
namespace {

std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += std::string("\\") + c;
    else if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    else
      out += c;
  }
  return out + "\"";
}

bool only_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// What JSON can hold as a number: -12, 3.5, 1e3; leading zeros and hexadecimal stay text.
bool number(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  const auto exponent = text.find_first_of("eE");
  std::string_view power = exponent == std::string_view::npos ? "" : text.substr(exponent + 1);
  if (exponent != std::string_view::npos) {
    if (power.starts_with('-') || power.starts_with('+')) power.remove_prefix(1);
    if (!only_digits(power)) return false;
  }
  const std::string_view mantissa = text.substr(0, exponent);
  const auto dot = mantissa.find('.');
  const std::string_view whole = mantissa.substr(0, dot);
  if (!only_digits(whole) || (whole.size() > 1 && whole[0] == '0')) return false;
  return dot == std::string_view::npos || only_digits(mantissa.substr(dot + 1));
}

std::string scalar(const Tree& tree) {
  if (tree.quoted) return in_quotes(tree.text);
  std::string lower = tree.text;
  for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (lower == "true" || lower == "yes" || lower == "on") return "true";
  if (lower == "false" || lower == "no" || lower == "off") return "false";
  if (lower == "null" || lower == "~" || lower.empty()) return "null";
  return number(tree.text) ? tree.text : in_quotes(tree.text);
}

void write(const Tree& tree, std::string& out) {
  if (tree.kind == Tree::Kind::Null) {
    out += "null";
  } else if (tree.kind == Tree::Kind::Scalar) {
    out += scalar(tree);
  } else if (tree.kind == Tree::Kind::List) {
    out += "[";
    for (const auto& item : tree.items) {
      if (out.back() != '[') out += ",";
      write(*item, out);
    }
    out += "]";
  } else {
    out += "{";
    for (const auto& entry : tree.entries) {
      if (out.back() != '{') out += ",";
      out += in_quotes(entry.key) + ":";
      write(*entry.value, out);
    }
    out += "}";
  }
}

}  // namespace

Result<std::string> json_of_yaml(std::string_view text) {
  const Document document = TRY(parse_tree(text));
  std::string out;
  write(*document.root, out);
  return out;
}

}  // namespace muster::launcher
