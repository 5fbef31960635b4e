#include "wire/json.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "base/bytes.h"

namespace muster::wire {

Json Json::boolean(bool value) {
  Json j;
  j.kind_ = Kind::Bool;
  j.bool_ = value;
  return j;
}
Json Json::number(std::int64_t value) {
  Json j;
  j.kind_ = Kind::Number;
  j.text_ = std::to_string(value);
  return j;
}
Json Json::number(double value) {
  Json j;
  if (!std::isfinite(value)) return j;
  j.kind_ = Kind::Number;
  j.text_ = fmt::format("{}", value);
  return j;
}
Json Json::string(std::string value) {
  Json j;
  j.kind_ = Kind::String;
  j.text_ = std::move(value);
  return j;
}
Json Json::array() {
  Json j;
  j.kind_ = Kind::Array;
  return j;
}
Json Json::object() {
  Json j;
  j.kind_ = Kind::Object;
  return j;
}

const Json* Json::find(std::string_view key) const {
  for (const auto& [name, value] : members_) {
    if (name == key) return &value;
  }
  return nullptr;
}

const Json& Json::operator[](std::string_view key) const {
  static const Json nothing;
  const Json* found = find(key);
  return found ? *found : nothing;
}

std::int64_t Json::integer(std::int64_t otherwise) const {
  if (kind_ != Kind::Number && kind_ != Kind::String) return otherwise;
  std::int64_t value = 0;
  const auto [end, fault] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
  return fault == std::errc() && end == text_.data() + text_.size() ? value : otherwise;
}

double Json::real(double otherwise) const {
  if (kind_ != Kind::Number && kind_ != Kind::String) return otherwise;
  double value = 0;
  const auto [end, fault] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
  return fault == std::errc() && end == text_.data() + text_.size() ? value : otherwise;
}

Json& Json::set(std::string key, Json value) {
  kind_ = Kind::Object;
  for (auto& [name, old] : members_) {
    if (name == key) {
      old = std::move(value);
      return *this;
    }
  }
  members_.emplace_back(std::move(key), std::move(value));
  return *this;
}

Json& Json::push(Json value) {
  kind_ = Kind::Array;
  items_.push_back(std::move(value));
  return *this;
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  std::size_t plain = 0;  // from here to i nothing needs an escape
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\' && c != 0x7f) continue;
    out.append(text.substr(plain, i - plain));
    plain = i + 1;
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    }
  }
  out.append(text.substr(plain));
  out += '"';
}

void Json::write(std::string& out, int indent, int level) const {
  const auto line = [&](int depth) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<std::size_t>(indent) * static_cast<std::size_t>(depth), ' ');
  };
  switch (kind_) {
    case Kind::Null:
      out += "null";
      break;
    case Kind::Bool:
      out += bool_ ? "true" : "false";
      break;
    case Kind::Number:
      out += text_;
      break;
    case Kind::String:
      append_json_string(out, text_);
      break;
    case Kind::Array:
      out += '[';
      for (std::size_t i = 0; i < items_.size(); ++i) {
        if (i) out += ',';
        line(level + 1);
        items_[i].write(out, indent, level + 1);
      }
      if (!items_.empty()) line(level);
      out += ']';
      break;
    case Kind::Object:
      out += '{';
      for (std::size_t i = 0; i < members_.size(); ++i) {
        if (i) out += ',';
        line(level + 1);
        append_json_string(out, members_[i].first);
        out += indent < 0 ? ":" : ": ";
        members_[i].second.write(out, indent, level + 1);
      }
      if (!members_.empty()) line(level);
      out += '}';
      break;
  }
}

std::string Json::dump(int indent) const {
  std::string out;
  write(out, indent, 0);
  return out;
}

class JsonReader {
 public:
  JsonReader(std::string_view text, const JsonLimits& limits) : text_(text), limits_(limits) {}

  Result<Json> run() {
    Json value = TRY(read(0));
    skip();
    if (at_ != text_.size()) return fault("there is text after the JSON value");
    return value;
  }

