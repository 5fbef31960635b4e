// job submit|list|status|logs|stop and logs: durable work.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>

#include "cli/archive.h"
#include "cli/cluster_logs.h"
#include "cli/config.h"
#include "cli/follow.h"
#include "cli/ray_flags.h"
#include "cli/request.h"
#include "cli/runtime_env.h"
#include "cli/terminal.h"
#include "model/workload_identity.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct JobOptions {
  std::string id, cluster, spec_file, working_dir, runtime_env, runtime_env_file, name, timeout, metadata_json, slot,
      identity;
  std::string driver_resources, driver_selector;
  std::optional<double> driver_cpus, driver_gpus, driver_memory;
  std::uint32_t retries = 0, attempt = 0, lines = 100;
  bool no_wait = false, follow = false;
  std::vector<std::string> metadata, words;
};

FollowSinks terminal_sinks() {
  return {[](std::string_view bytes) {
            std::fwrite(bytes.data(), 1, bytes.size(), stdout);
            std::fflush(stdout);
          },
          [](const std::string& note) { say("-- " + note); }};
}

std::string job_line(const wire::Json& job) {
  std::string line = fmt::format("job {} {}", clean(job["id"].text()), clean(job["state"].text()));
  if (!job["reason"].text().empty()) line += ": " + clean(job["reason"].text());
  if (job_ended(job) && job["exitCode"].integer(-1) >= 0)
    line += fmt::format(" (exit code {})", job["exitCode"].integer());
  return line;
}

Result<std::string> upload_folder(Shell& shell, const std::string& folder, const std::vector<std::string>& excludes) {
  Api* api = TRY(shell.api());
  const auto packed = TRY(pack(folder, Format::Zip, excludes));
  const TemporaryFile temporary(packed.file);
  Progress progress;
  auto digest = api->upload(packed.file, packed.sha256, [&](std::uint64_t sent) {
    if (stderr_is_terminal())
      progress.show(fmt::format("uploading {}: {} of {}", folder, size_text(static_cast<std::int64_t>(sent)),
                                size_text(static_cast<std::int64_t>(packed.bytes))));
  });
  progress.clear();
  if (packed.skipped > 0)
    say(fmt::format("{}: {} broken links, sockets or devices were left out", folder, packed.skipped));
  return digest;
}

Result<std::map<std::string, std::string>> metadata_of(const JobOptions& options) {
  std::map<std::string, std::string> out;
  for (const auto& pair : options.metadata) {
    const auto equals = pair.find('=');
    if (equals == std::string::npos || equals == 0)
      return error(Code::InvalidArgument, "--metadata wants NAME=VALUE, not " + pair);
    out[pair.substr(0, equals)] = pair.substr(equals + 1);
  }
  if (options.metadata_json.empty()) return out;
  const auto parsed = wire::parse_json(options.metadata_json);
  if (!parsed.ok() || !parsed->is(wire::Json::Kind::Object))
    return error(Code::InvalidArgument, "--metadata-json wants a JSON object of texts, like '{\"team\": \"vision\"}'");
  for (const auto& [key, value] : parsed->members()) out[key] = value.text();
  return out;
}

// What the driver itself occupies, as Ray's job server takes it; empty when nothing is asked.
Result<std::string> driver_of(const JobOptions& options) {
  auto out = wire::Json::object();
  if (options.driver_cpus) out.set("num_cpus", wire::Json::number(*options.driver_cpus));
  if (options.driver_gpus) out.set("num_gpus", wire::Json::number(*options.driver_gpus));
  if (options.driver_memory) out.set("memory", wire::Json::number(static_cast<std::int64_t>(*options.driver_memory)));
  for (const auto& [text, key, flag] :
       {std::tuple(&options.driver_resources, "resources", "--entrypoint-resources"),
        std::tuple(&options.driver_selector, "label_selector", "--entrypoint-label-selector")}) {
    if (text->empty()) continue;
    const auto parsed = wire::parse_json(*text);
    if (!parsed.ok() || !parsed->is(wire::Json::Kind::Object))
      return error(Code::InvalidArgument, fmt::format("{} wants a JSON object, like '{{\"blue\": 1}}'", flag));
    out.set(key, *parsed);
  }
  return out.members().empty() ? std::string() : out.dump();
}

