// Jobs, their logs, and the history of ended objects.
#include <fmt/format.h>

#include <charconv>

#include "base/log.h"
#include "server/agents.h"
#include "server/api.h"
#include "server/blob_store.h"
#include "server/list.h"
#include "server/log_follow.h"
#include "wire/names.h"

namespace muster::server {
namespace {

constexpr const char* kHistory = "history";

Result<Ask> ask_job(const control::State& state, Call& call, access::Verb verb) {
  const Job* job = find_job(state, call.caller.subject, call.id);
  if (job == nullptr) return missing(access::Kind::Job, call.id);
  call.id = job->id.str();
  return Ask{verb, object_of(state, *job)};
}
Resolver job(access::Verb verb) {
  return [verb](const control::State& state, Call& call) { return ask_job(state, call, verb); };
}
Result<std::string> show(const control::State& state, const std::string& id) {
  const auto parsed = JobId::parse(id);
  const Job* found = parsed ? state.find_job(*parsed) : nullptr;
  if (found == nullptr) return error(Code::NotFound, "the job is gone");
  return wire::to_json(job_view(state, *found));
}
Result<std::uint64_t> number(const net::Request& request, const char* key) {
  const auto text = request.query_value(key);
  std::uint64_t value = 0;
  if (!text || text->empty()) return value;
  const auto [end, fault] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (fault != std::errc() || end != text->data() + text->size())
    return error(Code::InvalidArgument, fmt::format("{} must be a whole number", key), key);
  return value;
}

}  // namespace

std::optional<History> read_history(const Context& context, const std::string& id) {
  if (id.size() > 64) return {};
  const auto row = context.store->get_side(kHistory, id);
  if (!row.ok() || !row->has_value()) return {};
  const std::string text = as_string(**row);  // "org-1 usr-2\n{json}"
  const auto space = text.find(' '), line = text.find('\n');
  if (space == std::string::npos || line == std::string::npos || space > line) return {};
  const auto org = OrgId::parse(text.substr(0, space));
  const auto owner = PrincipalId::parse(text.substr(space + 1, line - space - 1));
  return History{org.value_or(OrgId{}), owner.value_or(PrincipalId{}), text.substr(line + 1)};
}

void keep_history(Context& context, const engine::DurableEvent& event) {
  std::string key;
  const auto* of_job = std::get_if<control::JobStateChanged>(&event.event);
  const auto* of_log = std::get_if<control::JobLogSet>(&event.event);
  const auto* of_cluster = std::get_if<control::ClusterStateChanged>(&event.event);
  const bool ends = (of_job != nullptr && control::terminal(of_job->state)) || of_log != nullptr ||
                    (of_cluster != nullptr && control::terminal(of_cluster->state));
  if (!ends) return;
  std::string text;
  context.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    if (of_job != nullptr || of_log != nullptr) {
      const Job* found = state.find_job(of_job != nullptr ? of_job->job : of_log->job);
      if (found == nullptr || !control::terminal(found->state)) return;
      key = found->id.str();
      text = fmt::format("{} {}\n{}", object_of(state, *found).owner.str(), found->owner.str(),
                         wire::to_json(job_view(state, *found)));
    } else if (of_cluster != nullptr && control::terminal(of_cluster->state)) {
      const Cluster* found = state.find_cluster(of_cluster->cluster);
      if (found == nullptr) return;
      key = found->id.str();
      text = fmt::format("{} {}\n{}", object_of(state, *found).owner.str(), found->owner.str(),
                         wire::to_json(cluster_view(state, *found, nullptr)));
    }
  });
  if (key.empty()) return;
  const bool queued = context.pool->post([&context, key, text] {
    const Status kept = context.store->put_side(kHistory, key, to_bytes(text));
    if (!kept.ok()) log_warn("history", "{} will not be readable after it is archived: {}", key, kept.error().message);
  });
  if (!queued) log_warn("history", "{} will not be readable after it is archived: the server is busy", key);
}

