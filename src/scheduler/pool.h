#pragma once
// The machines: what is free on each, indexed by class (what hard constraints can tell apart) and condition (what
// scores can tell apart). A cell is the machines of one class in one condition, in the order of the day's tie-break.
// A search scores conditions and opens only those that may hold the best machine, so it is exhaustive without looking
// at every machine: the result is the machine with the highest value, of equals the first of the day. Single-threaded;
// the part that planning changes is copied cheaply (Moving). Private.
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "model/offer.h"
#include "scheduler/matcher.h"
#include "scheduler/scarcity.h"
#include "scheduler/shares.h"
#include "scheduler/sorted_sets.h"
#include "scheduler/states.h"

namespace muster::scheduler {

struct Amounts {  // free or needed: milli-CPU, MiB, MiB; needed is rounded up, free is rounded down
  std::uint32_t cpu = 0, memory = 0, disk = 0;
  bool within(const Amounts& other) const { return cpu <= other.cpu && memory <= other.memory && disk <= other.disk; }
  bool operator==(const Amounts&) const = default;
};
Amounts free_amounts(const Resources& resources);
struct Flow {  // of a machine's way out: kbit/s, kbit/s, MiB; needed and taken are rounded up, what there is down
  std::uint32_t up = 0, down = 0, volume = 0;
  bool any() const { return (up | down | volume) != 0; }
  bool within(const Flow& o) const { return up <= o.up && down <= o.down && volume <= o.volume; }
  Flow plus(const Flow& o) const;   // bounded
  Flow minus(const Flow& o) const;  // not below nothing
  bool operator==(const Flow&) const = default;
};
Flow needed_flow(const Traffic& traffic);
enum class FlowLack : std::uint8_t { None = 0, Site = 1, Machine = 2, Volume = 3, Kept = 4 };
Amounts needed_amounts(const Resources& resources);
// Bit i: the i-th is among them, and is a whole GPU once nobody has anything of it (no MIG instance is).
std::uint64_t device_bits(const NodeView& view, const std::vector<std::string>& uuids);

inline constexpr std::uint8_t kNotHeld = 255;  // also of a query: it is no failover
struct Machine {                               // what planning changes
  Amounts free;
  Flow flow;                       // that its leases and proposals have stated
  std::uint64_t free_devices = 0;  // bit i: device i is wholly free
  std::uint32_t cell = kNone;      // kNone: not to be planned on now
  std::uint32_t keeper = kNone;    // the request that it is kept for
  std::uint32_t sharable = kNone;  // where its devices of which parts are given out stand
  bool whole = true;
  std::uint8_t held = kNotHeld;  // kept back for failovers of this tier and better ones
};
struct Taken {  // from one machine
  std::uint32_t node = kNone;
  Amounts amounts;
  std::uint64_t devices = 0;
  std::int32_t share = 0, device = -1, start = -1;  // of one device; MIG: where its slots begin
  std::uint64_t tenant = 0;                         // whose share
  bool whole = false;                               // nothing was on it before
  Flow flow = {};
  bool instance = false;  // the device is a MIG instance
  // That of which it takes a share too.
  std::uint64_t all_devices() const {
    return share > 0 && device >= 0 && !instance ? devices | std::uint64_t{1} << device : devices;
  }
};

// How much, in points, a property counts against a machine of a class. All are penalties.
struct Weights {
  std::array<std::int32_t, kPriceLevels> price{};
  std::array<std::int32_t, kRiskLevels> risk{};
  std::array<std::int32_t, kLinkLevels> link{};
  std::array<std::int32_t, 3> tier{};
  bool hopes = false;                 /* newcomers whose turn it is count as reliable as they may be */
  std::int32_t relayed = 0, cold = 0; /* cold: the image is not there */
  std::int32_t scarcity = 65'536;     /* of the price of scarce models, 16 fractional bits */
};

// One kind of machine that a request needs, compiled.
struct Need {
  Amounts amounts;
  Flow flow;
  Load load;
  Task task;                     // for learning and for scarcity
  std::uint32_t constraint = 0;  // of the matcher
  std::uint32_t models = 0;      // numbers of the GPU models that may serve it
  std::uint32_t image = 0;       // symbol
  std::vector<NodeId> pinned;
  OrgId own;                     // only this supplier's machines
  std::uint32_t named_pool = 0;  // only this pool's
  bool priced = false;           // it does not pay whatever is asked
  Bid bid;
  OrgId payer;  // who has machines of his own for nothing
};

struct Query {
  const Need* need = nullptr;
  const Weights* weights = nullptr;
  std::int64_t now_ms = 0;
  std::int64_t length_ms = 0;                              /* how long it must be able to stay; 0 = not known */
  bool stays = false;                                      /* for ever, as far as is known: no machine that ends */
  std::uint64_t tenant = 0;                                /* for shares; 0 = they mix */
  std::uint32_t asker = kNone;                             /* the request that asks */
  const std::vector<std::uint32_t>* excluded = nullptr;    /* sorted; null: the marked ones */
  std::uint64_t precedence = ~std::uint64_t{0};            /* smaller goes first */
  const std::vector<std::uint64_t>* precedences = nullptr; /* of the requests that machines are kept for */
  std::int64_t done_ms = 0;                                /* it is gone by then; 0 = not known */
  const std::vector<std::int64_t>* shadows = nullptr;      /* when those can start, 0 = not known; with done_ms */
  std::uint8_t failover = kNotHeld;                        /* its tier, where it may use headroom; 0: any */
  bool any_flow = false;                                   /* whatever traffic it has stated */
  bool beside = false; /* where a machine is kept for another, what that one does not need of it will do */
};

// What of an offer stands against a request that the machine could serve otherwise.
enum class Refusal : std::uint8_t { None = 0, Price = 1, Tenants = 2, Images = 3, Length = 4, Link = 5 };

struct Found {
  std::uint32_t node = kNone;
  std::int64_t value = 0;
  explicit operator bool() const { return node != kNone; }
};

class Pool {
 public:
  explicit Pool(const Kernels& kernels, std::uint32_t sampled = 0);  // sampled: see Options

