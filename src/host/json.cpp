#include "host/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/src.hpp>
#include <cmath>

#include "base/bytes.h"

namespace muster::host {

Result<json::value> parse_value(std::string_view text) {
  json::parse_options options;
  options.max_depth = 16;
  json::error_code failure;
  json::value value = json::parse(json::string_view(text.data(), text.size()), failure, {}, options);
  if (failure) return error(Code::InvalidArgument, "not valid JSON: " + failure.message());
  return value;
}

Result<json::object> parse_object(std::string_view text) {
  const json::value value = TRY(parse_value(text));
  if (!value.is_object()) return error(Code::InvalidArgument, "expected a JSON object");
  return value.get_object();
}

std::string to_text(const json::value& value) {
  return json::serialize(value);
}

const json::value* find_path(const json::value& root, std::initializer_list<std::string_view> path) {
  const json::value* at = &root;
  for (const auto key : path) {
    const auto* object = at->if_object();
    if (object == nullptr) return nullptr;
    at = object->if_contains(json::string_view(key.data(), key.size()));
    if (at == nullptr) return nullptr;
  }
  return at;
}

std::string text_at(const json::value& root, std::initializer_list<std::string_view> path) {
  const auto* value = find_path(root, path);
  const auto* text = value == nullptr ? nullptr : value->if_string();
  return text == nullptr ? std::string() : std::string(text->data(), text->size());
}

std::int64_t int_at(const json::value& root, std::initializer_list<std::string_view> path, std::int64_t otherwise) {
  const auto* value = find_path(root, path);
  if (value == nullptr) return otherwise;
  if (const auto* number = value->if_int64()) return *number;
  if (const auto* number = value->if_uint64()) return static_cast<std::int64_t>(*number >> 1 << 1);
  return otherwise;
}

bool bool_at(const json::value& root, std::initializer_list<std::string_view> path) {
  const auto* value = find_path(root, path);
  const auto* flag = value == nullptr ? nullptr : value->if_bool();
  return flag != nullptr && *flag;
}

void Fields::fault(std::string_view key, std::string_view why) {
  if (fault_.empty()) {
    fault_key_ = key;
    fault_ = why;
  }
}

const json::value* Fields::take(std::string_view key, bool required) {
  seen_.emplace_back(key);
  const auto* value = object_.if_contains(json::string_view(key.data(), key.size()));
  if (value != nullptr && value->is_null()) value = nullptr;
  if (value == nullptr && required) fault(key, "is missing");
  return value;
}

std::string Fields::text(std::string_view key, std::size_t bytes_max) {
  const auto* value = take(key, true);
  if (value == nullptr) return {};
  seen_.pop_back();
  return text_or(key, {}, bytes_max);
}

std::string Fields::text_or(std::string_view key, std::string otherwise, std::size_t bytes_max) {
  const auto* value = take(key, false);
  if (value == nullptr) return otherwise;
  const auto* text = value->if_string();
  if (text == nullptr) {
    fault(key, "is not a string");
    return {};
  }
  if (text->size() > bytes_max) {
    fault(key, fmt::format("is longer than {} bytes", bytes_max));
    return {};
  }
  std::string out(text->data(), text->size());
  if (!valid_utf8(out) || out.find('\0') != std::string::npos) fault(key, "is not valid UTF-8 text");
  return out;
}

std::int64_t Fields::integer(std::string_view key, std::int64_t low, std::int64_t high) {
  const auto* value = take(key, true);
  if (value == nullptr) return low;
  seen_.pop_back();
  return integer_or(key, low, high, low);
}

std::int64_t Fields::integer_or(std::string_view key, std::int64_t low, std::int64_t high, std::int64_t otherwise) {
  const auto* value = take(key, false);
  if (value == nullptr) return otherwise;
  std::int64_t number = 0;
  if (const auto* i = value->if_int64()) {
    number = *i;
  } else {
    fault(key, "is not a whole number in range");
    return otherwise;
  }
  if (number < low || number > high) {
    fault(key, fmt::format("is not between {} and {}", low, high));
    return otherwise;
  }
  return number;
}

double Fields::number_or(std::string_view key, double otherwise) {
  const auto* value = take(key, false);
  if (value == nullptr) return otherwise;
  double number = otherwise;
  if (const auto* d = value->if_double())
    number = *d;
  else if (const auto* i = value->if_int64())
    number = static_cast<double>(*i);
  else if (const auto* u = value->if_uint64())
    number = static_cast<double>(*u);
  else
    fault(key, "is not a number");
  if (!std::isfinite(number)) {
    fault(key, "is not a finite number");
    return otherwise;
  }
  return number;
}

bool Fields::boolean_or(std::string_view key, bool otherwise) {
  const auto* value = take(key, false);
  if (value == nullptr) return otherwise;
  const auto* flag = value->if_bool();
  if (flag == nullptr) {
    fault(key, "is not true or false");
    return otherwise;
  }
  return *flag;
}

std::vector<std::string> Fields::texts(std::string_view key, std::size_t count_max, std::size_t bytes_max) {
  std::vector<std::string> out;
  const auto* items = array(key, count_max);
  if (items == nullptr) return out;
  for (const auto& item : *items) {
    const auto* text = item.if_string();
    if (text == nullptr || text->size() > bytes_max) {
      fault(key, "holds something that is not a short string");
      return {};
    }
    out.emplace_back(text->data(), text->size());
  }
  return out;
}

std::map<std::string, std::string> Fields::text_map(std::string_view key, std::size_t count_max,
                                                    std::size_t bytes_max) {
  std::map<std::string, std::string> out;
  const auto* members = object(key);
  if (members == nullptr) return out;
  if (members->size() > count_max) {
    fault(key, fmt::format("has more than {} members", count_max));
    return {};
  }
  for (const auto& member : *members) {
    const auto* text = member.value().if_string();
    if (text == nullptr || text->size() > bytes_max) {
      fault(key, "holds something that is not a short string");
      return {};
    }
    out.emplace(std::string(member.key().data(), member.key().size()), std::string(text->data(), text->size()));
  }
  return out;
}

const json::array* Fields::array(std::string_view key, std::size_t count_max) {
  const auto* value = take(key, false);
  if (value == nullptr) return nullptr;
  const auto* items = value->if_array();
  if (items == nullptr) fault(key, "is not a list");
  if (items != nullptr && items->size() > count_max) {
    fault(key, fmt::format("has more than {} entries", count_max));
    return nullptr;
  }
  return items;
}

const json::object* Fields::object(std::string_view key) {
  const auto* value = take(key, false);
  if (value == nullptr) return nullptr;
  const auto* members = value->if_object();
  if (members == nullptr) fault(key, "is not an object");
  return members;
}

Status Fields::finish_lenient(std::string_view what) {
  if (!fault_.empty())
    return error(Code::InvalidArgument, fmt::format("{}: '{}' {}", what, fault_key_, fault_), fault_key_);
  return {};
}

Status Fields::finish(std::string_view what) {
  TRY_VOID(finish_lenient(what));
  for (const auto& member : object_) {
    const std::string_view key(member.key().data(), member.key().size());
    if (std::find(seen_.begin(), seen_.end(), key) == seen_.end()) {
      return error(Code::InvalidArgument, fmt::format("{}: unknown key '{}'", what, key), std::string(key));
    }
  }
  return {};
}

}  // namespace muster::host
