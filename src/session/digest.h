#pragma once
// The digest that Hello carries so that an unchanged machine need not send its facts again. Over the facts only: what
// is leased and what runs comes with every session anyway. Deterministic; a few fields of the encoding matter to nobody
// but this digest.
#include "model/types.h"

namespace muster::session {

Bytes inventory_digest(const NodeFacts& facts);  // 32 bytes

}  // namespace muster::session
