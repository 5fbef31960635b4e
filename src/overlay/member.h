#pragma once
// One machine's place in one cluster's overlay, without sockets or clock: Device + verified roster + choice of the path
// + answers to packets that nobody can take. Every pair talks through the relay at once. UDP endpoints are probed
// inside the session: those of the roster (the machine's private addresses), those that a member tells of itself (how
// its socket looks from outside its NAT, and its IPv6 address; both then try at the same time, which is what opens two
// NATs), and wherever an authentic probe came from. A direct path is used only for what it carries both ways: the
// largest of kInnerSizes whose probe was answered; larger packets are cut, or answered as a router answers them. When
// its probes stay unanswered for kDirectTimeout, or those of its size while small ones pass, the relay takes over. Of
// several relays each pair uses the one by which it is nearest from end to end, and another as soon as that one fails:
// handshakes go by all. In rank between a direct way and a relay stands another member that offers to carry (its owner
// allows it) and that both ends reach directly: it gets the two ends' own ciphertext inside its sessions with each,
// sends one datagram for one, and only between members of the roster. Where nothing was heard from yet only small
// probes go, few of them: a member cannot make others flood somebody. Whose owner hides its address tells none, takes
// and answers nothing but by relays, and says that to the others. One thread; Out must not call back. Bounds:
// members as in the roster, candidates per member, offers, what waits and what is counted.
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "overlay/device.h"
#include "overlay/pacer.h"
#include "overlay/roster.h"

