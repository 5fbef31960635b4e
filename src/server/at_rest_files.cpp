// What of a data folder is files, and how each is sealed: small ones whole, logs line by line or piece by piece.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "crypto/file.h"
#include "server/at_rest.h"
#include "server/identity.h"
#include "server/sealed_stream.h"

namespace muster::server {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kLineMark = "sealed:";
constexpr std::size_t kSmallBytesMax = 2 << 20;

std::string line_place(const std::string& name) {
  return "lines of " + name;
}

struct Opened {
  int fd = -1;
  explicit Opened(int descriptor) : fd(descriptor) {}
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  ~Opened() {
    if (fd >= 0) ::close(fd);
  }
};

std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> out;
  std::error_code fault;
  for (const auto& entry : fs::directory_iterator(folder, fault)) {
    if (entry.is_regular_file()) out.push_back(entry.path().string());
  }
  return out;
}

// Half-written files of a crash: never read, and perhaps in the clear.
void drop_leftovers(const std::string& folder) {
  std::error_code fault;
  for (const std::string& path : files_in(folder)) {
    const std::string name = fs::path(path).filename().string();
    if (name.ends_with(".new") || name.starts_with("tmp-") || name.starts_with("backup.tmp.db") ||
        name.ends_with(".resealing"))
      fs::remove(path, fault);
  }
}

struct FilesReseal {
  const std::string& root;
  const std::shared_ptr<crypto::KeyRing>& ring;
  const PlainFiles plain;
  std::uint64_t changed = 0;

  Status small(const std::string& path) {
    const Bytes bytes = TRY(crypto::read_secret_file(path, kSmallBytesMax));
    const auto key = crypto::KeyRing::key_of(bytes);
    if (key && *key == ring->current()) return {};
    const std::string place = file_place(root, path);
    const Bytes content = !key && plain == PlainFiles::Sealed ? bytes : TRY(ring->open(place, bytes));
    ++changed;
    return crypto::write_secret_file(path, ring->seal(place, content));
  }

