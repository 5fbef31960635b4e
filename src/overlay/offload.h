#pragma once
// What a TUN device with offloads gives and takes, without I/O: the header before each packet (virtio, 10 bytes, host
// order), large TCP and UDP packets split into those that a tunnel carries, and arriving TCP segments joined into large
// ones. A few system calls then move sixty kilobytes, which is most of what makes a tunnel fast (the idea: Tailscale
// and wireguard-go, "Userspace isn't slow, some kernel interfaces are!", 2022). IPv4, and IPv6 without extension
// headers. Malformed input is dropped or passed on as it came, never trusted. One thread.
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "base/bytes.h"

namespace muster::overlay {

struct OffloadHeader {
  static constexpr std::size_t kBytes = 10;
  static constexpr std::uint8_t kNeedsChecksum = 1;                                      // flags
  static constexpr std::uint8_t kNone = 0, kTcp4 = 1, kTcp6 = 4, kUdp = 5, kEcn = 0x80;  // gso
  std::uint8_t flags = 0, gso = kNone;
  std::uint16_t header_bytes = 0, segment_bytes = 0, checksum_start = 0, checksum_offset = 0;
  bool operator==(const OffloadHeader&) const = default;
};
OffloadHeader load_offload(const std::uint8_t* at);  // kBytes are there
std::array<std::uint8_t, OffloadHeader::kBytes> store_offload(const OffloadHeader& header);

// Packets of at most a segment's size, one after the other, out of one that a TUN gave. Each is complete (lengths,
// checksums) and lives until the next call; headers are written over what was handed out before.
class Segments {
 public:
  // `packet` is changed and must outlive this. Nothing comes out of a malformed one.
  Segments(const OffloadHeader& header, std::span<std::uint8_t> packet);
  std::optional<ByteView> next();
  bool done() const { return done_; }

 private:
  static constexpr std::size_t kHeaderMax = 120;  // 60 of IPv4, 60 of TCP
  std::span<std::uint8_t> packet_;
  std::array<std::uint8_t, kHeaderMax> header_{};
  std::size_t header_bytes_ = 0, ip_bytes_ = 0, segment_bytes_ = 0, at_ = 0;
  std::uint16_t first_id_ = 0, number_ = 0;
  bool tcp_ = false, whole_ = false, done_ = true;
};

// Joins what arrives. A segment is joined to the ones before it when both are of one flow, nothing is missing between
// them, their headers agree and its checksums are right. The order of packets never changes. What the sink refuses
// joined it gets one by one. Counts the data of segments, and how much of it came although it had been written before:
// the other end sends again what was not acknowledged, and where joined ones vanish that is all of them.
class Coalescer {
 public:
  class Sink {
   public:
    virtual ~Sink() = default;
    virtual bool write(const OffloadHeader& header, ByteView packet) = 0;  // false: refused as it is
  };
  explicit Coalescer(bool join) : join_(join), counting_(join) {}
  void add(ByteView packet, Sink& sink);  // a whole packet; written at once or by a later call
  void flush(Sink& sink);                 // nothing is kept back
  void set(bool join, bool counting, Sink& sink);
  struct Counts {
    std::uint64_t data = 0, again = 0;  // bytes
    std::uint64_t refused = 0;          // joined ones
  };
  const Counts& counts() const { return counts_; }

 private:
  // What was written of one flow: the last stretches of it, each from one sequence number to another.
  struct Written {
    std::array<std::uint8_t, 36> addresses_and_ports{};
    std::array<std::pair<std::uint32_t, std::uint32_t>, 4> stretches{};
    std::uint8_t last = 0;
  };
  struct Flow {
    std::array<std::uint8_t, 36> addresses_and_ports{};
    std::uint32_t sequence = 0, acknowledged = 0, service = 0;
    std::uint16_t window = 0, fragment = 0;
    std::uint8_t life = 0, flags = 0;
    std::size_t ip = 0, header = 0, payload = 0;  // `ip`: of that header alone; `header`: TCP's too
  };
  static std::optional<Flow> joinable(ByteView packet);
  bool continues(const Flow& flow, ByteView packet) const;
  void count_written();

  bool join_, counting_;
  Bytes train_;  // the packets joined so far, one header
  Flow first_;   // of the first; `payload` is the segment's size
  std::uint32_t next_sequence_ = 0;
  std::size_t count_ = 0;
  bool closed_ = false;                // a short or pushed segment ends a train
  std::array<Written, 64> written_{};  // by flow; another one of the same place takes it over
  Counts counts_;
};

}  // namespace muster::overlay
