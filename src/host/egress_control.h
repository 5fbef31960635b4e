#pragma once
// privd's side of the way out of containers: for each lease with egress it opens the listeners inside the namespace,
// sets the routes and the nat table there, and hands the listeners to the egress process; in the machine's namespace it
// keeps the table `inet muster` that holds that process to the owner's rules. Tables that somebody flushes or changes
// are set again at once; a process that was restarted gets the same listeners; while the table cannot be set nothing
// may pass. The owner's policy, the resolvers and the machine's addresses are followed as they change. The month's
// volume is kept on disk. One thread of its own; everything else under one mutex.
#include <sys/types.h>

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "host/egress_port.h"
#include "host/layout.h"
#include "host/policy.h"
#include "host/unix_socket.h"

namespace muster::host {

struct EgressControlOptions {
  Layout layout;
  uid_t egress_uid = kEgressUid;
};

class EgressControl : public EgressPort {
 public:
  explicit EgressControl(EgressControlOptions options);
  ~EgressControl() override;
  Status start();
  void adopt(const std::vector<LeaseWay>& ways) override;  // also removes what is left over without any
  Status open(const LeaseWay& way) override;
  void close(const std::string& lease) override;
  EgressReport report(bool flows) override;

 private:
  struct Way;
  void run();
  void round();
  Status open_inside(Way& way);
  Status hand_over(Way& way);
  Result<EgressReport> ask(const EgressOrder& order, const std::vector<int>& fds = {});
  bool connect();
  Status sync(bool force);
  EgressConfig wanted_config(const Policy& policy) const;
  Status assert_table(const EgressConfig& config);
  void check_tables();
  void forget(std::map<std::string, std::unique_ptr<Way>>::iterator it);
  void count_volume();
  void load_volume();
  void save_volume();
  void wake() const;

  EgressControlOptions options_;
  std::mutex mutex_;
  std::thread thread_;
  Fd wake_, rules_watch_, address_watch_, process_;
  bool stopping_ = false, rules_dirty_ = false, table_up_ = false;
  std::string asserted_;         // the text we set
  std::string worded_, listed_;  // a text, and its table in nft's words
  std::int64_t set_again_ms_ = 0;
  std::string fault_;  // said already
  std::map<std::string, std::unique_ptr<Way>> ways_;
  std::optional<EgressConfig> told_;  // what the connected process has
  std::uint64_t process_bytes_ = 0;   // its count when last asked
  std::string month_;
  std::uint64_t month_bytes_ = 0, month_saved_ = 0;
  std::int64_t asked_ms_ = 0;
};

// The addresses and networks that this machine is in, and the resolvers it uses: for the rules.
std::vector<egress::Prefix> machine_networks();
std::vector<egress::Ip> machine_resolvers(const std::string& path = "/etc/resolv.conf");

}  // namespace muster::host
