#include "cli/follow.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/table.h"

namespace muster::cli {

bool job_ended(const wire::Json& job) {
  const std::string& state = job["state"].text();
  return state == "succeeded" || state == "failed" || state == "stopped";
}

int job_exit_code(const wire::Json& job) {
  if (job["state"].text() == "succeeded") return 0;
  const auto code = job["exitCode"].integer(1);
  return code > 0 && code < 256 ? static_cast<int>(code) : 1;
}

namespace {

// One pass over the log from `offset`; an error is a break that may be resumed.
Status read_log(Api& api, const std::string& id, std::uint32_t attempt, bool follow, std::uint64_t& offset,
                const FollowSinks& sinks) {
  std::string target = fmt::format("{}/logs?offset={}&attempt={}", path_of("jobs", id), offset, attempt);
  if (follow) target += "&follow=true";
  return api.stream(target, {}, [&](std::string_view bytes) {
    offset += bytes.size();
    sinks.log(bytes);
    return true;
  });
}

}  // namespace

Result<wire::Json> follow_job(Api& api, const std::string& id, const FollowOptions& options, const FollowSinks& sinks) {
  api.set_patience(options.patience);
  std::uint32_t attempt = options.attempt;
  std::uint64_t offset = 0;
  Millis broken{0}, delay{250};
  std::string last_state;
  for (;;) {
    const auto job = TRY(api.get(path_of("jobs", id)));
    const auto newest = static_cast<std::uint32_t>(job["attempt"].integer());
    const std::string& state = job["state"].text();
    if (attempt == 0) attempt = newest;
    if (options.attempt == 0 && newest > attempt) {
      if (sinks.note) sinks.note(fmt::format("attempt {} begins: {}", newest, clean(job["reason"].text())));
      attempt = newest;
      offset = 0;
    }
    const bool ended = job_ended(job);
    if (state != last_state && !ended && state != "running" && sinks.note)
      sinks.note("job " + clean(job["id"].text()) + " is " + clean(state));
    last_state = state;
    const std::uint64_t before = offset;
    if (attempt != 0) {
      const Status read = read_log(api, id, attempt, options.follow && !ended, offset, sinks);
      if (!read.ok() && !worth_retrying(read.error()) && read.error().code != Code::NotFound) return read.error();
      if (!read.ok() && broken >= options.patience) return read.error();
      if (read.ok() && (ended || !options.follow)) return job;
    } else if (ended || !options.follow) {
      return job;
    }
    if (offset > before) {
      broken = Millis{0};
      delay = Millis(250);
    } else {
      delay = std::min(delay * 2, Millis(3'000));
    }
    api.sleep(delay);
    broken += state == "running" || ended ? delay : Millis{0};
    if (ended && broken >= Millis(30'000)) return job;  // it ended, but its log cannot be read
  }
}

void SseParser::feed(std::string_view bytes, const std::function<void(const SseEvent&)>& on_event) {
  for (const char c : bytes) {
    if (c != '\n') {
      if (c != '\r' && line_.size() < (1 << 20)) line_ += c;
      continue;
    }
    if (line_.empty()) {
      if (any_) on_event(event_);
      event_ = {.id = event_.id};
      any_ = false;
    } else if (line_[0] != ':') {
      const auto colon = line_.find(':');
      const std::string field = line_.substr(0, colon);
      std::string value = colon == std::string::npos ? "" : line_.substr(colon + 1);
      if (!value.empty() && value[0] == ' ') value.erase(0, 1);
      if (field == "id")
        event_.id = value;
      else if (field == "event")
        event_.type = value;
      else if (field == "data" && event_.data.size() < (1 << 20))
        event_.data += (event_.data.empty() ? "" : "\n") + value;
      any_ = any_ || field == "data" || field == "event";
    }
    line_.clear();
  }
}

}  // namespace muster::cli
