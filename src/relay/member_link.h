#pragma once
// Inside relay: one member's connection, from the TLS handshake to its end. Runs on the strand of its socket.
#include "net/registry.h"
#include "net/tls_stream.h"
#include "relay/hub.h"
#include "relay/relay.h"

namespace muster::relay {

// guard leaves the registry (and its per-address count) with the connection.
void serve_member(std::shared_ptr<Hub> hub, const RelayOptions& options, net::tcp::socket socket, net::SslCtxPtr tls,
                  net::Registry::GuardPtr guard, std::shared_ptr<void> keep);

}  // namespace muster::relay
