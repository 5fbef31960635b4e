#include "server/log_follow.h"

namespace muster::server {
namespace {

constexpr std::size_t kChunk = 256 << 10, kBufferedMax = 1 << 20;
constexpr Millis kPoll{200};
// A job is over in the state before the agent's last chunk may have come; wait so long for the rest.
constexpr Millis kTail{5000};

struct JobNow {
  bool known = false, over = false;
  std::uint32_t attempt = 0;
  std::uint64_t log_bytes = 0;
};
JobNow look(const Context& context, JobId id) {
  JobNow out;
  context.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Job* job = state.find_job(id);
    if (job == nullptr) return;
    out = {true, control::terminal(job->state), job->attempt, job->log_bytes};
  });
  return out;
}

}  // namespace

LogFollow::LogFollow(Context& context, std::size_t readers_max)
    : context_(context), readers_max_(readers_max), thread_([this] { run(); }) {}

LogFollow::~LogFollow() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void LogFollow::poke() {
  {
    const std::lock_guard lock(mutex_);
    poked_ = true;
  }
  wake_.notify_one();
}

Status LogFollow::open(Wanted wanted, net::ResponderPtr responder) {
  {
    const std::lock_guard lock(mutex_);
    if (count_ >= readers_max_) return error(Code::ResourceExhausted, "too many logs are being read; try again later");
    ++count_;
  }
  Reader reader;
  reader.wanted = std::move(wanted);
  reader.attempt = reader.wanted.attempt;
  reader.responder = std::move(responder);
  reader.gone = std::make_shared<std::atomic<bool>>(false);
  net::Response head;
  head.content_type = "text/plain; charset=utf-8";
  head.headers["X-Content-Type-Options"] = "nosniff";
  head.headers["Cache-Control"] = "no-store";
  reader.responder->start_stream(std::move(head));
  reader.responder->on_close([gone = reader.gone] { *gone = true; });
  reader.guard = context_.events->guard(reader.wanted.caller, [gone = reader.gone, to = reader.responder] {
    *gone = true;
    to->finish();
  });
  {
    const std::lock_guard lock(mutex_);
    added_.push_back(std::move(reader));
    poked_ = true;
  }
  wake_.notify_one();
  return {};
}

bool LogFollow::step(Reader& reader) {
  const JobNow job = look(context_, reader.wanted.job);
  if (reader.attempt == 0) {
    const std::uint32_t newest = job.known ? job.attempt : context_.logs->newest_attempt(reader.wanted.job);
    if (newest == 0) return reader.wanted.follow && job.known && !job.over;  // not started yet
    reader.attempt = newest;
  }
  while (!*reader.gone && reader.responder->buffered() < kBufferedMax) {
    const auto bytes = context_.logs->read(reader.wanted.job, reader.attempt, reader.wanted.offset, kChunk);
    if (!bytes.ok()) return false;
    if (bytes->empty()) break;
    reader.wanted.offset += bytes->size();
    reader.ended = LeaseTime{0};
    if (!reader.responder->write(*bytes)) return false;
  }
  if (*reader.gone) return false;
  if (context_.logs->size(reader.wanted.job, reader.attempt) > reader.wanted.offset) return true;  // slow reader
  if (!reader.wanted.follow) return false;
  const bool newer = job.known && job.attempt > reader.attempt;
  if (job.known && !job.over && !newer) return true;
  if (newer && reader.wanted.attempt == 0) {
    reader.attempt = job.attempt;
    reader.wanted.offset = 0;
    return true;
  }
  if (!job.known || (job.attempt == reader.attempt && reader.wanted.offset >= job.log_bytes && job.log_bytes > 0))
    return false;
  const LeaseTime now = read_clocks().lease;
  if (reader.ended == LeaseTime{0}) reader.ended = now;
  return now - reader.ended < kTail;
}

void LogFollow::run() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (readers_.empty()) {
        wake_.wait(lock, [this] { return stopping_ || !added_.empty(); });
      } else {
        wake_.wait_for(lock, kPoll, [this] { return stopping_ || poked_; });
      }
      if (stopping_) break;
      poked_ = false;
      for (auto& reader : added_) readers_.push_back(std::move(reader));
      added_.clear();
    }
    for (auto it = readers_.begin(); it != readers_.end();) {
      if (step(*it)) {
        ++it;
        continue;
      }
      it->responder->finish();
      it = readers_.erase(it);
      const std::lock_guard lock(mutex_);
      --count_;
    }
  }
  for (auto& reader : readers_) reader.responder->finish();
}

}  // namespace muster::server
