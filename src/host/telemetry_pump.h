#pragma once
// The agent's clock of seconds: samples the machine and its containers at 1 Hz, sends each second while somebody
// watches and a roll-up every 15 to 20 s otherwise, and hears with the same question what the owner's limits say. A
// privd that does not answer leaves the containers out and the last word standing. Poller's thread only.
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/rng.h"
#include "host/owner.h"
#include "host/privd_client.h"
#include "host/telemetry.h"

namespace muster::host {

class TelemetryPump {
 public:
  struct Hooks {
    std::function<bool()> online;
    std::function<void(session::Telemetry)> send;
    std::function<void(const Gate&)> owner;  // every second
  };
  TelemetryPump(Poller& poller, PrivdClient& privd, std::string disk_path, std::uint64_t seed, Hooks hooks);
  ~TelemetryPump();
  void start();
  void set_live(bool live) { live_ = live; }
  void look();                                                                          // now, not with the next second
  void add_relays(std::vector<session::RelaySeen> seen) { relays_ = std::move(seen); }  // to what goes out next
  void tell_soon();  // the next second goes out whatever the roll-up says
  const session::Telemetry& latest() const { return latest_; }
  const Gate& gate() const { return gate_; }

 private:
  struct Before {
    std::uint64_t cpu_ns = 0, rx = 0, tx = 0;
    LeaseTime at;
  };
  void second();
  void taken(const Result<PrivdReply>& reply);
  void add_containers(session::Telemetry& sample, const json::array& rows, LeaseTime now);
  void tell(const session::Telemetry& sample, LeaseTime now);

  Poller& poller_;
  PrivdClient& privd_;
  Hooks hooks_;
  Rng rng_;
  Sampler sampler_;
  RollUp rollup_;
  session::Telemetry latest_;
  std::vector<session::RelaySeen> relays_;
  Gate gate_;
  std::map<LeaseId, Before> before_;
  LeaseTime next_rollup_{0};
  std::uint64_t timer_ = 0;
  bool live_ = false, asking_ = false, again_ = false;
  std::shared_ptr<bool> alive_;
};

}  // namespace muster::host
