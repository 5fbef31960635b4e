#include "relay/relay.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <thread>

#include "base/log.h"
#include "crypto/cert_watch.h"
#include "net/recall_frame.h"
#include "overlay/relay_protocol.h"
#include "relay/client_hello.h"
#include "relay/handoff_queue.h"
#include "relay/loops.h"
#include "relay/member_link.h"
#include "relay/recall.h"
#include "relay/udp_side.h"

namespace muster::relay {
namespace {

using namespace net;
constexpr Millis kStopTime{3000};

class RelayImpl;

// An accepted connection until its ClientHello is seen; its bytes stay in the socket.
class Pending final : public Closable, public std::enable_shared_from_this<Pending> {
 public:
  Pending(RelayImpl& relay, std::shared_ptr<Hub> hub, tcp::socket socket, Registry::GuardPtr guard)
      : relay_(relay),
        hub_(std::move(hub)),
        socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        guard_(std::move(guard)) {}
  ~Pending() override { --hub_->counts.pending; }
  void start();
  void abort() override {
    asio::post(socket_.get_executor(), [self = shared_from_this()] { self->close(); });
  }

 private:
  void begin();  // this and all below on the thread of its socket
  void wait();
  void look();
  void close() {
    ErrorCode ignored;
    socket_.close(ignored);
    timer_.cancel();
  }
  void need_bytes(int count) { ::setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVLOWAT, &count, sizeof count); }

