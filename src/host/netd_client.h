#pragma once
// The agent's side of netd's socket: blocking calls with a time-out, one at a time, one thread. A broken connection is
// dialled again at the next call (Unavailable until netd is back); the caller then gives TUNs and configuration again,
// as info() shows.
#include <string>

#include "host/netd_protocol.h"
#include "host/unix_socket.h"

namespace muster::host {

class NetdClient {
 public:
  explicit NetdClient(std::string socket_path) : path_(std::move(socket_path)) {}
  explicit NetdClient(Fd connected) : fd_(std::move(connected)) {}
  Result<Bytes> add_lease(const std::string& lease,
                          int tun_fd = -1);  // the public overlay key; tun_fd stays the caller's
  Result<netd::Configured> configure(const netd::Configure& config);
  Status set_relays(const netd::SetRelays& relays);
  Status set_mapped(const netd::SetMapped& mapped);
  Status remove_lease(const std::string& lease);
  Result<netd::Stats> stats(const std::string& lease);
  Result<netd::Info> info();
  Result<netd::Paths> paths(const std::string& lease);

 private:
  Result<netd::Reply> call(const netd::Request& request, int fd = -1);
  template <typename T>
  Result<T> expect(Result<netd::Reply> reply);
  std::string path_;
  Fd fd_;
};

}  // namespace muster::host
