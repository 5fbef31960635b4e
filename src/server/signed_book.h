#pragma once
// What the signer said lately, kept so that the same is not asked again for every order: the CA's proofs for machines
// (crypto/machine_proof.h; made anew at half of their life), the newest roster of each cluster, relay tokens of the
// last ten minutes. In memory only. Thread-safe; the signer is asked without a lock.
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "crypto/hash.h"
#include "crypto/machine_proof.h"
#include "model/types.h"
#include "overlay/relay_protocol.h"
#include "server/signer.h"

namespace muster::server {

class SignedBook {
 public:
  static constexpr Millis kTokenKept{600'000};
  explicit SignedBook(std::shared_ptr<Signer> signer) : signer_(std::move(signer)) {}
  void forget();  // other keys are in use: everything is made anew from now on
  Result<crypto::MachineProof> proof_of(NodeId node, const crypto::Key32& device_key, WallTime now);
  Result<Signed> roster(ClusterId cluster, const Bytes& bytes);
  // May be one that ends up to kTokenKept earlier than `wanted` says.
  Result<Bytes> relay_token(const overlay::RelayToken& wanted, WallTime now);

 private:
  struct Proof {
    crypto::Key32 device_key{};
    crypto::MachineProof proof;
  };
  struct Roster {
    crypto::Digest digest{};  // of the bytes
    Signed made;
  };
  struct Token {
    WallTime not_after;
    Bytes bytes;
  };
  using TokenKey = std::tuple<std::uint64_t, crypto::Key32, std::string>;  // cluster, overlay key, relay
  const std::shared_ptr<Signer> signer_;
  std::mutex mutex_;
  std::uint64_t age_ = 0;  // of the keys: what was asked for before forget() is not kept
  std::map<NodeId, Proof> proofs_;
  std::map<ClusterId, Roster> rosters_;
  std::map<TokenKey, Token> tokens_;
};

}  // namespace muster::server
