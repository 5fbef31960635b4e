#include "net/websocket.h"

#include <atomic>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/websocket/rfc6455.hpp>
#include <boost/beast/websocket/stream.hpp>
#include <deque>

namespace muster::net {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;
namespace websocket = beast::websocket;

constexpr std::size_t kQueueBytesMax = 64 << 20;  // a peer that reads nothing while we send this much is cut
constexpr std::size_t kKeepBuffer = 64 << 10;
constexpr Millis kCloseTime{5000};

class Session final : public WebSocket, public Closable, public std::enable_shared_from_this<Session> {
 public:
  Session(TlsStream stream, WebSocketOptions options)
      : options_(std::move(options)), ws_(std::move(stream)), close_timer_(ws_.get_executor()) {
    ws_.binary(true);
    ws_.auto_fragment(false);
    ws_.read_message_max(options_.frame_bytes);
    ws_.set_option(websocket::stream_base::timeout{std::chrono::seconds(10), options_.idle_timeout, true});
  }

  void bind() {
    if (options_.guard) options_.guard->bind(weak_from_this());
  }

  void accept(const Request& request, WebSocketReady done) {
    http::request<http::empty_body> head{http::verb::get, "/", 11};
    for (const char* name : {"host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version"})
      head.set(name, request.header(name));
    ws_.async_accept(head,
                     [self = shared_from_this(), done = std::move(done)](ErrorCode ec) { self->opened(ec, done); });
  }

  void connect(const std::string& host, const std::string& target, const std::map<std::string, std::string>& headers,
               WebSocketReady done) {
    ws_.set_option(websocket::stream_base::decorator([headers](websocket::request_type& request) {
      for (const auto& [name, value] : headers) request.set(name, value);
    }));
    auto answer = std::make_shared<websocket::response_type>();
    ws_.async_handshake(*answer, host, target,
                        [self = shared_from_this(), answer, done = std::move(done)](ErrorCode ec) {
                          if (ec == websocket::error::upgrade_declined) return done(declined(*answer));
                          self->opened(ec, done);
                        });
  }

  void start(std::function<void(Bytes)> on_message, std::function<void(std::string)> on_close) override {
    asio::post(ws_.get_executor(),
               [self = shared_from_this(), m = std::move(on_message), c = std::move(on_close)]() mutable {
                 self->on_message_ = std::move(m);
                 self->on_close_ = std::move(c);
                 if (self->ended_) return self->report();
                 self->read();
               });
  }

  void send(Bytes message) override {
    if (ended_) return;
    const std::size_t size = message.size();
    if (buffered_.fetch_add(size) + size > kQueueBytesMax) {
      buffered_ -= size;
      return asio::post(ws_.get_executor(), [self = shared_from_this()] { self->end("the peer reads too slowly"); });
    }
    asio::post(ws_.get_executor(), [self = shared_from_this(), message = std::move(message)]() mutable {
      if (self->ended_ || self->closing_) {
        self->buffered_ -= message.size();
        return;
      }
      self->queue_.push_back(std::move(message));
      self->write();
    });
  }

  std::size_t buffered() const override { return buffered_; }
  std::string peer() const override { return options_.peer; }

  void close(std::string reason) override {
    if (ended_) return;
    asio::post(ws_.get_executor(), [self = shared_from_this(), reason = std::move(reason)]() mutable {
      if (self->closing_ || self->ended_) return;
      self->closing_ = true;
      if (reason.size() > 120) reason.resize(120);
      self->goodbye_ = valid_utf8(reason) ? std::move(reason) : "closed";
      self->close_timer_.expires_after(kCloseTime);
      self->close_timer_.async_wait([self](ErrorCode ec) {
        if (!ec) self->end("closed");
      });
      self->write();
    });
  }

  void abort() override {
    if (ended_) return;
    asio::post(ws_.get_executor(), [self = shared_from_this()] { self->end("this side stops"); });
  }

