#pragma once
// Inside net and relay: OpenSSL without Asio. Contexts for both ends (TLS 1.2 and newer), a socket BIO that raises no
// SIGPIPE, and the check of a server's chain against a pinned CA (by PEM or by SHA-256 of its DER). Buffers are
// released when idle. Objects belong to one thread or strand at a time; contexts may be shared.
#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "net/net.h"

namespace muster::net {

struct SslFree {
  void operator()(SSL* ssl) const { SSL_free(ssl); }
  void operator()(SSL_CTX* ctx) const { SSL_CTX_free(ctx); }
  void operator()(X509* cert) const { X509_free(cert); }
};
// What Muster's programs offer beside "http/1.1" where they speak to the control plane: they want its own CA's
// certificate, whatever else is shown under the same name.
inline constexpr std::string_view kOwnAlpn = "muster/1";

using SslPtr = std::unique_ptr<SSL, SslFree>;
using SslCtxPtr = std::shared_ptr<SSL_CTX>;

// alpn: the protocols the server picks from, in its order of choice; a client that offers none of them goes on without
// ALPN.
Result<SslCtxPtr> server_context(const TlsFiles& files, const std::vector<std::string>& alpn);
Result<SslCtxPtr> client_context(const Endpoint& endpoint, const std::string& alpn);

SslPtr new_ssl(SSL_CTX& ctx, int fd);                       // the descriptor stays the caller's
Status prepare_client(SSL& ssl, const Endpoint& endpoint);  // SNI and the name to check
// After the handshake and before any byte is sent: the peer is who the endpoint pins and has the role it asks for.
// Returns the CA its chain ends in (PEM).
Result<std::string> check_server(SSL& ssl, const Endpoint& endpoint);
std::string ssl_error_text();  // the oldest error of this thread's queue, cleared

}  // namespace muster::net
