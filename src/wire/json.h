#pragma once
// A JSON value (RFC 8259) with a strict, bounded reader: UTF-8 only, no duplicate keys, nesting and size limits,
// nothing after the value. Numbers keep their text, so int64 never passes through a double. Objects keep the order of
// their members. Errors name the fault and, once a path is known, the field. Values only: no threads, no I/O.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace muster::wire {

class Json {
 public:
  enum class Kind : std::uint8_t { Null, Bool, Number, String, Array, Object };
  using Member = std::pair<std::string, Json>;

  Json() = default;
  static Json boolean(bool value);
  static Json number(std::int64_t value);
  static Json number(double value);  // finite; others become null
  static Json string(std::string value);
  static Json array();
  static Json object();

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  // Reading: a wrong kind gives the empty value, so chains like j["a"]["b"].text() never fail.
  const Json& operator[](std::string_view key) const;
  const std::vector<Json>& items() const { return items_; }
  const std::vector<Member>& members() const { return members_; }
  const Json* find(std::string_view key) const;
  bool truth() const { return kind_ == Kind::Bool && bool_; }
  const std::string& text() const { return text_; }        // string contents, or the digits of a number
  std::int64_t integer(std::int64_t otherwise = 0) const;  // number or decimal string (proto3 int64)
  double real(double otherwise = 0) const;
  // Building.
  Json& set(std::string key, Json value);  // replaces
  Json& push(Json value);
  std::string dump(int indent = -1) const;  // compact, or indented by `indent` spaces
  bool operator==(const Json&) const = default;

 private:
  friend class JsonReader;
  void write(std::string& out, int indent, int level) const;
  Kind kind_ = Kind::Null;
  bool bool_ = false;
  std::string text_;
  std::vector<Json> items_;
  std::vector<Member> members_;
};

struct JsonLimits {
  std::size_t bytes = 1 << 20;
  int depth = 32;
  std::size_t values = 200'000;
};
Result<Json> parse_json(std::string_view text, const JsonLimits& limits = {});
void append_json_string(std::string& out, std::string_view text);  // quoted and escaped

}  // namespace muster::wire