  Status lines(const std::string& path, const std::string& name) {
    std::ifstream in(path, std::ios::binary);
    if (!in) return error(Code::Unavailable, fmt::format("{} cannot be read", path));
    std::string text{std::istreambuf_iterator<char>(in), {}}, out;
    bool fresh = true;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      const std::string_view line(text.data() + at, end - at);
      at = end + 1;
      if (line.empty()) continue;
      const auto raw = line.starts_with(kLineMark) ? unbase64(line.substr(kLineMark.size())) : std::nullopt;
      const auto key = raw ? crypto::KeyRing::key_of(*raw) : std::nullopt;
      if (key && *key == ring->current()) {
        out += std::string(line) + "\n";
        continue;
      }
      if (!key && plain == PlainFiles::Refused)
        return error(Code::DataLoss, fmt::format("{} holds a line that is not sealed; move the file away", path));
      fresh = false;
      const std::string content = key ? TRY(open_lines(*ring, name, line)) : std::string(line) + "\n";
      out += seal_lines(*ring, name, content);
    }
    if (fresh) return {};
    ++changed;
    return crypto::write_secret_file(path, as_bytes(out));
  }

  Status stream(const std::string& path, const std::string& place) {
    const Opened from(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (from.fd < 0) return error(Code::Unavailable, fmt::format("{} cannot be read", path));
    SealedStream before(ring), after(ring);
    const bool sealed = TRY(before.read_header(from.fd, place));
    if (sealed && before.key() == ring->current()) return {};
    if (!sealed && plain == PlainFiles::Refused)
      return error(Code::DataLoss, fmt::format("{} is not sealed, or was changed; move it away", path));
    const std::string part = path + ".resealing";
    {
      const Opened to(::open(part.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
      if (to.fd < 0) return error(Code::Unavailable, fmt::format("{} cannot be made; is the disk full?", part));
      TRY_VOID(after.write_header(to.fd, place));
      Bytes block(kStreamRecord);
      for (std::uint64_t at = 0;;) {
        if (sealed) {
          block = TRY(before.read(from.fd, at, kStreamRecord));
        } else {
          block.resize(kStreamRecord);
          const ssize_t n = ::pread(from.fd, block.data(), block.size(), static_cast<off_t>(at));
          if (n < 0) return error(Code::Unavailable, fmt::format("{} cannot be read", path));
          block.resize(static_cast<std::size_t>(n));
        }
        if (block.empty()) break;
        TRY_VOID(after.append(to.fd, block));
        at += block.size();
      }
      if (::fsync(to.fd) != 0) return error(Code::Unavailable, fmt::format("{} cannot be synced", part));
    }
    if (::rename(part.c_str(), path.c_str()) != 0)
      return error(Code::Unavailable, fmt::format("{} cannot be replaced", path));
    ++changed;
    return {};
  }

  Status all() {
    const DataDir dir{root};
    for (const auto& folder : {root, root + "/keys", dir.blobs()}) drop_leftovers(folder);
    for (const std::string& path : sealed_files(root)) TRY_VOID(small(path));
    for (const std::string& path : files_in(root)) {
      const std::string name = fs::path(path).filename().string();
      for (const char* log : {"refused.log", "signer.log"}) {
        if (name == log || name.starts_with(std::string(log) + ".")) TRY_VOID(lines(path, log));
      }
    }
    for (const std::string& path : files_in(dir.blobs()))
      TRY_VOID(stream(path, "upload " + fs::path(path).filename().string()));
    std::error_code fault;
    for (const auto& job : fs::directory_iterator(dir.logs(), fault)) {
      drop_leftovers(job.path().string());
      for (const std::string& path : files_in(job.path().string()))
        TRY_VOID(
            stream(path, fmt::format("log {}/{}", job.path().filename().string(), fs::path(path).stem().string())));
    }
    return {};
  }
};

}  // namespace

std::vector<std::string> sealed_files(const std::string& root) {
  std::vector<std::string> out;
  for (const std::string& path : files_in(root + "/keys")) {
    const std::string name = fs::path(path).filename().string();
    if (!name.ends_with(".pub") && !name.ends_with(".lock")) out.push_back(path);  // those are public, and empty
  }
  std::error_code fault;
  for (const char* name : {"/trust-behind", "/keys-behind"})
    if (fs::exists(root + name, fault)) out.push_back(root + name);
  return out;
}

std::string file_place(const std::string& root, const std::string& path) {
  return "file " + (path.starts_with(root + "/") ? path.substr(root.size() + 1) : path);
}

std::string seal_lines(crypto::KeyRing& ring, const std::string& name, std::string_view text) {
  return fmt::format("{}{}\n", kLineMark, base64(ring.seal(line_place(name), as_bytes(text))));
}

Result<std::string> open_lines(crypto::KeyRing& ring, const std::string& name, std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const auto raw = line.starts_with(kLineMark) ? unbase64(line.substr(kLineMark.size())) : std::nullopt;
    if (raw) {
      const Bytes plain = TRY(ring.open(line_place(name), *raw));
      out += as_string(plain);
    } else if (!line.empty()) {
      out += std::string(line) + "\n";
    }
  }
  return out;
}

Result<std::uint64_t> reseal_files(const std::string& root, const std::shared_ptr<crypto::KeyRing>& ring,
                                   PlainFiles plain) {
  FilesReseal work{root, ring, plain};
  TRY_VOID(work.all());
  return work.changed;
}

Result<Bytes> DataDir::read(const std::string& path) const {
  Bytes bytes = TRY(crypto::read_secret_file(path));
  if (at_rest) return at_rest->ring->open(file_place(root, path), bytes);
  if (!crypto::KeyRing::key_of(bytes)) return bytes;
  return error(Code::FailedPrecondition,
               fmt::format("{} is encrypted at rest: name the key with --at-rest-key or --at-rest-program", path));
}

Status DataDir::write(const std::string& path, ByteView data) const {
  if (!at_rest) return crypto::write_secret_file(path, data);
  return crypto::write_secret_file(path, at_rest->ring->seal(file_place(root, path), data));
}

}  // namespace muster::server
