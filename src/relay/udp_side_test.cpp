// A relay in this process, members with a TLS connection and a UDP socket each: who reaches whom over what, and when
// that ends.
#include "relay/udp_side.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <map>

#include "crypto/cert.h"
#include "crypto/random.h"
#include "net/dial.h"
#include "net/handoff.h"
#include "net/recall_frame.h"
#include "overlay/relay_protocol.h"
#include "overlay/stun.h"
#include "relay/client.h"
#include "relay/relay.h"

namespace muster::relay {
namespace {

using UdpClock = std::chrono::steady_clock;

bool soon(const std::function<bool()>& condition, Millis patience = Millis(5'000)) {
  for (const auto end = UdpClock::now() + patience; UdpClock::now() < end;)
    if (condition())
      return true;
    else
      std::this_thread::sleep_for(Millis(5));
  return condition();
}

struct UdpRelayRig : ::testing::Test {
  std::filesystem::path dir;
  crypto::KeyAndCert ca = *crypto::create_ca("udp relay test", read_clocks().wall);
  crypto::SigningKey controller = crypto::SigningKey::generate();
  std::unique_ptr<Relay> relay;
  RelayOptions made_with;

  void SetUp() override {
    char name[] = "/tmp/muster_udp_XXXXXX";
    dir = ::mkdtemp(name);
    const auto cert = *crypto::issue_server_certificate(ca, crypto::ServerRole::Relay, "muster-relay", {"muster-relay"},
                                                        read_clocks().wall, 1h);
    RelayOptions options;
    options.address = "127.0.0.1";
    options.port = 0;
    options.handoff_path = (dir / "handoff").string();
    options.tls = {cert.cert_pem + ca.cert_pem, cert.key_pem};
    options.controller_key = controller.public_key();
    options.relay_id = "relay-1";
    options.member_bytes_per_second = 1 << 20;
    options.second_udp_port = 0;
    made_with = options;
    auto made = Relay::create(options);
    ASSERT_TRUE(made.ok()) << made.error().message;
    relay = std::move(*made);
  }
  void TearDown() override {
    if (relay) relay->stop();
    std::filesystem::remove_all(dir);
  }
  std::uint64_t counted(const std::string& name) const {
    const std::string text = relay->metrics(), line = "\nmuster_relay_" + name + " ";
    return std::stoul(text.substr(text.find(line) + line.size()));
  }
};

// One member. Its UDP side is asked by whoever waits for something.
struct UdpMember {
  crypto::X25519Pair pair = crypto::x25519_generate();
  std::unique_ptr<Client> client;
  std::mutex mutex;
  std::optional<overlay::UdpGrant> granted;  // under mutex
  std::size_t over_tls = 0;                  // under mutex
  std::optional<overlay::UdpMemberLeg> leg;
  std::size_t over_udp = 0, gone = 0;
  net::Fd socket;
  std::uint16_t port = 0, udp_port = 0, told = 0;  // told: under mutex

  void start(const UdpRelayRig& rig, std::uint64_t cluster, Millis life = Millis(60'000)) {
    ClientOptions options;
    options.endpoint.host = "127.0.0.1";
    options.endpoint.port = port = rig.relay->port();
    options.endpoint.ca_pem = rig.ca.cert_pem;
    options.endpoint.server_name = net::kRelayName;
    options.endpoint.use_proxy_env = false;
    options.overlay = pair;
    options.token =
        overlay::sign_relay_token(rig.controller, {"relay-1", cluster, pair.public_key, read_clocks().wall + life});
    client = std::make_unique<Client>(options);
    ClientCallbacks callbacks;
    callbacks.on_packet = [this](const crypto::Key32&, ByteView) {
      const std::lock_guard lock(mutex);
      ++over_tls;
    };
    callbacks.on_udp = [this](const overlay::UdpGrant& grant, const overlay::Endpoint& at) {
      EXPECT_EQ(at, overlay::Endpoint::udp(INADDR_LOOPBACK, port));
      const std::lock_guard lock(mutex);
      granted = grant;
      told = grant.second_port;
    };
    client->start(std::move(callbacks));
    ASSERT_TRUE(soon([&] { return client->state() == ClientState::Up; }));
    udp_port = port;
    another_port();
  }
  void another_port() {
    socket = net::Fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons(udp_port);
    ASSERT_EQ(::connect(socket.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  }
  void send_raw(ByteView datagram) const { std::ignore = ::send(socket.get(), datagram.data(), datagram.size(), 0); }
  void work() {
    {
      const std::lock_guard lock(mutex);
      if (granted) leg.emplace(*granted, read_clocks().lease);
      granted.reset();
    }
    if (!leg) return;
    std::array<std::uint8_t, 2'000> buffer;
    for (ssize_t n = 0; (n = ::recv(socket.get(), buffer.data(), buffer.size(), 0)) > 0;) {
      using What = overlay::UdpMemberLeg::Taken::What;
      const auto taken = leg->take(ByteView(buffer).first(static_cast<std::size_t>(n)), read_clocks().lease, 0);
      over_udp += taken.what == What::Data ? 1U : 0U;
      gone += taken.what == What::Gone ? 1U : 0U;
    }
    if (const Bytes ping = leg->due(read_clocks().lease, 0); !ping.empty()) send_raw(ping);
  }
  bool good() {
    return soon([&] {
      work();
      return leg && leg->usable();
    });
  }
  void send(const UdpMember& to, std::size_t size = 100) {
    Bytes out;
    leg->wrap(to.pair.public_key, Bytes(size, 7), read_clocks().lease, out);
    send_raw(out);
  }
  std::size_t tls_count() {
    const std::lock_guard lock(mutex);
    return over_tls;
  }
};

// Sends until it came (once, where the patience is short): the relay may not have heard yet that `to` wants it so, and
// UDP may lose it.
bool gets_by_udp(UdpMember& to, const std::function<void()>& send, Millis patience = Millis(5'000)) {
  const std::size_t before = to.over_udp;
  LeaseTime next{};
  return soon(
      [&] {
        const LeaseTime now = read_clocks().lease;
        if (now >= next) next = now + (patience > Millis(1'000) ? Millis(300) : 2 * patience), send();
        to.work();
        return to.over_udp > before;
      },
      patience);
}

TEST_F(UdpRelayRig, EachGetsItOverWhatItHasAndOnlyInsideACluster) {
  UdpMember a, b, c, d;
  a.start(*this, 1);
  b.start(*this, 1);
  c.start(*this, 1);  // never asks its UDP side
  d.start(*this, 2);
  ASSERT_TRUE(a.good() && b.good() && d.good());
  a.work(), b.work(), d.work();
  EXPECT_TRUE(gets_by_udp(b, [&] { a.send(b, overlay::kUdpRelayPayloadMax); }));
  EXPECT_TRUE(gets_by_udp(a, [&] { b.send(a); }));
  a.send(c);
  EXPECT_TRUE(soon([&] { return c.tls_count() == 1; })) << "over TLS to who has no UDP";
  EXPECT_TRUE(gets_by_udp(a, [&] { c.client->send(a.pair.public_key, Bytes(100)); })) << "and back";
  c.client->send(a.pair.public_key, Bytes(overlay::kUdpRelayPayloadMax + 1));
  EXPECT_TRUE(soon([&] { return a.tls_count() == 1; })) << "too large for UDP";
  EXPECT_FALSE(gets_by_udp(
      d, [&] { a.send(d); }, Millis(600)));
  EXPECT_TRUE(soon([&] {
    a.work();
    return a.gone == 1;
  })) << "who is not in the cluster is not there";
  EXPECT_GE(counted("udp_challenged_total"), 3U);
  EXPECT_EQ(counted("udp_refused_total"), 0U);
  EXPECT_EQ(counted("udp_throttled_total"), 0U);
  for (int i = 0; i < 2'000; ++i) a.send(b, 1'400);
  EXPECT_TRUE(soon([&] { return counted("udp_throttled_total") > 0; })) << "1 MiB a second";
}

TEST_F(UdpRelayRig, AnotherAddressAndStrangers) {
  UdpMember a, b;
  a.start(*this, 1);
  b.start(*this, 1);
  ASSERT_TRUE(a.good() && b.good());
  a.work(), b.work();
  ASSERT_TRUE(gets_by_udp(b, [&] { a.send(b); }));
  b.another_port();
  EXPECT_FALSE(gets_by_udp(
      b, [&] { a.send(b); }, Millis(100)))
      << "nobody there yet, for all that the relay knows";
  b.send(a);
  EXPECT_TRUE(soon([&] {
    b.work();
    return counted("udp_moved_total") == 1;
  }));
  EXPECT_TRUE(gets_by_udp(b, [&] { a.send(b); }));
  UdpMember stranger;
  stranger.udp_port = relay->port();
  stranger.another_port();
  // Nothing of before is under way any more, and then the relay has the first of these.
  std::uint64_t seen = 0;
  ASSERT_TRUE(soon([&] {
    std::this_thread::sleep_for(Millis(100));
    return std::exchange(seen, counted("udp_packets_total")) == counted("udp_packets_total");
  }));
  Bytes copied;
  a.leg->wrap(b.pair.public_key, Bytes(10), read_clocks().lease, copied);
  const std::uint64_t before = counted("udp_refused_total");
  a.send_raw(copied);
  ASSERT_TRUE(soon([&] { return counted("udp_packets_total") > seen; }));
  stranger.send_raw(copied);
  copied[1] ^= 1;
  stranger.send_raw(copied);
  stranger.send_raw(Bytes(1'449, overlay::kUdpRelayMagic));
  EXPECT_TRUE(soon([&] { return counted("udp_refused_total") == before + 3; }));
  std::uint8_t byte = 0;
  EXPECT_LT(::recv(stranger.socket.get(), &byte, 1, 0), 0);
}

// Sockets are connected: what comes from another port than it goes to is not seen, as behind a NAT.
TEST_F(UdpRelayRig, TheSecondPortServesWhoUsesIt) {
  UdpMember a, b, c;
  a.start(*this, 1);
  b.start(*this, 1);
  c.start(*this, 1);
  ASSERT_NE(relay->second_udp_port(), 0);
  {
    const std::lock_guard lock(b.mutex);
    EXPECT_EQ(b.told, relay->second_udp_port());
  }
  b.udp_port = relay->second_udp_port();
  b.another_port();
  ASSERT_TRUE(a.good() && b.good());
  a.work(), b.work();
  EXPECT_TRUE(gets_by_udp(b, [&] { a.send(b, overlay::kUdpRelayPayloadMax); })) << "from one port to the other";
  EXPECT_TRUE(gets_by_udp(a, [&] { b.send(a); }));
  EXPECT_TRUE(gets_by_udp(b, [&] { c.client->send(b.pair.public_key, Bytes(100)); })) << "from TLS";
  const auto gone = [&](UdpMember& one) {
    UdpMember stranger;
    one.send(stranger);
    return soon([&] {
      one.work();
      return one.gone > 0;
    });
  };
  EXPECT_TRUE(gone(a) && gone(b));
  // It changes to the other one.
  b.udp_port = b.port;
  b.another_port();
  EXPECT_TRUE(soon([&] {
    b.leg->hurry(read_clocks().lease);
    b.work();
    return counted("udp_moved_total") == 1;
  }));
  EXPECT_TRUE(gets_by_udp(b, [&] { a.send(b); }));
  // Whoever asks there how it is seen is told as well.
  UdpMember stranger;
  stranger.udp_port = relay->second_udp_port();
  stranger.another_port();
  const overlay::StunTransaction transaction{4, 5, 6};
  stranger.send_raw(overlay::stun_request(transaction));
  Bytes answer(100);
  ssize_t n = -1;
  EXPECT_TRUE(soon([&] { return (n = ::recv(stranger.socket.get(), answer.data(), answer.size(), 0)) > 0; }));
  answer.resize(static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
  EXPECT_TRUE(overlay::read_stun_answer(answer, transaction));
}

TEST_F(UdpRelayRig, ASecondPortThatIsTakenIsDoneWithout) {
  const net::Fd taken(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  socklen_t size = sizeof at;
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(taken.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  ASSERT_EQ(::getsockname(taken.get(), reinterpret_cast<sockaddr*>(&at), &size), 0);
  relay->stop();
  RelayOptions options = made_with;
  options.second_udp_port = ntohs(at.sin_port);
  auto made = Relay::create(options);
  ASSERT_TRUE(made.ok()) << made.error().message;
  relay = std::move(*made);
  EXPECT_EQ(relay->second_udp_port(), 0);
  UdpMember a;
  a.start(*this, 1);
  EXPECT_TRUE(a.good()) << "the first one is there";
  const std::lock_guard lock(a.mutex);
  EXPECT_EQ(a.told, 0);
}

TEST_F(UdpRelayRig, EndsWithItsConnection) {
  UdpMember a, b, c;
  a.start(*this, 1);
  b.start(*this, 1);
  c.start(*this, 1, Millis(4'000));
  ASSERT_TRUE(a.good() && b.good() && c.good());
  a.work(), b.work(), c.work();
  const auto keep = [&] { a.work(), b.work(), c.work(); };
  ASSERT_TRUE(gets_by_udp(a, [&] { c.send(a); }));
  // The control plane says that b left.
  auto server = net::connect_unix(net::recall_path((dir / "handoff").string()));
  ASSERT_TRUE(server.ok()) << server.error().message;
  const Bytes recall = net::encode(net::RecallFrame{net::RecallFrame::Kind::More, {{1, b.pair.public_key}}});
  ASSERT_EQ(::write(server->get(), recall.data(), recall.size()), static_cast<ssize_t>(recall.size()));
  EXPECT_TRUE(soon([&] { return b.client->state() == ClientState::Refused; }));
  EXPECT_FALSE(gets_by_udp(
      b, [&] { a.send(b); }, Millis(600)));
  EXPECT_FALSE(gets_by_udp(
      a, [&] { b.send(a); }, Millis(600)));
  // The token of c ends.
  EXPECT_TRUE(soon(
      [&] {
        keep();
        return c.client->state() == ClientState::Refused;
      },
      Millis(8'000)));
  EXPECT_FALSE(gets_by_udp(
      a, [&] { c.send(a); }, Millis(600)));
  // The connection of d breaks: it may go on for a while.
  UdpMember d;
  d.start(*this, 1);
  ASSERT_TRUE(d.good());
  d.client->stop();
  EXPECT_TRUE(gets_by_udp(a, [&] { d.send(a); }));
  EXPECT_TRUE(gets_by_udp(d, [&] { a.send(d); }));
  const auto broke = UdpClock::now();
  while (UdpClock::now() - broke < kUdpGrace + Millis(1'500)) {
    keep(), d.work();
    std::this_thread::sleep_for(Millis(20));
  }
  EXPECT_FALSE(gets_by_udp(
      a, [&] { d.send(a); }, Millis(600)));
  // Who connects anew gets another id, and the old one is worth nothing.
  UdpMember again;
  again.pair = a.pair;
  again.start(*this, 1);
  EXPECT_TRUE(again.good());
  again.work();
  EXPECT_FALSE(gets_by_udp(
      again, [&] { a.send(again); }, Millis(600)));
}

}  // namespace
}  // namespace muster::relay
