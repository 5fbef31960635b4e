#pragma once
// Inside of Device: one session's keys and counters, one pending handshake, one peer. Not for other rooms.
#include <memory>
#include <optional>
#include <vector>

#include "crypto/aead.h"
#include "overlay/device.h"
#include "overlay/noise.h"
#include "overlay/replay.h"

namespace muster::overlay {

// Constants of the whitepaper, section 6.1.
inline constexpr Millis kRekeyAfter{120'000}, kRejectAfter{180'000}, kRekeyAttempt{90'000}, kRekeyTimeout{5'000},
    kKeepalive{10'000};
inline constexpr std::uint64_t kRekeyAfterMessages = std::uint64_t{1} << 60;
inline constexpr std::uint64_t kRejectAfterMessages = ~std::uint64_t{0} - (std::uint64_t{1} << 13);
inline constexpr Millis kCookieLife{120'000};
inline constexpr Millis kInitiationGap{20};  // a peer's initiations are answered at most this often

inline constexpr std::size_t kInitiationBytes = 148, kResponseBytes = 92, kCookieBytes = 64, kTransportHeader = 16;
inline constexpr std::uint8_t kTypeInitiation = 1, kTypeResponse = 2, kTypeCookie = 3, kTypeTransport = 4;

struct Session {
  Session(std::uint32_t local_index, std::uint32_t remote_index, const Secret32& send_key, const Secret32& receive_key,
          LeaseTime now, bool we_initiated)
      : local(local_index),
        remote(remote_index),
        seal(send_key),
        open(receive_key),
        created(now),
        initiator(we_initiated) {}
  std::uint64_t serial = 0;  // of the Device's life: an index may come again, this never
  std::uint32_t local, remote;
  crypto::SealKey seal;
  crypto::OpenKey open;
  ReplayWindow replay;
  std::uint64_t next_counter = 0;
  LeaseTime created;
  bool initiator;
  bool usable(LeaseTime now) const { return now - created < kRejectAfter && next_counter < kRejectAfterMessages; }
};

struct PendingHandshake {
  Noise noise;
  crypto::X25519Pair ephemeral;
  std::uint32_t local = 0;
  LeaseTime sent_at;
  Millis retry_after{0};
};

struct Peer {
  PeerConfig config;
  Secret32 static_static;
  Key32 mac1_key{};     // of messages to this peer
  Secret32 cookie_key;  // opens cookie replies of this peer
  Endpoint endpoint;
  std::unique_ptr<Session> previous, current, next;
  std::unique_ptr<PendingHandshake> pending;
  std::optional<LeaseTime> attempt_started;  // first initiation of this row of attempts
  std::optional<LeaseTime> last_initiation_sent, last_initiation_received;
  std::array<std::uint8_t, 12> last_timestamp{};
  std::vector<Bytes> staged;  // costs nothing while it is empty, as it is for most
  crypto::Tag16 last_mac1{}, cookie{};
  std::optional<LeaseTime> cookie_at;
  std::optional<LeaseTime> unanswered_since;  // data sent, nothing received since
  std::optional<LeaseTime> keepalive_due;     // data received, nothing sent since
  LeaseTime last_sent;
  PeerStats stats;
};

}  // namespace muster::overlay
