#pragma once
// Tells relays which overlay keys left their clusters: the one on this machine over the socket beside the handoff
// socket (relay/recall.h), those that the operator listed with a region (server/relay_book.h) over the relay protocol,
// where the control plane shows by a token that it is one. All of them after each connect, then those of every roster
// that changed. A relay that is away hears it when it is back. Threads of its own; thread-safe. Keeps of each cluster
// the keys that its roster last had, and those that left for as long as a token of theirs may hold, so that a key which
// was replaced in its slot is recalled too.
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
#include "net/recall_frame.h"

namespace muster::server {

struct Context;

class RelayTeller {
 public:
  RelayTeller(Context& context, std::string handoff_path);  // without a path there is no relay on this machine
  ~RelayTeller();
  void start();
  void stop();
  void on_events(const std::vector<engine::DurableEvent>& events);  // from the event hub's thread
  void keys_changed();                                              // any thread

 private:
  using Keys = std::set<crypto::Key32>;
  using Left = std::vector<std::pair<ClusterId, Keys>>;
  struct Far;
  // Who left the cluster, by the state; `members_` and `gone_` follow. With the mutex held.
  Keys left_of(const control::State& state, ClusterId cluster);
  Left everybody();
  void run();
  bool serve(int fd);  // until the connection or the thread ends; true: the connection
  bool stopped_for(Millis time);
  void run_far();
  void follow_list();
  void tell_far();
  Bytes keys_to_tell() const;

  Context& context_;
  const std::string path_;  // empty: none here
  std::mutex mutex_;
  std::condition_variable wake_;
  std::map<ClusterId, Keys> members_;
  std::map<ClusterId, std::map<crypto::Key32, WallTime>> gone_;  // since when
  std::deque<Bytes> news_;                                       // frames for the one here
  std::map<std::string, std::unique_ptr<Far>> far_;              // by address
  bool connected_ = false, stopping_ = false;
  std::thread thread_, far_thread_;
};

}  // namespace muster::server
