#pragma once
// A member's connection to muster-relay: TLS (through a CONNECT proxy where the environment names one, with an HTTP
// upgrade inside then; without one where the other way fails: upgrade.h), hello with
// token and proof of the overlay key, packets both ways, pings, reconnect with back-off. One thread of its own runs it;
// callbacks come on that thread and must not block. send() and the getters are for any thread. Packets may be lost, as
// with UDP: the send queue is bounded and drops the oldest. stop() (and the destructor) returns when no callback runs
// any more.
#include <functional>
#include <memory>
#include <string>

#include "crypto/x25519.h"
#include "net/net.h"
#include "overlay/udp_relay.h"

namespace muster::relay {

enum class ClientState : std::uint8_t {
  Stopped,
  Connecting,
  Up,
  Waiting /* back-off */,
  Refused /* token or key: waits for set_token */
};

struct ClientOptions {
  net::Endpoint endpoint;      // host, port, pinned CA, name in the relay's certificate; the role is always the relay's
  crypto::X25519Pair overlay;  // the key that the token is for
  Bytes token;                 // from the assignment's secrets
  Millis back_off_min{250}, back_off_max{15'000};
  Millis dial_time{10'000};  // stop() may take as long
};
struct ClientCallbacks {
  std::function<void(const crypto::Key32& source, ByteView payload)> on_packet;  // the view is valid during the call
  std::function<void(const crypto::Key32& peer)> on_peer_gone;                 // optional: not connected to this relay
  std::function<void(ClientState state, const std::string& detail)> on_state;  // optional
  // Optional, before Up: what lets us send to `at` over UDP for as long as this connection (overlay/udp_relay.h).
  std::function<void(const overlay::UdpGrant& grant, const overlay::Endpoint& at)> on_udp;
};

class Client {
 public:
  explicit Client(ClientOptions options);
  ~Client();
  void start(ClientCallbacks callbacks);                          // once
  bool send(const crypto::Key32& destination, ByteView payload);  // false: not connected, payload empty or too large
  // For the control plane (overlay/relay_protocol.h, kControlCluster): what net::encode(RecallFrame) says, of at most
  // kRelayBodyMax. Nothing that was taken is dropped while the connection lasts. false: not connected, or later.
  bool recall(ByteView frame);
  void reconnect();                 // at once: this machine's way to the relay has changed
  void set_token(Bytes token);      // a renewed one: said at once, also on the open connection; wakes a refused client
  void set_keys(Bytes statement);   // of signing keys, said before each hello; relays of before end the connection then
  void set_ca(std::string ca_pem);  // whom the next connection believes; the open one stays
  ClientState state() const;
  std::size_t backlog() const;  // bytes that wait to be sent; what comes later waits behind them
  // Where the relay itself is, IPv4 in host order; 0: not known (not connected, through a proxy, IPv6).
  std::uint32_t address() const;
  std::uint32_t rtt_us() const;  // of pings to the relay, smoothed; 0: not known
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace muster::relay
