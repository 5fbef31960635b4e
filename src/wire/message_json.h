#pragma once
// proto3 JSON mapping by reflection, with exact field paths in errors (private to wire). Reading is strict: unknown
// fields, repeated spellings of one field, wrong types, out-of-range numbers and NUL characters are refused; null means
// absent. Writing prints every singular scalar, also defaults, so clients need no presence logic; int64 as strings.
#include <google/protobuf/message.h>

#include <string>

#include "base/result.h"
#include "wire/json.h"

namespace muster::wire {

Status read_message(const Json& value, google::protobuf::Message& out, const std::string& path = {});
void write_message(const google::protobuf::Message& message, std::string& out);
std::string write_message(const google::protobuf::Message& message);

}  // namespace muster::wire
