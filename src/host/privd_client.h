#pragma once
// The agent's end of the line to privd: calls with a callback each, on the poller's thread. Reconnects by itself; a
// call made or under way while privd is gone ends with Unavailable and reason "privd.gone", so the caller's own retry
// covers restarts.
#include <functional>
#include <map>
#include <string>

#include "host/json.h"
#include "host/poller.h"
#include "host/privd_verbs.h"

namespace muster::host {

struct PrivdReply {
  json::object fields;
  std::vector<Fd> fds;
};
using PrivdDone = std::function<void(Result<PrivdReply>)>;
using PrivdProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

class PrivdClient {
 public:
  PrivdClient(Poller& poller, std::string path);
  ~PrivdClient();
  std::uint64_t call(Verb verb, PrivdDone done, PrivdProgress progress = {}, const std::vector<int>& fds = {});
  void cancel(std::uint64_t call);  // of a pull; its callback still comes
  bool connected() const { return static_cast<bool>(fd_); }

 private:
  void connect();
  void lost();
  void on_readable();
  struct Pending {
    PrivdDone done;
    PrivdProgress progress;
  };
  Poller& poller_;
  std::string path_;
  Fd fd_;
  std::uint64_t next_ = 1, retry_ = 0;
  std::map<std::uint64_t, Pending> pending_;
};

}  // namespace muster::host
