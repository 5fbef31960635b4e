// Two netds over a slow link with a deep buffer, as behind a home router: bulk fills it, and a small question every 20
// ms must come back soon all the same. Directly, by the relay, and under the owner's cap; without the pace the same
// link delays for a second and more, which shows that the others could fail.
#include <gtest/gtest.h>
#include <netinet/tcp.h>

#include <cstring>
#include <fstream>

#include "crypto/cert.h"
#include "host/embedded.h"
#include "host/netd_rig.h"
#include "relay/relay.h"

namespace muster::host {
namespace {

using Clock = std::chrono::steady_clock;

// A TCP connection from a lease of one machine to another's.
struct Connection {
  int from = -1, to = -1;
  Connection(const lab::Machine& a, const lab::Machine& b, std::uint16_t port) {
    int listener = -1;
    lab::inside(b.lease_ns, [&] {
      listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_in at{};
      at.sin_family = AF_INET;
      at.sin_port = htons(port);
      const int on = 1;
      ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      EXPECT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&at), sizeof at), 0) << std::strerror(errno);
      ::listen(listener, 1);
    });
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    at.sin_addr.s_addr = htonl(b.address);
    lab::inside(a.lease_ns, [&] { from = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); });
    EXPECT_EQ(::connect(from, reinterpret_cast<sockaddr*>(&at), sizeof at), 0) << std::strerror(errno);
    to = ::accept(listener, nullptr, nullptr);
    ::close(listener);
    const int on = 1;
    for (const int fd : {from, to}) ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  ~Connection() {
    for (const int fd : {from, to}) ::close(fd);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  void shut() const {
    for (const int fd : {from, to}) ::shutdown(fd, SHUT_RDWR);
  }
};

// Connections that always have more to send.
class Flood {
 public:
  Flood(const lab::Machine& a, const lab::Machine& b, std::uint16_t port, int count) {
    for (int i = 0; i < count; ++i) {
      auto& connection = connections_.emplace_back(std::make_unique<Connection>(a, b, port));
      threads_.emplace_back([fd = connection->from] {
        const std::vector<char> block(64 << 10);
        while (::send(fd, block.data(), block.size(), MSG_NOSIGNAL) > 0) {
        }
      });
      threads_.emplace_back([this, fd = connection->to] {
        std::vector<char> buffer(256 << 10);
        for (ssize_t n = 1; n > 0;) {
          n = ::recv(fd, buffer.data(), buffer.size(), 0);
          if (n > 0) received_ += static_cast<std::uint64_t>(n);
        }
      });
    }
  }
  ~Flood() {
    for (const auto& connection : connections_) connection->shut();
    for (std::thread& thread : threads_) thread.join();
  }
  std::uint64_t received() const { return received_; }

 private:
  std::vector<std::unique_ptr<Connection>> connections_;
  std::atomic<std::uint64_t> received_{0};
  std::vector<std::thread> threads_;
};

struct Asked {
  Millis worst99{0};
  std::size_t count = 0;
  double bulk_s = 0;  // bytes a second that came meanwhile
};

struct NetdPacing : lab::NetdRig {
  crypto::KeyAndCert ca = crypto::create_ca("test", read_clocks().wall).value();
  std::unique_ptr<relay::Relay> relay;

