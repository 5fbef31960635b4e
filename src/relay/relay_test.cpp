#include "relay/relay.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "base/endian.h"
#include "base/rng.h"
#include "crypto/cert.h"
#include "crypto/random.h"
#include "crypto/signing_keys.h"
#include "net/dial.h"
#include "net/handoff.h"
#include "net/recall_frame.h"
#include "overlay/relay_protocol.h"
#include "overlay/stun.h"
#include "relay/client.h"
#include "relay/client_hello.h"

namespace muster::relay {
namespace {

namespace fs = std::filesystem;
using crypto::Key32;

bool eventually(const std::function<bool()>& condition, Millis patience = Millis(8000)) {
  const auto until = net::deadline_in(patience);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(Millis(5));
  }
  return true;
}

// The real program with its files in a directory of its own.
struct Process {
  fs::path dir;
  pid_t pid = -1;
  int out = -1;
  std::uint16_t port = 0, metrics_port = 0;
  std::string reload_seconds = "3600";
  crypto::KeyAndCert ca = *crypto::create_ca("relay test", read_clocks().wall);
  crypto::SigningKey controller = crypto::SigningKey::generate();

  Process() {
    char name[] = "/tmp/muster_relay_XXXXXX";
    dir = ::mkdtemp(name);
    write_certificate();
    std::ofstream(dir / "controller") << base64(controller.public_key()) << "\n";
    start();
  }
  ~Process() {
    if (pid >= 0) {
      EXPECT_EQ(stop(), 0) << "the relay's own end; under a sanitizer also what it found";
    }
    fs::remove_all(dir);
  }
  void write_certificate(Millis life = Millis(3'600'000)) const {
    const auto cert = *crypto::issue_server_certificate(ca, crypto::ServerRole::Relay, "muster-relay", {"muster-relay"},
                                                        read_clocks().wall, life);
    std::ofstream(dir / "cert.pem") << cert.cert_pem << ca.cert_pem;
    std::ofstream(dir / "key.pem") << cert.key_pem;
  }
  std::string handoff() const { return (dir / "handoff").string(); }
  void start() {
    int pipe_fds[2];
    ASSERT_EQ(::pipe(pipe_fds), 0);
    const std::string program = fs::read_symlink("/proc/self/exe").parent_path() / "muster-relay";
    const std::vector<std::string> args = {program,
                                           "--listen",
                                           "127.0.0.1:" + std::to_string(port),
                                           "--handoff",
                                           handoff(),
                                           "--cert",
                                           dir / "cert.pem",
                                           "--key",
                                           dir / "key.pem",
                                           "--controller-key",
                                           dir / "controller",
                                           "--relay-id",
                                           "relay-1",
                                           "--metrics",
                                           "127.0.0.1:0",
                                           "--reload-seconds",
                                           reload_seconds};
    std::vector<char*> argv;
    for (const auto& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    pid = ::fork();
    if (pid == 0) {
      ::dup2(pipe_fds[1], 1);
      ::close(pipe_fds[0]);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(pipe_fds[1]);
    FILE* lines = ::fdopen(pipe_fds[0], "r");
    unsigned p = 0, m = 0;
    ASSERT_EQ(std::fscanf(lines, "port %u metrics %u", &p, &m), 2);
    std::fclose(lines);
    port = static_cast<std::uint16_t>(p);
    metrics_port = static_cast<std::uint16_t>(m);
  }
  int stop() {
    if (pid < 0) return -1;
    ::kill(pid, SIGTERM);
    int status = 0;
    ::waitpid(pid, &status, 0);
    pid = -1;
    return status;
  }
  net::Endpoint endpoint() const {
    net::Endpoint e;
    e.host = "127.0.0.1";
    e.port = port;
    e.ca_pem = ca.cert_pem;
    e.server_name = net::kRelayName;
    e.role = crypto::ServerRole::Relay;
    e.use_proxy_env = false;
    return e;
  }
  net::Endpoint server_endpoint() const {  // whoever is behind the handoff socket
    net::Endpoint e = endpoint();
    e.server_name = "muster";
    e.role = crypto::ServerRole::ControlPlane;
    return e;
  }
  Bytes token(const crypto::X25519Pair& pair, std::uint64_t cluster, const std::string& relay = "relay-1") const {
    return overlay::sign_relay_token(controller,
                                     {relay, cluster, pair.public_key, read_clocks().wall + Millis(60'000)});
  }
};

struct Peer {
  crypto::X25519Pair pair = crypto::x25519_generate();
  std::unique_ptr<Client> client;
  std::mutex mutex;
  std::vector<std::pair<Key32, Bytes>> got;
  std::atomic<int> gone{0}, refused{0};
  void start(const Process& relay, Bytes token) {
    client = std::make_unique<Client>(ClientOptions{relay.endpoint(), pair, std::move(token), Millis(50), Millis(400)});
    client->start({[this](const Key32& from, ByteView data) {
                     const std::lock_guard lock(mutex);
                     got.emplace_back(from, Bytes(data.begin(), data.end()));
                   },
                   [this](const Key32&) { ++gone; },
                   [this](ClientState state, const std::string&) { refused += state == ClientState::Refused; }});
  }
  bool up() const {
    return eventually([this] { return client->state() == ClientState::Up; });
  }
  std::size_t count() {
    const std::lock_guard lock(mutex);
    return got.size();
  }
};

std::unique_ptr<net::Server> make_server(const Process& relay, const std::string& answer) {
  const auto cert = *crypto::issue_server_certificate(relay.ca, crypto::ServerRole::ControlPlane, "muster", {"muster"},
                                                      read_clocks().wall, Millis(3'600'000));
  net::ServerHandlers handlers;
  handlers.http = [answer](net::Request request, net::ResponderPtr responder) {
    responder->send({200, "text/plain", {}, answer + request.path});
  };
  auto server = net::Server::create(std::move(handlers), {cert.cert_pem + relay.ca.cert_pem, cert.key_pem}, {}, 1);
  EXPECT_TRUE((*server)->adopt_from(relay.handoff()).ok());
  return std::move(*server);
}

std::string scrape(const Process& relay) {
  const net::Fd fd(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(relay.metrics_port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return "";
  (void)!::write(fd.get(), "GET /metrics HTTP/1.1\r\n\r\n", 25);
  std::string out;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(fd.get(), buffer, sizeof buffer)) > 0;)
    out.append(buffer, static_cast<std::size_t>(n));
  return out;
}

TEST(Relay, MembersOfOneClusterExchangePackets) {
  Process relay;
  Peer a, b, stranger;
  a.start(relay, relay.token(a.pair, 1));
  b.start(relay, relay.token(b.pair, 1));
  stranger.start(relay, relay.token(stranger.pair, 2));
  ASSERT_TRUE(a.up() && b.up() && stranger.up());
  for (std::size_t i = 0; i < 200; ++i) {
    ASSERT_TRUE(a.client->send(b.pair.public_key, Bytes(1 + i * 7, static_cast<std::uint8_t>(i))));
  }
  ASSERT_TRUE(eventually([&] { return b.count() == 200; }));
  for (std::size_t i = 0; i < 200; ++i) {
    EXPECT_EQ(b.got[i].first, a.pair.public_key);
    EXPECT_EQ(b.got[i].second, Bytes(1 + i * 7, static_cast<std::uint8_t>(i)));
  }
  // Another cluster's member is as good as absent.
  EXPECT_TRUE(stranger.client->send(b.pair.public_key, Bytes(10)));
  EXPECT_TRUE(eventually([&] { return stranger.gone > 0; }));
  EXPECT_EQ(b.count(), 200u);
  EXPECT_FALSE(a.client->send(b.pair.public_key, Bytes(70'000))) << "too large";
  EXPECT_FALSE(a.client->send(b.pair.public_key, Bytes())) << "empty";
  const std::string metrics = scrape(relay);
  EXPECT_NE(metrics.find("muster_relay_members 3\n"), std::string::npos) << metrics;
  EXPECT_NE(metrics.find("muster_relay_packets_total 200\n"), std::string::npos);
}

// Members of different threads of the relay: what one has for another is written by either's thread.
TEST(Relay, ManySendToManyAtOnceAndEachHasItAllInOrder) {
  constexpr std::size_t kPeers = 6, kEach = 1'500;
  Process relay;
  std::array<Peer, kPeers> peers;
  for (Peer& peer : peers) peer.start(relay, relay.token(peer.pair, 1));
  for (const Peer& peer : peers) ASSERT_TRUE(peer.up());
  std::vector<std::thread> senders;
  for (std::size_t from = 0; from < kPeers; ++from)
    senders.emplace_back([&, from] {
      for (std::uint32_t i = 0; i < kEach; ++i) {
        Bytes packet(100 + i % 300);
        store_be32(packet.data(), i);
        for (const std::size_t to : {(from + 1) % kPeers, (from + 2) % kPeers})
          EXPECT_TRUE(peers[from].client->send(peers[to].pair.public_key, packet));
        if (i % 50 == 49) std::this_thread::sleep_for(Millis(2));  // queues are bounded, and nothing is to be dropped
      }
    });
  for (auto& sender : senders) sender.join();
  for (Peer& peer : peers) {
    EXPECT_TRUE(eventually([&] { return peer.count() == 2 * kEach; })) << peer.count();
    std::map<Key32, std::uint32_t> next;
    for (const auto& [from, packet] : peer.got) {
      const std::uint32_t number = load_be32(packet.data());
      ASSERT_EQ(number, next[from]++);
      ASSERT_EQ(packet.size(), 100 + number % 300);
    }
  }
}

TEST(Relay, WhoDoesNotReadLosesItsOldestAndThenHasTheNewest) {
  Process relay;
  const auto pair = crypto::x25519_generate();
  auto slow = net::dial(relay.endpoint(), std::string(overlay::kRelayAlpn), net::deadline_in(Millis(3000)));
  ASSERT_TRUE(slow.ok()) << slow.error().message;
  overlay::FrameReader reader;
  std::vector<std::uint32_t> got;
  bool welcome = false;
  const auto read = [&] {
    char buffer[16 << 10];
    const auto n = net::read_some(*slow, buffer, sizeof buffer, net::deadline_in(Millis(5000)));
    if (!n.ok() || *n == 0) return false;
    reader.feed(as_bytes({buffer, *n}));
    while (auto frame = *reader.next()) {
      if (frame->type == overlay::RelayType::Challenge) {
        Bytes hello;
        overlay::append_hello(hello,
                              *overlay::make_hello(*overlay::parse_challenge(frame->body), pair, relay.token(pair, 1)));
        EXPECT_TRUE(net::write_all(*slow, as_string(hello), net::deadline_in(Millis(3000))).ok());
      }
      welcome |= frame->type == overlay::RelayType::Welcome;
      if (frame->type == overlay::RelayType::Recv)
        got.push_back(load_be32(overlay::parse_packet(frame->body)->payload.data()));
    }
    return true;
  };
  while (!welcome) ASSERT_TRUE(read());
  Peer fast;
  fast.start(relay, relay.token(fast.pair, 1));
  ASSERT_TRUE(fast.up());
  // More than the kernel's buffers and the relay's queue hold together.
  constexpr std::uint32_t kPackets = 16'000;
  Bytes packet(1'400);
  for (std::uint32_t i = 0; i < kPackets; ++i) {
    store_be32(packet.data(), i);
    ASSERT_TRUE(fast.client->send(pair.public_key, packet));
    if (i % 500 == 499) {  // so that its own queue drops nothing
      const std::string sent = fmt::format("muster_relay_packets_total {}\n", i + 1);
      ASSERT_TRUE(eventually([&] { return scrape(relay).find(sent) != std::string::npos; }));
    }
  }
  while (got.empty() || got.back() != kPackets - 1) ASSERT_TRUE(read()) << got.size();
  EXPECT_TRUE(std::is_sorted(got.begin(), got.end()));
  EXPECT_EQ(got.front(), 0u) << "what the kernel had already";
  const std::size_t lost = kPackets - got.size();
  EXPECT_GT(lost, 1'000u);
  EXPECT_NE(scrape(relay).find(fmt::format("muster_relay_dropped_total {}\n", lost)), std::string::npos);
  // And is a member like any other.
  packet[0] = 0xff;
  EXPECT_TRUE(fast.client->send(pair.public_key, packet));
  while (got.back() < kPackets) ASSERT_TRUE(read());
}

TEST(Relay, RefusesForeignTokensAndWaitsForABetterOne) {
  Process relay;
  Peer a, thief;
  thief.start(relay, relay.token(a.pair, 1));  // a token for another key
  EXPECT_TRUE(eventually([&] { return thief.refused > 0; }));
  a.start(relay, relay.token(a.pair, 1, "relay-2"));
  EXPECT_TRUE(eventually([&] { return a.refused > 0; }));
  EXPECT_NE(a.client->state(), ClientState::Up);
  a.client->set_token(relay.token(a.pair, 1));
  EXPECT_TRUE(a.up());
}

TEST(Relay, RefusesAReplayedHello) {
  Process relay;
  const auto pair = crypto::x25519_generate();
  Bytes hello;
  std::vector<overlay::RelayType> seen;
  for (int round = 0; round < 2; ++round) {
    auto connection = net::dial(relay.endpoint(), std::string(overlay::kRelayAlpn), net::deadline_in(Millis(3000)));
    ASSERT_TRUE(connection.ok()) << connection.error().message;
    overlay::FrameReader reader;
    bool answered = false;
    while (!answered) {
      char buffer[4096];
      const auto n = net::read_some(*connection, buffer, sizeof buffer, net::deadline_in(Millis(3000)));
      ASSERT_TRUE(n.ok() && *n > 0);
      reader.feed(as_bytes({buffer, *n}));
      while (auto frame = *reader.next()) {
        if (frame->type != overlay::RelayType::Challenge) {
          seen.push_back(frame->type);
          answered = true;
          break;
        }
        if (round == 0)
          overlay::append_hello(
              hello, *overlay::make_hello(*overlay::parse_challenge(frame->body), pair, relay.token(pair, 1)));
        ASSERT_TRUE(net::write_all(*connection, as_string(hello), net::deadline_in(Millis(3000))).ok());
      }
    }
  }
  EXPECT_EQ(seen, (std::vector{overlay::RelayType::Welcome, overlay::RelayType::Error}));
}

TEST(Relay, TheServerRestartsWhileMembersGoOn) {
  Process relay;
  Peer a, b;
  a.start(relay, relay.token(a.pair, 1));
  b.start(relay, relay.token(b.pair, 1));
  ASSERT_TRUE(a.up() && b.up());
  std::atomic<bool> done{false};
  std::atomic<std::size_t> sent{0};
  std::thread traffic([&] {
    while (!done) {
      sent += a.client->send(b.pair.public_key, Bytes(100));
      std::this_thread::sleep_for(Millis(1));
    }
  });
  auto server = make_server(relay, "one");
  net::Client client(relay.server_endpoint());
  auto r = client.call({.target = "/x"});
  EXPECT_TRUE(r.ok() && r->body == "one/x") << (r.ok() ? r->body : r.error().message);
  server.reset();
  // No server: the connection waits in the relay and reaches the next one.
  auto waiting =
      std::async(std::launch::async, [&] { return net::Client(relay.server_endpoint()).call({.target = "/y"}); });
  std::this_thread::sleep_for(Millis(300));
  server = make_server(relay, "two");
  r = waiting.get();
  EXPECT_TRUE(r.ok() && r->body == "two/y") << (r.ok() ? r->body : r.error().message);
  done = true;
  traffic.join();
  EXPECT_TRUE(eventually([&] { return b.count() == sent; })) << b.count() << " of " << sent;
  EXPECT_GT(sent, 100u);
}

TEST(Relay, TakesSlowHellosAndEndsHalfOnes) {
  Process relay;
  auto server = make_server(relay, "");
  auto connect = [&] {
    net::Fd fd(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(relay.port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    timeval limit{8, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
  };
  char byte = 0;
  const net::Fd plain = connect();
  EXPECT_EQ(::write(plain.get(), "GET / HTTP/1.1\r\n\r\n", 18), 18);
  EXPECT_LE(::read(plain.get(), &byte, 1), 0) << "not TLS: closed";
  const net::Fd half = connect();
  EXPECT_EQ(::write(half.get(), "\x16\x03\x01\x02\x00\x01", 6), 6);
  EXPECT_LE(::read(half.get(), &byte, 1), 0) << "half a hello: closed after five seconds";
  EXPECT_NE(errno, EAGAIN);
  // A hello in two pieces reaches the server.
  const auto ctx = net::client_context(relay.server_endpoint(), "http/1.1");
  const net::SslPtr ssl(SSL_new(ctx->get()));
  BIO* in = BIO_new(BIO_s_mem());
  BIO* out = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl.get(), in, out);
  ASSERT_TRUE(net::prepare_client(*ssl, relay.server_endpoint()).ok());
  SSL_do_handshake(ssl.get());
  char hello[8192];
  const int size = BIO_read(out, hello, sizeof hello);
  ASSERT_GT(size, 100);
  const net::Fd slow = connect();
  EXPECT_EQ(::write(slow.get(), hello, 50), 50);
  std::this_thread::sleep_for(Millis(100));
  EXPECT_EQ(::write(slow.get(), hello + 50, static_cast<std::size_t>(size - 50)), size - 50);
  EXPECT_EQ(::read(slow.get(), &byte, 1), 1);
  EXPECT_EQ(byte, 22) << "the server's hello";
}

TEST(Relay, ComesBackAndReloads) {
  Process relay;
  Peer a, again;
  a.start(relay, relay.token(a.pair, 1));
  ASSERT_TRUE(a.up());
  EXPECT_EQ(relay.stop(), 0) << "SIGTERM is a clean end";
  EXPECT_TRUE(eventually([&] { return a.client->state() != ClientState::Up; }));
  EXPECT_FALSE(a.client->send(a.pair.public_key, Bytes(1)));
  relay.start();
  ASSERT_TRUE(a.up());
  relay.ca = *crypto::create_ca("new", read_clocks().wall);
  relay.write_certificate();
  ::kill(relay.pid, SIGHUP);
  EXPECT_TRUE(eventually([&] {
    return net::dial(relay.endpoint(), std::string(overlay::kRelayAlpn), net::deadline_in(Millis(2000))).ok();
  }));
  EXPECT_EQ(a.client->state(), ClientState::Up) << "open connections stay";
}

TEST(Relay, WhoLeftItsClusterIsCutOffAndStaysOut) {
  Process relay;
  Peer a, b, c;
  a.start(relay, relay.token(a.pair, 1));
  b.start(relay, relay.token(b.pair, 1));
  c.start(relay, relay.token(c.pair, 2));
  ASSERT_TRUE(a.up() && b.up() && c.up());
  const auto arrives = [&](Peer& from, Peer& to) {
    const std::size_t before = to.count();
    from.client->send(to.pair.public_key, Bytes(10));
    return eventually([&] { return to.count() > before; }, Millis(1000));
  };
  EXPECT_TRUE(arrives(b, a));
  const auto tell = [&](const net::Fd& fd, net::RecallFrame::Kind kind,
                        const std::vector<std::pair<std::uint64_t, Key32>>& entries) {
    const Bytes bytes = net::encode(net::RecallFrame{kind, entries});
    for (const std::uint8_t byte : bytes) ASSERT_EQ(::write(fd.get(), &byte, 1), 1);
  };
  auto server = net::connect_unix(net::recall_path(relay.handoff()));
  ASSERT_TRUE(server.ok()) << server.error().message;
  tell(*server, net::RecallFrame::Kind::All, {});
  const auto began = std::chrono::steady_clock::now();
  tell(*server, net::RecallFrame::Kind::More, {{1, b.pair.public_key}, {2, a.pair.public_key}});
  EXPECT_TRUE(eventually([&] { return b.client->state() == ClientState::Refused; }));
  EXPECT_LT(std::chrono::steady_clock::now() - began, Millis(3000));
  EXPECT_FALSE(arrives(a, b));
  EXPECT_FALSE(arrives(b, a));
  std::this_thread::sleep_for(Millis(1500));  // it tries again, several times
  EXPECT_NE(b.client->state(), ClientState::Up);
  EXPECT_EQ(a.client->state(), ClientState::Up) << "of another cluster";
  EXPECT_EQ(c.client->state(), ClientState::Up);
  EXPECT_NE(scrape(relay).find("\nmuster_relay_recalled_total 1\n"), std::string::npos);
  // musterd dies: what it said stays. The next one says all again.
  server = net::connect_unix(net::recall_path(relay.handoff()));
  ASSERT_TRUE(server.ok());
  std::this_thread::sleep_for(Millis(600));
  EXPECT_NE(b.client->state(), ClientState::Up);
  tell(*server, net::RecallFrame::Kind::All, {{1, a.pair.public_key}});
  EXPECT_TRUE(b.up());
  EXPECT_TRUE(eventually([&] { return a.client->state() == ClientState::Refused; }));
  // Damage ends the connection, not the relay.
  const Bytes nonsense(5, 9);
  ASSERT_EQ(::write(server->get(), nonsense.data(), nonsense.size()), 5);
  char byte = 0;
  ASSERT_TRUE(net::await_fd(server->get(), POLLIN, net::deadline_in(Millis(3000))).ok());
  EXPECT_EQ(::read(server->get(), &byte, 1), 0);
  EXPECT_TRUE(b.up());
}

TEST(Relay, TheControlPlaneRecallsFromFarAndNobodyElse) {
  Process relay;
  Peer a, b, control;
  a.start(relay, relay.token(a.pair, 1));
  b.start(relay, relay.token(b.pair, 1));
  control.start(relay, relay.token(control.pair, overlay::kControlCluster));
  ASSERT_TRUE(a.up() && b.up() && control.up());
  const auto recall = [](net::RecallFrame::Kind kind, const Key32& key) {
    return net::encode(net::RecallFrame{kind, {{1, key}}});
  };
  EXPECT_TRUE(control.client->recall(recall(net::RecallFrame::Kind::All, b.pair.public_key)));
  EXPECT_TRUE(eventually([&] { return b.client->state() == ClientState::Refused; }));
  EXPECT_EQ(a.client->state(), ClientState::Up);
  // A member that tries the same is turned out, and nobody is recalled.
  EXPECT_TRUE(a.client->recall(recall(net::RecallFrame::Kind::All, control.pair.public_key)));
  EXPECT_TRUE(eventually([&] { return a.client->state() != ClientState::Up; }));
  EXPECT_TRUE(a.up()) << "it may come back";
  EXPECT_NE(b.client->state(), ClientState::Up);
  // Damage ends the connection.
  EXPECT_TRUE(control.client->recall(Bytes(7, 9)));
  EXPECT_TRUE(eventually([&] { return control.client->state() != ClientState::Up; }));
  EXPECT_FALSE(a.client->recall(Bytes(overlay::kRelayBodyMax + 1))) << "larger than a frame";
}

TEST(Relay, ATokenIsRenewedOnTheOpenConnection) {
  Process relay;
  Peer a;
  const auto until = [&](Millis life) {
    return overlay::sign_relay_token(relay.controller, {"relay-1", 1, a.pair.public_key, read_clocks().wall + life});
  };
  a.start(relay, until(Millis(2500)));
  ASSERT_TRUE(a.up());
  const auto members = [&] { return scrape(relay).find("\nmuster_relay_members_total 1\n") != std::string::npos; };
  EXPECT_TRUE(members());
  a.client->set_token(until(Millis(60'000)));
  std::this_thread::sleep_for(Millis(4500));
  EXPECT_EQ(a.client->state(), ClientState::Up);
  EXPECT_TRUE(members()) << "the same connection as before";
  // A token for another place does not move it.
  a.client->set_token(relay.token(a.pair, 2));
  EXPECT_TRUE(eventually([&] { return a.refused > 0; }));
}

// A relay that was taken over answers everything itself, with all the keys it has.
// What musterd says of the keys of tokens.
struct Stated {
  explicit Stated(const Process& relay) : relay_(relay) {}
  Bytes text(std::vector<crypto::SigningKeyEntry> keys) {
    crypto::SigningKeys out{"srv-1", ++revision, std::move(keys), {}, {}};
    const crypto::Trust trust{{}, 0, {by.cert_pem}, {}, {}, {}};
    EXPECT_TRUE(crypto::sign_signing_keys(out, by, trust).ok());
    return to_bytes(crypto::signing_keys_text(out));
  }
  crypto::SigningKeyEntry old(WallTime until) const {
    return {crypto::KeyKind::RelayToken, relay_.controller.public_key(), {}, until};
  }
  crypto::SigningKeyEntry next() const {
    return {crypto::KeyKind::RelayToken, fresh.public_key(), read_clocks().wall, {}};
  }
  Bytes token(const crypto::X25519Pair& pair, const crypto::SigningKey& key) const {
    return overlay::sign_relay_token(key, {"relay-1", 1, pair.public_key, read_clocks().wall + Millis(60'000)},
                                     overlay::TokenForm::Named);
  }
  const Process& relay_;
  std::uint64_t revision = 0;
  crypto::KeyAndCert by = relay_.ca;
  crypto::SigningKey fresh = crypto::SigningKey::generate();
};

TEST(Relay, LearnsAnotherKeyOfTokensWithoutCuttingAnybody) {
  Process relay;
  relay.stop();
  std::ofstream(relay.dir / "ca.pem") << relay.ca.cert_pem;
  relay.start();
  Stated stated(relay);
  Peer a, b;
  a.start(relay, relay.token(a.pair, 1));
  b.start(relay, relay.token(b.pair, 1));
  ASSERT_TRUE(a.up() && b.up());
  const auto talks = [&] {
    const std::size_t before = b.count();
    return eventually([&] {
      a.client->send(b.pair.public_key, Bytes(10));
      return b.count() > before;
    });
  };
  const auto connects = [&](const Bytes& token, const crypto::X25519Pair& pair) {
    Peer each;
    each.pair = pair;
    each.start(relay, token);
    return eventually([&] { return each.client->state() == ClientState::Up || each.refused > 0; }) && each.refused == 0;
  };
  const auto pair = crypto::x25519_generate();
  EXPECT_FALSE(connects(stated.token(pair, stated.fresh), pair)) << "nobody spoke of that key yet";
  // A member hears of it before the relay does: it stays, and counts once the relay knows.
  a.client->set_token(stated.token(a.pair, stated.fresh));
  EXPECT_TRUE(talks());
  const auto musterd = net::connect_unix(net::recall_path(relay.handoff()));
  ASSERT_TRUE(musterd.ok());
  const auto tell = [&](const Bytes& text) {
    const Bytes frame = net::encode({net::RecallFrame::Kind::Keys, {}, text});
    EXPECT_EQ(::send(musterd->get(), frame.data(), frame.size(), MSG_NOSIGNAL), static_cast<ssize_t>(frame.size()));
  };
  const auto knows = [&](std::uint64_t revision) {
    return eventually([&] {
      return scrape(relay).find("muster_relay_keys_revision " + std::to_string(revision) + "\n") != std::string::npos;
    });
  };
  const WallTime soon = read_clocks().wall + Millis(3'600'000);
  tell(stated.text({stated.old(soon), stated.next()}));
  ASSERT_TRUE(knows(1));
  EXPECT_TRUE(connects(stated.token(pair, stated.fresh), pair));
  EXPECT_TRUE(connects(relay.token(pair, 1), pair)) << "the one before has its time yet";
  // Who holds the socket, or any key of tokens, can add none: a believed CA must say so.
  Stated thief(relay);
  thief.by = *crypto::create_ca("thief", read_clocks().wall);
  thief.revision = 100;
  tell(thief.text({thief.next()}));
  tell(to_bytes("Muster signing keys 1\n"));
  EXPECT_FALSE(connects(thief.token(pair, thief.fresh), pair));
  // The one before is believed no longer; what was let in by it and shows another token in time stays.
  tell(stated.text({stated.next()}));
  ASSERT_TRUE(knows(2));
  EXPECT_FALSE(connects(relay.token(pair, 1), pair)) << "refused from now on";
  EXPECT_TRUE(connects(stated.token(pair, stated.fresh), pair));
  b.client->set_token(stated.token(b.pair, stated.fresh));
  EXPECT_TRUE(talks());
  // It is known over a restart, where musterd is away.
  relay.stop();
  relay.start();
  EXPECT_FALSE(connects(relay.token(pair, 1), pair));
  EXPECT_TRUE(connects(stated.token(pair, stated.fresh), pair));
  EXPECT_EQ(a.refused + b.refused, 0);
}

TEST(Relay, WhatARetiredKeyLetInEndsUnlessItShowsAnotherToken) {
  Process files;
  files.stop();
  Stated stated(files);
  RelayOptions options;
  options.address = "127.0.0.1";
  options.port = 0;
  options.mirror = false;
  options.controller_key = files.controller.public_key();
  options.relay_id = "relay-1";
  options.trust_pem = files.ca.cert_pem;
  options.keys_file = (files.dir / "signing-keys.pem").string();
  options.other_token = Millis(1500);
  std::ifstream cert(files.dir / "cert.pem"), key(files.dir / "key.pem");
  options.tls = {std::string(std::istreambuf_iterator<char>(cert), {}),
                 std::string(std::istreambuf_iterator<char>(key), {})};
  const auto relay = Relay::create(options);
  ASSERT_TRUE(relay.ok()) << relay.error().message;
  files.port = (*relay)->port();
  Peer stays, thief;
  stays.start(files, files.token(stays.pair, 1));
  thief.start(files, files.token(thief.pair, 1));
  ASSERT_TRUE(stays.up() && thief.up());
  std::ofstream(options.keys_file) << as_string(stated.text({stated.next()}));
  (*relay)->reload_trust(options.trust_pem);
  std::this_thread::sleep_for(Millis(300));
  EXPECT_EQ(stays.refused + thief.refused, 0) << "nobody is cut at once";
  stays.client->set_token(stated.token(stays.pair, stated.fresh));
  EXPECT_TRUE(eventually([&] { return thief.refused > 0; }));
  std::this_thread::sleep_for(Millis(1500));
  EXPECT_EQ(stays.refused, 0);
  EXPECT_EQ(stays.client->state(), ClientState::Up);
  EXPECT_NE(thief.client->state(), ClientState::Up);
  stays.client->stop();
  thief.client->stop();
  (*relay)->stop();
}

TEST(Relay, IsToldAnotherKeyFromFarByATokenOfThatKey) {
  Process relay;
  relay.stop();
  std::ofstream(relay.dir / "trust.pem") << relay.ca.cert_pem;
  relay.start();
  Stated stated(relay);
  Peer control;
  const auto token = [&] {
    return overlay::sign_relay_token(
        stated.fresh,
        {"relay-1", overlay::kControlCluster, control.pair.public_key, read_clocks().wall + Millis(60'000)},
        overlay::TokenForm::Named);
  };
  control.client =
      std::make_unique<Client>(ClientOptions{relay.endpoint(), control.pair, token(), Millis(50), Millis(400)});
  control.client->set_keys(stated.text({stated.next()}));
  control.client->start({[](const Key32&, ByteView) {}, {}, {}, {}});
  EXPECT_TRUE(control.up()) << "the statement comes before the token that needs it";
  Peer member;
  member.start(relay, relay.token(member.pair, 1));
  EXPECT_TRUE(eventually([&] { return member.refused > 0; }));
  // A stranger's word changes nothing, and is not taken for ever.
  Stated thief(relay);
  thief.by = *crypto::create_ca("thief", read_clocks().wall);
  thief.revision = 100;
  auto connection = net::dial(relay.endpoint(), std::string(overlay::kRelayAlpn), net::deadline_in(Millis(3000)));
  ASSERT_TRUE(connection.ok());
  Bytes frames;
  for (int i = 0; i < 5; ++i) overlay::append_keys(frames, thief.text({thief.next()}));
  ASSERT_TRUE(net::write_all(*connection, as_string(frames), net::deadline_in(Millis(3000))).ok());
  overlay::FrameReader reader;
  std::optional<overlay::RelayType> last;
  for (;;) {
    char buffer[4096];
    const auto n = net::read_some(*connection, buffer, sizeof buffer, net::deadline_in(Millis(4000)));
    if (!n.ok() || *n == 0) break;
    reader.feed(as_bytes({buffer, *n}));
    while (auto frame = *reader.next()) last = frame->type;
  }
  EXPECT_EQ(last, overlay::RelayType::Error);
  EXPECT_NE(scrape(relay).find("muster_relay_keys_refused_total 4\n"), std::string::npos) << scrape(relay);
  Peer his;
  his.start(relay, thief.token(his.pair, thief.fresh));
  EXPECT_TRUE(eventually([&] { return his.refused > 0; }));
}

TEST(Relay, ItsKeyPassesForNobodyElse) {
  const Process relay;
  const auto read = [&](const char* name) {
    std::ifstream in(relay.dir / name);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  net::ServerHandlers handlers;
  handlers.http = [](net::Request, net::ResponderPtr responder) { responder->send({200, "text/plain", {}, "mine"}); };
  const auto taken = *net::Server::create(std::move(handlers), {read("cert.pem"), read("key.pem")}, {}, 1);
  net::Endpoint endpoint = relay.server_endpoint();
  endpoint.port = *taken->listen("127.0.0.1", 0);
  EXPECT_EQ(net::Client(endpoint).call({.target = "/"}).error().code, Code::Unauthenticated) << "by its name";
  endpoint.server_name = net::kRelayName;
  auto answer = net::Client(endpoint).call({.target = "/"});
  ASSERT_FALSE(answer.ok());
  EXPECT_NE(answer.error().message.find("a relay's"), std::string::npos) << answer.error().message;
  endpoint.ca_sha256 = *crypto::certificate_sha256(std::exchange(endpoint.ca_pem, ""));
  answer = net::Client(endpoint).call({.target = "/"});
  ASSERT_FALSE(answer.ok());
  EXPECT_NE(answer.error().message.find("a relay's"), std::string::npos) << answer.error().message;
}

TEST(Relay, TakesNoKeyOfMusterdsButOneOfBeforeRoles) {
  Process relay;
  const auto pair = [&](std::optional<crypto::ServerRole> role) {
    const auto made =
        *crypto::issue_server_certificate(relay.ca, role, "muster", {"muster"}, read_clocks().wall, Millis(3'600'000));
    return net::TlsFiles{made.cert_pem + relay.ca.cert_pem, made.key_pem};
  };
  RelayOptions options;
  options.address = "127.0.0.1";
  options.port = 0;
  options.mirror = false;
  options.controller_key = relay.controller.public_key();
  options.relay_id = "relay-1";
  options.tls = pair(crypto::ServerRole::ControlPlane);
  EXPECT_EQ(Relay::create(options).error().code, Code::InvalidArgument);
  options.tls = pair({});
  const auto old = Relay::create(options);
  ASSERT_TRUE(old.ok()) << old.error().message;
  relay.port = (*old)->port();
  Peer member;
  member.start(relay, relay.token(member.pair, 1));
  EXPECT_TRUE(member.up()) << "members go on while their relay has the certificate of before";
  net::Endpoint control = relay.server_endpoint();
  const auto answer = net::Client(control).call({.target = "/"});
  EXPECT_FALSE(answer.ok()) << "what is for musterd is handed on, and here is none";
  (*old)->stop();
}

TEST(Relay, NoticesANewCertificateByItself) {
  Process relay;
  relay.stop();
  relay.reload_seconds = "1";
  relay.start();
  Peer a;
  a.start(relay, relay.token(a.pair, 1));
  ASSERT_TRUE(a.up());
  const auto seconds_left = [&] {
    const std::string text = scrape(relay), name = "\nmuster_relay_certificate_remaining_seconds ";
    const auto at = text.find(name);
    return at == std::string::npos ? -1.0 : std::stod(text.substr(at + name.size()));
  };
  EXPECT_NEAR(seconds_left(), 3600, 30);
  const auto dials = [&] {
    return net::dial(relay.endpoint(), std::string(overlay::kRelayAlpn), net::deadline_in(Millis(2000))).ok();
  };
  // A key without its certificate is not taken, and the old pair stays.
  std::ofstream(relay.dir / "key.pem") << crypto::issue_server_certificate(relay.ca, crypto::ServerRole::Relay,
                                                                           "muster-relay", {"muster-relay"},
                                                                           read_clocks().wall, Millis(1000))
                                              ->key_pem;
  std::this_thread::sleep_for(Millis(2500));
  EXPECT_TRUE(dials());
  relay.ca = *crypto::create_ca("new", read_clocks().wall);
  EXPECT_FALSE(dials());
  relay.write_certificate(Millis(7'200'000));
  EXPECT_TRUE(eventually(dials));
  EXPECT_NEAR(seconds_left(), 7200, 30);
  EXPECT_EQ(a.client->state(), ClientState::Up) << "open connections stay";
}

TEST(Relay, TellsOverUdpHowOneIsSeen) {
  const Process relay;
  const net::Fd udp(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{}, own{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = htons(relay.port);
  socklen_t size = sizeof own;
  ASSERT_EQ(::connect(udp.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  ASSERT_EQ(::getsockname(udp.get(), reinterpret_cast<sockaddr*>(&own), &size), 0);
  const timeval patience{5, 0};
  ::setsockopt(udp.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  const overlay::StunTransaction transaction{1, 2, 3};
  for (const Bytes& question :
       {Bytes{}, Bytes(20), Bytes(600, 1), overlay::stun_answer(transaction, 1, 2), overlay::stun_request(transaction)})
    ASSERT_EQ(::send(udp.get(), question.data(), question.size(), 0), static_cast<ssize_t>(question.size()));
  Bytes answer(1000);
  const ssize_t n = ::recv(udp.get(), answer.data(), answer.size(), 0);
  ASSERT_GT(n, 0) << "nobody answered";
  answer.resize(static_cast<std::size_t>(n));
  EXPECT_EQ(overlay::read_stun_answer(answer, transaction),
            overlay::Endpoint::udp(INADDR_LOOPBACK, ntohs(own.sin_port)));
  const timeval little{0, 200'000};
  ::setsockopt(udp.get(), SOL_SOCKET, SO_RCVTIMEO, &little, sizeof little);
  EXPECT_LT(::recv(udp.get(), answer.data(), answer.size(), 0), 0) << "one question, one answer";
}

TEST(ClientHelloReader, SurvivesAnything) {
  Rng rng(4);
  net::Endpoint endpoint;
  endpoint.ca_sha256 = Bytes(32);
  const auto ctx = net::client_context(endpoint, "muster-relay/1");
  const net::SslPtr ssl(SSL_new(ctx->get()));
  BIO* out = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl.get(), BIO_new(BIO_s_mem()), out);
  ASSERT_TRUE(net::prepare_client(*ssl, endpoint).ok());
  SSL_do_handshake(ssl.get());
  Bytes hello(8192);
  hello.resize(static_cast<std::size_t>(BIO_read(out, hello.data(), static_cast<int>(hello.size()))));
  const ClientHello whole = read_client_hello(hello);
  EXPECT_EQ(whole.kind, ClientHello::Kind::Hello);
  EXPECT_EQ(whole.alpn, std::vector<std::string>{"muster-relay/1"});
  EXPECT_EQ(whole.server_name, "muster");
  for (std::size_t n = 0; n < hello.size(); ++n)
    EXPECT_EQ(read_client_hello(ByteView(hello).first(n)).kind, ClientHello::Kind::NeedMore) << n;
  for (int i = 0; i < 20'000; ++i) {
    Bytes bad = hello;
    for (int flips = 0; flips < 5; ++flips) bad[rng.below(bad.size())] = static_cast<std::uint8_t>(rng.next());
    (void)read_client_hello(bad);
  }
}

}  // namespace
}  // namespace muster::relay
