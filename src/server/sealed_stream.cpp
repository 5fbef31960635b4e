#include "server/sealed_stream.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "crypto/random.h"

namespace muster::server {
namespace {

constexpr std::string_view kStreamMagic = "MUSTERS1";
constexpr std::size_t kIdBytes = 16;
constexpr std::size_t kLengthBytes = 4, kNewestKept = 64;
static_assert(SealedStream::kHeader == kStreamMagic.size() + crypto::KeyRing::kOverhead + kIdBytes);

Status write_at(int fd, ByteView data, std::uint64_t at) {
  while (!data.empty()) {
    const ssize_t n = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      return error(errno == ENOSPC ? Code::ResourceExhausted : Code::Unavailable,
                   fmt::format("cannot write: {}", std::strerror(errno)));
    data = data.subspan(static_cast<std::size_t>(n));
    at += static_cast<std::uint64_t>(n);
  }
  return {};
}

// Fewer than asked for at the file's end.
Result<Bytes> read_at(int fd, std::size_t size, std::uint64_t at) {
  Bytes out(size);
  std::size_t have = 0;
  while (have < size) {
    const ssize_t n = ::pread(fd, out.data() + have, size - have, static_cast<off_t>(at + have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return error(Code::Unavailable, fmt::format("cannot read: {}", std::strerror(errno)));
    if (n == 0) break;
    have += static_cast<std::size_t>(n);
  }
  out.resize(have);
  return out;
}

std::string header_place(const std::string& place) {
  return "header of " + place;
}

}  // namespace

SealedStream::SealedStream(std::shared_ptr<crypto::KeyRing> ring)
    : ring_(std::move(ring)), id_(crypto::random_bytes(kIdBytes)), key_(ring_->current()) {}

std::string SealedStream::record_place(std::uint64_t plain) const {
  return fmt::format("stream {} at {}", hex(id_), plain);
}

Status SealedStream::write_header(int fd, const std::string& place) {
  Bytes header = to_bytes(kStreamMagic);
  const Bytes sealed = ring_->seal(header_place(place), id_);
  header.insert(header.end(), sealed.begin(), sealed.end());
  return write_at(fd, header, 0);
}

Result<bool> SealedStream::read_header(int fd, const std::string& place) {
  const Bytes header = TRY(read_at(fd, kHeader, 0));
  const ByteView view(header);
  if (header.size() < kHeader || as_string(view.first(kStreamMagic.size())) != kStreamMagic) return false;
  const auto id = ring_->open(header_place(place), view.subspan(kStreamMagic.size()));
  if (!id.ok()) return false;
  id_ = *id;
  key_ = *crypto::KeyRing::key_of(view.subspan(kStreamMagic.size()));
  index_.clear(), newest_.clear();
  plain_end_ = 0, end_ = kHeader, torn_ = false;
  return true;
}

Result<Bytes> SealedStream::open_record(int fd, const Record& record) {
  const Bytes sealed = TRY(read_at(fd, record.size + crypto::KeyRing::kOverhead, record.at + kLengthBytes));
  return ring_->open(record_place(record.plain), sealed);
}

Status SealedStream::catch_up(int fd) {
  if (torn_) return {};
  struct stat facts {};
  if (::fstat(fd, &facts) != 0) return error(Code::Unavailable, "a sealed file cannot be looked at");
  const auto bytes = static_cast<std::uint64_t>(facts.st_size);
  const bool fresh = end_ == kHeader;
  while (end_ + kLengthBytes + crypto::KeyRing::kOverhead < bytes) {
    const Bytes raw = TRY(read_at(fd, kLengthBytes, end_));
    Record record{plain_end_, end_, 0};
    for (std::size_t i = 0; i < raw.size(); ++i) record.size |= static_cast<std::uint32_t>(raw[i]) << (8 * i);
    const std::uint64_t next = end_ + kLengthBytes + crypto::KeyRing::kOverhead + record.size;
    if (record.size == 0 || record.size > kStreamRecord || next > bytes) break;
    if (index_.empty() || record.plain - index_.back().plain >= kStreamRecord) index_.push_back(record);
    newest_.push_back(record);
    if (newest_.size() > kNewestKept) newest_.pop_front();
    plain_end_ += record.size;
    end_ = next;
  }
  // After a crash the file may be longer than what reached the disk.
  while (fresh && !newest_.empty() && !open_record(fd, newest_.back()).ok()) {
    plain_end_ = newest_.back().plain, end_ = newest_.back().at;
    if (!index_.empty() && index_.back().at == end_) index_.pop_back();
    newest_.pop_back();
    torn_ = true;
  }
  return {};
}

Result<std::uint64_t> SealedStream::size(int fd) {
  TRY_VOID(catch_up(fd));
  return plain_end_;
}

Status SealedStream::append(int fd, ByteView plain) {
  TRY_VOID(catch_up(fd));
  if (::ftruncate(fd, static_cast<off_t>(end_)) != 0)
    return error(Code::Unavailable, fmt::format("cannot cut a sealed file: {}", std::strerror(errno)));
  torn_ = false;
  while (!plain.empty()) {
    const ByteView part = plain.first(std::min(plain.size(), kStreamRecord));
    Bytes record;
    for (std::size_t i = 0; i < kLengthBytes; ++i) record.push_back(static_cast<std::uint8_t>(part.size() >> (8 * i)));
    const Bytes sealed = ring_->seal(record_place(plain_end_), part);
    record.insert(record.end(), sealed.begin(), sealed.end());
    TRY_VOID(write_at(fd, record, end_));
    plain = plain.subspan(part.size());
    TRY_VOID(catch_up(fd));
  }
  return {};
}

Result<Bytes> SealedStream::read(int fd, std::uint64_t offset, std::size_t max) {
  TRY_VOID(catch_up(fd));
  Bytes out;
  if (offset >= plain_end_ || max == 0 || index_.empty()) return out;
  auto from = std::upper_bound(index_.begin(), index_.end(), offset,
                               [](std::uint64_t wanted, const Record& each) { return wanted < each.plain; });
  Record record = *--from;
  while (record.plain < plain_end_ && out.size() < max) {
    const Bytes raw = TRY(read_at(fd, kLengthBytes, record.at));
    record.size = 0;
    for (std::size_t i = 0; i < raw.size(); ++i) record.size |= static_cast<std::uint32_t>(raw[i]) << (8 * i);
    if (record.size == 0 || record.size > kStreamRecord)
      return error(Code::DataLoss, "a sealed file is damaged: restore it from a backup");
    if (record.plain + record.size > offset) {
      const Bytes plain = TRY(open_record(fd, record));
      const std::size_t skip = offset > record.plain ? static_cast<std::size_t>(offset - record.plain) : 0;
      const std::size_t take = std::min(plain.size() - skip, max - out.size());
      out.insert(out.end(), plain.begin() + static_cast<std::ptrdiff_t>(skip),
                 plain.begin() + static_cast<std::ptrdiff_t>(skip + take));
    }
    record = {record.plain + record.size, record.at + kLengthBytes + crypto::KeyRing::kOverhead + record.size, 0};
  }
  return out;
}

}  // namespace muster::server
