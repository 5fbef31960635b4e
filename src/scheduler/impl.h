#pragma once
// The scheduler's inside: requests in lanes and classes, proposals that are out, what runs. Private.
#include <array>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "scheduler/backfill.h"
#include "scheduler/network.h"
#include "scheduler/pool.h"
#include "scheduler/queue.h"
#include "scheduler/run_times.h"
#include "scheduler/scheduler.h"
#include "scheduler/usage.h"

namespace muster::scheduler {

inline constexpr Millis kProposalLife{5'000};      // a proposal that nothing came of is made anew after it
inline constexpr Millis kLeaving{60'000};          // what was told to stop is gone by then, as a rule
inline constexpr std::int64_t kLatchMs = 600'000;  // after so long a gang keeps what it could use
inline constexpr std::size_t kLatchesMax = 16;
inline constexpr std::size_t kProtected = 4;        // of a class: the first, and those behind it whose start is certain
inline constexpr std::size_t kOverdueMax = 2;       // that nobody passes any more, at a time
inline constexpr std::size_t kOverdueLookedAt = 4;  // at once, whether they could be had at all
inline constexpr std::size_t kLatchesOfFirsts = 8;  // of kLatchesMax, that those behind the first leave alone

// The name of the proposal that holds the places of what is moved for a request: no cluster has it.
inline ClusterId move_name(ClusterId cluster) {
  return ClusterId{cluster.value | std::uint64_t{1} << 63};
}

struct Scheduler::Impl {
  struct CountedNeed {
    Need need;
    std::uint32_t count = 0, bundle = 0;  // which of the request's bundles
    bool head = false;
    Held held{};  // by one of it
    std::uint8_t failover = kNotHeld;
  };
  // Requests that need the same wait together: when the first of a class finds no place, no other does.
  struct Class {
    Request example;
    std::vector<CountedNeed> needs;  // the most demanding first
    Held held{};                     // by one request of it, once it has its machines
    // What has to be within a guarantee: a gang as a whole, of growth any one; a machine that is had whole never is.
    std::vector<Held> parts;
    std::vector<std::pair<std::uint32_t, Lines::Line>> lines;  // by lane; those not proposed
    std::uint64_t hash = 0;
    std::uint32_t members = 0;
    std::int64_t length_ms = 0; /* a machine is held at most so long; 0 = not known */
    std::int64_t fit_ms = 0;    /* and must be there for so long */
    bool stays = false;         /* for ever */
    bool grows = false, alone = false, awake = false;
    bool flows = false; /* some of it has stated traffic */
    // While asleep: so many machines more that can host this need may change it.
    std::uint32_t lacks = 0, lacking = 0;
    std::uint32_t sleeper = kNone; /* place among the sleepers */
    WallTime backoff_ends;         /* of the exclusions that were in force */
    std::int64_t latch_due = 0;    /* while asleep: when its first has waited long enough to keep machines */
  };
  // What a class that sleeps wants at least of one machine, side by side: most of a thousand are passed over by it when
  // some machine got better.
  struct Sleeper {
    std::uint32_t cls = 0;
    std::int32_t gpus = 0;
    Amounts least;
  };
  struct Candidate {  // in the heap of its lane
    std::uint32_t cls = 0, lane = 0;
    std::uint32_t turn = 0;
    Rank rank = Rank::None;
    std::int64_t worth = 0;
    std::uint64_t who = 0;
  };
  struct Head {  // the best candidate of a lane, in the heap of a pass
    std::uint32_t lane = 0, number = 0;
    std::uint32_t turn = 0;
    Rank rank = Rank::None;
    std::int64_t worth = 0; /* its lane's handicap taken off */
    std::uint64_t who = 0;
  };
  struct Lane {
    std::uint8_t tier = 1;
    OrgId tenant;
    ProjectId project;
    Lines::Line line;
    Usage::Owner owner;
    std::vector<Candidate> heap; /* of a pass: the first of each class that is awake */
    std::uint32_t head = 0;      /* the number of its entry among the heads */
  };
  struct Item {
    Waiter waiter;
    ClusterId cluster;
    std::uint32_t cls = kNone, lane = kNone;
    bool live = false, aged = false, proposed = false, latched = false;
    bool overdue = false; /* it has waited as long as ageing counts: it goes before all others, of better tiers too */
    WallTime stays_until; /* nothing is moved for it before */
    std::int64_t overdue_ms = 0; /* since when it is overdue */
    std::int64_t cleared_ms = 0; /* when others left, or were told to leave, machines for it */
    bool behind = false; /* latched, but not as the first of its class: it keeps nothing but what its shadow needs */
  };
  struct Proposal {
    WallTime expires;
    std::vector<Taken> taken;
    WallTime ends; /* what it takes is free again then; 0 = not known */
    Usage::Owner owner;
    std::uint8_t tier = 0;
    Held held{};
  };
  struct Choice {
    std::uint32_t need = 0, node = kNone;
  };
  struct Room {  // on one machine, when these leave it
    std::uint32_t node = kNone;
    std::int64_t cost = 0;
    std::vector<LeaseId> victims;
  };
  bool cheaper(const Room& a, const Room& b) const;  // of equal cost the fewer victims, then by name
  struct Claim {                                     // on machines where others work
    std::uint8_t tier = 0;
    Usage::Owner owner;
    bool of_tenant = false, of_project = false;  // it is within its tenant's, its project's guarantee
    bool reclaims() const { return of_tenant || of_project; }
  };
  using Gone = std::map<Usage::Account, Held>;  // what leaves of what each holds, and each tier
  static Usage::Account account_of_tier(std::uint8_t tier) { return 0xffffff00U + tier; }
  enum class Reach : std::uint8_t {  // for machines that are kept for others
    Theirs = 0,                      // of those that go after it too, and what it gives back in time
    Back = 1,                        // only what it gives back in time
    Never = 2                        // as Theirs, but nothing that it would have to give back
  };
  struct Booking {  // by the ends that are promised; shadow 0: not known
    std::int64_t shadow = 0;
    std::vector<std::uint32_t> machines;
  };
  struct Way {  // was asked to be cleared
    WallTime expires;
    std::vector<std::uint32_t> nodes;
    bool moves = false;
    std::vector<LeaseId> victims = {}; /* that were told to leave for it, or will be */
  };
  struct Shape {  // of a cluster whose workers may be moved
    Request request;
    std::vector<Need> needs; /* by bundle */
    std::int64_t fit_ms = 0;
    bool stays = false;
  };
  struct Resettled {  // of those that are moved: where they go, taken already
    std::vector<LeaseId> victims;
    std::vector<Place> places;
    std::vector<Taken> taken, log; /* log: with what the request itself takes, in the order of taking */
    std::map<ClusterId, std::vector<std::uint32_t>> on; /* machines that their clusters have or get */
    std::int64_t cost = 0, size = 0, now_ms = 0;
  };

  explicit Impl(const Options& options);

  void apply(const NodeChanged& c);
  void apply(const NodeGone& c);
  void apply(const RequestChanged& c);
  void apply(RequestChanged&& c);
  void apply(const RequestGone& c);
  void apply(const FreezeChanged& c);
  void apply(const DemandChanged& c);
  void apply(const LeaseChanged& c);
  void apply(const LeaseGone& c);
  void apply(const TermsChanged& c);
  void apply(const TermsGone& c) { ends.erase(c.cluster), starts.erase(c.cluster), shadows_stale = true; }
  void apply(const LearnedChanged& c) { pool.restore(c); }
  void apply(const ArrivalsChanged& c);
  void apply(const RunsChanged& c) { run_times.restore(c); }
  void apply(const DayChanged& c) { seed = c.seed, pool.reseed(c.seed); }
  void apply(const UsageChanged& c) { usage.restore(c); }
  void apply(const ShareChanged& c);
  void apply(const PathsChanged& c);
  void apply(const CoordinatesChanged& c);
  void apply(const ReliabilityChanged& c);
  void apply(const HeadroomChanged& c);
  void apply(const ShapeChanged& c);
  void apply(const TierSharesChanged& c);
  void drop_lease(const LeaseView& lease);
  std::vector<Change> snapshot() const;

  // ---- requests and classes (requests.cpp)
  std::uint32_t find(ClusterId cluster) const;
  std::uint32_t class_for(Request&& request);  // taken from only when the class is new
  void compile(Class& c);
  void leave_class(std::uint32_t cls);
  std::uint32_t lane_for(const Request& request);
  Lines::Line& line_of(Class& c, std::uint32_t lane);
  void rouse(Class& c);
  void wake(std::uint32_t cls);
  void sleep(std::uint32_t cls, std::uint32_t lacks, std::uint32_t lacking);
  void set_latch_due(std::uint32_t cls, std::int64_t due);
  void drop_request(ClusterId cluster);
  void note_arrival(const Request& request);
  template <class Needs, class Each>
  void learn_from(ClusterId cluster, const Needs& needs, const Each& each);
  void age(std::int64_t now_ms);
  void look_at_overdue(WallTime now);
  bool could_be_had(std::uint32_t item) const;

  class Placement;
  // ---- planning (plan.cpp)
  std::vector<Group> plan(const Budget& budget, WallTime now);
  void wake_by_machines(std::int64_t now_ms);
  void rebuild_heap(std::int64_t now_ms);
  std::pair<Entry, std::int64_t> first_of(std::uint32_t cls, std::uint32_t lane, const Lines::Line& line,
                                          std::int64_t now_ms) const;
  void push(std::uint32_t cls, std::uint32_t lane, std::int64_t now_ms);
  bool place(std::uint32_t item, WallTime now, Group& group, Proposal& proposal);
  bool choose(std::uint32_t item, WallTime now, Reach reach, std::vector<Choice>& chosen, std::uint32_t& lacks,
              std::uint32_t& lacking);
  bool choose(std::uint32_t item, WallTime now, Reach reach, bool within, std::vector<Choice>& chosen,
              std::uint32_t& lacks, std::uint32_t& lacking);
  bool make_room(std::uint32_t item, std::uint32_t n, std::int64_t now_ms, Reach reach, std::vector<Choice>& chosen);
  Query query_for(const CountedNeed& need, std::uint32_t item, std::int64_t now_ms, Reach reach = Reach::Theirs) const;
  Rank rank_of(const Class& c, std::uint32_t lane, const Held& tenant_too = {}, const Held& project_too = {}) const;
  Rank rank_of(std::uint32_t item) const { return rank_of(classes[items[item].cls], items[item].lane); }
  void rank_anew(Lane& lane);
  void wake_guaranteed(OrgId tenant);
  // Who is overdue first, then the tiers that hold less than they are guaranteed, then the others, the best first.
  std::uint32_t turn_of(std::uint8_t tier) const { return (usage.tier_lacks(tier) ? 2U : 258U) + tier; }
  std::uint32_t turn_of(const Item& item) const { return item.overdue ? 1 : turn_of(lanes[item.lane].tier); }
  void look_at_turns(bool wakes = true);
  static bool later(const Candidate& a, const Candidate& b);
  void show(std::uint32_t lane);
  void show_all();
  void turn_anew(Lane& lane);
  bool next(Candidate& top);
  static bool goes_later(const Head& a, const Head& b);
  void reclassify();
  bool may_latch(std::uint32_t item) const;
  std::vector<std::uint32_t> never_for(const Query& query) const;
  bool not_kept_from(std::uint32_t cls, std::uint32_t keeper) const;
  void latch(std::uint32_t item);
  void unlatch(std::uint32_t item);
  void protect(std::uint32_t cls, WallTime now, std::int64_t& again);
  void order_latches(std::int64_t now_ms);
  std::uint64_t precedence_of(std::uint32_t item) const;
  std::uint64_t precedence_of(std::uint32_t item, std::uint32_t place) const;
  void hold(std::uint32_t item, Proposal proposal);
  std::vector<Taken> withdraw(ClusterId cluster);
  void drop_proposal(ClusterId cluster);
  void restore(std::uint32_t node);
  void expire(WallTime now);

  // ---- preemption (preempt.cpp)
  static bool preemptible(const LeaseView& lease, std::uint8_t by_tier);
  // How many leases and proposals have each device of a machine, or shares of it.
  class Holders {
   public:
    void add(std::uint64_t devices);
    std::uint64_t drop(std::uint64_t devices);  // those of them that nobody has any more

   private:
    bool counted_ = false;  // nothing was added: nobody shares there, and each has its own alone
    std::array<std::uint16_t, 64> of_{};
  };
  Holders holders_of(std::uint32_t node) const;
  Machine without(std::uint32_t node, const std::vector<LeaseId>& victims) const;
  Claim claim_of(const Class& c, std::uint32_t lane) const;
  bool may_take(const LeaseView& lease, const Claim& by, const Gone& gone) const;
  void note_leaving(Gone& gone) const;
  void note_gone(const LeaseView& lease, Gone& gone) const;
  std::optional<Room> room_on(const Query& query, std::uint32_t node, const Claim& by, const Gone& gone) const;
  std::vector<LeaseId> cheapest_of_all(const Query& query, std::uint32_t node, const Claim& by, const Gone& gone,
                                       const std::vector<std::pair<std::int64_t, LeaseId>>& may) const;
  void keep_for(std::uint32_t item, const std::vector<std::uint32_t>& nodes);
  bool clear_for(std::uint32_t item, const Claim& by, WallTime now, std::vector<Group>& out, std::int64_t& again);
  bool make_way(std::uint32_t item, WallTime now, std::vector<Group>& out, std::int64_t& again);
  void ripen(WallTime now);
  static std::int64_t size_of(const Resources& resources);  // of a machine's part, in CPUs; a GPU is worth 16
  static std::int64_t cost_of(const LeaseView& lease, std::int64_t now_ms);
  bool clearing(std::uint32_t item) const;
  bool moving_for(std::uint32_t item) const;

  // ---- moving work together (move.cpp)
  void compile(Shape& shape);
  const Need* need_of(const LeaseView& lease) const;
  bool movable(const LeaseView& lease, std::uint8_t by_tier, WallTime now) const;
  void rooms_by_moves(const Query& query, std::uint32_t node, std::uint8_t by_tier, WallTime now,
                      std::vector<Room>& out) const;
  bool resettle(const Room& room, const std::vector<std::uint32_t>& cleared, WallTime now, Resettled& out);
  void take_back(Resettled& resettled, std::size_t from);
  std::int64_t saved_ms(std::uint32_t item, WallTime now, bool& grows) const;
  bool move_for(std::uint32_t item, std::uint8_t tier, WallTime now, std::vector<Group>& out, std::int64_t& again);
  bool yields(std::uint32_t node) const;
  bool gains_by(const Class& c, const std::vector<std::uint32_t>& nodes, std::int64_t now_ms) const;
  void mark_excluded(Class& c, WallTime now);

  // ---- short work on machines that are kept (backfill.cpp)
  void reserve(std::uint32_t item, WallTime now, const std::vector<Choice>& chosen);
  bool suit_each_other(const Class& c, const std::vector<std::uint32_t>& nodes, WallTime now) const;
  bool network_stands_against(std::uint32_t item, WallTime now) const;
  bool borrowed(std::uint32_t item, const std::vector<Choice>& chosen) const;
  std::optional<WallTime> end_of(const LeaseView& lease, WallTime now) const;
  std::vector<std::pair<WallTime, Machine>> after_ends(std::uint32_t node, WallTime now) const;
  void release(std::uint32_t node, std::uint32_t item);
  void keep(std::uint32_t node, std::uint32_t item);  // kNone: for nobody
  void keep_uplinks(std::uint32_t item, const std::vector<Query>& queries);
  void pend(const Class& c, const std::vector<Choice>& chosen);
  Booking book(std::uint32_t item, WallTime now) const;
  bool keep_booked(std::uint32_t item, Booking booking, std::int64_t now_ms);  // true: some of it is free
  void claim(std::uint32_t cls);
  void refresh_shadows(WallTime now, std::uint32_t turn = kNone);  // turn: the class whose it is
  std::int64_t longest_that_starts(std::uint32_t item, WallTime now) const;
  static std::int64_t done_by(std::int64_t length_ms, std::int64_t now_ms) {
    return length_ms == 0 ? 0 : now_ms + kProposalLife.count() + length_ms + kLeaving.count();
  }

  // ---- reading (explain.cpp)
  class Walk;
  struct Outlook {
    Reason reason;
    std::vector<std::pair<std::size_t, std::vector<WallTime>>> coming;
  };
  Reason reason_of(std::uint32_t item, WallTime now) const;
  Outlook outlook_of(std::uint32_t item, WallTime now) const;
  QueueView view_of(std::uint32_t item, std::uint32_t position, std::size_t before, const Outlook& outlook,
                    WallTime now) const;
  void tell_fair_share(std::uint32_t item, const Walk& walk, WallTime now, QueueView& view) const;
  std::vector<QueueView> page(WallTime now, std::size_t offset, std::size_t limit) const;
  QueueView view_of(ClusterId cluster, WallTime now) const;
  std::map<std::string, std::uint32_t> refused_by(NodeId node, WallTime now) const;
  std::vector<std::uint32_t> excluded(const Request& request, WallTime now) const;
  // Machines whose way to one that the request has already is known to carry less than it asks for.
  void each_too_slow(const Request& request, WallTime now, const std::function<void(std::uint32_t)>& each) const;
  std::optional<WallTime> hosts_from(const Query& query, std::uint32_t node, WallTime now) const;
  std::optional<WallTime> hosts_when_open(const Query& query, std::uint32_t node, WallTime now) const;

  const bool shares_mix, backfill;
  Pool pool;
  Usage usage;
  Network network;
  std::vector<std::uint32_t> places_in_gang; /* scratch of Placement::gather: by machine, all kNone in between */
  std::vector<Coordinate> places;            /* by machine, as far as it reaches */
  const Weights weights;                     // where none count
  const std::vector<std::uint32_t> nobody;
  Lines lines;
  std::vector<Item> items;
  std::vector<std::uint32_t> free_items;
  HashIndex item_index;
  std::size_t waiting = 0;
  std::vector<Class> classes;
  std::vector<std::uint32_t> free_classes;
  HashIndex class_index;
  std::vector<Lane> lanes;
  std::map<std::tuple<std::uint8_t, OrgId, ProjectId>, std::uint32_t> lane_index;
  SortedSets<Entry> since_sets;
  SortedSets<Entry>::Set ageing;  // by since
  SortedSets<Entry>::Set aged;    // those that aged and want to start
  std::vector<std::uint32_t> overdue;
  std::map<std::uint64_t, std::int64_t> hopeless;  // of the aged, what no machines are there for; until then
  std::int64_t overdue_ms = 0;                     // when they were looked for last
  std::vector<Sleeper> sleepers;
  std::size_t awake = 0;
  std::vector<Head> heads;
  std::int64_t heap_ms = 0;
  bool heap_good = false, turns_good = true;
  std::array<std::uint32_t, kTiers> turns{};                    // of the tiers, when they were looked at last
  std::map<std::uint32_t, std::vector<std::uint32_t>> latches;  // item -> machines that are kept for it
  std::vector<std::uint64_t> precedences;                       // by item; of those that keep machines
  std::vector<std::int64_t> shadows;                            // by item: when it can start; 0 = not known
  std::vector<std::uint32_t> shadows_due;                       // items whose shadow must be found anew
  std::int64_t shadows_ms = 0;                                  // when the last was
  bool shadows_stale = false;
  std::map<ClusterId, Proposal> proposals;
  std::set<std::pair<WallTime, ClusterId>> proposals_due;
  std::map<std::uint32_t, std::vector<ClusterId>> proposed_on;   // by machine
  std::set<std::pair<WallTime, std::uint32_t>> backoffs_due;     // classes with exclusions that end
  std::set<std::pair<std::int64_t, std::uint32_t>> latches_due;  // classes whose first may keep machines then
  std::vector<std::pair<ClusterId, std::uint64_t>> learned;      // what was learned from each cluster, hashed
  std::vector<std::uint32_t> free_learned;
  HashIndex learned_index;
  std::map<LeaseId, LeaseView> leases;
  std::map<NodeId, std::set<LeaseId>> leases_on;
  std::array<std::set<LeaseId>, kTiers> interruptible;  // by tier; those that may have to leave
  std::set<LeaseId> leaving;
  std::set<std::pair<WallTime, LeaseId>> ripening;  // of those, when they may
  std::map<std::uint32_t, Way> ways;                // by item
  std::map<ClusterId, Shape> shapes;
  std::map<ClusterId, std::set<LeaseId>> leases_of;         // of clusters that agreed to be interrupted
  std::map<std::pair<ClusterId, NodeId>, ClusterId> moves;  // who gets a place where, and the name of that proposal
  RunTimes run_times;
  std::deque<Arrival> arrivals;
  std::map<ClusterId, WallTime> ends;  // of clusters that have one
  std::map<ClusterId, Millis> starts;  // of clusters that start: how long they can last from then
  std::int64_t shadow_pause_ms = 0;    // between two shadows at least
  std::uint64_t seed = 0;
  bool frozen = false, playing = false;  // playing: a fork; what comes is no news
};

}  // namespace muster::scheduler
