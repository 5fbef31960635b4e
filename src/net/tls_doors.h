#pragma once
// Inside net: which certificate a client of the server is shown. Our own programs pin our CA and say so by ALPN
// (kOwnAlpn): they are shown its certificate. Others who ask for a public name (SNI) are shown the one that a public CA
// gave for it, where there is one; a CA that looks whether a name is ours asks by ALPN "acme-tls/1" (RFC 8737). All
// others are shown our own. Thread-safe; must outlive the handshakes.
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>

#include "net/tls.h"

namespace muster::net {

inline constexpr std::string_view kProofAlpn = "acme-tls/1";

class TlsDoors {
 public:
  TlsDoors() = default;
  TlsDoors(const TlsDoors&) = delete;
  TlsDoors& operator=(const TlsDoors&) = delete;

  Status set_own(const TlsFiles& files);
  Status set_public(const std::set<std::string>& names, const TlsFiles& files);  // lower case; no names: none
  Status set_proof(const std::string& name, const TlsFiles& files);              // no certificate: it is over
  SslCtxPtr context() const;                                                     // for a new connection
  bool is_public(const SSL_CTX* shown) const;

 private:
  static int on_hello(SSL* ssl, int* alert, void* self);
  SslCtxPtr choose(SSL* ssl) const;

  mutable std::mutex mutex_;
  SslCtxPtr own_, public_;
  std::set<std::string> names_;
  std::map<std::string, SslCtxPtr> proofs_;
};

}  // namespace muster::net
