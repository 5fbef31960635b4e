#pragma once
// What a machine is told: its assignments from the state, plus what never enters the journal, added here from the key
// files: the cluster's Ray token and pre-shared key (HMAC of the server's secret over the cluster's id and birth, so a
// restored journal never gives an old cluster's token to a new one), relay tokens, signed rosters, the controller's
// signature. In two steps, for the signer may be another process: what the state says is drafted under the follower's
// lock, and signed without it.
#include "control/core.h"
#include "overlay/roster.h"
#include "server/identity.h"
#include "server/registry_store.h"
#include "server/signed_book.h"
#include "server/signer.h"
#include "server/workload_identity.h"
#include "session/frames.h"

namespace muster::server {

Bytes ray_token(const Identity& identity, const Cluster& cluster);  // 64 hex characters

// What ends by itself (relay tokens, proofs) is good for much longer than this, after which orders are to be built and
// told again although nothing changed.
inline constexpr Millis kOrdersRenewed{2LL * 3'600'000};
// Orders with identity tokens are told again in this part of a token's life; one is used while half of it is left.
inline constexpr int kIdentityRenewals = 4;

struct OrdersDraft {
  struct Member {  // gets tokens for the relays
    std::size_t secrets = 0;
    std::uint64_t cluster = 0;
    crypto::Key32 overlay_key{};
  };
  struct Identity {  // gets a token that says who it is
    std::size_t secrets = 0;
    std::string name;  // of its file
    WorkloadWanted wanted;
  };
  NodeId node;
  session::Desired desired;  // but rosters, relay and identity tokens, and the signature
  std::vector<overlay::Roster> rosters;
  std::vector<Member> members;
  std::vector<Identity> identities;
};
// `registries` may be null: then no account of a registry is given away.
OrdersDraft draft_orders(const control::State& state, const Identity& identity, NodeId node, WallTime now,
                         const RegistryStore* registries = nullptr);
// Without a signature where the signer gave none: then nothing is to be told, but asked again.
session::Desired sign_orders(OrdersDraft draft, const Identity& identity, WallTime now, SignedBook& book,
                             const std::vector<RelayEntry>& relays, WorkloadIdentity* workloads = nullptr);
// May this machine read that blob: one of its assignments names it.
bool names_blob(const std::vector<Assignment>& assignments, const std::string& digest);

}  // namespace muster::server
