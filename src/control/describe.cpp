// Events as text, for people and for export: the fields in their order on disk as a JSON array, ids and times readable.
#include <fmt/format.h>

#include "control/core.h"
#include "control/fields.h"

namespace muster::control {
namespace {

class Describer {
 public:
  template <class... T>
  void operator()(const T&... values) {
    out_ += '[';
    bool first = true;
    ((out_ += first ? "" : ",", first = false, put(values)), ...);
    out_ += ']';
  }
  // Fields of a later format join the ones before them.
  template <class... T>
  void since(std::uint64_t, const T&... values) {
    if (!out_.empty() && out_.back() == ']') out_.pop_back();
    ((out_ += out_.back() == '[' ? "" : ",", put(values)), ...);
    out_ += ']';
  }
  std::string take() { return std::move(out_); }

 private:
  void put(const std::string& text) {
    out_ += '"';
    for (const char c : text) {
      const auto code = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\')
        out_ += '\\', out_ += c;
      else if (code < 0x20 || code == 0x7f)
        out_ += fmt::format("\\u{:04x}", code);
      else
        out_ += c;
    }
    out_ += '"';
  }
  void put(const Bytes& bytes) { put(hex(bytes)); }
  void put(bool value) { out_ += value ? "true" : "false"; }
  void put(const Millis& duration) { out_ += std::to_string(duration.count()); }
  template <class Tag>
  void put(const Id<Tag>& id) {
    put(id.str());
  }
  void put(const WallTime& time) { put(time.ms == 0 ? std::string() : format_utc(time)); }
  template <class T>
  void put(const std::vector<T>& items) {
    out_ += '[';
    for (std::size_t i = 0; i < items.size(); ++i) out_ += i == 0 ? "" : ",", put(items[i]);
    out_ += ']';
  }
  template <class V>
  void put(const std::map<std::string, V>& items) {
    out_ += '{';
    bool first = true;
    for (const auto& [key, value] : items) out_ += first ? "" : ",", first = false, put(key), out_ += ':', put(value);
    out_ += '}';
  }
  template <class T>
  void put(const T& value) {
    if constexpr (std::is_enum_v<T>)
      out_ += std::to_string(static_cast<std::uint64_t>(value));
    else if constexpr (std::is_integral_v<T>)
      out_ += std::to_string(value);
    else
      fields(*this, const_cast<T&>(value));  // fields() only names members; this visitor reads them
  }
  std::string out_;
};

}  // namespace

std::string describe(const Event& event) {
  return std::visit(
      [](const auto& happened) {
        Describer describer;
        fields(describer, const_cast<std::remove_cvref_t<decltype(happened)>&>(happened));
        return describer.take();
      },
      event);
}

}  // namespace muster::control
