// images policy show, images policy set, images verdicts
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/config.h"
#include "cli/images.h"
#include "cli/scan.h"
#include "cli/shell.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

constexpr std::size_t kKeyFileMax = 16 << 10;

struct ImageOptions {
  std::string org, require_digest;
  ImagePolicyChange change;
};

// The organisation that was named; else the project that was, or the caller's own.
Result<std::string> policy_target(Shell& shell, const std::string& org) {
  Api* api = TRY(shell.api());
  if (!org.empty()) return path_of("orgs", org) + "/image-policy";
  std::string project = shell.project;
  if (project.empty()) project = TRY(api->get("/api/v1/whoami"))["defaultProject"].text();
  if (project.empty())
    return error(Code::InvalidArgument, "your organisation has no project; name one with --project, or use --org");
  return path_of("projects", project) + "/image-policy";
}

Result<int> print_policy(Shell& shell, const wire::Json& view) {
  shell.show(view, [&] { return image_policy_text(view); });
  return 0;
}
Result<int> show_policy(Shell& shell, const ImageOptions& options) {
  const std::string target = TRY(policy_target(shell, options.org));
  Api* api = TRY(shell.api());
  return print_policy(shell, TRY(api->get(target)));
}
Result<int> set_policy(Shell& shell, ImageOptions options) {
  if (!options.require_digest.empty()) options.change.require_digest = options.require_digest == "yes";
  if (!options.change.any())
    return error(Code::InvalidArgument, "say what changes: --allow, --deny, --key or --require-digest");
  const std::string target = TRY(policy_target(shell, options.org));
  Api* api = TRY(shell.api());
  return print_policy(shell, TRY(change_image_policy(*api, target, options.change)));
}

std::vector<std::string> texts_in(const wire::Json& list) {
  std::vector<std::string> out;
  for (const auto& each : list.items()) out.push_back(each.text());
  return out;
}
// "all" or "none" alone takes a list away.
void replace(std::vector<std::string>& list, const std::vector<std::string>& words, std::string_view nothing) {
  if (words.empty()) return;
  list = words.size() == 1 && words[0] == nothing ? std::vector<std::string>{} : words;
}

std::string lines_of(const wire::Json& scope, std::string_view what) {
  const auto& policy = scope["policy"];
  std::string out = fmt::format("{}\n", what);
  const auto add = [&](std::string_view label, const wire::Json& list) {
    for (const auto& each : list.items()) out += fmt::format("  {:<9} {}\n", label, clean(each.text()));
  };
  const auto before = out.size();
  add("allowed", policy["allow"]);
  add("denied", policy["deny"]);
  if (policy["requireDigest"].truth()) out += "  named     by their digests (IMAGE@sha256:...)\n";
  const auto& keys = scope["keyFingerprints"];
  if (!keys.items().empty()) out += "  signed    with one of these keys (SHA-256):\n";
  for (const auto& each : keys.items()) out += fmt::format("            {}\n", clean(each.text()));
  if (out.size() == before) out += "  every image may run\n";
  return out;
}

}  // namespace

std::string image_policy_text(const wire::Json& view) {
  std::string out = lines_of(view["platform"], "everybody, by the platform");
  for (const auto& [key, what] : {std::pair("org", "organisation"), std::pair("project", "project")}) {
    const auto& scope = view[key];
    if (scope.is(wire::Json::Kind::Object))
      out += lines_of(scope, fmt::format("{} {}", what, clean(scope["name"].text())));
  }
  return out;
}

Result<wire::Json> change_image_policy(Api& api, const std::string& target, const ImagePolicyChange& change) {
  const auto now = TRY(api.get(target));
  const char* narrowest = "platform";
  for (const char* key : {"org", "project"})
    if (now[key].is(wire::Json::Kind::Object)) narrowest = key;
  const auto& held = now[narrowest]["policy"];
  wire::SetImagePolicyRequest request;
  ImagePolicy& policy = request.policy;
  policy = {texts_in(held["allow"]), texts_in(held["deny"]), held["requireDigest"].truth(), texts_in(held["keys"])};
  replace(policy.allow, change.allow, "all");
  replace(policy.deny, change.deny, "none");
  if (change.require_digest) policy.require_digest = *change.require_digest;
  if (!change.keys.empty()) {
    policy.keys.clear();
    const bool none = change.keys.size() == 1 && change.keys[0] == "none";
    for (const std::string& file : none ? std::vector<std::string>{} : change.keys)
      policy.keys.push_back(TRY(read_file(file, kKeyFileMax)));
  }
  return api.send("PUT", target, wire::to_json(request));
}

