#include "relay/loops.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <future>

#include "net/dial.h"

namespace muster::relay {
namespace {

using net::Fd;

struct Pair {
  Fd ours, theirs;
  Pair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    ours = Fd(fds[0]), theirs = Fd(fds[1]);
  }
  void say(char c) const { EXPECT_EQ(::write(theirs.get(), &c, 1), 1); }
};

class Ear final : public Watched {
 public:
  explicit Ear(int fd) : fd_(fd) {}
  void ready(bool readable, bool writable) override {
    thread = Loops::here();
    if (writable) {
      ++room;
      Loops::rewatch(fd_, *this, Loops::For::Bytes);
    }
    char c = 0;
    if (!readable) return;
    const ssize_t n = ::read(fd_, &c, 1);  // one of those that are there
    if (n == 1) ++heard;
    if (n == 1 && c != '!') return;
    Loops::unwatch(fd_);
    ended.set_value();
  }
  std::atomic<Loops::Io*> thread{nullptr};
  std::atomic<int> heard{0}, room{0};
  std::promise<void> ended;

 private:
  const int fd_;
};

bool in_time(std::future<void> what) {
  return what.wait_for(std::chrono::seconds(10)) == std::future_status::ready;
}

TEST(RelayLoops, TellWhatIsReadyOnTheirOwnThreadUntilTheyShallNot) {
  auto loops = Loops::create(2);
  ASSERT_TRUE(loops.ok());
  EXPECT_EQ(Loops::here(), nullptr);
  const Pair pair;
  Ear ear(pair.ours.get());
  EXPECT_FALSE(Loops::watch(pair.ours.get(), ear, Loops::For::Bytes)) << "this thread has none";
  (*loops)->start();
  for (int i = 0; i < 100; ++i) pair.say('x');
  auto& io = (*loops)->io(1);
  boost::asio::post(io, [&] { EXPECT_TRUE(Loops::watch(pair.ours.get(), ear, Loops::For::Both)); });
  pair.say('!');
  ASSERT_TRUE(in_time(ear.ended.get_future()));
  EXPECT_EQ(ear.heard, 101) << "what is left is told again";
  EXPECT_EQ(ear.room, 1);
  EXPECT_EQ(ear.thread, &io);
  // Nobody hears it any more: a post behind it is done first.
  pair.say('x');
  std::promise<void> done;
  boost::asio::post(io, [&] { boost::asio::post(io, [&] { done.set_value(); }); });
  ASSERT_TRUE(in_time(done.get_future()));
  EXPECT_EQ(ear.heard, 101);
}

TEST(RelayLoops, AnEndIsToldToWhoWaitsForRoomOnly) {
  auto loops = Loops::create(1);
  ASSERT_TRUE(loops.ok());
  Pair pair;
  Ear ear(pair.ours.get());
  char full[4096] = {};
  while (::write(pair.ours.get(), full, sizeof full) > 0) {
  }
  (*loops)->start();
  boost::asio::post((*loops)->io(0), [&] { EXPECT_TRUE(Loops::watch(pair.ours.get(), ear, Loops::For::Room)); });
  pair.theirs.reset();
  EXPECT_TRUE(in_time(ear.ended.get_future()));
}

// A busy loop sleeps between its looks; what is posted or comes meanwhile is not lost, and it ends when told.
TEST(RelayLoops, BusyOnesLoseNothingAndEnd) {
  auto loops = Loops::create(2);
  ASSERT_TRUE(loops.ok());
  (*loops)->start();
  std::atomic<int> done{0};
  std::promise<void> all;
  std::vector<std::thread> others;
  constexpr int kPosts = 3'000;
  for (int t = 0; t < 3; ++t)
    others.emplace_back([&] {
      for (int i = 0; i < kPosts; ++i) {
        boost::asio::post((*loops)->next(), [&] {
          Loops::carried();
          if (++done == 3 * kPosts) all.set_value();
        });
        if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    });
  for (auto& other : others) other.join();
  EXPECT_TRUE(in_time(all.get_future()));
  EXPECT_FALSE((*loops)->ended());
  (*loops)->let_end();
  for (int i = 0; i < 1'000 && !(*loops)->ended(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE((*loops)->ended());
}

// What throws in one callback is said, and the others go on.
TEST(RelayLoops, GoOnAfterAFault) {
  auto loops = Loops::create(1);
  ASSERT_TRUE(loops.ok());
  const Pair pair;
  Ear ear(pair.ours.get());
  (*loops)->start();
  auto& io = (*loops)->io(0);
  boost::asio::post(io, [&] { EXPECT_TRUE(Loops::watch(pair.ours.get(), ear, Loops::For::Bytes)); });
  boost::asio::post(io, [] { throw std::runtime_error("planted"); });
  pair.say('!');
  EXPECT_TRUE(in_time(ear.ended.get_future()));
}

}  // namespace
}  // namespace muster::relay
