#include "scan/verdict.h"

#include <algorithm>
#include <array>

#include "wire/json.h"

namespace muster::scan {
namespace {

using wire::Json;

constexpr std::size_t kReportMax = 64 << 20, kWaiversMax = 10'000, kPolicyMax = 4 << 20;

bool covers(const Waiver& waiver, const Finding& finding) {
  return waiver.id == finding.id && (waiver.package.empty() || waiver.package == finding.package);
}
std::string counted(std::size_t n, std::string_view one, std::string_view many) {
  return std::to_string(n) + " " + std::string(n == 1 ? one : many);
}

}  // namespace

std::string_view text(Outcome outcome) {
  constexpr std::array<std::string_view, 5> kNames{"pass", "warn", "block", "not scanned", "stale"};
  return kNames[static_cast<std::size_t>(outcome)];
}

Result<std::vector<Waiver>> read_waivers(const Json& json) {
  std::vector<Waiver> out;
  if (!json["waivers"].is(Json::Kind::Array) || json["waivers"].items().size() > kWaiversMax)
    return error(Code::InvalidArgument, "the waivers must be a list named \"waivers\", of at most 10000");
  for (const Json& each : json["waivers"].items()) {
    Waiver waiver{each["id"].text(), each["package"].text(), each["owner"].text(), each["reason"].text(), {}};
    const auto until = parse_time(each["until"].text());
    if (waiver.id.empty() || waiver.owner.empty() || !until)
      return error(Code::InvalidArgument, "the waiver of " + (waiver.id.empty() ? "nothing" : waiver.id.substr(0, 60)) +
                                              " needs an id, an owner and a day until when it holds, such as "
                                              "\"until\": \"2026-12-31\"");
    waiver.until = *until;
    out.push_back(std::move(waiver));
  }
  return out;
}

Result<std::vector<Waiver>> parse_waivers(std::string_view text) {
  return read_waivers(TRY(wire::parse_json(text, {.bytes = kPolicyMax})));
}

Result<ScanPolicy> parse_scan_policy(std::string_view text) {
  const Json json = TRY(wire::parse_json(text, {.bytes = kPolicyMax}));
  if (!json.is(Json::Kind::Object)) return error(Code::InvalidArgument, "a scan policy is a JSON object");
  ScanPolicy out;
  for (const auto& [key, value] : json.members()) {
    if (key == "block") {
      const auto severity = parse_severity(value.text());
      if (!severity || *severity == Severity::Unknown)
        return error(Code::InvalidArgument, "\"block\" wants low, medium, high or critical", key);
      out.rules.block = *severity;
    } else if (key == "only_fixed" || key == "deny") {
      if (!value.is(Json::Kind::Bool)) return error(Code::InvalidArgument, "\"" + key + "\" wants true or false", key);
      (key == "deny" ? out.deny : out.rules.only_fixed) = value.truth();
    } else if (key == "max_age_days") {
      const std::int64_t days = value.is(Json::Kind::Number) ? value.integer(-1) : -1;
      if (days < 1 || days > 3'650)
        return error(Code::InvalidArgument, "\"max_age_days\" wants a number of days from 1 to 3650", key);
      out.rules.fresh = Millis{days * 86'400'000};
    } else if (key == "waivers") {
      out.rules.waivers = TRY(read_waivers(json));
    } else {
      return error(Code::InvalidArgument,
                   "a scan policy has no \"" + key.substr(0, 60) +
                       "\"; it has block, only_fixed, max_age_days, waivers and deny",
                   key.substr(0, 60));
    }
  }
  return out;
}

Verdict judge(Facts facts, const Rules& rules, WallTime now) {
  Verdict out;
  std::size_t blocking = 0, open = 0;
  for (Finding& finding : facts.findings) {
    for (const Waiver& waiver : rules.waivers) {
      if (!covers(waiver, finding)) continue;
      if (now < waiver.until)
        finding.waived_by = waiver.owner;
      else
        out.expired.push_back(waiver);
    }
    if (!finding.waived_by.empty()) continue;
    ++open;
    if (finding.severity >= rules.block && (!rules.only_fixed || !finding.fixed.empty())) ++blocking;
  }
  const std::size_t waived = facts.findings.size() - open;
  out.findings = std::move(facts.findings);
  // What is known to be bad is bad, however much more there may be.
  if (blocking > 0) {
    out.outcome = Outcome::Block;
    out.why = counted(blocking, "finding is ", "findings are ") + std::string(text(rules.block)) + " or worse";
  } else if (!facts.incomplete.empty()) {
    out.outcome = Outcome::NotScanned;
    out.why = facts.incomplete;
  } else if (facts.database.ms == 0 || now - facts.database > rules.fresh) {
    out.outcome = Outcome::Stale;
    out.why = facts.database.ms == 0 ? "the scanner does not say how old its database is"
                                     : "the newest that the database knows is of " +
                                           format_utc(facts.database).substr(0, 10) + "; get a newer one";
  } else if (open > 0) {
    out.outcome = Outcome::Warn;
    out.why = counted(open, "finding, below what blocks", "findings, all below what blocks");
  } else {
    out.outcome = Outcome::Pass;
    out.why = "nothing is known against it";
    if (waived > 0) out.why = "nothing is known against it but " + counted(waived, "waived finding", "waived findings");
  }
  return out;
}

Facts facts_of(const Inventory& inventory, const Matcher& matcher, std::string scanner) {
  Facts out{std::move(scanner), matcher.newest(), {}, matcher.findings()};
  std::set<std::string> lacking;
  for (const Package& package : inventory.packages)
    if (const std::string family = package.ecosystem.substr(0, package.ecosystem.find(':'));
        !matcher.ecosystems().contains(family))
      lacking.insert(family);
  if (!inventory.readable()) {
    out.incomplete = "no package database was found in the image";
  } else if (matcher.records() == 0) {
    out.incomplete = "the database holds no records";
  } else if (!lacking.empty()) {
    std::string names;
    for (const std::string& name : lacking) names += (names.empty() ? "" : ", ") + name;
    out.incomplete = "the database holds nothing about " + names;
  } else if (inventory.skipped > 0) {
    out.incomplete = counted(inventory.skipped, "package could not be read", "packages could not be read");
  }
  return out;
}

Result<Facts> parse_report(std::string_view said) {
  const Json json = TRY(wire::parse_json(said, {.bytes = kReportMax, .depth = 16, .values = 2'000'000}));
  Facts out;
  out.scanner = json["scanner"].text().substr(0, kFieldMax);
  if (out.scanner.empty() || !json["findings"].is(Json::Kind::Array))
    return error(Code::InvalidArgument, "the scanner's report needs \"scanner\" and a list \"findings\"");
  if (const auto at = parse_time(json["database"].text())) out.database = *at;
  for (const Json& each : json["findings"].items()) {
    if (out.findings.size() >= kFindingsMax) {
      out.incomplete = "the scanner found more than can be looked at";
      break;
    }
    const auto severity = parse_severity(each["severity"].text());
    Finding finding{each["id"].text().substr(0, kFieldMax),      each["package"].text().substr(0, kFieldMax),
                    each["version"].text().substr(0, kFieldMax), each["fixed"].text().substr(0, kFieldMax),
                    severity.value_or(Severity::Unknown),        {}};
    if (finding.id.empty() || finding.package.empty() || !severity)
      return error(Code::InvalidArgument,
                   "a finding of the scanner needs id, package and severity (unknown, low, medium, high, critical)");
    out.findings.push_back(std::move(finding));
  }
  std::stable_sort(out.findings.begin(), out.findings.end(),
                   [](const Finding& a, const Finding& b) { return a.severity > b.severity; });
  return out;
}

std::string report_json(const Facts& facts) {
  Json out = Json::object();
  out.set("scanner", Json::string(facts.scanner));
  if (facts.database.ms != 0) out.set("database", Json::string(format_utc(facts.database)));
  Json findings = Json::array();
  for (const Finding& each : facts.findings) {
    Json row = Json::object();
    row.set("id", Json::string(each.id)).set("package", Json::string(each.package));
    row.set("version", Json::string(each.version)).set("fixed", Json::string(each.fixed));
    row.set("severity", Json::string(std::string(text(each.severity))));
    findings.push(std::move(row));
  }
  out.set("findings", std::move(findings));
  return out.dump();
}

}  // namespace muster::scan