  // ---- machines; `view` replaces what was known
  std::uint32_t set(const NodeView& view);
  void forget(NodeId id);
  void set_reliability(NodeId id, const Reliability& reliability);  // counts over what views say of it
  const std::optional<Reliability>& reliability(std::uint32_t node) const { return infos_[node].told; }
  std::uint32_t index_of(NodeId id) const;
  const NodeView& view(std::uint32_t node) const { return infos_[node].view; }
  const Machine& machine(std::uint32_t node) const { return moving_.machines[node]; }
  std::uint32_t limit() const { return static_cast<std::uint32_t>(infos_.size()); }
  std::uint32_t site_of(std::uint32_t node) const { return infos_[node].site; }  // symbols; 0 = not known
  std::uint32_t region_of(std::uint32_t node) const { return infos_[node].region; }
  std::uint32_t class_of(std::uint32_t node) const { return infos_[node].cls; }  // of the matcher
  bool live(std::uint32_t node) const { return node < infos_.size() && infos_[node].live; }
  std::size_t count() const { return by_id_.size(); }
  void reseed(std::uint64_t seed);  // another day, another order among equals
  // Back-offs and hours that passed since.
  void advance(std::int64_t now_ms);
  // What is known again of a machine after proposals on it were dropped: as the view says, nothing held.
  void restore(std::uint32_t node);
  // Machines that are better in some way than at the last call, for those that wait. False: too many to name.
  bool take_improved(std::vector<std::uint32_t>& out);
  void settle();  // those that wait have seen what planning took since

  // ---- needs
  Need compile(const Request& request, const Bundle& bundle);
  void drop(const Need& need);
  bool take_recompile();  // constraints must be compiled anew

  // ---- the expected workload
  Task task_of(const NodeRequest& request);
  void observe(const Task& task, std::int64_t n) { learn_due_ |= workload_.observe(task, n), pressure_stale_ = true; }
  void learn_if_due();
  LearnedChanged learned() const;
  void restore(const LearnedChanged& learned);

