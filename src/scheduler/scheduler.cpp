// Incremental planning. Requests that need the same are one class and wait together: when the first of a class finds no
// place, no other does, so a plan looks at class heads only, and only at classes that something woke: a new request, or
// a machine that got better and could host one of their bundles.
#include "scheduler/scheduler.h"

#include <algorithm>
#include <deque>
#include <set>

#include "scheduler/match.h"
#include "scheduler/pool_packing.h"
#include "scheduler/queue_order.h"

namespace muster::scheduler {
namespace {

constexpr Millis kProposalLife{5'000};      // a proposal that nothing came of is made anew after it
constexpr std::int64_t kLatchMs = 600'000;  // the oldest request waits no longer than this behind those that fit better
constexpr std::size_t kCandidates = 64, kGpuCandidates = 256;  // compared by score beyond what is needed
constexpr std::size_t kImprovedMax = 256;                      // more at once: every class is looked at again
constexpr std::size_t kHeadsPerPlan = 20'000, kChecksPerPlan = 400'000;

// What all members of a class have in common. Requests with exclusions of their own are a class of their own.
struct ClassKey {
  OrgId tenant;
  std::string pool, arch, image;
  RuntimeKind runtime = RuntimeKind::Docker;
  bool egress = false;
  ClusterId own;
  std::vector<Bundle> gang;
};
bool less(const NodeRequest& a, const NodeRequest& b) {
  const auto tie = [](const NodeRequest& r) {
    return std::tie(r.resources.cpu_milli, r.resources.memory_bytes, r.resources.gpus, r.resources.disk_bytes,
                    r.whole_machine, r.gpu_model, r.constraints, r.pinned);
  };
  return tie(a) < tie(b);
}
bool less(const Bundle& a, const Bundle& b) {
  if (a.role != b.role) return a.role < b.role;
  return less(a.request, b.request);
}
struct ClassLess {
  bool operator()(const ClassKey& a, const ClassKey& b) const {
    const auto tie = [](const ClassKey& k) {
      return std::tie(k.own, k.tenant, k.pool, k.arch, k.image, k.runtime, k.egress);
    };
    if (tie(a) != tie(b)) return tie(a) < tie(b);
    return std::lexicographical_compare(a.gang.begin(), a.gang.end(), b.gang.begin(), b.gang.end(),
                                        [](const Bundle& x, const Bundle& y) { return less(x, y); });
  }
};
struct Class {
  std::size_t members = 0;
  bool awake = true;
  std::uint64_t stuck_in = 0; /* pass that found no place for its first */
};
using Classes = std::map<ClassKey, Class, ClassLess>;
struct Waiting {
  Request request;
  Classes::iterator home;
};

struct NodeEntry {
  NodeView view;
  std::map<ClusterId, std::vector<Place>> held;
  NodeView free; /* view minus held */
};
struct Proposal {
  WallTime expires;
  std::vector<NodeId> nodes;
};

bool alone(const Request& r) {
  return r.gang.empty() || !r.backoff.empty() || !r.avoid.empty();
}
ClassKey key_of(const Request& r) {
  if (alone(r)) return {.own = r.cluster};
  ClassKey key{r.pool == "own" ? r.tenant : OrgId{}, r.pool, r.arch, r.image, r.runtime, r.egress, {}, r.gang};
  std::sort(key.gang.begin(), key.gang.end(), [](const Bundle& a, const Bundle& b) { return less(a, b); });
  return key;
}

struct Need {
  const Bundle* bundle = nullptr;
  std::size_t count = 0;
};
// Equal bundles together, the most demanding first, so that a small one does not take the only large machine.
std::vector<Need> needs_of(const std::vector<Bundle>& bundles) {
  std::vector<Need> needs;
  for (const Bundle& bundle : bundles) {
    auto it = std::find_if(needs.begin(), needs.end(), [&](const Need& n) { return *n.bundle == bundle; });
    if (it == needs.end())
      needs.push_back({&bundle, 1});
    else
      ++it->count;
  }
  std::stable_sort(needs.begin(), needs.end(), [](const Need& a, const Need& b) {
    const auto weight = [](const Need& n) {
      const NodeRequest& r = n.bundle->request;
      return std::tuple(r.pinned.empty() ? 0 : 1, r.whole_machine ? 1 : 0, r.resources.gpus, r.constraints.size(),
                        r.resources.cpu_milli, r.resources.memory_bytes);
    };
    return weight(a) > weight(b);
  });
  return needs;
}

}  // namespace

struct Scheduler::Impl {
  std::map<NodeId, NodeEntry> nodes;
  using Sizes = std::map<std::tuple<std::string, std::int64_t, std::int64_t, NodeId>,
                         const NodeView*>;  // arch, free GPUs, free CPU
  Sizes by_size;                            // schedulable machines
  std::map<std::string, Sizes> by_model;    // the same by GPU model
  std::map<OrgId, std::set<NodeId>> by_supplier;
  std::map<std::string, std::set<NodeId>> by_pool;
  std::map<ClusterId, Waiting> waiting;
  Classes classes;
  QueueOrder everyone;
  std::map<ClusterId, Proposal> proposals;
  std::set<std::pair<WallTime, ClusterId>> proposals_due;
  std::deque<NodeId> improved;    // since the last finished pass
  std::size_t improved_seen = 0;  // of them known when the pass began
  PoolPacking packing;
  bool wake_all = false, work = false, frozen = false;
  bool in_pass = false, pass_all = false;
  std::uint64_t pass = 0;
  std::size_t stuck = 0;      // classes stuck in this pass
  QueueOrder::Cursor cursor;  // of a pass that ran out of budget
  ClusterId latch;            // nobody may take what this one could use
  mutable std::size_t checks = 0;