namespace {

struct VerdictOptions {
  std::string cluster, verdict;
  bool findings = false;
};

Result<int> show_verdicts(Shell& shell, const VerdictOptions& options) {
  Api* api = TRY(shell.api());
  std::string path = "/api/v1/image-scans?limit=500";
  if (!options.verdict.empty()) path += "&verdict=" + escape_url(options.verdict);
  if (!options.cluster.empty())
    path += "&cluster=" + escape_url(TRY(api->get(path_of("clusters", options.cluster)))["id"].text());
  auto rows = TRY(api->list(path));
  const bool bad =
      std::any_of(rows.begin(), rows.end(), [](const wire::Json& row) { return row["verdict"].text() == "block"; });
  shell.show_list(std::move(rows),
                  [&](const auto& items) { return verdicts_text(items, options.findings, shell.colour()); });
  return bad ? 1 : 0;
}

}  // namespace

std::string verdicts_text(const std::vector<wire::Json>& rows, bool findings, bool colour) {
  if (rows.empty())
    return "No verdicts: the platform has no database of advisories, or nothing that you see was looked at yet.\n";
  Table table({"VERDICT", "IMAGE", "SYSTEM", "PACKAGES", "FOUND", "WHY"});
  for (const auto& row : rows)
    table.add({row["verdict"].text(), clean(row["image"].text()), clean(row["system"].text()), row["packages"].text(),
               row["found"].text(), clean(row["why"].text())});
  std::string out = table.text(colour);
  for (const auto& row : rows) {
    if (!findings || row["findings"].items().empty()) continue;
    Table each({"ID", "SEVERITY", "PACKAGE", "VERSION", "FIXED IN", "WAIVED BY"});
    for (const auto& found : row["findings"].items())
      each.add({clean(found["id"].text()), found["severity"].text(), clean(found["package"].text()),
                clean(found["version"].text()), found["fixed"].text().empty() ? "-" : clean(found["fixed"].text()),
                clean(found["waivedBy"].text())});
    out += "\n" + clean(row["image"].text()) + "\n" + each.text(colour);
  }
  return out;
}

void add_images(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<ImageOptions>();
  auto* images = app.add_subcommand("images", "Which images may run, and what is known of them");
  images->require_subcommand(1);
  add_scan(*images, shell);
  auto wanted = std::make_shared<VerdictOptions>();
  auto* verdicts = images->add_subcommand("verdicts", "What the platform knows against images that run");
  verdicts->add_option("--cluster", wanted->cluster, "of the image of this cluster, by name or id");
  verdicts->add_option("--verdict", wanted->verdict, "only these")
      ->check(CLI::IsMember({"pass", "warn", "block", "not scanned", "stale"}));
  verdicts->add_flag("--findings", wanted->findings, "with what was found, the worst 100");
  verdicts->footer(
      "Ends with 1 where an image is condemned (block).\n"
      "Examples:\n  muster images verdicts\n  muster images verdicts --cluster demo --findings\n  muster images "
      "verdicts "
      "--verdict block -o json");
  verdicts->callback([wanted, &shell] { shell.action = [wanted, &shell] { return show_verdicts(shell, *wanted); }; });
  auto* policy = images->add_subcommand("policy", "Of a project, its organisation and the platform; all of them bind");
  policy->require_subcommand(1);
  auto* show = policy->add_subcommand("show", "What is allowed, denied and must be signed");
  show->add_option("--org", options->org, "of this organisation");
  show->footer("Examples:\n  muster images policy show\n  muster images policy show --project default -o json");
  show->callback([options, &shell] { shell.action = [options, &shell] { return show_policy(shell, *options); }; });
  auto* set = policy->add_subcommand("set", "Say what may run from now on; what is not named stays as it is");
  set->add_option("--allow", options->change.allow,
                  "only images that match one of these patterns, or digests (sha256:...); all = no restriction")
      ->allow_extra_args(false);
  set->add_option("--deny", options->change.deny, "no image that matches one of these; none = no restriction")
      ->allow_extra_args(false);
  set->add_option("--require-digest", options->require_digest, "yes or no: requests name images by their digests")
      ->check(CLI::IsMember({"yes", "no"}));
  set->add_option(
         "--key", options->change.keys,
         "only images that one of these keys signed, as cosign signs: files with public keys in PEM; none = no "
         "signatures")
      ->allow_extra_args(false);
  set->add_option("--org", options->org, "of this organisation; of the platform's own: of everybody (operators)");
  set->footer(
      "A pattern is a name with * for anything: ghcr.io/team/*, muster/ray, python:3.11*, venv:*. Options may be given "
      "several\ntimes. What runs already goes on and gets no more machines.\n"
      "Examples:\n  muster images policy set --allow 'ghcr.io/team/*' --allow 'muster/ray' --deny 'ghcr.io/team/old'\n "
      " "
      "muster images policy set --org lab --key cosign.pub --require-digest yes\n  muster images policy set --allow "
      "all "
      "--deny none --key none --require-digest no");
  set->callback([options, &shell] { shell.action = [options, &shell] { return set_policy(shell, *options); }; });
}

}  // namespace muster::cli
