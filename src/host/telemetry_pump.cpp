#include "host/telemetry_pump.h"

#include <algorithm>

namespace muster::host {
namespace {
constexpr Millis kSecond{1'000}, kRollUp{15'000};
constexpr std::int64_t kRollUpJitter = 5'000;
constexpr std::size_t kLeasesSeenMax = 256;

std::uint64_t counted(const json::value& row, std::string_view key) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, int_at(row, {key})));
}
std::uint64_t per_second(std::uint64_t now, std::uint64_t before, Millis passed) {
  return now < before ? 0 : (now - before) * 1000 / static_cast<std::uint64_t>(passed.count());
}
}  // namespace

TelemetryPump::TelemetryPump(Poller& poller, PrivdClient& privd, std::string disk_path, std::uint64_t seed, Hooks hooks)
    : poller_(poller),
      privd_(privd),
      hooks_(std::move(hooks)),
      rng_(seed),
      sampler_(std::move(disk_path)),
      alive_(std::make_shared<bool>(true)) {}

TelemetryPump::~TelemetryPump() {
  *alive_ = false;
  if (timer_ != 0) poller_.cancel(timer_);
}

void TelemetryPump::start() {
  look();
}

void TelemetryPump::look() {
  if (timer_ != 0) poller_.cancel(timer_);
  second();
}

void TelemetryPump::tell_soon() {
  next_rollup_ = LeaseTime{0};
}

void TelemetryPump::second() {
  timer_ = poller_.after(kSecond, [this] { second(); });
  if (asking_) {
    again_ = true;
    return;
  }
  asking_ = true;
  Verb verb;
  verb.kind = VerbKind::Usage;
  privd_.call(std::move(verb), [this, alive = alive_](const Result<PrivdReply>& reply) {
    if (*alive) taken(reply);
  });
}

void TelemetryPump::taken(const Result<PrivdReply>& reply) {
  asking_ = false;
  const Now now = read_clocks();
  session::Telemetry sample = sampler_.sample(now.wall);
  if (reply.ok()) {
    const auto* rows = reply->fields.if_contains("usage");
    if (rows != nullptr && rows->is_array()) add_containers(sample, rows->get_array(), now.lease);
    if (const auto* owner = reply->fields.if_contains("owner"); owner != nullptr && owner->is_object()) {
      const std::string before = gate_.text;
      gate_ = {bool_at(*owner, {"open"}), bool_at(*owner, {"stop"}), text_at(*owner, {"reason"}),
               text_at(*owner, {"text"})};
      if (before != gate_.text) tell_soon();
      hooks_.owner(gate_);
    }
  }
  sample.owner = gate_.open ? std::string() : gate_.text.substr(0, 256);
  latest_ = sample;
  tell(sample, now.lease);
  if (!std::exchange(again_, false)) return;
  look();
}

void TelemetryPump::add_containers(session::Telemetry& sample, const json::array& rows, LeaseTime now) {
  std::map<LeaseId, Before> seen;
  for (const auto& row : rows) {
    const auto lease = LeaseId::parse(text_at(row, {"lease"}));
    if (!lease || seen.size() >= kLeasesSeenMax) continue;
    const Before latest{counted(row, "cpu_ns"), counted(row, "rx_bytes"), counted(row, "tx_bytes"), now};
    session::ContainerSample each;
    each.lease = *lease;
    each.memory_bytes = counted(row, "memory_bytes");
    each.pids = counted(row, "pids");
    each.gpu_memory_bytes = counted(row, "gpu_memory_bytes");
    if (const auto known = before_.find(*lease); known != before_.end() && now > known->second.at) {
      const Millis passed = now - known->second.at;
      each.cpu_milli = per_second(latest.cpu_ns, known->second.cpu_ns, passed) / 1'000'000;
      each.net_rx_bytes_s = per_second(latest.rx, known->second.rx, passed);
      each.net_tx_bytes_s = per_second(latest.tx, known->second.tx, passed);
    }
    seen[*lease] = latest;
    sample.containers.push_back(each);
  }
  before_ = std::move(seen);
}

void TelemetryPump::tell(const session::Telemetry& sample, LeaseTime now) {
  rollup_.add(sample);
  const bool due = now >= next_rollup_;
  if (due) next_rollup_ = now + kRollUp + Millis(rng_.between(0, kRollUpJitter));
  if (!hooks_.online()) {
    if (due) rollup_ = RollUp{};
    next_rollup_ = LeaseTime{0};  // the first thing that a new link hears
    return;
  }
  if (live_) {
    rollup_ = RollUp{};
    session::Telemetry now = sample;
    now.relays = std::exchange(relays_, {});
    hooks_.send(std::move(now));
  } else if (due) {
    session::Telemetry all = rollup_.take();
    all.relays = std::exchange(relays_, {});
    hooks_.send(std::move(all));
  }
}

}  // namespace muster::host
