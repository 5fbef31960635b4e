#pragma once
// The CA's proofs for machines (crypto/machine_proof.h), made when a roster first needs one and again at half of their
// life; in memory only. Thread-safe.
#include <map>
#include <mutex>

#include "crypto/machine_proof.h"
#include "model/types.h"

namespace muster::server {

class MachineBook {
 public:
  explicit MachineBook(crypto::KeyAndCert ca) : ca_(std::move(ca)) {}
  void set_ca(crypto::KeyAndCert ca);  // proofs are made anew from now on
  Result<crypto::MachineProof> proof_of(NodeId node, const crypto::Key32& device_key, WallTime now);

 private:
  struct Entry {
    crypto::Key32 device_key{};
    crypto::MachineProof proof;
  };
  std::mutex mutex_;
  crypto::KeyAndCert ca_;
  std::map<NodeId, Entry> entries_;
};

}  // namespace muster::server