  // ---- planning
  // Machines marked with mark() since begin() are left out.
  void begin() { ++stamp_, pending_.clear(); }
  void mark(std::uint32_t node) { marks_[node] = stamp_; }
  bool marked(std::uint32_t node) const { return marks_[node] == stamp_; }
  Found best(const Query& query);
  Found best_of(const Query& query, const std::vector<std::uint32_t>& nodes);
  template <class F>
  void each_of_supplier(OrgId supplier, const F& see) const {
    each_of(by_supplier_, supplier, see);
  }
  template <class F>
  void each_of_site(const std::string& site, const F& see) const {
    each_of(by_site_, site, see);
  }
  // Sites with so many machines or more, the smallest first, while `see` says true.
  template <class F>
  void sites_from(std::uint32_t machines, const F& see) const {
    for (auto it = by_size_.lower_bound({machines, ""}); it != by_size_.end() && see(it->second); ++it) continue;
  }
  // What best() compares: of a machine that can host it, the value and its place in the order among equals.
  std::pair<std::int64_t, std::uint64_t> value(const Query& query, std::uint32_t node);
  bool hosts(const Query& query, std::uint32_t node) const;  // now
  bool would_host(const Query& query, std::uint32_t node, const Machine& then) const;
  struct Opening {  // of a machine's hours that are still to come; the owner's notice is taken off the end
    std::int64_t from_ms = 0, to_ms = 0;
  };
  std::vector<Opening> openings(std::uint32_t node) const;  // the first first
  // As would_host(), within those hours.
  bool would_host_in(const Query& query, std::uint32_t node, const Machine& then, const Opening& hours) const;
  std::int64_t next_wake() const { return wakes_.empty() ? 0 : wakes_.begin()->first; }  // of back-offs and hours
  bool could_host(const Query& query, std::uint32_t node) const;                         // if it were empty
  // If it were empty and its owner asked nothing; and what of the offer refuses it then.
  bool could_serve(const Query& query, std::uint32_t node) const;
  Refusal refusal(const Query& query, std::uint32_t node) const;
  std::int64_t asked(const Query& query, std::uint32_t node) const;  // an hour; of another currency too
  bool some_ask() const { return some_ask_; }                        // some machine ever had an offer
  bool closed(std::uint32_t node) const { return infos_[node].live && !infos_[node].open; }  // outside its hours
  Taken what_it_takes(const Query& query, std::uint32_t node) const;
  Taken taken_by(const LeaseView& lease, std::uint32_t node) const;

  // ---- headroom for failovers (headroom.cpp)
  void set_headroom(std::vector<Headroom> rows);
  // Which machines are kept back now: of each model those that are wholly free first, and of those what nobody keeps.
  // Where too few are wholly free, others in their place: what works there goes on, and nothing new comes.
  void hold_back();
  bool holds_back() const { return !held_back_.empty(); }
  std::vector<Headroom> headroom() const;
  // It may use what is kept back of this machine's kind.
  bool entitled(const Query& query, std::uint32_t node) const;
  // Fewer are wholly free than shall be kept back, of this machine's kind.
  bool headroom_lacks(std::uint32_t node) const;
  // Of machines with the time from which each could host it: those that will be kept back from it, sorted.
  std::vector<std::uint32_t> kept_back(const Query& query,
                                       const std::vector<std::pair<WallTime, std::uint32_t>>& from) const;
  // kNone: for nobody any more. `flows`: the keeper has stated traffic, so it is the site's uplink too.
  void keep(std::uint32_t node, std::uint32_t keeper, bool flows = false);
  struct Keeping {  // what a keeper needs of each of its machines, at most; all: the machine as it is
    Amounts amounts;
    std::int32_t gpus = 0;
    bool all = false;
    std::vector<std::uint32_t> constraints;  // of those needs
  };
  void set_keeping(std::uint32_t keeper, Keeping keeping) { keepings_[keeper] = std::move(keeping); }
  void drop_keeping(std::uint32_t keeper) { keepings_.erase(keeper); }