  void SetUp() override {}
  void begin(Pacing how, bool by_relay = false) {
    if (const auto missing = lab::lab_missing({"ip", "tc"})) GTEST_SKIP() << *missing;
    pacing = how;
    use_lan = !by_relay;
    NetdRig::SetUp();
    if (IsSkipped()) return;
    if (by_relay) open_relay();
    const lab::Echo echo(b.lease_ns, 9000);
    ASSERT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 50, 60), 1);
    const auto direct = [](const lab::Machine& m) { return m.client->stats("lease-1")->peers.at(0).path != "relay"; };
    for (int i = 0; i < 100 && !by_relay && !(direct(a) && direct(b)); ++i) std::this_thread::sleep_for(100ms);
    ASSERT_NE(direct(a), by_relay);
  }
  void TearDown() override {
    NetdRig::TearDown();
    if (relay) relay->stop();
  }
  void open_relay() {
    const auto server = crypto::issue_server_certificate(ca, crypto::ServerRole::Relay, "muster-relay",
                                                         {"muster-relay"}, read_clocks().wall, 24h)
                            .value();
    relay::RelayOptions options;
    options.port = 0;
    options.mirror = false;
    options.tls = {server.cert_pem + ca.cert_pem, server.key_pem};
    options.controller_key = controller.public_key();
    options.relay_id = "relay-1";
    lab::inside(pair->b(), [&] {
      auto made = relay::Relay::create(options);
      ASSERT_TRUE(made.ok()) << made.error().message;
      relay = std::move(*made);
    });
    relays = {{"10.99.0.2", relay->port()}};
    relay_ca = ca.cert_pem;
    configure({&a, &b});
  }
  // What a sends goes through 10 Mbit/s with room for two seconds.
  void narrow() {
    ASSERT_EQ(lab::sh(lab::Pair::in(pair->a(), "tc qdisc add dev " + pair->device_of_a() +
                                                   " root tbf rate 10mbit burst 16kb latency 2000ms")),
              0);
  }
  Asked ask(const Flood& flood, Millis length) {
    const Connection connection(a, b, 6380);
    std::thread echo([&] {
      char message[64];
      for (ssize_t n = 1; n > 0;) {
        n = ::recv(connection.to, message, sizeof message, MSG_WAITALL);
        if (n > 0) n = ::send(connection.to, message, static_cast<std::size_t>(n), MSG_NOSIGNAL);
      }
    });
    std::vector<Millis> took;
    const auto began = Clock::now();
    const std::uint64_t before = flood.received();
    while (Clock::now() - began < length) {
      const auto asked = Clock::now();
      char message[64] = {};
      if (::send(connection.from, message, sizeof message, MSG_NOSIGNAL) != sizeof message ||
          ::recv(connection.from, message, sizeof message, MSG_WAITALL) != sizeof message)
        break;
      took.push_back(std::chrono::duration_cast<Millis>(Clock::now() - asked));
      std::this_thread::sleep_until(asked + 20ms);
    }
    const double passed = std::chrono::duration<double>(Clock::now() - began).count();
    connection.shut();
    echo.join();
    Asked out;
    out.count = took.size();
    out.bulk_s = static_cast<double>(flood.received() - before) / passed;
    std::sort(took.begin(), took.end());
    if (!took.empty()) out.worst99 = took[took.size() * 99 / 100];
    RecordProperty("p99_ms", static_cast<int>(out.worst99.count()));
    RecordProperty("bulk_bytes_s", static_cast<int>(out.bulk_s));
    return out;
  }
};

