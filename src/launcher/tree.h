#pragma once
// A bounded YAML document: text in, tree with line numbers out, or an error that names the line. Bounds: 1 MiB, depth
// 64, 20,000 nodes counted as if every alias were written out (so an alias bomb ends early), no self-reference.
// Duplicate keys: the last one wins, as in Ray, and are listed. Merge keys (<<) work. Values keep their text; typing is
// the reader's business. Pure, no I/O.
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace muster::launcher {

struct Tree;
using TreePtr = std::shared_ptr<const Tree>;
struct Entry {
  std::string key;
  int line = 0;
  TreePtr value;
};
struct Tree {
  enum class Kind : std::uint8_t { Null, Scalar, List, Map };
  Kind kind = Kind::Null;
  int line = 0;         // 1-based
  bool quoted = false;  // a quoted scalar is always text
  std::string text;
  std::vector<TreePtr> items;
  std::vector<Entry> entries;
  std::size_t weight = 1;  // nodes with aliases written out
  int depth = 1;
  const Tree* find(std::string_view key) const;
};
struct Duplicate {
  std::string key;
  int first_line = 0, line = 0;
};
struct Document {
  TreePtr root;
  std::vector<Duplicate> duplicates;
};

inline constexpr std::size_t kMaxBytes = 1 << 20;
inline constexpr std::size_t kMaxNodes = 20'000;
inline constexpr int kMaxDepth = 64;

Result<Document> parse_tree(std::string_view text);

}  // namespace muster::launcher
