#pragma once
// The server's end of one agent connection, sans-I/O: challenge, proof, Welcome, reports to the core, desired
// revisions, renewals. Order on a connection: identity, inventory, taken by the core, and only then Desired. Reports
// are deduplicated and one at a time is on its way to the core; a refused one is tried again. A heartbeat renews
// exactly the leases that the agent names *and* Authority calls live, which it must answer from durable state while it
// leads, and brings what was sent and not applied once more. Single-threaded per connection; Authority and Directory
// are shared and guarded by their owner.
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "session/directory.h"
#include "session/frames.h"

namespace muster::session {

// A machine whose device key was seen on two machines is kept out until somebody removed the copy and enabled it again;
// its agent asks from time to time.
inline constexpr std::string_view kQuarantined = "quarantined";
inline constexpr std::string_view kQuarantinedText =
    "this machine's device key is in use on two machines, so both are quarantined and what they held ends. Remove the "
    "copy (or enrol it anew with a token of its own), then say `muster nodes enable` for the machine that stays";
inline constexpr Millis kQuarantineRetry{60'000};

// What the rest of the server knows. All calls come from within Server's calls.
class Authority {
 public:
  virtual ~Authority() = default;
  // Certificate chain and dates, revocation, then the signature over hello_message(challenge). The error is told to the
  // agent; its field, where it has one, is the code ("revoked", kQuarantined).
  virtual Result<NodeId> verify(const Hello& hello, ByteView message) = 0;
  virtual std::string failure_domain(NodeId node) = 0;        // for liveness
  virtual std::string known_boot(NodeId node) = 0;            // that its live leases are held by; empty: it has none
  virtual std::vector<LeaseId> live_leases(NodeId node) = 0;  // empty while not leading
  virtual std::string held(NodeId) { return {}; }  // why it gets nothing new, for its own eyes; empty: it may
  virtual void heard(NodeId node, const std::string& domain, LeaseTime now) = 0;
  virtual void granted(LeaseId lease, LeaseTime now) = 0;  // a Desired that holds it leaves now
  virtual void renewed(LeaseId lease, LeaseTime now) = 0;  // a Renewed that names it leaves now
};

struct ServerOptions {
  std::string server_id;
  Bytes roster_key;
  std::vector<std::string> relays, probe_relays;                                  // of Welcome
  std::vector<std::string> features{"net", "peer", "trust", "keys", "packages"};  // as of Welcome
  std::uint64_t incarnation = 0;
  Millis heartbeat{5000}, lease{2'400'000}, handshake_timeout{20'000}, report_retry{1000}, resend{10'000};
};
// To become NodeOnline (online) or ReportObserved.
struct Report {
  bool online = false;
  std::string boot_id;  // of the session
  std::optional<NodeFacts> facts;
  std::uint64_t revision = 0;
  std::vector<ObservedLease> leases;
  std::vector<ObservedJob> jobs;
  bool operator==(const Report&) const = default;
};
struct ServerOut {
  std::vector<ServerFrame> send;
  std::optional<Report> report;
  std::string close; /* not empty: after sending */
};

class Server {
 public:
  Server(ServerOptions options, Authority& authority, Directory& directory, std::uint64_t session, Bytes nonce);
  void open(Now now);
  // False: not a frame of the session (logs, Ray reports, blobs, telemetry, streams...), take it yourself if
  // welcomed().
  bool on_frame(const AgentFrame& frame, Now now);
  void taken(bool ok, Now now);                // the core's answer to the last Report
  void set_desired(Desired desired, Now now);  // the newest, signed; older or equal ones are ignored
  // The same orders with fresh secrets and proofs: sent again where they were sent. Others are as for set_desired.
  void renew_desired(Desired desired, Now now);
  void report_again();              // after the node was taken for lost while this connection stayed
  void kick(Verdict why, Now now);  // of Directory::take_kicked
  void refuse(std::string code, std::string message, Millis retry_after);  // revoked, overload
  void close(Now now);                                                     // the connection is gone
  void tick(Now now);
  ServerOut take();
  LeaseTime next_deadline() const;

  bool welcomed() const { return state_ == State::Welcomed; }
  bool ready() const { return welcomed() && taken_.has_value(); }
  NodeId node() const { return node_; }
  std::uint64_t session() const { return session_; }
  Bytes hello_bytes() const;  // what the agent's Hello must sign; never changes, any thread
  std::uint64_t revision_sent() const { return sent_revision_; }

 private:
  enum class State : std::uint8_t { New, Challenged, Waiting, Welcomed, Closed };
  void on_hello(const Hello& hello, Now now);
  void welcome(Now now);
  void on_inventory(const Inventory& inventory);
  void on_observed(const Observed& observed);
  void on_heartbeat(const Heartbeat& heartbeat, Now now);
  void report_next();
  void send_desired(Now now);

  ServerOptions options_;
  Authority* authority_;
  Directory* directory_;
  std::uint64_t session_;
  Challenge challenge_;
  State state_ = State::New;
  NodeId node_;
  std::string domain_, boot_id_;
  Bytes hello_digest_;
  LeaseTime deadline_{0}, retry_at_{0}, sent_at_{0};
  ServerOut out_;
  std::optional<Report> newest_, in_flight_, taken_;
  Bytes digest_in_flight_;
  bool online_told_ = false;
  std::optional<Desired> desired_;
  std::uint64_t sent_incarnation_ = 0, sent_revision_ = 0;
};

}  // namespace muster::session
