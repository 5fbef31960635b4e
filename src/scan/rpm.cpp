#include "scan/rpm.h"

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "scan/inventory.h"

namespace muster::scan {
namespace {

// A view that is never read beyond its end: what lies there is 0.
class Bits {
 public:
  explicit Bits(std::string_view bytes) : bytes_(bytes) {}
  std::uint8_t at(std::size_t i) const { return i < bytes_.size() ? static_cast<std::uint8_t>(bytes_[i]) : 0; }
  std::uint32_t be16(std::size_t i) const { return static_cast<std::uint32_t>(at(i) << 8 | at(i + 1)); }
  std::uint32_t be32(std::size_t i) const { return be16(i) << 16 | be16(i + 2); }
  std::uint32_t le16(std::size_t i) const { return static_cast<std::uint32_t>(at(i + 1) << 8 | at(i)); }
  std::uint32_t le32(std::size_t i) const { return le16(i + 2) << 16 | le16(i); }
  std::string_view from(std::size_t i, std::size_t size) const {
    return i <= bytes_.size() && size <= bytes_.size() - i ? bytes_.substr(i, size) : std::string_view();
  }
  std::size_t size() const { return bytes_.size(); }

 private:
  std::string_view bytes_;
};

using Each = std::function<void(std::string_view header)>;  // of one package; empty: one that cannot be read

// ---- a header
constexpr std::uint32_t kName = 1000, kVersion = 1001, kRelease = 1002, kEpoch = 1003, kSourceRpm = 1044;
constexpr std::uint32_t kTagsMax = 1 << 16;

struct Header {
  std::string name, version, release, source;
  std::uint32_t epoch = 0;
};
std::string word(const Bits& bits, std::size_t at, std::size_t end) {
  std::string out;
  for (; at < end && bits.at(at) != 0; ++at) {
    if (bits.at(at) <= 0x20 || bits.at(at) >= 0x7f || out.size() >= kFieldMax) return {};
    out.push_back(static_cast<char>(bits.at(at)));
  }
  return at < end ? out : std::string();
}
std::optional<Header> read_header(std::string_view bytes) {
  const Bits bits(bytes);
  const std::size_t entries = bits.be32(0), data = 8 + entries * 16, size = bits.be32(4);
  if (entries == 0 || entries > kTagsMax || data + size > bytes.size()) return {};
  Header out;
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t entry = 8 + i * 16;
    const std::uint32_t tag = bits.be32(entry), type = bits.be32(entry + 4), offset = bits.be32(entry + 8);
    if (offset >= size) continue;
    const std::size_t at = data + offset;
    if (tag == kEpoch && type == 4) out.epoch = bits.be32(at);
    if (type != 6) continue;
    if (tag == kName) out.name = word(bits, at, data + size);
    if (tag == kVersion) out.version = word(bits, at, data + size);
    if (tag == kRelease) out.release = word(bits, at, data + size);
    if (tag == kSourceRpm) out.source = word(bits, at, data + size);
  }
  if (out.name.empty() || out.version.empty()) return {};
  return out;
}

// "openssl-3.0.7-27.el9.src.rpm": the name, and version and release.
std::pair<std::string, std::string> source_of(std::string_view file) {
  for (const std::string_view end : {".src.rpm", ".nosrc.rpm"})
    if (file.ends_with(end)) file.remove_suffix(end.size());
  const auto release = file.rfind('-');
  if (release == std::string_view::npos || release == 0) return {};
  const auto version = file.rfind('-', release - 1);
  if (version == std::string_view::npos) return {};
  return {std::string(file.substr(0, version)), std::string(file.substr(version + 1))};
}

void add_header(Inventory& inventory, std::string_view bytes) {
  const auto header = read_header(bytes);
  if (!header) {
    ++inventory.skipped;
    return;
  }
  if (header->name == "gpg-pubkey") return;  // keys that packages are signed with lie among them
  const std::string epoch = header->epoch == 0 ? "" : std::to_string(header->epoch) + ":";
  Package package{.ecosystem = inventory.system.empty() ? "rpm" : inventory.system, .name = header->name};
  package.version = epoch + header->version + (header->release.empty() ? "" : "-" + header->release);
  auto [source, source_version] = source_of(header->source);
  package.source = std::move(source);
  if (!source_version.empty()) package.source_version = epoch + source_version;
  add_package(inventory, std::move(package));
}

// ---- SQLite: the leaves of one table
class SqliteFile {
 public:
  explicit SqliteFile(std::string_view bytes) : bits_(bytes), page_(bits_.be16(16) == 1 ? 65'536 : bits_.be16(16)) {
    usable_ = page_ - std::min<std::size_t>(bits_.at(20), page_);
  }
  bool good() const { return page_ >= 512 && (page_ & (page_ - 1)) == 0 && usable_ >= 480; }

