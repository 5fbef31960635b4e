// queue, nodes
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/money.h"
#include "cli/offer.h"
#include "cli/shell.h"
#include "cli/terminal.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

// The promised time where there is one, else the likely one.
std::string expected(const wire::Json& q) {
  if (!q["expectedStart"].text().empty()) return short_time(q["expectedStart"]);
  return q["startP50"].text().empty() ? "" : "~" + short_time(q["startP50"]);
}

Result<int> queue(Shell& shell) {
  Api* api = TRY(shell.api());
  shell.show_list(TRY(api->list("/api/v1/queue")), [&](const auto& items) {
    if (items.empty()) return std::string("Nothing is waiting.\n");
    Table table({"PLACE", "CLUSTER", "NAME", "TIER", "PRIORITY", "SINCE", "EXPECTED", "WAITS FOR"});
    for (const auto& q : items)
      table.add({q["position"].text(), q["clusterId"].text(), q["name"].text(), q["tier"].text(), q["priority"].text(),
                 short_time(q["waitingSince"]), expected(q), q["reason"].text()});
    return table.text(shell.colour());
  });
  return 0;
}

// From what such work lasted so far.
std::string likely(const wire::Json& q) {
  if (q["startP50"].text().empty()) return "not known, or not within a day";
  std::string out = "half the chance by " + short_time(q["startP50"]);
  return out + (q["startP90"].text().empty() ? ", nine in ten not within a day"
                                             : ", nine in ten by " + short_time(q["startP90"]));
}

Result<int> explain(Shell& shell, const std::string& name) {
  Api* api = TRY(shell.api());
  const auto cluster = TRY(api->get(path_of("clusters", TRY(cluster_name(name)))));
  const auto& q = cluster["queue"];
  const bool queued = cluster["state"].text() == "queued";
  if (!queued && q["position"].integer() == 0 && q["reasonCode"].text().empty())
    return error(Code::FailedPrecondition,
                 fmt::format("cluster {} is not waiting; it is {}", name, clean(cluster["state"].text())));
  const std::string waits_for = q["reasonCode"].text().empty()
                                    ? "the planner, which has not looked at it yet"
                                    : clean(q["reason"].text()) + " (" + clean(q["reasonCode"].text()) + ")";
  shell.show(q, [&] {
    return fmt::format(
        "{} waits at place {} since {}\n  for: {}\n  expected start: {}\n  likely start: {}\n  order: tier {} first, "
        "then priority {} with aging and less fair share, then time\n",
        clean(cluster["name"].text()) +
            (queued ? "" : " is " + clean(cluster["state"].text()) + " and lacks machines; it"),
        q["position"].integer(), short_time(q["waitingSince"]), waits_for,
        q["expectedStart"].text().empty() ? "not known; too little of what runs has an end (max_lifetime)"
                                          : short_time(q["expectedStart"]),
        likely(q), q["tier"].integer(), q["priority"].integer());
  });
  return 0;
}

// What is free of GPUs that are shared and of MIG instances: ", 0.5 in shares, 2 of 3 MIG instances".
std::string parts_text(const wire::Json& node) {
  double shared = 0;
  int sharing = 0, instances = 0, free = 0;
  for (const auto& d : node["devices"].items()) {
    if (d["sharing"].text() == "shared") ++sharing, shared += d["free"].real();
    if (d["sharing"].text() == "mig") ++instances, free += d["free"].real() > 0 ? 1 : 0;
  }
  std::string out;
  if (sharing > 0) out += fmt::format(", {:g} in shares", shared);
  if (instances > 0) out += fmt::format(", {} of {} MIG instances", free, instances);
  return out;
}

std::string device_text(const wire::Json& d) {
  std::string out = fmt::format("  GPU {} {} {}", clean(d["uuid"].text()), clean(d["model"].text()),
                                size_text(d["memoryBytes"].integer()));
  if (d["sharing"].text() == "shared") out += fmt::format(", shared: {:g} free", d["free"].real());
  if (d["sharing"].text() == "mig")
    out += fmt::format(", MIG {} ({:g} of its GPU): {}", clean(d["profile"].text()), d["part"].real(),
                       d["free"].real() > 0 ? "free" : "in use");
  return out + "\n";
}

