#pragma once
// What the agent remembers of each lease's overlay, so that it sets it again by itself while the control plane is away:
// one 0600 file a lease with the roster as signed, its signers, the relays and the tokens for them. No key is in it:
// the overlay's and the pre-shared one stay netd's. What is damaged, of another lease, badly signed or older than a
// roster that the agent has seen is an error, never taken in part. One thread.
#include <map>
#include <set>
#include <string>

#include "base/id.h"
#include "host/netd_protocol.h"

namespace muster::host {

struct KeptOverlay {
  netd::Configure configured;
  netd::SetRelays relays;  // empty: those of `configured`
};

class OverlayStore {
 public:
  explicit OverlayStore(std::string folder);
  // The highest roster epoch seen of each cluster: nothing older is loaded.
  void refuse_older_than(std::map<ClusterId, std::uint64_t> epochs) { seen_ = std::move(epochs); }
  Status save(LeaseId lease, const KeptOverlay& overlay);
  Result<KeptOverlay> load(LeaseId lease) const;  // NotFound: there is none
  void remove(LeaseId lease);
  void keep_only(const std::set<LeaseId>& leases);

 private:
  std::string path(LeaseId lease) const { return folder_ + "/" + lease.str(); }
  std::string folder_;
  std::map<ClusterId, std::uint64_t> seen_;
};

}  // namespace muster::host
