// Clusters and the queue.
#include <fmt/format.h>

#include <algorithm>

#include "server/agents.h"
#include "server/api.h"
#include "server/blob_store.h"
#include "server/image_scans.h"
#include "server/list.h"
#include "wire/names.h"

namespace muster::server {
namespace {

Result<Ask> ask_cluster(const control::State& state, Call& call, access::Verb verb) {
  const Cluster* cluster = find_cluster(state, call.caller.subject, call.id);
  if (cluster == nullptr) return missing(access::Kind::Cluster, call.id);
  call.id = cluster->id.str();
  return Ask{verb, object_of(state, *cluster)};
}
Resolver cluster(access::Verb verb) {
  return [verb](const control::State& state, Call& call) { return ask_cluster(state, call, verb); };
}
Status blobs_held(const BlobStore& blobs, OrgId org, const ClusterSpec& spec, const std::string& path) {
  for (std::size_t i = 0; i < spec.files.size(); ++i) {
    if (blobs.holds(org, spec.files[i].blob)) continue;
    const std::string field = fmt::format("{}.files[{}].blob", path, i);
    return error(Code::InvalidArgument,
                 fmt::format("{}: your organisation uploaded no such blob; send it to POST /api/v1/blobs first", field),
                 field);
  }
  return {};
}

}  // namespace

// Nothing is folded while the planner is copied; a large one rests after it, by its size.
constexpr std::size_t kPlanCopiesPerMs = 100;

// The state is only read while the request is made and the planner copied; the copy plans without any lock.
void Api::plan_cluster(const CallPtr& call) {
  const auto asked = wire::parse_create_cluster(call->request.body);
  if (!asked.ok()) return fail(call, asked.error());
  post(call, [this, call, asked = *asked] {
    const std::unique_lock one(plan_mutex_, std::try_to_lock);
    const Now now = read_clocks();
    if (!one || now.lease < plan_after_)
      return fail(call, error(Code::ResourceExhausted, "another plan is being made; try again in a moment"));
    Result<control::WhatIf> what = control::WhatIf{};
    std::vector<scheduler::Change> snapshot;
    context_.runner->read([&](const control::State& state, const scheduler::Scheduler& scheduler) {
      const auto project = find_project(state, call->caller.subject, asked.project);
      control::Actor actor;
      actor.subject = call->caller.subject;
      what = project.ok() ? control::what_if(state, {*project, asked.spec}, actor, now)
                          : Result<control::WhatIf>(project.error());
      if (what.ok() && !what->quota) snapshot = scheduler.snapshot();
    });
    plan_after_ = read_clocks().lease + Millis(snapshot.size() / kPlanCopiesPerMs);
    if (!what.ok()) return fail(call, what.error());
    scheduler::Forecast forecast;
    if (const auto* request = std::get_if<scheduler::RequestChanged>(&what->request);
        request != nullptr && !what->quota)
      forecast = scheduler::forecast(snapshot, *request, now.wall);
    read(call, [&](const control::State& state, const scheduler::Scheduler&) -> Result<std::string> {
      return wire::to_json(plan_view(state, *what, forecast));
    });
  });
}

namespace {
void add_starts(const StartForecasts::Map& starts, std::map<ClusterId, wire::QueueView>& views) {
  for (auto& [id, view] : views)
    if (const auto it = starts.find(id); it != starts.end())
      view.start_p50 = it->second.p50, view.start_p90 = it->second.p90;
}
}  // namespace

// Playing the future takes a while: not on the thread that serves connections.
void Api::with_starts(const CallPtr& call, bool wanted, std::function<void()> answer) {
  if (!wanted || !context_.starts->old()) return answer();
  post(call, [this, answer = std::move(answer)] {
    (void)context_.starts->get(*context_.runner);
    answer();
  });
}

namespace {
void warn_of_image(const Context& context, wire::ClusterView& view) {
  if (control::terminal(view.cluster.state)) return;
  if (std::string told = context.images->warning(view.cluster.probe->digest); !told.empty())
    view.warnings.push_back(std::move(told));
}
}  // namespace

void Api::add_clusters() {
  using access::Kind;
  using access::Verb;
  const auto show = [this](const control::State& state, const access::Subject& caller, const std::string& id,
                           const std::map<ClusterId, wire::QueueView>* queue) -> Result<std::string> {
    const auto parsed = ClusterId::parse(id);
    const Cluster* found = parsed ? state.find_cluster(*parsed) : nullptr;
    if (found == nullptr) return error(Code::NotFound, "the cluster is gone");
    const auto ray = context_.agents->ray(found->id);
    auto view = cluster_view(state, *found, ray ? &*ray : nullptr,
                             [this](LeaseId lease) { return context_.agents->pull(lease); });
    if (queue != nullptr) {
      if (const auto waiting = queue->find(found->id); waiting != queue->end()) view.queue = waiting->second;
    }
    if (access::check(caller, Verb::Logs, object_of(state, *found)).ok())
      view.failures = context_.agents->failures(found->id);
    warn_of_image(context_, view);
    return wire::to_json(view);
  };
  add(
      "CreateCluster",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::Create, {Kind::Cluster, call.caller.subject.org, {}, call.caller.subject.principal}};
      },
      [this, show](const CallPtr& call) {
        const auto request = wire::parse_create_cluster(call->request.body);
        if (!request.ok()) return fail(call, request.error());
        if (const Status held = blobs_held(*context_.blobs, call->caller.subject.org, request->spec, "spec");
            !held.ok())
          return fail(call, held.error());
        Result<ProjectId> project = ProjectId{};
        context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
          project = find_project(state, call->caller.subject, request->project);
        });
        if (!project.ok()) return fail(call, project.error());
        submit(call, control::CreateCluster{*project, request->spec},
               [show, call](const control::State& state, const scheduler::Scheduler&, const engine::Reply& reply) {
                 return show(state, call->caller.subject, reply.outcome.id, nullptr);
               });
      });
  add(
      "PlanCluster",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::Create, {Kind::Cluster, call.caller.subject.org, {}, call.caller.subject.principal}};
      },
      [this](const CallPtr& call) { plan_cluster(call); });
  add(
      "ListClusters",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::List, {Kind::Cluster, call.caller.subject.org, {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"state", "name", "project"});
        if (!query.ok()) return fail(call, query.error());
        read(call, [&](const control::State& state, const scheduler::Scheduler& scheduler) {
          const auto queue = queue_views(state, scheduler, read_clocks().wall);
          return list_page(*query, state, state.clusters, [&](const Cluster& item) -> std::optional<std::string> {
            if (!access::visible(call->caller.subject, object_of(state, item)) ||
                !passes(*query, "state", wire::text(item.state)) || !passes(*query, "name", item.spec.name) ||
                !passes(*query, "project", item.project.str())) {
              return {};
            }
            const auto ray = context_.agents->ray(item.id);
            auto view = cluster_view(state, item, ray ? &*ray : nullptr,
                                     [this](LeaseId lease) { return context_.agents->pull(lease); });
            if (const auto waiting = queue.find(item.id); waiting != queue.end()) view.queue = waiting->second;
            warn_of_image(context_, view);
            return wire::to_json(view);
          });
        });
      });
  add("GetCluster", cluster(Verb::Read), [this, show](const CallPtr& call) {
    if (call->archived) {
      const auto past = read_history(context_, call->id);
      return past ? ok(call, past->json) : fail(call, error(Code::NotFound, "the cluster is gone"));
    }
    const auto answer = [this, call, show] {
      const auto starts = context_.starts->last();
      read(call, [&](const control::State& state, const scheduler::Scheduler& scheduler) {
        auto queue = queue_views(state, scheduler, read_clocks().wall);
        add_starts(*starts, queue);
        return show(state, call->caller.subject, call->id, &queue);
      });
    };
    bool waits = false;
    context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
      const auto id = ClusterId::parse(call->id);
      const Cluster* found = id ? state.find_cluster(*id) : nullptr;
      waits = found != nullptr && found->state == ClusterState::Queued;
    });
    with_starts(call, waits, answer);
  });
  add("GetClusterNet", cluster(Verb::Read), [this](const CallPtr& call) {
    read(call, [&](const control::State& state, const scheduler::Scheduler&) -> Result<std::string> {
      const auto id = ClusterId::parse(call->id);
      const Cluster* found = id ? state.find_cluster(*id) : nullptr;
      if (found == nullptr) return error(Code::NotFound, "the cluster is gone");
      return wire::to_json(net_view(state, call->caller.subject, *found,
                                    [this](NodeId node, LeaseId lease) { return context_.agents->net(node, lease); }));
    });
  });
  add("UpdateCluster", cluster(Verb::Update), [this, show](const CallPtr& call) {
    const auto request = wire::parse_update_cluster(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    if (const Status held = blobs_held(*context_.blobs, call->caller.subject.org, request->spec, "spec"); !held.ok())
      return fail(call, held.error());
    submit(call, control::UpdateCluster{*ClusterId::parse(call->id), request->spec, request->expected_generation},
           [show, call](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return show(state, call->caller.subject, call->id, nullptr);
           });
  });
  add("StopCluster", cluster(Verb::Stop), [this, show](const CallPtr& call) {
    submit(call, control::StopCluster{*ClusterId::parse(call->id), "stopped by request"},
           [show, call](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return show(state, call->caller.subject, call->id, nullptr);
           });
  });
  // These two are WebSockets: admit() resolves and checks, AgentHub carries the bytes.
  const Handler no_http = [this](const CallPtr& call) {
    fail(call, error(Code::InvalidArgument, "open this path as a WebSocket"));
  };
  add("ExecCluster", cluster(Verb::Exec), no_http);
  add("ForwardCluster", cluster(Verb::Forward), no_http);
  add(
      "ListQueue",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::List, {Kind::Queue, call.caller.subject.org, {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"name"});
        if (!query.ok()) return fail(call, query.error());
        with_starts(call, true, [this, call, query = *query] {
          const auto starts = context_.starts->last();
          read(call, [&](const control::State& state, const scheduler::Scheduler& scheduler) -> Result<std::string> {
            std::vector<wire::QueueView> waiting;
            auto views = queue_views(state, scheduler, read_clocks().wall);
            add_starts(*starts, views);
            for (auto& [id, view] : views) {
              const Cluster* item = state.find_cluster(id);
              if (item == nullptr || !access::visible(call->caller.subject, object_of(state, *item)) ||
                  !passes(query, "name", view.name))
                continue;
              waiting.push_back(std::move(view));
            }
            // In the order of service; the cursor is a count of rows, since positions move.
            std::stable_sort(waiting.begin(), waiting.end(), [](const auto& a, const auto& b) {
              return std::pair(a.tier, a.position) < std::pair(b.tier, b.position);
            });
            std::vector<std::string> items;
            std::size_t at = static_cast<std::size_t>(query.after);
            for (; at < waiting.size() && items.size() < query.limit; ++at) items.push_back(wire::to_json(waiting[at]));
            return wire::list_json(items, at < waiting.size() ? cursor_text(at) : "", state.seq);
          });
        });
      });
}

}  // namespace muster::server
