#pragma once
// Logins by the identity provider that have begun and not ended: in memory alone, by a handle that only who began it
// knows (kept as its hash). One in the browser is taken out by its first answer; one by code stays until it is decided,
// and says when the provider may be asked again. Bounded: of one address 50, in all 10,000, and the oldest goes.
// Thread-safe; time is an argument.
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/time.h"

namespace muster::server {

struct SsoLogin {
  bool by_device = false;
  std::string source;                                // the address block that began it
  std::string state, nonce, verifier, redirect_uri;  // in the browser
  std::string device_code;                           // by code
  Millis interval{5000};
  LeaseTime next_ask, ends;
};

class SsoTable {
 public:
  static constexpr std::size_t kOfSource = 50, kRows = 10'000;
  std::string add(SsoLogin login, LeaseTime now);  // the handle
  struct Found {
    SsoLogin login;
    std::optional<Millis> wait;  // by code: too early to ask the provider
  };
  // In the browser: taken out. By code: the next may ask after its interval. nullopt: unknown, over or used.
  std::optional<Found> find(const std::string& handle, LeaseTime now);
  Millis slower(const std::string& handle, LeaseTime now);  // RFC 8628: five seconds more from now on
  void end(const std::string& handle);
  std::size_t size() const;

 private:
  using Rows = std::map<Bytes, std::pair<std::uint64_t, SsoLogin>>;
  void erase(Rows::iterator row);
  void prune(LeaseTime now);
  mutable std::mutex mutex_;
  std::uint64_t count_ = 0;
  Rows rows_;
  std::map<std::uint64_t, Bytes> by_age_;
  std::map<std::string, std::map<std::uint64_t, Bytes>> by_source_;
};

}  // namespace muster::server
