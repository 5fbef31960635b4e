#pragma once
// The little of SQLite's C interface that the store needs: owned connections and statements, errors as values. A
// connection is used by one thread at a time (its owner holds a mutex). SQLite 3.40.
#include <sqlite3.h>

#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace muster::store {

class Statement {
 public:
  Statement() = default;
  ~Statement() { sqlite3_finalize(handle_); }
  Statement(Statement&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Statement& operator=(Statement&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  void bind(int index, std::uint64_t value) { sqlite3_bind_int64(handle_, index, static_cast<sqlite3_int64>(value)); }
  void bind(int index, const std::string& text) {
    sqlite3_bind_text(handle_, index, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
  }
  // The bytes must live until reset().
  void bind(int index, ByteView bytes) {
    sqlite3_bind_blob64(handle_, index, bytes.empty() ? "" : static_cast<const void*>(bytes.data()), bytes.size(),
                        SQLITE_STATIC);
  }
  int step() { return sqlite3_step(handle_); }
  void reset() {
    sqlite3_reset(handle_);
    sqlite3_clear_bindings(handle_);
  }
  std::uint64_t number(int column) { return static_cast<std::uint64_t>(sqlite3_column_int64(handle_, column)); }
  Bytes bytes(int column);
  std::string text(int column);

 private:
  friend class Connection;
  sqlite3_stmt* handle_ = nullptr;
};

// Resets its statement when the use ends, so that no read transaction stays open.
class Use {
 public:
  explicit Use(Statement& statement) : statement_(statement) {}
  ~Use() { statement_.reset(); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  Statement* operator->() { return &statement_; }

 private:
  Statement& statement_;
};

class Connection {
 public:
  Connection() = default;
  ~Connection() { sqlite3_close_v2(handle_); }
  Connection(Connection&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Connection& operator=(Connection&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  // Creates the file with mode 0600 where it is missing. vfs: empty = the system's.
  static Result<Connection> open(const std::string& path, const std::string& vfs);
  Status run(const char* sql);
  Result<Statement> prepare(const char* sql);
  int exec(const char* sql) { return sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr); }
  void rollback();
  // What went wrong last, as an Error: full disk = ResourceExhausted, damage = DataLoss, busy = Unavailable.
  Error last_error(const char* doing) const;
  sqlite3* handle() { return handle_; }

 private:
  sqlite3* handle_ = nullptr;
};

}  // namespace muster::store
