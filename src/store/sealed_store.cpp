#include "store/sealed_store.h"

#include <fmt/format.h>

#include <algorithm>

#include "store/limits.h"

namespace muster::store {
namespace {
constexpr std::size_t kKnownMax = 4096;
}

using journal::AppendOutcome;
using journal::AppendRequest;
using journal::AppendResult;

std::string entry_place(std::uint64_t seq) {
  return fmt::format("journal entry {}", seq);
}
std::string snapshot_place(const journal::Snapshot& snapshot) {
  return fmt::format("snapshot {} of {} {}", snapshot.seq, snapshot.wall.ms, hex(snapshot.entry_hash));
}
std::string side_place(const std::string& table, const std::string& key) {
  return fmt::format("side table {}:{}/{}", table.size(), table, key);
}
std::string address_place(const std::string& actor, const std::string& request) {
  return fmt::format("address {}:{}/{}", actor.size(), actor, request);
}

void SealedStore::Known::note(std::uint64_t seq, Hashes hashes) {
  const std::lock_guard lock(mutex);
  at[seq] = std::move(hashes);
  while (at.size() > kKnownMax) at.erase(at.begin());
}
void SealedStore::Known::forget(std::uint64_t seq, const Bytes& sealed) {
  const std::lock_guard lock(mutex);
  const auto found = at.find(seq);
  if (found != at.end() && found->second.sealed == sealed) at.erase(found);
}

SealedStore::SealedStore(std::shared_ptr<journal::Store> inside, std::shared_ptr<crypto::KeyRing> ring)
    : inside_(std::move(inside)), ring_(std::move(ring)) {}

Result<SealedStore::Hashes> SealedStore::hashes_at(std::uint64_t seq) const {
  const auto found = TRY(inside_->read_all(seq, 1));
  if (found.empty()) return error(Code::NotFound, fmt::format("there is no journal entry {}", seq));
  const Bytes plain = TRY(ring_->open(entry_place(seq), found.front()));
  return Hashes{journal::hash_of(plain), journal::hash_of(found.front())};
}

void SealedStore::append(AppendRequest request, std::function<void(AppendResult)> done) {
  // What the store inside refuses anyway it refuses in its own words.
  if (!request.entries || request.entries->empty() || request.entries->size() > journal::kAppendEntriesMax)
    return inside_->append(std::move(request), std::move(done));
  if (request.prev_seq > 0) {
    Bytes sealed;
    {
      const std::lock_guard lock(known_->mutex);
      const auto found = known_->at.find(request.prev_seq);
      if (found != known_->at.end() && found->second.plain == request.prev_hash) sealed = found->second.sealed;
    }
    if (sealed.empty()) {
      auto there = hashes_at(request.prev_seq);
      if (!there.ok() && there.error().code != Code::NotFound)
        return done({AppendOutcome::Error, there.error().message});
      // A hash that no entry has lets the store inside say that the journal stands elsewhere.
      sealed = there.ok() && there->plain == request.prev_hash ? there->sealed : Bytes(journal::kHashBytes, 0xff);
      if (there.ok()) known_->note(request.prev_seq, std::move(*there));
    }
    request.prev_hash = std::move(sealed);
  }
  auto entries = std::make_shared<std::vector<Bytes>>();
  entries->reserve(request.entries->size());
  std::uint64_t seq = request.prev_seq;
  for (const Bytes& plain : *request.entries) entries->push_back(ring_->seal(entry_place(++seq), plain));
  Hashes last{journal::hash_of(request.entries->back()), journal::hash_of(entries->back())};
  request.entries = std::move(entries);
  // Known from now on, for the next append may come before this one is answered.
  known_->note(seq, last);
  inside_->append(std::move(request),
                  [known = known_, seq, sealed = std::move(last.sealed), done = std::move(done)](AppendResult result) {
                    if (result.outcome != AppendOutcome::Committed) known->forget(seq, sealed);
                    done(std::move(result));
                  });
}

Result<std::vector<Bytes>> SealedStore::open_all(std::uint64_t from, Result<std::vector<Bytes>> sealed) const {
  if (!sealed.ok()) return sealed;
  std::uint64_t seq = std::max<std::uint64_t>(from, 1);
  for (Bytes& bytes : *sealed) bytes = TRY(ring_->open(entry_place(seq++), bytes));
  return sealed;
}

Result<std::vector<Bytes>> SealedStore::read(std::uint64_t from, std::size_t limit) const {
  return open_all(from, inside_->read(from, limit));
}
Result<std::vector<Bytes>> SealedStore::read_all(std::uint64_t from, std::size_t limit) const {
  return open_all(from, inside_->read_all(from, limit));
}

Result<journal::Tail> SealedStore::tail() const {
  journal::Tail tail = TRY(inside_->tail());
  if (tail.seq == 0) return tail;
  {
    const std::lock_guard lock(known_->mutex);
    const auto found = known_->at.find(tail.seq);
    if (found != known_->at.end() && found->second.sealed == tail.hash) {
      tail.hash = found->second.plain;
      return tail;
    }
  }
  Hashes there = TRY(hashes_at(tail.seq));
  tail.hash = there.plain;
  known_->note(tail.seq, std::move(there));
  return tail;
}

Result<std::uint64_t> SealedStore::acquire_leader(std::uint64_t expected) {
  return inside_->acquire_leader(expected);
}
Status SealedStore::probe() {
  return inside_->probe();
}

Status SealedStore::save_snapshot(const journal::Snapshot& snapshot) {
  journal::Snapshot sealed{snapshot.seq, snapshot.entry_hash, snapshot.wall, {}};
  sealed.state = ring_->seal(snapshot_place(snapshot), snapshot.state);
  return inside_->save_snapshot(sealed);
}

Result<std::optional<journal::Snapshot>> SealedStore::load_snapshot(std::uint64_t up_to) const {
  while (true) {
    auto found = TRY(inside_->load_snapshot(up_to));
    if (!found) return found;
    if (auto state = ring_->open(snapshot_place(*found), found->state); state.ok()) {
      found->state = std::move(*state);
      return found;
    }
    if (found->seq == 0) return std::optional<journal::Snapshot>();
    up_to = found->seq - 1;
  }
}

Status SealedStore::archive_before(std::uint64_t seq) {
  return inside_->archive_before(seq);
}

Result<std::optional<Bytes>> SealedStore::get_side(const std::string& table, const std::string& key) const {
  const auto sealed = TRY(inside_->get_side(table, key));
  if (!sealed) return std::optional<Bytes>();
  return std::optional(TRY(ring_->open(side_place(table, key), *sealed)));
}

Status SealedStore::put_side(const std::string& table, const std::string& key, const Bytes& value) {
  TRY_VOID(check_side(table, key, value.size() + crypto::KeyRing::kOverhead));
  return inside_->put_side(table, key, ring_->seal(side_place(table, key), value));
}

Status SealedStore::erase_side(const std::string& table, const std::string& key) {
  return inside_->erase_side(table, key);
}

Result<std::vector<std::pair<std::string, Bytes>>> SealedStore::list_side(const std::string& table,
                                                                          const std::string& after,
                                                                          std::size_t limit) const {
  auto rows = TRY(inside_->list_side(table, after, limit));
  for (auto& [key, value] : rows) value = TRY(ring_->open(side_place(table, key), value));
  return rows;
}

Status SealedAddresses::put(const std::vector<journal::AddressRow>& rows) {
  std::vector<journal::AddressRow> sealed = rows;
  for (auto& row : sealed)
    row.address = as_string(ring_->seal(address_place(row.actor, row.request), as_bytes(row.address)));
  return inside_->put(sealed);
}

Result<std::optional<std::string>> SealedAddresses::find(const std::string& actor, const std::string& request) const {
  const auto sealed = TRY(inside_->find(actor, request));
  if (!sealed) return std::optional<std::string>();
  const Bytes plain = TRY(ring_->open(address_place(actor, request), as_bytes(*sealed)));
  return std::optional<std::string>(as_string(plain));
}

}  // namespace muster::store
