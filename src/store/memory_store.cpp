#include "store/memory_store.h"

#include <fmt/format.h>

#include <algorithm>

#include "store/limits.h"

namespace muster::store {

using journal::AppendOutcome;
using journal::AppendRequest;
using journal::AppendResult;
using Lock = std::lock_guard<std::mutex>;

void MemoryStore::inject(Fault fault, std::uint32_t after_appends) {
  Lock lock(mutex_);
  fault_ = fault;
  fault_after_ = after_appends;
}
void MemoryStore::set_disk_full(bool full) {
  Lock lock(mutex_);
  disk_full_ = full;
}
void MemoryStore::corrupt_newest_snapshot() {
  Lock lock(mutex_);
  if (!snapshots_.empty()) snapshots_.rbegin()->second[20] ^= 1;
}
void MemoryStore::settle() {
  Lock lock(mutex_);
  for (const AppendRequest& request : late_) write(request);
  late_.clear();
}
void MemoryStore::crash() {
  Lock lock(mutex_);
  crashed_ = true;
}
bool MemoryStore::crashed() const {
  Lock lock(mutex_);
  return crashed_;
}
void MemoryStore::reopen() {
  Lock lock(mutex_);
  crashed_ = false;
  fault_ = Fault::None;
}
std::uint64_t MemoryStore::syncs() const {
  Lock lock(mutex_);
  return syncs_;
}

Status MemoryStore::alive() const {
  if (crashed_) return error(Code::Unavailable, "the store has crashed; reopen it");
  return {};
}

AppendResult MemoryStore::write(const AppendRequest& request) {
  if (auto refused = refuse(request, {entries_.size(), tail_hash_, leader_epoch_, first_seq_})) return *refused;
  if (disk_full_) return {AppendOutcome::DiskFull, kDiskFullText};
  entries_.insert(entries_.end(), request.entries->begin(), request.entries->end());
  tail_hash_ = journal::hash_of(entries_.back());
  ++syncs_;
  return {AppendOutcome::Committed, {}};
}

std::optional<AppendResult> MemoryStore::commit(const AppendRequest& request) {
  if (crashed_) return std::nullopt;
  if (fault_ == Fault::None) return write(request);
  if (fault_after_ > 0) {
    --fault_after_;
    return write(request);
  }
  switch (std::exchange(fault_, Fault::None)) {
    case Fault::None:
      break;
    case Fault::CrashAfter:
      write(request);
      [[fallthrough]];
    case Fault::CrashBefore:
      crashed_ = true;
      return std::nullopt;
    case Fault::AmbiguousWritten:
      write(request);
      return AppendResult{AppendOutcome::Ambiguous, "injected: the answer was lost"};
    case Fault::AmbiguousLate:
      late_.push_back(request);
      [[fallthrough]];
    case Fault::AmbiguousLost:
      return AppendResult{AppendOutcome::Ambiguous, "injected: the connection broke"};
    case Fault::DiskFull:
      disk_full_ = true;
      return AppendResult{AppendOutcome::DiskFull, kDiskFullText};
    case Fault::Error:
      return AppendResult{AppendOutcome::Error, "injected: the store refused"};
  }
  return write(request);
}

void MemoryStore::append(AppendRequest request, std::function<void(AppendResult)> done) {
  std::optional<AppendResult> result;
  {
    Lock lock(mutex_);
    result = commit(request);
  }
  if (result) done(std::move(*result));
}

Result<std::vector<Bytes>> MemoryStore::slice(std::uint64_t from, std::size_t limit) const {
  std::vector<Bytes> out;
  for (std::uint64_t seq = std::max<std::uint64_t>(from, 1); seq <= entries_.size() && out.size() < limit; ++seq) {
    out.push_back(entries_[seq - 1]);
  }
  return out;
}

Result<std::vector<Bytes>> MemoryStore::read(std::uint64_t from, std::size_t limit) const {
  Lock lock(mutex_);
  TRY_VOID(alive());
  if (from < first_seq_) return archived_away(from, first_seq_);
  return slice(from, limit);
}

Result<std::vector<Bytes>> MemoryStore::read_all(std::uint64_t from, std::size_t limit) const {
  Lock lock(mutex_);
  TRY_VOID(alive());
  return slice(from, limit);
}

Result<journal::Tail> MemoryStore::tail() const {
  Lock lock(mutex_);
  TRY_VOID(alive());
  return journal::Tail{entries_.size(), tail_hash_, leader_epoch_, first_seq_};
}

Result<std::uint64_t> MemoryStore::acquire_leader(std::uint64_t expected) {
  Lock lock(mutex_);
  TRY_VOID(alive());
  if (expected != journal::kAnyEpoch && expected != leader_epoch_) return deposed(expected, leader_epoch_);
  return ++leader_epoch_;
}

Status MemoryStore::probe() {
  Lock lock(mutex_);
  TRY_VOID(alive());
  if (disk_full_) return error(Code::ResourceExhausted, kDiskFullText);
  return {};
}

Status MemoryStore::save_snapshot(const journal::Snapshot& snapshot) {
  Lock lock(mutex_);
  TRY_VOID(alive());
  if (disk_full_) return error(Code::ResourceExhausted, kDiskFullText);
  snapshots_[snapshot.seq] = journal::encode(snapshot);
  while (snapshots_.size() > kSnapshotsKept) snapshots_.erase(snapshots_.begin());
  return {};
}

Result<std::optional<journal::Snapshot>> MemoryStore::load_snapshot(std::uint64_t up_to) const {
  Lock lock(mutex_);
  TRY_VOID(alive());
  for (auto it = snapshots_.rbegin(); it != snapshots_.rend(); ++it) {
    if (it->first > up_to) continue;
    auto snapshot = journal::decode_snapshot(it->second);
    if (snapshot && snapshot->seq == it->first) return std::optional(std::move(*snapshot));
  }
  return std::optional<journal::Snapshot>();
}

Status MemoryStore::archive_before(std::uint64_t seq) {
  Lock lock(mutex_);
  TRY_VOID(alive());
  TRY_VOID(may_archive(seq, snapshots_.empty() ? 0 : snapshots_.rbegin()->first, entries_.size()));
  first_seq_ = std::max(first_seq_, seq);
  return {};
}

Result<std::optional<Bytes>> MemoryStore::get_side(const std::string& table, const std::string& key) const {
  Lock lock(mutex_);
  TRY_VOID(alive());
  const auto it = side_.find({table, key});
  return it == side_.end() ? std::optional<Bytes>() : std::optional<Bytes>(it->second);
}

Status MemoryStore::put_side(const std::string& table, const std::string& key, const Bytes& value) {
  TRY_VOID(check_side(table, key, value.size()));
  Lock lock(mutex_);
  TRY_VOID(alive());
  if (disk_full_) return error(Code::ResourceExhausted, kDiskFullText);
  side_[{table, key}] = value;
  return {};
}

Status MemoryStore::erase_side(const std::string& table, const std::string& key) {
  Lock lock(mutex_);
  TRY_VOID(alive());
  side_.erase({table, key});
  return {};
}

Result<std::vector<std::pair<std::string, Bytes>>> MemoryStore::list_side(const std::string& table,
                                                                          const std::string& after,
                                                                          std::size_t limit) const {
  Lock lock(mutex_);
  TRY_VOID(alive());
  std::vector<std::pair<std::string, Bytes>> out;
  for (auto it = side_.upper_bound({table, after}); it != side_.end() && it->first.first == table && out.size() < limit;
       ++it) {
    out.emplace_back(it->first.second, it->second);
  }
  return out;
}

}  // namespace muster::store
