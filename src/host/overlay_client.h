#pragma once
// OverlayPort over netd's local socket: requests answered in order. The agent fetches a lease's TUN from privd and
// hands it on. After a restart of netd everything attached and configured is told to it again. Poller's thread only.
#include <deque>

#include "host/netd_protocol.h"
#include "host/overlay_port.h"
#include "host/privd_client.h"

namespace muster::host {

struct OverlayTrust {
  std::string relay_ca_pem, relay_server_name = "muster";
};

class OverlayClient : public OverlayPort {
 public:
  OverlayClient(Poller& poller, PrivdClient& privd, std::string socket, OverlayTrust trust);
  ~OverlayClient() override;
  void attach(const Attach& attach, std::function<void(Result<Bytes>)> done) override;
  void configure(const agent::ConfigureNetwork& network, const Bytes& roster_key,
                 std::function<void(Status)> done) override;
  void detach(LeaseId lease, bool forget_key, std::function<void(Status)> done) override;
  std::vector<std::string> lan_endpoints() const override;
  std::uint16_t udp_port() const { return udp_port_; }

 private:
  using Done = std::function<void(Result<netd::Reply>)>;
  struct Known {
    Attach attach;
    std::optional<netd::Configure> configured;
  };
  void connect();
  void lost();
  void on_readable();
  void send(const netd::Request& request, Done done, int fd = -1);
  void hand_over(LeaseId lease, std::function<void(Result<Bytes>)> done);

  Poller& poller_;
  PrivdClient& privd_;
  std::string path_;
  OverlayTrust trust_;
  Fd fd_;
  std::uint64_t retry_ = 0;
  std::deque<Done> waiting_;
  std::map<LeaseId, Known> known_;
  std::uint16_t udp_port_ = 0;
};

// "ip:port" of every private IPv4 address of this machine, for members on the same network.
std::vector<std::string> private_endpoints(std::uint16_t port);

}  // namespace muster::host
