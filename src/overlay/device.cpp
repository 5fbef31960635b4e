#include "overlay/device.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "base/check.h"
#include "base/endian.h"
#include "crypto/random.h"
#include "overlay/cookie.h"
#include "overlay/packet.h"
#include "overlay/session.h"

namespace muster::overlay {
namespace {

constexpr std::size_t kPacketMax = 65'535;
constexpr std::size_t kPeersMax = 65'536;

// TAI64N, coarse on purpose (16 ms steps tell an observer less) and strictly increasing for one device.
std::array<std::uint8_t, 12> tai64n(WallTime wall, std::array<std::uint8_t, 12>& last) {
  std::array<std::uint8_t, 12> out;
  store_be64(out.data(), 0x400000000000000aULL + static_cast<std::uint64_t>(wall.ms / 1000));
  store_be32(out.data() + 8, static_cast<std::uint32_t>(wall.ms % 1000 * 1'000'000) & ~std::uint32_t{0xffffff});
  if (std::memcmp(out.data(), last.data(), out.size()) <= 0) {
    out = last;
    for (std::size_t i = out.size(); i-- > 0;) {
      if (++out[i] != 0) break;
    }
  }
  last = out;
  return out;
}

}  // namespace

struct Device::Impl {
  struct KeyHash {
    std::size_t operator()(const Key32& key) const { return static_cast<std::size_t>(load_le64(key.data())); }
  };
  enum class Slot : std::uint8_t { Handshake, Session };
  struct IndexEntry {
    Peer* peer;
    Slot slot;
  };

  crypto::X25519Pair self;
  DeviceOptions options;
  CookieDoor door;
  std::unordered_map<Key32, std::unique_ptr<Peer>, KeyHash> peers;
  std::unordered_map<std::uint32_t, Peer*> by_address;
  std::unordered_map<std::uint32_t, IndexEntry> by_index;
  std::array<std::uint8_t, 12> last_timestamp{};
  WallTime stamp_floor, latest_stamp;
  Bytes out, in;  // reused for every packet
  std::uint64_t sessions = 0;

  struct Held {  // a packet that waits to be sealed, in `held_bytes`
    Session* session;
    Endpoint to;
    std::uint64_t counter;
    std::size_t at, plain;
  };
  static constexpr std::size_t kRowShared = 4;  // packets that one of many seals or opens in a row
  struct Row : Crew::Job {
    explicit Row(std::vector<crypto::AeadPacket>& packets) : row(packets) {}
    std::span<crypto::AeadPacket> of(std::size_t number) const {
      return std::span(row).subspan(number * each, std::min(each, row.size() - number * each));
    }
    std::vector<crypto::AeadPacket>& row;
    std::size_t each = 1;
  };
  struct Sealing final : Row {
    using Row::Row;
    void part(std::size_t number) noexcept override { crypto::seal_row(of(number)); }
  };
  struct Opening final : Row {
    using Row::Row;
    void part(std::size_t number) noexcept override { crypto::open_row(of(number)); }
  };
  bool holding = false;
  std::size_t held_max = 0;
  std::vector<Held> held;
  Bytes held_bytes;
  std::size_t held_used = 0;

  struct Ahead {  // a datagram that was opened before its turn, into `ahead_bytes`
    ByteView datagram;
    Session* session;
    std::uint64_t serial, counter;
    std::size_t at;
    bool genuine;
  };
  std::vector<Ahead> ahead;
  std::size_t ahead_next = 0;
  Bytes ahead_bytes;
  std::vector<crypto::AeadPacket> row;  // of those held, or opened ahead, while they are at work

  // All at once for who is alone, else kRowShared a part.
  void work(Crew& crew, std::size_t count, Row& job) {
    job.each = crew.helps() ? kRowShared : std::max<std::size_t>(count, 1);
    crew.run((count + job.each - 1) / job.each, job);
  }

  Impl(const crypto::X25519Pair& key, const DeviceOptions& o)
      : self(key),
        options(o),
        door(key.public_key, o.load_handshakes_per_s),
        out(kPacketMax + 64),
        in(kPacketMax + 64) {}

