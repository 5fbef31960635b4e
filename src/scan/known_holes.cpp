#include "scan/known_holes.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "scan/osv.h"
#include "scan/version.h"
#include "wire/json.h"

namespace muster::scan {
namespace {

using wire::Json;

constexpr std::array<std::string_view, 6> kNeeded{kLinux, kContainerd, kRunc, kDocker, kNvidiaDriver, kNvidiaToolkit};

Error faulty(std::string_view id, std::string_view what) {
  return error(Code::InvalidArgument,
               "the entry " + std::string(id.empty() ? "without an id" : id.substr(0, 60)) + " " + std::string(what));
}

bool read_field(const Json& json, std::string_view key, std::size_t max, std::string& out) {
  const Json* value = json.find(key);
  if (value == nullptr) return true;
  out = value->text();
  return value->is(Json::Kind::String) && out.size() <= max;
}

Result<KnownHole> hole_of(const Json& json) {
  KnownHole out;
  std::string action = "warn", from;
  if (!read_field(json, "id", 64, out.id) || out.id.empty()) return faulty("", "needs one, such as \"CVE-2024-21626\"");
  if (!read_field(json, "component", 64, out.component) || out.component.empty() ||
      !read_field(json, "what", 512, out.what) || !read_field(json, "action", 16, action) ||
      !read_field(json, "from", 32, from))
    return faulty(out.id, "needs a component, and text where text is due");
  if (action != "warn" && action != "block") return faulty(out.id, "has an action that is neither warn nor block");
  out.action = action == "block" ? HoleAction::Block : HoleAction::Warn;
  if (!from.empty()) {
    const auto day = parse_time(from);
    if (!day) return faulty(out.id, "has a \"from\" that is no day, such as \"2026-12-31\"");
    out.blocks_from = *day;
  }
  for (const Json& each : json["affected"].items()) {
    KnownHole::Range range;
    if (!read_field(each, "from", kVersionMax, range.from) || !read_field(each, "fixed", kVersionMax, range.fixed))
      return faulty(out.id, "has a range of versions that is none");
    out.affected.push_back(std::move(range));
  }
  for (const Json& each : json["packages"].items()) {
    KnownHole::Package package;
    if (!read_field(each, "system", 64, package.system) || !read_field(each, "package", 128, package.package) ||
        !read_field(each, "fixed", kVersionMax, package.fixed) || package.system.empty() || package.package.empty())
      return faulty(out.id, "has a package without system or name");
    out.packages.push_back(std::move(package));
  }
  for (const Json& each : json["sources"].items()) out.sources.push_back(each.text().substr(0, 512));
  if (out.affected.empty() && out.packages.empty()) return faulty(out.id, "names no versions");
  if (out.sources.empty()) return faulty(out.id, "names no source");
  return out;
}

// As upstream numbers go: a release candidate comes before its release.
std::optional<int> compare_upstream(std::string_view a, std::string_view b) {
  const auto form = [](std::string_view version) {
    std::string out = upstream_version(version);
    for (const std::string_view mark : {"-rc", "-alpha", "-beta"})
      if (const auto at = out.find(mark); at != std::string::npos) out[at] = '~';
    return out;
  };
  return compare_debian(form(a), form(b));
}

enum class Answer : std::uint8_t { Fine, Open, Unknown };
struct Judged {
  Answer answer = Answer::Fine;
  std::string fixed, why;
};

Judged by_upstream(const KnownHole& hole, const std::string& version) {
  for (const KnownHole::Range& range : hole.affected) {
    const auto begun = range.from.empty() ? std::optional<int>(-1) : compare_upstream(range.from, version);
    const auto ended = range.fixed.empty() ? std::optional<int>(1) : compare_upstream(range.fixed, version);
    if (!begun || !ended) return {Answer::Unknown, range.fixed, "its version is not one that can be compared"};
    if (*begun <= 0 && *ended > 0) return {Answer::Open, range.fixed, {}};
  }
  return {};
}

Judged judge_one(const KnownHole& hole, const InstalledVersion& has) {
  for (const KnownHole::Package& package : hole.packages) {
    if (package.system != has.system || package.package != has.package) continue;
    if (package.fixed == "0") return {};
    if (package.fixed.empty()) return {Answer::Open, {}, package.system + " has not mended it"};
    const auto order = compare_debian(has.package_version, package.fixed);
    if (!order) return {Answer::Unknown, package.fixed, "its version is not one that can be compared"};
    return *order < 0 ? Judged{Answer::Open, package.fixed, {}} : Judged{};
  }
  if (hole.affected.empty()) return {};
  if (has.upstream.empty()) return {Answer::Unknown, {}, "its version is not known"};
  Judged out = by_upstream(hole, has.upstream);
  if (out.answer == Answer::Open && !has.package.empty()) {
    out.answer = Answer::Unknown;
    out.why = has.system + " may have mended it in its package " + has.package + " " + has.package_version +
              ", of which the table does not know";
  }
  return out;
}

const HoleException* exception_for(const HolePolicy& policy, const std::string& id, std::string_view node,
                                   WallTime now) {
  for (const HoleException& each : policy.exceptions)
    if (each.id == id && (each.node.empty() || each.node == node) && now < each.until) return &each;
  return nullptr;
}

bool present(const std::map<std::string, InstalledVersion>& versions, std::string_view component) {
  const auto found = versions.find(std::string(component));
  return found != versions.end() && !found->second.none;
}

}  // namespace

std::string upstream_version(std::string_view said) {
  if (said.starts_with("v")) said.remove_prefix(1);
  said = said.substr(0, said.find_first_of("+ "));
  for (const std::string_view repacked : {"~ds", "~dfsg", "~deb"}) said = said.substr(0, said.find(repacked));
  return std::string(said);
}

std::string text(const InstalledVersion& version) {
  if (version.none) return "none";
  std::string out = version.upstream.empty() ? "?" : version.upstream;
  if (!version.package.empty()) out += " " + version.system + "/" + version.package + "=" + version.package_version;
  return out;
}

InstalledVersion parse_installed(std::string_view text) {
  InstalledVersion out;
  if (text == "none") {
    out.none = true;
    return out;
  }
  const auto space = text.find(' ');
  out.upstream = text.substr(0, space);
  if (out.upstream == "?") out.upstream.clear();
  if (space == std::string_view::npos) return out;
  text.remove_prefix(space + 1);
  const auto slash = text.find('/'), equals = text.find('=');
  if (slash == std::string_view::npos || equals == std::string_view::npos || slash > equals) return out;
  out.system = text.substr(0, slash);
  out.package = text.substr(slash + 1, equals - slash - 1);
  out.package_version = text.substr(equals + 1);
  return out;
}

Result<HoleTable> parse_holes(std::string_view text) {
  const Json json = TRY(wire::parse_json(text, {.bytes = kHoleTableMax}));
  HoleTable out;
  const auto date = parse_time(json["date"].text());
  if (!date) return error(Code::InvalidArgument, "a table of known holes needs its day: \"date\": \"2026-11-30\"");
  out.date = *date;
  if (!json["holes"].is(Json::Kind::Array) || json["holes"].items().size() > kHolesMax)
    return error(Code::InvalidArgument, "a table of known holes has a list named \"holes\", of at most 4096");
  for (const Json& each : json["holes"].items()) {
    KnownHole hole = TRY(hole_of(each));
    out.holes.push_back(std::move(hole));
  }
  return out;
}

const HoleTable& built_in_holes() {
  static const HoleTable table = [] {
    auto parsed = parse_holes(built_in_holes_text());
    MUSTER_CHECK(parsed.ok());
    return std::move(*parsed);
  }();
  return table;
}

Result<HolePolicy> parse_hole_policy(std::string_view text) {
  const Json json = TRY(wire::parse_json(text, {.bytes = kHoleTableMax}));
  if (!json.is(Json::Kind::Object)) return error(Code::InvalidArgument, "the policy on holes must be an object");
  HolePolicy out;
  for (const auto& [key, value] : json.members())
    if (key != "exceptions" && key != "block" && key != "unknown" && key != "running")
      return error(Code::InvalidArgument,
                   "the policy on holes knows exceptions, block, unknown and running; not '" + key.substr(0, 60) + "'");
  for (const Json& each : json["exceptions"].items()) {
    HoleException exception{each["id"].text(), each["node"].text(), each["owner"].text(), each["reason"].text(), {}};
    const auto until = parse_time(each["until"].text());
    if (exception.id.empty() || exception.owner.empty() || !until || out.exceptions.size() >= kHolesMax)
      return faulty(exception.id,
                    "of the exceptions needs an id, an owner and a day until when it holds, such as "
                    "\"until\": \"2026-12-31\"");
    exception.until = *until;
    out.exceptions.push_back(std::move(exception));
  }
  for (const Json& each : json["block"].items()) out.block.push_back(each.text());
  const std::string &unknown = json["unknown"].text(), &running = json["running"].text();
  if (!unknown.empty() && unknown != "warn" && unknown != "block")
    return error(Code::InvalidArgument, "\"unknown\" of the policy on holes is \"warn\" or \"block\"");
  if (!running.empty() && running != "stay" && running != "leave")
    return error(Code::InvalidArgument, "\"running\" of the policy on holes is \"stay\" or \"leave\"");
  out.block_unknown = unknown == "block";
  out.running_leaves = running == "leave";
  return out;
}

std::string_view text(HoleState state) {
  constexpr std::array<std::string_view, 3> kNames{"open", "unknown", "excepted"};
  return kNames[static_cast<std::size_t>(state)];
}

std::vector<HoleFinding> judge_host(const HoleTable& table, const HolePolicy& policy,
                                    const std::map<std::string, InstalledVersion>& versions, std::string_view node,
                                    WallTime now) {
  std::vector<HoleFinding> out;
  for (const KnownHole& hole : table.holes) {
    const auto has = versions.find(hole.component);
    if (has == versions.end() || has->second.none) continue;
    Judged judged = judge_one(hole, has->second);
    if (judged.answer == Answer::Fine) continue;
    HoleFinding finding;
    finding.id = hole.id, finding.component = hole.component, finding.version = text(has->second);
    finding.fixed = std::move(judged.fixed), finding.what = hole.what, finding.why = std::move(judged.why);
    if (!hole.sources.empty()) finding.source = hole.sources.front();
    const bool raised = std::find(policy.block.begin(), policy.block.end(), hole.id) != policy.block.end();
    const bool grave = raised || (hole.action == HoleAction::Block && hole.blocks_from <= now);
    if (judged.answer == Answer::Unknown) finding.state = HoleState::Unknown;
    if (const HoleException* exception = exception_for(policy, hole.id, node, now)) {
      finding.state = HoleState::Excepted;
      finding.why = "an exception of " + exception->owner + " until " + format_utc(exception->until).substr(0, 10) +
                    (exception->reason.empty() ? "" : ": " + exception->reason);
    }
    finding.blocks =
        grave && (finding.state == HoleState::Open || (finding.state == HoleState::Unknown && policy.block_unknown));
    out.push_back(std::move(finding));
  }
  // Whoever says nothing of a part may have any version of it.
  for (const std::string_view component : kNeeded) {
    if (versions.contains(std::string(component))) continue;
    HoleFinding finding;
    finding.component = component, finding.state = HoleState::Unknown;
    finding.why = "the machine does not say which version it has: update its agent, or see `muster-agent doctor`";
    finding.blocks = policy.block_unknown;
    if (component == kDocker && present(versions, kPodman)) continue;
    out.push_back(std::move(finding));
  }
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
    return std::pair(!a.blocks, a.state) < std::pair(!b.blocks, b.state);
  });
  return out;
}

std::string blocking_text(const std::vector<HoleFinding>& findings, std::size_t bytes_max) {
  std::string out;
  std::size_t left = 0;
  for (const HoleFinding& each : findings) {
    if (!each.blocks) continue;
    std::string one = each.id.empty()
                          ? "an unknown version of " + each.component
                          : each.id + " in " + each.component + " " + each.version.substr(0, each.version.find(' '));
    if (!each.id.empty()) one += each.fixed.empty() ? ", not mended yet" : ", mended in " + each.fixed;
    if (out.size() + one.size() + 20 > bytes_max) {
      ++left;
      continue;
    }
    if (!out.empty()) out += "; ";
    out += one;
  }
  if (left > 0) out += (out.empty() ? "" : "; and ") + std::to_string(left) + " more";
  return out;
}

}  // namespace muster::scan
