#include "relay/handoff_queue.h"

#include <sys/socket.h>

#include <boost/asio/post.hpp>

#include "base/log.h"

namespace muster::relay {

namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;

HandoffQueue::HandoffQueue(asio::io_context& io, std::shared_ptr<Hub> hub, std::size_t held_max, Millis hold_time)
    : door_(io), timer_(door_.executor()), hub_(std::move(hub)), held_max_(held_max), hold_time_(hold_time) {}

Status HandoffQueue::listen(const std::string& path) {
  TRY_VOID(door_.listen(path));
  asio::post(door_.executor(), [self = shared_from_this()] {
    self->door_.accept(self, &HandoffQueue::came);
    self->tick();
  });
  return {};
}

void HandoffQueue::offer(net::Fd connection) {
  auto fd = std::make_shared<net::Fd>(std::move(connection));
  asio::post(door_.executor(), [self = shared_from_this(), fd] {
    if (self->door_.closed()) return;
    if (self->held_.size() >= self->held_max_) {
      ++self->hub_->counts.handoff_expired;
      self->held_.pop_front();
    }
    self->held_.push_back({std::move(*fd), net::deadline_in(self->hold_time_)});
    self->pump();
  });
}

void HandoffQueue::close() {
  asio::post(door_.executor(), [self = shared_from_this()] {
    self->door_.close();
    self->timer_.cancel();
    self->held_.clear();
  });
}

void HandoffQueue::came(const LinkPtr& link) {
  watch(link);
  pump();
}

void HandoffQueue::watch(const LinkPtr& link) {
  link->socket.async_wait(asio::posix::stream_descriptor::wait_read, [self = shared_from_this(), link](ErrorCode ec) {
    if (ec || self->door_.closed()) return;
    char answers[256];
    const ssize_t n = ::recv(link->socket.native_handle(), answers, sizeof answers, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return self->drop(link);
    for (ssize_t i = 0; i < n && !link->unanswered.empty(); ++i) {
      link->unanswered.pop_front();
      ++self->hub_->counts.handed_off;
    }
    self->watch(link);
    self->pump();
  });
}

void HandoffQueue::drop(const LinkPtr& link) {
  door_.drop(link);
  hub_->counts.handoff_returned += link->unanswered.size();
  while (!link->unanswered.empty()) {
    held_.push_front(std::move(link->unanswered.back()));
    link->unanswered.pop_back();
  }
  pump();
}

void HandoffQueue::pump() {
  while (!held_.empty() && !door_.links().empty()) {
    const LinkPtr link = door_.links().back();
    if (link->unanswered.size() >= 256) break;
    const auto sent = net::send_descriptor(link->socket.native_handle(), held_.front().fd.get());
    if (!sent.ok()) {
      drop(link);
      return;
    }
    if (!*sent) break;
    link->unanswered.push_back(std::move(held_.front()));
    held_.pop_front();
  }
  hub_->counts.held = static_cast<std::int64_t>(held_.size());
}

void HandoffQueue::tick() {
  timer_.expires_after(Millis(200));
  timer_.async_wait([self = shared_from_this()](ErrorCode ec) {
    if (ec || self->door_.closed()) return;
    const auto now = std::chrono::steady_clock::now();
    while (!self->held_.empty() && self->held_.front().until < now) {
      self->held_.pop_front();
      ++self->hub_->counts.handoff_expired;
    }
    self->pump();
    self->tick();
  });
}

}  // namespace muster::relay
