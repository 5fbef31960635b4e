#include "server/event_hub.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "server/event_text.h"

namespace muster::server {
namespace {

std::string frame(const wire::EventView& view) {
  return fmt::format("id: {}\nevent: {}\ndata: {}\n\n", view.seq, view.type, wire::to_json(view));
}

}  // namespace

EventHub::EventHub(const engine::Runner& runner, Options options) : runner_(runner), options_(options) {}

void EventHub::start(engine::Runner& runner) {
  runner.read([this](const control::State& state, const scheduler::Scheduler&) { fanned_ = state.seq; });
  subscription_ = runner.subscribe([this](const engine::DurableEvents& events) {
    {
      const std::lock_guard lock(mutex_);
      if (events_waiting_ < options_.queue_max) {
        events_.push_back(events);
        events_waiting_ += events->size();
      } else {  // streams read these from the journal instead
        events_.clear();
        events_waiting_ = 0;
        skipped_ = events->back().seq;
      }
    }
    wake_.notify_one();
  });
  thread_ = std::thread([this] { run(); });
}

EventHub::~EventHub() {
  stop();
}

void EventHub::stop() {
  subscription_.reset();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Status EventHub::open(Caller caller, net::ResponderPtr responder, std::optional<std::uint64_t> from) {
  auto stream = std::make_shared<Stream>();
  stream->caller = std::move(caller);
  stream->responder = std::move(responder);
  stream->next = from ? *from + 1 : 0;
  {
    const std::lock_guard lock(mutex_);
    if (stream_count_ >= options_.streams_max)
      return error(Code::ResourceExhausted, "too many event streams are open; close one or try again later");
    ++stream_count_;
    opened_.push_back(stream);
  }
  const std::weak_ptr<Stream> weak = stream;
  stream->responder->on_close([this, weak] {
    const auto closed = weak.lock();
    if (!closed) return;
    const std::lock_guard lock(mutex_);
    closed->gone = true;
  });
  wake_.notify_one();
  return {};
}

void EventHub::transient(access::Object object, std::string type, std::string json) {
  {
    const std::lock_guard lock(mutex_);
    if (transients_.size() >= options_.transient_max) transients_.pop_front();
    transients_.push_back({std::move(object), fmt::format("event: {}\ndata: {}\n\n", type, json)});
  }
  wake_.notify_one();
}

std::shared_ptr<void> EventHub::guard(const Caller& caller, std::function<void()> close) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t key = next_guard_++;
  guarded_[key] = {caller, std::move(close)};
  return {static_cast<void*>(this), [this, key](void*) {
            const std::lock_guard inner(mutex_);
            guarded_.erase(key);
          }};
}

void EventHub::on_events(std::function<void(const std::vector<engine::DurableEvent>&)> listener) {
  const std::lock_guard lock(mutex_);
  listeners_.push_back(std::move(listener));
}

std::size_t EventHub::streams() const {
  const std::lock_guard lock(mutex_);
  return stream_count_;
}

void EventHub::write(Stream& stream, const std::string& text) {
  if (stream.gone) return;
  if (stream.responder->buffered() > options_.buffered_max || !stream.responder->write(text)) {
    stream.gone = true;
    stream.responder->finish();
  }
}

void EventHub::fan_out(const std::vector<engine::DurableEvent>& events) {
  fanned_ = events.back().seq;
  const auto listens = [](const auto& stream) { return stream->live && !stream->gone; };
  std::vector<std::optional<ShownEvent>> shown(events.size());
  if (std::any_of(streams_.begin(), streams_.end(), listens)) {
    runner_.read([&](const control::State& state, const scheduler::Scheduler&) {
      std::transform(events.begin(), events.end(), shown.begin(),
                     [&](const engine::DurableEvent& event) { return show_event(state, event); });
    });
  }
  for (std::size_t i = 0; i < events.size(); ++i) {
    std::string text;
    for (const auto& stream : streams_) {
      if (!listens(stream)) continue;
      stream->next = events[i].seq + 1;
      if (!shown[i] || !access::visible(stream->caller.subject, shown[i]->object)) continue;
      if (text.empty()) text = frame(shown[i]->view);
      write(*stream, text);
    }
    revoke(events[i].event);
  }
}

// Who asks for what happened so far learns that this was all, also when the last events were not for him to see.
void EventHub::go_live(Stream& stream) {
  write(stream, fmt::format("id: {0}\nevent: live\ndata: {{\"seq\":\"{0}\"}}\n\n", fanned_));
  stream.live = true;
}

// One page; true when there was progress, so that the caller comes back soon.
bool EventHub::catch_up(Stream& stream) {
  if (stream.next == 0) stream.next = fanned_ + 1;
  if (stream.next > fanned_ + 1) {  // an id of the future: another history
    write(stream, fmt::format("event: reset\ndata: {{\"seq\":\"{}\"}}\n\n", fanned_));
    stream.next = fanned_ + 1;
  }
  if (stream.next > fanned_) {
    go_live(stream);
    return true;
  }
  if (stream.responder->buffered() > options_.buffered_max / 4) return false;
  auto page = runner_.replay(stream.next, options_.page);
  if (page.ok() && page->empty()) return false;  // told to the follower a moment before it counts as durable there
  if (!page.ok() || page->front().seq != stream.next) {
    write(stream, fmt::format("event: reset\ndata: {{\"seq\":\"{}\"}}\n\n", fanned_));
    stream.next = fanned_ + 1;
    go_live(stream);
    return true;
  }
  std::string text;
  runner_.read([&](const control::State& state, const scheduler::Scheduler&) {
    for (const auto& event : *page) {
      if (event.seq > fanned_) break;
      stream.next = event.seq + 1;
      const auto shown = show_event(state, event);
      if (shown && access::visible(stream.caller.subject, shown->object)) text += frame(shown->view);
    }
  });
  if (!text.empty()) write(stream, text);
  // Now, not when it is looked at next: where much is written something new would be there again by then, for ever.
  if (stream.next > fanned_) go_live(stream);
  return true;
}

void EventHub::revoke(const control::Event& event) {
  TokenId token;
  PrincipalId principal;
  if (const auto* revoked = std::get_if<control::ApiTokenRevoked>(&event)) token = revoked->token;
  if (const auto* reused = std::get_if<control::RefreshReused>(&event)) token = reused->token;
  if (const auto* disabled = std::get_if<control::PrincipalDisabled>(&event)) principal = disabled->principal;
  // What was opened as another: it is opened again, if he may.
  if (const auto* changed = std::get_if<control::PrincipalChanged>(&event)) principal = changed->principal;
  GrantId grant;
  if (const auto* ended = std::get_if<control::GrantEnded>(&event)) grant = ended->grant.id;
  if (!token && !principal && !grant) return;
  const auto hit = [&](const Caller& caller) {
    return (token && caller.token == token) || (principal && caller.subject.principal == principal) ||
           (grant && caller.grant == grant);
  };
  // An event stream shows whatever its reader may see: without the grant it is another one.
  const auto shows = [&](const Caller& caller) {
    const auto& held = caller.subject.grants;
    return grant && std::any_of(held.begin(), held.end(), [&](const auto& each) { return each.id == grant; });
  };
  for (const auto& stream : streams_) {
    if (!hit(stream->caller) && !shows(stream->caller)) continue;
    stream->gone = true;
    stream->responder->finish();
  }
  std::vector<std::function<void()>> closing;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& stream : opened_) {
      if (hit(stream->caller) || shows(stream->caller)) stream->gone = true;
    }
    for (const auto& [key, guarded] : guarded_) {
      if (hit(guarded.caller)) closing.push_back(guarded.close);
    }
  }
  for (const auto& close : closing) close();
}

