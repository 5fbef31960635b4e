// up FILE.yaml: report, create or change, wait.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <mutex>

#include "cli/lifecycle.h"
#include "cli/money.h"
#include "cli/request.h"
#include "cli/terminal.h"
#include "model/offer.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

bool live(const wire::Json& cluster) {
  const auto& state = cluster["state"].text();
  return state != "stopped" && state != "failed" && !state.empty();
}

// Whether a live cluster has what was asked: the head and every group's minimum.
bool complete(const wire::Json& cluster) {
  if (!live(cluster)) return true;
  if (cluster["state"].text() != "running") return false;
  std::map<std::string, std::int64_t> ready;
  for (const auto& slot : cluster["slots"].items())
    if (slot["role"].text() == "worker" && slot["phase"].text() == "ready") ++ready[slot["group"].text()];
  for (const auto& group : cluster["spec"]["groups"].items())
    if (ready[group["name"].text()] < group["min"].integer()) return false;
  return true;
}

Result<wire::Json> change(Shell& shell, const wire::Json& old, const ClusterSpec& spec, bool yes) {
  Api* api = TRY(shell.api());
  const std::string id = old["id"].text();
  const auto lines = difference(old["spec"], spec_json(spec));
  if (lines.empty()) {
    say("Cluster " + spec.name + " already is as the file asks.");
    return old;
  }
  say(fmt::format("Cluster {} ({}) exists and would change:", spec.name, clean(id)));
  for (const auto& line : lines) say("  " + line);
  if (!yes && !confirm("Apply these changes?"))
    return error(Code::Cancelled, "nothing was changed (--yes applies without asking)");
  auto answer = api->send(
      "PUT", path_of("clusters", id),
      wire::to_json(wire::UpdateClusterRequest{id, spec, static_cast<std::uint64_t>(old["generation"].integer())}));
  if (!answer.ok() && answer.error().code == Code::Aborted)
    return error(Code::Aborted,
                 "somebody else changed the cluster meanwhile; run the command again to see the new difference");
  return answer;
}

// `--min-workers` and `--max-workers`, as `ray up` has them: for the only kind of worker there is.
Status override_counts(ClusterSpec& spec, const UpOptions& options) {
  if (!options.min_workers && !options.max_workers) return {};
  if (spec.groups.size() != 1)
    return error(Code::InvalidArgument,
                 fmt::format("--min-workers and --max-workers are for files with one kind of worker; this one has {}: "
                             "change its available_node_types",
                             spec.groups.size()));
  WorkerGroup& group = spec.groups[0];
  if (options.min_workers) group.min = *options.min_workers;
  if (options.max_workers) group.max = *options.max_workers;
  if (options.min_workers && !options.max_workers) group.max = std::max(group.max, group.min);
  if (options.max_workers && !options.min_workers) group.min = std::min(group.min, group.max);
  spec.max_workers = 0;
  return {};
}

Status override_money(ClusterSpec& spec, const UpOptions& options) {
  std::string named;  // both are of one currency; an amount of another currency takes the place of the file's
  for (const auto& [text, flag, max, out] : {std::tuple(&options.max_price, "--max-price", kPriceMax, &spec.max_price),
                                             std::tuple(&options.budget, "--budget", kBudgetMax, &spec.budget)}) {
    if (text->empty()) continue;
    const Money money = TRY(parse_money(*text, flag, max));
    if (!named.empty() && named != money.currency)
      return error(Code::InvalidArgument, "--max-price and --budget must be in one currency");
    *out = money.micros, named = money.currency;
  }
  if (named.empty()) return {};
  const bool other = !spec.currency.empty() && spec.currency != named;
  if (other && ((options.max_price.empty() && spec.max_price > 0) || (options.budget.empty() && spec.budget > 0)))
    return error(Code::InvalidArgument,
                 fmt::format("the file's amounts are in {}; give that currency, as in \"1.20 {}\"", spec.currency,
                             spec.currency));
  spec.currency = named;
  return {};
}

// The file and what the command line says over it.
Result<launcher::Launch> wanted(Shell& shell, const UpOptions& options) {
  launcher::Launch launch = TRY(read_launch(shell, options.cluster.given, options.image, options.egress));
  if (options.spares) launch.spec.spares = *options.spares;
  if (!options.cluster.override.empty()) launch.spec.name = options.cluster.override;
  TRY_VOID(override_counts(launch.spec, options));
  TRY_VOID(override_money(launch.spec, options));
  return launch;
}

