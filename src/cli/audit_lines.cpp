#include <fmt/format.h>

#include <vector>

#include "base/version.h"
#include "cli/audit.h"
#include "cli/shell.h"
#include "cli/table.h"

namespace muster::cli {
namespace {

constexpr int kFacility = 13, kNotice = 5, kWarning = 4;

bool refusal(const wire::Json& entry) {
  return entry.find("operation") != nullptr;
}
std::string outcome_of(const wire::Json& entry) {
  return refusal(entry) ? "refused" : entry["outcome"].text();
}
std::string acting(const wire::Json& entry) {
  const auto& actor = entry["actor"];
  return actor["id"].text().empty() ? actor["kind"].text() : actor["id"].text();
}

std::string escaped(std::string_view text, std::string_view special) {
  std::string out;
  for (const char c : clean(text)) {
    if (special.find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

// What both formats say beside their heads.
std::vector<std::pair<const char*, std::string>> facts_of(const wire::Json& entry) {
  if (refusal(entry))
    return {{"count", entry["count"].text()},
            {"first", entry["firstAt"].text()},
            {"request", entry["lastRequestId"].text()},
            {"address", entry["lastAddress"].text()},
            {"code", entry["code"].text()}};
  return {{"seq", entry["seq"].text()},
          {"request", entry["requestId"].text()},
          {"address", entry["address"].text()},
          {"objectKind", entry["object"]["kind"].text()},
          {"object", entry["object"]["id"].text()},
          {"objectName", entry["object"]["name"].text()},
          {"org", entry["object"]["orgId"].text()}};
}
std::string title_of(const wire::Json& entry) {
  return refusal(entry) ? entry["operation"].text() : entry["event"].text();
}
std::string when_of(const wire::Json& entry) {
  return (refusal(entry) ? entry["lastAt"] : entry["at"]).text();
}
std::string text_of(const wire::Json& entry) {
  if (!refusal(entry)) return entry["text"].text();
  return fmt::format("{} was refused to {}, {} times ({})", entry["operation"].text(), acting(entry),
                     entry["count"].text(), entry["code"].text());
}
bool grave(const wire::Json& entry) {
  return outcome_of(entry) != "done";
}

}  // namespace

std::string audit_line(const wire::Json& entry) {
  const auto& actor = entry["actor"];
  std::string who = actor["id"].text().empty() ? actor["kind"].text()
                                               : fmt::format("{} {}", actor["kind"].text(), actor["id"].text());
  if (!actor["name"].text().empty()) who += fmt::format(" ({})", actor["name"].text());
  return fmt::format("{:>8}  {}  {:<28} {:<10} {:<10} {:<7} {}", entry["seq"].text(), short_time(entry["at"]),
                     clean(who), clean(entry["verb"].text()), clean(entry["object"]["id"].text()),
                     entry["outcome"].text(), clean(entry["text"].text()));
}

std::string cef_line(const wire::Json& entry) {
  const std::string_view in_head = "\\|", in_fields = "\\=";
  std::string out =
      fmt::format("CEF:0|Muster|musterd|{}|{}|{}|{}|rt={} suser={} spriv={} outcome={}", kVersion,
                  escaped(title_of(entry), in_head), escaped(text_of(entry), in_head), grave(entry) ? 6 : 3,
                  escaped(when_of(entry), in_fields), escaped(acting(entry), in_fields),
                  escaped(entry["actor"]["kind"].text(), in_fields), outcome_of(entry));
  if (const auto& verb = entry["verb"].text(); !verb.empty()) out += " act=" + escaped(verb, in_fields);
  static const std::vector<std::pair<std::string, std::string>> kKeys = {
      {"seq", "externalId"}, {"request", "requestContext"},
      {"address", "src"},    {"objectKind", "destinationServiceName"},
      {"object", "duid"},    {"objectName", "fname"},
      {"org", "cs1"},        {"count", "cnt"},
      {"first", "start"},    {"code", "reason"}};
  for (const auto& [key, value] : facts_of(entry)) {
    if (value.empty()) continue;
    for (const auto& [ours, theirs] : kKeys) {
      if (ours == key) out += fmt::format(" {}={}", theirs, escaped(value, in_fields));
    }
    if (std::string_view(key) == "org") out += " cs1Label=organisation";
  }
  return out;
}

std::string syslog_line(const wire::Json& entry, const std::string& host) {
  const auto value = [](std::string_view text) { return escaped(text, "\"\\]"); };
  std::string data = fmt::format(R"([muster@32473 actor="{}" actorKind="{}" outcome="{}")", value(acting(entry)),
                                 value(entry["actor"]["kind"].text()), value(outcome_of(entry)));
  if (const auto& verb = entry["verb"].text(); !verb.empty()) data += fmt::format(R"( verb="{}")", value(verb));
  for (const auto& [key, text] : facts_of(entry)) {
    if (!text.empty()) data += fmt::format(R"( {}="{}")", key, value(text));
  }
  const std::string name = title_of(entry).substr(0, 32);
  return fmt::format("<{}>1 {} {} musterd - {} {}] {}", kFacility * 8 + (grave(entry) ? kWarning : kNotice),
                     when_of(entry), host.empty() ? "-" : clean(host), name.empty() ? "-" : clean(name), data,
                     clean(text_of(entry)));
}

}  // namespace muster::cli
