#pragma once
// The CAs that the serving musterd uses now; replaced as a whole when the folder's changed. Thread-safe.
#include <memory>
#include <mutex>

#include "server/ca.h"

namespace muster::server {

class CaBook {
 public:
  std::shared_ptr<const CaSet> get() const {
    const std::lock_guard lock(mutex_);
    return set_;
  }
  void set(CaSet set) {
    auto fresh = std::make_shared<const CaSet>(std::move(set));
    const std::lock_guard lock(mutex_);
    set_ = std::move(fresh);
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const CaSet> set_ = std::make_shared<const CaSet>();
};

}  // namespace muster::server
