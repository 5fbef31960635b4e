#include "host/unix_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace muster::host {
namespace {

int type_of(SocketKind kind) {
  return (kind == SocketKind::Seqpacket ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC;
}

Result<sockaddr_un> unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return error(Code::InvalidArgument,
                 fmt::format("socket path '{}' is longer than {} bytes; use a shorter state directory", path,
                             sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Error system_error(std::string_view what, int e) {
  return error(Code::Unavailable, fmt::format("{}: {}", what, errno_text(e)));
}

void set_send_wait(int fd, Millis wait) {
  const timeval value{wait.count() / 1000, wait.count() % 1000 * 1000};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof value);
}

}  // namespace

std::string errno_text(int e) {
  std::array<char, 128> buffer{};
  return strerror_r(e, buffer.data(), buffer.size());
}

void Fd::reset(int fd) {
  if (fd_ >= 0 && fd_ != fd) close(fd_);
  fd_ = fd;
}

Result<Fd> listen_unix(const std::string& path, SocketKind kind, uid_t owner, gid_t group, mode_t mode) {
  const sockaddr_un address = TRY(unix_address(path));
  Fd fd(socket(AF_UNIX, type_of(kind), 0));
  if (!fd) return system_error("cannot make a local socket", errno);
  unlink(path.c_str());
  const mode_t old = umask(0177);
  const int bound = bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int bind_errno = errno;
  umask(old);
  if (bound != 0) return system_error("cannot listen on " + path, bind_errno);
  if (geteuid() == 0 && chown(path.c_str(), owner, group) != 0) return system_error("cannot hand over " + path, errno);
  if (chmod(path.c_str(), mode) != 0) return system_error("cannot protect " + path, errno);
  if (listen(fd.get(), 16) != 0) return system_error("cannot listen on " + path, errno);
  return fd;
}

Result<Fd> connect_unix(const std::string& path, SocketKind kind) {
  const sockaddr_un address = TRY(unix_address(path));
  Fd fd(socket(AF_UNIX, type_of(kind), 0));
  if (!fd) return system_error("cannot make a local socket", errno);
  set_send_wait(fd.get(), kConnectWait);  // who listens and never accepts lets a connect wait for ever
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return system_error("cannot connect to " + path, errno);
  }
  set_send_wait(fd.get(), Millis(0));
  return fd;
}

Result<Fd> connect_beneath(const std::string& directory, const std::string& name) {
  Fd root(open(directory.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!root) return system_error("cannot open " + directory, errno);
  open_how how{};
  how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  Fd target(static_cast<int>(syscall(SYS_openat2, root.get(), name.c_str(), &how, sizeof how)));
  if (!target) {
    if (errno == ENOENT) return error(Code::NotFound, "the container has not opened its socket yet");
    return error(Code::PermissionDenied, "refused to open the container's socket: " + errno_text(errno));
  }
  struct stat info {};
  if (fstat(target.get(), &info) != 0 || !S_ISSOCK(info.st_mode)) {
    return error(Code::PermissionDenied, "what the container put in place of its socket is not a socket");
  }
  return connect_unix(fmt::format("/proc/self/fd/{}", target.get()), SocketKind::Stream);
}

Result<Peer> peer_of(int fd) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0)
    return system_error("cannot read who is there", errno);
  return Peer{credentials.uid, credentials.gid, credentials.pid};
}

Status send_message(int fd, std::string_view text, const std::vector<int>& fds) {
  if (text.size() > kMessageBytesMax || fds.size() > kFdsMax) {
    return error(Code::TooLarge, fmt::format("a local message of {} bytes exceeds {}", text.size(), kMessageBytesMax));
  }
  iovec part{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kFdsMax)> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  while (true) {
    const ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (n >= 0) return {};
    if (errno != EINTR) return system_error("cannot send a local message", errno);
  }
}

Result<Message> receive_message(int fd) {
  Message out;
  out.text.resize(kMessageBytesMax);
  iovec part{out.text.data(), out.text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kFdsMax)> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t n = -1;
  do {
    n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return error(Code::NotFound, "nothing to read yet");
  if (n < 0) return system_error("cannot read a local message", errno);
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int received = -1;
      std::memcpy(&received, CMSG_DATA(header) + i * sizeof(int), sizeof received);
      out.fds.emplace_back(received);
    }
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return error(Code::TooLarge, "a local message was larger than allowed and was dropped");
  }
  out.text.resize(static_cast<std::size_t>(n));
  return out;
}

namespace {
constexpr std::string_view kInMemory = "\xff";
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
}  // namespace

Status send_large(int fd, std::string_view text, std::vector<int> fds) {
  if (text.size() <= kMessageBytesMax) return send_message(fd, text, fds);
  if (text.size() > kLargeBytesMax)
    return error(Code::TooLarge, fmt::format("a local message of {} bytes exceeds {}", text.size(), kLargeBytesMax));
  const Fd memory(memfd_create("muster-message", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory) return system_error("cannot make memory for a local message", errno);
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = write(memory.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return system_error("cannot fill memory for a local message", errno);
    done += static_cast<std::size_t>(n);
  }
  if (fcntl(memory.get(), F_ADD_SEALS, kSeals) != 0)
    return system_error("cannot seal memory for a local message", errno);
  fds.push_back(memory.get());
  return send_message(fd, kInMemory, fds);
}

// Sealed: it is memory (no file or pipe of the sender's that makes us wait) and stays as it is while it is read.
Result<Message> receive_large(int fd) {
  Message out = TRY(receive_message(fd));
  if (out.text != kInMemory || out.fds.empty()) return out;
  const Fd memory = std::move(out.fds.back());
  out.fds.pop_back();
  struct stat about {};
  if (fcntl(memory.get(), F_GET_SEALS) != kSeals || fstat(memory.get(), &about) != 0 ||
      about.st_size > static_cast<off_t>(kLargeBytesMax))
    return error(Code::InvalidArgument, "a large local message is not in sealed memory, or is too large");
  out.text.resize(static_cast<std::size_t>(about.st_size));
  for (std::size_t done = 0; done < out.text.size();) {
    const ssize_t n = pread(memory.get(), out.text.data() + done, out.text.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return system_error("cannot read a large local message", errno);
    done += static_cast<std::size_t>(n);
  }
  return out;
}

Status set_blocking(int fd, bool blocking) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK) != 0) {
    return system_error("cannot change a descriptor", errno);
  }
  return {};
}

}  // namespace muster::host
