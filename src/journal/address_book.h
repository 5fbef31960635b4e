#pragma once
// Where requests came from: personal data, so it lies beside the journal, in a file of its own, and can be erased for
// good. Journal entries and refusals point into it by actor and request id. Times are wall clock. Thread-safe; calls
// block on the disk.
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"

namespace muster::journal {

inline constexpr std::size_t kAddressRowsMax = 2'000'000;  // the oldest go first

struct AddressRow {
  WallTime at;
  std::string actor;    // "usr-3", "node-7", "nobody"
  std::string request;  // as in the entry
  std::string address;  // without the port
  bool operator==(const AddressRow&) const = default;
};

class AddressBook {
 public:
  virtual ~AddressBook() = default;
  // All or none. A request that is known keeps its first address.
  virtual Status put(const std::vector<AddressRow>& rows) = 0;
  virtual Result<std::optional<std::string>> find(const std::string& actor, const std::string& request) const = 0;
  // Overwritten, not only forgotten; the number of rows that went.
  virtual Result<std::size_t> erase_actor(const std::string& actor) = 0;
  virtual Result<std::size_t> erase_before(WallTime time) = 0;
};

}  // namespace muster::journal
