#include "store/reseal.h"

#include <unistd.h>

#include <vector>

#include "store/sealed_store.h"
#include "store/sqlite.h"

namespace muster::store {
namespace {

constexpr std::size_t kResealPart = 1024 * 1024;  // as SqliteStore cuts snapshots

struct Resealer {
  Connection db;
  crypto::KeyRing& ring;
  const Plain plain;
  std::uint64_t changed = 0;

  // nullopt: it is as it should be.
  Result<std::optional<Bytes>> again(const std::string& place, ByteView bytes) {
    const auto key = crypto::KeyRing::key_of(bytes);
    if (key && *key == ring.current()) return std::optional<Bytes>();
    if (!key && plain == Plain::Sealed) {
      ++changed;
      return std::optional(ring.seal(place, bytes));
    }
    const Bytes opened = TRY(ring.open(place, bytes));
    ++changed;
    return std::optional(ring.seal(place, opened));
  }

  Status entries(const char* select, const char* update) {
    Statement read = TRY(db.prepare(select));
    Statement write = TRY(db.prepare(update));
    for (std::uint64_t after = 0;;) {
      std::vector<std::pair<std::uint64_t, Bytes>> rows;
      {
        Use use(read);
        use->bind(1, after);
        int rc = use->step();
        for (; rc == SQLITE_ROW; rc = use->step()) rows.emplace_back(use->number(0), use->bytes(1));
        if (rc != SQLITE_DONE) return db.last_error("read the journal");
      }
      if (rows.empty()) return {};
      for (const auto& [seq, bytes] : rows) {
        const auto fresh = TRY(again(entry_place(seq), bytes));
        if (!fresh) continue;
        Use use(write);
        use->bind(1, seq);
        use->bind(2, ByteView(*fresh));
        if (use->step() != SQLITE_DONE) return db.last_error("write the journal");
      }
      after = rows.back().first;
    }
  }

  Status sides() {
    Statement read =
        TRY(db.prepare("SELECT tbl,key,value FROM side WHERE (tbl,key)>(?1,?2) ORDER BY tbl,key LIMIT 64"));
    Statement write = TRY(db.prepare("UPDATE side SET value=?3 WHERE tbl=?1 AND key=?2"));
    struct Row {
      std::string table, key;
      Bytes value;
    };
    for (std::string table, key;;) {
      std::vector<Row> rows;
      {
        Use use(read);
        use->bind(1, as_bytes(table));
        use->bind(2, as_bytes(key));
        int rc = use->step();
        for (; rc == SQLITE_ROW; rc = use->step()) rows.push_back({use->text(0), use->text(1), use->bytes(2)});
        if (rc != SQLITE_DONE) return db.last_error("read the side tables");
      }
      if (rows.empty()) return {};
      for (const Row& row : rows) {
        const auto fresh = TRY(again(side_place(row.table, row.key), row.value));
        if (!fresh) continue;
        Use use(write);
        use->bind(1, as_bytes(row.table));
        use->bind(2, as_bytes(row.key));
        use->bind(3, ByteView(*fresh));
        if (use->step() != SQLITE_DONE) return db.last_error("write the side tables");
      }
      table = rows.back().table, key = rows.back().key;
    }
  }

  Result<std::vector<std::uint64_t>> snapshot_seqs() {
    Statement read = TRY(db.prepare("SELECT DISTINCT seq FROM part ORDER BY seq"));
    std::vector<std::uint64_t> out;
    int rc = read.step();
    for (; rc == SQLITE_ROW; rc = read.step()) out.push_back(read.number(0));
    if (rc != SQLITE_DONE) return db.last_error("list the snapshots");
    return out;
  }

