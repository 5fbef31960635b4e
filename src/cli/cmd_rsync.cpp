// rsync-up and rsync-down: tar through exec.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>

#include "cli/archive.h"
#include "cli/remote.h"
#include "cli/shell.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

namespace fs = std::filesystem;
struct RsyncOptions {
  std::string cluster, slot, source, target;
};

// "$HOME/x" for ~/x: the shell in the container knows its home, this one does not.
constexpr const char* kInto = "case \"$1\" in '~') d=$HOME;; '~/'*) d=\"$HOME/${1#??}\";; *) d=$1;; esac; ";

Result<int> up(Shell& shell, const RsyncOptions& options) {
  Api* api = TRY(shell.api());
  const auto packed = TRY(pack(options.source, Format::Tar));
  const TemporaryFile temporary(packed.file);
  std::ifstream in(packed.file, std::ios::binary);
  std::uint64_t sent = 0;
  Progress progress;
  Feed feed;
  feed.input = [&]() -> Result<std::string> {
    std::string piece(64 << 10, '\0');
    in.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    piece.resize(static_cast<std::size_t>(in.gcount()));
    sent += piece.size();
    if (stderr_is_terminal())
      progress.show(fmt::format("sent {} of {}", size_text(static_cast<std::int64_t>(sent)),
                                size_text(static_cast<std::int64_t>(packed.bytes))));
    return piece;
  };
  const std::string script = std::string(kInto) + "mkdir -p \"$d\" && tar -xf - -C \"$d\"";
  (void)TRY(exec_fed(api->account(),
                     {.cluster = TRY(cluster_name(options.cluster)),
                      .slot = options.slot,
                      .argv = {"sh", "-c", script, "sh", options.target}},
                     feed));
  progress.clear();
  say(fmt::format("{} files, {} -> {} in the {}.", packed.files, size_text(static_cast<std::int64_t>(packed.bytes)),
                  options.target, options.slot.empty() ? "head" : options.slot));
  if (packed.skipped > 0) say(fmt::format("{} symbolic links or special files were left out.", packed.skipped));
  return 0;
}

Result<int> down(Shell& shell, const RsyncOptions& options) {
  Api* api = TRY(shell.api());
  std::error_code failed;
  fs::create_directories(options.target, failed);
  if (failed) return error(Code::FailedPrecondition, options.target + ": " + failed.message());
  Unpacker unpacker(options.target);
  std::uint64_t got = 0;
  Progress progress;
  Feed feed;
  feed.output = [&](std::string_view bytes) -> Status {
    got += bytes.size();
    if (stderr_is_terminal()) progress.show("received " + size_text(static_cast<std::int64_t>(got)));
    return unpacker.feed(bytes);
  };
  const std::string script = std::string(kInto) +
                             "if [ -d \"$d\" ]; then tar -cf - -C \"$d\" .; else tar -cf - -C \"$(dirname \"$d\")\" "
                             "\"$(basename \"$d\")\"; fi";
  (void)TRY(exec_fed(api->account(),
                     {.cluster = TRY(cluster_name(options.cluster)),
                      .slot = options.slot,
                      .argv = {"sh", "-c", script, "sh", options.source}},
                     feed));
  TRY_VOID(unpacker.finish());
  progress.clear();
  say(fmt::format("{} files, {} -> {}.", unpacker.files(), size_text(static_cast<std::int64_t>(got)), options.target));
  if (unpacker.skipped() > 0) say(fmt::format("{} links or special files were left out.", unpacker.skipped()));
  return 0;
}

}  // namespace

void add_rsync(CLI::App& app, Shell& shell) {
  for (const bool upward : {true, false}) {
    auto options = std::make_shared<RsyncOptions>();
    auto* command =
        app.add_subcommand(upward ? "rsync-up" : "rsync-down", upward ? "Copy a folder or file into a container"
                                                                      : "Copy a folder or file out of a container");
    command->add_option("cluster", options->cluster, "name, id or YAML file")->required();
    command->add_option("source", options->source, upward ? "here" : "in the container; ~ is its home")->required();
    command->add_option("target", options->target, upward ? "folder in the container; ~ is its home" : "folder here")
        ->required();
    command->add_option("--slot", options->slot, "another member than the head: a slot id from `muster status`");
    command->footer(upward ? "Example:\n  muster rsync-up default ./code ~/code"
                           : "Example:\n  muster rsync-down default ~/results ./results");
    command->callback([options, upward, &shell] {
      shell.action = [options, upward, &shell] { return upward ? up(shell, *options) : down(shell, *options); };
    });
  }
}

}  // namespace muster::cli
