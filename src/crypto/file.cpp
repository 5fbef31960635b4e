#include "crypto/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "crypto/random.h"

namespace muster::crypto {
namespace {

Error io_error(const std::string& what, const std::string& path) {
  const int code = errno;
  return error(code == ENOSPC ? Code::ResourceExhausted : Code::Unavailable,
               what + " " + path + ": " + std::strerror(code));
}

struct Fd {
  int value = -1;
  ~Fd() {
    if (value >= 0) ::close(value);
  }
};

Status write_all(int fd, ByteView data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return io_error("cannot write", path);
    data = data.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Status write_file(const std::string& path, ByteView data, mode_t mode) {
  const std::string temporary = path + "." + hex(random_bytes(6)) + ".new";
  Status done;
  {
    Fd fd{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode)};
    if (fd.value < 0) return io_error("cannot create", temporary);
    done = write_all(fd.value, data, temporary);
    if (done.ok() && ::fchmod(fd.value, mode) != 0) done = io_error("cannot set the mode of", temporary);
    if (done.ok() && ::fsync(fd.value) != 0) done = io_error("cannot sync", temporary);
  }
  if (done.ok() && ::rename(temporary.c_str(), path.c_str()) != 0) done = io_error("cannot rename to", path);
  if (!done.ok()) {
    ::unlink(temporary.c_str());
    return done;
  }
  const std::size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  Fd fd{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (fd.value < 0 || ::fsync(fd.value) != 0) return io_error("cannot sync", directory);
  return {};
}

}  // namespace

Status write_secret_file(const std::string& path, ByteView data) {
  return write_file(path, data, 0600);
}
Status write_public_file(const std::string& path, ByteView data) {
  return write_file(path, data, 0644);
}

Result<Bytes> read_secret_file(const std::string& path, std::size_t bytes_max) {
  Fd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (fd.value < 0) {
    if (errno == ENOENT) return error(Code::NotFound, "there is no file " + path);
    return io_error("cannot open", path);
  }
  struct stat info {};
  if (::fstat(fd.value, &info) != 0) return io_error("cannot look at", path);
  if (!S_ISREG(info.st_mode)) return error(Code::FailedPrecondition, path + " is not a regular file");
  if ((info.st_mode & 077) != 0) {
    return error(Code::FailedPrecondition,
                 "others may read " + path + "; run: chmod 600 " + path + " (and replace the secret)");
  }
  if (info.st_uid != ::geteuid() && info.st_uid != 0) {
    return error(Code::FailedPrecondition, path + " belongs to another user; give it to the one who runs this program");
  }
  if (static_cast<std::size_t>(info.st_size) > bytes_max)
    return error(Code::TooLarge, path + " is too large for a secret");
  Bytes out(static_cast<std::size_t>(info.st_size));
  std::size_t have = 0;
  while (have < out.size()) {
    const ssize_t n = ::read(fd.value, out.data() + have, out.size() - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_error("cannot read", path);
    if (n == 0) break;
    have += static_cast<std::size_t>(n);
  }
  out.resize(have);
  return out;
}

}  // namespace muster::crypto
