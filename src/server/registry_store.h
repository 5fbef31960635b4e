#pragma once
// Accounts of image registries, one per organisation and registry host. They are kept in the side table "registries",
// sealed with a key derived from the server's secret, never in the journal, and forgotten when their time is over. Only
// what is needed to pull leaves the server: in the Desired of a machine that holds a lease of that organisation's
// cluster and has not the image yet. Bounds: kRegistriesMax an organisation, kRegistryLifetimeMax. Thread-safe.
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "base/time.h"
#include "journal/store.h"
#include "server/side_seal.h"

namespace muster::server {

inline constexpr std::size_t kRegistriesMax = 64;
inline constexpr Millis kRegistryLifetime{12LL * 3'600'000}, kRegistryLifetimeMax{30LL * 86'400'000};

struct RegistryAccount {
  std::string host, username, password;
  WallTime expires;
};

class RegistryStore {
 public:
  RegistryStore(const crypto::Secret32& secret, std::shared_ptr<journal::Store> store);
  Status load(WallTime now);  // once at start; what is over or cannot be opened is erased
  Status put(OrgId org, const RegistryAccount& account, WallTime now);
  Status remove(OrgId org, const std::string& host);  // NotFound
  std::optional<RegistryAccount> find(OrgId org, const std::string& host, WallTime now) const;
  std::vector<RegistryAccount> list(OrgId org, WallTime now) const;  // passwords left empty

 private:
  const SideSeal seal_;
  const std::shared_ptr<journal::Store> store_;
  mutable std::mutex mutex_;
  std::map<std::pair<OrgId, std::string>, RegistryAccount> accounts_;
};

}  // namespace muster::server
