#pragma once
// muster-relay as a class: owner of the public TCP listener. A connection whose ClientHello offers ALPN
// "muster-relay/1", or asks for the server "muster-relay" and then for an upgrade inside (upgrade.h), is served here
// (TLS, relay protocol of overlay/relay_protocol.h); every other TLS connection is
// passed to the server behind the handoff socket (net/handoff.h), held for hold_time while none is there; on a
// socket beside it that server says which members left their clusters (net/recall_frame.h), and a control plane
// elsewhere over the relay protocol itself (kControlCluster): those are cut off at once. On the UDP port of the same
// number, and on a second one if wanted, for networks that block the first, it tells whoever asks how they are seen
// (overlay/stun.h): machines find direct ways with that, and whom it let in may send over UDP there
// (overlay/udp_relay.h); where the port cannot be had all else works, over TLS. Everything
// is bounded; a slow reader loses its oldest packets. Threads of its own; stop() returns when they ended.
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "crypto/secret.h"
#include "net/net.h"

namespace muster::relay {

struct RelayOptions {
  std::string address = "0.0.0.0";
  std::uint16_t port = 443;  // 0 = any
  std::string handoff_path;  // empty: other connections are closed
  net::TlsFiles tls;
  crypto::Key32 controller_key{};  // Ed25519, verifies tokens until the control plane states others
  std::string trust_pem;           // whom such a statement is believed from (relay/token_keys.h)
  std::string keys_file;           // where the newest is kept; empty: in memory only
  std::string relay_id;            // the name in the tokens
  std::string metrics_address;     // "127.0.0.1:9151"; empty: none
  bool mirror = true;              // the UDP port beside it
  bool udp = true;                 // members may send over it too (overlay/udp_relay.h); not without the mirror
  std::optional<std::uint16_t> second_udp_port;  // beside it, not without the mirror; 0 = any
  int threads = 2;
  std::size_t members_max = 20'000, pending_max = 4096, per_address_max = 2048, held_max = 1024;
  std::size_t queue_bytes_max = 1 << 20;  // per member, drop-head
  std::uint64_t member_bytes_per_second = 64 << 20;
  Millis hello_time{5000}, hold_time{10'000};
  Millis other_token{60'000};  // after the key of its token is believed no longer, a member has so long to show another
};

class Relay {
 public:
  static Result<std::unique_ptr<Relay>> create(RelayOptions options);
  virtual ~Relay() = default;
  virtual std::uint16_t port() const = 0;
  virtual std::uint16_t metrics_port() const = 0;
  virtual std::uint16_t second_udp_port() const = 0;            // 0: none
  virtual Status reload_tls(net::TlsFiles tls) = 0;             // for new connections; the open ones go on
  virtual void reload_trust(const std::string& trust_pem) = 0;  // and the file of keys
  virtual void warn_of_expiry() = 0;  // logs once at half and once at a quarter of the certificate's life
  virtual std::string metrics() const = 0;
  virtual void stop() = 0;
};

}  // namespace muster::relay
