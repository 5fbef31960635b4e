#include "scan/osv.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cmath>

#include "scan/rpm.h"
#include "scan/version.h"
#include "wire/json.h"

namespace muster::scan {
namespace {

using wire::Json;

std::string family_of(std::string_view ecosystem) {
  return std::string(ecosystem.substr(0, ecosystem.find(':')));
}
// Distributions' advisories name source packages; those that use rpm name either.
std::set<std::string> keys_of(const Package& package) {
  const std::string family = family_of(package.ecosystem);
  if (family == "PyPI") return {family + "/" + package.name};
  if (is_rpm_family(family)) return {family + "/" + package.name, family + "/" + package.source};
  return {family + "/" + package.source};
}
// Of the package itself where the record names that, else of its source.
const std::string& version_of(const Package& package, const std::string& named) {
  const std::string family = family_of(package.ecosystem);
  const bool itself = family == "PyPI" || (is_rpm_family(family) && named == package.name);
  return itself ? package.version : package.source_version;
}

// The release that a record speaks of; one without speaks of all. Ubuntu adds ":LTS", Red Hat the repository. SUSE says
// the product, of which those of one service pack share their packages.
bool same_release(std::string_view said, std::string_view has) {
  if (said == has || said.find(':') == std::string_view::npos) return true;
  if (said.size() > has.size() && said.starts_with(has) && said[has.size()] == ':') return true;
  constexpr std::string_view kServer = "SUSE:Linux Enterprise Server";
  return has.starts_with(kServer) && said.starts_with("SUSE:") && said.ends_with(has.substr(kServer.size()));
}

struct Hit {
  bool affected = false;
  std::string fixed;
};
// The last time it came in at or before this version, and whether it went out again since.
Hit in_range(const Json& range, const std::string& ecosystem, const std::string& version) {
  Hit out;
  const auto before = [&](const std::string& a, const std::string& b) -> std::optional<int> {
    if (a == "0") return -1;  // from the beginning
    return compare_versions(ecosystem, a, b);
  };
  std::string introduced;
  bool in = false, unsure = false;
  for (const Json& event : range["events"].items()) {
    const std::string& from = event["introduced"].text();
    if (from.empty()) continue;
    const auto order = before(from, version);
    unsure = unsure || !order;
    if (!order || *order > 0) continue;
    const auto later = in ? before(introduced, from) : std::optional<int>(-1);
    if (!in || !later || *later < 0) introduced = from;
    in = true;
  }
  if (!in && !unsure) return out;
  out.affected = true;
  for (const Json& event : range["events"].items()) {
    const std::string &fixed = event["fixed"].text(), &last = event["last_affected"].text();
    const std::string& ends = fixed.empty() ? last : fixed;
    if (ends.empty()) continue;
    const auto since = in ? before(introduced, ends) : std::optional<int>();
    if (since && *since > 0) continue;  // of an earlier time
    const auto order = compare_versions(ecosystem, ends, version);
    if (order && (fixed.empty() ? *order < 0 : *order <= 0)) {
      out.affected = false;
      return out;
    }
    const auto sooner = out.fixed.empty() ? std::optional<int>(1) : compare_versions(ecosystem, out.fixed, fixed);
    if (!fixed.empty() && sooner && *sooner > 0) out.fixed = fixed;
  }
  return out;
}

Severity severity_of(const Json& record, const Json& affected) {
  for (const Json* where :
       {&affected["database_specific"], &record["database_specific"], &affected["ecosystem_specific"]})
    for (const char* key : {"severity", "urgency"})
      if (const auto said = parse_severity((*where)[key].text()); said && *said != Severity::Unknown) return *said;
  auto worst = Severity::Unknown;
  for (const Json* list : {&affected["severity"], &record["severity"]})
    for (const Json& each : list->items())
      if (const auto score = cvss_severity(each["score"].text())) worst = std::max(worst, *score);
  return worst;
}

// People know the CVE.
std::string name_of(const Json& record) {
  const std::string& id = record["id"].text();
  if (id.starts_with("CVE-")) return id;
  for (const char* list : {"aliases", "upstream", "related"})
    for (const Json& each : record[list].items())
      if (each.text().starts_with("CVE-")) return each.text();
  return id;
}

std::string short_text(const std::string& said) {
  std::string out = said.substr(0, kFieldMax);
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return c <= 0x20 || c >= 0x7f; }, '?');
  return out;
}

}  // namespace

