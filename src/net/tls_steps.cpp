#include "net/tls_steps.h"

#include <openssl/err.h>

#include <boost/asio/error.hpp>

namespace muster::net {
namespace {

void begin_step() {
  ERR_clear_error();
  errno = 0;
}

TlsStep judge_step(SSL& ssl, int rc, std::size_t& bytes, ErrorCode& ec) {
  if (rc > 0) return TlsStep::Done;
  bytes = 0;
  const int saved = errno;
  switch (SSL_get_error(&ssl, rc)) {
    case SSL_ERROR_WANT_READ:
      return TlsStep::WaitRead;
    case SSL_ERROR_WANT_WRITE:
      return TlsStep::WaitWrite;
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
  return TlsStep::Failed;
}

}  // namespace

TlsStep tls_handshake(SSL& ssl, ErrorCode& ec) {
  begin_step();
  std::size_t none = 0;
  return judge_step(ssl, SSL_do_handshake(&ssl), none, ec);
}

TlsStep tls_read(SSL& ssl, asio::mutable_buffer target, std::size_t& bytes, ErrorCode& ec) {
  begin_step();
  return judge_step(ssl, SSL_read_ex(&ssl, target.data(), target.size(), &bytes), bytes, ec);
}

TlsStep tls_write(SSL& ssl, asio::const_buffer source, std::size_t& bytes, ErrorCode& ec) {
  begin_step();
  return judge_step(ssl, SSL_write_ex(&ssl, source.data(), source.size(), &bytes), bytes, ec);
}

std::size_t tls_read_now(SSL& ssl, asio::mutable_buffer target, ErrorCode& ec) {
  std::size_t total = 0;
  for (auto step = TlsStep::Done; step == TlsStep::Done && total < target.size();) {
    std::size_t bytes = 0;
    step = tls_read(ssl, target + total, bytes, ec);
    total += bytes;
    if (total > 0 && SSL_has_pending(&ssl) == 0) break;  // asking the socket again would mostly be in vain
  }
  if (total > 0) ec = {};  // an end comes again, alone
  return total;
}

}  // namespace muster::net
