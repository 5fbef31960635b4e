#include "net/net.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "crypto/cert.h"
#include "crypto/public_name.h"
#include "crypto/trust.h"
#include "net/dial.h"
#include "net/handoff.h"
#include "net/registry.h"
#include "net/url.h"

namespace muster::net {
namespace {

struct Pki {
  crypto::KeyAndCert ca = *crypto::create_ca("test CA", read_clocks().wall);
  crypto::KeyAndCert server = *crypto::issue_server_certificate(
      ca, crypto::ServerRole::ControlPlane, "muster", {"muster", "127.0.0.1"}, read_clocks().wall, Millis(3'600'000));
  TlsFiles files() const { return {server.cert_pem + ca.cert_pem, server.key_pem}; }
};
const Pki& pki() {
  static const Pki value;
  return value;
}

Endpoint endpoint(std::uint16_t port) {
  Endpoint e;
  e.host = "127.0.0.1";
  e.port = port;
  e.ca_pem = pki().ca.cert_pem;
  e.use_proxy_env = false;
  return e;
}

struct Site {
  std::atomic<int> requests{0}, left{0};
  std::string uploaded;
  std::mutex mutex;
  std::vector<ResponderPtr> held;
  std::unique_ptr<Server> server;
  std::uint16_t port = 0;

  explicit Site(Limits limits = {}, bool listen = true) {
    ServerHandlers h;
    h.http = [this](Request request, ResponderPtr responder) { handle(std::move(request), std::move(responder)); };
    h.upgrade = [](const Request& request) -> std::optional<Response> {
      if (request.path != "/ws") return Response{404, "text/plain", {}, "no such socket"};
      return {};
    };
    h.websocket = [](Request, WebSocketPtr socket) {
      std::weak_ptr<WebSocket> weak = socket;
      socket->start(
          [weak](Bytes message) {
            if (auto s = weak.lock()) s->send(std::move(message));
          },
          [](std::string) {});
    };
    h.upload = [this](const Request& request, Response& refusal) -> std::optional<ServerHandlers::Upload> {
      if (request.path == "/forbidden") {
        refusal = Response{403, "text/plain", {}, "no"};
        return {};
      }
      if (request.path != "/upload") return {};
      uploaded.clear();
      return ServerHandlers::Upload{[this](ByteView data) -> Status {
                                      uploaded += as_string(data);
                                      return {};
                                    },
                                    [this] {
                                      return Response{200, "text/plain", {}, std::to_string(uploaded.size())};
                                    }};
    };
    server = std::move(*Server::create(std::move(h), pki().files(), limits, 2));
    if (listen) port = *server->listen("127.0.0.1", 0);
  }

