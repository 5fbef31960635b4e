#pragma once
// Seals what a side table of the store keeps secret, with a key of its own derived from the server's secret. A sealed
// text opens only under the name that it was sealed for. Any thread.
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "crypto/secret.h"

namespace muster::server {

class SideSeal {
 public:
  SideSeal(const crypto::Secret32& secret, std::string_view purpose);  // one purpose a table
  Bytes seal(const std::string& name, std::string text) const;
  std::optional<std::string> open(const std::string& name, ByteView sealed) const;  // nullopt: not ours, or damaged

 private:
  crypto::Secret32 key_;
};

}  // namespace muster::server
