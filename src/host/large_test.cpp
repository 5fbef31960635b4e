// Whether large packets are used, why not, and that what a device loses without a word is found out, on real sockets
// and TUNs: a rule on the way drops everything that is longer than a packet may be.
#include "host/large.h"

#include <gtest/gtest.h>

#include "host/netd_rig.h"

namespace muster::host {
namespace {

using session::NetLarge;

TEST(KernelFaults, AreOfReleases) {
  for (const char* release : {"7.0.0", "7.0.2-6-pve", "7.1.4"})
    EXPECT_FALSE(kernel_faults(release).udp_segments.empty()) << release;
  for (const char* release : {"6.6.44-1-lts", "6.10.3-arch1-2"}) {
    EXPECT_FALSE(kernel_faults(release).tun_joins.empty()) << release;
    EXPECT_TRUE(kernel_faults(release).udp_segments.empty()) << release;
  }
  EXPECT_FALSE(kernel_faults("5.10.0-33-amd64").udp_joins.empty());
  for (const char* release :
       {"6.1.0-41-amd64", "6.6.43", "6.6.45", "7.1.5", "5.12.0", "6.18.44", "", "x.y", "7", "99999999999999999999.1"}) {
    const KernelFaults found = kernel_faults(release);
    const bool seven = std::string_view(release) == "7";  // nothing else is said of it: the first of its line
    EXPECT_EQ(found.udp_segments.empty(), !seven) << release;
    EXPECT_TRUE(found.tun_joins.empty() && found.udp_joins.empty()) << release;
  }
}

TEST(Large, TheOwnersWordTheKernelsAndRefusals) {
  EXPECT_EQ(large_mode(nullptr), LargeMode::Auto);
  EXPECT_EQ(large_mode("off"), LargeMode::Off);
  EXPECT_EQ(large_mode("on"), LargeMode::On);
  EXPECT_EQ(large_mode("perhaps"), LargeMode::Auto);
  EXPECT_EQ(Large(LargeMode::Off, "").state(), NetLarge::Owner);
  EXPECT_EQ(Large(LargeMode::Auto, "a fault").state(), NetLarge::Kernel);
  EXPECT_EQ(Large(LargeMode::On, "a fault").state(), NetLarge::Used) << "who says so knows better";
  LeaseTime now{5'000};
  EXPECT_FALSE(Large(LargeMode::On, "").counts(now));
  Large large(LargeMode::Auto, "");
  EXPECT_TRUE(large.counts(now));
  EXPECT_FALSE(large.tick(now)) << "used, as is usual: nothing to say";
  large.refused(now);
  EXPECT_TRUE(large.tick(now));
  EXPECT_EQ(large.state(), NetLarge::Refused);
  EXPECT_FALSE(large.counts(now));
  now = now + kRefusedFor - Millis(1);
  large.refused(now);
  EXPECT_FALSE(large.asks_again(now));
  now = now + Millis(1);
  EXPECT_TRUE(large.asks_again(now));
  EXPECT_FALSE(large.asks_again(now));
  EXPECT_TRUE(large.tick(now));
  EXPECT_TRUE(large.used());
}

struct NetdLarge : lab::NetdRig {
  // Bytes that one TCP connection moves from a's lease to b's in that time.
  std::int64_t moves(std::uint16_t port, Millis length, const std::function<bool()>& enough) {
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
    EXPECT_EQ(::connect(sender, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
    const int receiver = ::accept(listener, nullptr, nullptr);
    const timeval patience{0, 200'000};
    ::setsockopt(receiver, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    std::thread pump([&] {
      const std::vector<char> block(64 << 10);
      while (::send(sender, block.data(), block.size(), MSG_NOSIGNAL) > 0) {
      }
    });
    std::vector<char> buffer(256 << 10);
    std::int64_t counted = 0;
    const LeaseTime end = read_clocks().lease + length;
    while (read_clocks().lease < end && !enough())
      counted += std::max<ssize_t>(::recv(receiver, buffer.data(), buffer.size(), 0), 0);
    for (const int fd : {sender, receiver}) ::shutdown(fd, SHUT_RDWR);
    pump.join();
    for (const int fd : {listener, sender, receiver}) ::close(fd);
    return counted;
  }
  NetLarge udp() { return a.client->paths("lease-1")->report.large_udp; }
  NetLarge tun() { return b.client->paths("lease-1")->report.large_tun; }
  // What arrives in that namespace longer than any packet is dropped, and nobody is told.
  void drop_large(const std::string& ns, const std::string& which) {
    ASSERT_EQ(lab::sh("ip netns exec " + ns + " nft add table inet large"), 0);
    ASSERT_EQ(lab::sh("ip netns exec " + ns +
                      " nft \"add chain inet large gone { type filter hook prerouting priority -300; }\""),
              0);
    ASSERT_EQ(lab::sh("ip netns exec " + ns + " nft \"add rule inet large gone " + which +
                      " meta length > 1500 counter drop\""),
              0);
  }
  bool dropped_any(const std::string& ns) {
    return lab::sh("ip netns exec " + ns + " nft list table inet large | grep -q 'packets [1-9]'") == 0;
  }
  static std::function<bool()> every_250ms(const std::function<bool()>& look) {
    return [look, next = LeaseTime{}]() mutable {
      const LeaseTime now = read_clocks().lease;
      if (now < next) return false;
      next = now + Millis(250);
      return look();
    };
  }
};

TEST_F(NetdLarge, DatagramsThatADeviceLosesWhenItCutsThemGoOneByOne) {
  if (lab::sh("command -v nft") != 0) GTEST_SKIP() << "needs nft";
  const lab::Echo echo(b.lease_ns, 9300);
  ASSERT_EQ(lab::echoed(a.lease_ns, b.address, 9300, 100, 30), 1);
  EXPECT_EQ(udp(), NetLarge::Used);
  EXPECT_GT(moves(9301, 1s, [] { return false; }), 1 << 20) << "as it should be";
  EXPECT_EQ(udp(), NetLarge::Used);
  drop_large(b.host_ns, "meta l4proto udp");
  const LeaseTime began = read_clocks().lease;
  moves(9302, 30s, every_250ms([&] { return udp() == NetLarge::Lost; }));
  EXPECT_EQ(udp(), NetLarge::Lost);
  EXPECT_TRUE(dropped_any(b.host_ns));
  std::printf("     found out after %.1f s\n", static_cast<double>((read_clocks().lease - began).count()) / 1000);
  EXPECT_GT(moves(9303, 1s, [] { return false; }), 1 << 20) << "and flows";
}

TEST_F(NetdLarge, SegmentsThatGetLostJoinedAreGivenOneByOne) {
  if (lab::sh("command -v nft") != 0) GTEST_SKIP() << "needs nft";
  const lab::Echo echo(b.lease_ns, 9300);
  ASSERT_EQ(lab::echoed(a.lease_ns, b.address, 9300, 100, 30), 1);
  EXPECT_GT(moves(9401, 1s, [] { return false; }), 1 << 20);
  EXPECT_EQ(tun(), NetLarge::Used);
  drop_large(b.lease_ns, "iifname muster0");
  const LeaseTime began = read_clocks().lease;
  moves(9402, 30s, every_250ms([&] { return tun() == NetLarge::Lost; }));
  EXPECT_EQ(tun(), NetLarge::Lost);
  EXPECT_TRUE(dropped_any(b.lease_ns));
  std::printf("     found out after %.1f s\n", static_cast<double>((read_clocks().lease - began).count()) / 1000);
  EXPECT_GT(moves(9403, 1s, [] { return false; }), 1 << 20);
  EXPECT_EQ(udp(), NetLarge::Used) << "the other end's datagrams are not to blame";
}

}  // namespace
}  // namespace muster::host