Result<int> list_nodes(Shell& shell) {
  Api* api = TRY(shell.api());
  shell.show_list(TRY(api->list("/api/v1/nodes")), [&](const auto& items) {
    if (items.empty()) return std::string("No machines. Enrol one: muster join-token create\n");
    Table table({"ID", "NAME", "STATE", "TIER", "ARCH", "CAPACITY", "FREE", "LEASES", "ASKS", "AGENT", "NOT HIRED"});
    for (const auto& n : items)
      table.add({n["id"].text(), n["name"].text(), n["draining"].truth() ? "draining" : n["state"].text(),
                 n["tier"].text(), n["arch"].text(), resources_text(n["capacity"]),
                 resources_text(n["free"]) + parts_text(n), std::to_string(n["leases"].items().size()), asks_text(n),
                 n["agentVersion"].text(), n["notHired"].text()});
    return table.text(shell.colour());
  });
  return 0;
}

Result<int> show_node(Shell& shell, const std::string& id) {
  Api* api = TRY(shell.api());
  const auto n = TRY(api->get(path_of("nodes", id)));
  shell.show(n, [&] {
    std::string out = fmt::format(
        "{} ({})  {} since {}\n  {} {}, kernel {}, agent {}, {}, tier {}{}\n  capacity {}\n  free     {}\n",
        clean(n["name"].text()), clean(n["id"].text()), clean(n["state"].text()), short_time(n["stateSince"]),
        clean(n["hostname"].text()), clean(n["os"].text()), clean(n["kernel"].text()), clean(n["agentVersion"].text()),
        clean(n["arch"].text()), clean(n["tier"].text()), n["egressAllowed"].truth() ? ", egress allowed" : "",
        resources_text(n["capacity"]), resources_text(n["free"]));
    for (const auto& d : n["devices"].items()) out += device_text(d);
    for (const auto& [name, value] : n["labels"].members())
      out += fmt::format("  label {}={}\n", clean(name), clean(value.text()));
    if (!n["region"].text().empty())
      out += fmt::format("  region {}{}\n", clean(n["region"].text()),
                         n["regionClaimed"].truth() ? " (the machine says so)" : "");
    for (const auto& [name, value] : n["claimedLabels"].members())
      out += fmt::format("  claims {}={}\n", clean(name), clean(value.text()));
    for (const auto& image : n["images"].items()) out += "  image " + clean(image.text()) + "\n";
    for (const auto& h : n["holes"].items()) {
      out += fmt::format("  hole {} in {} {}: {}{}", h["id"].text().empty() ? "?" : clean(h["id"].text()),
                         clean(h["component"].text()), clean(h["version"].text()), clean(h["state"].text()),
                         h["blocks"].truth() ? ", keeps new work away" : "");
      if (!h["fixed"].text().empty()) out += ", mended in " + clean(h["fixed"].text());
      for (const char* part : {"what", "why"})
        if (!h[part].text().empty()) out += "; " + clean(h[part].text());
      out += "\n";
    }
    if (const auto& r = n["reliability"]; r["hoursBetween"].real() > 0)
      out += fmt::format("  held for {:.0f} h, {:.0f} lost with it; a loss every {:.0f} h is reckoned with{}\n",
                         r["hours"].real(), r["lost"].real(), r["hoursBetween"].real(),
                         r["newcomer"].truth() ? " (little is known yet)" : "");
    out += offer_text(n);
    if (!n["notHired"].text().empty()) out += "  not hired: " + clean(n["notHired"].text()) + "\n";
    if (n["leases"].items().empty()) return out;
    Table table({"LEASE", "CLUSTER", "ROLE", "PHASE", "WANT", "PAYS AN HOUR", "LEAVES", "WHY"});
    for (const auto& l : n["leases"].items())
      table.add({l["id"].text(), l["cluster"].text(), l["role"].text(), l["phase"].text(), l["want"].text(),
                 price_text(l["priceMicros"], l["currency"]), short_time(l["leavesAt"]), l["reason"].text()});
    return out + "\n" + table.text(shell.colour());
  });
  return 0;
}

