#include "model/offer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/bytes.h"
#include "model/image_policy.h"

namespace muster {
namespace {

constexpr std::int64_t kMicros = 1'000'000;
constexpr std::size_t kTenantsMax = 256, kImagesMax = 64, kHoursMax = 64, kOffsetsMax = 128;
constexpr std::int64_t kMinuteMs = 60'000, kDayMs = 24 * 60 * kMinuteMs, kWeekMs = 7 * kDayMs;
constexpr std::int32_t kDayMinutes = 24 * 60;
constexpr std::array<std::string_view, 7> kDays{"mon", "tue", "wed", "thu", "fri", "sat", "sun"};

Error amiss(const std::string& field, const std::string& what) {
  return error(Code::InvalidArgument, field + " " + what, field);
}
bool digit(char c) {
  return c >= '0' && c <= '9';
}
bool letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// ---- hours
std::optional<int> day_of(std::string_view text) {
  std::string lower(text.substr(0, 3));
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  const auto found = std::find(kDays.begin(), kDays.end(), lower);
  if (text.size() != 3 || found == kDays.end()) return {};
  return static_cast<int>(found - kDays.begin());
}
std::optional<std::int32_t> minute_of(std::string_view text) {  // "18:00", "24:00"
  if (text.size() != 5 || text[2] != ':' || !digit(text[0]) || !digit(text[1]) || !digit(text[3]) || !digit(text[4]))
    return {};
  const int hours = (text[0] - '0') * 10 + text[1] - '0', minutes = (text[3] - '0') * 10 + text[4] - '0';
  if (minutes > 59 || hours * 60 + minutes > kDayMinutes) return {};
  return hours * 60 + minutes;
}
// Splits at the dash; without one both halves are the text.
std::pair<std::string_view, std::string_view> range_of(std::string_view text) {
  const auto dash = text.find('-');
  if (dash == std::string_view::npos) return {text, text};
  return {trimmed(text.substr(0, dash)), trimmed(text.substr(dash + 1))};
}

std::vector<WeekHours> tidied(std::vector<WeekHours> hours) {
  std::sort(hours.begin(), hours.end(),
            [](const WeekHours& a, const WeekHours& b) { return std::pair(a.from, a.to) < std::pair(b.from, b.to); });
  std::vector<WeekHours> out;
  for (const WeekHours& each : hours) {
    if (!out.empty() && each.from <= out.back().to)
      out.back().to = std::max(out.back().to, each.to);
    else
      out.push_back(each);
  }
  if (out.size() == 1 && out[0] == WeekHours{0, kWeekMinutes}) out.clear();
  return out;
}

std::int32_t offset_at(const Offer& offer, WallTime at) {
  std::int32_t seconds = offer.offsets.empty() ? 0 : offer.offsets.front().seconds;
  for (const ZoneOffset& each : offer.offsets)
    if (each.from <= at) seconds = each.seconds;
  return seconds;
}
// Milliseconds into the owner's week. 1 January 1970 was a Thursday.
std::int64_t week_ms(const Offer& offer, WallTime at) {
  const std::int64_t local = at.ms + std::int64_t{offset_at(offer, at)} * 1000 + 3 * kDayMs;
  return (local % kWeekMs + kWeekMs) % kWeekMs;
}
bool open_at(const Offer& offer, WallTime at) {
  const std::int64_t ms = week_ms(offer, at);
  return std::any_of(offer.hours.begin(), offer.hours.end(),
                     [&](const WeekHours& each) { return ms >= each.from * kMinuteMs && ms < each.to * kMinuteMs; });
}
// The next time at which it may open or close: where hours begin or end, at the end of the week, or when the clock is
// set.
WallTime next_bound(const Offer& offer, WallTime at) {
  const std::int64_t ms = week_ms(offer, at);
  std::int64_t next = kWeekMs;
  for (const WeekHours& each : offer.hours)
    for (const std::int32_t minute : {each.from, each.to})
      if (minute * kMinuteMs > ms) next = std::min(next, minute * kMinuteMs);
  WallTime bound = at + Millis(next - ms);
  for (const ZoneOffset& each : offer.offsets)
    if (each.from > at) bound = std::min(bound, each.from);
  return bound;
}

}  // namespace

// ---- money
Status validate_currency(const std::string& currency, const std::string& field) {
  if (!currency.empty() && currency.size() <= 16 && std::all_of(currency.begin(), currency.end(), letter)) return {};
  return amiss(field, "must be the name of a currency, 1 to 16 letters, such as EUR or credits");
}

Result<Money> parse_money(std::string_view text, const std::string& field, std::int64_t max) {
  const Error form = amiss(field, fmt::format("must be an amount such as 1.20 or \"1.20 EUR\", with at most six digits "
                                              "after the point, from 0 to {}",
                                              max / kMicros));
  text = trimmed(text);
  std::size_t i = 0;
  std::int64_t whole = 0, part = 0;
  for (; i < text.size() && digit(text[i]); ++i) {
    whole = whole * 10 + (text[i] - '0');
    if (whole > max / kMicros) return form;
  }
  if (i == 0) return form;
  if (i < text.size() && text[i] == '.') {
    const std::size_t begin = ++i;
    std::int64_t unit = kMicros / 10;
    for (; i < text.size() && digit(text[i]); ++i, unit /= 10) {
      if (unit == 0) return form;
      part += (text[i] - '0') * unit;
    }
    if (i == begin) return form;
  }
  Money out{whole * kMicros + part, std::string(trimmed(text.substr(i)))};
  if (out.micros > max) return form;
  if (out.currency.empty()) out.currency = kPlainCurrency;
  if (const Status named = validate_currency(out.currency, field); !named.ok()) return form;
  return out;
}

std::string amount_text(std::int64_t micros) {
  std::string out =
      fmt::format("{}{}.{:06}", micros < 0 ? "-" : "", std::abs(micros / kMicros), std::abs(micros % kMicros));
  while (out.back() == '0' && out[out.size() - 3] != '.') out.pop_back();
  return out;
}
std::string money_text(std::int64_t micros, std::string_view currency) {
  return fmt::format("{} {}", amount_text(micros), currency.empty() ? kPlainCurrency : currency);
}

std::int64_t cost_of(std::int64_t price, Millis length) {
  if (price <= 0 || length.count() <= 0) return 0;
  constexpr std::int64_t kLong = std::int64_t{100} * 366 * 24 * 3600;
  const std::int64_t seconds = std::min(length.count() / 1000 + (length.count() % 1000 > 0 ? 1 : 0), kLong);
  price = std::min(price, 65 * kPriceMax);
  return price * (seconds / 3600) + price * (seconds % 3600) / 3600;
}

std::int64_t asked_price(std::int64_t price, std::int64_t gpu_price, std::int64_t gpus, std::int32_t share_milli) {
  const std::int64_t each = std::clamp<std::int64_t>(gpu_price, 0, kPriceMax);
  const std::int64_t all = share_milli > 0 ? each * std::min(share_milli, kGpuMilli) / kGpuMilli
                                           : each * std::clamp<std::int64_t>(gpus, 0, 64);
  return std::clamp<std::int64_t>(price, 0, kPriceMax) + all;
}

std::optional<std::int64_t> agreed_price(std::int64_t asked, std::int64_t least, std::string_view currency,
                                         const Bid& bid) {
  if (asked <= 0) return 0;
  if (!bid.currency.empty() && bid.currency != currency) return {};
  if (bid.max_price <= 0 || asked <= bid.max_price) return asked;
  if (least <= bid.max_price) return bid.max_price;
  return {};
}

// ---- images
bool image_offered(const std::vector<std::string>& patterns, std::string_view image) {
  const auto at = image.find('@');
  const std::string_view digest = at == std::string_view::npos ? std::string_view() : image.substr(at + 1);
  bool all = true, named = false;
  for (const std::string_view pattern : patterns) {
    if (pattern.starts_with('!')) {
      if (image_matches(pattern.substr(1), image)) return false;
      continue;
    }
    all = false;
    named = named || (pattern.starts_with("sha256:") ? !digest.empty() && digest.starts_with(pattern)
                                                     : image.starts_with(pattern));
  }
  return all || named;
}

// ---- hours
Result<std::vector<WeekHours>> parse_schedule(std::string_view text, const std::string& field) {
  std::vector<WeekHours> out;
  while (!text.empty()) {
    const auto comma = text.find(',');
    const std::string_view item = trimmed(text.substr(0, comma));
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const Error form = amiss(field, fmt::format("holds \"{}\"; write days and times like \"Mon-Fri 18:00-08:00, "
                                                "Sat, Sun\"",
                                                item.substr(0, 60)));
    const auto space = item.find(' ');
    std::string_view days = item.substr(0, space), times;
    if (space != std::string_view::npos) times = trimmed(item.substr(space + 1));
    if (days.empty()) return form;
    if (digit(days[0])) {  // no days: every one
      if (!times.empty()) return form;
      times = days, days = "mon-sun";
    }
    const auto [first_name, last_name] = range_of(days);
    const auto first = day_of(first_name), last = day_of(last_name);
    const auto [begin_text, end_text] =
        times.empty() ? std::pair<std::string_view, std::string_view>{"00:00", "24:00"} : range_of(times);
    const auto begin = minute_of(begin_text), end = minute_of(end_text);
    if (!first || !last || !begin || !end || *begin == *end || *begin == kDayMinutes) return form;
    for (int day = *first;; day = (day + 1) % 7) {
      const std::int32_t from = day * kDayMinutes + *begin;
      const std::int32_t to = day * kDayMinutes + *end + (*end <= *begin ? kDayMinutes : 0);
      out.push_back({from, std::min(to, kWeekMinutes)});
      if (to > kWeekMinutes) out.push_back({0, to - kWeekMinutes});
      if (day == *last) break;
    }
    if (out.size() > 16 * kHoursMax) return form;
  }
  if (out.empty()) return amiss(field, "names no hours; leave it out for a machine that is there always");
  out = tidied(std::move(out));
  if (out.size() > kHoursMax) return amiss(field, "has more than 64 stretches in a week");
  return out;
}

Openness openness(const Offer& offer, WallTime at) {
  if (offer.hours.empty()) return {true, {}};
  const bool open = open_at(offer, at);
  WallTime t = at;
  for (std::size_t i = 0; i < 2 * kHoursMax + kOffsetsMax; ++i) {
    t = next_bound(offer, t);
    if (open_at(offer, t) != open) return {open, t};
  }
  return {open, {}};
}

std::vector<std::pair<WallTime, WallTime>> open_intervals(const Offer& offer, WallTime from, WallTime to) {
  std::vector<std::pair<WallTime, WallTime>> out;
  if (offer.hours.empty()) return out;
  for (WallTime t = from; t < to && out.size() < 4 * kHoursMax;) {
    const Openness now = openness(offer, t);
    if (now.until.ms == 0) break;
    if (now.open) out.emplace_back(t, now.until);
    t = now.until;
  }
  return out;
}

Millis longest_open(const Offer& offer) {
  if (offer.hours.empty()) return Millis(0);
  std::int32_t longest = 0;
  for (const WeekHours& each : offer.hours) longest = std::max(longest, each.to - each.from);
  const WeekHours &first = offer.hours.front(), &last = offer.hours.back();
  if (first.from == 0 && last.to == kWeekMinutes) longest = std::max(longest, first.to + last.to - last.from);
  return Millis(std::max<std::int64_t>(0, longest * kMinuteMs - offer.notice.count()));
}

Status validate(const Offer& offer, const std::string& field) {
  const auto money = [&](std::int64_t value, std::int64_t max, const char* name) -> Status {
    if (value >= 0 && value <= max) return {};
    return amiss(field + "." + name, max == kPriceMax ? fmt::format("must lie between 0 and {}", amount_text(max))
                                                      : "is above the price; a floor is the least that is taken");
  };
  TRY_VOID(money(offer.price, kPriceMax, "price"));
  TRY_VOID(money(offer.gpu_price, kPriceMax, "gpu_price"));
  TRY_VOID(money(offer.floor, offer.price, "floor"));
  TRY_VOID(money(offer.gpu_floor, offer.gpu_price, "gpu_floor"));
  TRY_VOID(validate_currency(offer.currency, field + ".currency"));
  if (offer.tenants.size() > kTenantsMax) return amiss(field + ".tenants", "names more than 256 organisations");
  if (offer.images.size() > kImagesMax) return amiss(field + ".images", "has more than 64 entries");
  for (const std::string& image : offer.images)
    if (image.empty() || image.size() > 256 || !valid_utf8(image) ||
        std::any_of(image.begin(), image.end(), [](char c) { return static_cast<unsigned char>(c) <= 0x20; }))
      return amiss(
          field + ".images",
          "must hold beginnings of image names, sha256:..., or what is denied with a ! before it, 1 to 256 bytes "
          "without spaces");
  constexpr Millis kYear{366 * kDayMs};
  if (offer.longest < Millis(0) || offer.longest > kYear)
    return amiss(field + ".longest", "must lie between 0 (no limit) and a year");
  if (offer.longest > Millis(0) && offer.longest < Millis(15 * kMinuteMs))
    return amiss(field + ".longest", "must be a quarter of an hour at least");
  if (offer.schedule.size() > 512 || !valid_utf8(offer.schedule)) return amiss(field + ".hours", "is too long");
  if (offer.zone.size() > 64 || !valid_utf8(offer.zone)) return amiss(field + ".timezone", "is too long");
  if (offer.hours != tidied(offer.hours) || offer.hours.size() > kHoursMax ||
      std::any_of(offer.hours.begin(), offer.hours.end(),
                  [](const WeekHours& h) { return h.from < 0 || h.from >= h.to || h.to > kWeekMinutes; }))
    return amiss(field + ".hours", "must be in order, apart, and within a week");
  if (offer.offsets.size() > kOffsetsMax) return amiss(field + ".offsets", "has more than 128 entries");
  for (std::size_t i = 0; i < offer.offsets.size(); ++i)
    if (std::abs(offer.offsets[i].seconds) > 26 * 3600 ||
        (i > 0 && !(offer.offsets[i - 1].from < offer.offsets[i].from)))
      return amiss(field + ".offsets", "must be in order of time, and within a day of UTC");
  if (offer.notice < Millis(0) || offer.notice > Millis(kDayMs))
    return amiss(field + ".notice", "must lie between 0 and a day");
  if (!offer.hours.empty() && longest_open(offer) == Millis(0))
    return amiss(field + ".notice", "leaves nothing of the hours; make it shorter");
  return {};
}

}  // namespace muster
