#pragma once
// What agent and server say to each other, as values; wire/agent_frames turns them into protobuf bytes (one frame = one
// binary WebSocket message). Level-triggered: Desired carries all assignments of the node with a revision, Observed all
// that the agent sees; losing, repeating or reordering either cannot hurt. Limits: a frame <= 1 MiB, a stream chunk <=
// 64 KiB.
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "model/types.h"

namespace muster::session {

inline constexpr std::uint32_t kProtocolVersion = 1;     // the newest we speak
inline constexpr std::uint32_t kProtocolVersionMin = 1;  // the oldest we accept (window stated in docs)
inline constexpr std::size_t kFrameBytesMax = 1 << 20;
inline constexpr std::size_t kChunkBytesMax = 64 << 10;

// ---- server -> agent
struct Challenge {
  Bytes nonce; /* 32 B */
  std::string server_id;
  std::uint32_t version_min = kProtocolVersionMin, version_max = kProtocolVersion;
  bool operator==(const Challenge&) const = default;
};
struct Welcome {
  NodeId node;
  std::uint64_t session = 0;
  Millis heartbeat{5000};
  Millis lease{2'400'000};
  WallTime server_time;
  std::uint64_t incarnation = 0;
  Bytes roster_key;                /* Ed25519 public of the roster signer */
  std::vector<std::string> relays; /* host:port */
  bool want_inventory = true;
  std::vector<std::string> features; /* frames beyond the first version that this server takes: "net" = NetReport,
                                        "peer" = NetPath::Peer in it, "trust" = TrustTaken, "keys" = KeysTaken,
                                        "packages" = PackagesOffer */
  std::vector<std::string> probe_relays = {}; /* host:port; round trips to their UDP ports go into Telemetry */
  bool operator==(const Welcome&) const = default;
};
// A refused session: what to do is in the message; retry_after 0 = do not come back (revoked, clone).
struct Refused {
  std::string code, message;
  Millis retry_after{0};
  bool operator==(const Refused&) const = default;
};
// One relay, with the token that lets this lease's key in.
struct RelayGrant {
  std::string address, region; /* host:port */
  Bytes token;
  bool operator==(const RelayGrant&) const = default;
};
inline constexpr std::size_t kRelaysMax = 8;
struct IdentityToken {
  std::string name;  // of the file beside the Ray token: "identity", "identity-job-7"
  Bytes token;
  bool operator==(const IdentityToken&) const = default;
};
inline constexpr std::size_t kIdentitiesMax = 64;
struct LeaseSecrets {
  LeaseId lease;
  Bytes ray_token;
  Bytes relay_token;
  Bytes psk;
  std::string registry_user;  // of the image's registry, while the image is not there yet; never written down
  Bytes registry_password;
  std::vector<RelayGrant> relays = {};  // instead of Welcome's and relay_token, which older agents use
  std::vector<IdentityToken> identities = {};
  bool operator==(const LeaseSecrets&) const = default;
};
struct SignedRoster {
  ClusterId cluster;
  Bytes bytes;
  std::vector<Bytes> signatures;
  Bytes machines = {};  // proofs of the CA for its members (crypto/machine_proof.h); renewed while the roster stays
  std::vector<Bytes> keys = {};  // which key made each signature (crypto::short_key_id); empty: it does not say
  bool operator==(const SignedRoster&) const = default;
};
struct Desired {
  std::uint64_t incarnation = 0, revision = 0;
  std::vector<Assignment> assignments;
  std::vector<LeaseSecrets> secrets;
  std::vector<SignedRoster> rosters;
  Bytes signature;          /* controller over (node, incarnation, revision, assignment bytes) */
  Bytes signature_key = {}; /* which key made it (crypto::short_key_id); empty: it does not say */
  bool operator==(const Desired&) const = default;
};
// Answer to a Heartbeat: leases renewed for `lease` counted from the send of that heartbeat (`echo`).
struct Renewed {
  std::uint64_t echo = 0;
  std::vector<LeaseId> leases;
  Millis lease{0};
  std::string held = {};  // why the machine gets nothing new: holes known in its versions; empty: no such reason
  bool operator==(const Renewed&) const = default;
};
struct LogAck {
  JobId job;
  std::uint32_t attempt = 0;
  std::uint64_t offset = 0; /* stored up to here */
  bool operator==(const LogAck&) const = default;
};
struct BlobChunk {
  std::string blob;
  std::uint64_t offset = 0;
  Bytes data;
  bool last = false;
  std::string error;
  bool operator==(const BlobChunk&) const = default;
};
struct Watch {
  bool live = false; /* telemetry at 1 Hz instead of roll-ups */
  bool operator==(const Watch&) const = default;
};
struct CertIssued {
  Bytes der_chain_pem;
  bool operator==(const CertIssued&) const = default;
};

// Whom to believe from now on (crypto/trust.h). Sent only to agents that said TrustTaken.
struct TrustTold {
  Bytes pem;
  bool operator==(const TrustTold&) const = default;
};
// Whose signatures count from now on (crypto/signing_keys.h). Sent only to agents that said KeysTaken.
struct KeysTold {
  Bytes text;
  bool operator==(const KeysTold&) const = default;
};

// ---- agent -> server
// Proof of identity: device certificate + signature over ("muster-agent-hello-v1", nonce, server_id) with the device
// key.
struct Hello {
  std::uint32_t version = kProtocolVersion;
  std::string certificate_pem;
  Bytes signature;
  std::string agent_version;
  std::string boot_id;
  Bytes inventory_digest;
  std::uint64_t revision_seen = 0, incarnation_seen = 0;
  std::vector<std::string> features;
  Millis uptime{0};                        /* of the machine under this boot id */
  Bytes tpm_key = {}, tpm_signature = {};  // of a machine with a key in its TPM (crypto/tpm_key.h), over the same
  bool operator==(const Hello&) const = default;
};
struct Inventory {
  NodeFacts facts;
  std::vector<ObservedLease> leases;
  std::vector<ObservedJob> jobs;
  bool operator==(const Inventory&) const = default;
};
struct Observed {
  std::uint64_t revision = 0; /* applied */
  std::vector<ObservedLease> leases;
  std::vector<ObservedJob> jobs;
  bool operator==(const Observed&) const = default;
};
struct Heartbeat {
  std::uint64_t echo = 0;
  std::vector<LeaseId> leases;
  std::uint64_t incarnation = 0, revision = 0; /* of the Desired applied last */
  bool operator==(const Heartbeat&) const = default;
};
struct LogChunk {
  JobId job;
  std::uint32_t attempt = 0;
  std::uint64_t offset = 0;
  Bytes data;
  bool operator==(const LogChunk&) const = default;
};
struct RayReportFrame {
  RayReport report;
  bool operator==(const RayReportFrame&) const = default;
};
struct BlobRequest {
  std::string blob;
  std::uint64_t offset = 0;
  bool operator==(const BlobRequest&) const = default;
};
// How far an image is on this machine; total 0 = not known. Transient: shown, never journalled.
struct PullReport {
  LeaseId lease;
  std::uint64_t done_bytes = 0, total_bytes = 0;
  bool operator==(const PullReport&) const = default;
};
// What a virtual environment was resolved to here, for the other members of its cluster.
struct LockOffer {
  LeaseId lease;
  Bytes lock;
  bool operator==(const LockOffer&) const = default;
};
// What is installed in the image of a lease, by the image's own lists (scan/inventory.h).
struct PackagesOffer {
  LeaseId lease;
  std::string image;  // as the lease's probe names it
  std::string packages;
  bool operator==(const PackagesOffer&) const = default;
};
struct CertRequest {
  Bytes csr_pem;
  bool operator==(const CertRequest&) const = default;
};
struct GpuSample {
  std::string uuid;
  std::uint32_t use_percent = 0, temperature_c = 0, power_w = 0;
  std::uint64_t memory_used_bytes = 0, memory_total_bytes = 0;
  std::uint32_t power_limit_w = 0, sm_mhz = 0, memory_mhz = 0;
  std::uint64_t ecc_corrected = 0, ecc_uncorrected = 0; /* since the driver started */
  std::uint32_t xid = 0, xid_count = 0;                 /* the last Xid code; how many since the agent started */
  bool operator==(const GpuSample&) const = default;
};
struct ContainerSample {
  LeaseId lease;
  std::uint64_t cpu_milli = 0, memory_bytes = 0, pids = 0;
  std::uint64_t net_rx_bytes_s = 0, net_tx_bytes_s = 0; /* of the cluster's network */
  std::uint64_t gpu_memory_bytes = 0;
  bool operator==(const ContainerSample&) const = default;
};
struct RelaySeen {
  std::string address; /* host:port, as Welcome says it */
  std::uint32_t rtt_us = 0;
  bool operator==(const RelaySeen&) const = default;
};
// One second while somebody watches, else a roll-up: rates and use are means over `window`, the rest is the last value.
struct Telemetry {
  WallTime at;
  std::uint64_t cpu_milli = 0, memory_used_bytes = 0, memory_total_bytes = 0, disk_free_bytes = 0, net_rx_bytes_s = 0,
                net_tx_bytes_s = 0;
  std::vector<GpuSample> gpus;
  std::vector<ContainerSample> containers;
  std::uint64_t cpu_peak_milli = 0, cpu_total_milli = 0, disk_total_bytes = 0, disk_read_bytes_s = 0,
                disk_write_bytes_s = 0;
  Millis window{0};
  std::string owner; /* why the owner's limits keep this machine from being hired now; empty = they do not */
  std::vector<RelaySeen> relays = {}; /* measured since the last Telemetry; at most kRelaysMax */
  bool operator==(const Telemetry&) const = default;
};
// How one lease's network stands, for people to look at: transient, never journalled, and only for a server whose
// Welcome has "net". Fields may be added; a `version` above ours means that what is there has changed, and is not read.
// The pairs in use come first, at most kNetPairsMax; `others` says how many there are.
inline constexpr std::uint32_t kNetReportVersion = 1;
inline constexpr std::size_t kNetPairsMax = 64, kNetTriesMax = 10, kNetSeenMax = 3;
inline constexpr std::uint32_t kNetMtuFull = 1376;         // what relays carry: less is narrow
inline constexpr std::size_t kNetPairsOfMachineMax = 256;  // in all of its reports together
inline constexpr std::size_t kNetMappedMax = 16;
inline constexpr std::size_t kNetCarriedMax = 64, kNetForwardedMax = 64;
// None: never talked; Lan: to a private address; Peer: another member carries it.
enum class NetPath : std::uint8_t { None, Relay, Lan, Direct, Peer };
enum class NetOrigin : std::uint8_t { Roster, Told, Heard, Offered }; /* Offered: by a member that would carry */
struct NetPlace {
  std::uint32_t ip = 0; /* IPv4, host order */
  std::uint16_t port = 0;
  Bytes six = {}; /* IPv6, sixteen bytes, instead */
  bool operator==(const NetPlace&) const = default;
};
struct NetTry {
  NetPlace at;
  NetOrigin origin = NetOrigin::Roster;
  std::uint32_t sent = 0, answered = 0;
  bool full = false; /* a probe of full size was answered */
  std::uint32_t rtt_us = 0;
  bool tunnel = false; /* the way there leads through a tunnel of its machine, so it is not tried */
  bool operator==(const NetTry&) const = default;
};
// Small probes from end to end by one of the relays.
struct NetRelayTry {
  std::uint32_t relay = 0; /* which of the report's, from 1 on */
  std::uint32_t sent = 0, answered = 0, rtt_us = 0;
  bool operator==(const NetRelayTry&) const = default;
};
struct NetPair {
  std::uint32_t address = 0; /* the other's in the overlay */
  NetPath path = NetPath::None;
  NetPlace at;                       /* of a direct path */
  std::uint32_t rtt_us = 0;          /* smoothed; 0 = not known */
  std::uint32_t relay_rtt_us = 0;    /* of the last time by the relay */
  std::uint32_t asked = 0, lost = 0; /* of the last 32 probes of this path */
  std::uint32_t changes = 0;         /* of the path */
  std::uint64_t age_ms = 0, handshake_age_ms = 0;
  std::uint64_t rx_bytes = 0, tx_bytes = 0;
  std::vector<NetTry> tries;
  std::uint64_t rx_bytes_s = 0, tx_bytes_s = 0; /* of the last seconds */
  std::uint64_t carries_bytes_s = 0,
                carries_age_ms = 0; /* to the other, as its full path was last measured; 0 = never full */
  std::uint32_t relay = 0;          /* by which it goes or would go: which of the report's, from 1 on; 0 = by none */
  std::vector<NetRelayTry> relays = {};
  std::uint32_t by = 0;               /* who carries it, in the overlay; only where the path is Peer */
  std::uint32_t mtu = 0;              /* the largest packet that fits through the path; 0 = not told */
  bool relay_udp = false;             /* where the path is Relay: what this end sends goes to it over UDP, not TLS */
  bool tested = false;                /* a test filled it when carries_bytes_s was measured, not programs */
  std::uint64_t at_least_bytes_s = 0; /* a test of so much did not fill it; 0 = none, or it was full since */
  std::uint64_t at_least_age_ms = 0;
  bool hidden = false; /* the other says that its owner hides its address */
  bool operator==(const NetPair&) const = default;
};
struct NetRelay {
  std::string address, region; /* host:port */
  bool up = false;
  std::uint32_t rtt_us = 0, udp_rtt_us = 0; /* over TLS; of its UDP port; 0 = not known */
  bool by_udp = false;                      /* what goes by it goes over UDP now, not TLS */
  bool operator==(const NetRelay&) const = default;
};
// What this end sent to, and got from, `with` by way of `by`, in bytes of ciphertext since counted_from.
struct NetCarried {
  std::uint32_t by = 0, with = 0; /* in the overlay */
  std::uint64_t sent = 0, received = 0;
  bool operator==(const NetCarried&) const = default;
};
// What this machine carried for others: its own word, worth what both ends sign.
struct NetForwarded {
  std::uint32_t from = 0, to = 0;
  std::uint64_t bytes = 0;
  bool operator==(const NetForwarded&) const = default;
};
// Are large packets handed to the kernel whole, and if not, why: the owner switched it off, this kernel damages them,
// it refuses them, they got lost where single ones did not; Compares: it is being found out. None: an older agent.
enum class NetLarge : std::uint8_t { None, Used, Owner, Kernel, Refused, Compares, Lost };
std::string_view text(NetLarge large);
struct NetReport {
  std::uint32_t version = kNetReportVersion;
  LeaseId lease;
  bool relay_up = false;
  std::string relay; /* host:port */
  std::uint16_t udp_port = 0;
  std::vector<NetPlace> seen; /* how the relays' UDP ports see this machine; empty: no answer comes */
  std::uint32_t others = 0;
  std::vector<NetPair> pairs;
  std::vector<NetRelay> relays = {};
  bool carries = false;     /* the owner lets this machine carry what others of its clusters send each other */
  WallTime counted_from{0}; /* a new life of netd counts anew */
  std::vector<NetCarried> carried = {};
  std::vector<NetForwarded> forwarded = {};
  Bytes counts_signature = {};                                     /* of carried, by the device key (sign_carried) */
  NetLarge large_udp = NetLarge::None, large_tun = NetLarge::None; /* what is sent; what is given to containers */
  bool relay_only = false; /* the owner hides this machine's address: all goes by relays */
  bool in_tunnel = false;  /* the way to the internet leads through a tunnel: no direct way is tried there */
  std::string mapped = {}; /* how the outside of its port is known besides: "PCP", "owner"; empty = not */
  bool operator==(const NetReport&) const = default;
};
struct Goodbye {
  std::string reason;
  bool leave = false; /* the owner leaves the platform */
  bool operator==(const Goodbye&) const = default;
};
struct OwnerPause {
  bool paused = false;
  bool now = false;
  std::string reason;
  bool operator==(const OwnerPause&) const = default;
};

// ---- streams (exec, attach, port-forward, rsync), either way; opened by the server after its access check
// Flow control: after StreamOpen each side may send kStreamWindowBytes of StreamData; StreamWindow adds to that.
inline constexpr std::uint32_t kStreamWindowBytes = 256 << 10;
enum class StreamKind : std::uint8_t { Exec = 1, Tcp = 2, ReadFile = 3, WriteFile = 4 };
struct StreamOpen {
  std::uint64_t stream = 0;
  LeaseId lease;
  StreamKind kind = StreamKind::Exec;
  std::vector<std::string> argv;
  bool tty = false;
  std::uint16_t rows = 0, cols = 0;
  std::uint16_t port = 0;
  std::string path;
  bool operator==(const StreamOpen&) const = default;
};
struct StreamData {
  std::uint64_t stream = 0;
  std::uint8_t channel = 0; /* 0 in/out, 1 stderr */
  Bytes data;
  bool operator==(const StreamData&) const = default;
};
struct StreamWindow {
  std::uint64_t stream = 0;
  std::uint32_t credit = 0; /* more bytes the peer may send */
  bool operator==(const StreamWindow&) const = default;
};
struct StreamResize {
  std::uint64_t stream = 0;
  std::uint16_t rows = 0, cols = 0;
  bool operator==(const StreamResize&) const = default;
};
struct StreamEof {
  std::uint64_t stream = 0;
  bool operator==(const StreamEof&) const = default;
};  // half close
struct StreamClose {
  std::uint64_t stream = 0;
  std::int32_t exit_code = 0;
  std::string error;
  bool operator==(const StreamClose&) const = default;
};

// What the agent believes now: after each Welcome that has the feature "trust", and after each TrustTold.
struct TrustTaken {
  std::uint64_t revision = 0;
  Bytes sha256;  // of the whole text
  bool operator==(const TrustTaken&) const = default;
};

// Which signing keys the agent believes now: after each Welcome that has the feature "keys", and after each KeysTold.
struct KeysTaken {
  std::uint64_t revision = 0;  // 0: those it enrolled with
  Bytes sha256;                // of the whole text
  bool operator==(const KeysTaken&) const = default;
};

using AnyServerFrame =
    std::variant<Challenge, Welcome, Refused, Desired, Renewed, LogAck, BlobChunk, Watch, CertIssued, StreamOpen,
                 StreamData, StreamWindow, StreamResize, StreamEof, StreamClose, TrustTold, KeysTold>;
// One of them. What copies, moves, compares and ends it is compiled once (frames.cpp): in each source it would take
// seconds.
struct ServerFrame : AnyServerFrame {
  using AnyServerFrame::AnyServerFrame;
  ServerFrame();
  ServerFrame(const ServerFrame&);
  ServerFrame(ServerFrame&&) noexcept;
  ServerFrame& operator=(const ServerFrame&);
  ServerFrame& operator=(ServerFrame&&) noexcept;
  ~ServerFrame();
  bool operator==(const ServerFrame& other) const;
};
using AnyAgentFrame = std::variant<Hello, Inventory, Observed, Heartbeat, LogChunk, RayReportFrame, BlobRequest,
                                   CertRequest, Telemetry, Goodbye, OwnerPause, StreamData, StreamWindow, StreamEof,
                                   StreamClose, PullReport, LockOffer, PackagesOffer, NetReport, TrustTaken, KeysTaken>;
// One of them. What copies, moves, compares and ends it is compiled once (frames.cpp): in each source it would take
// seconds.
struct AgentFrame : AnyAgentFrame {
  using AnyAgentFrame::AnyAgentFrame;
  AgentFrame();
  AgentFrame(const AgentFrame&);
  AgentFrame(AgentFrame&&) noexcept;
  AgentFrame& operator=(const AgentFrame&);
  AgentFrame& operator=(AgentFrame&&) noexcept;
  ~AgentFrame();
  bool operator==(const AgentFrame& other) const;
};

}  // namespace muster::session
