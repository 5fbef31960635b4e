#pragma once
// The ways out of sites as something that is used up: what machines and their owners say of them, what leases have
// stated, and the second look when a plan is committed. The machines of one supplier whose label `site` is the same
// share an uplink, as wide as the narrowest of them says; a machine without that label is a site of its own. Limits of
// an owner and what is left of a month's volume are the machine's own, as its agent reports them. kbit/s and bytes.
// Private to control.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "control/draft.h"

namespace muster::control {

using SiteKey = std::pair<OrgId, std::string>;
std::string site_of(const Node& node);  // empty: a site of its own

struct LinkSaid {  // 0: nothing is said, no limit
  std::int64_t up_kbps = 0, down_kbps = 0, lan_kbps = 0, own_up_kbps = 0, own_down_kbps = 0;
  std::int64_t volume_left = -1;  // of the machine's month; -1: no limit
};
LinkSaid link_of(const Node& node);
Traffic stated_traffic(const State& state, NodeId node);  // by its leases

// Traffic of the places of one group that is being committed, as far as none of them is granted yet.
class TrafficLeft {
 public:
  // Is there so much left for one more lease on this machine? Then it counts from now on. Looks at every machine of
  // the site that has leases.
  bool take(Draft& d, NodeId node, const Traffic& need);

 private:
  std::map<SiteKey, Traffic> more_;
};

}  // namespace muster::control
