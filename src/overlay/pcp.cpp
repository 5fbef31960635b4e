#include "overlay/pcp.h"

#include <algorithm>

#include "base/endian.h"

namespace muster::overlay {
namespace {

constexpr std::uint8_t kPcpVersion = 2, kPcpAnnounce = 0, kPcpMapOp = 1, kPcpAnswer = 0x80, kPcpUdp = 17;
constexpr std::size_t kOptionHead = 4;

// ::ffff:a.b.c.d
void append_mapped(Bytes& out, std::uint32_t ip) {
  out.insert(out.end(), 10, 0);
  out.insert(out.end(), 2, 0xff);
  append_be(out, ip);
}
// 0 for what is no IPv4 address.
std::uint32_t mapped_at(const std::uint8_t* at) {
  const bool mapped =
      std::all_of(at, at + 10, [](std::uint8_t b) { return b == 0; }) && at[10] == 0xff && at[11] == 0xff;
  return mapped ? load_be32(at + 12) : 0;
}

Bytes pcp_request(std::uint8_t opcode, std::uint32_t lifetime_s, std::uint32_t client) {
  Bytes out{kPcpVersion, opcode, 0, 0};
  append_be(out, lifetime_s);
  append_mapped(out, client);
  return out;
}

// Each says how long it is, and the last ends with the message.
bool options_end_well(ByteView rest) {
  while (!rest.empty()) {
    if (rest.size() < kOptionHead) return false;
    const std::size_t padded = kOptionHead + (std::size_t{load_be16(rest.data() + 2)} + 3) / 4 * 4;
    if (padded > rest.size()) return false;
    rest = rest.subspan(padded);
  }
  return true;
}

std::optional<PcpAnswer> pcp_head(ByteView d, std::uint8_t opcode) {
  // Of NAT-PMP, or an older PCP: four bytes say that it knows no such version, and nothing more is sure.
  if (d.size() >= 4 && d.size() <= kPcpBytesMax && d[0] < kPcpVersion && (d[1] & kPcpAnswer) != 0) {
    const std::uint16_t code = d[0] == 0 ? load_be16(d.data() + 2) : d[3];
    if (code == 1) return PcpAnswer{PcpCode::UnsupportedVersion, 0, 0, 0, 0};
    return {};
  }
  if (d.size() < kPcpHeader || d.size() > kPcpBytesMax || d.size() % 4 != 0) return {};
  if (d[0] != kPcpVersion || d[1] != (opcode | kPcpAnswer) ||
      d[3] > static_cast<std::uint8_t>(PcpCode::ExcessiveRemotePeers))
    return {};
  return PcpAnswer{static_cast<PcpCode>(d[3]), load_be32(d.data() + 4), load_be32(d.data() + 8), 0, 0};
}

}  // namespace

Bytes pcp_map_request(const PcpMap& map) {
  Bytes out = pcp_request(kPcpMapOp, map.lifetime_s, map.client);
  out.insert(out.end(), map.nonce.begin(), map.nonce.end());
  out.push_back(kPcpUdp);
  out.insert(out.end(), 3, 0);
  append_be(out, map.port);
  append_be(out, map.wish_port);
  append_mapped(out, map.wish_ip);
  return out;
}

Bytes pcp_announce_request(std::uint32_t client) {
  return pcp_request(kPcpAnnounce, 0, client);
}

std::optional<PcpAnswer> read_pcp_map(ByteView d, const PcpMap& asked) {
  auto answer = pcp_head(d, kPcpMapOp);
  if (!answer || answer->code == PcpCode::UnsupportedVersion) return answer;
  if (d.size() < kPcpMapBytes || !options_end_well(d.subspan(kPcpMapBytes))) return {};
  const std::uint8_t* map = d.data() + kPcpHeader;
  if (!std::equal(asked.nonce.begin(), asked.nonce.end(), map) || map[12] != kPcpUdp ||
      load_be16(map + 16) != asked.port)
    return {};
  if (answer->code != PcpCode::Success) return answer;
  answer->port = load_be16(map + 18);
  answer->ip = mapped_at(map + 20);
  // Only the end of a mapping may be told without a place.
  if (asked.lifetime_s != 0 && (answer->port == 0 || answer->ip == 0 || answer->lifetime_s == 0)) return {};
  return answer;
}

std::optional<PcpAnswer> read_pcp_announce(ByteView d) {
  auto answer = pcp_head(d, kPcpAnnounce);
  if (answer && answer->code != PcpCode::UnsupportedVersion && !options_end_well(d.subspan(kPcpHeader))) return {};
  return answer;
}

bool pcp_lost_state(std::uint32_t before, std::uint32_t epoch, std::uint32_t passed) {
  if (std::uint64_t{epoch} + 1 < before) return true;
  const std::uint64_t moved = epoch > before ? epoch - before : 0;
  return passed + 2 < moved - moved / 16 || moved + 2 < passed - passed / 16;
}

const char* pcp_code_text(PcpCode code) {
  switch (code) {
    case PcpCode::Success:
      return "done";
    case PcpCode::UnsupportedVersion:
    case PcpCode::UnsupportedOpcode:
    case PcpCode::UnsupportedOption:
    case PcpCode::UnsupportedProtocol:
      return "it does not know that";
    case PcpCode::NotAuthorized:
      return "it is not allowed; switch port mapping on in the router";
    case PcpCode::MalformedRequest:
    case PcpCode::MalformedOption:
      return "it did not understand the request";
    case PcpCode::NetworkFailure:
      return "it has no connection itself";
    case PcpCode::NoResources:
    case PcpCode::UserExceededQuota:
    case PcpCode::ExcessiveRemotePeers:
      return "it has no room for more mappings";
    case PcpCode::CannotProvideExternal:
      return "that port is taken";
    case PcpCode::AddressMismatch:
      return "another NAT lies between this machine and it";
  }
  return "it says no";
}

}  // namespace muster::overlay
