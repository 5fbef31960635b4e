#pragma once
// Inside net: one accepted connection of the server, from the TLS handshake through any number of requests, until it
// ends or becomes a WebSocket. Everything runs on the strand of its socket; Responders may be used from any thread.
#include <memory>

#include "net/registry.h"
#include "net/tls_doors.h"
#include "net/tls_stream.h"

namespace muster::net {

struct ServerContext {  // shared by all connections of a server
  ServerHandlers handlers;
  Limits limits;
  std::shared_ptr<void> keep;  // the io_context: a Responder may outlive the server
  const std::shared_ptr<TlsDoors> doors = std::make_shared<TlsDoors>();
};

void serve_connection(std::shared_ptr<const ServerContext> context, tcp::socket socket, SslCtxPtr tls, std::string peer,
                      Registry::GuardPtr guard);

// A problem (RFC 9457) for faults that are found before any handler runs.
Response problem(int status, std::string_view code, std::string_view detail);

}  // namespace muster::net
