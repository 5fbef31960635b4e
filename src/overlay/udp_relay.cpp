#include "overlay/udp_relay.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/endian.h"
#include "crypto/hash.h"

namespace muster::overlay {
namespace {

constexpr std::string_view kUdpMemberDomain = "muster-udp-relay-v1 member",
                           kUdpRelayDomain = "muster-udp-relay-v1 relay";
constexpr std::size_t kGrantBytes = 1 + 4 + 32;
constexpr std::size_t kSealedAt = 12, kSealedPlain = 9;
constexpr std::uint64_t kCounterMax = (std::uint64_t{1} << 56) - 1;
constexpr int kTriesMax = 3;
constexpr Millis kStaysBusy{10'000};
constexpr std::int64_t kPingsPerSecond = 20, kCookiesPerSecond = 5;

Secret32 key_of(const UdpGrant& grant, UdpRelayEnd sender) {
  Bytes raw = crypto::hkdf_sha256(grant.key.bytes, {},
                                  as_bytes(sender == UdpRelayEnd::Member ? kUdpMemberDomain : kUdpRelayDomain), 32);
  const Secret32 out(*crypto::key32(raw));
  crypto::zeroise(raw);
  return out;
}

}  // namespace

Bytes encode_udp_grant(const UdpGrant& grant) {
  Bytes out{kUdpRelayVersion};
  append_be(out, grant.id);
  out.insert(out.end(), grant.key.bytes.begin(), grant.key.bytes.end());
  if (grant.second_port != 0) append_be(out, grant.second_port);  // members of before do not look at it
  return out;
}

// What a later version adds behind is not ours to read.
std::optional<UdpGrant> decode_udp_grant(ByteView welcome) {
  if (welcome.size() < kGrantBytes || welcome[0] != kUdpRelayVersion) return {};
  UdpGrant out{load_be32(welcome.data() + 1), Secret32(*crypto::key32(welcome.subspan(5, 32)))};
  if (welcome.size() >= kGrantBytes + 2) out.second_port = load_be16(welcome.data() + kGrantBytes);
  return out;
}

bool is_udp_relay(ByteView datagram) {
  return datagram.size() >= kUdpRelayHeader && datagram[0] == kUdpRelayMagic;
}
std::uint32_t udp_relay_id(ByteView datagram) {
  return load_be32(datagram.data() + 1);
}
std::uint64_t udp_relay_name(const Key32& key) {
  return load_be64(key.data());
}

UdpRelaySealer::UdpRelaySealer(const UdpGrant& grant, UdpRelayEnd sender)
    : key_(key_of(grant, sender)), id_(grant.id) {}

std::uint64_t UdpRelaySealer::seal(UdpRelayKind kind, std::uint64_t value, std::uint8_t* out) {
  MUSTER_CHECK(next_ < kCounterMax);
  store_be64(out + 4, next_);
  out[0] = kUdpRelayMagic;
  store_be32(out + 1, id_);
  std::array<std::uint8_t, kSealedPlain> plain;
  plain[0] = static_cast<std::uint8_t>(kind);
  store_be64(plain.data() + 1, value);
  key_.seal(next_, {}, plain, out + kSealedAt);
  return next_++;
}

UdpRelayOpener::UdpRelayOpener(const UdpGrant& grant, UdpRelayEnd sender)
    : key_(key_of(grant, sender)), id_(grant.id) {}

std::optional<UdpRelayHead> UdpRelayOpener::open(ByteView datagram) {
  if (!is_udp_relay(datagram) || udp_relay_id(datagram) != id_ || datagram.size() > kUdpRelayDatagramMax) return {};
  const std::uint64_t counter = load_be64(datagram.data() + 4) & kCounterMax;
  std::array<std::uint8_t, kSealedPlain> plain;
  if (!key_.open(counter, {}, datagram.subspan(kSealedAt, kSealedPlain + crypto::kAeadTag), plain.data())) return {};
  if (plain[0] < 1 || plain[0] > static_cast<std::uint8_t>(UdpRelayKind::Gone) || !seen_.accept(counter)) return {};
  return UdpRelayHead{static_cast<UdpRelayKind>(plain[0]), load_be64(plain.data() + 1), counter};
}

// ---- the relay's end
std::uint64_t UdpCookies::of(std::uint32_t id, const Endpoint& at, std::uint64_t slot) const {
  Bytes place;
  append_be(place, id);
  append_be(place, static_cast<std::uint8_t>(at.kind));
  append_be(place, at.ip);
  append_be(place, at.port);
  place.insert(place.end(), at.six.begin(), at.six.end());
  append_be(place, slot);
  return std::max<std::uint64_t>(load_be64(crypto::hmac_sha256(secret_.bytes, place).data()), 1);  // 0: none
}

bool UdpCookies::fits(std::uint64_t cookie, std::uint32_t id, const Endpoint& at, LeaseTime now) const {
  return cookie != 0 && (cookie == of(id, at, slot(now)) || cookie == of(id, at, slot(now) - 1));
}

UdpRelayLeg::UdpRelayLeg(const UdpGrant& grant, std::uint64_t bytes_per_second)
    : id_(grant.id),
      sealer_(grant, UdpRelayEnd::Relay),
      opener_(grant, UdpRelayEnd::Member),
      bytes_{static_cast<std::int64_t>(bytes_per_second),
             static_cast<std::int64_t>(bytes_per_second),
             static_cast<std::int64_t>(bytes_per_second),
             {}},
      pings_{kPingsPerSecond, kPingsPerSecond, kPingsPerSecond, {}},
      cookies_{kCookiesPerSecond, kCookiesPerSecond, kCookiesPerSecond, {}} {}

bool UdpRelayLeg::Bucket::take(std::int64_t cost, LeaseTime now) {
  const std::int64_t passed = std::clamp<std::int64_t>((now - at).count(), 0, 1000);
  // What a short time is worth must not be rounded away.
  if (const std::int64_t more = rate * passed / 1000; more > 0) {
    level = std::min(burst, level + more);
    at = now;
  }
  if (level <= 0) return false;
  level -= cost;
  return true;
}

void UdpRelayLeg::pong(Taken& out, std::uint64_t counter, std::size_t size) {
  out.answer = size;
  sealer_.seal(UdpRelayKind::Pong, counter, out.answer_head.data());
}

// Not longer than anything that is authentic.
void UdpRelayLeg::challenge(Taken& out, const Endpoint& from, const UdpCookies& cookies, LeaseTime now) {
  if (!cookies_.take(1, now)) return;
  out.challenged = true;
  out.answer = kUdpRelayHeader;
  sealer_.seal(UdpRelayKind::Cookie, cookies.cookie(id_, from, now), out.answer_head.data());
}

UdpRelayLeg::Taken UdpRelayLeg::take(const Endpoint& from, ByteView datagram, const UdpCookies& cookies, LeaseTime now,
                                     std::uint8_t door) {
  Taken out;
  const auto head = opener_.open(datagram);
  if (!head) return out;
  out.what = Taken::What::Throttled;
  if (!bytes_.take(static_cast<std::int64_t>(datagram.size()), now)) return out;
  if (head->kind == UdpRelayKind::Data) {
    out.payload = datagram.subspan(kUdpRelayHeader);
    out.what = out.payload.empty() ? Taken::What::Nothing : Taken::What::Data;
    out.to = head->value;
    if (at_ && at_ != from) challenge(out, from, cookies, now);
    return out;
  }
  const bool asks = head->kind == UdpRelayKind::Ping || head->kind == UdpRelayKind::PingUse;
  if (asks && !pings_.take(1, now)) return out;
  out.what = Taken::What::Nothing;
  if (!asks) return out;
  if (at_ != from) {
    if (!cookies.fits(head->value, id_, from, now)) {
      challenge(out, from, cookies, now);
      return out;
    }
    out.moved = at_.has_value();
    at_ = from;
  }
  door_ = door;
  heard_ = now;
  use_ = head->kind == UdpRelayKind::PingUse;
  pong(out, head->counter, datagram.size());
  return out;
}

std::optional<Endpoint> UdpRelayLeg::at(LeaseTime now) const {
  return use_ && now - heard_ < kUdpRelayFresh ? at_ : std::nullopt;
}

// ---- the member's end
UdpMemberLeg::UdpMemberLeg(const UdpGrant& grant, LeaseTime now)
    : id_(grant.id), sealer_(grant, UdpRelayEnd::Member), opener_(grant, UdpRelayEnd::Relay), next_(now) {}

Millis UdpMemberLeg::every(LeaseTime now) const {
  return busy(now) ? kUdpRelayBusy : now < light_until_ ? kUdpRelayLight : kUdpRelayIdle;
}

void UdpMemberLeg::touched(std::size_t payload, LeaseTime now) {
  light_until_ = now + kStaysBusy;
  if (payload >= kUdpRelayLarge) busy_until_ = light_until_;
  if (good_ && !open_) next_ = std::min(next_, sent_ + every(now));
}

bool UdpMemberLeg::wants(std::size_t payload, LeaseTime now) {
  touched(payload, now);
  return good_ && now - answered_ < kUdpRelayFresh && payload <= kUdpRelayPayloadMax;
}

void UdpMemberLeg::hurry(LeaseTime now) {
  wait_ = kUdpRelayWaitMin;
  if (!good_) tries_ = 0;
  next_ = now;
}

// Not now: again from the start, after a while.
void UdpMemberLeg::lost(LeaseTime now) {
  good_ = full_next_ = open_ = false;
  tries_ = 0;
  next_ = now + wait_;
  wait_ = std::min(wait_ * 2, kUdpRelayWaitMax);
}

// A small ping until one is answered, then one of full size until that is: then the way is good. While it is in use
// each ping has full size, so that a way that got narrow is a dead one.
Bytes UdpMemberLeg::due(LeaseTime now, std::uint64_t micros) {
  if (now < next_) return {};
  if (open_ && tries_ >= kTriesMax && (!good_ || now - since_ >= kUdpRelayDead)) {
    const bool was_good = good_;
    lost(now);
    if (!was_good) {
      ++failed_;
      return {};
    }
    // The relay learns at once that what is for us goes by TLS, if it hears us at all.
  }
  const bool full = good_ ? busy(now) : full_next_;
  Bytes out(full ? kUdpRelayDatagramMax : kUdpRelayHeader);
  const std::uint64_t counter = sealer_.seal(good_ ? UdpRelayKind::PingUse : UdpRelayKind::Ping, cookie_, out.data());
  asked_[turn_++ % asked_.size()] = {counter, micros, out.size()};
  if (!open_) since_ = now, tries_ = 0;
  open_ = true;
  ++tries_;
  sent_ = now;
  next_ = now + std::max(kUdpRelayAgain, Millis(rtt_us_ / 500));
  return out;
}

UdpMemberLeg::Taken UdpMemberLeg::take(ByteView datagram, LeaseTime now, std::uint64_t micros) {
  Taken out;
  const auto head = opener_.open(datagram);
  if (!head) return out;
  out.what = Taken::What::Nothing;
  switch (head->kind) {
    case UdpRelayKind::Data:
      out.payload = datagram.subspan(kUdpRelayHeader);
      if (out.payload.empty()) return out;
      out.what = Taken::What::Data;
      out.name = head->value;
      touched(out.payload.size(), now);
      return out;
    case UdpRelayKind::Gone:
      out.what = Taken::What::Gone;
      out.name = head->value;
      return out;
    case UdpRelayKind::Cookie:
      if (cookie_ == head->value) return out;  // said already
      cookie_ = head->value;
      tries_ = std::max(tries_ - 1, 0);  // it was an answer, and the way is alive that far
      next_ = now;
      return out;
    case UdpRelayKind::Pong:
      break;
    default:
      return out;
  }
  const auto asked = std::ranges::find(asked_, head->value, &Asked::counter);
  if (asked == asked_.end() || head->value == 0 || datagram.size() != asked->size) return out;
  const bool full = asked->size == kUdpRelayDatagramMax;
  if (micros > asked->micros && asked->micros != 0) {
    const auto took = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(micros - asked->micros, 1, UINT32_MAX));
    rtt_us_ = rtt_us_ == 0 ? took : static_cast<std::uint32_t>((std::uint64_t{rtt_us_} * 7 + took) / 8);
  }
  *asked = {};
  if (good_) {
    if (busy(now) && !full) return out;  // of the time before
    answered_ = now;
    open_ = false;
    wait_ = kUdpRelayWaitMin;
    next_ = sent_ + every(now);
    return out;
  }
  open_ = false;
  answered_ = now;
  good_ = full;
  full_next_ = !full;
  next_ = now;
  return out;
}

void UdpMemberLeg::wrap(const Key32& member, ByteView payload, LeaseTime now, Bytes& out) {
  MUSTER_CHECK(payload.size() <= kUdpRelayPayloadMax);
  touched(payload.size(), now);
  const std::size_t at = out.size();
  out.resize(at + kUdpRelayHeader + payload.size());
  sealer_.seal(UdpRelayKind::Data, udp_relay_name(member), out.data() + at);
  if (!payload.empty()) std::memcpy(out.data() + at + kUdpRelayHeader, payload.data(), payload.size());
}

}  // namespace muster::overlay
