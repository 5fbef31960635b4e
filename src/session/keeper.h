#pragma once
// What the control plane keeps beside the core, on LeaseTime and in memory only: who is heard, whose lease was renewed,
// who acknowledged which roster, who speaks for which machine. tick() compares that with what the core holds and says
// what the core is to be told. Level-triggered: a verdict comes again every `repeat` until the core agrees, so a
// refused or lost command is asked anew, and a freeze that the journal remembers is taken over, not forgotten. heard()
// is thread-safe; all else is for one thread at a time.
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "model/types.h"
#include "session/directory.h"
#include "session/lease_table.h"
#include "session/liveness.h"
#include "session/roster_table.h"

namespace muster::session {

// The core's side, answered from durable state.
class CoreView {
 public:
  struct Roster {
    std::uint64_t epoch = 0;
    std::vector<RosterMember> members;
  };
  virtual ~CoreView() = default;
  virtual bool frozen() const = 0;
  virtual std::optional<NodeState> state_of(NodeId node) const = 0;
  virtual std::optional<Roster> roster_of(ClusterId cluster) const = 0;  // nothing: the cluster has ended
};

struct Verdicts {
  std::optional<FreezeTurned> freeze;            // -> SetFreeze
  std::vector<NodeId> suspect, lost, contested;  // -> NodeSuspect, NodeLost, NodeContested
  std::vector<NodeId> again;                     // heard, but the core thinks otherwise: their sessions report again
  std::vector<LeaseId> expired, late;            // -> LeasesExpired, RostersLate
};

class Keeper {
 public:
  struct Options {
    LivenessOptions liveness;
    Directory::Options directory;
    RosterOptions rosters;
    Millis lease{2'400'000};
    Millis repeat{3000};
  };
  // What the journal says when leadership begins. `nodes`: those that were heard when it was written, and if `frozen`
  // also those that were lost since the freeze began.
  struct Start {
    std::vector<std::pair<NodeId, std::string>> nodes;  // and their failure domains
    std::vector<LeaseId> leases;
    std::vector<ClusterId> clusters;
    bool frozen = false;
  };
  explicit Keeper(Options options)
      : options_(options),
        liveness_(options.liveness),
        leases_(options.lease),
        rosters_(options.rosters),
        directory_(options.directory) {}
  void start(const Start& start, const CoreView& core, LeaseTime now);

  // From the sessions.
  void heard(NodeId node, const std::string& domain, LeaseTime now) { liveness_.heard(node, domain, now); }
  void granted(LeaseId lease, LeaseTime now) { leases_.granted(lease, now); }
  void renewed(LeaseId lease, LeaseTime now) { leases_.renewed(lease, now); }
  void acknowledged(LeaseId lease, std::uint64_t roster_epoch) { rosters_.acknowledged(lease, roster_epoch); }
  // From the journal.
  void lease_ended(LeaseId lease) { leases_.ended(lease), rosters_.ended(lease); }
  void roster_changed(ClusterId cluster) { rosters_dirty_.insert(cluster); }
  void contested_taken(NodeId node) { contested_.erase(node), directory_.forget(node); }
  void forget(NodeId node) { liveness_.forget(node); }  // revoked: its silence means nothing

  // Every second. While not leading only the clocks move on.
  Verdicts tick(LeaseTime now, const CoreView& core, bool leading);

  Directory& directory() { return directory_; }
  bool frozen() const { return liveness_.frozen(); }
  const Liveness& liveness() const { return liveness_; }
  const LeaseTable& leases() const { return leases_; }
  const RosterTable& rosters() const { return rosters_; }

 private:
  void judge_nodes(LeaseTime now, const CoreView& core, Verdicts& out);
  void judge_freeze(LeaseTime now, const CoreView& core, Verdicts& out);
  bool due(LeaseTime& asked, LeaseTime now) const;

  Options options_;
  Liveness liveness_;
  LeaseTable leases_;
  RosterTable rosters_;
  Directory directory_;
  std::set<NodeId> doubtful_;  // to be compared with the core
  std::map<NodeId, std::pair<Heard, LeaseTime>> asked_;
  std::set<ClusterId> rosters_dirty_;
  std::set<NodeId> contested_;
  std::string freeze_reason_;
  std::optional<bool> freeze_told_;
  LeaseTime freeze_asked_{0}, expired_asked_{0}, late_asked_{0}, contested_asked_{0};
  std::size_t sweep_ = 0;
};

}  // namespace muster::session
