#include "overlay/roster.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <set>

#include "base/endian.h"
#include "crypto/hash.h"

namespace muster::overlay {
namespace {

constexpr std::string_view kKeyDomain = "muster-overlay-key-v1";
constexpr std::string_view kRosterDomain = "muster-roster-v1";
constexpr std::uint8_t kFormat = 1;
constexpr std::size_t kMemberBytes = 8 + 8 + 1 + 4 + 32 + 32 + crypto::kSignatureBytes + 24 + 1;
constexpr std::size_t kLanBytes = 6;

template <typename T>
void put(Bytes& out, T value) {
  append_be(out, value);
}
void put(Bytes& out, ByteView bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

struct Reader {
  ByteView rest;
  template <typename T>
  T take() {
    T value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(value << 8 | rest[i]);
    rest = rest.subspan(sizeof(T));
    return value;
  }
  Key32 take_key() {
    Key32 key;
    std::memcpy(key.data(), rest.data(), key.size());
    rest = rest.subspan(key.size());
    return key;
  }
};

Bytes key_statement(std::uint64_t cluster, const LeaseEpoch& epoch) {
  Bytes out;
  put(out, cluster);
  put(out, epoch.incarnation);
  put(out, epoch.leader);
  put(out, epoch.counter);
  return out;
}

Error damaged() {
  return error(Code::DataLoss, "the roster is damaged; the control plane sends it again");
}

}  // namespace

Bytes sign_overlay_key(const crypto::SigningKey& device, std::uint64_t cluster, const LeaseEpoch& epoch,
                       const Key32& overlay_key) {
  return device.sign(kKeyDomain, {key_statement(cluster, epoch), overlay_key});
}

bool verify_overlay_key(ByteView device_key, std::uint64_t cluster, const LeaseEpoch& epoch, const Key32& overlay_key,
                        ByteView signature) {
  return crypto::verify(device_key, kKeyDomain, {key_statement(cluster, epoch), overlay_key}, signature);
}

Bytes encode_roster(const Roster& roster) {
  MUSTER_CHECK(roster.members.size() <= kRosterMembersMax);
  Bytes out;
  put(out, kFormat);
  put(out, roster.cluster);
  put(out, roster.incarnation);
  put(out, roster.epoch);
  put(out, static_cast<std::uint16_t>(roster.members.size()));
  for (const RosterMember& m : roster.members) {
    put(out, m.slot);
    put(out, m.node);
    put(out, m.role);
    put(out, m.address);
    put(out, ByteView(m.overlay_key));
    put(out, ByteView(m.device_key));
    Bytes signature = m.overlay_signature;
    signature.resize(crypto::kSignatureBytes);  // a wrong length is a wrong signature: members leave the entry out
    put(out, ByteView(signature));
    put(out, m.epoch.incarnation);
    put(out, m.epoch.leader);
    put(out, m.epoch.counter);
    const std::size_t lan = std::min(m.lan.size(), kLanEndpointsMax);
    put(out, static_cast<std::uint8_t>(lan));
    for (std::size_t i = 0; i < lan; ++i) {
      put(out, m.lan[i].ip);
      put(out, m.lan[i].port);
    }
  }
  return out;
}

Result<Roster> decode_roster(ByteView bytes) {
  Reader in{bytes};
  if (bytes.size() < 27) return damaged();
  const auto format = in.take<std::uint8_t>();
  if (format != kFormat) return error(Code::Unsupported, "the roster has a newer format; update the agent");
  Roster out;
  out.cluster = in.take<std::uint64_t>();
  out.incarnation = in.take<std::uint64_t>();
  out.epoch = in.take<std::uint64_t>();
  const std::size_t count = in.take<std::uint16_t>();
  if (count > kRosterMembersMax || in.rest.size() < count * kMemberBytes) return damaged();
  std::set<std::uint32_t> addresses;
  std::set<Key32> keys;
  for (std::size_t i = 0; i < count; ++i) {
    if (in.rest.size() < kMemberBytes) return damaged();
    RosterMember m;
    m.slot = in.take<std::uint64_t>();
    m.node = in.take<std::uint64_t>();
    m.role = in.take<std::uint8_t>();
    m.address = in.take<std::uint32_t>();
    m.overlay_key = in.take_key();
    m.device_key = in.take_key();
    m.overlay_signature.assign(in.rest.begin(), in.rest.begin() + crypto::kSignatureBytes);
    in.rest = in.rest.subspan(crypto::kSignatureBytes);
    m.epoch.incarnation = in.take<std::uint64_t>();
    m.epoch.leader = in.take<std::uint64_t>();
    m.epoch.counter = in.take<std::uint64_t>();
    const std::size_t lan = in.take<std::uint8_t>();
    if (lan > kLanEndpointsMax || in.rest.size() < lan * kLanBytes) return damaged();
    for (std::size_t k = 0; k < lan; ++k) {
      const auto ip = in.take<std::uint32_t>();
      m.lan.push_back(Endpoint::udp(ip, in.take<std::uint16_t>()));
    }
    if (!addresses.insert(m.address).second || !keys.insert(m.overlay_key).second) return damaged();
    out.members.push_back(std::move(m));
  }
  if (!in.rest.empty()) return damaged();
  return out;
}

Bytes roster_message(ByteView roster_bytes) {
  return crypto::framed(kRosterDomain, {roster_bytes});
}
Bytes sign_roster(const crypto::SigningKey& key, ByteView roster_bytes) {
  return key.sign(roster_message(roster_bytes));
}

Result<VerifiedRoster> verify_roster(ByteView bytes, const std::vector<Bytes>& signatures,
                                     const std::vector<Key32>& signers) {
  if (signers.empty())
    return error(Code::FailedPrecondition,
                 "no roster signer is configured; the agent must connect to the control plane first");
  if (signatures.size() > 16) return damaged();
  for (const Key32& signer : signers) {
    bool found = false;
    for (const Bytes& signature : signatures)
      found = found || crypto::verify(signer, kRosterDomain, {bytes}, signature);
    if (!found) return error(Code::Unauthenticated, "the roster lacks a required signature and is not used");
  }
  VerifiedRoster out{TRY(decode_roster(bytes)), 0};
  out.rejected = std::erase_if(out.roster.members, [&](const RosterMember& m) {
    return !verify_overlay_key(m.device_key, out.roster.cluster, m.epoch, m.overlay_key, m.overlay_signature);
  });
  return out;
}

Result<std::size_t> drop_unproven(Roster& roster, const MachineProofs& machines) {
  const auto proofs = TRY(crypto::decode_machine_proofs(machines.proofs, kRosterMembersMax));
  std::map<std::uint64_t, const crypto::MachineProof*> of;
  for (const auto& proof : proofs) of[proof.node] = &proof;
  return std::erase_if(roster.members, [&](const RosterMember& m) {
    const auto found = of.find(m.node);
    return found == of.end() || !machines.verifier->genuine(*found->second, m.device_key, machines.now);
  });
}

Status RosterGuard::admit(const Roster& roster, ByteView bytes) {
  const auto digest = crypto::sha256(bytes);
  const auto now = std::pair(roster.incarnation, roster.epoch), held = std::pair(incarnation_, epoch_);
  const bool same = now == held && (digest_.empty() || crypto::equal(digest_, digest));
  if (now < held || (now == held && !same)) {
    return error(Code::Aborted, "this roster is older than the one in use; it is ignored");
  }
  incarnation_ = roster.incarnation;
  epoch_ = roster.epoch;
  digest_.assign(digest.begin(), digest.end());
  return {};
}

std::optional<Endpoint> parse_udp_endpoint(std::string_view text) {
  std::uint32_t ip = 0;
  const char* at = text.data();
  const char* end = at + text.size();
  for (int i = 0; i < 4; ++i) {
    unsigned part = 0;
    const auto [next, fault] = std::from_chars(at, end, part);
    if (fault != std::errc{} || part > 255 || next == end || *next != (i == 3 ? ':' : '.')) return {};
    ip = ip << 8 | part;
    at = next + 1;
  }
  unsigned port = 0;
  const auto [next, fault] = std::from_chars(at, end, port);
  if (fault != std::errc{} || next != end || port == 0 || port > 65535) return {};
  return Endpoint::udp(ip, static_cast<std::uint16_t>(port));
}

std::string format_endpoint(const Endpoint& e) {
  if (e.kind == Endpoint::Kind::Relay) return "relay";
  if (e.kind == Endpoint::Kind::None) return {};
  if (e.kind == Endpoint::Kind::Udp6) return "[" + text_of(e.six) + "]:" + std::to_string(e.port);
  const std::string ip = std::to_string(e.ip >> 24) + "." + std::to_string(e.ip >> 16 & 255) + "." +
                         std::to_string(e.ip >> 8 & 255) + "." + std::to_string(e.ip & 255);
  return e.kind == Endpoint::Kind::Peer ? "peer " + ip : ip + ":" + std::to_string(e.port);
}

}  // namespace muster::overlay
