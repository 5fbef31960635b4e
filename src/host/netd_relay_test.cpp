// Two netds and a real muster-relay in network namespaces: packets through the relay, its death and return, and the
// fall from a direct path that is silently cut back to the relay.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "crypto/cert.h"
#include "crypto/signing_keys.h"
#include "host/netd_rig.h"
#include "relay/relay.h"

namespace muster::host {
namespace {

using Clock = std::chrono::steady_clock;

struct NetdRelay : lab::NetdRig {
  crypto::KeyAndCert ca = crypto::create_ca("test", read_clocks().wall).value();
  crypto::KeyAndCert server = crypto::issue_server_certificate(ca, crypto::ServerRole::Relay, "muster-relay",
                                                               {"muster-relay"}, read_clocks().wall, 24h)
                                  .value();
  std::unique_ptr<relay::Relay> relay;
  std::uint16_t port = 0;
  bool mirror = false, udp = true;
  std::optional<std::uint16_t> second_port;  // of the relay's UDP side
  std::string keys_file;                     // of the relay: statements of signing keys

  // As musterd tells it; the first is what the relay was started with.
  void state(std::uint64_t revision, std::vector<crypto::SigningKeyEntry> keys) {
    crypto::SigningKeys out{"srv-1", revision, std::move(keys), {}, {}};
    ASSERT_TRUE(crypto::sign_signing_keys(out, ca, crypto::Trust{{}, 0, {ca.cert_pem}, {}, {}, {}}).ok());
    std::ofstream(keys_file) << crypto::signing_keys_text(out);
    relay->reload_trust(ca.cert_pem);
  }
  void open_relay() {
    relay = made_relay(pair->a(), port, "relay-1");
    port = relay->port();
  }
  std::unique_ptr<relay::Relay> made_relay(const std::string& ns, std::uint16_t at, const std::string& id) {
    std::unique_ptr<relay::Relay> out;
    relay::RelayOptions options;
    options.port = at;
    options.mirror = mirror;
    options.udp = udp;
    options.second_udp_port = second_port;
    options.tls = {server.cert_pem + ca.cert_pem, server.key_pem};
    options.controller_key = controller.public_key();
    options.relay_id = id;
    options.keys_file = keys_file;
    lab::inside(ns, [&] {
      auto made = relay::Relay::create(options);
      ASSERT_TRUE(made.ok()) << made.error().message;
      out = std::move(*made);
    });
    return out;
  }
  session::RelayGrant grant(const lab::Machine& m, const std::string& address, const std::string& id) const {
    const overlay::RelayToken token{id, lab::kCluster, *crypto::key32(m.overlay_key), read_clocks().wall + 1h};
    return {address, id == "relay-1" ? "here" : "there", overlay::sign_relay_token(controller, token)};
  }
  void begin(bool lan) {
    use_lan = lan;
    NetdRig::SetUp();
    if (IsSkipped()) return;
    open_relay();
    relays = {{"10.99.0.1", port}};
    relay_ca = ca.cert_pem;
    configure({&a, &b});
  }
  void SetUp() override {}
  void TearDown() override {
    NetdRig::TearDown();
    if (relay) relay->stop();
  }
  // Only the relay's UDP ports are reached from here on: no direct way comes about.
  void close_direct_ways() const {
    const std::string rule = "; add rule ip own in udp ",
                      second = second_port ? ", " + std::to_string(*second_port) : "",
                      to_relay = "{ " + std::to_string(port) + second + " } accept";
    for (const std::string& ns : {pair->a(), pair->b()})
      ASSERT_EQ(lab::sh(lab::Pair::in(
                    ns, "nft 'add table ip own; add chain ip own in { type filter hook input priority 0; }" + rule +
                            "sport " + to_relay + rule + "dport " + to_relay + rule + "dport 1-65535 drop'")),
                0);
  }
  static session::NetPair way(const lab::Machine& m) {
    const auto paths = m.client->paths("lease-1").value();
    return paths.report.pairs.empty() ? session::NetPair{} : paths.report.pairs[0];
  }
  static bool by_udp(const lab::Machine& m) {
    const auto pair = way(m);
    return pair.path == session::NetPath::Relay && pair.relay_udp;
  }
  static bool wait_for(const std::function<bool()>& done, Millis within = 8s) {
    const auto end = Clock::now() + within;
    while (!done() && Clock::now() < end) std::this_thread::sleep_for(50ms);
    return done();
  }
  std::uint64_t counted(const std::string& name) const {
    const std::string text = relay->metrics(), line = "\nmuster_relay_" + name + " ";
    const auto at = text.find(line);
    return at == std::string::npos ? 0 : std::stoul(text.substr(at + line.size()));
  }
  Millis until_echo(std::size_t size = 100) {
    const auto start = Clock::now();
    EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, size, 150), 1);
    return std::chrono::duration_cast<Millis>(Clock::now() - start);
  }
};