TEST_F(NetdPacing, AFullLinkDelaysNoHeartbeat) {
  begin(Pacing::On);
  if (IsSkipped()) return;
  narrow();
  const Flood flood(a, b, kBulkPort, 8);
  std::this_thread::sleep_for(6s);
  (void)a.client->paths("lease-1");
  const Asked asked = ask(flood, 12s);
  EXPECT_GT(asked.count, 300U);
  EXPECT_LE(asked.worst99, 150ms);
  EXPECT_GT(asked.bulk_s, 0.75 * 1.25e6) << "what may be used is used";
  const auto paths = a.client->paths("lease-1");
  ASSERT_TRUE(paths.ok());
  const session::NetPair& found = paths->report.pairs.at(0);
  EXPECT_NEAR(static_cast<double>(found.carries_bytes_s), 1.25e6, 0.25e6);
  EXPECT_LT(found.carries_age_ms, 60'000U);
  EXPECT_NEAR(static_cast<double>(found.tx_bytes_s), 1.25e6, 0.4e6);
  EXPECT_EQ(paths->limited, 1U);
  EXPECT_EQ(b.client->paths("lease-1")->report.pairs.at(0).carries_bytes_s, 0U) << "the way back was never full";
}

// Both owners allow it, nothing goes there: one of the ends fills the way for a moment, and knows what it carries.
TEST_F(NetdPacing, AnIdleWayIsTestedWhereBothOwnersAllowIt) {
  begin(Pacing::On);
  if (IsSkipped()) return;
  narrow();
  const auto pair_of = [](const lab::Machine& m) { return m.client->paths("lease-1")->report.pairs.at(0); };
  const std::uint64_t before = pair_of(a).tx_bytes;
  std::ofstream(a.dir + "/bandwidth") << "0 0 0 0 0 1 12500000 100000000\n";
  std::this_thread::sleep_for(16s);
  EXPECT_LT(pair_of(a).tx_bytes - before, 64U << 10) << "the other owner does not allow it";
  std::ofstream(b.dir + "/bandwidth") << "0 0 0 0 0 1 300000 100000000\n";
  session::NetPair found;
  for (int i = 0; i < 400 && found.carries_bytes_s == 0; ++i) std::this_thread::sleep_for(100ms), found = pair_of(a);
  EXPECT_TRUE(found.tested);
  EXPECT_NEAR(static_cast<double>(found.carries_bytes_s), 1.25e6, 0.35e6);
  EXPECT_LT(found.tx_bytes - before, std::uint64_t{9} << 20) << "no more than a test may send";
  EXPECT_EQ(found.at_least_bytes_s, 0U);
  // The way back is wide, and b's owner allows little: it learns that it carries at least that.
  session::NetPair back;
  for (int i = 0; i < 600 && back.at_least_bytes_s == 0; ++i) std::this_thread::sleep_for(100ms), back = pair_of(b);
  EXPECT_EQ(back.carries_bytes_s, 0U);
  EXPECT_FALSE(back.tested);
  EXPECT_GT(back.at_least_bytes_s, 150'000U);
  EXPECT_LT(back.at_least_bytes_s, 900'000U);
  // Known now: not again.
  const std::uint64_t after = pair_of(a).tx_bytes;
  std::this_thread::sleep_for(8s);
  EXPECT_LT(pair_of(a).tx_bytes - after, 64U << 10);
}

TEST_F(NetdPacing, NoMoreIsSentThanTheOwnersMonthAllows) {
  begin(Pacing::On);
  if (IsSkipped()) return;
  std::ofstream(b.dir + "/bandwidth") << "0 0 0 0 0 1 0 0\n";
  std::ofstream(a.dir + "/bandwidth") << "0 0 0 0 0 1 0 300000\n";
  const auto sent = [&] { return a.client->paths("lease-1")->report.pairs.at(0).tx_bytes; };
  const std::uint64_t before = sent();
  for (int i = 0; i < 300 && sent() - before < 200'000; ++i) std::this_thread::sleep_for(100ms);
  std::this_thread::sleep_for(3s);
  EXPECT_GE(sent() - before, 200'000U);
  EXPECT_LT(sent() - before, 600'000U);
}

TEST_F(NetdPacing, WithoutThePaceTheSameLinkDelaysThemLong) {
  begin(Pacing::Off);
  if (IsSkipped()) return;
  narrow();
  const Flood flood(a, b, kBulkPort, 8);
  std::this_thread::sleep_for(6s);
  EXPECT_GE(ask(flood, 10s).worst99, 400ms);
}

TEST_F(NetdPacing, ByTheRelayTheSame) {
  begin(Pacing::On, true);
  if (IsSkipped()) return;
  narrow();
  const Flood flood(a, b, kBulkPort, 8);
  std::this_thread::sleep_for(8s);
  const Asked asked = ask(flood, 12s);
  EXPECT_GT(asked.count, 200U);
  EXPECT_LE(asked.worst99, 300ms);
  EXPECT_GT(asked.bulk_s, 0.6 * 1.25e6);
}

TEST_F(NetdPacing, UnderTheOwnersCapHeartbeatsGoFirst) {
  begin(Pacing::On);
  if (IsSkipped()) return;
  std::ofstream(a.dir + "/bandwidth") << "400000 0\n";
  std::this_thread::sleep_for(600ms);
  const Flood flood(a, b, kBulkPort, 1), other(a, b, 10'002, 1);
  std::this_thread::sleep_for(3s);
  const Asked asked = ask(flood, 8s);
  EXPECT_GT(asked.count, 200U);
  EXPECT_LE(asked.worst99, 100ms);
  EXPECT_GT(asked.bulk_s, 0.25 * 400'000) << "two flows share";
  EXPECT_LT(asked.bulk_s, 0.75 * 400'000);
}

TEST(BulkPort, IsTheOneThatRaysObjectManagerGets) {
  EXPECT_NE(ray_helper_source().find("\"object_manager\": " + std::to_string(kBulkPort) + ","), std::string_view::npos);
}

}  // namespace
}  // namespace muster::host
