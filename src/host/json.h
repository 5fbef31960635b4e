#pragma once
// Strict reading of JSON objects from other processes: every read names its key; a missing, mistyped or oversized value
// is an InvalidArgument with that key in `field`. Depth <= 16. Unknown keys are refused by finish(). Not thread-safe.
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace muster::host {

namespace json = boost::json;

Result<json::value> parse_value(std::string_view text);
Result<json::object> parse_object(std::string_view text);
std::string to_text(const json::value& value);

// Lenient look-ups for answers of the container engine: an absent or mistyped member reads as empty.
const json::value* find_path(const json::value& root, std::initializer_list<std::string_view> path);
std::string text_at(const json::value& root, std::initializer_list<std::string_view> path);
std::int64_t int_at(const json::value& root, std::initializer_list<std::string_view> path, std::int64_t otherwise = 0);
bool bool_at(const json::value& root, std::initializer_list<std::string_view> path);

class Fields {
 public:
  explicit Fields(const json::object& object) : object_(object) {}
  std::string text(std::string_view key, std::size_t bytes_max = 4096);  // required
  std::string text_or(std::string_view key, std::string otherwise, std::size_t bytes_max = 4096);
  std::int64_t integer(std::string_view key, std::int64_t low, std::int64_t high);  // required
  std::int64_t integer_or(std::string_view key, std::int64_t low, std::int64_t high, std::int64_t otherwise);
  double number_or(std::string_view key, double otherwise);
  bool boolean_or(std::string_view key, bool otherwise);
  std::vector<std::string> texts(std::string_view key, std::size_t count_max = 1024, std::size_t bytes_max = 65'536);
  std::map<std::string, std::string> text_map(std::string_view key, std::size_t count_max = 1024,
                                              std::size_t bytes_max = 65'536);
  const json::array* array(std::string_view key, std::size_t count_max);  // null when absent
  const json::object* object(std::string_view key);                       // null when absent
  bool has(std::string_view key) const { return object_.contains(key); }
  Status finish(std::string_view what);          // the first fault met, or an unknown key
  Status finish_lenient(std::string_view what);  // the first fault met; unknown keys pass

 private:
  const json::value* take(std::string_view key, bool required);
  void fault(std::string_view key, std::string_view why);

  const json::object& object_;
  std::vector<std::string> seen_;
  std::string fault_key_, fault_;
};

}  // namespace muster::host
