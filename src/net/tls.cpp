#include "net/tls.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "crypto/trust.h"

namespace muster::net {
namespace {

// What every server's certificate was named before relays had their own.
constexpr std::string_view kNameBeforeRoles = "muster";

// A BIO over a non-blocking descriptor: like OpenSSL's socket BIO, but a broken peer gives EPIPE instead of a signal.
int bio_fd(BIO* bio) {
  return static_cast<int>(reinterpret_cast<std::intptr_t>(BIO_get_data(bio)));
}
bool again(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}
int bio_write(BIO* bio, const char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t n = ::send(bio_fd(bio), data, static_cast<std::size_t>(size), MSG_NOSIGNAL);
  if (n < 0 && again(errno)) BIO_set_retry_write(bio);
  return static_cast<int>(n);
}
int bio_read(BIO* bio, char* data, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t n = ::recv(bio_fd(bio), data, static_cast<std::size_t>(size), 0);
  if (n < 0 && again(errno)) BIO_set_retry_read(bio);
  if (n == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return static_cast<int>(n);
}
long bio_ctrl(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_FLUSH) return 1;
  if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
  return 0;
}
const BIO_METHOD* socket_method() {
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "muster socket");
    BIO_meth_set_write(m, bio_write);
    BIO_meth_set_read(m, bio_read);
    BIO_meth_set_ctrl(m, bio_ctrl);
    return m;
  }();
  return method;
}

// Below TLS 1.3: a fresh key for each connection and authenticated ciphers, nothing else.
constexpr const char* kSuites = "ECDHE+AESGCM:ECDHE+CHACHA20";
constexpr const char* kGroups = "X25519:P-256:P-384";

void common_options(SSL_CTX& ctx) {
  SSL_CTX_set_min_proto_version(&ctx, TLS1_2_VERSION);
  MUSTER_CHECK(SSL_CTX_set_cipher_list(&ctx, kSuites) == 1 && SSL_CTX_set1_groups_list(&ctx, kGroups) == 1);
  SSL_CTX_set_mode(&ctx,
                   SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_options(&ctx, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF);
}

std::vector<std::unique_ptr<X509, SslFree>> read_certificates(const std::string& pem) {
  std::vector<std::unique_ptr<X509, SslFree>> out;
  std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
  while (X509* cert = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) out.emplace_back(cert);
  ERR_clear_error();
  return out;
}

std::string alpn_wire(const std::vector<std::string>& names) {
  std::string out;
  for (const auto& name : names) out += static_cast<char>(name.size()) + name;
  return out;
}

int choose_alpn(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* in, unsigned in_size,
                void* arg) {
  const auto& ours = *static_cast<const std::string*>(arg);
  unsigned char* chosen = nullptr;
  const int rc = SSL_select_next_proto(&chosen, out_size, reinterpret_cast<const unsigned char*>(ours.data()),
                                       static_cast<unsigned>(ours.size()), in, in_size);
  if (rc != OPENSSL_NPN_NEGOTIATED) return SSL_TLSEXT_ERR_NOACK;
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

bool is_address(const std::string& host) {
  unsigned char buffer[16];
  return ::inet_pton(AF_INET, host.c_str(), buffer) == 1 || ::inet_pton(AF_INET6, host.c_str(), buffer) == 1;
}

Status set_name(X509_VERIFY_PARAM& param, const Endpoint& endpoint) {
  const std::string& name = endpoint.server_name;
  const bool address = is_address(name);
  bool ok = address ? X509_VERIFY_PARAM_set1_ip_asc(&param, name.c_str()) == 1
                    : X509_VERIFY_PARAM_set1_host(&param, name.data(), name.size()) == 1;
  if (endpoint.role == crypto::ServerRole::Relay && !address)
    ok = ok && X509_VERIFY_PARAM_add1_host(&param, kNameBeforeRoles.data(), kNameBeforeRoles.size()) == 1;
  if (!ok) return error(Code::InvalidArgument, "the server name '" + name + "' cannot be checked in a certificate");
  return {};
}

std::string to_pem(X509& cert) {
  std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), BIO_free);
  if (PEM_write_bio_X509(bio.get(), &cert) != 1) return {};
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return {data, static_cast<std::size_t>(size)};
}

Error untrusted(const std::string& why) {
  return error(Code::Unauthenticated, "the server's certificate is not trusted: " + why +
                                          "; someone may sit in between, or the pinned CA is of another control plane");
}

