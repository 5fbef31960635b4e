// Policies of images, of organisations and projects: GET and PUT under each. That of the platform's own organisation
// binds everybody, so only its operators set it. And what is known against images that run.
#include "model/node_labels.h"
#include "server/api.h"
#include "server/image_scans.h"
#include "server/list.h"
#include "server/views.h"

namespace muster::server {
namespace {

using access::Kind;
using access::Verb;

access::Object policy_of(OrgId org) {
  return {.kind = Kind::ImagePolicy, .owner = org};
}

Resolver org_policy(Verb verb) {
  return [verb](const control::State& state, Call& call) -> Result<Ask> {
    const auto id = find_org(state, call.id);
    if (!id) return missing(Kind::ImagePolicy, call.id);
    call.id = id->str();
    return Ask{verb, policy_of(verb == Verb::Update && *id == kPlatformOrg ? OrgId{} : *id)};
  };
}
Resolver project_policy(Verb verb) {
  return [verb](const control::State& state, Call& call) -> Result<Ask> {
    const auto id = find_project(state, call.caller.subject, call.id);
    if (!id.ok()) return missing(Kind::ImagePolicy, call.id);
    call.id = id->str();
    return Ask{verb, policy_of(state.projects.find(*id)->second.org)};
  };
}

Result<std::string> shown_of_org(const control::State& state, const std::string& id) {
  return wire::to_json(image_policy_view(state, OrgId::parse(id).value_or(OrgId{})));
}
Result<std::string> shown_of_project(const control::State& state, const std::string& id) {
  return wire::to_json(TRY(image_policy_view(state, ProjectId::parse(id).value_or(ProjectId{}))));
}

struct ScanKey {
  std::uint64_t value = 0;
  auto operator<=>(const ScanKey&) const = default;
};
constexpr std::size_t kClustersShown = 50;

wire::ImageScanView scan_view(const ImageScan& scan, const std::vector<const Cluster*>& running) {
  wire::ImageScanView view{scan.image,
                           std::string(scan::text(scan.outcome)),
                           scan.why,
                           scan.system,
                           static_cast<std::uint32_t>(scan.packages),
                           static_cast<std::uint32_t>(scan.suppliers),
                           static_cast<std::uint32_t>(scan.found),
                           scan.database,
                           {},
                           {}};
  for (const scan::Finding& each : scan.findings)
    view.findings.push_back(
        {each.id, std::string(scan::text(each.severity)), each.package, each.version, each.fixed, each.waived_by});
  for (const Cluster* cluster : running)
    if (view.clusters.size() < kClustersShown) view.clusters.push_back(cluster->id);
  return view;
}

}  // namespace

void Api::add_images() {
  add(
      "ListImageScans",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::List, policy_of(call.caller.subject.org)};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"verdict", "cluster"});
        if (!query.ok()) return fail(call, query.error());
        std::map<ScanKey, ImageScan> table;
        for (ImageScan& scan : context_.images->list()) table.emplace(ScanKey{scan.key()}, std::move(scan));
        read(call, [&](const control::State& state, const scheduler::Scheduler&) {
          const access::Subject& caller = call->caller.subject;
          const bool all = access::visible(caller, {.kind = Kind::ImagePolicy});
          std::map<std::string, std::vector<const Cluster*>> running;
          for (const auto& [id, cluster] : state.clusters)
            if (!control::terminal(cluster.state) && access::visible(caller, object_of(state, cluster)) &&
                passes(*query, "cluster", id.str()))
              running[cluster.probe->digest].push_back(&cluster);
          return list_page(*query, state, table, [&](const ImageScan& scan) -> std::optional<std::string> {
            const auto found = running.find(scan.image);
            const bool runs = found != running.end();
            if ((!runs && (!all || query->filter.contains("cluster"))) ||
                !passes(*query, "verdict", scan::text(scan.outcome)))
              return {};
            return wire::to_json(scan_view(scan, runs ? found->second : std::vector<const Cluster*>()));
          });
        });
      });
  add("GetOrgImagePolicy", org_policy(Verb::Read), [this](const CallPtr& call) {
    read(call, [&](const control::State& state, const scheduler::Scheduler&) { return shown_of_org(state, call->id); });
  });
  add("GetProjectImagePolicy", project_policy(Verb::Read), [this](const CallPtr& call) {
    read(call,
         [&](const control::State& state, const scheduler::Scheduler&) { return shown_of_project(state, call->id); });
  });
  add("SetOrgImagePolicy", org_policy(Verb::Update), [this](const CallPtr& call) {
    const auto request = wire::parse_set_image_policy(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    submit(call, control::SetImagePolicy{*OrgId::parse(call->id), {}, request->policy},
           [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return shown_of_org(state, id);
           });
  });
  add("SetProjectImagePolicy", project_policy(Verb::Update), [this](const CallPtr& call) {
    const auto request = wire::parse_set_image_policy(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    submit(call, control::SetImagePolicy{{}, *ProjectId::parse(call->id), request->policy},
           [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
             return shown_of_project(state, id);
           });
  });
}

}  // namespace muster::server
