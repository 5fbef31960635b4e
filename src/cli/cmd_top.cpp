// top
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "cli/shell.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

std::string name_of(const wire::Json& machine) {
  return machine["nodeName"].text().empty() ? machine["nodeId"].text() : machine["nodeName"].text();
}
std::string rate(const wire::Json& value) {
  return size_text(value.integer()) + "/s";
}
// "GPU-8d0c5c2e-..." is long; its first part tells GPUs of one machine apart.
std::string short_gpu(const std::string& uuid) {
  return uuid.size() > 16 ? uuid.substr(0, 12) : uuid;
}

std::string machines_table(const std::vector<wire::Json>& items, bool colour) {
  Table table(
      {"MACHINE", "CPU", "PEAK", "MEMORY", "DISK FREE", "READ", "WRITE", "NET IN", "NET OUT", "OVER", "NOT HIRED"});
  bool any = false;
  for (const auto& t : items) {
    if (t["cpusTotal"].real() <= 0) continue;  // of a machine that is not ours only our containers are shown
    any = true;
    table.add({name_of(t), fmt::format("{:.1f} of {:.0f}", t["cpusUsed"].real(), t["cpusTotal"].real()),
               fmt::format("{:.1f}", t["cpusPeak"].real()),
               size_text(t["memoryUsedBytes"].integer()) + " of " + size_text(t["memoryTotalBytes"].integer()),
               size_text(t["diskFreeBytes"].integer()), rate(t["diskReadBytesS"]), rate(t["diskWriteBytesS"]),
               rate(t["netRxBytesS"]), rate(t["netTxBytesS"]), fmt::format("{:.0f} s", t["windowSeconds"].real()),
               t["owner"].text()});
  }
  return any ? table.text(colour) : std::string();
}

std::string gpus_table(const std::vector<wire::Json>& items, bool colour) {
  Table table({"MACHINE", "GPU", "MODEL", "USE", "MEMORY", "TEMP", "POWER", "SM", "MEM", "ECC", "XID", "LEASE"});
  bool any = false;
  for (const auto& t : items) {
    for (const auto& g : t["gpus"].items()) {
      any = true;
      const auto limit = g["powerLimitW"].integer();
      table.add(
          {name_of(t), short_gpu(g["uuid"].text()), g["model"].text(), fmt::format("{}%", g["usePercent"].integer()),
           size_text(g["memoryUsedBytes"].integer()) + " of " + size_text(g["memoryTotalBytes"].integer()),
           fmt::format("{} C", g["temperatureC"].integer()),
           limit > 0 ? fmt::format("{} of {} W", g["powerW"].integer(), limit)
                     : fmt::format("{} W", g["powerW"].integer()),
           fmt::format("{} MHz", g["smMhz"].integer()), fmt::format("{} MHz", g["memoryMhz"].integer()),
           fmt::format("{}/{}", g["eccCorrected"].integer(), g["eccUncorrected"].integer()),
           g["xidCount"].integer() == 0 ? "-" : fmt::format("{} ({}x)", g["xid"].integer(), g["xidCount"].integer()),
           g["leaseId"].text()});
    }
  }
  return any ? "\n" + table.text(colour) : std::string();
}

std::string containers_table(const std::vector<wire::Json>& items, bool colour) {
  Table table({"MACHINE", "LEASE", "CLUSTER", "ROLE", "CPU", "MEMORY", "PROCESSES", "NET IN", "NET OUT", "GPU MEMORY"});
  bool any = false;
  for (const auto& t : items) {
    for (const auto& c : t["containers"].items()) {
      any = true;
      table.add({name_of(t), c["leaseId"].text(), c["cluster"].text(), c["role"].text(),
                 fmt::format("{:.2f}", c["cpusUsed"].real()), size_text(c["memoryBytes"].integer()),
                 std::to_string(c["pids"].integer()), rate(c["netRxBytesS"]), rate(c["netTxBytesS"]),
                 c["gpus"].items().empty() ? "-" : size_text(c["gpuMemoryBytes"].integer())});
    }
  }
  return any ? "\n" + table.text(colour) : std::string();
}

std::string top_text(const std::vector<wire::Json>& items, bool colour) {
  const std::string text = machines_table(items, colour) + gpus_table(items, colour) + containers_table(items, colour);
  if (text.empty()) return "Nothing to show: no machine of yours is connected and no cluster of yours runs.\n";
  return text.starts_with('\n') ? text.substr(1) : text;
}

std::string path(const std::string& node) {
  return node.empty() ? "/api/v1/telemetry" : "/api/v1/telemetry?filter=" + escape_url("node=" + node);
}

Result<int> top(Shell& shell, bool once, const std::string& node) {
  Api* api = TRY(shell.api());
  const bool live = !once && shell.table() && stdout_is_terminal();
  for (;;) {
    auto items = api->list(path(node));
    if (!items.ok() && !live) return items.error();
    if (live) std::fputs("\033[H\033[2J", stdout);
    if (!items.ok()) {
      // A control plane that restarts is back in a moment; what was shown is too old to stay.
      fmt::print("{}\n", items.error().message);
    } else {
      shell.show_list(std::move(*items), [&](const auto& list) { return top_text(list, shell.colour()); });
    }
    if (!live) return 0;
    std::fflush(stdout);
    api->sleep(Millis(1'000));
  }
}

}  // namespace

void add_top(CLI::App& app, Shell& shell) {
  auto once = std::make_shared<bool>(false);
  auto node = std::make_shared<std::string>();
  auto* command = app.add_subcommand("top", "Live use of machines, GPUs and containers one may see");
  command->footer(
      "Refreshes every second on a terminal; machines sample at 1 Hz while somebody looks and send the mean of some 15 "
      "s\n"
      "otherwise (column OVER). Examples:\n  muster top\n  muster top --node my-gaming-pc\n  muster -o json top");
  command->add_flag("--once", *once, "print once");
  command->add_option("--node", *node, "only this machine (id or name)");
  command->callback([once, node, &shell] { shell.action = [once, node, &shell] { return top(shell, *once, *node); }; });
}

}  // namespace muster::cli
