#pragma once
// The agent's two small doors on its own machine: ControlPort answers `muster-agent status` and its like on a unix
// socket (root and the agent's uid only), MetricsPort answers GET /metrics on 127.0.0.1 while the owner asked for it.
// Bounded: 16 clients each, a request of 4 KiB. Poller's thread only.
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "host/poller.h"
#include "host/unix_socket.h"

namespace muster::host {

class ControlPort {
 public:
  using Reply = std::function<void(const std::string& text)>;  // now or later; says nothing to who went away meanwhile
  using Answer = std::function<void(const std::string& command, Reply tell)>;
  ControlPort(Poller& poller, std::string path, Answer answer);
  ~ControlPort();
  Status listen();

 private:
  void accept();
  Poller& poller_;
  std::string path_;
  Answer answer_;
  Fd listener_;
  struct Client {
    Fd fd;
    std::uint64_t number = 0;  // descriptors are reused, these are not
  };
  std::map<int, Client> clients_;
  std::uint64_t next_client_ = 1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class MetricsPort {
 public:
  MetricsPort(Poller& poller, std::function<std::string()> text);
  ~MetricsPort();
  void set_port(std::uint16_t port);  // 0 = closed; the same one changes nothing
  std::uint16_t port() const { return port_; }

 private:
  void accept();
  void serve(int fd);
  void drop(int fd);
  Poller& poller_;
  std::function<std::string()> text_;
  std::uint16_t port_ = 0;
  Fd listener_;
  struct Client {
    Fd fd;
    std::string asked;
    std::uint64_t timer = 0;
  };
  std::map<int, Client> clients_;
};

}  // namespace muster::host