  Peer* find(const Key32& key) {
    const auto it = peers.find(key);
    return it == peers.end() ? nullptr : it->second.get();
  }

  std::uint32_t new_index(Peer& peer, Slot slot) {
    for (;;) {
      const std::uint32_t index = crypto::random_u32();
      if (by_index.emplace(index, IndexEntry{&peer, slot}).second) return index;
    }
  }
  void drop(std::unique_ptr<Session>& session) {
    if (session) by_index.erase(session->local);
    session.reset();
  }
  void drop_pending(Peer& peer) {
    if (peer.pending) by_index.erase(peer.pending->local);
    peer.pending.reset();
  }
  template <typename... Of>
  std::unique_ptr<Session> new_session(Of&&... of) {
    auto session = std::make_unique<Session>(std::forward<Of>(of)...);
    session->serial = ++sessions;
    return session;
  }
  void forget(Peer& peer) {
    drop(peer.previous);
    drop(peer.current);
    drop(peer.next);
    drop_pending(peer);
  }

  std::pair<Peer*, Session*> session_at(std::uint32_t index);
  const Ahead* opened_ahead(ByteView datagram, const Session& session);
  std::uint8_t* room_for_held(std::size_t bytes);
  void release(Crew& crew, Sink& sink);
  void set_peers(const std::vector<PeerConfig>& wanted);
  void transmit(Peer& peer, ByteView datagram, LeaseTime now, Sink& sink);
  void seal_and_send(Peer& peer, ByteView plain, std::size_t padded, const Endpoint& to, const Now& now, Sink& sink);
  void send_keepalive(Peer& peer, const Now& now, Sink& sink) { seal_and_send(peer, {}, 0, peer.endpoint, now, sink); }
  void send_data(Peer& peer, ByteView packet, const Now& now, Sink& sink);
  void flush_staged(Peer& peer, const Now& now, Sink& sink);
  void initiate(Peer& peer, const Now& now, Sink& sink, bool retry);
  void add_macs(Peer& peer, Bytes& message, LeaseTime now);
  void on_initiation(ByteView message, const Endpoint& from, const Now& now, Sink& sink);
  void on_response(ByteView message, const Endpoint& from, const Now& now, Sink& sink);
  void on_cookie(ByteView message, LeaseTime now);
  void on_transport(ByteView message, const Endpoint& from, const Now& now, Sink& sink);
  void on_plain(Peer& peer, ByteView plain, const Endpoint& from, const Now& now, Sink& sink);
  void authenticated(Peer& peer, const Endpoint& from, std::size_t bytes);
  void tick_peer(Peer& peer, const Now& now, Sink& sink);
};

Device::Device(const crypto::X25519Pair& key, DeviceOptions options) : impl_(std::make_unique<Impl>(key, options)) {}
Device::~Device() = default;
const Key32& Device::public_key() const {
  return impl_->self.public_key;
}

void Device::Impl::set_peers(const std::vector<PeerConfig>& wanted) {
  MUSTER_CHECK(wanted.size() <= kPeersMax);
  std::unordered_map<Key32, std::unique_ptr<Peer>, KeyHash> next;
  by_address.clear();
  for (const PeerConfig& config : wanted) {
    if (config.public_key == self.public_key || next.contains(config.public_key)) continue;
    std::unique_ptr<Peer> peer;
    const auto old = peers.find(config.public_key);
    if (old != peers.end() && crypto::equal(old->second->config.psk.bytes, config.psk.bytes)) {
      peer = std::move(old->second);
      peers.erase(old);
    } else {
      // A low-order key can never finish a handshake: leave such a peer out.
      const auto shared = crypto::x25519_agree(self.secret, config.public_key);
      if (!shared) continue;
      peer = std::make_unique<Peer>();
      peer->static_static = *shared;
      peer->mac1_key = mac1_key_of(config.public_key);
      peer->cookie_key = cookie_key_of(config.public_key);
      peer->endpoint = config.endpoint;
      peer->stats.public_key = config.public_key;
    }
    peer->config = config;
    for (std::uint32_t address : config.addresses) by_address.emplace(address, peer.get());
    next.emplace(config.public_key, std::move(peer));
  }
  for (auto& [key, peer] : peers) {
    if (peer) forget(*peer);
  }
  peers = std::move(next);
}

void Device::Impl::transmit(Peer& peer, ByteView datagram, LeaseTime now, Sink& sink) {
  if (peer.endpoint.kind == Endpoint::Kind::None) return;
  peer.last_sent = now;
  peer.stats.tx_bytes += datagram.size();
  sink.send(peer.endpoint, datagram);
}

void Device::Impl::seal_and_send(Peer& peer, ByteView plain, std::size_t padded, const Endpoint& to, const Now& now,
                                 Sink& sink) {
  Session& session = *peer.current;
  const std::size_t size = kTransportHeader + padded + crypto::kAeadTag;
  if (holding && held.size() == held_max) {
    Alone alone;
    release(alone, sink);
    holding = true;
  }
  const bool later = holding && to.kind != Endpoint::Kind::None;
  std::uint8_t* packet = later ? room_for_held(size) : out.data();
  packet[0] = kTypeTransport;
  packet[1] = packet[2] = packet[3] = 0;
  store_le32(packet + 4, session.remote);
  store_le64(packet + 8, session.next_counter);
  std::uint8_t* body = packet + kTransportHeader;
  if (!plain.empty()) std::memcpy(body, plain.data(), plain.size());
  std::memset(body + plain.size(), 0, padded - plain.size());
  if (later)
    held.push_back({&session, to, session.next_counter, static_cast<std::size_t>(packet - held_bytes.data()), padded});
  else
    session.seal.seal(session.next_counter, {}, {body, padded}, body);
  ++session.next_counter;
  peer.last_sent = now.lease;
  peer.keepalive_due.reset();
  peer.stats.tx_bytes += size;
  ++peer.stats.tx_packets;
  if (!later && to.kind != Endpoint::Kind::None) sink.send(to, {packet, size});
  if (session.initiator &&
      (now.lease - session.created >= kRekeyAfter || session.next_counter >= kRekeyAfterMessages)) {
    initiate(peer, now, sink, false);
  }
}

void Device::Impl::send_data(Peer& peer, ByteView packet, const Now& now, Sink& sink) {
  std::size_t padded = (packet.size() + 15) / 16 * 16;
  if (padded > options.mtu) padded = std::max(packet.size(), options.mtu);
  if (!peer.unanswered_since) peer.unanswered_since = now.lease;
  ++peer.stats.inner_packets;
  seal_and_send(peer, packet, padded, peer.endpoint, now, sink);
}

void Device::Impl::flush_staged(Peer& peer, const Now& now, Sink& sink) {
  std::vector<Bytes> staged;
  staged.swap(peer.staged);
  for (const Bytes& packet : staged) send_data(peer, packet, now, sink);
}

void Device::Impl::add_macs(Peer& peer, Bytes& message, LeaseTime now) {
  peer.last_mac1 = crypto::blake2s_mac16(peer.mac1_key, message);
  message.insert(message.end(), peer.last_mac1.begin(), peer.last_mac1.end());
  crypto::Tag16 mac2{};
  if (peer.cookie_at && now - *peer.cookie_at < kCookieLife) mac2 = crypto::blake2s_mac16(peer.cookie, message);
  message.insert(message.end(), mac2.begin(), mac2.end());
}

void Device::Impl::initiate(Peer& peer, const Now& now, Sink& sink, bool retry) {
  if (peer.endpoint.kind == Endpoint::Kind::None) return;
  if (!retry && peer.last_initiation_sent && now.lease - *peer.last_initiation_sent < kRekeyTimeout) return;
  if (!retry || !peer.attempt_started) peer.attempt_started = now.lease;
  drop_pending(peer);
  const crypto::X25519Pair ephemeral = crypto::x25519_generate();
  Bytes message(8);
  message[0] = kTypeInitiation;
  const WallTime stamp = std::max(now.wall, stamp_floor);
  latest_stamp = std::max(latest_stamp, stamp);
  const auto timestamp = tai64n(stamp, last_timestamp);
  auto noise = write_first(self, peer.config.public_key, peer.static_static, ephemeral, as_bytes(kWireGuardPrologue),
                           timestamp, message);
  if (!noise) return;
  const std::uint32_t local = new_index(peer, Slot::Handshake);
  store_le32(message.data() + 4, local);
  // Jitter keeps two sides that start together from colliding for ever.
  peer.pending = std::make_unique<PendingHandshake>(
      PendingHandshake{*noise, ephemeral, local, now.lease, kRekeyTimeout + Millis(crypto::random_u32() % 334)});
  add_macs(peer, message, now.lease);
  peer.last_initiation_sent = now.lease;
  transmit(peer, message, now.lease, sink);
}

void Device::Impl::authenticated(Peer& peer, const Endpoint& from, std::size_t bytes) {
  peer.stats.rx_bytes += bytes;
  peer.unanswered_since.reset();
  if (options.roam || peer.endpoint.kind == Endpoint::Kind::None) peer.endpoint = from;
}

void Device::Impl::on_initiation(ByteView message, const Endpoint& from, const Now& now, Sink& sink) {
  auto first = read_first(self, as_bytes(kWireGuardPrologue), message.subspan(8, 108));
  if (!first) return;
  Peer* peer = find(first->remote_static);
  if (peer == nullptr) return;
  std::array<std::uint8_t, 12> timestamp;
  if (!read_first_payload(*first, peer->static_static, timestamp)) return;
  // A replay, or a flood with a stolen key.
  if (std::memcmp(timestamp.data(), peer->last_timestamp.data(), timestamp.size()) <= 0) return;
  if (peer->last_initiation_received && now.lease - *peer->last_initiation_received < kInitiationGap) return;
  peer->last_timestamp = timestamp;
  peer->last_initiation_received = now.lease;

  const crypto::X25519Pair ephemeral = crypto::x25519_generate();
  Bytes reply(12);
  reply[0] = kTypeResponse;
  if (!write_second(first->noise, first->ephemeral, first->remote_static, ephemeral, peer->config.psk, {}, reply))
    return;
  const std::uint32_t local = new_index(*peer, Slot::Session);
  const std::uint32_t remote = load_le32(message.data() + 4);
  store_le32(reply.data() + 4, local);
  store_le32(reply.data() + 8, remote);
  const auto [initiator_key, responder_key] = first->noise.split();
  drop(peer->previous);
  drop(peer->next);
  peer->next = new_session(local, remote, responder_key, initiator_key, now.lease, false);
  authenticated(*peer, from, message.size());
  add_macs(*peer, reply, now.lease);
  peer->last_sent = now.lease;
  peer->stats.tx_bytes += reply.size();
  sink.send(from, reply);  // by the way it came: that way is known to work
}

void Device::Impl::on_response(ByteView message, const Endpoint& from, const Now& now, Sink& sink) {
  const auto it = by_index.find(load_le32(message.data() + 8));
  if (it == by_index.end() || it->second.slot != Slot::Handshake) return;
  Peer& peer = *it->second.peer;
  Noise noise = peer.pending->noise;  // a forged response must not spoil the state
  if (!read_second(noise, self, peer.pending->ephemeral, peer.config.psk, message.subspan(12, 48), {})) return;
  const std::uint32_t local = peer.pending->local;
  const auto [initiator_key, responder_key] = noise.split();
  peer.pending.reset();
  it->second.slot = Slot::Session;
  drop(peer.previous);
  peer.previous = std::move(peer.next ? peer.next : peer.current);
  drop(peer.current);
  peer.current = new_session(local, load_le32(message.data() + 4), initiator_key, responder_key, now.lease, true);
  peer.attempt_started.reset();
  authenticated(peer, from, message.size());
  ++peer.stats.handshakes;
  peer.stats.last_handshake = now.wall;
  // The responder may use the session only after a packet of ours.
  if (peer.staged.empty()) send_keepalive(peer, now, sink);
  flush_staged(peer, now, sink);
}

void Device::Impl::on_cookie(ByteView message, LeaseTime now) {
  const auto it = by_index.find(load_le32(message.data() + 4));
  if (it == by_index.end()) return;
  Peer& peer = *it->second.peer;
  const auto cookie = crypto::xchacha_open(peer.cookie_key, std::span<const std::uint8_t, 24>(message.data() + 8, 24),
                                           peer.last_mac1, message.subspan(32, 32));
  if (!cookie) return;
  std::copy(cookie->begin(), cookie->end(), peer.cookie.begin());
  peer.cookie_at = now;
}

void Device::Impl::on_transport(ByteView message, const Endpoint& from, const Now& now, Sink& sink) {
  const auto [found, session] = session_at(load_le32(message.data() + 4));
  const std::uint64_t counter = load_le64(message.data() + 8);
  if (session == nullptr || now.lease - session->created >= kRejectAfter || counter >= kRejectAfterMessages) return;
  Peer& peer = *found;
  const ByteView sealed = message.subspan(kTransportHeader);
  const Ahead* before = opened_ahead(message, *session);
  const std::uint8_t* plain = before != nullptr ? ahead_bytes.data() + before->at : in.data();
  const bool genuine = before != nullptr
                           ? before->genuine
                           : sealed.size() <= in.size() && session->open.open(counter, {}, sealed, in.data());
  if (!genuine || !session->replay.accept(counter)) {
    ++peer.stats.dropped;
    return;
  }
  authenticated(peer, from, message.size());
  ++peer.stats.rx_packets;
  if (session == peer.next.get()) {
    drop(peer.previous);
    peer.previous = std::move(peer.current);
    peer.current = std::move(peer.next);
    peer.attempt_started.reset();
    drop_pending(peer);
    ++peer.stats.handshakes;
    peer.stats.last_handshake = now.wall;
    flush_staged(peer, now, sink);
  }
  on_plain(peer, {plain, sealed.size() - crypto::kAeadTag}, from, now, sink);
}

std::pair<Peer*, Session*> Device::Impl::session_at(std::uint32_t index) {
  const auto it = by_index.find(index);
  if (it == by_index.end() || it->second.slot != Slot::Session) return {};
  Peer& peer = *it->second.peer;
  for (auto* session : {&peer.current, &peer.next, &peer.previous})
    if (*session && (*session)->local == index) return {&peer, session->get()};
  return {};
}

// Good until the next one is asked for.
std::uint8_t* Device::Impl::room_for_held(std::size_t bytes) {
  if (held_bytes.size() - held_used < bytes) held_bytes.resize(std::max(2 * held_bytes.size(), held_used + bytes));
  std::uint8_t* const at = held_bytes.data() + held_used;
  held_used += bytes;
  return at;
}

void Device::Impl::release(Crew& crew, Sink& sink) {
  holding = false;
  row.clear();
  for (const Held& each : held) {
    std::uint8_t* const body = held_bytes.data() + each.at + kTransportHeader;
    if (crypto::packets_on_many_threads())
      row.push_back(each.session->seal.packet(each.counter, {body, each.plain}, body));
    else
      each.session->seal.seal(each.counter, {}, {body, each.plain}, body);
  }
  Sealing job(row);
  work(crew, row.size(), job);
  for (const Held& each : held)
    sink.send(each.to, {held_bytes.data() + each.at, kTransportHeader + each.plain + crypto::kAeadTag});
  held.clear();
  held_used = 0;
}

// What was opened ahead counts only for the session that it was opened with: another may have taken its place since.
const Device::Impl::Ahead* Device::Impl::opened_ahead(ByteView datagram, const Session& session) {
  for (std::size_t i = ahead_next; i < ahead.size(); ++i) {
    if (ahead[i].datagram.data() != datagram.data() || ahead[i].datagram.size() != datagram.size()) continue;
    ahead_next = i + 1;
    return ahead[i].serial == session.serial ? &ahead[i] : nullptr;
  }
  return nullptr;
}

void Device::Impl::on_plain(Peer& peer, ByteView plain, const Endpoint& from, const Now& now, Sink& sink) {
  if (peer.current && peer.current->initiator &&
      now.lease - peer.current->created >= kRejectAfter - kKeepalive - kRekeyTimeout) {
    initiate(peer, now, sink, false);
  }
  if (plain.empty()) return;  // keepalive
  if (!peer.keepalive_due) peer.keepalive_due = now.lease + kKeepalive;
  if (plain[0] < 0x10) {
    sink.control(peer.config.public_key, from, plain);
    return;
  }
  const auto ends = packet_ends(plain);
  const auto owner = ends ? by_address.find(ends->source) : by_address.end();
  if (owner == by_address.end() || owner->second != &peer) {  // a source that is not its own
    ++peer.stats.dropped;
    return;
  }
  ++peer.stats.inner_packets;
  sink.deliver(plain.first(ends->bytes));
}

void Device::Impl::tick_peer(Peer& peer, const Now& now, Sink& sink) {
  for (auto* session : {&peer.previous, &peer.current, &peer.next}) {
    if (*session && now.lease - (*session)->created >= kRejectAfter) drop(*session);
  }
  if (peer.pending && now.lease - peer.pending->sent_at >= peer.pending->retry_after) {
    if (peer.attempt_started && now.lease - *peer.attempt_started >= kRekeyAttempt) {
      drop_pending(peer);
      peer.attempt_started.reset();
      peer.unanswered_since.reset();
      peer.staged.clear();
    } else {
      initiate(peer, now, sink, true);
    }
  }
  const bool usable = peer.current && peer.current->usable(now.lease);
  if (usable && peer.keepalive_due && now.lease >= *peer.keepalive_due) send_keepalive(peer, now, sink);
  if (peer.unanswered_since && now.lease - *peer.unanswered_since >= kKeepalive + kRekeyTimeout && !peer.pending) {
    initiate(peer, now, sink, false);
  }
  if (peer.config.keepalive.count() > 0 && now.lease - peer.last_sent >= peer.config.keepalive) {
    if (usable)
      send_keepalive(peer, now, sink);
    else if (!peer.pending)
      initiate(peer, now, sink, false);
  }
}

void Device::set_peers(const std::vector<PeerConfig>& peers) {
  impl_->set_peers(peers);
}

void Device::set_endpoint(const Key32& key, const Endpoint& endpoint) {
  if (Peer* peer = impl_->find(key)) peer->endpoint = endpoint;
}

bool Device::has_peer(const Key32& key) const {
  return impl_->find(key) != nullptr;
}

bool Device::has_session(const Key32& key) const {
  const Peer* peer = impl_->find(key);
  return peer != nullptr && peer->current != nullptr;
}

std::uint64_t Device::received_bytes(const Key32& key) const {
  const Peer* peer = impl_->find(key);
  return peer == nullptr ? 0 : peer->stats.rx_bytes;
}

std::uint64_t Device::sent_bytes(const Key32& key) const {
  const Peer* peer = impl_->find(key);
  return peer == nullptr ? 0 : peer->stats.tx_bytes;
}

std::uint64_t Device::inner_packets(const Key32& key) const {
  const Peer* peer = impl_->find(key);
  return peer == nullptr ? 0 : peer->stats.inner_packets;
}

Encapsulated Device::encapsulate(ByteView packet, const Now& now, Sink& sink) {
  const auto ends = packet_ends(packet);
  if (!ends || packet.size() > kPacketMax - 32) return Encapsulated::Invalid;
  const auto it = impl_->by_address.find(ends->destination);
  if (it == impl_->by_address.end()) return Encapsulated::NoPeer;
  Peer& peer = *it->second;
  if (peer.current && peer.current->usable(now.lease)) {
    impl_->send_data(peer, packet, now, sink);
    return Encapsulated::Sent;
  }
  if (peer.staged.size() >= impl_->options.staged_packets_max) {
    peer.staged.erase(peer.staged.begin());
    ++peer.stats.dropped;
  }
  peer.staged.emplace_back(packet.begin(), packet.end());
  if (!peer.pending) impl_->initiate(peer, now, sink, false);
  return Encapsulated::Staged;
}

void Device::decapsulate(ByteView datagram, const Endpoint& from, const Now& now, Sink& sink) {
  if (datagram.size() < kTransportHeader + crypto::kAeadTag || datagram[1] != 0 || datagram[2] != 0 || datagram[3] != 0)
    return;
  if (datagram[0] == kTypeTransport) return impl_->on_transport(datagram, from, now, sink);
  if (datagram[0] == kTypeCookie && datagram.size() == kCookieBytes) return impl_->on_cookie(datagram, now.lease);
  const bool initiation = datagram[0] == kTypeInitiation && datagram.size() == kInitiationBytes;
  if (!initiation && !(datagram[0] == kTypeResponse && datagram.size() == kResponseBytes)) return;
  switch (impl_->door.check(datagram, from, now.lease)) {
    case CookieDoor::Verdict::Drop:
      return;
    case CookieDoor::Verdict::SendCookie:
      return sink.send(from, impl_->door.reply(datagram, from, now.lease));
    case CookieDoor::Verdict::Accept:
      break;
  }
  if (initiation)
    impl_->on_initiation(datagram, from, now, sink);
  else
    impl_->on_response(datagram, from, now, sink);
}

bool Device::send_control(const Key32& key, const Endpoint& to, ByteView message, const Now& now, Sink& sink) {
  MUSTER_CHECK(!message.empty() && message[0] < 0x10 && message.size() <= kPacketMax - 32);
  Peer* peer = impl_->find(key);
  if (peer == nullptr || !peer->current || !peer->current->usable(now.lease)) return false;
  impl_->seal_and_send(*peer, message, message.size(), to, now, sink);
  return true;
}

void Device::hold(const Crew& crew) {
  impl_->holding = true;
  impl_->held_max = crew.helps() ? kHeldMax : kHeldAlone;
}

void Device::release(Crew& crew, Sink& sink) {
  impl_->release(crew, sink);
}

void Device::open_ahead(std::span<const ByteView> datagrams, Crew& crew, const Now& now) {
  auto& self = *impl_;
  self.ahead.clear();
  self.ahead_next = 0;
  if (!crypto::packets_on_many_threads()) return;
  std::size_t used = 0;
  for (const ByteView datagram : datagrams) {
    if (datagram.size() <= kTransportHeader + crypto::kAeadTag || datagram[0] != kTypeTransport) continue;
    Session* const session = self.session_at(load_le32(datagram.data() + 4)).second;
    if (session == nullptr || now.lease - session->created >= kRejectAfter) continue;
    self.ahead.push_back({datagram, session, session->serial, load_le64(datagram.data() + 8), used, false});
    used += datagram.size();
  }
  if (self.ahead_bytes.size() < used) self.ahead_bytes.resize(used);
  self.row.clear();
  for (const auto& each : self.ahead)
    self.row.push_back(each.session->open.packet(each.counter, each.datagram.subspan(kTransportHeader),
                                                 self.ahead_bytes.data() + each.at));
  Impl::Opening job(self.row);
  self.work(crew, self.row.size(), job);
  for (std::size_t i = 0; i < self.ahead.size(); ++i) self.ahead[i].genuine = self.row[i].good;
}

void Device::start_handshake(const Key32& key, const Now& now, Sink& sink) {
  if (Peer* peer = impl_->find(key); peer != nullptr && !peer->pending) impl_->initiate(*peer, now, sink, false);
}

void Device::hurry(const Key32& key, Millis within, const Now& now) {
  Peer* peer = impl_->find(key);
  if (peer == nullptr || !peer->pending) return;
  peer->pending->retry_after = std::min(peer->pending->retry_after, now.lease - peer->pending->sent_at + within);
}

void Device::tick(const Now& now, Sink& sink) {
  for (auto& [key, peer] : impl_->peers) impl_->tick_peer(*peer, now, sink);
}

void Device::stamp_from(WallTime floor) {
  impl_->stamp_floor = floor;
}
WallTime Device::latest_stamp() const {
  return impl_->latest_stamp;
}

std::vector<PeerStats> Device::stats() const {
  std::map<Key32, PeerStats> sorted;
  for (const auto& [key, peer] : impl_->peers) {
    sorted.emplace(key, peer->stats).first->second.endpoint = peer->endpoint;
  }
  std::vector<PeerStats> out;
  for (auto& [key, stats] : sorted) out.push_back(stats);
  return out;
}

}  // namespace muster::overlay
