#pragma once
// Reads ALPN and server name out of the first bytes of a TLS connection (RFC 8446 4.1.2, RFC 7301, RFC 6066) without
// taking them. Pure; hostile input. A hello that is spread over several records is reported without names, not as an
// error.
#include <string>
#include <vector>

#include "base/bytes.h"

namespace muster::relay {

inline constexpr std::size_t kClientHelloMax = 16'384 + 5;

struct ClientHello {
  enum class Kind : std::uint8_t { NeedMore, NotTls, Hello } kind = Kind::NeedMore;
  std::vector<std::string> alpn;
  std::string server_name;
};
ClientHello read_client_hello(ByteView bytes);

}  // namespace muster::relay