 private:
  static Error declined(const websocket::response_type& answer) {
    const int status = answer.result_int();
    const Code code = status == 401                   ? Code::Unauthenticated
                      : status == 403                 ? Code::PermissionDenied
                      : status == 404                 ? Code::NotFound
                      : status == 426                 ? Code::Unsupported
                      : status < 500 && status != 429 ? Code::FailedPrecondition
                                                      : Code::Unavailable;
    const std::string body = answer.body().substr(0, 2048);
    return error(code, "the server refuses the connection with status " + std::to_string(status) +
                           (body.empty() ? "" : ": " + body));
  }

  void opened(ErrorCode ec, const WebSocketReady& done) {
    if (!ec) return done(WebSocketPtr(shared_from_this()));
    end("the WebSocket was not opened");
    done(error(Code::Unavailable, "the WebSocket could not be opened: " + ec.message()));
  }

  void read() {
    ws_.async_read(buffer_, [self = shared_from_this()](ErrorCode ec, std::size_t) {
      if (ec) return self->failed(ec);
      if (self->ended_) return;
      if (!self->ws_.got_binary()) {
        self->close("only binary messages are understood");
      } else if (self->on_message_) {
        const auto data = self->buffer_.data();
        const auto* begin = static_cast<const std::uint8_t*>(data.data());
        self->on_message_(Bytes(begin, begin + data.size()));
      }
      self->buffer_.consume(self->buffer_.size());
      if (self->buffer_.capacity() > kKeepBuffer) self->buffer_ = beast::flat_buffer();
      if (!self->ended_) self->read();
    });
  }

  void write() {
    if (writing_ || ended_) return;
    if (queue_.empty()) {
      if (!closing_) return;
      writing_ = true;
      return ws_.async_close(websocket::close_reason(websocket::close_code::normal, goodbye_),
                             [self = shared_from_this()](ErrorCode) { self->end(self->goodbye_); });
    }
    writing_ = true;
    ws_.async_write(asio::buffer(queue_.front()), [self = shared_from_this()](ErrorCode ec, std::size_t) {
      self->writing_ = false;
      self->buffered_ -= self->queue_.front().size();
      self->queue_.pop_front();
      if (ec) return self->failed(ec);
      self->write();
    });
  }

  void failed(ErrorCode ec) {
    if (ec == websocket::error::closed) {
      const std::string said(ws_.reason().reason.data(), ws_.reason().reason.size());
      return end(said.empty() ? "closed by the peer" : said);
    }
    if (ec == websocket::error::buffer_overflow || ec == websocket::error::message_too_big)
      return end("the peer sent a message that is too large");
    if (ec == beast::error::timeout) return end("the peer is silent");
    if (ec == asio::error::eof) return end("the peer closed the connection");
    if (ec == asio::error::operation_aborted && closing_) return end(goodbye_);
    end(ec.message());
  }

  void end(const std::string& reason) {
    if (ended_) return;
    ended_ = true;
    reason_ = reason;
    close_timer_.cancel();
    ws_.next_layer().close();
    if (!writing_) {
      queue_.clear();
      buffered_ = 0;
    }
    options_.guard.reset();
    report();
  }

  void report() {
    on_message_ = nullptr;
    if (auto callback = std::exchange(on_close_, nullptr)) callback(reason_);
  }

  WebSocketOptions options_;  // first: its io_context outlives the stream
  websocket::stream<TlsStream, false> ws_;
  asio::steady_timer close_timer_;
  beast::flat_buffer buffer_;
  std::deque<Bytes> queue_;
  std::atomic<std::size_t> buffered_{0};
  bool writing_ = false, closing_ = false;
  std::atomic<bool> ended_{false};
  std::string goodbye_, reason_;
  std::function<void(Bytes)> on_message_;
  std::function<void(std::string)> on_close_;
};

}  // namespace

void accept_websocket(TlsStream stream, const Request& request, WebSocketOptions options, WebSocketReady done) {
  auto session = std::make_shared<Session>(std::move(stream), std::move(options));
  session->bind();
  session->accept(request, std::move(done));
}

void connect_websocket(TlsStream stream, const std::string& host, const std::string& target,
                       const std::map<std::string, std::string>& headers, WebSocketOptions options,
                       WebSocketReady done) {
  auto session = std::make_shared<Session>(std::move(stream), std::move(options));
  session->bind();
  session->connect(host, target, headers, std::move(done));
}

}  // namespace muster::net
