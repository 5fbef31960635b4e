#include "overlay/member.h"

#include <algorithm>
#include <bit>

#include "base/endian.h"
#include "base/ipv4.h"
#include "overlay/packet.h"

namespace muster::overlay {
namespace {
// Control messages between members. Ping and Pong: kind, id, then zeros up to the size that is being tested. Here:
// kind, number, and that many times address and port. Here6: the same with IPv6 addresses.
// Offer: kind, 1 for "I carry" or 0. Carry: kind, the address that it is for, a datagram of the session with that one.
// Carried: kind, the address that it is from, the datagram. Tests: kind, 1 for "I take tests" or 0. Filler: kind, then
// zeros; members of older versions drop it, and are sent none. Hidden: kind, 1 for "my owner hides my address" or 0.
constexpr std::uint8_t kPing = 1, kPong = 2, kHere = 3, kOffer = 4, kCarry = 5, kCarried = 6, kHere6 = 7, kTests = 8,
                       kFiller = 9, kHidden = 10;
constexpr Millis kLeftTimeout{1'000};  // of a direct way that its other end does not tell any more
constexpr Millis kHeardFresh{5'000};   // who answered so lately is worth a full-size probe
constexpr Millis kReplaceable{10'000};
constexpr Millis kBusyFor{10'000}, kDoubtAfter{1'000}, kFreshEvery{1'000}, kLacksFor{5'000};
constexpr std::uint32_t kRelayAnswers = 3;  // then a relay's round trip is known
constexpr std::uint32_t kRelayAsked = 5;    // quickly, at first
constexpr Millis kProbeAgain{500};          // when the last was not answered: one lost packet must not end a way
constexpr std::size_t kProbeHeader = 9;
constexpr std::size_t kProbeSmall = 32;
constexpr std::size_t kPongsMax = 64, kLaterMax = 512;
constexpr std::size_t kCarryHeader = 5, kCarriedMax = kRelayedMtu + 32;
constexpr int kFlushRounds = 6;
constexpr int kGreetings = 4;                 // a tick
constexpr std::uint64_t kDetour_us = 20'000;  // more than twice the relay's way and this: no member carries it then
// A ping whose number has this bit asks how fast it goes: the pong adds when the ping came and how many bytes had come.
// Members of older versions send it back as it was, with zeros there.
constexpr std::uint64_t kPaceBit = std::uint64_t{1} << 63;
constexpr std::size_t kPaceBytes = kProbeHeader + 16;
// Beside kPaceBit: asked only for how many bytes had come.
constexpr std::uint64_t kFateBit = std::uint64_t{1} << 62;
constexpr std::uint64_t kFateBytes = 8 << 10;  // since it was last asked
constexpr std::size_t kBusyBytes = 64 << 10;   // whoever was sent less needs no pace yet
constexpr Millis kAskAgain{500};
// How often a direct way is asked whether it still carries its size, while little and while much is sent; a row of
// kSizeTries without an answer for kSizeLost (four round trips, if that is longer) means that it does not.
constexpr Millis kSizeEvery{8'000}, kSizeEveryBusy{2'000}, kSizeAgain{250}, kSizeLost{1'500};
constexpr int kSizeTries = 4;
constexpr Millis kGrowSoon{1'000}, kGrowLate{60'000};
constexpr int kFullEvery = 8;   // of the probes of a member that carries
constexpr int kSizesAsked = 2;  // so often all sizes are tried before less than the largest will do

DeviceOptions device_options() {
  DeviceOptions options;
  options.roam = false;
  options.mtu = kInnerMtu;
  return options;
}

// By 5 ms and by a fifth: less is not worth a change.
bool nearer(std::uint32_t rtt_us, std::uint32_t than_us) {
  return rtt_us != 0 && std::uint64_t{rtt_us} + 5'000 < than_us &&
         std::uint64_t{rtt_us} * 5 < std::uint64_t{than_us} * 4;
}

// A message of the protocol between two members: whoever carries needs no more of it, and carries nothing else.
bool sealed(ByteView d) {
  return d.size() >= 32 && d.size() <= kCarriedMax && d[0] >= 1 && d[0] <= 4 && d[1] == 0 && d[2] == 0 && d[3] == 0;
}

// Null: too many are counted already.
template <typename Map>
typename Map::mapped_type* count_of(Map& counts, const typename Map::key_type& which) {
  const auto found = counts.find(which);
  if (found != counts.end()) return &found->second;
  return counts.size() >= kCountedMax ? nullptr : &counts[which];
}

bool initiation(ByteView datagram) {
  return !datagram.empty() && datagram[0] == 1;
}
}  // namespace

// From the Device's view of endpoints to sockets. An initiation through a relay also goes by all others, so that the
// nearest brings it first, and to every direct candidate: members on one private network meet even while no relay
// answers. The receiver takes the first copy and drops the others as replays.
class Member::Wire : public Sink {
 public:
  Wire(Member& member, Out& out, const Now& now) : member_(member), out_(out), now_(now) {}
  void send(const Endpoint& to, ByteView datagram) override {
    if (to.direct()) return straight(to, datagram);
    const bool by_relay = to.kind == Endpoint::Kind::Relay;
    if (by_relay) out_.to_relay(to.port, to.key, datagram);
    if (to.kind == Endpoint::Kind::Peer) member_.carry(to, datagram);
    if (!initiation(datagram)) return;
    const auto path = member_.paths_.find(to.key);
    if (path == member_.paths_.end()) return;
    for (std::size_t i = 0; i < member_.relays_up_.size(); ++i)
      if ((!by_relay || i != to.port) && member_.relays_up_[i]) out_.to_relay(i, to.key, datagram);
    for (const Candidate& c : path->second.candidates)
      if (out_.may_reach(c.at)) straight(c.at, datagram);
  }
  // The sender's address is its own, the Device saw to that; what is not for us is nobody's: we are no router.
  void deliver(ByteView packet) override {
    const auto ends = packet_ends(packet);
    if (ends && ends->destination == member_.address_) out_.to_tun(packet);
  }
  void control(const Key32& peer, const Endpoint& from, ByteView message) override {
    member_.on_control(peer, from, message, now_, out_);
  }

 private:
  void straight(const Endpoint& to, ByteView datagram) {
    if (to.kind == Endpoint::Kind::Udp6) return out_.to_udp6(to.six, to.port, datagram);
    out_.to_udp(to.ip, to.port, datagram);
  }
  Member& member_;
  Out& out_;
  const Now& now_;
};

Member::Member(const crypto::X25519Pair& key, std::uint32_t address, std::uint8_t prefix_bits, const Secret32& psk,
               RosterGuard guard)
    : key_(key),
      address_(address),
      mask_(prefix_bits == 0 ? 0 : ~std::uint32_t{0} << (32 - std::min<int>(prefix_bits, 32))),
      psk_(psk),
      guard_(std::move(guard)),
      device_(key, device_options()) {}
Member::~Member() = default;

bool Member::usable_candidate(const Endpoint& e, Origin origin) const {
  // The roster's are of private networks only; what is told or heard is any machine's; never the overlay itself.
  if (e.kind == Endpoint::Kind::Udp6)
    return e.port != 0 && origin != Origin::Roster && (is_global(e.six) || is_unique_local(e.six)) &&
           !std::equal(kInner6.begin(), kInner6.end(), e.six.begin());
  const bool special = e.ip >> 24 == 0 || e.ip >> 24 == 127 || e.ip >> 16 == 0xa9fe || e.ip >> 28 >= 14;
  return e.kind == Endpoint::Kind::Udp && e.port != 0 && (is_private(e.ip) || (origin != Origin::Roster && !special)) &&
         (e.ip & mask_) != (address_ & mask_);
}

// True for one that was not known.
bool Member::add_candidate(Path& path, const Endpoint& e, Origin origin, const Now& now) const {
  const bool known = std::ranges::any_of(path.candidates, [&](const Candidate& c) { return c.at == e; });
  if (known || hides_ || path.hidden_until > now.lease || !usable_candidate(e, origin)) return false;
  if (path.candidates.size() >= kCandidatesMax) {
    const auto old = std::ranges::find_if(path.candidates, [&](const Candidate& c) {
      return c.origin != Origin::Roster && c.at != path.direct.value_or(Endpoint{}) &&
             now.lease - c.probe.last_pong >= kReplaceable;
    });
    if (old == path.candidates.end()) return false;
    path.candidates.erase(old);
  }
  path.candidates.push_back({.at = e, .origin = origin});
  return true;
}

Result<std::size_t> Member::set_roster(ByteView bytes, const std::vector<Bytes>& signatures,
                                       const std::vector<Key32>& signers,
                                       const std::optional<MachineProofs>& machines) {
  VerifiedRoster verified = TRY(verify_roster(bytes, signatures, signers));
  if (machines) verified.rejected += TRY(drop_unproven(verified.roster, *machines));
  TRY_VOID(guard_.admit(verified.roster, bytes));
  const auto& members = verified.roster.members;
  // Without our own entry we were removed: nobody is a peer any more.
  const bool ours = std::ranges::any_of(
      members, [&](const RosterMember& m) { return m.overlay_key == key_.public_key && m.address == address_; });
  std::vector<PeerConfig> peers;
  std::map<Key32, Path> paths;
  for (const RosterMember& m : members) {
    if (!ours || m.overlay_key == key_.public_key) continue;
    if ((m.address & mask_) != (address_ & mask_)) continue;
    Path& path = paths[m.overlay_key];
    if (const auto old = paths_.find(m.overlay_key); old != paths_.end()) path = std::move(old->second);
    path.address = m.address;
    peers.push_back(PeerConfig{m.overlay_key, psk_, {m.address}, way_of(m.overlay_key, path), {}});
    for (const Endpoint& e : m.lan) add_candidate(path, e, Origin::Roster, {});
  }
  device_.set_peers(peers);
  paths_ = std::move(paths);
  by_address_.clear();
  narrow_ = 0;
  for (auto& each : paths_) {
    by_address_.emplace(each.second.address, &each);
    narrow_ += each.second.mtu < kInnerMtu ? 1 : 0;
  }
  std::erase_if(offers_, [&](const auto& each) { return !by_address_.contains(each.first); });
  for (auto& [key, path] : paths_) {  // carried by one that left: by the relay from now on
    if (!path.by || by_address_.contains(*path.by)) continue;
    path.by.reset();
    path.since = {};
    device_.set_endpoint(key, way_of(key, path));
  }
  return verified.rejected;
}

void Member::from_tun(ByteView packet, const Now& now, Out& out) {
  // Another source than the roster's is dropped here, as the other end would drop it too.
  const auto ends = packet_ends(packet);
  if (!ends || ends->source != address_) return;
  if (too_large(packet, ends->destination, now, out)) return;
  Wire wire(*this, out, now);
  const Encapsulated what = device_.encapsulate(packet, now, wire);
  if (!later_.empty()) flush(now, out);
  if (what != Encapsulated::NoPeer) return;
  if (const auto answer = refuse_packet(packet)) out.to_tun(*answer);
}

void Member::release(Crew& crew, const Now& now, Out& out) {
  Wire wire(*this, out, now);
  device_.release(crew, wire);
  if (!later_.empty()) flush(now, out);
}

// True: it goes no further as it is, since it was cut or answered.
bool Member::too_large(ByteView packet, std::uint32_t to, const Now& now, Out& out) {
  if (packet.size() <= kInnerSizes.back() || (packet.size() <= kInnerMtu && narrow_ == 0)) return false;
  const auto it = by_address_.find(to);
  Path* path = it == by_address_.end() ? nullptr : &it->second->second;
  const std::size_t room = path == nullptr ? kInnerMtu : path->mtu;
  if (packet.size() <= room) return false;
  Wire wire(*this, out, now);
  const auto pieces =
      path == nullptr || packet.size() > kInnerMtu ? std::vector<Bytes>() : fragments(packet, room, ++fragmented_);
  for (const Bytes& piece : pieces) device_.encapsulate(piece, now, wire);
  // A whole row of packets may be too large: one answer is enough.
  if (!pieces.empty() || (path != nullptr && path->refused == now.lease && packet.size() <= kInnerMtu)) return true;
  if (path != nullptr) path->refused = now.lease;
  if (const auto answer = refuse_too_large(packet, static_cast<std::uint16_t>(room))) out.to_tun(*answer);
  return true;
}

void Member::sent(std::uint32_t address, std::size_t bytes, const Now& now, Out& out) {
  const auto it = by_address_.find(address);
  if (it == by_address_.end()) return;
  auto& [key, path] = *it->second;
  if (path.pacer) {
    path.pacer->sent(bytes);
    probe_pace(key, path, now, out);
    if (!later_.empty()) flush(now, out);
    return;
  }
  path.unpaced += bytes;
  const std::uint64_t micros = path.unpaced < kBusyBytes ? 0 : out.micros();
  if (micros == 0) return;
  const Probe* by_relay = relay_probe(path);
  std::uint32_t least = by_relay == nullptr ? 0 : by_relay->least_us;
  const Endpoint used = way_of(key, path);
  for (const auto* list : {&path.candidates, &path.carriers})
    for (const Candidate& c : *list)
      if (c.at == used) least = c.probe.least_us;
  path.unpaced = 0;
  path.pacer = std::make_unique<Pacer>(least, micros);
  path.size.next = std::min(path.size.next, now.lease);
  probe_pace(key, path, now, out);
}

Way Member::way(std::uint32_t address) const {
  const auto it = by_address_.find(address);
  if (it == by_address_.end()) return {};
  const auto& [key, path] = *it->second;
  return {&key, path.direct || path.by ? std::nullopt : std::optional(path.relay), path.pacer ? path.pacer->rate() : 0};
}

void Member::from_relay(std::size_t relay, const Key32& member, ByteView datagram, const Now& now, Out& out) {
  Wire wire(*this, out, now);
  const auto it = paths_.find(member);
  const bool undecided = it != paths_.end() && !it->second.relay_chosen && relay < relays_up_.size();
  const std::uint64_t before = undecided ? device_.received_bytes(member) : 0;
  device_.decapsulate(datagram, Endpoint::relay(member, relay), now, wire);
  // By whichever relay the first genuine word comes is good enough until they are measured.
  if (undecided && device_.received_bytes(member) != before) {
    if (it->second.relay != relay) take_relay(member, it->second, relay, now);
    it->second.relay_chosen = true;
  }
  flush(now, out);
}

void Member::from_udp(std::uint32_t ip, std::uint16_t port, ByteView datagram, const Now& now, Out& out) {
  from(Endpoint::udp(ip, port), datagram, now, out);
}

void Member::from_udp6(const Ip6& ip, std::uint16_t port, ByteView datagram, const Now& now, Out& out) {
  from(Endpoint::udp6(ip, port), datagram, now, out);
}

void Member::from(const Endpoint& at, ByteView datagram, const Now& now, Out& out) {
  // Its answer would show where we are, or leave by a tunnel.
  if (hides_ || (initiation(datagram) && !out.may_reach(at))) return;
  Wire wire(*this, out, now);
  device_.decapsulate(datagram, at, now, wire);
  flush(now, out);
}

void Member::Probe::send(std::uint64_t first_number, std::uint64_t last_number, std::uint64_t micros, bool counts,
                         LeaseTime now) {
  if (!open) waits_from = now;
  if (open) in_a_row = 0;
  if (pinged && counts) {
    missed = missed << 1 | (open ? 1U : 0U);
    asked = std::min(asked + 1, kLossWindow);
  }
  if (!open) oldest = first_number;
  pinged = open = true;
  first = first_number;
  id = last_number;
  sent_us = micros;
  ++sent;
}

bool Member::Probe::answer(std::uint64_t number, std::uint64_t micros, LeaseTime now) {
  if (!pinged || number < oldest || number > id) return false;
  last_pong = now;
  if (!open || number < first) return true;  // late: it lives, and is lost where losses are counted
  open = false;
  ++answered;
  ++in_a_row;
  if (sent_us == 0 || micros < sent_us) return true;
  const auto took = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(micros - sent_us, 1, UINT32_MAX));
  rtt_us = rtt_us == 0 ? took : static_cast<std::uint32_t>((std::uint64_t{rtt_us} * 7 + took) / 8);
  least_us = least_us == 0 ? took : std::min(least_us + least_us / 64 + 1, took);
  return true;
}

void Member::on_control(const Key32& peer, const Endpoint& from, ByteView message, const Now& now, Out& out) {
  const auto it = paths_.find(peer);
  if (it == paths_.end()) return;
  Path& path = it->second;
  if (message[0] == kHere || message[0] == kHere6) return on_here(path, message, now);
  if (message[0] == kOffer) return on_offer(path, message, now);
  if (message[0] == kCarry) return on_carry(peer, path, from, message, out);
  if (message[0] == kCarried) return on_carried(peer, path, from, message);
  if (message[0] == kFiller) return out.took_test(message.size());
  if (message[0] == kHidden) {
    const bool hides = message.size() >= 2 && message[1] == 1;
    path.hidden_until = hides ? now.lease + kOfferLife : LeaseTime{};
    if (hides) only_relays(peer, path, now);
    return;
  }
  if (message[0] == kTests) {
    const bool takes = message.size() >= 2 && message[1] == 1;
    path.takes_tests_until = takes ? now.lease + kOfferLife : LeaseTime{};
    return;
  }
  if (message.size() < kProbeHeader) return;
  const std::uint64_t micros = out.micros();
  constexpr std::uint64_t kFate = kPaceBit | kFateBit;
  if (message[0] == kPong && (load_be64(message.data() + 1) & kFate) == kFate) return on_fate(path, message, out);
  if (message[0] == kPong) return on_pong(peer, path, from, message, now, micros);
  if (message[0] != kPing || later_.size() >= kPongsMax || (from.direct() && !out.may_reach(from))) return;
  answer(peer, from, message, micros);
  if (!from.direct()) return;
  // What it sent came through, so our NAT is open to it: what we send now opens its own.
  if (add_candidate(path, from, Origin::Heard, now) && !path.direct) burst(path, kBurst, now);
}

void Member::answer(const Key32& peer, const Endpoint& from, ByteView ping, std::uint64_t micros) {
  Bytes pong(ping.begin(), ping.end());
  pong[0] = kPong;
  if ((load_be64(ping.data() + 1) & kPaceBit) != 0 && pong.size() >= kPaceBytes && micros != 0) {
    if (first_micros_ == 0) first_micros_ = micros;
    store_be64(pong.data() + kProbeHeader, micros - first_micros_ + 1);
    store_be64(pong.data() + kProbeHeader + 8, device_.received_bytes(peer));
  }
  later_.push_back({peer, from, std::move(pong)});
}

void Member::on_pace_pong(Path& path, const Endpoint& from, ByteView message, const Now& now, std::uint64_t micros) {
  if (!path.pacer || micros == 0 || message.size() < kPaceBytes) return;
  const std::uint64_t number = load_be64(message.data() + 1) & ~kPaceBit;
  const std::uint64_t found = path.pacer->found_us();
  path.pacer->answered(number, micros, load_be64(message.data() + kProbeHeader),
                       load_be64(message.data() + kProbeHeader + 8));
  if (path.pacer->found_us() != found) {
    path.carries_since = now.lease;
    path.by_test = path.testing;
    path.at_least = 0;
  }
  // It lives, also where the queue is so long that the other probes get lost.
  for (auto* list : {&path.candidates, &path.carriers})
    for (Candidate& c : *list)
      if (c.at == from) c.probe.last_pong = now.lease;
}

void Member::on_pong(const Key32& peer, Path& path, const Endpoint& from, ByteView message, const Now& now,
                     std::uint64_t micros) {
  const std::uint64_t id = load_be64(message.data() + 1);
  if ((id & kPaceBit) != 0) return on_pace_pong(path, from, message, now, micros);
  if (from.kind == Endpoint::Kind::Relay) {
    if (from.port >= path.relays.size()) return;
    Probe& asked = path.relays[from.port];
    // Also a late one shows that the relay carries both ways.
    if (!asked.answer(id, micros, now.lease) || id < asked.first) asked.waits_from = now.lease;
    return;
  }
  if (from.kind == Endpoint::Kind::Peer) {
    for (Candidate& c : path.carriers) {
      if (c.at != from || !c.probe.answer(id, micros, now.lease)) continue;
      if (message.size() == kRelayedMtu) c.carries = kRelayedMtu;
      if (path.direct || path.by) continue;
      const Probe* by_relay = relay_probe(path);
      const std::uint64_t relay_us = by_relay == nullptr ? 0 : by_relay->rtt_us;
      const bool detour = relay_us != 0 && c.probe.rtt_us > 2 * relay_us + kDetour_us;
      if (message.size() == kRelayedMtu && !detour)
        take_carrier(peer, path, c.at.ip, now);
      else if (c.carries != kRelayedMtu)
        path.next_carrier_probe = now.lease;
    }
    return;
  }
  const bool sized = std::ranges::find(kInnerSizes, message.size()) != kInnerSizes.end();
  for (Candidate& c : path.candidates) {
    if (c.at != from) continue;
    if (path.direct == c.at && sized) answered_size(path, c, id, message.size(), now);
    if (!c.probe.answer(id, micros, now.lease)) continue;
    if (sized) c.carries = std::max(c.carries, message.size());
    if (path.direct) continue;
    if (message.size() == kInnerMtu || (sized && c.asked_all >= kSizesAsked)) {
      c.probe.forget_loss();
      take(peer, path, c.at, now, message.size());
    } else if (c.asked_all < kSizesAsked) {
      path.next_probe = now.lease;  // it answers: what does it carry?
    }
  }
}

void Member::set_mtu(Path& path, std::size_t mtu) {
  narrow_ -= path.mtu < kInnerMtu ? 1 : 0;
  narrow_ += mtu < kInnerMtu ? 1 : 0;
  path.mtu = mtu;
}

void Member::answered_size(Path& path, const Candidate& from, std::uint64_t id, std::size_t size, const Now& now) {
  SizeCheck& check = path.size;
  const bool asked = check.first != 0 && id >= check.first && id <= check.last;
  // One of those with which the way was found may come late.
  const bool late = from.probe.pinged && id >= from.probe.first && id <= from.probe.id;
  if (size > path.mtu && (asked || late)) set_mtu(path, size);
  if (!asked || !check.open || size < path.mtu) return;
  check.open = false;
  check.next = now.lease + (path.pacer ? kSizeEveryBusy : kSizeEvery);
}

// What carried its size may carry less from some time on, and nobody says so: the answers of routers get lost.
void Member::check_size(const Key32& key, Path& path, const Now& now, Out& out) {
  SizeCheck& check = path.size;
  if (!path.direct || now.lease < check.next || !device_.has_session(key)) return;
  const auto c = std::ranges::find_if(path.candidates, [&](const Candidate& x) { return x.at == *path.direct; });
  if (c == path.candidates.end()) return;
  const Millis patience = std::max(kSizeLost, Millis(c->probe.rtt_us / 250));
  if (check.open && check.sent >= kSizeTries && now.lease - check.began >= patience) {
    check.open = false;
    if (c->probe.last_pong > check.began) {  // else nothing passes at all: that is not about sizes
      c->carries = 0;
      c->asked_all = 0;
      take(key, path, {}, now);
      return burst(path, kShortBurst, now);
    }
  }
  if (!check.open) {
    check.open = true;
    check.first = next_id_;
    check.sent = 0;
    check.began = now.lease;
  }
  send_ping(key, *path.direct, next_id_++, path.mtu, now, out);
  if (path.mtu < kInnerMtu && now.lease >= check.grow) {
    for (const std::size_t size : kInnerSizes)
      if (size > path.mtu) send_ping(key, *path.direct, next_id_++, size, now, out);
    check.grow = now.lease + check.grow_wait;
    check.grow_wait = std::min(check.grow_wait * 2, kGrowLate);
  }
  check.last = next_id_ - 1;
  ++check.sent;
  check.next = now.lease + kSizeAgain;
}

void Member::send_ping(const Key32& key, const Endpoint& to, std::uint64_t id, std::size_t size, const Now& now,
                       Out& out) {
  Bytes ping(size);
  ping[0] = kPing;
  store_be64(ping.data() + 1, id);
  Wire wire(*this, out, now);
  out.apart();
  device_.send_control(key, to, ping, now, wire);
  out.apart();
}

// Small, alone, and after what was sent: what is missing in the answer is lost, or was overtaken.
void Member::ask_fate(const Key32& key, Path& path, const Now& now, Out& out) {
  const Endpoint way = way_of(key, path);
  if (!out.compares(way) || !device_.has_session(key)) return path.fate.reset();
  if (!path.fate || path.fate->way != way) path.fate = std::make_unique<Fate>(Fate{.way = way});
  Fate& fate = *path.fate;
  const std::uint64_t sent = device_.sent_bytes(key);
  if (sent - fate.asked_at < kFateBytes) return;
  fate.asked_at = sent;
  const std::uint64_t number = ++fate.number;
  fate.asked[number % fate.asked.size()] = {number, sent};
  send_ping(key, way, number | kPaceBit | kFateBit, kProbeSmall, now, out);
}

void Member::on_fate(Path& path, ByteView message, Out& out) {
  const std::uint64_t number = load_be64(message.data() + 1) & ~(kPaceBit | kFateBit);
  if (!path.fate || message.size() < kPaceBytes) return;
  Fate& fate = *path.fate;
  const Fate::Asked asked = fate.asked[number % fate.asked.size()];
  const std::uint64_t came = load_be64(message.data() + kProbeHeader + 8);
  if (asked.number != number || number <= fate.answered || load_be64(message.data() + kProbeHeader) == 0) return;
  const bool goes_on = fate.answered != 0 && came >= fate.came;  // else it counts anew
  if (goes_on) {
    const std::uint64_t sent = asked.sent - fate.sent, arrived = came - fate.came;
    out.fared(path.address, sent, sent - std::min(sent, arrived));
  }
  fate.answered = number;
  fate.sent = asked.sent;
  fate.came = came;
}

// The way from now on; without an endpoint the relay.
void Member::take(const Key32& key, Path& path, const std::optional<Endpoint>& direct, const Now& now,
                  std::size_t mtu) {
  path.direct = direct;
  set_mtu(path, mtu);
  path.size = {};
  path.size.next = now.lease + kSizeEveryBusy;
  path.size.grow = now.lease + kGrowSoon;
  path.size.grow_wait = kGrowSoon;
  path.by.reset();
  path.backoff = kProbeEvery;
  path.next_probe =
      std::min(path.next_probe, now.lease + kProbeEvery);  // what was found late must not be doubted at once
  changed_way(key, path, now);
}

void Member::changed_way(const Key32& key, Path& path, const Now& now) {
  path.since = now.lease;
  for (Probe& relay : path.relays) relay.forget_loss(), relay.open = false;
  path.next_relay_probe = path.next_carrier_probe = now.lease;
  path.carrier_backoff = kProbeEvery;
  path.pacer.reset();  // another way, another pace
  path.testing = path.by_test = false;
  path.at_least = 0, path.tested = {};
  path.unpaced = 0;
  ++path.changes;
  device_.set_endpoint(key, way_of(key, path));
}

Endpoint Member::way_of(const Key32& key, const Path& path) {
  return path.direct ? *path.direct : path.by ? Endpoint::peer(key, *path.by) : Endpoint::relay(key, path.relay);
}

// The list replaces what was told before; what works stays.
void Member::on_here(Path& path, ByteView message, const Now& now) {
  if (hides_) return;
  const auto kind = message[0] == kHere6 ? Endpoint::Kind::Udp6 : Endpoint::Kind::Udp;
  const std::size_t one = kind == Endpoint::Kind::Udp6 ? 18 : 6;
  if (message.size() < 2 || message[1] > kPublicMax || message.size() < 2 + message[1] * one) return;
  std::vector<Endpoint> told;
  for (std::size_t i = 0; i < message[1]; ++i) {
    const std::uint8_t* at = message.data() + 2 + i * one;
    Endpoint& e = told.emplace_back(Endpoint::udp(load_be32(at), load_be16(at + one - 2)));
    if (kind != Endpoint::Kind::Udp6) continue;
    e = Endpoint::udp6({}, e.port);
    std::copy_n(at, e.six.size(), e.six.begin());
  }
  const auto gone = [&](const Candidate& c) {
    return c.origin == Origin::Told && c.at.kind == kind && std::ranges::find(told, c.at) == told.end();
  };
  for (Candidate& c : path.candidates) {
    if (path.direct != c.at || !gone(c)) continue;
    path.next_probe = now.lease;  // it has a second to show that it works all the same
    c.probe.last_pong = std::min(c.probe.last_pong, now.lease - kDirectTimeout + kLeftTimeout);
  }
  std::erase_if(path.candidates, [&](const Candidate& c) { return path.direct != c.at && gone(c); });
  bool fresh = false;
  for (const Endpoint& e : told) fresh = add_candidate(path, e, Origin::Told, now) || fresh;
  if (!path.direct) burst(path, fresh ? kBurst : kShortBurst, now);
}

void Member::burst(Path& path, Millis length, const Now& now) {
  path.burst_until = std::max(path.burst_until, now.lease + length);
  path.next_probe = now.lease;
}

void Member::tell(const Key32& key, Path& path, const Now& now, Out& out) {
  const bool due = !path.told || (!path.direct && now.lease - *path.told >= path.tell_wait);
  const bool hidden = hides_ || path.hidden_until > now.lease;
  if (public_.empty() || hidden || !due || !device_.has_session(key)) return;
  Bytes four = {kHere, 0}, six = {kHere6, 0};
  for (const Endpoint& e : public_) {
    Bytes& message = e.kind == Endpoint::Kind::Udp6 ? six : four;
    ++message[1];
    if (e.kind == Endpoint::Kind::Udp6)
      message.insert(message.end(), e.six.begin(), e.six.end());
    else
      append_be(message, e.ip);
    append_be(message, e.port);
  }
  Wire wire(*this, out, now);
  const bool first = !path.told;
  path.tell_wait = first ? kTellSoon : std::min(path.tell_wait * 2, kTellEvery);
  const Endpoint to = way_of(key, path);
  if (!device_.send_control(key, to, four, now, wire) || !device_.send_control(key, to, six, now, wire)) return;
  path.told = now.lease;
  if (!path.direct) burst(path, first ? kBurst : kShortBurst, now);
}

void Member::set_public(std::vector<Endpoint> endpoints, const Now& now, Out& out) {
  std::size_t four = 0, six = 0;
  std::erase_if(endpoints, [&](const Endpoint& e) {
    return !e.direct() || ++(e.kind == Endpoint::Kind::Udp6 ? six : four) > kPublicMax;
  });
  if (endpoints == public_) return;
  public_ = std::move(endpoints);
  for (auto& [key, path] : paths_) {
    path.told.reset();
    tell(key, path, now, out);
  }
}

// What is not by relays ends, for this machine or for the other.
void Member::only_relays(const Key32& key, Path& path, const Now& now) {
  if (path.direct || path.by) take(key, path, {}, now);
  path.candidates.clear();
  path.carriers.clear();
}

void Member::set_relay_only(bool on, const Now& now, Out& out) {
  if (std::exchange(hides_, on) == on) return;
  Wire wire(*this, out, now);
  for (auto& [key, path] : paths_) {
    path.told.reset();
    path.told_hidden = {};
    if (on) only_relays(key, path, now);
    if (!on) device_.send_control(key, way_of(key, path), Bytes{kHidden, 0}, now, wire);
  }
  if (on) offers_.clear();
  tell_hidden(now, out);
  flush(now, out);
}

// Only within sessions that there are, by a relay.
void Member::tell_hidden(const Now& now, Out& out) {
  if (!hides_) return;
  Wire wire(*this, out, now);
  for (auto& [key, path] : paths_) {
    if (path.told_hidden != LeaseTime{} && now.lease - path.told_hidden < kOfferEvery) continue;
    if (!device_.has_session(key)) continue;
    if (device_.send_control(key, way_of(key, path), Bytes{kHidden, 1}, now, wire)) path.told_hidden = now.lease;
  }
}

void Member::moved(bool elsewhere, const Now& now) {
  for (auto& [key, path] : paths_) {
    if (elsewhere && path.direct) take(key, path, {}, now);
    path.told.reset();
    path.size.next = std::min(path.size.next, now.lease);
    path.next_probe = path.next_relay_probe = now.lease;
    if (!path.direct) burst(path, kBurst, now);
  }
}

// Each of these can bring others: an answer that is carried, what was carried and is answered.
void Member::flush(const Now& now, Out& out) {
  Wire wire(*this, out, now);
  for (int round = 0; round < kFlushRounds && !(later_.empty() && arrived_.empty()); ++round) {
    for (const Later& each : std::exchange(later_, {})) {
      const bool pong = each.message[0] == kPong;
      if (pong) out.apart();
      device_.send_control(each.peer, each.to, each.message, now, wire);
      if (pong) out.apart();
    }
    for (const Arrived& each : std::exchange(arrived_, {})) {
      const std::uint64_t before = device_.received_bytes(each.from.key);
      device_.decapsulate(each.datagram, each.from, now, wire);
      const auto with = paths_.find(each.from.key);
      if (with == paths_.end() || device_.received_bytes(each.from.key) == before) continue;  // not genuine
      if (Counted* counted = count_of(carried_, {each.from.ip, with->second.address}))
        counted->in += each.datagram.size();
    }
  }
}

void Member::probe(const Key32& key, Path& path, const Now& now, Out& out) {
  if (path.direct) {
    const auto c = std::ranges::find_if(path.candidates, [&](const Candidate& x) { return x.at == *path.direct; });
    if (c == path.candidates.end() || now.lease - c->probe.last_pong >= kDirectTimeout || !out.may_reach(c->at))
      take(key, path, {}, now);
  }
  if (path.since == LeaseTime{}) path.since = now.lease;
  tell(key, path, now, out);
  if (now.lease < path.next_probe || path.candidates.empty() || !device_.has_session(key)) return;
  bool doubt = false;
  if (!path.direct) path.fate.reset();  // what goes to candidates may well be lost
  for (Candidate& c : path.candidates) {
    if (path.direct && c.at != *path.direct) continue;
    if (c.barred = !out.may_reach(c.at); c.barred) continue;
    doubt = path.direct && c.probe.open;
    const bool fresh = now.lease - c.probe.last_pong < kHeardFresh;
    std::size_t large = 0;  // how many of kInnerSizes go
    if (!path.direct && fresh) large = kInnerSizes.size();
    if (!path.direct && !fresh && c.origin == Origin::Roster) large = 1;
    c.asked_all = fresh ? c.asked_all + (large > 1 ? 1 : 0) : 0;
    c.probe.send(next_id_, next_id_ + large, out.micros(), path.direct.has_value(), now.lease);
    for (std::size_t i = 0; i < large; ++i) send_ping(key, c.at, next_id_++, kInnerSizes[i], now, out);
    send_ping(key, c.at, next_id_++, kProbeSmall, now, out);
  }
  const bool burst = !path.direct && now.lease < path.burst_until;
  if (!path.direct && !burst) path.backoff = std::min(path.backoff * 3 / 2, kProbeBackoffMax);
  path.next_probe = now.lease + (burst ? Millis(200) : doubt ? kProbeAgain : path.direct ? kProbeEvery : path.backoff);
}

// ---- carried by another member
void Member::on_offer(const Path& path, ByteView message, const Now& now) {
  if (hides_ || message.size() < 2 || message[1] == 0) {
    offers_.erase(path.address);
  } else if (offers_.size() < kOffersMax || offers_.contains(path.address)) {
    offers_[path.address] = now.lease + kOfferLife;
  }
}

// Somebody asks us to carry. Only between two members that we both reach directly: each has shown that it is where we
// send to, so nobody can be flooded by way of us, and nothing goes round in circles.
void Member::on_carry(const Key32& peer, const Path& path, const Endpoint& from, ByteView message, Out& out) {
  if (!carries_ || !from.direct() || message.size() < kCarryHeader) return;
  const ByteView datagram = message.subspan(kCarryHeader);
  const auto to = by_address_.find(load_be32(message.data() + 1));
  if (to == by_address_.end() || to->second->first == peer || !to->second->second.direct || !sealed(datagram)) return;
  Counted* counted = count_of(forwarded_, {path.address, to->first});
  if (counted == nullptr || later_.size() >= kLaterMax || !out.may_carry(datagram.size())) return;
  counted->out += datagram.size();
  Bytes carried(message.begin(), message.end());
  carried[0] = kCarried;
  store_be32(carried.data() + 1, path.address);
  later_.push_back({to->second->first, *to->second->second.direct, std::move(carried)});
}

// It came in the session with who carried it, and is opened in the one with who sent it.
void Member::on_carried(const Key32& peer, const Path& path, const Endpoint& from, ByteView message) {
  if (!from.direct() || message.size() < kCarryHeader || arrived_.size() >= kLaterMax) return;
  const ByteView datagram = message.subspan(kCarryHeader);
  const auto sender = by_address_.find(load_be32(message.data() + 1));
  if (sender == by_address_.end() || sender->second->first == peer || !sealed(datagram)) return;
  arrived_.push_back({Endpoint::peer(sender->second->first, path.address), Bytes(datagram.begin(), datagram.end())});
}

// Called while the Device is at work: it leaves with the next flush.
void Member::carry(const Endpoint& to, ByteView datagram) {
  const auto by = by_address_.find(to.ip);
  const auto with = paths_.find(to.key);
  if (by == by_address_.end() || !by->second->second.direct || with == paths_.end() || later_.size() >= kLaterMax)
    return;
  Counted* counted = count_of(carried_, {to.ip, with->second.address});
  if (counted == nullptr) return;
  counted->out += datagram.size();
  Bytes message(kCarryHeader + datagram.size());
  message[0] = kCarry;
  store_be32(message.data() + 1, with->second.address);
  std::copy(datagram.begin(), datagram.end(), message.begin() + kCarryHeader);
  later_.push_back({by->second->first, *by->second->second.direct, std::move(message)});
}

// Null unless that member offers to carry and we reach it directly.
const std::pair<const Key32, Member::Path>* Member::carrier(std::uint32_t by, LeaseTime now) const {
  const auto offer = offers_.find(by);
  const auto it = by_address_.find(by);
  if (offer == offers_.end() || now >= offer->second || it == by_address_.end() || !it->second->second.direct)
    return nullptr;
  return it->second;
}

void Member::take_carrier(const Key32& key, Path& path, std::optional<std::uint32_t> by, const Now& now) {
  path.by = by;
  changed_way(key, path, now);
}

// The nearest to us; whether the other end reaches them too, the probes tell.
void Member::find_carriers(const Key32& key, Path& path, LeaseTime now) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> near;  // (how far, who)
  for (const auto& [address, until] : offers_) {
    const auto* by = carrier(address, now);
    if (by == nullptr || by->first == key) continue;
    std::uint32_t rtt = UINT32_MAX;
    for (const Candidate& c : by->second.candidates)
      if (by->second.direct == c.at && c.probe.rtt_us != 0) rtt = c.probe.rtt_us;
    near.emplace_back(rtt, address);
  }
  std::ranges::sort(near);
  near.resize(std::min(near.size(), kCarriersMax));
  std::erase_if(path.carriers, [&](const Candidate& c) {
    return std::ranges::none_of(near, [&](const auto& each) { return each.second == c.at.ip; });
  });
  for (const auto& [rtt, address] : near) {
    const Endpoint at = Endpoint::peer(key, address);
    if (std::ranges::none_of(path.carriers, [&](const Candidate& c) { return c.at == at; }))
      path.carriers.push_back({.at = at});
  }
}

// While no direct way is known; before one is chosen only for pairs whose programs talk.
void Member::probe_carriers(const Key32& key, Path& path, const Now& now, Out& out) {
  if (path.direct || !device_.has_session(key)) return;
  if (path.by) {
    const auto c = std::ranges::find_if(path.carriers, [&](const Candidate& x) { return x.at.ip == *path.by; });
    const bool dead = c == path.carriers.end() || now.lease - c->probe.last_pong >= kDirectTimeout;
    if (dead || carrier(*path.by, now.lease) == nullptr) take_carrier(key, path, {}, now);
  }
  if (now.lease < path.next_carrier_probe || (!path.by && now.lease >= path.busy_until)) return;
  if (!path.by) find_carriers(key, path, now.lease);
  Wire wire(*this, out, now);
  for (Candidate& c : path.carriers) {
    if (path.by && c.at.ip != *path.by) continue;
    const bool full = path.by ? next_id_ % kFullEvery == 0 : now.lease - c.probe.last_pong < kHeardFresh;
    const std::uint64_t id = next_id_++;
    c.probe.send(id, id, out.micros(), path.by.has_value(), now.lease);
    send_ping(key, c.at, id, full ? kRelayedMtu : kProbeSmall, now, out);
  }
  if (!path.by && !path.carriers.empty())
    path.carrier_backoff = std::min(path.carrier_backoff * 3 / 2, kProbeBackoffMax);
  path.next_carrier_probe = now.lease + (path.by ? kProbeEvery : path.carrier_backoff);
}

void Member::set_carries(bool carries, const Now& now, Out& out) {
  if (std::exchange(carries_, carries) == carries) return;
  Wire wire(*this, out, now);
  const Bytes message{kOffer, static_cast<std::uint8_t>(carries)};
  for (auto& [key, path] : paths_)
    if (device_.send_control(key, way_of(key, path), message, now, wire)) path.offered = now.lease;
  flush(now, out);
}

void Member::set_tests(bool takes, const Now& now, Out& out) {
  if (std::exchange(takes_tests_, takes) == takes) return;
  for (auto& [key, path] : paths_) path.told_tests = {};
  if (takes) return;  // the next tick says so
  Wire wire(*this, out, now);
  for (auto& [key, path] : paths_) device_.send_control(key, way_of(key, path), Bytes{kTests, 0}, now, wire);
  flush(now, out);
}

// Only within sessions that there are: nobody is greeted for it.
void Member::tell_tests(const Now& now, Out& out) {
  if (!takes_tests_) return;
  Wire wire(*this, out, now);
  for (auto& [key, path] : paths_) {
    if (path.told_tests != LeaseTime{} && now.lease - path.told_tests < kOfferEvery) continue;
    if (!device_.has_session(key)) continue;
    if (device_.send_control(key, way_of(key, path), Bytes{kTests, 1}, now, wire)) path.told_tests = now.lease;
  }
}

bool Member::begin_test(std::uint32_t address, const Now& now) {
  const auto it = by_address_.find(address);
  if (it == by_address_.end()) return false;
  auto& [key, path] = *it->second;
  if (!path.direct || path.takes_tests_until <= now.lease || !device_.has_session(key)) return false;
  path.tested = now.lease;
  path.testing = true;
  path.at_least = 0;
  path.found_before_us = path.pacer ? path.pacer->found_us() : 0;
  path.unpaced = std::max(path.unpaced, kBusyBytes);  // its pace is learnt from the first packet on
  return true;
}

bool Member::fill(std::uint32_t address, std::size_t bytes, const Now& now, Out& out) {
  const auto it = by_address_.find(address);
  if (it == by_address_.end()) return false;
  auto& [key, path] = *it->second;
  if (!path.testing || !path.direct || path.takes_tests_until <= now.lease) return false;
  Bytes filler(path.mtu, 0);
  filler[0] = kFiller;
  Wire wire(*this, out, now);
  std::size_t went = 0;
  for (; went < bytes; went += filler.size())
    if (!device_.send_control(key, *path.direct, filler, now, wire)) return false;
  flush(now, out);
  if (went > 0) sent(address, went, now, out);
  if (!path.pacer) return true;
  if (path.pacer->found_us() != path.found_before_us) return false;
  if (const std::uint64_t came = path.pacer->arriving(); came > path.at_least)
    path.at_least = came, path.at_least_since = now.lease;
  return true;
}

void Member::end_test(std::uint32_t address) {
  const auto it = by_address_.find(address);
  if (it == by_address_.end()) return;
  Path& path = it->second->second;
  path.testing = false;
  if (path.pacer && path.pacer->found_us() != path.found_before_us) path.at_least = 0;
}

// Members must know us, and reach us directly, before they need us.
void Member::offer(const Now& now, Out& out) {
  if (!carries_) return;
  Wire wire(*this, out, now);
  std::size_t told = 0;
  int greetings = 0;
  for (auto& [key, path] : paths_) {
    if (++told > kOfferedMax) return;
    if (!device_.has_session(key)) {
      const bool due = path.greeted == LeaseTime{} || now.lease - path.greeted >= kGreetEvery;
      if (!due || ++greetings > kGreetings) continue;
      path.greeted = now.lease;
      path.offered = {};
      device_.start_handshake(key, now, wire);
    } else if (path.offered == LeaseTime{} || now.lease - path.offered >= kOfferEvery) {
      if (device_.send_control(key, way_of(key, path), Bytes{kOffer, 1}, now, wire)) path.offered = now.lease;
    }
  }
}

std::vector<CarriedCount> Member::carried() const {
  std::vector<CarriedCount> out;
  for (const auto& [which, counted] : carried_) out.push_back({which.first, which.second, counted.out, counted.in});
  return out;
}

std::vector<ForwardedCount> Member::forwarded() const {
  std::vector<ForwardedCount> out;
  for (const auto& [which, counted] : forwarded_) out.push_back({which.first, which.second, counted.out});
  return out;
}

// ---- relays
const Member::Probe* Member::relay_probe(const Path& path) {
  return path.relay < path.relays.size() ? &path.relays[path.relay] : nullptr;
}

bool Member::relay_serves(const Path& path, std::size_t relay, LeaseTime now) const {
  return relays_up_[relay] && (relay >= path.relays.size() || now >= path.relays[relay].lacks_until);
}

void Member::take_relay(const Key32& key, Path& path, std::size_t relay, const Now& now) {
  path.relay = relay;
  path.relay_since = path.relay_chosen ? now.lease : LeaseTime{};
  path.next_relay_probe = now.lease;
  if (path.direct || path.by) return;
  if (path.relay_chosen) ++path.changes;  // the first choice is none
  path.since = now.lease;
  path.pacer.reset();
  path.unpaced = 0;
  if (relay < path.relays.size()) path.relays[relay].forget_loss();
  device_.set_endpoint(key, way_of(key, path));
  device_.hurry(key, Millis(0), now);
}

// The one in use is left when it is down, lacks the member, or does not answer what another one has answered since; and
// for one that is clearly nearer, unless it was taken a moment ago.
void Member::choose_relay(const Key32& key, Path& path, const Now& now) {
  const std::size_t count = relays_up_.size();
  if (path.relay >= count) return;
  const Probe* mine = relay_probe(path);
  const bool serves = relay_serves(path, path.relay, now.lease);
  const bool silent = mine != nullptr && mine->silent(kRelayTimeout, now.lease);
  const bool settled = path.relay_since == LeaseTime{} || now.lease - path.relay_since >= kRelayStay;
  std::optional<std::size_t> best;
  const auto rtt = [&](std::size_t i) {
    const std::uint32_t known = i < path.relays.size() ? path.relays[i].rtt_us : 0;
    return known == 0 ? UINT32_MAX : known;
  };
  for (std::size_t i = 0; i < count; ++i) {
    if (i == path.relay || !relay_serves(path, i, now.lease)) continue;
    const Probe* other = i < path.relays.size() ? &path.relays[i] : nullptr;
    bool fits = !serves;
    if (serves && other != nullptr && silent) fits = other->last_pong > mine->waits_from;
    if (serves && other != nullptr && !silent && settled && mine != nullptr)
      fits = other->in_a_row >= kRelayAnswers && mine->answered >= kRelayAnswers &&
             !other->silent(kDoubtAfter, now.lease) && nearer(other->rtt_us, mine->rtt_us);
    if (fits && (!best || rtt(i) < rtt(*best))) best = i;
  }
  if (!best) return;
  path.relay_chosen = true;
  take_relay(key, path, *best, now);
}

// How far it is by each relay, while one of them is the way. A member of an older version does not answer: then nobody
// knows.
void Member::probe_relays(const Key32& key, Path& path, const Now& now, Out& out) {
  if (path.direct || !device_.has_session(key)) return;
  const std::uint64_t inner = device_.inner_packets(key);
  const bool was_busy = now.lease < path.busy_until;
  if (inner != path.inner) path.busy_until = now.lease + kBusyFor;
  path.inner = inner;
  if (path.by || relays_up_.empty()) return;
  path.relays.resize(relays_up_.size());
  choose_relay(key, path, now);
  const bool several = std::ranges::count(relays_up_, true) > 1, busy = now.lease < path.busy_until && several;
  if (busy && !was_busy) path.next_relay_probe = path.next_other_probe = now.lease;
  const Probe& mine = path.relays[path.relay];
  const bool doubt = several && mine.silent(kDoubtAfter, now.lease);
  if (now.lease >= path.next_relay_probe) {
    path.next_relay_probe = now.lease + (busy || doubt ? kRelayProbeBusy : kRelayProbeEvery);
    ask_relay(key, path, path.relay, now, out);
  }
  if (now.lease < path.next_other_probe && !doubt) return;
  bool fresh = false;
  for (std::size_t i = 0; i < relays_up_.size(); ++i) {
    Probe& other = path.relays[i];
    if (!relay_serves(path, i, now.lease)) continue;
    fresh = fresh || (several && other.answered < kRelayAnswers && other.sent < kRelayAsked);
    if (i == path.relay) continue;
    if (doubt && now.lease < path.next_other_probe && other.last_pong > mine.waits_from) continue;
    if (other.pinged && other.open && !other.silent(kFreshEvery, now.lease)) continue;
    ask_relay(key, path, i, now, out);
  }
  path.next_other_probe = now.lease + (fresh ? kFreshEvery : busy ? kRelayProbeEvery : kOtherRelayProbeEvery);
  if (fresh) path.next_relay_probe = std::min(path.next_relay_probe, now.lease + kFreshEvery);
}

void Member::ask_relay(const Key32& key, Path& path, std::size_t relay, const Now& now, Out& out) {
  Probe& probe = path.relays[relay];
  const std::uint64_t id = next_id_++;
  probe.send(id, id, out.micros(), probe.answered > 0, now.lease);
  send_ping(key, Endpoint::relay(key, relay), id, kProbeSmall, now, out);
}

void Member::set_relays(std::size_t count, const Now& now) {
  relays_up_.assign(std::min(count, kRelaysMax), false);
  for (auto& [key, path] : paths_) {
    path.relays.clear();
    path.relay_chosen = false;
    take_relay(key, path, 0, now);
    path.relay_since = {};
  }
}

void Member::relay_up(std::size_t relay, const Now& now) {
  if (relay >= relays_up_.size()) return;
  relays_up_[relay] = true;
  for (auto& [key, path] : paths_) {
    if (relay < path.relays.size()) path.relays[relay] = {};
    path.next_other_probe = now.lease;
    if (!relays_up_[path.relay]) take_relay(key, path, relay, now);
    device_.hurry(key, Millis(0), now);
  }
}

void Member::relay_down(std::size_t relay, const Now& now) {
  if (relay >= relays_up_.size()) return;
  relays_up_[relay] = false;
  for (auto& [key, path] : paths_)
    if (path.relay == relay) choose_relay(key, path, now);
}

void Member::relay_changed(std::size_t relay, const Now& now) {
  for (auto& [key, path] : paths_) {
    if (path.relay != relay || path.direct || path.by) continue;
    path.since = now.lease;
    path.pacer.reset();
    path.unpaced = 0;
    path.next_relay_probe = now.lease;
    if (relay < path.relays.size()) path.relays[relay].forget_loss();
    if (device_.has_session(key)) ++path.changes;
  }
}

const Key32* Member::named(std::uint64_t name) const {
  Key32 from{};
  store_be64(from.data(), name);
  const auto found = paths_.lower_bound(from);
  return found == paths_.end() || load_be64(found->first.data()) != name ? nullptr : &found->first;
}

void Member::relay_lacks(std::size_t relay, const Key32& member, const Now& now) {
  device_.hurry(member, kAskAgain, now);
  const auto it = paths_.find(member);
  if (it == paths_.end() || relay >= relays_up_.size()) return;
  Path& path = it->second;
  path.relays.resize(relays_up_.size());
  path.relays[relay] = {};
  path.relays[relay].lacks_until = now.lease + kLacksFor;
  if (path.relay == relay) choose_relay(member, path, now);
}

void Member::probe_pace(const Key32& key, Path& path, const Now& now, Out& out) {
  const auto number = path.pacer->probe(out.micros());
  if (!number) return;
  send_ping(key, way_of(key, path), *number | kPaceBit, kProbeSmall, now, out);
}

void Member::greet(const Now& now, Out& out) {
  Wire wire(*this, out, now);
  for (const auto& [key, path] : paths_) device_.start_handshake(key, now, wire);
}

void Member::tick(const Now& now, Out& out) {
  Wire wire(*this, out, now);
  device_.tick(now, wire);
  for (auto& [key, path] : paths_) {
    probe(key, path, now, out);
    check_size(key, path, now, out);
    probe_relays(key, path, now, out);
    probe_carriers(key, path, now, out);
    ask_fate(key, path, now, out);
    if (path.pacer && path.pacer->idle(out.micros())) path.pacer.reset();
    if (path.takes_tests_until < now.lease) path.takes_tests_until = {};
    if (path.hidden_until < now.lease) path.hidden_until = {};
  }
  offer(now, out);
  tell_tests(now, out);
  tell_hidden(now, out);
  flush(now, out);
}

std::vector<MemberStats> Member::stats() const {
  std::vector<MemberStats> out;
  for (const PeerStats& s : device_.stats()) {
    MemberStats& m = out.emplace_back();
    m.peer = s;
    const auto it = paths_.find(s.public_key);
    if (it == paths_.end()) continue;
    const Path& path = it->second;
    m.address = path.address;
    m.since = path.since;
    m.changes = path.changes;
    m.mtu = path.mtu;
    const Probe none, *by_relay = relay_probe(path);
    m.relay_rtt_us = by_relay == nullptr ? 0 : by_relay->rtt_us;
    if (path.relay < relays_up_.size()) m.relay = path.relay;
    m.by = path.by;
    for (std::size_t i = 0; i < path.relays.size(); ++i)
      m.relays.push_back({i, path.relays[i].sent, path.relays[i].answered, path.relays[i].rtt_us});
    m.carries_bytes_s = path.pacer ? path.pacer->carries() : 0;
    m.carries_since = path.carries_since;
    m.by_test = path.by_test && m.carries_bytes_s > 0;
    m.takes_tests = path.takes_tests_until != LeaseTime{};
    m.tested = path.tested;
    m.hidden = path.hidden_until != LeaseTime{};
    m.at_least_bytes_s = path.at_least, m.at_least_since = path.at_least_since;
    const Probe* way = by_relay == nullptr ? &none : by_relay;
    for (const Candidate& c : path.candidates) {
      if (path.direct == c.at) way = &c.probe;
      m.tried.push_back(
          {c.at, c.origin, c.probe.sent, c.probe.answered, c.carries == kInnerMtu, c.probe.rtt_us, c.barred});
    }
    for (const Candidate& c : path.carriers) {
      if (path.by == c.at.ip) way = &c.probe;
      m.carriers.push_back({c.at, c.origin, c.probe.sent, c.probe.answered, c.carries == kRelayedMtu, c.probe.rtt_us});
    }
    m.rtt_us = way->rtt_us;
    m.asked = way->asked;
    m.lost = static_cast<std::uint32_t>(std::popcount(way->missed));
  }
  return out;
}

}  // namespace muster::overlay
