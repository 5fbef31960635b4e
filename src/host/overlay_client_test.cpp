// The agent's side of netd: what it keeps of each lease's network, damaged and old files, and two real netds whose
// overlay comes back after agent and netd were restarted without any control plane.
#include "host/overlay_client.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <future>

#include "crypto/file.h"
#include "crypto/hash.h"
#include "host/netd_rig.h"
#include "host/verb_server.h"

namespace muster::host {
namespace {
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr LeaseId kOurLease{1};
const Bytes kPsk(32, 0x5a);

struct Kept : ::testing::Test {
  Kept() {
    char name[] = "/tmp/muster_kept_XXXXXX";
    folder = mkdtemp(name);
    store = std::make_unique<OverlayStore>(folder + "/overlays");
  }
  ~Kept() override { fs::remove_all(folder); }
  netd::Configure configured(std::uint64_t epoch) {
    overlay::Roster roster{lab::kCluster, 1, epoch, {}};
    netd::Configure out;
    out.lease = kOurLease.str();
    out.address = lab::kNet + 1;
    out.roster = overlay::encode_roster(roster);
    out.signatures = {overlay::sign_roster(controller, out.roster)};
    out.signers = {Bytes(controller.public_key().begin(), controller.public_key().end())};
    out.relays = {{"203.0.113.10", 443}};
    out.relay_token = Bytes(40, 7);
    out.psk = kPsk;
    return out;
  }
  std::string file(LeaseId lease = kOurLease) const { return folder + "/overlays/" + lease.str(); }

