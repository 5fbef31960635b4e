#include "server/time_zone.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <optional>
#include <sstream>

namespace muster::server {
namespace {

constexpr std::size_t kZoneFileMax = 256 << 10, kOffsetsMax = 128;
constexpr std::int32_t kHour = 3600;

Error damaged() {
  return error(Code::FailedPrecondition, "the time zone file is damaged");
}

// Big-endian numbers of a file, never beyond its end.
class Reader {
 public:
  explicit Reader(ByteView bytes) : rest_(bytes) {}
  bool ok() const { return ok_; }
  ByteView take(std::size_t n) {
    if (n > rest_.size()) ok_ = false, n = rest_.size();
    const ByteView out = rest_.first(n);
    rest_ = rest_.subspan(n);
    return out;
  }
  std::int64_t number(std::size_t bytes) {
    std::uint64_t value = 0;
    const ByteView from = take(bytes);
    for (const std::uint8_t byte : from) value = value << 8 | byte;
    if (bytes == 4) return static_cast<std::int32_t>(static_cast<std::uint32_t>(value));
    return static_cast<std::int64_t>(value);
  }
  ByteView rest() const { return rest_; }

 private:
  ByteView rest_;
  bool ok_ = true;
};

struct Header {
  std::size_t utc = 0, standard = 0, leaps = 0, times = 0, types = 0, letters = 0;
  char version = 0;
};
std::optional<Header> read_header(Reader& in) {
  const ByteView magic = in.take(4);
  if (as_string(magic) != "TZif") return {};
  Header h;
  const ByteView version = in.take(1);
  h.version = version.empty() ? '\0' : static_cast<char>(version[0]);
  in.take(15);
  for (std::size_t* count : {&h.utc, &h.standard, &h.leaps, &h.times, &h.types, &h.letters}) {
    const std::int64_t n = in.number(4);
    if (n < 0 || n > 100'000) return {};
    *count = static_cast<std::size_t>(n);
  }
  if (!in.ok()) return {};
  return h;
}
void skip_body(Reader& in, const Header& h, std::size_t time_bytes) {
  in.take(h.times * (time_bytes + 1) + h.types * 6 + h.letters + h.leaps * (time_bytes + 4) + h.standard + h.utc);
}

// ---- the rule at the end of the file, as in the environment variable TZ: "CET-1CEST,M3.5.0,M10.5.0/3"
struct Change {  // the w-th weekday of a month, 5 = the last
  unsigned month = 0, week = 0, weekday = 0;
  std::int32_t at = 2 * kHour;  // local time of that day, seconds
};
struct Rule {
  std::int32_t standard = 0, summer = 0;  // seconds to add to UTC
  std::optional<Change> begin, end;       // of summer time
};

class RuleReader {
 public:
  explicit RuleReader(std::string_view text) : rest_(text) {}
  std::optional<Rule> read() {
    Rule rule;
    if (!name() || !offset(rule.standard)) return {};
    rule.standard = -rule.standard;  // TZ counts westwards
    if (rest_.empty()) return rule;
    if (!name()) return {};
    rule.summer = rule.standard + kHour;
    if (!rest_.empty() && rest_[0] != ',') {
      if (!offset(rule.summer)) return {};
      rule.summer = -rule.summer;
    }
    rule.begin = change(), rule.end = change();
    if (!rule.begin || !rule.end || !rest_.empty()) return {};
    return rule;
  }

 private:
  bool eat(char c) {
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  bool name() {
    std::size_t n = 0;
    if (!rest_.empty() && rest_[0] == '<') {
      n = rest_.find('>');
      if (n == std::string_view::npos) return false;
      ++n;
    } else {
      while (n < rest_.size() && ((rest_[n] | 0x20) >= 'a' && (rest_[n] | 0x20) <= 'z')) ++n;
    }
    rest_.remove_prefix(n);
    return n >= 3;
  }
  std::optional<std::int32_t> digits(std::int32_t max) {
    std::int32_t value = 0;
    std::size_t n = 0;
    for (; n < rest_.size() && n < 3 && rest_[n] >= '0' && rest_[n] <= '9'; ++n) value = value * 10 + (rest_[n] - '0');
    rest_.remove_prefix(n);
    if (n == 0 || value > max) return {};
    return value;
  }
  bool offset(std::int32_t& out) {  // [+-]h[:mm[:ss]], up to a week as some zones need
    const bool west = eat('-');
    if (!west) eat('+');
    const auto hours = digits(167);
    if (!hours) return false;
    std::int32_t seconds = *hours * kHour;
    for (const std::int32_t unit : {60, 1}) {
      if (!eat(':')) break;
      const auto part = digits(59);
      if (!part) return false;
      seconds += *part * unit;
    }
    out = west ? -seconds : seconds;
    return true;
  }
  std::optional<Change> change() {
    Change out;
    if (!eat(',') || !eat('M')) return {};
    const auto month = digits(12);
    if (!month || !eat('.')) return {};
    const auto week = digits(5);
    if (!week || !eat('.')) return {};
    const auto weekday = digits(6);
    if (!weekday || *month == 0 || *week == 0) return {};
    out.month = static_cast<unsigned>(*month), out.week = static_cast<unsigned>(*week);
    out.weekday = static_cast<unsigned>(*weekday);
    if (eat('/') && !offset(out.at)) return {};
    return out;
  }
  std::string_view rest_;
};

WallTime change_in(int year, const Change& c, std::int32_t offset_before) {
  using namespace std::chrono;
  const auto month = std::chrono::year{year} / std::chrono::month{c.month};
  const sys_days day =
      c.week == 5 ? sys_days{month / weekday{c.weekday}[last]} : sys_days{month / weekday{c.weekday}[c.week]};
  const std::int64_t seconds = std::int64_t{day.time_since_epoch().count()} * 86'400 + c.at - offset_before;
  return {seconds * 1000};
}

void add(std::vector<ZoneOffset>& out, WallTime at, std::int32_t seconds) {
  if (!out.empty() && out.back().seconds == seconds) return;
  if (out.empty() || out.back().from < at) out.push_back({at, seconds});
}

void follow(const Rule& rule, WallTime from, WallTime to, std::vector<ZoneOffset>& out) {
  if (!rule.begin) return add(out, from, rule.standard);
  const auto year_of = [](WallTime t) {
    using namespace std::chrono;
    return static_cast<int>(year_month_day{floor<days>(sys_time<milliseconds>{milliseconds{t.ms}})}.year());
  };
  std::vector<ZoneOffset> changes;
  for (int year = year_of(from) - 1; year <= year_of(to); ++year) {
    changes.push_back({change_in(year, *rule.begin, rule.standard), rule.summer});
    changes.push_back({change_in(year, *rule.end, rule.summer), rule.standard});
  }
  std::sort(changes.begin(), changes.end(), [](const auto& a, const auto& b) { return a.from < b.from; });
  for (const ZoneOffset& each : changes)
    if (each.from > from && each.from <= to) add(out, each.from, each.seconds);
}

// What was long ago does not matter: the offset of now holds from the beginning on.
std::vector<ZoneOffset> from_now(std::vector<ZoneOffset> all, WallTime from) {
  std::size_t first = 0;
  while (first + 1 < all.size() && all[first + 1].from <= from) ++first;
  all.erase(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(first));
  if (!all.empty()) all.front().from = {};
  if (all.size() > kOffsetsMax) all.resize(kOffsetsMax);
  return all;
}

// "UTC", "+02:00", "UTC-3", "GMT+05:30".
std::optional<std::int32_t> fixed_offset(std::string_view text) {
  for (const std::string_view name : {"UTC", "GMT", "Z"})
    if (text.starts_with(name)) {
      text.remove_prefix(name.size());
      if (text.empty()) return 0;
      break;
    }
  if (text.size() < 2 || (text[0] != '+' && text[0] != '-')) return {};
  const bool west = text[0] == '-';
  text.remove_prefix(1);
  std::int32_t hours = 0, minutes = 0;
  std::size_t i = 0;
  for (; i < text.size() && i < 2 && text[i] >= '0' && text[i] <= '9'; ++i) hours = hours * 10 + (text[i] - '0');
  if (i == 0 || hours > 18) return {};
  if (i < text.size()) {
    if (text.size() != i + 3 || text[i] != ':' || text[i + 1] < '0' || text[i + 1] > '5' || text[i + 2] < '0' ||
        text[i + 2] > '9')
      return {};
    minutes = (text[i + 1] - '0') * 10 + text[i + 2] - '0';
  }
  const std::int32_t seconds = hours * kHour + minutes * 60;
  return west ? -seconds : seconds;
}

bool zone_name(const std::string& zone) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '+' || c == '/';
  };
  return !zone.empty() && zone.size() <= 64 && zone[0] != '/' && zone.back() != '/' &&
         std::all_of(zone.begin(), zone.end(), allowed);  // no point, so never "..", either
}

}  // namespace

Result<std::vector<ZoneOffset>> zone_offsets(ByteView tzif, WallTime from) {
  Reader in(tzif);
  auto header = read_header(in);
  if (!header) return damaged();
  const std::size_t time_bytes = header->version >= '2' ? 8 : 4;
  if (time_bytes == 8) {  // the same again with wide numbers
    skip_body(in, *header, 4);
    header = read_header(in);
    if (!header) return damaged();
  }
  if (header->types == 0) return damaged();
  std::vector<std::int64_t> times(header->times);
  for (std::int64_t& time : times) time = in.number(time_bytes);
  const ByteView which = in.take(header->times);
  std::vector<std::int32_t> seconds(header->types);
  for (std::int32_t& each : seconds) each = static_cast<std::int32_t>(in.number(4)), in.take(2);
  in.take(header->letters + header->leaps * (time_bytes + 4) + header->standard + header->utc);
  if (!in.ok()) return damaged();
  const WallTime to = from + kZoneYears;
  std::vector<ZoneOffset> all{{WallTime{}, seconds[0]}};
  WallTime last;
  for (std::size_t i = 0; i < times.size(); ++i) {
    if (which[i] >= seconds.size() || times[i] > std::int64_t{1} << 40) return damaged();
    const WallTime at{std::max<std::int64_t>(times[i], 0) * 1000};
    if (at > to) break;
    if (at.ms == 0)
      all.front().seconds = seconds[which[i]];
    else
      add(all, at, seconds[which[i]]);
    last = at;
  }
  const std::string footer = time_bytes == 8 ? as_string(in.rest()) : std::string();
  if (footer.size() > 2 && footer.front() == '\n' && footer.find('\n', 1) != std::string::npos)
    if (const auto rule = RuleReader(std::string_view(footer).substr(1, footer.find('\n', 1) - 1)).read())
      follow(*rule, last, to, all);
  for (const ZoneOffset& each : all)
    if (each.seconds > 26 * kHour || each.seconds < -26 * kHour) return damaged();
  return from_now(std::move(all), from);
}

Result<std::vector<ZoneOffset>> zone_offsets(const std::string& zone, WallTime from, const std::string& field,
                                             const std::string& folder) {
  if (const auto fixed = fixed_offset(zone)) return std::vector<ZoneOffset>{{WallTime{}, *fixed}};
  const std::string instead = "write UTC, an offset such as +02:00, or a name such as Europe/Berlin";
  if (!zone_name(zone))
    return error(Code::InvalidArgument, fmt::format("{} is no time zone; {}", field, instead), field);
  std::ifstream file(folder + "/" + zone, std::ios::binary);
  std::string text(kZoneFileMax, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  if (text.empty()) {
    if (std::ifstream(folder + "/UTC").good())
      return error(Code::InvalidArgument, fmt::format("{} names no known time zone; {}", field, instead), field);
    return error(Code::FailedPrecondition,
                 fmt::format("{}: this control plane has no time zone database; give UTC or an offset such as +02:00, "
                             "or have its operator install tzdata",
                             field),
                 field);
  }
  auto offsets = zone_offsets(as_bytes(text), from);
  if (!offsets.ok())
    return error(Code::InvalidArgument, fmt::format("{} names no time zone; {}", field, instead), field);
  return offsets;
}

}  // namespace muster::server
