#pragma once
// Passing accepted TCP connections between processes on one machine. muster-relay listens on a unix socket; a server
// connects and from then on gets one byte with one descriptor (SCM_RIGHTS) per connection, its bytes still unread in
// the socket, and answers each with one byte. The relay keeps a duplicate until that answer, so a server that dies in
// between loses nothing.
#include <optional>
#include <string>

#include "base/result.h"
#include "net/dial.h"

namespace muster::net {

inline constexpr char kHandoffAck = 'a';

Result<Fd> listen_unix(const std::string& path, int mode);  // replaces a stale socket, refuses a living one
Result<Fd> connect_unix(const std::string& path);           // non-blocking descriptor
// false: try later (the queue is full); an error: the connection is gone.
Result<bool> send_descriptor(int unix_fd, int descriptor);
// nullopt: nothing there now; an error: the connection is gone. The descriptor is non-blocking and close-on-exec.
Result<std::optional<Fd>> receive_descriptor(int unix_fd);

}  // namespace muster::net
