#pragma once
// Inside net: an open TLS stream becomes a WebSocket (RFC 6455, binary messages, no compression), as server or client.
// The session lives while a read is pending or somebody holds it; its guard leaves the registry with it.
#include <functional>

#include "net/registry.h"
#include "net/tls_stream.h"

namespace muster::net {

struct WebSocketOptions {
  std::size_t frame_bytes = 1 << 20;
  Millis idle_timeout{120'000};  // pinged at half of it
  std::string peer;
  Registry::GuardPtr guard;
  std::shared_ptr<void> keep;  // the io_context: a WebSocketPtr may outlive its server or loop
};
using WebSocketReady = std::function<void(Result<WebSocketPtr>)>;

void accept_websocket(TlsStream stream, const Request& request, WebSocketOptions options, WebSocketReady done);
void connect_websocket(TlsStream stream, const std::string& host, const std::string& target,
                       const std::map<std::string, std::string>& headers, WebSocketOptions options,
                       WebSocketReady done);

}  // namespace muster::net
