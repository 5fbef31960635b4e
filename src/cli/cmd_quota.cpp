// quota, quota set, tiers, tiers set, headroom, headroom set
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>

#include "cli/quota.h"
#include "cli/shell.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct QuotaOptions {
  std::string org;
  QuotaChange change;
};

std::int64_t milli(const wire::Json& cpus) {
  return std::llround(std::strtod(cpus.text().c_str(), nullptr) * 1000);
}

// The organisation that was named; else the project that was, or the caller's own.
Result<std::string> target_of(Shell& shell, const QuotaOptions& options) {
  Api* api = TRY(shell.api());
  if (!options.org.empty()) return path_of("orgs", options.org) + "/quota";
  std::string project = shell.project;
  if (project.empty()) project = TRY(api->get("/api/v1/whoami"))["defaultProject"].text();
  if (project.empty())
    return error(Code::InvalidArgument, "your organisation has no project; name one with --project, or use --org");
  return path_of("projects", project) + "/quota";
}

Result<int> print(Shell& shell, const wire::Json& view) {
  shell.show(view, [&] { return quota_table(view, shell.colour()); });
  return 0;
}
Result<int> show(Shell& shell, const QuotaOptions& options) {
  const std::string target = TRY(target_of(shell, options));
  Api* api = TRY(shell.api());
  return print(shell, TRY(api->get(target)));
}
Result<int> set(Shell& shell, const QuotaOptions& options) {
  if (!options.change.any())
    return error(Code::InvalidArgument,
                 "say what changes: --gpus, --cpus or --clusters, 0 takes a limit away; operators also "
                 "--weight, --guarantee-gpus or --guarantee-cpus");
  const std::string target = TRY(target_of(shell, options));
  Api* api = TRY(shell.api());
  return print(shell, TRY(change_quota(*api, target, options.change)));
}

struct TierOptions {
  int tier = -1;
  double guarantee = -1;
};
Result<int> print_tiers(Shell& shell, const wire::Json& view) {
  shell.show(view, [&] { return tiers_table(view, shell.colour()); });
  return 0;
}
Result<int> set_tier(Shell& shell, const TierOptions& options) {
  if (options.tier < 0 || options.tier > kTierMax)
    return error(Code::InvalidArgument, "name a tier from 0 (the best) to 9");
  if (!(options.guarantee >= 0 && options.guarantee <= 100))
    return error(Code::InvalidArgument, "say how much with --guarantee, in percent of the machines; 0 = nothing");
  Api* api = TRY(shell.api());
  const wire::SetTierRequest request{
      {static_cast<std::uint8_t>(options.tier), static_cast<std::uint32_t>(std::lround(options.guarantee * 10))}};
  return print_tiers(shell, TRY(api->send("PUT", "/api/v1/tiers", wire::to_json(request))));
}

struct HeadroomOptions {
  std::string gpu;
  std::int64_t machines = -1;
  int tier = 1;
};
Result<int> print_headroom(Shell& shell, const wire::Json& view) {
  shell.show(view, [&] { return headroom_table(view, shell.colour()); });
  return 0;
}
Result<int> set_headroom(Shell& shell, const HeadroomOptions& options) {
  if (options.machines < 0 || options.machines > kHeadroomMachinesMax)
    return error(Code::InvalidArgument, "say how many with --machines, from 0 (none is kept back any more) to " +
                                            std::to_string(kHeadroomMachinesMax));
  if (options.tier < 0 || options.tier > 9) return error(Code::InvalidArgument, "--tier must lie between 0 and 9");
  Api* api = TRY(shell.api());
  const wire::SetHeadroomRequest request{
      {options.gpu, static_cast<std::uint32_t>(options.machines), static_cast<std::uint8_t>(options.tier)}};
  return print_headroom(shell, TRY(api->send("PUT", "/api/v1/headroom", wire::to_json(request))));
}

}  // namespace

std::string tiers_table(const wire::Json& view, bool colour) {
  Table table({"TIER", "GUARANTEED", "HOLDS"});
  const auto percent = [](const wire::Json& permille) {
    return fmt::format("{:g} %", static_cast<double>(permille.integer()) / 10);
  };
  for (const auto& row : view["rows"].items())
    table.add({std::to_string(row["tier"].integer()),
               row["guaranteePermille"].integer() == 0 ? "-" : percent(row["guaranteePermille"]),
               percent(row["heldPermille"])});
  return table.text(colour);
}