  // How long its image takes to this machine, by what any holder says of its size and what is said of the machine's
  // way in: 0 where it is there already, or one of the two is not known.
  std::int64_t image_bytes(const Query& query) const;
  std::int64_t fetch_ms(const Query& query, std::int64_t bytes, std::uint32_t node) const;

  // ---- ways out of sites (flow.cpp)
  // What is in the way of its traffic and of nothing else.
  FlowLack flow_lack(const Query& query, std::uint32_t node) const;
  Flow flow_left(std::uint32_t node) const;  // of its site's uplink and its own limits; most where nothing is stated
  // Until begin(): that much of it is spoken for by a gang that is being put together.
  void pend(std::uint32_t node, const Flow& flow);
  void clear_pending() { pending_.clear(); }
  bool overdrawn() const;  // by what is pending
  void take(const Taken& taken);
  void give_back(const Taken& taken);
  Matcher& matcher() { return matcher_; }
  std::uint32_t model_number(const std::string& name);

 private:
  struct Seen {  // of a machine, by those that waited then
    Amounts free;
    std::uint64_t free_devices = 0;
    std::uint64_t cls = 0; /* serial of its class; 0: not to be planned on */
    bool whole = false;
    std::uint32_t keeper = kNone;
    std::uint64_t terms = 0; /* version of its offer */
    std::uint8_t held = kNotHeld;
    Flow flow; /* left of its own limits */
  };
  // Not wholly free, kept for somebody, GPUs and CPUs that are not free, order, number: the first are kept back first.
  using HeldKey = std::tuple<bool, bool, std::int32_t, std::uint32_t, std::uint64_t, std::uint32_t>;
  struct HeldBack {
    Headroom row;
    std::set<HeldKey> order;          // the machines of the model
    std::vector<std::uint32_t> held;  // sorted
    bool stale = true, lacks = false;
  };
  struct Info {
    NodeView view;
    std::uint64_t order = 0;  // tie-break, with the number in the low bits
    std::uint32_t cls = kNone, model = kNoGpu;
    std::uint32_t pool = 0, site = 0, region = 0;  // symbols
    std::vector<std::uint32_t> images;
    Amounts capacity;
    std::int64_t until_ms = 0;         // end of its present hours; 0 = none
    std::int64_t longest_open_ms = 0;  // of its hours; 0 = it is always open
    std::optional<Reliability> told;
    bool live = false, open = true, touched = false; /* open: within its hours */
    bool held_due = false;         /* its place in the order of what is kept back must be found anew */
    std::uint32_t held_in = kNone; /* row of headroom */
    HeldKey held_key{};
    std::uint32_t uplink = kNone; /* of its site */
    Flow own;                     /* its own limits */
    Seen seen;
  };
  struct Cell {
    std::uint32_t model = 0, state = 0, cls = 0;
    SortedSets<std::uint64_t>::Set nodes;
  };
  struct PerModelMoving {
    std::vector<std::uint64_t> live;                    // bit per condition that some machine is in
    std::vector<SortedSets<std::uint32_t>::Set> cells;  // of each condition
  };
  struct Moving {
    std::vector<Machine> machines;
    std::vector<Sharable> sharables;
    std::vector<Cell> cells;
    std::vector<std::uint32_t> free_cells, free_sharables;
    HashIndex cell_index;
    SortedSets<std::uint64_t> orders;
    SortedSets<std::uint32_t> lists;
    std::array<PerModelMoving, kModels> models;
    PerModel free_milli{};
    std::vector<Flow> uplinks;  // taken, of each site; as high as it may be
    // By site: the requests with traffic that its machines are kept for, one entry for each machine.
    std::vector<std::vector<std::uint32_t>> uplinks_kept;
  };
  struct Uplink {  // of the machines of one supplier on one site; it is as wide as the narrowest says
    std::map<std::uint32_t, std::uint32_t> ups, downs;  // stated, and by how many
    SortedSets<std::uint32_t>::Set nodes;
    Flow most;
    Flow seen;  // taken, by those that waited then
    bool touched = false, better = false;
  };
  struct Segment {
    std::uint32_t model = 0;
    std::int64_t offset = 0;
    std::vector<std::int32_t> scores, block_max;
    std::int32_t top = kNever;
    std::uint32_t top_block = 0;
  };