// What is believed from now on counts for the next connection; the open one stays, under either root.
TEST_F(NetdRelay, OtherRootsCutNoRelay) {
  begin(false);
  if (IsSkipped()) return;
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  const auto next = crypto::create_root("next", read_clocks().wall).value();
  const auto accepted = [&] {
    const std::string text = relay->metrics(), name = "\nmuster_relay_accepted_total ";
    return std::stoul(text.substr(text.find(name) + name.size()));
  };
  const auto before = accepted();
  relay_ca = next.cert_pem + ca.cert_pem;
  configure({&a, &b});
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 100, 20), 1);
  relay_ca = next.cert_pem;  // the open connections were made under the root that went
  configure({&a, &b});
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 100, 20), 1);
  EXPECT_TRUE(a.client->stats("lease-1")->relay_up);
  EXPECT_EQ(accepted(), before) << "nobody connected anew";
}

TEST_F(NetdRelay, OtherSigningKeysCutNoLink) {
  keys_file = "/tmp/muster_netd_keys_" + std::to_string(::getpid());
  begin(false);
  if (IsSkipped()) return;
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  const auto accepted = [&] {
    const std::string text = relay->metrics(), name = "\nmuster_relay_accepted_total ";
    return std::stoul(text.substr(text.find(name) + name.size()));
  };
  const auto before = accepted();
  const auto old = controller, fresh = crypto::SigningKey::generate();
  const WallTime now = read_clocks().wall;
  const auto entry = [](const crypto::SigningKey& key, WallTime from, WallTime until) {
    return crypto::SigningKeyEntry{crypto::KeyKind::RelayToken, key.public_key(), from, until};
  };
  // Announced; then rosters and tokens are signed by it; then the one before is believed no longer.
  state(1, {entry(old, {}, now + 1h), entry(fresh, now, {})});
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 100, 20), 1);
  controller = fresh;
  --epoch;  // the same roster, signed by another key
  configure({&a, &b});
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 100, 20), 1);
  configure({&a, &b});
  state(2, {entry(fresh, now, {})});
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 100, 20), 1);
  EXPECT_TRUE(a.client->stats("lease-1")->relay_up);
  EXPECT_EQ(accepted(), before) << "nobody connected anew";
  // What the retired key signs is refused: a roster, where the agent names the new key, and a token.
  ++epoch;
  auto forged = message(a, {&a});
  forged.signatures = {overlay::sign_roster(old, forged.roster)};
  EXPECT_FALSE(a.client->configure(forged).ok());
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 100, 20), 1) << "and changes nothing";
  relay->stop();
  relay.reset();
  open_relay();
  controller = old;
  auto stale = message(a, {&a, &b});
  controller = fresh;
  stale.signatures = {overlay::sign_roster(fresh, stale.roster)};
  stale.signers = {Bytes(fresh.public_key().begin(), fresh.public_key().end())};
  relay->reload_trust(ca.cert_pem);
  ASSERT_TRUE(a.client->configure(stale).ok());
  std::this_thread::sleep_for(2s);
  EXPECT_FALSE(a.client->stats("lease-1")->relay_up);
  configure({&a, &b});
  EXPECT_LT(until_echo(), 20s);
  std::remove(keys_file.c_str());
}

TEST_F(NetdRelay, CarriesPacketsAndSurvivesTheRelaysDeath) {
  begin(false);
  if (IsSkipped()) return;
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  for (std::size_t size = 1; size < overlay::kRelayedMtu - 28; size += 193)
    EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, size), 1) << size;
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, overlay::kRelayedMtu - 28), 1);
  const auto stats = a.client->stats("lease-1");
  ASSERT_TRUE(stats.ok());
  EXPECT_TRUE(stats->relay_up);
  EXPECT_EQ(stats->peers.at(0).path, "relay");
  relay->stop();
  relay.reset();
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 10, 3), 0);
  open_relay();
  EXPECT_LT(until_echo(), 8s);
}

