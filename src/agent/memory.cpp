#include "agent/memory.h"

#include <algorithm>

#include "crypto/hash.h"

namespace muster::agent {
namespace {
constexpr std::uint8_t kVersion = 1;
constexpr std::size_t kChecksumBytes = 8;
constexpr std::uint64_t kItemsMax = 4096, kTextMax = 256;

class Writer {
 public:
  void number(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<std::uint8_t>(value | 0x80));
    bytes_.push_back(static_cast<std::uint8_t>(value));
  }
  void text(const std::string& value) {
    const std::size_t size = std::min<std::size_t>(value.size(), kTextMax);
    number(size);
    bytes_.insert(bytes_.end(), value.begin(), value.begin() + static_cast<std::ptrdiff_t>(size));
  }
  Bytes take() { return std::move(bytes_); }

 private:
  Bytes bytes_;
};

class Reader {  // sticky: after the first fault zeros come and ok() is false
 public:
  explicit Reader(ByteView bytes) : bytes_(bytes) {}
  std::uint64_t number() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && !bytes_.empty(); shift += 7) {
      const std::uint8_t part = bytes_[0];
      bytes_ = bytes_.subspan(1);
      value |= static_cast<std::uint64_t>(part & 0x7f) << shift;
      if ((part & 0x80) == 0) return value;
    }
    ok_ = false;
    return 0;
  }
  std::string text() {
    const std::uint64_t size = number();
    if (size > kTextMax || size > bytes_.size()) return ok_ = false, std::string();
    std::string out = as_string(bytes_.first(size));
    bytes_ = bytes_.subspan(size);
    return out;
  }
  std::uint64_t count() {
    const std::uint64_t n = number();
    if (n > kItemsMax) ok_ = false;
    return ok_ ? n : 0;
  }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && bytes_.empty(); }

 private:
  ByteView bytes_;
  bool ok_ = true;
};

Bytes checksum(ByteView body) {
  const crypto::Digest digest = crypto::sha256(body);
  return Bytes(digest.begin(), digest.begin() + kChecksumBytes);
}

}  // namespace

Bytes encode(const Memory& memory) {
  Writer out;
  out.number(kVersion);
  out.text(memory.boot_id);
  out.number(memory.incarnation);
  out.number(memory.revision);
  out.number((memory.paused ? 1U : 0U) | (memory.leaving ? 2U : 0U) | (memory.pause_untold ? 4U : 0U) |
             (memory.pause_now ? 8U : 0U));
  out.number(memory.leases.size());
  for (const auto& [id, lease] : memory.leases) {
    for (const std::uint64_t value :
         {id.value, lease.epoch.incarnation, lease.epoch.leader, lease.epoch.counter,
          static_cast<std::uint64_t>(lease.end.ms), std::uint64_t{(lease.over ? 1U : 0U) | (lease.failed ? 2U : 0U)}}) {
      out.number(value);
    }
    out.text(lease.reason);
  }
  out.number(memory.roster_epochs.size());
  for (const auto& [cluster, epoch] : memory.roster_epochs) out.number(cluster.value), out.number(epoch);
  out.number(memory.jobs.size());
  for (const auto& [key, job] : memory.jobs) {
    for (const std::uint64_t value :
         {key.first.value, std::uint64_t{key.second}, job.lease.value, static_cast<std::uint64_t>(job.state),
          static_cast<std::uint64_t>(static_cast<std::uint32_t>(job.exit_code)), job.log_bytes, job.acked}) {
      out.number(value);
    }
    out.text(job.reason);
  }
  Bytes body = out.take();
  const Bytes sum = checksum(body);
  body.insert(body.end(), sum.begin(), sum.end());
  return body;
}

std::optional<Memory> decode_memory(ByteView bytes) {
  if (bytes.size() <= kChecksumBytes) return {};
  const ByteView body = bytes.first(bytes.size() - kChecksumBytes);
  const Bytes sum = checksum(body);
  if (!std::equal(sum.begin(), sum.end(), bytes.end() - kChecksumBytes)) return {};
  Reader in(body);
  if (in.number() != kVersion) return {};
  Memory memory;
  memory.boot_id = in.text();
  memory.incarnation = in.number();
  memory.revision = in.number();
  const std::uint64_t flags = in.number();
  memory.paused = (flags & 1) != 0;
  memory.leaving = (flags & 2) != 0;
  memory.pause_untold = (flags & 4) != 0;
  memory.pause_now = (flags & 8) != 0;
  for (std::uint64_t n = in.count(); n > 0 && in.ok(); --n) {
    LeaseMemory& lease = memory.leases[LeaseId{in.number()}];
    lease.epoch.incarnation = in.number();
    lease.epoch.leader = in.number();
    lease.epoch.counter = in.number();
    lease.end = LeaseTime{static_cast<std::int64_t>(in.number())};
    const std::uint64_t ended = in.number();
    lease.over = ended != 0;
    lease.failed = (ended & 2) != 0;
    lease.reason = in.text();
  }
  for (std::uint64_t n = in.count(); n > 0 && in.ok(); --n) {
    const ClusterId cluster{in.number()};
    memory.roster_epochs[cluster] = in.number();
  }
  for (std::uint64_t n = in.count(); n > 0 && in.ok(); --n) {
    const JobId id{in.number()};
    JobMemory& job = memory.jobs[{id, static_cast<std::uint32_t>(in.number())}];
    job.lease = LeaseId{in.number()};
    job.state = static_cast<JobState>(std::clamp<std::uint64_t>(in.number(), 1, 7));
    job.exit_code = static_cast<std::int32_t>(static_cast<std::uint32_t>(in.number()));
    job.log_bytes = in.number();
    job.acked = in.number();
    job.reason = in.text();
  }
  if (!in.done()) return {};
  return memory;
}

}  // namespace muster::agent
