#pragma once
// How long certificates in use still live: for metrics, and a warning once when half and once when a quarter of the
// life is left, or when it is over. A renewed certificate starts anew. Thread-safe.
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/time.h"

namespace muster::crypto {

class CertWatch {
 public:
  // The first certificate of the bundle is the one that counts; advice: what is to be done about its end.
  Status set(const std::string& name, const std::string& pem, const std::string& advice);
  void keep_only(const std::set<std::string>& names);
  std::vector<std::pair<std::string, Millis>> left(WallTime now) const;  // negative: it is over
  std::vector<std::string> warnings(WallTime now);                       // each is told once

 private:
  struct Row {
    WallTime from, until;
    std::string advice;
    int told = 0;  // 1: half, 2: a quarter, 3: over
  };
  mutable std::mutex mutex_;
  std::map<std::string, Row> rows_;
};

}  // namespace muster::crypto
