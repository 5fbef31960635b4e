#pragma once
// The arithmetic of offers: what a lease costs, when a machine may be used, how both are written. Money is in
// millionths of a currency, whole numbers only; hours are minutes of the owner's week, made UTC by the offsets of the
// offer. Pure.
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "model/types.h"

namespace muster {

inline constexpr std::int64_t kPriceMax = 10'000'000'000;          // of an hour: ten thousand
inline constexpr std::int64_t kBudgetMax = 1'000'000'000'000'000;  // a thousand million
inline constexpr std::string_view kPlainCurrency = "credits";      // where none is named
inline constexpr std::int32_t kWeekMinutes = 7 * 24 * 60;

// ---- money
struct Money {
  std::int64_t micros = 0;
  std::string currency;
  bool operator==(const Money&) const = default;
};
// "1.20", "1.2 EUR", "0.75EUR": six digits after the point at most, not negative, `max` at most. Without a name the
// currency is kPlainCurrency.
Result<Money> parse_money(std::string_view text, const std::string& field, std::int64_t max = kPriceMax);
std::string amount_text(std::int64_t micros);                                     // "1.20", "0.123456"
std::string money_text(std::int64_t micros, std::string_view currency);           // "1.20 EUR"
Status validate_currency(const std::string& currency, const std::string& field);  // 1..16 letters
// What a lease costs that lasts so long, by started seconds; hostile numbers are bounded, negative ones cost nothing.
std::int64_t cost_of(std::int64_t price, Millis length);

// What somebody is ready to pay for a machine and hour. No currency: any, at any price.
struct Bid {
  std::int64_t max_price = 0;  // 0 = whatever is asked
  std::string currency;
};
// Asked for a machine, and the least that is taken; nothing, where the two do not come together. Numbers may be
// hostile.
std::optional<std::int64_t> agreed_price(std::int64_t asked, std::int64_t least, std::string_view currency,
                                         const Bid& bid);
// share_milli: of the one GPU, 0 = whole ones.
std::int64_t asked_price(std::int64_t price, std::int64_t gpu_price, std::int64_t gpus, std::int32_t share_milli = 0);
inline std::int64_t asked_price(const Offer& offer, std::int64_t gpus, std::int32_t share_milli) {
  return asked_price(offer.price, offer.gpu_price, gpus, share_milli);
}
inline std::int64_t least_price(const Offer& offer, std::int64_t gpus, std::int32_t share_milli) {
  return asked_price(offer.floor, offer.gpu_floor, gpus, share_milli);
}

// ---- whom and what it takes
// Beginnings of names and digests, of which one must fit where there are any; "!pattern" denies (model/image_policy.h).
bool image_offered(const std::vector<std::string>& patterns, std::string_view image);

// ---- hours
// "Mon-Fri 18:00-08:00, Sat, Sun 00:00-24:00": days, then from when to when; a time that is not later than the first is
// the next day's. Days alone are whole, times alone daily. What covers the whole week comes out empty: always.
Result<std::vector<WeekHours>> parse_schedule(std::string_view text, const std::string& field);
struct Openness {
  bool open = true;
  WallTime until;  // when that changes; 0 = never
};
Openness openness(const Offer& offer, WallTime at);
// When it is open between two times, in UTC; the last may end later than `to`. Empty for an offer without hours.
std::vector<std::pair<WallTime, WallTime>> open_intervals(const Offer& offer, WallTime from, WallTime to);
Millis longest_open(const Offer& offer);  // of its hours, notice taken off; 0 = no hours, so no end

// Bounds and sanity; not whether the tenants exist.
Status validate(const Offer& offer, const std::string& field = "offer");

}  // namespace muster