namespace muster::overlay {

inline constexpr std::size_t kInnerMtu = 1420;    // what the tunnel offers: sealed and by IPv6 it makes 1,500
inline constexpr std::size_t kRelayedMtu = 1376;  // by a relay or another member, whose wrapping comes on top
// What a direct way may carry; sealed, the least of them fits into the 1,280 bytes that IPv6 carries everywhere.
inline constexpr std::array<std::size_t, 4> kInnerSizes = {kInnerMtu, kRelayedMtu, 1300, 1200};
inline constexpr Millis kDirectTimeout{3'500}, kProbeEvery{1'000}, kProbeBackoffMax{30'000};
inline constexpr std::size_t kCandidatesMax = 10, kPublicMax = 3;  // public: of each family
inline constexpr Millis kBurst{3'000}, kShortBurst{1'000}, kTellSoon{1'000}, kTellEvery{30'000};
// Small, only while a relay is the way: of the one in use and of the others, more often while programs talk.
inline constexpr Millis kRelayProbeEvery{5'000}, kRelayProbeBusy{500}, kOtherRelayProbeEvery{30'000};
// Without an answer for so long, while another answers, a relay is left: before TCP's pauses between attempts grow
// long.
inline constexpr Millis kRelayTimeout{1'750};
inline constexpr Millis kRelayStay{15'000};  // a nearer one is not taken sooner after a change
inline constexpr std::size_t kRelaysMax = 8;
inline constexpr std::uint32_t kLossWindow = 32;

class Out {
 public:
  virtual ~Out() = default;
  virtual void to_relay(std::size_t relay, const Key32& member, ByteView datagram) = 0;
  virtual void to_udp(std::uint32_t ip, std::uint16_t port, ByteView datagram) = 0;
  virtual void to_udp6(const Ip6&, std::uint16_t, ByteView) {}  // who has no IPv6 loses it
  virtual void to_tun(ByteView ip_packet) = 0;
  virtual bool may_reach(const Endpoint&) { return true; }  // false: no direct way, it would lead through a tunnel
  virtual bool may_carry(std::size_t) { return false; }  // so many bytes for others; false: the owner's cap is reached
  virtual void took_test(std::size_t) {}                 // so many bytes came that were sent only to measure
  virtual std::uint64_t micros() const { return 0; }     // any steady clock, for round trips only; 0: none are measured
  // What was sent so far leaves now, and what comes next does not join it: probes show what becomes of a datagram that
  // is handed over alone.
  virtual void apart() {}
  // Is it wanted to know how much of what goes by that way arrives? Then: of `sent` bytes to that member `lost` did
  // not.
  virtual bool compares(const Endpoint&) const { return false; }
  virtual void fared(std::uint32_t, std::uint64_t, std::uint64_t) {}  // member, sent, lost
};

// Where an endpoint of a member is known from: the signed roster, the member itself, a probe of it that came from
// there.
enum class Origin : std::uint8_t { Roster, Told, Heard };

// What became of the probes of one endpoint.
struct Tried {
  Endpoint at;
  Origin origin = Origin::Roster;
  std::uint32_t sent = 0, answered = 0;
  bool full = false;         // one of full size was answered
  std::uint32_t rtt_us = 0;  // smoothed; 0 = never answered, or not measured
  bool barred = false;       // Out said that no direct way may lead there
};

// Carrying for others: how often that is offered and how long an offer holds; how many offers are remembered, how many
// are tried for a pair, to how many members we offer, and how many pairs are counted.
inline constexpr Millis kOfferEvery{30'000}, kOfferLife{75'000}, kGreetEvery{120'000};
inline constexpr std::size_t kOffersMax = 16, kCarriersMax = 3, kOfferedMax = 256, kCountedMax = 1'024;
// What went to, and came from, `with` by way of `by`, in bytes of ciphertext; what was carried from one to another.
struct CarriedCount {
  std::uint32_t by = 0, with = 0;
  std::uint64_t sent = 0, received = 0;
};
struct ForwardedCount {
  std::uint32_t from = 0, to = 0;
  std::uint64_t bytes = 0;
};

struct RelayTried {
  std::size_t relay = 0;
  std::uint32_t sent = 0, answered = 0, rtt_us = 0;
};

struct MemberStats {
  PeerStats peer;
  std::uint32_t address = 0;
  LeaseTime since;                   // when the present way was taken; 0 = not looked at yet
  std::uint32_t rtt_us = 0;          // of the present way, smoothed; 0 = not known
  std::uint32_t relay_rtt_us = 0;    // of the last time by a relay
  std::optional<std::size_t> relay;  // by which it goes, or would go
  std::vector<RelayTried> relays;
  std::optional<std::uint32_t> by;  // the member that carries it
  std::uint32_t asked = 0,
                lost = 0;  // of the last kLossWindow probes of the present way; an answer later than the next is lost
  std::uint32_t changes = 0;          // of the way, since the member is in the roster
  std::size_t mtu = kRelayedMtu;      // what the present way carries
  std::uint64_t carries_bytes_s = 0;  // what the present way was last found to carry from us to it; 0 = no end was met
  LeaseTime carries_since;
  bool takes_tests = false, by_test = false;  // it says so; carries_bytes_s was found by a test
  LeaseTime tested;                           // when one was last begun; 0 = never on this way
  std::uint64_t at_least_bytes_s = 0;         // the most that a test saw arrive without meeting an end
  LeaseTime at_least_since;
  bool hidden = false;          // it says that its owner hides its address
  std::vector<Tried> carriers;  // by their inner address
  std::vector<Tried> tried;     // by relay: all; directly: what was tried until it was found
};

// The present way to a member, for who sends much.
struct Way {
  const Key32* member = nullptr;  // null: nobody has that address
  std::optional<std::size_t> relay;
  std::uint64_t bytes_s = 0;  // bulk must not go faster, or a queue stands before the way's slowest link; 0 = no limit
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
  const Key32* named(std::uint64_t name) const;  // whose key begins so (udp_relay_name); null: nobody's
  const RosterGuard& guard() const { return guard_; }

  void from_tun(ByteView ip_packet, const Now& now, Out& out);  // dropped unless it comes from our own address
  // Several of them in a row, or with a crew's help: hold(), from_tun() for each, release(); nothing else in between.
  void hold(const Crew& crew) { device_.hold(crew); }
  void release(Crew& crew, const Now& now, Out& out);
  // What is about to be given to from_udp() or from_udp6(), in this order: opened with a crew's help; nothing, where
  // all of it will be dropped.
  void open_ahead(std::span<const ByteView> datagrams, Crew& crew, const Now& now) {
    device_.open_ahead(hides_ ? std::span<const ByteView>() : datagrams, crew, now);
  }
  // After packets for that address, bytes in all: now and then a probe follows them, from which their pace is learnt.
  // Whoever does not call it is never limited.
  void sent(std::uint32_t address, std::size_t bytes, const Now& now, Out& out);
  Way way(std::uint32_t address) const;
  void from_relay(std::size_t relay, const Key32& member, ByteView datagram, const Now& now, Out& out);
  void from_udp(std::uint32_t ip, std::uint16_t port, ByteView datagram, const Now& now, Out& out);
  void from_udp6(const Ip6& ip, std::uint16_t port, ByteView datagram, const Now& now, Out& out);
  // How this machine's sockets are seen from outside, kPublicMax of each family at most; told to every member when it
  // changes.
  void set_public(std::vector<Endpoint> endpoints, const Now& now, Out& out);
  // From now on by relays only: nobody is told where this machine is, or hears from it directly.
  void set_relay_only(bool on, const Now& now, Out& out);
  // This machine slept, or is `elsewhere`: every way is tried again at once, and elsewhere the direct ones that led to
  // where it was are left for the relays until they answer again.
  void moved(bool elsewhere, const Now& now);
  void greet(const Now& now, Out& out);  // after a restart: a handshake with every member, unasked
  // Which relays there are: so many, kRelaysMax at most, none of them up yet; what was known of others is forgotten.
  void set_relays(std::size_t count, const Now& now);
  void relay_up(std::size_t relay, const Now& now);  // what was sent before got lost: handshakes go out again
  void relay_down(std::size_t relay, const Now& now);
  // Packets go to that relay in another way from now on (over UDP, or TLS again): what was learnt of pace and loss
  // ends.
  void relay_changed(std::size_t relay, const Now& now);
  // That relay knows no such member (yet): another one, or ask again soon.
  void relay_lacks(std::size_t relay, const Key32& member, const Now& now);
  void tick(const Now& now, Out& out);
  void set_carries(bool carries, const Now& now, Out& out);  // may others be told that we carry for them?
  bool carries() const { return carries_; }
  // Tests of how much a direct way carries: filler that means nothing, beside which probes go. Who sends it decides how
  // much, from what is its own; nobody can make another send. Only to members that say that they take it.
  void set_tests(bool takes, const Now& now, Out& out);
  bool begin_test(std::uint32_t address, const Now& now);  // false: nothing can be tested there
  bool fill(std::uint32_t address, std::size_t bytes, const Now& now,
            Out& out);  // false: the end was met, or it is over
  void end_test(std::uint32_t address);
  std::vector<CarriedCount> carried() const;
  std::vector<ForwardedCount> forwarded() const;
  std::vector<MemberStats> stats() const;
  void stamp_from(WallTime floor) { device_.stamp_from(floor); }  // as of Device
  WallTime latest_stamp() const { return device_.latest_stamp(); }

 private:
  // The last probe that went one way, and how those before it fared.
  struct Probe {
    LeaseTime last_pong;
    bool pinged = false, open = false;             // open: not answered yet
    std::uint64_t first = 0, id = 0, sent_us = 0;  // one number for each size that went
    std::uint64_t oldest = 0;                      // of those since the last answer: late ones count too
    std::uint32_t sent = 0, answered = 0, rtt_us = 0;
    std::uint32_t missed = 0, asked = 0;  // missed: one bit for each of the last `asked`
    std::uint32_t least_us = 0;           // about the shortest round trip of late
    std::uint32_t in_a_row = 0;           // answered without one that was not
    LeaseTime waits_from, lacks_until;    // since when no answer came, while open; of a relay: the member is not there
    void send(std::uint64_t first_number, std::uint64_t last_number, std::uint64_t micros, bool counts, LeaseTime now);
    bool answer(std::uint64_t number, std::uint64_t micros, LeaseTime now);
    bool silent(Millis time, LeaseTime now) const { return open && now - waits_from >= time; }
    void forget_loss() { missed = asked = 0; }
  };
  struct Candidate {
    Endpoint at;
    Origin origin = Origin::Roster;
    Probe probe = {};
    std::size_t carries = 0;  // the largest of kInnerSizes that was ever answered
    int asked_all = 0;        // how often all of them went since it answered
    bool barred = false;      // when last looked at
  };
  // Probes of the size that the present direct way is believed to carry, until one of them is answered.
  struct SizeCheck {
    std::uint64_t first = 0, last = 0;
    bool open = false;
    int sent = 0;
    LeaseTime began, next, grow;  // grow: then larger ones are tried too
    Millis grow_wait{0};
  };
  // How much of what is sent arrives, between two answers of the other end.
  struct Fate {
    struct Asked {
      std::uint64_t number = 0, sent = 0;
    };
    Endpoint way;
    std::array<Asked, 8> asked{};
    std::uint64_t number = 0;          // of the last that was asked
    std::uint64_t answered = 0;        // 0: none yet by this way
    std::uint64_t sent = 0, came = 0;  // at the time of that one
    std::uint64_t asked_at = 0;        // bytes sent when it was last asked
  };
  struct Path {
    std::uint32_t address = 0;
    std::vector<Candidate> candidates;
    std::optional<Endpoint> direct;
    std::size_t mtu = kRelayedMtu;  // what the present way carries
    SizeCheck size;
    LeaseTime refused;          // when a packet was last said to be too large
    std::vector<Probe> relays;  // none until the first of them is asked
    std::size_t relay = 0;      // by which it goes while nothing is better
    bool relay_chosen = false;  // by what was measured, or heard
    LeaseTime relay_since;
    std::uint64_t inner = 0;  // packets of programs, when last looked at
    LeaseTime busy_until, next_other_probe;
    LeaseTime next_probe, next_relay_probe, since;
    std::uint32_t changes = 0;
    LeaseTime burst_until;          // both sides try now
    std::optional<LeaseTime> told;  // when the member was told of our endpoints
    Millis tell_wait = kTellSoon;   // until it is told again, while there is no direct way: the message may be lost
    Millis backoff = kProbeEvery;
    std::vector<Candidate> carriers;
    std::optional<std::uint32_t> by;  // the carrier, where one is the way
    LeaseTime next_carrier_probe;
    Millis carrier_backoff = kProbeEvery;
    LeaseTime offered, greeted;    // when we last said that we carry; tried to reach it for that
    std::unique_ptr<Pacer> pacer;  // of the present way, once much is sent
    std::size_t unpaced = 0;       // sent before that
    LeaseTime carries_since;
    LeaseTime takes_tests_until, told_tests;
    LeaseTime hidden_until, told_hidden;  // its owner hides it; when we said that ours does
    LeaseTime tested, at_least_since;     // of the present way
    bool testing = false, by_test = false;
    std::uint64_t at_least = 0, found_before_us = 0;
    std::unique_ptr<Fate> fate;  // once somebody compares
  };
  // What could not be sent, or taken in, while the Device was at work.
  struct Later {
    Key32 peer;
    Endpoint to;
    Bytes message;
  };
  struct Arrived {
    Endpoint from;
    Bytes datagram;
  };
  struct Counted {
    std::uint64_t out = 0, in = 0;
  };
  class Wire;
  void on_control(const Key32& peer, const Endpoint& from, ByteView message, const Now& now, Out& out);
  void on_offer(const Path& path, ByteView message, const Now& now);
  void on_carry(const Key32& peer, const Path& path, const Endpoint& from, ByteView message, Out& out);
  void on_carried(const Key32& peer, const Path& path, const Endpoint& from, ByteView message);
  void carry(const Endpoint& to, ByteView datagram);
  const std::pair<const Key32, Path>* carrier(std::uint32_t by, LeaseTime now) const;
  void probe_carriers(const Key32& key, Path& path, const Now& now, Out& out);
  void find_carriers(const Key32& key, Path& path, LeaseTime now);
  void take_carrier(const Key32& key, Path& path, std::optional<std::uint32_t> by, const Now& now);
  void offer(const Now& now, Out& out);
  void tell_tests(const Now& now, Out& out);
  void tell_hidden(const Now& now, Out& out);
  void only_relays(const Key32& key, Path& path, const Now& now);
  void changed_way(const Key32& key, Path& path, const Now& now);
  void on_pong(const Key32& peer, Path& path, const Endpoint& from, ByteView message, const Now& now,
               std::uint64_t micros);
  void on_pace_pong(Path& path, const Endpoint& from, ByteView message, const Now& now, std::uint64_t micros);
  void answer(const Key32& peer, const Endpoint& from, ByteView ping, std::uint64_t micros);
  void probe_pace(const Key32& key, Path& path, const Now& now, Out& out);
  void ask_fate(const Key32& key, Path& path, const Now& now, Out& out);
  static void on_fate(Path& path, ByteView message, Out& out);
  void flush(const Now& now, Out& out);
  void probe(const Key32& key, Path& path, const Now& now, Out& out);
  void probe_relays(const Key32& key, Path& path, const Now& now, Out& out);
  void ask_relay(const Key32& key, Path& path, std::size_t relay, const Now& now, Out& out);
  bool relay_serves(const Path& path, std::size_t relay, LeaseTime now) const;
  void choose_relay(const Key32& key, Path& path, const Now& now);
  void take_relay(const Key32& key, Path& path, std::size_t relay, const Now& now);
  static const Probe* relay_probe(const Path& path);
  static Endpoint way_of(const Key32& key, const Path& path);
  void take(const Key32& key, Path& path, const std::optional<Endpoint>& direct, const Now& now,
            std::size_t mtu = kRelayedMtu);
  void set_mtu(Path& path, std::size_t mtu);
  void answered_size(Path& path, const Candidate& from, std::uint64_t id, std::size_t size, const Now& now);
  void check_size(const Key32& key, Path& path, const Now& now, Out& out);
  void send_ping(const Key32& key, const Endpoint& to, std::uint64_t id, std::size_t size, const Now& now, Out& out);
  bool too_large(ByteView packet, std::uint32_t to, const Now& now, Out& out);
  void from(const Endpoint& at, ByteView datagram, const Now& now, Out& out);
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
  std::vector<bool> relays_up_;
  std::map<Key32, Path> paths_;
  std::unordered_map<std::uint32_t, std::pair<const Key32, Path>*> by_address_;
  std::vector<Later> later_;
  std::vector<Arrived> arrived_;
  bool carries_ = false, takes_tests_ = false, hides_ = false;
  std::map<std::uint32_t, LeaseTime> offers_;  // who carries, until when that holds
  std::map<std::pair<std::uint32_t, std::uint32_t>, Counted> carried_, forwarded_;  // (by, with); (from, to)
  std::vector<Endpoint> public_;
  std::uint32_t fragmented_ = 0;  // numbers packets that are cut
  std::size_t narrow_ = 0;        // how many ways carry less than kInnerMtu
  std::uint64_t next_id_ = 1;
  std::uint64_t first_micros_ = 0;  // times that others hear count from here: they need not know how long we run
};

}  // namespace muster::overlay
