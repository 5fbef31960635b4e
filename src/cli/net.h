#pragma once
// A cluster's network for people: texts of GET /api/v1/clusters/{id}/net. Pure.
#include <string>
#include <vector>

#include "base/result.h"
#include "wire/json.h"

namespace muster::cli {

std::string net_text(const wire::Json& net, bool colour);
Result<std::string> net_member(const wire::Json& net, const std::string& name);               // the slot that is meant
std::string explain_text(const wire::Json& net, const std::string& a, const std::string& b);  // two slots of it

std::string ways_text(const wire::Json& node, bool colour);                  // of /api/v1/nodes/{id}/ways
std::string carried_rows(const std::vector<wire::Json>& rows, bool colour);  // of /api/v1/carried

}  // namespace muster::cli
