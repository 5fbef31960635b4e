// net CLUSTER, net explain CLUSTER A B
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>

#include "cli/net.h"
#include "cli/shell.h"

namespace muster::cli {
namespace {

constexpr std::size_t kMatrixMax = 12;  // members; a wider table is no help

std::string member_name(const wire::Json& member) {
  return member["nodeName"].text().empty() ? member["slot"].text() : member["nodeName"].text();
}
std::string millis_text(const wire::Json& value) {
  const double ms = value.real();
  return ms <= 0 ? "-" : ms < 10 ? fmt::format("{:.1f} ms", ms) : fmt::format("{:.0f} ms", ms);
}
std::string loss_text(const wire::Json& pair) {
  return pair["probes"].integer() == 0 ? "-" : fmt::format("{:.0f} %", pair["loss"].real() * 100);
}
std::string rate_text(const wire::Json& value) {
  return value.integer() == 0 ? "-" : size_text(value.integer()) + "/s";
}
// "1.2 MiB/s", "1.2 MiB/s tested slow", "> 2.4 MiB/s": a test did not fill it.
std::string carries_text(const wire::Json& pair) {
  if (pair["carriesBytesS"].integer() == 0 && pair["atLeastBytesS"].integer() > 0)
    return "> " + rate_text(pair["atLeastBytesS"]);
  return rate_text(pair["carriesBytesS"]) + (pair["tested"].truth() ? " tested" : "") +
         (pair["slow"].truth() ? " slow" : "");
}
bool used(const wire::Json& pair) {
  return pair["path"].text() != "none";
}

const wire::Json* find_pair(const wire::Json& net, const std::string& from, const std::string& to) {
  for (const auto& pair : net["pairs"].items())
    if (pair["from"].text() == from && pair["to"].text() == to) return &pair;
  return nullptr;
}

// "relay-udp eu-west": where there are several, which.
std::string path_text(const wire::Json& pair) {
  const std::string& path = pair["path"].text();
  if (!path.starts_with("relay") || pair["relays"].items().size() < 2) return path;
  for (const auto& relay : pair["relays"].items())
    if (relay["inUse"].truth())
      return path + " " + (relay["region"].text().empty() ? relay["address"] : relay["region"]).text();
  return path;
}

std::string matrix(const wire::Json& net, bool colour) {
  const auto& members = net["members"].items();
  std::vector<std::string> head{"FROM \\ TO"};
  for (const auto& to : members) head.push_back(member_name(to));
  Table table(std::move(head));
  for (const auto& from : members) {
    std::vector<std::string> row{member_name(from)};
    for (const auto& to : members) {
      const auto* pair = find_pair(net, from["slot"].text(), to["slot"].text());
      row.push_back(pair == nullptr || !used(*pair) ? "" : path_text(*pair) + " " + millis_text((*pair)["rttMs"]));
    }
    table.add(std::move(row));
  }
  return table.text(colour);
}

std::string members_table(const wire::Json& net, bool colour) {
  Table table({"SLOT", "ROLE", "NODE", "ADDRESS", "RELAY", "UDP PORT", "SEEN AS", "REPORTED"});
  for (const auto& m : net["members"].items()) {
    std::string seen;
    for (const auto& at : m["seenAs"].items()) seen += (seen.empty() ? "" : " ") + at.text();
    table.add({m["slot"].text(), m["role"].text(), m["nodeName"].text(), m["address"].text(),
               !m["reported"].truth() ? "-"
               : m["relayUp"].truth() ? m["relay"].text()
                                      : "down",
               m["udp"].text(), seen, m["reported"].truth() ? short_time(m["at"]) : "not yet"});
  }
  return table.text(colour);
}

std::string pairs_table(const wire::Json& net, bool colour) {
  std::map<std::string, std::string> names;
  for (const auto& m : net["members"].items()) names[m["slot"].text()] = member_name(m);
  Table table({"FROM", "TO", "PATH", "RTT", "LOSS", "AGE", "HANDSHAKE", "IN", "OUT", "IN NOW", "OUT NOW", "CARRIES",
               "CHANGES"});
  for (const auto& p : net["pairs"].items()) {
    if (!used(p)) continue;
    table.add({names[p["from"].text()], names[p["to"].text()], path_text(p), millis_text(p["rttMs"]), loss_text(p),
               duration_text(p["ageSeconds"].integer()), duration_text(p["handshakeSeconds"].integer()) + " ago",
               size_text(p["rxBytes"].integer()), size_text(p["txBytes"].integer()), rate_text(p["rxBytesS"]),
               rate_text(p["txBytesS"]), carries_text(p), std::to_string(p["changes"].integer())});
  }
  return table.empty() ? "No two members talked to each other yet.\n" : table.text(colour);
}

// How far each member is from each relay.
std::string relays_table(const wire::Json& net, bool colour) {
  Table table({"NODE", "RELAY", "REGION", "STATE", "OVER", "RTT", "UDP RTT"});
  for (const auto& m : net["members"].items())
    for (const auto& relay : m["relays"].items())
      table.add({member_name(m), relay["address"].text(), relay["region"].text(), relay["up"].truth() ? "up" : "down",
                 relay["byUdp"].truth() ? "UDP"
                 : relay["up"].truth()  ? "TLS"
                                        : "-",
                 millis_text(relay["rttMs"]), millis_text(relay["udpRttMs"])});
  return table.empty() ? "" : "\n" + table.text(colour);
}

// What members carried for others, as they say, and as both ends signed it.
std::string carried_table(const wire::Json& net, bool colour) {
  std::map<std::string, std::string> names;
  for (const auto& m : net["members"].items()) names[m["slot"].text()] = member_name(m);
  Table table({"CARRIED BY", "FROM", "TO", "BYTES", "SIGNED BY FROM", "SIGNED BY TO"});
  for (const auto& m : net["members"].items())
    for (const auto& each : m["forwarded"].items())
      table.add({member_name(m), names[each["from"].text()], names[each["to"].text()],
                 size_text(each["bytes"].integer()), size_text(each["signedFrom"].integer()),
                 size_text(each["signedTo"].integer())});
  std::string who;
  for (const auto& m : net["members"].items())
    if (m["carries"].truth()) who += (who.empty() ? "\nMay carry for others: " : ", ") + clean(member_name(m));
  return who + (who.empty() ? "" : "\n") + (table.empty() ? "" : "\n" + table.text(colour));
}

Result<wire::Json> read_net(Shell& shell, const std::string& cluster) {
  Api* api = TRY(shell.api());
  return api->get(path_of("clusters", TRY(cluster_name(cluster))) + "/net");
}

Result<int> show(Shell& shell, const std::string& cluster) {
  if (cluster.empty()) return error(Code::InvalidArgument, "say which cluster: muster net CLUSTER");
  const auto net = TRY(read_net(shell, cluster));
  shell.show(net, [&] { return net_text(net, shell.colour()); });
  return 0;
}

Result<int> explain(Shell& shell, const std::string& cluster, const std::string& from, const std::string& to) {
  const auto net = TRY(read_net(shell, cluster));
  const std::string a = TRY(net_member(net, from)), b = TRY(net_member(net, to));
  if (a == b) return error(Code::InvalidArgument, "both names are the same member; name two");
  std::vector<wire::Json> both;
  for (const auto& [x, y] : {std::pair(a, b), std::pair(b, a)})
    if (const auto* pair = find_pair(net, x, y)) both.push_back(*pair);
  shell.show_list(std::move(both), [&](const auto&) { return explain_text(net, a, b); });
  return 0;
}

}  // namespace

std::string net_text(const wire::Json& net, bool colour) {
  const auto& members = net["members"].items();
  std::string out = fmt::format("Cluster {} ({})\n\n", clean(net["name"].text()), clean(net["clusterId"].text()));
  if (members.empty()) return out + "It has no members now.\n";
  if (net["pairKbps"].integer() > 0)
    out += fmt::format("Each pair should carry {} each way; those that stay below are marked slow.\n\n",
                       mbps_text(net["pairKbps"].integer()));
  if (members.size() > 1 && members.size() <= kMatrixMax) out += matrix(net, colour) + "\n";
  out += members_table(net, colour) + "\n" + pairs_table(net, colour) + relays_table(net, colour) +
         carried_table(net, colour);
  return out;
}

// A slot, a machine's name, an overlay address, or "head".
Result<std::string> net_member(const wire::Json& net, const std::string& name) {
  std::vector<std::string> found;
  for (const auto& m : net["members"].items()) {
    const std::string& slot = m["slot"].text();
    if (slot == name || m["address"].text() == name) return slot;
    if (m["nodeName"].text() == name || (name == "head" && m["role"].text() == "head")) found.push_back(slot);
  }
  if (found.size() == 1) return found.front();
  return found.empty() ? error(Code::NotFound, "no member of the cluster is called '" + name +
                                                   "'; `muster net` lists slots, machines and addresses")
                       : error(Code::InvalidArgument, "several members run on '" + name + "'; name the slot");
}

std::string explain_text(const wire::Json& net, const std::string& a, const std::string& b) {
  std::map<std::string, const wire::Json*> members;
  for (const auto& m : net["members"].items()) members[m["slot"].text()] = &m;
  std::string out;
  for (const auto& [from, to] : {std::pair(a, b), std::pair(b, a)}) {
    const wire::Json& member = *members.at(from);
    out += fmt::format("{}{} -> {}\n", out.empty() ? "" : "\n", clean(member_name(member)),
                       clean(member_name(*members.at(to))));
    const auto* pair = find_pair(net, from, to);
    if (pair == nullptr) {
      out += member["reported"].truth() ? "  nothing is known of this pair: the machine tells of its 64 busiest only\n"
                                        : "  its machine has not reported yet, or is of an older version\n";
      continue;
    }
    const auto& p = *pair;
    const auto by = members.find(p["by"].text());
    out += fmt::format("  path   {}{}, for {}\n", clean(p["path"].text()),
                       by != members.end()           ? " (carried by " + clean(member_name(*by->second)) + ")"
                       : p["address"].text().empty() ? ""
                                                     : " (" + clean(p["address"].text()) + ")",
                       duration_text(p["ageSeconds"].integer()));
    out += fmt::format("  why    {}\n", clean(p["why"].text()));
    out += fmt::format("  rtt    {}, lost {} of the last {} probes; by the relay {}\n", millis_text(p["rttMs"]),
                       loss_text(p), p["probes"].integer(), millis_text(p["relayRttMs"]));
    out += fmt::format(
        "  speed  {} out, {} in; {}\n", rate_text(p["txBytesS"]), rate_text(p["rxBytesS"]),
        p["carriesBytesS"].integer() > 0
            ? fmt::format("it carries {} out, as measured {} ago{}", rate_text(p["carriesBytesS"]),
                          duration_text(p["carriesAgeSeconds"].integer()), p["tested"].truth() ? " by a test" : "")
        : p["atLeastBytesS"].integer() > 0
            ? fmt::format("it carries {} out at least: a test of that did not fill it, {} ago",
                          rate_text(p["atLeastBytesS"]), duration_text(p["atLeastAgeSeconds"].integer()))
            : "how much it carries is not known: it was never full");
    if (p["slow"].truth())
      out += fmt::format("  slow   it stays below the {} that the cluster asks for\n",
                         mbps_text(net["pairKbps"].integer()));
    const std::string& mapped = member["mapped"].text();
    out += fmt::format("  udp    port {}{}; relay {}\n", clean(member["udp"].text()),
                       mapped.empty()      ? ""
                       : mapped == "owner" ? ", forwarded by its owner"
                                           : ", let in at the router by " + clean(mapped),
                       member["relayUp"].truth() ? clean(member["relay"].text()) : "down");
    for (const auto& r : p["relays"].items())
      out +=
          fmt::format("  relay  {}{}: {} from end to end, {} of {} probes answered{}\n", clean(r["address"].text()),
                      r["region"].text().empty() ? "" : " (" + clean(r["region"].text()) + ")", millis_text(r["rttMs"]),
                      r["answered"].integer(), r["sent"].integer(), r["inUse"].truth() ? "; the one in use" : "");
    for (const auto& t : p["tries"].items())
      out += fmt::format("  tried  {} address{} ({}): {}, {} of {} probes answered{}\n", clean(t["path"].text()),
                         t["address"].text().empty() ? "" : " " + clean(t["address"].text()),
                         t["origin"].text() == "roster"    ? "from the roster"
                         : t["origin"].text() == "told"    ? "told by the other"
                         : t["origin"].text() == "offered" ? "a member that offers to carry"
                                                           : "a probe came from there",
                         clean(t["outcome"].text()), t["answered"].integer(), t["sent"].integer(),
                         t["rttMs"].real() > 0 ? ", " + millis_text(t["rttMs"]) : "");
    if (p["tries"].items().empty()) out += "  tried  nothing: no address to try is known\n";
  }
  return out;
}

std::string ways_text(const wire::Json& node, bool colour) {
  Table table({"TO", "PATH", "CARRIED", "TIMES", "CONFIDENCE", "MEASURED", "RTT", "SEEN"});
  for (const auto& way : node["ways"].items()) {
    const bool known = way["kbps"].integer() > 0;
    table.add({way["nodeName"].text().empty() ? way["nodeId"].text() : way["nodeName"].text(), way["path"].text(),
               known ? mbps_text(way["kbps"].integer()) : "-", std::to_string(way["samples"].integer()),
               fmt::format("{:.0f} %", way["confidence"].real() * 100), known ? short_time(way["measuredAt"]) : "-",
               millis_text(way["rttMs"]), short_time(way["seenAt"])});
  }
  std::string out =
      table.empty() ? "Nothing was measured between it and others within the last week.\n" : table.text(colour);
  if (const std::int64_t from = node["placeFrom"].integer(); from > 0)
    out += fmt::format("Round trips to others are foretold from {} that were measured, usually to within {:.0f} %.\n",
                       from, node["placeError"].real() * 100);
  return out;
}

// Of a pair: what was measured, else what is foretold.
std::string way_text(const wire::Json& node, const std::string& to) {
  for (const auto& way : node["ways"].items())
    if ((way["nodeName"].text() == to || way["nodeId"].text() == to) && way["path"].text() != "relay" &&
        way["rttMs"].real() > 0)
      return fmt::format("{}: {}, measured {}\n", to, millis_text(way["rttMs"]), short_time(way["seenAt"]));
  if (node["foretoldRttMs"].real() > 0)
    return fmt::format("{}: about {}, foretold from where both lie; never measured\n", to,
                       millis_text(node["foretoldRttMs"]));
  return to +
         ": not known; a round trip is foretold once both machines measured those to three others or relays at least\n";
}

// What was kept of it, by day.
std::string carried_rows(const std::vector<wire::Json>& rows, bool colour) {
  if (rows.empty()) return "Nothing was carried for others, as far as you may see.\n";
  Table table({"DAY", "CARRIED BY", "FOR CLUSTER", "OF", "BYTES"});
  std::int64_t all = 0;
  for (const auto& row : rows) {
    const auto& cluster = row["clusterName"].text().empty() ? row["clusterId"] : row["clusterName"];
    table.add({row["day"].text(), row["nodeName"].text().empty() ? row["nodeId"].text() : row["nodeName"].text(),
               cluster.text(), row["tenantOrgId"].text(), size_text(row["bytes"].integer())});
    all += row["bytes"].integer();
  }
  return table.text(colour) + "Together " + size_text(all) + ", as both ends of each pair signed it.\n";
}

void add_net(CLI::App& app, Shell& shell) {
  struct Names {
    std::string cluster, from, to;
  };
  auto names = std::make_shared<Names>();
  auto* command = app.add_subcommand("net", "How the members of a cluster reach each other, and why so");
  command->add_option("cluster", names->cluster, "name, id or YAML file");
  command->footer(
      "Paths: lan (one network), direct (through the NATs), peer (another member carries it), relay-udp and relay (by "
      "muster-relay, what this end sends over UDP or TLS). Of each pair both ends report, some 15 s old.\n"
      "CARRIES is what a way out was last found to carry when it was full; tested: a short test filled it, where both "
      "owners allow that; > : a test of so much did not.\n"
      "Examples:\n  muster net default\n  muster net default -o json\n  muster net explain default head my-gaming-pc");
  command->callback([names, &shell, command] {
    if (command->get_subcommands().empty()) shell.action = [names, &shell] { return show(shell, names->cluster); };
  });
  auto* measured = command->add_subcommand(
      "measured", "What was measured between a machine and others, of clusters that are over too");
  measured->add_option("node", names->cluster, "name or id of the machine")->required();
  measured->add_option("to", names->to, "another machine: the round trip to it, foretold if nobody measured it");
  measured->footer(
      "Each row is the way from the machine to the other; the way back is a row of the other's. The planner uses it "
      "for "
      "a week.\nExamples:\n  muster net measured my-gaming-pc\n  muster net measured my-gaming-pc another-pc");
  measured->callback([names, &shell] {
    shell.action = [names, &shell]() -> Result<int> {
      Api* api = TRY(shell.api());
      const std::string query = names->to.empty() ? "" : "?to=" + escape_url(names->to);
      const auto ways = TRY(api->get(path_of("nodes", names->cluster) + "/ways" + query));
      shell.show(ways, [&] { return names->to.empty() ? ways_text(ways, shell.colour()) : way_text(ways, names->to); });
      return 0;
    };
  });
  struct Carried {
    std::string node, cluster, since;
  };
  auto filter = std::make_shared<Carried>();
  auto* carried = command->add_subcommand(
      "carried", "What machines carried for others, by day: of your machines, and for your clusters");
  carried->add_option("--node", filter->node, "only by this machine");
  carried->add_option("--cluster", filter->cluster, "only for this cluster");
  carried->add_option("--since", filter->since, "only from this day on (UTC), such as 2026-11-30");
  carried->footer(
      "Of each pair the smaller of what the one end sent and the other got, both signed; kept for 400 days.\n"
      "Example:\n  muster net carried --since 2026-11-01");
  carried->callback([filter, &shell] {
    shell.action = [filter, &shell]() -> Result<int> {
      Api* api = TRY(shell.api());
      std::string wanted;
      for (const auto& [key, value] : {std::pair("node", &filter->node), std::pair("cluster", &filter->cluster),
                                       std::pair("since", &filter->since)})
        if (!value->empty()) wanted += (wanted.empty() ? "" : ",") + std::string(key) + "=" + *value;
      auto rows = TRY(api->list("/api/v1/carried" + (wanted.empty() ? "" : "?filter=" + escape_url(wanted))));
      shell.show_list(std::move(rows), [&](const auto& all) { return carried_rows(all, shell.colour()); });
      return 0;
    };
  });
  auto* why = command->add_subcommand("explain", "What was tried between two members, and why this path");
  why->add_option("cluster", names->cluster, "name, id or YAML file")->required();
  why->add_option("from", names->from, "slot, machine, overlay address or \"head\"")->required();
  why->add_option("to", names->to, "the other one")->required();
  why->footer("Example:\n  muster net explain default head my-gaming-pc");
  why->callback([names, &shell] {
    shell.action = [names, &shell] { return explain(shell, names->cluster, names->from, names->to); };
  });
}

}  // namespace muster::cli
