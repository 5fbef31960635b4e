#pragma once
// Identity tokens of clusters and jobs, as the serving musterd hands them out with orders: made by the signer, kept
// until half of their life is over, and the public keys that they are checked by. Thread-safe; refresh and token may
// block for a round trip to the signer, documents do not.
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "crypto/access_token.h"
#include "server/signer.h"

namespace muster::server {

class WorkloadIdentity {
 public:
  WorkloadIdentity(std::shared_ptr<Signer> signer, std::string issuer, Millis lifetime);
  Status refresh();  // asks the signer which keys are published, and has new tokens made where others sign
  const std::string& issuer() const { return issuer_; }
  Millis lifetime() const { return lifetime_; }
  // wanted: all but issuer and lifetime.
  Result<std::string> token(WorkloadWanted wanted, WallTime now);
  std::string jwk_set(WallTime now) const;
  std::string discovery() const;

 private:
  struct Made {
    WallTime expires;
    std::string text;
  };
  static constexpr std::size_t kMadeMax = 200'000;
  const std::shared_ptr<Signer> signer_;
  const std::string issuer_;
  const Millis lifetime_;
  mutable std::mutex mutex_;
  std::vector<crypto::AccessKey> keys_;
  std::uint64_t age_ = 0;
  std::map<std::string, Made> made_;  // by all that is in one
};

}  // namespace muster::server
