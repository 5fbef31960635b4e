#include "net/http_connection.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/buffer.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <deque>

#include "base/http_status.h"
#include "base/log.h"
#include "net/http_text.h"
#include "net/url.h"
#include "net/websocket.h"

namespace muster::net {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;

constexpr std::size_t kHeaderMax = 16 << 10;
constexpr std::size_t kReadSize = 16 << 10;
constexpr std::size_t kIdleReadSize = 2 << 10;
constexpr std::size_t kRecordSize = 16 << 10;
constexpr std::size_t kBufferedMax = 64 << 20;  // a reader this far behind is cut
constexpr std::size_t kDrainMax = 1 << 20;
constexpr Millis kDrainTime{2000};

// Where body bytes go: into a string up to a limit, or into an upload's sink.
struct SinkBody {
  struct value_type {
    std::string text;
    std::optional<ServerHandlers::Upload> upload;
    std::uint64_t limit = 0, size = 0;
    std::optional<Error> failure;
  };
  struct reader {
    template <bool isRequest, typename Fields>
    reader(http::header<isRequest, Fields>&, value_type& value) : value_(value) {}
    void init(const boost::optional<std::uint64_t>&, ErrorCode& ec) { ec = {}; }
    template <typename Buffers>
    std::size_t put(const Buffers& buffers, ErrorCode& ec) {
      ec = {};
      std::size_t total = 0;
      for (auto it = asio::buffer_sequence_begin(buffers); it != asio::buffer_sequence_end(buffers); ++it) {
        const asio::const_buffer piece = *it;
        value_.size += piece.size();
        total += piece.size();
        if (value_.size > value_.limit) {
          ec = http::error::body_limit;
          return total;
        }
        const auto* data = static_cast<const std::uint8_t*>(piece.data());
        if (!value_.upload) {
          value_.text.append(reinterpret_cast<const char*>(data), piece.size());
        } else if (auto stored = value_.upload->chunk({data, piece.size()}); !stored.ok()) {
          value_.failure = stored.error();
          ec = http::error::body_limit;
          return total;
        }
      }
      return total;
    }
    void finish(ErrorCode& ec) { ec = {}; }
    value_type& value_;
  };
};
using Parser = http::request_parser<SinkBody>;

class HttpResponder;

// In a header that is there as a whole: a line that begins with a blank, which goes on with the one before (obsolete,
// RFC 9112 5.2). Some readers take it for a header of its own.
bool has_folded_line(std::string_view bytes) {
  const auto end = bytes.find("\r\n\r\n");
  if (end == std::string_view::npos) return false;
  for (auto at = bytes.find("\r\n"); at < end; at = bytes.find("\r\n", at + 2))
    if (bytes[at + 2] == ' ' || bytes[at + 2] == '\t') return true;
  return false;
}

// A deadline that moves with every request, on a timer that is only touched when it would ring too late.
class Alarm {
 public:
  using Time = std::chrono::steady_clock::time_point;
  explicit Alarm(const TlsStream::executor_type& executor) : timer_(executor) {}
  void set(Millis time) { deadline_ = std::chrono::steady_clock::now() + time; }
  void stop() { deadline_ = Time::max(); }
  void cancel() { timer_.cancel(); }
  // Before waiting for the peer: the owner is aborted when the deadline passes.
  template <typename Owner>
  void watch(Owner& owner) {
    if (wakes_ <= deadline_) return;
    wakes_ = deadline_;
    timer_.expires_at(wakes_);
    timer_.async_wait([this, weak = owner.weak_from_this()](ErrorCode ec) {
      if (ec) return;  // moved, or the owner has closed
      const auto held = weak.lock();
      if (!held) return;
      wakes_ = Time::max();
      if (deadline_ <= std::chrono::steady_clock::now()) return held->abort();
      watch(*held);
    });
  }

 private:
  asio::steady_timer timer_;
  Time deadline_ = Time::max(), wakes_ = Time::max();
};

class HttpConnection final : public Closable, public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(std::shared_ptr<const ServerContext> context, TlsStream stream, std::string peer,
                 Registry::GuardPtr guard)
      : context_(std::move(context)),
        stream_(std::move(stream)),
        executor_(stream_->get_executor()),
        alarm_(executor_),
        write_alarm_(executor_),
        peer_(std::move(peer)),
        guard_(std::move(guard)),
        buffer_(2 * kReadSize) {}

