#include "wire/json.h"

#include <gtest/gtest.h>

namespace muster::wire {
namespace {

TEST(Json, ReadsAndWritesBack) {
  const std::string text = R"({"a":[1,-2.5e3,true,null,"x\n\u00e9\ud83d\ude00"],"b":{"c":"9007199254740993"}})";
  const auto value = parse_json(text);
  ASSERT_TRUE(value.ok()) << value.error().message;
  EXPECT_EQ((*value)["b"]["c"].integer(), 9007199254740993);
  EXPECT_EQ((*value)["a"].items()[1].real(), -2500);
  const auto again = parse_json(value->dump());
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*again, *value);
}

TEST(Json, RefusesWhatIsNotStrictJson) {
  const std::vector<std::string> bad = {"",        "{",           "[1,]",         "{\"a\":1,}", "{\"a\":1,\"a\":2}",
                                        "01",      "1.",          "nul",          "'x'",        "\"\x01\"",
                                        "\"\\x\"", "\"\\ud800\"", "\"\\udc00x\"", "{} {}",      "\"\xff\"",
                                        "NaN",     "+1",          "{a:1}",        "[1 2]"};
  for (const auto& text : bad) {
    const auto value = parse_json(text);
    ASSERT_FALSE(value.ok()) << text;
    EXPECT_EQ(value.error().code, Code::InvalidArgument) << text;
  }
}

TEST(Json, BoundsDepthAndSize) {
  EXPECT_TRUE(parse_json(std::string(32, '[') + std::string(32, ']')).ok());
  EXPECT_FALSE(parse_json(std::string(40, '[') + std::string(40, ']')).ok());
  EXPECT_FALSE(parse_json(std::string(1'000'000, '[')).ok());
  const auto large = parse_json("\"" + std::string(2 << 20, 'x') + "\"");
  ASSERT_FALSE(large.ok());
  EXPECT_EQ(large.error().code, Code::TooLarge);
}

}  // namespace
}  // namespace muster::wire
