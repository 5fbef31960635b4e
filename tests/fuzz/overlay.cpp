// What members, relays and programs in a container can send into a cluster's network.
#include "base/endian.h"
#include "crypto/hash.h"
#include "fuzz/fuzz.h"
#include "net/recall_frame.h"
#include "overlay/device.h"
#include "overlay/member.h"
#include "overlay/offload.h"
#include "overlay/packet.h"
#include "overlay/pcp.h"
#include "overlay/relay_protocol.h"
#include "overlay/roster.h"
#include "overlay/stun.h"
#include "overlay/udp_relay.h"

namespace muster::fuzz {
namespace {

using namespace overlay;
constexpr WallTime kNow{1'795'000'000'000};
constexpr std::uint32_t kNet = 0x64400000, kA = kNet + 1, kB = kNet + 2;

crypto::SigningKey signing_key(std::uint8_t n) {
  return *crypto::SigningKey::from_seed(Bytes(32, n));
}
crypto::X25519Pair pair_of(std::uint8_t n) {
  crypto::X25519Pair out;
  out.secret.bytes.fill(n);
  out.public_key = crypto::x25519_public(out.secret);
  return out;
}
Bytes ip_packet(std::uint32_t from, std::uint32_t to, std::size_t size, std::uint8_t protocol = 17) {
  Bytes out(std::max<std::size_t>(size, 20), 0);
  out[0] = 0x45;
  store_be16(out.data() + 2, static_cast<std::uint16_t>(out.size()));
  out[8] = 64, out[9] = protocol;
  store_be32(out.data() + 12, from);
  store_be32(out.data() + 16, to);
  return out;
}

Bytes ip6_packet(std::uint32_t from, std::uint32_t to, std::size_t size, std::uint8_t protocol = 17) {
  Bytes out(std::max<std::size_t>(size, 40), 0);
  out[0] = 0x60;
  store_be16(out.data() + 4, static_cast<std::uint16_t>(out.size() - 40));
  out[6] = protocol, out[7] = 64;
  std::ranges::copy(inner6(from), out.begin() + 8);
  std::ranges::copy(inner6(to), out.begin() + 24);
  return out;
}

Seeds seeds_relay_frame() {
  const auto member = pair_of(3);
  const RelayToken token{"relay-1", 7, member.public_key, kNow + 1h};
  const RelayDoor door{Key32{1}, pair_of(4)};
  Bytes all[10];
  append_challenge(all[0], challenge_of(door));
  append_hello(all[1], *make_hello(challenge_of(door), member, sign_relay_token(signing_key(1), token)));
  append_welcome(all[2]);
  append_send(all[3], member.public_key, Bytes(100, 4));
  append_recv(all[4], member.public_key, Bytes(60, 4));
  append_peer_gone(all[5], member.public_key);
  append_ping(all[6], 77);
  append_pong(all[7], 78);
  append_error(all[8], RelayErrorCode::BadToken, "no");
  append_keys(all[9], Bytes(90, 5));
  Seeds out;
  Bytes together{1};
  for (const Bytes& frame : all) out.push_back(Bytes{0} + frame), together = std::move(together) + frame;
  out.push_back(together);
  return out;
}
std::vector<std::pair<RelayType, Bytes>> read_frames(ByteView stream, std::size_t piece) {
  std::vector<std::pair<RelayType, Bytes>> out;
  FrameReader reader;
  for (Input in(stream); !in.empty();) {
    reader.feed(in.take(piece == 0 ? stream.size() : piece));
    for (;;) {
      const auto frame = reader.next();
      if (!frame.ok()) return out;
      if (!*frame) break;
      out.emplace_back((*frame)->type, Bytes((*frame)->body.begin(), (*frame)->body.end()));
    }
  }
  return out;
}
FUZZ_TARGET(relay_frame, 8 << 10) {
  Input in(input);
  const std::size_t piece = in.byte();
  const ByteView stream = in.rest();
  const auto frames = read_frames(stream, piece);
  MUSTER_CHECK(frames == read_frames(stream, 0));  // however it was cut
  const RelayDoor door{Key32{1}, pair_of(4)};
  const Key32 controller = signing_key(1).public_key();
  for (const auto& [type, body] : frames) {
    MUSTER_CHECK(body.size() <= kRelayBodyMax);
    (void)parse_challenge(body).ok();
    (void)parse_packet(body).ok();
    (void)parse_peer_gone(body).ok();
    (void)parse_error(body).ok();
    if (const auto hello = parse_hello(body); hello.ok()) {
      const auto entered = check_hello(door, *hello, controller, "relay-1", kNow);
      MUSTER_CHECK(!entered.ok() || (entered->cluster == 7 && entered->overlay_key == pair_of(3).public_key));
    }
    if (const auto id = parse_ping(body); id.ok()) plant(type == RelayType::Pong && *id > 1000);
  }
}

Seeds seeds_recall() {
  using net::RecallFrame;
  const Bytes none = net::encode(RecallFrame{RecallFrame::Kind::All, {}}),
              one = net::encode(RecallFrame{RecallFrame::Kind::More, {{7, pair_of(3).public_key}}}),
              two = net::encode(RecallFrame{RecallFrame::Kind::All, {{7, Key32{1}}, {8, Key32{2}}}});
  const Bytes keys = net::encode(RecallFrame{RecallFrame::Kind::Keys, {}, Bytes(70, 6)});
  return {none, one, two, one + two + none, keys, keys + one};
}
FUZZ_TARGET(recall, 4 << 10) {
  Bytes rest(input.begin(), input.end());
  std::size_t at = 0;
  for (;;) {
    const auto frame = net::take_recall(rest);
    if (!frame.ok() || !*frame) return;
    MUSTER_CHECK(rest.size() < input.size() - at);
    const ByteView taken = input.subspan(at, input.size() - at - rest.size());
    MUSTER_CHECK(net::encode(**frame) == Bytes(taken.begin(), taken.end()));  // one encoding
    at += taken.size();
    plant((*frame)->kind == net::RecallFrame::Kind::More && (*frame)->entries.size() == 3);
  }
}

Seeds seeds_relay_token() {
  Seeds out;
  for (const char* relay : {"relay-1", "", "a-longer-name-of-a-relay.example"})
    for (const TokenForm form : {TokenForm::Plain, TokenForm::Named})
      out.push_back(sign_relay_token(signing_key(1), RelayToken{relay, 7, pair_of(3).public_key, kNow + 1h}, form));
  return out;
}
FUZZ_TARGET(relay_token, 512) {
  const auto token = verify_relay_token(signing_key(1).public_key(), input, "relay-1", kNow);
  MUSTER_CHECK(!token.ok() || *token == (RelayToken{"relay-1", 7, pair_of(3).public_key, kNow + 1h}));
  // Signed by the controller, whatever it says: what is behind the signature is reached too.
  if (input.size() < 64) return;
  const ByteView said = input.first(input.size() - 64);
  const Bytes kept(said.begin(), said.end());
  const Bytes resigned = kept + signing_key(1).sign("muster-relay-token-v1", {kept});
  const auto any = verify_relay_token(signing_key(1).public_key(), resigned, "relay-1", kNow);
  plant(any.ok() && any->cluster > 1000);
}

RosterMember roster_member(std::uint8_t n, std::uint32_t address) {
  RosterMember out;
  out.slot = out.node = n;
  out.role = 2;
  out.address = address;
  out.overlay_key = pair_of(n).public_key;
  const auto device = signing_key(static_cast<std::uint8_t>(n + 100));
  out.device_key = device.public_key();
  out.epoch = {1, 1, n};
  out.overlay_signature = sign_overlay_key(device, 5, out.epoch, out.overlay_key);
  out.lan = {Endpoint::udp(0x0a000001, 7000)};
  return out;
}
Seeds seeds_roster() {
  Seeds out;
  Roster roster{5, 1, 1, {}};
  for (std::uint8_t n = 1; n < 5; ++n) {
    out.push_back(encode_roster(roster));
    roster.members.push_back(roster_member(n, kNet + n));
  }
  for (const char* text : {"192.168.1.7:51820", "10.0.0.1:0"}) out.push_back(to_bytes(text));
  return out;
}
FUZZ_TARGET(roster, 4 << 10) {
  (void)parse_udp_endpoint(as_string(input));
  const auto roster = decode_roster(input);
  if (!roster.ok()) return;
  MUSTER_CHECK(encode_roster(*roster) == Bytes(input.begin(), input.end()));  // one encoding
  plant(roster->members.size() == 2 && roster->members[1].slot > 1000);
  const auto controller = signing_key(1);
  const auto verified = verify_roster(input, {sign_roster(controller, input)}, {controller.public_key()});
  MUSTER_CHECK(verified.ok() && verified->roster.members.size() + verified->rejected == roster->members.size());
  RosterGuard guard(1, 1);
  (void)guard.admit(verified->roster, input).ok();
}

Seeds seeds_machine_proof() {
  const auto ca = *crypto::create_ca("muster", kNow);
  std::vector<crypto::MachineProof> proofs;
  Seeds out;
  for (std::uint8_t n = 0; n < 4; ++n) {
    if (n > 0) proofs.push_back(*crypto::prove_machine(ca, n, roster_member(n, kNet + n).device_key, kNow));
    out.push_back(sized(to_bytes(ca.cert_pem)) + crypto::encode_machine_proofs(proofs));
  }
  return out;
}
FUZZ_TARGET(machine_proof, 2 << 10) {
  Input in(input);
  const auto verifier = crypto::MachineVerifier::create(as_string(in.sized()));
  const ByteView said = in.rest();
  const auto proofs = crypto::decode_machine_proofs(said, 16);
  if (!proofs.ok()) return;
  MUSTER_CHECK(crypto::encode_machine_proofs(*proofs) == Bytes(said.begin(), said.end()));
  plant(proofs->size() == 3 && (*proofs)[1].node > 1000);
  if (!verifier.ok()) return;
  Roster roster{5, 1, 1, {roster_member(1, kA), roster_member(2, kB)}};
  const auto dropped = drop_unproven(roster, {verifier->get(), said, kNow});
  if (!dropped.ok()) return;
  MUSTER_CHECK(*dropped + roster.members.size() == 2);
  for (const RosterMember& member : roster.members)
    MUSTER_CHECK(std::any_of(proofs->begin(), proofs->end(), [&](const auto& proof) {
      return proof.node == member.node && (*verifier)->genuine(proof, member.device_key, kNow);
    }));
}

PcpMap pcp_asked() {
  return {0xc0a80117, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 41641, 3600, 0, 41641};
}
Seeds seeds_pcp() {
  const PcpMap asked = pcp_asked();
  Bytes map = pcp_map_request(asked);
  map[1] |= 0x80;
  map[11] = 9;                          // the router's clock
  store_be16(map.data() + 42, 50'000);  // outside
  store_be32(map.data() + 56, 0x5db8d822);
  Bytes announce = pcp_announce_request(asked.client), option = map + Bytes{200, 0, 0, 3, 1, 2, 3, 0};
  announce[1] |= 0x80;
  return {map, announce, option, Bytes{0, 0x81, 0, 1, 0, 0, 0, 9}};
}
FUZZ_TARGET(pcp, 1200) {
  const PcpMap asked = pcp_asked();
  if (const auto answer = read_pcp_map(input, asked)) {
    const bool whole = answer->code == PcpCode::Success;
    MUSTER_CHECK(!whole ||
                 (answer->ip != 0 && answer->port != 0 && answer->lifetime_s != 0 && input.size() >= kPcpMapBytes));
    plant(whole && answer->port < 1024);
  }
  if (const auto answer = read_pcp_announce(input)) MUSTER_CHECK(answer->ip == 0 && answer->port == 0);
}

Seeds seeds_stun() {
  StunTransaction transaction{};
  transaction.fill(3);
  return {stun_request(transaction), stun_answer(transaction, 0x5db8d822, 34567)};
}
FUZZ_TARGET(stun, 600) {
  StunTransaction asked{};
  asked.fill(3);
  const auto request = read_stun_request(input);
  MUSTER_CHECK(!request || !is_stun_answer(input));
  if (const auto seen = read_stun_answer(input, asked)) {
    MUSTER_CHECK(is_stun_answer(input) && seen->kind == Endpoint::Kind::Udp);
    plant(seen->port < 4096);
  }
}

// A member and the relay's end of its UDP way, which know each other; a script of what comes to each. Each step is an
// order, a number and bytes.
enum class Over : std::uint8_t { ToRelay, ToMember, Pass, Move, Data, Raw, RawMember, Last };
Bytes over(Over what, std::uint8_t number, ByteView bytes = {}) {
  return Bytes{static_cast<std::uint8_t>(what), number} + sized(bytes);
}
Seeds seeds_udp_relay() {
  const Bytes round = over(Over::ToRelay, 0) + over(Over::ToMember, 0), start = round + round + round;
  const UdpGrant grant{7, Secret32(Key32{3})};
  return {start,
          start + over(Over::Data, 100) + over(Over::ToRelay, 0),
          start + over(Over::Move, 1) + over(Over::Data, 60) + over(Over::ToRelay, 0) + over(Over::ToMember, 0) + round,
          start + over(Over::Pass, 20) + round,
          over(Over::ToRelay, 9) + over(Over::Pass, 4) + round,
          over(Over::Raw, 0, Bytes{kUdpRelayMagic, 0, 0, 0, 7} + Bytes(32, 1)),
          over(Over::RawMember, 0, Bytes{kUdpRelayMagic, 0, 0, 0, 7} + Bytes(40, 1)),
          over(Over::Raw, 1, encode_udp_grant(grant)) + start};
}
FUZZ_TARGET(udp_relay, 4 << 10) {
  const UdpGrant grant{7, Secret32(Key32{3})};
  const UdpCookies cookies{Secret32(Key32{4})};
  LeaseTime now{1'000'000};
  UdpMemberLeg member(grant, now);
  UdpRelayLeg relay(grant, 100'000);
  std::array<Endpoint, 4> places{Endpoint::udp(0x5db8d822, 1), Endpoint::udp(0x5db8d822, 2), Endpoint::udp(9, 2),
                                 Endpoint::udp6({1}, 2)};
  std::size_t place = 0, given = 0, data = 0;
  std::vector<Bytes> up, down;
  bool changed = false;
  // The relay: never longer than the question, nothing that is not authentic, and no way to where no cookie went.
  std::array<bool, 4> reads{};
  const auto at_relay = [&](ByteView datagram) {
    const auto taken = relay.take(places[place], datagram, cookies, now);
    MUSTER_CHECK(taken.answer <= datagram.size());
    if (taken.what == UdpRelayLeg::Taken::What::Data) MUSTER_CHECK(++data <= given);
    reads[place] = reads[place] || taken.challenged;
    if (taken.answer > 0) {
      Bytes answer(taken.answer);
      std::copy(taken.answer_head.begin(), taken.answer_head.end(), answer.begin());
      if (down.size() < 16) down.push_back(std::move(answer));
    }
    if (const auto at = relay.at(now))
      MUSTER_CHECK(reads[static_cast<std::size_t>(std::ranges::find(places, *at) - places.begin())]);
  };
  const auto damage = [&](Bytes& datagram, std::uint8_t number, ByteView bytes) {
    if (number == 0 || datagram.empty()) return;
    changed = true;
    datagram[number % datagram.size()] ^= static_cast<std::uint8_t>(bytes.empty() ? 1 : bytes[0] | 1);
  };
  Input in(input);
  for (int steps = 0; steps < 64 && !in.empty(); ++steps) {
    const auto what = static_cast<Over>(in.byte() % static_cast<int>(Over::Last));
    const std::uint8_t number = in.byte();
    const ByteView bytes = in.sized();
    if (Bytes ping = member.due(now, 1); !ping.empty() && up.size() < 16) up.push_back(std::move(ping));
    switch (what) {
      case Over::ToRelay:
        if (up.empty()) break;
        damage(up.front(), number, bytes);
        at_relay(up.front());
        up.erase(up.begin());
        break;
      case Over::ToMember:
        if (down.empty()) break;
        damage(down.front(), number, bytes);
        (void)member.take(down.front(), now, 2);
        down.erase(down.begin());
        break;
      case Over::Pass:
        now = now + Millis(number * 100);
        break;
      case Over::Move:
        place = number % places.size();
        break;
      case Over::Data: {
        Bytes out;
        member.wrap(Key32{number}, bytes.first(std::min(bytes.size(), kUdpRelayPayloadMax)), now, out);
        ++given;
        if (up.size() < 16) up.push_back(std::move(out));
        break;
      }
      case Over::Raw:
        (void)decode_udp_grant(bytes);
        changed = true;
        at_relay(bytes);
        break;
      case Over::RawMember:
        MUSTER_CHECK(member.take(bytes, now, 2).what == UdpMemberLeg::Taken::What::Refused);
        break;
      case Over::Last:
        break;
    }
    plant(!changed && place == 3 && relay.at(now) == places[3] && data >= 2);
  }
}

Seeds seeds_offload() {
  const auto header = [](const OffloadHeader& h) {
    const auto bytes = store_offload(h);
    return Bytes(bytes.begin(), bytes.end());
  };
  Bytes tcp = ip_packet(kA, kB, 3040, 6), udp = ip_packet(kA, kB, 2828), small = ip_packet(kA, kB, 60, 6);
  for (Bytes* packet : {&tcp, &small}) (*packet)[20 + 12] = 0x50, (*packet)[20 + 13] = 0x10;
  store_be16(udp.data() + 24, 2808);
  Bytes tcp6 = ip6_packet(kA, kB, 3060, 6);
  tcp6[40 + 12] = 0x50, tcp6[40 + 13] = 0x10;
  return {Bytes{0} + header({1, OffloadHeader::kTcp6, 60, 1000, 40, 16}) + tcp6,
          Bytes{0} + header({1, OffloadHeader::kUdp, 48, 1400, 40, 6}) + ip6_packet(kA, kB, 2848),
          Bytes{0} + header({1, OffloadHeader::kTcp4, 40, 1000, 20, 16}) + tcp,
          Bytes{0} + header({1, OffloadHeader::kUdp, 28, 1400, 20, 6}) + udp,
          Bytes{0} + header({1, OffloadHeader::kNone, 0, 0, 20, 16}) + small,
          Bytes{0} + header({}) + ip_packet(kA, kB, 84, 1),
          Bytes{1} + header({}) + small};
}
FUZZ_TARGET(offload, 8 << 10) {
  struct Out : Coalescer::Sink {
    std::size_t bytes = 0, packets = 0;
    bool write(const OffloadHeader&, ByteView packet) override {
      bytes += packet.size(), ++packets;
      return true;
    }
  } out;
  if (input.size() < 1 + OffloadHeader::kBytes) return;
  Coalescer coalescer(input[0] == 0);
  const OffloadHeader header = load_offload(input.data() + 1);
  const ByteView rest = input.subspan(1 + OffloadHeader::kBytes);
  Bytes packet(rest.begin(), rest.end());
  coalescer.add(rest, out);  // as one that arrived
  std::size_t given = rest.size(), pieces = 0;
  Segments segments(header, packet);
  while (const auto piece = segments.next()) {
    MUSTER_CHECK(++pieces <= 65'536);
    given += piece->size();
    coalescer.add(*piece, out);
    if (piece->size() >= 20) (void)refuse_packet(*piece), (void)refuse_too_large(*piece, 1380);
  }
  coalescer.flush(out);
  MUSTER_CHECK(out.bytes <= given);
  plant(pieces > 3);
}

// A script against one of two devices that know each other. Each step is an order, a number and bytes.
enum class Order : std::uint8_t { Deliver, Change, Cut, Raw, Pass, SendA, SendB, Control, Repeat, Last };
Bytes step(Order order, std::uint8_t number, ByteView bytes = {}) {
  return Bytes{static_cast<std::uint8_t>(order), number} + sized(bytes);
}
struct Box : Sink {
  std::vector<Bytes> sent, awaited;  // awaited: what the other side was given to send, and was not delivered yet
  std::size_t delivered = 0, controls = 0;
  void send(const Endpoint&, ByteView d) override {
    if (sent.size() < 64) sent.emplace_back(d.begin(), d.end());
  }
  void deliver(ByteView packet) override {
    // What the other side was given, once: nothing forged, nothing changed, nothing repeated.
    const auto given = std::find_if(awaited.begin(), awaited.end(), [&](const Bytes& one) {
      return one.size() >= packet.size() && std::equal(packet.begin(), packet.end(), one.begin());
    });
    MUSTER_CHECK(packet.size() >= 20 && given != awaited.end());
    awaited.erase(given);
    ++delivered;
  }
  void control(const Key32&, const Endpoint&, ByteView) override { ++controls; }
};
Seeds seeds_device() {
  const Bytes start = step(Order::SendA, 60);
  return {start + step(Order::Deliver, 0) + step(Order::Deliver, 0) + step(Order::SendB, 100) + step(Order::Deliver, 0),
          step(Order::SendA, 0, ip6_packet(kA, kB, 80)) + step(Order::Deliver, 0) + step(Order::Deliver, 0) +
              step(Order::Deliver, 0),
          start + step(Order::Change, 40) + step(Order::Deliver, 0),
          start + step(Order::Cut, 100) + step(Order::Deliver, 0) + step(Order::Raw, 1, Bytes(148, 1)),
          start + step(Order::Pass, 60) + step(Order::Deliver, 0) + step(Order::Pass, 250) + step(Order::SendA, 20),
          start + step(Order::Deliver, 0) + step(Order::Deliver, 0) + step(Order::Control, 3, Bytes{2, 3, 4}) +
              step(Order::Deliver, 0) + step(Order::Repeat, 0),
          step(Order::Raw, 0, Bytes{4, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0} + Bytes(32, 0)),
          step(Order::Raw, 1, Bytes{3, 0, 0, 0} + Bytes(60, 0)),
          step(Order::Raw, 1, Bytes{2, 0, 0, 0} + Bytes(88, 0))};
}
FUZZ_TARGET(device, 1 << 10) {
  const Endpoint at_a = Endpoint::udp(0x7f000001, 1), at_b = Endpoint::udp(0x7f000001, 2);
  Device a(pair_of(3)), b(pair_of(4));
  a.set_peers({PeerConfig{pair_of(4).public_key, {}, {kB}, at_b, {}}});
  b.set_peers({PeerConfig{pair_of(3).public_key, {}, {kA}, at_a, Millis(25'000)}});
  Now now{kNow, LeaseTime{1'000'000}};
  Box box_a, box_b;
  Input in(input);
  bool damaged = false;
  for (int steps = 0; steps < 32 && !in.empty(); ++steps) {
    const auto order = static_cast<Order>(in.byte() % static_cast<int>(Order::Last));
    const std::uint8_t number = in.byte();
    const ByteView bytes = in.sized();
    Box& from = box_a.sent.empty() ? box_b : box_a;  // whose packet is under way
    Device& to = box_a.sent.empty() ? a : b;
    const bool any = !from.sent.empty();
    Bytes* first = any ? &from.sent.front() : nullptr;
    switch (order) {
      case Order::Deliver:
      case Order::Repeat:
        if (!any) break;
        to.decapsulate(*first, box_a.sent.empty() ? at_b : at_a, now, &to == &a ? box_a : box_b);
        if (order == Order::Deliver) from.sent.erase(from.sent.begin());
        break;
      case Order::Change:
        damaged = true;
        if (any && !first->empty())
          (*first)[number % first->size()] ^= static_cast<std::uint8_t>(bytes.empty() ? 1 : bytes[0] | 1);
        break;
      case Order::Cut:
        damaged = true;
        if (any) first->resize(std::min<std::size_t>(first->size(), number));
        break;
      case Order::Raw:
        damaged = true;
        (number % 2 == 0 ? a : b).decapsulate(bytes, at_b, now, number % 2 == 0 ? box_a : box_b);
        break;
      case Order::Pass:
        now.lease = now.lease + Millis(number * 1000), now.wall = now.wall + Millis(number * 1000);
        a.tick(now, box_a), b.tick(now, box_b);
        break;
      case Order::SendA:
        box_b.awaited.push_back(bytes.empty() ? ip_packet(kA, kB, number) : Bytes(bytes.begin(), bytes.end()));
        (void)a.encapsulate(Bytes(box_b.awaited.back()), now, box_a);
        break;
      case Order::SendB:
        box_a.awaited.push_back(bytes.empty() ? ip_packet(kB, kA, number) : Bytes(bytes.begin(), bytes.end()));
        (void)b.encapsulate(Bytes(box_a.awaited.back()), now, box_b);
        break;
      case Order::Control:
        if (!bytes.empty() && bytes[0] < 0x10) (void)b.send_control(pair_of(3).public_key, at_a, bytes, now, box_b);
        break;
      case Order::Last:
        break;
    }
    plant(!damaged && box_a.delivered == 2);
  }
}

// An honest member against a fellow whose key is in the roster and who says what it likes.
struct Net : Out {
  Device* fellow;
  Sink* sink;
  const Now* now;
  std::size_t direct = 0;
  void to_relay(std::size_t relay, const Key32&, ByteView d) override {
    MUSTER_CHECK(relay < 2);
    fellow->decapsulate(d, Endpoint::relay(pair_of(1).public_key, relay), *now, *sink);
  }
  void to_udp(std::uint32_t, std::uint16_t, ByteView) override { MUSTER_CHECK(++direct < 10'000); }
  bool may_carry(std::size_t) override { return true; }
  void to_tun(ByteView packet) override {
    const auto ends = packet_ends(packet);
    MUSTER_CHECK(ends && ends->source == kB && ends->destination == kA);
  }
};
enum class Say : std::uint8_t { Control, Packet, FromTun, Pass, Raw, ControlUdp, Relays, Last };
Bytes say(Say what, ByteView bytes) {
  return Bytes{static_cast<std::uint8_t>(what)} + sized(bytes);
}
Seeds seeds_member() {
  const Bytes id(8, 1), told{3, 0x5d, 0xb8, 0xd8, 0x22, 0x87, 7};
  Seeds out;
  for (std::uint8_t type = 0; type < 8; ++type) {
    Bytes message = Bytes{type} + id;
    out.push_back(say(Say::Control, message) + say(Say::Pass, Bytes{2}));
    message.resize(1300);
    out.push_back(say(Say::ControlUdp, message) + say(Say::Control, Bytes{type} + told));
  }
  // Probes by UDP, one of which is answered: the others are a bit away from it.
  const Bytes probe = say(Say::ControlUdp, Bytes{1} + id), other = say(Say::ControlUdp, Bytes{3} + id);
  out.push_back(probe + other + other);
  out.push_back(say(Say::Packet, ip_packet(kB, kA, 60)) + say(Say::Packet, ip_packet(kB + 1, kA, 60)) +
                say(Say::FromTun, ip_packet(kA, kB, 90)));
  out.push_back(say(Say::Packet, ip6_packet(kB, kA, 60)) + say(Say::Packet, ip6_packet(kB + 1, kA, 60)) +
                say(Say::FromTun, ip6_packet(kA, kB, 1300)) + say(Say::FromTun, ip6_packet(kA, kNet + 9, 60, 6)));
  out.push_back(say(Say::FromTun, ip_packet(kA, kNet + 9, 60, 6)) + say(Say::FromTun, ip_packet(kA, kNet + 9, 1500)));
  return out;
}
FUZZ_TARGET(member, 6 << 10) {
  static const Bytes roster = encode_roster({5, 1, 1, {roster_member(1, kA), roster_member(2, kB)}});
  static const Bytes signature = sign_roster(signing_key(1), roster);
  struct Sent : Sink {
    std::vector<Bytes> sent;
    void send(const Endpoint&, ByteView d) override { sent.emplace_back(d.begin(), d.end()); }
    void deliver(ByteView) override {}
    void control(const Key32&, const Endpoint&, ByteView message) override { answers += !message.empty(); }
    std::size_t answers = 0;
  } sent;
  Now now{kNow, LeaseTime{1'000'000}};
  Member a(pair_of(1), kA, 16, Secret32{});
  MUSTER_CHECK(a.set_roster(roster, {signature}, {signing_key(1).public_key()}).ok());
  Device b(pair_of(2));
  b.set_peers({PeerConfig{pair_of(1).public_key, {}, {kA}, Endpoint::relay(pair_of(1).public_key), {}}});
  Net net;
  net.fellow = &b, net.sink = &sent, net.now = &now;
  const Key32 a_key = pair_of(1).public_key, b_key = pair_of(2).public_key;
  a.set_relays(2, now);
  a.relay_up(0, now);
  a.relay_up(1, now);
  a.set_carries(true, now, net);
  std::size_t relay = 0;
  const auto arrive = [&](bool udp) {
    for (int round = 0; round < 4 && !sent.sent.empty(); ++round)
      for (const Bytes& d : std::exchange(sent.sent, {}))
        udp ? a.from_udp(0x0a000002, 7001, d, now, net) : a.from_relay(relay, b_key, d, now, net);
  };
  b.start_handshake(a_key, now, sent);
  arrive(false);
  arrive(false);
  Input in(input);
  for (int steps = 0; steps < 16 && !in.empty(); ++steps) {
    const auto what = static_cast<Say>(in.byte() % static_cast<int>(Say::Last));
    const ByteView bytes = in.sized();
    switch (what) {
      case Say::Control:
      case Say::ControlUdp:
        if (!bytes.empty() && bytes[0] < 0x10) (void)b.send_control(a_key, Endpoint::relay(a_key), bytes, now, sent);
        arrive(what == Say::ControlUdp);
        break;
      case Say::Relays:
        for (const std::uint8_t what_of : bytes) {
          relay = what_of & 1;
          if ((what_of & 6) == 2) a.relay_up(relay, now);
          if ((what_of & 6) == 4) a.relay_down(relay, now);
          if ((what_of & 6) == 6) a.relay_lacks(relay, b_key, now);
        }
        break;
      case Say::Packet:
        (void)b.encapsulate(bytes, now, sent);
        arrive(false);
        break;
      case Say::FromTun: {
        struct Ours : Net {
          void to_tun(ByteView) override {}  // an answer of ours to our own program
        } ours;
        ours.fellow = &b, ours.sink = &sent, ours.now = &now;
        a.from_tun(bytes, now, ours);
        break;
      }
      case Say::Pass: {
        const Millis time{(bytes.empty() ? 1 : bytes[0]) * 250};
        now.lease = now.lease + time, now.wall = now.wall + time;
        a.tick(now, net), b.tick(now, sent);
        arrive(false);
        break;
      }
      case Say::Raw:
        a.from_udp(0x0a000002, 7001, bytes, now, net);
        break;
      case Say::Last:
        break;
    }
    plant(a.stats()[0].peer.rx_packets >= 4 && net.direct >= 3);
  }
}

}  // namespace
}  // namespace muster::fuzz
