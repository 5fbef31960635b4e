// job submit|list|status|logs|stop and logs: durable work.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "cli/archive.h"
#include "cli/config.h"
#include "cli/follow.h"
#include "cli/remote.h"
#include "cli/request.h"
#include "cli/terminal.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct JobOptions {
  std::string id, cluster, spec_file, working_dir, runtime_env, runtime_env_file, name, timeout;
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

Result<std::string> upload_folder(Shell& shell, const std::string& folder) {
  Api* api = TRY(shell.api());
  const auto packed = TRY(pack(folder, Format::Zip));
  const TemporaryFile temporary(packed.file);
  Progress progress;
  auto digest = api->upload(packed.file, packed.sha256, [&](std::uint64_t sent) {
    if (stderr_is_terminal())
      progress.show(fmt::format("uploading {}: {} of {}", folder, size_text(static_cast<std::int64_t>(sent)),
                                size_text(static_cast<std::int64_t>(packed.bytes))));
  });
  progress.clear();
  if (packed.skipped > 0)
    say(fmt::format("{}: {} symbolic links or special files were left out", folder, packed.skipped));
  return digest;
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
  for (const auto& pair : options.metadata) {
    const auto equals = pair.find('=');
    if (equals == std::string::npos || equals == 0)
      return error(Code::InvalidArgument, "--metadata wants NAME=VALUE, not " + pair);
    spec.metadata[pair.substr(0, equals)] = pair.substr(equals + 1);
  }
  spec.runtime_env_json = options.runtime_env;
  if (!options.runtime_env_file.empty()) spec.runtime_env_json = TRY(read_file(options.runtime_env_file, 1 << 20));
  if (!spec.runtime_env_json.empty()) {
    const auto parsed = wire::parse_json(spec.runtime_env_json);
    if (!parsed.ok() || !parsed->is(wire::Json::Kind::Object))
      return error(Code::InvalidArgument,
                   "--runtime-env-json wants a JSON object, like '{\"env_vars\": {\"A\": \"1\"}}'");
  }
  if (!options.spec_file.empty()) {
    auto launch = TRY(read_launch(shell, options.spec_file, ""));
    TRY_VOID(upload_mounts(shell, launch, options.spec_file));
    spec.cluster_spec = launch.spec;
    spec.ephemeral = true;
  } else {
    spec.cluster = TRY(cluster_name(options.cluster));
  }
  if (!options.working_dir.empty()) spec.working_dir_blob = TRY(upload_folder(shell, options.working_dir));
  return spec;
}

Result<int> submit(Shell& shell, const JobOptions& options) {
  if (options.cluster.empty() == options.spec_file.empty())
    return error(Code::InvalidArgument, "give --cluster NAME, or --cluster-spec FILE for a cluster of the job's own");
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
  const std::string script = fmt::format(
      "cd /tmp/ray/session_latest/logs && exec tail -n {} {} gcs_server.out gcs_server.err raylet.out raylet.err "
      "dashboard.log 2>/dev/null",
      options.lines, options.follow ? "-F" : "");
  return exec_here(api->account(), {.cluster = cluster, .slot = options.cluster, .argv = {"sh", "-c", script}});
}

void add_submit(CLI::App& parent, Shell& shell) {
  auto options = std::make_shared<JobOptions>();
  auto* submit_command = parent.add_subcommand("submit", "Submit a command as a durable job");
  submit_command->add_option("command", options->words, "the command, after --")->required();
  submit_command->add_option("--cluster", options->cluster, "a running cluster: name, id or YAML file");
  submit_command->add_option("--cluster-spec", options->spec_file, "YAML of a cluster that lives for this job only");
  submit_command->add_option("--working-dir", options->working_dir,
                             "folder here that becomes the job's working directory");
  submit_command->add_option("--runtime-env-json", options->runtime_env, "Ray runtime environment");
  submit_command->add_option("--runtime-env", options->runtime_env_file, "the same from a JSON file");
  submit_command->add_option("--name,--submission-id", options->name, "name of the job");
  submit_command->add_option("--metadata", options->metadata, "NAME=VALUE, may repeat")->allow_extra_args(false);
  submit_command->add_option("--retries", options->retries, "how often to try again after a failure")
      ->check(CLI::Range(0, 100));
  submit_command->add_option("--timeout", options->timeout, "such as 90, 30m, 2h");
  submit_command->add_flag("--no-wait", options->no_wait, "return once the job is accepted");
  submit_command->add_flag("--follow,-f", options->follow, "follow the log (the default without --no-wait)");
  submit_command->footer(
      "The exit code is the job's.\nExamples:\n  muster job submit --cluster default --working-dir . -- python "
      "train.py --epochs 3\n  muster job submit --cluster-spec gpu.yaml --retries 2 --timeout 2h -- python train.py");
  submit_command->callback([options, &shell] { shell.action = [options, &shell] { return submit(shell, *options); }; });
}

}  // namespace

void add_job(CLI::App& app, Shell& shell) {
  auto* job = app.add_subcommand("job", "Durable jobs: submit, list, status, logs, stop");
  job->require_subcommand(1);
  add_submit(*job, shell);
  auto options = std::make_shared<JobOptions>();
  job->add_subcommand("list", "List jobs")->callback([&shell] { shell.action = [&shell] { return job_list(shell); }; });
  auto* status_command = job->add_subcommand("status", "Show one job");
  status_command->add_option("job", options->id, "id or name")->required();
  status_command->callback(
      [options, &shell] { shell.action = [options, &shell] { return job_status(shell, options->id); }; });
  auto* logs_command = job->add_subcommand("logs", "Print a job's log");
  logs_command->add_option("job", options->id, "id or name")->required();
  logs_command->add_flag("--follow,-f", options->follow, "go on until the job ends; resumes after a break");
  logs_command->add_option("--attempt", options->attempt, "the log of an earlier attempt");
  logs_command->callback([options, &shell] { shell.action = [options, &shell] { return job_logs(shell, *options); }; });
  auto* stop_command = job->add_subcommand("stop", "Stop a job");
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
  command->add_option("--slot", options->cluster, "of a cluster: another member than the head");
  command->callback([options, &shell] { shell.action = [options, &shell] { return logs(shell, *options); }; });
}

}  // namespace muster::cli
