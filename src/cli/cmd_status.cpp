// status [NAME] and list
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/money.h"
#include "cli/request.h"
#include "cli/shell.h"

namespace muster::cli {
namespace {

std::string cluster_table(const std::vector<wire::Json>& items, bool colour) {
  if (items.empty()) return "No clusters. Start one: muster up FILE.yaml\n";
  Table table({"ID", "NAME", "STATE", "MEMBERS", "IMAGE", "CREATED", "WHY"});
  for (const auto& c : items) {
    int ready = 0;
    for (const auto& slot : c["slots"].items()) ready += slot["phase"].text() == "ready" ? 1 : 0;
    const auto& q = c["queue"];
    const bool held =
        c["state"].text() == "queued" || (c["reason"].text().empty() && q["reasonCode"].text() == "quota");
    const auto& why = held ? q["reason"].text() : c["reason"].text();
    table.add({c["id"].text(), c["name"].text(), c["state"].text(),
               fmt::format("{}/{}", ready, c["slots"].items().size()), c["spec"]["image"].text(),
               short_time(c["createdAt"]), why});
  }
  return table.text(colour);
}

// "pulling 43 % of 2.2 GiB"
std::string phase_text(const wire::Json& slot) {
  const std::string& phase = slot["phase"].text();
  const auto done = slot["pullDoneBytes"].integer();
  if (phase != "pulling" || done <= 0) return phase;
  return phase + " " + pull_text(done, slot["pullTotalBytes"].integer());
}

// " (0.5 GPU)", of a member that has a share of one.
std::string share_text(const wire::Json& slot) {
  const double share = slot["gpuShare"].real();
  return share > 0 ? fmt::format(" ({:g} GPU)", share) : std::string();
}

// Ways between members that stay below what was asked for, and who is to be replaced for that.
std::string slow_text(const wire::Json& c) {
  if (c["slowPairs"].items().empty()) return {};
  const auto name = [&](const std::string& slot) {
    for (const auto& s : c["slots"].items())
      if (s["id"].text() == slot) return clean(slot) + " (" + clean(s["nodeName"].text()) + ")";
    return clean(slot);
  };
  std::string out;
  for (const auto& pair : c["slowPairs"].items())
    out += fmt::format("slow: {} to {} carries {}, {} is asked for; since {}\n", name(pair["from"].text()),
                       name(pair["to"].text()), mbps_text(pair["kbps"].integer()),
                       mbps_text(c["spec"]["pairKbps"].integer()), short_time(pair["since"]));
  if (const auto& slot = c["replacing"].text(); !slot.empty())
    out += fmt::format("{} works on until another machine is found for it\n", name(slot));
  else if (!c["spec"]["replaceSlow"].truth())
    out += "nobody is replaced for that: the cluster does not ask for it (muster: {replace_slow: true})\n";
  return out;
}

std::string cluster_text(const wire::Json& c, bool colour) {
  std::string out =
      fmt::format("Cluster {} ({})  {}", clean(c["name"].text()), clean(c["id"].text()), clean(c["state"].text()));
  if (!c["reason"].text().empty()) out += ": " + clean(c["reason"].text());
  out += fmt::format("\nimage {}", clean(c["spec"]["image"].text()));
  if (!c["rayVersion"].text().empty())
    out += fmt::format(", Ray {}, Python {}, head recovery {}", clean(c["rayVersion"].text()),
                       clean(c["pythonVersion"].text()), c["headRecovery"].truth() ? "on" : "off");
  if (const auto& pinned = c["imageDigest"].text(); pinned.find('@') != std::string::npos)
    out += fmt::format("\npinned {}", clean(pinned));
  out += "\n";
  if (const auto& q = c["queue"]; q.is(wire::Json::Kind::Object) && !q["reason"].text().empty())
    out += fmt::format("waiting at place {}: {}{}\n", q["position"].integer(), clean(q["reason"].text()),
                       q["expectedStart"].text().empty() ? "" : ", expected " + short_time(q["expectedStart"]));
  if (!c["costSoFar"].items().empty()) {
    out += "costs " + (c["perHour"].items().empty() ? "nothing now" : sum_text(c["perHour"]) + " an hour") + ", " +
           sum_text(c["costSoFar"]) + " so far";
    if (c["spec"]["budgetMicros"].integer() > 0)
      out += " of " + money_text(c["spec"]["budgetMicros"].integer(), clean(c["spec"]["currency"].text()));
    out += "\n";
  }
  for (const auto& s : c["slots"].items())
    if (!s["leavesAt"].text().empty())
      out += fmt::format("{} leaves {} at {}: its owner wants the machine back\n", clean(s["id"].text()),
                         clean(s["nodeName"].text()), short_time(s["leavesAt"]));
  out += slow_text(c);
  if (!c["slots"].items().empty()) {
    Table table({"SLOT", "ROLE", "GROUP", "ADDRESS", "NODE", "PHASE", "WANT", "RAY", "WHY"});
    for (const auto& s : c["slots"].items())
      table.add({s["id"].text(), s["role"].text(), s["group"].text(), s["address"].text(),
                 (s["nodeName"].text().empty() ? s["nodeId"].text() : s["nodeName"].text()) + share_text(s),
                 phase_text(s), s["want"].text(), s["rayAlive"].truth() ? "alive" : "-", s["reason"].text()});
    out += "\n" + table.text(colour);
  }
  if (!c["rayNodes"].items().empty()) {
    Table table({"RAY NODE", "ADDRESS", "STATE", "RESOURCES", "IDLE"});
    for (const auto& r : c["rayNodes"].items())
      table.add({r["rayNodeId"].text().substr(0, 16), r["address"].text(), r["alive"].truth() ? "alive" : "dead",
                 resources_text(r["total"]), duration_text(r["idleSeconds"].integer())});
    out += "\nRay reports:\n" + table.text(colour);
  }
  for (const auto& line : c["differences"].items()) out += "difference: " + clean(line.text()) + "\n";
  for (const auto& line : c["warnings"].items()) out += "warning: " + clean(line.text()) + "\n";
  if (const std::string failures = failures_text(c); !failures.empty()) out += "\nLast failures:\n" + failures;
  return out;
}

Result<int> list(Shell& shell, bool all) {
  Api* api = TRY(shell.api());
  auto items = TRY(api->list("/api/v1/clusters"));
  if (!all) std::erase_if(items, [](const wire::Json& c) { return c["state"].text() == "stopped"; });
  shell.show_list(std::move(items), [&](const auto& list) { return cluster_table(list, shell.colour()); });
  return 0;
}

Result<int> status(Shell& shell, const std::string& name) {
  if (name.empty()) return list(shell, false);
  Api* api = TRY(shell.api());
  const auto cluster = TRY(api->get(path_of("clusters", TRY(cluster_name(name)))));
  shell.show(cluster, [&] { return cluster_text(cluster, shell.colour()); });
  return 0;
}

}  // namespace

void add_status(CLI::App& app, Shell& shell) {
  auto name = std::make_shared<std::string>();
  auto all = std::make_shared<bool>(false);
  auto* status_command = app.add_subcommand("status", "Show one cluster as its machines and Ray report it, or all");
  status_command->add_option("cluster", *name, "name, id or YAML file");
  status_command->footer("Example:\n  muster status default -o json");
  status_command->callback([name, &shell] { shell.action = [name, &shell] { return status(shell, *name); }; });
  auto* list_command = app.add_subcommand("list", "List clusters");
  list_command->footer("Example:\n  muster list --all");
  list_command->add_flag("--all,-a", *all, "stopped ones too");
  list_command->callback([all, &shell] { shell.action = [all, &shell] { return list(shell, *all); }; });
}

}  // namespace muster::cli
