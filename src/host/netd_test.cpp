// Two netds in two network namespaces with real TUNs: the direct path, a member removed under a TCP connection, the
// restart of one side, hostile control messages. Skipped where the machine cannot make namespaces.
#include "host/netd.h"

#include <gtest/gtest.h>
#include <netinet/tcp.h>

#include <chrono>
#include <cstring>
#include <fstream>

#include "crypto/file.h"
#include "host/netd_rig.h"
#include "overlay/packet.h"

namespace muster::host {
namespace {

using lab::kNet;
using NetdPair = lab::NetdRig;

TEST_F(NetdPair, PacketsOfAllSizesTakeTheDirectPath) {
  const lab::Echo echo(b.lease_ns, 9000);
  for (const std::size_t size : {std::size_t{1}, std::size_t{100}, overlay::kRelayedMtu - 28}) {
    EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, size, 30), 1) << size;
  }
  const auto stats = a.client->stats("lease-1");
  ASSERT_TRUE(stats.ok());
  ASSERT_EQ(stats->peers.size(), 1U);
  EXPECT_EQ(stats->peers[0].address, b.address);
  EXPECT_EQ(stats->peers[0].path, "10.99.0.2:" + std::to_string(b.netd->udp_port()));
  EXPECT_GT(stats->peers[0].last_handshake_ms, 0);
  EXPECT_EQ(lab::sh(lab::Pair::in(a.lease_ns, "ip link show muster0")), 0);
  EXPECT_NE(lab::sh(lab::Pair::in(a.lease_ns, "ip route get 10.99.0.2")), 0);  // no way out but the overlay
}

TEST_F(NetdPair, ARemovedMemberResetsConnections) {
  int listener = -1, connection = -1, accepted = -1;
  lab::inside(b.lease_ns, [&] {
    listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(9100);
    ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
    ASSERT_EQ(::listen(listener, 1), 0);
  });
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(9100);
  to.sin_addr.s_addr = htonl(b.address);
  lab::inside(a.lease_ns, [&] { connection = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); });
  ASSERT_EQ(::connect(connection, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  accepted = ::accept(listener, nullptr, nullptr);
  ASSERT_GE(accepted, 0);
  ASSERT_EQ(::send(connection, "x", 1, 0), 1);
  char byte = 0;
  ASSERT_EQ(::recv(accepted, &byte, 1, 0), 1);

  configure({&a});  // without b
  ASSERT_EQ(::send(connection, "y", 1, MSG_NOSIGNAL), 1);
  const timeval patience{2, 0};
  ::setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  errno = 0;
  EXPECT_EQ(::recv(connection, &byte, 1, 0), -1);
  EXPECT_EQ(errno, ECONNRESET);
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 10, 3), -EHOSTUNREACH);
  for (const int fd : {listener, connection, accepted}) ::close(fd);
}

// Bytes a second that one TCP connection moves from a's lease to b's, without its first second.
double tcp_rate(const lab::Machine& a, const lab::Machine& b, std::uint16_t port, Millis measured) {
  int listener = -1, sender = -1;
  lab::inside(b.lease_ns, [&] {
    listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    ::bind(listener, reinterpret_cast<sockaddr*>(&at), sizeof at);
    ::listen(listener, 1);
  });
  lab::inside(a.lease_ns, [&] { sender = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); });
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(b.address);
  EXPECT_EQ(::connect(sender, reinterpret_cast<sockaddr*>(&to), sizeof to), 0) << std::strerror(errno);
  const int receiver = ::accept(listener, nullptr, nullptr);
  std::atomic<bool> stop{false};
  std::thread pump([&] {
    const std::vector<char> block(64 << 10);
    while (!stop && ::send(sender, block.data(), block.size(), MSG_NOSIGNAL) > 0) {
    }
  });
  std::vector<char> buffer(256 << 10);
  std::int64_t counted = 0;
  const auto began = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration_cast<Millis>(std::chrono::steady_clock::now() - began); };
  while (passed() < measured + 1s) {
    const ssize_t n = ::recv(receiver, buffer.data(), buffer.size(), 0);
    if (n <= 0) break;
    if (passed() > 1s) counted += n;
  }
  stop = true;
  for (const int fd : {sender, receiver}) ::shutdown(fd, SHUT_RDWR);
  pump.join();
  for (const int fd : {listener, sender, receiver}) ::close(fd);
  return static_cast<double>(counted) * 1000 / static_cast<double>(measured.count());
}

struct NetdPairWithHelpers : NetdPair {
  NetdPairWithHelpers() { a.helpers = b.helpers = 2; }
};