  // One that is damaged goes: it would never be read again, and may hold plain parts.
  Status snapshots() {
    Statement read = TRY(db.prepare("SELECT bytes FROM part WHERE seq=?1 ORDER BY number"));
    Statement drop = TRY(db.prepare("DELETE FROM part WHERE seq=?1"));
    Statement insert = TRY(db.prepare("INSERT INTO part VALUES(?1,?2,?3)"));
    for (const std::uint64_t seq : TRY(snapshot_seqs())) {
      Bytes bytes;
      {
        Use use(read);
        use->bind(1, seq);
        int rc = use->step();
        for (; rc == SQLITE_ROW; rc = use->step()) {
          const Bytes part = use->bytes(0);
          bytes.insert(bytes.end(), part.begin(), part.end());
        }
        if (rc != SQLITE_DONE) return db.last_error("read a snapshot");
      }
      auto snapshot = journal::decode_snapshot(bytes);
      if (snapshot.ok()) {
        const auto fresh = TRY(again(snapshot_place(*snapshot), snapshot->state));
        if (!fresh) continue;
        snapshot->state = *fresh;
      }
      {
        Use use(drop);
        use->bind(1, seq);
        if (use->step() != SQLITE_DONE) return db.last_error("write a snapshot");
      }
      if (!snapshot.ok()) continue;
      const Bytes whole = journal::encode(*snapshot);
      const ByteView view(whole);
      for (std::size_t at = 0, number = 0; at < view.size(); at += kResealPart, ++number) {
        Use use(insert);
        use->bind(1, seq);
        use->bind(2, std::uint64_t{number});
        use->bind(3, view.subspan(at, std::min(kResealPart, view.size() - at)));
        if (use->step() != SQLITE_DONE) return db.last_error("write a snapshot");
      }
    }
    return {};
  }

  Status addresses() {
    Statement read = TRY(db.prepare(
        "SELECT actor,request,address FROM address WHERE (actor,request)>(?1,?2) ORDER BY actor,request LIMIT 1000"));
    Statement write = TRY(db.prepare("UPDATE address SET address=?3 WHERE actor=?1 AND request=?2"));
    for (std::string actor, request;;) {
      std::vector<journal::AddressRow> rows;
      {
        Use use(read);
        use->bind(1, as_bytes(actor));
        use->bind(2, as_bytes(request));
        int rc = use->step();
        for (; rc == SQLITE_ROW; rc = use->step()) rows.push_back({{}, use->text(0), use->text(1), use->text(2)});
        if (rc != SQLITE_DONE) return db.last_error("read addresses");
      }
      if (rows.empty()) return {};
      for (const auto& row : rows) {
        const auto fresh = TRY(again(address_place(row.actor, row.request), as_bytes(row.address)));
        if (!fresh) continue;
        Use use(write);
        use->bind(1, as_bytes(row.actor));
        use->bind(2, as_bytes(row.request));
        use->bind(3, ByteView(*fresh));
        if (use->step() != SQLITE_DONE) return db.last_error("write addresses");
      }
      actor = rows.back().actor, request = rows.back().request;
    }
  }

  template <typename Body>
  Status transaction(Body body) {
    TRY_VOID(db.run("BEGIN IMMEDIATE"));
    Status done = body();
    if (done && db.exec("COMMIT") != SQLITE_OK) done = db.last_error("commit");
    if (!done) {
      db.rollback();
      return done;
    }
    // The log still holds pages as they were.
    Statement checkpoint = TRY(db.prepare("PRAGMA wal_checkpoint(TRUNCATE)"));
    if (checkpoint.step() != SQLITE_ROW || checkpoint.number(0) != 0)
      return error(Code::Unavailable, "the file's log cannot be cut because the file is in use; stop what uses it");
    return {};
  }
};

template <typename Body>
Result<std::uint64_t> reseal(const std::string& path, crypto::KeyRing& ring, Plain plain, Body body) {
  if (::access(path.c_str(), F_OK) != 0) return std::uint64_t{0};
  Resealer work{TRY(Connection::open(path, {})), ring, plain};
  TRY_VOID(work.transaction([&] { return body(work); }));
  return work.changed;
}

}  // namespace

Result<std::uint64_t> reseal_journal(const std::string& path, crypto::KeyRing& ring, Plain plain) {
  const std::uint64_t entries = TRY(reseal(path, ring, plain, [](Resealer& work) -> Status {
    TRY_VOID(work.entries("SELECT seq,bytes FROM entry WHERE seq>?1 ORDER BY seq LIMIT 500",
                          "UPDATE entry SET bytes=?2 WHERE seq=?1"));
    TRY_VOID(work.entries("SELECT seq,bytes FROM archive WHERE seq>?1 ORDER BY seq LIMIT 500",
                          "UPDATE archive SET bytes=?2 WHERE seq=?1"));
    return work.sides();
  }));
  const std::uint64_t snapshots =
      TRY(reseal(path + "-snapshots", ring, plain, [](Resealer& work) { return work.snapshots(); }));
  return entries + snapshots;
}

Result<std::uint64_t> reseal_addresses(const std::string& path, crypto::KeyRing& ring, Plain plain) {
  return reseal(path, ring, plain, [](Resealer& work) { return work.addresses(); });
}

}  // namespace muster::store
