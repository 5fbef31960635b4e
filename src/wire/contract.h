#pragma once
// The REST contract as data: every rpc of muster.v1.Api with its (http) option. Router, OpenAPI document and tests walk
// this one table, so they cannot drift apart. check_json validates a JSON value against a message of the contract:
// unknown fields, wrong types and bad values give InvalidArgument with the exact field path. Thread-safe (immutable
// after first use).
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "wire/json.h"

namespace muster::wire {

struct Operation {
  std::string name, method, path, summary;
  std::string body;               // "" none, "*" a JSON message, "binary"
  std::string streams;            // "", "sse", "text", "websocket"
  std::string request, response;  // message names without the package
};
const std::vector<Operation>& operations();
const Operation* find_operation(std::string_view name);

// Does this JSON value have the shape of muster.v1.<message>?
Status check_json(std::string_view message, const Json& value);

// RFC 9457 problem details of an error.
std::string problem_json(const Error& error, std::string_view instance = {});
std::string problem_json(int status, const Error& error, std::string_view instance = {});

}  // namespace muster::wire
