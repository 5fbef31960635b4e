#pragma once
// The address book in an SQLite file of its own (mode 0600). What is erased is overwritten in the file and gone from
// its log before the call returns. May be opened by several processes at once. Thread-safe.
#include <memory>
#include <mutex>
#include <string>

#include "journal/address_book.h"

namespace muster::store {

class SqliteAddresses final : public journal::AddressBook {
 public:
  static Result<std::unique_ptr<SqliteAddresses>> open(const std::string& path,
                                                       std::size_t rows_max = journal::kAddressRowsMax);
  ~SqliteAddresses() override;
  Status put(const std::vector<journal::AddressRow>& rows) override;
  Result<std::optional<std::string>> find(const std::string& actor, const std::string& request) const override;
  Result<std::size_t> erase_actor(const std::string& actor) override;
  Result<std::size_t> erase_before(WallTime time) override;

 private:
  struct File;
  SqliteAddresses(std::unique_ptr<File> file, std::size_t rows_max);
  mutable std::mutex mutex_;
  const std::unique_ptr<File> file_;
  const std::size_t rows_max_;
};

}  // namespace muster::store