  void rows(std::uint32_t root, const std::function<void(std::string_view record)>& each) const {
    std::vector<std::uint32_t> todo{root};
    std::size_t left = bits_.size() / page_ + 1;  // no page is looked at twice in a file that is whole
    while (!todo.empty()) {
      const std::uint32_t number = todo.back();
      todo.pop_back();
      if (left-- == 0) return each({});
      const std::size_t start = (std::size_t{number} - 1) * page_, head = number == 1 ? start + 100 : start;
      if (number == 0 || start + page_ > bits_.size()) {
        each({});
        continue;
      }
      const std::uint8_t kind = bits_.at(head);
      if (kind != 5 && kind != 13) {
        each({});
        continue;
      }
      const std::size_t cells = bits_.be16(head + 3), pointers = head + (kind == 5 ? 12 : 8);
      if (pointers + 2 * cells > start + page_) {
        each({});
        continue;
      }
      if (kind == 5) todo.push_back(bits_.be32(head + 8));
      for (std::size_t i = cells; kind == 5 && i-- > 0;) {
        if (todo.size() > bits_.size() / page_ + 1) return each({});
        todo.push_back(bits_.be32(start + bits_.be16(pointers + 2 * i)));
      }
      for (std::size_t i = 0; kind == 13 && i < cells; ++i)
        each(payload(start + bits_.be16(pointers + 2 * i), start + page_));
    }
  }
  struct Value {
    std::uint64_t number = 0;
    std::string_view bytes;
  };
  static std::vector<Value> values(std::string_view record) {
    const Bits bits(record);
    std::size_t at = 0;
    const std::size_t head = varint(bits, at);
    std::size_t body = head;
    std::vector<Value> out;
    while (at < head && head <= record.size() && out.size() < 16) {
      const std::uint64_t kind = varint(bits, at);
      constexpr std::array<std::size_t, 12> kSizes{0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0};
      const std::uint64_t size = kind < 12 ? kSizes[kind] : (kind - 12) / 2;
      if (size > record.size() || body > record.size() - size) return {};
      Value value{kind == 9 ? 1U : 0U, bits.from(body, static_cast<std::size_t>(size))};
      for (std::size_t i = 0; kind <= 6 && i < size; ++i) value.number = value.number << 8 | bits.at(body + i);
      out.push_back(value);
      body += static_cast<std::size_t>(size);
    }
    return out;
  }

 private:
  static std::uint64_t varint(const Bits& bits, std::size_t& at) {
    std::uint64_t out = 0;
    for (int i = 0; i < 9; ++i) {
      const std::uint8_t byte = bits.at(at++);
      if (i == 8) return out << 8 | byte;
      out = out << 7 | (byte & 0x7fU);
      if ((byte & 0x80) == 0) break;
    }
    return out;
  }
  // What does not fit into the page goes on in others.
  std::string_view payload(std::size_t at, std::size_t end) const {
    const std::uint64_t size = varint(bits_, at);
    varint(bits_, at);  // its number
    if (size == 0 || size > kRpmHeaderMax || at >= end) return {};
    const std::size_t whole = usable_ - 35, least = (usable_ - 12) * 32 / 255 - 23;
    const auto wanted = static_cast<std::size_t>(size);
    if (wanted <= whole) return at + wanted <= end ? bits_.from(at, wanted) : std::string_view();
    const std::size_t some = least + (wanted - least) % (usable_ - 4), here = some <= whole ? some : least;
    if (at + here + 4 > end) return {};
    buffer_ = bits_.from(at, here);
    std::uint32_t next = bits_.be32(at + here);
    while (buffer_.size() < wanted) {  // each page brings something, so it ends
      const std::size_t start = (std::size_t{next} - 1) * page_;
      const std::string_view more =
          next == 0 ? std::string_view() : bits_.from(start + 4, std::min(usable_ - 4, wanted - buffer_.size()));
      if (more.empty()) return {};
      buffer_.append(more);
      next = bits_.be32(start);
    }
    return buffer_;
  }
  Bits bits_;
  std::size_t page_, usable_ = 0;
  mutable std::string buffer_;
};

void headers_of_sqlite(std::string_view bytes, const Each& each) {
  const SqliteFile file(bytes);
  std::uint32_t root = 0;
  if (!file.good()) return each({});
  file.rows(1, [&](std::string_view record) {
    const auto row = SqliteFile::values(record);  // type, name, table, root page, statement
    if (row.size() >= 4 && row[0].bytes == "table" && row[1].bytes == "Packages")
      root = static_cast<std::uint32_t>(row[3].number);
  });
  if (root == 0) return each({});
  file.rows(root, [&](std::string_view record) {
    const auto row = SqliteFile::values(record);  // number, header
    each(row.size() >= 2 ? row[1].bytes : std::string_view());
  });
}

// ---- ndb: slots that say where each header lies, in blocks of 16 bytes
constexpr std::string_view kNdb = "RpmP";

void headers_of_ndb(std::string_view bytes, const Each& each) {
  const Bits bits(bytes);
  const std::size_t end = std::min<std::size_t>(std::size_t{bits.le32(12)} * 4096, bytes.size());
  for (std::size_t slot = 32; slot + 16 <= end; slot += 16) {
    if (bits.from(slot, 4) != "Slot") return each({});
    if (bits.le32(slot + 4) == 0) continue;  // free
    const std::size_t at = std::size_t{bits.le32(slot + 8)} * 16, size = bits.le32(at + 12);
    const bool fine = bits.from(at, 4) == "BlbS" && bits.le32(at + 4) == bits.le32(slot + 4);
    each(fine ? bits.from(at + 16, size) : std::string_view());
  }
}

// ---- Berkeley DB: pages of a hash, whose large values are chains of other pages
constexpr std::uint32_t kHashMagic = 0x061561;
constexpr std::size_t kPageHead = 26;

class HashFile {
 public:
  explicit HashFile(std::string_view bytes)
      : bits_(bytes), big_(bits_.be32(12) == kHashMagic), page_(four(20)), last_(four(32)) {}
  bool good() const {
    return four(12) == kHashMagic && page_ >= 512 && page_ <= 65'536 && std::uint64_t{last_} * page_ <= bits_.size();
  }
  void headers(const Each& each) const {
    for (std::size_t number = 1; number <= last_; ++number) {
      const std::size_t start = number * page_;
      const std::uint8_t kind = bits_.at(start + 25);
      if (kind != 2 && kind != 13) continue;
      const std::size_t entries = two(start + 20);
      if (kPageHead + 2 * entries > page_) {
        each({});
        continue;
      }
      for (std::size_t i = 1; i < entries; i += 2) value(start, i, each);  // a key, its value, a key, ...
    }
  }

