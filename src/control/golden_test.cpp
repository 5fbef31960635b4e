// The bytes of every event type, with every field filled, are a promise to every journal ever written. The file is per
// format and never changes once that format was released; `control_test --gtest_also_run_disabled_tests
// --gtest_filter=*WriteFile*` writes the one of today's format.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "control/codec.h"
#include "control/core.h"
#include "testing/test_root.h"

namespace muster::control {
namespace {

// Gives every member a value of its own, so that a swapped or forgotten one shows.
class Filler {
 public:
  template <class... T>
  void operator()(T&... values) {
    (fill(values), ...);
  }
  template <class... T>
  void since(std::uint64_t, T&... values) {  // what came later moves nothing of what was there
    const int n = n_;
    (fill(values), ...);
    n_ = n;
  }

 private:
  void fill(Role& role) { role = static_cast<Role>(1 + ++n_ % 4); }  // of those that format 1 had
  void fill(std::string& text) { text = "s" + std::to_string(++n_); }
  void fill(Bytes& bytes) { bytes = Bytes(3, static_cast<std::uint8_t>(++n_)); }
  void fill(Millis& duration) { duration = Millis(60'000 + ++n_); }
  template <class T>
  void fill(std::vector<T>& items) {
    items.resize(2);
    for (T& item : items) fill(item);
  }
  template <class K, class V>
  void fill(std::map<K, V>& items) {
    for (int i = 0; i < 2; ++i) {
      K key{};
      fill(key);
      fill(items[key]);
    }
  }
  template <class T>
  void fill(T& value) {
    if constexpr (std::is_same_v<T, bool>)
      value = true;
    else if constexpr (std::is_enum_v<T>)
      value = static_cast<T>(1 + ++n_ % enum_last<T>());
    else if constexpr (std::is_same_v<T, std::uint8_t>)
      value = static_cast<std::uint8_t>(++n_);
    else if constexpr (std::is_signed_v<T>)
      value = static_cast<T>(++n_ % 2 == 0 ? 1000 + n_ : -1000 - n_);
    else if constexpr (std::is_integral_v<T>)
      value = static_cast<T>(1000 + ++n_);
    else
      fields(*this, value);
  }
  int n_ = 0;
};

template <std::size_t... I>
std::vector<Event> one_of_every_type(std::index_sequence<I...>) {
  std::vector<Event> out{Event(std::in_place_index<I>)...};
  for (Event& event : out)
    std::visit(
        [](auto& e) {
          Filler filler, &f = filler;
          fields(f, e);
        },
        event);
  return out;
}

std::vector<Event> filled_events() {
  std::vector<Event> events = one_of_every_type(std::make_index_sequence<std::variant_size_v<AnyEvent>>());
  for (Event& event : events)
    if (auto* raised = std::get_if<FormatRaised>(&event)) raised->version = 1;  // later ones are for later builds
  return events;
}

std::string path_of(std::uint32_t format) {
  return muster::test_root() + "/tests/data/journal/events-" + std::to_string(format) + ".txt";
}

std::string lines_of(std::uint32_t format) {
  std::string out;
  for (const Event& event : filled_events())
    if (format_needed(event) <= format) out += std::string(event_name(event)) + " " + hex(encode(event, format)) + "\n";
  return out;
}

TEST(Golden, EveryTypeInEveryFormatByteForByte) {
  for (std::uint32_t format = 1; format <= kFormatVersion; ++format) {
    std::ifstream in(path_of(format));
    ASSERT_TRUE(in.good()) << path_of(format) << " is missing; see the top of this file";
    std::stringstream text;
    text << in.rdbuf();
    std::istringstream expected(text.str()), now(lines_of(format));
    std::string want, have;
    while (std::getline(now, have)) {
      ASSERT_TRUE(std::getline(expected, want)) << "a new type belongs to a new format: " << have;
      EXPECT_EQ(have, want);
      const auto bytes = unhex(want.substr(want.find(' ') + 1));
      ASSERT_TRUE(bytes.has_value());
      const auto decoded = decode_event(*bytes);
      ASSERT_TRUE(decoded.ok()) << want;
      EXPECT_EQ(encode(*decoded, format), *bytes);
    }
    EXPECT_FALSE(std::getline(expected, want)) << "a type is gone: " << want;
  }
}

TEST(Golden, OlderFormatsLeaveOutWhatCameLater) {
  struct Thing {
    std::uint64_t first = 0, later = 7;
  };
  const auto visit = [](auto& archive, Thing& thing) {
    archive(thing.first);
    archive.since(2, thing.later);
  };
  Thing thing{5, 9};
  Encoder old(1), today(2);
  visit(old, thing);
  visit(today, thing);
  EXPECT_EQ(hex(old.take()), "05");
  const Bytes bytes = today.take();
  EXPECT_EQ(hex(bytes), "0509");
  Decoder from_old(as_bytes(std::string_view("\x05"))), from_today(bytes);
  from_old.set_format(1);
  from_today.set_format(2);
  Thing a, b;
  visit(from_old, a);
  visit(from_today, b);
  EXPECT_TRUE(from_old.done());
  EXPECT_TRUE(from_today.done());
  EXPECT_EQ(a.later, 7U) << "what older bytes do not hold keeps its default";
  EXPECT_EQ(b.later, 9U);
}

TEST(Golden, AFormatFromTheFutureAsksForAnUpgrade) {
  Bytes event = encode(LeaderChanged{7});
  event[1] = static_cast<std::uint8_t>(kFormatVersion + 1);
  EXPECT_EQ(decode_event(event).error().code, Code::Unsupported);
  EXPECT_EQ(decode_event(encode(FormatRaised{kFormatVersion + 1})).error().code, Code::Unsupported);
  EXPECT_TRUE(decode_event(encode(FormatRaised{kFormatVersion})).ok());
  State state;
  Bytes snapshot = encode_state(state);
  EXPECT_EQ(snapshot_format(snapshot), kFormatVersion);
  snapshot[0] = static_cast<std::uint8_t>(kFormatVersion + 1);
  EXPECT_FALSE(decode_state(snapshot).ok());
  EXPECT_EQ(snapshot_format(snapshot), 0U);
}

TEST(Golden, DISABLED_WriteFile) {
  std::ofstream(path_of(kFormatVersion)) << lines_of(kFormatVersion);
}

}  // namespace
}  // namespace muster::control
