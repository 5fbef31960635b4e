#pragma once
// Inside of netd: one lease's network: its TUN descriptor, its place in the overlay, its relay connections. Relay
// threads only put packets into a bounded inbox; everything else runs on netd's thread. The overlay key, the cluster's
// pre-shared one and the highest roster seen live in 0600 files, so that a restarted netd is the same member.
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "host/bandwidth.h"
#include "host/large.h"
#include "host/links.h"
#include "host/netd_protocol.h"
#include "host/owner_network.h"
#include "host/poller.h"
#include "host/unix_socket.h"
#include "net/udp_sender.h"
#include "overlay/member.h"
#include "overlay/offload.h"
#include "overlay/shaper.h"
#include "overlay/udp_relay.h"
#include "relay/client.h"

namespace muster::host {

// Off: bulk goes as fast as it comes wherever no owner's cap says otherwise.
enum class Pacing : std::uint8_t { On, Off };
// What the owner says of ways, and which of them lead into tunnels; netd's, for all leases.
struct Outside {
  explicit Outside(std::string owner_file) : owner(std::move(owner_file)) {}
  OwnerNetworkFile owner;
  WayGuard ways;
  std::string mapped;  // session::NetReport::mapped
};
// Off: what goes by a relay goes over TLS only.
enum class UdpRelay : std::uint8_t { On, Off };
// Ray's object manager listens here in every container (PORTS of ray_helper.py): what it moves is bulk.
inline constexpr std::uint16_t kBulkPort = 6381;

class NetdLease : overlay::Out, overlay::Coalescer::Sink {
 public:
  // Shared by all leases; stays netd's, who flushes the sender after each call.
  struct Shared {
    net::UdpSender& udp;
    Poller& poller;
    Bandwidth& bandwidth;
    Large& large_udp;
    Outside& outside;
    overlay::Crew& crew;
    Pacing pacing = Pacing::On;
    UdpRelay udp_relay = UdpRelay::On;
    LargeMode tun_large = LargeMode::Auto;
    std::string_view tun_fault = {};  // KernelFaults::tun_joins
  };
  static Result<std::unique_ptr<NetdLease>> open(const std::string& name, const std::string& state_dir,
                                                 const Shared& shared);
  ~NetdLease();
  const crypto::Key32& public_key() const { return key_.public_key; }
  bool has_tun() const { return static_cast<bool>(tun_); }
  bool configured() const { return member_ != nullptr; }
  Status set_tun(Fd tun);  // refuses what is no TUN
  Result<netd::Configured> configure(const netd::Configure& config);
  Status set_relays(const netd::SetRelays& request);
  void from_udp(std::uint32_t ip, std::uint16_t port, ByteView datagram, const Now& now);
  void from_udp6(const Ip6& ip, std::uint16_t port, ByteView datagram, const Now& now);
  void open_ahead(std::span<const ByteView> datagrams, const Now& now) {
    if (member_) member_->open_ahead(datagrams, crew_, now);
  }
  // Of the UDP side of a relay (overlay/udp_relay.h); false: of none of ours.
  bool from_udp_relay(const overlay::Endpoint& from, ByteView datagram, const Now& now);
  void moved(bool elsewhere, bool slept_long, const Now& now);
  // Where to ask how our socket is seen: the UDP port of each relay that we are connected to, and its second one.
  struct MirrorAt {
    overlay::Endpoint at;
    std::uint16_t second_port = 0;  // 0: none
  };
  std::vector<MirrorAt> mirrors() const;
  bool take_relay_came_up() { return std::exchange(relay_came_up_, false); }
  void set_public(const std::vector<overlay::Endpoint>& endpoints, const Now& now);
  void obey_owner(const Now& now);  // he said something else of ways
  void flush();                     // what from_udp() joined goes into the TUN
  void tick(const Now& now);
  netd::Stats stats() const;
  using UdpRtt = std::function<std::uint32_t(std::uint32_t ip, std::uint16_t port)>;
  netd::Paths paths(const Now& now, const UdpRtt& of_mirror);  // without netd's own port
  void erase_files();