void Api::job_logs(const CallPtr& call) {
  const auto offset = number(call->request, "offset");
  if (!offset.ok()) return fail(call, offset.error());
  const auto attempt = number(call->request, "attempt");
  if (!attempt.ok() || *attempt > 1'000'000)
    return fail(call, error(Code::InvalidArgument, "attempt must be a whole number", "attempt"));
  const std::string follow = call->request.query_value("follow").value_or("");
  const auto id = JobId::parse(call->id);
  if (!id) return fail(call, error(Code::NotFound, "there is no such job"));
  LogFollow::Wanted wanted;
  wanted.job = *id;
  wanted.attempt = static_cast<std::uint32_t>(*attempt);
  wanted.offset = *offset;
  wanted.follow = follow == "true" || follow == "1";
  wanted.caller = call->caller;
  const Status started = context_.agents->follow().open(wanted, call->responder);
  if (!started.ok()) fail(call, started.error());
}

void Api::add_jobs() {
  using access::Kind;
  using access::Verb;
  add(
      "CreateJob",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::Submit, {Kind::Job, call.caller.subject.org, {}, call.caller.subject.principal}};
      },
      [this](const CallPtr& call) {
        auto request = wire::parse_create_job(call->request.body);
        if (!request.ok()) return fail(call, request.error());
        const OrgId org = call->caller.subject.org;
        JobSpec& spec = request->spec;
        if (!spec.working_dir_blob.empty() && !context_.blobs->holds(org, spec.working_dir_blob)) {
          return fail(
              call,
              error(Code::InvalidArgument,
                    "workingDirBlob: your organisation uploaded no such blob; send it to POST /api/v1/blobs first",
                    "workingDirBlob"));
        }
        for (const auto& file : spec.cluster_spec.files) {
          if (!context_.blobs->holds(org, file.blob))
            return fail(call, error(Code::InvalidArgument, "clusterSpec.files: your organisation uploaded no such blob",
                                    "clusterSpec.files"));
        }
        Result<ProjectId> project = ProjectId{};
        Status visible;
        context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
          project = find_project(state, call->caller.subject, request->project);
          if (spec.ephemeral) return;
          const Cluster* on = find_cluster(state, call->caller.subject, spec.cluster);
          if (on == nullptr || !access::visible(call->caller.subject, object_of(state, *on))) {
            visible = error(Code::NotFound,
                            fmt::format("there is no cluster {}; list them with GET /api/v1/clusters", spec.cluster),
                            "cluster");
            return;
          }
          visible = access::check(call->caller.subject, Verb::Submit, object_of(state, *on));
          spec.cluster = on->spec.name;
          if (request->project.empty()) project = on->project;
        });
        if (!visible.ok()) return fail(call, visible.error());
        if (!project.ok()) return fail(call, project.error());
        submit(call, control::CreateJob{*project, spec},
               [](const control::State& state, const scheduler::Scheduler&, const engine::Reply& reply) {
                 return show(state, reply.outcome.id);
               });
      });
  add(
      "ListJobs",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::List, {Kind::Job, call.caller.subject.org, {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"state", "name", "cluster"});
        if (!query.ok()) return fail(call, query.error());
        read(call, [&](const control::State& state, const scheduler::Scheduler&) {
          return list_page(*query, state, state.jobs, [&](const Job& item) -> std::optional<std::string> {
            if (!access::visible(call->caller.subject, object_of(state, item)) ||
                !passes(*query, "state", wire::text(item.state)) || !passes(*query, "name", item.spec.name))
              return {};
            const auto view = job_view(state, item);
            if (!passes(*query, "cluster", view.cluster) && !passes(*query, "cluster", item.cluster.str())) return {};
            return wire::to_json(view);
          });
        });
      });
  add("GetJob", job(Verb::Read), [this](const CallPtr& call) {
    if (call->archived) {
      const auto past = read_history(context_, call->id);
      return past ? ok(call, past->json) : fail(call, error(Code::NotFound, "the job is gone"));
    }
    read(call, [&](const control::State& state, const scheduler::Scheduler&) { return show(state, call->id); });
  });
  add("StopJob", job(Verb::Stop), [this](const CallPtr& call) {
    submit(call, control::StopJob{*JobId::parse(call->id)},
           [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return show(state, id);
           });
  });
  add("JobLogs", job(Verb::Logs), [this](const CallPtr& call) { job_logs(call); });
}

}  // namespace muster::server
