#pragma once
// The agent of one node as a sans-I/O state machine: it compares what the server wants (Desired) with what runs
// (results and events of the runtime) and issues what is missing. Level-triggered: anything may be lost, repeated or
// reordered. It fences itself: a lease that was not renewed in time is stopped, whatever the server or the link do.
// Single-threaded; time and randomness are arguments. The owner of the object calls one input, then take_actions() and
// performs them in order, and calls tick() no later than next_deadline(). Stream*, CertIssued frames and telemetry are
// the host's own; see lease_running().
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "agent/ops.h"
#include "base/result.h"
#include "base/time.h"
#include "session/frames.h"

namespace muster::agent {

struct SendFrame {
  session::AgentFrame frame;
};
struct StartOp {
  OpId id = 0;
  Op op;
};
struct CancelOp {
  OpId id = 0;
};               // no longer wanted; its result will be ignored
struct Dial {};  // open the link, then on_link_up or on_link_down
struct DropLink {
  std::string reason;
};  // close it; no on_link_down needed
struct Persist {
  Bytes bytes;
};  // write atomically and durably before performing any later action
struct SetTelemetry {
  bool live = false;
};  // 1 Hz while somebody watches
struct OwnerDone {
  std::string what;
};  // "leave": everything that the agent made is removed
using Action = std::variant<SendFrame, StartOp, CancelOp, Dial, DropLink, Persist, SetTelemetry, OwnerDone>;

enum class OwnerAction : std::uint8_t { Pause, PauseNow, Resume, Drain, Leave };

// What a verified roster says; the host opens it (signature, domain, bounds) with overlay's reader.
struct OpenedRoster {
  ClusterId cluster;
  std::uint64_t epoch = 0;
  std::vector<RosterEntry> entries;
  bool operator==(const OpenedRoster&) const = default;
};

struct Hooks {
  std::function<std::pair<Bytes, Bytes>(ByteView)> sign_tpm;     // session::Link::Options
  std::function<Bytes(ByteView message)> sign;                   // device key, Ed25519
  std::function<bool(const session::Desired&)> desired_genuine;  // controller's signature for this node
  std::function<Result<OpenedRoster>(const session::SignedRoster&, const Bytes& roster_key)> open_roster;
};
struct Options {
  std::string agent_version, boot_id, certificate_pem;
  std::vector<std::string> features;  // must-understand names that we know
  std::uint64_t seed = 0;             // of the jitter
  std::uint32_t head_restarts_max = 8, worker_restarts_max = 1;
  Millis restart_window{600'000};  // Ready for so long: the count of restarts in a row begins anew
  Millis ray_ready_timeout{240'000}, drain_deadline{60'000}, stop_grace{10'000};
};

class Core {
 public:
  Core(Options options, Hooks hooks, NodeFacts facts);
  ~Core();
  Core(Core&&) noexcept;
  Core& operator=(Core&&) noexcept;

  // Once, before any other input: the bytes of the last Persist (empty on a first start; damaged ones count as empty
  // but every adopted lease then ends) and what the runtime found running.
  void start(ByteView persisted, const Found& found, Now now);
  void on_link_up(Now now);    // the WebSocket is open; the server speaks first (Challenge)
  void on_link_down(Now now);  // also for a failed Dial
  void on_frame(const session::ServerFrame& frame, Now now);
  void on_result(const OpResult& result, Now now);
  void on_event(const RuntimeEvent& event, Now now);
  void on_owner(OwnerAction action, const std::string& reason, Now now);
  void set_facts(NodeFacts facts, Now now);  // new capacity, devices, cached images, LAN endpoints
  void set_certificate(std::string pem);     // renewed: used from the next Hello on
  void tick(Now now);

  std::vector<Action> take_actions();
  LeaseTime next_deadline() const;

  // Views for `status`, doctor, streams and tests.
  bool online() const;                      // welcomed on the current link
  bool ready() const;                       // and the control plane has taken this machine as online
  bool lease_running(LeaseId lease) const;  // may streams and forwards be opened into it now
  std::optional<Assignment> assignment(LeaseId lease) const;
  std::optional<LeaseTime> lease_end(LeaseId lease) const;  // when it fences itself unless renewed
  std::vector<ObservedLease> observed_leases() const;
  std::vector<ObservedJob> observed_jobs() const;
  bool paused() const;
  bool paused_now() const;           // and what runs is stopped
  std::string held() const;          // why the server gives this machine nothing new, or empty
  std::string last_refusal() const;  // what the server said when it refused the session, or empty

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace muster::agent
