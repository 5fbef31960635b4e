// audit, audit refused, audit head
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <ctime>
#include <fstream>

#include "cli/audit.h"
#include "cli/shell.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

constexpr Millis kPollEvery{1000};

struct AuditOptions {
  std::string actor, object, verb, since = "24h", until, org, output, out;
  bool follow = false;
};

// "24h" = that long ago, "all" = no bound, otherwise a time as the server takes it.
Result<std::string> time_of(const std::string& text, const char* option) {
  if (text.empty() || text == "all") return std::string();
  if (const auto seconds = parse_duration(text)) return format_utc(read_clocks().wall - Millis(*seconds * 1000));
  if (text.size() == 10 && text[4] == '-') return text + "T00:00:00Z";
  if (text.find('T') == std::string::npos || text.back() != 'Z')
    return error(Code::InvalidArgument,
                 fmt::format("{} wants how long ago (90m, 24h, 7d), a day or a time in UTC (2026-11-23, "
                             "2026-11-23T01:02:03Z), or all",
                             option));
  return text;
}

Result<std::string> filter_of(const AuditOptions& options, const std::string& since) {
  std::string out;
  for (const auto& [key, value] :
       {std::pair("actor", options.actor), std::pair("object", options.object), std::pair("verb", options.verb),
        std::pair("org", options.org), std::pair("since", since),
        std::pair("until", TRY(time_of(options.until, "--until")))}) {
    if (value.find(',') != std::string::npos)
      return error(Code::InvalidArgument, fmt::format("--{} must not hold a comma", key));
    if (!value.empty()) out += fmt::format("{}{}={}", out.empty() ? "" : ",", key, value);
  }
  return out;
}

// "https://control.example:8443/" -> "control.example"
std::string name_of_server(const std::string& server) {
  const auto scheme = server.find("://");
  const std::string rest = scheme == std::string::npos ? server : server.substr(scheme + 3);
  return rest.substr(0, rest.find_first_of(":/", rest.starts_with("[") ? rest.find(']') : 0));
}

class Printer {
 public:
  Printer(Shell& shell, const AuditOptions& options) : shell_(shell) {
    form_ = options.output.empty() ? shell.output : options.output;
    if (auto api = shell.api(); api.ok()) host_ = name_of_server((*api)->account().server);
  }
  void entry(const wire::Json& item) {
    if (form_ == "json")
      items_.push_back(item);
    else
      line(item, form_ == "table" ? audit_line(item) : "");
  }
  void line(const wire::Json& item, const std::string& table) {
    std::string text = table;
    if (form_ == "jsonl") text = item.dump();
    if (form_ == "cef") text = cef_line(item);
    if (form_ == "syslog") text = syslog_line(item, host_);
    if (form_ == "yaml") text = "---\n" + yaml_text(item);
    if (form_ != "yaml") text += "\n";
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
  const std::string& form() const { return form_; }
  void end() {
    std::fflush(stdout);
    if (form_ != "json") return;
    shell_.output = "json";
    shell_.show_list(std::move(items_), [](const auto&) { return std::string(); });
  }
  void flush() { std::fflush(stdout); }

 private:
  Shell& shell_;
  std::string form_, host_;
  std::vector<wire::Json> items_;
};

Result<int> audit(Shell& shell, const AuditOptions& options) {
  Api* api = TRY(shell.api());
  const std::string since = TRY(time_of(options.since, "--since"));
  const std::string filter = TRY(filter_of(options, since));
  Printer printer(shell, options);
  if (options.follow && printer.form() == "json")
    return error(Code::InvalidArgument, "-f goes on for ever: use -o jsonl instead of json");
  std::string cursor, after;
  for (;;) {
    std::string all = filter;
    if (!after.empty()) all += fmt::format("{}after={}", all.empty() ? "" : ",", after);
    std::string target = "/api/v1/audit?limit=500";
    if (!all.empty()) target += "&filter=" + escape_url(all);
    if (!cursor.empty()) target += "&cursor=" + escape_url(cursor);
    const auto page = TRY(api->get(target));
    for (const auto& item : page["items"].items()) printer.entry(item);
    cursor = page["nextCursor"].text();
    if (!cursor.empty()) continue;
    if (!options.follow) break;
    after = page["seq"].text();
    printer.flush();
    api->sleep(kPollEvery);
  }
  printer.end();
  return 0;
}

Result<int> refused(Shell& shell, const AuditOptions& options) {
  Api* api = TRY(shell.api());
  std::string target = "/api/v1/audit/refused?limit=1000";
  if (!options.actor.empty()) target += "&filter=" + escape_url("actor=" + options.actor);
  const auto page = TRY(api->get(target));
  Printer printer(shell, options);
  if (printer.form() != "table") {
    for (const auto& item : page["items"].items()) printer.entry(item);
    printer.end();
    return 0;
  }
  Table table({"WHO", "ASKED FOR", "ANSWER", "TIMES", "FIRST", "LAST", "FROM"});
  for (const auto& item : page["items"].items()) {
    const auto& actor = item["actor"];
    const std::string id = actor["id"].text().empty() ? actor["kind"].text() : actor["id"].text();
    table.add({actor["name"].text().empty() ? id : fmt::format("{} ({})", id, actor["name"].text()),
               item["operation"].text(), item["code"].text(), item["count"].text(), short_time(item["firstAt"]),
               short_time(item["lastAt"]), item["lastAddress"].text()});
  }
  const std::string text =
      table.empty() ? std::string("Nothing was refused since the server started.\n") : table.text(shell.colour());
  std::fwrite(text.data(), 1, text.size(), stdout);
  return 0;
}

Result<int> show_head(Shell& shell, const AuditOptions& options) {
  Api* api = TRY(shell.api());
  const auto made = TRY(api->get("/api/v1/audit/head"));
  if (!options.out.empty()) {
    std::ofstream file(options.out, std::ios::binary | std::ios::trunc);
    file << made.dump() << "\n";
    file.close();
    if (!file) return error(Code::Unavailable, fmt::format("--out {}: the file cannot be written", options.out));
  }
  shell.show(made, [&] {
    return fmt::format("Entry {} of {} (incarnation {}), hash {}, signed by key {}.\n{}", made["seq"].text(),
                       clean(made["serverId"].text()), made["incarnation"].text(), clean(made["hash"].text()),
                       clean(made["keyId"].text()),
                       options.out.empty() ? std::string("Keep it with --out FILE; musterd journal verify --head FILE "
                                                         "checks the journal against it.\n")
                                           : fmt::format("Written to {}.\n", options.out));
  });
  return 0;
}

}  // namespace

