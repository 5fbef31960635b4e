#pragma once
// The agents' side of the server: one session::Server per WebSocket of /agent/v1, joined to the engine (reports up,
// desired revisions down), liveness and leases, logs, blobs, telemetry and user streams. One mutex guards all sessions
// and the directory; commands are submitted only outside of it. Telemetry and Ray's reports are kept in memory,
// bounded, never journalled. Own thread for time. Thread-safe.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <unordered_map>

#include "crypto/cert.h"
#include "server/api.h"
#include "server/context.h"
#include "server/desired.h"
#include "server/event_hub.h"
#include "server/log_follow.h"
#include "server/net_view.h"
#include "server/pool.h"
#include "server/streams.h"
#include "server/views.h"
#include "session/carried_book.h"
#include "session/keeper.h"
#include "session/pair_table.h"
#include "session/server.h"

namespace muster::server {

inline constexpr std::size_t kFailuresKept = 4;  // of one cluster
inline constexpr Millis kRenewGrace{60'000};     // what a machine with an ended certificate gets to ask for a new one

class AgentHub final : private session::Authority {
 public:
  struct Options {
    Millis lease{2'400'000}, heartbeat{5000};
    session::LivenessOptions liveness;
    std::size_t ring = 60;
    Millis ways_every{600'000};                 // what was measured between machines is written so often
    Millis places_every{5'000};                 // and where they lie then is told to the planner so often
    Millis reliability_every{6LL * 3'600'000};  // and of all machines how reliable they are
    Millis carried_every{600'000};              // what was carried for others is given to the core so often
  };
  AgentHub(Context& context, Options options);
  ~AgentHub() override;
  void start();
  void stop();
  void accept(net::WebSocketPtr socket);
  void open_stream(const CallPtr& call, net::WebSocketPtr user);
  void on_events(const std::vector<engine::DurableEvent>& events);  // from the event hub's thread
  std::optional<RayFacts> ray(ClusterId cluster) const;
  std::optional<PullFacts> pull(LeaseId lease) const;
  std::optional<NetFacts> net(NodeId node, LeaseId lease) const;
  struct NetCounts {
    std::size_t relayed = 0, relayed_udp = 0, lan = 0, direct = 0, peer = 0, limited = 0;
    std::map<std::string, std::size_t> on_relay;  // leases that are connected to it, by its address
  };
  NetCounts net_counts() const;  // pairs in use, each counted by the ends that report it
  std::vector<wire::FailureView> failures(ClusterId cluster) const;  // of its members, the newest last
  std::optional<session::Telemetry> telemetry(NodeId node) const;
  std::vector<std::pair<NodeId, session::Telemetry>> latest_telemetry(std::size_t max) const;
  std::string owner_word(NodeId node) const;  // why the owner's limits keep the machine from being hired
  void watch();
  void trust_changed();                                 // the roots or the CA in use are others than before
  std::size_t trust_behind() const { return behind_; }  // machines that do not know the newest roots yet
  void keys_changed();                                  // other signing keys are believed than before
  std::size_t keys_behind() const { return keys_behind_; }
  LogFollow& follow() { return *follow_; }
  struct Counts {
    std::size_t connected = 0, streams = 0, leases = 0;
    bool frozen = false, leading = false;
  };
  Counts counts() const;

 private:
  struct Link {
    std::uint64_t number = 0;
    LeaseTime since{0};
    net::WebSocketPtr socket;
    std::unique_ptr<session::Server> session;
    NodeId node;
    std::atomic<bool> closed = false;
    std::uint64_t built_incarnation = 0, built_revision = 0;
    bool built = false;
    bool stale = false;  // what was built is to be built anew
    std::shared_ptr<const std::vector<RelayEntry>> built_relays;
    LeaseTime built_at{0};
    Millis renew_after = kOrdersRenewed;
    bool proved = false;                              // a Hello was checked; only the link's own thread looks
    std::optional<session::TrustTaken> believes;      // what the machine said
    Bytes trust_told;                                 // digest of what it was told last
    std::optional<session::KeysTaken> keys_believed;  // what the machine said of signing keys
    Bytes keys_told;                                  // digests of what it was told last: keys, and roots at that time
    Bytes tpm;                            // the TPM key that its certificate is bound to: those that follow are, too
    LeaseTime renew_by{0}, issued_at{0};  // the link ends unless the certificate was renewed; when one was last issued
  };
  using LinkPtr = std::shared_ptr<Link>;
  using Todo = std::vector<std::function<void()>>;  // what must run without the mutex

  // What a Hello proves by itself: whose certificate it is, and that the challenge is signed with its key.
  struct Proof {
    Result<crypto::DeviceCertificate> certificate = error(Code::Unauthenticated, "no certificate was shown");
    Result<WallTime> expiry = error(Code::Unauthenticated, "no certificate was shown");
    bool signed_by_it = false;
    bool tpm_missing = false;  // it is bound to a TPM, whose key did not sign
    bool given_up = false;  // by a CA that counts for nothing any more: good for asking for another, by the key's proof
  };
  Proof prove(const session::Hello& hello, ByteView message) const;

  // session::Authority, with the mutex held.
  Result<NodeId> verify(const session::Hello& hello, ByteView message) override;
  std::string failure_domain(NodeId node) override;
  std::string known_boot(NodeId node) override;
  std::vector<LeaseId> live_leases(NodeId node) override;
  std::string held(NodeId node) override;
  void heard(NodeId node, const std::string& domain, LeaseTime now) override;
  void granted(LeaseId lease, LeaseTime now) override;
  void renewed(LeaseId lease, LeaseTime now) override;

  void on_message(const LinkPtr& link, const Bytes& message);
  void note_certificate(const LinkPtr& link, const Proof& proof, Now now);
  void on_close(const LinkPtr& link);
  void flush(const LinkPtr& link, Todo& todo);
  void bring_desired(NodeId node);
  void report(const LinkPtr& link, session::Report report);
  void other_frame(const LinkPtr& link, const session::AgentFrame& frame);
  void on_log(const LinkPtr& link, const session::LogChunk& chunk);
  void on_ray(const LinkPtr& link, const RayReport& report);
  void on_pull(const LinkPtr& link, const session::PullReport& report);
  void on_lock(const LinkPtr& link, const session::LockOffer& offer);
  void on_trust(const LinkPtr& link, const session::TrustTaken& taken);
  static void tell_trust(const LinkPtr& link, const CaSet& cas);
  void on_keys(const LinkPtr& link, const session::KeysTaken& taken);
  void tell_keys(const LinkPtr& link, const CaSet& cas);
  void follow_keys(WallTime now);
  bool keys_named(const session::Desired& desired) const;
  void note_keys_behind(LeaseTime now, Todo& todo);
  void note_behind(LeaseTime now, Todo& todo);
  void on_net(const LinkPtr& link, const session::NetReport& report);
  void note_carried(const session::NetReport& report);  // its counts are signed
  void on_blob(const LinkPtr& link, const session::BlobRequest& request);
  void on_certificate(const LinkPtr& link, const session::CertRequest& request);
  void set_owner_word(NodeId node, const std::string& text);
  void note_failure(const control::State& state, const ObservedLease& lease);
  void on_telemetry(const LinkPtr& link, const session::Telemetry& sample);
  void submit(NodeId node, control::Command command, std::function<void(bool)> done = {});
  void submit_system(control::Command command, std::function<void(bool ok)> done = {});
  static bool send(const LinkPtr& link, const session::ServerFrame& frame);
  LinkPtr find(NodeId node) const;

  void run();
  void tick(Now now, Todo& todo);
  void judge_ways(LeaseTime now, Todo& todo);
  void tell_reliability(Now now, Todo& todo);
  void note_relays(NodeId node, const std::vector<session::RelaySeen>& seen);
  void count_carried(Todo& todo);
  void tell_core(const session::Verdicts& verdicts, Todo& todo);
  void note_event(const control::Event& event, LeaseTime now);
  void sweep();
  void pump_desired();

  Context& context_;
  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Pool orders_{1, 1};  // helps the thread of run() when many machines need orders
  session::Keeper keeper_;
  std::map<std::uint64_t, LinkPtr> links_;
  std::unordered_map<NodeId, LinkPtr> by_node_;
  std::set<NodeId> refused_;  // revoked or quarantined: to be cut at the next tick
  std::set<NodeId> dirty_;    // whose desired state may have changed
  std::uint64_t next_link_ = 1;
  std::uint64_t swept_ = 0;                             // the last link looked at without a reason
  std::unordered_map<NodeId, std::uint64_t> believes_;  // the revision of roots that a machine said last
  std::atomic<std::size_t> behind_ = 0;
  LeaseTime behind_at_{0};
  std::string behind_said_;
  std::unordered_map<NodeId, std::uint64_t> keys_believed_;  // the same of signing keys
  std::atomic<std::size_t> keys_behind_ = 0;
  std::string keys_behind_said_;
  std::atomic<bool> keys_unknown_ = false;  // the signer used one that it has not named yet
  WallTime keys_change_at_{0};              // by what it named: one begins to sign or ends then
  bool stopping_ = false, leading_ = false, live_ = false;
  LeaseTime watch_until_{0}, judged_at_{0}, carried_at_{0}, ways_at_{0}, places_at_{0}, reliability_at_{0};
  bool counting_ = false;         // the core is being told; under facts_mutex_
  const Proof* proof_ = nullptr;  // of the Hello that is being handled

  mutable std::mutex facts_mutex_;
  std::map<ClusterId, RayFacts> ray_;
  std::map<ClusterId, std::deque<wire::FailureView>> failures_;
  std::map<LeaseId, PullFacts> pulls_;  // of live leases that have not their image yet
  std::unordered_map<NodeId, std::deque<session::Telemetry>> telemetry_;
  std::unordered_map<NodeId, std::map<LeaseId, NetFacts>> nets_;  // of live leases of connected machines
  session::CarriedBook carried_;                                  // of signed counts
  session::PairTable pairs_;                                      // of clusters that ask for something
  std::unordered_map<NodeId, std::string> owner_;                 // only machines whose owner says something

  Streams streams_;
  std::unique_ptr<LogFollow> follow_;
  std::thread thread_;
};

}  // namespace muster::server
