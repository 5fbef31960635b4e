#include "scan/version.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>
#include <vector>

#include "scan/rpm.h"

namespace muster::scan {
namespace {

bool digit(char c) {
  return c >= '0' && c <= '9';
}
bool alpha(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
int sign(int order) {
  return order < 0 ? -1 : order > 0 ? 1 : 0;
}

// Numbers of any length, as text: without leading zeros the longer one is the larger one.
int compare_numbers(std::string_view a, std::string_view b) {
  const auto plain = [](std::string_view n) {
    while (n.size() > 1 && n.front() == '0') n.remove_prefix(1);
    return n;
  };
  a = plain(a), b = plain(b);
  if (a.empty()) a = "0";
  if (b.empty()) b = "0";
  if (a.size() != b.size()) return a.size() < b.size() ? -1 : 1;
  return sign(a.compare(b));
}
std::string_view take_digits(std::string_view& text) {
  std::size_t n = 0;
  while (n < text.size() && digit(text[n])) ++n;
  const std::string_view out = text.substr(0, n);
  text.remove_prefix(n);
  return out;
}

// ---- Debian
struct DebianVersion {
  std::string_view epoch, upstream, revision;
};
std::optional<DebianVersion> read_debian(std::string_view text) {
  DebianVersion out;
  if (text.empty() || text.size() > kVersionMax) return {};
  if (const auto colon = text.find(':'); colon != std::string_view::npos) {
    out.epoch = text.substr(0, colon);
    if (out.epoch.empty() || !std::all_of(out.epoch.begin(), out.epoch.end(), digit)) return {};
    text.remove_prefix(colon + 1);
  }
  const auto dash = text.rfind('-');
  out.upstream = text.substr(0, dash);
  if (dash != std::string_view::npos) out.revision = text.substr(dash + 1);
  const auto fine = [](char c) {
    return digit(c) || alpha(c) || c == '.' || c == '+' || c == '-' || c == '~' || c == ':';
  };
  if (out.upstream.empty() || !std::all_of(text.begin(), text.end(), fine)) return {};
  return out;
}
// '~' before the end, the end before letters, letters before everything else.
int weight(std::string_view text) {
  if (text.empty() || digit(text[0])) return 0;
  if (text[0] == '~') return -1;
  return alpha(text[0]) ? text[0] : text[0] + 256;
}
int compare_part(std::string_view a, std::string_view b) {
  while (!a.empty() || !b.empty()) {
    while ((!a.empty() && !digit(a[0])) || (!b.empty() && !digit(b[0]))) {
      if (const int order = weight(a) - weight(b); order != 0) return sign(order);
      if (!a.empty()) a.remove_prefix(1);
      if (!b.empty()) b.remove_prefix(1);
    }
    if (const int order = compare_numbers(take_digits(a), take_digits(b)); order != 0) return order;
  }
  return 0;
}

// ---- Alpine: 1.2.3b_rc1_p2~hash-r4. What a part is decides before its value does; the end comes last of all kinds.
enum class ApkKind : std::uint8_t { FirstNumber, Number, Letter, Suffix, SuffixNumber, Hash, Revision, End };
struct ApkPart {
  ApkKind kind;
  std::string_view text;
  int suffix = 0;  // below 0: before the release
};
constexpr std::array<std::pair<std::string_view, int>, 9> kSuffixes{
    {{"alpha", -4}, {"beta", -3}, {"pre", -2}, {"rc", -1}, {"cvs", 1}, {"svn", 2}, {"git", 3}, {"hg", 4}, {"p", 5}}};

std::optional<std::vector<ApkPart>> read_alpine(std::string_view text) {
  std::vector<ApkPart> out;
  if (text.size() > kVersionMax || text.empty() || !digit(text[0])) return {};
  out.push_back({ApkKind::FirstNumber, take_digits(text)});
  while (text.size() > 1 && text[0] == '.' && digit(text[1])) {
    text.remove_prefix(1);
    out.push_back({ApkKind::Number, take_digits(text)});
  }
  if (!text.empty() && text[0] >= 'a' && text[0] <= 'z') {
    out.push_back({ApkKind::Letter, text.substr(0, 1)});
    text.remove_prefix(1);
  }
  while (!text.empty() && text[0] == '_') {
    text.remove_prefix(1);
    std::size_t n = 0;
    while (n < text.size() && text[n] >= 'a' && text[n] <= 'z') ++n;
    const auto* known = std::find_if(kSuffixes.begin(), kSuffixes.end(),
                                     [&](const auto& entry) { return entry.first == text.substr(0, n); });
    if (known == kSuffixes.end()) return {};
    out.push_back({ApkKind::Suffix, text.substr(0, n), known->second});
    text.remove_prefix(n);
    if (!text.empty() && digit(text[0])) out.push_back({ApkKind::SuffixNumber, take_digits(text)});
  }
  if (text.size() > 1 && text[0] == '~') {
    std::size_t n = 1;
    while (n < text.size() && std::isxdigit(static_cast<unsigned char>(text[n])) != 0) ++n;
    out.push_back({ApkKind::Hash, text.substr(1, n - 1)});
    text.remove_prefix(n);
  }
  if (text.size() > 2 && text.starts_with("-r") && digit(text[2])) {
    text.remove_prefix(2);
    out.push_back({ApkKind::Revision, take_digits(text)});
  }
  if (!text.empty()) return {};
  out.push_back({ApkKind::End, {}});
  return out;
}
int compare_apk_part(const ApkPart& a, const ApkPart& b) {
  if (a.kind == ApkKind::Suffix) return sign(a.suffix - b.suffix);
  if (a.kind == ApkKind::Letter || a.kind == ApkKind::Hash) return sign(a.text.compare(b.text));
  // 1.01 is a fraction: with a leading zero digits are compared one by one.
  if (a.kind == ApkKind::Number && (a.text[0] == '0' || b.text[0] == '0') && a.text != b.text)
    return sign(a.text.compare(b.text));
  return compare_numbers(a.text, b.text);
}

// ---- rpm: runs of digits and of letters, one by one; everything else only parts them, but for '~', which is before
// the end, and '^', which is after it and before everything else.
std::string_view take_letters(std::string_view& text) {
  std::size_t n = 0;
  while (n < text.size() && alpha(text[n])) ++n;
  const std::string_view out = text.substr(0, n);
  text.remove_prefix(n);
  return out;
}
int compare_rpm_part(std::string_view a, std::string_view b) {
  const auto starts = [](std::string_view text, char c) { return !text.empty() && text[0] == c; };
  const auto skip = [&](std::string_view& text) {
    while (!text.empty() && !digit(text[0]) && !alpha(text[0]) && text[0] != '~' && text[0] != '^')
      text.remove_prefix(1);
  };
  while (true) {
    skip(a), skip(b);
    if (starts(a, '~') || starts(b, '~')) {
      if (!starts(a, '~')) return 1;
      if (!starts(b, '~')) return -1;
    } else if (starts(a, '^') || starts(b, '^')) {
      if (a.empty()) return -1;
      if (b.empty()) return 1;
      if (!starts(a, '^')) return 1;
      if (!starts(b, '^')) return -1;
    } else if (a.empty() || b.empty()) {
      return a.empty() && b.empty() ? 0 : a.empty() ? -1 : 1;
    } else {
      const bool number = digit(a[0]);
      const std::string_view x = number ? take_digits(a) : take_letters(a);
      const std::string_view y = number ? take_digits(b) : take_letters(b);
      if (y.empty()) return number ? 1 : -1;  // numbers are newer than letters
      const int order = number ? compare_numbers(x, y) : sign(x.compare(y));
      if (order != 0) return order;
      continue;
    }
    a.remove_prefix(1), b.remove_prefix(1);
  }
}
struct RpmVersion {
  std::string_view epoch = "0", version, release;
};
std::optional<RpmVersion> read_rpm(std::string_view text) {
  RpmVersion out;
  if (text.empty() || text.size() > kVersionMax) return {};
  if (!std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; })) return {};
  if (const auto colon = text.find(':'); colon != std::string_view::npos) {
    out.epoch = text.substr(0, colon);
    if (out.epoch.empty() || !std::all_of(out.epoch.begin(), out.epoch.end(), digit)) return {};
    text.remove_prefix(colon + 1);
  }
  const auto dash = text.rfind('-');
  out.version = text.substr(0, dash);
  if (dash != std::string_view::npos) out.release = text.substr(dash + 1);
  if (out.version.empty()) return {};
  return out;
}

// ---- Python
struct PythonVersion {
  std::string_view epoch = "0";
  std::vector<std::string_view> release, local;
  std::string_view pre, post, dev;  // numbers
  int stage = 2;                    // a, b, rc: -3, -2, -1; 2 = a release
  bool has_post = false, has_dev = false;
};
struct Word {
  std::string_view text;
  int meaning;
};
constexpr std::array<Word, 8> kStages{
    {{"alpha", -3}, {"beta", -2}, {"preview", -1}, {"pre", -1}, {"rc", -1}, {"a", -3}, {"b", -2}, {"c", -1}}};
constexpr std::array<Word, 3> kPosts{{{"post", 0}, {"rev", 0}, {"r", 0}}};
constexpr std::array<Word, 1> kDevs{{{"dev", 0}}};

// [-_.]?WORD[-_.]?N? at the beginning: takes it.
template <std::size_t N>
std::optional<std::pair<int, std::string_view>> take_word(std::string_view& text, const std::array<Word, N>& words) {
  const auto separator = [](std::string_view t) {
    return !t.empty() && (t[0] == '-' || t[0] == '_' || t[0] == '.') ? std::size_t{1} : std::size_t{0};
  };
  std::string_view rest = text.substr(separator(text));
  for (const Word& word : words) {
    if (!rest.starts_with(word.text)) continue;
    rest.remove_prefix(word.text.size());
    if (const std::string_view behind = rest.substr(separator(rest)); !behind.empty() && digit(behind[0]))
      rest = behind;
    const std::string_view number = take_digits(rest);
    if (!rest.empty() && alpha(rest[0]) && number.empty()) return {};  // of a longer word
    text = rest;
    return std::pair(word.meaning, number);
  }
  return {};
}
std::optional<PythonVersion> read_python(std::string_view text) {
  PythonVersion out;
  if (text.starts_with('v')) text.remove_prefix(1);
  if (const auto mark = text.find('!'); mark != std::string_view::npos) {
    out.epoch = text.substr(0, mark);
    if (out.epoch.empty() || !std::all_of(out.epoch.begin(), out.epoch.end(), digit)) return {};
    text.remove_prefix(mark + 1);
  }
  if (text.empty() || !digit(text[0])) return {};
  out.release.push_back(take_digits(text));
  while (text.size() > 1 && text[0] == '.' && digit(text[1])) {
    text.remove_prefix(1);
    out.release.push_back(take_digits(text));
  }
  while (out.release.size() > 1 && compare_numbers(out.release.back(), "0") == 0) out.release.pop_back();
  if (const auto pre = take_word(text, kStages)) out.stage = pre->first, out.pre = pre->second;
  if (const auto post = take_word(text, kPosts)) {
    out.has_post = true, out.post = post->second;
  } else if (text.size() > 1 && text[0] == '-' && digit(text[1])) {
    text.remove_prefix(1);
    out.has_post = true, out.post = take_digits(text);
  }
  if (const auto dev = take_word(text, kDevs)) out.has_dev = true, out.dev = dev->second;
  if (text.size() > 1 && text[0] == '+') {
    text.remove_prefix(1);
    while (true) {
      std::size_t n = 0;
      while (n < text.size() && (digit(text[n]) || alpha(text[n]))) ++n;
      if (n == 0) return {};
      out.local.push_back(text.substr(0, n));
      text.remove_prefix(n);
      if (text.empty()) break;
      if (text[0] != '.' && text[0] != '-' && text[0] != '_') return {};
      text.remove_prefix(1);
    }
  }
  if (!text.empty()) return {};
  return out;
}
// A version for development alone comes before its first alpha.
int stage_of(const PythonVersion& v) {
  return v.stage == 2 && !v.has_post && v.has_dev ? -4 : v.stage;
}
int compare_local(const std::vector<std::string_view>& a, const std::vector<std::string_view>& b) {
  for (std::size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    if (i >= a.size() || i >= b.size()) return i >= a.size() ? -1 : 1;
    const bool a_number = std::all_of(a[i].begin(), a[i].end(), digit);
    const bool b_number = std::all_of(b[i].begin(), b[i].end(), digit);
    if (a_number != b_number) return a_number ? 1 : -1;
    if (const int order = a_number ? compare_numbers(a[i], b[i]) : sign(a[i].compare(b[i])); order != 0) return order;
  }
  return 0;
}
int compare(const PythonVersion& a, const PythonVersion& b) {
  if (const int order = compare_numbers(a.epoch, b.epoch); order != 0) return order;
  for (std::size_t i = 0; i < std::max(a.release.size(), b.release.size()); ++i) {
    const std::string_view x = i < a.release.size() ? a.release[i] : "0", y = i < b.release.size() ? b.release[i] : "0";
    if (const int order = compare_numbers(x, y); order != 0) return order;
  }
  if (stage_of(a) != stage_of(b)) return sign(stage_of(a) - stage_of(b));
  if (const int order = compare_numbers(a.pre, b.pre); order != 0) return order;
  if (a.has_post != b.has_post) return a.has_post ? 1 : -1;
  if (const int order = compare_numbers(a.post, b.post); order != 0) return order;
  if (a.has_dev != b.has_dev) return a.has_dev ? -1 : 1;
  if (const int order = compare_numbers(a.dev, b.dev); order != 0) return order;
  return compare_local(a.local, b.local);
}
std::string lowered(std::string_view text) {
  std::string out(text.substr(0, kVersionMax + 1));
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

}  // namespace

std::optional<int> compare_debian(std::string_view a, std::string_view b) {
  const auto x = read_debian(a), y = read_debian(b);
  if (!x || !y) return {};
  if (const int order = compare_numbers(x->epoch, y->epoch); order != 0) return order;
  if (const int order = compare_part(x->upstream, y->upstream); order != 0) return order;
  return compare_part(x->revision, y->revision);
}

// Without a release on either side the version alone counts.
std::optional<int> compare_rpm(std::string_view a, std::string_view b) {
  const auto x = read_rpm(a), y = read_rpm(b);
  if (!x || !y) return {};
  if (const int order = compare_numbers(x->epoch, y->epoch); order != 0) return order;
  if (const int order = compare_rpm_part(x->version, y->version); order != 0) return order;
  return x->release.empty() || y->release.empty() ? 0 : compare_rpm_part(x->release, y->release);
}

std::optional<int> compare_alpine(std::string_view a, std::string_view b) {
  const auto x = read_alpine(a), y = read_alpine(b);
  if (!x || !y) return {};
  for (std::size_t i = 0; i < std::min(x->size(), y->size()); ++i) {
    const ApkPart &p = (*x)[i], &q = (*y)[i];
    if (p.kind == q.kind) {
      if (const int order = compare_apk_part(p, q); order != 0) return order;
      continue;
    }
    if (p.kind == ApkKind::Suffix && p.suffix < 0) return -1;
    if (q.kind == ApkKind::Suffix && q.suffix < 0) return 1;
    return p.kind < q.kind ? 1 : -1;
  }
  return 0;
}

std::optional<int> compare_python(std::string_view a, std::string_view b) {
  const std::string first = lowered(a), second = lowered(b);
  if (first.size() > kVersionMax || second.size() > kVersionMax) return {};
  const auto x = read_python(first), y = read_python(second);
  if (!x || !y) return {};
  return compare(*x, *y);
}

std::optional<int> compare_versions(std::string_view ecosystem, std::string_view a, std::string_view b) {
  const std::string_view kind = ecosystem.substr(0, ecosystem.find(':'));
  if (kind == "Debian" || kind == "Ubuntu") return compare_debian(a, b);
  if (kind == "Alpine" || kind == "Wolfi" || kind == "Chainguard") return compare_alpine(a, b);
  if (kind == "PyPI") return compare_python(a, b);
  if (is_rpm_family(kind)) return compare_rpm(a, b);
  return {};
}

}  // namespace muster::scan