  // ---- nodes
  void index(const NodeEntry& e) {
    const Sizes::key_type key{e.free.arch, e.free.free.gpus, e.free.free.cpu_milli, e.view.node};
    if (!e.free.schedulable || !by_size.emplace(key, &e.free).second) return;
    for (const Device& d : e.free.devices) by_model[d.model].emplace(key, &e.free);
    packing.add(e.free);
  }
  void unindex(const NodeEntry& e) {
    const Sizes::key_type key{e.free.arch, e.free.free.gpus, e.free.free.cpu_milli, e.free.node};
    if (by_size.erase(key) == 0) return;
    for (const Device& d : e.free.devices)
      if (const auto it = by_model.find(d.model);
          it != by_model.end() && it->second.erase(key) > 0 && it->second.empty())
        by_model.erase(it);
    packing.remove(e.free);
  }
  void refresh(NodeEntry& e) {
    unindex(e);
    e.free = e.view;
    for (const auto& [cluster, places] : e.held)
      for (const Place& place : places) take(e.free, place);
    index(e);
  }
  static std::string pool_of(const NodeView& view) {
    const auto it = view.labels.find("pool");
    return it == view.labels.end() ? std::string() : it->second;
  }
  void forget(NodeId id) {
    const auto it = nodes.find(id);
    if (it == nodes.end()) return;
    unindex(it->second);
    const NodeView& view = it->second.view;
    if (auto s = by_supplier.find(view.supplier);
        s != by_supplier.end() && s->second.erase(id) > 0 && s->second.empty())
      by_supplier.erase(s);
    if (auto p = by_pool.find(pool_of(view)); p != by_pool.end() && p->second.erase(id) > 0 && p->second.empty())
      by_pool.erase(p);
  }
  void note_improved(NodeId id) {
    if (improved.size() < 2 * kImprovedMax)
      improved.push_back(id);
    else
      wake_all = true;
    work = true;
  }
  void node_changed(const NodeView& view) {
    forget(view.node);
    NodeEntry& e = nodes[view.node];
    e.view = view;
    refresh(e);
    by_supplier[view.supplier].insert(view.node);
    if (const std::string pool = pool_of(view); !pool.empty()) by_pool[pool].insert(view.node);
    if (view.schedulable) note_improved(view.node);
  }

  // ---- requests
  void drop_request(ClusterId id) {
    drop_proposal(id);
    if (latch == id) release_latch();
    const auto it = waiting.find(id);
    if (it == waiting.end()) return;
    everyone.erase(it->second.request);
    Class& home = it->second.home->second;
    if (--home.members == 0) {
      if (home.stuck_in == pass) --stuck;
      classes.erase(it->second.home);
    }
    waiting.erase(it);
  }
  void request_changed(const Request& request) {
    drop_request(request.cluster);
    const auto home = classes.try_emplace(key_of(request)).first;
    ++home->second.members;
    home->second.awake = true;
    everyone.insert(request);
    waiting.emplace(request.cluster, Waiting{request, home});
    work = true;
    in_pass = false;  // it may stand before the cursor
  }
  void release_latch() {
    latch = {};
    wake_all = work = true;
  }

