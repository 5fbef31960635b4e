#pragma once
// The UDP side of muster-relay, sans-I/O, both ends. A member whose TLS connection was let in is told an id and a key
// in that connection's Welcome (relay_protocol.h); with them it may send the same ciphertext over UDP, to the port of
// the same number or, where that is blocked, to a second one that the Welcome names.
//   datagram: magic u8, id u32, counter u56 (big endian), then 9 bytes sealed with ChaCha20-Poly1305 (25): kind u8,
//   value u64; then payload (Data, which authenticates itself from end to end) or zeros (Ping, Pong).
//   member -> relay  Ping, PingUse{cookie or 0}: PingUse also says "bring me what is for me this way"
//   relay -> member  Pong{counter of the ping}, as long as the ping; Cookie{cookie}
//   either way       Data{first 8 bytes of the other member's overlay key}; relay -> member Gone{the same}
// Each direction has a key of its own, the counter is the nonce and never repeats. The relay says nothing to whom it
// cannot authenticate, never more bytes than were asked, and sends to an address only after a ping from there brought
// back the cookie that it had told to that address. Values; nothing here is shared between threads.
#include <array>
#include <optional>
#include <vector>

#include "base/time.h"
#include "crypto/aead.h"
#include "overlay/device.h"
#include "overlay/replay.h"

