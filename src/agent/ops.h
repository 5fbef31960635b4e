#pragma once
// The typed operations that the agent core asks of its runtime (containers, overlay, Ray, jobs, blobs), their results,
// and what the runtime tells on its own. Contract for a runtime: every operation is idempotent and may be issued again
// with a new op id when its result got lost; at most one lifecycle operation per lease is in flight, except that
// StopLease may overtake (and must cancel) a running one, and that ConfigureNetwork with a newer roster runs beside any
// of them once the network is there: who left a cluster must be cut off while others run a long setup. Reasons are
// stable codes ("image_pull.not_found"), never secrets or free text of tenants.
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/time.h"
#include "model/types.h"
#include "session/frames.h"

namespace muster::agent {

using OpId = std::uint64_t;

// The reason of an operation that failed because the container engine is not there: not counted as a fault.
inline constexpr std::string_view kEngineGone = "engine.gone";

// ---- lifecycle of a lease: one in flight per lease
// `lock`: of a pinned virtual environment, complete in the blob cache. The registry's account is never written down.
// What the image turns out to be must satisfy all the policies, with the name `asked`, before anything of it runs.
struct EnsureImage {
  LeaseId lease;
  std::string image;
  RuntimeKind runtime = RuntimeKind::Docker;
  std::string lock, registry_user;
  Bytes registry_password;
  std::string asked = {};
  std::vector<ImagePolicy> policies = {};
  bool operator==(const EnsureImage&) const = default;
};  // -> ImageReady
struct ProbeImage {
  LeaseId lease;
  std::string digest;
  RuntimeKind runtime = RuntimeKind::Docker;
  bool operator==(const ProbeImage&) const = default;
};  // -> ImageProbe
// Namespace, persistent TUN, overlay key and container made, the helper running in it, Ray not started. Workspace kept
// when it exists. `assignment` has neither roster nor jobs; the runtime stores it beside the workspace and returns it
// when it adopts.
struct CreateLease {
  Assignment assignment;
  std::string digest, pinned;
  bool operator==(const CreateLease&) const = default;
};  // -> LeaseCreated
// Applied to the overlay at once, also while Ray runs; `entries` is what the verified bytes say. Empty secrets = keep
// those known.
struct ConfigureNetwork {
  LeaseId lease;
  ClusterId cluster;
  std::uint64_t roster_epoch = 0;
  session::SignedRoster roster;
  std::vector<RosterEntry> entries;
  Bytes relay_token, psk;
  std::vector<std::string> relays;  // of a server that tells no grants
  std::vector<session::RelayGrant> grants;
  bool operator==(const ConfigureNetwork&) const = default;
};
// A token that says who the cluster or a job is, as a file beside the Ray token; a newer one takes its place.
struct PutIdentity {
  LeaseId lease;
  session::IdentityToken token;
  bool operator==(const PutIdentity&) const = default;
};
struct RunSetup {
  LeaseId lease;
  std::vector<std::string> commands;
  std::vector<FileMount> files;
  bool operator==(const RunSetup&) const = default;
};  // files are complete in the blob cache
// Result ok = the processes were launched; ready is told by the event RayReady. Empty token = use the one already on
// the tmpfs.
struct StartRay {
  LeaseId lease;
  SlotRole role = SlotRole::Worker;
  std::uint32_t address = 0, head_address = 0;
  Bytes ray_token;
  Resources resources;
  std::map<std::string, std::string> labels;
  std::uint32_t restarts = 0;
  bool operator==(const StartRay&) const = default;
};
struct DrainRay {
  LeaseId lease;
  Millis deadline{0};
  bool operator==(const DrainRay&) const = default;
};  // ok = drained, or deadline over
struct StopLease {
  LeaseId lease;
  Millis grace{0};
  std::string why;
  bool operator==(const StopLease&) const = default;
};  // ok = nothing of it runs, devices free; workspace kept
struct RemoveLease {
  LeaseId lease;
  bool operator==(const RemoveLease&) const = default;
};  // container, namespace, TUN, key, workspace gone

// ---- jobs: one in flight per job
struct SubmitJob {
  LeaseId lease;
  JobOrder order;
  bool operator==(const SubmitJob&) const = default;
};  // idempotent by (job, attempt)
struct StopJob {
  LeaseId lease;
  JobId job;
  std::uint32_t attempt = 0;
  bool operator==(const StopJob&) const = default;
};
struct ReadJobLog {
  LeaseId lease;
  JobId job;
  std::uint32_t attempt = 0;
  std::uint64_t offset = 0;
  std::uint32_t bytes_max = 0;
  bool operator==(const ReadJobLog&) const = default;
};  // -> LogData

// ---- blobs (sha256 hex), kept in the runtime's bounded cache: one in flight per blob
struct FindBlob {
  std::string blob;
  bool operator==(const FindBlob&) const = default;
};  // -> BlobState
struct WriteBlob {
  std::string blob;
  std::uint64_t offset = 0;
  Bytes data;
  bool last = false;
  bool operator==(const WriteBlob&) const = default;
};  // -> BlobState; hash checked at `last`

using Op = std::variant<EnsureImage, ProbeImage, CreateLease, ConfigureNetwork, RunSetup, StartRay, DrainRay, StopLease,
                        RemoveLease, SubmitJob, StopJob, ReadJobLog, FindBlob, WriteBlob, PutIdentity>;

struct ImageReady {
  std::string digest, pinned;  // pinned: what other machines ask for to get the same; empty = nobody else can
  Bytes lock;                  // of a virtual environment, for them
  bool operator==(const ImageReady&) const = default;
};
struct LeaseCreated {
  Bytes overlay_key, overlay_signature;
  bool operator==(const LeaseCreated&) const = default;
};
struct LogData {
  Bytes data;
  std::uint64_t log_bytes = 0; /* size of the log now */
  bool operator==(const LogData&) const = default;
};
struct BlobState {
  bool complete = false;
  std::uint64_t have = 0; /* bytes of a partial one */
  bool operator==(const BlobState&) const = default;
};

struct OpResult {
  OpId op = 0;
  bool ok = true;
  std::string reason;     /* stable code when !ok */
  bool permanent = false; /* retrying is pointless */
  std::variant<std::monostate, ImageReady, ImageProbe, LeaseCreated, LogData, BlobState> value;
  std::string output = {};   /* when !ok: its last lines, for the tenant's eyes */
  std::string packages = {}; /* of ProbeImage: what is installed in the image (scan/inventory.h), for the server */
  bool operator==(const OpResult&) const = default;
};

// ---- what the runtime finds after a restart of the agent or of the engine
struct AdoptedLease {
  Assignment assignment; /* as given to CreateLease */
  bool container_running = false, ray_running = false, ray_ready = false, setup_done = false;
  std::uint64_t roster_epoch = 0; /* configured in the overlay; 0 = none */
  Bytes overlay_key, overlay_signature;
  ImageProbe probe;
  std::string ray_node_id, pinned;
  Bytes lock;
  std::string packages = {};
  bool operator==(const AdoptedLease&) const = default;
};
struct Found {
  std::vector<AdoptedLease> leases;
  bool operator==(const Found&) const = default;
};

// ---- events: told when they happen, may repeat
struct ContainerExited {
  LeaseId lease;
  std::int32_t exit_code = 0;
  std::string reason;
  bool operator==(const ContainerExited&) const = default;
};
struct RayReady {
  LeaseId lease;
  std::string ray_node_id;
  bool operator==(const RayReady&) const = default;
};  // Ray itself says so
struct RayExited {
  LeaseId lease;
  std::int32_t exit_code = 0;
  std::string reason;
  std::string output = {}; /* its last lines */
  bool operator==(const RayExited&) const = default;
};
struct JobStatus {
  LeaseId lease;
  ObservedJob job;
  bool operator==(const JobStatus&) const = default;
};
struct RayReported {
  RayReport report;
  bool operator==(const RayReported&) const = default;
};
struct PullProgress {
  LeaseId lease;
  std::uint64_t done_bytes = 0, total_bytes = 0;
  bool operator==(const PullProgress&) const = default;
};
struct EngineGone {
  bool operator==(const EngineGone&) const = default;
};
struct EngineBack {
  Found found;
  bool operator==(const EngineBack&) const = default;
};
using RuntimeEvent =
    std::variant<ContainerExited, RayReady, RayExited, JobStatus, RayReported, PullProgress, EngineGone, EngineBack>;

}  // namespace muster::agent