  // ---- proposals: what was proposed is held until the core answers by a change, or for a while
  void hold(const Group& group) {
    Proposal proposal{group.expires, {}};
    for (const Place& place : group.places) {
      NodeEntry& e = nodes.at(place.node);
      e.held[group.cluster].push_back(place);
      refresh(e);
      proposal.nodes.push_back(place.node);
    }
    proposals_due.emplace(proposal.expires, group.cluster);
    proposals[group.cluster] = std::move(proposal);
  }
  void drop_proposal(ClusterId id) {
    const auto it = proposals.find(id);
    if (it == proposals.end()) return;
    for (const NodeId node : it->second.nodes) {
      const auto e = nodes.find(node);
      if (e == nodes.end() || e->second.held.erase(id) == 0) continue;
      refresh(e->second);
      if (e->second.view.schedulable) note_improved(node);
    }
    proposals_due.erase({it->second.expires, id});
    proposals.erase(it);
  }
  void expire_proposals(WallTime now) {
    while (!proposals_due.empty() && proposals_due.begin()->first < now) {
      const ClusterId id = proposals_due.begin()->second;
      drop_proposal(id);
      if (const auto it = waiting.find(id); it != waiting.end()) it->second.home->second.awake = true;
      work = true;
      in_pass = false;
    }
  }