struct ActOptions {
  std::string id, tier;
  bool yes = false;
};

Result<int> act(Shell& shell, const std::string& action, const ActOptions& options) {
  if (action == "revoke" && !options.yes &&
      !confirm("Revoke " + options.id + "? Its certificate ends at once and its leases with it."))
    return error(Code::Cancelled, "nothing was revoked (--yes does it without asking)");
  wire::NodeActionRequest request{.id = options.id, .action = action, .tier = {}};
  if (!options.tier.empty()) {
    if (options.tier == "community")
      request.tier = TrustTier::Community;
    else if (options.tier == "verified")
      request.tier = TrustTier::Verified;
    else if (options.tier == "platform")
      request.tier = TrustTier::Platform;
    else
      return error(Code::InvalidArgument, "--tier is community, verified or platform");
  }
  Api* api = TRY(shell.api());
  const auto node = TRY(api->send("POST", path_of("nodes", options.id) + "/action", wire::to_json(request)));
  shell.show(node, [&] {
    return fmt::format("{} ({}) is {}{}\n", clean(node["name"].text()), clean(node["id"].text()),
                       clean(node["state"].text()), node["draining"].truth() ? ", draining" : "");
  });
  return 0;
}

}  // namespace

void add_queue(CLI::App& app, Shell& shell) {
  auto name = std::make_shared<std::string>();
  auto* command = app.add_subcommand("queue", "Show what waits, and why");
  command->callback([&shell, command] {
    if (command->get_subcommands().empty()) shell.action = [&shell] { return queue(shell); };
  });
  auto* explain_command = command->add_subcommand("explain", "Why one cluster waits");
  explain_command->footer("Example:\n  muster queue explain default");
  explain_command->add_option("cluster", *name, "name, id or YAML file")->required();
  explain_command->callback([name, &shell] { shell.action = [name, &shell] { return explain(shell, *name); }; });
}

void add_nodes(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<ActOptions>();
  auto* nodes = app.add_subcommand(
      "nodes", "Machines: list, show, offer, explain, admit, drain, undrain, disable, enable, revoke");
  nodes->callback([&shell, nodes] {
    if (nodes->get_subcommands().empty()) shell.action = [&shell] { return list_nodes(shell); };
  });
  auto* list_command = nodes->add_subcommand("list", "List machines");
  list_command->footer("Example:\n  muster nodes list -o json");
  list_command->callback([&shell] { shell.action = [&shell] { return list_nodes(shell); }; });
  auto* show = nodes->add_subcommand("show", "Show one machine");
  show->add_option("node", options->id, "id")->required();
  show->footer("Example:\n  muster nodes show node-3");
  show->callback([options, &shell] { shell.action = [options, &shell] { return show_node(shell, options->id); }; });
  add_offer(*nodes, shell);
  const std::pair<const char*, const char*> actions[] = {
      {"admit", "Let an enrolled machine work"},
      {"drain", "Give it no new work, let the present end"},
      {"undrain", "Take work again"},
      {"disable", "Stop its work and give it none"},
      {"enable", "Undo disable, or end the quarantine of a machine whose copy is gone"},
      {"revoke", "End its identity for good"}};
  for (const auto& [name, text] : actions) {
    auto* command = nodes->add_subcommand(name, text);
    command->add_option("node", options->id, "id")->required();
    if (std::string_view(name) == "admit")
      command->add_option("--tier", options->tier, "trust tier: community, verified or platform");
    command->footer(fmt::format("Example:\n  muster nodes {} node-3", name));
    if (std::string_view(name) == "revoke") command->add_flag("--yes,-y", options->yes, "do not ask");
    command->callback([options, name = std::string(name), &shell] {
      shell.action = [options, name, &shell] { return act(shell, name, *options); };
    });
  }
}

}  // namespace muster::cli