std::string headroom_table(const wire::Json& view, bool colour) {
  Table table({"GPU", "KEPT BACK", "FREE", "FOR TIERS"});
  for (const auto& row : view["rows"].items()) {
    const std::string model = row["gpuModel"].text(), tier = std::to_string(row["tier"].integer());
    table.add({model.empty() ? "(none)" : model, std::to_string(row["machines"].integer()),
               std::to_string(row["free"].integer()), tier == "0" ? "0" : "0-" + tier});
  }
  return table.text(colour);
}

std::string held_text(const wire::Json& held, const wire::Json& limit, std::string_view what) {
  const auto number = [&](const wire::Json& of) {
    if (what == "cpus") return fmt::format("{}", static_cast<double>(milli(of["cpus"])) / 1000);
    return std::to_string(of[std::string(what)].integer());
  };
  return number(limit) == "0" ? number(held) : number(held) + " of " + number(limit);
}

std::string quota_table(const wire::Json& view, bool colour) {
  Table table({"OF", "NAME", "GPUS", "CPUS", "CLUSTERS", "WEIGHT", "GUARANTEED"});
  for (const auto& [key, what] : {std::pair("project", "project"), std::pair("org", "organisation")}) {
    const auto& scope = view[key];
    if (!scope.is(wire::Json::Kind::Object)) continue;
    std::vector<std::string> row{what, scope["name"].text()};
    for (const char* each : {"gpus", "cpus", "clusters"}) row.push_back(held_text(scope["held"], scope["limit"], each));
    const auto& share = scope["share"];
    row.push_back(share["weight"].text());
    std::string guaranteed;
    if (share["guaranteeGpus"].integer() > 0) guaranteed = share["guaranteeGpus"].text() + " GPU";
    if (const std::int64_t cpus = milli(share["guaranteeCpus"]); cpus > 0)
      guaranteed += fmt::format("{}{} CPU", guaranteed.empty() ? "" : ", ", static_cast<double>(cpus) / 1000);
    row.push_back(guaranteed.empty() ? "-" : guaranteed);
    table.add(std::move(row));
  }
  return table.text(colour);
}

Result<wire::Json> change_quota(Api& api, const std::string& target, const QuotaChange& change) {
  const auto now = TRY(api.get(target));
  const auto& scope = now["project"].is(wire::Json::Kind::Object) ? now["project"] : now["org"];
  const auto& limit = scope["limit"];
  wire::SetQuotaRequest request;
  request.quota.gpus = change.gpus.value_or(limit["gpus"].integer());
  request.quota.clusters = change.clusters.value_or(limit["clusters"].integer());
  if (change.cpus && !(*change.cpus >= 0 && *change.cpus <= 1e9))
    return error(Code::InvalidArgument, "--cpus must lie between 0 (no limit) and 1000000000");
  request.quota.cpu_milli = change.cpus ? std::llround(*change.cpus * 1000) : milli(limit["cpus"]);
  if (change.guarantee_cpus && !(*change.guarantee_cpus >= 0 && *change.guarantee_cpus <= 1e9))
    return error(Code::InvalidArgument, "--guarantee-cpus must lie between 0 (nothing) and 1000000000");
  if (change.shares()) {
    const auto& share = scope["share"];
    request.share =
        Share{change.weight.value_or(share["weight"].integer()),
              change.guarantee_gpus.value_or(share["guaranteeGpus"].integer()),
              change.guarantee_cpus ? std::llround(*change.guarantee_cpus * 1000) : milli(share["guaranteeCpus"])};
  }
  return api.send("PUT", target, wire::to_json(request));
}

