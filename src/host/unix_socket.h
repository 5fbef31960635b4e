#pragma once
// Local sockets between the agent's processes: SOCK_SEQPACKET messages of at most kMessageBytesMax with at most kFdsMax
// descriptors beside them, the peer's uid read from the kernel, and a connect that cannot be led astray by the owner of
// the directory (no symbolic links, never outside, must be a socket). Descriptors are close-on-exec. Thread-safe:
// stateless.
#include <sys/types.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/time.h"

namespace muster::host {

inline constexpr std::size_t kMessageBytesMax = 160 << 10;
inline constexpr std::size_t kFdsMax = 4;
inline constexpr std::size_t kLargeBytesMax = 2 << 20;
inline constexpr Millis kConnectWait{3'000};

// Owns one descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~Fd() { reset(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

enum class SocketKind { Seqpacket, Stream };
// Removes a stale socket first; mode and group let exactly the intended uid connect.
Result<Fd> listen_unix(const std::string& path, SocketKind kind, uid_t owner, gid_t group, mode_t mode);
Result<Fd> connect_unix(const std::string& path, SocketKind kind);  // waits kConnectWait at most
// Connects to directory/name although somebody hostile owns the directory's content.
Result<Fd> connect_beneath(const std::string& directory, const std::string& name);

struct Peer {
  uid_t uid = 0;
  gid_t gid = 0;
  pid_t pid = 0;
};
Result<Peer> peer_of(int fd);

struct Message {
  std::string text;
  std::vector<Fd> fds;
};
Status send_message(int fd, std::string_view text, const std::vector<int>& fds = {});
// An empty text with no descriptors means the peer closed. NotFound: nothing there yet (non-blocking socket).
Result<Message> receive_message(int fd);
// The same for texts of up to kLargeBytesMax: what is longer than a message travels in sealed memory whose descriptor
// is the message's last. No text may begin with 0xff.
Status send_large(int fd, std::string_view text, std::vector<int> fds = {});
Result<Message> receive_large(int fd);

Status set_blocking(int fd, bool blocking);
std::string errno_text(int error);

}  // namespace muster::host
