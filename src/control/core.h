#pragma once
// The deterministic core. decide() looks at state, command and time and refuses or emits events with everything
// resolved; apply() is the only mutator and makes no decision, so replay never depends on the version of the logic. No
// clock, I/O, randomness, threads, floating point or unordered iteration. Single-threaded; a State may be copied
// (snapshots, forks).
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "control/command.h"
#include "control/event.h"
#include "control/state.h"

namespace muster::control {

struct Decision {
  std::vector<Event> events;
  Outcome outcome;
};

// actor.subject has been authenticated by the caller; authorisation is decided (again) here, by access::check.
Result<Decision> decide(const State& state, const Command& command, const Actor& actor, Now now);
void apply(State& state, const Event& event, const EntryContext& context);

// Event codec: own compact encoding, each event with the format it was written in (1..kFormatVersion). An unknown type
// or damage -> DataLoss, a format from the future -> Unsupported. Golden bytes of every type in the tests. Written is
// what the journal was raised to (State::format_version), so that every member can read it; an event type that came
// later than that must not be written.
Bytes encode(const Event& event, std::uint32_t format = kFormatVersion);
Result<Event> decode_event(ByteView bytes);
std::uint32_t format_needed(const Event& event);
// Snapshot of the whole state; decode(encode(s)) == s. digest: SHA-256 of it, for comparing folds.
Bytes encode_state(const State& state, std::uint32_t format = kFormatVersion);
Result<State> decode_state(ByteView bytes);
std::uint32_t snapshot_format(ByteView bytes);  // 0 = not one of ours
Bytes state_digest(const State& state, std::uint32_t format = kFormatVersion);

// Everything the outside must now do, recomputed from state: all assignments of a node with the node's desired
// revision. Stopped leases stay in it with want = Stop until the stop is confirmed or the lease ended.
std::vector<Assignment> desired_for(const State& state, NodeId node);

// The planner's seam: the changes that one entry caused, and all of them for a rebuild.
std::vector<scheduler::Change> planner_changes(const State& state, const Event& event);
std::vector<scheduler::Change> planner_snapshot(const State& state);

// A cluster as it would be if it were asked for now, refused as CreateCluster would be; nothing is changed. `request`
// is for a fork of the planner; `quota`: why the planner would not even be asked.
struct WhatIf {
  Cluster cluster;
  scheduler::Change request;
  std::optional<scheduler::Reason> quota;
};
Result<WhatIf> what_if(const State& state, const CreateCluster& command, const Actor& actor, Now now);

}  // namespace muster::control