void add_quota(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<QuotaOptions>();
  auto* command = app.add_subcommand("quota", "What a project and its organisation may hold, and what they hold");
  command->add_option("--org", options->org, "of this organisation");
  command->footer("Examples:\n  muster quota\n  muster quota --project default -o json\n  muster quota --org lab");
  command->callback([options, &shell, command] {
    if (command->get_subcommands().empty()) shell.action = [options, &shell] { return show(shell, *options); };
  });
  auto* set_command =
      command->add_subcommand("set",
                              "Limit what may be held at a time, and guarantee some of it; what is not named "
                              "stays");
  set_command->add_option("--gpus", options->change.gpus, "GPUs; 0 = no limit");
  set_command->add_option("--cpus", options->change.cpus, "CPUs; 0 = no limit");
  set_command->add_option("--clusters", options->change.clusters, "clusters that start or run; 0 = no limit");
  set_command->add_option("--weight", options->change.weight,
                          "in fair share, 1 to 10000; 100 is what everybody has (operators)");
  set_command->add_option("--guarantee-gpus", options->change.guarantee_gpus, "GPUs that are guaranteed (operators)");
  set_command->add_option("--guarantee-cpus", options->change.guarantee_cpus, "CPUs that are guaranteed (operators)");
  set_command->add_option("--org", options->org, "of this organisation (operators)");
  set_command->footer(
      "What holds more already goes on; nothing more starts or grows until there is room.\n"
      "Examples:\n  muster quota set --project default --gpus 8 --cpus 64 --clusters 3\n  muster quota set --org lab "
      "--gpus 32\n  muster quota set --project default --gpus 0\n  muster quota set --org lab --weight 200 "
      "--guarantee-gpus 16");
  set_command->callback([options, &shell] { shell.action = [options, &shell] { return set(shell, *options); }; });

  auto tier = std::make_shared<TierOptions>();
  auto* tiers = app.add_subcommand("tiers", "What tiers hold of the machines and are guaranteed of them (operators)");
  tiers->footer("Examples:\n  muster tiers\n  muster tiers set 3 --guarantee 15");
  tiers->callback([&shell, tiers] {
    if (tiers->get_subcommands().empty())
      shell.action = [&shell]() -> Result<int> {
        Api* api = TRY(shell.api());
        return print_tiers(shell, TRY(api->get("/api/v1/tiers")));
      };
  });
  auto* set_one = tiers->add_subcommand(
      "set", "Guarantee a tier a part of the machines: while it holds less, it goes before better tiers");
  set_one->add_option("tier", tier->tier, "0 (the best) to 9")->required();
  set_one->add_option("--guarantee", tier->guarantee, "percent of the GPUs, or of the CPUs, whichever it holds more of")
      ->required();
  set_one->footer(
      "Better tiers take nothing back below it. All tiers together can be guaranteed 100.\n"
      "Examples:\n  muster tiers set 3 --guarantee 15\n  muster tiers set 3 --guarantee 0");
  set_one->callback([tier, &shell] { shell.action = [tier, &shell] { return set_tier(shell, *tier); }; });

  auto kept = std::make_shared<HeadroomOptions>();
  auto* headroom = app.add_subcommand("headroom", "Machines that are kept back for failovers (operators)");
  headroom->footer("Examples:\n  muster headroom\n  muster headroom set --gpu H100 --machines 2 --tier 1");
  headroom->callback([&shell, headroom] {
    if (headroom->get_subcommands().empty())
      shell.action = [&shell]() -> Result<int> {
        Api* api = TRY(shell.api());
        return print_headroom(shell, TRY(api->get("/api/v1/headroom")));
      };
  });
  auto* set_kept = headroom->add_subcommand(
      "set",
      "Keep machines of a GPU model back: only what replaces lost workers, and spares, of some tiers may use them");
  set_kept->add_option("--gpu", kept->gpu, "the model, as `muster nodes` shows it; without it, machines without a GPU");
  set_kept->add_option("--machines", kept->machines, "how many; 0 = none is kept back any more");
  set_kept->add_option("--tier", kept->tier, "for clusters of this tier and better ones (1)");
  set_kept->footer(
      "They stand idle until a machine is lost. What runs on machines of the model goes on.\n"
      "Examples:\n  muster headroom set --gpu H100 --machines 2 --tier 1\n  muster headroom set --machines 1\n"
      "  muster headroom set --gpu H100 --machines 0");
  set_kept->callback([kept, &shell] { shell.action = [kept, &shell] { return set_headroom(shell, *kept); }; });
}

}  // namespace muster::cli
