#include "launcher/tree.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "base/bytes.h"

namespace muster::launcher {
namespace {

struct Stop {
  Error error;
};  // leaves yaml-cpp's parser; caught in parse_tree

[[noreturn]] void stop(int line, const std::string& what) {
  throw Stop{error(Code::InvalidArgument, line > 0 ? fmt::format("line {}: {}", line, what) : what)};
}

class Builder : public YAML::EventHandler {
 public:
  TreePtr root;
  std::vector<Duplicate> duplicates;

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnAnchor(const YAML::Mark&, const std::string&) override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    leaf(mark, anchor, Tree::Kind::Null, {}, false);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (tag.size() > 1 && tag.rfind("tag:yaml.org,2002:", 0) != 0)
      stop(mark.line + 1, "the tag " + tag + " is not supported; write the plain value");
    const bool quoted = tag == "!";
    const bool null =
        !quoted && (value.empty() || value == "~" || value == "null" || value == "Null" || value == "NULL");
    leaf(mark, anchor, null ? Tree::Kind::Null : Tree::Kind::Scalar, value, quoted);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) stop(mark.line + 1, "an alias refers to itself or to nothing; write the value out");
    give(found->second, mark.line + 1);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, anchor, Tree::Kind::List);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, anchor, Tree::Kind::Map);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    std::shared_ptr<Tree> tree;
    YAML::anchor_t anchor = 0;
    bool has_key = false;
    std::string key;
    int key_line = 0;
    std::map<std::string, std::size_t> index;
    std::vector<TreePtr> merges;
  };

  void leaf(const YAML::Mark& mark, YAML::anchor_t anchor, Tree::Kind kind, const std::string& value, bool quoted) {
    auto tree = std::make_shared<Tree>();
    tree->kind = kind;
    tree->line = mark.line + 1;
    tree->text = value;
    tree->quoted = quoted;
    if (anchor != 0) anchors_[anchor] = tree;
    give(tree, mark.line + 1);
  }

  void open(const YAML::Mark& mark, YAML::anchor_t anchor, Tree::Kind kind) {
    if (static_cast<int>(stack_.size()) >= kMaxDepth)
      stop(mark.line + 1, fmt::format("nested deeper than {} levels", kMaxDepth));
    Open frame;
    frame.tree = std::make_shared<Tree>();
    frame.tree->kind = kind;
    frame.tree->line = mark.line + 1;
    frame.anchor = anchor;
    stack_.push_back(std::move(frame));
  }

  void close() {
    Open frame = std::move(stack_.back());
    stack_.pop_back();
    for (const auto& merged : frame.merges)
      for (const auto& entry : merged->entries)
        if (frame.tree->find(entry.key) == nullptr) frame.tree->entries.push_back(entry);
    if (frame.anchor != 0) anchors_[frame.anchor] = frame.tree;
    give(frame.tree, frame.tree->line);
  }

  void give(TreePtr tree, int line) {
    if (stack_.empty()) {
      root = std::move(tree);
      return;
    }
    Open& parent = stack_.back();
    if (parent.tree->kind == Tree::Kind::Map && !parent.has_key) {
      if (tree->kind != Tree::Kind::Scalar && tree->kind != Tree::Kind::Null) stop(line, "a key must be plain text");
      parent.key = tree->text;
      parent.key_line = line;
      parent.has_key = true;
      return;
    }
    parent.tree->weight += tree->weight;
    parent.tree->depth = std::max(parent.tree->depth, tree->depth + 1);
    if (parent.tree->weight > kMaxNodes)
      stop(line, fmt::format("more than {} values (aliases written out); split the file", kMaxNodes));
    if (parent.tree->depth > kMaxDepth) stop(line, fmt::format("nested deeper than {} levels", kMaxDepth));
    if (parent.tree->kind == Tree::Kind::List) {
      parent.tree->items.push_back(std::move(tree));
      return;
    }
    parent.has_key = false;
    if (parent.key == "<<") return merge(parent, tree, line);
    const auto [at, fresh] = parent.index.emplace(parent.key, parent.tree->entries.size());
    if (fresh) {
      parent.tree->entries.push_back({parent.key, parent.key_line, std::move(tree)});
      return;
    }
    Entry& old = parent.tree->entries[at->second];
    duplicates.push_back({parent.key, old.line, parent.key_line});
    old = {parent.key, parent.key_line, std::move(tree)};
  }

  static void merge(Open& parent, const TreePtr& tree, int line) {
    if (tree->kind == Tree::Kind::Map) {
      parent.merges.push_back(tree);
      return;
    }
    if (tree->kind != Tree::Kind::List) stop(line, "<< needs a map or a list of maps");
    for (const auto& item : tree->items) {
      if (item->kind != Tree::Kind::Map) stop(line, "<< needs a map or a list of maps");
      parent.merges.push_back(item);
    }
  }

  std::vector<Open> stack_;
  std::map<YAML::anchor_t, TreePtr> anchors_;
};

// The first line that is indented with a tab, for a better sentence than the parser's.
int tab_line(std::string_view text) {
  int line = 1;
  bool leading = true;
  for (char c : text) {
    if (c == '\n') {
      ++line;
      leading = true;
      continue;
    }
    if (leading && c == '\t') return line;
    if (c != ' ') leading = false;
  }
  return 0;
}

Status check_bytes(std::string_view text) {
  if (text.size() > kMaxBytes)
    return error(Code::TooLarge, fmt::format("the file has {} bytes; at most {} are read", text.size(), kMaxBytes));
  if (!valid_utf8(text)) return error(Code::InvalidArgument, "the file is not UTF-8 text; save it as UTF-8");
  int line = 1;
  int nesting = 0;
  for (char c : text) {
    if (c == '\n') ++line;
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7f)
      return error(Code::InvalidArgument, fmt::format("line {}: a control character; is this a text file?", line));
    if (c == '[' || c == '{') ++nesting;
    if (c == ']' || c == '}') nesting = std::max(0, nesting - 1);
    if (nesting > 4 * kMaxDepth)
      return error(Code::InvalidArgument, fmt::format("line {}: nested deeper than {} levels", line, kMaxDepth));
  }
  return {};
}

}  // namespace

const Tree* Tree::find(std::string_view key) const {
  for (const auto& entry : entries)
    if (entry.key == key) return entry.value.get();
  return nullptr;
}

Result<Document> parse_tree(std::string_view text) {
  TRY_VOID(check_bytes(text));
  const int tab = tab_line(text);
  try {
    std::istringstream in{std::string(text)};
    YAML::Parser parser(in);
    Builder builder;
    if (!parser.HandleNextDocument(builder) || builder.root == nullptr)
      return error(Code::InvalidArgument, "the file is empty");
    Builder second;
    if (parser.HandleNextDocument(second))
      return error(Code::InvalidArgument, "the file holds more than one YAML document; give one cluster per file");
    return Document{std::move(builder.root), std::move(builder.duplicates)};
  } catch (const Stop& stopped) {
    return stopped.error;
  } catch (const YAML::Exception& fault) {
    const int line = fault.mark.is_null() ? 0 : fault.mark.line + 1;
    if (tab > 0 && line > 0 && tab <= line + 1)
      return error(Code::InvalidArgument, fmt::format("line {}: indented with a tab; YAML wants spaces", tab));
    return error(Code::InvalidArgument, fmt::format("line {}: not valid YAML: {}", line, fault.msg));
  } catch (const std::exception& fault) {
    return error(Code::InvalidArgument, fmt::format("not valid YAML: {}", fault.what()));
  }
}

}  // namespace muster::launcher
