#pragma once
// A journal in memory with faults on request, for simulation and tests. The object is the "disk": it outlives the
// engines that use it, and two engines may compete on it. Answers inline; thread-safe. After a crash fault every call
// fails with Unavailable until reopen(), as if the process had died; what was not committed is gone.
#include <deque>
#include <map>
#include <mutex>

#include "journal/store.h"

namespace muster::store {

enum class Fault : std::uint8_t {
  None,
  CrashBefore,       // dies before the commit: nothing written, no answer
  CrashAfter,        // dies after the commit: written, no answer
  AmbiguousWritten,  // answers Ambiguous, is written
  AmbiguousLost,     // answers Ambiguous, is not written
  AmbiguousLate,     // answers Ambiguous, is written at settle(), unless a new leader epoch fences it before
  DiskFull,
  Error,
};

class MemoryStore final : public journal::Store {
 public:
  void inject(Fault fault, std::uint32_t after_appends = 0);  // hits the append after so many good ones
  void set_disk_full(bool full);
  void corrupt_newest_snapshot();
  void settle();  // late writes land or are fenced
  void crash();   // now
  bool crashed() const;
  void reopen();
  std::uint64_t syncs() const;

  void append(journal::AppendRequest request, std::function<void(journal::AppendResult)> done) override;
  Result<std::vector<Bytes>> read(std::uint64_t from, std::size_t limit) const override;
  Result<std::vector<Bytes>> read_all(std::uint64_t from, std::size_t limit) const override;
  Result<journal::Tail> tail() const override;
  Result<std::uint64_t> acquire_leader(std::uint64_t expected = journal::kAnyEpoch) override;
  Status probe() override;
  Status save_snapshot(const journal::Snapshot& snapshot) override;
  Result<std::optional<journal::Snapshot>> load_snapshot(std::uint64_t up_to = journal::kAnySeq) const override;
  Status archive_before(std::uint64_t seq) override;
  Result<std::optional<Bytes>> get_side(const std::string& table, const std::string& key) const override;
  Status put_side(const std::string& table, const std::string& key, const Bytes& value) override;
  Status erase_side(const std::string& table, const std::string& key) override;
  Result<std::vector<std::pair<std::string, Bytes>>> list_side(const std::string& table, const std::string& after,
                                                               std::size_t limit) const override;

 private:
  Status alive() const;
  journal::AppendResult write(const journal::AppendRequest& request);
  std::optional<journal::AppendResult> commit(const journal::AppendRequest& request);  // nullopt = crashed, no answer
  Result<std::vector<Bytes>> slice(std::uint64_t from, std::size_t limit) const;

  mutable std::mutex mutex_;
  bool crashed_ = false, disk_full_ = false;
  Fault fault_ = Fault::None;
  std::uint32_t fault_after_ = 0;
  std::uint64_t leader_epoch_ = 0, first_seq_ = 1, syncs_ = 0;
  std::deque<Bytes> entries_;  // seq 1.., archived ones included
  Bytes tail_hash_ = journal::genesis_hash();
  std::vector<journal::AppendRequest> late_;
  std::map<std::uint64_t, Bytes> snapshots_;
  std::map<std::pair<std::string, std::string>, Bytes> side_;
};

}  // namespace muster::store
