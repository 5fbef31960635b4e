#pragma once
// The default store: SQLite in WAL mode with synchronous=FULL, so a commit is on disk before it is answered. Appends go
// to a thread of its own that commits everything queued in one transaction; inline mode (simulation) commits in the
// caller. Snapshots live in a second file "<path>-snapshots", so writing a large one never delays an append. Files have
// mode 0600. A second process may open the same file: the leader epoch fences whichever came first. Thread-safe.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "journal/store.h"

namespace muster::store {

class SqliteStore final : public journal::Store {
 public:
  struct Options {
    std::string path;
    std::string vfs;       // empty = the system's; tests name a fault VFS
    bool threaded = true;  // false: append() commits and answers before it returns
    std::size_t queue_max = 1024;
  };
  static Result<std::unique_ptr<SqliteStore>> open(Options options);
  ~SqliteStore() override;  // answers what is queued, then closes

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
  // A consistent copy into a new file (mode 0600) while the store is in use. AlreadyExists when `path` is there.
  Status backup(const std::string& path) const;
  // Makes the journal file `path` out of a backup; AlreadyExists when it is there. Raise the incarnation before
  // anything else uses it (engine/tools.h).
  static Status restore(const std::string& backup, const std::string& path);
  std::uint64_t transactions() const { return transactions_.load(); }  // group commits so far

 private:
  struct Writer;
  struct ReadSide;
  struct Snapshots;
  struct Queued {
    journal::AppendRequest request;
    std::function<void(journal::AppendResult)> done;
  };
  explicit SqliteStore(Options options);
  void loop();
  void commit_group(std::vector<Queued> group);

  Options options_;
  std::unique_ptr<Writer> writer_;
  std::unique_ptr<ReadSide> reader_;
  std::unique_ptr<Snapshots> snapshots_;
  mutable std::mutex queue_mutex_;
  std::condition_variable queue_changed_;
  std::deque<Queued> queue_;
  bool stopping_ = false;
  std::atomic<std::uint64_t> transactions_{0};
  std::thread thread_;
};

}  // namespace muster::store
