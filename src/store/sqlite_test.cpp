#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "store/sqlite_store.h"

namespace muster::store {
namespace {

std::unique_ptr<SqliteStore> open(const std::string& path) {
  SqliteStore::Options options;
  options.path = path;
  auto store = SqliteStore::open(std::move(options));
  return store.ok() ? std::move(*store) : nullptr;
}
// Another process, by exec: a fork alone would inherit what SQLite knows of this one's locks.
bool another_process_sees(const std::string& path, const std::string& key) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  ::setenv("MUSTER_PEEK_PATH", path.c_str(), 1);
  ::setenv("MUSTER_PEEK_KEY", key.c_str(), 1);
  const std::string command =
      "'" + self + "' --gtest_also_run_disabled_tests --gtest_filter=SqliteFile.DISABLED_Peek >/dev/null 2>&1";
  return std::system(command.c_str()) == 0;
}

TEST(SqliteFile, DISABLED_Peek) {  // the other process: opens the store, looks, and closes it
  const char* path = std::getenv("MUSTER_PEEK_PATH");
  const char* key = std::getenv("MUSTER_PEEK_KEY");
  ASSERT_TRUE(path != nullptr && key != nullptr);
  const auto store = open(path);
  ASSERT_NE(store, nullptr);
  EXPECT_TRUE(store->get_meta(key)->has_value());
}

TEST(SqliteFile, AProcessThatComesAndGoesTakesNothingAlong) {
  const std::string folder =
      (std::filesystem::temp_directory_path() / ("muster-sqlite-" + std::to_string(::getpid()))).string();
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const std::string path = folder + "/journal.db";
  {
    const auto store = open(path);
    ASSERT_NE(store, nullptr);
    ASSERT_TRUE(store->put_meta("before", to_bytes("x")).ok());
    EXPECT_TRUE(another_process_sees(path, "before"));
    // Had it deleted the log of this one, what comes now would be durable nowhere and seen by nobody.
    ASSERT_TRUE(store->put_meta("after", to_bytes("x")).ok());
    EXPECT_TRUE(another_process_sees(path, "after"));
    EXPECT_TRUE(std::filesystem::exists(path + "-wal"));
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace muster::store
