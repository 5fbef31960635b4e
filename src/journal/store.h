#pragma once
// What a journal is kept in. One writer wins: append is a compare-and-swap on (leader epoch, tail), so a competing or
// deposed leader can never add an entry. A Committed append survives any crash from then on. All calls are thread-safe
// unless an implementation says otherwise; read-like calls block, append answers by callback (from the store's thread,
// or inline).
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "journal/snapshot.h"

namespace muster::journal {

enum class AppendOutcome : std::uint8_t {
  Committed = 1,  // durable
  Conflict = 2,   // not written: somebody else appended, or a higher leader epoch was taken
  Ambiguous = 3,  // unknown: read the tail (after acquire_leader, which fences a write still in flight)
  DiskFull = 4,   // not written: no room
  Error = 5,      // not written: another fault of the store, see message
};
struct AppendRequest {
  std::uint64_t leader_epoch = 0;
  std::uint64_t prev_seq = 0;
  Bytes prev_hash;
  std::shared_ptr<const std::vector<Bytes>> entries;  // encoded; seq prev_seq+1.., all or none become durable
};
struct AppendResult {
  AppendOutcome outcome = AppendOutcome::Error;
  std::string message;
};
struct Tail {
  std::uint64_t seq = 0;  // 0 = empty
  Bytes hash = genesis_hash();
  std::uint64_t leader_epoch = 0;  // highest ever acquired, the fence
  std::uint64_t first_seq = 1;     // lowest seq that read() serves; lower ones are archived
  bool operator==(const Tail&) const = default;
};
inline constexpr std::size_t kAppendEntriesMax = 65'536;
inline constexpr std::size_t kSideKeyBytesMax = 512;
inline constexpr std::size_t kSideValueBytesMax = 1024 * 1024;
inline constexpr std::uint64_t kAnyEpoch = std::numeric_limits<std::uint64_t>::max();
inline constexpr std::uint64_t kAnySeq = std::numeric_limits<std::uint64_t>::max();

class Store {
 public:
  virtual ~Store() = default;
  virtual void append(AppendRequest request, std::function<void(AppendResult)> done) = 0;
  // Entries [from, ...), at most `limit` of them. NotFound when `from` is archived; empty when past the tail.
  virtual Result<std::vector<Bytes>> read(std::uint64_t from, std::size_t limit) const = 0;
  // The same over archived and live entries alike: verification, export, recovery without a snapshot.
  virtual Result<std::vector<Bytes>> read_all(std::uint64_t from, std::size_t limit) const = 0;
  virtual Result<Tail> tail() const = 0;
  // Raises the durable leader epoch by one and returns it. With `expected`, only if the epoch is still that one
  // (Aborted otherwise): a deposed leader cannot take over by accident.
  virtual Result<std::uint64_t> acquire_leader(std::uint64_t expected = kAnyEpoch) = 0;
  // ResourceExhausted while an append would find no room; used to leave read-only mode.
  virtual Status probe() = 0;

  virtual Status save_snapshot(const Snapshot& snapshot) = 0;  // keeps the newest two
  // The newest intact snapshot with seq <= up_to; damaged ones are skipped.
  virtual Result<std::optional<Snapshot>> load_snapshot(std::uint64_t up_to = kAnySeq) const = 0;
  // Entries below `seq` leave the live journal for the archive. FailedPrecondition without a snapshot at or after
  // seq-1.
  virtual Status archive_before(std::uint64_t seq) = 0;

  // Small durable facts beside the journal ("incarnation"), and tables of small blobs that may be erased for good
  // (password hashes, archived objects). Not part of the hash chain.
  virtual Result<std::optional<Bytes>> get_side(const std::string& table, const std::string& key) const = 0;
  virtual Status put_side(const std::string& table, const std::string& key, const Bytes& value) = 0;
  virtual Status erase_side(const std::string& table, const std::string& key) = 0;
  // Keys strictly after `after` in byte order, at most `limit`.
  virtual Result<std::vector<std::pair<std::string, Bytes>>> list_side(const std::string& table,
                                                                       const std::string& after,
                                                                       std::size_t limit) const = 0;
  Result<std::optional<Bytes>> get_meta(const std::string& name) const { return get_side("meta", name); }
  Status put_meta(const std::string& name, const Bytes& value) { return put_side("meta", name, value); }
};

}  // namespace muster::journal
