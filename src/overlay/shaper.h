#pragma once
// What waits before the tunnel when something limits it (the owner's cap, a way's pace, the relay's buffer), one
// lease's, in two classes. Control: packets of flows that send little, and bare acknowledgements; they go first, with
// up to four fifths of a limit. Bulk: flows over a port that is known for it (Ray's object manager), or with more than
// a twentieth of the limit; one fifth is always theirs, and they share by deficit round robin (Shreedhar and Varghese
// 1995), members among each other, then the flows of each. Bulk that waits too long loses packets at the head (CoDel,
// RFC 8289), so that senders slow down. Large packets wait whole and leave in segments. Within a flow the order never
// changes. Pure: microseconds of a steady clock come in. One thread. Bounds: kMemoryMax in all, less for a member;
// buffers are used again.
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/time.h"
#include "overlay/offload.h"

namespace muster::overlay {

enum class Load : std::uint8_t { Control, Bulk };

// What a packet's headers say of its flow.
struct FlowMark {
  std::uint32_t hash = 0;   // of addresses, protocol and ports
  bool known_bulk = false;  // one of its ports is the bulk port
  bool bare_ack = false;    // TCP that carries nothing but an acknowledgement
};
FlowMark mark_flow(ByteView ip_packet, std::uint16_t bulk_port);

// Bytes over time, with debt: who has some left may send one more, of any size.
class PaceBucket {
 public:
  void set_rate(std::uint64_t bytes_s, std::uint64_t now_us);  // 0 = no limit
  std::uint64_t rate() const { return rate_; }
  bool ready(std::uint64_t now_us);
  void charge(std::size_t bytes);
  std::uint64_t wait_us() const;  // after ready(); 0 = now

 private:
  std::uint64_t rate_ = 0, filled_us_ = 0;
  double left_ = 0;
};

class Shaper {
 public:
  static constexpr std::size_t kMemoryMax = 32 << 20;
  static constexpr std::size_t kMemberBulkMax = 4 << 20, kMemberControlMax = 512 << 10;

  struct Way {
    std::uint64_t bytes_s = 0;  // its pace; 0 = none
    bool room = true;           // for bulk, in what comes behind
  };
  class Gate {
   public:
    virtual ~Gate() = default;
    virtual Way way(std::uint32_t to) = 0;
    virtual Millis wait(Load load) = 0;  // of what all share; zero: one more may go
    virtual void pass(std::uint32_t to, Load load, ByteView ip_packet) = 0;
  };

  explicit Shaper(std::uint16_t bulk_port) : bulk_port_(bulk_port) {}
  bool holds(std::uint32_t to) const;  // something for that member waits
  bool empty() const { return memory_ == 0; }
  bool bulk_waits() const;
  // `packet` as the TUN gave it, for this member; copied.
  void push(std::uint32_t to, const OffloadHeader& header, ByteView packet, std::uint64_t now_us);
  // Lets through what may go. Returns after how many microseconds to come again; 0: nothing waits.
  std::uint64_t run(std::uint64_t now_us, Gate& gate);
  std::size_t memory() const { return memory_; }      // of what waits
  std::uint64_t dropped() const { return dropped_; }  // packets, large ones counted once

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  static constexpr std::size_t kFlows = 32, kSparse = 128, kClasses = 4;
  static std::size_t sparse_of(const FlowMark& mark) { return (mark.hash >> 8) % kSparse; }
  struct Item {
    std::unique_ptr<std::uint8_t[]> data;
    std::size_t buffer_class = 0, size = 0;
    std::uint64_t queued_us = 0;
    FlowMark mark;
    OffloadHeader header;
    std::optional<Segments> segments;
    std::uint32_t next = kNone;
  };
  struct Queue {
    std::uint32_t head = kNone, tail = kNone;
    std::size_t memory = 0;
  };
  struct Flow : Queue {
    std::int64_t deficit = 0;
    // Of CoDel: since when it is over the target (plus an interval), the next drop, how many in a row.
    std::uint64_t above_us = 0, next_drop_us = 0;
    std::uint32_t drops = 0;
    bool dropping = false;
    bool drops_now(std::uint64_t waited_us, std::uint64_t target_us, std::uint64_t now_us);
  };
  struct Sparse {
    double level = 0;
    std::uint64_t at_us = 0;
    bool bulk = false;
  };
  struct Lane {
    std::uint32_t address = 0;
    Queue control;
    std::array<Flow, kFlows> flows;
    std::array<Sparse, kSparse> sparse;
    std::uint32_t busy = 0;  // a bit for each flow that waits
    std::uint32_t turn = 0;  // the flow that goes on
    std::size_t bulk_memory = 0;
    PaceBucket all, control_share;
    bool room = true, listed = false;
    std::uint64_t used_us = 0;
    bool waits() const { return control.head != kNone || busy != 0; }
  };
  struct Run {
    std::uint64_t now_us;
    Gate& gate;
    std::size_t budget;
  };

  Lane& lane_to(std::uint32_t to, std::uint64_t now_us);
  Load load_of(Lane& lane, const FlowMark& mark, std::size_t bytes, std::uint64_t now_us);
  void make_bulk(Lane& lane, std::size_t sparse);
  std::uint32_t take_item(std::size_t size);
  void append(Queue& queue, std::uint32_t item);
  void drop_head(Queue& queue);
  void drop_fattest(Lane& lane);
  void settle(Lane& lane, Flow& flow, std::size_t before);
  std::optional<ByteView> next_segment(Queue& queue);
  void pass(Lane& lane, Load load, ByteView segment, Run& run);
  static bool control_may(Lane& lane, Run& run);
  bool serve_control(Lane& lane, Run& run);
  bool serve_bulk(Lane& lane, Run& run);
  void serve_all(Run& run, bool (Shaper::*serve)(Lane&, Run&));
  std::uint64_t wait_us(const Run& run) const;
  void sweep(std::uint64_t now_us);

  const std::uint16_t bulk_port_;
  std::map<std::uint32_t, std::unique_ptr<Lane>> lanes_;
  std::vector<Lane*> active_;  // those for whom something waits
  std::size_t turn_ = 0;       // of them
  std::uint64_t swept_us_ = 0;
  std::vector<Item> items_;
  std::array<std::vector<std::uint32_t>, kClasses> spare_;  // with their buffers
  std::vector<std::uint32_t> empty_;                        // without
  std::size_t memory_ = 0;
  std::uint64_t dropped_ = 0;
};

}  // namespace muster::overlay
