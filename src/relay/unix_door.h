#pragma once
// Inside relay: a unix socket where the control plane of this machine connects. Lets a few in at a time and keeps them;
// what is read from them is its owner's. One strand; all but listen() is called on it.
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/strand.hpp>
#include <list>
#include <memory>
#include <string>

#include "net/handoff.h"

namespace muster::relay {

// Link: made from a stream descriptor, which it calls `socket`.
template <typename Link>
class UnixDoor {
 public:
  using Socket = boost::asio::posix::stream_descriptor;
  using LinkPtr = std::shared_ptr<Link>;
  static constexpr std::size_t kLinksMax = 16;

  explicit UnixDoor(boost::asio::io_context& io) : listener_(boost::asio::make_strand(io)) {}
  auto executor() { return listener_.get_executor(); }

  // Before anything runs on the strand.
  Status listen(const std::string& path) {
    net::Fd fd = TRY(net::listen_unix(path, 0660));
    path_ = path;
    listener_.assign(fd.release());
    return {};
  }
  // Until close(). `owner` lives as long as somebody may come.
  template <typename Owner>
  void accept(std::shared_ptr<Owner> owner, void (Owner::*came)(const LinkPtr&)) {
    listener_.async_wait(Socket::wait_read, [this, owner, came](boost::system::error_code ec) {
      if (ec || closed_) return;
      const int fd = ::accept4(listener_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (fd >= 0 && links_.size() < kLinksMax) {
        links_.push_back(std::make_shared<Link>(Socket(executor(), fd)));
        ((*owner).*came)(links_.back());
      } else if (fd >= 0) {
        ::close(fd);
      }
      accept(owner, came);
    });
  }
  void drop(const LinkPtr& link) {
    boost::system::error_code ignored;
    link->socket.close(ignored);
    links_.remove(link);
  }
  void close() {
    closed_ = true;
    boost::system::error_code ignored;
    listener_.close(ignored);
    for (const LinkPtr& link : links_) link->socket.close(ignored);
    links_.clear();
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  bool closed() const { return closed_; }
  const std::list<LinkPtr>& links() const { return links_; }  // newest last

 private:
  Socket listener_;
  std::list<LinkPtr> links_;
  std::string path_;
  bool closed_ = false;
};

}  // namespace muster::relay
