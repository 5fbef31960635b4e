#pragma once
// Inside net and relay: a blocking way to an open TLS connection: resolve, connect (through a CONNECT proxy when the
// environment names one), handshake, check of the pin. The descriptor is non-blocking; wait with await_fd. Any thread.
#include <chrono>
#include <functional>
#include <string>

#include "net/tls.h"

namespace muster::net {

using Deadline = std::chrono::steady_clock::time_point;
inline Deadline deadline_in(Millis time) {
  return std::chrono::steady_clock::now() + time;
}

class Fd {  // owns a descriptor
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd() { reset(); }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  void reset();
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

struct Dialled {
  Fd fd;
  SslPtr ssl;          // dies before fd; null: without TLS
  std::string ca_pem;  // the CA that the peer's chain ended in
  bool by_proxy = false;
};

// events: POLLIN or POLLOUT. DeadlineExceeded when the time is over.
Status await_fd(int fd, short events, Deadline deadline);
// In two steps, for callers whose ALPN depends on the way; dial() is both. For PlainLoopback there is no second one.
Result<Dialled> connect_to(const Endpoint& endpoint, Deadline deadline);
Status start_tls(Dialled& connection, const Endpoint& endpoint, const std::string& alpn, Deadline deadline);
Result<Dialled> dial(const Endpoint& endpoint, const std::string& alpn, Deadline deadline);
// Blocking reads and writes of a dialled connection; 0 bytes read = the peer closed.
Result<std::size_t> read_some(Dialled& connection, char* data, std::size_t size, Deadline deadline);
Status write_all(Dialled& connection, std::string_view data, Deadline deadline);
void set_socket_options(int fd);  // no delay, keep-alive, dead peers found within 30 s

}  // namespace muster::net
