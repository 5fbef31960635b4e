#include "overlay/offload.h"

#include <algorithm>
#include <cstring>

#include "base/endian.h"
#include "overlay/packet.h"

namespace muster::overlay {
namespace {

constexpr std::size_t kIp4 = 20, kIp6 = 40, kTcp = 20, kUdp = 8;
constexpr std::uint8_t kProtocolTcp = 6, kProtocolUdp = 17;
constexpr std::uint8_t kFin = 1, kPush = 8, kAck = 16, kCongestion = 0x80;
constexpr std::size_t kTrainMax = 65'535, kTrainSegmentsMax = 64;
constexpr std::uint32_t kRememberedMax = 1U << 20;  // of a flow's last stretch

std::uint16_t host16(const std::uint8_t* at) {
  std::uint16_t value = 0;
  std::memcpy(&value, at, sizeof value);
  return value;
}
void put16(std::uint8_t* at, std::uint16_t value) {
  std::memcpy(at, &value, sizeof value);
}

std::uint16_t folded(std::uint32_t sum) {
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(sum);
}
void finish_ip(std::uint8_t* ip, std::size_t ip_bytes, std::size_t total) {
  if (ip[0] >> 4 == 6) return store_be16(ip + 4, static_cast<std::uint16_t>(total - kIp6));
  store_be16(ip + 2, static_cast<std::uint16_t>(total));
  store_be16(ip + 10, 0);
  store_be16(ip + 10, internet_checksum({ip, ip_bytes}));
}
std::uint8_t protocol_of(const std::uint8_t* ip) {
  return ip[0] >> 4 == 6 ? ip[6] : ip[9];
}

}  // namespace

OffloadHeader load_offload(const std::uint8_t* at) {
  return {at[0], at[1], host16(at + 2), host16(at + 4), host16(at + 6), host16(at + 8)};
}

std::array<std::uint8_t, OffloadHeader::kBytes> store_offload(const OffloadHeader& header) {
  std::array<std::uint8_t, OffloadHeader::kBytes> out{header.flags, header.gso};
  put16(out.data() + 2, header.header_bytes);
  put16(out.data() + 4, header.segment_bytes);
  put16(out.data() + 6, header.checksum_start);
  put16(out.data() + 8, header.checksum_offset);
  return out;
}

Segments::Segments(const OffloadHeader& header, std::span<std::uint8_t> packet) : packet_(packet) {
  const bool six = !packet.empty() && packet[0] >> 4 == 6;
  if (packet.size() < (six ? kIp6 : kIp4) || (!six && packet[0] >> 4 != 4)) return;
  const std::uint8_t kind = header.gso & static_cast<std::uint8_t>(~OffloadHeader::kEcn);
  if (kind == OffloadHeader::kNone) {
    whole_ = true;
    done_ = false;
    if ((header.flags & OffloadHeader::kNeedsChecksum) == 0) return;
    const std::size_t field = std::size_t{header.checksum_start} + header.checksum_offset;
    if (header.checksum_start < (six ? kIp6 : kIp4) || field + 2 > packet.size()) {
      done_ = true;
      return;
    }
    // The field holds the sum of what is not in the packet.
    std::uint16_t sum = internet_checksum(packet.subspan(header.checksum_start));
    if (sum == 0 && protocol_of(packet.data()) == kProtocolUdp) sum = 0xffff;
    store_be16(packet.data() + field, sum);
    return;
  }
  ip_bytes_ = six ? kIp6 : (packet[0] & 15U) * std::size_t{4};
  tcp_ = kind == (six ? OffloadHeader::kTcp6 : OffloadHeader::kTcp4);
  if ((!tcp_ && kind != OffloadHeader::kUdp) || ip_bytes_ < kIp4 || packet.size() < ip_bytes_ + kTcp) return;
  if (protocol_of(packet.data()) != (tcp_ ? kProtocolTcp : kProtocolUdp)) return;  // of IPv6: without extensions
  header_bytes_ = ip_bytes_ + (tcp_ ? (packet[ip_bytes_ + 12] >> 4) * std::size_t{4} : kUdp);
  segment_bytes_ = header.segment_bytes;
  if (header_bytes_ < ip_bytes_ + (tcp_ ? kTcp : kUdp) || header_bytes_ >= packet.size() || segment_bytes_ == 0) return;
  std::memcpy(header_.data(), packet.data(), header_bytes_);
  first_id_ = load_be16(packet.data() + 4);
  at_ = header_bytes_;
  done_ = false;
}

std::optional<ByteView> Segments::next() {
  if (done_) return {};
  if (whole_) {
    done_ = true;
    return packet_;
  }
  const std::size_t payload = std::min(segment_bytes_, packet_.size() - at_);
  const bool first = number_ == 0, last = at_ + payload == packet_.size();
  std::uint8_t* ip = packet_.data() + at_ - header_bytes_;
  std::memcpy(ip, header_.data(), header_bytes_);
  if (ip[0] >> 4 == 4) store_be16(ip + 4, static_cast<std::uint16_t>(first_id_ + number_));
  finish_ip(ip, ip_bytes_, header_bytes_ + payload);
  std::uint8_t* transport = ip + ip_bytes_;
  const std::size_t length = header_bytes_ - ip_bytes_ + payload;
  if (tcp_) {
    store_be32(transport + 4,
               load_be32(header_.data() + ip_bytes_ + 4) + static_cast<std::uint32_t>(at_ - header_bytes_));
    if (!last) transport[13] &= static_cast<std::uint8_t>(~(kFin | kPush));
    if (!first) transport[13] &= static_cast<std::uint8_t>(~kCongestion);
    store_be16(transport + 16, 0);
    store_be16(transport + 16, internet_checksum({transport, length}, pseudo_header(ip, kProtocolTcp, length)));
  } else {
    store_be16(transport + 4, static_cast<std::uint16_t>(length));
    store_be16(transport + 6, 0);
    const std::uint16_t sum = internet_checksum({transport, length}, pseudo_header(ip, kProtocolUdp, length));
    store_be16(transport + 6, sum == 0 ? 0xffff : sum);
  }
  at_ += payload;
  ++number_;
  done_ = last;
  return ByteView{ip, header_bytes_ + payload};
}

// A whole TCP segment with data and nothing out of the ordinary, with right checksums.
std::optional<Coalescer::Flow> Coalescer::joinable(ByteView packet) {
  if (packet.size() < kIp4 + kTcp) return {};
  const std::uint8_t* ip = packet.data();
  Flow flow;
  if (ip[0] >> 4 == 6) {
    if (packet.size() < kIp6 + kTcp || ip[6] != kProtocolTcp || kIp6 + load_be16(ip + 4) != packet.size()) return {};
    flow.ip = kIp6;
    flow.service = load_be32(ip);  // the flow label too
    flow.life = ip[7];
    std::copy_n(ip + 8, 32, flow.addresses_and_ports.begin() + 4);
  } else {
    if (ip[0] != 0x45 || ip[9] != kProtocolTcp || load_be16(ip + 2) != packet.size()) return {};
    flow.ip = kIp4;
    flow.fragment = load_be16(ip + 6);
    if ((flow.fragment & 0x3fff) != 0) return {};
    flow.service = ip[1];
    flow.life = ip[8];
    std::copy_n(ip + 12, 8, flow.addresses_and_ports.begin() + 4);
  }
  const std::uint8_t* tcp = ip + flow.ip;
  flow.header = flow.ip + (tcp[12] >> 4) * std::size_t{4};
  flow.flags = tcp[13];
  if (flow.header < flow.ip + kTcp || flow.header >= packet.size()) return {};
  if ((flow.flags & static_cast<std::uint8_t>(~kPush)) != kAck || (tcp[12] & 15U) != 0) return {};
  flow.payload = packet.size() - flow.header;
  std::copy_n(tcp, 4, flow.addresses_and_ports.begin());
  flow.sequence = load_be32(tcp + 4);
  flow.acknowledged = load_be32(tcp + 8);
  flow.window = load_be16(tcp + 14);
  if (flow.ip == kIp4 && internet_checksum(packet.first(kIp4)) != 0) return {};
  const std::size_t length = packet.size() - flow.ip;
  if (internet_checksum(packet.subspan(flow.ip), pseudo_header(ip, kProtocolTcp, length)) != 0) return {};
  return flow;
}

bool Coalescer::continues(const Flow& flow, ByteView packet) const {
  return count_ > 0 && !closed_ && count_ < kTrainSegmentsMax && flow.sequence == next_sequence_ &&
         flow.payload <= first_.payload && train_.size() + flow.payload <= kTrainMax &&
         flow.addresses_and_ports == first_.addresses_and_ports && flow.acknowledged == first_.acknowledged &&
         flow.window == first_.window && flow.fragment == first_.fragment && flow.service == first_.service &&
         flow.life == first_.life && flow.ip == first_.ip && flow.header == first_.header &&
         std::memcmp(packet.data() + flow.ip + kTcp, train_.data() + flow.ip + kTcp, flow.header - flow.ip - kTcp) == 0;
}

void Coalescer::set(bool join, bool counting, Sink& sink) {
  if (join == join_ && counting == counting_) return;
  flush(sink);
  join_ = join;
  counting_ = counting;
}

// A stretch that goes on where the last one ended is one with it. Of what was written twice, the second counts.
void Coalescer::count_written() {
  std::uint32_t hash = 0;
  for (std::size_t i = 0; i < first_.addresses_and_ports.size(); i += 4)
    hash = (hash ^ load_be32(first_.addresses_and_ports.data() + i)) * 2'654'435'761U;
  Written& flow = written_[hash >> 26];
  const auto length = static_cast<std::uint32_t>(train_.size() - first_.header);
  const std::uint32_t from = next_sequence_ - length, to = next_sequence_;
  counts_.data += length;
  if (flow.addresses_and_ports != first_.addresses_and_ports) {
    flow = {first_.addresses_and_ports, {}, 0};
    flow.stretches[0] = {from, to};
    return;
  }
  for (const auto& [begin, end] : flow.stretches) {
    // As far as it lies in there; differences, since numbers begin anew at 2^32.
    if (end - begin == 0 || from - begin >= end - begin) continue;
    counts_.again += std::min(length, end - from);
    return;
  }
  auto& last = flow.stretches[flow.last];
  if (last.second == from) {
    last.second = to;
    if (to - last.first > kRememberedMax) last.first = to - kRememberedMax;
    return;
  }
  flow.last = static_cast<std::uint8_t>((flow.last + 1) % flow.stretches.size());
  flow.stretches[flow.last] = {from, to};
}

void Coalescer::add(ByteView packet, Sink& sink) {
  const auto flow = join_ || counting_ ? joinable(packet) : std::nullopt;
  if (!flow) {
    flush(sink);
    sink.write({}, packet);
    return;
  }
  if (join_ && continues(*flow, packet)) {
    train_.insert(train_.end(), packet.begin() + static_cast<std::ptrdiff_t>(flow->header), packet.end());
    train_[flow->ip + 13] |= flow->flags & kPush;
  } else {
    flush(sink);
    train_.assign(packet.begin(), packet.end());
    first_ = *flow;
    next_sequence_ = flow->sequence;
  }
  ++count_;
  next_sequence_ += static_cast<std::uint32_t>(flow->payload);
  closed_ = flow->payload < first_.payload || (flow->flags & kPush) != 0;
}

void Coalescer::flush(Sink& sink) {
  if (count_ == 0) return;
  OffloadHeader header;
  if (count_ > 1) {
    std::uint8_t* ip = train_.data();
    finish_ip(ip, first_.ip, train_.size());
    // The kernel adds the rest.
    store_be16(ip + first_.ip + 16, folded(pseudo_header(ip, kProtocolTcp, train_.size() - first_.ip)));
    header = {OffloadHeader::kNeedsChecksum,
              first_.ip == kIp6 ? OffloadHeader::kTcp6 : OffloadHeader::kTcp4,
              static_cast<std::uint16_t>(first_.header),
              static_cast<std::uint16_t>(first_.payload),
              static_cast<std::uint16_t>(first_.ip),
              16};
  }
  if (counting_) count_written();
  if (!sink.write(header, train_) && count_ > 1) {
    bool any = false;
    Segments segments(header, train_);
    while (const auto each = segments.next()) any = sink.write({}, *each) || any;
    counts_.refused += any ? 1 : 0;  // else it refuses everything now
  }
  count_ = 0;
  closed_ = false;
}

}  // namespace muster::overlay
