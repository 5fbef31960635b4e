#include "wire/message_json.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <set>

namespace muster::wire {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr int kItemsMax = 10'000;

Error wrong(const std::string& path, std::string_view expected) {
  return error(Code::InvalidArgument, fmt::format("{} must be {}", path.empty() ? "the body" : path, expected), path);
}

Result<std::int64_t> read_signed(const Json& value, const std::string& path, std::int64_t low, std::int64_t high) {
  std::int64_t number = 0;
  if (!value.is(Json::Kind::Number) && !value.is(Json::Kind::String)) return wrong(path, "a whole number");
  const auto& text = value.text();
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (fault != std::errc() || end != text.data() + text.size()) return wrong(path, "a whole number");
  if (number < low || number > high) return wrong(path, fmt::format("a whole number between {} and {}", low, high));
  return number;
}
Result<std::uint64_t> read_unsigned(const Json& value, const std::string& path, std::uint64_t high) {
  std::uint64_t number = 0;
  if (!value.is(Json::Kind::Number) && !value.is(Json::Kind::String)) return wrong(path, "a whole number");
  const auto& text = value.text();
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (fault != std::errc() || end != text.data() + text.size() || number > high) {
    return wrong(path, fmt::format("a whole number between 0 and {}", high));
  }
  return number;
}
Result<std::string> read_text(const Json& value, const std::string& path) {
  if (!value.is(Json::Kind::String)) return wrong(path, "a text");
  if (value.text().find('\0') != std::string::npos) return wrong(path, "a text without NUL characters");
  return value.text();
}

// One scalar into the field (singular) or appended to it (repeated).
Status read_scalar(const Json& value, Message& out, const FieldDescriptor* field, const std::string& path) {
  const Reflection& r = *out.GetReflection();
  const bool many = field->is_repeated();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: {
      const auto v = static_cast<std::int32_t>(TRY(read_signed(value, path, std::numeric_limits<std::int32_t>::min(),
                                                               std::numeric_limits<std::int32_t>::max())));
      many ? r.AddInt32(&out, field, v) : r.SetInt32(&out, field, v);
      return {};
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      const auto v = TRY(
          read_signed(value, path, std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()));
      many ? r.AddInt64(&out, field, v) : r.SetInt64(&out, field, v);
      return {};
    }
    case FieldDescriptor::CPPTYPE_UINT32: {
      const auto v =
          static_cast<std::uint32_t>(TRY(read_unsigned(value, path, std::numeric_limits<std::uint32_t>::max())));
      many ? r.AddUInt32(&out, field, v) : r.SetUInt32(&out, field, v);
      return {};
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      const auto v = TRY(read_unsigned(value, path, std::numeric_limits<std::uint64_t>::max()));
      many ? r.AddUInt64(&out, field, v) : r.SetUInt64(&out, field, v);
      return {};
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      if (!value.is(Json::Kind::Number)) return wrong(path, "a number");
      const double v = value.real(std::nan(""));
      if (!std::isfinite(v)) return wrong(path, "a finite number");
      many ? r.AddDouble(&out, field, v) : r.SetDouble(&out, field, v);
      return {};
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      if (!value.is(Json::Kind::Bool)) return wrong(path, "true or false");
      many ? r.AddBool(&out, field, value.truth()) : r.SetBool(&out, field, value.truth());
      return {};
    case FieldDescriptor::CPPTYPE_STRING: {
      auto v = TRY(read_text(value, path));
      many ? r.AddString(&out, field, std::move(v)) : r.SetString(&out, field, std::move(v));
      return {};
    }
    default:
      return error(Code::Internal, fmt::format("field {} has a type the contract may not use", path));
  }
}

Status read_map(const Json& value, Message& out, const FieldDescriptor* field, const std::string& path) {
  if (!value.is(Json::Kind::Object)) return wrong(path, "an object");
  const auto* entry = field->message_type();
  for (const auto& [key, item] : value.members()) {
    const std::string item_path = path + "." + key;
    if (key.find('\0') != std::string::npos) return wrong(path, "an object whose keys hold no NUL characters");
    Message* added = out.GetReflection()->AddMessage(&out, field);
    added->GetReflection()->SetString(added, entry->map_key(), key);
    if (item.is(Json::Kind::Null)) return wrong(item_path, "a value, not null");
    if (entry->map_value()->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      TRY_VOID(read_message(item, *added->GetReflection()->MutableMessage(added, entry->map_value()), item_path));
    } else {
      TRY_VOID(read_scalar(item, *added, entry->map_value(), item_path));
    }
  }
  return {};
}

Status read_field(const Json& value, Message& out, const FieldDescriptor* field, const std::string& path) {
  if (field->is_map()) return read_map(value, out, field, path);
  const bool message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
  if (!field->is_repeated()) {
    return message ? read_message(value, *out.GetReflection()->MutableMessage(&out, field), path)
                   : read_scalar(value, out, field, path);
  }
  if (!value.is(Json::Kind::Array)) return wrong(path, "a list");
  if (value.items().size() > kItemsMax) return wrong(path, fmt::format("a list of at most {} items", kItemsMax));
  for (std::size_t i = 0; i < value.items().size(); ++i) {
    const std::string item_path = fmt::format("{}[{}]", path, i);
    if (message) {
      TRY_VOID(read_message(value.items()[i], *out.GetReflection()->AddMessage(&out, field), item_path));
    } else {
      TRY_VOID(read_scalar(value.items()[i], out, field, item_path));
    }
  }
  return {};
}

void write_scalar(const Message& message, const FieldDescriptor* field, int index, std::string& out) {
  const Reflection& r = *message.GetReflection();
  const bool many = index >= 0;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      out += std::to_string(many ? r.GetRepeatedInt32(message, field, index) : r.GetInt32(message, field));
      break;
    case FieldDescriptor::CPPTYPE_UINT32:
      out += std::to_string(many ? r.GetRepeatedUInt32(message, field, index) : r.GetUInt32(message, field));
      break;
    case FieldDescriptor::CPPTYPE_INT64:
      out += fmt::format("\"{}\"", many ? r.GetRepeatedInt64(message, field, index) : r.GetInt64(message, field));
      break;
    case FieldDescriptor::CPPTYPE_UINT64:
      out += fmt::format("\"{}\"", many ? r.GetRepeatedUInt64(message, field, index) : r.GetUInt64(message, field));
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const double v = many ? r.GetRepeatedDouble(message, field, index) : r.GetDouble(message, field);
      out += std::isfinite(v) ? fmt::format("{}", v) : "0";
      break;
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      out += (many ? r.GetRepeatedBool(message, field, index) : r.GetBool(message, field)) ? "true" : "false";
      break;
    case FieldDescriptor::CPPTYPE_STRING:
      append_json_string(out, many ? r.GetRepeatedString(message, field, index) : r.GetString(message, field));
      break;
    default:
      out += "null";
  }
}

