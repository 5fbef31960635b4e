#include "cli/forward.h"

#include <fmt/format.h>

#include <boost/asio.hpp>
#include <charconv>
#include <deque>
#include <map>
#include <thread>

#include "cli/channel.h"
#include "cli/session.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "net/net.h"

namespace muster::cli {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
constexpr std::size_t kHigh = 4 << 20, kLow = 1 << 20;

struct Shared {
  asio::io_context io;
  std::unique_ptr<net::Loop> loop;
  net::Endpoint endpoint;
  Account account;
  std::string cluster;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Shared& shared, tcp::socket socket, Tunnel tunnel, HttpGate* gate)
      : shared_(shared), socket_(std::move(socket)), tunnel_(std::move(tunnel)), gate_(gate), timer_(shared.io) {}

  void start() {
    boost::system::error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    if (gate_ != nullptr)
      read_head();
    else
      dial();
  }

 private:
  void read_head() {
    auto self = shared_from_this();
    asio::async_read_until(socket_, asio::dynamic_buffer(head_, kGateHeadMax), "\r\n\r\n",
                           [self](boost::system::error_code failed, std::size_t size) {
                             if (failed) return self->end();
                             const std::string rest = self->head_.substr(size);
                             auto decision = self->gate_->decide(std::string_view(self->head_).substr(0, size));
                             if (decision.pass) {
                               self->first_ = decision.text + rest;
                               return self->dial();
                             }
                             self->closing_ = true;
                             self->write(std::move(decision.text));
                           });
  }

  void dial() {
    auto self = shared_from_this();
    std::string target = fmt::format("{}/forward?port={}", path_of("clusters", shared_.cluster), tunnel_.remote);
    if (!tunnel_.slot.empty()) target += "&slot=" + escape_url(tunnel_.slot);
    const auto token = bearer_of(shared_.account);
    if (!token.ok()) return dialled(token.error());
    std::map<std::string, std::string> headers;
    if (!token->empty()) headers["authorization"] = "Bearer " + *token;
    shared_.loop->dial_websocket(
        shared_.endpoint, target, std::move(headers), [self](Result<net::WebSocketPtr> result) {
          asio::post(self->shared_.io,
                     [self, result = std::move(result)]() mutable { self->dialled(std::move(result)); });
        });
  }

  void dialled(Result<net::WebSocketPtr> result) {
    if (!result.ok()) {
      say(fmt::format("port {}: {}", tunnel_.remote, clean(result.error().message)));
      return end();
    }
    remote_ = *result;
    auto self = shared_from_this();
    remote_->start(
        [self](Bytes bytes) {
          asio::post(self->shared_.io, [self, bytes = std::move(bytes)] { self->arrived(bytes); });
        },
        [self](std::string) { asio::post(self->shared_.io, [self] { self->remote_closed(); }); });
    if (!first_.empty()) send(Kind::Data, first_);
    read();
  }

  void send(Kind kind, std::string_view bytes) {
    Bytes message{static_cast<std::uint8_t>(kind)};
    message.insert(message.end(), bytes.begin(), bytes.end());
    remote_->send(std::move(message));
  }

  void read() {
    auto self = shared_from_this();
    if (remote_->buffered() > kLow) {  // the cluster's side is slow: look again soon
      timer_.expires_after(std::chrono::milliseconds(10));
      timer_.async_wait([self](boost::system::error_code failed) {
        if (!failed) self->read();
      });
      return;
    }
    socket_.async_read_some(asio::buffer(buffer_), [self](boost::system::error_code failed, std::size_t size) {
      if (size > 0) self->send(Kind::Data, {self->buffer_.data(), size});
      if (!failed) return self->read();
      if (failed == asio::error::eof)
        self->send(Kind::EndOfInput, {});
      else
        self->end();
    });
  }

  void arrived(const Bytes& bytes) {
    if (bytes.empty()) return;
    const auto kind = static_cast<Kind>(bytes[0]);
    if (kind == Kind::Data) return write(std::string(bytes.begin() + 1, bytes.end()));
    if (kind == Kind::EndOfInput || kind == Kind::Exit) {
      if (const auto exit = kind == Kind::Exit ? parse_exit(std::string(bytes.begin() + 1, bytes.end())) : std::nullopt;
          exit && !exit->error.empty())
        say(fmt::format("port {}: {}", tunnel_.remote, exit->error));
      half_closed_ = true;
      closing_ = closing_ || kind == Kind::Exit;
      flush();
    }
  }

  void remote_closed() {
    closing_ = true;
    flush();
  }

  void write(std::string bytes) {
    if (bytes.empty()) return;
    queued_ += bytes.size();
    queue_.push_back(std::move(bytes));
    if (remote_ && !paused_ && queued_ > kHigh) {
      paused_ = true;
      remote_->pause_reading(true);
    }
    flush();
  }

