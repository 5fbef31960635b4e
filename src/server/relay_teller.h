#pragma once
// Tells the relay on this machine which overlay keys left their clusters, over the socket beside the handoff socket
// (relay/recall.h): all of them after each connect, then those of every roster that changed. A relay that is away hears
// it when it is back. Own thread; thread-safe. Keeps of each living cluster the keys that its roster last had, so that
// a key which was replaced in its slot is recalled too.
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "control/core.h"
#include "crypto/secret.h"
#include "engine/runner.h"

namespace muster::server {

class RelayTeller {
 public:
  RelayTeller(engine::Runner& runner, std::string handoff_path);
  ~RelayTeller();
  void start();
  void stop();
  void on_events(const std::vector<engine::DurableEvent>& events);  // from the event hub's thread

 private:
  using Keys = std::set<crypto::Key32>;
  // Who left the cluster, by the state; `members_` follows. With the mutex held.
  Keys left_of(const control::State& state, ClusterId cluster);
  Bytes everything();
  void run();
  bool serve(int fd);  // until the connection or the thread ends; true: the connection
  bool stopped_for(Millis time);

  engine::Runner& runner_;
  const std::string path_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::map<ClusterId, Keys> members_;
  std::deque<Bytes> news_;  // frames
  bool connected_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace muster::server
