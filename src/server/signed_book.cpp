#include "server/signed_book.h"

namespace muster::server {

namespace {
constexpr std::size_t kProofsMax = 1'000'000, kRostersMax = 200'000, kTokensMax = 200'000;

// What is dropped is asked for again.
template <typename Map>
typename Map::mapped_type& room(Map& map, const typename Map::key_type& key, std::size_t max) {
  if (map.size() >= max && !map.contains(key)) map.clear();
  return map[key];
}
}  // namespace

void SignedBook::forget() {
  const std::lock_guard lock(mutex_);
  ++age_;
  proofs_.clear();
  rosters_.clear();
  tokens_.clear();
}

Result<crypto::MachineProof> SignedBook::proof_of(NodeId node, const crypto::Key32& device_key, WallTime now) {
  std::uint64_t age = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = proofs_.find(node);
    // Also after a clock that was set back: what is not valid yet is made again.
    if (found != proofs_.end() && found->second.device_key == device_key && found->second.proof.not_before <= now &&
        found->second.proof.not_after - now > crypto::kMachineProofLife / 2)
      return found->second.proof;
    age = age_;
  }
  crypto::MachineProof proof = TRY(signer_->machine_proof(node, device_key));
  const std::lock_guard lock(mutex_);
  if (age == age_) room(proofs_, node, kProofsMax) = {device_key, proof};
  return proof;
}

Result<Signed> SignedBook::roster(ClusterId cluster, const Bytes& bytes) {
  const crypto::Digest digest = crypto::sha256(bytes);
  std::uint64_t age = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = rosters_.find(cluster);
    if (found != rosters_.end() && found->second.digest == digest) return found->second.made;
    age = age_;
  }
  Signed made = TRY(signer_->roster(bytes));
  const std::lock_guard lock(mutex_);
  if (age == age_) room(rosters_, cluster, kRostersMax) = {digest, made};
  return made;
}

Result<Bytes> SignedBook::relay_token(const overlay::RelayToken& wanted, WallTime now) {
  const TokenKey key{wanted.cluster, wanted.overlay_key, wanted.relay};
  std::uint64_t age = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = tokens_.find(key);
    if (found != tokens_.end() && found->second.not_after <= wanted.not_after &&
        wanted.not_after - found->second.not_after <= kTokenKept && found->second.not_after > now)
      return found->second.bytes;
    age = age_;
  }
  Bytes bytes = TRY(signer_->relay_token(wanted));
  const std::lock_guard lock(mutex_);
  if (age == age_) room(tokens_, key, kTokensMax) = {wanted.not_after, bytes};
  return bytes;
}

}  // namespace muster::server