  void start() {
    guard_->bind(weak_from_this());
    guard_->idle();
    alarm_.set(context_->limits.header_timeout);
    alarm_.watch(*this);
    stream_->async_handshake([self = shared_from_this()](ErrorCode ec, std::size_t) {
      if (ec || !self->open_) return self->close();
      const unsigned char* alpn = nullptr;
      unsigned size = 0;
      SSL_get0_alpn_selected(&self->stream_->ssl(), &alpn, &size);
      if (std::string_view(reinterpret_cast<const char*>(alpn), size) == kProofAlpn) return self->close();
      self->by_public_name_ = self->context_->doors->is_public(SSL_get_SSL_CTX(&self->stream_->ssl()));
      self->await_request();
    });
  }
  void abort() override {
    asio::post(executor_, [self = shared_from_this()] { self->close(); });
  }

  // ---- for responders, on the strand; `id` names the request, late calls for an earlier one are ignored
  const TlsStream::executor_type& executor() const { return executor_; }
  void respond(std::uint64_t id, Response response) {
    if (!current(id) || streaming_) return;
    guard_browsers(response);
    const bool body = !head_only_ && has_body(response.status);
    std::string head = http_head(response, body ? Framing::Length : Framing::LengthOnly, keep_);
    const bool small = body && head.size() + response.body.size() <= kRecordSize;
    if (small) head += response.body;  // one record, one packet
    queue(std::move(head));
    if (body && !small) queue(std::move(response.body));
    end_response();
  }
  void begin(std::uint64_t id, Response head) {
    if (!current(id) || streaming_) return;
    guard_browsers(head);
    streaming_ = true;
    chunked_ = !http10_;
    if (http10_) keep_ = false;
    queue(http_head(head, chunked_ ? Framing::Chunked : Framing::UntilClose, keep_));
    if (!head.body.empty()) chunk(id, std::move(head.body));
  }
  void chunk(std::uint64_t id, std::string data) {
    if (!current(id) || !streaming_ || data.empty() || head_only_) return;
    if (chunked_) {
      queue(chunk_head(data.size()) + data + "\r\n");
    } else {
      queue(std::move(data));
    }
  }
  void finish(std::uint64_t id) {
    if (!current(id) || !streaming_) return;
    if (chunked_ && !head_only_) queue("0\r\n\r\n");
    end_response();
  }
  void abandon(std::uint64_t id) {  // the handler let go of its responder without an answer
    if (!current(id)) return;
    if (streaming_) return close();  // a cut stream must not look complete
    respond(id, problem(500, "internal", "the request was dropped; try again, and report it if it stays so"));
  }
  void watch(std::uint64_t id, std::function<void()> callback) {
    if (id != request_id_) return;
    if (!open_) return callback();
    if (current(id)) on_close_ = std::move(callback);
  }

  std::atomic<std::size_t> buffered{0};  // bytes handed to us and not yet to the kernel
  std::atomic<bool> gone{false};

 private:
  enum class Phase { Await, Header, Body, Respond, Drain };

  // What is served is data for programs: a browser that comes by it shall show and run nothing of it, and tell nobody.
  // One that trusts the certificate need never speak to this name in the clear (RFC 6797).
  void guard_browsers(Response& response) const {
    response.headers.try_emplace("X-Content-Type-Options", "nosniff");
    response.headers.try_emplace("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'");
    response.headers.try_emplace("Referrer-Policy", "no-referrer");
    if (by_public_name_) response.headers.try_emplace("Strict-Transport-Security", "max-age=31536000");
  }
  bool current(std::uint64_t id) const { return open_ && id == request_id_ && phase_ == Phase::Respond && !ending_; }

  void await_request() {
    parser_.emplace();
    parser_->header_limit(kHeaderMax);
    parser_->body_limit(std::max<std::uint64_t>(context_->limits.upload_bytes, context_->limits.body_bytes));
    parser_->get().body().limit = context_->limits.body_bytes;
    phase_ = Phase::Await;
    head_only_ = streaming_ = chunked_ = ending_ = http10_ = false;
    guard_->idle();
    alarm_.set(context_->limits.idle_timeout);
    if (buffer_.size() > 0) return parse();
    read();
  }

