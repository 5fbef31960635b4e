#pragma once
// One WireGuard interface without sockets, clock or threads: handshake (mac1, mac2 and cookies under load), sessions
// (previous, current, next), transport, replay window, rekey and keepalive timers (whitepaper section 6). Interoperable
// with other implementations. Packets come in, the Sink gets what is to be sent or delivered, tick() is called a few
// times a second. Buffers given to the Sink live only during the call; the Sink must not call back into the Device. One
// thread. Bounds: peers, staged packets per peer, initiations per second and source, cookies' sources.
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/ipv6.h"
#include "base/time.h"
#include "crypto/x25519.h"
#include "overlay/crew.h"

namespace muster::overlay {

using crypto::Key32;
using crypto::Secret32;

// Where a datagram goes to or came from: through a relay (with the key of the member at the other end), straight over
// UDP, or carried by another member.
struct Endpoint {
  enum class Kind : std::uint8_t { None = 0, Relay = 1, Udp = 2, Peer = 3, Udp6 = 4 };
  Kind kind = Kind::None;
  std::uint32_t ip = 0;    // Udp: IPv4, host order; Peer: the inner address of who carries
  std::uint16_t port = 0;  // Relay: which one
  Key32 key{};             // Relay, Peer: the member at the other end
  Ip6 six{};               // Udp6
  bool operator==(const Endpoint&) const = default;
  bool direct() const { return kind == Kind::Udp || kind == Kind::Udp6; }
  static Endpoint udp(std::uint32_t ip, std::uint16_t port) { return {Kind::Udp, ip, port, {}, {}}; }
  static Endpoint udp6(const Ip6& six, std::uint16_t port) { return {Kind::Udp6, 0, port, {}, six}; }
  static Endpoint relay(const Key32& key, std::size_t which = 0) {
    return {Kind::Relay, 0, static_cast<std::uint16_t>(which), key, {}};
  }
  static Endpoint peer(const Key32& key, std::uint32_t by) { return {Kind::Peer, by, 0, key, {}}; }
};

struct PeerConfig {
  Key32 public_key{};
  Secret32 psk;                          // zero: none
  std::vector<std::uint32_t> addresses;  // its inner IPv4 addresses, host order; kInner6 before them too
  Endpoint endpoint;                     // where to send first; None: wait for the peer
  Millis keepalive{0};                   // persistent; 0 = off
};

struct PeerStats {
  Key32 public_key{};
  Endpoint endpoint;
  std::uint64_t rx_bytes = 0, tx_bytes = 0, rx_packets = 0, tx_packets = 0, dropped = 0, handshakes = 0;
  std::uint64_t inner_packets = 0;  // of programs, both ways
  WallTime last_handshake;          // zero: never
};

class Sink {
 public:
  virtual ~Sink() = default;
  virtual void send(const Endpoint& to, ByteView datagram) = 0;
  virtual void deliver(ByteView ip_packet) = 0;
  // A message of send_control() from an authenticated peer.
  virtual void control(const Key32& peer, const Endpoint& from, ByteView message) = 0;
};

struct DeviceOptions {
  bool roam = true;  // follow the source of authenticated packets; false: set_endpoint() decides alone
  std::uint32_t load_handshakes_per_s = 200;  // above it cookies are demanded
  std::size_t staged_packets_max = 256;
  std::size_t mtu = 1420;  // padding never exceeds it
};

enum class Encapsulated : std::uint8_t { Sent, Staged, NoPeer, Invalid };

class Device {
 public:
  explicit Device(const crypto::X25519Pair& key, DeviceOptions options = {});
  ~Device();
  const Key32& public_key() const;
  // The whole table: sessions of peers that stay with the same psk live on, those of others are wiped at once.
  void set_peers(const std::vector<PeerConfig>& peers);
  void set_endpoint(const Key32& peer, const Endpoint& endpoint);
  bool has_peer(const Key32& peer) const;
  bool has_session(const Key32& peer) const;              // a session that can carry data now
  std::uint64_t received_bytes(const Key32& peer) const;  // as in its stats; 0 for a stranger
  std::uint64_t sent_bytes(const Key32& peer) const;      // the same
  std::uint64_t inner_packets(const Key32& peer) const;   // the same

  Encapsulated encapsulate(ByteView ip_packet, const Now& now, Sink& sink);
  void decapsulate(ByteView datagram, const Endpoint& from, const Now& now, Sink& sink);
  // Many packets at a time, in a row or with help. From hold() on, what encapsulate() and send_control() seal is
  // gathered; release() has the crew seal it and gives it to the Sink in its order. Nothing else may be called in
  // between. At most so many packets are gathered for that crew; those before are sealed and sent when more come.
  static constexpr std::size_t kHeldMax = 256, kHeldAlone = 16;  // alone: as many as stay in the nearest cache
  void hold(const Crew& crew);
  void release(Crew& crew, Sink& sink);
  // Opens what is about to be given to decapsulate(), in this order and from this memory, without any other effect:
  // decapsulate() then finds it done. To be called again for the next ones; what is not asked for is forgotten.
  void open_ahead(std::span<const ByteView> datagrams, Crew& crew, const Now& now);
  // A message to the peer's Device, sealed like a packet, to this endpoint; false without a session. First byte < 0x10.
  bool send_control(const Key32& peer, const Endpoint& to, ByteView message, const Now& now, Sink& sink);
  void start_handshake(const Key32& peer, const Now& now, Sink& sink);  // at most every 5 s
  // A handshake that waits for its answer is tried again within this time: the way to the peer has just changed.
  void hurry(const Key32& peer, Millis within, const Now& now);
  void tick(const Now& now, Sink& sink);
  std::vector<PeerStats> stats() const;
  // Peers ignore initiations that are stamped earlier than one they have seen. After a restart on a clock that was set
  // back, stamps begin at this time all the same; keep latest_stamp() for the next life.
  void stamp_from(WallTime floor);
  WallTime latest_stamp() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace muster::overlay
