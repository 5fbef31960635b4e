#pragma once
// For tests: two machines in namespaces, each with a netd, a lease namespace and a persistent TUN, in one cluster of
// two.
#include <gtest/gtest.h>
#include <netinet/tcp.h>

#include <future>

#include "host/netd.h"
#include "host/netd_client.h"
#include "host/netd_lab.h"
#include "host/sandbox.h"
#include "host/tun.h"
#include "overlay/packet.h"
#include "overlay/relay_protocol.h"

namespace muster::host::lab {

inline constexpr std::uint64_t kCluster = 3;
inline constexpr std::uint32_t kNet = 0x64400000;  // 100.64.0.0/16

// One machine: a namespace as its host network and a lease namespace that holds only lo and the TUN.
struct Machine {
  std::string host_ns, lease_ns, dir;
  std::uint32_t address = 0, lan = 0;
  crypto::SigningKey device = crypto::SigningKey::generate();
  Bytes overlay_key;
  Pacing pacing = Pacing::On;
  UdpRelay udp_relay = UdpRelay::On;
  std::size_t helpers = 0;
  std::unique_ptr<Netd> netd;
  std::thread thread;
  std::unique_ptr<NetdClient> client;

  void start() {
    NetdOptions options;
    options.state_dir = dir + "/netd";
    options.socket_path = dir + "/netd.sock";
    options.bandwidth_file = dir + "/bandwidth";  // absent = no cap
    options.network_file = dir + "/network";      // absent = the defaults
    options.pacing = pacing;
    options.udp_relay = udp_relay;
    options.helpers = helpers;
    netd = std::make_unique<Netd>(options);
    // The relay clients' threads inherit the namespace of the thread that starts them.
    std::promise<bool> started;
    thread = std::thread([this, &started] {
      inside(host_ns, [this, &started] {
        // As in the product, but for the socket that the supervisor makes there.
        const bool ok = netd->start().ok() && confine_netd().ok();
        started.set_value(ok);
        if (ok) netd->run();
      });
    });
    ASSERT_TRUE(started.get_future().get());
    client = std::make_unique<NetdClient>(options.socket_path);
  }
  void stop() {
    if (!netd) return;
    netd->stop();
    thread.join();
    netd.reset();
  }
  void add() {
    auto tun = create_tun(Pair::path(lease_ns),
                          TunSpec{"muster0", address, 16, 1420, static_cast<uid_t>(-1), overlay::inner6(address)});
    ASSERT_TRUE(tun.ok()) << tun.error().message;
    const auto key = client->add_lease("lease-1", tun->get());
    ASSERT_TRUE(key.ok()) << key.error().message;
    overlay_key = *key;
  }
  overlay::RosterMember entry() const {
    overlay::RosterMember m;
    m.slot = m.node = address & 255;
    m.address = address;
    m.overlay_key = *crypto::key32(overlay_key);
    m.device_key = device.public_key();
    m.overlay_signature = overlay::sign_overlay_key(device, kCluster, m.epoch, m.overlay_key);
    if (lan != 0) m.lan = {overlay::Endpoint::udp(lan, netd->udp_port())};
    return m;
  }
};

struct NetdRig : ::testing::Test {
  std::unique_ptr<Pair> pair;
  std::string dir;
  Machine a, b;
  crypto::SigningKey controller = crypto::SigningKey::generate();
  std::uint64_t epoch = 0;
  std::vector<netd::RelayAddress> relays;
  std::string relay_ca;
  bool use_lan = true;
  Pacing pacing = Pacing::On;

  void SetUp() override {
    if (const auto missing = lab_missing({"ip"})) GTEST_SKIP() << *missing;
    pair = std::make_unique<Pair>();
    char pattern[] = "/tmp/muster_netd_XXXXXX";
    dir = mkdtemp(pattern);
    int number = 0;
    for (Machine* m : {&a, &b}) {
      ++number;
      m->host_ns = number == 1 ? pair->a() : pair->b();
      m->lease_ns = m->host_ns + "l";
      m->dir = dir + "/" + std::to_string(number);
      m->pacing = pacing;
      m->address = kNet + static_cast<std::uint32_t>(number);
      m->lan = use_lan ? 0x0a630000 + static_cast<std::uint32_t>(number) : 0;
      sh("mkdir " + m->dir);
      sh("ip netns add " + m->lease_ns);
      m->start();
      m->add();
    }
    configure({&a, &b});
  }
  void TearDown() override {
    for (Machine* m : {&a, &b}) {
      m->stop();
      if (!m->lease_ns.empty()) sh("ip netns del " + m->lease_ns);
    }
    if (!dir.empty()) sh("rm -rf " + dir);
  }
  netd::Configure message(const Machine& m, const std::vector<Machine*>& members) {
    overlay::Roster roster{kCluster, 1, epoch, {}};
    for (const Machine* member : members) roster.members.push_back(member->entry());
    netd::Configure c;
    c.lease = "lease-1";
    c.address = m.address;
    c.roster = overlay::encode_roster(roster);
    c.signatures = {overlay::sign_roster(controller, c.roster)};
    c.signers = {Bytes(controller.public_key().begin(), controller.public_key().end())};
    c.relays = relays;
    c.relay_ca_pem = relay_ca;
    const overlay::RelayToken token{"relay-1", kCluster, *crypto::key32(m.overlay_key), read_clocks().wall + 1h};
    if (!relays.empty()) c.relay_token = overlay::sign_relay_token(controller, token);
    return c;
  }
  void configure(const std::vector<Machine*>& members) {
    ++epoch;
    for (Machine* m : members) {
      const auto done = m->client->configure(message(*m, members));
      ASSERT_TRUE(done.ok()) << done.error().message;
      EXPECT_EQ(done->epoch, epoch);
    }
  }
};

}  // namespace muster::host::lab
