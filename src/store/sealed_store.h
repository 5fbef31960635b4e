#pragma once
// Encryption at rest over any store: entries, snapshots and side values are sealed before the store inside sees them
// and opened on the way back. Each is bound to its place (sequence, table and key). The hash chain is that of the plain
// entries, as without: only the store inside, whose compare-and-swap is over what it holds, knows hashes of sealed
// ones. What does not open is DataLoss, never handed on. In the clear stay: counts, sizes, sequence numbers, names of
// side tables and their keys. Thread-safe as the store inside.
#include <map>
#include <memory>
#include <mutex>

#include "crypto/key_ring.h"
#include "journal/address_book.h"
#include "journal/store.h"

namespace muster::store {

std::string entry_place(std::uint64_t seq);
std::string snapshot_place(const journal::Snapshot& snapshot);
std::string side_place(const std::string& table, const std::string& key);
std::string address_place(const std::string& actor, const std::string& request);

class SealedStore final : public journal::Store {
 public:
  SealedStore(std::shared_ptr<journal::Store> inside, std::shared_ptr<crypto::KeyRing> ring);
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
  // The hashes of one entry: as it is, and as it lies in the store inside.
  struct Hashes {
    Bytes plain, sealed;
  };
  // In parts: what is being appended and what was met last. Shared with appends that are still being written.
  struct Known {
    std::mutex mutex;
    std::map<std::uint64_t, Hashes> at;
    void note(std::uint64_t seq, Hashes hashes);
    void forget(std::uint64_t seq, const Bytes& sealed);
  };
  Result<std::vector<Bytes>> open_all(std::uint64_t from, Result<std::vector<Bytes>> sealed) const;
  Result<Hashes> hashes_at(std::uint64_t seq) const;  // from the store inside

  const std::shared_ptr<journal::Store> inside_;
  const std::shared_ptr<crypto::KeyRing> ring_;
  const std::shared_ptr<Known> known_ = std::make_shared<Known>();
};

// Addresses sealed, bound to actor and request; those two and the times stay in the clear, so that rows can be found
// and erased without a key. Thread-safe as the book inside.
class SealedAddresses final : public journal::AddressBook {
 public:
  SealedAddresses(std::shared_ptr<journal::AddressBook> inside, std::shared_ptr<crypto::KeyRing> ring)
      : inside_(std::move(inside)), ring_(std::move(ring)) {}
  Status put(const std::vector<journal::AddressRow>& rows) override;
  Result<std::optional<std::string>> find(const std::string& actor, const std::string& request) const override;
  Result<std::size_t> erase_actor(const std::string& actor) override { return inside_->erase_actor(actor); }
  Result<std::size_t> erase_before(WallTime time) override { return inside_->erase_before(time); }

 private:
  const std::shared_ptr<journal::AddressBook> inside_;
  const std::shared_ptr<crypto::KeyRing> ring_;
};

}  // namespace muster::store