  // ---- placing
  bool excluded(const Request& r, NodeId node, WallTime now) const {
    if (std::find(r.avoid.begin(), r.avoid.end(), node) != r.avoid.end()) return true;
    return std::any_of(r.backoff.begin(), r.backoff.end(),
                       [&](const auto& entry) { return entry.first == node && entry.second > now; });
  }
  bool reserved(const Request& r, const NodeView& node) const {
    if (!latch || latch == r.cluster) return false;
    const auto it = waiting.find(latch);
    return it != waiting.end() &&
           std::any_of(it->second.request.gang.begin(), it->second.request.gang.end(),
                       [&](const Bundle& b) { return suits(it->second.request, b.request, node); });
  }
  // Calls f(node) for the machines that might do, smallest first where that is indexed; f returns false to end.
  template <class F>
  void each_candidate(const Request& r, const NodeRequest& need, F f) const {
    const auto visit = [&](NodeId id) {
      const auto it = nodes.find(id);
      return it == nodes.end() || f(it->second.free);
    };
    const auto visit_all = [&](const auto& ids) {
      for (const NodeId id : ids)
        if (!visit(id)) return;
    };
    if (!need.pinned.empty()) return visit_all(need.pinned);
    if (r.pool == "own") {
      const auto it = by_supplier.find(r.tenant);
      if (it != by_supplier.end()) visit_all(it->second);
    } else if (r.pool.starts_with("pool:")) {
      const auto it = by_pool.find(r.pool.substr(5));
      if (it != by_pool.end()) visit_all(it->second);
    } else {
      const auto model = need.gpu_model.empty() ? by_model.end() : by_model.find(need.gpu_model);
      if (!need.gpu_model.empty() && model == by_model.end()) return;
      const Sizes& sizes = need.gpu_model.empty() ? by_size : model->second;
      for (auto it = sizes.lower_bound(
               {r.arch, need.resources.gpus, need.resources.gpus == 0 ? need.resources.cpu_milli : 0, NodeId{}});
           it != sizes.end() && std::get<0>(it->first) == r.arch; ++it)
        if (!f(*it->second)) return;
    }
  }
  // The best `count` machines for one bundle, none of `used`.
  std::vector<const NodeView*> best(const Request& r, const Need& need, const std::set<NodeId>& used,
                                    WallTime now) const {
    std::vector<std::pair<Score, const NodeView*>> found;
    const std::size_t enough = need.count + (need.bundle->request.resources.gpus > 0 ? kGpuCandidates : kCandidates);
    PoolPacking::ForNeed waste(packing, need.bundle->request);
    each_candidate(r, need.bundle->request, [&](const NodeView& node) {
      ++checks;
      if (!used.contains(node.node) && hosts(r, need.bundle->request, node, now) && !excluded(r, node.node, now) &&
          !reserved(r, node))
        found.emplace_back(score(r, *need.bundle, node, waste(node)), &node);
      return found.size() < enough;
    });
    const std::size_t n = std::min(found.size(), need.count);
    std::partial_sort(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(n), found.end(),
                      [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<const NodeView*> out;
    for (std::size_t i = 0; i < n; ++i) out.push_back(found[i].second);
    return out;
  }
  // Everything of the gang on distinct machines, or whatever of grow finds one; empty: nothing.
  std::optional<Group> place(const Request& r, WallTime now) const {
    const bool start = !r.gang.empty();
    Group group{start ? ActionKind::Start : ActionKind::Grow, r.cluster, {}, now + kProposalLife};
    std::set<NodeId> used;
    for (const Need& need : needs_of(start ? r.gang : r.grow)) {
      const auto chosen = best(r, need, used, now);
      if (start && chosen.size() < need.count) return {};
      for (const NodeView* node : chosen) {
        used.insert(node->node);
        group.places.push_back(place_on(*need.bundle, *node));
      }
    }
    if (group.places.empty()) return {};
    std::stable_sort(group.places.begin(), group.places.end(),
                     [](const Place& a, const Place& b) { return a.bundle.role < b.bundle.role; });
    return group;
  }

  bool woken(const Request& r, const Class& c, WallTime now) const {
    if (c.awake || pass_all || improved.size() > kImprovedMax) return true;
    const auto& bundles = r.gang.empty() ? r.grow : r.gang;
    return std::any_of(improved.begin(), improved.end(), [&](NodeId id) {
      const auto it = nodes.find(id);
      return it != nodes.end() && std::any_of(bundles.begin(), bundles.end(), [&](const Bundle& b) {
               return hosts(r, b.request, it->second.free, now);
             });
    });
  }

  std::vector<Group> plan(const Budget& budget, WallTime now) {
    expire_proposals(now);
    std::vector<Group> out;
    if (!work) return out;
    packing.prepare();
    everyone.advance(now, [&](ClusterId id) -> const Request& { return waiting.at(id).request; });
    if (!in_pass) {
      cursor = {};
      improved_seen = improved.size();
      pass_all = wake_all;
      wake_all = false;
      ++pass;
      stuck = 0;
    }
    in_pass = true;
    checks = 0;
    std::size_t heads = 0;
    while (out.size() < budget.groups_max) {
      if (++heads > kHeadsPerPlan || checks > kChecksPerPlan) return out;  // the next plan goes on from here
      const auto id = stuck < classes.size() ? everyone.next(cursor, now) : std::nullopt;
      if (!id) {
        finish_pass();
        return out;
      }
      const Waiting& w = waiting.at(*id);
      Class& c = w.home->second;
      if (proposals.contains(*id) || c.stuck_in == pass) continue;
      if (auto group = woken(w.request, c, now) ? place(w.request, now) : std::nullopt) {
        hold(*group);
        if (latch == *id) release_latch();
        out.push_back(std::move(*group));
        continue;
      }
      c.stuck_in = pass;
      ++stuck;
      c.awake = false;
      if (!latch && !w.request.gang.empty() && now.ms - w.request.since.ms > kLatchMs && possible(w.request))
        latch = *id;
    }
    return out;
  }
  void finish_pass() {
    improved.erase(improved.begin(),
                   improved.begin() + static_cast<std::ptrdiff_t>(std::min(improved_seen, improved.size())));
    work = !improved.empty() || wake_all;
    in_pass = pass_all = false;
  }
  // Enough machines exist at all: nothing is held back for a dream.
  bool possible(const Request& r) const {
    for (const Need& need : needs_of(r.gang)) {
      std::size_t n = 0;
      each_candidate(r, need.bundle->request, [&](const NodeView& node) {
        ++checks;
        n += suits(r, need.bundle->request, node) ? 1 : 0;
        return n < need.count;
      });
      if (n < need.count) return false;
    }
    return true;
  }

  // ---- the queue as people see it
  Reason reason_of(const Request& r, WallTime now) const {
    std::size_t earlier =
        0;  // what more demanding bundles take is not there for this one: every bundle has its own machine
    for (Need need : needs_of(r.gang.empty() ? r.grow : r.gang)) {
      need.count = earlier += need.count;
      std::size_t exist = 0, free = 0, seen = 0;
      for (const auto& [id, e] : nodes) {
        if (++seen > kHeadsPerPlan) break;
        if (!e.view.schedulable || !suits(r, need.bundle->request, e.view)) continue;
        ++exist;
        if (hosts(r, need.bundle->request, e.free, now) && !excluded(r, id, now)) ++free;
      }
      if (free >= need.count) continue;
      return lacking(need, r, exist, free);
    }
    if (latch && latch != r.cluster)
      return {"behind_older", {}, "waits behind an older request that needs the same machines"};
    return {"placing", {}, "machines are free; it starts in a moment"};
  }
  static std::string describe(const NodeRequest& need) {
    std::string out;
    if (need.whole_machine)
      out = "nothing else running";
    else
      out = std::to_string(need.resources.cpu_milli / 1000) +
            (need.resources.cpu_milli % 1000 != 0 ? "." + std::to_string(need.resources.cpu_milli % 1000 / 100) : "") +
            " CPU";
    if (need.resources.gpus > 0)
      out +=
          " and " + std::to_string(need.resources.gpus) + " GPU" + (need.gpu_model.empty() ? "" : " " + need.gpu_model);
    if (need.resources.memory_bytes > 0) out += " and " + std::to_string(need.resources.memory_bytes >> 20) + " MiB";
    return out + (need.whole_machine ? "" : " free");
  }
  static Reason lacking(const Need& need, const Request& r, std::size_t exist, std::size_t free) {
    Reason reason;
    reason.params = {{"needed", std::to_string(need.count)},
                     {"exist", std::to_string(exist)},
                     {"free", std::to_string(free)},
                     {"role", need.bundle->role == SlotRole::Head    ? "head"
                              : need.bundle->role == SlotRole::Spare ? "spare"
                                                                     : "worker"}};
    const std::string what = "needs " + std::to_string(need.count) + (need.count == 1 ? " machine" : " machines") +
                             " with " + describe(need.bundle->request);
    if (exist < need.count) {
      reason.code = "no_such_machines";
      reason.text = what + " (" + r.arch + ", pool " + r.pool + (r.egress ? ", egress" : "") + "); only " +
                    std::to_string(exist) + " that could ever do are online; enrol more, or ask for less";
    } else {
      reason.code = "machines_busy";
      reason.text = what + "; " + std::to_string(free) + (free == 1 ? " is free" : " are free");
    }
    return reason;
  }
  QueueView view_of(const Request& r, std::uint32_t position, const Reason& reason, WallTime now) const {
    QueueView view{r.cluster, position, reason, {}, false};
    if (reason.code == "placing") view.expected_start = now, view.known = true;
    return view;
  }
};

Scheduler::Scheduler() : impl_(std::make_unique<Impl>()) {}
Scheduler::~Scheduler() = default;
Scheduler::Scheduler(Scheduler&&) noexcept = default;
Scheduler& Scheduler::operator=(Scheduler&&) noexcept = default;

void Scheduler::apply(const Change& change) {
  Impl& s = *impl_;
  if (const auto* c = std::get_if<NodeChanged>(&change)) {
    s.node_changed(c->node);
  } else if (const auto* gone = std::get_if<NodeGone>(&change)) {
    s.forget(gone->node);
    s.nodes.erase(gone->node);
  } else if (const auto* request = std::get_if<RequestChanged>(&change)) {
    s.request_changed(request->request);
  } else if (const auto* ended = std::get_if<RequestGone>(&change)) {
    s.drop_request(ended->cluster);
  } else if (const auto* demand = std::get_if<DemandChanged>(&change)) {
    s.packing.demand(demand->cluster, demand->needs);
  } else if (const auto* freeze = std::get_if<FreezeChanged>(&change)) {
    s.frozen = freeze->frozen;  // preemption, which it stops, is not planned here yet
  }
}

std::vector<Group> Scheduler::plan(const Budget& budget, WallTime now) {
  return impl_->plan(budget, now);
}

std::vector<QueueView> Scheduler::queue(WallTime now) const {
  return queue_page(now, 0, impl_->waiting.size());
}

std::vector<QueueView> Scheduler::queue_page(WallTime now, std::size_t offset, std::size_t limit) const {
  const Impl& s = *impl_;
  std::vector<QueueView> out;
  std::map<const Class*, Reason> reasons;
  std::map<std::uint8_t, std::uint32_t> positions;
  QueueOrder::Cursor cursor;
  for (std::size_t i = 0; out.size() < limit; ++i) {
    const auto id = s.everyone.next(cursor, now);
    if (!id) break;
    const Waiting& w = s.waiting.at(*id);
    const std::uint32_t position = ++positions[w.request.tier];
    if (i < offset) continue;
    auto it = reasons.find(&w.home->second);
    if (it == reasons.end()) it = reasons.emplace(&w.home->second, s.reason_of(w.request, now)).first;
    out.push_back(s.view_of(w.request, position, it->second, now));
  }
  return out;
}

QueueView Scheduler::queue_of(ClusterId cluster, WallTime now) const {
  const Impl& s = *impl_;
  const auto it = s.waiting.find(cluster);
  if (it == s.waiting.end()) return {cluster, 0, {"not_waiting", {}, "it waits for nothing"}, {}, false};
  std::uint32_t position = 0;
  QueueOrder::Cursor cursor;
  while (const auto id = s.everyone.next(cursor, now)) {
    if (s.waiting.at(*id).request.tier == it->second.request.tier) ++position;
    if (*id == cluster) break;
  }
  return s.view_of(it->second.request, position, s.reason_of(it->second.request, now), now);
}

std::size_t Scheduler::waiting() const {
  return impl_->waiting.size();
}

}  // namespace muster::scheduler
