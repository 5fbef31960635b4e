#pragma once
// netd: the process that carries packets. It holds TUN, UDP and relay descriptors and overlay keys, nothing else, and
// obeys the agent over a local socket (netd_protocol.h); it lives on when the agent restarts. After its own restart it
// finds its keys, its UDP port and the highest rosters in its state directory; the agent gives it the TUNs and the
// configuration again. One thread, helpers for its packets (thread_crew.h); relay clients bring theirs. Bounds: leases,
// agent connections.
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "host/bandwidth.h"
#include "host/netd_lease.h"
#include "host/thread_crew.h"
#include "net/udp_receiver.h"
#include "overlay/stun.h"

namespace muster::host {

struct NetdOptions {
  std::string state_dir;                     // 0700, ours
  int socket_fd = -1;                        // inherited: a listening or a connected SOCK_SEQPACKET socket; or
  std::string socket_path;                   // listen here (0600)
  std::uint16_t udp_port = 0;                // 0: the one of last time, else any
  std::string bandwidth_file;                // "up down" bytes per second, written by privd; empty = no cap
  std::string network_file;                  // what the owner says of ways (owner_network.h), as that
  uid_t agent_uid = static_cast<uid_t>(-1);  // who may connect besides root; -1: our own uid
  Pacing pacing = Pacing::On;
  UdpRelay udp_relay = UdpRelay::On;
  std::size_t helpers = 0;  // threads that help to seal and open packets
  LargeMode udp_large = LargeMode::Auto, tun_large = LargeMode::Auto;
  std::string kernel;              // its release; empty: nothing is known against it
  int udp_fd = -1, udp6_fd = -1;   // inherited: not bound yet, with large buffers; else ones of our own
  std::vector<int> spare_udp_fds;  // more of them, one for each time that the machine gets another IPv4 address
};

class Netd {
 public:
  explicit Netd(NetdOptions options);
  ~Netd();
  Status start();
  void run();   // until stop()
  void stop();  // from any thread
  std::uint16_t udp_port() const { return port_; }

 private:
  Status open_udp();
  Status bind_udp(std::uint16_t port);
  Status keep_port() const;
  void take_another_port();
  bool take_port(std::uint16_t port);
  std::uint16_t fixed_port() const;
  void obey_owner(const Now& now);
  void open_udp6();
  void accept_agent();
  void add_agent(Fd fd);
  void serve_agent(int fd);
  void read_udp(int fd);
  void look_around(const Now& now);
  void ask_mirrors(const Now& now);
  std::vector<overlay::Endpoint> public_endpoints();
  void tell_public(const Now& now);
  void look_at_large(const Now& now);
  NetdLease::Shared shared();
  bool from_mirror(ByteView datagram, std::uint32_t ip, std::uint16_t port, const Now& now);
  void from_udp(ByteView datagram, const overlay::Endpoint& from, const Now& now);
  void read_many(const Now& now);
  void tick();
  netd::Reply answer(const netd::Request& request, std::vector<Fd>& fds);
  Result<netd::Reply> handle(const netd::AddLease& request, std::vector<Fd>& fds);
  Result<netd::Reply> handle(const netd::Configure& request, std::vector<Fd>& fds);
  Result<netd::Reply> handle(const netd::RemoveLease& request, std::vector<Fd>& fds);
  Result<netd::Reply> handle(const netd::GetStats& request, std::vector<Fd>& fds);
  Result<netd::Reply> handle(const netd::GetInfo& request, std::vector<Fd>& fds);
  Result<netd::Reply> handle(const netd::GetPaths& request, std::vector<Fd>& fds);
  Result<netd::Reply> handle(const netd::SetRelays& request, std::vector<Fd>& fds);
  Result<netd::Reply> handle(const netd::SetMapped& request, std::vector<Fd>& fds);
  Result<NetdLease*> find(const std::string& lease);

  NetdOptions options_;
  Poller poller_;
  Fd listener_, udp_, udp6_;  // udp6_: where the machine has IPv6
  std::uint16_t port_ = 0, port6_ = 0;
  std::optional<std::uint32_t> at_;  // our own address towards the first mirror
  std::optional<Ip6> at6_;
  LeaseTime ticked_, next_look_;
  bool ask_now_ = false;  // the mirrors
  Outside outside_;
  netd::SetMapped mapped_;
  std::uint16_t asked_port_ = 0;  // by the owner, and not free when last tried
  LeaseTime next_port_try_;
  net::UdpSender sender_;
  KernelFaults faults_;
  Large large_udp_;
  Bandwidth bandwidth_;
  std::map<int, Fd> agents_;
  struct Mirror {
    overlay::StunTransaction transaction{};
    LeaseTime next_ask{0};
    int unanswered = 0;
    std::uint64_t asked_us = 0;
    std::uint32_t rtt_us = 0;  // smoothed; 0 = not known
    std::optional<overlay::Endpoint> seen;
  };
  std::map<std::pair<std::uint32_t, std::uint16_t>, Mirror> mirrors_;  // by the relay's address and port
  ThreadCrew crew_;
  std::map<std::string, std::unique_ptr<NetdLease>> leases_;
  net::UdpReceiver received_;
  std::vector<overlay::Endpoint> senders_;  // of arrived_; both live for one turn
  std::vector<ByteView> arrived_;
};

// An UDP socket with the buffers that a fast tunnel wants; before a process gives its privileges up it may take more
// than the machine's usual limit. Nothing it sends is ever cut on the way, or here: what is too large for a way is
// lost, as probes must be to find that out.
enum class UdpFamily : std::uint8_t { Four, Six };
Fd open_udp_socket(UdpFamily family = UdpFamily::Four);

Status run_netd(NetdOptions options);  // with SIGTERM and SIGINT to end it; the body of `muster-agent netd`

}  // namespace muster::host