void EventHub::close_expired() {
  const WallTime now = read_clocks().wall;
  const auto over = [&](const Caller& caller) { return caller.expires.ms != 0 && caller.expires <= now; };
  std::vector<std::function<void()>> closing;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, guarded] : guarded_) {
      if (over(guarded.caller)) closing.push_back(guarded.close);
    }
  }
  for (const auto& close : closing) close();
  for (const auto& stream : streams_) {
    if (over(stream->caller) && !stream->gone) {
      stream->gone = true;
      stream->responder->finish();
    }
    write(*stream, ": alive\n\n");
  }
}

void EventHub::run() {
  auto next_beat = std::chrono::steady_clock::now() + options_.heartbeat;
  bool more = false;
  while (true) {
    std::deque<engine::DurableEvents> batches;
    std::deque<Transient> transients;
    std::vector<std::function<void(const std::vector<engine::DurableEvent>&)>> listeners;
    {
      std::unique_lock lock(mutex_);
      const auto until = more ? std::chrono::steady_clock::now() + Millis(20) : next_beat;
      wake_.wait_until(lock, until,
                       [this] { return stopping_ || !events_.empty() || !transients_.empty() || !opened_.empty(); });
      if (stopping_) break;
      if (skipped_ > fanned_) {
        fanned_ = skipped_;
        for (const auto& stream : streams_) stream->live = false;
      }
      batches.swap(events_);
      events_waiting_ = 0;
      transients.swap(transients_);
      for (auto& stream : opened_) streams_.push_back(std::move(stream));
      opened_.clear();
      listeners = listeners_;
    }
    for (const auto& batch : batches) {
      fan_out(*batch);
      for (const auto& listener : listeners) listener(*batch);
    }
    for (const auto& transient : transients) {
      for (const auto& stream : streams_) {
        if (stream->live && !stream->gone && access::visible(stream->caller.subject, transient.object))
          write(*stream, transient.text);
      }
    }
    more = false;
    for (const auto& stream : streams_) {
      if (stream->live || stream->gone) continue;
      catch_up(*stream);
      more = more || !stream->live;
    }
    if (std::chrono::steady_clock::now() >= next_beat) {
      close_expired();
      next_beat = std::chrono::steady_clock::now() + options_.heartbeat;
    }
    const std::lock_guard lock(mutex_);
    const auto removed = std::erase_if(streams_, [](const auto& stream) { return stream->gone.load(); });
    stream_count_ -= std::min(stream_count_, removed);
  }
  for (const auto& stream : streams_) stream->responder->finish();
}

}  // namespace muster::server
