#pragma once
// Headroom for failovers, where plans are committed: a start, and growth that replaces nothing, never takes one of the
// last machines of a model that an operator keeps back. The planner chooses by the same rule; this is the second look,
// by the state as it is then. Private to control.
#include <map>
#include <set>
#include <string>
#include <vector>

#include "control/draft.h"

namespace muster::control {

// The machines of one model that are wholly free, while the groups of one plan are committed to a draft.
class HeadroomLeft {
 public:
  // May these machines go to this cluster? failover: it may use what is kept back for its tier.
  bool allows(const Draft& d, const Cluster& cluster, const std::vector<NodeId>& nodes, bool failover);
  void took(const Draft& d, NodeId node);  // told before the grant is emitted

 private:
  const Headroom* row_of(const Draft& d, NodeId node) const;  // of a machine that is wholly free
  void count(const Draft& d);
  bool counted_ = false;
  std::map<std::string, std::uint32_t> free_;
  std::set<NodeId> taken_;
};

}  // namespace muster::control