TEST_F(NetdRelay, OneOfTwoRelaysDiesAndTheOtherCarriesOn) {
  begin(false);
  if (IsSkipped()) return;
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  const auto second = made_relay(pair->b(), 0, "relay-2");
  const std::string here = "10.99.0.1:" + std::to_string(port), there = "10.99.0.2:" + std::to_string(second->port());
  const auto tell = [&](const std::string& id_of_second) {
    for (lab::Machine* m : {&a, &b}) {
      const Status told =
          m->client->set_relays({"lease-1", {grant(*m, here, "relay-1"), grant(*m, there, id_of_second)}});
      ASSERT_TRUE(told.ok()) << told.error().message;
    }
  };
  const auto report = [&] { return a.client->paths("lease-1").value().report; };
  const auto until = [&](const std::function<bool()>& done) {
    for (int i = 0; i < 50 && !done(); ++i) std::this_thread::sleep_for(100ms);
    return done();
  };
  tell("relay-3");
  EXPECT_TRUE(until([&] { return second->metrics().find("hello_refused_total 0") == std::string::npos; }))
      << "a token is for one relay";
  EXPECT_FALSE(report().relays.at(1).up);
  tell("relay-2");
  ASSERT_TRUE(until([&] {
    const auto relays = report().relays;
    return relays.at(1).up && relays[1].rtt_us > 0 && relays[0].rtt_us > 0;
  }));
  EXPECT_EQ(report().relays[1].address, there);
  EXPECT_EQ(report().relays[1].region, "there");
  EXPECT_NE(relay->metrics().find("muster_relay_members_total 2\n"), std::string::npos)
      << "who was connected stays so while the list changes: " << relay->metrics();
  const std::uint32_t used = report().pairs.at(0).relay;
  ASSERT_TRUE(used == 1 || used == 2) << used;
  (used == 1 ? relay : second)->stop();
  EXPECT_LT(until_echo(), 3s);
  EXPECT_EQ(report().pairs.at(0).path, session::NetPath::Relay);
  EXPECT_EQ(report().pairs[0].relay, 3 - used);
  EXPECT_FALSE(report().relays[used - 1].up);
  EXPECT_TRUE(report().relay_up);
  EXPECT_EQ(a.client->set_relays({"lease-1", {{"nowhere", "", {}}}}).error().code, Code::InvalidArgument);
  second->stop();
}

TEST_F(NetdRelay, ATcpStreamFlowsBothWays) {
  if (lab::lab_missing({"iperf3"})) GTEST_SKIP() << "needs iperf3";
  begin(false);
  if (IsSkipped()) return;
  for (const std::string way : {"", " -R"}) {
    // A server that begins while the one before still ends finds its port taken, and says so to nobody.
    bool done = false;
    for (int tries = 0; !done && tries < 8; ++tries) {
      ASSERT_EQ(lab::sh(lab::Pair::in(b.lease_ns, "iperf3 -s -1 -D -B 100.64.0.2")), 0);
      std::this_thread::sleep_for(300ms);
      done = lab::sh(lab::Pair::in(a.lease_ns, "timeout 20 iperf3 -c 100.64.0.2 -n 10M" + way)) == 0;
    }
    EXPECT_TRUE(done) << way;
  }
}

