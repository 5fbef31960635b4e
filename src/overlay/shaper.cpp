#include "overlay/shaper.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/endian.h"
#include "overlay/packet.h"

namespace muster::overlay {
namespace {
constexpr std::size_t kLeastHeader = 20, kHeader6 = 40;
constexpr std::uint8_t kOverTcp = 6, kOverUdp = 17, kOnlyAck = 16;
constexpr std::array<std::size_t, 4> kBuffer = {256, 2'048, 16'384, 66'000};
constexpr std::size_t kItemBytes = 384;        // of one that waits, beside its buffer
constexpr std::size_t kSpareBytes = 2 << 20;   // of each class
constexpr std::size_t kTunnelBytes = 32;       // on top of each packet
constexpr std::size_t kTurnBytes = 512 << 10;  // then others get their turn
constexpr std::int64_t kMemberQuantum = 24'000, kFlowQuantum = 6'000;
constexpr std::uint64_t kTargetUs = 50'000, kIntervalUs = 200'000, kLatestUs = 1'000'000;
constexpr std::size_t kFewBytes = 3'000;
constexpr double kSparseLeast = 8'000, kBurstLeast = 6'000, kBurstMost = 48'000, kUnknownRate = 1e6;
constexpr std::uint64_t kRoomAgainUs = 1'000, kIdleUs = 10'000'000, kSweepUs = 1'000'000;

std::uint32_t mixed(std::uint32_t hash, ByteView bytes) {
  for (const std::uint8_t byte : bytes) hash = (hash ^ byte) * 16'777'619U;
  return hash;
}
}  // namespace

FlowMark mark_flow(ByteView packet, std::uint16_t bulk_port) {
  FlowMark mark;
  if (packet.size() < kLeastHeader) return mark;
  const bool six = packet[0] >> 4 == 6;
  if (six && packet.size() < kHeader6) return mark;
  const std::size_t header = six ? kHeader6 : (packet[0] & 15U) * std::size_t{4};
  const std::uint8_t protocol = packet[six ? 6 : 9];
  const ByteView ends = six ? packet.subspan(8, 32) : packet.subspan(12, 8);
  std::uint32_t hash = mixed(mixed(2'166'136'261U, ends), {&protocol, 1});
  const bool later = !six && (load_be16(packet.data() + 6) & 0x1fff) != 0;  // of a fragmented one: without ports
  if ((protocol == kOverTcp || protocol == kOverUdp) && !later && header >= kLeastHeader &&
      packet.size() >= header + 4) {
    const std::uint8_t* ports = packet.data() + header;
    hash = mixed(hash, packet.subspan(header, 4));
    mark.known_bulk = load_be16(ports) == bulk_port || load_be16(ports + 2) == bulk_port;
    const std::size_t said = six ? kHeader6 + load_be16(packet.data() + 4) : load_be16(packet.data() + 2);
    const std::size_t total = std::min(said, packet.size());
    if (protocol == kOverTcp && packet.size() >= header + 20)
      mark.bare_ack = ports[13] == kOnlyAck && total == header + (ports[12] >> 4) * std::size_t{4};
  }
  mark.hash = (hash ^ hash >> 15) * 0x2c1b3c6dU;
  mark.hash ^= mark.hash >> 12;
  return mark;
}

void PaceBucket::set_rate(std::uint64_t bytes_s, std::uint64_t now_us) {
  if (bytes_s == rate_) return;
  ready(now_us);
  if (rate_ == 0) left_ = 0;
  rate_ = bytes_s;
  filled_us_ = now_us;
}

bool PaceBucket::ready(std::uint64_t now_us) {
  if (rate_ == 0) return true;
  const auto rate = static_cast<double>(rate_);
  if (now_us > filled_us_) {
    left_ = std::min(std::max(rate / 100, 3'000.0), left_ + rate * static_cast<double>(now_us - filled_us_) / 1e6);
    filled_us_ = now_us;
  }
  return left_ > 0;
}

void PaceBucket::charge(std::size_t bytes) {
  if (rate_ != 0) left_ -= static_cast<double>(bytes);
}

std::uint64_t PaceBucket::wait_us() const {
  if (rate_ == 0 || left_ > 0) return 0;
  return static_cast<std::uint64_t>(-left_ * 1e6 / static_cast<double>(rate_)) + 1;
}

bool Shaper::holds(std::uint32_t to) const {
  const auto it = lanes_.find(to);
  return it != lanes_.end() && it->second->waits();
}

bool Shaper::bulk_waits() const {
  return std::ranges::any_of(active_, [](const Lane* lane) { return lane->busy != 0; });
}

Shaper::Lane& Shaper::lane_to(std::uint32_t to, std::uint64_t now_us) {
  auto& place = lanes_[to];
  if (!place) {
    place = std::make_unique<Lane>();
    place->address = to;
  }
  place->used_us = now_us;
  return *place;
}

// A flow that was bulk is control again only when nothing of it waits as bulk, or it would overtake itself.
Load Shaper::load_of(Lane& lane, const FlowMark& mark, std::size_t bytes, std::uint64_t now_us) {
  if (mark.bare_ack) return Load::Control;
  if (mark.known_bulk) return Load::Bulk;
  const std::size_t sparse = sparse_of(mark);
  Sparse& s = lane.sparse[sparse];
  const double limit = lane.all.rate() == 0 ? kUnknownRate : static_cast<double>(lane.all.rate());
  const double share = std::max(limit / 20, kSparseLeast);
  const double burst = std::clamp(limit / 20, kBurstLeast, kBurstMost);
  const auto passed = static_cast<double>(now_us - std::min(s.at_us, now_us)) / 1e6;
  s.level = std::max(0.0, s.level - share * passed) + static_cast<double>(bytes);
  s.at_us = now_us;
  const bool waits = (lane.busy >> mark.hash % kFlows & 1U) != 0;
  if (s.level > burst && !s.bulk) make_bulk(lane, sparse);
  if (s.level > burst)
    s.bulk = true;
  else if (s.level < burst / 2 && !waits)
    s.bulk = false;
  return s.bulk ? Load::Bulk : Load::Control;
}

// What still waits of it as control, too, or the later would overtake the earlier.
void Shaper::make_bulk(Lane& lane, std::size_t sparse) {
  std::uint32_t index = std::exchange(lane.control, {}).head;
  while (index != kNone) {
    const std::uint32_t next = items_[index].next;
    const FlowMark& mark = items_[index].mark;
    memory_ -= kBuffer[items_[index].buffer_class] + kItemBytes;  // it is added again
    if (mark.bare_ack || sparse_of(mark) != sparse) {
      append(lane.control, index);
    } else {
      Flow& flow = lane.flows[mark.hash % kFlows];
      const std::size_t before = flow.memory;
      append(flow, index);
      settle(lane, flow, before);
    }
    index = next;
  }
}

std::uint32_t Shaper::take_item(std::size_t size) {
  std::size_t buffer = 0;
  while (kBuffer[buffer] < size) ++buffer;
  auto& spare = spare_[buffer];
  if (!spare.empty()) {
    const std::uint32_t out = spare.back();
    spare.pop_back();
    return out;
  }
  std::uint32_t out = 0;
  if (empty_.empty()) {
    out = static_cast<std::uint32_t>(items_.size());
    items_.emplace_back();
  } else {
    out = empty_.back();
    empty_.pop_back();
  }
  items_[out].data = std::make_unique_for_overwrite<std::uint8_t[]>(kBuffer[buffer]);
  items_[out].buffer_class = buffer;
  return out;
}

void Shaper::append(Queue& queue, std::uint32_t index) {
  Item& item = items_[index];
  item.next = kNone;
  (queue.tail == kNone ? queue.head : items_[queue.tail].next) = index;
  queue.tail = index;
  const std::size_t cost = kBuffer[item.buffer_class] + kItemBytes;
  queue.memory += cost;
  memory_ += cost;
}

void Shaper::drop_head(Queue& queue) {
  const std::uint32_t index = queue.head;
  Item& item = items_[index];
  queue.head = item.next;
  if (queue.head == kNone) queue.tail = kNone;
  const std::size_t buffer = kBuffer[item.buffer_class];
  queue.memory -= buffer + kItemBytes;
  memory_ -= buffer + kItemBytes;
  item.segments.reset();
  auto& spare = spare_[item.buffer_class];
  if ((spare.size() + 1) * buffer <= kSpareBytes) return spare.push_back(index);
  item.data.reset();
  empty_.push_back(index);
}

// What a change of one of its flows means for the member.
void Shaper::settle(Lane& lane, Flow& flow, std::size_t before) {
  lane.bulk_memory = lane.bulk_memory - before + flow.memory;
  const std::uint32_t bit = 1U << (&flow - lane.flows.data());
  if (flow.head != kNone) {
    lane.busy |= bit;
    return;
  }
  lane.busy &= ~bit;
  flow.deficit = 0;
  flow.above_us = 0;
  flow.dropping = false;
}

void Shaper::drop_fattest(Lane& lane) {
  Flow& fattest = *std::ranges::max_element(lane.flows, {}, &Flow::memory);
  const std::size_t before = fattest.memory;
  drop_head(fattest);
  ++dropped_;
  settle(lane, fattest, before);
}

void Shaper::push(std::uint32_t to, const OffloadHeader& header, ByteView packet, std::uint64_t now_us) {
  if (packet.size() < kLeastHeader || packet.size() > kBuffer.back()) return;
  sweep(now_us);
  Lane& lane = lane_to(to, now_us);
  const FlowMark mark = mark_flow(packet, bulk_port_);
  const Load load = load_of(lane, mark, packet.size(), now_us);
  const std::size_t most = kBuffer.back() + kItemBytes;
  while (memory_ + most > kMemoryMax && lane.busy != 0) drop_fattest(lane);
  if (memory_ + most > kMemoryMax) {
    ++dropped_;
    return;
  }
  const std::uint32_t index = take_item(packet.size());
  Item& item = items_[index];
  std::memcpy(item.data.get(), packet.data(), packet.size());
  item.size = packet.size();
  item.header = header;
  item.mark = mark;
  item.queued_us = now_us;
  if (load == Load::Control) {
    append(lane.control, index);
    while (lane.control.memory > kMemberControlMax) drop_head(lane.control), ++dropped_;
  } else {
    Flow& flow = lane.flows[mark.hash % kFlows];
    const std::size_t before = flow.memory;
    append(flow, index);
    settle(lane, flow, before);
    while (lane.bulk_memory > kMemberBulkMax) drop_fattest(lane);
  }
  if (lane.listed) return;
  lane.listed = true;
  active_.push_back(&lane);
}

std::optional<ByteView> Shaper::next_segment(Queue& queue) {
  while (queue.head != kNone) {
    Item& item = items_[queue.head];
    if (!item.segments) item.segments.emplace(item.header, std::span(item.data.get(), item.size));
    if (auto segment = item.segments->next()) return segment;
    drop_head(queue);  // malformed
  }
  return {};
}

void Shaper::pass(Lane& lane, Load load, ByteView segment, Run& run) {
  const std::size_t bytes = segment.size() + kTunnelBytes;
  lane.all.charge(bytes);
  if (load == Load::Control) lane.control_share.charge(bytes);
  run.budget -= std::min(run.budget, bytes);
  run.gate.pass(lane.address, load, segment);
}

bool Shaper::control_may(Lane& lane, Run& run) {
  const bool all = lane.all.ready(run.now_us), share = lane.control_share.ready(run.now_us);
  return (share || (all && lane.busy == 0)) && run.gate.wait(Load::Control) == Millis(0);
}

bool Shaper::serve_control(Lane& lane, Run& run) {
  std::int64_t quantum = kMemberQuantum;
  bool any = false;
  while (quantum > 0 && run.budget > 0 && lane.control.head != kNone) {
    if (run.now_us - items_[lane.control.head].queued_us > kLatestUs) {
      drop_head(lane.control);
      ++dropped_;
      continue;
    }
    if (!control_may(lane, run)) break;
    const auto segment = next_segment(lane.control);
    if (!segment) break;
    pass(lane, Load::Control, *segment, run);
    quantum -= static_cast<std::int64_t>(segment->size());
    if (items_[lane.control.head].segments->done()) drop_head(lane.control);
    any = true;
  }
  return any;
}

// CoDel's law: after an interval above the target one drop, the next ones closer and closer while it stays above.
bool Shaper::Flow::drops_now(std::uint64_t waited_us, std::uint64_t target_us, std::uint64_t now_us) {
  const auto after = [&] { return static_cast<std::uint64_t>(static_cast<double>(kIntervalUs) / std::sqrt(drops)); };
  if (waited_us < target_us) {
    above_us = 0;
    dropping = false;
    return false;
  }
  if (above_us == 0) above_us = now_us + kIntervalUs;
  if (!dropping) {
    if (now_us < above_us) return false;
    dropping = true;
    drops = drops > 2 && now_us < next_drop_us + 8 * kIntervalUs ? drops - 2 : 1;  // it was like this just before
    next_drop_us = now_us + after();
    return true;
  }
  if (now_us < next_drop_us) return false;
  ++drops;
  next_drop_us += after();
  return true;
}

bool Shaper::serve_bulk(Lane& lane, Run& run) {
  std::int64_t quantum = kMemberQuantum;
  bool any = false;
  while (lane.room && quantum > 0 && run.budget > 0 && lane.busy != 0) {
    if (!lane.all.ready(run.now_us) || run.gate.wait(Load::Bulk) > Millis(0)) break;
    lane.turn =
        (lane.turn + static_cast<std::uint32_t>(std::countr_zero(std::rotr(lane.busy, static_cast<int>(lane.turn))))) %
        kFlows;
    Flow& flow = lane.flows[lane.turn];
    if (flow.deficit <= 0) {
      flow.deficit += kFlowQuantum;
      lane.turn = (lane.turn + 1) % kFlows;
      continue;
    }
    const std::size_t before = flow.memory;
    const Item& head = items_[flow.head];
    const std::uint64_t waited = run.now_us - head.queued_us;
    const bool few = flow.head == flow.tail && head.size <= kFewBytes;
    const double slow =
        lane.all.rate() == 0 ? 0 : 4 * 1.4e9 * std::popcount(lane.busy) / static_cast<double>(lane.all.rate());
    const std::uint64_t target = std::max(kTargetUs, static_cast<std::uint64_t>(slow));
    if (waited > std::max(kLatestUs, 4 * target)) {
      drop_head(flow);
      ++dropped_;
    } else if (const bool drop = !few && flow.drops_now(waited, target, run.now_us);
               const auto s = next_segment(flow)) {
      if (drop) {
        ++dropped_;
      } else {
        flow.deficit -= static_cast<std::int64_t>(s->size());
        quantum -= static_cast<std::int64_t>(s->size());
        pass(lane, Load::Bulk, *s, run);
        any = true;
      }
      if (items_[flow.head].segments->done()) drop_head(flow);
    }
    settle(lane, flow, before);
  }
  return any;
}

// A quantum for each in turn, as long as anybody may.
void Shaper::serve_all(Run& run, bool (Shaper::*serve)(Lane&, Run&)) {
  for (bool more = true; more && run.budget > 0;) {
    more = false;
    const std::size_t first = turn_;
    for (std::size_t i = 0; i < active_.size(); ++i) {
      const std::size_t at = (first + i) % active_.size();
      if (!(this->*serve)(*active_[at], run)) continue;
      more = true;
      turn_ = (at + 1) % active_.size();  // who was last has had its turn
    }
  }
}

std::uint64_t Shaper::run(std::uint64_t now_us, Gate& gate) {
  if (active_.empty()) return 0;
  for (Lane* lane : active_) {
    const Way way = gate.way(lane->address);
    lane->all.set_rate(way.bytes_s, now_us);
    lane->control_share.set_rate(way.bytes_s / 5 * 4, now_us);
    lane->room = way.room;
    lane->used_us = now_us;
  }
  turn_ %= active_.size();
  Run run{now_us, gate, kTurnBytes};
  serve_all(run, &Shaper::serve_control);
  serve_all(run, &Shaper::serve_bulk);
  std::erase_if(active_, [](Lane* lane) {
    lane->listed = lane->waits();
    return !lane->listed;
  });
  return active_.empty() ? 0 : wait_us(run);
}

std::uint64_t Shaper::wait_us(const Run& run) const {
  if (run.budget == 0) return 1;
  const auto shared = [&](Load load) { return static_cast<std::uint64_t>(run.gate.wait(load).count()) * 1000; };
  std::uint64_t least = kSweepUs;
  for (const Lane* lane : active_) {
    if (lane->control.head != kNone) {
      const std::uint64_t own = lane->control_share.wait_us(), all = lane->all.wait_us();
      least = std::min(least, std::max(lane->busy == 0 ? std::min(own, all) : own, shared(Load::Control)));
    }
    if (lane->busy != 0)
      least = std::min(least, !lane->room ? kRoomAgainUs : std::max(lane->all.wait_us(), shared(Load::Bulk)));
  }
  return std::max<std::uint64_t>(least, 1);
}

void Shaper::sweep(std::uint64_t now_us) {
  if (now_us - swept_us_ < kSweepUs) return;
  swept_us_ = now_us;
  std::erase_if(lanes_,
                [&](const auto& each) { return !each.second->waits() && now_us - each.second->used_us > kIdleUs; });
  if (!empty()) return;
  items_.clear();
  empty_.clear();
  for (auto& spare : spare_) spare.clear();
}

}  // namespace muster::overlay