void add_audit(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<AuditOptions>();
  const auto output = [options](CLI::App* command) {
    command->add_option("--output,-o", options->output, "table, json, jsonl, yaml, cef or syslog (RFC 5424)")
        ->check(CLI::IsMember({"table", "json", "jsonl", "yaml", "cef", "syslog"}));
  };
  auto* command = app.add_subcommand("audit", "Who did what to which object, from the journal, oldest first");
  command->add_option("--actor", options->actor,
                      "account or machine, by id or name, or a kind: operator, tenant-admin, system, ...");
  command->add_option("--object", options->object, "by id or name, or a kind: cluster, job, machine, api-token, ...");
  command->add_option("--verb", options->verb, "create, update, stop, end, revoke, enroll, grant, ...");
  command->add_option("--since", options->since, "how long ago, a time, or all; default 24h");
  command->add_option("--until", options->until, "the same; entries before that");
  command->add_option("--org", options->org, "of this organisation's objects");
  command->add_flag("--follow,-f", options->follow, "go on");
  output(command);
  command->footer(
      "Operators and auditors see everything, others what concerns their organisation.\n"
      "Examples:\n  muster audit --since 7d --actor alice\n  muster audit --object cl-3 --since all\n"
      "  muster audit -f -o syslog | logger --rfc5424 --server loghost");
  command->callback([options, &shell, command] {
    if (command->get_subcommands().empty()) shell.action = [options, &shell] { return audit(shell, *options); };
  });
  auto* refused_command = command->add_subcommand("refused", "What was refused to whom and how often, added up");
  refused_command->add_option("--actor", options->actor, "account or machine, by id or name, or a kind: nobody, ...");
  output(refused_command);
  refused_command->footer(
      "Since the server started; older ones are in DIR/refused.log of the control plane.\n"
      "Example:\n  muster audit refused --actor nobody -o cef");
  refused_command->callback(
      [options, &shell] { shell.action = [options, &shell] { return refused(shell, *options); }; });
  auto* head_command = command->add_subcommand("head", "A signed proof of the journal as it is, to keep elsewhere");
  head_command->add_option("--out", options->out, "write it to this file");
  head_command->footer("Example:\n  muster audit head --out head.json");
  head_command->callback(
      [options, &shell] { shell.action = [options, &shell] { return show_head(shell, *options); }; });
}

}  // namespace muster::cli
