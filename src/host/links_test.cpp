// What is a tunnel and where ways lead, by real interfaces in a network namespace.
#include "host/links.h"

#include <gtest/gtest.h>
#include <linux/if_arp.h>

#include <algorithm>

#include "host/netd_lab.h"
#include "host/overlay_client.h"

namespace muster::host {
namespace {

using What = Link::What;

Link link_of(int index, const std::string& name, const std::string& kind, std::uint16_t type = ARPHRD_ETHER,
             int master = 0) {
  return {index, master, type, name, kind};
}

TEST(Links, TunnelsAndBridgesOfContainersAreTold) {
  std::vector<Link> links{link_of(1, "lo", ""),
                          link_of(2, "eth0", ""),
                          link_of(3, "wg0", "wireguard", ARPHRD_NONE),
                          link_of(4, "tailscale0", "tun", ARPHRD_NONE),
                          link_of(5, "docker0", "bridge"),
                          link_of(6, "veth1", "veth", ARPHRD_ETHER, 5),
                          link_of(7, "br0", "bridge"),
                          link_of(8, "eth1", "", ARPHRD_ETHER, 7),
                          link_of(9, "virbr0", "bridge"),
                          link_of(10, "vnet0", "tun", ARPHRD_ETHER, 9),
                          link_of(11, "ppp0", "ppp", ARPHRD_PPP),
                          link_of(12, "sit0", "", ARPHRD_SIT),
                          link_of(13, "flannel.1", "vxlan"),
                          link_of(14, "br-home", "bridge"),
                          link_of(15, "veth2", "veth", ARPHRD_ETHER, 14),
                          link_of(16, "bond0", "bond")};
  judge_links(links, 14);
  const auto what = [&](const std::string& name) { return std::ranges::find(links, name, &Link::name)->what; };
  for (const char* name : {"wg0", "tailscale0", "vnet0", "sit0", "flannel.1"})
    EXPECT_EQ(what(name), What::Tunnel) << name;
  for (const char* name : {"docker0", "virbr0"}) EXPECT_EQ(what(name), What::Containers) << name;
  for (const char* name : {"lo", "eth0", "br0", "ppp0", "bond0", "veth1"}) EXPECT_EQ(what(name), What::Plain) << name;
  EXPECT_EQ(what("br-home"), What::Plain) << "the way to the internet leads through it";
}

struct LinksInNamespace : ::testing::Test {
  std::unique_ptr<lab::Pair> pair;
  void SetUp() override {
    if (const auto missing = lab::lab_missing({"ip"})) GTEST_SKIP() << *missing;
    pair = std::make_unique<lab::Pair>();
    ip("route add default via 10.99.0.2");
    ip("tuntap add dev tun7 mode tun");
    ip("addr add 10.77.0.1/24 dev tun7");
    ip("link set tun7 up");
    ip("link add docker7 type bridge");
    ip("addr add 172.17.0.1/16 dev docker7");
    ip("link set docker7 up");
  }
  void ip(const std::string& words) const { ASSERT_EQ(lab::sh("ip -n " + pair->a() + " " + words), 0) << words; }
};

TEST_F(LinksInNamespace, TheKernelSaysKindsAndWays) {
  if (lab::sh("ip -n " + pair->a() + " link add ipip7 type ipip local 10.99.0.1 remote 10.99.0.2") == 0) {
    ip("addr add 10.78.0.1/24 dev ipip7");
    ip("link set ipip7 up");
  }
  lab::inside(pair->a(), [&] {
    Links links;
    const auto all = links.list();
    const auto what = [&](const std::string& name) {
      const auto found = std::ranges::find(all, name, &Link::name);
      return found == all.end() ? std::nullopt : std::optional(found->what);
    };
    EXPECT_EQ(what("tun7"), What::Tunnel);
    EXPECT_EQ(what("docker7"), What::Containers);
    EXPECT_EQ(what(pair->device_of_a()), What::Plain);
    if (what("ipip7")) EXPECT_EQ(what("ipip7"), What::Tunnel);
    const auto away = links.outward();
    ASSERT_TRUE(away);
    EXPECT_EQ(away->gateway, 0x0a630002U);
    EXPECT_EQ(away->source, 0x0a630001U);
    WayGuard guard;
    LeaseTime now{1'000};
    EXPECT_TRUE(guard.may_reach(overlay::Endpoint::udp(0x0a630002, 7), now));
    EXPECT_TRUE(guard.may_reach(overlay::Endpoint::udp(0x08080808, 7), now));
    EXPECT_FALSE(guard.may_reach(overlay::Endpoint::udp(0x0a4d0009, 7), now)) << "behind the TUN";
    EXPECT_FALSE(guard.may_reach(overlay::Endpoint::udp(0xac110005, 7), now)) << "a container of this machine";
    EXPECT_TRUE(guard.may_reach(overlay::Endpoint::relay({}, 0), now))
        << "relays are reached as the machine's routes say";
    EXPECT_FALSE(guard.outward_in_tunnel(now));
    // A VPN for everything comes up.
    ip("route add 0.0.0.0/1 dev tun7");
    ip("route add 128.0.0.0/1 dev tun7");
    EXPECT_TRUE(guard.may_reach(overlay::Endpoint::udp(0x08080808, 7), now)) << "told a moment ago";
    now = now + Millis(2'000);
    EXPECT_FALSE(guard.may_reach(overlay::Endpoint::udp(0x08080808, 7), now));
    EXPECT_TRUE(guard.may_reach(overlay::Endpoint::udp(0x0a630002, 7), now)) << "the own network stays";
    EXPECT_TRUE(guard.outward_in_tunnel(now));
  });
}

TEST_F(LinksInNamespace, AddressesOfTunnelsAndContainersAreNoCandidates) {
  lab::inside(pair->a(), [] {
    EXPECT_EQ(private_endpoints(7000), std::vector<std::string>{"10.99.0.1:7000"});
    EXPECT_TRUE(private_endpoints(0).empty());
  });
}

}  // namespace
}  // namespace muster::host