  RelayImpl& relay_;  // outlives what it accepted
  const std::shared_ptr<Hub> hub_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  Registry::GuardPtr guard_;
};

Result<std::pair<std::string, std::uint16_t>> split_address(const std::string& text) {
  const auto colon = text.rfind(':');
  int port = -1;
  if (colon != std::string::npos && colon + 1 < text.size() && text.size() - colon <= 6) {
    port = 0;
    for (char c : text.substr(colon + 1)) port = c >= '0' && c <= '9' && port >= 0 ? port * 10 + (c - '0') : -1;
  }
  if (port < 0 || port > 65'535) return error(Code::InvalidArgument, "'" + text + "' is not ADDRESS:PORT");
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return std::pair{host, static_cast<std::uint16_t>(port)};
}

class RelayImpl final : public Relay {
 public:
  RelayImpl(RelayOptions options, std::shared_ptr<Loops> loops)
      : options_(std::move(options)),
        members_(std::make_shared<Registry>(options_.members_max, options_.per_address_max)),
        pending_(std::make_shared<Registry>(options_.pending_max, std::max<std::size_t>(options_.pending_max / 8, 16))),
        loops_(std::move(loops)),
        acceptor_(loops_->io(0)),
        metrics_acceptor_(loops_->io(0)),
        pause_(acceptor_.get_executor()) {}
  ~RelayImpl() override { stop(); }

  Status open() {
    reload_trust(options_.trust_pem);
    TRY_VOID(reload_tls(options_.tls));
    options_.tls.key_pem.clear();
    TRY_VOID(listen(acceptor_, options_.address, options_.port));
    if (!options_.handoff_path.empty()) {
      handoff_ = std::make_shared<HandoffQueue>(loops_->io(0), hub_, options_.held_max, options_.hold_time);
      TRY_VOID(handoff_->listen(options_.handoff_path));
      recall_ = std::make_shared<RecallDoor>(loops_->io(0), hub_);
      TRY_VOID(recall_->listen(recall_path(options_.handoff_path)));
    }
    if (!options_.metrics_address.empty()) {
      const auto [host, port] = TRY(split_address(options_.metrics_address));
      TRY_VOID(listen(metrics_acceptor_, host, port));
      asio::post(metrics_acceptor_.get_executor(), [this] { accept_metrics(); });
    }
    if (options_.mirror) open_mirror();
    asio::post(acceptor_.get_executor(), [this] { accept(); });
    loops_->start();
    running_ = true;
    return {};
  }

  std::uint16_t port() const override { return acceptor_.local_endpoint().port(); }
  std::uint16_t metrics_port() const override {
    return metrics_acceptor_.is_open() ? metrics_acceptor_.local_endpoint().port() : std::uint16_t{0};
  }
  std::uint16_t second_udp_port() const override { return udp_ ? udp_->second_port() : std::uint16_t{0}; }
  std::string metrics() const override {
    std::string out = hub_->metrics();
    for (const auto& [name, left] : certificates_.left(read_clocks().wall))
      out += fmt::format(
          "# HELP muster_relay_certificate_remaining_seconds until the end of the certificate, negative after it\n"
          "# TYPE muster_relay_certificate_remaining_seconds gauge\nmuster_relay_certificate_remaining_seconds {}\n",
          left.count() / 1000);
    return out;
  }
  void warn_of_expiry() override {
    for (const std::string& warning : certificates_.warnings(read_clocks().wall)) log_warn("relay", "{}", warning);
  }

  Status reload_tls(TlsFiles files) override {
    if (TRY(crypto::server_role(files.certificate_pem)) == crypto::ServerRole::ControlPlane)
      return error(
          Code::InvalidArgument,
          "the certificate is musterd's own; a relay has another, in the folder relay/ of musterd's data folder: "
          "copy certificate and key from there");
    auto fresh = TRY(server_context(files, {std::string(overlay::kRelayAlpn), "http/1.1"}));
    // What is relayed is encrypted already: the cheapest of the good ciphers, unless a client has no hardware for it.
    SSL_CTX_set_ciphersuites(fresh.get(), "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384");
    SSL_CTX_set_options(fresh.get(), SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
    TRY_VOID(certificates_.set("the relay", files.certificate_pem,
                               "musterd renews it in its folder relay/: copy certificate and key from there"));
    const std::lock_guard lock(mutex_);
    tls_ = std::move(fresh);
    return {};
  }

  void reload_trust(const std::string& trust_pem) override {
    hub_->keys.start(options_.controller_key, trust_pem, options_.keys_file);
  }

  void stop() override {
    if (std::exchange(stopped_, true)) return;
    asio::post(acceptor_.get_executor(), [this] {
      ErrorCode e;
      acceptor_.close(e);
      pause_.cancel();
    });
    asio::post(metrics_acceptor_.get_executor(), [this] {
      ErrorCode e;
      metrics_acceptor_.close(e);
    });
    if (udp_) udp_->close();
    if (handoff_) handoff_->close();
    if (recall_) recall_->close();
    const Deadline deadline = deadline_in(kStopTime);
    while (running_ && std::chrono::steady_clock::now() < deadline) {
      members_->abort_all();
      pending_->abort_all();
      std::this_thread::sleep_for(Millis(5));
      if (members_->size() == 0 && pending_->size() == 0) break;
    }
    loops_->let_end();
    while (running_ && !loops_->ended() && std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(Millis(2));
    loops_->stop();
  }

  // ---- for Pending, on the thread of its socket
  void route(tcp::socket socket, bool member) {
    ErrorCode ec;
    if (!member) {
      if (handoff_) handoff_->offer(Fd(socket.release(ec)));
      return;
    }
    auto guard = members_->enter(socket.remote_endpoint(ec).address().to_string());
    if (!guard) {
      ++hub_->counts.refused;
      return;
    }
    SslCtxPtr tls;
    {
      const std::lock_guard lock(mutex_);
      tls = tls_;
    }
    serve_member(hub_, options_, std::move(socket), std::move(tls), std::move(guard), loops_);
  }
  const RelayOptions& options() const { return options_; }

 private:
  static Status listen(tcp::acceptor& acceptor, const std::string& address, std::uint16_t port) {
    ErrorCode ec;
    const auto ip = asio::ip::make_address(address, ec);
    if (ec) return error(Code::InvalidArgument, "'" + address + "' is not an IP address to listen on");
    const tcp::endpoint endpoint(ip, port);
    acceptor.open(endpoint.protocol(), ec);
    if (!ec) acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) acceptor.bind(endpoint, ec);
    if (!ec) acceptor.listen(4096, ec);
    if (ec)
      return error(Code::Unavailable, "cannot listen on " + address + ":" + std::to_string(port) + ": " + ec.message());
    return {};
  }

  void accept() {
    if (!acceptor_.is_open()) return;
    acceptor_.async_accept(loops_->next(), [this](ErrorCode ec, tcp::socket socket) {
      if (!acceptor_.is_open()) return;
      if (ec) {  // out of descriptors: the kernel's queue holds them while we wait
        pause_.expires_after(Millis(100));
        return pause_.async_wait([this](ErrorCode) { accept(); });
      }
      ErrorCode ignored;
      ++hub_->counts.accepted;
      if (auto guard = pending_->enter(socket.remote_endpoint(ignored).address().to_string())) {
        set_socket_options(socket.native_handle());
        socket.native_non_blocking(true, ignored);
        std::make_shared<Pending>(*this, hub_, std::move(socket), std::move(guard))->start();
      } else {
        ++hub_->counts.refused;
      }
      accept();
    });
  }

  void open_mirror() {
    auto side = UdpSide::open(*loops_, hub_,
                              {.address = acceptor_.local_endpoint().address(),
                               .port = port(),
                               .second_port = options_.second_udp_port,
                               .members = options_.udp});
    if (side.ok()) return void(udp_ = std::move(*side));
    log_warn("relay", "UDP port {} is not to be had ({}): machines behind NATs find no direct ways", port(),
             side.error().message);
  }

  // One request, one answer, whatever was asked; five seconds at most.
  void accept_metrics() {
    if (!metrics_acceptor_.is_open()) return;
    metrics_acceptor_.async_accept([this](ErrorCode ec, tcp::socket accepted) {
      if (!metrics_acceptor_.is_open()) return;
      if (!ec) answer_metrics(std::make_shared<tcp::socket>(std::move(accepted)));
      accept_metrics();
    });
  }
  void answer_metrics(const std::shared_ptr<tcp::socket>& socket) {
    auto timer = std::make_shared<asio::steady_timer>(socket->get_executor(), Millis(5000));
    timer->async_wait([socket](ErrorCode ec) {
      ErrorCode e;
      if (!ec) socket->close(e);
    });
    auto text = std::make_shared<std::string>();
    asio::async_read_until(
        *socket, asio::dynamic_buffer(*text, 8192), "\r\n\r\n", [this, socket, text, timer](ErrorCode ec, std::size_t) {
          if (ec) return void(timer->cancel());
          const std::string body = metrics();
          *text =
              "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\nContent-Length: " +
              std::to_string(body.size()) + "\r\n\r\n" + body;
          asio::async_write(*socket, asio::buffer(*text),
                            [socket, text, timer](ErrorCode, std::size_t) { timer->cancel(); });
        });
  }

  RelayOptions options_;
  const std::shared_ptr<Hub> hub_ = std::make_shared<Hub>();
  std::shared_ptr<Registry> members_, pending_;
  const std::shared_ptr<Loops> loops_;
  tcp::acceptor acceptor_, metrics_acceptor_;
  asio::steady_timer pause_;
  std::shared_ptr<HandoffQueue> handoff_;
  std::shared_ptr<RecallDoor> recall_;
  std::unique_ptr<UdpSide> udp_;
  std::mutex mutex_;
  SslCtxPtr tls_;
  crypto::CertWatch certificates_;
  bool running_ = false, stopped_ = false;
};

void Pending::start() {
  ++hub_->counts.pending;
  guard_->bind(weak_from_this());
  guard_->idle();
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->begin(); });
}

void Pending::begin() {
  if (!socket_.is_open()) return;  // aborted meanwhile
  timer_.expires_after(relay_.options().hello_time);
  timer_.async_wait([weak = weak_from_this()](ErrorCode ec) {
    if (auto self = weak.lock(); self && !ec) self->close();
  });
  wait();
}

void Pending::wait() {
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](ErrorCode ec) {
    if (!ec && self->socket_.is_open()) self->look();
  });
}

