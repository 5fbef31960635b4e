#include "relay/upgrade.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "crypto/cert.h"
#include "net/dial.h"
#include "overlay/relay_protocol.h"
#include "relay/client.h"
#include "relay/client_hello.h"
#include "relay/relay.h"

namespace muster::relay {
namespace {

bool becomes_true(const std::function<bool()>& condition) {
  const auto until = net::deadline_in(Millis(8000));
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(Millis(5));
  }
  return true;
}

struct UpgradeRelay {
  crypto::KeyAndCert ca = *crypto::create_ca("upgrade test", read_clocks().wall);
  crypto::SigningKey controller = crypto::SigningKey::generate();
  std::unique_ptr<Relay> relay;
  UpgradeRelay() {
    const auto cert = *crypto::issue_server_certificate(ca, crypto::ServerRole::Relay, "muster-relay", {"muster-relay"},
                                                        read_clocks().wall, Millis(3'600'000));
    RelayOptions options;
    options.address = "127.0.0.1";
    options.port = 0;
    options.mirror = false;
    options.hello_time = Millis(2'000);
    options.controller_key = controller.public_key();
    options.relay_id = "relay-1";
    options.tls = {cert.cert_pem + ca.cert_pem, cert.key_pem};
    relay = std::move(*Relay::create(std::move(options)));
  }
  ~UpgradeRelay() { relay->stop(); }
  net::Endpoint endpoint() const {
    net::Endpoint e;
    e.host = "127.0.0.1";
    e.port = relay->port();
    e.ca_pem = ca.cert_pem;
    e.server_name = net::kRelayName;
    e.role = crypto::ServerRole::Relay;
    e.use_proxy_env = false;
    return e;
  }
  // What is answered to these bytes over TLS that says "http/1.1", until the relay ends it or there is enough.
  std::string answer(const std::string& request, std::size_t enough) const {
    auto connection = net::dial(endpoint(), "http/1.1", net::deadline_in(Millis(4000)));
    if (!connection.ok()) return connection.error().message;
    (void)net::write_all(*connection, request, net::deadline_in(Millis(4000)));
    std::string out;
    char buffer[4096];
    while (out.size() < enough) {
      const auto n = net::read_some(*connection, buffer, sizeof buffer, net::deadline_in(Millis(6000)));
      if (!n.ok() || *n == 0) return out + "<end>";
      out.append(buffer, *n);
    }
    return out;
  }
};

// Something on the way to the relay: it lets pass what looks like the web alone, and may want to be asked with CONNECT.
struct Box {
  Box(std::uint16_t relay_port, bool proxy) : relay_port_(relay_port), proxy_(proxy) {
    sockaddr_in at = place(0);
    socklen_t size = sizeof at;
    EXPECT_EQ(::bind(door_.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
    EXPECT_EQ(::listen(door_.get(), 16), 0);
    ::getsockname(door_.get(), reinterpret_cast<sockaddr*>(&at), &size);
    port = ntohs(at.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~Box() {
    ending_ = true;
    thread_.join();
  }
  std::uint16_t port = 0;
  std::atomic<int> passed{0}, refused{0};

 private:
  static sockaddr_in place(std::uint16_t port) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return at;
  }
  static bool readable(int fd, int ms) {
    pollfd p{fd, POLLIN, 0};
    return ::poll(&p, 1, ms) > 0;
  }
  void run() {
    while (!ending_) {
      if (!readable(door_.get(), 20)) continue;
      const net::Fd in(::accept4(door_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (let_in(in.get())) pipe(in.get());
    }
  }
  bool let_in(int in) {
    char bytes[4096];
    if (proxy_) {
      const ssize_t n = readable(in, 2000) ? ::recv(in, bytes, sizeof bytes, 0) : 0;
      if (n <= 8 || std::string_view(bytes, 8) != "CONNECT ") return false;
      (void)!::send(in, "HTTP/1.1 200 OK\r\n\r\n", 19, MSG_NOSIGNAL);
    }
    for (int i = 0; i < 100 && readable(in, 2000); ++i) {
      const ssize_t n = ::recv(in, bytes, sizeof bytes, MSG_PEEK);
      if (n <= 0) return false;
      const auto hello = read_client_hello(as_bytes({bytes, static_cast<std::size_t>(n)}));
      if (hello.kind == ClientHello::Kind::NeedMore) {
        std::this_thread::sleep_for(Millis(2));
        continue;
      }
      const bool web = hello.alpn == std::vector<std::string>{"http/1.1"};
      ++(web ? passed : refused);
      return web;
    }
    return false;
  }
  void pipe(int in) {
    const net::Fd out(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in at = place(relay_port_);
    if (::connect(out.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0) return;
    while (!ending_) {
      pollfd both[2] = {{in, POLLIN, 0}, {out.get(), POLLIN, 0}};
      if (::poll(both, 2, 20) <= 0) continue;
      for (int side = 0; side < 2; ++side) {
        if (both[side].revents == 0) continue;
        char bytes[4096];
        const ssize_t n = ::recv(both[side].fd, bytes, sizeof bytes, 0);
        if (n <= 0) return;
        (void)!::send(both[1 - side].fd, bytes, static_cast<std::size_t>(n), MSG_NOSIGNAL);
      }
    }
  }
  std::uint16_t relay_port_;
  bool proxy_;
  net::Fd door_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

// Two members, the first by `endpoint`: packets go both ways.
void exchange(const UpgradeRelay& relay, const net::Endpoint& endpoint) {
  const crypto::X25519Pair near = crypto::x25519_generate(), far = crypto::x25519_generate();
  const auto token = [&](const crypto::X25519Pair& pair) {
    return overlay::sign_relay_token(relay.controller,
                                     {"relay-1", 1, pair.public_key, read_clocks().wall + Millis(60'000)});
  };
  std::atomic<int> to_near{0}, to_far{0};
  Client a({endpoint, near, token(near), Millis(50), Millis(400)});
  Client b({relay.endpoint(), far, token(far), Millis(50), Millis(400)});
  a.start({[&](const crypto::Key32&, ByteView data) { to_near += static_cast<int>(data.size()); }, {}, {}, {}});
  b.start({[&](const crypto::Key32&, ByteView data) { to_far += static_cast<int>(data.size()); }, {}, {}, {}});
  ASSERT_TRUE(becomes_true([&] { return a.state() == ClientState::Up && b.state() == ClientState::Up; }));
  for (int i = 0; i < 50; ++i) {
    EXPECT_TRUE(a.send(far.public_key, Bytes(1000)));
    EXPECT_TRUE(b.send(near.public_key, Bytes(1000)));
  }
  EXPECT_TRUE(becomes_true([&] { return to_near == 50'000 && to_far == 50'000; }));
}

TEST(RelayUpgrade, GoesThroughAProxyAsAnUpgradeOfHttp) {
  const UpgradeRelay relay;
  const Box proxy(relay.relay->port(), true);
  ::setenv("HTTPS_PROXY", ("http://127.0.0.1:" + std::to_string(proxy.port)).c_str(), 1);
  ::unsetenv("NO_PROXY");
  ::unsetenv("no_proxy");
  net::Endpoint endpoint = relay.endpoint();
  endpoint.host = "relay.invalid";  // the proxy's to find
  endpoint.use_proxy_env = true;
  exchange(relay, endpoint);
  ::unsetenv("HTTPS_PROXY");
  EXPECT_EQ(proxy.passed, 1);
  EXPECT_EQ(proxy.refused, 0) << "asked by ALPN first";
}

TEST(RelayUpgrade, IsTriedWhereOurAlpnIsNotLetThrough) {
  const UpgradeRelay relay;
  const Box box(relay.relay->port(), false);
  net::Endpoint endpoint = relay.endpoint();
  endpoint.port = box.port;
  exchange(relay, endpoint);
  EXPECT_EQ(box.passed, 1);
  EXPECT_EQ(box.refused, 1) << "asked by ALPN once";
}

TEST(RelayUpgrade, AnswersWhoAsksForSomethingElse) {
  const UpgradeRelay relay;
  const auto begin = [&](const std::string& request) { return relay.answer(request, 1 << 20).substr(0, 13); };
  const std::string good = upgrade_request("muster-relay");
  EXPECT_EQ(begin("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "HTTP/1.1 404 ");
  EXPECT_EQ(begin("POST /relay/v1 HTTP/1.1\r\nHost: a\r\n\r\n"), "HTTP/1.1 405 ");
  EXPECT_EQ(begin("GET /relay/v1 HTTP/1.1\r\nHost: a\r\n\r\n"), "HTTP/1.1 426 ");
  EXPECT_EQ(begin("GET /relay/v1 HTTP/1.1\r\nHost: a\r\nX: " + std::string(5'000, 'x') + "\r\n\r\n"), "HTTP/1.1 431 ");
  EXPECT_EQ(begin("nonsense\r\n\r\n"), "HTTP/1.1 400 ");
  EXPECT_EQ(begin(good.substr(0, good.size() - 1)), "<end>") << "half a request: until the time for a hello is over";
  // A good one: our protocol begins behind the blank line, whatever it was sent with.
  const std::string switched = upgrade_answer(101);
  const std::string early = relay.answer(good + std::string("\x07\x00\x00\x00\x08", 5), switched.size() + 5);
  ASSERT_GT(early.size(), switched.size());
  EXPECT_EQ(early.substr(0, switched.size()), switched);
  EXPECT_EQ(early[switched.size()], static_cast<char>(overlay::RelayType::Challenge));
  const std::string metrics = relay.relay->metrics();
  EXPECT_NE(metrics.find("muster_relay_hello_refused_total 5\n"), std::string::npos) << metrics;
  EXPECT_NE(metrics.find("muster_relay_upgrades_total 1\n"), std::string::npos) << metrics;
}

TEST(RelayUpgrade, JudgesTheWishStrictly) {
  const auto with = [](const std::string& fields, const std::string& line = "GET /relay/v1 HTTP/1.1") {
    return judge_upgrade(line + "\r\n" + fields + "\r\n");
  };
  const std::string host = "Host: a\r\n", rest = "Connection: Upgrade\r\nUpgrade: muster-relay/1\r\n";
  EXPECT_EQ(judge_upgrade(upgrade_request("muster-relay")), 101);
  EXPECT_EQ(judge_upgrade(upgrade_request("a\r\nX: b")), 101) << "a name cannot add lines";
  EXPECT_EQ(with(host + rest), 101);
  EXPECT_EQ(with("hOST:a\r\ncoNNection:\tkeep-alive ,upgrade\r\nupgrade: h2c, Muster-Relay/1 \r\n"), 101);
  EXPECT_EQ(with(rest), 400) << "no host";
  EXPECT_EQ(with(host + host + rest), 400);
  EXPECT_EQ(with(host + rest + "Content-Length: 0\r\n"), 400) << "a body";
  EXPECT_EQ(with(host + rest + "Transfer-Encoding: chunked\r\n"), 400);
  EXPECT_EQ(with(host + rest + " folded\r\n"), 400);
  EXPECT_EQ(with(host + rest + "Upgrade : x\r\n"), 400);
  EXPECT_EQ(with(host + rest + ": x\r\n"), 400);
  EXPECT_EQ(with(host + rest + "X: \x01\r\n"), 400);
  EXPECT_EQ(with(host + rest + "X: a\nb\r\n"), 400) << "a line's end of its own";
  EXPECT_EQ(with(host + rest, "GET /relay/v1 HTTP/1.0"), 400);
  EXPECT_EQ(with(host + rest, "GET  /relay/v1 HTTP/1.1"), 400);
  EXPECT_EQ(with(host + rest, "GET /relay/v1"), 400);
  EXPECT_EQ(with(host + rest, "G T /relay/v1 HTTP/1.1"), 400);
  EXPECT_EQ(with(host + rest, "GET /relay/v1/ HTTP/1.1"), 404);
  EXPECT_EQ(with(host + rest, "get /relay/v1 HTTP/1.1"), 405);
  EXPECT_EQ(with(host + "Upgrade: muster-relay/1\r\n"), 426) << "not for this hop";
  EXPECT_EQ(with(host + "Connection: Upgrade\r\nUpgrade: muster-relay/2\r\n"), 426);
  EXPECT_EQ(judge_upgrade(""), 400);

  EXPECT_EQ(upgrade_refusal(upgrade_answer(101)), std::nullopt);
  EXPECT_EQ(upgrade_refusal("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
            "101 for another protocol");
  EXPECT_EQ(upgrade_refusal("HTTP/1.1 503 x\r\n\r\n"), "503");
  EXPECT_EQ(upgrade_refusal("SSH-2.0-x\r\n\r\n"), "an answer that is not HTTP");
}

}  // namespace
}  // namespace muster::relay
