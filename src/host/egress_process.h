#pragma once
// The egress process: the one way out of containers, for the leases that privd gives it. It has an own uid, no
// capabilities, a list of allowed system calls without files or programs, and privd's socket. A lease's listeners were
// opened inside the lease's namespace and arrive as descriptors; what connects to them is judged by where it was going
// (egress/rules.h) and carried on from the machine's own namespace. Without privd it goes on as it was told last. One
// thread. Bounds: leases, flows a lease and in all, questions a lease, new flows a second.
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "egress/bucket.h"
#include "host/egress_dns.h"
#include "host/egress_flow.h"
#include "host/egress_protocol.h"

namespace muster::host {

class EgressProcess : FlowHost {
 public:
  // control_fd: inherited, a listening SOCK_SEQPACKET socket, closed with us; only `peer_uid` may connect.
  EgressProcess(int control_fd, uid_t peer_uid);
  ~EgressProcess() override;
  Status start();
  void run();   // until stop()
  void stop();  // from any thread

 private:
  struct Lease;
  struct Asker;
  void accept_privd();
  void serve_privd();
  Result<EgressReport> obey(const EgressOrder& order, std::vector<Fd>& fds);
  void configure(const EgressConfig& config);
  Status add(const std::string& name, std::vector<Fd>& fds);
  void remove(const std::string& name);
  EgressReport report(bool flows) const;

  void accept_flows(Lease& lease, int listener);
  void open_flow(Lease& lease, Fd inside);
  void refuse(Lease& lease, std::string what, std::string code);
  void read_questions(Lease& lease, std::size_t family);
  void answered(Lease& lease, const DnsForwarder::Outcome& outcome);
  void open_asker(Lease& lease, Fd fd);
  void serve_asker(std::uint64_t id);
  void close_asker(std::uint64_t id);
  void listen_to(Lease& lease, bool on);
  void tick();
  void cut(const std::function<bool(const Flow&)>& which);

  std::size_t may_pass(Way way, std::size_t wanted) override;
  void passed(Flow& flow, Way way, std::size_t allowed, std::size_t bytes) override;
  void wait_for_rate(Flow& flow, Way way) override;
  void closed(Flow& flow, bool connected) override;
  void resume_waiting();

  Poller poller_;
  Fd control_, privd_;
  uid_t peer_uid_;
  EgressConfig config_;
  bool configured_ = false, resuming_ = false, ticking_ = false;
  egress::Bucket rate_[2];
  std::uint64_t bytes_ = 0;
  DnsForwarder dns_;
  std::map<std::string, std::unique_ptr<Lease>> leases_;
  std::map<std::uint64_t, std::unique_ptr<Flow>> flows_;
  std::map<std::uint64_t, std::unique_ptr<Asker>> askers_;
  std::deque<std::pair<std::uint64_t, Way>> waiting_;
  std::uint64_t next_ = 1;
};

// Until a signal ends it: there is nothing to save. confine() is called once everything that needs more is made.
Status run_egress_process(int control_fd, uid_t peer_uid, const std::function<Status()>& confine);

}  // namespace muster::host
