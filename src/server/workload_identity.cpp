#include "server/workload_identity.h"

#include <fmt/format.h>

#include <algorithm>

#include "crypto/workload_token.h"

namespace muster::server {

WorkloadIdentity::WorkloadIdentity(std::shared_ptr<Signer> signer, std::string issuer, Millis lifetime)
    : signer_(std::move(signer)),
      issuer_(std::move(issuer)),
      lifetime_(std::min(lifetime, crypto::kWorkloadLifetimeMax)) {}

Status WorkloadIdentity::refresh() {
  auto keys = TRY(signer_->workload_keys());
  const std::lock_guard lock(mutex_);
  if (keys_ != keys) made_.clear(), ++age_;
  keys_ = std::move(keys);
  return {};
}

Result<std::string> WorkloadIdentity::token(WorkloadWanted wanted, WallTime now) {
  wanted.issuer = issuer_, wanted.lifetime = lifetime_;
  const std::string key =
      fmt::format("{}|{}|{}|{}|{}|{}|{}", wanted.lease.value, wanted.job.value, wanted.cluster.value, wanted.org_name,
                  wanted.project_name, wanted.cluster_name, fmt::join(wanted.audiences, ","));
  std::uint64_t age = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = made_.find(key);
    // Also after a clock that was set back: what would end too late is made again.
    if (found != made_.end() && found->second.expires - now > lifetime_ / 2 && found->second.expires - now <= lifetime_)
      return found->second.text;
    age = age_;
  }
  std::string text = TRY(signer_->workload_token(wanted));
  const std::lock_guard lock(mutex_);
  if (made_.size() >= kMadeMax) made_.clear();
  if (age == age_) made_[key] = {now + lifetime_, text};
  return text;
}

std::string WorkloadIdentity::jwk_set(WallTime now) const {
  std::vector<crypto::AccessKey> keys;
  {
    const std::lock_guard lock(mutex_);
    keys = keys_;
  }
  std::erase_if(keys, [&](const auto& key) { return key.until.ms != 0 && key.until <= now; });
  return crypto::jwk_set(keys);
}

std::string WorkloadIdentity::discovery() const {
  return crypto::discovery_document(issuer_);
}

}  // namespace muster::server
