#include "session/carried_book.h"

#include <gtest/gtest.h>

namespace muster::session {
namespace {

constexpr ClusterId kCarriedFor{1};
constexpr NodeId kWhoCarried{30};
constexpr std::uint32_t kA = 1, kB = 2, kC = 3;  // C carries between A and B
constexpr WallTime kBookStart{1'000'000};

NetReport counts_of(WallTime from, std::vector<NetCarried> carried) {
  NetReport report;
  report.counted_from = from, report.carried = std::move(carried);
  return report;
}
std::optional<NodeId> book_node_at(std::uint32_t address) {
  return address >= kA && address <= kC ? std::optional(NodeId{27U + address}) : std::nullopt;
}

struct Ledger {
  CarriedBook book{kBookStart};
  void a(std::uint64_t sent, std::uint64_t received, WallTime from = kBookStart) {
    book.note(kCarriedFor, kA, counts_of(from, {{kC, kB, sent, received}}), book_node_at);
  }
  void b(std::uint64_t sent, std::uint64_t received, WallTime from = kBookStart) {
    book.note(kCarriedFor, kB, counts_of(from, {{kC, kA, sent, received}}), book_node_at);
  }
  std::uint64_t owed() const {
    const auto all = book.owed();
    if (all.empty()) return 0;
    EXPECT_EQ(all.size(), 1U);
    EXPECT_EQ(all[0].node, kWhoCarried);
    return all[0].bytes;
  }
};

TEST(CarriedBook, OwesWhatBothEndsSigned) {
  Ledger l;
  l.a(1'000, 0);
  EXPECT_EQ(l.owed(), 0U) << "the one end alone says nothing";
  l.b(0, 900);
  EXPECT_EQ(l.owed(), 900U) << "the smaller of the two";
  l.a(1'000, 70), l.b(50, 1'000);
  EXPECT_EQ(l.owed(), 1'050U) << "each direction for itself";
  l.book.kept(l.book.owed());
  EXPECT_EQ(l.owed(), 0U);
  l.a(1'000, 70), l.b(50, 1'000);
  EXPECT_EQ(l.owed(), 0U) << "the same counts again are nothing more";
  l.a(1'500, 70), l.b(50, 1'400);
  EXPECT_EQ(l.owed(), 400U);
}

TEST(CarriedBook, AnEndThatBeginsToCountAnewTakesNothingBack) {
  Ledger l;
  l.a(1'000, 0), l.b(0, 1'000);
  l.book.kept(l.book.owed());
  l.a(200, 0, kBookStart + Millis(5)), l.b(0, 1'200);
  EXPECT_EQ(l.owed(), 200U);
  l.a(5'000, 0, kBookStart);
  EXPECT_EQ(l.owed(), 200U) << "a late report of its earlier life";
}

TEST(CarriedBook, AfterAStartNothingIsCountedTwice) {
  Ledger l;
  l.a(7'000, 0, WallTime{5}), l.b(0, 7'000, WallTime{5});
  EXPECT_EQ(l.owed(), 0U) << "it may have been kept before";
  l.a(7'300, 0, WallTime{5}), l.b(0, 7'400, WallTime{5});
  EXPECT_EQ(l.owed(), 300U);
}

TEST(CarriedBook, NobodyIsOwedForItselfOrForStrangers) {
  Ledger l;
  l.book.note(kCarriedFor, kC, counts_of(kBookStart, {{kC, kB, 500, 500}}), book_node_at);
  l.book.note(kCarriedFor, kB, counts_of(kBookStart, {{kC, kC, 500, 500}, {77, kC, 9, 9}, {kB, kA, 9, 9}}),
              book_node_at);
  EXPECT_EQ(l.book.size(), 0U);
  l.a(1, 0), l.b(0, 1);
  l.book.keep_only([](ClusterId id) { return id != kCarriedFor; });
  EXPECT_EQ(l.book.size(), 0U);
  EXPECT_TRUE(l.book.owed().empty());
}

TEST(CarriedBook, StaysBounded) {
  CarriedBook book{kBookStart};
  for (std::uint32_t n = 0; n < CarriedBook::kPairsMax + 5; ++n)
    book.note(ClusterId{n + 1}, kA, counts_of(kBookStart, {{kC, kB, 10, 0}}), book_node_at);
  EXPECT_EQ(book.size(), CarriedBook::kPairsMax);
}

}  // namespace
}  // namespace muster::session