TEST_F(NetdRelay, MachinesThatKnowNoCommonNetworkFindEachOther) {
  mirror = true;
  begin(false);
  if (IsSkipped()) return;
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  const auto path = [](const lab::Machine& m) { return m.client->stats("lease-1")->peers.at(0).path; };
  for (int i = 0; i < 80 && (path(a) == "relay" || path(b) == "relay"); ++i) std::this_thread::sleep_for(100ms);
  EXPECT_EQ(path(a), "10.99.0.2:" + std::to_string(b.netd->udp_port()));
  EXPECT_EQ(path(b), "10.99.0.1:" + std::to_string(a.netd->udp_port()));
  const auto paths = a.client->paths("lease-1");
  ASSERT_TRUE(paths.ok()) << paths.error().message;
  EXPECT_TRUE(paths->report.relay_up);
  ASSERT_EQ(paths->report.seen.size(), 1U) << "the relay's UDP port said how this machine is seen";
  EXPECT_EQ(paths->report.seen[0].port, a.netd->udp_port());
  ASSERT_EQ(paths->report.pairs.size(), 1U);
  const session::NetPair& found = paths->report.pairs[0];
  EXPECT_EQ(found.path, session::NetPath::Lan) << "10.99.0.2 is an address of a private network";
  EXPECT_EQ(found.at.port, b.netd->udp_port());
  EXPECT_GT(found.rtt_us, 0U);
  EXPECT_LT(found.rtt_us, 1'000'000U);
  EXPECT_GE(found.changes, 1U);
  EXPECT_EQ(paths->lan, 1U);
  ASSERT_FALSE(found.tries.empty());
  EXPECT_TRUE(std::any_of(found.tries.begin(), found.tries.end(), [](const auto& t) { return t.full; }));
  relay->stop();
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, overlay::kInnerMtu - 28), 1) << "the relay is not needed any more";
}

TEST_F(NetdRelay, ACutDirectPathFallsBackToTheRelay) {
  if (lab::lab_missing({"nft"})) GTEST_SKIP() << "needs nft";
  begin(true);
  if (IsSkipped()) return;
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  const auto path = [&] { return a.client->stats("lease-1")->peers.at(0).path; };
  for (int i = 0; i < 50 && path() == "relay"; ++i) std::this_thread::sleep_for(100ms);
  ASSERT_NE(path(), "relay");
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, overlay::kInnerMtu - 28), 1);
  ASSERT_EQ(lab::sh(lab::Pair::in(pair->a(),
                                  "nft 'add table ip cut; add chain ip cut out { type filter hook output priority 0; "
                                  "}; add rule ip cut out udp sport " +
                                      std::to_string(a.netd->udp_port()) + " drop'")),
            0);
  EXPECT_LT(until_echo(), 6s);
  EXPECT_EQ(path(), "relay");
}

// Packets one after the other; the longest time in which none came back.
Millis longest_pause(const lab::Machine& from, std::uint32_t to, Millis length) {
  const auto end = Clock::now() + length;
  Millis longest{0};
  lab::inside(from.lease_ns, [&] {
    const int fd = lab::Echo::bound_udp(0);
    const timeval patience{0, 20'000};
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(to);
    at.sin_port = htons(9000);
    ::connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at);
    auto last = Clock::now();
    std::vector<char> data(overlay::kRelayedMtu - 28);
    while (Clock::now() < end) {
      std::ignore = ::send(fd, data.data(), data.size(), 0);
      if (::recv(fd, data.data(), data.size(), 0) > 0) last = Clock::now();
      longest = std::max(longest, std::chrono::duration_cast<Millis>(Clock::now() - last));
      std::this_thread::sleep_for(5ms);
    }
    ::close(fd);
  });
  return longest;
}

TEST_F(NetdRelay, GoesOverUdpWhereFullPacketsPassAndOverTlsWhenUdpDies) {
  if (lab::lab_missing({"nft"})) GTEST_SKIP() << "needs nft";
  mirror = true;
  NetdRig::use_lan = false;
  NetdRig::SetUp();
  if (IsSkipped()) return;
  open_relay();
  close_direct_ways();
  relays = {{"10.99.0.1", port}};
  relay_ca = ca.cert_pem;
  configure({&a, &b});
  const lab::Echo echo(b.lease_ns, 9000);
  EXPECT_LT(until_echo(), 3s);
  ASSERT_TRUE(wait_for([&] { return by_udp(a) && by_udp(b); })) << relay->metrics();
  const auto paths = a.client->paths("lease-1").value();
  EXPECT_EQ(paths.relayed_udp, 1U);
  EXPECT_EQ(paths.relayed, 0U);
  EXPECT_TRUE(paths.report.relays.at(0).by_udp);
  std::uint64_t before = counted("udp_packets_total");
  EXPECT_LT(longest_pause(a, b.address, 3s), 500ms);
  EXPECT_GT(counted("udp_packets_total"), before + 200) << "full-size packets go over UDP";
  EXPECT_EQ(counted("udp_members"), 2U);
  // In the middle, without a word; then it is let through again.
  ASSERT_EQ(lab::sh(lab::Pair::in(pair->b(),
                                  "nft 'add table ip cut; add chain ip cut in { type filter hook input "
                                  "priority -5; }; add rule ip cut in udp sport " +
                                      std::to_string(port) + " drop'")),
            0);
  EXPECT_LT(longest_pause(a, b.address, 8s), 6s);
  EXPECT_FALSE(by_udp(b));
  EXPECT_TRUE(by_udp(a)) << "each end has its own way to the relay";
  EXPECT_LT(longest_pause(a, b.address, 1s), 500ms) << "one over UDP, the other over TLS";
  ASSERT_EQ(lab::sh(lab::Pair::in(pair->b(), "nft delete table ip cut")), 0);
  EXPECT_TRUE(wait_for([&] { return by_udp(b); }, 35s));
  // The other direction: nothing of b reaches the relay.
  ASSERT_EQ(lab::sh(lab::Pair::in(pair->b(),
                                  "nft 'add table ip cut; add chain ip cut out { type filter hook output "
                                  "priority -5; }; add rule ip cut out udp dport " +
                                      std::to_string(port) + " drop'")),
            0);
  EXPECT_LT(longest_pause(a, b.address, 8s), 6s);
  EXPECT_FALSE(by_udp(b));
}