  void read() {
    if (!open_) return;
    alarm_.watch(*this);
    if (std::exchange(reading_, true)) return;
    const std::size_t size = phase_ == Phase::Body || phase_ == Phase::Drain ? kReadSize : kIdleReadSize;
    const auto done = [self = shared_from_this()](ErrorCode ec, std::size_t n) {
      self->reading_ = false;
      if (ec || !self->open_) return self->close();
      self->buffer_.commit(n);
      self->received();
    };
    // Who waits for an answer seldom speaks.
    if (phase_ == Phase::Respond)
      stream_->async_read_later(buffer_.prepare(size), done);
    else
      stream_->async_read_some(buffer_.prepare(size), done);
  }

  void received() {
    if (phase_ == Phase::Drain) {
      drained_ += buffer_.size();
      buffer_.consume(buffer_.size());
      return drained_ > kDrainMax ? close() : read();
    }
    if (phase_ != Phase::Respond) parse();  // else: the next request, kept until this one is answered
  }

  void parse() {
    while (open_ && phase_ != Phase::Respond && phase_ != Phase::Drain) {
      if (phase_ == Phase::Await && buffer_.size() > 0) {
        phase_ = Phase::Header;
        alarm_.set(context_->limits.header_timeout);
      }
      if (buffer_.size() == 0 && !parser_->is_done()) return read();
      ErrorCode ec;
      const bool was_header = phase_ == Phase::Header;
      if (was_header && has_folded_line({static_cast<const char*>(buffer_.data().data()), buffer_.size()}))
        return refuse(400, "invalid_argument", "a header must not go on in the next line");
      const std::size_t n = parser_->put(buffer_.data(), ec);
      buffer_.consume(n);
      if (ec == http::error::need_more) {
        if (was_header && buffer_.size() >= kHeaderMax)
          return refuse(431, "too_large", "the header is larger than 16 KiB");
        ec = {};
        if (n == 0) return read();
      }
      if (ec) return refuse_parse(ec);
      if (was_header && parser_->is_header_done() && !header_done()) return;
      if (phase_ == Phase::Body) alarm_.set(body_time());
      if (parser_->is_done()) return dispatch();
    }
  }

  void refuse_parse(ErrorCode ec) {
    auto& body = parser_->get().body();
    if (body.failure)
      return refuse(http_status(body.failure->code), code_name(body.failure->code), body.failure->message);
    if (ec == http::error::header_limit) return refuse(431, "too_large", "the header is larger than 16 KiB");
    if (ec == http::error::body_limit) return refuse(413, "too_large", "the body is larger than this request may be");
    refuse(400, "invalid_argument", "this is not a valid HTTP/1.1 request (" + ec.message() + ")");
  }

  void refuse(int status, std::string_view code, std::string_view detail) { refuse(problem(status, code, detail)); }
  void refuse(Response response) {  // answer without reading the rest, then end the connection
    keep_ = false;
    phase_ = Phase::Respond;
    ++request_id_;
    respond(request_id_, std::move(response));
  }

  // The whole header is there: make the Request, decide what its body may be. False: answered already.
  bool header_done() {
    const auto& head = parser_->get();
    http10_ = head.version() < 11;
    keep_ = head.keep_alive();
    request_ = Request();
    request_.peer = peer_;
    request_.method = std::string(head.method_string());
    head_only_ = head.method() == http::verb::head;
    std::size_t hosts = 0;
    for (const auto& field : head) {
      const std::string name = lower(std::string_view(field.name_string()));
      const std::string_view value(field.value());
      if (!valid_utf8(value)) return refuse(400, "invalid_argument", "the header " + name + " is not UTF-8"), false;
      hosts += name == "host";
      auto [it, fresh] = request_.headers.emplace(name, value);
      if (fresh) continue;
      if (!may_repeat(name)) return refuse(400, "invalid_argument", "the header " + name + " appears twice"), false;
      it->second += (name == "cookie" ? "; " : ", ") + std::string(value);
    }
    if (hosts != 1 && !http10_) return refuse(400, "invalid_argument", "exactly one Host header is needed"), false;
    // Readers that take a list of lengths disagree about which one counts.
    const std::string length = request_.header("content-length");
    if (length.find_first_not_of("0123456789") != std::string::npos)
      return refuse(400, "invalid_argument", "Content-Length must be one number"), false;
    const std::string coding = lower(request_.header("transfer-encoding"));
    if (!coding.empty() && (coding != "chunked" || http10_ || request_.headers.count("content-length") != 0)) {
      return refuse(400, "invalid_argument", "Transfer-Encoding must be 'chunked' alone, without Content-Length"),
             false;
    }
    auto target = parse_target(std::string_view(head.target()));
    if (!target.ok()) return refuse(400, "invalid_argument", target.error().message), false;
    request_.path = std::move(target->path);
    request_.query = std::move(target->query);
    if (is_upgrade()) return upgrade(), false;
    return prepare_body();
  }

