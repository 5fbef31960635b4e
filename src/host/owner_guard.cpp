#include "host/owner_guard.h"

#include <fmt/format.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <future>

#include "base/log.h"
#include "crypto/file.h"
#include "host/container_use.h"
#include "host/nvml.h"
#include "host/owner_network.h"

namespace muster::host {
namespace {
constexpr Millis kTurn{1'000};
constexpr int kSlowTurns = 10;         // the driver is looked at every so many turns
constexpr Millis kListFresh{10'000};   // the agent lists every five seconds; without it we do
constexpr Millis kGoneAfter{120'000};  // a start with a slow engine is over by then
// A MIG instance has no power limit of its own.
std::set<std::string> whole_gpus(std::set<std::string> booked) {
  if (std::none_of(booked.begin(), booked.end(), [](const std::string& uuid) { return uuid.starts_with("MIG-"); }))
    return booked;
  for (const Lendable& each : Nvml::instance().lendable())
    if (each.index >= 0 && booked.erase(each.device.uuid) > 0) booked.insert(each.gpu);
  return booked;
}

}  // namespace

std::string bandwidth_text(const Policy& policy) {
  return fmt::format("{} {} {} {} {} {} {} {}\n", policy.max_upload_bytes_s, policy.max_download_bytes_s,
                     policy.carry_allowed ? 1 : 0, policy.max_carry_bytes_s, policy.max_carry_bytes_per_month,
                     policy.tests_allowed ? 1 : 0, policy.max_test_bytes_s, policy.max_test_bytes_per_month);
}

void write_for_netd(const Layout& layout, const Policy& policy) {
  for (const auto& [path, text] : {std::pair(layout.bandwidth(), bandwidth_text(policy)),
                                   std::pair(layout.network(), owner_network_text(owner_network(policy)))}) {
    const Status written = crypto::write_public_file(path, as_bytes(text));
    if (!written.ok()) log_warn("privd", "{}", written.error().message);
  }
}

OwnerGuard::OwnerGuard(const Layout& layout, Runtime& runtime, Grants& grants,
                       std::function<void(const std::string&, int)> stop)
    : layout_(layout),
      runtime_(runtime),
      grants_(grants),
      stop_lease_(std::move(stop)),
      power_(Nvml::instance(), layout.power()),
      sources_({.last_input = layout.root + "/last_input"}) {}

OwnerGuard::~OwnerGuard() {
  stop();
}

void OwnerGuard::start() {
  thread_ = std::thread([this] { run(); });
}

void OwnerGuard::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void OwnerGuard::poke() {
  {
    const std::lock_guard lock(mutex_);
    poked_ = true;
  }
  {
    const std::lock_guard lock(list_mutex_);
    listed_ = LeaseTime{0};
  }
  wake_.notify_all();
}

void OwnerGuard::saw(const std::vector<LeaseState>& leases) {
  const std::lock_guard lock(list_mutex_);
  list_ = leases;
  listed_ = read_clocks().lease;
}

std::vector<LeaseState> OwnerGuard::leases() const {
  const std::lock_guard lock(list_mutex_);
  return list_;
}

LeaseTime OwnerGuard::listed_at() const {
  const std::lock_guard lock(list_mutex_);
  return listed_;
}

bool OwnerGuard::look() {
  const auto listed = runtime_.list();
  if (!listed.ok()) return false;
  saw(*listed);
  return true;
}

Gate OwnerGuard::gate() {
  const auto policy = load_policy(layout_.policy());
  const std::lock_guard lock(gate_mutex_);
  return decider_.decide(policy, read_pause(layout_.paused()), minute_of_day(), signs_, read_clocks().lease);
}

Status OwnerGuard::allowed() {
  const Gate now = gate();
  if (now.open) return {};
  return error(Code::PermissionDenied, now.text, now.reason);
}

Signs OwnerGuard::signs(const Policy& policy) {
  Signs out;
  struct statvfs disk {};
  const bool known = statvfs(layout_.root.c_str(), &disk) == 0;
  const std::int64_t free =
      known ? static_cast<std::int64_t>(disk.f_bavail) * static_cast<std::int64_t>(disk.f_frsize) : -1;
  out.disk_free = free;
  if (policy.idle.minutes == 0) return out;
  if (listed_at() == LeaseTime{0}) look();  // a lease came or went: what it uses is not the owner's
  const Ours ours = of_ours();
  out = sources_.read(policy.idle, Nvml::instance(), ours.groups, ours.cpu_ns, read_clocks());
  out.disk_free = free;
  // Work started since the last list would pass for the owner's.
  if (out.gpu && !grants_.all().empty() && look()) out.gpu = owner_on_gpu(Nvml::instance(), of_ours().groups);
  return out;
}

OwnerGuard::Ours OwnerGuard::of_ours() const {
  Ours out;
  for (const auto& lease : leases()) {
    for (const pid_t pid : {lease.main_pid, lease.namespace_pid}) {
      if (pid <= 0) continue;
      out.groups.insert(cgroup_of(pid));
      if (const auto use = container_use(pid); use.ok()) out.cpu_ns += use->cpu_ns;
    }
  }
  return out;
}

// What fails is tried again with the next turn.
void OwnerGuard::end_all() {
  if (!look()) return;
  std::vector<std::future<void>> ends;
  for (const auto& lease : leases()) {
    if (!lease.running && !lease.namespace_up) continue;
    log_info("privd", "{} is stopped for the owner", lease.lease);
    ends.push_back(std::async(std::launch::async, [this, id = lease.lease] { stop_lease_(id, kOwnerGrace); }));
  }
  for (auto& end : ends) end.wait();
}

void OwnerGuard::tell_netd(const Policy& policy) {
  const std::string wanted = bandwidth_text(policy) + owner_network_text(owner_network(policy));
  if (wanted == netd_limits_) return;
  netd_limits_ = wanted;
  write_for_netd(layout_, policy);
}

void OwnerGuard::turn() {
  const auto policy = load_policy(layout_.policy());
  if (policy.ok()) {
    const Signs seen = signs(*policy);
    const std::lock_guard lock(gate_mutex_);
    signs_ = seen;
  }
  const Gate now = gate();
  if (now.reason != told_reason_) {
    if (!now.open) log_info("privd", "no work for now: {}{}", now.text, now.stop ? "; what runs is stopped" : "");
    if (now.open) log_info("privd", "work is welcome again");
    told_reason_ = now.reason;
  }
  if (now.stop) end_all();
  if (policy.ok()) tell_netd(*policy);
  const bool slow = turns_++ % kSlowTurns == 0;
  if (slow) Nvml::instance().refresh();
  const bool stale = read_clocks().lease - listed_at() > kListFresh;
  const auto grants = grants_.all();
  if (stale && !grants.empty() && look()) {
    std::set<std::string> known;
    for (const auto& lease : leases()) known.insert(lease.lease);
    for (const auto& [lease, grant] : grants) {
      if (!known.contains(lease)) grants_.release_if_older(lease, kGoneAfter);
    }
  }
  const std::int64_t cap = policy.ok() ? policy->max_gpu_power_w : 0;
  if (cap > 0 || power_.holds_any()) power_.reconcile(cap, whole_gpus(grants_.gpus()));
}

void OwnerGuard::run() {
  while (true) {
    turn();
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, kTurn, [this] { return stopping_ || poked_; });
    poked_ = false;
    if (stopping_) return;
  }
}

}  // namespace muster::host
