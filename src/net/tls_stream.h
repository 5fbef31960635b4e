#pragma once
// Inside net: TLS as an Asio stream directly on the socket: OpenSSL reads and writes the descriptor itself
// and Asio only waits for readiness, so an idle connection holds no record buffers (asio::ssl would keep two of 17
// KiB). At most one read and one write at a time, all on the executor of the socket. EOF is asio::error::eof, with or
// without close_notify.
#include <boost/asio/compose.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/role.hpp>

#include "net/tls_steps.h"

namespace muster::net {

class TlsStream {
 public:
  using executor_type = tcp::socket::executor_type;
  TlsStream(tcp::socket socket, SslPtr ssl) : socket_(std::move(socket)), ssl_(std::move(ssl)) {}
  executor_type get_executor() noexcept { return socket_.get_executor(); }
  tcp::socket& socket() { return socket_; }
  SSL& ssl() { return *ssl_; }

  template <typename Token>
  auto async_handshake(Token&& token) {
    return asio::async_compose<Token, void(ErrorCode, std::size_t)>(HandshakeOp{*this}, token, socket_);
  }
  template <typename Buffers, typename Token>
  auto async_read_some(const Buffers& buffers, Token&& token) {
    asio::mutable_buffer target;
    for (auto it = asio::buffer_sequence_begin(buffers); it != asio::buffer_sequence_end(buffers) && target.size() == 0;
         ++it)
      target = *it;
    return asio::async_compose<Token, void(ErrorCode, std::size_t)>(ReadOp{*this, target}, token, socket_);
  }
  // The same for a peer that is not expected to say anything soon: waits first, and tries then.
  template <typename Token>
  auto async_read_later(asio::mutable_buffer target, Token&& token) {
    ReadOp op{*this, target};
    op.patient = SSL_has_pending(ssl_.get()) == 0;
    return asio::async_compose<Token, void(ErrorCode, std::size_t)>(op, token, socket_);
  }
  template <typename Buffers, typename Token>
  auto async_write_some(const Buffers& buffers, Token&& token) {
    return asio::async_compose<Token, void(ErrorCode, std::size_t)>(WriteOp<Buffers>{*this, buffers}, token, socket_);
  }
  // Says goodbye without waiting and closes both directions. Safe to call twice.
  void close();
  void shutdown_send();  // close_notify and FIN; reading goes on

 private:
  TlsStep handshake(ErrorCode& ec);
  TlsStep read(asio::mutable_buffer target, std::size_t& bytes, ErrorCode& ec);
  TlsStep write(asio::const_buffer source, std::size_t& bytes, ErrorCode& ec);

  // Runs one step until it ends; a step that ends at once completes through the executor, never inside the initiation.
  template <typename Derived>
  struct Op {
    template <typename Self>
    void operator()(Self& self, ErrorCode wait_error = {}) {
      auto& me = static_cast<Derived&>(*this);
      if (ended) return self.complete(result, bytes);
      if (wait_error) return self.complete(wait_error, 0);
      const TlsStep outcome = std::exchange(patient, false) ? TlsStep::WaitRead : me.step(bytes, result);
      if (outcome == TlsStep::WaitRead || outcome == TlsStep::WaitWrite) {
        waited = true;
        const auto kind = outcome == TlsStep::WaitRead ? tcp::socket::wait_read : tcp::socket::wait_write;
        return me.stream.socket_.async_wait(kind, std::move(self));
      }
      if (waited) return self.complete(result, bytes);
      ended = true;
      asio::post(me.stream.get_executor(), std::move(self));
    }
    bool waited = false, ended = false, patient = false;
    std::size_t bytes = 0;
    ErrorCode result;
  };
  struct HandshakeOp : Op<HandshakeOp> {
    explicit HandshakeOp(TlsStream& s) : stream(s) {}
    TlsStep step(std::size_t&, ErrorCode& ec) { return stream.handshake(ec); }
    TlsStream& stream;
  };
  struct ReadOp : Op<ReadOp> {
    ReadOp(TlsStream& s, asio::mutable_buffer t) : stream(s), target(t) {}
    TlsStep step(std::size_t& n, ErrorCode& ec) { return stream.read(target, n, ec); }
    TlsStream& stream;
    asio::mutable_buffer target;
  };
  template <typename Buffers>
  struct WriteOp : Op<WriteOp<Buffers>> {
    WriteOp(TlsStream& s, const Buffers& b) : stream(s), buffers(b) {}
    // Small pieces (a frame header and its payload) become one record.
    TlsStep step(std::size_t& n, ErrorCode& ec) {
      thread_local char scratch[16 << 10];
      const std::size_t total = asio::buffer_size(buffers);
      const asio::const_buffer first = *asio::buffer_sequence_begin(buffers);
      if (first.size() == total || first.size() >= sizeof scratch) return stream.write(first, n, ec);
      return stream.write({scratch, asio::buffer_copy(asio::buffer(scratch), buffers)}, n, ec);
    }
    TlsStream& stream;
    Buffers buffers;
  };

  tcp::socket socket_;
  SslPtr ssl_;
};

// What boost::beast::websocket asks of its next layer.
inline void beast_close_socket(TlsStream& stream) {
  stream.close();
}
inline void teardown(boost::beast::role_type, TlsStream& stream, ErrorCode& ec) {
  stream.close();
  ec = {};
}
template <typename Handler>
void async_teardown(boost::beast::role_type, TlsStream& stream, Handler&& handler) {
  stream.close();
  asio::post(stream.get_executor(), [h = std::forward<Handler>(handler)]() mutable { h(ErrorCode{}); });
}

}  // namespace muster::net