Status check_role(SSL& ssl, const Endpoint& endpoint) {
  X509* leaf = SSL_get0_peer_certificate(&ssl);
  if (leaf == nullptr) return untrusted("it sent none");
  const auto role = crypto::server_role(to_pem(*leaf));
  if (!role.ok()) return untrusted(role.error().message);
  if (*role == endpoint.role || (!*role && endpoint.role == crypto::ServerRole::Relay)) return {};
  if (!*role)
    return error(Code::Unauthenticated, "the certificate of " + endpoint.host +
                                            " does not say that it is the control plane's: its musterd is older than "
                                            "this program; update musterd first");
  return untrusted(*role == crypto::ServerRole::Relay ? "it is a relay's, not the control plane's"
                                                      : "it is the control plane's, not a relay's");
}

using CertList = std::vector<std::unique_ptr<X509, SslFree>>;
using StackPtr = std::unique_ptr<STACK_OF(X509), decltype([](STACK_OF(X509) * list) { sk_X509_free(list); })>;

bool signed_by(X509* cert, X509* ca) {
  const bool by_it = X509_check_issued(ca, cert) == X509_V_OK && X509_verify(cert, X509_get0_pubkey(ca)) == 1;
  ERR_clear_error();
  return by_it;
}

// While roots or CAs change a server sends several ways to several roots, and OpenSSL tries only one of them. Of what
// was sent those CAs are left that a believed root vouches for and nobody gave up.
StackPtr ways(STACK_OF(X509) * sent, const CertList& believed, const CertList& given_up) {
  StackPtr out(sk_X509_new_null());
  for (int i = 0; i < sk_X509_num(sent); ++i) {
    X509* cert = sk_X509_value(sent, i);
    const bool gone = std::any_of(given_up.begin(), given_up.end(),
                                  [&](const auto& each) { return X509_cmp(each.get(), cert) == 0; });
    const bool vouched = std::any_of(believed.begin(), believed.end(), [&](const auto& root) {
      return X509_cmp(root.get(), cert) != 0 && signed_by(cert, root.get());
    });
    if (vouched && !gone) sk_X509_push(out.get(), cert);
  }
  return out;
}

struct Believed {
  CertList roots, given_up;
};
int verify_chain(X509_STORE_CTX* ctx, void* data) {
  const auto& believed = *static_cast<const Believed*>(data);
  STACK_OF(X509)* sent = X509_STORE_CTX_get0_untrusted(ctx);
  const StackPtr left = ways(sent, believed.roots, believed.given_up);
  X509_STORE_CTX_set0_untrusted(ctx, left.get());
  const int result = X509_verify_cert(ctx);
  X509_STORE_CTX_set0_untrusted(ctx, sent);
  return result;
}

CertList read_all(const std::vector<std::string>& pems) {
  CertList out;
  for (const std::string& pem : pems) {
    for (auto& cert : read_certificates(pem)) out.push_back(std::move(cert));
  }
  return out;
}

// Only the bundle's roots, by whatever CA of theirs that it does not give up.
Status believe_bundle(SSL_CTX& ctx, const std::string& ca_pem) {
  const auto trust = crypto::parse_trust(ca_pem);
  if (!trust.ok())
    return error(Code::InvalidArgument, "the pinned CA is not a certificate in PEM form: " + trust.error().message);
  auto believed = std::make_unique<Believed>();
  believed->roots = read_all(trust->roots);
  believed->given_up = read_all(trust->given_up);
  X509_STORE* store = SSL_CTX_get_cert_store(&ctx);
  for (const auto& cert : believed->roots) X509_STORE_add_cert(store, cert.get());
  for (const auto& cert : read_all(trust->intermediates)) X509_STORE_add_cert(store, cert.get());
  static const int kBelievedSlot = SSL_CTX_get_ex_new_index(
      0, nullptr, nullptr, nullptr,
      [](void*, void* data, CRYPTO_EX_DATA*, int, long, void*) { delete static_cast<Believed*>(data); });
  SSL_CTX_set_cert_verify_callback(&ctx, verify_chain, believed.get());
  SSL_CTX_set_ex_data(&ctx, kBelievedSlot, believed.release());
  return {};
}

