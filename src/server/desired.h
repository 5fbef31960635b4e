#pragma once
// What a machine is told: its assignments from the state, plus what never enters the journal, added here from the key
// files: the cluster's Ray token and pre-shared key (HMAC of the server's secret over the cluster's id and birth, so a
// restored journal never gives an old cluster's token to a new one), relay tokens, signed rosters, the controller's
// signature. Pure over its inputs; the caller holds the follower's lock.
#include "control/core.h"
#include "server/identity.h"
#include "server/machine_book.h"
#include "server/registry_store.h"
#include "server/signer.h"
#include "session/frames.h"

namespace muster::server {

Bytes ray_token(const Identity& identity, const Cluster& cluster);  // 64 hex characters
// `registries` may be null: then no account of a registry is given away; `machines` too: then nothing vouches for the
// roster's machines and members leave them out; `relays` too: then they are those of the identity. What ends by itself
// (relay tokens, proofs) is good for much longer than kOrdersRenewed, after which orders are to be built and told again
// although nothing changed.
inline constexpr Millis kOrdersRenewed{2LL * 3'600'000};
// Without a signature where the signer gave none: then nothing is to be told, but asked again.
session::Desired build_desired(const control::State& state, const Identity& identity, NodeId node, WallTime now,
                               const RegistryStore* registries = nullptr, MachineBook* machines = nullptr,
                               const std::vector<RelayEntry>* relays = nullptr);
// May this machine read that blob: one of its assignments names it.
bool names_blob(const std::vector<Assignment>& assignments, const std::string& digest);

}  // namespace muster::server
