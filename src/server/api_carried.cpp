// What machines carried for others: to the owner of the machine, to the owner of the cluster, and to who may see both.
#include "server/api.h"
#include "server/audit.h"
#include "server/list.h"
#include "wire/rest.h"

namespace muster::server {
namespace {

using access::Kind;
using access::Verb;

std::optional<std::string> carried_row(const control::State& state, const access::Subject& caller,
                                       const ListQuery& query, const control::CarriedKey& key, const CarriedRow& row) {
  const auto& [day, node_id, cluster_id] = key;
  wire::CarriedView view{day, node_id, cluster_id, {}, {}, {}, row.tenant, row.bytes};
  const Node* node = state.find_node(node_id);
  const bool owns_machine = node != nullptr && access::check(caller, Verb::Read, object_of(*node)).ok();
  const bool owns_cluster = access::check(caller, Verb::Read, {Kind::Cluster, row.tenant, {}, {}}).ok();
  if (!owns_machine && !owns_cluster) return {};
  if (node != nullptr) view.node_name = node->name, view.supplier = node->supplier;
  // Whose machine it was does not tell its owner how a tenant calls his clusters.
  const Cluster* cluster = state.find_cluster(cluster_id);
  if (owns_cluster && cluster != nullptr) view.cluster_name = cluster->spec.name;
  if (!passes(query, "node", node_id.str()) && !passes(query, "node", view.node_name)) return {};
  if (!passes(query, "cluster", cluster_id.str()) && !passes(query, "cluster", view.cluster_name)) return {};
  return wire::to_json(view);
}

// Years of four digits compare as text.
Result<std::int64_t> first_day(const ListQuery& query) {
  const auto since = query.filter.find("since");
  if (since == query.filter.end()) return std::int64_t{0};
  const auto at = parse_utc(since->second + "T00:00:00Z");
  if (!at || since->second.size() != 10)
    return error(Code::InvalidArgument, "since must be a day such as 2026-11-30", "filter");
  return at->ms / 86'400'000;
}

}  // namespace

void Api::add_carried() {
  add(
      "ListCarried",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::List, {Kind::Telemetry, call.caller.subject.org, {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"node", "cluster", "since"});
        if (!query.ok()) return fail(call, query.error());
        const auto since = first_day(*query);
        if (!since.ok()) return fail(call, since.error());
        read(call, [&](const control::State& state, const scheduler::Scheduler&) -> Result<std::string> {
          // By day, the oldest first; the cursor is how many rows came before.
          std::vector<std::string> items;
          std::string next;
          std::uint64_t place = 0;
          for (auto it = state.carried.lower_bound({*since, {}, {}}); it != state.carried.end(); ++it) {
            if (++place <= query->after) continue;
            if (items.size() == query->limit || place - query->after > kScanMax) {
              next = cursor_text(place - 1);
              break;
            }
            if (auto row = carried_row(state, call->caller.subject, *query, it->first, it->second))
              items.push_back(std::move(*row));
          }
          return wire::list_json(items, next, state.seq);
        });
      });
}

}  // namespace muster::server
