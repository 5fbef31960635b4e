#include "relay/udp_legs.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "base/endian.h"
#include "crypto/random.h"
#include "relay/udp_side.h"

namespace muster::relay {

void UdpLegs::set_doors(std::vector<Door> doors, std::uint16_t second_port) {
  const std::unique_lock lock(mutex_);
  doors_ = std::move(doors);
  second_port_ = second_port;
  if (!doors_.empty()) return;
  ids_.clear();
  places_.clear();
}

std::optional<overlay::UdpGrant> UdpLegs::open(const Key& place, WallTime not_after, std::uint64_t bytes_per_second) {
  overlay::UdpGrant grant;
  grant.key = overlay::Secret32(crypto::random_key32());
  const std::unique_lock lock(mutex_);
  grant.second_port = second_port_;
  if (doors_.empty() || ids_.size() >= kUdpLegsMax) return {};
  do grant.id = crypto::random_u32();
  while (ids_.contains(grant.id));
  auto leg = std::make_shared<Leg>(place, grant, not_after, bytes_per_second);
  if (const auto older = places_.find(place); older != places_.end()) ids_.erase(older->second->id);
  places_[place] = leg;
  ids_[grant.id] = std::move(leg);
  return grant;
}

void UdpLegs::renew(const Key& place, std::uint32_t id, WallTime not_after) {
  const std::shared_lock lock(mutex_);
  const auto found = places_.find(place);
  if (found == places_.end() || found->second->id != id) return;
  const std::lock_guard own(found->second->mutex);
  found->second->not_after = not_after;
}

void UdpLegs::erase(const LegPtr& leg) {
  ids_.erase(leg->id);
  const auto found = places_.find(leg->place);
  if (found != places_.end() && found->second == leg) places_.erase(found);
}

void UdpLegs::close(const Key& place, std::uint32_t id, End how, LeaseTime now) {
  const std::unique_lock lock(mutex_);
  const auto found = places_.find(place);
  if (found == places_.end() || found->second->id != id) return;
  const LegPtr leg = found->second;
  if (how == End::Now) return erase(leg);
  const std::lock_guard own(leg->mutex);
  leg->ends = now + kUdpGrace;
}

void UdpLegs::cut(const Key& place) {
  const std::unique_lock lock(mutex_);
  const auto found = places_.find(place);
  if (found != places_.end()) erase(LegPtr(found->second));
}

void UdpLegs::sweep(const Now& now) {
  std::vector<LegPtr> over;
  std::size_t in_use = 0;
  {
    const std::shared_lock lock(mutex_);
    for (const auto& [id, leg] : ids_) {
      const std::lock_guard own(leg->mutex);
      if ((leg->ends && now.lease >= *leg->ends) || now.wall > leg->not_after)
        over.push_back(leg);
      else
        in_use += leg->end.at(now.lease) ? 1U : 0U;
    }
  }
  in_use_ = in_use;
  if (over.empty()) return;
  const std::unique_lock lock(mutex_);
  for (const LegPtr& leg : over) erase(leg);
}

UdpLegs::LegPtr UdpLegs::by_id(std::uint32_t id) const {
  const std::shared_lock lock(mutex_);
  const auto found = ids_.find(id);
  return found == ids_.end() ? nullptr : found->second;
}

UdpLegs::LegPtr UdpLegs::by_name(std::uint64_t cluster, std::uint64_t name) const {
  Key from{cluster, {}};
  store_be64(from.second.data(), name);
  const std::shared_lock lock(mutex_);
  const auto found = places_.lower_bound(from);
  if (found == places_.end() || found->first.first != cluster || overlay::udp_relay_name(found->first.second) != name)
    return nullptr;
  return found->second;
}

bool UdpLegs::deliver(const Key& to, const crypto::Key32& source, ByteView payload, LeaseTime now) const {
  if (payload.size() > overlay::kUdpRelayPayloadMax) return false;
  std::array<std::uint8_t, overlay::kUdpRelayDatagramMax> datagram;
  const std::shared_lock lock(mutex_);  // also keeps the sockets
  const auto found = doors_.empty() ? places_.end() : places_.find(to);
  if (found == places_.end()) return false;
  std::optional<overlay::Endpoint> at;
  Door door;
  {
    const std::lock_guard own(found->second->mutex);
    at = found->second->end.at(now);
    if (!at) return false;
    door = doors_[std::min<std::size_t>(found->second->end.door(), doors_.size() - 1)];
    found->second->end.seal(overlay::UdpRelayKind::Data, overlay::udp_relay_name(source), datagram.data());
  }
  std::memcpy(datagram.data() + overlay::kUdpRelayHeader, payload.data(), payload.size());
  sockaddr_in four{};
  sockaddr_in6 six{};
  const sockaddr* name = reinterpret_cast<const sockaddr*>(&four);
  socklen_t size = sizeof four;
  if (door.six || at->kind == overlay::Endpoint::Kind::Udp6) {
    const Ip6 ip = mapped_address(*at);
    six.sin6_family = AF_INET6;
    six.sin6_port = htons(at->port);
    std::memcpy(&six.sin6_addr, ip.data(), ip.size());
    name = reinterpret_cast<const sockaddr*>(&six);
    size = sizeof six;
  } else {
    four.sin_family = AF_INET;
    four.sin_port = htons(at->port);
    four.sin_addr.s_addr = htonl(at->ip);
  }
  // What does not leave is lost, as on any network.
  std::ignore = ::sendto(door.fd, datagram.data(), overlay::kUdpRelayHeader + payload.size(), MSG_DONTWAIT, name, size);
  return true;
}

}  // namespace muster::relay
