#pragma once
// Who belongs to a cluster's overlay. The control plane signs the exact bytes of a roster (room for several
// signatures); every entry carries an overlay key that the machine's own device key signed for this cluster and lease,
// so that a control plane cannot slip in a key that no machine made. Beside a roster come proofs of the CA that each
// device key is that node's (crypto/machine_proof.h), so that who only signs rosters cannot invent a machine; they are
// renewed while the roster stays, so they are no part of its bytes. Rosters are ordered by (incarnation, epoch);
// RosterGuard never goes back. Values.
#include <compare>
#include <string>
#include <vector>

#include "base/result.h"
#include "crypto/machine_proof.h"
#include "crypto/sign.h"
#include "overlay/device.h"

namespace muster::overlay {

struct LeaseEpoch {
  std::uint64_t incarnation = 0, leader = 0, counter = 0;
  constexpr auto operator<=>(const LeaseEpoch&) const = default;
};

struct RosterMember {
  std::uint64_t slot = 0, node = 0;
  std::uint8_t role = 0;
  std::uint32_t address = 0;  // inner IPv4, host order
  Key32 overlay_key{}, device_key{};
  Bytes overlay_signature;  // of overlay_key by device_key
  LeaseEpoch epoch;
  std::vector<Endpoint> lan;  // Udp endpoints worth a try
  bool operator==(const RosterMember&) const = default;
};

struct Roster {
  std::uint64_t cluster = 0, incarnation = 0, epoch = 0;
  std::vector<RosterMember> members;
  bool operator==(const Roster&) const = default;
};

inline constexpr std::size_t kRosterMembersMax = 4096;
inline constexpr std::size_t kLanEndpointsMax = 8;

Bytes sign_overlay_key(const crypto::SigningKey& device, std::uint64_t cluster, const LeaseEpoch& epoch,
                       const Key32& overlay_key);
bool verify_overlay_key(ByteView device_key, std::uint64_t cluster, const LeaseEpoch& epoch, const Key32& overlay_key,
                        ByteView signature);

Bytes encode_roster(const Roster& roster);
Result<Roster> decode_roster(ByteView bytes);  // strict; signatures not looked at
Bytes roster_message(ByteView roster_bytes);   // what is signed
Bytes sign_roster(const crypto::SigningKey& key, ByteView roster_bytes);
// Every one of `signers` must have signed these bytes. Members whose overlay key their device did not sign are left out
// and counted.
struct VerifiedRoster {
  Roster roster;
  std::size_t rejected = 0;
};
Result<VerifiedRoster> verify_roster(ByteView bytes, const std::vector<Bytes>& signatures,
                                     const std::vector<Key32>& signers);
// What vouches for the machines of a roster; the verifier is the caller's and outlives it.
struct MachineProofs {
  crypto::MachineVerifier* verifier = nullptr;
  ByteView proofs;  // encode_machine_proofs
  WallTime now;
};
// Leaves out the members without a genuine proof; returns how many those were.
Result<std::size_t> drop_unproven(Roster& roster, const MachineProofs& machines);

// The highest roster seen for one cluster; the caller keeps (incarnation, epoch) over restarts.
class RosterGuard {
 public:
  RosterGuard() = default;
  RosterGuard(std::uint64_t incarnation, std::uint64_t epoch) : incarnation_(incarnation), epoch_(epoch) {}
  Status admit(const Roster& roster, ByteView bytes);  // Aborted when older, or other bytes under the same number
  std::uint64_t incarnation() const { return incarnation_; }
  std::uint64_t epoch() const { return epoch_; }

 private:
  std::uint64_t incarnation_ = 0, epoch_ = 0;
  Bytes digest_;
};

// "192.168.1.7:51820" -> Udp endpoint; nullopt for anything else than IPv4:port.
std::optional<Endpoint> parse_udp_endpoint(std::string_view text);
// "relay", "192.168.1.7:51820", "[fd00::7]:51820", "peer 100.64.0.3" or ""
std::string format_endpoint(const Endpoint& endpoint);

}  // namespace muster::overlay