 private:
  void keep_stamps(WallTime latest);
  struct Inbox;
  class Exit;
  struct Relay {
    std::uint64_t number = 0;  // the client's for its life; the place in the list may change
    netd::RelayAddress at;
    std::string region;
    Bytes token;
    std::unique_ptr<relay::Client> client;
    struct Udp {
      overlay::UdpMemberLeg leg;
      overlay::Endpoint at;
      std::uint16_t other_port = 0;   // of the two the one that is not tried now; 0: there is one only
      std::uint16_t second_port = 0;  // as the relay told it
    };
    std::shared_ptr<Udp> udp;  // null: this relay offers none, or TLS is all that leads there
    bool by_udp() const { return udp != nullptr && udp->leg.usable(); }
  };
  NetdLease(std::string name, std::string state_dir, const Shared& shared);
  void take_udp(std::size_t relay, std::shared_ptr<Relay::Udp> udp, const Now& now);
  void changed_udp(std::size_t relay, const Now& now);
  void ask_udp(std::size_t relay, const Now& now);
  void put_udp(const overlay::Endpoint& to, ByteView datagram);
  void to_relay(std::size_t relay, const crypto::Key32& member, ByteView datagram) override;
  void to_udp(std::uint32_t ip, std::uint16_t port, ByteView datagram) override;
  void to_udp6(const Ip6& ip, std::uint16_t port, ByteView datagram) override;
  void to_tun(ByteView packet) override;
  bool may_reach(const overlay::Endpoint& to) override;
  bool may_carry(std::size_t bytes) override;
  void took_test(std::size_t bytes) override { bandwidth_.tests.count(bytes); }
  std::uint64_t micros() const override;
  void apart() override { udp_.flush(); }
  bool compares(const overlay::Endpoint& way) const override;
  void fared(std::uint32_t member, std::uint64_t sent, std::uint64_t lost) override;
  bool write(const overlay::OffloadHeader& header, ByteView packet) override;
  void look_at_large(const Now& now);
  void read_tun();
  void from_tun(std::span<std::uint8_t> read, const Now& now);
  bool relay_has_room(std::size_t relay) const;
  overlay::Shaper::Way way(std::uint32_t to) const;
  void pump(const Now& now);
  void add_rates(session::NetPair& pair, LeaseTime now);
  void pump_and_flush();
  void look_for_test(const Now& now);
  void go_on_testing();
  void end_test(const Now& now, const char* why);
  void drain();
  void want_relays(std::vector<Relay> wanted, bool all_anew);
  void connect(Relay& relay);
  void announce_relays(const Now& now);
  Result<std::optional<overlay::MachineProofs>> vouched(const netd::Configure& config);
  void close_tun();
  std::string file(const char* suffix) const { return state_dir_ + "/" + name_ + suffix; }

  std::string name_, state_dir_;
  net::UdpSender& udp_;
  Poller& poller_;
  Bandwidth& bandwidth_;
  Large& large_udp_;
  Large large_tun_;
  overlay::Coalescer::Counts counted_;  // of arriving_, when last looked at
  bool compares_udp_ = false;
  Outside& outside_;
  const Pacing pacing_;
  const UdpRelay udp_relay_;
  overlay::Crew& crew_;
  crypto::X25519Pair key_;
  Fd tun_;
  bool offloads_ = false;  // of the TUN
  std::optional<overlay::Coalescer> arriving_;
  overlay::Shaper leaving_{kBulkPort};
  std::uint64_t pump_timer_ = 0;
  bool pumped_bulk_ = false, bulk_waits_ = false;
  std::uint32_t address_ = 0;
  std::uint8_t prefix_bits_ = 0;
  crypto::Secret32 psk_;
  overlay::RosterGuard guard_;
  bool came_back_ = false;  // was a member in an earlier life, and has told nobody yet
  // Handshakes of this life are stamped from here on, and not past `stamps_kept_` before the disk knows: a restart on a
  // clock that was set back would otherwise be ignored by its peers.
  WallTime stamps_from_, stamps_kept_;
  std::unique_ptr<overlay::Member> member_;
  WallTime counted_from_;  // member_ is as old: what it counts began then
  std::vector<overlay::Endpoint> public_;
  bool relay_came_up_ = false;
  std::string machine_ca_pem_;
  std::unique_ptr<crypto::MachineVerifier> machines_;  // of that CA
  Bytes relay_token_;                                  // of those that came with Configure
  bool relays_set_ = false;                            // by set_relays
  std::string relay_ca_pem_, relay_server_name_;
  std::vector<Relay> relays_;
  std::uint64_t next_relay_ = 1;
  struct Seen {
    LeaseTime at;
    std::uint64_t rx_bytes = 0, tx_bytes = 0, rx_bytes_s = 0, tx_bytes_s = 0;
  };
  std::map<std::uint32_t, Seen> seen_;  // by overlay address: what paths() saw last
  // A test of how much one idle direct way carries: the rate rises until an end is met, or a limit.
  struct Test {
    std::uint32_t to = 0;
    std::uint64_t began_us = 0, last_us = 0;
    std::size_t sent = 0;
    double bytes_s = 0;
  };
  std::optional<Test> test_;
  std::uint64_t test_timer_ = 0;
  std::size_t tun_bytes_ = 0;  // of programs, since the test began
  struct Quiet {
    std::uint64_t bytes = 0;
    LeaseTime since;
  };
  std::map<std::uint32_t, Quiet> quiet_;  // by overlay address
  LeaseTime looked_for_test_{0};
  std::shared_ptr<Inbox> inbox_;
  Bytes buffer_, wrapped_;
};

}  // namespace muster::host
