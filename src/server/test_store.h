#pragma once
// A journal in memory for the server's tests (the rooms of the stores may not be included here): appends in order, the
// leader's epoch fences, side tables; and an address book. No faults: those are the store contract's business.
// Thread-safe.
#include <map>
#include <mutex>

#include "journal/address_book.h"
#include "journal/store.h"

namespace muster::server {

class TestStore final : public journal::Store {
 public:
  void append(journal::AppendRequest request, std::function<void(journal::AppendResult)> done) override {
    journal::AppendResult result{journal::AppendOutcome::Committed, ""};
    {
      const std::lock_guard lock(mutex_);
      if (request.leader_epoch != tail_.leader_epoch || request.prev_seq != tail_.seq) {
        result = {journal::AppendOutcome::Conflict, "somebody else appended"};
      } else {
        for (const auto& entry : *request.entries) {
          entries_.push_back(entry);
          tail_.hash = journal::hash_of(entry);
          ++tail_.seq;
        }
      }
    }
    done(result);
  }
  Result<std::vector<Bytes>> read(std::uint64_t from, std::size_t limit) const override {
    const std::lock_guard lock(mutex_);
    std::vector<Bytes> out;
    for (std::uint64_t seq = from; seq >= 1 && seq <= entries_.size() && out.size() < limit; ++seq)
      out.push_back(entries_[seq - 1]);
    return out;
  }
  Result<std::vector<Bytes>> read_all(std::uint64_t from, std::size_t limit) const override {
    return read(from, limit);
  }
  Result<journal::Tail> tail() const override {
    const std::lock_guard lock(mutex_);
    return tail_;
  }
  Result<std::uint64_t> acquire_leader(std::uint64_t) override {
    const std::lock_guard lock(mutex_);
    return ++tail_.leader_epoch;
  }
  Status probe() override { return {}; }
  Status save_snapshot(const journal::Snapshot&) override { return {}; }
  Result<std::optional<journal::Snapshot>> load_snapshot(std::uint64_t) const override {
    return std::optional<journal::Snapshot>();
  }
  Status archive_before(std::uint64_t) override { return {}; }
  Result<std::optional<Bytes>> get_side(const std::string& table, const std::string& key) const override {
    const std::lock_guard lock(mutex_);
    const auto found = side_.find({table, key});
    return found == side_.end() ? std::optional<Bytes>() : std::optional<Bytes>(found->second);
  }
  Status put_side(const std::string& table, const std::string& key, const Bytes& value) override {
    const std::lock_guard lock(mutex_);
    side_[{table, key}] = value;
    return {};
  }
  Status erase_side(const std::string& table, const std::string& key) override {
    const std::lock_guard lock(mutex_);
    side_.erase({table, key});
    return {};
  }
  Result<std::vector<std::pair<std::string, Bytes>>> list_side(const std::string& table, const std::string& after,
                                                               std::size_t limit) const override {
    const std::lock_guard lock(mutex_);
    std::vector<std::pair<std::string, Bytes>> out;
    for (auto it = side_.upper_bound({table, after});
         it != side_.end() && it->first.first == table && out.size() < limit; ++it)
      out.emplace_back(it->first.second, it->second);
    return out;
  }

 private:
  mutable std::mutex mutex_;
  journal::Tail tail_;
  std::vector<Bytes> entries_;
  std::map<std::pair<std::string, std::string>, Bytes> side_;
};

class TestAddresses final : public journal::AddressBook {
 public:
  Status put(const std::vector<journal::AddressRow>& rows) override {
    const std::lock_guard lock(mutex_);
    for (const auto& row : rows) rows_.emplace(std::pair(row.actor, row.request), row);
    return {};
  }
  Result<std::optional<std::string>> find(const std::string& actor, const std::string& request) const override {
    const std::lock_guard lock(mutex_);
    const auto found = rows_.find({actor, request});
    return found == rows_.end() ? std::optional<std::string>() : std::optional<std::string>(found->second.address);
  }
  Result<std::size_t> erase_actor(const std::string& actor) override {
    const std::lock_guard lock(mutex_);
    return std::erase_if(rows_, [&](const auto& each) { return each.first.first == actor; });
  }
  Result<std::size_t> erase_before(WallTime time) override {
    const std::lock_guard lock(mutex_);
    return std::erase_if(rows_, [&](const auto& each) { return each.second.at < time; });
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, journal::AddressRow> rows_;
};

}  // namespace muster::server
