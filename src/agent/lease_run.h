#pragma once
// One lease on this node: what is wanted of it, what exists of it, and the next operation that brings the second nearer
// to the first. Pure decisions over plain data; Core performs them. Once `over` is set (end of the lease, failure,
// stop) the lease never runs again under this epoch. Single-threaded.
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "agent/core.h"

namespace muster::agent {

inline constexpr std::size_t kOutputBytes = 2000;

struct LeaseRun {
  // wanted
  Assignment want;
  bool in_desired = true;
  session::LeaseSecrets secrets;
  std::optional<session::SignedRoster> roster;
  OpenedRoster opened;
  // exists
  std::string digest, pinned;
  Bytes lock;
  ImageProbe probe;
  std::string packages;  // what is installed in the image
  bool probed = false, created = false, network = false, setup_done = false, ray_started = false, ray_ready = false,
       drained = false;
  bool touched = false;  // anything was ever made: a stop must be confirmed by the runtime
  bool stopped = false, removed = false;
  std::uint64_t configured_epoch = 0;
  bool secrets_sent = false;
  Bytes overlay_key, overlay_signature;
  std::string ray_node_id;
  // its life
  bool over = false, failed = false;
  bool stopping = false;  // a stop is under way: it waits for no back-off of what was tried before
  std::string reason;
  std::string output;  // last lines of what failed last; not remembered over a restart of the agent
  LeaseTime end{0};
  std::uint32_t restarts = 0, in_a_row = 0, faults = 0, engine_misses = 0;
  LeaseTime ready_since{0}, started_at{0}, retry_at{0}, gone_at{0};
  OpId op = 0;  // lifecycle operation in flight
  // A newer roster on its way into the network, beside whatever else is under way.
  OpId network_op = 0;
  // The same for identity tokens: what lies there now, by name.
  OpId identity_op = 0;
  std::map<std::string, Bytes> identities;
  std::uint32_t identity_faults = 0;
  LeaseTime identity_retry_at{0};
  std::uint32_t network_faults = 0;
  LeaseTime network_retry_at{0};
};

struct LeaseView {  // what the decision may look at beside the lease
  Now now;
  bool stop_all = false;  // paused now, leaving
  bool engine_up = true, devices_free = true, blobs_ready = true, lock_ready = true, logs_done = true;
  const Options* options = nullptr;
  const std::vector<std::string>* relays = nullptr;
};

// The next lifecycle operation, or none when the lease is as wanted or must wait.
std::optional<Op> next_op(const LeaseRun& run, const LeaseView& view);
// The network is there and lacks the newest roster or secrets.
std::optional<Op> network_op(const LeaseRun& run, const LeaseView& view);
// An identity token is not there yet, or an older one is.
std::optional<Op> identity_op(const LeaseRun& run, const LeaseView& view);
bool must_stop(const LeaseRun& run, bool stop_all);
LeasePhase phase_of(const LeaseRun& run);
ObservedLease observed_of(const LeaseRun& run);
// Takes a successful result in. `op` is what was asked.
void succeed(LeaseRun& run, const Op& op, const OpResult& result, Now now);
// Ray or the container ended by itself: restart in place, or over.
void crash(LeaseRun& run, const std::string& reason, bool container, const Options& options, Now now, Millis jitter);
// The container ended with its engine: begun anew in place, and no fault of what ran in it.
void interrupt(LeaseRun& run);
// The cluster's image is settled: what its first member resolved. True: what runs here is another one and must go.
bool change_image(LeaseRun& run, const std::string& image);
// The blob that holds the lock of a pinned virtual environment; empty = none is needed.
std::string lock_blob(const Assignment& want);
void adopt(LeaseRun& run, const AdoptedLease& found, Now now);
// At most kOutputBytes of the end of `text`, from the start of a line if it has one.
std::string last_lines(const std::string& text);
const RosterEntry* roster_self(const LeaseRun& run);
bool roster_allows_ray(const LeaseRun& run);

}  // namespace muster::agent
