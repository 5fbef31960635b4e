#include "relay/recall.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>

#include "base/log.h"
#include "net/recall_frame.h"

namespace muster::relay {

namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;
using Stream = asio::posix::stream_descriptor;

RecallDoor::RecallDoor(asio::io_context& io, std::shared_ptr<Hub> hub)
    : listener_(asio::make_strand(io)), hub_(std::move(hub)) {}

Status RecallDoor::listen(const std::string& path) {
  net::Fd fd = TRY(net::listen_unix(path, 0660));
  path_ = path;
  listener_.assign(fd.release());
  asio::post(listener_.get_executor(), [self = shared_from_this()] { self->accept(); });
  return {};
}

void RecallDoor::close() {
  asio::post(listener_.get_executor(), [self = shared_from_this()] {
    self->closed_ = true;
    ErrorCode ignored;
    self->listener_.close(ignored);
    for (auto& link : self->links_) link->socket.close(ignored);
    self->links_.clear();
    if (!self->path_.empty()) ::unlink(self->path_.c_str());
  });
}

void RecallDoor::accept() {
  listener_.async_wait(Stream::wait_read, [self = shared_from_this()](ErrorCode ec) {
    if (ec || self->closed_) return;
    const int fd = ::accept4(self->listener_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0 && self->links_.size() < 16) {
      auto link = std::make_shared<Link>(Stream(self->listener_.get_executor(), fd));
      self->links_.push_back(link);
      self->watch(link);
    } else if (fd >= 0) {
      ::close(fd);
    }
    self->accept();
  });
}

void RecallDoor::watch(const LinkPtr& link) {
  link->socket.async_wait(Stream::wait_read, [self = shared_from_this(), link](ErrorCode ec) {
    if (ec || self->closed_) return;
    if (self->read(*link)) return self->watch(link);
    ErrorCode ignored;
    link->socket.close(ignored);
    self->links_.remove(link);
  });
}

bool RecallDoor::read(Link& link) {
  std::array<std::uint8_t, 64 << 10> buffer;
  const ssize_t n = ::recv(link.socket.native_handle(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
  if (n > 0) link.bytes.insert(link.bytes.end(), buffer.begin(), buffer.begin() + n);
  while (true) {
    auto frame = net::take_recall(link.bytes);
    if (!frame.ok()) {
      log_warn("relay", "{}", frame.error().message);
      return false;
    }
    if (!*frame) return true;
    hub_->recall((*frame)->entries,
                 (*frame)->kind == net::RecallFrame::Kind::All ? Hub::Recall::All : Hub::Recall::More);
  }
}

}  // namespace muster::relay
