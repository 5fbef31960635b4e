#include "store/sqlite_addresses.h"

#include "store/sqlite.h"

namespace muster::store {
namespace {

using Lock = std::lock_guard<std::mutex>;

constexpr const char* kCreate =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS address(at INTEGER NOT NULL, actor BLOB NOT NULL, request BLOB NOT NULL, address BLOB "
    "NOT NULL, PRIMARY KEY(actor,request)) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS address_at ON address(at);"
    "PRAGMA user_version=1; COMMIT;";

std::uint64_t millis(WallTime time) {
  return static_cast<std::uint64_t>(time.ms < 0 ? 0 : time.ms);
}

}  // namespace

struct SqliteAddresses::File {
  Connection db;
  Statement insert, find, erase_actor, erase_before, count, trim;
  std::uint64_t held = 0;  // at least what is in the file: others only erase

  Status recount() {
    Use use(count);
    if (use->step() != SQLITE_ROW) return db.last_error("count addresses");
    held = use->number(0);
    return {};
  }

  std::size_t changed() { return static_cast<std::size_t>(sqlite3_changes64(db.handle())); }
  Result<std::size_t> erase(Statement& statement) {
    if (statement.step() != SQLITE_DONE) return db.last_error("erase addresses");
    const std::size_t gone = changed();
    statement.reset();
    // The log still holds the pages as they were. A reader in another process may hold it for a moment; the busy
    // timeout waits for that.
    Statement checkpoint = TRY(db.prepare("PRAGMA wal_checkpoint(TRUNCATE)"));
    if (checkpoint.step() != SQLITE_ROW || checkpoint.number(0) != 0)
      return error(Code::Unavailable,
                   "the addresses are erased, but the file's log still holds them because it is in use; do it again");
    return gone;
  }
};

SqliteAddresses::SqliteAddresses(std::unique_ptr<File> file, std::size_t rows_max)
    : file_(std::move(file)), rows_max_(rows_max) {}
SqliteAddresses::~SqliteAddresses() = default;

Result<std::unique_ptr<SqliteAddresses>> SqliteAddresses::open(const std::string& path, std::size_t rows_max) {
  auto file = std::make_unique<File>();
  file->db = TRY(Connection::open(path, ""));
  Connection& db = file->db;
  // Losing the last moments in a crash is better than a disk write for every request.
  TRY_VOID(db.run("PRAGMA synchronous=NORMAL"));
  TRY_VOID(db.run(kCreate));
  file->insert = TRY(db.prepare("INSERT OR IGNORE INTO address VALUES(?1,?2,?3,?4)"));
  file->find = TRY(db.prepare("SELECT address FROM address WHERE actor=?1 AND request=?2"));
  file->erase_actor = TRY(db.prepare("DELETE FROM address WHERE actor=?1"));
  file->erase_before = TRY(db.prepare("DELETE FROM address WHERE at<?1"));
  file->count = TRY(db.prepare("SELECT count(*) FROM address"));
  file->trim = TRY(
      db.prepare("DELETE FROM address WHERE (actor,request) IN (SELECT actor,request FROM address ORDER BY at LIMIT "
                 "?1)"));
  TRY_VOID(file->recount());
  return std::unique_ptr<SqliteAddresses>(new SqliteAddresses(std::move(file), rows_max));
}

Status SqliteAddresses::put(const std::vector<journal::AddressRow>& rows) {
  const Lock lock(mutex_);
  TRY_VOID(file_->db.run("BEGIN IMMEDIATE"));
  const auto write = [&]() -> Status {
    for (const auto& row : rows) {
      Use use(file_->insert);
      use->bind(1, millis(row.at));
      use->bind(2, as_bytes(row.actor));
      use->bind(3, as_bytes(row.request));
      use->bind(4, as_bytes(row.address));
      if (use->step() != SQLITE_DONE) return file_->db.last_error("write addresses");
    }
    file_->held += rows.size();
    if (file_->held <= rows_max_) return {};
    TRY_VOID(file_->recount());
    if (file_->held <= rows_max_) return {};
    Use trim(file_->trim);
    trim->bind(1, std::uint64_t{file_->held - rows_max_ + rows_max_ / 100});
    if (trim->step() != SQLITE_DONE) return file_->db.last_error("forget the oldest addresses");
    return {};
  };
  Status done = write();
  if (done && file_->db.exec("COMMIT") != SQLITE_OK) done = file_->db.last_error("commit addresses");
  if (!done) file_->db.rollback();
  return done;
}

Result<std::optional<std::string>> SqliteAddresses::find(const std::string& actor, const std::string& request) const {
  const Lock lock(mutex_);
  Use use(file_->find);
  use->bind(1, as_bytes(actor));
  use->bind(2, as_bytes(request));
  const int rc = use->step();
  if (rc == SQLITE_DONE) return std::optional<std::string>();
  if (rc != SQLITE_ROW) return file_->db.last_error("read an address");
  return std::optional<std::string>(use->text(0));
}

Result<std::size_t> SqliteAddresses::erase_actor(const std::string& actor) {
  const Lock lock(mutex_);
  Use use(file_->erase_actor);
  use->bind(1, as_bytes(actor));
  return file_->erase(file_->erase_actor);
}

Result<std::size_t> SqliteAddresses::erase_before(WallTime time) {
  const Lock lock(mutex_);
  Use use(file_->erase_before);
  use->bind(1, millis(time));
  return file_->erase(file_->erase_before);
}

}  // namespace muster::store
