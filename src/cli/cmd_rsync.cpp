// rsync-up and rsync-down: tar through exec.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>

#include "cli/archive.h"
#include "cli/ray_flags.h"
#include "cli/remote.h"
#include "cli/request.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

namespace fs = std::filesystem;
struct RsyncOptions {
  ClusterChoice cluster;
  std::string slot, source, target;
  bool all_nodes = false;
};

// "$HOME/x" for ~/x: the shell in the container knows its home, this one does not.
constexpr const char* kInto = "case \"$1\" in '~') d=$HOME;; '~/'*) d=\"$HOME/${1#??}\";; *) d=$1;; esac; ";
// A file goes into an existing folder under its own name, else it takes the name that was given.
constexpr const char* kPutFile =
    "case \"$1\" in */) mkdir -p \"$d\";; esac; if [ -d \"$d\" ]; then tar -xf - -C \"$d\"; else mkdir -p \"$(dirname "
    "\"$d\")\" && tar -xOf - > \"$d\" && chmod \"$2\" \"$d\"; fi";
constexpr const char* kPutFolder = "mkdir -p \"$d\" && tar -xf - -C \"$d\"";
constexpr const char* kWhat =
    "if [ -d \"$d\" ]; then echo folder; elif [ -e \"$d\" ]; then echo file; else echo nothing; fi";
// Hard links become files: a copy needs no other.
constexpr const char* kGet =
    "h=; tar --version 2>/dev/null | grep -q GNU && h=--hard-dereference; if [ -d \"$d\" ]; then tar $h -cf - -C "
    "\"$d\" "
    ".; else tar $h -cf - -C \"$(dirname \"$d\")\" \"$(basename \"$d\")\"; fi";

std::vector<std::string> script(const char* body, std::vector<std::string> words) {
  std::vector<std::string> argv = {"sh", "-c", std::string(kInto) + body, "sh"};
  argv.insert(argv.end(), words.begin(), words.end());
  return argv;
}

std::string bytes_text(std::uint64_t bytes) {
  return size_text(static_cast<std::int64_t>(bytes));
}

Status put(const Account& account, const std::string& cluster, const std::string& slot, const std::string& source,
           const std::string& target, const std::vector<std::string>& excludes) {
  const Selection everything{
      .excludes = excludes, .ignore_files = false, .bytes_max = std::uint64_t{1} << 50, .items_max = 10'000'000};
  Listing listing = TRY(list_folder(source, everything));
  const bool folder = fs::is_directory(source);
  const std::string mode = listing.items.empty() ? "644" : fmt::format("{:o}", listing.items[0].mode);
  TarStream tar(std::move(listing.items), TarStream::Times::Kept);
  std::uint64_t sent = 0;
  Progress progress;
  Feed feed;
  feed.input = [&]() -> Result<std::string> {
    std::string piece = TRY(tar.next());
    sent += piece.size();
    if (stderr_is_terminal())
      progress.show(fmt::format("sent {} of about {}", bytes_text(sent), bytes_text(listing.bytes)));
    return piece;
  };
  const ExecRequest request{
      .cluster = cluster, .slot = slot, .argv = script(folder ? kPutFolder : kPutFile, {target, mode})};
  (void)TRY(exec_fed(account, request, feed));
  progress.clear();
  say(fmt::format("{} files, {} -> {} in {}.", listing.files, bytes_text(listing.bytes), target,
                  slot.empty() ? "the head" : slot));
  if (listing.skipped > 0) say(fmt::format("{} sockets or devices were left out.", listing.skipped));
  return {};
}

Result<std::vector<std::string>> members(Api& api, const std::string& cluster) {
  std::vector<std::string> out;
  const auto view = TRY(api.get(path_of("clusters", cluster)));
  for (const auto& slot : view["slots"].items())
    if (const auto& phase = slot["phase"].text(); phase == "ready" || phase == "standby" || phase == "starting")
      out.push_back(slot["id"].text());
  return out;
}

