#pragma once
// Tells open event streams when something material changes for a cluster that waits: why it waits, or when it is
// expected or likely to start. Transient events (`queue.changed`), as the times are computed and nobody decided them:
// only while streams are open, at most one a minute for each cluster, and not while more wait than are played. Own
// thread; thread-safe.
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "server/context.h"
#include "wire/rest.h"

namespace muster::server {

// Material: another reason, a time that became known or is no longer, or one that moved by more than two minutes and a
// tenth of the wait (the likely ones: five minutes and a fifth). Empty: nothing of that; else what to tell.
std::string what_changed(const wire::QueueView& before, const wire::QueueView& after, WallTime now);

class QueueWatch {
 public:
  struct Options {
    Millis every{15'000}, rest{60'000};  // between two looks; of a cluster that was told of
    std::size_t waiting_max = 2'000;
  };
  QueueWatch(Context& context, Options options);
  ~QueueWatch();
  void start();
  void stop();

 private:
  struct Told {
    wire::QueueView view;
    LeaseTime at{0};
  };
  void run();
  void look();

  Context& context_;
  const Options options_;
  std::map<ClusterId, Told> told_;  // of the own thread
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace muster::server
