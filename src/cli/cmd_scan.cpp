// images scan
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>

#include "base/version.h"
#include "cli/config.h"
#include "cli/remote.h"
#include "cli/scan.h"
#include "cli/shell.h"
#include "wire/json.h"

namespace muster::cli {
namespace {
namespace fs = std::filesystem;

constexpr std::size_t kReportMax = 64 << 20, kDepthMax = 64, kWaiverFileMax = 4 << 20;
constexpr Millis kScannerWithin{15 * 60'000};

// The lists of packages of a container, as a tar; links are followed, for os-release is one.
constexpr std::string_view kLists =
    "cd / && { for f in etc/os-release usr/lib/os-release var/lib/dpkg/status lib/apk/db/installed "
    "var/lib/rpm/rpmdb.sqlite var/lib/rpm/Packages.db var/lib/rpm/Packages usr/lib/sysimage/rpm/rpmdb.sqlite "
    "usr/lib/sysimage/rpm/Packages.db usr/lib/sysimage/rpm/Packages; do [ -f $f ] && echo $f; done; find "
    "var/lib/dpkg/status.d -type f 2>/dev/null; find . \\( -path ./proc -o -path ./sys -o -path ./dev "
    "-o "
    "-path ./tmp \\) -prune -o -type f \\( -path '*.dist-info/METADATA' -o -path '*.egg-info/PKG-INFO' -o -path "
    "'*-packages/*.egg-info' \\) -print 2>/dev/null; } | tar -chf - -T -";
constexpr std::size_t kListsMax = 256 << 20;

struct ScanOptions {
  std::string path, cluster, slot, database, block = "high", max_age = "7d", waivers, scanner;
  bool only_fixed = false;
};

Error cannot_read(const std::string& path) {
  return error(Code::NotFound, path + " cannot be read; is it there, and are you allowed to?");
}

Result<std::map<std::string, std::string>> files_of_folder(const std::string& root) {
  std::map<std::string, std::string> out;
  std::error_code failure;
  fs::recursive_directory_iterator walk(root, fs::directory_options::skip_permission_denied, failure), end;
  for (; !failure && walk != end; walk.increment(failure)) {
    if (walk.depth() > static_cast<int>(kDepthMax)) walk.disable_recursion_pending();
    std::error_code ignored;
    const auto kind = walk->symlink_status(ignored);
    if (!fs::is_regular_file(kind) && !fs::is_symlink(kind)) continue;
    const std::string path = walk->path().string();
    std::string name = path.substr(std::min(path.size(), root.size()));
    name.erase(0, name.find_first_not_of('/'));
    if (!scan::wanted(name) || (fs::is_symlink(kind) && name.ends_with("os-release"))) continue;
    // A link may lead out of the folder: what it stands for counts as not read.
    std::string text;
    if (!fs::is_symlink(kind)) text = TRY(read_file(path, scan::kFileMax));
    out[name] = std::move(text);
  }
  if (failure) return cannot_read(root);
  return out;
}

Result<std::map<std::string, std::string>> files_at(const std::string& path) {
  std::error_code failure;
  if (fs::is_directory(path, failure)) return files_of_folder(path);
  std::ifstream file(path, std::ios::binary);
  const auto size = fs::file_size(path, failure);
  if (!file || failure) return cannot_read(path);
  return scan::files_of_archive({size, [&](std::uint64_t offset, std::size_t wanted) -> Result<std::string> {
                                   std::string out(wanted, '\0');
                                   file.clear();
                                   file.seekg(static_cast<std::streamoff>(offset));
                                   file.read(out.data(), static_cast<std::streamsize>(wanted));
                                   out.resize(static_cast<std::size_t>(file.gcount()));
                                   return out;
                                 }});
}

Status read_database(const std::string& folder, scan::Matcher& matcher) {
  std::error_code failure;
  fs::recursive_directory_iterator walk(folder, failure), end;
  for (; !failure && walk != end; walk.increment(failure)) {
    std::error_code ignored;
    if (walk->path().extension() != ".json" || !walk->is_regular_file(ignored)) continue;
    const Status added = matcher.add(TRY(read_file(walk->path().string(), scan::kRecordMax)));
    if (!added.ok()) return error(added.error().code, walk->path().string() + ": " + added.error().message);
  }
  if (failure) return cannot_read(folder);
  return {};
}

// Ends by itself, or is ended; what it prints is bounded.
Result<std::string> output_of(const std::string& program, const std::string& path) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return error(Code::ResourceExhausted, "no descriptors left");
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    ::execlp(program.c_str(), program.c_str(), path.c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  ::close(ends[1]);
  std::string out;
  bool whole = child > 0;
  const LeaseTime until = read_clocks().lease + kScannerWithin;
  while (whole) {
    pollfd wait{ends[0], POLLIN, 0};
    char buffer[64 << 10];
    ssize_t n = 0;
    if (::poll(&wait, 1, 1000) > 0 && (n = ::read(ends[0], buffer, sizeof buffer)) <= 0) break;
    out.append(buffer, static_cast<std::size_t>(n));
    whole = out.size() <= kReportMax && read_clocks().lease < until;
  }
  ::close(ends[0]);
  if (!whole && child > 0) ::kill(child, SIGKILL);
  int status = 0;
  if (child > 0) ::waitpid(child, &status, 0);
  if (!whole) return error(Code::Unavailable, program + " prints too much, or does not end");
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return error(Code::Unavailable, fmt::format("{} ended with {}", program,
                                                WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)));
  return out;
}

Result<scan::Facts> facts_by(const std::string& database, const std::map<std::string, std::string>& files) {
  const scan::Inventory inventory = scan::inventory_of(files);
  scan::Matcher matcher(inventory);
  TRY_VOID(read_database(database, matcher));
  return scan::facts_of(inventory, matcher, "muster " + std::string(kVersion));
}

// What the container has now, setup commands and all, as it says itself.
Result<scan::Facts> scan_cluster(Shell& shell, const ScanOptions& options) {
  Api* api = TRY(shell.api());
  const ExecRequest request{
      .cluster = options.cluster, .slot = options.slot, .argv = {"sh", "-c", std::string(kLists)}};
  const std::string tar = TRY(exec_output(api->account(), request, kListsMax));
  const scan::ArchiveSource source{tar.size(), [&](std::uint64_t offset, std::size_t wanted) -> Result<std::string> {
                                     return offset > tar.size() ? std::string() : tar.substr(offset, wanted);
                                   }};
  return facts_by(options.database, TRY(scan::files_of_archive(source)));
}

wire::Json json_of(const scan::Facts& facts, const scan::Verdict& verdict) {
  auto out = *wire::parse_json(scan::report_json(facts), {.bytes = 2 * kReportMax, .values = 2'000'000});
  out.set("verdict", wire::Json::string(std::string(scan::text(verdict.outcome))));
  out.set("why", wire::Json::string(verdict.why));
  auto waived = wire::Json::array();
  for (const auto& each : verdict.findings) {
    if (each.waived_by.empty()) continue;
    auto row = wire::Json::object();
    row.set("id", wire::Json::string(each.id)).set("package", wire::Json::string(each.package));
    row.set("owner", wire::Json::string(each.waived_by));
    waived.push(std::move(row));
  }
  out.set("waived", std::move(waived));
  return out;
}

Result<int> run_scan(Shell& shell, const ScanOptions& options) {
  scan::Rules rules;
  const auto block = scan::parse_severity(options.block);
  if (!block || *block == scan::Severity::Unknown)
    return error(Code::InvalidArgument, "--block wants low, medium, high or critical");
  const auto fresh = parse_duration(options.max_age);
  if (!fresh || *fresh <= 0) return error(Code::InvalidArgument, "--max-age wants a duration such as 12h or 7d");
  if (options.database.empty() == options.scanner.empty())
    return error(Code::InvalidArgument,
                 "say by what: --database FOLDER with records in the OSV format, or --scanner PROGRAM");
  rules.block = *block, rules.fresh = Millis(*fresh * 1000), rules.only_fixed = options.only_fixed;
  if (!options.waivers.empty())
    rules.waivers = TRY(scan::parse_waivers(TRY(read_file(options.waivers, kWaiverFileMax))));
  if (options.path.empty() == options.cluster.empty())
    return error(Code::InvalidArgument, "say what: an archive or folder, or --cluster NAME for what runs there");
  if (!options.cluster.empty() && !options.scanner.empty())
    return error(Code::InvalidArgument, "--scanner wants an archive or folder; --cluster is scanned with --database");
  auto facts = !options.scanner.empty()  ? ask_scanner(options.scanner, options.path)
               : options.cluster.empty() ? scan_image(options.path, options.database)
                                         : scan_cluster(shell, options);
  // A scanner that failed found nothing out, which is not the same as nothing.
  if (!facts.ok() && options.scanner.empty()) return facts.error();
  if (!facts.ok()) facts = scan::Facts{options.scanner, {}, facts.error().message, {}};
  const scan::Verdict verdict = scan::judge(*facts, rules, read_clocks().wall);
  shell.show(json_of(*facts, verdict), [&] { return verdict_text(*facts, verdict, shell.colour()); });
  return verdict.outcome == scan::Outcome::Pass || verdict.outcome == scan::Outcome::Warn ? 0 : 1;
}

}  // namespace

Result<scan::Facts> scan_image(const std::string& path, const std::string& database) {
  return facts_by(database, TRY(files_at(path)));
}

Result<scan::Facts> ask_scanner(const std::string& program, const std::string& path) {
  return scan::parse_report(TRY(output_of(program, path)));
}

std::string verdict_text(const scan::Facts& facts, const scan::Verdict& verdict, bool colour) {
  std::string out;
  Table table({"ID", "SEVERITY", "PACKAGE", "VERSION", "FIXED IN", "WAIVED BY"});
  for (const auto& each : verdict.findings)
    table.add({each.id, std::string(scan::text(each.severity)), each.package, each.version,
               each.fixed.empty() ? "-" : each.fixed, each.waived_by});
  if (!table.empty()) out += table.text(colour) + "\n";
  for (const auto& each : verdict.expired)
    out += fmt::format("The waiver of {} by {} has ended on {}.\n", clean(each.id), clean(each.owner),
                       format_utc(each.until).substr(0, 10));
  return out + fmt::format("{}: {} (by {})\n", scan::text(verdict.outcome), clean(verdict.why), clean(facts.scanner));
}

void add_scan(CLI::App& images, Shell& shell) {
  auto options = std::make_shared<ScanOptions>();
  auto* command = images.add_subcommand("scan", "What is known to be wrong with an image, before it is signed");
  command->add_option("source", options->path, "what `docker save` wrote, a tar of a root file system, or its folder");
  command->add_option("--cluster", options->cluster, "instead: what a running cluster has in its head's container");
  command->add_option("--slot", options->slot, "with --cluster: in this member's");
  command->add_option("--database", options->database, "folder with records in the OSV format (*.json)");
  command->add_option("--scanner", options->scanner,
                      "instead: a program that gets the path and prints a report (docs/images.md)");
  command->add_option("--block", options->block, "from which severity on: low, medium, high or critical; default high");
  command->add_flag("--only-fixed", options->only_fixed, "what has no fix yet never blocks");
  command->add_option("--max-age", options->max_age, "an older database is stale; default 7d");
  command->add_option("--waivers", options->waivers, "file of findings that somebody answers for, each until a day");
  command->footer(
      "Ends with 0 for pass and warn, with 1 for block, stale and not scanned: what was not scanned is never clean.\n"
      "Examples:\n  docker save muster/ray:2.60.0 -o ray.tar && muster images scan ray.tar --database osv/\n  muster "
      "images "
      "scan ray.tar --scanner ./trivy-report --block critical --waivers waivers.json\n  muster images scan --cluster "
      "demo --database osv/");
  command->callback([options, &shell] { shell.action = [options, &shell] { return run_scan(shell, *options); }; });
}

}  // namespace muster::cli