// Where the network of one lets UDP out to the second port only: how it is seen is learnt there, and packets go by it.
TEST_F(NetdRelay, UsesTheSecondPortWhereTheFirstIsBlocked) {
  if (lab::lab_missing({"nft"})) GTEST_SKIP() << "needs nft";
  mirror = true;
  second_port = 3478;
  NetdRig::use_lan = false;
  NetdRig::SetUp();
  if (IsSkipped()) return;
  open_relay();
  close_direct_ways();
  ASSERT_EQ(lab::sh(lab::Pair::in(pair->b(),
                                  "nft 'add table ip cut; add chain ip cut out { type filter hook output "
                                  "priority -5; }; add rule ip cut out udp dport " +
                                      std::to_string(port) + " drop'")),
            0);
  relays = {{"10.99.0.1", port}};
  relay_ca = ca.cert_pem;
  configure({&a, &b});
  const lab::Echo echo(b.lease_ns, 9000);
  EXPECT_LT(until_echo(), 3s);
  EXPECT_TRUE(wait_for([&] { return by_udp(a) && by_udp(b); }, 10s)) << relay->metrics();
  const std::uint64_t before = counted("udp_packets_total");
  EXPECT_LT(longest_pause(a, b.address, 2s), 500ms);
  EXPECT_GT(counted("udp_packets_total"), before + 100);
  EXPECT_TRUE(wait_for([&] {
    const auto paths = b.client->paths("lease-1");
    return paths.ok() && !paths->report.seen.empty() && paths->report.relays.at(0).udp_rtt_us > 0;
  })) << "the mirror answers there";
  // The other way round.
  ASSERT_EQ(lab::sh(lab::Pair::in(pair->b(), "nft 'flush chain ip cut out; add rule ip cut out udp dport 3478 drop'")),
            0);
  EXPECT_LT(longest_pause(a, b.address, 8s), 6s);
  EXPECT_TRUE(wait_for([&] { return by_udp(b); }, 10s));
}

// What was let in may go on while its connection is made anew (for how long: relay_test.cpp).
TEST_F(NetdRelay, UdpOutlivesABrokenConnectionToTheRelayForAWhile) {
  if (lab::lab_missing({"nft"})) GTEST_SKIP() << "needs nft";
  mirror = true;
  NetdRig::use_lan = false;
  NetdRig::SetUp();
  if (IsSkipped()) return;
  open_relay();
  close_direct_ways();
  relays = {{"10.99.0.1", port}};
  relay_ca = ca.cert_pem;
  configure({&a, &b});
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  ASSERT_TRUE(wait_for([&] { return by_udp(a) && by_udp(b); }));
  ASSERT_EQ(lab::sh(lab::Pair::in(pair->b(),
                                  "nft 'add table ip cut; add chain ip cut out { type filter hook output "
                                  "priority -5; }; add rule ip cut out tcp dport " +
                                      std::to_string(port) + " reject with tcp reset'")),
            0);
  ASSERT_TRUE(wait_for([&] { return !b.client->stats("lease-1")->relay_up; }, 20s));
  EXPECT_LT(longest_pause(a, b.address, 3s), 500ms);
  ASSERT_EQ(lab::sh(lab::Pair::in(pair->b(), "nft delete table ip cut")), 0);
  EXPECT_TRUE(wait_for([&] { return b.client->stats("lease-1")->relay_up; }, 20s));
  EXPECT_LT(longest_pause(a, b.address, 2s), 1s);
  EXPECT_TRUE(wait_for([&] { return by_udp(b); }, 10s));
}

