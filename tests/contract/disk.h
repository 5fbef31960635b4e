#pragma once
// A place that a store is opened on, again and again: the contract suite runs on each kind. Opening twice gives two
// competing handles on the same journal.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "base/rng.h"
#include "journal/store.h"
#include "store/fault_vfs.h"
#include "store/memory_store.h"
#include "store/sealed_store.h"
#include "store/sqlite_store.h"

namespace muster::contract {

class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "muster-contract-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string file(const std::string& name) const { return (std::filesystem::path(path_) / name).string(); }

 private:
  std::string path_;
};

class Disk {
 public:
  virtual ~Disk() = default;
  virtual std::shared_ptr<journal::Store> open() = 0;
};

class MemoryDisk final : public Disk {
 public:
  std::shared_ptr<journal::Store> open() override { return store_; }

 private:
  std::shared_ptr<store::MemoryStore> store_ = std::make_shared<store::MemoryStore>();
};

class SqliteDisk final : public Disk {
 public:
  SqliteDisk(bool threaded, std::string vfs) : threaded_(threaded), vfs_(std::move(vfs)) {
    if (!vfs_.empty()) store::FaultVfs::instance().reset();
  }
  std::shared_ptr<journal::Store> open() override {
    auto store = store::SqliteStore::open({path(), vfs_, threaded_, 1024});
    EXPECT_TRUE(store) << (store ? "" : store.error().message);
    return store ? std::shared_ptr<journal::Store>(std::move(*store)) : nullptr;
  }
  std::string path() const { return dir_.file("journal.db"); }

 private:
  TempDir dir_;
  bool threaded_;
  std::string vfs_;
};

// Sealed, with the same key at each opening, over another kind.
class SealedDisk final : public Disk {
 public:
  explicit SealedDisk(std::unique_ptr<Disk> inside) : inside_(std::move(inside)) {}
  std::shared_ptr<journal::Store> open() override {
    auto store = inside_->open();
    if (!store) return nullptr;
    const crypto::Secret32 key(crypto::Key32{1, 2, 3});
    auto ring = std::make_shared<crypto::KeyRing>(std::map<std::uint32_t, crypto::Secret32>{{1, key}}, 1);
    return std::make_shared<store::SealedStore>(std::move(store), std::move(ring));
  }

 private:
  std::unique_ptr<Disk> inside_;
};

// A valid continuation of `tail`: entries of `bytes` random payload each.
inline journal::AppendRequest make_batch(const journal::Tail& tail, std::uint64_t epoch, std::size_t count, Rng& rng,
                                         std::size_t bytes = 40) {
  auto entries = std::make_shared<std::vector<Bytes>>();
  journal::Entry entry;
  entry.seq = tail.seq;
  entry.leader_epoch = epoch;
  entry.prev_hash = tail.hash;
  entry.actor.system = true;
  for (std::size_t i = 0; i < count; ++i) {
    ++entry.seq;
    entry.wall.ms = static_cast<std::int64_t>(1'700'000'000'000 + entry.seq);
    entry.event.resize(bytes);
    for (auto& byte : entry.event) byte = static_cast<std::uint8_t>(rng.next());
    auto stored = journal::encode(entry);
    EXPECT_TRUE(stored);
    entry.prev_hash = journal::hash_of(*stored);
    entries->push_back(std::move(*stored));
  }
  return {epoch, tail.seq, tail.hash, entries};
}

journal::AppendResult append_wait(journal::Store& store, journal::AppendRequest request);

// All there is in the store, from its first entry.
inline std::vector<Bytes> read_everything(const journal::Store& store) {
  std::vector<Bytes> all;
  while (true) {
    auto page = store.read_all(all.size() + 1, 1000);
    EXPECT_TRUE(page) << (page ? "" : page.error().message);
    if (!page || page->empty()) return all;
    all.insert(all.end(), page->begin(), page->end());
  }
}

}  // namespace muster::contract