  std::string folder;
  crypto::SigningKey controller = crypto::SigningKey::generate();
  std::unique_ptr<OverlayStore> store;
};

TEST_F(Kept, WhatIsSavedIsLoadedWithoutTheKey) {
  EXPECT_EQ(store->load(kOurLease).error().code, Code::NotFound);
  ASSERT_TRUE(store->save(kOurLease, {configured(4), {}}).ok());
  struct stat info {};
  ASSERT_EQ(::stat(file().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600U);
  const Bytes bytes = *crypto::read_secret_file(file());
  EXPECT_EQ(as_string(bytes).find(as_string(kPsk)), std::string::npos);
  netd::Configure want = configured(4);
  want.psk.clear();
  const auto loaded = OverlayStore(folder + "/overlays").load(kOurLease);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->configured.roster, want.roster);
  EXPECT_EQ(loaded->configured.relays, want.relays);
  EXPECT_EQ(loaded->configured.relay_token, want.relay_token);
  EXPECT_TRUE(loaded->configured.psk.empty());
  store->remove(kOurLease);
  EXPECT_EQ(store->load(kOurLease).error().code, Code::NotFound);
}

TEST_F(Kept, NothingDamagedForeignOrForgedIsTaken) {
  ASSERT_TRUE(store->save(kOurLease, {configured(4), {}}).ok());
  const Bytes good = *crypto::read_secret_file(file());
  for (std::size_t i = 0; i < good.size(); ++i) {
    Bytes bad = good;
    bad[i] ^= 0x40;
    ASSERT_TRUE(crypto::write_secret_file(file(), bad).ok());
    ASSERT_FALSE(store->load(kOurLease).ok()) << "byte " << i;
  }
  for (std::size_t size = 0; size < good.size(); size += 7) {
    ASSERT_TRUE(crypto::write_secret_file(file(), ByteView(good).first(size)).ok());
    ASSERT_FALSE(store->load(kOurLease).ok()) << size << " bytes";
  }
  // A right checksum over something else than the end of our own writing.
  const auto forge = [&](std::string body) {
    Bytes bytes = to_bytes(body);
    const auto sum = crypto::sha256(bytes);
    bytes.insert(bytes.end(), sum.begin(), sum.end());
    EXPECT_TRUE(crypto::write_secret_file(file(), bytes).ok());
    return store->load(kOurLease);
  };
  const std::string header = "muster overlay 2\n";
  EXPECT_FALSE(forge("").ok());
  EXPECT_FALSE(forge(header).ok());
  EXPECT_FALSE(forge(header + std::string(1000, '\xff')).ok());
  EXPECT_FALSE(forge(header + netd::encode(netd::Request(netd::RemoveLease{kOurLease.str()}))).ok());
  netd::Configure other = configured(4);
  EXPECT_TRUE(forge(header + netd::encode(netd::Request(other))).ok());
  other.lease = "lease-2";
  EXPECT_FALSE(forge(header + netd::encode(netd::Request(other))).ok());
  other = configured(4);
  other.roster.back() ^= 1;
  EXPECT_FALSE(forge(header + netd::encode(netd::Request(other))).ok());
  other = configured(4);
  other.signers.clear();
  EXPECT_FALSE(forge(header + netd::encode(netd::Request(other))).ok());
  ASSERT_TRUE(crypto::write_secret_file(file(), good).ok());
  ASSERT_EQ(::chmod(file().c_str(), 0644), 0);
  EXPECT_FALSE(store->load(kOurLease).ok()) << "others could read it";
}

TEST_F(Kept, NothingOlderThanWhatWasSeenIsTaken) {
  ASSERT_TRUE(store->save(kOurLease, {configured(4), {}}).ok());
  store->refuse_older_than({{ClusterId{lab::kCluster}, 4}, {ClusterId{77}, 9}});
  EXPECT_TRUE(store->load(kOurLease).ok());
  store->refuse_older_than({{ClusterId{lab::kCluster}, 5}});
  EXPECT_FALSE(store->load(kOurLease).ok());
}

TEST_F(Kept, FilesOfEndedLeasesGo) {
  netd::Configure second = configured(4);
  second.lease = "lease-2";
  ASSERT_TRUE(store->save(kOurLease, {configured(4), {}}).ok());
  ASSERT_TRUE(store->save(LeaseId{2}, {second, {}}).ok());
  ASSERT_TRUE(crypto::write_secret_file(folder + "/overlays/lease-1.0a0b.new", Bytes{1}).ok());
  store->keep_only({LeaseId{2}});
  EXPECT_EQ(std::distance(fs::directory_iterator(folder + "/overlays"), fs::directory_iterator{}), 1);
  EXPECT_TRUE(store->load(LeaseId{2}).ok());
}

// privd's one verb that matters here: the TUN of the lease's namespace.
lab::VerbServer::Handler tun_of(const std::string& lease_ns) {
  return [lease_ns](const Verb&) -> Result<Answer> {
    auto tun = open_tun(lab::Pair::path(lease_ns), "muster0");
    if (!tun.ok() && tun.error().code == Code::FailedPrecondition)
      return error(Code::FailedPrecondition, tun.error().message, "tun.held");
    Answer answer;
    answer.fds.push_back(TRY(std::move(tun)));
    return answer;
  };
}

// One life of the agent, as far as its overlay goes.
class Life {
 public:
  explicit Life(const lab::Machine& m, std::map<ClusterId, std::uint64_t> seen = {})
      : privd_(poller_, m.dir + "/privd.sock"),
        client_(poller_, privd_, m.dir + "/netd.sock", m.dir + "/overlays", {}),
        address_(m.address) {
    client_.refuse_older_than(std::move(seen));
    thread_ = std::thread([this] { poller_.run(); });
  }
  ~Life() {
    poller_.stop();
    thread_.join();
  }
  Result<OverlayPort::Attached> attach() {
    std::promise<Result<OverlayPort::Attached>> told;
    poller_.post([&] {
      client_.attach({kOurLease, address_, 16},
                     [&](Result<OverlayPort::Attached> done) { told.set_value(std::move(done)); });
    });
    return told.get_future().get();
  }
  Status configure(const netd::Configure& as) {
    agent::ConfigureNetwork network;
    network.lease = kOurLease;
    network.roster = {ClusterId{lab::kCluster}, as.roster, as.signatures};
    network.psk = as.psk;
    std::promise<Status> told;
    poller_.post(
        [&] { client_.configure(network, as.signers[0], [&](Status done) { told.set_value(std::move(done)); }); });
    return told.get_future().get();
  }
  void detach() {
    std::promise<Status> told;
    poller_.post([&] { client_.detach(kOurLease, true, [&](Status done) { told.set_value(std::move(done)); }); });
    EXPECT_TRUE(told.get_future().get().ok());
  }

 private:
  Poller poller_;
  PrivdClient privd_;
  OverlayClient client_;
  std::uint32_t address_;
  std::thread thread_;
};

struct OverlayLives : lab::NetdRig {
  std::unique_ptr<lab::VerbServer> giver;
  std::unique_ptr<Life> life;

