#include "store/sqlite_addresses.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace muster::store {
namespace {

class Addresses : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::unique_ptr<SqliteAddresses> open(std::size_t rows_max = 1000) {
    auto book = SqliteAddresses::open(folder_ + "/addresses.db", rows_max);
    EXPECT_TRUE(book.ok()) << (book.ok() ? "" : book.error().message);
    return book.ok() ? std::move(*book) : nullptr;
  }
  // In any file of the folder, whatever its name.
  bool on_disk(const std::string& text) const {
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      std::ifstream in(entry.path(), std::ios::binary);
      const std::string all{std::istreambuf_iterator<char>(in), {}};
      if (all.find(text) != std::string::npos) return true;
    }
    return false;
  }
  std::string folder_ =
      (std::filesystem::temp_directory_path() / ("muster-addresses-" + std::to_string(::getpid()))).string();
};

TEST_F(Addresses, AreFoundByActorAndRequestAlsoAfterARestart) {
  auto book = open();
  ASSERT_TRUE(book->put({{WallTime{1000}, "usr-1", "r1", "192.0.2.1"}, {WallTime{2000}, "usr-2", "r1", "192.0.2.2"}}));
  ASSERT_TRUE(book->put({{WallTime{3000}, "usr-1", "r1", "192.0.2.9"}}));
  book = open();
  EXPECT_EQ(*book->find("usr-1", "r1"), "192.0.2.1") << "a repeat keeps the first";
  EXPECT_EQ(*book->find("usr-2", "r1"), "192.0.2.2");
  EXPECT_EQ(*book->find("usr-1", "r2"), std::nullopt);
  struct stat info {};
  ASSERT_EQ(::stat((folder_ + "/addresses.db").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
}

TEST_F(Addresses, WhatIsErasedIsGoneFromTheFilesToo) {
  auto book = open();
  std::vector<journal::AddressRow> rows;
  for (int i = 0; i < 200; ++i)
    rows.push_back({WallTime{i}, i % 2 == 0 ? "usr-1" : "usr-2", "r" + std::to_string(i),
                    i % 2 == 0 ? "198.51.100.77" : "203.0.113.99"});
  ASSERT_TRUE(book->put(rows));
  ASSERT_TRUE(on_disk("198.51.100.77"));
  EXPECT_EQ(*book->erase_actor("usr-1"), 100U);
  EXPECT_FALSE(on_disk("198.51.100.77"));
  EXPECT_TRUE(on_disk("203.0.113.99"));
  EXPECT_EQ(*book->erase_before(WallTime{1000}), 100U);
  EXPECT_FALSE(on_disk("203.0.113.99"));
}

TEST_F(Addresses, AreBoundedTheOldestGoFirst) {
  auto book = open(100);
  for (int i = 0; i < 150; ++i) ASSERT_TRUE(book->put({{WallTime{i}, "usr-1", "r" + std::to_string(i), "192.0.2.1"}}));
  EXPECT_EQ(*book->find("usr-1", "r10"), std::nullopt);
  EXPECT_NE(*book->find("usr-1", "r149"), std::nullopt);
  EXPECT_LE(*book->erase_actor("usr-1"), 100U);
}

}  // namespace
}  // namespace muster::store
