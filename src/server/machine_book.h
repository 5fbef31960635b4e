#pragma once
// The CA's proofs for machines (crypto/machine_proof.h), made when a roster first needs one and again at half of their
// life; in memory only. Thread-safe.
#include <map>
#include <memory>
#include <mutex>

#include "crypto/machine_proof.h"
#include "model/types.h"
#include "server/signer.h"

namespace muster::server {

class MachineBook {
 public:
  explicit MachineBook(std::shared_ptr<Signer> signer) : signer_(std::move(signer)) {}
  void forget();  // another CA is in use: proofs are made anew from now on
  Result<crypto::MachineProof> proof_of(NodeId node, const crypto::Key32& device_key, WallTime now);

 private:
  struct Entry {
    crypto::Key32 device_key{};
    crypto::MachineProof proof;
  };
  const std::shared_ptr<Signer> signer_;
  std::mutex mutex_;
  std::map<NodeId, Entry> entries_;
};

}  // namespace muster::server