  void SetUp() override {
    NetdRig::SetUp();
    if (IsSkipped()) return;
    giver = std::make_unique<lab::VerbServer>(b.dir + "/privd.sock", tun_of(b.lease_ns));
    life = std::make_unique<Life>(b);
    ASSERT_TRUE(life->attach().ok());
    again();
  }
  void TearDown() override {
    life.reset();
    giver.reset();
    NetdRig::TearDown();
  }
  // A newer roster, told to b by its agent.
  void again() {
    ++epoch;
    netd::Configure mine = message(a, {&a, &b}), other = message(b, {&a, &b});
    mine.psk = other.psk = kPsk;
    ASSERT_TRUE(a.client->configure(mine).ok());
    const Status done = life->configure(other);
    ASSERT_TRUE(done.ok()) << done.error().message;
  }
  void restart_netd() {
    b.stop();
    b.start();
  }
  std::string file() const { return b.dir + "/overlays/" + kOurLease.str(); }
  int echo(int tries) { return lab::echoed(a.lease_ns, b.address, 9000, 100, tries); }
};

TEST_F(OverlayLives, TheOverlayComesBackWithoutTheControlPlane) {
  const lab::Echo server(b.lease_ns, 9000);
  ASSERT_EQ(echo(30), 1);
  life.reset();
  restart_netd();
  EXPECT_TRUE(b.client->info()->leases.empty());
  const auto began = Clock::now();
  life = std::make_unique<Life>(b);
  const auto attached = life->attach();
  ASSERT_TRUE(attached.ok()) << attached.error().message;
  EXPECT_EQ(attached->roster_epoch, epoch);
  EXPECT_EQ(attached->key, b.overlay_key);
  EXPECT_EQ(echo(30), 1);
  EXPECT_LT(Clock::now() - began, 5s);
  // netd alone once more, then the control plane's next word.
  restart_netd();
  EXPECT_EQ(echo(30), 1);
  again();
  EXPECT_EQ(echo(30), 1);
}

TEST_F(OverlayLives, ItWaitsForANetdThatIsLate) {
  const lab::Echo server(b.lease_ns, 9000);
  life.reset();
  b.stop();
  life = std::make_unique<Life>(b);
  std::thread late([&] {
    std::this_thread::sleep_for(700ms);
    b.start();
  });
  const auto attached = life->attach();
  late.join();
  ASSERT_TRUE(attached.ok()) << attached.error().message;
  EXPECT_EQ(attached->roster_epoch, epoch);
  EXPECT_EQ(echo(30), 1);
}

TEST_F(OverlayLives, AnOlderRosterDoesNotComeBack) {
  const lab::Echo server(b.lease_ns, 9000);
  const Bytes old = *crypto::read_secret_file(file());
  again();
  life.reset();
  restart_netd();
  ASSERT_TRUE(crypto::write_secret_file(file(), old).ok());
  life = std::make_unique<Life>(b);  // this agent has forgotten all: netd remembers
  auto attached = life->attach();
  ASSERT_TRUE(attached.ok());
  EXPECT_EQ(attached->roster_epoch, 0U);
  EXPECT_FALSE(b.client->info()->leases.at(0).configured && b.client->stats("lease-1")->epoch < epoch);
  EXPECT_NE(echo(3), 1);
  life.reset();
  restart_netd();
  ASSERT_TRUE(crypto::write_secret_file(file(), old).ok());
  life = std::make_unique<Life>(b, std::map<ClusterId, std::uint64_t>{{ClusterId{lab::kCluster}, epoch}});
  attached = life->attach();
  ASSERT_TRUE(attached.ok());
  EXPECT_EQ(attached->roster_epoch, 0U);
  EXPECT_FALSE(fs::exists(file())) << "what is refused is not kept";
}

TEST_F(OverlayLives, NothingOfAnEndedLeaseIsLeft) {
  EXPECT_TRUE(fs::exists(file()));
  EXPECT_TRUE(fs::exists(b.dir + "/netd/lease-1.psk"));
  life->detach();
  EXPECT_FALSE(fs::exists(file()));
  for (const char* suffix : {".key", ".psk", ".roster", ".stamp"})
    EXPECT_FALSE(fs::exists(b.dir + "/netd/lease-1" + suffix)) << suffix;
}

}  // namespace
}  // namespace muster::host
