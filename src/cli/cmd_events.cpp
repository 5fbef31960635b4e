// events [-f]: everything the caller may see, resumed by Last-Event-ID.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/follow.h"
#include "cli/shell.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

struct EventOptions {
  bool follow = false;
  std::string from, filter;
};

void print(Shell& shell, const SseEvent& event) {
  const auto parsed = wire::parse_json(event.data);
  if (!parsed.ok()) return;
  if (shell.output == "json") {
    const std::string line = parsed->dump() + "\n";
    std::fwrite(line.data(), 1, line.size(), stdout);
  } else if (shell.output == "yaml") {
    const std::string text = "---\n" + yaml_text(*parsed);
    std::fwrite(text.data(), 1, text.size(), stdout);
  } else {
    const auto& e = *parsed;
    const std::string line = fmt::format("{}  {:<10} {:<24} {}{}\n", short_time(e["at"]), clean(e["subject"].text()),
                                         clean(e["type"].text()), clean(e["text"].text()),
                                         e["actor"].text().empty() ? "" : "  (" + clean(e["actor"].text()) + ")");
    std::fwrite(line.data(), 1, line.size(), stdout);
  }
  std::fflush(stdout);
}

Result<int> events(Shell& shell, const EventOptions& options) {
  Api* api = TRY(shell.api());
  std::string target = "/api/v1/events";
  if (!options.filter.empty()) target += "?filter=" + escape_url(options.filter);
  // Without -f: what is durable up to now, then stop.
  std::uint64_t until = 0;
  if (!options.follow) until = static_cast<std::uint64_t>(TRY(api->get("/api/v1/server"))["seq"].integer());
  std::string last = !options.from.empty() ? options.from : options.follow ? "" : "0";
  if (!options.follow && until == 0) return 0;
  Millis delay{250}, broken{0};
  int waits = 0;
  for (;;) {
    std::map<std::string, std::string> headers = {{"accept", "text/event-stream"}};
    if (!last.empty()) headers["last-event-id"] = last;
    SseParser parser;
    bool done = false, any = false, early = false;  // early: the server had not told all of it when it said so
    const Status ended = api->stream(target, headers, [&](std::string_view bytes) {
      parser.feed(bytes, [&](const SseEvent& event) {
        if (done || early) return;
        any = true;
        if (event.type == "reset") return say("-- older events are archived; going on with new ones"), last.clear();
        if (event.type != "live") print(shell, event);
        if (event.id.empty()) return;
        last = event.id;
        if (until != 0 && std::strtoull(last.c_str(), nullptr, 10) >= until) done = true;
        if (event.type == "live" && !options.follow) early = !done;
      });
      return !done && !early;
    });
    if (done) return 0;
    if (early) {
      if (++waits > 100) return 0;
      api->sleep(Millis(50));
      continue;
    }
    if (!ended.ok() && !worth_retrying(ended.error())) return ended.error();
    if (!options.follow && ended.ok()) return 0;
    if (any) delay = Millis(250), broken = Millis(0);
    if (broken > Millis(600'000))
      return ended.ok() ? Error{Code::Unavailable, "the event stream does not come back", ""} : ended.error();
    api->sleep(delay);
    broken += delay;
    delay = std::min(delay * 2, Millis(5'000));
  }
}

}  // namespace

void add_events(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<EventOptions>();
  auto* command = app.add_subcommand("events", "What happened, and with -f what happens");
  command->add_flag("--follow,-f", options->follow, "go on; resumes after a break");
  command->add_option("--from", options->from, "after this sequence number (0 = from the beginning)");
  command->add_option("--filter", options->filter, "such as subject=cl-3");
  command->footer("Examples:\n  muster events -f\n  muster events --from 100 -o json");
  command->callback([options, &shell] { shell.action = [options, &shell] { return events(shell, *options); }; });
}

}  // namespace muster::cli
