#pragma once
// The OpenAPI 3.1 document of the REST API, generated from the descriptors of the contract and their (http) options:
// every operation, every schema, the problem responses and the bearer scheme. Deterministic; made once, then shared.
#include <string>

namespace muster::wire {

const std::string& openapi_json();

}  // namespace muster::wire