// The chain sent must hold the pinned CA; the leaf must verify against it alone.
Result<std::string> check_pin(SSL& ssl, const Endpoint& endpoint) {
  STACK_OF(X509)* chain = SSL_get_peer_cert_chain(&ssl);
  X509* leaf = SSL_get0_peer_certificate(&ssl);
  if (chain == nullptr || leaf == nullptr) return untrusted("it sent none");
  CertList pinned;
  for (int i = 0; i < sk_X509_num(chain) && pinned.empty(); ++i) {
    unsigned char digest[32];
    unsigned size = 0;
    X509* cert = sk_X509_value(chain, i);
    if (X509_digest(cert, EVP_sha256(), digest, &size) == 1 && size == endpoint.ca_sha256.size() &&
        std::equal(digest, digest + size, endpoint.ca_sha256.begin())) {
      X509_up_ref(cert);
      pinned.emplace_back(cert);
    }
  }
  if (pinned.empty()) return untrusted("its chain does not contain the pinned CA");
  const StackPtr left = ways(chain, pinned, {});
  std::unique_ptr<X509_STORE, decltype(&X509_STORE_free)> store(X509_STORE_new(), X509_STORE_free);
  std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> ctx(X509_STORE_CTX_new(), X509_STORE_CTX_free);
  if (X509_STORE_add_cert(store.get(), pinned.front().get()) != 1 ||
      X509_STORE_CTX_init(ctx.get(), store.get(), leaf, left.get()) != 1) {
    return error(Code::Internal, "cannot check the server's certificate: " + ssl_error_text());
  }
  X509_STORE_CTX_set_purpose(ctx.get(), X509_PURPOSE_SSL_SERVER);
  TRY_VOID(set_name(*X509_STORE_CTX_get0_param(ctx.get()), endpoint));
  if (X509_verify_cert(ctx.get()) != 1)
    return untrusted(X509_verify_cert_error_string(X509_STORE_CTX_get_error(ctx.get())));
  return to_pem(*pinned.front());
}

}  // namespace

std::string ssl_error_text() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  if (code == 0) return "no detail";
  char text[256];
  ERR_error_string_n(code, text, sizeof text);
  const char* reason = ERR_reason_error_string(code);
  return reason != nullptr ? reason : text;
}

Result<SslCtxPtr> server_context(const TlsFiles& files, const std::vector<std::string>& alpn) {
  SslCtxPtr ctx(SSL_CTX_new(TLS_server_method()), SslFree());
  if (!ctx) return error(Code::Internal, "cannot start TLS: " + ssl_error_text());
  common_options(*ctx);
  SSL_CTX_set_read_ahead(ctx.get(), 1);  // a record in one recv, not its head and its body apart
  auto certs = read_certificates(files.certificate_pem);
  if (certs.empty()) return error(Code::InvalidArgument, "the TLS certificate file holds no certificate in PEM form");
  std::unique_ptr<BIO, decltype(&BIO_free)> bio(
      BIO_new_mem_buf(files.key_pem.data(), static_cast<int>(files.key_pem.size())), BIO_free);
  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr),
                                                          EVP_PKEY_free);
  if (!key) {
    ERR_clear_error();
    return error(Code::InvalidArgument,
                 "the TLS key file holds no private key in PEM form (encrypted keys are not read)");
  }
  if (SSL_CTX_use_certificate(ctx.get(), certs[0].get()) != 1 || SSL_CTX_use_PrivateKey(ctx.get(), key.get()) != 1) {
    return error(Code::InvalidArgument, "the TLS key does not belong to the first certificate: " + ssl_error_text());
  }
  for (std::size_t i = 1; i < certs.size(); ++i) {
    if (SSL_CTX_add0_chain_cert(ctx.get(), certs[i].get()) != 1)
      return error(Code::InvalidArgument, "bad certificate chain: " + ssl_error_text());
    (void)certs[i].release();
  }
  static const unsigned char kSessionId[] = "muster";
  SSL_CTX_set_session_id_context(ctx.get(), kSessionId, sizeof kSessionId - 1);
  SSL_CTX_set_session_cache_mode(ctx.get(), SSL_SESS_CACHE_OFF);  // tickets only: no memory per client
  static const int kAlpnSlot = SSL_CTX_get_ex_new_index(
      0, nullptr, nullptr, nullptr,
      [](void*, void* data, CRYPTO_EX_DATA*, int, long, void*) { delete static_cast<std::string*>(data); });
  auto* wire = new std::string(alpn_wire(alpn));
  SSL_CTX_set_ex_data(ctx.get(), kAlpnSlot, wire);
  if (!wire->empty()) SSL_CTX_set_alpn_select_cb(ctx.get(), choose_alpn, wire);
  return ctx;
}

