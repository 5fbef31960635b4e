// A long cable between two network namespaces: a TAP device in each, and in between every frame waits, gets lost or is
// overtaken. For kernels without netem.
//
//   muster-slow-link NS_A DEVICE_A NS_B DEVICE_B
//
// Says "ready" once both devices are there (down, without addresses). Lines on standard input say how the cable is from
// now on, the same both ways: DELAY_MS JITTER_MS REORDERED_% LOST_% DOUBLED_% KBIT_S (0 = as fast as it goes). Jitter
// alone keeps the order; what is reordered does not wait at all. Ends with its input. What happens is the same each
// time.
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <chrono>
#include <cstring>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <vector>

#include "host/netd_lab.h"

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;
constexpr std::size_t kFramesMax = 4'000;  // each way; the rest is lost, as in any buffer
constexpr auto kBufferedMax = 500ms;       // of the cable's rate
constexpr std::size_t kFrameBytesMax = 2'048;

struct Cable {
  std::chrono::microseconds delay{0}, jitter{0};
  unsigned reordered = 0, lost = 0, doubled = 0;  // of a hundred
  std::uint64_t bytes_s = 0;
};

int open_tap(const std::string& ns, const std::string& device) {
  int fd = -1;
  muster::host::lab::inside(ns, [&] {
    fd = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    ifreq request{};
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    device.copy(request.ifr_name, IFNAMSIZ - 1);
    if (fd >= 0 && ::ioctl(fd, TUNSETIFF, &request) != 0) {
      ::close(fd);
      fd = -1;
    }
  });
  if (fd < 0) std::cerr << "muster-slow-link: no TAP device " << device << " in " << ns << "\n";
  return fd;
}

// One direction.
class Way {
 public:
  Way(int from, int to, unsigned seed) : from_(from), to_(to), random_(seed) {}
  void read(const Cable& cable) {
    std::vector<char> frame(kFrameBytesMax);
    for (int i = 0; i < 64; ++i) {
      const ssize_t n = ::read(from_, frame.data(), frame.size());
      if (n <= 0) return;
      if (chance(cable.lost)) continue;
      const std::vector<char> whole(frame.begin(), frame.begin() + n);
      for (int copies = chance(cable.doubled) ? 2 : 1; copies > 0; --copies) put(whole, cable);
    }
  }
  void write(Clock::time_point now) {
    for (auto it = waiting_.begin(); it != waiting_.end() && it->first <= now; it = waiting_.erase(it))
      (void)!::write(to_, it->second.data(), it->second.size());
  }
  // Until when nothing is to be done.
  Clock::time_point next() const { return waiting_.empty() ? Clock::time_point::max() : waiting_.begin()->first; }
  int from() const { return from_; }

 private:
  bool chance(unsigned percent) { return random_() % 100 < percent; }
  void put(const std::vector<char>& frame, const Cable& cable) {
    auto due = Clock::now();
    if (cable.bytes_s > 0) {
      free_ = std::max(free_, due);
      if (waiting_.size() >= kFramesMax || free_ - due > kBufferedMax) return;
      free_ += std::chrono::nanoseconds(frame.size() * 1'000'000'000 / cable.bytes_s);
      due = free_;
    }
    if (!chance(cable.reordered)) {
      due += cable.delay;
      if (cable.jitter.count() > 0)
        due += std::chrono::microseconds(random_() % static_cast<unsigned>(cable.jitter.count()));
      last_ = due = std::max(due, last_);
    }
    if (waiting_.size() < kFramesMax) waiting_.emplace(due, frame);
  }

  int from_, to_;
  std::mt19937 random_;
  std::multimap<Clock::time_point, std::vector<char>> waiting_;
  Clock::time_point free_, last_;
};

bool obey(Cable& cable) {
  std::string line;
  if (!std::getline(std::cin, line)) return false;
  std::istringstream in(line);
  std::uint64_t delay = 0, jitter = 0, kbit = 0;
  in >> delay >> jitter >> cable.reordered >> cable.lost >> cable.doubled >> kbit;
  cable.delay = std::chrono::milliseconds(delay);
  cable.jitter = std::chrono::milliseconds(jitter);
  cable.bytes_s = kbit * 1000 / 8;
  std::cout << "set" << std::endl;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: muster-slow-link NS_A DEVICE_A NS_B DEVICE_B; see tests/lab/slow_link.cpp\n";
    return 2;
  }
  const int a = open_tap(argv[1], argv[2]), b = open_tap(argv[3], argv[4]);
  if (a < 0 || b < 0) return 1;
  std::cout << "ready" << std::endl;
  Cable cable;
  Way ways[2] = {{a, b, 1}, {b, a, 2}};
  while (true) {
    const auto now = Clock::now();
    const auto next = std::min(ways[0].next(), ways[1].next());
    const auto wait =
        next == Clock::time_point::max() ? 1000ms : std::chrono::ceil<std::chrono::milliseconds>(next - now);
    pollfd fds[3] = {{a, POLLIN, 0}, {b, POLLIN, 0}, {0, POLLIN, 0}};
    ::poll(fds, 3, static_cast<int>(std::clamp<std::int64_t>(wait.count(), 0, 1000)));
    if (fds[2].revents != 0 && !obey(cable)) return 0;
    for (Way& way : ways) {
      way.read(cable);
      way.write(Clock::now());
    }
  }
}