std::uint8_t byte_at(std::size_t place) {
  return static_cast<std::uint8_t>((place * 0x9e3779b97f4a7c15ULL) >> 56);
}

// One TCP connection from a's lease to b's that carries 32 MiB, each byte of which is looked at.
void expect_every_byte(const lab::Machine& a, const lab::Machine& b, int family) {
  constexpr std::size_t kBytes = 32 << 20;
  sockaddr_storage to{};
  socklen_t size = sizeof(sockaddr_in);
  if (family == AF_INET6) {
    auto& six = reinterpret_cast<sockaddr_in6&>(to);
    size = sizeof six;
    six.sin6_family = AF_INET6;
    six.sin6_port = htons(9100);
    const Ip6 inner = overlay::inner6(b.address);
    std::memcpy(&six.sin6_addr, inner.data(), inner.size());
  } else {
    auto& four = reinterpret_cast<sockaddr_in&>(to);
    four.sin_family = AF_INET;
    four.sin_port = htons(9100);
    four.sin_addr.s_addr = htonl(b.address);
  }
  int listener = -1, sender = -1;
  lab::inside(b.lease_ns, [&] {
    listener = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;
    ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&to), size), 0) << std::strerror(errno);
    ASSERT_EQ(::listen(listener, 1), 0);
  });
  lab::inside(a.lease_ns, [&] { sender = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0); });
  ASSERT_EQ(::connect(sender, reinterpret_cast<const sockaddr*>(&to), size), 0) << std::strerror(errno);
  const int receiver = ::accept(listener, nullptr, nullptr);
  std::thread pump([&] {
    std::vector<std::uint8_t> block(256 << 10);
    for (std::size_t at = 0; at < kBytes; at += block.size()) {
      for (std::size_t i = 0; i < block.size(); ++i) block[i] = byte_at(at + i);
      for (std::size_t sent = 0; sent < block.size();) {
        const ssize_t n = ::send(sender, block.data() + sent, block.size() - sent, MSG_NOSIGNAL);
        if (n <= 0) return;
        sent += static_cast<std::size_t>(n);
      }
    }
  });
  const timeval patience{10, 0};
  ::setsockopt(receiver, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  std::vector<std::uint8_t> buffer(256 << 10);
  std::size_t came = 0, wrong = 0;
  while (came < kBytes) {
    const ssize_t n = ::recv(receiver, buffer.data(), buffer.size(), 0);
    if (n <= 0) break;
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) wrong += buffer[i] != byte_at(came + i) ? 1 : 0;
    came += static_cast<std::size_t>(n);
  }
  ::shutdown(receiver, SHUT_RDWR);
  pump.join();
  for (const int fd : {listener, sender, receiver}) ::close(fd);
  EXPECT_EQ(came, kBytes);
  EXPECT_EQ(wrong, 0U);
  const auto stats = a.client->stats("lease-1");
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->peers[0].path, "10.99.0.2:" + std::to_string(b.netd->udp_port()));
}

TEST_F(NetdPairWithHelpers, MoveEveryByteAndInItsOrder) {
  expect_every_byte(a, b, AF_INET);
}

TEST_F(NetdPair, ProgramsMayUseIpv6) {
  expect_every_byte(a, b, AF_INET6);
}

TEST_F(NetdPair, TheOwnersBandwidthCapHolds) {
  const lab::Echo echo(b.lease_ns, 9000);
  ASSERT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 50, 30), 1);
  const double cap = 400'000;
  EXPECT_GT(tcp_rate(a, b, 9201, 1s), cap * 3);  // the machine itself could do more
  std::ofstream(a.dir + "/bandwidth") << "400000 0\n";
  std::this_thread::sleep_for(600ms);
  const double sent = tcp_rate(a, b, 9202, 3s);
  EXPECT_LT(sent, cap * 1.2);
  EXPECT_GT(sent, cap * 0.4);  // slowed down, not broken
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 50, 30), 1);
  std::ofstream(a.dir + "/bandwidth") << "0 0\n";
  std::ofstream(b.dir + "/bandwidth") << "0 400000\n";
  std::this_thread::sleep_for(600ms);
  const double received = tcp_rate(a, b, 9203, 3s);
  EXPECT_LT(received, cap * 1.2);
  EXPECT_GT(received, cap * 0.2);
}

