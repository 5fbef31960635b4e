// What threads that help with packets bring: two Devices in one process, large rows of packets of 1,380 bytes from one
// to the other, without sockets. `make bench NAME=overlay-helpers [ARGS="HELPERS ..."]`, by default 0 and 1: of a
// machine with two cores there are no more.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "base/endian.h"
#include "host/thread_crew.h"
#include "overlay/device.h"

namespace {

using namespace muster;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
constexpr std::uint32_t kFrom = 0x64400001, kTo = 0x64400002;
constexpr std::size_t kSize = 1380, kRow = 45;  // as many fit into one large packet of a TUN
constexpr int kRounds = 5;

struct Box : overlay::Sink {
  std::vector<Bytes> sent;
  std::size_t count = 0, delivered = 0;
  void send(const overlay::Endpoint&, ByteView d) override {
    if (sent.size() <= count) sent.resize(count + 1);
    sent[count++].assign(d.begin(), d.end());
  }
  void deliver(ByteView p) override { delivered += p.size(); }
  void control(const crypto::Key32&, const overlay::Endpoint&, ByteView) override {}
};

struct Rates {
  double seal = 0, open = 0;  // Gbit/s of programs' packets
};

Rates measured(std::size_t helpers, std::chrono::milliseconds length) {
  host::ThreadCrew crew(helpers);
  const auto key_a = crypto::x25519_generate(), key_b = crypto::x25519_generate();
  overlay::Device a(key_a), b(key_b);
  const auto at = overlay::Endpoint::udp(0x7f000001, 9);
  a.set_peers({{key_b.public_key, {}, {kTo}, at, {}}});
  b.set_peers({{key_a.public_key, {}, {kFrom}, at, {}}});
  Box from_a, from_b;
  const Now now{WallTime{1'795'000'000'000}, LeaseTime{1'000'000}};
  Bytes packet(kSize, 7);
  packet[0] = 0x45;
  store_be16(packet.data() + 2, kSize);
  store_be32(packet.data() + 12, kFrom);
  store_be32(packet.data() + 16, kTo);
  a.encapsulate(packet, now, from_a);
  for (int i = 0; i < 4; ++i) {
    for (std::size_t k = 0; k < std::exchange(from_a.count, 0); ++k) b.decapsulate(from_a.sent[k], at, now, from_b);
    for (std::size_t k = 0; k < std::exchange(from_b.count, 0); ++k) a.decapsulate(from_b.sent[k], at, now, from_a);
  }
  from_b.delivered = 0;
  Clock::duration sealing{}, opening{};
  std::size_t rows = 0;
  std::vector<ByteView> views;
  for (const auto end = Clock::now() + length; Clock::now() < end; ++rows) {
    from_a.count = 0;
    const auto began = Clock::now();
    a.hold(crew);
    for (std::size_t i = 0; i < kRow; ++i) a.encapsulate(packet, now, from_a);
    a.release(crew, from_a);
    const auto sealed = Clock::now();
    views.assign(from_a.sent.begin(), from_a.sent.begin() + kRow);
    b.open_ahead(views, crew, now);
    for (const ByteView view : views) b.decapsulate(view, at, now, from_b);
    sealing += sealed - began;
    opening += Clock::now() - sealed;
  }
  if (from_b.delivered != rows * kRow * kSize) {
    fmt::print(stderr, "{} of {} bytes arrived\n", from_b.delivered, rows * kRow * kSize);
    std::exit(1);
  }
  const double bits = static_cast<double>(rows * kRow * kSize) * 8 / 1e9;
  return {bits / std::chrono::duration<double>(sealing).count(), bits / std::chrono::duration<double>(opening).count()};
}

double median(std::vector<double> of) {
  std::nth_element(of.begin(), of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2), of.end());
  return of[of.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::size_t> counts;
  for (int i = 1; i < argc; ++i) counts.push_back(std::min(8UL, std::strtoul(argv[i], nullptr, 10)));
  if (counts.empty()) counts = {0, 1};
  std::map<std::size_t, std::pair<std::vector<double>, std::vector<double>>> all;
  for (int round = 0; round < kRounds; ++round) {
    for (const std::size_t helpers : counts) {
      const Rates rates = measured(helpers, 400ms);
      all[helpers].first.push_back(rates.seal);
      all[helpers].second.push_back(rates.open);
    }
  }
  const double seal_alone = median(all[counts.front()].first), open_alone = median(all[counts.front()].second);
  for (const std::size_t helpers : counts) {
    const auto& [seal, open] = all[helpers];
    for (const auto& [what, value, alone] :
         {std::tuple("seal", median(seal), seal_alone), std::tuple("open", median(open), open_alone)})
      fmt::print(R"({{"name": "overlay-helpers.{}.{}", "value": {:.2f}, "unit": "Gbit/s", "baseline": {:.2f}, )"
                 R"("ratio": {:.2f}, "runs": {}}})"
                 "\n",
                 what, helpers, value, alone, value / alone, kRounds);
  }
}