Result<int> up(Shell& shell, const RsyncOptions& options) {
  Api* api = TRY(shell.api());
  const std::string cluster = TRY(options.cluster.name());
  std::vector<std::pair<std::string, std::string>> pairs;
  std::vector<std::string> excludes;
  if (options.cluster.is_file()) {
    const auto launch = TRY(read_launch(shell, options.cluster.given, ""));
    excludes = launch.excludes;
    if (options.source.empty())
      for (const auto& mount : launch.mounts)
        pairs.emplace_back(local_path(mount.local, options.cluster.given), mount.remote);
  }
  if (!options.source.empty() && options.target.empty())
    return error(Code::InvalidArgument, "say where to: muster rsync-up CLUSTER SOURCE TARGET");
  if (!options.source.empty()) pairs = {{options.source, options.target}};
  if (pairs.empty())
    return error(Code::InvalidArgument,
                 "say what and where to: muster rsync-up CLUSTER SOURCE TARGET (without them the file_mounts of a YAML "
                 "file are copied, and there are none)");
  std::vector<std::string> slots = {options.slot};
  if (options.all_nodes) slots = TRY(members(*api, cluster));
  for (const auto& slot : slots)
    for (const auto& [source, target] : pairs) TRY_VOID(put(api->account(), cluster, slot, source, target, excludes));
  return 0;
}

Result<int> down(Shell& shell, const RsyncOptions& options) {
  Api* api = TRY(shell.api());
  const std::string cluster = TRY(options.cluster.name());
  if (options.source.empty() || options.target.empty())
    return error(Code::InvalidArgument, "say what and where to: muster rsync-down CLUSTER SOURCE TARGET");
  ExecRequest request{.cluster = cluster, .slot = options.slot, .argv = script(kWhat, {options.source})};
  const std::string what = TRY(exec_output(api->account(), request, 64));
  if (what.starts_with("nothing"))
    return error(Code::NotFound, fmt::format("{} does not exist in {}", options.source,
                                             options.slot.empty() ? "the head's container" : options.slot));
  fs::path folder = options.target;
  std::string as;
  std::error_code failed;
  if (what.starts_with("file") && !options.target.ends_with('/') && !fs::is_directory(folder)) {
    as = folder.filename().string();
    folder = folder.has_parent_path() ? folder.parent_path() : fs::path(".");
  }
  fs::create_directories(folder, failed);
  if (failed) return error(Code::FailedPrecondition, folder.string() + ": " + failed.message());
  Unpacker unpacker(folder.string(), as);
  std::uint64_t got = 0;
  Progress progress;
  Feed feed;
  feed.output = [&](std::string_view bytes) -> Status {
    got += bytes.size();
    if (stderr_is_terminal()) progress.show("received " + bytes_text(got));
    return unpacker.feed(bytes);
  };
  request.argv = script(kGet, {options.source});
  (void)TRY(exec_fed(api->account(), request, feed));
  TRY_VOID(unpacker.finish());
  progress.clear();
  say(fmt::format("{} files, {} -> {}.", unpacker.files(), bytes_text(got), options.target));
  if (unpacker.skipped() > 0)
    say(fmt::format("{} links that lead outside, sockets or devices were left out.", unpacker.skipped()));
  return 0;
}

}  // namespace

void add_rsync(CLI::App& app, Shell& shell) {
  for (const bool upward : {true, false}) {
    auto options = std::make_shared<RsyncOptions>();
    auto* command =
        app.add_subcommand(upward ? "rsync-up" : "rsync-down", upward ? "Copy a folder or file into a container"
                                                                      : "Copy a folder or file out of a container");
    add_cluster(*command, options->cluster);
    command->add_option("source", options->source, upward ? "here" : "in the container; ~ is its home");
    command->add_option("target", options->target, upward ? "in the container; ~ is its home" : "here");
    command->add_option("--slot", options->slot, "another member than the head: a slot id from `muster status`");
    if (upward) command->add_flag("--all-nodes,-A", options->all_nodes, "into every member, not only the head");
    add_ray_flags(*command, {"verbose", "log"});
    command->footer(
        std::string("What is in a folder goes into the folder TARGET; a file goes into TARGET if that is a "
                    "folder, else it takes that name.\nModes, times and links are kept.\nExamples:\n") +
        (upward ? "  muster rsync-up default ./code ~/code\n  muster rsync-up default.yaml    # its file_mounts"
                : "  muster rsync-down default ~/results ./results"));
    command->callback([options, upward, &shell] {
      shell.action = [options, upward, &shell] { return upward ? up(shell, *options) : down(shell, *options); };
    });
  }
}

}  // namespace muster::cli
