#pragma once
// Instead of src/net/tls_stream.cpp, tls.cpp and dial.cpp: the same functions without TLS, so that what is fuzzed is
// what comes out of it. The server's side reads from a socket pair, the client's from bytes that are set beforehand.
#include <string>

#include "base/bytes.h"

namespace muster::fuzz {

// What the next dialled connections answer, `piece` bytes at a time (0: all at once).
void set_answers(ByteView bytes, std::size_t piece);

}  // namespace muster::fuzz
