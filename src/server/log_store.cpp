#include "server/log_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/log.h"

namespace muster::server {
namespace {

constexpr std::size_t kStreamsMax = 256;

struct File {
  int fd = -1;
  explicit File(int descriptor) : fd(descriptor) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (fd >= 0) ::close(fd);
  }
};
Error file_fault(const std::string& path) {
  return error(errno == ENOSPC ? Code::ResourceExhausted : Code::Unavailable,
               fmt::format("cannot write {}: {}", path, std::strerror(errno)));
}

}  // namespace

LogStore::LogStore(std::string root, std::uint64_t bytes_max, Millis sync_every, std::shared_ptr<crypto::KeyRing> ring)
    : root_(std::move(root)), bytes_max_(bytes_max), sync_every_(sync_every), ring_(std::move(ring)), thread_([this] {
        run();
      }) {}

LogStore::~LogStore() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::string LogStore::path(JobId job, std::uint32_t attempt) const {
  return fmt::format("{}/{}/{}.log", root_, job.str(), attempt);
}

Result<SealedStream*> LogStore::stream(int fd, JobId job, std::uint32_t attempt, Header header) const {
  const auto known = streams_.find({job, attempt});
  if (known != streams_.end()) return &known->second;
  const std::string place = fmt::format("log {}/{}", job.str(), attempt);
  SealedStream fresh(ring_);
  if (!TRY(fresh.read_header(fd, place))) {
    struct stat facts {};
    // A crash may have left a part of the header, and nothing behind it.
    const bool begun = ::fstat(fd, &facts) == 0 && static_cast<std::size_t>(facts.st_size) <= SealedStream::kHeader;
    if (!begun)
      return error(Code::DataLoss,
                   fmt::format("log of {} attempt {} is not sealed, or was changed", job.str(), attempt));
    if (header == Header::Read) return static_cast<SealedStream*>(nullptr);
    TRY_VOID(fresh.write_header(fd, place));
    if (::fdatasync(fd) != 0) return file_fault(path(job, attempt));
  }
  if (streams_.size() >= kStreamsMax) streams_.clear();
  return &streams_.emplace(std::pair(job, attempt), std::move(fresh)).first->second;
}

Status LogStore::append(JobId job, std::uint32_t attempt, std::uint64_t offset, ByteView data,
                        std::function<void(std::uint64_t)> acknowledged) {
  const std::lock_guard lock(mutex_);
  const std::string name = path(job, attempt);
  std::error_code ignored;
  std::filesystem::create_directories(fmt::format("{}/{}", root_, job.str()), ignored);
  const File file(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  struct stat facts {};
  if (file.fd < 0 || ::fstat(file.fd, &facts) != 0) return file_fault(name);
  SealedStream* const sealed = ring_ ? TRY(stream(file.fd, job, attempt, Header::Write)) : nullptr;
  std::uint64_t end = sealed != nullptr ? TRY(sealed->size(file.fd)) : static_cast<std::uint64_t>(facts.st_size);
  if (offset > end) {
    if (end >= bytes_max_)
      end = offset;  // past the bound nothing is kept, so there is no gap to complain about
    else
      return error(Code::FailedPrecondition,
                   fmt::format("log of {} attempt {}: {} bytes are stored, the chunk starts at {}; send from {}",
                               job.str(), attempt, end, offset, end));
  }
  std::uint64_t upto = offset + data.size();
  if (upto > end && end < bytes_max_) {
    ByteView fresh = data.subspan(static_cast<std::size_t>(end - offset));
    fresh = fresh.first(static_cast<std::size_t>(std::min<std::uint64_t>(fresh.size(), bytes_max_ - end)));
    if (sealed != nullptr) {
      TRY_VOID(sealed->append(file.fd, fresh));
      fresh = {};
    }
    for (std::size_t done = 0; done < fresh.size();) {
      const ssize_t n = ::pwrite(file.fd, fresh.data() + done, fresh.size() - done, static_cast<off_t>(end + done));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return file_fault(name);
      done += static_cast<std::size_t>(n);
    }
  }
  upto = std::max(upto, end);
  auto& dirty = dirty_[{job, attempt}];
  dirty.upto = std::max(dirty.upto, upto);
  dirty.acknowledged = std::move(acknowledged);
  wake_.notify_one();
  return {};
}

Result<std::string> LogStore::read(JobId job, std::uint32_t attempt, std::uint64_t offset, std::size_t max) const {
  const File file(::open(path(job, attempt).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (file.fd < 0) {
    if (errno == ENOENT) return std::string();
    return error(Code::Unavailable, fmt::format("the log cannot be read: {}", std::strerror(errno)));
  }
  if (ring_) {
    const std::lock_guard lock(mutex_);
    SealedStream* const sealed = TRY(stream(file.fd, job, attempt, Header::Read));
    if (sealed == nullptr) return std::string();
    const Bytes bytes = TRY(sealed->read(file.fd, offset, max));
    return as_string(bytes);
  }
  std::string out(max, '\0');
  const ssize_t n = ::pread(file.fd, out.data(), out.size(), static_cast<off_t>(offset));
  if (n < 0) return error(Code::Unavailable, fmt::format("the log cannot be read: {}", std::strerror(errno)));
  out.resize(static_cast<std::size_t>(n));
  return out;
}

std::uint64_t LogStore::size(JobId job, std::uint32_t attempt) const {
  if (ring_) {
    const File file(::open(path(job, attempt).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (file.fd < 0) return 0;
    const std::lock_guard lock(mutex_);
    const auto sealed = stream(file.fd, job, attempt, Header::Read);
    const auto bytes = sealed.ok() && *sealed != nullptr ? (*sealed)->size(file.fd) : Result<std::uint64_t>(0);
    return bytes.ok() ? *bytes : 0;
  }
  std::error_code fault;
  const auto bytes = std::filesystem::file_size(path(job, attempt), fault);
  return fault ? 0 : bytes;
}

std::uint32_t LogStore::newest_attempt(JobId job) const {
  std::uint32_t newest = 0;
  std::error_code fault;
  for (const auto& entry : std::filesystem::directory_iterator(fmt::format("{}/{}", root_, job.str()), fault)) {
    const std::string stem = entry.path().stem().string();
    std::uint32_t attempt = 0;
    if (std::from_chars(stem.data(), stem.data() + stem.size(), attempt).ec == std::errc())
      newest = std::max(newest, attempt);
  }
  return newest;
}

void LogStore::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !dirty_.empty(); });
    if (dirty_.empty()) return;
    if (!stopping_)
      wake_.wait_for(lock, sync_every_, [this] { return stopping_; });  // gather more before one fsync each
    auto batch = std::exchange(dirty_, {});
    lock.unlock();
    for (auto& [key, dirty] : batch) {
      const std::string name = path(key.first, key.second);
      const File file(::open(name.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
      if (file.fd < 0 || ::fdatasync(file.fd) != 0) {
        log_warn("logs", "cannot sync {}: {}; its bytes stay unacknowledged", name, std::strerror(errno));
        continue;
      }
      if (dirty.acknowledged) dirty.acknowledged(dirty.upto);
    }
    lock.lock();
  }
}

}  // namespace muster::server