  Seen seen_now(std::uint32_t node) const;
  static bool better(const Seen& now, const Seen& then);
  void link(std::uint32_t node);
  void unlink(std::uint32_t node);
  Condition condition_of(std::uint32_t node) const;
  bool plannable(std::uint32_t node) const;
  static constexpr std::uint64_t kExploredOf = 4;
  bool explored(const NodeView& view) const;
  void classify(std::uint32_t node);
  std::uint64_t order_of(NodeId id, std::uint32_t node) const;
  std::int64_t penalty(const Query& query, const NodeClass& k) const;
  std::int64_t least_penalty(const Weights& weights, std::uint32_t model) const;
  std::int64_t scarcity(const Query& query, std::uint32_t model) const;
  void refresh_pressure();
  void refresh_top(Segment& segment) const;
  void open_condition(const Query& query, std::uint32_t model, std::uint32_t state, std::int64_t value, Found& best,
                      std::uint64_t& order);
  void consider(const Query& query, std::uint32_t node, Found& best, std::uint64_t& order);
  Found best_of_list(const Query& query);
  Found best_of_some(const Query& query);
  template <class Index, class Key, class F>
  void each_of(const Index& index, const Key& key, const F& see) const {
    if (const auto it = index.find(key); it != index.end())
      groups_.each(it->second, [&](std::uint32_t node) {
        see(node);
        return true;
      });
  }
  void set_site(std::uint32_t node, const std::string& old, const std::string& site);
  void set_uplink(std::uint32_t node, const NodeView& view);
  void leave_uplink(std::uint32_t node);
  void set_flow(std::uint32_t node, const Flow& flow);
  void count_link(Uplink& uplink, const Link& link, bool joins);
  bool flow_within(const Query& query, std::uint32_t node, const Machine& then) const;
  FlowLack lack_of(const Query& query, std::uint32_t node, const Machine& then) const;
  bool flow_ever(const Flow& flow, std::uint32_t node) const;
  void touch_uplink(std::uint32_t uplink, bool better = false);
  void add_improved_uplinks(std::vector<std::uint32_t>& out);
  void settle_uplinks();
  // The best device for a share and what placing it there is worth; -1: none.
  std::pair<std::int32_t, std::int64_t> share_device(const Query& query, std::uint32_t node) const;
  bool hosts_if_judged(const Query& query, std::uint32_t node, const Machine& machine, Verdict verdict) const;
  bool is_cold(const Query& query, const Info& info) const;
  bool kept_from(const Query& query, std::uint32_t node, const Machine& machine) const {
    if (query.failover > machine.held && !query.need->own) return true;
    return kept_for_another(query, machine) && !(query.beside && fits_beside(query, node, machine));
  }
  bool fits_beside(const Query& query, std::uint32_t node, const Machine& machine) const;
  static bool kept_for_another(const Query& query, const Machine& machine) {
    if (machine.keeper == kNone || machine.keeper == query.asker) return false;
    if (query.precedences != nullptr && (*query.precedences)[machine.keeper] > query.precedence) return false;
    return query.done_ms == 0 || query.done_ms > (*query.shadows)[machine.keeper];
  }
  static bool goes_before(const Query& query, std::uint32_t keeper) {
    return keeper == query.asker || (query.precedences != nullptr && (*query.precedences)[keeper] > query.precedence);
  }
  void count_levels(const NodeClass& k, std::uint32_t model, std::int32_t sign);
  void count_currency(std::uint32_t currency, std::uint32_t by);
  std::uint32_t models_of(const NodeRequest& request);
  void change_share(Machine& machine, const Taken& taken, bool more);
  void touch(std::uint32_t node);
  void note_touched(std::uint32_t node) {
    if (!std::exchange(infos_[node].touched, true)) touched_.push_back(node);
  }
  std::uint32_t held_row(std::uint32_t node) const;
  void leave_held_order(std::uint32_t node);
  std::uint32_t hot_bit(std::uint32_t image) const {
    for (std::uint32_t i = 0; i < kHotImages; ++i)
      if (image != 0 && hot_[i] == image) return 1U << i;
    return 0;
  }
  void set_images(std::uint32_t node);
  void drop_images(std::uint32_t node);
  std::uint8_t hot_bits(const Info& info) const;
  void make_hot(std::uint32_t image);
  void set_hours(Info& info);
  void set_machine(std::uint32_t node);
  bool timely(const Query& query, const NodeClass& k) const { return timely(query, k, k.until_ms); }
  bool timely(const Query& query, const NodeClass& k, std::int64_t until_ms) const;
  bool fits(const Query& query, std::uint32_t node, const Machine& then, std::int64_t until_ms) const;
  bool long_enough(const Query& query, std::uint32_t node) const;
  bool is_there(const Query& query, std::uint32_t node, Verdict verdict) const;
  bool affordable(const Query& query, std::uint32_t node) const;

