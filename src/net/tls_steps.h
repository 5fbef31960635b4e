#pragma once
// Inside net and relay: one step of OpenSSL on a socket that does not block, and what it waits for. The caller sees to
// it that one thread at a time has the SSL. EOF is asio::error::eof, with or without close_notify.
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/system/error_code.hpp>

#include "net/tls.h"

namespace muster::net {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

enum class TlsStep { Done, WaitRead, WaitWrite, Failed };
TlsStep tls_handshake(SSL& ssl, ErrorCode& ec);
TlsStep tls_read(SSL& ssl, asio::mutable_buffer target, std::size_t& bytes, ErrorCode& ec);
TlsStep tls_write(SSL& ssl, asio::const_buffer source, std::size_t& bytes, ErrorCode& ec);

// Of many records at once, as far as what one look at the socket brought goes; more may lie in it. 0 bytes and no
// error: nothing was there. After a read that filled the target more may lie in the SSL, of which the socket says
// nothing.
std::size_t tls_read_now(SSL& ssl, asio::mutable_buffer target, ErrorCode& ec);

}  // namespace muster::net
