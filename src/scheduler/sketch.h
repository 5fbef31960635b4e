#pragma once
// The futures of a long queue, drawn with fewer strokes than the planner's own play (forward.cpp). What all plays share
// is worked out once: the order, the machines that may serve each kind of need, what could start now (that is planned
// by the planner itself). Then every machine that gets free goes to the first of the order that it can host, found in
// logarithmic time, instead of every request looking for the best machine: on a full pool both are the same.
// As in the planner: every hard constraint, tiers, places by priority and fair share as of now, gangs that keep what
// they find after ten minutes, room that later tiers make, arrivals, hours of machines. Not as in the planner: shares
// change no more, no short work goes ahead on kept machines, nothing moves together, nothing is reclaimed by
// guarantees, a part of a GPU counts as a whole one. Single-threaded. Private.
#include <cstdint>
#include <map>
#include <vector>

#include "scheduler/impl.h"
#include "scheduler/tournament.h"

namespace muster::scheduler {

inline constexpr WallTime kNotYet{std::int64_t{1} << 46};  // a start beyond what was played
inline constexpr std::uint64_t kOwnClusters = std::uint64_t{1} << 39;

// More of what came lately, at the same rate, of the same kinds.
struct Stream {
  std::uint64_t coming = 0;
  std::int64_t gap_ms = 0;  // between two, on average; 0: nothing is known
  Stream(const std::deque<Arrival>& came, WallTime now);
  std::int64_t gap(std::uint64_t seed, std::uint64_t n) const;                                   // before the n-th
  std::size_t kind(std::uint64_t seed, std::uint64_t n, const std::deque<Arrival>& came) const;  // of the n-th
};

class Sketch {
 public:
  // Changes the fork: what can start now is started on it. `rows` are those that are asked for.
  Sketch(Scheduler::Impl& fork, WallTime now, const std::map<ClusterId, std::size_t>& rows);
  // When each of the rows starts in one future; kNotYet: not within the horizon.
  void play(std::uint64_t seed, const ForwardOptions& options, std::vector<WallTime>& starts);

 private:
  struct Part {  // machines of one kind that a request needs
    const Need* need = nullptr;
    std::uint32_t count = 0;
    std::uint8_t failover = kNotHeld;
    SlotRole role = SlotRole::Worker;
    Bound bound;
    bool plain = false; /* what the bound says is all there is to it, on machines for which that is enough */
  };
  struct Ask {  // what waits, or a kind that may come
    std::uint32_t first = 0, parts = 0, machines = 0;
    std::uint32_t cls = 0, lane = 0, row = kNone, curve = 0, run = kNone;  // run: of a cluster that runs already
    std::uint8_t tier = 1;
    std::int64_t since_ms = 0, key = 0;
    ClusterId cluster;
    Bound bound;
    std::vector<std::uint32_t> excluded;
  };
  struct Spot {  // a machine
    Amounts free;
    std::uint64_t devices = 0;
    std::uint32_t accepts = 0; /* row of accepts_ */
    std::uint32_t kept = kNone, leases = 0, first = kNone;
    std::int64_t until_ms = 0; /* end of its present hours; 0 = none */
    bool open = false, timed = false;
  };
  struct Hold {                                            // of a machine, by a run
    std::uint32_t node = kNone, run = kNone, next = kNone; /* the run's next */
    std::uint32_t after = kNone, before = kNone;           /* on the machine */
    Amounts amounts;
    std::uint64_t devices = 0;
    std::int64_t since_ms = 0;
    std::uint8_t tier = 1;
    bool may_leave = false, leaving = false, gone = false;
  };
  struct Run {
    std::uint32_t first = kNone; /* hold */
    std::uint32_t curve = 0;     /* how long it lasts */
    std::uint64_t cluster = 0;
    std::int64_t since_ms = 0, promised_ms = 0; /* promised: it ends by then; 0 = nobody said */
    bool over = false;
  };
  struct Leaf {  // a place in the order
    std::uint32_t ask = 0;
    std::uint64_t cluster = 0;
    std::int64_t since_ms = 0;
    std::uint32_t left = 0; /* of what grows */
  };
  struct Gathering {  // a gang that keeps what it finds, or who waits for others to leave
    std::uint32_t leaf = kNone;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> found; /* machine, part */
    std::vector<std::uint32_t> nodes;                           /* all that are kept for it */
    bool clearing = false;                                      /* others leave for it */
  };
  enum class What : std::uint8_t { RunEnds = 0, HoldEnds = 1, Opens = 2, Closes = 3, Latches = 4 };
  struct Due {
    std::int64_t at = 0;
    What what = What::RunEnds;
    std::uint32_t id = 0;
    auto operator<=>(const Due&) const = default;
  };
  struct Hours {
    std::uint32_t node = 0;
    Pool::Opening opening;
  };