// A container cannot even try (no CAP_NET_RAW); root in its namespace can, and gets nowhere.
TEST_F(NetdPair, SpoofedSourcesAreDropped) {
  const lab::Echo echo(b.lease_ns, 9000);
  ASSERT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 20, 30), 1);
  int receiver = -1;
  lab::inside(b.lease_ns, [&] { receiver = lab::Echo::bound_udp(9001); });
  const auto arrives = [&](std::uint32_t source) {
    Bytes packet(28 + 4);
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = IPPROTO_UDP;
    for (int i = 0; i < 4; ++i) {
      packet[12 + static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(source >> (24 - 8 * i));
      packet[16 + static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(b.address >> (24 - 8 * i));
    }
    packet[20] = 0x11, packet[21] = 0x11, packet[22] = 9001 >> 8, packet[23] = 9001 & 255;
    packet[24] = 0, packet[25] = 12, packet[26] = packet[27] = 0;
    lab::inside(a.lease_ns, [&] {
      const Fd raw(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
      sockaddr_in to{};
      to.sin_family = AF_INET;
      to.sin_addr.s_addr = htonl(b.address);
      EXPECT_EQ(::sendto(raw.get(), packet.data(), packet.size(), 0, reinterpret_cast<sockaddr*>(&to), sizeof to),
                static_cast<ssize_t>(packet.size()));
    });
    char got[64];
    return ::recv(receiver, got, sizeof got, 0) == 4;
  };
  EXPECT_TRUE(arrives(a.address));
  for (const std::uint32_t source : {kNet + 77, b.address + 5, std::uint32_t{0x08080808}})
    EXPECT_FALSE(arrives(source));
  EXPECT_TRUE(arrives(a.address));
  ::close(receiver);
}

TEST_F(NetdPair, ARestartedNetdIsTheSameMember) {
  const lab::Echo echo(b.lease_ns, 9000);
  ASSERT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 50, 30), 1);
  const auto port = b.netd->udp_port();
  const Bytes key = b.overlay_key;
  const netd::Configure old = message(b, {&a, &b});
  configure({&a, &b});
  b.stop();
  b.start();
  EXPECT_EQ(b.netd->udp_port(), port);
  EXPECT_TRUE(b.client->info()->leases.empty());
  auto tun = open_tun(lab::Pair::path(b.lease_ns), "muster0");
  ASSERT_TRUE(tun.ok()) << tun.error().message;
  EXPECT_EQ(*b.client->add_lease("lease-1", tun->get()), key);
  EXPECT_EQ(b.client->configure(old).error().code, Code::Aborted);  // it remembers the highest roster
  ASSERT_TRUE(b.client->configure(message(b, {&a, &b})).ok());
  EXPECT_EQ(lab::echoed(b.lease_ns, a.address, 9000, 50, 20), -ECONNREFUSED);  // its own handshake; nobody listens on a
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 50, 20), 1);
  ASSERT_TRUE(b.client->remove_lease("lease-1").ok());
  EXPECT_EQ(crypto::read_secret_file(b.dir + "/netd/lease-1.key").error().code, Code::NotFound);
}

TEST_F(NetdPair, OnceThereIsACaItMustVouchForMachines) {
  const auto ca = crypto::create_ca("test", read_clocks().wall).value();
  const auto proof = [&](const lab::Machine& m) {
    return crypto::prove_machine(ca, m.entry().node, m.device.public_key(), read_clocks().wall).value();
  };
  const auto tell = [&](const std::vector<crypto::MachineProof>& proofs, const std::string& ca_pem) {
    ++epoch;
    netd::Configure c = message(a, {&a, &b});
    c.machine_ca_pem = ca_pem;
    c.machines = crypto::encode_machine_proofs(proofs);
    return a.client->configure(c);
  };
  EXPECT_EQ(tell({proof(a), proof(b)}, ca.cert_pem)->rejected, 0U);
  EXPECT_EQ(a.client->stats("lease-1")->peers.size(), 1U);
  EXPECT_EQ(tell({proof(a)}, ca.cert_pem)->rejected, 1U);
  EXPECT_TRUE(a.client->stats("lease-1")->peers.empty());
  EXPECT_EQ(tell({proof(a)}, "")->rejected, 1U) << "a CA is not forgotten";
  EXPECT_FALSE(tell({proof(a), proof(b)}, "no certificate").ok());
}