void Pending::look() {
  thread_local std::uint8_t bytes[kClientHelloMax];
  const ssize_t n = ::recv(socket_.native_handle(), bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return wait();
  if (n <= 0) return close();
  const ClientHello hello = read_client_hello({bytes, static_cast<std::size_t>(n)});
  if (hello.kind == ClientHello::Kind::NeedMore) {
    // A hang-up after half a hello would wake us for ever: the kernel says so at once.
    need_bytes(static_cast<int>(n) + 1);
    pollfd poll_fd{socket_.native_handle(), POLLRDHUP, 0};
    if (::poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0) return close();
    return wait();
  }
  if (hello.kind == ClientHello::Kind::NotTls) {
    ++hub_->counts.not_tls;
    return close();
  }
  need_bytes(1);
  timer_.cancel();
  // By ALPN; or by our name, and then the wish comes inside (upgrade.h).
  bool member = hello.server_name == kRelayName;
  for (const auto& name : hello.alpn) member = member || name == overlay::kRelayAlpn;
  relay_.route(std::move(socket_), member);
}

}  // namespace

Result<std::unique_ptr<Relay>> Relay::create(RelayOptions options) {
  if (options.relay_id.empty() || options.relay_id.size() > 255)
    return error(Code::InvalidArgument, "the relay's name must have 1 to 255 characters");
  std::shared_ptr<Loops> loops = TRY(Loops::create(options.threads));
  auto relay = std::make_unique<RelayImpl>(std::move(options), std::move(loops));
  TRY_VOID(relay->open());
  return std::unique_ptr<Relay>(std::move(relay));
}

}  // namespace muster::relay
