#include "relay/recall.h"

#include <sys/socket.h>

#include <array>
#include <boost/asio/post.hpp>

#include "base/log.h"
#include "net/recall_frame.h"

namespace muster::relay {

namespace asio = boost::asio;

RecallDoor::RecallDoor(asio::io_context& io, std::shared_ptr<Hub> hub) : door_(io), hub_(std::move(hub)) {}

Status RecallDoor::listen(const std::string& path) {
  TRY_VOID(door_.listen(path));
  asio::post(door_.executor(), [self = shared_from_this()] { self->door_.accept(self, &RecallDoor::watch); });
  return {};
}

void RecallDoor::close() {
  asio::post(door_.executor(), [self = shared_from_this()] { self->door_.close(); });
}

void RecallDoor::watch(const LinkPtr& link) {
  link->socket.async_wait(asio::posix::stream_descriptor::wait_read,
                          [self = shared_from_this(), link](boost::system::error_code ec) {
                            if (ec || self->door_.closed()) return;
                            if (self->read(*link)) return self->watch(link);
                            self->door_.drop(link);
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
    if ((*frame)->kind == net::RecallFrame::Kind::Keys) {
      if (const Status taken = hub_->keys.take((*frame)->keys); !taken.ok())
        log_warn("relay", "the keys of tokens stay as they were: {}", taken.error().message);
      continue;
    }
    hub_->recall((*frame)->entries,
                 (*frame)->kind == net::RecallFrame::Kind::All ? Hub::Recall::All : Hub::Recall::More);
  }
}

}  // namespace muster::relay