namespace muster::overlay {

inline constexpr std::uint8_t kUdpRelayMagic = 0xc7;  // neither WireGuard nor STUN begins so
inline constexpr std::uint8_t kUdpRelayVersion = 1;
inline constexpr std::size_t kUdpRelayHeader = 37;
inline constexpr std::size_t kUdpRelayPayloadMax = 1'412;  // a full packet, sealed
inline constexpr std::size_t kUdpRelayDatagramMax = kUdpRelayHeader + kUdpRelayPayloadMax;
// How often a member asks whether the way is there: while large packets go that way (with pings of full size), while
// small ones do, while none do, and again without an answer. After kUdpRelayDead without one it goes by TLS, and so
// does the relay towards a member that it did not hear for kUdpRelayFresh. What begins after a silence begins over TLS
// for a round trip.
inline constexpr Millis kUdpRelayBusy{1'000}, kUdpRelayLight{2'000}, kUdpRelayIdle{15'000}, kUdpRelayAgain{400},
    kUdpRelayDead{1'900}, kUdpRelayFresh{3'500};
inline constexpr std::size_t kUdpRelayLarge = 300;                          // payload
inline constexpr Millis kUdpRelayWaitMin{1'000}, kUdpRelayWaitMax{30'000};  // until a dead way is tried again

// ---- what Welcome brings
struct UdpGrant {
  std::uint32_t id = 0;
  Secret32 key;
  std::uint16_t second_port = 0;  // of the relay, for the same; 0: it has none
};
Bytes encode_udp_grant(const UdpGrant& grant);
std::optional<UdpGrant> decode_udp_grant(ByteView welcome);  // nullopt: none there, or of a version that we do not know

// ---- header
enum class UdpRelayKind : std::uint8_t { Ping = 1, PingUse = 2, Pong = 3, Cookie = 4, Data = 5, Gone = 6 };
struct UdpRelayHead {
  UdpRelayKind kind = UdpRelayKind::Data;
  std::uint64_t value = 0, counter = 0;
};
enum class UdpRelayEnd : std::uint8_t { Member, Relay };  // whose datagrams
using UdpRelayHeadBytes = std::array<std::uint8_t, kUdpRelayHeader>;

class UdpRelaySealer {
 public:
  UdpRelaySealer(const UdpGrant& grant, UdpRelayEnd sender);
  std::uint64_t seal(UdpRelayKind kind, std::uint64_t value, std::uint8_t* out);  // kUdpRelayHeader bytes; the counter

 private:
  crypto::SealKey key_;
  std::uint32_t id_;
  std::uint64_t next_ = 1;
};
class UdpRelayOpener {
 public:
  UdpRelayOpener(const UdpGrant& grant, UdpRelayEnd sender);
  // nullopt: forged, damaged, seen already or too old.
  std::optional<UdpRelayHead> open(ByteView datagram);

 private:
  crypto::OpenKey key_;
  std::uint32_t id_;
  ReplayWindow seen_;
};
bool is_udp_relay(ByteView datagram);            // at a glance
std::uint32_t udp_relay_id(ByteView datagram);   // of one that is
std::uint64_t udp_relay_name(const Key32& key);  // how Data names a member

// ---- the relay's end
// Cookies: who sends one back reads what is sent to that address. They hold for half a minute at most.
class UdpCookies {
 public:
  explicit UdpCookies(const Secret32& secret) : secret_(secret) {}
  std::uint64_t cookie(std::uint32_t id, const Endpoint& at, LeaseTime now) const { return of(id, at, slot(now)); }
  bool fits(std::uint64_t cookie, std::uint32_t id, const Endpoint& at, LeaseTime now) const;

 private:
  static std::uint64_t slot(LeaseTime now) { return static_cast<std::uint64_t>(now.ms) / 15'000; }
  std::uint64_t of(std::uint32_t id, const Endpoint& at, std::uint64_t slot) const;
  Secret32 secret_;
};

class UdpRelayLeg {
 public:
  explicit UdpRelayLeg(const UdpGrant& grant, std::uint64_t bytes_per_second);
  struct Taken {
    enum class What : std::uint8_t { Refused /* not authentic */, Throttled, Nothing, Data } what = What::Refused;
    std::uint64_t to = 0;  // of Data: who it is for
    ByteView payload;
    std::size_t answer = 0;  // so long is what goes back to where it came from: answer_head, then zeros
    UdpRelayHeadBytes answer_head{};
    bool challenged = false, moved = false;
  };
  // Data is taken from any address: it is authentic, and brings nothing there but a cookie.
  // door: which of the relay's ports it came to.
  Taken take(const Endpoint& from, ByteView datagram, const UdpCookies& cookies, LeaseTime now, std::uint8_t door = 0);
  std::optional<Endpoint> at(LeaseTime now) const;  // where what is for this member goes; nullopt: over TLS
  std::uint8_t door() const { return door_; }       // and from which port: the one of its last ping from there
  void seal(UdpRelayKind kind, std::uint64_t value, std::uint8_t* out) { sealer_.seal(kind, value, out); }

 private:
  struct Bucket {
    std::int64_t rate = 0, burst = 0, level = 0;  // units a second
    LeaseTime at{};
    bool take(std::int64_t cost, LeaseTime now);
  };
  void challenge(Taken& out, const Endpoint& from, const UdpCookies& cookies, LeaseTime now);
  void pong(Taken& out, std::uint64_t counter, std::size_t size);

  std::uint32_t id_;
  UdpRelaySealer sealer_;
  UdpRelayOpener opener_;
  std::optional<Endpoint> at_;
  std::uint8_t door_ = 0;
  bool use_ = false;
  LeaseTime heard_{};
  Bucket bytes_, pings_, cookies_;
};

// ---- the member's end
class UdpMemberLeg {
 public:
  UdpMemberLeg(const UdpGrant& grant, LeaseTime now);
  // A ping that is to be sent now, or nothing. Called a few times a second, and after each take().
  Bytes due(LeaseTime now, std::uint64_t micros);
  struct Taken {
    enum class What : std::uint8_t { Refused, Nothing, Data, Gone } what = What::Refused;
    std::uint64_t name = 0;  // who it is from, or who is not there
    ByteView payload;
  };
  Taken take(ByteView datagram, LeaseTime now, std::uint64_t micros);
  // A packet of that size is about to leave, or came by TLS: true where it should leave by wrap().
  bool wants(std::size_t payload, LeaseTime now);
  // A datagram to that member, at the end of out.
  void wrap(const Key32& member, ByteView payload, LeaseTime now, Bytes& out);
  bool usable() const { return good_; }             // it carries full-size datagrams both ways
  std::uint32_t failed() const { return failed_; }  // attempts that came to nothing: another port may do better
  void hurry(LeaseTime now);                        // try at once: something has changed
  std::uint32_t rtt_us() const { return rtt_us_; }  // smoothed; 0: not known
  std::uint32_t id() const { return id_; }

 private:
  struct Asked {
    std::uint64_t counter = 0, micros = 0;
    std::size_t size = 0;
  };
  bool busy(LeaseTime now) const { return now < busy_until_; }
  Millis every(LeaseTime now) const;
  void touched(std::size_t payload, LeaseTime now);
  void lost(LeaseTime now);

  std::uint32_t id_;
  UdpRelaySealer sealer_;
  UdpRelayOpener opener_;
  std::array<Asked, 8> asked_{};
  std::size_t turn_ = 0;
  std::uint64_t cookie_ = 0;
  bool good_ = false, full_next_ = false, open_ = false;
  int tries_ = 0;
  std::uint32_t failed_ = 0;
  LeaseTime next_{}, since_{}, busy_until_{}, light_until_{}, sent_{}, answered_{};
  Millis wait_ = kUdpRelayWaitMin;
  std::uint32_t rtt_us_ = 0;
};

}  // namespace muster::overlay
