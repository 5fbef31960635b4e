#pragma once
// A job's log as one unbroken stream of bytes, and its end: resumes at the byte offset after any break, also while the
// control plane restarts, for up to `patience`. A retried job starts a new log; that is said, and the new one is
// followed.
#include <functional>
#include <string>

#include "cli/api.h"

namespace muster::cli {

struct FollowOptions {
  bool follow = true;
  std::uint32_t attempt = 0; /* 0 = from the newest on */
  Millis patience{600'000};
};
struct FollowSinks {
  std::function<void(std::string_view)> log;
  std::function<void(const std::string&)> note;
};

// Returns the job as it was last read (terminal when following).
Result<wire::Json> follow_job(Api& api, const std::string& id, const FollowOptions& options, const FollowSinks& sinks);
bool job_ended(const wire::Json& job);
int job_exit_code(const wire::Json& job);  // 0 only for succeeded

// Server-sent events: feed bytes, get whole events.
struct SseEvent {
  std::string id, type, data;
};
class SseParser {
 public:
  void feed(std::string_view bytes, const std::function<void(const SseEvent&)>& on_event);

 private:
  std::string line_;
  SseEvent event_;
  bool any_ = false;
};

}  // namespace muster::cli