std::string plan_text(const wire::Json& plan, const ClusterSpec& spec) {
  const std::string& name = spec.name;
  if (plan["startsNow"].truth()) {
    std::map<std::string, int> kinds;  // equal machines share a line
    std::map<std::string, std::int64_t> sums;
    for (const auto& place : plan["places"].items()) {
      std::string kind = clean(place["role"].text());
      if (!place["group"].text().empty()) kind += " " + clean(place["group"].text());
      kind += ": ";
      if (place["gpuShare"].real() > 0)
        kind += fmt::format("{:g} of a {}, ", place["gpuShare"].real(), clean(place["gpuModel"].text()));
      else if (place["gpus"].integer() > 0)
        kind += fmt::format("{} x {}, ", place["gpus"].integer(), clean(place["gpuModel"].text()));
      if (!place["region"].text().empty()) kind += "region " + clean(place["region"].text()) + ", ";
      kind += clean(place["tier"].text()) + (place["imagePresent"].truth() ? ", image there" : "");
      if (const std::string price = price_text(place["priceMicros"], place["currency"]); !price.empty()) {
        kind += ", " + price + " an hour";
        sums[clean(place["currency"].text())] += place["priceMicros"].integer();
      }
      if (!place["leavesAt"].text().empty()) kind += ", until " + short_time(place["leavesAt"]);
      ++kinds[kind];
    }
    std::string out = name + " would start now:\n";
    for (const auto& [kind, count] : kinds) out += fmt::format("  {} x {}\n", count, kind);
    for (const auto& [currency, micros] : sums) {
      out += "  together " + money_text(micros, currency) + " an hour";
      if (spec.budget > 0 && currency == spec.currency)
        out += fmt::format("; the budget of {} lasts {}", money_text(spec.budget, currency),
                           duration_text(spec.budget / micros * 3600 + spec.budget % micros * 3600 / micros));
      out += "\n";
    }
    return out;
  }
  const auto& queue = plan["queue"];
  std::string out = name + " would wait";
  if (queue["position"].integer() > 0) out += fmt::format(" at place {}", queue["position"].integer());
  out += fmt::format("\n  for: {} ({})\n", clean(queue["reason"].text()), clean(queue["reasonCode"].text()));
  const auto& expected = queue["expectedStart"];
  return out + "  expected start: " + (expected.text().empty() ? "not known" : short_time(expected)) + "\n";
}

// Where an interrupted `up` stands.
class Stage {
 public:
  void set(std::string text) {
    const std::lock_guard lock(mutex_);
    text_ = std::move(text);
  }
  std::string get() {
    const std::lock_guard lock(mutex_);
    return text_;
  }

 private:
  std::mutex mutex_;
  std::string text_ = "Nothing was started or changed.";
};

}  // namespace

Result<int> up(Shell& shell, const UpOptions& options) {
  auto stage = std::make_shared<Stage>();
  const OnInterrupt interrupt([stage] { return stage->get(); });
  const std::string& file = options.cluster.given;
  launcher::Launch launch = TRY(wanted(shell, options));
  const std::string report = "What became of " + file + ":\n" +
                             launcher::report_text(launch.report, stdout_is_terminal() ? terminal_size().cols : 120);
  if (shell.table())
    shell.show({}, [&] { return report; });  // for programs only the answer goes to standard output
  else
    say(report);
  if (options.dry_run) {
    shell.show(spec_json(launch.spec), [&] { return yaml_text(spec_json(launch.spec)); });
    return 0;
  }
  TRY_VOID(upload_mounts(shell, launch, file));
  Api* api = TRY(shell.api());
  const std::string& name = launch.spec.name;
  const std::string go_on =
      fmt::format("Watch it: muster status {0}. Wait again: muster up {1}. Stop it: muster down {0}.", name, file);
  wire::Json cluster;
  auto old = api->get(path_of("clusters", name));
  if (!old.ok() && old.error().code != Code::NotFound) return old.error();
  if (old.ok() && (*old)["state"].text() == "stopping")
    return error(Code::FailedPrecondition,
                 "cluster " + name + " is stopping; try again when `muster status " + name + "` says stopped");
  if (old.ok() && live(*old)) {
    cluster = TRY(change(shell, *old, launch.spec, options.yes));
  } else {
    stage->set(fmt::format("The request for cluster {} may have been accepted. {}", name, go_on));
    cluster = TRY(
        api->send("POST", "/api/v1/clusters", wire::to_json(wire::CreateClusterRequest{launch.spec, shell.project})));
  }
  const std::string id = cluster["id"].text();
  const auto left = [name, id, go_on](const wire::Json& now) {
    return fmt::format("{} ({}). It goes on by itself. {}", cluster_progress(now), clean(id), go_on);
  };
  if (!options.no_wait) cluster = TRY(wait_cluster(shell, id, complete, left));
  for (const auto& warning : cluster["warnings"].items()) say("warning: " + clean(warning.text()));
  if (!options.no_wait && !live(cluster)) {
    if (std::string failures = failures_text(cluster); !failures.empty()) {
      failures.pop_back();
      say(failures);
    }
    return error(Code::FailedPrecondition, fmt::format("cluster {} {}: {}", name, clean(cluster["state"].text()),
                                                       clean(cluster["reason"].text())));
  }
  shell.show(cluster, [&] {
    return cluster_progress(cluster) + fmt::format(
                                           "\n\n  muster status {0}\n  muster attach {0}\n  muster dashboard {0}\n  "
                                           "muster job submit --cluster {0} -- python script.py\n  muster down {0}\n",
                                           name);
  });
  return 0;
}

