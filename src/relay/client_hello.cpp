#include "relay/client_hello.h"

#include <optional>

namespace muster::relay {
namespace {

// Reads big-endian fields; every getter fails softly once the bytes run out.
class Reader {
 public:
  explicit Reader(ByteView bytes) : bytes_(bytes) {}
  std::uint32_t number(int size) {
    std::uint32_t value = 0;
    const ByteView part = take(static_cast<std::size_t>(size));
    for (std::uint8_t byte : part) value = value << 8 | byte;
    return value;
  }
  ByteView take(std::size_t size) {
    if (size > bytes_.size()) {
      ok_ = false;
      bytes_ = {};
      return {};
    }
    const ByteView out = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return out;
  }
  ByteView block(int size) { return take(number(size)); }
  bool ok() const { return ok_; }
  bool more() const { return ok_ && !bytes_.empty(); }

 private:
  ByteView bytes_;
  bool ok_ = true;
};

void read_extension(std::uint32_t type, ByteView data, ClientHello& out) {
  Reader reader(data);
  if (type == 16) {
    Reader names(reader.block(2));
    while (names.more() && out.alpn.size() < 16) {
      const ByteView name = names.block(1);
      if (names.ok()) out.alpn.push_back(as_string(name));
    }
  } else if (type == 0) {
    Reader names(reader.block(2));
    if (names.more() && names.number(1) == 0) out.server_name = as_string(names.block(2));
  }
}

}  // namespace

ClientHello read_client_hello(ByteView bytes) {
  ClientHello out;
  if (bytes.empty()) return out;
  if (bytes[0] != 22 || (bytes.size() > 1 && bytes[1] != 3)) {
    out.kind = ClientHello::Kind::NotTls;
    return out;
  }
  if (bytes.size() < 5) return out;
  const std::size_t record = static_cast<std::size_t>(bytes[3]) << 8 | bytes[4];
  if (record == 0 || record > kClientHelloMax - 5) {
    out.kind = ClientHello::Kind::NotTls;
    return out;
  }
  if (bytes.size() < 5 + record) return out;
  Reader message(bytes.subspan(5, record));
  out.kind = message.number(1) == 1 ? ClientHello::Kind::Hello : ClientHello::Kind::NotTls;
  Reader body(message.block(3));
  body.take(2 + 32);
  body.block(1);
  body.block(2);
  body.block(1);
  Reader extensions(body.block(2));
  while (extensions.more()) {
    const std::uint32_t type = extensions.number(2);
    const ByteView data = extensions.block(2);
    if (extensions.ok()) read_extension(type, data, out);
  }
  return out;
}

}  // namespace muster::relay
