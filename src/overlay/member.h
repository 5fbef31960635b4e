#pragma once
// One machine's place in one cluster's overlay, without sockets or clock: Device + verified roster + choice of the path
// + answers to packets that nobody can take. Every pair talks through the relay at once. UDP endpoints are probed
// inside the session: those of the roster (the machine's private addresses), those that a member tells of itself (how
// its socket looks from outside its NAT; both then try at the same time, which is what opens two NATs), and wherever an
// authentic probe came from. A direct path is used only after a full-size probe was answered (so both directions carry
// full packets); when its probes stay unanswered for kDirectTimeout the relay takes over. Where nothing was heard from
// yet only small probes go, few of them: a member cannot make others flood somebody. One thread; Out must not call
// back. Bounds: members as in the roster, candidates per member.
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "overlay/device.h"
#include "overlay/roster.h"

namespace muster::overlay {

inline constexpr std::size_t kInnerMtu = 1380;
inline constexpr Millis kDirectTimeout{3'500}, kProbeEvery{1'000}, kProbeBackoffMax{30'000};
inline constexpr std::size_t kCandidatesMax = 10, kPublicMax = 3;
inline constexpr Millis kBurst{3'000}, kShortBurst{1'000}, kTellEvery{30'000};

class Out {
 public:
  virtual ~Out() = default;
  virtual void to_relay(const Key32& member, ByteView datagram) = 0;
  virtual void to_udp(std::uint32_t ip, std::uint16_t port, ByteView datagram) = 0;
  virtual void to_tun(ByteView ip_packet) = 0;
};

struct MemberStats {
  PeerStats peer;
  std::uint32_t address = 0;
};

class Member {
 public:
  Member(const crypto::X25519Pair& key, std::uint32_t address, std::uint8_t prefix_bits, const Secret32& psk,
         RosterGuard guard = {});
  ~Member();
  // Verifies and applies; what leaves the roster is cut off at once. Returns how many entries were rejected. Without
  // `machines` nobody vouches for the device keys, which is for tests.
  Result<std::size_t> set_roster(ByteView bytes, const std::vector<Bytes>& signatures,
                                 const std::vector<Key32>& signers,
                                 const std::optional<MachineProofs>& machines = std::nullopt);
  bool knows(const Key32& member) const { return paths_.contains(member); }
  const RosterGuard& guard() const { return guard_; }

  void from_tun(ByteView ip_packet, const Now& now, Out& out);  // dropped unless it comes from our own address
  void from_relay(const Key32& member, ByteView datagram, const Now& now, Out& out);
  void from_udp(std::uint32_t ip, std::uint16_t port, ByteView datagram, const Now& now, Out& out);
  // How this machine's socket is seen from outside, kPublicMax at most; told to every member when it changes.
  void set_public(std::vector<Endpoint> endpoints, const Now& now, Out& out);
  void greet(const Now& now, Out& out);                   // after a restart: a handshake with every member, unasked
  void relay_up(const Now& now);                          // what was sent before got lost: handshakes go out again
  void relay_lacks(const Key32& member, const Now& now);  // the relay knows no such member (yet): ask again soon
  void tick(const Now& now, Out& out);
  std::vector<MemberStats> stats() const;
  void stamp_from(WallTime floor) { device_.stamp_from(floor); }  // as of Device
  WallTime latest_stamp() const { return device_.latest_stamp(); }

 private:
  enum class Origin : std::uint8_t { Roster, Told, Heard };
  struct Candidate {
    Endpoint at;
    Origin origin = Origin::Roster;
    LeaseTime last_pong, last_ping;
    bool pinged = false;
    std::uint64_t id = 0;
  };
  struct Path {
    std::uint32_t address = 0;
    std::vector<Candidate> candidates;
    std::optional<Endpoint> direct;
    LeaseTime next_probe, direct_since;
    LeaseTime burst_until;          // both sides try now
    std::optional<LeaseTime> told;  // when the member was told of our endpoints
    Millis backoff = kProbeEvery;
  };
  struct Pong {
    Key32 peer;
    Endpoint to;
    Bytes message;
  };
  class Wire;
  void on_control(const Key32& peer, const Endpoint& from, ByteView message, const Now& now);
  void flush(const Now& now, Out& out);
  void probe(const Key32& key, Path& path, const Now& now, Out& out);
  void on_here(Path& path, ByteView message, const Now& now);
  static void burst(Path& path, Millis length, const Now& now);
  void tell(const Key32& key, Path& path, const Now& now, Out& out);
  bool usable_candidate(const Endpoint& endpoint, Origin origin) const;
  bool add_candidate(Path& path, const Endpoint& endpoint, Origin origin, const Now& now) const;

  crypto::X25519Pair key_;
  std::uint32_t address_, mask_;
  Secret32 psk_;
  RosterGuard guard_;
  Device device_;
  std::map<Key32, Path> paths_;
  std::vector<Pong> pongs_;
  std::vector<Endpoint> public_;
  std::uint64_t next_id_ = 1;
};

}  // namespace muster::overlay