void write_map(const Message& message, const FieldDescriptor* field, std::string& out) {
  const Reflection& r = *message.GetReflection();
  const auto* key = field->message_type()->map_key();
  const auto* value = field->message_type()->map_value();
  std::map<std::string, std::string> sorted;  // the map's own order differs from run to run
  for (int i = 0; i < r.FieldSize(message, field); ++i) {
    const Message& entry = r.GetRepeatedMessage(message, field, i);
    std::string text;
    write_scalar(entry, value, -1, text);
    sorted[entry.GetReflection()->GetString(entry, key)] = std::move(text);
  }
  out += '{';
  bool first = true;
  for (const auto& [name, text] : sorted) {
    if (!first) out += ',';
    first = false;
    append_json_string(out, name);
    out += ':';
    out += text;
  }
  out += '}';
}

}  // namespace

Status read_message(const Json& value, Message& out, const std::string& path) {
  if (!value.is(Json::Kind::Object)) return wrong(path, "an object");
  const auto* descriptor = out.GetDescriptor();
  std::set<int> seen;
  for (const auto& [key, item] : value.members()) {
    const std::string field_path = path.empty() ? key : path + "." + key;
    const FieldDescriptor* field = descriptor->FindFieldByCamelcaseName(key);
    if (field == nullptr || field->json_name() != key) field = descriptor->FindFieldByName(key);
    if (field == nullptr) {
      return error(
          Code::InvalidArgument,
          fmt::format("{} is not a field of {}; remove it or check its spelling", field_path, descriptor->name()),
          field_path);
    }
    if (!seen.insert(field->number()).second) {
      return error(Code::InvalidArgument,
                   fmt::format("{} is given twice under two spellings; send it once", field_path), field_path);
    }
    if (item.is(Json::Kind::Null)) continue;
    TRY_VOID(read_field(item, out, field, field_path));
  }
  return {};
}

void write_message(const Message& message, std::string& out) {
  const auto* descriptor = message.GetDescriptor();
  const Reflection& r = *message.GetReflection();
  out += '{';
  bool first = true;
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (is_message && !field->is_repeated() && !r.HasField(message, field)) continue;
    if (!first) out += ',';
    first = false;
    append_json_string(out, field->json_name());
    out += ':';
    if (field->is_map()) {
      write_map(message, field, out);
    } else if (field->is_repeated()) {
      out += '[';
      for (int k = 0; k < r.FieldSize(message, field); ++k) {
        if (k) out += ',';
        is_message ? write_message(r.GetRepeatedMessage(message, field, k), out) : write_scalar(message, field, k, out);
      }
      out += ']';
    } else {
      is_message ? write_message(r.GetMessage(message, field), out) : write_scalar(message, field, -1, out);
    }
  }
  out += '}';
}

std::string write_message(const Message& message) {
  std::string out;
  write_message(message, out);
  return out;
}

}  // namespace muster::wire