  // A body that drips in below 4 KiB/s on average may not hold a connection longer than the idle time-out.
  Millis body_time() {
    const auto earned = std::chrono::seconds(parser_->get().body().size >> 12);
    const auto left = body_since_ + context_->limits.idle_timeout + earned - std::chrono::steady_clock::now();
    return std::clamp(std::chrono::duration_cast<Millis>(left), Millis(0), context_->limits.idle_timeout);
  }

  bool prepare_body() {
    phase_ = Phase::Body;
    body_since_ = std::chrono::steady_clock::now();
    const auto length = parser_->content_length();
    const bool body = parser_->chunked() || (length && *length > 0);
    auto& sink = parser_->get().body();
    if (body && context_->handlers.upload && (request_.method == "POST" || request_.method == "PUT")) {
      Response refusal;
      if (auto upload = context_->handlers.upload(request_, refusal)) {
        sink.upload = std::move(*upload);
        guard_->busy();
        sink.limit = context_->limits.upload_bytes;
      } else if (refusal.status >= 400) {
        return refuse(std::move(refusal)), false;
      }
    }
    if (length && *length > sink.limit) {
      return refuse(413, "too_large",
                    "the body has " + std::to_string(*length) + " bytes, at most " + std::to_string(sink.limit) +
                        " are allowed here"),
             false;
    }
    if (body && lower(request_.header("expect")) == "100-continue") queue("HTTP/1.1 100 Continue\r\n\r\n");
    return true;
  }

  bool is_upgrade() const {
    return has_token(request_.header("connection"), "upgrade") && lower(request_.header("upgrade")) == "websocket";
  }

  void upgrade() {
    const auto& handlers = context_->handlers;
    if (request_.method != "GET" || !handlers.upgrade || !handlers.websocket)
      return refuse(400, "invalid_argument", "no WebSocket is served here");
    if (request_.header("sec-websocket-version") != "13")
      return refuse(426, "unsupported", "WebSocket version 13 is needed");
    const auto key = unbase64(request_.header("sec-websocket-key"));
    if (!key || key->size() != 16 || buffer_.size() > 0)
      return refuse(400, "invalid_argument", "the WebSocket handshake is not valid");
    if (auto refusal = handlers.upgrade(request_)) return refuse(std::move(*refusal));
    alarm_.cancel();
    write_alarm_.cancel();
    open_ = false;
    guard_->busy();
    WebSocketOptions options{context_->limits.frame_bytes, context_->limits.idle_timeout, peer_, std::move(guard_),
                             context_->keep};
    TlsStream stream = std::move(*stream_);
    stream_.reset();
    accept_websocket(std::move(stream), request_, std::move(options),
                     [context = context_, request = request_](Result<WebSocketPtr> socket) {
                       if (socket.ok()) context->handlers.websocket(request, std::move(*socket));
                     });
  }

  void dispatch();

  // ---- output: one write at a time, in order
  void queue(std::string data) {
    if (data.empty()) return;
    buffered += data.size();
    out_.push_back(std::move(data));
    if (buffered > kBufferedMax) return close();
    flush();
  }
  void flush() {
    if (writing_ || out_.empty() || !open_) return;
    writing_ = true;
    write_alarm_.set(context_->limits.idle_timeout);
    write_alarm_.watch(*this);
    asio::async_write(*stream_, asio::buffer(out_.front()), [self = shared_from_this()](ErrorCode ec, std::size_t) {
      self->writing_ = false;
      self->write_alarm_.stop();
      if (ec || !self->open_) return self->close();
      self->buffered -= self->out_.front().size();
      self->out_.pop_front();
      self->flush();
      if (self->out_.empty() && self->ending_) self->response_done();
    });
  }
  void end_response() {
    ending_ = true;
    on_close_ = nullptr;
    if (out_.empty() && !writing_) response_done();
  }
  void response_done() {
    if (!open_) return;
    if (keep_ && parser_->is_done()) return await_request();
    // Let the peer read the answer: closing with its bytes unread would reset the connection.
    phase_ = Phase::Drain;
    ending_ = false;
    alarm_.set(kDrainTime);
    stream_->shutdown_send();
    buffer_.consume(buffer_.size());
    read();
  }

