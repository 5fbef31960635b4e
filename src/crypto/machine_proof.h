#pragma once
// A machine's certificate in 80 bytes, so that a roster of thousands can bring one for each member: the CA says that
// this device key is that node's, from then until then. Not X.509: an ECDSA P-256 signature with a domain of its own,
// which never verifies as anything else that the CA signs. Signing costs some tens of microseconds, checking about a
// hundred; the verifier remembers what it found genuine.
#include <memory>
#include <set>
#include <vector>

#include "crypto/cert.h"
#include "crypto/hash.h"

struct evp_pkey_st;

namespace muster::crypto {

struct MachineProof {
  std::uint64_t node = 0;
  WallTime not_before, not_after;  // whole seconds
  Bytes signature;                 // 64 bytes, r and s
  bool operator==(const MachineProof&) const = default;
};

inline constexpr Millis kMachineProofLife{7LL * 86'400'000};
// Clocks of machines are off; what else bounds the life of a roster's entry is the lease.
inline constexpr Millis kMachineProofSlack{86'400'000};

// A CA's key, read once (which takes ten times as long as a proof). Any thread.
class MachineProver {
 public:
  static Result<MachineProver> create(const KeyAndCert& ca);  // DataLoss: the key cannot be read
  Result<MachineProof> prove(std::uint64_t node, const Key32& device_key, WallTime now) const;

 private:
  std::shared_ptr<evp_pkey_st> key_;
};
inline Result<MachineProof> prove_machine(const KeyAndCert& ca, std::uint64_t node, const Key32& device_key,
                                          WallTime now) {
  return TRY(MachineProver::create(ca)).prove(node, device_key, now);
}

// One behind another: node, not_before, not_after (u64, u32 seconds, u32 seconds; big endian), signature.
Bytes encode_machine_proofs(const std::vector<MachineProof>& proofs);
inline constexpr std::size_t kMachineProofBytes = 8 + 4 + 4 + 64;
Result<std::vector<MachineProof>> decode_machine_proofs(ByteView bytes, std::size_t count_max);

// Checks against the roots and CAs of one bundle (crypto/trust.h). One thread at a time.
class MachineVerifier {
 public:
  static Result<std::unique_ptr<MachineVerifier>> create(std::string_view ca_pem);
  ~MachineVerifier();
  // Signed by one of them for this node and key, and within its time by `now` (kMachineProofSlack).
  bool genuine(const MachineProof& proof, const Key32& device_key, WallTime now);

 private:
  struct Impl;
  explicit MachineVerifier(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  std::set<Digest> known_;  // statements whose signature was found right
};

}  // namespace muster::crypto
