#pragma once
// Inside relay: who may send over UDP, by id and by place. A leg is opened with its member's TLS connection, which
// tells it id and key, and ends with it: after kUdpGrace when the connection broke (it is being dialled again), at once
// when the member was turned out, replaced or its token ended. Any thread; a leg's own lock is held for a look or a
// datagram.
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "overlay/udp_relay.h"

namespace muster::relay {

inline constexpr Millis kUdpGrace{10'000};
inline constexpr std::size_t kUdpLegsMax = 65'536;  // whoever comes then goes over TLS

class UdpLegs {
 public:
  using Key = std::pair<std::uint64_t, crypto::Key32>;  // cluster, overlay key
  struct Leg {
    Leg(const Key& p, const overlay::UdpGrant& grant, WallTime until, std::uint64_t bytes_per_second)
        : place(p), id(grant.id), end(grant, bytes_per_second), not_after(until) {}
    const Key place;
    const std::uint32_t id;
    std::mutex mutex;
    overlay::UdpRelayLeg end;       // under mutex
    WallTime not_after;             // under mutex
    std::optional<LeaseTime> ends;  // under mutex; its connection broke
    LeaseTime told_gone{};          // under mutex
  };
  using LegPtr = std::shared_ptr<Leg>;

  // A socket for each of the relay's ports (overlay::UdpRelayLeg's door), through which deliver() sends and which
  // outlives this setting; the second port is told to members. None: there is none (any more), and no leg.
  struct Door {
    int fd = -1;
    bool six = false;
  };
  void set_doors(std::vector<Door> doors, std::uint16_t second_port);
  std::optional<overlay::UdpGrant> open(const Key& place, WallTime not_after, std::uint64_t bytes_per_second);
  void renew(const Key& place, std::uint32_t id, WallTime not_after);
  enum class End : std::uint8_t { Now, Grace };
  void close(const Key& place, std::uint32_t id, End how, LeaseTime now);  // no effect on a newer one of that place
  void cut(const Key& place);
  void sweep(const Now& now);  // once a second
  LegPtr by_id(std::uint32_t id) const;
  LegPtr by_name(std::uint64_t cluster, std::uint64_t name) const;
  // Over UDP, if the member wants it that way now; false: not sent. For those who came over TLS.
  bool deliver(const Key& to, const crypto::Key32& source, ByteView payload, LeaseTime now) const;
  std::size_t in_use() const { return in_use_; }

 private:
  void erase(const LegPtr& leg);  // under mutex_
  mutable std::shared_mutex mutex_;
  std::unordered_map<std::uint32_t, LegPtr> ids_;
  std::map<Key, LegPtr> places_;
  std::vector<Door> doors_;
  std::uint16_t second_port_ = 0;
  std::atomic<std::size_t> in_use_{0};
};

}  // namespace muster::relay