namespace {
void add_money(CLI::App& command, UpOptions& options) {
  command.add_option("--max-price", options.max_price,
                     "the most that a machine may cost an hour, such as \"1.20 EUR\", whatever the file says");
  command.add_option("--budget", options.budget,
                     "the most that it may cost in all; then it is stopped. By stated prices; nobody moves money");
}
}  // namespace

void add_plan(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<UpOptions>();
  auto* command = app.add_subcommand("plan", "What would become of a cluster if it were asked for now; starts nothing");
  command->add_option("file", options->cluster.given, "cluster-launcher YAML, - for standard input")->required();
  command->add_option("--min-workers", options->min_workers, "whatever the file says")->check(CLI::Range(0, 1'000));
  command->add_option("--max-workers", options->max_workers, "whatever the file says")->check(CLI::Range(0, 1'000));
  command->add_option("--spares", options->spares, "hot spares, whatever the file says")->check(CLI::Range(0, 1'000));
  command->add_flag("--egress", options->egress, "as `up` has it");
  command->add_option("--image", options->image, "image where the file names none that exists");
  add_money(*command, *options);
  command->footer(
      "Says on what kinds of machines it would start, or what it would wait for and how long. Everything that waits\n"
      "already goes first, as it would. Examples:\n  muster plan default.yaml\n  muster plan default.yaml "
      "--min-workers 16 -o json\n  muster plan default.yaml --max-price \"1.20 EUR\"");
  command->callback([options, &shell] {
    shell.action = [options, &shell]() -> Result<int> {
      const launcher::Launch launch = TRY(wanted(shell, *options));
      Api* api = TRY(shell.api());
      const auto plan =
          TRY(api->send("POST", "/api/v1/plan", wire::to_json(wire::CreateClusterRequest{launch.spec, shell.project})));
      shell.show(plan, [&] { return plan_text(plan, launch.spec); });
      return 0;
    };
  });
}

void add_up(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<UpOptions>();
  auto* command = app.add_subcommand("up", "Start or change a cluster from Ray's cluster YAML");
  command->add_option("file", options->cluster.given, "cluster-launcher YAML, - for standard input")->required();
  command->add_option("--cluster-name,-n", options->cluster.override, "instead of the file's cluster_name");
  command->add_option("--min-workers", options->min_workers, "whatever the file says")->check(CLI::Range(0, 1'000));
  command->add_option("--max-workers", options->max_workers, "whatever the file says")->check(CLI::Range(0, 1'000));
  command->add_flag("--yes,-y", options->yes, "do not ask");
  command->add_flag("--no-wait", options->no_wait, "return once the request is accepted");
  command->add_flag("--dry-run", options->dry_run, "print the report and the request, start nothing");
  command->add_option("--spares", options->spares, "hot spares, whatever the file says")->check(CLI::Range(0, 1'000));
  command->add_flag("--egress", options->egress,
                    "let its containers reach the internet, filtered, on machines whose owners allow it");
  command->add_option("--image", options->image, "image where the file names none that exists");
  add_money(*command, *options);
  add_ray_flags(*command, {"cache", "restart", "shells", "usage", "verbose", "log"});
  command->footer(
      "Examples:\n  muster up default.yaml\n  muster up default.yaml --max-price \"1.20 EUR\" --budget \"40 EUR\"\n  "
      "muster up default.yaml --dry-run -o json\n  muster up default.yaml -y "
      "--max-workers 4    # changes the cluster that runs");
  command->callback([options, &shell] { shell.action = [options, &shell] { return up(shell, *options); }; });
}

}  // namespace muster::cli