  void close() {
    if (!open_) return;
    open_ = false;
    gone = true;
    alarm_.cancel();
    write_alarm_.cancel();
    stream_->close();
    guard_.reset();
    if (!writing_) out_.clear();
    if (auto callback = std::exchange(on_close_, nullptr)) callback();
  }

  const std::shared_ptr<const ServerContext> context_;
  std::optional<TlsStream> stream_;
  const TlsStream::executor_type executor_;
  Alarm alarm_, write_alarm_;
  const std::string peer_;
  Registry::GuardPtr guard_;
  beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  Request request_;
  std::deque<std::string> out_;
  std::function<void()> on_close_;
  std::chrono::steady_clock::time_point body_since_;
  std::uint64_t request_id_ = 0;
  std::size_t drained_ = 0;
  Phase phase_ = Phase::Await;
  bool open_ = true, reading_ = false, writing_ = false;
  bool keep_ = true, head_only_ = false, http10_ = false, streaming_ = false, chunked_ = false, ending_ = false;
  bool by_public_name_ = false;
};

class HttpResponder final : public Responder {
 public:
  HttpResponder(std::shared_ptr<HttpConnection> connection, std::uint64_t id)
      : connection_(std::move(connection)), id_(id) {}
  ~HttpResponder() override {
    if (!answered_) post([](HttpConnection& c, std::uint64_t id) { c.abandon(id); });
  }
  void send(Response response) override {
    answered_ = true;
    post([response = std::move(response)](HttpConnection& c, std::uint64_t id) mutable {
      c.respond(id, std::move(response));
    });
  }
  void start_stream(Response head) override {
    post([head = std::move(head)](HttpConnection& c, std::uint64_t id) mutable { c.begin(id, std::move(head)); });
  }
  bool write(std::string chunk) override {
    if (connection_->gone) return false;
    pending_->fetch_add(chunk.size());
    post([chunk = std::move(chunk), pending = pending_](HttpConnection& c, std::uint64_t id) mutable {
      pending->fetch_sub(chunk.size());
      c.chunk(id, std::move(chunk));
    });
    return true;
  }
  std::size_t buffered() const override { return connection_->gone ? 0 : connection_->buffered + *pending_; }
  void finish() override {
    answered_ = true;
    post([](HttpConnection& c, std::uint64_t id) { c.finish(id); });
  }
  void on_close(std::function<void()> callback) override {
    if (connection_->gone) return callback();
    post([callback = std::move(callback)](HttpConnection& c, std::uint64_t id) mutable {
      c.watch(id, std::move(callback));
    });
  }

 private:
  template <typename F>
  void post(F f) {
    if (connection_->gone) return;
    asio::post(connection_->executor(), [c = connection_, id = id_, f = std::move(f)]() mutable { f(*c, id); });
  }
  const std::shared_ptr<HttpConnection> connection_;
  const std::uint64_t id_;
  std::atomic<bool> answered_{false};
  std::shared_ptr<std::atomic<std::size_t>> pending_ = std::make_shared<std::atomic<std::size_t>>(0);
};

void HttpConnection::dispatch() {
  phase_ = Phase::Respond;
  guard_->busy();
  ++request_id_;
  alarm_.stop();  // the handler may take its time; writes have their own clock
  auto& sink = parser_->get().body();
  if (sink.upload) {
    Response response = sink.upload->end();
    sink.upload.reset();
    return respond(request_id_, std::move(response));
  }
  request_.body = std::move(sink.text);
  if (buffer_.size() == 0) read();  // notices a peer that leaves
  auto responder = std::make_shared<HttpResponder>(shared_from_this(), request_id_);
  try {
    context_->handlers.http(std::move(request_), responder);
  } catch (const std::exception& e) {
    log_error("net", "a request handler failed: {}", e.what());
    responder->send(problem(500, "internal", "the request could not be handled; see the server's log"));
  }
}

}  // namespace

void serve_connection(std::shared_ptr<const ServerContext> context, tcp::socket socket, SslCtxPtr tls, std::string peer,
                      Registry::GuardPtr guard) {
  SslPtr ssl = new_ssl(*tls, socket.native_handle());
  if (!ssl) return;
  SSL_set_accept_state(ssl.get());
  const auto executor = socket.get_executor();
  auto connection = std::make_shared<HttpConnection>(std::move(context), TlsStream(std::move(socket), std::move(ssl)),
                                                     std::move(peer), std::move(guard));
  asio::post(executor, [connection] { connection->start(); });
}

}  // namespace muster::net
