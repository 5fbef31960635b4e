#include "host/disk_watch.h"

#include <fmt/format.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <filesystem>

#include "base/log.h"
#include "host/lease_dirs.h"
#include "host/policy.h"

namespace muster::host {
namespace {

constexpr std::chrono::milliseconds kLookEvery{2'000}, kLookEveryMax{120'000};
constexpr std::uint64_t kWorthEnding = std::uint64_t{1} << 30;
constexpr std::uint64_t kProbeMax = 64 << 20;  // a probe writes one small socket

std::uint64_t total(const LeaseDisk& lease) {
  return lease.use.root_bytes + lease.use.workspace_bytes;
}

}  // namespace

std::vector<DiskVerdict> judge_disk(const std::vector<LeaseDisk>& leases, std::uint64_t free, std::uint64_t reserve) {
  std::vector<DiskVerdict> out;
  for (const auto& lease : leases) {
    if (lease.limit.root_bytes > 0 && lease.use.root_bytes >= lease.limit.root_bytes)
      out.push_back({lease.lease, "container.root_full"});
    else if (lease.limit.workspace_bytes > 0 && lease.use.workspace_bytes >= lease.limit.workspace_bytes)
      out.push_back({lease.lease, "container.workspace_full"});
  }
  if (!out.empty() || leases.empty() || free >= reserve) return out;
  const auto& largest =
      *std::max_element(leases.begin(), leases.end(), [](const auto& a, const auto& b) { return total(a) < total(b); });
  if (total(largest) >= kWorthEnding) out.push_back({largest.lease, "container.disk_reserve"});
  return out;
}

void DiskWatch::start() {
  thread_ = std::thread([this] { run(); });
}

void DiskWatch::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void DiskWatch::run() {
  auto pause = kLookEvery;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, pause, [this] { return stopping_; })) {
    lock.unlock();
    const auto began = std::chrono::steady_clock::now();
    look();
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - began);
    pause = std::clamp(took * 10, kLookEvery, kLookEveryMax);
    lock.lock();
  }
}

// An image that is only being looked at has no limits of a lease yet, and may be as hostile as any.
void DiskWatch::look_at_probes() {
  std::error_code failure;
  for (const auto& entry : std::filesystem::directory_iterator(layout_.leases(), failure)) {
    const std::string lease = entry.path().filename().string(), dir = layout_.lease(lease);
    const auto used = tree_bytes(dir + "/probe", kProbeMax) + tree_bytes(dir + "/probe-root", kProbeMax);
    if (used < kProbeMax) continue;
    log_warn("privd", "the probe of the image of {} is ended: it wrote {} MiB", lease, used >> 20);
    Status ended = runtime_.stop_probe(lease);
    if (ended.ok()) ended = remove_tree(dir + "/probe");
    if (!ended.ok()) log_warn("privd", "{}: {}", lease, ended.error().message);
  }
}

void DiskWatch::look() {
  look_at_probes();
  const auto states = runtime_.list();
  if (!states.ok()) return;  // the engine is away: what runs is looked at when it is back
  std::vector<LeaseDisk> leases;
  const LeaseDirs dirs(layout_, "-");
  for (const auto& state : *states) {
    if (!state.running) continue;
    const DiskUse limit = dirs.limits(state.lease);
    // Without a limit the whole is counted: the reserve needs it.
    const auto use = runtime_.disk(state.lease, limit);
    if (use.ok()) leases.push_back({state.lease, *use, limit});
  }
  struct statvfs info {};
  const std::uint64_t free =
      statvfs(layout_.root.c_str(), &info) == 0 ? static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize : ~0ULL;
  const auto policy = load_policy(layout_.policy());
  const auto reserve = policy.ok() ? static_cast<std::uint64_t>(policy->reserve_disk_bytes) : 0;
  for (const auto& verdict : judge_disk(leases, free, reserve)) {
    const auto found = std::find_if(leases.begin(), leases.end(),
                                    [&](const LeaseDisk& lease) { return lease.lease == verdict.lease; });
    log_warn("privd", "{} is halted: {} (root {} MiB, workspace {} MiB, free on the machine {} MiB)", verdict.lease,
             verdict.reason, found->use.root_bytes >> 20, found->use.workspace_bytes >> 20, free >> 20);
    const Status halted = runtime_.halt(verdict.lease, verdict.reason);
    if (!halted.ok()) log_warn("privd", "{}: {}", verdict.lease, halted.error().message);
  }
}

}  // namespace muster::host