Result<SslCtxPtr> client_context(const Endpoint& endpoint, const std::string& alpn) {
  const bool by_roots = endpoint.peer == Peer::Web && endpoint.ca_pem.empty();
  if (!by_roots && endpoint.ca_pem.empty() && endpoint.ca_sha256.size() != 32) {
    return error(Code::InvalidArgument,
                 "no CA to trust is known for " + endpoint.host + "; give its certificate or its SHA-256 pin");
  }
  SslCtxPtr ctx(SSL_CTX_new(TLS_client_method()), SslFree());
  if (!ctx) return error(Code::Internal, "cannot start TLS: " + ssl_error_text());
  common_options(*ctx);
  SSL_CTX_set_session_cache_mode(ctx.get(), SSL_SESS_CACHE_OFF);
  if (by_roots) {
    if (SSL_CTX_set_default_verify_paths(ctx.get()) != 1)
      return error(Code::Unavailable, "the system's root certificates cannot be read: " + ssl_error_text());
    SSL_CTX_set_verify(ctx.get(), SSL_VERIFY_PEER, nullptr);
  } else if (endpoint.peer == Peer::Muster && !endpoint.ca_pem.empty()) {
    TRY_VOID(believe_bundle(*ctx, endpoint.ca_pem));
    SSL_CTX_set_verify(ctx.get(), SSL_VERIFY_PEER, nullptr);
  } else if (!endpoint.ca_pem.empty()) {
    const auto certs = read_certificates(endpoint.ca_pem);
    if (certs.empty()) return error(Code::InvalidArgument, "the pinned CA is not a certificate in PEM form");
    for (const auto& cert : certs) X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx.get()), cert.get());
    SSL_CTX_set_verify(ctx.get(), SSL_VERIFY_PEER, nullptr);
  }
  const bool ours =
      endpoint.peer == Peer::Muster && endpoint.role == crypto::ServerRole::ControlPlane && alpn == "http/1.1";
  const std::string wire = ours ? alpn_wire({std::string(kOwnAlpn), alpn}) : alpn_wire({alpn});
  SSL_CTX_set_alpn_protos(ctx.get(), reinterpret_cast<const unsigned char*>(wire.data()),
                          static_cast<unsigned>(wire.size()));
  return ctx;
}

SslPtr new_ssl(SSL_CTX& ctx, int fd) {
  SslPtr ssl(SSL_new(&ctx));
  BIO* bio = ssl ? BIO_new(socket_method()) : nullptr;
  if (bio == nullptr) return nullptr;
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<std::intptr_t>(fd)));
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl.get(), bio, bio);
  return ssl;
}

Status prepare_client(SSL& ssl, const Endpoint& endpoint) {
  SSL_set_connect_state(&ssl);
  if (!is_address(endpoint.server_name)) SSL_set_tlsext_host_name(&ssl, endpoint.server_name.c_str());
  const bool by_pin = endpoint.peer == Peer::Muster && endpoint.ca_pem.empty();
  return by_pin ? Status() : set_name(*SSL_get0_param(&ssl), endpoint);
}

Result<std::string> check_server(SSL& ssl, const Endpoint& endpoint) {
  if (endpoint.peer == Peer::Muster && endpoint.ca_pem.empty()) {
    std::string ca_pem = TRY(check_pin(ssl, endpoint));
    TRY_VOID(check_role(ssl, endpoint));
    return ca_pem;
  }
  if (SSL_get_verify_result(&ssl) != X509_V_OK)
    return untrusted(X509_verify_cert_error_string(SSL_get_verify_result(&ssl)));
  STACK_OF(X509)* chain = SSL_get0_verified_chain(&ssl);
  if (chain == nullptr || sk_X509_num(chain) == 0) return untrusted("it has no verified chain");
  if (endpoint.peer == Peer::Muster) TRY_VOID(check_role(ssl, endpoint));
  return to_pem(*sk_X509_value(chain, sk_X509_num(chain) - 1));
}

}  // namespace muster::net
