#include "host/netd_client.h"

#include <sys/socket.h>
#include <sys/time.h>

namespace muster::host {
namespace {
constexpr timeval kTimeout{5, 0};
}

Result<netd::Reply> NetdClient::call(const netd::Request& request, int tun_fd) {
  if (!fd_) {
    if (path_.empty()) return error(Code::Unavailable, "the connection to netd is closed");
    fd_ = TRY(connect_unix(path_, SocketKind::Seqpacket));
  }
  ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &kTimeout, sizeof kTimeout);
  ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &kTimeout, sizeof kTimeout);
  std::vector<int> fds;
  if (tun_fd >= 0) fds.push_back(tun_fd);
  const auto sent = send_large(fd_.get(), netd::encode(request), fds);
  auto message = sent.ok() ? receive_large(fd_.get()) : Result<Message>(sent.error());
  if (!message.ok() || message->text.empty()) {
    // A late reply must not be taken for the next call's.
    fd_.reset();
    return error(Code::Unavailable, "netd does not answer; it is being restarted");
  }
  return netd::decode_reply(message->text);
}

template <typename T>
Result<T> NetdClient::expect(Result<netd::Reply> reply) {
  if (!reply.ok()) return reply.error();
  if (auto* value = std::get_if<T>(&reply.value())) return std::move(*value);
  if (const auto* failed = std::get_if<netd::Failed>(&reply.value())) {
    const bool known = failed->code >= 1 && failed->code <= static_cast<std::uint8_t>(Code::Unsupported);
    return error(known ? static_cast<Code>(failed->code) : Code::Internal, failed->message);
  }
  return error(Code::Internal, "netd answered another question");
}

Result<Bytes> NetdClient::add_lease(const std::string& lease, int tun_fd) {
  return std::move(TRY(expect<netd::LeaseKey>(call(netd::AddLease{lease}, tun_fd))).public_key);
}
Result<netd::Configured> NetdClient::configure(const netd::Configure& config) {
  return expect<netd::Configured>(call(config));
}
Status NetdClient::set_relays(const netd::SetRelays& relays) {
  TRY(expect<netd::Done>(call(relays)));
  return {};
}
Status NetdClient::set_mapped(const netd::SetMapped& mapped) {
  TRY(expect<netd::Done>(call(mapped)));
  return {};
}

Status NetdClient::remove_lease(const std::string& lease) {
  TRY(expect<netd::Done>(call(netd::RemoveLease{lease})));
  return {};
}
Result<netd::Stats> NetdClient::stats(const std::string& lease) {
  return expect<netd::Stats>(call(netd::GetStats{lease}));
}
Result<netd::Paths> NetdClient::paths(const std::string& lease) {
  return expect<netd::Paths>(call(netd::GetPaths{lease}));
}
Result<netd::Info> NetdClient::info() {
  return expect<netd::Info>(call(netd::GetInfo{}));
}

}  // namespace muster::host