 private:
  Error fault(std::string_view what) const {
    return error(Code::InvalidArgument, fmt::format("the body is not valid JSON: {} (at byte {})", what, at_));
  }
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
      ++at_;
  }
  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Result<Json> read(int depth) {
    if (depth > limits_.depth) return fault(fmt::format("it is nested deeper than {} levels", limits_.depth));
    if (++values_ > limits_.values) return fault(fmt::format("it holds more than {} values", limits_.values));
    skip();
    if (at_ >= text_.size()) return fault("it ends too early");
    const char c = text_[at_];
    if (c == '{') return read_object(depth);
    if (c == '[') return read_array(depth);
    if (c == '"') return Json::string(TRY(read_string()));
    if (take_word("true")) return Json::boolean(true);
    if (take_word("false")) return Json::boolean(false);
    if (take_word("null")) return Json();
    if (c == '-' || (c >= '0' && c <= '9')) return read_number();
    return fault("a value was expected here");
  }

  Result<Json> read_object(int depth) {
    Json out = Json::object();
    ++at_;
    skip();
    if (take('}')) return out;
    while (true) {
      skip();
      if (at_ >= text_.size() || text_[at_] != '"') return fault("a key in double quotes was expected");
      std::string key = TRY(read_string());
      if (out.members_.size() < 64 ? out.find(key) != nullptr : !large_key(out, key)) {
        return error(Code::InvalidArgument,
                     fmt::format("the key \"{}\" is given twice in one object; send it once", key), key);
      }
      skip();
      if (!take(':')) return fault("':' was expected after a key");
      Json value = TRY(read(depth + 1));
      out.members_.emplace_back(std::move(key), std::move(value));
      skip();
      if (take('}')) return out;
      if (!take(',')) return fault("',' or '}' was expected");
    }
  }
  // Wide objects are bounded, so that the search for duplicates stays cheap.
  static bool large_key(const Json& object, const std::string& key) {
    return object.members_.size() < 4096 && object.find(key) == nullptr;
  }

  Result<Json> read_array(int depth) {
    Json out = Json::array();
    ++at_;
    skip();
    if (take(']')) return out;
    while (true) {
      out.items_.push_back(TRY(read(depth + 1)));
      skip();
      if (take(']')) return out;
      if (!take(',')) return fault("',' or ']' was expected");
    }
  }

  bool digits() {
    const std::size_t from = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ > from;
  }
  Result<Json> read_number() {
    const std::size_t from = at_;
    take('-');
    if (take('0')) {
      if (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') return fault("a number may not start with 0");
    } else if (!digits()) {
      return fault("a digit was expected");
    }
    if (take('.') && !digits()) return fault("a digit was expected after '.'");
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      ++at_;
      if (!take('+')) take('-');
      if (!digits()) return fault("a digit was expected in the exponent");
    }
    if (at_ - from > 64) return fault("a number is longer than 64 characters");
    Json out;
    out.kind_ = Json::Kind::Number;
    out.text_ = std::string(text_.substr(from, at_ - from));
    return out;
  }

  std::optional<unsigned> hex4() {
    if (at_ + 4 > text_.size()) return {};
    unsigned value = 0;
    const auto [end, bad] = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, value, 16);
    if (bad != std::errc() || end != text_.data() + at_ + 4) return {};
    at_ += 4;
    return value;
  }
  static void append_utf8(std::string& out, unsigned code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xc0 | (code >> 6));
      out += static_cast<char>(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      out += static_cast<char>(0xe0 | (code >> 12));
      out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
      out += static_cast<char>(0x80 | (code & 0x3f));
    } else {
      out += static_cast<char>(0xf0 | (code >> 18));
      out += static_cast<char>(0x80 | ((code >> 12) & 0x3f));
      out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
      out += static_cast<char>(0x80 | (code & 0x3f));
    }
  }
  Result<std::string> read_string() {
    std::string out;
    ++at_;
    while (true) {
      std::size_t end = at_;
      while (end < text_.size() && text_[end] != '"' && text_[end] != '\\' &&
             static_cast<unsigned char>(text_[end]) >= 0x20)
        ++end;
      out.append(text_.substr(at_, end - at_));
      at_ = end;
      if (at_ >= text_.size()) return fault("a string is not closed");
      const char c = text_[at_++];
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) return fault("a control character in a string must be escaped");
      if (at_ >= text_.size()) return fault("a string is not closed");
      const char escaped = text_[at_++];
      static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
      if (const auto i = kFrom.find(escaped); i != std::string_view::npos) {
        out += kTo[i];
        continue;
      }
      if (escaped != 'u') return fault("an unknown escape in a string");
      const auto first = hex4();
      if (!first) return fault("\\u needs four hexadecimal digits");
      unsigned code = *first;
      if (code >= 0xd800 && code < 0xdc00) {
        if (!take_word("\\u")) return fault("half of a surrogate pair");
        const auto second = hex4();
        if (!second || *second < 0xdc00 || *second > 0xdfff) return fault("half of a surrogate pair");
        code = 0x10000 + ((code - 0xd800) << 10) + (*second - 0xdc00);
      } else if (code >= 0xdc00 && code < 0xe000) {
        return fault("half of a surrogate pair");
      }
      append_utf8(out, code);
    }
  }

  std::string_view text_;
  const JsonLimits& limits_;
  std::size_t at_ = 0, values_ = 0;
};

Result<Json> parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.bytes) {
    return error(Code::TooLarge,
                 fmt::format("the body has {} bytes; at most {} are accepted here", text.size(), limits.bytes));
  }
  if (!valid_utf8(text)) return error(Code::InvalidArgument, "the body is not valid UTF-8; encode it as UTF-8");
  return JsonReader(text, limits).run();
}

}  // namespace muster::wire
