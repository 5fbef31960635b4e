#include "relay/handoff_queue.h"

#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>

#include "base/log.h"

namespace muster::relay {

namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;
using Stream = asio::posix::stream_descriptor;

HandoffQueue::HandoffQueue(asio::io_context& io, std::shared_ptr<Hub> hub, std::size_t held_max, Millis hold_time)
    : listener_(asio::make_strand(io)),
      timer_(listener_.get_executor()),
      hub_(std::move(hub)),
      held_max_(held_max),
      hold_time_(hold_time) {}

Status HandoffQueue::listen(const std::string& path) {
  net::Fd fd = TRY(net::listen_unix(path, 0660));
  path_ = path;
  listener_.assign(fd.release());
  asio::post(listener_.get_executor(), [self = shared_from_this()] {
    self->accept();
    self->tick();
  });
  return {};
}

void HandoffQueue::offer(net::Fd connection) {
  auto fd = std::make_shared<net::Fd>(std::move(connection));
  asio::post(listener_.get_executor(), [self = shared_from_this(), fd] {
    if (self->closed_) return;
    if (self->held_.size() >= self->held_max_) {
      ++self->hub_->counts.handoff_expired;
      self->held_.pop_front();
    }
    self->held_.push_back({std::move(*fd), net::deadline_in(self->hold_time_)});
    self->pump();
  });
}

void HandoffQueue::close() {
  asio::post(listener_.get_executor(), [self = shared_from_this()] {
    self->closed_ = true;
    ErrorCode ignored;
    self->listener_.close(ignored);
    self->timer_.cancel();
    for (auto& link : self->links_) link->socket.close(ignored);
    self->links_.clear();
    self->held_.clear();
    if (!self->path_.empty()) ::unlink(self->path_.c_str());
  });
}

void HandoffQueue::accept() {
  listener_.async_wait(Stream::wait_read, [self = shared_from_this()](ErrorCode ec) {
    if (ec || self->closed_) return;
    const int fd = ::accept4(self->listener_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0 && self->links_.size() < 16) {
      auto link = std::make_shared<Link>(Stream(self->listener_.get_executor(), fd));
      self->links_.push_back(link);
      self->watch(link);
      self->pump();
    } else if (fd >= 0) {
      ::close(fd);
    }
    self->accept();
  });
}

void HandoffQueue::watch(const LinkPtr& link) {
  link->socket.async_wait(Stream::wait_read, [self = shared_from_this(), link](ErrorCode ec) {
    if (ec || self->closed_) return;
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
  ErrorCode ignored;
  link->socket.close(ignored);
  links_.remove(link);
  hub_->counts.handoff_returned += link->unanswered.size();
  while (!link->unanswered.empty()) {
    held_.push_front(std::move(link->unanswered.back()));
    link->unanswered.pop_back();
  }
  pump();
}

void HandoffQueue::pump() {
  while (!held_.empty() && !links_.empty()) {
    const LinkPtr link = links_.back();
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
    if (ec || self->closed_) return;
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
