#include "relay/loops.h"

#include <sys/epoll.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <boost/asio/post.hpp>
#include <chrono>

#include "base/log.h"

namespace muster::relay {
namespace {

using SteadyClock = std::chrono::steady_clock;
using std::chrono::microseconds;
// The pause after a turn grows with the load: at few packets a second each would wait alone, at many a member has
// several by then, which leave in one record and one system call.
constexpr microseconds kGatherLeast{400}, kGatherMost{1'000};
constexpr std::uint64_t kBusy = 4'000;    // packets a second: less than two would gather
constexpr std::uint64_t kRises = 15'000;  // up to here it is the least,
constexpr std::uint64_t kFull = 40'000;   // from here on the most
constexpr std::uint64_t kPlenty = 64;     // packets in a turn: nothing is gained by more
constexpr std::size_t kEvents = 64;       // taken at once; the others get their turn then

std::uint32_t events_for(Loops::For what) {
  return (what == Loops::For::Bytes || what == Loops::For::Both ? EPOLLIN : 0U) |
         (what == Loops::For::Room || what == Loops::For::Both ? EPOLLOUT : 0U);
}

microseconds gather_for(std::uint64_t per_second) {
  const auto load = static_cast<std::int64_t>(std::clamp(per_second, kRises, kFull) - kRises);
  return kGatherLeast + (kGatherMost - kGatherLeast) * load / static_cast<std::int64_t>(kFull - kRises);
}

}  // namespace

struct Loops::Loop {
  explicit Loop(int descriptors) : watched(io, descriptors) {}

  void run();
  void turn();
  void arm();
  void look();
  void count(SteadyClock::time_point now);
  bool control(int operation, int fd, Watched* who, For what);

  Io io{1};
  boost::asio::executor_work_guard<Io::executor_type> work{io.get_executor()};
  boost::asio::posix::stream_descriptor watched;
  bool armed = false;
  std::thread thread;
  // Packets that it carried, and how many in a second lately.
  std::uint64_t packets = 0, counted = 0, per_second = 0;
  SteadyClock::time_point since{};

  static thread_local Loop* here;
};
thread_local Loops::Loop* Loops::Loop::here = nullptr;

void Loops::Loop::run() {
  here = this;
  ::prctl(PR_SET_TIMERSLACK, 1'000UL);  // ns; the usual 50 us are much beside the pause
  while (!io.stopped()) {
    try {
      turn();
    } catch (const std::exception& e) {
      log_error("relay", "a callback failed: {}", e.what());
    }
  }
}

void Loops::Loop::turn() {
  const std::uint64_t before = packets;
  if (!std::exchange(armed, true)) arm();
  if (io.run_one() == 0) return;
  io.poll();
  count(SteadyClock::now());
  const std::uint64_t carried = packets - before;
  if (carried > 0 && carried < kPlenty && per_second > kBusy) std::this_thread::sleep_for(gather_for(per_second));
}

// Once a turn: what comes meanwhile is for the next.
void Loops::Loop::arm() {
  if (!watched.is_open()) return;
  watched.async_wait(boost::asio::posix::stream_descriptor::wait_read, [this](boost::system::error_code ec) {
    armed = false;
    if (!ec) look();
  });
}

void Loops::Loop::look() {
  std::array<epoll_event, kEvents> events;
  const int n = ::epoll_wait(watched.native_handle(), events.data(), events.size(), 0);
  for (int i = 0; i < n; ++i) {
    const auto& event = events[static_cast<std::size_t>(i)];
    static_cast<Watched*>(event.data.ptr)
        ->ready((event.events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0, (event.events & EPOLLOUT) != 0);
  }
}

void Loops::Loop::count(SteadyClock::time_point now) {
  constexpr microseconds kWindow{5'000};
  const auto span = std::chrono::duration_cast<microseconds>(now - since);
  if (span < kWindow) return;
  per_second = (packets - std::exchange(counted, packets)) * 1'000'000 / static_cast<std::uint64_t>(span.count());
  since = now;
}

bool Loops::Loop::control(int operation, int fd, Watched* who, For what) {
  epoll_event event{};
  event.events = events_for(what);
  event.data.ptr = who;
  return ::epoll_ctl(watched.native_handle(), operation, fd, &event) == 0;
}

Result<std::unique_ptr<Loops>> Loops::create(int threads) {
  std::unique_ptr<Loops> out(new Loops);
  for (int i = 0; i < std::max(threads, 1); ++i) {
    const int descriptors = ::epoll_create1(EPOLL_CLOEXEC);
    if (descriptors < 0) return error(Code::ResourceExhausted, "too many open files");
    out->loops_.push_back(std::make_unique<Loop>(descriptors));
  }
  return out;
}

Loops::~Loops() {
  stop();
}

void Loops::start() {
  for (const auto& loop : loops_) loop->thread = std::thread([&loop = *loop] { loop.run(); });
}

void Loops::let_end() {
  for (const auto& loop : loops_) {
    loop->work.reset();
    boost::asio::post(loop->io, [&loop = *loop] { loop.watched.close(); });
  }
}

bool Loops::ended() const {
  return std::all_of(loops_.begin(), loops_.end(), [](const auto& loop) { return loop->io.stopped(); });
}

void Loops::stop() {
  for (const auto& loop : loops_) loop->io.stop();
  for (const auto& loop : loops_)
    if (loop->thread.joinable()) loop->thread.join();
}

Loops::Io& Loops::io(std::size_t i) {
  return loops_[i]->io;
}

Loops::Io& Loops::next() {
  return io(turn_.fetch_add(1, std::memory_order_relaxed) % loops_.size());
}

Loops::Io* Loops::here() {
  return Loop::here == nullptr ? nullptr : &Loop::here->io;
}

void Loops::carried() {
  if (Loop::here != nullptr) ++Loop::here->packets;
}

bool Loops::watch(int fd, Watched& who, For what) {
  return Loop::here != nullptr && Loop::here->control(EPOLL_CTL_ADD, fd, &who, what);
}

void Loops::rewatch(int fd, Watched& who, For what) {
  if (Loop::here != nullptr) Loop::here->control(EPOLL_CTL_MOD, fd, &who, what);
}

void Loops::unwatch(int fd) {
  if (Loop::here != nullptr) Loop::here->control(EPOLL_CTL_DEL, fd, nullptr, For::Nothing);
}

}  // namespace muster::relay
