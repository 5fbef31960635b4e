#pragma once
#include "base/result.h"

namespace muster {
// The HTTP status that an Error's code is answered with; the one mapping for every answer of ours.
int http_status(Code code);
}  // namespace muster
