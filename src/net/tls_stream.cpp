#include "net/tls_stream.h"

#include <openssl/err.h>

#include <boost/asio/error.hpp>

namespace muster::net {

TlsStep TlsStream::handshake(ErrorCode& ec) {
  return tls_handshake(*ssl_, ec);
}

TlsStep TlsStream::read(asio::mutable_buffer target, std::size_t& bytes, ErrorCode& ec) {
  if (target.size() == 0) return TlsStep::Done;
  if (socket_.is_open()) return tls_read(*ssl_, target, bytes, ec);
  ec = asio::error::operation_aborted;
  return TlsStep::Failed;
}

TlsStep TlsStream::write(asio::const_buffer source, std::size_t& bytes, ErrorCode& ec) {
  if (source.size() == 0) return TlsStep::Done;
  if (socket_.is_open()) return tls_write(*ssl_, source, bytes, ec);
  ec = asio::error::operation_aborted;
  return TlsStep::Failed;
}

void TlsStream::shutdown_send() {
  if (!socket_.is_open()) return;
  ERR_clear_error();
  if (SSL_is_init_finished(ssl_.get()) != 0) SSL_shutdown(ssl_.get());
  ERR_clear_error();
  ErrorCode ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
}

void TlsStream::close() {
  if (!socket_.is_open()) return;
  shutdown_send();
  ErrorCode ignored;
  socket_.close(ignored);
}

}  // namespace muster::net
