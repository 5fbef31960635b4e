#include "net/dial.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "net/url.h"

namespace muster::net {
namespace {

constexpr std::size_t kProxyAnswerMax = 16 << 10;
// With headers at most the 1,280 bytes that every network carries, both ways: where something on the way carries less
// than a machine's own cable and nobody says so, full segments would vanish for ever.
constexpr int kSegmentMax = 1'220;

std::string errno_text(int error) {
  char buffer[128];
  return ::strerror_r(error, buffer, sizeof buffer);
}
std::string shown(const std::string& host, std::uint16_t port) {
  return host + ":" + std::to_string(port);
}

Result<Fd> connect_address(const addrinfo& address, Deadline deadline) {
  Fd fd(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return error(Code::Unavailable, "cannot open a socket: " + errno_text(errno));
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_MAXSEG, &kSegmentMax, sizeof kSegmentMax);
  set_socket_options(fd.get());
  if (::connect(fd.get(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return error(Code::Unavailable, errno_text(errno));
    TRY_VOID(await_fd(fd.get(), POLLOUT, deadline));
    int failure = 0;
    socklen_t size = sizeof failure;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &failure, &size);
    if (failure != 0) return error(Code::Unavailable, errno_text(failure));
  }
  return fd;
}

Result<Fd> connect_host(const std::string& host, std::uint16_t port, Deadline deadline) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_ADDRCONFIG | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int rc = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (rc != 0) {
    return error(Code::Unavailable,
                 "the name '" + host + "' cannot be resolved (" + ::gai_strerror(rc) + "); check the name and DNS");
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, ::freeaddrinfo);
  Error last = error(Code::Unavailable, "no address");
  for (const addrinfo* it = list; it != nullptr; it = it->ai_next) {
    // Leave time for the next address when one of several is silent.
    const Deadline patience = it->ai_next == nullptr ? deadline : std::min(deadline, deadline_in(Millis(4000)));
    auto fd = connect_address(*it, patience);
    if (fd.ok()) return fd;
    last = fd.error();
    if (std::chrono::steady_clock::now() >= deadline) break;
  }
  return error(last.code, "cannot connect to " + shown(host, port) + ": " + last.message);
}

Status send_plain(int fd, std::string_view data, Deadline deadline) {
  while (!data.empty()) {
    const ssize_t n = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (n > 0) {
      data.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {
      TRY_VOID(await_fd(fd, POLLOUT, deadline));
    } else if (errno != EINTR) {
      return error(Code::Unavailable, errno_text(errno));
    }
  }
  return {};
}

// One byte beyond the blank line would be the server's, and a TLS server does not speak first: so reading ahead is safe
// but must find nothing.
Status open_tunnel(int fd, const Proxy& proxy, const std::string& target, Deadline deadline) {
  std::string request = "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n";
  if (!proxy.credentials.empty())
    request += "Proxy-Authorization: Basic " + base64(as_bytes(proxy.credentials)) + "\r\n";
  TRY_VOID(send_plain(fd, request + "\r\n", deadline));
  std::string answer;
  while (answer.find("\r\n\r\n") == std::string::npos) {
    char buffer[2048];
    const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
    if (n == 0) return error(Code::Unavailable, "the proxy closed the connection");
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return error(Code::Unavailable, errno_text(errno));
      TRY_VOID(await_fd(fd, POLLIN, deadline));
      continue;
    }
    answer.append(buffer, static_cast<std::size_t>(n));
    if (answer.size() > kProxyAnswerMax) return error(Code::Unavailable, "the proxy's answer is too long");
  }
  if (answer.size() < 12 || answer.compare(0, 7, "HTTP/1.") != 0)
    return error(Code::Unavailable, "the proxy does not answer as an HTTP proxy");
  const std::string status = answer.substr(9, 3);
  if (status == "407")
    return error(Code::Unauthenticated,
                 "the proxy asks for a user and password; put them into HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT");
  if (status[0] != '2')
    return error(Code::Unavailable, "the proxy refuses the connection to " + target + " (status " + status + ")");
  if (!answer.ends_with("\r\n\r\n")) return error(Code::Unavailable, "the proxy sent bytes of its own into the tunnel");
  return {};
}

Error tls_failure(const Endpoint& endpoint, SSL& ssl, int rc) {
  const int saved = errno;
  const int kind = SSL_get_error(&ssl, rc);
  const long verify = SSL_get_verify_result(&ssl);
  if (kind == SSL_ERROR_SSL && verify != X509_V_OK) {
    ERR_clear_error();
    return error(
        Code::Unauthenticated,
        "the certificate of " + shown(endpoint.host, endpoint.port) +
            " is not trusted: " + X509_verify_cert_error_string(verify) + "; someone may sit in between, or " +
            (endpoint.peer == Peer::Web ? "its CA must be named" : "the pinned CA is of another control plane"));
  }
  const std::string detail = kind == SSL_ERROR_SSL ? ssl_error_text()
                             : saved != 0          ? errno_text(saved)
                                                   : "the peer closed the connection";
  return error(Code::Unavailable, "TLS with " + shown(endpoint.host, endpoint.port) + " failed: " + detail);
}

// Waits for what OpenSSL wants; false in the result: it is an end or an error.
Result<bool> wait_ssl(Dialled& connection, int rc, Deadline deadline) {
  switch (SSL_get_error(connection.ssl.get(), rc)) {
    case SSL_ERROR_WANT_READ:
      TRY_VOID(await_fd(connection.fd.get(), POLLIN, deadline));
      return true;
    case SSL_ERROR_WANT_WRITE:
      TRY_VOID(await_fd(connection.fd.get(), POLLOUT, deadline));
      return true;
    default:
      return false;
  }
}

}  // namespace

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

void Fd::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44  // Linux 6.15
#endif

void set_socket_options(int fd) {
  const int on = 1, idle = 15, interval = 5, count = 3;
  const int repeat = 2'000;  // at least so often what is unanswered goes again: a cable comes back at any time
  ::setsockopt(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, &repeat, sizeof repeat);
  const unsigned user_timeout = 30'000;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout, sizeof user_timeout);
}

Status await_fd(int fd, short events, Deadline deadline) {
  while (true) {
    const auto left = std::chrono::duration_cast<Millis>(deadline - std::chrono::steady_clock::now()).count();
    if (left <= 0) return error(Code::DeadlineExceeded, "the peer did not answer in time");
    pollfd poll_fd{fd, events, 0};
    const int rc = ::poll(&poll_fd, 1, static_cast<int>(std::min<std::int64_t>(left, 60'000)));
    if (rc > 0) return {};
    if (rc < 0 && errno != EINTR) return error(Code::Internal, "poll failed: " + errno_text(errno));
  }
}

Result<Dialled> connect_to(const Endpoint& endpoint, Deadline deadline) {
  Dialled out;
  std::optional<Proxy> proxy;
  if (endpoint.use_proxy_env && endpoint.peer != Peer::PlainLoopback)
    proxy = TRY(proxy_from_environment(endpoint.host, endpoint.port));
  if (!proxy) {
    out.fd = TRY(connect_host(endpoint.host, endpoint.port, deadline));
    return out;
  }
  auto fd = connect_host(proxy->host, proxy->port, deadline);
  if (!fd.ok()) return error(fd.error().code, "the proxy named by HTTPS_PROXY: " + fd.error().message);
  out.fd = std::move(*fd);
  const std::string host = endpoint.host.find(':') == std::string::npos ? endpoint.host : "[" + endpoint.host + "]";
  TRY_VOID(open_tunnel(out.fd.get(), *proxy, shown(host, endpoint.port), deadline));
  out.by_proxy = true;
  return out;
}

Status start_tls(Dialled& connection, const Endpoint& endpoint, const std::string& alpn, Deadline deadline) {
  const SslCtxPtr ctx = TRY(client_context(endpoint, alpn));
  connection.ssl = new_ssl(*ctx, connection.fd.get());
  if (!connection.ssl) return error(Code::Internal, "cannot start TLS: " + ssl_error_text());
  TRY_VOID(prepare_client(*connection.ssl, endpoint));
  while (true) {
    ERR_clear_error();
    errno = 0;
    const int rc = SSL_do_handshake(connection.ssl.get());
    if (rc == 1) break;
    if (!TRY(wait_ssl(connection, rc, deadline))) return tls_failure(endpoint, *connection.ssl, rc);
  }
  connection.ca_pem = TRY(check_server(*connection.ssl, endpoint));
  return {};
}

Result<Dialled> dial(const Endpoint& endpoint, const std::string& alpn, Deadline deadline) {
  Dialled out = TRY(connect_to(endpoint, deadline));
  if (endpoint.peer != Peer::PlainLoopback) TRY_VOID(start_tls(out, endpoint, alpn, deadline));
  return out;
}

Result<std::size_t> read_some(Dialled& connection, char* data, std::size_t size, Deadline deadline) {
  while (!connection.ssl) {
    const ssize_t n = ::recv(connection.fd.get(), data, size, 0);
    if (n >= 0) return static_cast<std::size_t>(n);
    if (errno == EAGAIN) {
      TRY_VOID(await_fd(connection.fd.get(), POLLIN, deadline));
    } else if (errno != EINTR) {
      return error(Code::Unavailable, "the connection broke: " + errno_text(errno));
    }
  }
  while (true) {
    ERR_clear_error();
    errno = 0;
    std::size_t n = 0;
    const int rc = SSL_read_ex(connection.ssl.get(), data, size, &n);
    if (rc == 1) return n;
    const int saved = errno;
    if (SSL_get_error(connection.ssl.get(), rc) == SSL_ERROR_ZERO_RETURN) return std::size_t{0};
    if (!TRY(wait_ssl(connection, rc, deadline))) {
      return error(Code::Unavailable,
                   "the connection broke: " + (saved != 0 ? errno_text(saved) : std::string("closed by the peer")));
    }
  }
}

Status write_all(Dialled& connection, std::string_view data, Deadline deadline) {
  if (!connection.ssl) return send_plain(connection.fd.get(), data, deadline);
  while (!data.empty()) {
    ERR_clear_error();
    errno = 0;
    std::size_t n = 0;
    const int rc = SSL_write_ex(connection.ssl.get(), data.data(), data.size(), &n);
    if (rc == 1) {
      data.remove_prefix(n);
      continue;
    }
    const int saved = errno;
    if (!TRY(wait_ssl(connection, rc, deadline))) {
      return error(Code::Unavailable,
                   "the connection broke: " + (saved != 0 ? errno_text(saved) : std::string("closed by the peer")));
    }
  }
  return {};
}

}  // namespace muster::net