TEST_F(NetdRelay, WhoIsOlderGoesOverTls) {
  if (lab::lab_missing({"nft"})) GTEST_SKIP() << "needs nft";
  mirror = true;
  b.udp_relay = UdpRelay::Off;
  NetdRig::use_lan = false;
  NetdRig::SetUp();
  if (IsSkipped()) return;
  open_relay();
  close_direct_ways();
  relays = {{"10.99.0.1", port}};
  relay_ca = ca.cert_pem;
  configure({&a, &b});
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  ASSERT_TRUE(wait_for([&] { return by_udp(a); }));
  EXPECT_FALSE(by_udp(b));
  EXPECT_LT(longest_pause(a, b.address, 2s), 500ms);
  relay->stop();
  relay.reset();
  udp = false;  // a relay that offers none
  open_relay();
  EXPECT_LT(until_echo(), 10s);
  EXPECT_LT(longest_pause(a, b.address, 3s), 1s);
  EXPECT_FALSE(by_udp(a));
}

// Nothing goes between the two machines but by the relay, and nothing that b says shows where it is.
TEST_F(NetdRelay, WhoHidesIsReachedByTheRelayOnly) {
  if (lab::lab_missing({"nft"})) GTEST_SKIP() << "needs nft";
  mirror = true;
  begin(true);
  if (IsSkipped()) return;
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  ASSERT_TRUE(wait_for([&] { return way(a).path == session::NetPath::Lan && way(b).path == session::NetPath::Lan; }));
  std::ofstream(b.dir + "/network") << "relay-only 1\n";
  ASSERT_TRUE(
      wait_for([&] { return way(a).path == session::NetPath::Relay && way(b).path == session::NetPath::Relay; }));
  EXPECT_TRUE(way(a).hidden);
  EXPECT_TRUE(way(a).tries.empty()) << "what was known is forgotten";
  // From now on whatever goes between both netds' ports is dropped and counted; a quota that is used up says so.
  const std::string ports = "udp sport { " + std::to_string(a.netd->udp_port()) + " } udp dport { " +
                            std::to_string(b.netd->udp_port()) + " }",
                    back = "udp sport { " + std::to_string(b.netd->udp_port()) + " } udp dport { " +
                           std::to_string(a.netd->udp_port()) + " }";
  ASSERT_EQ(
      lab::sh(lab::Pair::in(pair->b(),
                            "nft 'add table ip seen; add chain ip seen in { type filter hook input priority 0; }; "
                            "add chain ip seen out { type filter hook output priority 0; }; add rule ip seen in " +
                                ports + " counter; add rule ip seen out " + back + " counter'")),
      0);
  configure({&a, &b});  // the roster says where b was: an older one did
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 600, 10), 1);
    std::this_thread::sleep_for(200ms);
  }
  EXPECT_EQ(lab::sh(lab::Pair::in(pair->b(), "nft list table ip seen | grep -E \"counter packets [1-9]\"")), 1);
  EXPECT_EQ(lab::sh(lab::Pair::in(pair->b(), "nft list table ip seen | grep -c \"counter packets 0\" | grep 2")), 0);
  const auto report = b.client->paths("lease-1")->report;
  EXPECT_TRUE(report.relay_only);
  EXPECT_TRUE(report.seen.empty());
  EXPECT_TRUE(way(b).tries.empty());
  std::ofstream(b.dir + "/network") << "relay-only 0\n";
  ASSERT_TRUE(wait_for([&] { return !b.client->paths("lease-1")->report.relay_only; }));
  configure({&a, &b});
  EXPECT_TRUE(wait_for([&] { return way(a).path == session::NetPath::Lan && !way(a).hidden; }, 30s));
}