// Without --cluster: the only one that runs.
Result<std::string> only_cluster(Shell& shell) {
  Api* api = TRY(shell.api());
  std::vector<std::string> names;
  for (const auto& cluster : TRY(api->list("/api/v1/clusters")))
    if (cluster["state"].text() == "running" || cluster["state"].text() == "starting")
      names.push_back(clean(cluster["name"].text()));
  if (names.size() == 1) return names[0];
  return error(Code::InvalidArgument,
               fmt::format("give --cluster NAME{}, or --cluster-spec FILE for a cluster of the job's own",
                           names.empty() ? " (none runs now)" : fmt::format(" (running: {})", fmt::join(names, ", "))));
}

Result<JobSpec> job_spec(Shell& shell, const JobOptions& options) {
  JobSpec spec;
  spec.name = options.name;
  spec.entrypoint = quote_shell(options.words);
  spec.retries = options.retries;
  if (!options.timeout.empty()) {
    const auto seconds = parse_duration(options.timeout);
    if (!seconds || *seconds <= 0)
      return error(Code::InvalidArgument, "--timeout wants a duration such as 90, 30m or 2h30m");
    spec.timeout = Millis(*seconds * 1'000);
  }
  spec.metadata = TRY(metadata_of(options));
  if (!options.identity.empty()) spec.metadata[std::string(kIdentityAudienceMetadata)] = options.identity;
  spec.driver_json = TRY(driver_of(options));
  RuntimeEnv env;
  if (!options.runtime_env.empty() && !options.runtime_env_file.empty())
    return error(Code::InvalidArgument, "give --runtime-env-json or --runtime-env, not both");
  if (!options.runtime_env.empty()) env = TRY(resolve_runtime_env(options.runtime_env, "."));
  if (!options.runtime_env_file.empty()) {
    const auto folder = std::filesystem::path(options.runtime_env_file).parent_path().string();
    env = TRY(resolve_runtime_env(TRY(read_file(options.runtime_env_file, 1 << 20)), folder));
  }
  spec.runtime_env_json = env.json;
  if (!options.spec_file.empty()) {
    auto launch = TRY(read_launch(shell, options.spec_file, ""));
    TRY_VOID(upload_mounts(shell, launch, options.spec_file));
    spec.cluster_spec = launch.spec;
    spec.ephemeral = true;
  } else {
    spec.cluster = options.cluster.empty() ? TRY(only_cluster(shell)) : TRY(cluster_name(options.cluster));
  }
  const std::string& folder = options.working_dir.empty() ? env.working_dir : options.working_dir;
  if (folder.find("://") != std::string::npos) {
    auto remote = env.json.empty() ? wire::Json::object() : TRY(wire::parse_json(env.json));
    remote.set("working_dir", wire::Json::string(folder));
    spec.runtime_env_json = remote.dump();
  } else if (!folder.empty()) {
    spec.working_dir_blob = TRY(upload_folder(shell, folder, env.excludes));
  }
  return spec;
}

Result<int> submit(Shell& shell, const JobOptions& options) {
  if (!options.cluster.empty() && !options.spec_file.empty())
    return error(Code::InvalidArgument, "give --cluster NAME or --cluster-spec FILE, not both");
  const JobSpec spec = TRY(job_spec(shell, options));
  Api* api = TRY(shell.api());
  const auto job = TRY(api->send("POST", "/api/v1/jobs", wire::to_json(wire::CreateJobRequest{spec, shell.project})));
  const std::string id = job["id"].text();
  if (options.no_wait) {
    shell.show(job, [&] { return fmt::format("{}\n  muster job logs -f {}\n  muster job status {}\n", id, id, id); });
    return 0;
  }
  say(fmt::format("Job {} is accepted. Ctrl-C leaves it running: muster job logs -f {}, muster job stop {}", id, id,
                  id));
  const OnInterrupt interrupt([id] {
    return fmt::format("Job {} goes on. Follow it: muster job logs -f {}. Stop it: muster job stop {}", id, id, id);
  });
  const auto end = TRY(follow_job(*api, id, {}, terminal_sinks()));
  say(job_line(end));
  return job_exit_code(end);
}

Result<int> job_list(Shell& shell) {
  Api* api = TRY(shell.api());
  shell.show_list(TRY(api->list("/api/v1/jobs")), [&](const auto& items) {
    if (items.empty())
      return std::string("No jobs. Submit one: muster job submit --cluster NAME -- python script.py\n");
    Table table({"ID", "NAME", "STATE", "EXIT", "TRY", "CLUSTER", "CREATED", "ENDED", "ENTRYPOINT"});
    for (const auto& j : items)
      table.add({j["id"].text(), j["name"].text(), j["state"].text(),
                 job_ended(j) && j["exitCode"].integer(-1) >= 0 ? j["exitCode"].text() : "", j["attempt"].text(),
                 j["cluster"].text(), short_time(j["createdAt"]), short_time(j["endedAt"]),
                 j["entrypoint"].text().substr(0, 60)});
    return table.text(shell.colour());
  });
  return 0;
}

Result<int> job_status(Shell& shell, const std::string& id) {
  Api* api = TRY(shell.api());
  const auto job = TRY(api->get(path_of("jobs", id)));
  shell.show(job, [&] {
    return fmt::format("{}\n  cluster {}, attempt {} (retries {}), log {}\n  created {}  started {}  ended {}\n  {}\n",
                       job_line(job), clean(job["cluster"].text()), job["attempt"].integer(), job["retries"].integer(),
                       size_text(job["logBytes"].integer()), short_time(job["createdAt"]), short_time(job["startedAt"]),
                       short_time(job["endedAt"]), clean(job["entrypoint"].text()));
  });
  return 0;
}

Result<int> job_logs(Shell& shell, const JobOptions& options) {
  Api* api = TRY(shell.api());
  const auto job =
      TRY(follow_job(*api, options.id, {.follow = options.follow, .attempt = options.attempt}, terminal_sinks()));
  if (options.follow) say(job_line(job));
  return 0;
}

Result<int> job_stop(Shell& shell, const JobOptions& options) {
  Api* api = TRY(shell.api());
  auto job = TRY(api->send("DELETE", path_of("jobs", options.id)));
  while (!options.no_wait && !job_ended(job)) {
    api->sleep(Millis(1'000));
    job = TRY(api->get(path_of("jobs", options.id)));
  }
  shell.show(job, [&] { return job_line(job) + "\n"; });
  return 0;
}

// logs JOB|CLUSTER: a job's own log, or what Ray's processes write on a member.
Result<int> logs(Shell& shell, const JobOptions& options) {
  Api* api = TRY(shell.api());
  auto job = api->get(path_of("jobs", options.id));
  if (job.ok()) return job_logs(shell, options);
  if (job.error().code != Code::NotFound) return job.error();
  const std::string cluster = TRY(cluster_name(options.id));
  (void)TRY(api->get(path_of("clusters", cluster)));
  return follow_cluster_logs(
      *api, {.cluster = cluster, .slot = options.slot, .lines = options.lines, .follow = options.follow});
}

void add_job_submit(CLI::App& parent, Shell& shell) {
  auto options = std::make_shared<JobOptions>();
  auto* submit_command = parent.add_subcommand("submit", "Submit a command as a durable job");
  submit_command->add_option("command", options->words, "the command, after --")->required();
  submit_command->add_option("--cluster", options->cluster, "name, id or YAML file; without it the only one that runs");
  submit_command->add_option("--cluster-spec", options->spec_file, "YAML of a cluster that lives for this job only");
  submit_command->add_option("--working-dir", options->working_dir,
                             "folder here, or a URI, that becomes the job's working directory");
  submit_command->add_option("--runtime-env-json", options->runtime_env,
                             "Ray runtime environment; a local working_dir and requirements files are sent along");
  submit_command->add_option("--runtime-env", options->runtime_env_file, "the same from a YAML or JSON file");
  submit_command->add_option("--name,--submission-id", options->name, "name of the job");
  submit_command->add_option("--metadata", options->metadata, "NAME=VALUE, may repeat")->allow_extra_args(false);
  submit_command->add_option(
      "--identity", options->identity,
      "audiences, separated by commas: the driver finds a token that says which job it is in the "
      "file $MUSTER_IDENTITY_TOKEN_FILE");
  submit_command->add_option("--metadata-json", options->metadata_json, "the same as one JSON object");
  submit_command->add_option("--entrypoint-num-cpus", options->driver_cpus, "CPUs that the driver itself occupies");
  submit_command->add_option("--entrypoint-num-gpus", options->driver_gpus, "GPUs that the driver itself occupies");
  submit_command->add_option("--entrypoint-memory", options->driver_memory, "bytes that the driver itself occupies");
  submit_command->add_option("--entrypoint-resources", options->driver_resources, "its custom resources, as JSON");
  submit_command->add_option("--entrypoint-label-selector", options->driver_selector, "labels of its node, as JSON");
  submit_command->add_option("--retries", options->retries, "how often to try again after a failure")
      ->check(CLI::Range(0, 100));
  submit_command->add_option("--timeout", options->timeout, "such as 90, 30m, 2h");
  submit_command->add_flag("--no-wait", options->no_wait, "return once the job is accepted");
  submit_command->add_flag("--follow,-f", options->follow, "follow the log (the default without --no-wait)");
  add_ray_flags(*submit_command, {"client", "verbose", "log"});
  submit_command->footer(
      "The exit code is the job's.\nExamples:\n  muster job submit --cluster default --working-dir . -- python "
      "train.py --epochs 3\n  muster job submit --cluster-spec gpu.yaml --retries 2 --timeout 2h -- python train.py");
  submit_command->callback([options, &shell] { shell.action = [options, &shell] { return submit(shell, *options); }; });
}

}  // namespace

void add_job(CLI::App& app, Shell& shell) {
  auto* job = app.add_subcommand("job", "Durable jobs: submit, list, status, logs, stop");
  job->require_subcommand(1);
  add_job_submit(*job, shell);
  auto options = std::make_shared<JobOptions>();
  auto* list_command = job->add_subcommand("list", "List jobs");
  add_ray_flags(*list_command, {"client", "verbose", "log"});
  list_command->footer("Example:\n  muster job list -o json");
  list_command->callback([&shell] { shell.action = [&shell] { return job_list(shell); }; });
  auto* status_command = job->add_subcommand("status", "Show one job");
  status_command->add_option("job", options->id, "id or name")->required();
  status_command->callback(
      [options, &shell] { shell.action = [options, &shell] { return job_status(shell, options->id); }; });
  add_ray_flags(*status_command, {"client", "verbose", "log"});
  status_command->footer("Example:\n  muster job status job-7");
  auto* logs_command = job->add_subcommand("logs", "Print a job's log");
  add_ray_flags(*logs_command, {"client", "verbose", "log"});
  logs_command->footer("Examples:\n  muster job logs -f job-7\n  muster job logs job-7 --attempt 1");
  logs_command->add_option("job", options->id, "id or name")->required();
  logs_command->add_flag("--follow,-f", options->follow, "go on until the job ends; resumes after a break");
  logs_command->add_option("--attempt", options->attempt, "the log of an earlier attempt");
  logs_command->callback([options, &shell] { shell.action = [options, &shell] { return job_logs(shell, *options); }; });
  auto* stop_command = job->add_subcommand("stop", "Stop a job");
  add_ray_flags(*stop_command, {"client", "verbose", "log"});
  stop_command->footer("Example:\n  muster job stop job-7");
  stop_command->add_option("job", options->id, "id or name")->required();
  stop_command->add_flag("--no-wait", options->no_wait, "return once the stop is accepted");
  stop_command->callback([options, &shell] { shell.action = [options, &shell] { return job_stop(shell, *options); }; });
}

void add_logs(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<JobOptions>();
  auto* command = app.add_subcommand("logs", "Print the log of a job, or of a cluster's Ray processes");
  command->add_option("name", options->id, "job, cluster or YAML file")->required();
  command->add_flag("--follow,-f", options->follow, "go on as it grows");
  command->add_option("--lines", options->lines, "of a cluster: how many lines of each file to begin with")
      ->check(CLI::Range(0, 100'000));
  command->add_option("--slot", options->slot, "of a cluster: another member than the head");
  command->footer(
      "Examples:\n  muster logs -f job-7\n  muster logs default --lines 20\n  muster logs -f default --slot slot-3");
  command->callback([options, &shell] { shell.action = [options, &shell] { return logs(shell, *options); }; });
}

}  // namespace muster::cli
