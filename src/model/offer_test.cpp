// Money, hours and what two sides agree on.
#include "model/offer.h"

#include <gtest/gtest.h>

#include <limits>

namespace muster {
namespace {

constexpr std::int64_t kHourMs = 3'600'000, kDayMs = 24 * kHourMs;
// Monday, 5 January 2026, midnight UTC.
constexpr WallTime kMonday{1'767'571'200'000};

TEST(MoneyText, IsReadAndWrittenWithoutLoss) {
  EXPECT_EQ(parse_money("1.20", "x").value(), (Money{1'200'000, "credits"}));
  EXPECT_EQ(parse_money(" 0.000001 EUR ", "x").value(), (Money{1, "EUR"}));
  EXPECT_EQ(parse_money("12USD", "x").value(), (Money{12'000'000, "USD"}));
  for (const char* bad : {"", "-1", "1.", ".5", "1,20", "1.2345678", "1.20 EUR2", "10000.000001", "1e3", "EUR",
                          "1 EUR EUR EUR EUR EUR", "99999999999999999999"})
    EXPECT_EQ(parse_money(bad, "max_price").error().field, "max_price") << bad;
  EXPECT_EQ(parse_money("10000", "x")->micros, kPriceMax);
  EXPECT_EQ(amount_text(1'200'000), "1.20");
  EXPECT_EQ(amount_text(1), "0.000001");
  EXPECT_EQ(amount_text(-1'250'500), "-1.2505");
  EXPECT_EQ(money_text(35'000'000, "EUR"), "35.00 EUR");
  EXPECT_EQ(money_text(0, ""), "0.00 credits");
}

TEST(MoneyText, CostsAreByStartedSeconds) {
  EXPECT_EQ(cost_of(3'600'000'000, 1ms), 1'000'000);
  EXPECT_EQ(cost_of(3'600'000'000, 90min), std::int64_t{5'400} * 1'000'000);
  EXPECT_EQ(cost_of(0, 1h), 0);
  EXPECT_EQ(cost_of(-5, 1h), 0);
  EXPECT_EQ(cost_of(5, Millis(-1)), 0);
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  EXPECT_GT(cost_of(most, Millis(most)), 0) << "hostile numbers are bounded";
}

TEST(Agreement, ByPriceFloorAndCurrency) {
  const auto agreed = [](std::int64_t asked, std::int64_t least, const char* currency, Bid bid) {
    return agreed_price(asked, least, currency, bid);
  };
  EXPECT_EQ(agreed(5, 5, "EUR", {}), 5) << "whatever is asked";
  EXPECT_EQ(agreed(5, 5, "EUR", {5, "EUR"}), 5);
  EXPECT_EQ(agreed(6, 6, "EUR", {5, "EUR"}), std::nullopt);
  EXPECT_EQ(agreed(6, 4, "EUR", {5, "EUR"}), 5) << "who may pay no more pays that";
  EXPECT_EQ(agreed(6, 4, "EUR", {3, "EUR"}), std::nullopt);
  EXPECT_EQ(agreed(1, 1, "USD", {5, "EUR"}), std::nullopt);
  EXPECT_EQ(agreed(1, 1, "USD", {0, "EUR"}), std::nullopt) << "a budget is of one currency";
  EXPECT_EQ(agreed(0, 0, "USD", {5, "EUR"}), 0) << "what is free is free in every currency";
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(asked_price(most, most, most), 65 * kPriceMax);
  EXPECT_EQ(asked_price(-most, -most, -most), 0);
}

TEST(Images, ByBeginningOrDigest) {
  EXPECT_TRUE(image_offered({}, "x"));
  EXPECT_TRUE(image_offered({"muster/", "rayproject/ray:2"}, "rayproject/ray:2.55.1"));
  EXPECT_FALSE(image_offered({"muster/"}, "evil/muster/"));
  EXPECT_TRUE(image_offered({"sha256:ab12"}, "muster/ray@sha256:ab12ff"));
  EXPECT_FALSE(image_offered({"sha256:ab12"}, "muster/ray@sha256:cd"));
  EXPECT_FALSE(image_offered({"sha256:ab12"}, "muster/ray:1"));
  EXPECT_TRUE(image_offered({"!evil/*"}, "muster/ray:1")) << "all but those";
  EXPECT_FALSE(image_offered({"!evil/*"}, "docker.io/evil/miner")) << "however it is written";
  EXPECT_FALSE(image_offered({"muster/", "!muster/old"}, "muster/old:2"));
  EXPECT_FALSE(image_offered({"muster/", "!evil/*"}, "other/x"));
  EXPECT_FALSE(image_offered({"!sha256:" + std::string(64, 'a')}, "x@sha256:" + std::string(64, 'a')));
}

Offer with_hours(const std::string& text) {
  Offer offer;
  offer.currency = "EUR", offer.schedule = text;
  const auto hours = parse_schedule(text, "hours");
  EXPECT_TRUE(hours.ok()) << text;
  if (hours.ok()) offer.hours = *hours;
  return offer;
}

TEST(Schedule, SaysWhatItSays) {
  EXPECT_EQ(with_hours("Mon 09:00-17:00").hours, (std::vector<WeekHours>{{540, 1020}}));
  EXPECT_EQ(with_hours("sun 18:00-08:00").hours, (std::vector<WeekHours>{{0, 480}, {9720, 10080}}));
  EXPECT_EQ(with_hours("Sat, Sun").hours, (std::vector<WeekHours>{{7200, 10080}}));
  EXPECT_EQ(with_hours("Fri-Mon 00:00-24:00").hours, (std::vector<WeekHours>{{0, 1440}, {5760, 10080}}));
  EXPECT_EQ(with_hours("20:00-08:00").hours.size(), 8U) << "every night, the one over Sunday in two parts";
  EXPECT_TRUE(with_hours("Mon-Sun").hours.empty()) << "always";
  for (const char* bad : {"", " , ", "Mon 9-17", "Mo 09:00-17:00", "Mon 09:00-09:00", "Mon 25:00-26:00", "Mon-",
                          "Mon 24:00-08:00", "09:00-17:00 Mon", "Mon 09:00"})
    EXPECT_EQ(parse_schedule(bad, "hours").error().field, "hours") << bad;
}

// Every minute of a year against the words themselves.
TEST(Schedule, OpennessIsWhatTheWordsSayAndEndsWhenItSays) {
  for (const char* text : {"Mon-Fri 18:00-08:00", "Sat, Sun", "Wed 23:30-00:15, Thu 00:15-00:45", "Sun 22:00-02:00"}) {
    Offer offer = with_hours(text);
    // Berlin in 2026: an hour forward on 29 March, back on 25 October, both at 1:00 UTC.
    const WallTime spring{1'774'746'000'000}, autumn{1'792'890'000'000};
    offer.offsets = {{WallTime{}, 3600}, {spring, 7200}, {autumn, 3600}};
    const auto open_by_words = [&](WallTime at) {
      const std::int64_t local = at.ms + (at >= spring && at < autumn ? 7200 : 3600) * 1000;
      const auto minute = static_cast<std::int32_t>((local / 60'000 + 3 * 1440) % kWeekMinutes);
      for (const WeekHours& each : offer.hours)
        if (minute >= each.from && minute < each.to) return true;
      return false;
    };
    Openness now;
    for (WallTime t = kMonday; t < kMonday + Millis(364 * kDayMs); t = t + 1min) {
      if (now.until <= t) now = openness(offer, t);
      ASSERT_EQ(now.open, open_by_words(t)) << text << " " << t.ms;
      ASSERT_GT(now.until, t);
    }
  }
}

TEST(Schedule, IntervalsAreInOrderAndWhole) {
  const Offer offer = with_hours("Mon-Fri 18:00-08:00");
  const auto all = open_intervals(offer, kMonday, kMonday + Millis(7 * kDayMs));
  ASSERT_EQ(all.size(), 5U);
  EXPECT_EQ(all[0], std::pair(kMonday + 18h, kMonday + 32h));
  EXPECT_EQ(all[4], std::pair(kMonday + Millis(4 * kDayMs) + 18h, kMonday + Millis(5 * kDayMs) + 8h));
  EXPECT_TRUE(open_intervals(Offer{}, kMonday, kMonday + 24h).empty());
  EXPECT_EQ(longest_open(offer), Millis(14h));
  Offer noticed = offer;
  noticed.notice = 30min;
  EXPECT_EQ(longest_open(noticed), Millis(13h + 30min));
  EXPECT_EQ(longest_open(with_hours("Sat, Sun, Mon 00:00-06:00")), Millis(54h)) << "over the end of the week";
  EXPECT_EQ(longest_open(Offer{}), Millis(0));
}

TEST(OfferCheck, NamesWhatIsWrong) {
  Offer good = with_hours("Mon-Fri 18:00-08:00");
  good.price = 1'200'000, good.floor = 1'000'000, good.images = {"muster/"}, good.longest = 12h, good.notice = 15min;
  EXPECT_TRUE(validate(good).ok()) << validate(good).error().message;
  const auto wrong = [&](const char* field, auto change) {
    Offer offer = good;
    change(offer);
    const Status status = validate(offer);
    ASSERT_FALSE(status.ok()) << field;
    EXPECT_EQ(status.error().field, std::string("offer.") + field);
  };
  wrong("price", [](Offer& o) { o.price = -1; });
  wrong("price", [](Offer& o) { o.price = kPriceMax + 1; });
  wrong("gpu_price", [](Offer& o) { o.gpu_price = -1; });
  wrong("floor", [](Offer& o) { o.floor = o.price + 1; });
  wrong("gpu_floor", [](Offer& o) { o.gpu_floor = 1; });
  wrong("currency", [](Offer& o) { o.currency = ""; });
  wrong("currency", [](Offer& o) { o.currency = "EURO 2"; });
  wrong("tenants", [](Offer& o) { o.tenants.resize(257, OrgId{1}); });
  wrong("images", [](Offer& o) { o.images.push_back(""); });
  wrong("images", [](Offer& o) { o.images.push_back("a b"); });
  wrong("longest", [](Offer& o) { o.longest = Millis(-1); });
  wrong("longest", [](Offer& o) { o.longest = 1min; });
  wrong("notice", [](Offer& o) { o.notice = 25h; });
  wrong("notice", [](Offer& o) { o.notice = 14h; });
  wrong("hours", [](Offer& o) { o.hours = {{100, 50}}; });
  wrong("hours", [](Offer& o) { o.hours = {{0, 100}, {50, 200}}; });
  wrong("offsets", [](Offer& o) { o.offsets = {{WallTime{}, 100'000}}; });
}

}  // namespace
}  // namespace muster