  void handle(Request request, ResponderPtr responder) {
    ++requests;
    if (request.path == "/hold") {
      responder->on_close([this] { ++left; });
      const std::lock_guard lock(mutex);
      held.push_back(responder);
      return;
    }
    if (request.path == "/drop") return;
    if (request.path == "/stream") {
      responder->start_stream({200, "text/plain", {}, "head;"});
      for (int i = 0; i < 100; ++i) responder->write(std::string(1000, 'x'));
      responder->finish();
      return;
    }
    if (request.path == "/slow") {
      responder->start_stream({200, "text/plain", {}, ""});
      std::thread([responder] {
        while (responder->write(std::string(100'000, 'y'))) {
          while (responder->buffered() > 400'000) std::this_thread::sleep_for(Millis(1));
        }
      }).detach();
      return;
    }
    std::string body = request.method + " " + request.path;
    for (const auto& [key, value] : request.query) body += " " + key + "=" + value;
    responder->send({200, "text/plain", {{"X-Peer", request.peer}}, body + "|" + request.body});
  }
};

// Sends raw bytes over TLS and returns all that comes until the server closes (or 3 s of silence).
std::string raw(std::uint16_t port, const std::string& request, Millis patience = Millis(3000)) {
  auto connection = dial(endpoint(port), "http/1.1", deadline_in(patience));
  if (!connection.ok()) return "dial: " + connection.error().message;
  (void)write_all(*connection, request, deadline_in(patience));
  std::string out;
  char buffer[4096];
  while (true) {
    auto n = read_some(*connection, buffer, sizeof buffer, deadline_in(patience));
    if (!n.ok() || *n == 0) return out;
    out.append(buffer, *n);
  }
}
std::string status_of(const std::string& answer) {
  return answer.size() < 12 ? answer : answer.substr(9, 3);
}

TEST(NetServer, AnswersAndKeepsAlive) {
  Site site;
  Client client(endpoint(site.port));
  std::string peer;
  for (int i = 0; i < 3; ++i) {
    auto r = client.call({.target = "/a%20b//c?x=1&x=%C3%BC&y=a+b"});
    ASSERT_TRUE(r.ok()) << r.error().message;
    EXPECT_EQ(r->status, 200);
    EXPECT_EQ(r->body, "GET /a b/c x=1 x=ü y=a b|");
    EXPECT_TRUE(i == 0 || r->headers["x-peer"] == peer) << "a second connection was opened";
    peer = r->headers["x-peer"];
  }
  auto post = client.call({.method = "POST", .target = "/p", .body = std::string(100'000, 'b')});
  ASSERT_TRUE(post.ok());
  EXPECT_EQ(post->body, "POST /p|" + std::string(100'000, 'b'));
  auto head = client.call({.method = "HEAD", .target = "/p"});
  ASSERT_TRUE(head.ok());
  EXPECT_EQ(head->body, "");
  auto dropped = client.call({.target = "/drop"});
  ASSERT_TRUE(dropped.ok());
  EXPECT_EQ(dropped->status, 500);
}

TEST(NetServer, PipelinedRequestsComeBackInOrder) {
  Site site;
  const std::string answer =
      raw(site.port, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  EXPECT_LT(answer.find("GET /1"), answer.find("GET /2"));
  EXPECT_NE(answer.find("GET /2"), std::string::npos);
}

TEST(NetServer, RefusesBrokenRequests) {
  Site site({.body_bytes = 1000, .header_timeout = Millis(500), .idle_timeout = Millis(2000)});
  const std::string host = "Host: a\r\n";
  EXPECT_EQ(status_of(raw(site.port, "GET /a/../b HTTP/1.1\r\n" + host + "\r\n")), "400");
  EXPECT_EQ(status_of(raw(site.port, "GET /%2e%2e/b HTTP/1.1\r\n" + host + "\r\n")), "400");
  EXPECT_EQ(status_of(raw(site.port, "GET /a%2fb HTTP/1.1\r\n" + host + "\r\n")), "400");
  EXPECT_EQ(status_of(raw(site.port, "GET /%ff%fe HTTP/1.1\r\n" + host + "\r\n")), "400");
  EXPECT_EQ(status_of(raw(site.port, "GET /%00 HTTP/1.1\r\n" + host + "\r\n")), "400");
  EXPECT_EQ(status_of(raw(site.port, "GET /%zz HTTP/1.1\r\n" + host + "\r\n")), "400");
  EXPECT_EQ(status_of(raw(site.port, "GET http://a/b HTTP/1.1\r\n" + host + "\r\n")), "400");
  EXPECT_EQ(status_of(raw(site.port, "GET / HTTP/1.1\r\n\r\n")), "400") << "no Host";
  EXPECT_EQ(status_of(raw(site.port, "GET / HTTP/1.1\r\n" + host + host + "\r\n")), "400") << "two Hosts";
  EXPECT_EQ(status_of(raw(site.port, "nonsense\r\n\r\n")), "400");
  EXPECT_EQ(status_of(raw(site.port, "POST / HTTP/1.1\r\n" + host +
                                         "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x")),
            "400");
  EXPECT_EQ(status_of(raw(site.port, "POST / HTTP/1.1\r\n" + host +
                                         "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /x")),
            "400");
  EXPECT_EQ(
      status_of(raw(site.port, "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef")),
      "400");
  EXPECT_EQ(
      status_of(raw(site.port, "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")),
      "400");
  EXPECT_EQ(status_of(raw(site.port, "GET / HTTP/1.1\r\n" + host + "X: " + std::string(20'000, 'x') + "\r\n\r\n")),
            "431");
  EXPECT_EQ(
      status_of(raw(site.port, "POST / HTTP/1.1\r\n" + host + "Content-Length: 1001\r\n\r\n" + std::string(1001, 'x'))),
      "413");
  EXPECT_EQ(status_of(raw(site.port, "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3e9\r\n" +
                                         std::string(1001, 'x') + "\r\n0\r\n\r\n")),
            "413");
  EXPECT_EQ(site.requests, 0);
  EXPECT_EQ(
      status_of(raw(site.port, "POST / HTTP/1.1\r\n" + host +
                                   "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n")),
      "200");
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(raw(site.port, "GET / HTTP/1.1\r\nHo"), "") << "a slow header is cut";
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
}

TEST(NetServer, StreamsUploadsAndNotices) {
  Site site;
  Client client(endpoint(site.port));
  std::string got;
  auto r = client.stream({.target = "/stream"}, [&](std::string_view chunk) {
    got += chunk;
    return true;
  });
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_EQ(got, "head;" + std::string(100'000, 'x'));
  const auto path = std::filesystem::temp_directory_path() / ("muster_net_upload_" + std::to_string(::getpid()));
  std::ofstream(path) << std::string(3'000'000, 'u');
  std::uint64_t last = 0;
  auto up = client.upload({.method = "POST", .target = "/upload"}, path, [&](std::uint64_t n) { last = n; });
  ASSERT_TRUE(up.ok()) << up.error().message;
  EXPECT_EQ(up->body, "3000000");
  EXPECT_EQ(last, 3'000'000u);
  // TLS 1.3 sends session tickets unasked right after the handshake: they are no answer, the upload goes on.
  Client fresh(endpoint(site.port));
  auto first =
      fresh.upload({.method = "POST", .target = "/upload", .timeout = Millis(5000)}, path, [](std::uint64_t sent) {
        if (sent < 200'000) std::this_thread::sleep_for(Millis(20));
      });
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_EQ(first->body, "3000000");
  auto refused = client.upload({.method = "POST", .target = "/forbidden"}, path, {});
  ASSERT_TRUE(refused.ok()) << refused.error().message;
  EXPECT_EQ(refused->status, 403);
  std::filesystem::remove(path);
  // Back-pressure: the reader stops, the feeder sees it; then the reader leaves and the feeder ends.
  std::size_t seen = 0;
  auto slow = client.stream({.target = "/slow"}, [&](std::string_view chunk) {
    seen += chunk.size();
    return seen < 5'000'000;
  });
  EXPECT_TRUE(slow.ok());
  // A peer that leaves while its request waits is noticed.
  {
    auto connection = dial(endpoint(site.port), "http/1.1", deadline_in(Millis(2000)));
    ASSERT_TRUE(write_all(*connection, "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n", deadline_in(Millis(2000))).ok());
    for (int i = 0; i < 200 && site.requests < 3; ++i) std::this_thread::sleep_for(Millis(10));
  }
  for (int i = 0; i < 200 && site.left == 0; ++i) std::this_thread::sleep_for(Millis(10));
  EXPECT_EQ(site.left, 1);
}

TEST(NetServer, CapsConnectionsPerAddress) {
  Site site({.connections = 100, .connections_per_address = 3});
  std::vector<Dialled> open;
  for (int i = 0; i < 3; ++i)
    open.push_back(std::move(*dial(endpoint(site.port), "http/1.1", deadline_in(Millis(2000)))));
  EXPECT_FALSE(dial(endpoint(site.port), "http/1.1", deadline_in(Millis(2000))).ok());
  open.clear();
  bool ok = false;
  for (int i = 0; i < 100 && !ok; ++i) {
    std::this_thread::sleep_for(Millis(10));
    ok = dial(endpoint(site.port), "http/1.1", deadline_in(Millis(2000))).ok();
  }
  EXPECT_TRUE(ok);
}

TEST(NetServer, CountsAnIpv6AddressAsItsNetwork) {
  EXPECT_EQ(address_block("203.0.113.5:443"), "203.0.113.5");
  EXPECT_EQ(address_block("203.0.113.5"), "203.0.113.5");
  EXPECT_EQ(address_block("[::ffff:203.0.113.5]:1"), "203.0.113.5");
  EXPECT_EQ(address_block("[2001:db8:1:2:3:4:5:6]:443"), "2001:db8:1:2::/64");
  EXPECT_EQ(address_block("2001:db8:1:2::9"), "2001:db8:1:2::/64");
  EXPECT_EQ(address_block("[fe80::1%eth0]:7"), "fe80::/64");
  EXPECT_NE(address_block("2001:db8:1:3::9"), "2001:db8:1:2::/64");
  EXPECT_EQ(address_block(""), "");
  const auto registry = std::make_shared<Registry>(100, 2);
  const auto one = registry->enter("2001:db8::1"), two = registry->enter("2001:db8::2");
  EXPECT_NE(two, nullptr);
  EXPECT_EQ(registry->enter("2001:db8::3"), nullptr);
  EXPECT_NE(registry->enter("2001:db8:0:1::3"), nullptr);
}

TEST(NetClient, TrustsOnlyThePinnedCa) {
  Site site;
  const Pki other;
  Endpoint wrong = endpoint(site.port);
  wrong.ca_pem = other.ca.cert_pem;
  auto r = Client(wrong).call({.target = "/"});
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, Code::Unauthenticated) << r.error().message;
  Endpoint name = endpoint(site.port);
  name.server_name = "other";
  EXPECT_EQ(Client(name).call({.target = "/"}).error().code, Code::Unauthenticated);
  Endpoint pin = endpoint(site.port);
  pin.ca_pem.clear();
  EXPECT_EQ(Client(pin).call({.target = "/"}).error().code, Code::InvalidArgument) << "nobody to trust";
  pin.ca_sha256 = *crypto::certificate_sha256(pki().ca.cert_pem);
  Client good(pin);
  auto ok = good.call({.target = "/"});
  ASSERT_TRUE(ok.ok()) << ok.error().message;
  EXPECT_EQ(good.last_ca_pem(), pki().ca.cert_pem);
  pin.ca_sha256 = *crypto::certificate_sha256(pki().server.cert_pem);
  EXPECT_FALSE(Client(pin).call({.target = "/"}).ok()) << "a leaf is no CA";
  pin.ca_sha256 = *crypto::certificate_sha256(other.ca.cert_pem);
  EXPECT_EQ(Client(pin).call({.target = "/"}).error().code, Code::Unauthenticated);
  pin.ca_sha256 = *crypto::certificate_sha256(pki().ca.cert_pem);
  pin.server_name = "other";
  EXPECT_EQ(Client(pin).call({.target = "/"}).error().code, Code::Unauthenticated);
}

TEST(NetClient, TrustsOnlyTheControlPlanesRole) {
  const auto answer = [](std::optional<crypto::ServerRole> role, crypto::ServerRole asked, bool by_digest) {
    const auto made =
        *crypto::issue_server_certificate(pki().ca, role, "muster", {"muster"}, read_clocks().wall, Millis(3'600'000));
    ServerHandlers handlers;
    handlers.http = [](Request, ResponderPtr responder) { responder->send({200, "text/plain", {}, "yes"}); };
    const auto server = *Server::create(std::move(handlers), {made.cert_pem + pki().ca.cert_pem, made.key_pem}, {}, 1);
    Endpoint at = endpoint(*server->listen("127.0.0.1", 0));
    at.role = asked;
    if (by_digest) at.ca_sha256 = *crypto::certificate_sha256(std::exchange(at.ca_pem, ""));
    const auto got = Client(at).call({.target = "/"});
    server->stop();
    return got.ok() ? Code::Internal : got.error().code;  // Internal: it was trusted
  };
  using enum crypto::ServerRole;
  for (const bool by_digest : {false, true}) {
    EXPECT_EQ(answer(ControlPlane, ControlPlane, by_digest), Code::Internal);
    EXPECT_EQ(answer(Relay, ControlPlane, by_digest), Code::Unauthenticated) << "a relay that was taken over";
    EXPECT_EQ(answer({}, ControlPlane, by_digest), Code::Unauthenticated) << "a copy that relays had before roles";
    EXPECT_EQ(answer(Relay, Relay, by_digest), Code::Internal);
    EXPECT_EQ(answer({}, Relay, by_digest), Code::Internal) << "a relay of before roles";
    EXPECT_EQ(answer(ControlPlane, Relay, by_digest), Code::Unauthenticated);
  }
}

// While roots and CAs change a server shows a way to each root; who believes one of them finds his.
TEST(NetClient, FindsTheWayToARootThatItBelieves) {
  const WallTime now = read_clocks().wall;
  const auto root = *crypto::create_root("root", now), next = *crypto::create_root("next root", now);
  const auto stranger = *crypto::create_root("root", now);
  crypto::KeyAndCert ca{crypto::new_ca_key(), {}};
  const auto under = [&](const crypto::KeyAndCert& each) {
    return *crypto::certify_ca(each, *crypto::make_ca_request(ca.key_pem, "CA"), now, Millis(3'600'000));
  };
  const std::string by_next = under(next), by_root = under(root);
  ca.cert_pem = by_next;
  const auto made = *crypto::issue_server_certificate(ca, crypto::ServerRole::ControlPlane, "muster", {"muster"}, now,
                                                      Millis(3'600'000));
  ServerHandlers handlers;
  handlers.http = [](Request, ResponderPtr responder) { responder->send({200, "text/plain", {}, "yes"}); };
  const auto server = *Server::create(
      std::move(handlers), {made.cert_pem + by_next + by_root + next.cert_pem + root.cert_pem, made.key_pem}, {}, 1);
  const std::uint16_t port = *server->listen("127.0.0.1", 0);
  const auto trusts = [&](const std::string& pem, bool by_digest) {
    Endpoint at = endpoint(port);
    at.ca_pem = pem;
    if (by_digest) at.ca_sha256 = *crypto::certificate_sha256(std::exchange(at.ca_pem, ""));
    Client client(at);
    const bool trusted = client.call({.target = "/"}).ok();
    EXPECT_TRUE(!trusted || by_digest == false || client.last_ca_pem() == pem);
    return trusted;
  };
  for (const bool by_digest : {false, true}) {
    EXPECT_TRUE(trusts(root.cert_pem, by_digest));
    EXPECT_TRUE(trusts(next.cert_pem, by_digest));
    EXPECT_FALSE(trusts(stranger.cert_pem, by_digest)) << "the same name, another key";
    EXPECT_FALSE(trusts(by_root, by_digest)) << "a CA in the control plane's hands is no root";
  }
  EXPECT_TRUE(trusts(next.cert_pem + root.cert_pem, false));
  crypto::Trust trust{"srv-1", 1, {root.cert_pem}, {}, {by_root}, {}};
  EXPECT_FALSE(trusts(crypto::trust_text(trust), false)) << "the CA was given up";
  trust.given_up = {by_next};
  EXPECT_TRUE(trusts(crypto::trust_text(trust), false));
  server->stop();
}

TEST(NetClient, TrustsAServerOfTheWebUnderItsOwnNameAlone) {
  Site site;
  const auto ask = [&](const std::string& ca, const std::string& name,
                       std::size_t body_max = 1000) -> Result<Response> {
    WebUrl url = *parse_web_url("https://127.0.0.1:" + std::to_string(site.port) + "/a?b=c%20d");
    url.endpoint.use_proxy_env = false;
    url.endpoint.ca_pem = ca;
    if (!name.empty()) url.endpoint.server_name = name;
    return Client(url.endpoint).call({.target = url.target, .body_max = body_max});
  };
  const auto good = ask(pki().ca.cert_pem, "");
  ASSERT_TRUE(good.ok()) << good.error().message;
  EXPECT_EQ(good->body, "GET /a b=c d|");
  EXPECT_EQ(ask("", "").error().code, Code::Unauthenticated) << "the system's roots do not know our CA";
  EXPECT_EQ(ask(Pki().ca.cert_pem, "").error().code, Code::Unauthenticated);
  EXPECT_EQ(ask(pki().ca.cert_pem, "localhost").error().code, Code::Unauthenticated);
  EXPECT_EQ(ask(pki().ca.cert_pem, "", 5).error().code, Code::TooLarge);
}

TEST(NetClient, AsksThisMachineWithoutTls) {
  const Fd listener(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listener.get(), 4), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  std::string asked;
  std::thread server([&] {
    const Fd peer(::accept(listener.get(), nullptr, nullptr));
    char buffer[2048];
    asked = std::string(buffer, static_cast<std::size_t>(std::max<ssize_t>(0, ::recv(peer.get(), buffer, 2048, 0))));
    const std::string_view answer =
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 2\r\n\r\nhi";
    EXPECT_EQ(::send(peer.get(), answer.data(), answer.size(), 0), static_cast<ssize_t>(answer.size()));
  });
  const WebUrl url = *parse_web_url("http://localhost:" + std::to_string(ntohs(address.sin_port)) + "?x=1");
  const auto answer = Client(url.endpoint).call({.target = url.target});
  server.join();
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->status, 302) << "redirects are not followed";
  EXPECT_EQ(answer->body, "hi");
  EXPECT_TRUE(asked.starts_with("GET /?x=1 HTTP/1.1\r\nHost: localhost:")) << asked;
}

TEST(NetUrl, OfTheWebIsStrict) {
  const auto good = parse_web_url("https://login.example:8443/realms/lab?a=b");
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(good->endpoint.host + good->target, "login.example/realms/lab?a=b");
  EXPECT_EQ(good->endpoint.port, 8443);
  EXPECT_EQ(good->endpoint.peer, Peer::Web);
  EXPECT_EQ(parse_web_url("https://a.example")->target, "/");
  EXPECT_EQ(parse_web_url("http://[::1]/x")->endpoint.port, 80);
  for (const char* bad : {"", "login.example", "http://login.example/", "http://127.0.0.1.example/", "ftp://127.0.0.1/",
                          "https:///x", "https://a@b.example/", "https://a.example/#f", "https://a.example/ x",
                          "https://a.example/\r\nX: y", "https://a.example:0/", "https://a.example:99999/"})
    EXPECT_FALSE(parse_web_url(bad).ok()) << bad;
  EXPECT_EQ(form_text({{"a b", "c&d="}, {"e", "\xc3\xa4~"}}), "a%20b=c%26d%3D&e=%C3%A4~");
  const auto line = parse_request_line("GET /callback?code=a%2Bb&state=c HTTP/1.1");
  ASSERT_TRUE(line.has_value());
  EXPECT_EQ(line->path + line->query_value("code").value_or(""), "/callbacka+b");
  for (const char* bad : {"", "GET", "GET /", "GET /x FTP/1.1", "GET x HTTP/1.1", "GET /%zz HTTP/1.1"})
    EXPECT_FALSE(parse_request_line(bad).has_value()) << bad;
}

// A CONNECT proxy for one connection at a time that wants credentials.
struct Proxy1 {
  Fd listener{::socket(AF_INET, SOCK_STREAM, 0)};
  std::uint16_t port = 0;
  std::string request;
  std::thread thread;
  std::atomic<bool> stop{false};
  explicit Proxy1(std::uint16_t target) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
    ::listen(listener.get(), 4);
    socklen_t size = sizeof address;
    ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size);
    port = ntohs(address.sin_port);
    thread = std::thread([this, target] {
      while (!stop) serve(target);
    });
  }
  ~Proxy1() {
    stop = true;
    thread.join();
  }
  void serve(std::uint16_t target) {
    pollfd p{listener.get(), POLLIN, 0};
    if (::poll(&p, 1, 50) <= 0) return;
    const Fd a(::accept(listener.get(), nullptr, nullptr));
    request.clear();
    char buffer[65536];
    while (request.find("\r\n\r\n") == std::string::npos) {
      const ssize_t n = ::read(a.get(), buffer, sizeof buffer);
      if (n <= 0) return;
      request.append(buffer, static_cast<std::size_t>(n));
    }
    const bool known = request.find("Proxy-Authorization: Basic " + base64(as_bytes("us:p@ss"))) != std::string::npos;
    const std::string answer = known ? "HTTP/1.1 200 OK\r\n\r\n" : "HTTP/1.1 407 Who are you\r\n\r\n";
    (void)!::write(a.get(), answer.data(), answer.size());
    if (!known) return;
    const Fd b(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(target);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(b.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return;
    while (!stop) {
      pollfd both[2] = {{a.get(), POLLIN, 0}, {b.get(), POLLIN, 0}};
      if (::poll(both, 2, 50) <= 0) continue;
      for (int i = 0; i < 2; ++i) {
        if (both[i].revents == 0) continue;
        const ssize_t n = ::read(both[i].fd, buffer, sizeof buffer);
        if (n <= 0) return;
        (void)!::send(both[1 - i].fd, buffer, static_cast<std::size_t>(n), MSG_NOSIGNAL);
      }
    }
  }
};

TEST(NetClient, GoesThroughConnectProxies) {
  Site site;
  Proxy1 proxy(site.port);
  Endpoint e = endpoint(site.port);
  e.use_proxy_env = true;
  ::setenv("HTTPS_PROXY", ("http://us:p%40ss@127.0.0.1:" + std::to_string(proxy.port)).c_str(), 1);
  {
    auto r = Client(e).call({.target = "/x"});
    ASSERT_TRUE(r.ok()) << r.error().message;
    EXPECT_EQ(r->body, "GET /x|");
    EXPECT_NE(proxy.request.find("CONNECT 127.0.0.1:" + std::to_string(site.port)), std::string::npos);
  }
  ::setenv("HTTPS_PROXY", ("http://us:wrong@127.0.0.1:" + std::to_string(proxy.port)).c_str(), 1);
  auto refused = Client(e).call({.target = "/x"});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::Unauthenticated);
  EXPECT_EQ(refused.error().message.find("wrong"), std::string::npos) << "a password in an error";
  ::setenv("NO_PROXY", "example.com,127.0.0.1", 1);
  EXPECT_TRUE(Client(e).call({.target = "/x"}).ok());
  ::unsetenv("HTTPS_PROXY");
  ::unsetenv("NO_PROXY");
}

TEST(NetUrl, FindsTheProxy) {
  auto is_direct = [](const char* host, const char* list) {
    return !proxy_for(host, 443, "http://p:1", list)->has_value();
  };
  EXPECT_TRUE(is_direct("a.example.com", ".example.com"));
  EXPECT_TRUE(is_direct("example.com", "x, example.com"));
  EXPECT_TRUE(is_direct("EXAMPLE.com", "*.example.com:443"));
  EXPECT_TRUE(is_direct("anything", "*"));
  EXPECT_FALSE(is_direct("badexample.com", "example.com"));
  EXPECT_FALSE(is_direct("example.com", "example.com:8443"));
  EXPECT_FALSE(proxy_for("a", 1, "socks5://b:1", "").ok());
  EXPECT_EQ((*proxy_for("a", 1, "b:3128/", ""))->port, 3128);
  EXPECT_EQ(parse_url("https://h:8443/")->port, 8443);
  EXPECT_EQ(parse_url("https://[::1]")->host, "::1");
  for (const char* bad :
       {"http://h", "https://h/x", "https://", "https://h:0", "https://h:99999", "https://::1", "https://u@h"}) {
    EXPECT_FALSE(parse_url(bad).ok()) << bad;
  }
}

TEST(NetWebSocket, EchoesAndRefuses) {
  Site site({.frame_bytes = 100'000});
  auto loop = Loop::create(1);
  auto open = [&](std::string target) {
    auto promise = std::make_shared<std::promise<Result<WebSocketPtr>>>();
    loop->dial_websocket(endpoint(site.port), std::move(target), {{"X-A", "b"}},
                         [promise](Result<WebSocketPtr> r) { promise->set_value(std::move(r)); });
    return promise->get_future().get();
  };
  auto refused = open("/nope");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::NotFound) << refused.error().message;
  auto socket = open("/ws");
  ASSERT_TRUE(socket.ok()) << socket.error().message;
  std::mutex mutex;
  std::vector<Bytes> got;
  std::promise<std::string> closed;
  (*socket)->start(
      [&](Bytes m) {
        const std::lock_guard lock(mutex);
        got.push_back(std::move(m));
      },
      [&](std::string why) { closed.set_value(why); });
  std::vector<Bytes> sent;
  for (std::size_t i = 0; i < 100; ++i) {
    sent.push_back(Bytes(i * 900, static_cast<std::uint8_t>(i)));
    (*socket)->send(sent.back());
  }
  auto count = [&] {
    const std::lock_guard lock(mutex);
    return got.size();
  };
  for (int i = 0; i < 500 && count() < sent.size(); ++i) std::this_thread::sleep_for(Millis(10));
  EXPECT_EQ(got, sent);
  (*socket)->send(Bytes(100'001));  // larger than the server allows
  auto why = closed.get_future();
  ASSERT_EQ(why.wait_for(std::chrono::seconds(5)), std::future_status::ready);
  auto again = open("/ws");
  std::promise<std::string> ended;
  (*again)->start([](Bytes) {}, [&](std::string reason) { ended.set_value(reason); });
  site.server->stop();
  auto end = ended.get_future();
  EXPECT_EQ(end.wait_for(std::chrono::seconds(5)), std::future_status::ready);
  loop->stop();
}

TEST(NetServer, AdoptsPassedConnectionsWithTheirBytes) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("muster_handoff_" + std::to_string(::getpid()))).string();
  Site site({}, false);
  ASSERT_TRUE(site.server->adopt_from(path).ok());  // before the relay is there
  auto unix_listener = listen_unix(path, 0600);
  ASSERT_TRUE(unix_listener.ok()) << unix_listener.error().message;
  const Fd tcp(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(tcp.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(tcp.get(), 4), 0);
  socklen_t size = sizeof address;
  ::getsockname(tcp.get(), reinterpret_cast<sockaddr*>(&address), &size);
  auto answer = std::async(std::launch::async,
                           [&] { return Client(endpoint(ntohs(address.sin_port))).call({.target = "/adopted"}); });
  ASSERT_TRUE(await_fd(unix_listener->get(), POLLIN, deadline_in(Millis(5000))).ok());
  const Fd link(::accept(unix_listener->get(), nullptr, nullptr));
  {
    const Fd accepted(::accept(tcp.get(), nullptr, nullptr));
    ASSERT_TRUE(await_fd(accepted.get(), POLLIN, deadline_in(Millis(5000))).ok());
    char peek[5];
    ASSERT_EQ(::recv(accepted.get(), peek, sizeof peek, MSG_PEEK), 5);
    EXPECT_EQ(peek[0], 22);  // a TLS handshake record
    ASSERT_TRUE(*send_descriptor(link.get(), accepted.get()));
  }
  char ack = 0;
  ASSERT_EQ(::read(link.get(), &ack, 1), 1);
  EXPECT_EQ(ack, kHandoffAck);
  const auto response = answer.get();
  ASSERT_TRUE(response.ok()) << response.error().message;
  EXPECT_EQ(response->body, "GET /adopted|");
  EXPECT_EQ(listen_unix(path, 0600).error().code, Code::AlreadyExists);
  ::unlink(path.c_str());
}

TEST(NetServer, ReloadsItsCertificate) {
  Site site;
  const Pki other;
  ASSERT_TRUE(site.server->reload_tls(other.files()).ok());
  EXPECT_FALSE(site.server->reload_tls({"no", "no"}).ok());
  EXPECT_FALSE(Client(endpoint(site.port)).call({.target = "/"}).ok());
  Endpoint e = endpoint(site.port);
  e.ca_pem = other.ca.cert_pem;
  EXPECT_TRUE(Client(e).call({.target = "/"}).ok());
}

// The DNS names of what a client is shown that asks for `name`; of who trusts `ca`.
std::string shown_names(std::uint16_t port, const std::string& name, const std::string& ca, const std::string& alpn,
                        Peer peer = Peer::Web) {
  Endpoint e = endpoint(port);
  e.peer = peer;
  e.ca_pem = ca;
  e.server_name = name;
  const auto connection = dial(e, alpn, deadline_in(Millis(3000)));
  if (!connection.ok())
    return connection.error().code == Code::Unauthenticated ? "untrusted" : connection.error().message;
  std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), BIO_free);
  PEM_write_bio_X509(bio.get(), SSL_get0_peer_certificate(connection->ssl.get()));
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  std::string out;
  const auto names = crypto::dns_names({data, static_cast<std::size_t>(size)});
  for (const std::string& each : *names) out += each + " ";
  return out;
}

TEST(NetServer, ShowsThePublicNamesCertificateToWhoIsNoProgramOfOurs) {
  const auto made = [](const crypto::KeyAndCert& ca, const std::vector<std::string>& names) {
    return *crypto::issue_server_certificate(ca, crypto::ServerRole::ControlPlane, "x", names, read_clocks().wall,
                                             Millis(3'600'000));
  };
  Site site;
  const auto own = made(pki().ca, {"m.example.org", "muster"});
  const auto web_ca = *crypto::create_ca("web CA", read_clocks().wall);
  const auto web = made(web_ca, {"m.example.org", "*.x.example.org"});
  ASSERT_TRUE(site.server->reload_tls({own.cert_pem + pki().ca.cert_pem, own.key_pem}).ok());
  const std::string of_own = "m.example.org muster ", of_web = "m.example.org *.x.example.org ";
  const std::string& ours = pki().ca.cert_pem;
  const auto web_of = [&](const std::string& name) {
    return shown_names(site.port, name, web_ca.cert_pem, "http/1.1");
  };
  EXPECT_EQ(web_of("m.example.org"), "untrusted") << "there is none yet";
  ASSERT_TRUE(
      site.server->set_public_tls({"m.example.org", "*.x.example.org"}, {web.cert_pem + web_ca.cert_pem, web.key_pem})
          .ok());
  EXPECT_EQ(web_of("m.example.org"), of_web);
  EXPECT_EQ(web_of("M.Example.ORG"), of_web);
  EXPECT_EQ(web_of("a.x.example.org"), of_web);
  EXPECT_EQ(web_of("a.b.x.example.org"), "untrusted");
  EXPECT_EQ(shown_names(site.port, "muster", ours, "http/1.1"), of_own) << "no public name";
  EXPECT_EQ(shown_names(site.port, "m.example.org", ours, "http/1.1", Peer::Muster), of_own) << "our own program";
  // Only the public one is promised for good.
  Endpoint e = endpoint(site.port);
  EXPECT_FALSE(Client(e).call({.target = "/"})->headers.contains("strict-transport-security"));
  e.peer = Peer::Web;
  e.ca_pem = web_ca.cert_pem;
  e.server_name = "m.example.org";
  for (const char* target : {"/", "/stream"})
    EXPECT_EQ(Client(e).call({.target = target})->headers["strict-transport-security"], "max-age=31536000") << target;
  EXPECT_FALSE(site.server->set_public_tls({"m.example.org"}, {"no", "no"}).ok());
  EXPECT_EQ(web_of("m.example.org"), of_web) << "what is no good changes nothing";
  ASSERT_TRUE(site.server->set_public_tls({}, {}).ok());
  EXPECT_EQ(web_of("m.example.org"), "untrusted");
}

// A client that believes anybody, as a CA that looks at a name is.
struct Gullible {
  std::unique_ptr<SSL_CTX, SslFree> ctx{SSL_CTX_new(TLS_client_method())};
  Fd fd{::socket(AF_INET, SOCK_STREAM, 0)};
  SslPtr ssl;
  bool connect(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ssl.reset(SSL_new(ctx.get()));
    SSL_set_fd(ssl.get(), fd.get());
    SSL_set_tlsext_host_name(ssl.get(), "m.example.org");
    return SSL_connect(ssl.get()) == 1;
  }
};

TEST(NetServer, ProvesANameToWhoAsksForTheProofAlone) {
  Site site;
  const auto proof = *crypto::make_name_proof("m.example.org", "token.thumb", read_clocks().wall);
  const auto shown = [&](const std::string& alpn, bool ask = false) {
    Gullible client;
    const std::string wire = static_cast<char>(alpn.size()) + alpn;
    SSL_CTX_set_alpn_protos(client.ctx.get(), reinterpret_cast<const unsigned char*>(wire.data()),
                            static_cast<unsigned>(wire.size()));
    if (!client.connect(site.port)) return std::string("nothing");
    const auto pem = std::unique_ptr<BIO, decltype(&BIO_free)>(BIO_new(BIO_s_mem()), BIO_free);
    PEM_write_bio_X509(pem.get(), SSL_get0_peer_certificate(client.ssl.get()));
    char* data = nullptr;
    const long size = BIO_get_mem_data(pem.get(), &data);
    const bool same = std::string_view(data, static_cast<std::size_t>(size)) == proof.cert_pem;
    if (!ask) return std::string(same ? "proof" : "own");
    const std::string request = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    SSL_write(client.ssl.get(), request.data(), static_cast<int>(request.size()));
    char byte = 0;
    return std::string(SSL_read(client.ssl.get(), &byte, 1) == 1 ? "answered" : "closed");
  };
  EXPECT_EQ(shown("acme-tls/1"), "own");
  ASSERT_TRUE(site.server->set_name_proof("m.example.org", {proof.cert_pem, proof.key_pem}).ok());
  EXPECT_EQ(shown("acme-tls/1"), "proof");
  EXPECT_EQ(shown("http/1.1"), "own");
  EXPECT_EQ(shown("acme-tls/1", true), "closed") << "nothing is served there";
  EXPECT_EQ(site.requests, 0);
  ASSERT_TRUE(site.server->set_name_proof("m.example.org", {}).ok());
  EXPECT_EQ(shown("acme-tls/1"), "own");
}

TEST(NetServer, WhoSaysNothingMakesRoom) {
  Site site({.connections = 4, .connections_per_address = 100});
  std::vector<Dialled> silent;
  for (int i = 0; i < 4; ++i)
    silent.push_back(std::move(*dial(endpoint(site.port), "http/1.1", deadline_in(Millis(2000)))));
  for (int i = 0; i < 20; ++i)
    EXPECT_TRUE(Client(endpoint(site.port)).call({.target = "/"}).ok()) << "who speaks is heard, try " << i;
  // Connections with work stay, and the next has no room.
  std::vector<std::unique_ptr<std::thread>> waiting;
  for (int i = 0; i < 4; ++i)
    waiting.push_back(std::make_unique<std::thread>(
        [&] { (void)Client(endpoint(site.port)).call({.target = "/hold", .timeout = Millis(5000)}); }));
  for (int i = 0; i < 300 && site.requests < 24; ++i) std::this_thread::sleep_for(Millis(10));
  EXPECT_EQ(site.requests, 24);
  EXPECT_FALSE(Client(endpoint(site.port)).call({.target = "/", .timeout = Millis(1000)}).ok());
  {
    const std::lock_guard lock(site.mutex);
    for (auto& each : site.held) each->send({200, "text/plain", {}, "at last"});
  }
  for (auto& each : waiting) each->join();
  EXPECT_EQ(site.left, 0);
  EXPECT_TRUE(Client(endpoint(site.port)).call({.target = "/"}).ok());
}

TEST(NetServer, ABrowserShallShowAndRunNothingOfIt) {
  Site site;
  for (const char* target : {"/", "/stream", "/drop"}) {
    const auto answer = Client(endpoint(site.port)).call({.target = target});
    ASSERT_TRUE(answer.ok()) << target;
    EXPECT_EQ(answer->headers.at("x-content-type-options"), "nosniff") << target;
    EXPECT_EQ(answer->headers.at("content-security-policy"), "default-src 'none'; frame-ancestors 'none'") << target;
    EXPECT_EQ(answer->headers.at("referrer-policy"), "no-referrer") << target;
  }
  const std::string refused = raw(site.port, "GET / HTTP/1.1\r\n\r\n");
  EXPECT_EQ(status_of(refused), "400");
  EXPECT_NE(refused.find("nosniff"), std::string::npos) << "also what no handler saw";
}

TEST(NetServer, TakesModernCiphersAlone) {
  Site site;
  const auto connects = [&](int version, const char* suites) {
    Gullible client;
    SSL_CTX_set_security_level(client.ctx.get(), 0);
    SSL_CTX_set_min_proto_version(client.ctx.get(), version);
    SSL_CTX_set_max_proto_version(client.ctx.get(), version);
    SSL_CTX_set_cipher_list(client.ctx.get(), suites);
    return client.connect(site.port);
  };
  EXPECT_TRUE(connects(TLS1_3_VERSION, "DEFAULT"));
  EXPECT_TRUE(connects(TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256"));
  EXPECT_TRUE(connects(TLS1_2_VERSION, "ECDHE-ECDSA-CHACHA20-POLY1305"));
  EXPECT_FALSE(connects(TLS1_2_VERSION, "ECDHE-ECDSA-AES128-SHA256")) << "CBC";
  EXPECT_FALSE(connects(TLS1_2_VERSION, "ECDHE-ECDSA-AES256-SHA")) << "CBC";
  EXPECT_FALSE(connects(TLS1_2_VERSION, "ECDHE-ECDSA-AES128-CCM8")) << "half a tag";
  EXPECT_FALSE(connects(TLS1_1_VERSION, "ALL:@SECLEVEL=0"));
  EXPECT_FALSE(connects(TLS1_VERSION, "ALL:@SECLEVEL=0"));
}

}  // namespace
}  // namespace muster::net
