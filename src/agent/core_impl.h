#pragma once
// The parts of agent::Core: leases (core_leases.cpp), jobs and their logs (core_jobs.cpp), blobs (core_blobs.cpp),
// session and memory (core.cpp). Every input ends in settle(), which issues what is missing and tells the server what
// changed.
#include <map>
#include <set>
#include <string>
#include <vector>

#include "agent/core.h"
#include "agent/lease_run.h"
#include "agent/memory.h"
#include "base/rng.h"
#include "session/link.h"

namespace muster::agent {

inline constexpr std::size_t kLeasesMax = 64, kJobsMax = 1024, kBlobsMax = 64, kClustersRemembered = 256;

struct InFlight {
  Op op;
  LeaseTime deadline{0};
};

// One attempt of a job: its state is in Memory, this is the traffic around it.
struct JobRun {
  bool submitted = false;  // in this life of the agent
  OpId op = 0, read_op = 0;
  std::uint64_t sent = 0;  // log bytes sent on this session
  LeaseTime sent_at{0}, retry_at{0}, read_retry_at{0};
  std::uint32_t faults = 0;
};

struct BlobRun {
  bool found = false, complete = false, failed = false;
  std::uint64_t have = 0, asked = 0;  // bytes written; requested up to
  OpId op = 0;
  std::vector<session::BlobChunk> arrived;
  LeaseTime asked_at{0}, retry_at{0};
};

struct Core::Impl {
  Impl(Options options, Hooks hooks, NodeFacts facts);

  // core.cpp
  void start(ByteView persisted, const Found& found, Now now);
  void on_frame(const session::ServerFrame& frame, Now now);
  void on_result(const OpResult& result, Now now);
  void on_event(const RuntimeEvent& event, Now now);
  void on_owner(OwnerAction action, const std::string& reason, Now now);
  void tick(Now now);
  void settle(Now now);
  void pump_link(Now now);
  void send(session::AgentFrame frame) { actions.emplace_back(SendFrame{std::move(frame)}); }
  OpId issue(Op op, Now now);
  void cancel(OpId id);
  void tell_observed(Now now);
  void offer_locks();
  void offer_packages();
  void owner_told(Now now);
  std::vector<ObservedLease> observed_leases() const;
  std::vector<ObservedJob> observed_jobs() const;
  bool lease_running(LeaseId lease) const;
  LeaseTime next_deadline() const;

  // core_leases.cpp
  void on_desired(const session::Desired& desired, Now now);
  void take_rosters(const session::Desired& desired);
  void take_assignment(const Assignment& assignment, Now now);
  void adopt_found(const Found& found, bool same_boot, Now now);
  void renew(const session::Renewal& renewal, Now now);
  void fence(LeaseRun& run, const std::string& reason, Now now);
  void remember_end(const LeaseRun& run);
  void lease_result(LeaseRun& run, const Op& op, const OpResult& result, Now now);
  void network_result(LeaseRun& run, const Op& op, const OpResult& result, Now now);
  void settle_network(LeaseRun& run, const LeaseView& view, Now now);
  void identity_result(LeaseRun& run, const Op& op, const OpResult& result, Now now);
  void settle_identity(LeaseRun& run, const LeaseView& view, Now now);
  void lease_event(LeaseRun& run, const std::string& reason, bool container, Now now);
  void settle_lease(LeaseRun& run, Now now);
  void forget_gone(Now now);
  bool devices_free(const LeaseRun& run) const;
  LeaseView view_of(const LeaseRun& run, Now now);

  // core_jobs.cpp
  void settle_jobs(Now now);
  void settle_job(const JobKey& key, JobRun& job, Now now);
  void job_status(LeaseId lease, const ObservedJob& seen);
  void job_result(const Op& op, const OpResult& result, Now now);
  void drivers_died(LeaseId lease, const std::string& reason);
  void on_log_ack(const session::LogAck& ack, Now now);
  void read_log(const JobKey& key, JobRun& job, JobMemory& known, Now now);
  void restart_logs();
  bool logs_done(const LeaseRun& run, Now now) const;
  const JobOrder* order_of(const JobKey& key) const;

  // core_blobs.cpp
  bool blob_ready(const std::string& blob, Now now);  // asks for it when it is not there
  bool blob_failed(const std::string& blob) const;
  void settle_blobs(Now now);
  void on_blob_chunk(const session::BlobChunk& chunk, Now now);
  void blob_result(const Op& op, const OpResult& result, Now now);
  void forget_blob_requests();

  Options options;
  Hooks hooks;
  NodeFacts facts;
  Rng rng;
  session::Link link;
  Memory memory;
  bool started = false, memory_dirty = false, engine_up = true;
  bool desired_here = false;  // in this life: until then nobody knows what is still ordered
  std::map<LeaseId, LeaseRun> leases;
  std::map<JobKey, JobRun> jobs;
  std::map<std::string, BlobRun> blobs;
  std::map<OpId, InFlight> in_flight;
  OpId next_op_id = 1;
  std::vector<Action> actions;
  // what the server was told on this session
  // desired_seen: orders come only after the control plane has taken this machine as online.
  bool desired_seen = false;
  bool told = false, pause_told = false, leave_done = false, goodbye_sent = false;
  std::string pause_reason;
  std::set<std::string> locks_offered, packages_offered;
  std::uint64_t told_revision = 0;
  std::vector<ObservedLease> told_leases;
  std::vector<ObservedJob> told_jobs;
  LeaseTime told_at{0}, pause_told_at{0}, last_now{0};
};

}  // namespace muster::agent
