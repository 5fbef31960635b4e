#include "host/local_ports.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "base/log.h"

namespace muster::host {
namespace {
constexpr std::size_t kClientsMax = 16, kRequestMax = 4096;
constexpr Millis kRequestTime{5'000};
}  // namespace

ControlPort::ControlPort(Poller& poller, std::string path, Answer answer)
    : poller_(poller), path_(std::move(path)), answer_(std::move(answer)) {}

ControlPort::~ControlPort() {
  *alive_ = false;
  for (auto& [raw, fd] : clients_) poller_.unwatch(raw);
  if (!listener_) return;
  poller_.unwatch(listener_.get());
  unlink(path_.c_str());
}

Status ControlPort::listen() {
  listener_ = TRY(listen_unix(path_, SocketKind::Seqpacket, geteuid(), getegid(), 0600));
  poller_.watch(listener_.get(), true, false, [this](Poller::Ready) { accept(); });
  return {};
}

void ControlPort::accept() {
  Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd || clients_.size() >= kClientsMax) return;
  const auto peer = peer_of(fd.get());
  if (!peer.ok() || (peer->uid != 0 && peer->uid != geteuid())) return;
  const int raw = fd.get();
  const std::uint64_t number = next_client_++;
  clients_[raw] = {std::move(fd), number};
  poller_.watch(raw, true, false, [this, raw, number](Poller::Ready) {
    auto message = receive_message(raw);
    if (message.ok() && !message->text.empty()) {
      return answer_(message->text, [this, alive = alive_, raw, number](const std::string& text) {
        if (!*alive) return;
        const auto found = clients_.find(raw);
        if (found != clients_.end() && found->second.number == number) (void)send_message(raw, text).ok();
      });
    }
    if (!message.ok() && message.error().code == Code::NotFound) return;
    poller_.unwatch(raw);
    clients_.erase(raw);
  });
}

MetricsPort::MetricsPort(Poller& poller, std::function<std::string()> text) : poller_(poller), text_(std::move(text)) {}

MetricsPort::~MetricsPort() {
  set_port(0);
}

void MetricsPort::set_port(std::uint16_t port) {
  if (port == port_) return;
  while (!clients_.empty()) drop(clients_.begin()->first);
  if (listener_) {
    poller_.unwatch(listener_.get());
    listener_.reset();
  }
  port_ = port;
  if (port == 0) return;
  Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int one = 1;
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(port);
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (!fd || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
      bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0 || ::listen(fd.get(), 16) != 0) {
    return log_warn("agent", "no metrics: 127.0.0.1:{}: {}", port, errno_text(errno));
  }
  listener_ = std::move(fd);
  poller_.watch(listener_.get(), true, false, [this](Poller::Ready) { accept(); });
  log_info("agent", "metrics at http://127.0.0.1:{}/metrics", port);
}

void MetricsPort::accept() {
  Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd || clients_.size() >= kClientsMax) return;
  const int raw = fd.get();
  clients_[raw] = {std::move(fd), {}, poller_.after(kRequestTime, [this, raw] { drop(raw); })};
  poller_.watch(raw, true, false, [this, raw](Poller::Ready) { serve(raw); });
}

void MetricsPort::drop(int fd) {
  const auto found = clients_.find(fd);
  if (found == clients_.end()) return;
  poller_.cancel(found->second.timer);
  poller_.unwatch(fd);
  clients_.erase(found);
}

void MetricsPort::serve(int fd) {
  const auto found = clients_.find(fd);
  if (found == clients_.end()) return;
  std::array<char, 1024> buffer;
  const ssize_t n = read(fd, buffer.data(), buffer.size());
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) return drop(fd);
  std::string& asked = found->second.asked;
  asked.append(buffer.data(), static_cast<std::size_t>(n));
  if (asked.size() > kRequestMax) return drop(fd);
  if (asked.find("\r\n\r\n") == std::string::npos) return;
  const bool right = asked.starts_with("GET /metrics ") || asked.starts_with("GET /metrics?");
  const std::string body = right ? text_() : "there is only GET /metrics\n";
  const std::string reply = fmt::format(
      "HTTP/1.1 {}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
      right ? "200 OK" : "404 Not Found", body.size(), body);
  // A few KiB fit into any socket buffer; a reader that takes none is no reader.
  [[maybe_unused]] const auto sent = send(fd, reply.data(), reply.size(), MSG_NOSIGNAL);
  drop(fd);
}

}  // namespace muster::host
