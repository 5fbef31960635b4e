#include "server/machine_book.h"

namespace muster::server {

namespace {
constexpr std::size_t kEntriesMax = 1'000'000;
}  // namespace

void MachineBook::forget() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
}

Result<crypto::MachineProof> MachineBook::proof_of(NodeId node, const crypto::Key32& device_key, WallTime now) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(node);
  // Also after a clock that was set back: what is not valid yet is made again.
  if (found != entries_.end() && found->second.device_key == device_key && found->second.proof.not_before <= now &&
      found->second.proof.not_after - now > crypto::kMachineProofLife / 2)
    return found->second.proof;
  crypto::MachineProof proof = TRY(signer_->machine_proof(node, device_key));
  if (entries_.size() >= kEntriesMax) entries_.clear();
  entries_[node] = {device_key, proof};
  return proof;
}

}  // namespace muster::server
