// Zones against the C library's own reading of the same database, and of bytes that no zone file holds.
#include "server/time_zone.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>

#include "base/rng.h"

namespace muster::server {
namespace {

constexpr WallTime kNow{1'795'000'000'000};  // November 2026
constexpr std::int64_t kHourMs = 3'600'000;

std::int32_t offset_at(const std::vector<ZoneOffset>& offsets, WallTime at) {
  std::int32_t seconds = 0;
  for (const ZoneOffset& each : offsets)
    if (each.from <= at) seconds = each.seconds;
  return seconds;
}
Bytes file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), {});
}
bool have_zones() {
  return std::ifstream(std::string(kZoneFolder) + "/Europe/Berlin").good();
}

TEST(TimeZone, FixedOffsetsNeedNoDatabase) {
  for (const auto& [zone, seconds] : std::vector<std::pair<std::string, std::int32_t>>{
           {"UTC", 0}, {"Z", 0}, {"+02:00", 7200}, {"-3", -10'800}, {"UTC+2", 7200}, {"GMT-05:30", -19'800}}) {
    const auto offsets = zone_offsets(zone, kNow, "tz", "/nowhere");
    ASSERT_TRUE(offsets.ok()) << zone;
    EXPECT_EQ(*offsets, (std::vector<ZoneOffset>{{WallTime{}, seconds}})) << zone;
  }
}

TEST(TimeZone, BadNamesLeadNowhere) {
  for (const char* bad :
       {"", "../../etc/passwd", "/etc/localtime", "Europe/Nowhere", "Europe", "+25:00", "+1:5", "a b"})
    EXPECT_EQ(zone_offsets(bad, kNow, "tz").error().field, "tz") << bad;
  EXPECT_NE(zone_offsets("Europe/Berlin", kNow, "tz", "/nowhere").error().message.find("tzdata"), std::string::npos);
}

TEST(TimeZone, AgreesWithTheCLibrary) {
  if (!have_zones()) GTEST_SKIP() << "no time zone database here";
  for (const char* zone : {"Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Europe/Dublin",
                           "America/Sao_Paulo", "Pacific/Auckland", "Asia/Tokyo", "America/Santiago"}) {
    const auto offsets = zone_offsets(zone, kNow, "tz");
    ASSERT_TRUE(offsets.ok()) << zone << ": " << offsets.error().message;
    EXPECT_EQ(offsets->front().from, WallTime{});
    ASSERT_EQ(setenv("TZ", zone, 1), 0);
    tzset();
    for (WallTime t = kNow; t < kNow + kZoneYears; t = t + Millis(5 * kHourMs)) {
      const std::time_t seconds = t.ms / 1000;
      std::tm local{};
      localtime_r(&seconds, &local);
      ASSERT_EQ(offset_at(*offsets, t), local.tm_gmtoff) << zone << " at " << format_utc(t);
    }
    unsetenv("TZ");
    tzset();
  }
}

// A file that lists no change of the future, only the rule: as small ones are.
TEST(TimeZone, FollowsTheRuleAtTheEnd) {
  Bytes slim = to_bytes("TZif2");
  const auto zeros = [&](std::size_t n) { slim.insert(slim.end(), n, 0); };
  const auto number = [&](std::uint32_t n) {
    for (int shift = 24; shift >= 0; shift -= 8) slim.push_back(static_cast<std::uint8_t>(n >> shift));
  };
  const auto header = [&] {
    zeros(15);
    for (const std::uint32_t count : {0U, 0U, 0U, 0U, 1U, 4U}) number(count);
  };
  const auto body = [&] {
    number(3600);
    zeros(2);
    const Bytes letters = to_bytes(std::string_view("CET\0", 4));
    slim.insert(slim.end(), letters.begin(), letters.end());
  };
  header(), body();
  const Bytes again = to_bytes("TZif2");
  slim.insert(slim.end(), again.begin(), again.end());
  header(), body();
  const Bytes rule = to_bytes("\nCET-1CEST,M3.5.0,M10.5.0/3\n");
  slim.insert(slim.end(), rule.begin(), rule.end());
  const auto offsets = zone_offsets(slim, kNow);
  ASSERT_TRUE(offsets.ok()) << offsets.error().message;
  ASSERT_GT(offsets->size(), 15U);
  EXPECT_EQ((*offsets)[0], (ZoneOffset{WallTime{}, 3600}));
  EXPECT_EQ((*offsets)[1], (ZoneOffset{WallTime{1'806'195'600'000}, 7200})) << "28 March 2027, 1:00 UTC";
  EXPECT_EQ((*offsets)[2], (ZoneOffset{WallTime{1'824'944'400'000}, 3600})) << "31 October 2027, 1:00 UTC";
}

TEST(TimeZone, DamagedFilesAreRefusedOrRead) {
  EXPECT_FALSE(zone_offsets(Bytes{}, kNow).ok());
  EXPECT_FALSE(zone_offsets(to_bytes("no zone at all"), kNow).ok());
  if (!have_zones()) return;
  const Bytes good = file(std::string(kZoneFolder) + "/Europe/Berlin");
  for (std::size_t n = 0; n < good.size(); n += 3) (void)zone_offsets(ByteView(good).first(n), kNow).ok();
  Rng rng(5);
  for (int i = 0; i < 3'000; ++i) {
    Bytes damaged = good;
    for (int k = 0; k < 3; ++k) damaged[rng.below(damaged.size())] = static_cast<std::uint8_t>(rng.next());
    const auto offsets = zone_offsets(damaged, kNow);
    if (!offsets.ok()) continue;
    EXPECT_LE(offsets->size(), 128U);
    for (std::size_t k = 1; k < offsets->size(); ++k) EXPECT_LT((*offsets)[k - 1].from, (*offsets)[k].from);
  }
}

}  // namespace
}  // namespace muster::server
