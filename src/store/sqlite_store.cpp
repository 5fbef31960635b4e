#include "store/sqlite_store.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "store/limits.h"
#include "store/sqlite.h"

namespace muster::store {

using journal::AppendOutcome;
using journal::AppendRequest;
using journal::AppendResult;
using Lock = std::lock_guard<std::mutex>;

namespace {

constexpr std::uint64_t kSchema = 1;
constexpr const char* kCreate =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS leader(one INTEGER PRIMARY KEY CHECK(one=1), epoch INTEGER NOT NULL, first_seq INTEGER "
    "NOT NULL);"
    "INSERT OR IGNORE INTO leader VALUES(1,0,1);"
    "CREATE TABLE IF NOT EXISTS entry(seq INTEGER PRIMARY KEY, bytes BLOB NOT NULL);"
    "CREATE TABLE IF NOT EXISTS archive(seq INTEGER PRIMARY KEY, bytes BLOB NOT NULL);"
    "CREATE TABLE IF NOT EXISTS side(tbl BLOB NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY(tbl,key)) "
    "WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS scratch(one INTEGER PRIMARY KEY, filler BLOB);"
    "PRAGMA user_version=1; COMMIT;";
constexpr const char* kCreateSnapshots =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS part(seq INTEGER NOT NULL, number INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY "
    "KEY(seq,number)) WITHOUT ROWID;"
    "PRAGMA user_version=1; COMMIT;";
constexpr std::size_t kPartBytes = 1024 * 1024;
constexpr std::uint64_t kArchiveStep = 2'000;  // rows moved per transaction, so that appends get their turn
constexpr std::size_t kProbeBytes = 256 * 1024;

Status prepare_schema(Connection& db, const char* create) {
  std::uint64_t found = 0;
  {
    auto version = db.prepare("PRAGMA user_version");
    if (!version) return version.error();
    if (version->step() != SQLITE_ROW) return db.last_error("read the file's version");
    found = version->number(0);
  }
  if (found == kSchema) return {};
  if (found == 0) return db.run(create);
  return error(
      Code::Unsupported,
      fmt::format("the journal file has version {}, this program reads {}; use the newer program", found, kSchema));
}

}  // namespace

// The one connection that writes; under its mutex by whoever writes.
struct SqliteStore::Writer {
  std::mutex mutex;
  Connection db;
  Statement leader, set_epoch, set_first, newest, insert, put, erase, archive_copy, archive_drop;

  static Result<std::unique_ptr<Writer>> open(const Options& options) {
    auto writer = std::make_unique<Writer>();
    writer->db = TRY(Connection::open(options.path, options.vfs));
    Connection& db = writer->db;
    TRY_VOID(prepare_schema(db, kCreate));
    writer->leader = TRY(db.prepare("SELECT epoch, first_seq FROM leader"));
    writer->set_epoch = TRY(db.prepare("UPDATE leader SET epoch=?1"));
    writer->set_first = TRY(db.prepare("UPDATE leader SET first_seq=?1"));
    writer->newest = TRY(db.prepare("SELECT seq, bytes FROM entry ORDER BY seq DESC LIMIT 1"));
    writer->insert = TRY(db.prepare("INSERT INTO entry VALUES(?1,?2)"));
    writer->put = TRY(db.prepare("INSERT OR REPLACE INTO side VALUES(?1,?2,?3)"));
    writer->erase = TRY(db.prepare("DELETE FROM side WHERE tbl=?1 AND key=?2"));
    writer->archive_copy = TRY(db.prepare("INSERT OR IGNORE INTO archive SELECT seq, bytes FROM entry WHERE seq<?1"));
    writer->archive_drop = TRY(db.prepare("DELETE FROM entry WHERE seq<?1"));
    return writer;
  }

  Result<journal::Tail> tail() { return read_tail(db, leader, newest); }

  static Result<journal::Tail> read_tail(Connection& db, Statement& leader, Statement& newest) {
    journal::Tail tail;
    Use row(leader);
    if (row->step() != SQLITE_ROW) return db.last_error("read the leader epoch");
    tail.leader_epoch = row->number(0);
    tail.first_seq = row->number(1);
    Use last(newest);
    const int rc = last->step();
    if (rc == SQLITE_DONE) return tail;
    if (rc != SQLITE_ROW) return db.last_error("read the end of the journal");
    tail.seq = last->number(0);
    tail.hash = journal::hash_of(last->bytes(1));
    return tail;
  }

  Status change(Statement& statement) {
    Use use(statement);
    if (use->step() != SQLITE_DONE) return db.last_error("write");
    return {};
  }

  // Everything `body` writes, or nothing of it.
  template <typename Body>
  Status transaction(Body body) {
    TRY_VOID(db.run("BEGIN IMMEDIATE"));
    Status done = body();
    if (done && db.exec("COMMIT") != SQLITE_OK) done = db.last_error("commit");
    if (!done) db.rollback();
    return done;
  }

  Status insert_all(const AppendRequest& request) {
    std::uint64_t seq = request.prev_seq;
    for (const Bytes& bytes : *request.entries) {
      Use use(insert);
      use->bind(1, ++seq);
      use->bind(2, bytes);
      if (use->step() != SQLITE_DONE) return db.last_error("append");
    }
    return {};
  }
};

// Reads never wait for a commit: WAL gives them their own view.
struct SqliteStore::ReadSide {
  std::mutex mutex;
  Connection db;
  Statement leader, newest, range, range_all, get, list;

  static Result<std::unique_ptr<ReadSide>> open(const Options& options) {
    auto side = std::make_unique<ReadSide>();
    side->db = TRY(Connection::open(options.path, options.vfs));
    Connection& db = side->db;
    side->leader = TRY(db.prepare("SELECT epoch, first_seq FROM leader"));
    side->newest = TRY(db.prepare("SELECT seq, bytes FROM entry ORDER BY seq DESC LIMIT 1"));
    side->range = TRY(db.prepare("SELECT bytes FROM entry WHERE seq>=?1 ORDER BY seq LIMIT ?2"));
    side->range_all = TRY(
        db.prepare("SELECT seq, bytes FROM archive WHERE seq>=?1 UNION ALL SELECT seq, bytes FROM entry WHERE seq>=?1 "
                   "ORDER BY seq LIMIT ?2"));
    side->get = TRY(db.prepare("SELECT value FROM side WHERE tbl=?1 AND key=?2"));
    side->list = TRY(db.prepare("SELECT key, value FROM side WHERE tbl=?1 AND key>?2 ORDER BY key LIMIT ?3"));
    return side;
  }

  Result<std::vector<Bytes>> rows(Statement& statement, std::uint64_t from, std::size_t limit, int column) {
    Use use(statement);
    use->bind(1, from);
    use->bind(2, std::uint64_t{limit});
    std::vector<Bytes> out;
    int rc = use->step();
    for (; rc == SQLITE_ROW; rc = use->step()) out.push_back(use->bytes(column));
    if (rc != SQLITE_DONE) return db.last_error("read the journal");
    return out;
  }
};

struct SqliteStore::Snapshots {
  std::mutex mutex;
  Connection db;
  Statement insert, drop, seqs, parts;

  static Result<std::unique_ptr<Snapshots>> open(const Options& options) {
    auto side = std::make_unique<Snapshots>();
    side->db = TRY(Connection::open(options.path + "-snapshots", options.vfs));
    Connection& db = side->db;
    TRY_VOID(prepare_schema(db, kCreateSnapshots));
    side->insert = TRY(db.prepare("INSERT OR REPLACE INTO part VALUES(?1,?2,?3)"));
    side->drop = TRY(db.prepare("DELETE FROM part WHERE seq=?1"));
    side->seqs = TRY(db.prepare("SELECT DISTINCT seq FROM part ORDER BY seq DESC"));
    side->parts = TRY(db.prepare("SELECT bytes FROM part WHERE seq=?1 ORDER BY number"));
    return side;
  }

  Result<std::vector<std::uint64_t>> list() {
    Use use(seqs);
    std::vector<std::uint64_t> out;
    int rc = use->step();
    for (; rc == SQLITE_ROW; rc = use->step()) out.push_back(use->number(0));
    if (rc != SQLITE_DONE) return db.last_error("list the snapshots");
    return out;
  }

  Status remove(std::uint64_t seq) {
    Use use(drop);
    use->bind(1, seq);
    if (use->step() != SQLITE_DONE) return db.last_error("drop an old snapshot");
    return {};
  }

  Status write(std::uint64_t seq, const Bytes& bytes) {
    TRY_VOID(remove(seq));
    const ByteView view(bytes);
    for (std::size_t at = 0, number = 0; at < view.size(); at += kPartBytes, ++number) {
      Use use(insert);
      use->bind(1, seq);
      use->bind(2, std::uint64_t{number});
      use->bind(3, view.subspan(at, std::min(kPartBytes, view.size() - at)));
      if (use->step() != SQLITE_DONE) return db.last_error("write a snapshot");
    }
    const std::vector<std::uint64_t> kept = TRY(list());
    for (std::size_t i = kSnapshotsKept; i < kept.size(); ++i) TRY_VOID(remove(kept[i]));
    return {};
  }
};

SqliteStore::SqliteStore(Options options) : options_(std::move(options)) {}

Result<std::unique_ptr<SqliteStore>> SqliteStore::open(Options options) {
  std::unique_ptr<SqliteStore> store(new SqliteStore(std::move(options)));
  store->writer_ = TRY(Writer::open(store->options_));
  store->reader_ = TRY(ReadSide::open(store->options_));
  store->snapshots_ = TRY(Snapshots::open(store->options_));
  if (store->options_.threaded) store->thread_ = std::thread([raw = store.get()] { raw->loop(); });
  return store;
}

SqliteStore::~SqliteStore() {
  {
    Lock lock(queue_mutex_);
    stopping_ = true;
  }
  queue_changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void SqliteStore::append(AppendRequest request, std::function<void(AppendResult)> done) {
  if (!options_.threaded) {
    std::vector<Queued> group;
    group.push_back({std::move(request), std::move(done)});
    commit_group(std::move(group));
    return;
  }
  bool full = false;
  {
    Lock lock(queue_mutex_);
    full = queue_.size() >= options_.queue_max || stopping_;
    if (!full) queue_.push_back({std::move(request), std::move(done)});
  }
  if (full) {
    done({AppendOutcome::Error, "too many appends wait for the disk"});
    return;
  }
  queue_changed_.notify_one();
}

void SqliteStore::loop() {
  while (true) {
    std::vector<Queued> group;
    {
      std::unique_lock lock(queue_mutex_);
      queue_changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      std::size_t entries = 0;
      while (!queue_.empty() && entries < journal::kAppendEntriesMax) {
        entries += queue_.front().request.entries ? queue_.front().request.entries->size() : 0;
        group.push_back(std::move(queue_.front()));
        queue_.pop_front();
      }
    }
    commit_group(std::move(group));
  }
}

void SqliteStore::commit_group(std::vector<Queued> group) {
  std::vector<AppendResult> results(group.size(), AppendResult{AppendOutcome::Committed, {}});
  {
    Lock lock(writer_->mutex);
    Connection& db = writer_->db;
    bool any = false, commit_tried = false;
    Status done = db.run("BEGIN IMMEDIATE");
    if (done) {
      auto tail = writer_->tail();
      if (!tail) done = tail.error();
      for (std::size_t i = 0; done && i < group.size(); ++i) {
        const AppendRequest& request = group[i].request;
        if (auto refused = refuse(request, *tail)) {
          results[i] = *refused;
          continue;
        }
        done = writer_->insert_all(request);
        if (!done) break;
        any = true;
        tail->seq += request.entries->size();
        tail->hash = journal::hash_of(request.entries->back());
      }
    }
    if (done && any) {
      commit_tried = true;
      if (db.exec("COMMIT") != SQLITE_OK) done = db.last_error("commit");
      ++transactions_;
    }
    db.rollback();
    if (!done) {
      // Before COMMIT nothing can have reached the disk as committed; a full disk is noticed before the commit mark is
      // written.
      const bool full = done.error().code == Code::ResourceExhausted;
      const AppendOutcome outcome = full           ? AppendOutcome::DiskFull
                                    : commit_tried ? AppendOutcome::Ambiguous
                                                   : AppendOutcome::Error;
      for (AppendResult& result : results) {
        if (result.outcome == AppendOutcome::Committed) result = {outcome, done.error().message};
      }
    }
  }
  for (std::size_t i = 0; i < group.size(); ++i) group[i].done(std::move(results[i]));
}

Result<std::vector<Bytes>> SqliteStore::read(std::uint64_t from, std::size_t limit) const {
  Lock lock(reader_->mutex);
  const journal::Tail tail = TRY(Writer::read_tail(reader_->db, reader_->leader, reader_->newest));
  if (from < tail.first_seq) return archived_away(from, tail.first_seq);
  return reader_->rows(reader_->range, from, limit, 0);
}

Result<std::vector<Bytes>> SqliteStore::read_all(std::uint64_t from, std::size_t limit) const {
  Lock lock(reader_->mutex);
  return reader_->rows(reader_->range_all, from, limit, 1);
}

Result<journal::Tail> SqliteStore::tail() const {
  Lock lock(reader_->mutex);
  return Writer::read_tail(reader_->db, reader_->leader, reader_->newest);
}

Result<std::uint64_t> SqliteStore::acquire_leader(std::uint64_t expected) {
  Lock lock(writer_->mutex);
  std::uint64_t epoch = 0;
  TRY_VOID(writer_->transaction([&]() -> Status {
    const journal::Tail tail = TRY(writer_->tail());
    if (expected != journal::kAnyEpoch && expected != tail.leader_epoch) return deposed(expected, tail.leader_epoch);
    epoch = tail.leader_epoch + 1;
    writer_->set_epoch.bind(1, epoch);
    return writer_->change(writer_->set_epoch);
  }));
  return epoch;
}

Status SqliteStore::probe() {
  Lock lock(writer_->mutex);
  const std::string fill = fmt::format("INSERT OR REPLACE INTO scratch VALUES(1, randomblob({}))", kProbeBytes);
  TRY_VOID(writer_->transaction([&]() -> Status { return writer_->db.run(fill.c_str()); }));
  return writer_->db.run("DELETE FROM scratch");
}

Status SqliteStore::save_snapshot(const journal::Snapshot& snapshot) {
  const Bytes bytes = journal::encode(snapshot);
  Lock lock(snapshots_->mutex);
  TRY_VOID(snapshots_->db.run("BEGIN IMMEDIATE"));
  Status done = snapshots_->write(snapshot.seq, bytes);
  if (done && snapshots_->db.exec("COMMIT") != SQLITE_OK) done = snapshots_->db.last_error("commit a snapshot");
  if (!done) snapshots_->db.rollback();
  return done;
}

Result<std::optional<journal::Snapshot>> SqliteStore::load_snapshot(std::uint64_t up_to) const {
  Lock lock(snapshots_->mutex);
  const std::vector<std::uint64_t> seqs = TRY(snapshots_->list());
  for (const std::uint64_t seq : seqs) {
    if (seq > up_to) continue;
    Use use(snapshots_->parts);
    use->bind(1, seq);
    Bytes bytes;
    int rc = use->step();
    for (; rc == SQLITE_ROW; rc = use->step()) {
      const Bytes part = use->bytes(0);
      bytes.insert(bytes.end(), part.begin(), part.end());
    }
    if (rc != SQLITE_DONE) continue;
    auto snapshot = journal::decode_snapshot(bytes);
    if (snapshot && snapshot->seq == seq) return std::optional(std::move(*snapshot));
  }
  return std::optional<journal::Snapshot>();
}

Status SqliteStore::archive_before(std::uint64_t seq) {
  std::uint64_t newest = 0;
  {
    Lock lock(snapshots_->mutex);
    const std::vector<std::uint64_t> seqs = TRY(snapshots_->list());
    if (!seqs.empty()) newest = seqs.front();
  }
  while (true) {
    Lock lock(writer_->mutex);
    const journal::Tail tail = TRY(writer_->tail());
    TRY_VOID(may_archive(seq, newest, tail.seq));
    if (tail.first_seq >= seq) return {};
    const std::uint64_t step = std::min(seq, tail.first_seq + kArchiveStep);
    TRY_VOID(writer_->transaction([&]() -> Status {
      for (Statement* statement : {&writer_->archive_copy, &writer_->archive_drop, &writer_->set_first}) {
        statement->bind(1, step);
        TRY_VOID(writer_->change(*statement));
      }
      return {};
    }));
  }
}

Result<std::optional<Bytes>> SqliteStore::get_side(const std::string& table, const std::string& key) const {
  Lock lock(reader_->mutex);
  Use use(reader_->get);
  use->bind(1, as_bytes(table));
  use->bind(2, as_bytes(key));
  const int rc = use->step();
  if (rc == SQLITE_ROW) return std::optional(use->bytes(0));
  if (rc != SQLITE_DONE) return reader_->db.last_error("read a side table");
  return std::optional<Bytes>();
}

Status SqliteStore::put_side(const std::string& table, const std::string& key, const Bytes& value) {
  TRY_VOID(check_side(table, key, value.size()));
  Lock lock(writer_->mutex);
  writer_->put.bind(1, as_bytes(table));
  writer_->put.bind(2, as_bytes(key));
  writer_->put.bind(3, ByteView(value));
  return writer_->change(writer_->put);
}

Status SqliteStore::erase_side(const std::string& table, const std::string& key) {
  Lock lock(writer_->mutex);
  writer_->erase.bind(1, as_bytes(table));
  writer_->erase.bind(2, as_bytes(key));
  return writer_->change(writer_->erase);
}

Result<std::vector<std::pair<std::string, Bytes>>> SqliteStore::list_side(const std::string& table,
                                                                          const std::string& after,
                                                                          std::size_t limit) const {
  Lock lock(reader_->mutex);
  Use use(reader_->list);
  use->bind(1, as_bytes(table));
  use->bind(2, as_bytes(after));
  use->bind(3, std::uint64_t{limit});
  std::vector<std::pair<std::string, Bytes>> out;
  int rc = use->step();
  for (; rc == SQLITE_ROW; rc = use->step()) out.emplace_back(use->text(0), use->bytes(1));
  if (rc != SQLITE_DONE) return reader_->db.last_error("list a side table");
  return out;
}

namespace {
// One plain file, complete in itself, and only then under its name.
Status copy_database(const std::string& from, const std::string& to, const std::string& vfs) {
  if (::access(to.c_str(), F_OK) == 0) return error(Code::AlreadyExists, to + " is there already; name a new file");
  const std::string part = to + ".part";
  ::unlink(part.c_str());
  auto target = Connection::open(part, vfs);
  if (!target) return target.error();
  auto source = Connection::open(from, vfs);
  if (!source) return source.error();
  sqlite3_backup* copy = sqlite3_backup_init(target->handle(), "main", source->handle(), "main");
  if (copy == nullptr) return target->last_error("begin the copy");
  const int rc = sqlite3_backup_step(copy, -1);
  sqlite3_backup_finish(copy);
  if (rc != SQLITE_DONE) return target->last_error("copy the journal");
  TRY_VOID(target->run("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=DELETE;"));
  *target = Connection();
  if (::rename(part.c_str(), to.c_str()) != 0) return error(Code::Unavailable, "cannot name the finished copy " + to);
  return {};
}
}  // namespace

Status SqliteStore::backup(const std::string& path) const {
  return copy_database(options_.path, path, options_.vfs);
}

Status SqliteStore::restore(const std::string& backup, const std::string& path) {
  if (::access(backup.c_str(), R_OK) != 0) return error(Code::NotFound, "there is no readable backup at " + backup);
  return copy_database(backup, path, {});
}

}  // namespace muster::store