// The other machine's address is reached through a tunnel all of a sudden: nothing goes there but by the relay.
TEST_F(NetdRelay, NoTunnelRunsInsideAnother) {
  begin(true);
  if (IsSkipped()) return;
  const std::string in_b = "ip -n " + pair->b() + " ";
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  ASSERT_TRUE(wait_for([&] { return way(b).path == session::NetPath::Lan; }));
  // The relay is at 10.99.0.1 too: it moves to an address of its own, to which the way stays.
  ASSERT_EQ(lab::sh("ip -n " + pair->a() + " addr add 10.99.0.5/24 dev " + pair->device_of_a()), 0);
  relays = {{"10.99.0.5", port}};
  configure({&a, &b});
  until_echo();
  ASSERT_EQ(lab::sh(in_b + "tuntap add dev vpn0 mode tun"), 0);
  ASSERT_EQ(lab::sh(in_b + "addr add 10.77.0.1/24 dev vpn0"), 0);
  ASSERT_EQ(lab::sh(in_b + "link set vpn0 up"), 0);
  ASSERT_EQ(lab::sh(in_b + "route add 10.99.0.1/32 dev vpn0"), 0);
  EXPECT_TRUE(wait_for([&] { return way(b).path == session::NetPath::Relay; }, 10s));
  EXPECT_TRUE(wait_for([&] { return !way(b).tries.empty() && way(b).tries[0].tunnel; }));
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 600, 50), 1);
  const auto before = way(b).tries.at(0).sent;
  std::this_thread::sleep_for(3s);
  EXPECT_EQ(way(b).tries.at(0).sent, before) << "no probe went into it";
  ASSERT_EQ(lab::sh(in_b + "link del vpn0"), 0);
  EXPECT_TRUE(wait_for([&] { return way(b).path == session::NetPath::Lan; }, 40s));
}

// A port that the owner forwards, and what the router granted, are told to the others: the owner's first.
TEST_F(NetdRelay, WhatTheOwnerAndTheRouterSayIsTold) {
  begin(false);
  if (IsSkipped()) return;
  const lab::Echo echo(b.lease_ns, 9000);
  until_echo();
  EXPECT_TRUE(way(a).tries.empty());
  const auto tried = [&] {
    std::vector<std::uint16_t> out;
    for (const auto& each : way(a).tries) out.push_back(each.at.port);
    return out;
  };
  ASSERT_TRUE(b.client->set_mapped({{{0x0a630002, 40'001, {}}}, "PCP"}).ok());
  EXPECT_TRUE(wait_for([&] { return tried() == std::vector<std::uint16_t>{40'001}; }));
  EXPECT_EQ(b.client->paths("lease-1")->report.mapped, "PCP");
  EXPECT_FALSE(b.client->set_mapped({{{1, 1, {}}, {2, 2, {}}, {3, 3, {}}}, "PCP"}).ok());
  // b listens where its owner says, and is reached there at once.
  std::ofstream(b.dir + "/network") << "udp-port 40002\nendpoint 10.99.0.2:40002\n";
  EXPECT_TRUE(wait_for([&] { return way(a).path == session::NetPath::Lan && way(a).at.port == 40'002; }, 15s));
  EXPECT_EQ(b.client->info()->udp_port, 40'002);
  EXPECT_EQ(b.client->paths("lease-1")->report.mapped, "owner");
  EXPECT_EQ(lab::echoed(a.lease_ns, b.address, 9000, 600, 20), 1);
  b.stop();  // and after a restart
  b.start();
  EXPECT_EQ(b.client->info()->udp_port, 40'002);
}

// Somebody else has the port that the owner wants: another one serves until it is free.
TEST_F(NetdRelay, APortThatIsTakenIsTakenLater) {
  begin(false);
  if (IsSkipped()) return;
  int other = -1;
  lab::inside(pair->b(), [&] { other = lab::Echo::bound_udp(40'003); });
  const std::uint16_t before = b.client->info()->udp_port;
  std::ofstream(b.dir + "/network") << "udp-port 40003\n";
  std::this_thread::sleep_for(1s);
  EXPECT_EQ(b.client->info()->udp_port, before);
  ::close(other);
  EXPECT_TRUE(wait_for([&] { return b.client->info()->udp_port == 40'003; }, 15s));
}

}  // namespace
}  // namespace muster::host