std::string_view text(Severity severity) {
  constexpr std::array<std::string_view, 5> kNames{"unknown", "low", "medium", "high", "critical"};
  return kNames[static_cast<std::size_t>(severity)];
}

std::optional<Severity> parse_severity(std::string_view said) {
  std::string word(said.substr(0, 32));
  std::transform(word.begin(), word.end(), word.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  while (word.ends_with('*')) word.pop_back();  // the Debian tracker's mark
  if (word == "critical") return Severity::Critical;
  if (word == "high" || word == "important") return Severity::High;
  if (word == "medium" || word == "moderate") return Severity::Medium;
  if (word == "low" || word == "negligible" || word == "unimportant") return Severity::Low;
  if (word == "unknown" || word == "not yet assigned") return Severity::Unknown;
  return {};
}

std::optional<Severity> cvss_severity(std::string_view vector) {
  if (!vector.starts_with("CVSS:3.0/") && !vector.starts_with("CVSS:3.1/")) return {};
  std::map<std::string, char> metrics;
  for (std::string_view rest = vector.substr(9); !rest.empty();) {
    const std::string_view part = rest.substr(0, rest.find('/'));
    rest.remove_prefix(std::min(rest.size(), part.size() + 1));
    const auto colon = part.find(':');
    if (colon == std::string_view::npos || colon + 2 != part.size()) return {};
    metrics[std::string(part.substr(0, colon))] = part[colon + 1];
  }
  bool known = true;
  const auto weight = [&](const char* name, std::initializer_list<std::pair<char, double>> weights) {
    const auto it = metrics.find(name);
    for (const auto& [value, number] : weights)
      if (it != metrics.end() && it->second == value) return number;
    known = false;
    return 0.0;
  };
  const bool changed = metrics["S"] == 'C';
  const double vector_weight = weight("AV", {{'N', 0.85}, {'A', 0.62}, {'L', 0.55}, {'P', 0.2}});
  const double complexity = weight("AC", {{'L', 0.77}, {'H', 0.44}});
  const double rights = weight("PR", {{'N', 0.85}, {'L', changed ? 0.68 : 0.62}, {'H', changed ? 0.5 : 0.27}});
  const double user = weight("UI", {{'N', 0.85}, {'R', 0.62}});
  double safe = 1;
  for (const char* name : {"C", "I", "A"}) safe *= 1 - weight(name, {{'H', 0.56}, {'L', 0.22}, {'N', 0}});
  if (!known || (metrics["S"] != 'C' && metrics["S"] != 'U')) return {};
  const double part = 1 - safe;
  const double impact = changed ? 7.52 * (part - 0.029) - 3.25 * std::pow(part - 0.02, 15) : 6.42 * part;
  if (impact <= 0) return Severity::Low;
  const double sum = (impact + 8.22 * vector_weight * complexity * rights * user) * (changed ? 1.08 : 1);
  const double score = std::ceil(std::min(sum, 10.0) * 10 - 1e-5) / 10;  // up to one digit, as the standard rounds
  return score >= 9 ? Severity::Critical : score >= 7 ? Severity::High : score >= 4 ? Severity::Medium : Severity::Low;
}

std::optional<WallTime> parse_time(std::string_view said) {
  const auto number = [&](std::size_t at, std::size_t n) {
    int out = 0;
    for (const char c : said.substr(at, n)) {
      if (c < '0' || c > '9') return -1;
      out = out * 10 + (c - '0');
    }
    return out;
  };
  if (said.size() < 10 || said[4] != '-' || said[7] != '-') return {};
  const std::chrono::year_month_day day{std::chrono::year(number(0, 4)),
                                        std::chrono::month(static_cast<unsigned>(number(5, 2))),
                                        std::chrono::day(static_cast<unsigned>(number(8, 2)))};
  if (!day.ok()) return {};
  std::int64_t seconds = std::chrono::sys_days(day).time_since_epoch().count() * std::int64_t{86'400};
  if (said.size() > 10) {
    if (said.size() < 20 || (said[10] != 'T' && said[10] != ' ') || said[13] != ':' || said[16] != ':' ||
        !said.ends_with('Z'))
      return {};
    const int hours = number(11, 2), minutes = number(14, 2), rest = number(17, 2);
    if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59 || rest < 0 || rest > 60) return {};
    seconds += hours * 3600 + minutes * 60 + rest;
  }
  return WallTime{seconds * 1000};
}

Matcher::Matcher(const Inventory& inventory) : inventory_(inventory) {
  for (const Package& package : inventory_.packages)
    for (const std::string& key : keys_of(package)) by_name_.emplace(key, &package);
}

Result<Json> parse_record(std::string_view text) {
  return wire::parse_json(text, {.bytes = kRecordMax, .depth = 32, .values = 2'000'000});
}

Status Matcher::add(std::string_view text) {
  return add(TRY(parse_record(text)));
}

Status Matcher::add(const Json& record) {
  if (record["id"].text().empty() || !record["affected"].is(Json::Kind::Array))
    return error(Code::InvalidArgument,
                 "this is no record in the OSV format: it has no id, or no list of affected packages");
  ++records_;
  if (const auto changed = parse_time(record["modified"].text())) newest_ = std::max(newest_, *changed);
  const bool withdrawn = !record["withdrawn"].text().empty();
  for (const Json& affected : record["affected"].items()) {
    const std::string& ecosystem = affected["package"]["ecosystem"].text();
    const std::string family = family_of(ecosystem);
    if (known_.size() < 1000) known_.insert(family);
    const std::string& name = affected["package"]["name"].text();
    const auto [begin, end] = by_name_.equal_range(family + "/" + (family == "PyPI" ? python_name(name) : name));
    for (auto it = begin; it != end && !withdrawn; ++it) {
      const Package& package = *it->second;
      if (!same_release(ecosystem, package.ecosystem)) continue;
      const std::string& version = version_of(package, name);
      bool hit = false;
      std::string fixed;
      for (const Json& listed : affected["versions"].items()) {
        const auto order = compare_versions(package.ecosystem, listed.text(), version);
        hit = hit || listed.text() == version || (order && *order == 0);
      }
      for (const Json& range : affected["ranges"].items()) {
        if (range["type"].text() != "ECOSYSTEM") continue;
        const Hit found = in_range(range, package.ecosystem, version);
        hit = hit || found.affected;
        if (found.affected && !found.fixed.empty()) fixed = found.fixed;
      }
      if (!hit || found_.size() >= kFindingsMax) continue;
      Finding& finding = found_[{name_of(record), package.name}];
      const Severity severity = severity_of(record, affected);
      finding.id = short_text(name_of(record)), finding.package = package.name, finding.version = package.version;
      if (!fixed.empty()) finding.fixed = short_text(fixed);
      finding.severity = std::max(finding.severity, severity);
    }
  }
  return {};
}

std::vector<Finding> Matcher::findings() const {
  std::vector<Finding> out;
  for (const auto& [key, finding] : found_) out.push_back(finding);
  std::stable_sort(out.begin(), out.end(), [](const Finding& a, const Finding& b) { return a.severity > b.severity; });
  return out;
}

}  // namespace muster::scan
