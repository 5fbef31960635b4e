// Durable jobs as tenants ask for them.
#include "control/decide.h"
#include "model/validate.h"

namespace muster::control {
namespace {

using access::Kind;
using access::Verb;

constexpr std::size_t kJobsMax = 4'000'000;

access::Object object_of(const State& state, const Job* job) {
  return job == nullptr ? access::Object{.kind = Kind::Job} : access_object(state, *job);
}

// Where a job is asked for: on a cluster that is there, or in a project.
access::Object submit_object(const State& state, ProjectId project, const JobSpec& spec) {
  access::Object object{.kind = Kind::Job, .project = project};
  if (const auto it = state.projects.find(project); it != state.projects.end()) object.owner = it->second.org;
  const auto cluster = state.cluster_by_name.find({project, spec.cluster});
  if (!spec.ephemeral && cluster != state.cluster_by_name.end()) object.cluster = cluster->second;
  return object;
}

bool head_ready(const State& state, const Cluster& cluster) {
  const Slot* head = state.find_head(cluster);
  const Lease* lease = head == nullptr ? nullptr : state.find_lease(head->lease);
  return cluster.state == ClusterState::Running && lease != nullptr && lease->phase == LeasePhase::Ready;
}

// A job for a cluster that can take it now starts at once: one event instead of two.
void start_if_free(const State& state, const Cluster& cluster, Job& job) {
  const auto queued = state.queued_jobs.lower_bound({cluster.id, JobId{}});
  if (!head_ready(state, cluster) || (queued != state.queued_jobs.end() && queued->first == cluster.id)) return;
  std::size_t active = 0;
  for (auto it = state.active_jobs.lower_bound({cluster.id, JobId{}});
       it != state.active_jobs.end() && it->first == cluster.id; ++it)
    if (++active >= kActiveJobsMax) return;
  job.state = JobState::Starting;
  job.attempt = 1;
}

}  // namespace

Decided decide(const Asking& a, const CreateJob& c) {
  const auto project = a.base.projects.find(c.project);
  TRY_VOID(a.may(Verb::Submit, submit_object(a.base, c.project, c.spec)));
  if (project == a.base.projects.end()) return missing("project", c.project.str());
  TRY_VOID(validate(c.spec));
  if (a.base.jobs.size() >= kJobsMax)
    return error(Code::ResourceExhausted, "the platform holds four million jobs, which is its limit; try again later");
  Job job;
  job.id = JobId{a.base.last.job + 1};
  job.project = c.project, job.owner = a.actor.subject.principal, job.spec = c.spec, job.created_at = a.wall;
  const std::string id = job.id.str();
  Decision decision;
  decision.outcome.id = id;
  if (c.spec.ephemeral) {
    TRY_VOID(a.may(Verb::Create, {.kind = Kind::Cluster, .owner = project->second.org}));
    Cluster cluster = TRY(new_cluster(a, project->second, c.spec.cluster_spec, "spec.cluster_spec"));
    cluster.ephemeral_for = job.id;
    job.cluster = cluster.id;
    job.spec.cluster = c.spec.cluster_spec.name;
    job.spec.cluster_spec = {};  // the cluster holds it
    decision.events.push_back(ClusterCreated{std::move(cluster)});
  } else {
    const auto it = a.base.cluster_by_name.find({c.project, c.spec.cluster});
    const Cluster* cluster = it == a.base.cluster_by_name.end() ? nullptr : a.base.find_cluster(it->second);
    if (cluster == nullptr)
      return error(Code::NotFound,
                   "this project has no living cluster named " + c.spec.cluster +
                       "; start one with `muster up`, or give a cluster_spec",
                   "spec.cluster");
    if (cluster->state == ClusterState::Stopping)
      return error(Code::FailedPrecondition, "the cluster " + c.spec.cluster + " is stopping; start a new one",
                   "spec.cluster");
    job.cluster = cluster->id;
    start_if_free(a.base, *cluster, job);
  }
  decision.events.push_back(JobCreated{std::move(job)});
  if (c.spec.ephemeral) raise_format_for(a, c.spec.cluster_spec, decision);
  return decision;
}

Decided decide(const Asking& a, const StopJob& c) {
  const Job* job = a.base.find_job(c.job);
  TRY_VOID(a.may(Verb::Stop, object_of(a.base, job)));
  if (job == nullptr) return missing("job", c.job.str());
  if (terminal(job->state) || job->state == JobState::Stopping) return Decision{{}, {c.job.str()}};
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.job);
  if (job->state == JobState::Queued)
    finish_job(d, c.job, JobState::Stopped, -1, "stopped_by_user");
  else
    d.emit(JobStateChanged{c.job, JobState::Stopping, job->attempt, -1, "stopped_by_user", a.wall + kJobStopMax});
  return done(d, c.job.str());
}

Decided decide(const Asking& a, const SetJobLog& c) {
  TRY_VOID(a.system_only("set the length of a job's log"));
  const Job* job = a.base.find_job(c.job);
  if (job == nullptr || job->attempt != c.attempt || job->log_bytes == c.log_bytes) return Decision{};
  return one(JobLogSet{c.job, c.attempt, c.log_bytes}, c.job.str());
}

}  // namespace muster::control