  const Kernels* kernels_;
  Matcher matcher_;
  States states_;
  Packing packing_;
  PerModel pressure_{};
  Workload workload_;
  std::vector<std::pair<std::int32_t, Task>> expected_;
  bool learn_due_ = false;
  bool pressure_stale_ = true, some_ask_ = false;
  std::vector<std::string> model_names_;
  std::vector<Info> infos_;
  std::vector<std::uint32_t> free_infos_;
  HashIndex by_id_;
  std::map<OrgId, SortedSets<std::uint32_t>::Set> by_supplier_;
  std::map<std::uint32_t, SortedSets<std::uint32_t>::Set> by_pool_;
  std::map<std::string, SortedSets<std::uint32_t>::Set> by_site_;  // where it is known
  std::set<std::pair<std::uint32_t, std::string>> by_size_;        // those sites, by how many machines they have
  SortedSets<std::uint32_t> groups_;
  std::map<std::pair<OrgId, std::string>, std::uint32_t> uplink_by_site_;
  std::vector<Uplink> uplinks_;
  std::vector<std::uint32_t> free_uplinks_, touched_uplinks_;
  std::map<std::uint32_t, Keeping> keepings_;
  std::vector<std::pair<std::uint32_t, Flow>> pending_;              // by machine
  bool some_flow_ = false;                                           // some request ever stated traffic
  std::map<std::uint32_t, SortedSets<std::uint64_t>::Set> holders_;  // of images
  SortedSets<std::uint64_t> holder_orders_;
  std::array<std::uint32_t, kHotImages> hot_{};      // images that many hold: a bit of the class
  std::set<std::pair<std::int64_t, NodeId>> wakes_;  // when back-offs and hours pass
  std::vector<std::uint32_t> touched_;
  std::vector<HeldBack> held_back_;  // by model
  std::vector<std::uint32_t> held_due_;
  std::vector<std::uint32_t> marks_;
  std::uint32_t stamp_ = 1;
  std::uint64_t seed_ = 0, samples_ = 0;
  const std::uint32_t sampled_;
  std::int64_t now_ms_ = 0;
  Amounts most_;   // that any machine ever had free
  struct Levels {  // how many machines have each, and the best that any has
    std::array<std::uint32_t, kPriceLevels> price{};
    std::array<std::uint32_t, kRiskLevels> risk{};
    std::array<std::uint32_t, kLinkLevels> link{};
    std::array<std::uint32_t, 3> tier{};
    std::uint32_t cheapest = 0, safest = 0, fastest = 0, most_trusted = 0;
  };
  std::array<Levels, kModels> levels_{};
  std::map<std::uint32_t, std::uint32_t> asked_in_;  // machines with a price, by currency
  std::uint32_t currency_ = 0;                       // that most of them ask
  std::array<Segment, kModels> segments_;            // scratch of one search
  Moving moving_;
};

struct Pending {  // while it lives, what is pending may be
  Pool& pool;
  explicit Pending(Pool& of) : pool(of) {}
  ~Pending() { pool.clear_pending(); }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;
};

}  // namespace muster::scheduler
