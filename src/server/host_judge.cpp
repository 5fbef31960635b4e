#include "server/host_judge.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "base/log.h"
#include "model/node_labels.h"

namespace muster::server {
namespace {

constexpr std::size_t kHeldMax = 256;  // of a label's value

std::map<std::string, scan::InstalledVersion> versions_of(const NodeFacts& facts) {
  std::map<std::string, scan::InstalledVersion> out;
  for (const auto& [label, value] : facts.labels)
    if (label.starts_with(kVersionLabelPrefix))
      out.emplace(label.substr(kVersionLabelPrefix.size()), scan::parse_installed(value));
  return out;
}

// Nothing: there is no such file.
Result<std::optional<std::string>> read_optional(const std::string& path) {
  std::error_code failure;
  if (!std::filesystem::exists(path, failure)) return std::optional<std::string>();
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return error(Code::Unavailable, path + " cannot be read");
  return std::optional(text.str());
}

Error in_file(const std::string& path, const Error& fault) {
  return error(fault.code, path + ": " + fault.message);
}

}  // namespace

HostJudge::HostJudge(Context& context)
    : context_(context), rules_(std::make_shared<Rules>(Rules{scan::built_in_holes(), {}})) {}

std::shared_ptr<const HostJudge::Rules> HostJudge::rules() const {
  const std::lock_guard lock(mutex_);
  return rules_;
}

Status HostJudge::refresh() {
  auto fresh = std::make_shared<Rules>(*rules());
  Status fault;
  const std::string table_file = context_.dir.known_holes(), policy_file = context_.dir.hole_policy();
  const auto table_text = read_optional(table_file);
  if (!table_text.ok()) {
    fault = table_text.error();
  } else if (!*table_text) {
    fresh->table = scan::built_in_holes();
  } else if (auto table = scan::parse_holes(**table_text); !table.ok()) {
    fault = in_file(table_file, table.error());
  } else if (table->date < scan::built_in_holes().date) {
    fresh->table = scan::built_in_holes();
    fault = error(Code::FailedPrecondition,
                  table_file +
                      " is older than the table that came with this version; remove it, or put a newer one "
                      "there");
  } else {
    fresh->table = std::move(*table);
  }
  const auto policy_text = read_optional(policy_file);
  if (!policy_text.ok()) {
    fault = policy_text.error();
  } else if (!*policy_text) {
    fresh->policy = {};
  } else if (auto policy = scan::parse_hole_policy(**policy_text); !policy.ok()) {
    fault = in_file(policy_file, policy.error());
  } else {
    fresh->policy = std::move(*policy);
  }
  {
    const std::lock_guard lock(mutex_);
    rules_ = fresh;
  }
  judge_all(*fresh);
  return fault;
}

std::string HostJudge::judge(NodeId node, NodeFacts& facts) const {
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Node* known = state.find_node(node);
    if (known == nullptr) return;
    for (const auto& [label, value] : known->facts.labels)
      if (label.starts_with(kVersionLabelPrefix)) facts.labels.try_emplace(label, value);
  });
  const auto now_in_force = rules();
  return scan::blocking_text(
      scan::judge_host(now_in_force->table, now_in_force->policy, versions_of(facts), node.str(), read_clocks().wall),
      kHeldMax);
}

std::vector<scan::HoleFinding> HostJudge::findings(const Node& node) const {
  const auto now_in_force = rules();
  return scan::judge_host(now_in_force->table, now_in_force->policy, versions_of(node.facts), node.id.str(),
                          read_clocks().wall);
}

void HostJudge::judge_all(const Rules& rules) {
  struct Said {
    NodeId node;
    std::map<std::string, scan::InstalledVersion> versions;
    std::string held;
    bool works = false;
  };
  std::vector<Said> machines;  // judged without the reader's lock
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    for (const auto& [id, node] : state.nodes)
      if (node.state != NodeState::Revoked)
        machines.push_back({id, versions_of(node.facts), held_for(node), !state.live_leases(id).empty()});
  });
  std::vector<control::SetHeld> verdicts;
  const WallTime now = read_clocks().wall;
  for (const Said& said : machines) {
    std::string held =
        scan::blocking_text(scan::judge_host(rules.table, rules.policy, said.versions, said.node.str(), now), kHeldMax);
    const bool leave = !held.empty() && rules.policy.running_leaves && said.works;
    if (leave || held != said.held) verdicts.push_back({said.node, std::move(held), leave});
  }
  for (auto& verdict : verdicts) {
    if (verdict.held.empty())
      log_info("hosts", "{} may be hired again: no hole is known that blocks", verdict.node.str());
    else
      log_warn("hosts", "{} gets nothing new: {}", verdict.node.str(), verdict.held);
    control::Actor actor;
    actor.system = true;
    context_.runner->submit(control::Lane::Liveness, std::move(verdict), std::move(actor), [](const auto& reply) {
      if (!reply.ok()) log_warn("hosts", "the core refused a verdict on a machine: {}", reply.error().message);
    });
  }
}

}  // namespace muster::server
