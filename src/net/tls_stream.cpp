#include "net/tls_stream.h"

#include <openssl/err.h>

#include <boost/asio/error.hpp>

namespace muster::net {

TlsStream::Outcome TlsStream::judge(int rc, std::size_t& bytes, ErrorCode& ec) {
  if (rc > 0) return Outcome::Done;
  bytes = 0;
  const int saved = errno;
  switch (SSL_get_error(ssl_.get(), rc)) {
    case SSL_ERROR_WANT_READ:
      return Outcome::WaitRead;
    case SSL_ERROR_WANT_WRITE:
      return Outcome::WaitWrite;
    case SSL_ERROR_ZERO_RETURN:
      ec = asio::error::eof;
      break;
    case SSL_ERROR_SYSCALL:
      ec = saved != 0 ? ErrorCode(saved, boost::system::system_category()) : make_error_code(asio::error::eof);
      break;
    default:
      ec = make_error_code(boost::system::errc::protocol_error);
      break;
  }
  return Outcome::Failed;
}

TlsStream::Outcome TlsStream::handshake(ErrorCode& ec) {
  ERR_clear_error();
  errno = 0;
  std::size_t none = 0;
  return judge(SSL_do_handshake(ssl_.get()), none, ec);
}

TlsStream::Outcome TlsStream::read(asio::mutable_buffer target, std::size_t& bytes, ErrorCode& ec) {
  if (target.size() == 0) return Outcome::Done;
  if (!socket_.is_open()) {
    ec = asio::error::operation_aborted;
    return Outcome::Failed;
  }
  ERR_clear_error();
  errno = 0;
  return judge(SSL_read_ex(ssl_.get(), target.data(), target.size(), &bytes), bytes, ec);
}

TlsStream::Outcome TlsStream::write(const void* data, std::size_t size, std::size_t& bytes, ErrorCode& ec) {
  if (size == 0) return Outcome::Done;
  if (!socket_.is_open()) {
    ec = asio::error::operation_aborted;
    return Outcome::Failed;
  }
  ERR_clear_error();
  errno = 0;
  return judge(SSL_write_ex(ssl_.get(), data, size, &bytes), bytes, ec);
}

std::size_t TlsStream::read_now(asio::mutable_buffer target, ErrorCode& ec) {
  std::size_t total = 0;
  for (Outcome outcome = Outcome::Done; outcome == Outcome::Done && total < target.size();) {
    std::size_t bytes = 0;
    outcome = read(target + total, bytes, ec);
    total += bytes;
  }
  if (total > 0) ec = {};  // an end comes again, alone
  return total;
}

std::size_t TlsStream::write_now(asio::const_buffer source, ErrorCode& ec) {
  std::size_t bytes = 0;
  (void)write(source.data(), source.size(), bytes, ec);
  return bytes;
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
