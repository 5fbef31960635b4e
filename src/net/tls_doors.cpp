#include "net/tls_doors.h"

#include <algorithm>
#include <vector>

namespace muster::net {
namespace {

constexpr std::size_t kProofsMax = 64;

// The list inside an extension whose elements are led by their length in one byte (ALPN), after two bytes for the
// whole.
std::vector<std::string_view> alpn_of(SSL* ssl) {
  const unsigned char* data = nullptr;
  std::size_t size = 0;
  std::vector<std::string_view> out;
  if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &data, &size) != 1 || size < 2)
    return out;
  for (std::size_t at = 2; at < size;) {
    const std::size_t length = data[at++];
    if (length == 0 || length > size - at) return {};
    out.emplace_back(reinterpret_cast<const char*>(data + at), length);
    at += length;
  }
  return out;
}

// The one host name that a client asks for (RFC 6066, 3), lower case; empty: none.
std::string name_of(SSL* ssl) {
  const unsigned char* data = nullptr;
  std::size_t size = 0;
  if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_server_name, &data, &size) != 1 || size < 5) return {};
  const std::size_t length = std::size_t{data[3]} << 8 | data[4];
  if (data[2] != TLSEXT_NAMETYPE_host_name || length == 0 || length > 253 || length > size - 5) return {};
  std::string out(reinterpret_cast<const char*>(data + 5), length);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  if (out.ends_with('.')) out.pop_back();
  return out;
}

}  // namespace

Status TlsDoors::set_own(const TlsFiles& files) {
  auto fresh = TRY(server_context(files, {"http/1.1"}));
  SSL_CTX_set_client_hello_cb(fresh.get(), on_hello, this);
  const std::lock_guard lock(mutex_);
  own_ = std::move(fresh);
  return {};
}

Status TlsDoors::set_public(const std::set<std::string>& names, const TlsFiles& files) {
  SslCtxPtr fresh;
  if (!names.empty()) fresh = TRY(server_context(files, {"http/1.1"}));
  const std::lock_guard lock(mutex_);
  public_ = std::move(fresh);
  names_ = names;
  return {};
}

Status TlsDoors::set_proof(const std::string& name, const TlsFiles& files) {
  SslCtxPtr fresh;
  if (!files.certificate_pem.empty()) fresh = TRY(server_context(files, {std::string(kProofAlpn)}));
  const std::lock_guard lock(mutex_);
  if (!fresh) return proofs_.erase(name), Status();
  if (proofs_.size() >= kProofsMax && !proofs_.contains(name))
    return error(Code::ResourceExhausted, "too many names are being proven at once");
  proofs_[name] = std::move(fresh);
  return {};
}

SslCtxPtr TlsDoors::context() const {
  const std::lock_guard lock(mutex_);
  return own_;
}

bool TlsDoors::is_public(const SSL_CTX* shown) const {
  const std::lock_guard lock(mutex_);
  return public_ && public_.get() == shown;
}

SslCtxPtr TlsDoors::choose(SSL* ssl) const {
  {
    const std::lock_guard lock(mutex_);
    if (!public_ && proofs_.empty()) return nullptr;
  }
  const auto asked = alpn_of(ssl);
  const auto has = [&](std::string_view alpn) { return std::find(asked.begin(), asked.end(), alpn) != asked.end(); };
  if (has(kOwnAlpn)) return nullptr;
  const std::string name = name_of(ssl);
  const std::lock_guard lock(mutex_);
  if (asked.size() == 1 && has(kProofAlpn)) {
    const auto it = proofs_.find(name);
    return it == proofs_.end() ? nullptr : it->second;
  }
  const auto dot = name.find('.');
  const bool held = names_.contains(name) || (dot != std::string::npos && names_.contains("*" + name.substr(dot)));
  return held ? public_ : nullptr;
}

int TlsDoors::on_hello(SSL* ssl, int*, void* self) {
  if (const SslCtxPtr chosen = static_cast<const TlsDoors*>(self)->choose(ssl)) SSL_set_SSL_CTX(ssl, chosen.get());
  return SSL_CLIENT_HELLO_SUCCESS;
}

}  // namespace muster::net
