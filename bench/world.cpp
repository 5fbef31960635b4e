// A large platform in one process (world.h), for `make bench NAME=scale` and `NAME=recover`: NODES virtual machines
// come online, then REQUESTS clusters of 1,000 kinds wait for GPUs that no machine has free. Usage:
//   bench_world DATA_DIR NODES REQUESTS SECONDS [kill]
// DATA_DIR is of `musterd init`. Runs SECONDS more while changes go on, prints one JSON object, and with `kill` ends by
// SIGKILL of itself.
#include "world.h"

using namespace muster;
using namespace muster::bench;

int main(int argc, char** argv) {
  if (argc < 5) fail("usage: bench_world DATA_DIR NODES REQUESTS SECONDS [kill]");
  const auto number = [&](int i) { return static_cast<unsigned>(std::strtoul(argv[i], nullptr, 10)); };
  const Clock::time_point begin = Clock::now();
  World world(argv[1], number(2), number(3));
  world.enrol();
  say(begin, fmt::format("{} machines are enrolled", number(2)));
  Clock::time_point from = Clock::now();
  world.connect();
  const double connect = seconds_since(from);
  say(begin, fmt::format("and online after {:.1f} s ({} MiB)", connect, memory_kib("VmRSS:") / 1024));
  from = Clock::now();
  world.queue();
  const double queue = seconds_since(from);
  say(begin, fmt::format("{} requests wait after {:.1f} s ({} MiB)", number(3), queue, memory_kib("VmRSS:") / 1024));
  world.live(number(4));
  say(begin, fmt::format("done ({} MiB)", memory_kib("VmRSS:") / 1024));
  fmt::print(R"({{"connect_s":{:.2f},"queue_s":{:.2f},"stall_ms":{:.3f},"rss_kib":{},"peak_kib":{},"seq":{}}})"
             "\n",
             connect, queue, world.worst_stall(), memory_kib("VmRSS:"), memory_kib("VmHWM:"),
             world.runner().durable_seq());
  std::fflush(stdout);
  if (argc > 5) ::kill(::getpid(), SIGKILL);
  world.stop();
  return 0;
}
