#pragma once
// One HTTP/1.1 + WebSocket + TLS stack for both ends (Boost.Beast/Asio inside, never in this header). All callbacks of
// one connection come on that connection's strand; every class here is safe to call from any thread unless it says
// otherwise. Bounds: header <= 16 KiB, body <= Limits.body_bytes, frame <= Limits.frame_bytes, idle time-outs; a peer
// that breaks one is answered 4xx or closed. Errors are values; no exception leaves this room.
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "base/time.h"
#include "crypto/cert.h"

namespace muster::net {

struct Limits {
  std::size_t body_bytes = 4 << 20;
  std::size_t upload_bytes = 512 << 20;
  std::size_t frame_bytes = 1 << 20;
  std::size_t connections = 10'000;
  std::size_t connections_per_address = 2'000;
  Millis header_timeout{10'000};
  Millis idle_timeout{120'000};
};

struct Request {
  std::string method, path;  // path without query, percent-decoded, normalised ("..": refused)
  std::vector<std::pair<std::string, std::string>> query;  // decoded, in order; keys may repeat
  std::map<std::string, std::string> headers;              // lower-case names
  std::string body, peer;                                  // peer "ip:port"
  std::optional<std::string> query_value(std::string_view key) const;
  std::string header(std::string_view lower_name) const;  // empty when absent
};
// Of a body in application/x-www-form-urlencoded; nullopt: another type, damaged, or not there exactly once.
std::optional<std::string> form_value(const Request& request, std::string_view name);
struct Response {
  int status = 200;
  std::string content_type = "application/json";
  std::map<std::string, std::string> headers;
  std::string body;
};

// The answer to one request: either send() once, or start_stream() then write() any number of times then finish().
class Responder {
 public:
  virtual ~Responder() = default;
  virtual void send(Response response) = 0;
  virtual void start_stream(Response head) = 0;  // chunked; head.body is the first chunk
  virtual bool write(std::string chunk) = 0;     // false when the peer is gone
  virtual std::size_t buffered() const = 0;      // bytes not yet on the wire: stop feeding a slow reader
  virtual void finish() = 0;
  virtual void on_close(std::function<void()> callback) = 0;  // the peer left before the answer was complete
};
using ResponderPtr = std::shared_ptr<Responder>;

class WebSocket {
 public:
  virtual ~WebSocket() = default;
  virtual void start(std::function<void(Bytes)> on_message,
                     std::function<void(std::string reason)> on_close) = 0;  // once
  virtual void send(Bytes message) = 0;                                      // binary, queued
  virtual std::size_t buffered() const = 0;
  virtual void pause_reading(bool paused) { static_cast<void>(paused); }  // back-pressure: no new reads while paused
  virtual void close(std::string reason) = 0;
  virtual std::string peer() const = 0;
};
using WebSocketPtr = std::shared_ptr<WebSocket>;

struct ServerHandlers {
  std::function<void(Request, ResponderPtr)> http;
  // Decide on an upgrade: a Response refuses it; nullopt accepts, then `websocket` gets the open socket.
  std::function<std::optional<Response>(const Request&)> upgrade;
  std::function<void(Request, WebSocketPtr)> websocket;
  // Large uploads (POST /api/v1/blobs): asked for every POST and PUT with a body, before it is read. A sink gets the
  // chunks and then the end; nullopt with refusal.status >= 400 refuses; nullopt alone: an ordinary request, buffered,
  // then `http`.
  struct Upload {
    std::function<Status(ByteView)> chunk;
    std::function<Response()> end;
  };
  std::function<std::optional<Upload>(const Request&, Response& refusal)> upload;
};
struct TlsFiles {
  std::string certificate_pem, key_pem;
};  // contents, not paths

class Server {
 public:
  static Result<std::unique_ptr<Server>> create(ServerHandlers handlers, TlsFiles tls, Limits limits, int threads);
  virtual ~Server() = default;
  virtual Result<std::uint16_t> listen(const std::string& address,
                                       std::uint16_t port) = 0;  // 0 = any; returns the port
  // Takes accepted TCP descriptors (SCM_RIGHTS) from muster-relay over this unix socket path (net/handoff.h);
  // reconnects for ever.
  virtual Status adopt_from(const std::string& unix_socket) = 0;
  virtual void stop() = 0;
  virtual Status reload_tls(TlsFiles tls) = 0;
  // What is shown to who asks for one of these names and is no program of ours: lower case, "*.example.org" too; no
  // names: none. Browsers are told to use nothing but TLS for the name from then on.
  virtual Status set_public_tls(const std::set<std::string>& names, TlsFiles tls) = 0;
  // What a CA is shown that looks whether a name is ours (RFC 8737); without a certificate: it is over.
  virtual Status set_name_proof(const std::string& name, TlsFiles tls) = 0;
};

inline constexpr std::string_view kRelayName = "muster-relay";  // the only name in a relay's certificate

// Where to dial and whom to trust. ca_pem: the pinned CA, or a bundle with several roots (crypto/trust.h); system roots
// are not used. ca_sha256 (32 bytes) instead pins a root by the SHA-256 of its DER while its PEM is not known yet
// (enrolment, first login): the chain sent must contain it. The server's certificate must state the role: a relay's is
// refused for the control plane. A relay may also show one of before there were roles, with the name "muster".
//
// Web: a server that is no part of Muster. The system's roots vouch for it, or ca_pem alone where one is given, under
// the host's own name. PlainLoopback: no TLS at all, for what runs on this machine.
enum class Peer : std::uint8_t { Muster, Web, PlainLoopback };
struct Endpoint {
  std::string host;
  std::uint16_t port = 443;
  std::string ca_pem;
  Bytes ca_sha256;
  std::string server_name = "muster";  // name checked in the certificate
  crypto::ServerRole role = crypto::ServerRole::ControlPlane;
  bool use_proxy_env = true;  // HTTPS_PROXY / NO_PROXY, CONNECT with Basic auth
  Peer peer = Peer::Muster;
};
Result<Endpoint> parse_url(std::string_view url);  // "https://host[:port]"

// "https://host[:port][/path][?query]" of a server of the web; "http://" only for this machine's own addresses
// (127.0.0.1, [::1], localhost). Refused: user names, fragments, blanks, anything but printable ASCII.
struct WebUrl {
  Endpoint endpoint;
  std::string target = "/";  // path and query
};
Result<WebUrl> parse_web_url(std::string_view url);
std::string form_text(const std::vector<std::pair<std::string, std::string>>& fields);  // a=b&c=d, percent-encoded
std::optional<Request> parse_request_line(std::string_view line);  // "GET /a?b=c HTTP/1.1": method, path and query

// Blocking client: one call at a time, one thread. Used by the CLI, enrolment and tests.
class Client {
 public:
  explicit Client(Endpoint endpoint);
  ~Client();
  struct Call {
    std::string method = "GET", target;
    std::map<std::string, std::string> headers;
    std::string body;
    Millis timeout{30'000};            // of connecting, of sending and of the answer, each
    std::size_t body_max = 256 << 20;  // of the answer
  };
  Result<Response> call(const Call& call);
  // Streams the body as it comes (SSE, logs); on_chunk returns false to stop.
  Result<Response> stream(const Call& call, const std::function<bool(std::string_view)>& on_chunk);
  Result<Response> upload(const Call& call, const std::string& file_path,
                          const std::function<void(std::uint64_t)>& progress);
  std::string last_ca_pem() const;  // the CA that the peer's chain ended in
  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

// Event loop with its threads, for those who dial asynchronously (agent, CLI tunnels, netd).
class Loop {
 public:
  static std::unique_ptr<Loop> create(int threads);
  virtual ~Loop() = default;
  virtual void post(std::function<void()> f) = 0;
  virtual void after(Millis delay, std::function<void()> f) = 0;
  virtual void dial_websocket(Endpoint endpoint, std::string target, std::map<std::string, std::string> headers,
                              std::function<void(Result<WebSocketPtr>)> done) = 0;
  // Plain TCP or unix listener/connection helpers for port-forward.
  virtual void stop() = 0;
};

}  // namespace muster::net