  void flush() {
    if (writing_) return;
    if (queue_.empty()) {
      if (closing_) return end();
      boost::system::error_code ignored;
      if (half_closed_) socket_.shutdown(tcp::socket::shutdown_send, ignored);
      return;
    }
    writing_ = true;
    auto self = shared_from_this();
    asio::async_write(socket_, asio::buffer(queue_.front()),
                      [self](boost::system::error_code failed, std::size_t size) {
                        self->writing_ = false;
                        if (failed) return self->end();
                        self->queued_ -= size;
                        self->queue_.pop_front();
                        if (self->paused_ && self->queued_ < kLow) {
                          self->paused_ = false;
                          self->remote_->pause_reading(false);
                        }
                        self->flush();
                      });
  }

  void end() {
    boost::system::error_code ignored;
    timer_.cancel();
    socket_.shutdown(tcp::socket::shutdown_both, ignored);
    socket_.close(ignored);
    if (remote_) remote_->close("done");
  }

  Shared& shared_;
  tcp::socket socket_;
  Tunnel tunnel_;
  HttpGate* gate_;
  asio::steady_timer timer_;
  net::WebSocketPtr remote_;
  std::string head_, first_;
  std::array<char, 32 << 10> buffer_{};
  std::deque<std::string> queue_;
  std::size_t queued_ = 0;
  bool writing_ = false, paused_ = false, closing_ = false, half_closed_ = false;
};

class AsioForwarder : public Forwarder {
 public:
  ~AsioForwarder() override {
    if (shared_.loop) shared_.loop->stop();
  }
  Status start(const Account& account, const std::string& cluster) {
    shared_.endpoint = TRY(endpoint_of(account));
    shared_.account = account;
    shared_.cluster = cluster;
    shared_.loop = net::Loop::create(1);
    return {};
  }

  Result<std::uint16_t> listen(const Tunnel& tunnel) override {
    boost::system::error_code failed;
    auto acceptor = std::make_shared<tcp::acceptor>(shared_.io);
    const tcp::endpoint at(asio::ip::address_v4::loopback(), tunnel.local);
    acceptor->open(at.protocol(), failed);
    if (!failed) acceptor->set_option(tcp::acceptor::reuse_address(true), failed);
    if (!failed) acceptor->bind(at, failed);
    if (!failed) acceptor->listen(asio::socket_base::max_listen_connections, failed);
    if (failed)
      return error(Code::FailedPrecondition, fmt::format("127.0.0.1:{}: {}; choose another port: LOCAL:{}",
                                                         tunnel.local, failed.message(), tunnel.remote));
    const std::uint16_t port = acceptor->local_endpoint(failed).port();
    accept(acceptor, tunnel, port);
    return port;
  }
  void set_gate(std::uint16_t local, std::unique_ptr<HttpGate> gate) override { gates_[local] = std::move(gate); }
  void run() override { shared_.io.run(); }
  void stop() override { shared_.io.stop(); }

 private:
  void accept(const std::shared_ptr<tcp::acceptor>& acceptor, const Tunnel& tunnel, std::uint16_t port) {
    acceptor->async_accept([this, acceptor, tunnel, port](boost::system::error_code failed, tcp::socket socket) {
      if (failed == asio::error::operation_aborted) return;
      if (!failed) {
        const auto gate = gates_.find(port);
        std::make_shared<Connection>(shared_, std::move(socket), tunnel,
                                     gate == gates_.end() ? nullptr : gate->second.get())
            ->start();
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));  // out of descriptors: do not spin
      }
      accept(acceptor, tunnel, port);
    });
  }

  std::map<std::uint16_t, std::unique_ptr<HttpGate>> gates_;
  Shared shared_;
};

std::optional<std::uint16_t> parse_port(std::string_view text, int min) {
  int value = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc() || end != text.data() + text.size() || value < min || value > 65'535) return {};
  return static_cast<std::uint16_t>(value);
}

}  // namespace

Result<Tunnel> parse_tunnel(std::string_view text) {
  const auto colon = text.find(':');
  const auto local = parse_port(text.substr(0, colon), colon == std::string_view::npos ? 1 : 0);
  const auto remote = colon == std::string_view::npos ? local : parse_port(text.substr(colon + 1), 1);
  if (!local || !remote)
    return error(Code::InvalidArgument,
                 fmt::format("{} is not a port; write REMOTE or LOCAL:REMOTE, like 18265:8265", text));
  return Tunnel{*local, *remote, {}};
}

Result<std::unique_ptr<Forwarder>> Forwarder::create(const Account& account, const std::string& cluster) {
  auto forwarder = std::make_unique<AsioForwarder>();
  TRY_VOID(forwarder->start(account, cluster));
  return std::unique_ptr<Forwarder>(std::move(forwarder));
}

}  // namespace muster::cli
