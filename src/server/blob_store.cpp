#include "server/blob_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace muster::server {
namespace {

constexpr const char* kTable = "blobs";
constexpr std::size_t kBlobStreamsMax = 64;

std::string blob_place(const std::string& digest) {
  return "upload " + digest;
}

bool digest_like(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

}  // namespace

BlobStore::BlobStore(std::string root, std::shared_ptr<journal::Store> store, Bounds bounds,
                     std::shared_ptr<crypto::KeyRing> ring)
    : root_(std::move(root)), store_(std::move(store)), bounds_(bounds), ring_(std::move(ring)) {}

Status BlobStore::load() {
  std::error_code fault;
  std::filesystem::create_directories(root_, fault);
  for (const auto& entry : std::filesystem::directory_iterator(root_, fault)) {
    if (entry.path().filename().string().starts_with("tmp-")) std::filesystem::remove(entry.path(), fault);
  }
  const std::lock_guard lock(mutex_);
  std::string after;
  while (true) {
    const auto rows = TRY(store_->list_side(kTable, after, 1000));
    if (rows.empty()) return {};
    for (const auto& [key, value] : rows) {  // "org-3/<digest>" -> bytes in decimal
      after = key;
      const auto slash = key.find('/');
      if (slash == std::string::npos) continue;
      const auto org = OrgId::parse(key.substr(0, slash));
      if (!org) continue;
      const std::uint64_t bytes = std::strtoull(as_string(value).c_str(), nullptr, 10);
      held_[*org][key.substr(slash + 1)] = bytes;
      sums_[*org] += bytes;
    }
  }
}

Result<std::shared_ptr<BlobStore::Upload>> BlobStore::begin(OrgId org) {
  auto upload = std::make_shared<Upload>();
  const std::lock_guard lock(mutex_);
  if (sums_[org] >= bounds_.org_bytes) {
    return error(
        Code::ResourceExhausted,
        fmt::format("your organisation holds {} bytes of uploads, the bound is {}; ask the operator for more room",
                    sums_[org], bounds_.org_bytes));
  }
  upload->blobs_ = this;
  upload->org_ = org;
  upload->temp_ = fmt::format("{}/tmp-{}-{}", root_, ::getpid(), ++next_temp_);
  upload->fd_ = ::open(upload->temp_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (upload->fd_ < 0)
    return error(Code::Unavailable, fmt::format("uploads cannot be stored: {}", std::strerror(errno)));
  if (ring_) upload->sealed_ = std::make_unique<SealedStream>(ring_);
  return upload;
}

BlobStore::Upload::~Upload() {
  if (fd_ >= 0) ::close(fd_);
  if (!temp_.empty()) ::unlink(temp_.c_str());
}

Status BlobStore::Upload::chunk(ByteView data) {
  bytes_ += data.size();
  if (bytes_ > blobs_->bounds_.blob_bytes)
    return error(Code::TooLarge, fmt::format("an upload has at most {} bytes", blobs_->bounds_.blob_bytes));
  hash_.update(data);
  if (!sealed_) return write(data);
  waiting_.insert(waiting_.end(), data.begin(), data.end());
  const std::size_t whole = waiting_.size() - waiting_.size() % kStreamRecord;
  if (whole == 0) return {};
  TRY_VOID(sealed_->append(fd_, ByteView(waiting_).first(whole)));
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(whole));
  return {};
}

Status BlobStore::Upload::write(ByteView data) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd_, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      return error(errno == ENOSPC ? Code::ResourceExhausted : Code::Unavailable,
                   fmt::format("the upload cannot be stored: {}", std::strerror(errno)));
    data = data.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<BlobStore::Upload::Done> BlobStore::Upload::end() {
  const std::string digest = hex(hash_.finish());
  if (sealed_) {
    TRY_VOID(sealed_->append(fd_, waiting_));
    TRY_VOID(sealed_->write_header(fd_, blob_place(digest)));
  }
  if (::fsync(fd_) != 0)
    return error(Code::Unavailable, fmt::format("the upload cannot be stored: {}", std::strerror(errno)));
  auto done = blobs_->keep(org_, temp_, digest, bytes_);
  if (done.ok()) temp_.clear();
  return done;
}

Result<BlobStore::Upload::Done> BlobStore::keep(OrgId org, const std::string& temp, const std::string& digest,
                                                std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const bool known = held_[org].contains(digest);
  if (!known && sums_[org] + bytes > bounds_.org_bytes) {
    return error(
        Code::ResourceExhausted,
        fmt::format("this upload would exceed the bound of {} bytes for your organisation", bounds_.org_bytes));
  }
  if (::rename(temp.c_str(), fmt::format("{}/{}", root_, digest).c_str()) != 0) {
    return error(Code::Unavailable, fmt::format("the upload cannot be stored: {}", std::strerror(errno)));
  }
  if (!known) {
    TRY_VOID(store_->put_side(kTable, org.str() + "/" + digest, to_bytes(std::to_string(bytes))));
    held_[org][digest] = bytes;
    sums_[org] += bytes;
  }
  return Upload::Done{digest, bytes};
}

bool BlobStore::holds(OrgId org, const std::string& digest) const {
  const std::lock_guard lock(mutex_);
  const auto found = held_.find(org);
  return found != held_.end() && found->second.contains(digest);
}

Result<Bytes> BlobStore::read(const std::string& digest, std::uint64_t offset, std::size_t max, bool& last) const {
  if (!digest_like(digest)) return error(Code::InvalidArgument, "a blob is named by 64 hexadecimal digits");
  const int fd = ::open(fmt::format("{}/{}", root_, digest).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return error(Code::NotFound, fmt::format("there is no blob {}", digest));
  if (ring_) {
    const auto read_sealed = [&]() -> Result<Bytes> {
      const std::lock_guard lock(streams_mutex_);
      SealedStream fresh(ring_);
      if (!TRY(fresh.read_header(fd, blob_place(digest))))
        return error(Code::DataLoss, fmt::format("blob {} is not sealed, or was changed", digest));
      auto known = streams_.find(digest);
      if (known == streams_.end() || !known->second.same(fresh)) {  // sent again, it is another file
        if (streams_.size() >= kBlobStreamsMax) streams_.clear();
        known = streams_.insert_or_assign(digest, std::move(fresh)).first;
      }
      last = offset + max >= TRY(known->second.size(fd));
      return known->second.read(fd, offset, max);
    };
    auto sealed = read_sealed();
    ::close(fd);
    return sealed;
  }
  Bytes out(max);
  struct stat facts {};
  const bool stated = ::fstat(fd, &facts) == 0;
  const ssize_t n = ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
  ::close(fd);
  if (n < 0 || !stated) return error(Code::Unavailable, fmt::format("blob {} cannot be read", digest));
  out.resize(static_cast<std::size_t>(n));
  last = offset + out.size() >= static_cast<std::uint64_t>(facts.st_size);
  return out;
}

}  // namespace muster::server
