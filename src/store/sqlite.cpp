#include "store/sqlite.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/limits.h"

namespace muster::store {
namespace {
constexpr int kBusyMs = 10'000;
}

Bytes Statement::bytes(int column) {
  const auto* data = static_cast<const std::uint8_t*>(sqlite3_column_blob(handle_, column));
  const auto size = static_cast<std::size_t>(sqlite3_column_bytes(handle_, column));
  return data == nullptr ? Bytes() : Bytes(data, data + size);
}

std::string Statement::text(int column) {
  return as_string(bytes(column));
}

Result<Connection> Connection::open(const std::string& path, const std::string& vfs) {
  // SQLite gives -wal and -shm the mode of the main file, so the mode is set before it opens anything.
  // A file that is there is not opened here: closing it would drop the locks that other connections of this process
  // hold on it (POSIX locks belong to the process), and the next process to leave would delete their log.
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  struct stat info {};
  const bool usable = fd >= 0 || (errno == EEXIST && ::lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
                                  ::access(path.c_str(), R_OK | W_OK) == 0);
  if (!usable) {
    return muster::error(
        Code::Unavailable,
        fmt::format("cannot open {} for writing (errno {}); check the folder and its owner", path, errno));
  }
  if (fd >= 0) ::close(fd);
  Connection connection;
  constexpr int kFlags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  const int rc = sqlite3_open_v2(path.c_str(), &connection.handle_, kFlags, vfs.empty() ? nullptr : vfs.c_str());
  if (rc != SQLITE_OK) return connection.last_error("open the journal");
  sqlite3_busy_timeout(connection.handle_, kBusyMs);
  TRY_VOID(connection.run(
      "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF;"
      "PRAGMA wal_autocheckpoint=4000; PRAGMA journal_size_limit=67108864; PRAGMA temp_store=MEMORY; PRAGMA "
      "secure_delete=ON;"));
  return connection;
}

Status Connection::run(const char* sql) {
  if (exec(sql) != SQLITE_OK) return last_error("run a statement");
  return {};
}

Result<Statement> Connection::prepare(const char* sql) {
  Statement statement;
  if (sqlite3_prepare_v3(handle_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement.handle_, nullptr) != SQLITE_OK) {
    return last_error("prepare a statement");
  }
  return statement;
}

void Connection::rollback() {
  if (sqlite3_get_autocommit(handle_) == 0) exec("ROLLBACK");
}

Error Connection::last_error(const char* doing) const {
  const int rc = handle_ == nullptr ? SQLITE_NOMEM : sqlite3_extended_errcode(handle_);
  const char* text = handle_ == nullptr ? "out of memory" : sqlite3_errmsg(handle_);
  switch (rc & 0xff) {
    case SQLITE_FULL:
      return muster::error(Code::ResourceExhausted, kDiskFullText);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return muster::error(Code::DataLoss,
                           fmt::format("cannot {}: the file is damaged ({}); restore a backup", doing, text));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return muster::error(Code::Unavailable,
                           fmt::format("cannot {}: another process holds the file ({}); stop it", doing, text));
    default:
      return muster::error(Code::Unavailable, fmt::format("cannot {}: {} (SQLite {})", doing, text, rc));
  }
}

}  // namespace muster::store