 private:
  std::uint32_t two(std::size_t i) const { return big_ ? bits_.be16(i) : bits_.le16(i); }
  std::uint32_t four(std::size_t i) const { return big_ ? bits_.be32(i) : bits_.le32(i); }
  // Where item i of the page lies, without its kind. They fill the page from its end.
  std::string_view item(std::size_t start, std::size_t i) const {
    const std::size_t at = two(start + kPageHead + 2 * i), end = i == 0 ? page_ : two(start + kPageHead + 2 * i - 2);
    return at + 1 <= end && end <= page_ ? bits_.from(start + at + 1, end - at - 1) : std::string_view();
  }
  void value(std::size_t start, std::size_t i, const Each& each) const {
    if (const std::string_view key = item(start, i - 1); key == std::string_view("\0\0\0\0", 4)) return;  // a counter
    const std::size_t at = start + two(start + kPageHead + 2 * i);
    if (bits_.at(at) == 1) return each(item(start, i));
    const std::size_t wanted = four(at + 8);
    if (bits_.at(at) != 3 || wanted > kRpmHeaderMax) return each({});
    std::string whole;
    std::size_t number = four(at + 4);
    while (whole.size() < wanted) {  // each page brings something, so it ends
      const std::size_t from = number * page_, size = two(from + 22);
      const bool fine = number != 0 && number <= last_ && bits_.at(from + 25) == 7 && kPageHead + size <= page_;
      const std::string_view more = fine ? bits_.from(from + kPageHead, size) : std::string_view();
      if (more.empty()) return each({});
      whole.append(more);
      number = four(from + 16);
    }
    each(whole);
  }
  Bits bits_;
  bool big_;
  std::size_t page_, last_;
};

constexpr std::array<std::string_view, 2> kFolders{"var/lib/rpm/", "usr/lib/sysimage/rpm/"};
constexpr std::array<std::string_view, 3> kFiles{"rpmdb.sqlite", "Packages.db", "Packages"};
constexpr std::array<std::string_view, 9> kFamilies{"AlmaLinux",   "Rocky Linux", "Red Hat",   "openSUSE", "SUSE",
                                                    "Azure Linux", "Photon OS",   "openEuler", "Mageia"};

}  // namespace

bool is_rpm_database(std::string_view path) {
  for (const std::string_view folder : kFolders)
    if (path.starts_with(folder))
      return std::find(kFiles.begin(), kFiles.end(), path.substr(folder.size())) != kFiles.end();
  return false;
}

bool is_rpm_family(std::string_view family) {
  return std::find(kFamilies.begin(), kFamilies.end(), family) != kFamilies.end();
}

void take_rpm(Inventory& inventory, std::string_view bytes) {
  const Each each = [&](std::string_view header) { add_header(inventory, header); };
  if (bytes.starts_with(std::string_view("SQLite format 3\0", 16)))
    headers_of_sqlite(bytes, each);
  else if (bytes.starts_with(kNdb))
    headers_of_ndb(bytes, each);
  else if (const HashFile hash(bytes); hash.good())
    hash.headers(each);
  else
    each({});
}

}  // namespace muster::scan