  // ---- what all plays share
  void start_what_can(const std::map<ClusterId, std::size_t>& rows);
  void commit(ClusterId cluster, const std::vector<Place>& places);
  void add_machines();
  void add_leases();
  void add_asks(const std::map<ClusterId, std::size_t>& rows);
  Ask ask_for(std::uint32_t cls, std::uint32_t lane);
  std::uint64_t kind_bit(const Need& need);
  std::uint32_t accepts_row(std::uint32_t cls);
  std::uint32_t curve_of(OrgId tenant);
  void add_hold(std::uint32_t run, const Hold& hold);

  // ---- one play
  void line_up(std::uint64_t seed);
  void activate(std::uint32_t leaf);
  void happen(const Due& due);
  void push(std::int64_t at, What what, std::uint32_t id);
  void end_of_run(std::uint32_t run, std::int64_t elapsed_ms);
  void end_run(std::uint32_t run);
  void free(std::uint32_t hold);
  void show(std::uint32_t node);
  Query query_of(const Ask& ask, const Part& part) const;
  bool hosts(const Ask& ask, const Part& part, std::uint32_t node, const Spot& spot) const;
  std::uint32_t part_for(std::uint32_t leaf, std::uint32_t node) const;
  void serve(std::uint32_t node);
  void look_at_overdue();
  bool offer(std::uint32_t leaf, std::uint32_t node);
  std::uint32_t machine_for(const Ask& ask, const Part& part, std::uint32_t from) const;
  bool may_gather(std::uint32_t leaf) const;
  Gathering* gathering_of(std::uint32_t leaf);
  const Gathering* gathering_of(std::uint32_t leaf) const;
  void gather_free(std::uint32_t leaf);
  void start(std::uint32_t leaf, std::vector<std::pair<std::uint32_t, std::uint32_t>> found);
  void take(std::uint32_t run, const Ask& ask, const Part& part, std::uint32_t node);
  void release(std::uint32_t leaf);
  void make_room();
  bool make_room_for(std::uint32_t leaf);

  Scheduler::Impl& fork_;
  const WallTime began_;
  std::vector<Need> wholes_;  // needs that ask for parts of a GPU, with a whole one instead
  std::vector<Part> parts_;
  std::vector<Ask> asks_;
  std::uint32_t waiting_ = 0;  // of the asks, in order; the others are kinds that may come
  Stream stream_;
  struct Accepts {
    std::uint64_t may = 0, surely = 0;
  };
  std::vector<Accepts> accepts_;
  std::map<std::uint32_t, std::uint32_t> accepts_of_;  // by class of machine
  std::map<std::uint32_t, std::uint32_t> bit_of_;      // by constraint
  std::vector<Hours> hours_;
  std::vector<std::uint32_t> order_;  // of machines: those without a GPU first
  std::vector<std::uint32_t> place_;  // of each in it
  std::vector<RunTimes::Curve> curves_;
  std::map<OrgId, std::uint32_t> curve_of_;
  std::map<ClusterId, std::uint32_t> run_of_;
  std::vector<Gathering> first_gatherings_;  // leaf: of asks_
  std::vector<std::uint32_t> started_;       // rows

  struct State {
    std::vector<Spot> spots;
    std::vector<Hold> holds;
    std::vector<Run> runs;
    Tournament<false> machines;  // most that each has, by place
  };
  State base_, now_state_;
  std::int64_t now_ms_ = 0, end_ms_ = 0, least_key_ = 0;
  std::uint64_t seed_ = 0;
  std::vector<Leaf> leaves_;
  std::vector<std::uint32_t> leaf_of_;  // by ask
  struct Coming {
    std::int64_t at = 0;
    std::uint32_t ask = 0, leaf = kNone;
  };
  std::vector<Coming> comes_;  // by time
  std::vector<std::uint64_t> line_up_;
  std::vector<Bound> bounds_;
  Tournament<true> line_;  // least that each needs, by leaf
  std::vector<Due> due_;
  std::vector<Gathering> gatherings_;
  std::array<std::vector<std::uint32_t>, kTiers> young_,
      base_young_;   // holds that may have to leave, the cheapest last
  struct Hopeless {  // for what no work can leave: of this tier and later, this and more
    std::uint8_t tier = 255;
    Bound need;
  };
  std::array<Hopeless, 64> hopeless_;  // by kind
  std::uint32_t room_from_ = 0;
  std::size_t left_ = 0;
  bool makes_room_ = true;
  std::vector<WallTime>* starts_ = nullptr;
  // Those that wait, the oldest first, and which of them nobody passes now; as the planner's.
  std::vector<std::uint32_t> by_since_, overdue_;
  std::vector<std::int8_t> had_;  // of asks: could it be had at all? -1: not looked yet
  std::size_t next_overdue_ = 0;  // of by_since_, and after them of comes_
};

}  // namespace muster::scheduler