TEST_F(NetdPair, ARosterOfThousandsIsTaken) {
  const lab::Echo echo(b.lease_ns, 9000);
  overlay::Roster roster{lab::kCluster, 1, 9, {a.entry(), b.entry()}};
  const crypto::SigningKey idle = crypto::SigningKey::generate();
  while (roster.members.size() < 2'500) {
    overlay::RosterMember m = a.entry();
    m.slot = m.node = 100 + roster.members.size();
    m.address = kNet + 100 + static_cast<std::uint32_t>(roster.members.size());
    m.overlay_key = crypto::x25519_generate().public_key;
    m.device_key = idle.public_key();
    m.overlay_signature = overlay::sign_overlay_key(idle, lab::kCluster, m.epoch, m.overlay_key);
    roster.members.push_back(std::move(m));
  }
  for (lab::Machine* m : {&a, &b}) {
    netd::Configure c = message(*m, {&a, &b});
    c.roster = overlay::encode_roster(roster);
    ASSERT_GT(c.roster.size(), kMessageBytesMax);
    c.signatures = {overlay::sign_roster(controller, c.roster)};
    const auto done = m->client->configure(c);
    ASSERT_TRUE(done.ok()) << done.error().message;
    EXPECT_EQ(done->rejected, 0U);
  }
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 100, 30), 1);
  const auto stats = a.client->stats("lease-1");
  ASSERT_TRUE(stats.ok()) << stats.error().message;
  EXPECT_EQ(stats->peers.size(), 2'499U);
}

TEST_F(NetdPair, LargeMessagesMustBeSealed) {
  auto raw = connect_unix(a.dir + "/netd.sock", SocketKind::Seqpacket);
  ASSERT_TRUE(raw.ok());
  const Fd file(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_TRUE(send_message(raw->get(), "\xff", {file.get()}).ok());
  const auto closed = receive_message(raw->get());
  EXPECT_TRUE(!closed.ok() || closed->text.empty()) << "the connection ends";
  EXPECT_TRUE(a.client->info().ok());
  EXPECT_EQ(send_large(raw->get(), std::string(kLargeBytesMax + 1, 'x')).error().code, Code::TooLarge);
}

TEST_F(NetdPair, TheAgentMayComeBackAndMayLie) {
  NetdClient second(a.dir + "/netd.sock");
  const auto info = second.info();
  ASSERT_TRUE(info.ok());
  ASSERT_EQ(info->leases.size(), 1U);
  EXPECT_TRUE(info->leases[0].tun && info->leases[0].configured);
  EXPECT_FALSE(second.add_lease("../x").ok());
  const Fd not_tun(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(second.add_lease("lease-2", not_tun.get()).error().code, Code::InvalidArgument);
  EXPECT_EQ(second.stats("lease-9").error().code, Code::NotFound);
  netd::Configure forged = message(a, {&a, &b});
  forged.roster.back() ^= 1;
  EXPECT_EQ(second.configure(forged).error().code, Code::Unauthenticated);
  auto raw = connect_unix(a.dir + "/netd.sock", SocketKind::Seqpacket);
  ASSERT_TRUE(raw.ok());
  ASSERT_TRUE(send_message(raw->get(), "\x01garbage").ok());
  const auto reply = receive_message(raw->get());
  ASSERT_TRUE(reply.ok());
  EXPECT_TRUE(std::holds_alternative<netd::Failed>(*netd::decode_reply(reply->text)));
  EXPECT_TRUE(second.info().ok());
}

TEST(Tun, SurvivesItsProcessAndIsExclusive) {
  if (const auto missing = lab::lab_missing({"ip"})) GTEST_SKIP() << *missing;
  const std::string ns = "mut" + std::to_string(::getpid() % 100'000);
  ASSERT_EQ(lab::sh("ip netns add " + ns), 0);
  const std::string path = lab::Pair::path(ns);
  EXPECT_EQ(open_tun(path, "muster0").error().code, Code::NotFound);
  {
    const auto tun = create_tun(path, TunSpec{"muster0", kNet + 9, 16, 1420});
    ASSERT_TRUE(tun.ok()) << tun.error().message;
    EXPECT_EQ(create_tun(path, TunSpec{"muster0", kNet + 9, 16, 1420}).error().code, Code::FailedPrecondition);
  }
  EXPECT_EQ(lab::sh("ip -n " + ns + " addr show dev muster0 | grep -q 100.64.0.9/16"), 0);
  EXPECT_EQ(lab::sh("ip -n " + ns + " link show muster0 | grep -q 'mtu 1420'"), 0);
  EXPECT_TRUE(open_tun(path, "muster0").ok());
  EXPECT_TRUE(create_tun(path, TunSpec{"muster0", kNet + 9, 16, 1420}).ok());
  EXPECT_TRUE(remove_tun(path, "muster0").ok());
  EXPECT_NE(lab::sh("ip -n " + ns + " link show muster0"), 0);
  EXPECT_FALSE(create_tun("/run/netns/none", TunSpec{}).ok());
  EXPECT_FALSE(create_tun(path, TunSpec{"much_too_long_a_name", 1, 16, 1420}).ok());
  lab::sh("ip netns del " + ns);
}

}  // namespace
}  // namespace muster::host
