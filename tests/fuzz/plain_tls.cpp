#include "fuzz/plain_tls.h"

#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/error.hpp>
#include <cerrno>

#include "net/dial.h"
#include "net/tls_doors.h"
#include "net/tls_stream.h"

namespace muster::fuzz {
namespace {
ByteView answers;
std::size_t answer_piece = 0;

SSL_CTX* context() {
  static SSL_CTX* const kept = SSL_CTX_new(TLS_method());
  return kept;
}
}  // namespace

void set_answers(ByteView bytes, std::size_t piece) {
  answers = bytes;
  answer_piece = piece;
}

}  // namespace muster::fuzz

namespace muster::net {

namespace {
TlsStep judge_plain(ssize_t rc, TlsStep wait, std::size_t& bytes, ErrorCode& ec) {
  bytes = rc > 0 ? static_cast<std::size_t>(rc) : 0;
  if (rc > 0) return TlsStep::Done;
  if (rc < 0 && errno == EAGAIN) return wait;
  ec = rc == 0 ? ErrorCode(asio::error::eof) : ErrorCode(errno, boost::system::system_category());
  return TlsStep::Failed;
}
}  // namespace

TlsStep TlsStream::handshake(ErrorCode&) {
  return TlsStep::Done;
}
TlsStep TlsStream::read(asio::mutable_buffer target, std::size_t& bytes, ErrorCode& ec) {
  if (!socket_.is_open()) {
    ec = asio::error::operation_aborted;
    return TlsStep::Failed;
  }
  return judge_plain(::recv(socket_.native_handle(), target.data(), target.size(), MSG_DONTWAIT), TlsStep::WaitRead,
                     bytes, ec);
}
TlsStep TlsStream::write(asio::const_buffer source, std::size_t& bytes, ErrorCode& ec) {
  if (!socket_.is_open()) {
    ec = asio::error::operation_aborted;
    return TlsStep::Failed;
  }
  return judge_plain(::send(socket_.native_handle(), source.data(), source.size(), MSG_DONTWAIT | MSG_NOSIGNAL),
                     TlsStep::WaitWrite, bytes, ec);
}
void TlsStream::shutdown_send() {
  ErrorCode ignored;
  if (socket_.is_open()) socket_.shutdown(tcp::socket::shutdown_send, ignored);
}
void TlsStream::close() {
  ErrorCode ignored;
  if (socket_.is_open()) socket_.close(ignored);
}

bool TlsDoors::is_public(const SSL_CTX*) const {
  return false;
}
SslPtr new_ssl(SSL_CTX& ctx, int) {
  return SslPtr(SSL_new(&ctx));
}

Fd& Fd::operator=(Fd&& other) noexcept {
  reset();
  fd_ = other.release();
  return *this;
}
void Fd::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}
Result<Dialled> dial(const Endpoint&, const std::string&, Deadline) {
  Dialled out;
  out.ssl = SslPtr(SSL_new(fuzz::context()));
  return out;
}
Result<std::size_t> read_some(Dialled&, char* data, std::size_t size, Deadline) {
  if (fuzz::answer_piece != 0) size = std::min(size, fuzz::answer_piece);
  const ByteView part = fuzz::answers.first(std::min(size, fuzz::answers.size()));
  std::copy(part.begin(), part.end(), data);
  fuzz::answers = fuzz::answers.subspan(part.size());
  return part.size();
}
Status write_all(Dialled&, std::string_view, Deadline) {
  return {};
}

}  // namespace muster::net
