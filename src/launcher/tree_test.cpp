#include "launcher/tree.h"

#include <gtest/gtest.h>

namespace muster::launcher {
namespace {

TEST(Tree, KeepsLinesAndOrder) {
  auto doc = parse_tree("a: 1\nb:\n  - x\n  - 'y'\n");
  ASSERT_TRUE(doc.ok());
  EXPECT_EQ(doc->root->entries[1].key, "b");
  EXPECT_EQ(doc->root->entries[1].line, 2);
  EXPECT_EQ(doc->root->find("b")->items[1]->text, "y");
  EXPECT_TRUE(doc->root->find("b")->items[1]->quoted);
}
TEST(Tree, DotsInAFlowSequenceAreText) {
  auto doc = parse_tree("ips: [A, B, ... ]\nnext: 1\n");
  ASSERT_TRUE(doc.ok()) << doc.error().message;
  ASSERT_EQ(doc->root->find("ips")->items.size(), 3u);
  EXPECT_EQ(doc->root->find("ips")->items[2]->text, "...");
  EXPECT_NE(doc->root->find("next"), nullptr);
}
TEST(Tree, DuplicateKeysLastWins) {
  auto doc = parse_tree("a: 1\nb: 2\na: 3\n");
  ASSERT_TRUE(doc.ok());
  EXPECT_EQ(doc->root->find("a")->text, "3");
  ASSERT_EQ(doc->duplicates.size(), 1u);
  EXPECT_EQ(doc->duplicates[0].first_line, 1);
  EXPECT_EQ(doc->duplicates[0].line, 3);
}
TEST(Tree, MergeKeysFillOnlyWhatIsMissing) {
  auto doc = parse_tree("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  x: 9\n");
  ASSERT_TRUE(doc.ok());
  EXPECT_EQ(doc->root->find("use")->find("x")->text, "9");
  EXPECT_EQ(doc->root->find("use")->find("y")->text, "2");
}
TEST(Tree, AliasBombEndsEarly) {
  std::string text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n";
  for (int i = 1; i < 12; ++i) {
    text += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int j = 0; j < 10; ++j) text += (j ? ",*a" : "*a") + std::to_string(i - 1);
    text += "]\n";
  }
  auto doc = parse_tree(text);
  ASSERT_FALSE(doc.ok());
  EXPECT_NE(doc.error().message.find("aliases written out"), std::string::npos) << doc.error().message;
}
TEST(Tree, SelfReferenceIsRefused) {
  EXPECT_FALSE(parse_tree("a: &a [*a]\n").ok());
}
TEST(Tree, DepthIsBounded) {
  EXPECT_FALSE(parse_tree(std::string(100, '[') + std::string(100, ']')).ok());
  EXPECT_FALSE(parse_tree(std::string(100'000, '[')).ok());
  std::string block;
  for (int i = 0; i < 90; ++i) block += std::string(static_cast<std::size_t>(i), ' ') + "k:\n";
  EXPECT_FALSE(parse_tree(block).ok());
}
TEST(Tree, SizeAndEncoding) {
  EXPECT_EQ(parse_tree(std::string(kMaxBytes + 1, 'a')).error().code, Code::TooLarge);
  EXPECT_NE(parse_tree("a: \xff\xfe").error().message.find("UTF-8"), std::string::npos);
  EXPECT_NE(parse_tree(std::string("a\0: 1", 5)).error().message.find("control"), std::string::npos);
}
TEST(Tree, TabIndentationIsNamed) {
  auto doc = parse_tree("a:\n\tb: 1\n");
  ASSERT_FALSE(doc.ok());
  EXPECT_NE(doc.error().message.find("line 2: indented with a tab"), std::string::npos) << doc.error().message;
}
TEST(Tree, BrokenYamlNamesTheLine) {
  auto doc = parse_tree("a: 1\nb: [1, 2\nc: }\n");
  ASSERT_FALSE(doc.ok());
  EXPECT_EQ(doc.error().message.rfind("line ", 0), 0u) << doc.error().message;
}
TEST(Tree, CommentOnlyFlowMapAndSecondDocument) {
  auto doc = parse_tree("file_mounts: {\n#  a: b\n}\n");
  ASSERT_TRUE(doc.ok()) << doc.error().message;
  EXPECT_TRUE(doc->root->find("file_mounts")->entries.empty());
  EXPECT_FALSE(parse_tree("a: 1\n---\nb: 1\n").ok());
  EXPECT_FALSE(parse_tree("").ok());
}

}  // namespace
}  // namespace muster::launcher
