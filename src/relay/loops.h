#pragma once
// Inside relay: its threads, each with an event loop of its own. A connection lives on one of them, and what it does by
// itself happens there, so it needs no strand. What one thread has for a connection of another it writes itself
// (member_link.cpp): waking a thread costs more than the packet.
// Beside Asio's reactor each loop has a set of descriptors that it watches for as long as they are open: Asio would be
// asked anew after each packet.
// When a loop carries some thousands of packets a second but finds few at each look, it lets some gather before it
// looks again (gather_for() in loops.cpp, a millisecond at most, which is what it adds to a packet's way), as network
// cards do with interrupts: a wake-up for each packet is most of what a relay costs at moderate loads.
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <memory>
#include <thread>
#include <vector>

#include "base/result.h"

namespace muster::relay {

class Watched {
 public:
  // There is something to read, or room to write where that is waited for. On the thread of the loop; may end this
  // watch, and no other.
  virtual void ready(bool readable, bool writable) = 0;

 protected:
  ~Watched() = default;
};

class Loops {
 public:
  using Io = boost::asio::io_context;
  static Result<std::unique_ptr<Loops>> create(int threads);  // at least one
  ~Loops();                                                   // stop()
  Loops(const Loops&) = delete;
  Loops& operator=(const Loops&) = delete;

  void start();
  void let_end();  // each thread ends when its loop has nothing more to do
  bool ended() const;
  void stop();  // at once; returns when the threads ended. Never from one of them.

  std::size_t size() const { return loops_.size(); }
  Io& io(std::size_t i);
  Io& next();  // in turns; any thread

  // Of the loop of the calling thread.
  static Io* here();      // nullptr where the thread is none of a Loops
  static void carried();  // one packet
  enum class For : std::uint8_t { Nothing = 0, Bytes = 1, Room = 2, Both = 3 };
  static bool watch(int fd, Watched& who, For what);  // false: out of memory; who lives until unwatch()
  static void rewatch(int fd, Watched& who, For what);
  static void unwatch(int fd);

 private:
  struct Loop;
  Loops() = default;
  std::vector<std::unique_ptr<Loop>> loops_;
  std::atomic<std::size_t> turn_{0};
};

}  // namespace muster::relay
