// Our WireGuard against a foreign implementation (wireguard-go): handshakes begun by either side, data of all sizes, a
// TCP stream both ways, a pre-shared key. In network namespaces; skipped where the machine cannot.
#include <gtest/gtest.h>

#include "crypto/file.h"
#include "crypto/random.h"
#include "host/netd_lab.h"
#include "host/wire_runner.h"

namespace muster::host {
namespace {

using overlay::Endpoint;
constexpr std::uint32_t kOurs = 0x0a4d0001, kTheirs = 0x0a4d0002;  // 10.77.0.1, .2

struct Interop : ::testing::Test {
  std::unique_ptr<lab::Pair> pair;
  std::string dir, device;
  crypto::X25519Pair ours = crypto::x25519_generate(), theirs = crypto::x25519_generate();
  crypto::Secret32 psk{crypto::random_key32()};
  std::unique_ptr<lab::WireRunner> runner;

  void SetUp() override {
    if (const auto missing = lab::lab_missing({"ip", "wg", "wireguard-go", "iperf3"})) GTEST_SKIP() << *missing;
    pair = std::make_unique<lab::Pair>();
    char pattern[] = "/tmp/muster_interop_XXXXXX";
    dir = mkdtemp(pattern);
    device = "wgo" + std::to_string(::getpid() % 100'000);
    ASSERT_TRUE(crypto::write_secret_file(dir + "/key", as_bytes(base64(theirs.secret.bytes) + "\n")).ok());
    ASSERT_TRUE(crypto::write_secret_file(dir + "/psk", as_bytes(base64(psk.bytes) + "\n")).ok());
    ASSERT_EQ(lab::sh(pair->in(pair->b(), "wireguard-go " + device)), 0);
    const std::string peer = " peer " + base64(ours.public_key) + " preshared-key " + dir +
                             "/psk allowed-ips 10.77.0.1/32 endpoint 10.99.0.1:7001";
    ASSERT_EQ(lab::sh(pair->in(pair->b(), "wg set " + device + " listen-port 7002 private-key " + dir + "/key" + peer)),
              0);
    ASSERT_EQ(lab::sh("ip -n " + pair->b() + " addr add 10.77.0.2/24 dev " + device), 0);
    ASSERT_EQ(lab::sh("ip -n " + pair->b() + " link set " + device + " mtu 1420 up"), 0);

    auto tun = create_tun(lab::Pair::path(pair->a()), TunSpec{"muster0", kOurs, 24, 1420});
    ASSERT_TRUE(tun.ok()) << tun.error().message;
    Fd udp = lab::udp_at(pair->a(), 7001);
    ASSERT_TRUE(udp);
    overlay::PeerConfig config{theirs.public_key, psk, {kTheirs}, Endpoint::udp(0x0a630002, 7002), {}};
    runner = std::make_unique<lab::WireRunner>(ours, config, std::move(*tun), std::move(udp));
  }
  void TearDown() override {
    if (runner) EXPECT_EQ(runner->lost(), 0U);
    runner.reset();
    if (pair) {
      lab::sh("ip -n " + pair->b() + " link del " + device);  // ends wireguard-go
      lab::sh("rm -rf " + dir);
    }
  }
  int from_us(const std::string& command) { return lab::sh(pair->in(pair->a(), command)); }
  int from_them(const std::string& command) { return lab::sh(pair->in(pair->b(), command)); }
  void all_sizes() {
    const lab::Echo at_us(pair->a(), 9001), at_them(pair->b(), 9001);
    for (std::size_t size = 0; size <= 1392; size += size < 64 ? 3 : 161) {
      EXPECT_EQ(lab::echoed(pair->a(), kTheirs, 9001, size), 1) << size;
      EXPECT_EQ(lab::echoed(pair->b(), kOurs, 9001, size), 1) << size;
    }
    EXPECT_EQ(lab::echoed(pair->a(), kTheirs, 9001, 1392), 1);
    EXPECT_EQ(lab::echoed(pair->a(), kTheirs, 9001, 1393), -EMSGSIZE);
  }
};

TEST_F(Interop, WeInitiate) {
  const lab::Echo at_them(pair->b(), 9000);
  EXPECT_EQ(lab::echoed(pair->a(), kTheirs, 9000, 100, 25), 1);
  all_sizes();
}

TEST_F(Interop, TheyInitiateAndTcpFlowsBothWays) {
  const lab::Echo at_us(pair->a(), 9000);
  EXPECT_EQ(lab::echoed(pair->b(), kOurs, 9000, 100, 25), 1);
  ASSERT_EQ(from_them("iperf3 -s -1 -D -B 10.77.0.2"), 0);
  EXPECT_EQ(from_us("sh -c 'for i in 1 2 3 4 5; do iperf3 -c 10.77.0.2 -n 20M && exit 0; sleep 0.3; done; exit 1'"), 0);
  ASSERT_EQ(from_them("iperf3 -s -1 -D -B 10.77.0.2"), 0);
  EXPECT_EQ(from_us("sh -c 'for i in 1 2 3 4 5; do iperf3 -c 10.77.0.2 -R -n 20M && exit 0; sleep 0.3; done; exit 1'"),
            0);
}

}  // namespace
}  // namespace muster::host
