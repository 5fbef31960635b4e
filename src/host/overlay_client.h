#pragma once
// OverlayPort over netd's local socket: requests answered in order. The agent fetches a lease's TUN from privd and
// hands it on. After a restart of netd everything attached and configured is told to it again; after the agent's own
// restart what its OverlayStore kept of an attached lease is, without the control plane. Poller's thread only.
#include <deque>
#include <memory>

#include "host/overlay_port.h"
#include "host/overlay_store.h"
#include "host/privd_client.h"
#include "net/net.h"

namespace muster::host {

struct OverlayTrust {
  std::string relay_ca_pem, relay_server_name{net::kRelayName};
};

class OverlayClient : public OverlayPort {
 public:
  OverlayClient(Poller& poller, PrivdClient& privd, std::string socket, std::string store, OverlayTrust trust);
  ~OverlayClient() override;
  // Before the first attach: nothing older than this comes back from the store.
  void refuse_older_than(std::map<ClusterId, std::uint64_t> epochs) { store_.refuse_older_than(std::move(epochs)); }
  // Other roots, or other CAs under them: for what stands already too.
  void believe(const std::string& ca_pem);
  // Tries for some seconds while privd or netd are being restarted.
  void attach(const Attach& attach, std::function<void(Result<Attached>)> done) override;
  void configure(const agent::ConfigureNetwork& network, const Bytes& roster_key,
                 std::function<void(Status)> done) override;
  void detach(LeaseId lease, bool forget_key, std::function<void(Status)> done) override;
  void keep_only(const std::set<LeaseId>& leases) override { store_.keep_only(leases); }
  std::vector<std::string> lan_endpoints() const override;
  std::uint16_t udp_port() const { return udp_port_; }
  bool idle() const { return known_.empty(); }
  // Where members get in at the router; told to a restarted netd again.
  void set_mapped(netd::SetMapped mapped);
  // How each lease's network stands, as netd said a few seconds ago: members and the ways to them.
  const std::map<LeaseId, netd::Stats>& networks() const { return networks_; }
  // The same with what was tried; nothing of a netd that is older than this agent.
  const std::map<LeaseId, netd::Paths>& paths() const { return paths_; }

 private:
  using Done = std::function<void(Result<netd::Reply>)>;
  struct Known {
    Attach attach;
    std::optional<netd::Configure> configured;
    netd::SetRelays relays = {};
  };
  void connect();
  void tell_mapped();
  void lost();
  void on_readable();
  void send(const netd::Request& request, Done done, int fd = -1);
  void send_relays(LeaseId lease, const Known& known);
  void restore(LeaseId lease, Known& known);
  void look();
  void announce(LeaseId lease, int tries, std::function<void(Result<Attached>)> done);
  void hand_over(LeaseId lease, std::function<void(Result<Bytes>)> done);

  Poller& poller_;
  PrivdClient& privd_;
  std::string path_;
  OverlayStore store_;
  OverlayTrust trust_;
  Fd fd_;
  std::uint64_t retry_ = 0;
  std::deque<Done> waiting_;
  std::map<LeaseId, Known> known_;
  std::map<LeaseId, netd::Stats> networks_;
  std::map<LeaseId, netd::Paths> paths_;
  std::uint16_t udp_port_ = 0;
  std::optional<netd::SetMapped> mapped_;  // empty: a netd of before keeps what it was told
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

// "ip:port" of every private IPv4 address of this machine, for members on the same network; none of a tunnel, or of a
// bridge to which only containers are plugged.
std::vector<std::string> private_endpoints(std::uint16_t port);

}  // namespace muster::host
