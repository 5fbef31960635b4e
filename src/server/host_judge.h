#pragma once
// Which machines may be hired, by the holes that are known in what they run containers with (scan/known_holes.h). A
// machine says its versions, here they are judged: at each new report, and for all of them whenever the table, the
// operator's policy or the day changed (refresh). The verdict goes to the core, which places nothing new on a machine
// that is held. What the machine says is a claim: one that lies is hired. Thread-safe.
//   DIR/known-holes.json  the operator's table; in force while its day is not before the built-in one's
//   DIR/hole-policy.json  exceptions, and what to do with what is not known
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "control/core.h"
#include "scan/known_holes.h"
#include "server/context.h"

namespace muster::server {

class HostJudge {
 public:
  explicit HostJudge(Context& context);
  // Reads both files again and judges all machines. A faulty file changes nothing of what is in force; the error says
  // which.
  Status refresh();
  // Of facts as a machine reported them: what it does not say any more is taken from its last report, so that silence
  // heals nothing.
  std::string judge(NodeId node, NodeFacts& facts) const;
  std::vector<scan::HoleFinding> findings(const Node& node) const;

 private:
  struct Rules {
    scan::HoleTable table;
    scan::HolePolicy policy;
  };
  std::shared_ptr<const Rules> rules() const;
  void judge_all(const Rules& rules);

  Context& context_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Rules> rules_;
};

}  // namespace muster::server
