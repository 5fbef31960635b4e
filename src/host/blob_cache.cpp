#include "host/blob_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <vector>

#include "crypto/hash.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

bool valid(const std::string& blob) {
  return blob.size() == 64 &&
         std::all_of(blob.begin(), blob.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}
Error not_a_blob() {
  return error(Code::InvalidArgument, "not a SHA-256 in hex", "blob.name");
}
Error disk(int e) {
  return error(Code::Unavailable, "the blob cache cannot be written: " + errno_text(e), "disk");
}

std::uint64_t size_of(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 ? static_cast<std::uint64_t>(info.st_size) : 0;
}

}  // namespace

BlobCache::BlobCache(std::string directory) : directory_(std::move(directory)) {
  std::error_code ignored;
  fs::create_directories(directory_, ignored);
}

Result<agent::BlobState> BlobCache::find(const std::string& blob) const {
  if (!valid(blob)) return not_a_blob();
  const std::string path = directory_ + "/" + blob;
  struct stat info {};
  if (stat(path.c_str(), &info) == 0) return agent::BlobState{true, static_cast<std::uint64_t>(info.st_size)};
  return agent::BlobState{false, size_of(path + ".part")};
}

Result<agent::BlobState> BlobCache::write(const std::string& blob, std::uint64_t offset, ByteView data, bool last) {
  const agent::BlobState now = TRY(find(blob));
  if (now.complete) return now;
  if (offset != now.have) return now;  // a repeat or a gap: the caller goes on from `have`
  const std::string path = directory_ + "/" + blob, part = path + ".part";
  if (offset == 0) make_room();
  {
    Fd file(::open(part.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!file) return disk(errno);
    if (::write(file.get(), data.data(), data.size()) != static_cast<ssize_t>(data.size())) {
      const int e = errno;
      [[maybe_unused]] const int cut = ftruncate(file.get(), static_cast<off_t>(offset));
      return disk(e);
    }
  }
  if (!last) return agent::BlobState{false, offset + data.size()};
  Fd file(::open(part.c_str(), O_RDONLY | O_CLOEXEC));
  crypto::Sha256 hash;
  std::array<std::uint8_t, 65536> buffer;
  for (ssize_t n = 0; file && (n = ::read(file.get(), buffer.data(), buffer.size())) > 0;)
    hash.update({buffer.data(), static_cast<std::size_t>(n)});
  if (hex(hash.finish()) != blob) {
    unlink(part.c_str());
    return error(Code::DataLoss, "what came is not what its name says; it was thrown away", "blob.hash");
  }
  if (rename(part.c_str(), path.c_str()) != 0) return disk(errno);
  return agent::BlobState{true, offset + data.size()};
}

Result<Fd> BlobCache::open(const std::string& blob) const {
  if (!valid(blob)) return not_a_blob();
  Fd fd(::open((directory_ + "/" + blob).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return error(Code::NotFound, "the blob is not in the cache", "blob.missing");
  return fd;
}

void BlobCache::make_room() const {
  struct Entry {
    fs::file_time_type when;
    std::uint64_t size;
    fs::path path;
  };
  std::vector<Entry> entries;
  std::uint64_t total = 0;
  std::error_code failure;
  for (const auto& item : fs::directory_iterator(directory_, failure)) {
    const auto size = static_cast<std::uint64_t>(item.file_size(failure));
    entries.push_back({item.last_write_time(failure), size, item.path()});
    total += size;
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.when < b.when; });
  for (const auto& entry : entries) {
    if (total <= kBlobCacheMax) return;
    if (fs::remove(entry.path, failure)) total -= std::min(total, entry.size);
  }
}

}  // namespace muster::host
