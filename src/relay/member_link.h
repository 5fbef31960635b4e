#pragma once
// Inside relay: one member's connection, from the TLS handshake to its end. At home on the loop of its socket
// (loops.h); what leaves is written by whichever thread has it.
#include "net/registry.h"
#include "net/tls_steps.h"
#include "relay/hub.h"
#include "relay/relay.h"

namespace muster::relay {

// On a thread of Loops, which is the home of the link then. guard leaves the registry (and its per-address count) with
// the connection.
void serve_member(std::shared_ptr<Hub> hub, const RelayOptions& options, net::tcp::socket socket, net::SslCtxPtr tls,
                  net::Registry::GuardPtr guard, std::shared_ptr<void> keep);

}  // namespace muster::relay
