#include "server/queue_watch.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/event_hub.h"
#include "server/start_forecasts.h"
#include "server/views.h"
#include "wire/rest_spec.h"

namespace muster::server {
namespace {

constexpr Millis kExpectedMoves{120'000}, kLikelyMoves{300'000};
constexpr std::int64_t kExpectedPart = 10, kLikelyPart = 5;

bool moved(WallTime before, WallTime after, WallTime now, Millis least, std::int64_t part) {
  if ((before.ms == 0) != (after.ms == 0)) return true;
  const Millis by = before < after ? after - before : before - after;
  return by > std::max(least, std::max(Millis(0), after - now) / part);
}

std::string time_or_not(WallTime time) {
  return time.ms == 0 ? "not known" : wire::time_text(time);
}

}  // namespace

std::string what_changed(const wire::QueueView& before, const wire::QueueView& after, WallTime now) {
  std::string out;
  const auto add = [&](const std::string& text) { out += (out.empty() ? "" : "; ") + text; };
  if (before.reason_code != after.reason_code) add(after.reason);
  if (moved(before.expected_start, after.expected_start, now, kExpectedMoves, kExpectedPart))
    add(fmt::format("expected start {} (was {})", time_or_not(after.expected_start),
                    time_or_not(before.expected_start)));
  if (moved(before.start_p50, after.start_p50, now, kLikelyMoves, kLikelyPart))
    add(fmt::format("likely start {} (was {})", time_or_not(after.start_p50), time_or_not(before.start_p50)));
  return out;
}

QueueWatch::QueueWatch(Context& context, Options options) : context_(context), options_(options) {}

QueueWatch::~QueueWatch() {
  stop();
}

void QueueWatch::start() {
  thread_ = std::thread([this] { run(); });
}

void QueueWatch::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void QueueWatch::run() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (wake_.wait_for(lock, options_.every, [this] { return stopping_; })) return;
    }
    if (context_.events->streams() == 0)
      told_.clear();  // who comes reads the queue, and is told what changes from then on
    else
      look();
  }
}

void QueueWatch::look() {
  const auto starts = context_.starts->get(*context_.runner);
  const Now now = read_clocks();
  std::map<ClusterId, wire::QueueView> views;
  std::map<ClusterId, access::Object> objects;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler& scheduler) {
    if (scheduler.waiting() > options_.waiting_max) return;
    views = queue_views(state, scheduler, now.wall);
    for (const auto& [id, view] : views)
      if (const Cluster* cluster = state.find_cluster(id)) objects.emplace(id, object_of(state, *cluster));
  });
  std::erase_if(told_, [&](const auto& told) { return !views.contains(told.first); });
  for (auto& [id, view] : views) {
    if (const auto start = starts->find(id); start != starts->end())
      view.start_p50 = start->second.p50, view.start_p90 = start->second.p90;
    const auto [told, fresh] = told_.try_emplace(id, Told{view, LeaseTime{0}});
    if (fresh || (told->second.at.ms != 0 && now.lease - told->second.at < options_.rest)) continue;
    const std::string text = what_changed(told->second.view, view, now.wall);
    const auto object = objects.find(id);
    if (text.empty() || object == objects.end()) continue;
    wire::EventView event{0, now.wall, "queue.changed", id.str(), fmt::format("{} waits: {}", view.name, text), {}, {}};
    event.data = {{"reasonCode", view.reason_code},
                  {"position", std::to_string(view.position)},
                  {"expectedStart", wire::time_text(view.expected_start)},
                  {"startP50", wire::time_text(view.start_p50)},
                  {"startP90", wire::time_text(view.start_p90)}};
    context_.events->transient(object->second, event.type, wire::to_json(event));
    told->second = {view, now.lease};
  }
}

}  // namespace muster::server
